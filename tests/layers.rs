//! The architecture, kept: files import downwards, never in a circle, and some modules never see others, not even through a third;
//! `unsafe` stays where it is allowed; every library file is declared in a layer.

#![allow(clippy::unwrap_used)]

#[path = "layers/graph.rs"]
mod graph;

use graph::Graph;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Modules of the crate in layer order; a line is a layer.
const LAYERS: &[&[&str]] = &[
    &["console", "error", "files", "machine", "metrics", "rng", "settings", "tensor", "version"],
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
    &["batch", "rollout"],
    &["agent", "dataset", "state_pool"],
    &["export", "identity", "progress", "run"],
    &["expert", "exercises", "ideas"],
    &["evaluate", "ppo", "pretrain", "rl", "sft"],
    &["config"],
    &["plan"],
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
const ONLY: &[(&str, &str)] = &[("rusqlite", "environment/database.rs"), ("zstd", "environment/database.rs")];

/// Where `unsafe` may stand.
const UNSAFE: &[&str] =
    &["backend/cpu/gemm.rs", "backend/cpu/gemm/", "backend/cpu/simd.rs", "backend/cuda/", "weights.rs", "sandbox/"];

fn sources() -> Vec<(PathBuf, String)> {
    graph::sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"))
}

/// Code lines, without comments and without what stands behind the test module.
fn code(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .take_while(|line| !line.starts_with("#[cfg(test)]"))
        .filter(|line| !line.trim_start().starts_with("//"))
}

#[test]
fn files_import_from_their_own_layer_or_above() {
    let layer: BTreeMap<&str, usize> =
        LAYERS.iter().enumerate().flat_map(|(i, names)| names.iter().map(move |n| (*n, i))).collect();
    let graph = Graph::of(&sources());
    let (mut checked, mut wrong) = (0, vec![]);
    for (file, imports) in graph.imports() {
        let Some(own) = graph::top(file) else { continue };
        let own_layer = *layer.get(own).unwrap_or_else(|| panic!("{file} is in no layer"));
        for other in imports {
            let Some(top) = graph::top(other) else { continue };
            checked += 1;
            if layer[top] > own_layer {
                wrong.push(format!("{file} imports {other}"));
            }
        }
    }
    assert!(wrong.is_empty(), "imports against the layers:\n{}", wrong.join("\n"));
    assert!(checked > 500, "only {checked} imports were seen");
}

#[test]
fn some_modules_never_see_others() {
    let graph = Graph::of(&sources());
    let mut wrong = vec![];
    for (module, hidden) in NEVER {
        let files: Vec<&str> = graph.files().filter(|file| graph::top(file) == Some(module)).collect();
        assert!(!files.is_empty(), "no file is in {module}");
        for file in files {
            let paths = graph.paths_from(file);
            let seen = paths.iter().filter(|(to, _)| graph::top(to).is_some_and(|top| hidden.contains(&top)));
            wrong.extend(seen.map(|(_, path)| path.join(" imports ")).min_by_key(String::len));
        }
    }
    assert!(wrong.is_empty(), "modules see what they must not:\n{}", wrong.join("\n"));
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let circles = Graph::of(&sources()).circles();
    let list: Vec<String> = circles.iter().map(|circle| circle.join(", ")).collect();
    assert!(list.is_empty(), "circles of files:\n{}", list.join("\n"));
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
fn the_graph_is_read_from_paths_groups_and_re_exports() {
    let file = |path: &str, text: &str| (PathBuf::from(path), text.to_string());
    let graph = Graph::of(&[
        file("lib.rs", "pub mod a;\npub mod b;"),
        file("a/mod.rs", "mod x;\nmod y;\npub use x::X;\nfn f() { y::g(\"crate::b::B\") }"),
        file("a/x.rs", "use crate::{b::{self, B}, error};\npub struct X;"),
        file("a/y.rs", "// use crate::b;\nuse super::X as Other;\nfn g() {}"),
        file("b.rs", "fn h(x: crate::a::X) {}\n#[cfg(test)]\nmod tests { use crate::a; }"),
    ]);
    let imports: Vec<(&str, Vec<&str>)> = graph.imports().map(|(f, to)| (f, to.collect())).collect();
    assert_eq!(
        imports,
        [
            ("a/mod.rs", vec!["a/y.rs"]),
            ("a/x.rs", vec!["b.rs"]),
            ("a/y.rs", vec!["a/x.rs"]),
            ("b.rs", vec!["a/x.rs"]),
            ("lib.rs", vec![]),
        ]
    );
    assert_eq!(graph.circles(), [["a/x.rs", "b.rs"]]);
    assert_eq!(graph.paths_from("a/mod.rs")["b.rs"], ["a/mod.rs", "a/y.rs", "a/x.rs", "b.rs"]);
}
