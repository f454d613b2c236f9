//! Hostile scripts (tests/hostile/*.py, one attack a file, its expectations in its first lines), run by real pools in every tier,
//! as root and as an ordinary user, next to honest neighbours. Whatever a script tries: the verdict is one of those stated, no
//! attempt prints DONE, no byte of a label is seen, nothing is left over, and neighbours and trainer go on.
//! No test is decided by how long something takes.
#![allow(clippy::unwrap_used)]

#[path = "hostile/script.rs"]
mod script;
#[path = "hostile/world.rs"]
mod world;

use onestep::sandbox::{Pool, Verdict, Wanted};
use script::{Script, word};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use tempfile::TempDir;
use world::World;

/// The user that stands for an ordinary one, when root runs the tests.
const NOBODY: u32 = 65534;
/// Set in a process that the tests start as that user.
const AS_USER: &str = "HOSTILE_AS_USER";
/// What a neighbour of a hostile script must print.
const NEIGHBOUR: &str = "import numpy as np\nx = np.arange(200.0).reshape(20, 10)\nopen('submission.csv', 'w').write('1')\nprint(int((x @ x.T).sum()))";
const NEIGHBOUR_SAYS: &str = "39634000\n";

/// One corpus at a time: three at once starve each other's workers, which then count as hanging.
static TURN: Mutex<()> = Mutex::new(());

/// Runs the whole corpus in the best tier up to `best`, or says why that tier is not possible here.
fn corpus(best: u8) {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let only = std::env::var("HOSTILE_ONLY").ok();
    let world = World::new();
    let pool = Pool::start(
        world::helper(),
        3,
        &world::python(),
        &Wanted { best, unsafe_without: false, preload: None },
        Arc::default(),
    )
    .unwrap();
    let protection = pool.protection();
    let who = if world::is_root() { "root" } else { "an ordinary user" };
    println!("as {who}, tier {best}: {}", protection.notes.join("; "));
    if protection.tier < best {
        // Said above, with the reason; the test of the tier in force runs the corpus.
        assert!(protection.notes[0].starts_with(&format!("not possible here: tier {best}")), "{protection:?}");
        assert!(!world::is_root() || best == 3, "root can have tier {best}: {protection:?}");
        let namespaces = std::process::Command::new("unshare").args(["-Urm", "true"]).output();
        let has_them = namespaces.is_ok_and(|output| output.status.success());
        assert!(!has_them || best == 3, "{who} has user namespaces here: {protection:?}");
        return;
    }
    assert!(protection.files_closed && protection.files_hidden && protection.network_closed, "{protection:?}");
    assert_eq!(protection.pid_namespace, best >= 2);
    let at_start = world::idle_processes(pool.helper_pid(), 3).unwrap();

    let scripts: Vec<Script> =
        Script::all().into_iter().filter(|s| only.as_ref().is_none_or(|o| s.name.contains(o.as_str()))).collect();
    assert!(only.is_some() || scripts.len() >= 45, "only {} scripts", scripts.len());
    let (next, wrong, times) = (AtomicUsize::new(0), Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    let attack = || {
        while let Some(script) = scripts.get(next.fetch_add(1, Ordering::Relaxed)) {
            for _ in 0..2 {
                let folder = world.job_folder(&script.text);
                let job = world.job(&folder, script.limits());
                let begun = Instant::now();
                let found = match pool.run(job) {
                    Ok(verdict) => problems(script, best, &world, &verdict, &folder),
                    Err(error) => vec![format!("{}: the trainer is told {error}", script.name)],
                };
                wrong.lock().unwrap().extend(found);
                times.lock().unwrap().push((begun.elapsed(), &script.name));
            }
        }
    };
    let live_on = || {
        while next.load(Ordering::Relaxed) < scripts.len() {
            let folder = world.job_folder(NEIGHBOUR);
            let job = world.job(&folder, script::LIMITS);
            let verdict = pool.run(job).unwrap();
            let has_written = fs::read_to_string(folder.path().join("submission.csv")).is_ok_and(|text| text == "1");
            if verdict.stdout != NEIGHBOUR_SAYS || word(&verdict.outcome) != "ok" || !has_written {
                wrong.lock().unwrap().push(format!("a neighbour was harmed: {verdict:?}"));
            }
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(attack);
        scope.spawn(attack);
        scope.spawn(live_on);
    });
    let (wrong, mut times) = (wrong.into_inner().unwrap(), times.into_inner().unwrap());
    times.sort();
    println!("{} runs; the slowest: {:.1?}", times.len(), &times[times.len().saturating_sub(8)..]);
    assert!(wrong.is_empty(), "as {who}, tier {best}:\n{}", wrong.join("\n"));
    // Workers and fork-servers may have been replaced, but are as many as before, and have nothing of a job below them.
    let left = world::idle_processes(pool.helper_pid(), 3).expect("processes left over");
    let workers: BTreeSet<u32> = at_start.iter().chain(&left).map(|process| process.pid).collect();
    drop(pool);
    world.assert_nothing_is_left(&workers);
}

/// What a run of `script` should not have done.
fn problems(script: &Script, tier: u8, world: &World, verdict: &Verdict, folder: &TempDir) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut say = |what: String| wrong.push(format!("{} (tier {tier}): {what}", script.name));
    let ended = word(&verdict.outcome);
    if !script.verdicts.iter().any(|verdict| verdict == ended) {
        say(format!("{ended}, expected {:?}: {verdict:?}", script.verdicts));
    }
    for line in verdict.stdout.lines().chain(verdict.stderr.lines()).filter(|line| line.contains("DONE")) {
        if !script.is_open(tier, line) {
            say(line.to_string());
        }
    }
    if let Some(text) = script.says.iter().find(|text| !verdict.stdout.contains(text.as_str())) {
        say(format!("{text:?} was not said: {verdict:?}"));
    }
    if world.shows_token(verdict.stdout.as_bytes()) || world.shows_token(verdict.stderr.as_bytes()) {
        say("the labels were seen".into());
    }
    if !world.data_is_whole() {
        say("the data was changed".into());
    }
    for (path, problem) in world.strange_files(folder.path(), &script.leaves_no) {
        say(format!("left behind: {path:?} {problem}"));
    }
    wrong
}

