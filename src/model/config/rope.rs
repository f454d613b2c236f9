//! Reads the rotary embedding of a config.json, merged from its four places as in transformers 5
//! (modeling_rope_utils.py).

use super::keys::Keys;
use super::shape::{RopeConfig, RopeScaling};
use crate::error::Result;

const ROPE_TYPES: &str = "default, linear, llama3, yarn";
/// `default_theta` in transformers, the same for all three families.
const DEFAULT_THETA: f64 = 10_000.0;

/// Keys that every rope type may have.
const COMMON: [&str; 4] = ["rope_theta", "rope_type", "type", "partial_rotary_factor"];
const OF_LINEAR: [&str; 1] = ["factor"];
const OF_LLAMA3: [&str; 4] = ["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"];
const OF_YARN: [&str; 8] = [
    "factor",
    "original_max_position_embeddings",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "truncate",
];

/// Reads rope_theta, rope_scaling, rope_parameters and original_max_position_embeddings; adds a note for each key that
/// has no effect. The rules are those of transformers: rope_parameters has no effect beside rope_scaling; a theta
/// inside the one that counts overrides the theta outside; original_max_position_embeddings outside overrides the one
/// inside.
pub(super) fn read(keys: &Keys, max_positions: usize, notes: &mut Vec<String>) -> Result<RopeConfig> {
    check_partial(keys)?;
    let outer_theta = theta(keys)?;
    let (scaling, parameters) = (keys.object("rope_scaling")?, keys.object("rope_parameters")?);
    if let (Some(scaling), Some(parameters)) = (scaling, parameters)
        && scaling != parameters
    {
        notes.push(
            keys.note("rope_parameters", "it has no effect beside rope_scaling, as in transformers; keep one of them"),
        );
    }
    let (name, map) = match (scaling, parameters) {
        (Some(map), _) => ("rope_scaling", map),
        (None, Some(map)) => ("rope_parameters", map),
        (None, None) => {
            let theta = outer_theta.unwrap_or(DEFAULT_THETA);
            return Ok(RopeConfig { theta, scaling: RopeScaling::None });
        }
    };
    let prefix = format!("{name}.");
    let rope = Keys { map, prefix: &prefix, ..*keys };
    if let Some((key, _)) = map.iter().find(|(_, value)| value.is_object()) {
        let what = "parameters for each layer type are not supported; expected one set for all layers, such as \
                    {\"rope_type\": \"default\", \"rope_theta\": 10000.0}";
        return Err(rope.error(key, what));
    }
    check_partial(&rope)?;
    let inner_theta = theta(&rope)?;
    if let (Some(inner), Some(outer)) = (inner_theta, outer_theta)
        && inner != outer
    {
        notes.push(keys.note("rope_theta", format!("it has no effect: {prefix}rope_theta {inner} counts")));
    }
    let kind = match rope.text("rope_type")? {
        Some(kind) => kind,
        None => rope.text("type")?.unwrap_or("default"),
    };
    if rope.text("type")?.is_some_and(|old| old != kind) {
        notes.push(rope.note("type", format!("it has no effect: {prefix}rope_type {kind:?} counts")));
    }
    let (scaling, used) = scaling_of(&rope, keys, kind, max_positions)?;
    for (key, _) in map
        .iter()
        .filter(|(key, value)| !value.is_null() && !COMMON.contains(&key.as_str()) && !used.contains(&key.as_str()))
    {
        notes.push(rope.note(key, format!("it has no effect with rope_type {kind:?}")));
    }
    let outer = "original_max_position_embeddings";
    match (keys.get(outer), rope.get(outer)) {
        (Some(_), _) if !used.contains(&outer) => {
            notes.push(keys.note(outer, format!("it has no effect with rope_type {kind:?}")));
        }
        (Some(a), Some(b)) if a != b => {
            notes.push(
                rope.note(outer, format!("it has no effect: {outer} {a} outside of it counts, as in transformers")),
            );
        }
        _ => {}
    }
    Ok(RopeConfig { theta: inner_theta.or(outer_theta).unwrap_or(DEFAULT_THETA), scaling })
}

fn theta(keys: &Keys) -> Result<Option<f64>> {
    match keys.opt_positive("rope_theta")? {
        Some(theta) if theta <= 1.0 => Err(keys.error("rope_theta", format!("found {theta}, expected more than 1"))),
        theta => Ok(theta),
    }
}

fn check_partial(keys: &Keys) -> Result<()> {
    match keys.get("partial_rotary_factor") {
        Some(value) if value.as_f64() != Some(1.0) => {
            Err(keys.error("partial_rotary_factor", format!("found {value}, which is not supported; valid is 1.0")))
        }
        _ => Ok(()),
    }
}

/// Reads the scaling that `rope` describes, and returns it with the keys beside `COMMON` that its type may have.
/// `outer` holds the keys around `rope`.
fn scaling_of(
    rope: &Keys,
    outer: &Keys,
    kind: &str,
    max_positions: usize,
) -> Result<(RopeScaling, &'static [&'static str])> {
    let original = || -> Result<usize> {
        let key = "original_max_position_embeddings";
        let found = match outer.opt_count(key, 1 << 24)? {
            None => rope.opt_count(key, 1 << 24)?,
            found => found,
        };
        Ok(found.unwrap_or(max_positions))
    };
    match kind {
        "default" => Ok((RopeScaling::None, &[])),
        "linear" => Ok((RopeScaling::Linear { factor: rope.positive("factor")? }, &OF_LINEAR)),
        "llama3" => {
            let (low, high) = (rope.positive("low_freq_factor")?, rope.positive("high_freq_factor")?);
            if low >= high {
                return Err(rope.error("low_freq_factor", format!("{low} is not below high_freq_factor {high}")));
            }
            let scaling = RopeScaling::Llama3 {
                factor: rope.positive("factor")?,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_positions: original()?,
            };
            Ok((scaling, &OF_LLAMA3))
        }
        "yarn" => {
            let factor = rope.positive("factor")?;
            let mscale = |weight: f64| if factor <= 1.0 { 1.0 } else { 0.1 * weight * factor.ln() + 1.0 };
            let derived = match (rope.opt_positive("mscale")?, rope.opt_positive("mscale_all_dim")?) {
                (Some(part), Some(all)) => mscale(part) / mscale(all),
                _ => mscale(1.0),
            };
            let scaling = RopeScaling::Yarn {
                factor,
                original_max_positions: original()?,
                attention_factor: rope.opt_positive("attention_factor")?.unwrap_or(derived),
                beta_fast: rope.opt_positive("beta_fast")?.unwrap_or(32.0),
                beta_slow: rope.opt_positive("beta_slow")?.unwrap_or(1.0),
                truncate: rope.flag("truncate", true)?,
            };
            Ok((scaling, &OF_YARN))
        }
        other => {
            let key = if rope.get("rope_type").is_some() { "rope_type" } else { "type" };
            Err(rope.error(key, format!("scaling {other:?} is not supported; valid are {ROPE_TYPES}")))
        }
    }
}
