//! `onestep config`: prints settings with their defaults, their ranges and what they do.

use super::args::ConfigArgs;
use super::unknown;
use crate::config::{SETTINGS, Setting};
use crate::console::out;
use crate::error::{Error, Result};
use std::fmt::Write;

/// `onestep config`. Error: a name is neither a section nor a setting.
pub fn run(args: &ConfigArgs) -> Result<()> {
    let chosen = match args.names.as_slice() {
        [] => SETTINGS.iter().collect(),
        names => names.iter().map(|name| named(name)).collect::<Result<Vec<_>>>()?.concat(),
    };
    out!("{}", if args.markdown { markdown(&chosen) } else { text(&chosen) });
    Ok(())
}

/// The settings that `name` means: all of a section, one by its full key, or all with this bare key.
fn named(name: &str) -> Result<Vec<&'static Setting>> {
    let found: Vec<_> =
        SETTINGS.iter().filter(|s| name == s.key || name == s.parts().0 || name == s.parts().1).collect();
    if !found.is_empty() {
        return Ok(found);
    }
    let near = match unknown::nearest(name) {
        Some(key) => format!("; {key} is near"),
        None => String::new(),
    };
    Err(Error::usage(format!("no section and no setting is called `{name}`{near}; `onestep config` lists all")))
}

/// Groups settings by section, in the order of each section's first setting.
fn sections<'s>(settings: &[&'s Setting]) -> Vec<(&'static str, Vec<&'s Setting>)> {
    let mut sections: Vec<(&str, Vec<&Setting>)> = vec![];
    for setting in settings {
        let (section, _) = setting.parts();
        match sections.iter_mut().find(|(name, _)| *name == section) {
            Some((_, list)) => list.push(setting),
            None => sections.push((section, vec![setting])),
        }
    }
    sections
}

/// Two lines per setting: its key, default and range; what it does.
fn text(settings: &[&Setting]) -> String {
    let mut text = String::new();
    for (section, settings) in sections(settings) {
        let _ = writeln!(text, "[{section}]"); // writing to a String does not fail
        for setting in settings {
            let origin = Some(setting.origin()).filter(|o| !o.is_empty()).map_or(String::new(), |o| format!("; {o}"));
            let (value, range) = (setting.default(), setting.range.words_here());
            let _ = writeln!(text, "  {}={value}  ({range}{origin})\n      {}", setting.key, setting.meaning);
        }
    }
    text
}

/// The text of docs/settings.md: a table per section.
fn markdown(settings: &[&Setting]) -> String {
    let mut page = HEAD.to_string();
    for (section, settings) in sections(settings) {
        let _ = writeln!(page, "\n## [{section}]\n\n| setting | default | may be | what it does | elsewhere |");
        let _ = writeln!(page, "|---|---|---|---|---|");
        for setting in settings {
            let (value, origin) = (setting.default(), setting.origin());
            let (range, meaning) = (setting.range.words(), setting.meaning);
            let _ = writeln!(page, "| `{}` | `{value}` | {range} | {meaning} | {origin} |", setting.key);
        }
    }
    page
}

const HEAD: &str = "# Settings

This page is made by `onestep config --markdown`. The same stands in `onestep config`, a part of it in `onestep config rl` (a section) or
`onestep config rl.gamma`.

A setting is typed behind a command as `section.key=value`, or stands in the TOML file of `--config`; what is typed goes before the file, and
the file before the defaults. A bare key belongs to the command's own section: `onestep rl gamma=0.9`. Lists are typed as `a,b`. Of a
setting that is typed twice the last counts, and that is told. A value outside its range is refused before anything is computed. What does not
fit the model, the data or this machine (a rank above every layer's dimensions, a cache above the memory) is refused before anything is
allocated; `--dry-run` says so too.

The last column says what the paper (ML-Agent, arXiv 2505.23723), transformers' Trainer (HF) or verl's PPO trainer has.
";
