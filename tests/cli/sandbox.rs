//! `sandbox run` with what is no script, and with limits and interpreters that are none: refused at once, with what was wrong.

use crate::support::*;
use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;
use tempfile::tempdir;

/// Refused with exit code 2, before any sandbox is made, and each of `words` is said.
fn refused(arguments: &[&str], words: &[&str]) {
    let ended = onestep(&[&["sandbox", "run"], arguments].concat());
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(2), ""), "{arguments:?}: {ended:?}");
    assert!(words.iter().all(|word| ended.stderr.contains(word)), "{words:?}: {ended:?}");
}

#[test]
fn a_script_is_a_regular_file_of_a_size() {
    let folder = tempdir().unwrap();
    let place = |name: &str| folder.path().join(name);
    assert!(Command::new("mkfifo").arg(place("pipe.py")).status().unwrap().success());
    symlink("/dev/zero", place("zero.py")).unwrap();
    symlink(place("pipe.py"), place("to_pipe.py")).unwrap();
    fs::create_dir(place("folder.py")).unwrap();
    fs::File::create(place("sparse.py")).unwrap().set_len(1 << 40).unwrap();
    for name in ["pipe.py", "zero.py", "to_pipe.py", "folder.py"] {
        refused(&[text(&place(name))], &[name, "regular file"]);
    }
    refused(&[text(&place("sparse.py"))], &["sparse.py", "at most"]);
    refused(&[text(&place("none.py"))], &["none.py", "No such file"]);
    // What a link leads to is run.
    fs::write(place("script.py"), "print('done')").unwrap();
    symlink(place("script.py"), place("link.py")).unwrap();
    assert_eq!(done(&["sandbox", "run", text(&place("link.py"))]), "done\n");
}

#[test]
fn limits_have_ranges_and_are_called_by_their_options() {
    let folder = tempdir().unwrap();
    let script = folder.path().join("script.py");
    fs::write(&script, "print('done')").unwrap();
    let huge = u64::MAX.to_string();
    for (option, value) in [
        ("--memory", huge.as_str()),
        ("--memory", "1MiB"),
        ("--memory", "8388607"),
        ("--output", &huge),
        ("--disk", &huge),
        ("--processes", &huge),
        ("--processes", "0"),
        ("--time", "inf"),
        ("--time", "nan"),
        ("--time", "0"),
        ("--time", "1e300"),
        ("--disk", "2000TiB"),
    ] {
        refused(&[text(&script), option, value], &[option, "expected"]);
    }
}

#[test]
fn a_program_that_is_no_python_is_said_to_be_none() {
    let folder = tempdir().unwrap();
    let script = folder.path().join("script.py");
    fs::write(&script, "print('done')").unwrap();
    refused(&[text(&script), "--python", "/bin/true"], &["/bin/true", "no Python interpreter"]);
    refused(&[text(&script), "--python", "/bin/false"], &["/bin/false", "exit status: 1"]);
    refused(&[text(&script), "--python", "/nowhere/python"], &["/nowhere/python", "No such file"]);
}

/// What comes back into the user's folder: what the script made or changed, and never through a link.
#[test]
fn a_workspace_gets_back_what_changed_and_links_are_not_followed() {
    let folder = tempdir().unwrap();
    let (script, victim) = (folder.path().join("script.py"), folder.path().join("victim"));
    let workspace = folder.path().join("workspace");
    fs::create_dir_all(workspace.join("below")).unwrap();
    fs::create_dir(&victim).unwrap();
    fs::write(victim.join("secret.txt"), "secret").unwrap();
    fs::write(workspace.join("same.txt"), "same").unwrap();
    fs::write(workspace.join("below/old.txt"), "old").unwrap();
    let run =
        |more: &[&str]| onestep(&[&["sandbox", "run", text(&script), "--workspace", text(&workspace)], more].concat());
    let write = |path: &str, word: &str| format!("open('{path}', 'w').write('{word}')\n");

    // A second name of a file that changes keeps the old bytes: what comes back is a new file, renamed into its place.
    fs::hard_link(workspace.join("below/old.txt"), folder.path().join("other_name.txt")).unwrap();
    let same = fs::metadata(workspace.join("same.txt")).unwrap().modified().unwrap();
    let lines = [
        "import os\n".to_string(),
        write("new.txt", "new"),
        write("below/old.txt", "changed"),
        "os.remove('script.py')\n".into(),
    ];
    fs::write(&script, lines.concat()).unwrap();
    let ended = run(&[]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(!ended.stderr.contains("symbolic"), "{ended:?}");
    assert_eq!(fs::read_to_string(workspace.join("new.txt")).unwrap(), "new");
    assert_eq!(fs::read_to_string(workspace.join("below/old.txt")).unwrap(), "changed");
    assert_eq!(fs::read_to_string(folder.path().join("other_name.txt")).unwrap(), "old");
    assert_eq!(
        fs::metadata(workspace.join("same.txt")).unwrap().modified().unwrap(),
        same,
        "what did not change is left alone"
    );

    symlink(victim.join("secret.txt"), workspace.join("link.txt")).unwrap();
    symlink(&victim, workspace.join("links")).unwrap();
    for path in ["link.txt", "links/planted.txt"] {
        fs::write(
            &script,
            format!(
                "import os\nprint('hello', os.listdir())\nos.makedirs('links', exist_ok=True)\n{}",
                write(path, "mine")
            ),
        )
        .unwrap();
        let ended = run(&[]);
        assert_eq!(ended.code, Some(2), "{path}: {ended:?}");
        assert!(!ended.stdout.contains("link"), "{path}: what links lead to is left out: {ended:?}");
        let left_out = format!("symbolic links left out: 2, the first {}\n", text(&workspace.join("link.txt")));
        assert_eq!(ended.stderr.matches(&left_out).count(), 1, "{path}: {ended:?}");
        assert!(ended.stdout.contains("hello") && ended.stderr.contains("was not brought back"), "{path}: {ended:?}");
    }
    assert!(!workspace.join("script.py").exists(), "the script stays behind");
    assert_eq!(fs::read_to_string(victim.join("secret.txt")).unwrap(), "secret");
    assert_eq!(fs::read_dir(&victim).unwrap().count(), 1);
    let small = run(&["--disk", "1"]);
    assert!(small.code == Some(2) && small.stderr.contains("--disk"), "{small:?}");
}
