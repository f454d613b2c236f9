//! Every call site of the program that touches a file of a run, made to fail: with a full disk, a broken one, and half a write. A library
//! that is loaded ahead of libc (shim.c) numbers the sites in a first run and lets one call fail in each of the others.

use crate::processes::Leftovers;
use crate::results::Right;
use crate::stage::{PROGRAM, Room, Stage, Verb};
use onestep::rng::Philox;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The library, compiled once.
fn shim() -> &'static Path {
    static SHIM: OnceLock<PathBuf> = OnceLock::new();
    SHIM.get_or_init(|| {
        let library = Path::new(env!("CARGO_TARGET_TMPDIR")).join("faults-shim.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faults/shim.c");
        let mut command = Command::new("cc");
        command.args(["-std=gnu17", "-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", "-o"]);
        let output = command.arg(&library).arg(source).output();
        let output = output.expect("running cc; install a C compiler (Debian: apt-get install gcc)");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        library
    })
}

/// How a call fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum How {
    Full,
    Broken,
    Short,
}

impl How {
    pub fn name(self) -> &'static str {
        match self {
            How::Full => "ENOSPC",
            How::Broken => "EIO",
            How::Short => "half a write",
        }
    }

    fn typed(self) -> String {
        match self {
            How::Full => libc::ENOSPC.to_string(),
            How::Broken => libc::EIO.to_string(),
            How::Short => "short".to_string(),
        }
    }
}

/// A place in the program from which it makes a call on files.
#[derive(Debug, Clone)]
struct Site {
    id: String,
    call: String,
    times: usize,
    example: String,
}

/// One call that fails.
#[derive(Debug, Clone)]
struct Fault {
    site: Site,
    at: usize,
    how: How,
}

/// What has happened to a verb.
#[derive(Default)]
pub struct Tally {
    /// Sites by call.
    pub sites: BTreeMap<String, usize>,
    /// Faults by call and how.
    pub faults: BTreeMap<(String, How), usize>,
    /// Sites that a verb of [`Verb::BY_TIME`] before this one comes to as well: their calls fail there.
    pub elsewhere: usize,
    /// Calls that did not come again, since what threads do first varies.
    pub missed: usize,
    /// By exit code.
    pub codes: BTreeMap<i32, usize>,
    /// Runs that went on and came to their end, all equal to the uninterrupted one.
    pub ends: usize,
    /// What was not as it should be, in words.
    pub findings: Vec<String>,
}

