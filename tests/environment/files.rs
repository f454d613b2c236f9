//! The workspace: names, lines, and the real folder of a run.

use super::world::*;
use onestep::environment::Files;
use onestep::environment::workspace::{self, FileError, Workspace};
use onestep::error::Kind;
use std::fs;
use std::os::unix::fs::symlink;
use std::sync::Arc;

#[test]
fn paths_stay_inside() {
    let folder = tempfile::tempdir().unwrap();
    let task = prepared(folder.path(), START);
    let files: Files =
        [("train.py", "a\nb"), ("src/a.py", ""), ("src/b/c.py", "")].map(|(n, t)| (n.to_string(), Arc::from(t))).into();
    let workspace = Workspace { files: &files, prepared: &task };
    for (path, expected) in [
        ("train.py", Some("train.py")),
        ("./src/../train.py", Some("train.py")),
        ("src//b/./c.py", Some("src/b/c.py")),
        ("src/b/../../train.py", Some("train.py")),
    ] {
        assert_eq!(workspace.script(path).ok().map(|(name, _)| name).as_deref(), expected, "{path}");
    }
    let outside = |p: &str| FileError::Outside(p.into());
    let not_a_name = |p: &str| FileError::NotAName(p.into());
    let long = "x".repeat(256);
    let deep = ["y"; 600].join("/");
    for (path, expected) in [
        ("/etc/passwd", outside("/etc/passwd")),
        ("..", outside("..")),
        ("../train.py", outside("../train.py")),
        ("src/../../train.py", outside("src/../../train.py")),
        ("", not_a_name("")),
        (".", not_a_name(".")),
        ("src/", not_a_name("src/")),
        ("a\0b", not_a_name("a\0b")),
        (&long, not_a_name(&long)),
        (&deep, not_a_name(&deep)),
    ] {
        assert_eq!(workspace.copy_file("train.py", path).unwrap_err(), expected);
    }
    // A name that is a folder, or below a file.
    for path in ["src", "src/b", "train.py/x.py", "notes.csv/x.py"] {
        assert_eq!(workspace.copy_file("train.py", path).unwrap_err(), FileError::IsFolder(path.into()));
    }
    assert_eq!(workspace.list_files("./src").unwrap(), ["a.py", "b/"]);
    assert_eq!(workspace.list_files("").unwrap(), ["data.npz", "notes.csv", "src/", "train.py"]);
    assert_eq!(workspace.list_files("train.py").unwrap_err(), FileError::NoFolder("train.py".into()));
}

#[test]
fn inspecting_lines() {
    let folder = tempfile::tempdir().unwrap();
    let task = prepared(folder.path(), START);
    let long: String = (1..=250).map(|i| format!("{i}\n")).collect();
    let files: Files =
        [("long.py", long.as_str()), ("empty.py", "")].map(|(n, t)| (n.to_string(), Arc::from(t))).into();
    let workspace = Workspace { files: &files, prepared: &task };
    let (shown, last) = workspace.inspect_lines("long.py", 101, 200).unwrap();
    assert_eq!((shown.lines().next(), shown.lines().last(), last), (Some("101"), Some("200"), 250));
    assert_eq!(workspace.inspect_lines("long.py", 250, 300).unwrap(), ("250\n".into(), 250));
    assert_eq!(workspace.inspect_lines("empty.py", 1, 1).unwrap(), (String::new(), 0));
    for (start, end, expected) in [
        (101, 201, FileError::TooManyLines(101)),
        (1, u64::MAX, FileError::TooManyLines(u64::MAX)),
        (0, 10, FileError::BadRange { start: 0, end: 10 }),
        (5, 4, FileError::BadRange { start: 5, end: 4 }),
        (251, 260, FileError::BehindEnd { start: 251, last: 250 }),
    ] {
        assert_eq!(workspace.inspect_lines("long.py", start, end).unwrap_err(), expected);
    }
}

#[test]
fn a_real_folder_holds_the_agents_files() {
    let folder = tempfile::tempdir().unwrap();
    let task = prepared(folder.path(), START);
    let files: Files = [("train.py", START), ("a/b.py", "x"), ("submission.csv", "1")]
        .map(|(n, t)| (n.to_string(), Arc::from(t)))
        .into();
    let place = tempfile::tempdir().unwrap();
    workspace::materialise(&files, &task, place.path()).unwrap();
    assert_eq!(fs::read_to_string(place.path().join("a/b.py")).unwrap(), "x");
    assert!(!place.path().join("submission.csv").exists());

    // Neither a name nor a link that is there already leads out.
    let outside = tempfile::tempdir().unwrap();
    for name in ["../x.py", "/x.py", "a/../../x.py"] {
        let files: Files = [(name.to_string(), Arc::from("x"))].into();
        assert_eq!(workspace::materialise(&files, &task, outside.path()).unwrap_err().kind(), Kind::Content);
    }
    let place = tempfile::tempdir().unwrap();
    symlink(outside.path(), place.path().join("a")).unwrap();
    assert!(workspace::materialise(&files, &task, place.path()).is_err());
    assert!(!outside.path().join("b.py").exists());
    fs::write(outside.path().join("s.csv"), "1").unwrap();
    assert_eq!(workspace::left_behind(place.path(), "a/s.csv"), None);
}
