//! Finds the layers of a config.json that attend to a window only, by the rules of transformers 5, and refuses them:
//! this program attends to everything.

use super::keys::Keys;
use crate::error::Result;
use serde_json::Value;

/// Default of `sliding_window` in transformers.
const DEFAULT_WINDOW: usize = 4096;
/// Default of `max_window_layers` in transformers.
const DEFAULT_FIRST: usize = 28;

/// Refuses sliding-window attention; the error names the key that asks for it. A window as long as the longest sequence
/// is full attention.
///
/// In transformers `layer_types` says which layers have a window. Without it, the layers from `max_window_layers` on
/// have one if `use_sliding_window` is true and `sliding_window` is not null.
pub(super) fn check(keys: &Keys, layers: usize, max_positions: usize) -> Result<()> {
    let uses_window = keys.flag("use_sliding_window", false)?;
    let stated = keys.opt_count("sliding_window", 1 << 24)?;
    let window = match keys.map.get("sliding_window") {
        _ if !uses_window => None,
        Some(Value::Null) => None,
        _ => Some(stated.unwrap_or(DEFAULT_WINDOW)),
    };
    let first = keys.opt_whole("max_window_layers", 0, 1 << 20)?.unwrap_or(DEFAULT_FIRST);
    let types = keys.texts("layer_types")?;
    let sliding: Vec<usize> = match &types {
        None if window.is_some() => (first.min(layers)..layers).collect(),
        None => vec![],
        Some(types) if types.len() != layers => {
            let what = format!("{} types; expected one for each of num_hidden_layers {layers}", types.len());
            return Err(keys.error("layer_types", what));
        }
        Some(types) => {
            let is_known = |kind: &&str| matches!(*kind, "full_attention" | "sliding_attention");
            if let Some(other) = types.iter().find(|kind| !is_known(kind)) {
                let what = format!("{other:?} is not supported; valid is \"full_attention\"");
                return Err(keys.error("layer_types", what));
            }
            (0..layers).filter(|&layer| types[layer] == "sliding_attention").collect()
        }
    };
    if sliding.is_empty() || window.is_some_and(|window| window >= max_positions) {
        return Ok(());
    }
    let which = match sliding[..] {
        [one] => format!("layer {one}"),
        _ => format!("layers {}", sliding.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")),
    };
    let (key, valid) = match types {
        Some(_) => ("layer_types", "\"full_attention\" for each layer"),
        None => ("use_sliding_window", "false"),
    };
    let reach = window.map_or("a window".into(), |window| format!("the last {window} tokens"));
    Err(keys.error(
        key,
        format!("sliding-window attention is not supported ({which} would attend to {reach} only); valid is {valid}"),
    ))
}
