//! Which file of the crate imports which: `use` lines and paths in code, followed through re-exports to the file that defines the name.
//! A re-export itself is no import, nor is what stands in a test module.

use regex::Regex;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};

/// Every .rs file under `root`, in order, by its path from there.
pub fn sources(root: &Path) -> Vec<(PathBuf, String)> {
    let (mut folders, mut files) = (vec![root.to_path_buf()], vec![]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                files.push((path.strip_prefix(root).unwrap().to_path_buf(), text));
            }
        }
    }
    files.sort();
    files
}

/// The module of the crate that a file belongs to; `None` for lib.rs and main.rs.
pub fn top(file: &str) -> Option<&str> {
    let first = file.split('/').next().unwrap().trim_end_matches(".rs");
    (first != "lib" && first != "main").then_some(first)
}

/// A module's path from the crate's root.
type Module = Vec<String>;

/// The module of a file: `a::b` for a/b.rs and for a/b/mod.rs.
fn module(file: &str) -> Module {
    let mut names: Module = file.trim_end_matches(".rs").split('/').map(str::to_string).collect();
    if names.last().is_some_and(|name| name == "mod") || names == ["lib"] {
        names.pop();
    }
    names
}

/// The text without comments, the contents of strings and everything from the test module on.
fn bare(text: &str) -> String {
    let code: Vec<&str> = text.lines().take_while(|line| !line.starts_with("#[cfg(test)]")).collect();
    let skipped = Regex::new(r##"(?s)//[^\n]*|/\*.*?\*/|r#".*?"#|"(?:\\.|[^"\\])*"|'(?:\\[^']*|[^\\'])'"##).unwrap();
    skipped
        .replace_all(&code.join("\n"), |found: &regex::Captures| if found[0].starts_with('/') { "" } else { "0" })
        .into()
}

/// The paths of a `use` tree: `a::{b::C, d}` gives a::b::C and a::d.
fn expand(tree: &str) -> Vec<String> {
    let tree = tree.trim();
    let Some((before, group)) = tree.split_once('{') else {
        return vec![tree.split(" as ").next().unwrap().trim().to_string()];
    };
    let (mut parts, mut depth, mut start) = (vec![], 0, 0);
    let group = &group[..group.rfind('}').unwrap()];
    for (i, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&group[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    parts.push(&group[start..]);
    let named = parts.into_iter().filter(|part| !part.trim().is_empty());
    named.flat_map(expand).map(|part| format!("{}{part}", before.trim())).collect()
}

/// Files and what each imports.
pub struct Graph(BTreeMap<String, BTreeSet<String>>);

/// What the paths of the crate's files are resolved by.
struct Names {
    files: BTreeMap<Module, String>,
    /// Of each module: the names that it re-exports, and the path of each.
    re_exports: BTreeMap<Module, BTreeMap<String, (Module, Vec<String>)>>,
}

impl Names {
    /// Where a path that stands in `at` begins, and what follows; `None` for a path of another crate.
    fn absolute(&self, at: &Module, path: &str) -> Option<(Module, Vec<String>)> {
        let mut names: VecDeque<String> = path.split("::").map(|name| name.trim().to_string()).collect();
        let mut from = at.clone();
        let first = names.front()?.clone();
        match first.as_str() {
            "crate" => {
                from.clear();
                names.pop_front();
            }
            "self" => drop(names.pop_front()),
            "super" => {
                while names.front().is_some_and(|name| name == "super") {
                    names.pop_front();
                    from.pop();
                }
            }
            _ if self.files.contains_key(&[at.clone(), vec![first.clone()]].concat()) => {}
            _ => return None,
        }
        Some((from, names.into()))
    }

    /// The file that defines what `path` names.
    fn file(&self, mut from: Module, path: Vec<String>) -> String {
        let mut rest = VecDeque::from(path);
        while let Some(name) = rest.front() {
            let below = [from.clone(), vec![name.clone()]].concat();
            if self.files.contains_key(&below) {
                from = below;
                rest.pop_front();
            } else if let Some((to, path)) = self.re_exports.get(&from).and_then(|names| names.get(name)) {
                return self.file(to.clone(), path.clone());
            } else {
                break;
            }
        }
        self.files[&from].clone()
    }
}

impl Graph {
    /// The graph of these files, given by path and text.
    pub fn of(sources: &[(PathBuf, String)]) -> Self {
        let texts: BTreeMap<Module, String> =
            sources.iter().map(|(path, text)| (module(path.to_str().unwrap()), bare(text))).collect();
        let files = sources.iter().map(|(path, _)| path.to_str().unwrap()).map(|path| (module(path), path.to_string()));
        let mut names = Names { files: files.collect(), re_exports: BTreeMap::new() };
        let uses = Regex::new(r"(?m)^\s*(pub(?:\([^)]*\))?\s+)?use\s+([^;]+);").unwrap();
        let inline = Regex::new(r"[A-Za-z_]\w*(?:::\w+)+").unwrap();
        let mut paths: BTreeMap<&Module, Vec<String>> = BTreeMap::new();
        for (at, text) in &texts {
            let list = paths.entry(at).or_default();
            for found in uses.captures_iter(text) {
                for path in expand(&found[2]) {
                    if found.get(1).is_none() {
                        list.push(path);
                    } else if let Some(to) = names.absolute(at, &path) {
                        let name = path.rsplit("::").next().unwrap().to_string();
                        names.re_exports.entry(at.clone()).or_default().insert(name, to);
                    }
                }
            }
            let body = uses.replace_all(text, "");
            list.extend(inline.find_iter(&body).map(|found| found.as_str().to_string()));
        }
        let mut imports = BTreeMap::new();
        for (at, list) in paths {
            let own = names.files[at].clone();
            let seen = list.iter().filter_map(|path| names.absolute(at, path));
            let seen = seen.map(|(from, path)| names.file(from, path)).filter(|file| *file != own && file != "lib.rs");
            imports.insert(own.clone(), seen.collect());
        }
        Self(imports)
    }

    /// All files.
    pub fn files(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Each file with those that it imports.
    pub fn imports(&self) -> impl Iterator<Item = (&str, impl Iterator<Item = &str>)> {
        self.0.iter().map(|(file, imports)| (file.as_str(), imports.iter().map(String::as_str)))
    }

    /// Every file that `start` sees, itself or through others, with the shortest way there.
    pub fn paths_from(&self, start: &str) -> BTreeMap<String, Vec<String>> {
        let mut found = BTreeMap::new();
        let mut queue = VecDeque::from([vec![start.to_string()]]);
        while let Some(path) = queue.pop_front() {
            for next in &self.0[path.last().unwrap()] {
                if next != start && !found.contains_key(next) {
                    let longer = [path.clone(), vec![next.clone()]].concat();
                    found.insert(next.clone(), longer.clone());
                    queue.push_back(longer);
                }
            }
        }
        found
    }

    /// Groups of files that see each other, each in order.
    pub fn circles(&self) -> Vec<Vec<String>> {
        let seen: BTreeMap<&str, BTreeSet<String>> =
            self.files().map(|file| (file, self.paths_from(file).into_keys().collect())).collect();
        let mut circles = BTreeSet::new();
        for file in self.files() {
            let back = seen[file].iter().filter(|other| seen[other.as_str()].contains(file)).cloned();
            let mut circle: Vec<String> = back.chain([file.to_string()]).collect();
            circle.sort();
            if circle.len() > 1 {
                circles.insert(circle);
            }
        }
        circles.into_iter().collect()
    }
}