#[test]
fn tier_3() {
    corpus(3);
}

#[test]
fn tier_2() {
    corpus(2);
}

#[test]
fn tier_1() {
    corpus(1);
}

/// The tests above once more, as an ordinary user, when it is root that runs them.
#[test]
fn as_an_ordinary_user() {
    if !world::is_root() {
        println!("the tests run as an ordinary user: tier_3, tier_2 and tier_1 are those");
        return;
    }
    let Some(python) = world::python_for(NOBODY) else {
        println!("not possible here: there is no Python interpreter that another user may execute");
        return;
    };
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    for test in ["tier_2", "tier_1"] {
        let home = tempfile::tempdir().unwrap();
        std::os::unix::fs::chown(home.path(), Some(NOBODY), None).unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", test, "--nocapture"]).env_clear().env(AS_USER, &python.interpreter);
        command.env("HOME", home.path()).env("PATH", "/usr/bin:/bin").current_dir("/").uid(NOBODY).gid(NOBODY);
        if let Ok(only) = std::env::var("HOSTILE_ONLY") {
            command.env("HOSTILE_ONLY", only);
        }
        match command.output() {
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stdout);
                println!("{said}");
                assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
                assert!(said.contains("as an ordinary user"), "{said}");
            }
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied, "{error}");
                println!("not possible here: another user may not execute this test ({error})");
            }
        }
    }
}

#[test]
fn every_script_says_what_it_tries_and_what_it_gets() {
    for script in Script::all() {
        assert!(script.text.starts_with("# ") && !script.verdicts.is_empty(), "{}", script.name);
        let known = ["ok", "error", "killed", "timeout", "oom", "output", "file", "processes"];
        assert!(script.verdicts.iter().all(|v| known.contains(&v.as_str())), "{}: {:?}", script.name, script.verdicts);
    }
    assert!(Path::new(script::FOLDER).join("beside/tried.py").is_file());
}
