//! The architecture, kept: a file imports only from layers above its own, from its own layer, or from its own folder; `unsafe`
//! stays where it is allowed; every library file is declared in a layer.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Modules of the crate in layer order; a line is a layer.
const LAYERS: &[&[&str]] = &[
    &["console", "error", "files", "machine", "metrics", "rng", "tensor", "version"],
    &["backend"],
    &["weights"],
    &["model"],
    &["checkpoint", "optimizer"],
    &["sandbox"],
    &["task"],
    &["message"],
    &["reward", "trajectory"],
    &["chat", "tokenizer"],
    &["environment"],
    &["config"],
    &["batch", "rollout"],
    &["agent", "dataset", "state_pool"],
    &["export", "identity", "plan", "progress", "run"],
    &["expert", "exercises", "ideas"],
    &["evaluate", "ppo", "pretrain", "rl", "sft"],
    &["bench", "report"],
    &["cli"],
];

/// (module, what it must never see): invariants beyond the order.
const NEVER: &[(&str, &[&str])] = &[
    ("rollout", &["environment", "task", "sandbox", "reward", "trajectory", "chat", "tokenizer"]),
    ("sandbox", &["tokenizer", "task", "model", "trajectory", "chat"]),
    ("reward", &["files", "task", "environment", "sandbox"]),
    ("model", &["weights", "checkpoint", "files"]),
    ("ppo", &["environment", "task", "sandbox", "tokenizer", "trajectory"]),
];

/// (library, the only file that may use it).
const ONLY: &[(&str, &str)] = &[("rusqlite", "environment/store.rs"), ("zstd", "environment/store.rs")];

/// Where `unsafe` may stand.
const UNSAFE: &[&str] =
    &["backend/cpu/gemm.rs", "backend/cpu/gemm/", "backend/cpu/simd.rs", "backend/cuda/", "weights.rs", "sandbox/"];

fn sources() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut folders, mut files) = (vec![root.clone()], vec![]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                files.push((path.strip_prefix(&root).unwrap().to_path_buf(), text));
            }
        }
    }
    files.sort();
    files
}

/// The crate module a file belongs to.
fn module(path: &Path) -> String {
    let first = path.components().next().unwrap().as_os_str().to_str().unwrap();
    first.trim_end_matches(".rs").to_string()
}

/// Code lines, without comments and without what stands behind the test module.
fn code(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .take_while(|line| !line.starts_with("#[cfg(test)]"))
        .filter(|line| !line.trim_start().starts_with("//"))
}

/// Names that follow `crate::` on a line, one level deep, groups included: `use crate::{a::B, c};` gives a and c.
fn imports(line: &str) -> Vec<String> {
    let name = |s: &str| s.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut found = vec![];
    for (at, _) in line.match_indices("crate::") {
        let rest = &line[at + "crate::".len()..];
        let Some(group) = rest.strip_prefix('{') else {
            found.push(name(rest));
            continue;
        };
        let mut depth = 0;
        let mut start = true;
        for (i, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => start = true,
                c if start && c.is_alphabetic() => {
                    found.push(name(&group[i..]));
                    start = false;
                }
                _ => {}
            }
        }
    }
    found
}

#[test]
fn files_import_from_their_own_layer_or_above() {
    let layer: BTreeMap<&str, usize> =
        LAYERS.iter().enumerate().flat_map(|(i, names)| names.iter().map(move |n| (*n, i))).collect();
    let mut checked = 0;
    let mut wrong = vec![];
    for (path, text) in sources() {
        let own = module(&path);
        if own == "lib" || own == "main" {
            continue;
        }
        let own_layer = *layer.get(own.as_str()).unwrap_or_else(|| panic!("{} is in no layer", path.display()));
        for line in code(&text) {
            for import in imports(line) {
                let Some(&other) = layer.get(import.as_str()) else { continue };
                checked += 1;
                let never = NEVER.iter().any(|(module, names)| *module == own && names.contains(&import.as_str()));
                if import != own && (other > own_layer || never) {
                    wrong.push(format!("{}: {}", path.display(), line.trim()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "imports against the layers:\n{}", wrong.join("\n"));
    assert!(checked > 100, "only {checked} imports were seen");
}

#[test]
fn everything_is_printed_by_the_console() {
    let printed = |line: &&str| ["println!", "print!(", "dbg!("].iter().any(|macro_| line.contains(macro_));
    let others: Vec<String> = sources()
        .iter()
        .filter(|(path, _)| path.to_str() != Some("console.rs"))
        .flat_map(|(path, text)| {
            code(text).filter(printed).map(|line| format!("{}: {line}", path.display())).collect::<Vec<_>>()
        })
        .collect();
    assert!(
        others.is_empty(),
        "print with crate::console: std's macros panic when nobody reads:\n{}",
        others.join("\n")
    );
}

#[test]
fn the_database_is_known_to_one_file() {
    let mut users: Vec<(&str, String)> = vec![];
    for (path, text) in sources() {
        for (library, _) in ONLY {
            if code(&text).any(|line| line.contains(&format!("{library}::"))) {
                users.push((library, path.display().to_string()));
            }
        }
    }
    let expected: Vec<_> = ONLY.iter().map(|(library, file)| (*library, file.to_string())).collect();
    assert_eq!(users, expected);
}

#[test]
fn unsafe_stays_in_its_layer_and_says_why() {
    let mut seen = 0;
    for (path, text) in sources() {
        let lines: Vec<&str> = text.lines().collect();
        for (i, line) in lines.iter().enumerate() {
            let code = line.split("//").next().unwrap_or("");
            if !code.contains("unsafe {") && !code.contains("unsafe fn ") && !code.contains("unsafe impl") {
                continue;
            }
            seen += 1;
            let place = path.to_str().unwrap();
            assert!(
                UNSAFE.iter().any(|allowed| place.starts_with(allowed)),
                "{place}:{}: unsafe outside its layer",
                i + 1
            );
            let around = &lines[i.saturating_sub(12)..=i];
            let told = around.iter().any(|l| l.contains("SAFETY") || l.contains("# Safety"));
            assert!(told, "{place}:{}: unsafe without its contract", i + 1);
        }
    }
    assert!(seen > 0);
}

#[test]
fn imports_are_read_from_groups_too() {
    assert_eq!(imports("use crate::{a::B, c::{D, E}, f};"), ["a", "c", "f"]);
    assert_eq!(imports("let x = crate::g::h(crate::i);"), ["g", "i"]);
}