fn variables(stage: &Stage, room: &Room, more: &[(&'static str, String)]) -> Vec<(&'static str, String)> {
    let roots: Vec<String> =
        room.files().iter().chain([&stage.folder]).map(|folder| folder.display().to_string()).collect();
    let own = [
        ("LD_PRELOAD", shim().display().to_string()),
        ("FAULTS_PROGRAM", PROGRAM.to_string()),
        ("FAULTS_ROOTS", roots.join(":")),
        ("FAULTS_LOG", log_path().display().to_string()),
    ];
    own.into_iter().chain(more.iter().cloned()).collect()
}

/// Where the library writes, outside of what it watches.
fn log_path() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("faults-calls")
}

/// The calls of the run that was just made: site, call, path.
fn calls() -> Vec<(String, String, String)> {
    let text = fs::read_to_string(log_path()).unwrap_or_default();
    let parts = |line: &str| {
        let mut parts = line.splitn(3, ' ').map(str::to_string);
        (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap())
    };
    text.lines().map(parts).collect()
}

/// A run of `verb` that is only watched, and its calls: site, call, path.
pub fn watched(stage: &Stage, verb: Verb) -> (Room, Vec<(String, String, String)>) {
    let _ = fs::remove_file(log_path());
    let room = Room::new(stage);
    let code = room.start(stage, verb, &[], &variables(stage, &room, &[])).end();
    assert_eq!(code, Some(0), "{}", room.said());
    (room, calls())
}

/// The sites of `verb`, by the order in which they are come to.
fn sites(stage: &Stage, right: &Right) -> Vec<Site> {
    let (room, calls) = watched(stage, right.verb);
    right.check_end(&room.out, "a run that is only watched");
    let mut found: Vec<Site> = vec![];
    for (id, call, example) in calls {
        match found.iter_mut().find(|site| site.id == id) {
            Some(site) => site.times += 1,
            None => found.push(Site { id, call, times: 1, example }),
        }
    }
    assert!(found.len() > 20, "only {} sites", found.len());
    found
}

fn faults(sites: &[Site]) -> Vec<Fault> {
    let mut all = vec![];
    for site in sites {
        let mut times = vec![1, site.times.div_ceil(2), site.times];
        times.dedup();
        let hows: &[How] = match site.call.as_str() {
            "write" => &[How::Full, How::Broken, How::Short],
            "read" | "close" => &[How::Broken],
            _ => &[How::Full, How::Broken],
        };
        for at in times {
            all.extend(hows.iter().map(|&how| Fault { site: site.clone(), at, how }));
        }
    }
    all
}

/// Makes calls of `right`'s verb fail, one in each run: all of those at sites that none of the `quicker` verbs comes to, or `part` of all of
/// them drawn from a seed. After each the same command must end well.
pub fn failed(stage: &Stage, right: &Right, quicker: &[&Right], part: Option<usize>) -> Tally {
    let mut sites = sites(stage, right);
    let mut tally = Tally::default();
    for other in quicker {
        let theirs: BTreeSet<String> = self::sites(stage, other).into_iter().map(|site| site.id).collect();
        let before = sites.len();
        sites.retain(|site| !theirs.contains(&site.id));
        tally.elsewhere += before - sites.len();
    }
    for site in &sites {
        *tally.sites.entry(site.call.clone()).or_default() += 1;
    }
    let mut faults = faults(&sites);
    if let Some(part) = part {
        let mut rng = Philox::named(7, right.verb.name());
        faults = (0..part).map(|_| rng.choose(&faults).clone()).collect();
    }
    for fault in faults {
        let what = format!(
            "{}: {} of {} {} of {} at site {}, as of {}",
            right.verb.name(),
            fault.how.name(),
            fault.site.call,
            fault.at,
            fault.site.times,
            fault.site.id,
            fault.site.example
        );
        if part.is_none() {
            println!("{what}");
        }
        // All of them are tried before the test fails.
        let tried = catch_unwind(AssertUnwindSafe(|| one(stage, right, &fault, &what, &mut tally)));
        if let Err(panic) = tried {
            tally.findings.push(panic.downcast_ref::<String>().cloned().unwrap_or(what));
        }
    }
    tally
}

fn one(stage: &Stage, right: &Right, fault: &Fault, what: &str, tally: &mut Tally) {
    let _ = fs::remove_file(log_path());
    let (room, mut left) = (Room::new(stage), Leftovers::before());
    let asked = [
        ("FAULTS_SITE", fault.site.id.clone()),
        ("FAULTS_AT", fault.at.to_string()),
        ("FAULTS_HOW", fault.how.typed()),
    ];
    let code = room.start(stage, right.verb, &[], &variables(stage, &room, &asked)).end();
    let said = room.said();
    let Some((_, call, path)) = calls().pop() else {
        tally.missed += 1;
        return;
    };
    *tally.faults.entry((call, fault.how)).or_default() += 1;
    let code = code.unwrap_or_else(|| panic!("{what}: ended by a signal: {said}"));
    *tally.codes.entry(code).or_default() += 1;
    assert!(!said.contains("panicked"), "{what}: {said}");
    if code == 0 {
        right.check_end(&room.out, what);
    } else {
        assert!(code == 1 || code == 2 && fault.how == How::Broken, "{what}: exit code {code}: {said}");
        right.check_middle(&room.out, what);
        assert!(names_the_file(&said, Path::new(&path), &room), "{what}: {path} is not named: {said}");
    }
    if code != 0 || right.verb.resumes() {
        let more: &[&str] = if right.verb.resumes() { &["--resume"] } else { &[] };
        let mut again = room.start(stage, right.verb, more, &[]);
        left.look(&room);
        let code = again.end();
        assert_eq!(code, Some(0), "{what}, once more: {}", room.said());
        right.check_end(&room.out, &format!("{what}, once more"));
    }
    left.count(&room);
    tally.ends += 1;
}

/// True when a message has a file's final name, or the path of a folder that holds it, below those of the whole run.
fn names_the_file(said: &str, path: &Path, room: &Room) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let name = name.split(".tmp").next().unwrap_or_default();
    let tops = room.files();
    let mut folders = path.ancestors().skip(1).take_while(|folder| tops.iter().all(|top| top != folder));
    said.contains(name) || folders.any(|folder| folder != Path::new("/") && said.contains(&*folder.to_string_lossy()))
}
