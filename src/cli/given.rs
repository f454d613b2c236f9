//! Checks the typed settings against what a verb uses: notes those that it does not read, and refuses those that
//! contradict each other.

use super::args::RunArgs;
use crate::config::Config;
use crate::console::errln;
use crate::error::{Error, Result};
use crate::identity::is_read;
use crate::model::lora::LoraConfig;
use std::path::{Path, PathBuf};

/// The settings that a command was given.
pub struct Given<'a> {
    /// The verb.
    pub verb: &'static str,
    /// The section of bare keys.
    pub section: &'static str,
    /// `--config`.
    pub file: Option<&'a Path>,
    /// Overrides, `section.key=value`, as typed.
    pub overrides: &'a [String],
}

/// The full key of an override, and its value.
fn key<'a>(text: &'a str, section: &str) -> Option<(String, &'a str)> {
    let (key, value) = text.split_once('=')?;
    let (key, value) = (key.trim(), value.trim());
    Some((if key.contains('.') { key.to_string() } else { format!("{section}.{key}") }, value))
}

impl<'a> Given<'a> {
    /// The settings of a verb that makes a run; bare keys belong to the section named like the verb.
    pub fn of_run(verb: &'static str, args: &'a RunArgs) -> Self {
        Self { verb, section: verb, file: args.config.as_deref(), overrides: &args.overrides }
    }

    /// Loads the settings, with those that options stand for (`--seed 1` is run.seed=1), and prints a note for each
    /// typed setting that the verb does not read. Error: an option and a typed setting give one setting two values.
    pub fn settings(&self, layers: &[&Path], options: &[(&str, &str, Option<String>)]) -> Result<Config> {
        let mut overrides = self.overrides.to_vec();
        for (option, name, value) in options {
            let Some(value) = value else { continue };
            match self.typed().find(|(key, _)| key == name) {
                None => {}
                Some((_, other)) if other == value => continue,
                Some((_, other)) => {
                    return Err(Error::usage(format!(
                        "{option} {value} and {name}={other} are two values of one setting; give one of them"
                    )));
                }
            }
            overrides.push(format!("{name}={value}"));
        }
        let layers: Vec<&Path> = layers.iter().copied().chain(self.file).collect();
        let config = super::session::settings(&layers, &overrides, self.section)?;
        self.tell_unread();
        Ok(config)
    }

    fn typed(&self) -> impl Iterator<Item = (String, &str)> {
        self.overrides.iter().filter_map(|text| key(text, self.section))
    }

    /// Prints a note for each typed setting that the verb does not read. Settings in a file get none: it may serve
    /// several verbs.
    pub fn tell_unread(&self) {
        for (key, value) in self.typed().filter(|(key, _)| !is_read(self.verb, key)) {
            errln!("note: {key}={value} changes nothing: {} does not read it", self.verb);
        }
    }

    /// Checks the given settings of `[lora]` against what fixes them: the shape of `adapter`, or with `None` full
    /// training, which has no adapter. Error: a typed one differs; one in the file only gets a note.
    pub fn check_lora(&self, config: &Config, adapter: Option<(&Path, &LoraConfig)>) -> Result<()> {
        let lora = &config.lora;
        let differs = |key: &str| match adapter {
            None => Some("sft.full=true trains all weights and makes no adapter".to_string()),
            Some((dir, has)) => {
                let short = |name: &str| name.trim_end_matches("_proj").to_string();
                let mut modules: [Vec<String>; 2] = [
                    lora.modules.iter().map(|m| short(m)).collect(),
                    has.modules.iter().map(|m| short(m.name())).collect(),
                ];
                modules.iter_mut().for_each(|list| list.sort());
                let (same, value) = match key {
                    "lora.rank" => (lora.rank == has.rank, has.rank.to_string()),
                    "lora.alpha" => (lora.alpha == has.alpha, has.alpha.to_string()),
                    "lora.rslora" => (lora.rslora == has.rslora, has.rslora.to_string()),
                    "lora.modules" => (modules[0] == modules[1], modules[1].join(",")),
                    _ => return None,
                };
                (!same).then(|| format!("--adapter {} has {key}={value} and keeps it", dir.display()))
            }
        };
        for (key, value) in self.typed().filter(|(key, _)| key.starts_with("lora.")) {
            if let Some(why) = differs(&key) {
                return Err(Error::usage(format!("{key}={value}: {why}; leave one of them out")));
            }
        }
        for key in self.in_file("lora") {
            if let Some(why) = differs(&key) {
                errln!("note: {key} of the configuration changes nothing: {why}");
            }
        }
        Ok(())
    }

    /// The keys of a section that the file sets.
    fn in_file(&self, section: &str) -> Vec<String> {
        // The file was read before: any error has been reported then.
        let text = self.file.and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or_default();
        let table: toml::Table = text.parse().unwrap_or_default();
        let keys = table.get(section).and_then(|section| section.as_table()).into_iter().flat_map(|table| table.keys());
        keys.map(|key| format!("{section}.{key}")).collect()
    }
}

/// The path of an option that must be given. Error: it is missing.
pub fn needed<'a>(path: &'a Option<PathBuf>, option: &str, example: &str) -> Result<&'a Path> {
    path.as_deref().ok_or_else(|| Error::usage(format!("{option} is needed, for example {option} {example}")))
}
