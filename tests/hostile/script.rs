//! A hostile script and what its first lines say about it.

use onestep::sandbox::{Limits, Outcome};
use std::path::Path;

pub const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/hostile");

/// Limits that no script comes near unless it tries to.
pub const LIMITS: Limits = Limits {
    cpu_seconds: 30.0,
    wall_seconds: 120.0,
    memory_bytes: 1 << 28,
    output_bytes: 1 << 20,
    file_bytes: 1 << 23,
    disk_bytes: 1 << 25,
    processes: 24,
};

#[derive(Debug)]
pub struct Script {
    pub name: String,
    pub text: String,
    /// `verdict:` how it may end, in any tier.
    pub verdicts: Vec<String>,
    /// `says:` what stdout must hold.
    pub says: Vec<String>,
    /// `leaves no:` names that must not be in its folder afterwards.
    pub leaves_no: Vec<String>,
    /// `limits:` name=amount.
    limits: Vec<(String, f64)>,
    /// `open in tier N:` or `open everywhere:` attempts that may work, and after a full stop why.
    open: Vec<(Option<u8>, String)>,
}

impl Script {
    /// The corpus, by name.
    pub fn all() -> Vec<Script> {
        let entries = std::fs::read_dir(FOLDER).unwrap().map(|entry| entry.unwrap().path());
        let mut scripts: Vec<Script> = entries
            .filter(|path| path.extension().is_some_and(|e| e == "py"))
            .map(|path| Script::read(&path))
            .collect();
        scripts.sort_by(|a, b| a.name.cmp(&b.name));
        scripts
    }

    fn read(path: &Path) -> Script {
        let text = std::fs::read_to_string(path).unwrap();
        let name = path.file_stem().unwrap().to_str().unwrap().to_string();
        let mut script = Script {
            name,
            text: text.clone(),
            verdicts: vec![],
            says: vec![],
            leaves_no: vec![],
            limits: vec![],
            open: vec![],
        };
        for line in text.lines().map_while(|line| line.strip_prefix("# ")) {
            let Some((key, value)) = line.split_once(": ") else { continue };
            let words = || value.split_whitespace().map(str::to_string);
            match key {
                "verdict" => script.verdicts.extend(words()),
                "says" => script.says.push(value.to_string()),
                "leaves no" => script.leaves_no.push(value.to_string()),
                "limits" => script.limits.extend(words().map(|word| amount(&word))),
                _ if key.starts_with("open ") => {
                    let (names, why) = value.split_once(". ").unwrap();
                    assert!(!why.is_empty(), "{}: {line}", script.name);
                    let tier = key.strip_prefix("open in tier ").map(|tier| tier.parse().unwrap());
                    script.open.extend(names.split(", ").map(|name| (tier, name.to_string())));
                }
                _ => {}
            }
        }
        script
    }

    pub fn limits(&self) -> Limits {
        let mut limits = LIMITS;
        for (name, amount) in &self.limits {
            match name.as_str() {
                "cpu" => limits.cpu_seconds = *amount,
                "wall" => limits.wall_seconds = *amount,
                "memory" => limits.memory_bytes = *amount as u64,
                "disk" => limits.disk_bytes = *amount as u64,
                "file" => limits.file_bytes = *amount as u64,
                _ => panic!("{}: unknown limit {name}", self.name),
            }
        }
        limits
    }

    /// True when the attempt that printed `line` may work in this tier.
    pub fn is_open(&self, tier: u8, line: &str) -> bool {
        self.open
            .iter()
            .any(|(open, name)| open.is_none_or(|open| open == tier) && line.starts_with(&format!("{name}: DONE")))
    }
}

/// `memory=64M` in bytes, `wall=0.5` in seconds.
fn amount(word: &str) -> (String, f64) {
    let (name, text) = word.split_once('=').unwrap();
    let unit = match text.chars().last() {
        Some('M') => 1048576.0,
        Some('G') => 1073741824.0,
        _ => 1.0,
    };
    (name.to_string(), text.trim_end_matches(['M', 'G']).parse::<f64>().unwrap() * unit)
}

/// The verdict in a word.
pub fn word(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Exited(0) => "ok",
        Outcome::Exited(_) => "error",
        Outcome::Signaled(_) => "killed",
        Outcome::CpuLimit | Outcome::WallLimit => "timeout",
        Outcome::MemoryLimit => "oom",
        Outcome::OutputLimit => "output",
        Outcome::FileLimit => "file",
        Outcome::ProcessLimit => "processes",
        Outcome::Quarantined => "quarantined",
    }
}
