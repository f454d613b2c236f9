//! Loads the settings: the defaults of data/config/default.toml, then a file, then `section.key=value` overrides.
//! `SETTINGS` has each one's range and meaning. No setting has a default in code, and none is read from the
//! environment.

use crate::error::{Error, Result};
use range::shortened;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

mod check;
mod range;
mod sections;
mod table;

pub use range::Range;
pub use sections::Config;
pub use table::{DEFAULTS, SETTINGS, Setting};

/// The quickstart's settings file. Its keys serve several algorithms, so none is noted as doing nothing.
const BUNDLED: &str = "data/config/quickstart.toml";

/// Where each given key got its value.
#[derive(Default)]
struct Origins(BTreeMap<String, Origin>);

struct Origin {
    /// `run.toml, line 3` or `override \`gamma=7\``.
    place: String,
    is_override: bool,
}

impl Origins {
    /// An error with `text` behind the places where `keys` were given: usage if any of them was an override, else
    /// content.
    fn error(&self, keys: &[&str], text: &str) -> Error {
        let given: Vec<&Origin> = keys.iter().filter_map(|key| self.0.get(*key)).collect();
        let places: Vec<&str> = given.iter().map(|origin| origin.place.as_str()).collect();
        let text = if places.is_empty() { text.to_string() } else { format!("{}: {text}", places.join(", ")) };
        if given.iter().any(|origin| origin.is_override) { Error::usage(text) } else { Error::content(text) }
    }
}

impl Config {
    /// Loads the defaults, then `layers` (name, TOML text) in order, then overrides `section.key=value` (a bare key
    /// belongs to `section`, the command's). Settings are checked together when all are known. Errors name the file and
    /// line or the override, what was expected and a valid value.
    pub fn load(layers: &[(String, String)], overrides: &[String], section: &str) -> Result<Self> {
        Ok(Self::load_noting(layers, overrides, section)?.0)
    }

    /// As `load`, with notes: one for each setting typed twice with different values and, for the section `rl`, one for
    /// each given setting that does nothing beside the others.
    pub fn load_noting(
        layers: &[(String, String)],
        overrides: &[String],
        section: &str,
    ) -> Result<(Self, Vec<String>)> {
        let defaults: Table = DEFAULTS.parse().map_err(|e| Error::system(format!("data/config/default.toml: {e}")))?;
        let (mut merged, mut origins, mut telling) = (defaults.clone(), Origins::default(), vec![]);
        for (name, text) in layers {
            let table: Table = text.parse().map_err(|e| Error::content(format!("{name}: {e}")))?;
            for (section, value) in &table {
                let place = |key: &str| format!("{name}, line {}", line_of(text, section, key));
                let Value::Table(entries) = value else {
                    return Err(Error::content(format!(
                        "{}: `{section}` stands outside a section; sections are [{}]",
                        place(section),
                        keys(&defaults).replace(", ", "], [")
                    )));
                };
                if !defaults.contains_key(section) {
                    return Err(Error::content(format!(
                        "{name}: unknown section [{section}]; sections are {}",
                        keys(&defaults)
                    )));
                }
                for (key, value) in entries {
                    let path =
                        set(&mut merged, &defaults, section, key, value.clone()).map_err(|e| e.context(place(key)))?;
                    // A run's own config.toml gives every key: only those that differ from the defaults are noted.
                    let differs =
                        merged.get(section).and_then(|t| t.get(key)) != defaults.get(section).and_then(|t| t.get(key));
                    if differs && !Path::new(name).ends_with(BUNDLED) {
                        telling.push(path.clone());
                    }
                    origins.0.insert(path, Origin { place: place(key), is_override: false });
                }
            }
        }
        let (mut typed, mut notes): (BTreeMap<String, (&String, &str)>, Vec<String>) = Default::default();
        for text in overrides {
            let shown = shortened(text);
            let Some((path, value)) = text.split_once('=') else {
                return Err(Error::usage(format!(
                    "override `{shown}`: expected section.key=value, for example {section}.{}",
                    example(&defaults, section)
                )));
            };
            let (section, key) = path.trim().split_once('.').unwrap_or((section, path.trim()));
            let path = set(&mut merged, &defaults, section, key, typed_value(value))
                .map_err(|e| Error::usage(format!("override `{shown}`: {e}")))?;
            if let Some((earlier, before)) = typed.insert(path.clone(), (text, value))
                && before != value
            {
                notes.push(format!(
                    "{path} is given twice, as `{}` and as `{shown}`: the last one counts",
                    shortened(earlier)
                ));
            }
            telling.push(path.clone());
            origins.0.insert(path, Origin { place: format!("override `{shown}`"), is_override: true });
        }
        let config = Self::checked(&merged, &origins, section)?;
        if section == "rl" {
            notes.extend(config.notes(&telling, &origins));
        }
        Ok((config, notes))
    }

    /// The settings as TOML, as they are written beside the results.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).map_err(|e| Error::system(format!("writing the configuration: {e}")))
    }

    /// Reads the settings in `table`, and checks types, ranges and combinations for a command of `section`.
    fn checked(table: &Table, origins: &Origins, section: &str) -> Result<Self> {
        let fault = |fault: check::Fault| Err(origins.error(&fault.keys, &fault.text));
        if let Some(found) = check::ranges(table) {
            return fault(found);
        }
        let config: Self = serde_path_to_error::deserialize(Value::Table(table.clone()))
            .map_err(|e| Error::system(format!("reading the settings: {}: {}", e.path(), e.inner().message())))?;
        check::combinations(&config, section).map_or(Ok(config), fault)
    }

    /// A note for each key in `telling` that does nothing.
    fn notes(&self, telling: &[String], origins: &Origins) -> Vec<String> {
        let idle = check::idle(self);
        let note = |(key, why): &(&str, String)| {
            let place = origins.0.get(*key).map(|origin| origin.place.as_str()).unwrap_or_default();
            format!("{key} does nothing with {why} ({place})")
        };
        idle.iter().filter(|(key, _)| telling.iter().any(|given| given == key)).map(note).collect()
    }
}

fn keys(table: &Table) -> String {
    table.keys().map(String::as_str).collect::<Vec<_>>().join(", ")
}

fn example(defaults: &Table, section: &str) -> String {
    let entry = defaults.get(section).and_then(Value::as_table).and_then(|t| t.iter().next());
    entry.map_or_else(|| "seed=1".to_string(), |(k, v)| format!("{k}={v}"))
}

/// The value of a typed setting: TOML, or text without quotes.
fn typed_value(text: &str) -> Value {
    let text = text.trim();
    text.parse().unwrap_or_else(|_| Value::String(text.to_string()))
}

/// Sets one value and returns section.key. Error: no such section or key.
fn set(merged: &mut Table, defaults: &Table, section: &str, key: &str, value: Value) -> Result<String> {
    let Some(known) = defaults.get(section).and_then(Value::as_table) else {
        let section = shortened(section);
        return Err(Error::content(format!("unknown section `{section}`; sections are {}", keys(defaults))));
    };
    let path = format!("{section}.{key}");
    let Some(setting) = Setting::named(&path) else {
        let key = shortened(key);
        return Err(Error::content(format!("unknown key `{key}` in [{section}]; keys are {}", keys(known))));
    };
    if let Some(Value::Table(table)) = merged.get_mut(section) {
        table.insert(key.to_string(), setting.range.converted(value));
    }
    Ok(path)
}

/// The line (from 1) that sets a section's key, in any form of TOML, or a key outside of sections if `section` is that
/// key. 1 when it cannot be found.
fn line_of(text: &str, section: &str, key: &str) -> usize {
    fn find<'t, 'i>(table: &'t DeTable<'i>, name: &str) -> Option<(usize, &'t DeValue<'i>)> {
        let (key, value) = table.iter().find(|(key, _)| key.get_ref() == name)?;
        Some((key.span().start, value.get_ref()))
    }
    let place = |document: &DeTable| {
        let (outer, value) = find(document, section)?;
        let inner = value.as_table().and_then(|table| find(table, key));
        Some(inner.map_or(outer, |(start, _)| start))
    };
    let start = DeTable::parse(text).ok().and_then(|document| place(document.get_ref())).unwrap_or(0);
    1 + text.bytes().take(start).filter(|&byte| byte == b'\n').count()
}

/// Resolves a relative path of the settings: against the working folder if it is there, else against the nearest folder
/// above that or above the program that has it. Errors name what was looked for.
pub fn locate(path: &Path) -> Result<PathBuf> {
    if path.is_absolute() || path.exists() {
        return Ok(path.to_path_buf());
    }
    let program = std::env::current_exe().ok();
    let here = std::env::current_dir().ok();
    let folders = [here, program].into_iter().flatten();
    let mut candidates = folders.flat_map(|p| p.ancestors().map(|a| a.join(path)).collect::<Vec<_>>());
    candidates.find(|p| p.exists()).ok_or_else(|| {
        Error::content(format!(
            "{} was found neither here nor above the program; start in the project's folder or give its path",
            path.display()
        ))
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
