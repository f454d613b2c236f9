//! The database of runs and snapshots: what a killed process leaves, several processes at once, damage, other versions, tidying.
#![allow(clippy::unwrap_used)]

use onestep::environment::record::{BlobId, Executed, RunKey, RunResult, Snapshot};
use onestep::environment::{Files, SnapshotId, Store};
use onestep::error::{Error, Kind};
use onestep::sandbox::Outcome;
use onestep::task::grader::Grade;
use rusqlite::Connection;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Barrier};
use std::time::Duration;
use tempfile::TempDir;

const LARGE: u64 = 1 << 40;
/// What the child that is killed inserts in one transaction.
const BATCH: usize = 32;

/// Text number `i`: 4 kB that hardly compress.
fn text(i: usize) -> Arc<str> {
    (0..64).map(|part| blake3::hash(format!("{i} {part}").as_bytes()).to_hex().to_string()).collect::<String>().into()
}

/// The files of snapshot number `i`: a text of its own, one that it shares with another, one that all have.
fn files(i: usize) -> Files {
    let shared = text(1_000_000 + i / 2);
    [("train.py", text(i)), ("a/shared.py", shared), ("é.py", Arc::from(""))].map(|(n, t)| (n.to_string(), t)).into()
}

fn blob(text: &str) -> BlobId {
    blake3::hash(text.as_bytes()).to_hex().to_string()
}

fn snapshot(i: usize) -> (SnapshotId, Snapshot) {
    let snapshot = Snapshot { files: files(i).iter().map(|(name, text)| (name.clone(), blob(text))).collect() };
    (snapshot.id(), snapshot)
}

fn id(i: usize) -> SnapshotId {
    snapshot(i).0
}

fn key(i: usize) -> RunKey {
    RunKey(format!("run {i}"))
}

fn result(i: usize) -> RunResult {
    RunResult {
        outcome: Outcome::Exited(0),
        stdout: text(i).to_string(),
        stderr: String::new(),
        wall_seconds: i as f64 / 3.0,
        grade: Some(if i.is_multiple_of(2) {
            Ok(Grade { reward: 1.0 / (i + 3) as f64, report: 0.5, flags: vec![] })
        } else {
            Err("no file".into())
        }),
    }
}

fn executed(i: usize) -> Executed {
    Executed { key: key(i), task: "ten".into(), snapshot: id(i), run: Arc::new(result(i)) }
}

/// Inserts snapshots and runs of these numbers, each kind in one transaction.
fn insert(store: &Store, numbers: impl Iterator<Item = usize> + Clone) {
    let texts = numbers.clone().flat_map(|i| files(i).into_values());
    let blobs: HashMap<BlobId, Arc<str>> = texts.map(|text| (blob(&text), text)).collect();
    store.insert_snapshots(&numbers.clone().map(snapshot).collect::<Vec<_>>(), &blobs).unwrap();
    store.insert_runs(&numbers.map(executed).collect::<Vec<_>>()).unwrap();
}

fn has_run(store: &Store, i: usize) -> bool {
    let found = store.runs(&[key(i)]).unwrap();
    assert!(found.get(&key(i)).is_none_or(|run| *run == result(i)), "run {i} is another's");
    !found.is_empty()
}

fn has_snapshot(store: &Store, i: usize) -> bool {
    let found = store.snapshot(&id(i)).unwrap();
    assert!(found.as_ref().is_none_or(|found| *found == files(i)), "snapshot {i} is another's");
    found.is_some()
}

/// A folder with a database of the runs and snapshots 0 to `count`.
fn filled(count: usize) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cache").join("store.sqlite");
    insert(&Store::open(&path, LARGE).unwrap(), 0..count);
    (folder, path)
}

/// What `select` gives, a row each.
fn column(path: &Path, select: &str) -> Vec<String> {
    let connection = Connection::open(path).unwrap();
    let mut statement = connection.prepare(select).unwrap();
    let rows = statement.query_map([], |row| row.get(0)).unwrap();
    rows.collect::<Result<_, _>>().unwrap()
}

/// The one number that `select` gives.
fn number(path: &Path, select: &str) -> usize {
    Connection::open(path).unwrap().query_row(select, [], |row| row.get::<_, i64>(0)).unwrap() as usize
}

fn change(path: &Path, sql: &str) {
    Connection::open(path).unwrap().execute_batch(sql).unwrap();
}

/// Content that names the file and says what to do.
fn says_what_to_do(error: &Error, path: &Path, part: &str) {
    assert_eq!(error.kind(), Kind::Content, "{error}");
    for part in [part, &path.display().to_string(), "move it away", "run.reuse_rewards=false"] {
        assert!(error.to_string().contains(part), "{error} lacks {part:?}");
    }
}

/// The test `test` once more, in a process of its own, which finds `path` and `number` by `as_child`.
fn start(test: &str, path: &Path, number: usize) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]);
    command.env("STORE_PATH", path).env("STORE_NUMBER", number.to_string());
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

/// What `start` was given, in the process that it started.
fn as_child() -> Option<(PathBuf, usize)> {
    let path = PathBuf::from(std::env::var_os("STORE_PATH")?);
    Some((path, std::env::var("STORE_NUMBER").unwrap().parse().unwrap()))
}

/// Inserts a batch, says what is there, until it is killed. Under an even number it tidies first.
fn insert_until_killed(path: &Path, number: usize) {
    let store = Store::open(path, if number.is_multiple_of(2) { 0 } else { LARGE }).unwrap();
    for i in (number..).step_by(BATCH) {
        insert(&store, i..i + BATCH);
        eprintln!("{}", i + BATCH);
    }
}

/// Inserts what others insert too, and reads what they did; opens it anew (and tidies) in between.
fn insert_together(path: &Path, number: usize) {
    let mut seen = 0;
    for round in 0..5 {
        let store = Store::open(path, 0).unwrap();
        for i in (0..10).map(|i| (7 * i + 10 * (number + round)) % 50) {
            insert(&store, i..i + 1);
            assert!(has_snapshot(&store, i) && has_run(&store, i), "{i} was inserted");
            let other = (i + 25) % 50;
            seen += usize::from(has_snapshot(&store, other)) + usize::from(has_run(&store, other));
        }
    }
    assert!(seen > 0, "nothing of what others did was seen");
}

#[test]
fn what_was_committed_survives_kill_9() {
    if let Some((path, number)) = as_child() {
        return insert_until_killed(&path, number);
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.sqlite");
    let mut committed = vec![];
    for attempt in 0..20 {
        let first = 100_000 * attempt;
        let mut child = start("what_was_committed_survives_kill_9", &path, first);
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
        let mut said = first;
        let mut wait = |count: usize| {
            for line in lines.by_ref().take(count) {
                said = line.parse().unwrap();
            }
        };
        // From before its first word to far into its work, at any place of it.
        wait(attempt);
        std::thread::sleep(Duration::from_micros(791 * attempt as u64 % 5000));
        child.kill().unwrap();
        assert!(!child.wait().unwrap().success());
        wait(usize::MAX);
        assert!(said >= first + BATCH * attempt, "attempt {attempt} was killed later: {said}");

        let store = Store::open(&path, LARGE).unwrap();
        for i in first..said {
            assert!(has_snapshot(&store, i) && has_run(&store, i), "{i} was committed before kill {attempt}");
        }
        // What it had not said yet is there as a whole, or not at all.
        let more = said..said + BATCH;
        let snapshots = more.clone().filter(|&i| has_snapshot(&store, i)).count();
        let runs = more.filter(|&i| has_run(&store, i)).count();
        assert!(
            [(0, 0), (BATCH, 0), (BATCH, BATCH)].contains(&(snapshots, runs)),
            "kill {attempt}: {snapshots}, {runs}"
        );
        assert!(!has_snapshot(&store, said + BATCH) && !has_run(&store, said + BATCH));
        committed.extend(first..said + runs);
    }
    let store = Store::open(&path, LARGE).unwrap();
    assert!(committed.iter().all(|&i| has_snapshot(&store, i) && has_run(&store, i)), "a later kill took it");
    assert!(committed.len() >= BATCH * 190);
    // A kill between two writes of one transaction is too rare to be met here; the log is what makes it harmless.
    assert_eq!(column(&path, "PRAGMA journal_mode"), ["wal"]);
}

#[test]
fn several_make_the_same_one_at_once() {
    let folder = tempfile::tempdir().unwrap();
    for round in 0..20 {
        let path = folder.path().join(round.to_string()).join("store.sqlite");
        let barrier = Barrier::new(8);
        let stores: Vec<Store> = std::thread::scope(|scope| {
            let make = |i: usize| {
                let (path, barrier) = (&path, &barrier);
                scope.spawn(move || {
                    barrier.wait();
                    let store = Store::open(path, LARGE).unwrap();
                    insert(&store, i..i + 1);
                    store
                })
            };
            let threads: Vec<_> = (0..8).map(make).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        for store in stores {
            assert!((0..8).all(|i| has_run(&store, i) && has_snapshot(&store, i)), "round {round}: two databases");
        }
    }
}

#[test]
fn several_processes_insert_and_read_at_once() {
    if let Some((path, number)) = as_child() {
        return insert_together(&path, number);
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("new folder").join("store.sqlite");
    let children: Vec<Child> =
        (0..5).map(|number| start("several_processes_insert_and_read_at_once", &path, number)).collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let store = Store::open(&path, LARGE).unwrap();
    assert!((0..50).all(|i| has_snapshot(&store, i) && has_run(&store, i)));
    for (table, count) in [("runs", 50), ("snapshots", 50), ("files", 150), ("blobs", 50 + 25 + 1)] {
        assert_eq!(column(&path, &format!("SELECT cast(count(*) AS TEXT) FROM {table}")), [count.to_string()]);
    }
    let left = fs::read_dir(path.parent().unwrap()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    assert!(left.into_iter().all(|name| !name.contains("tmp")), "no temporary file is left");
}

#[test]
fn what_is_no_whole_database_is_refused() {
    let (folder, path) = filled(30);
    let whole = fs::read(&path).unwrap();
    let page = 4096;
    let bad: Vec<(&str, Vec<u8>)> = vec![
        ("text", b"{\"key\": \"a\"}\n".repeat(1000)),
        ("empty", vec![]),
        ("its first half", whole[..whole.len() / 2].to_vec()),
        ("its first page", whole[..page].to_vec()),
        ("less than a header", whole[..50].to_vec()),
        ("zeros behind the first page", [&whole[..page], &vec![0; whole.len() - page]].concat()),
        ("no header", [&[0; 100], &whole[100..]].concat()),
    ];
    for (what, bytes) in bad {
        let place = folder.path().join(what);
        fs::write(&place, &bytes).unwrap();
        says_what_to_do(&Store::open(&place, LARGE).unwrap_err(), &place, "database");
        assert_eq!(fs::read(&place).unwrap(), bytes, "{what} was changed");
    }
    let error = Store::open(folder.path(), LARGE).unwrap_err();
    assert!(error.to_string().contains(&folder.path().display().to_string()), "{error}");
    let error = Store::open(&path.join("below"), LARGE).unwrap_err();
    assert!(error.to_string().contains(&path.display().to_string()), "{error}");
    assert!((0..30).all(|i| has_run(&Store::open(&path, LARGE).unwrap(), i)), "the good one was touched");
}

#[test]
fn damage_to_the_structure_is_seen_when_it_is_opened() {
    let (folder, path) = filled(30);
    let whole = fs::read(&path).unwrap();
    for page in 0..whole.len() / 4096 {
        let place = folder.path().join(format!("damaged {page}"));
        let mut bytes = whole.clone();
        blake3::Hasher::new().finalize_xof().fill(&mut bytes[4096 * page..4096 * page + 16]);
        fs::write(&place, bytes).unwrap();
        let error = Store::open(&place, LARGE).err().unwrap_or_else(|| panic!("damage to page {page} was not seen"));
        says_what_to_do(&error, &place, "damaged");
    }
}

/// Noise in the middle of a page: refused when it is opened or read, or what is read is right; `has_run` and the comparison below see to that.
#[test]
fn a_damaged_page_never_passes_for_content() {
    let (folder, path) = filled(30);
    let whole = fs::read(&path).unwrap();
    let place = folder.path().join("damaged");
    let (mut refused, pages) = (0, whole.len() / 4096);
    for page in 0..pages {
        let mut bytes = whole.clone();
        blake3::Hasher::new()
            .update(&page.to_le_bytes())
            .finalize_xof()
            .fill(&mut bytes[4096 * page + 1000..4096 * page + 3000]);
        fs::write(&place, bytes).unwrap();
        let tried = Store::open(&place, LARGE).and_then(|store| {
            (0..30).try_for_each(|i| {
                let found = store.snapshot(&id(i))?;
                assert!(found.is_none_or(|found| found == files(i)), "page {page}: snapshot {i} is another's");
                let runs = store.runs(&[key(i)])?;
                assert!(runs.get(&key(i)).is_none_or(|run| *run == result(i)), "page {page}: run {i} is another's");
                Ok(())
            })
        });
        if let Err(error) = tried {
            says_what_to_do(&error, &place, "damaged");
            refused += 1;
        }
        for ending in ["-wal", "-shm"] {
            let _ = fs::remove_file(folder.path().join(format!("damaged{ending}")));
        }
    }
    assert!(refused > pages / 3, "only {refused} of {pages} damages were seen");
}

#[test]
fn runs_of_an_older_version_are_dropped_and_this_is_said_once() {
    let test = "runs_of_an_older_version_are_dropped_and_this_is_said_once";
    if let Some((path, count)) = as_child() {
        let store = Store::open(&path, LARGE).unwrap();
        assert!((0..count).all(|i| has_snapshot(&store, i)), "the workspaces are kept");
        assert!(!(0..count).any(|i| has_run(&store, i)), "a run is taken for a new one");
        return;
    }
    let (_folder, path) = filled(3);
    change(&path, "PRAGMA user_version = 1");
    let children: Vec<Child> = (0..3).map(|_| start(test, &path, 3)).collect();
    let said: Vec<String> = children
        .into_iter()
        .map(|child| {
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stderr).unwrap()
        })
        .collect();
    let dropped = format!("note: {}: 3 runs that an older version", path.display());
    assert_eq!(said.iter().filter(|text| text.contains(&dropped)).count(), 1, "{said:?}");
    assert_eq!(number(&path, "SELECT user_version FROM pragma_user_version"), 2);
}

#[test]
fn another_version_or_another_program_is_refused() {
    for (sql, part) in [
        ("PRAGMA user_version = 3", "a database of version 3, and this program's is version 2"),
        ("PRAGMA user_version = 0", "version 0"),
        ("PRAGMA application_id = 7", "not one of this program"),
    ] {
        let (_folder, path) = filled(1);
        change(&path, sql);
        says_what_to_do(&Store::open(&path, LARGE).unwrap_err(), &path, part);
        assert_eq!(column(&path, "SELECT key FROM runs"), ["run 0"], "nothing is lost");
    }
}

#[test]
fn texts_are_checked_against_their_hash() {
    let (_folder, path) = filled(4);
    let store = Store::open(&path, LARGE).unwrap();
    let [one, two] = [0, 2].map(|i| blob(&text(i)));
    // The text of another blob; then bytes that are no text at all.
    change(&path, &format!("UPDATE blobs SET zstd = (SELECT zstd FROM blobs WHERE id = '{two}') WHERE id = '{one}'"));
    says_what_to_do(&store.snapshot(&id(0)).unwrap_err(), &path, &format!("blob {one} (file train.py)"));
    assert!(has_snapshot(&store, 1), "others can be read");
    change(&path, &format!("UPDATE blobs SET zstd = x'0011' WHERE id = '{two}'"));
    says_what_to_do(&store.snapshot(&id(2)).unwrap_err(), &path, &format!("blob {two}"));
    change(&path, &format!("UPDATE files SET name = 'other.py' WHERE blob = '{}'", blob(&text(3))));
    says_what_to_do(&store.snapshot(&id(3)).unwrap_err(), &path, &format!("snapshot {}", id(3)));
}

#[test]
fn a_run_that_cannot_be_trusted_is_dropped_and_can_be_inserted_again() {
    for damage in [
        "UPDATE runs SET result = (SELECT result FROM runs WHERE key = 'run 1') WHERE key = 'run 0'",
        "UPDATE runs SET result = replace(result, '0.333', '0.999') WHERE key = 'run 0'",
        "UPDATE runs SET hash = '' WHERE key = 'run 0'",
        "UPDATE runs SET hash = 7 WHERE key = 'run 0'",
        "UPDATE runs SET result = 1.5 WHERE key = 'run 0'",
        "UPDATE runs SET result = x'ff00' WHERE key = 'run 0'",
        "UPDATE runs SET result = (SELECT result FROM runs WHERE key = 'run 1'), hash = (SELECT hash FROM runs WHERE key = 'run 1')
         WHERE key = 'run 0'",
    ] {
        let (_folder, path) = filled(2);
        let store = Store::open(&path, LARGE).unwrap();
        change(&path, damage);
        assert_eq!(store.runs(&[key(0), key(1)]).unwrap(), BTreeMap::from([(key(1), result(1))]), "{damage}");
        assert_eq!(column(&path, "SELECT key FROM runs"), ["run 1"], "{damage}");
        insert(&store, 0..1);
        assert!(has_run(&store, 0));
    }
    // A result of another shape with the right hash: that of a program of another time.
    let (_folder, path) = filled(1);
    let shape = "{\"outcome\":{\"exited\":0},\"scores\":[1]}";
    let mut hash = blake3::Hasher::new();
    hash.update(&5u64.to_le_bytes()).update(b"run 0").update(shape.as_bytes());
    change(&path, &format!("UPDATE runs SET result = '{shape}', hash = '{}'", hash.finalize().to_hex()));
    assert!(!has_run(&Store::open(&path, LARGE).unwrap(), 0));
}

#[test]
fn a_log_left_without_its_database_is_not_taken_over() {
    let (folder, path) = filled(0);
    let store = Store::open(&path, LARGE).unwrap();
    insert(&store, 0..8);
    let wal = path.with_file_name("store.sqlite-wal");
    assert!(fs::metadata(&wal).unwrap().len() > 4096);
    let kept = folder.path().join("kept");
    fs::copy(&wal, &kept).unwrap();
    drop(store);
    fs::remove_file(&path).unwrap();
    fs::copy(&kept, &wal).unwrap();
    let store = Store::open(&path, LARGE).unwrap();
    assert!((0..8).all(|i| !has_run(&store, i)));
    insert(&store, 0..2);
    assert!(has_run(&store, 1));
}

/// Days since these runs and snapshots were used.
fn age(path: &Path, table: &str, column: &str, values: &[String], days: i64) {
    let values = values.join("','");
    change(
        path,
        &format!("UPDATE {table} SET last_used = last_used - {} WHERE {column} IN ('{values}')", days * 86_400),
    );
}

fn age_both(path: &Path, i: usize, days: i64) {
    age(path, "runs", "key", &[key(i).0], days);
    age(path, "snapshots", "id", &[id(i).0], days);
}

#[test]
fn what_nobody_used_for_90_days_goes_and_the_rest_stays() {
    let (_folder, path) = filled(200);
    let before = fs::metadata(&path).unwrap().len();
    (10..200).for_each(|i| age_both(&path, i, 91));
    age_both(&path, 9, 89);
    age(&path, "snapshots", "id", &[id(1).0], 1000); // its run is in use
    age(&path, "runs", "key", &[key(2).0], 1000); // its snapshot is in use
    let store = Store::open(&path, LARGE).unwrap();
    for i in 0..200 {
        assert_eq!(has_snapshot(&store, i), i < 10, "{i}");
        assert_eq!(has_run(&store, i), i < 10 && i != 2, "{i}");
    }
    drop(store);
    let met_again =
        "SELECT count(*) FROM runs r JOIN snapshots s ON s.id = r.snapshot WHERE s.last_used < r.last_used - 5";
    assert_eq!(number(&path, met_again), 0, "a snapshot takes over the time of its run");
    assert_eq!(column(&path, "SELECT cast(count(*) AS TEXT) FROM blobs"), [(10 + 5 + 1).to_string()]);
    assert_eq!(column(&path, "SELECT cast(count(*) AS TEXT) FROM files"), ["30"]);
    let after = fs::metadata(&path).unwrap().len();
    assert!(after < before / 5, "{before} bytes before, {after} after");
}

#[test]
fn above_the_limit_the_oldest_go_but_nothing_of_the_last_day() {
    let (_folder, path) = filled(64);
    // From 65 days (number 0) to 2 days (number 63) ago.
    (0..64).for_each(|i| age_both(&path, i, 65 - i as i64));
    insert(&Store::open(&path, LARGE).unwrap(), 100..104);
    age_both(&path, 20, -45); // used again
    let whole = fs::metadata(&path).unwrap().len();
    let limit = whole / 2;
    let store = Store::open(&path, limit).unwrap();
    let kept: Vec<usize> = (0..64).filter(|&i| has_snapshot(&store, i)).collect();
    assert!((16..=40).contains(&kept.len()), "about half: {kept:?}");
    for i in 0..64 {
        assert_eq!(has_run(&store, i), kept.contains(&i), "{i}");
        assert_eq!(
            kept.contains(&i),
            i == 20 || i >= 64 - (kept.len() - 1),
            "the youngest and what was used again: {kept:?}"
        );
    }
    drop(store);
    assert!(fs::metadata(&path).unwrap().len() <= limit);

    // Reading is a use: what was read just now stays, whatever the limit.
    let store = Store::open(&path, 0).unwrap();
    for i in 0..64 {
        assert_eq!((has_snapshot(&store, i), has_run(&store, i)), (kept.contains(&i), kept.contains(&i)));
    }
    drop(store);
    kept.iter().for_each(|&i| age_both(&path, i, 2));
    let store = Store::open(&path, 0).unwrap();
    for i in 0..104 {
        assert_eq!((has_snapshot(&store, i), has_run(&store, i)), (i >= 100, i >= 100), "{i}");
    }
}

/// The runs of `filled(count)` and their snapshots were last used a day and more ago, one second apart, number 0 first.
fn age_all(path: &Path, count: usize) {
    for table in ["runs", "snapshots"] {
        change(path, &format!("UPDATE {table} SET last_used = last_used - 2 * 86400 - {count} + rowid"));
    }
}

/// How many of the runs that `age_all` aged are left; asserts that no older one is, and that everything is whole.
fn old_ones_left(path: &Path, count: usize) -> usize {
    let old = "cast(substr(key, 5) AS INTEGER)";
    let left = number(path, &format!("SELECT count(*) FROM runs WHERE {old} < {count}"));
    let first = number(path, &format!("SELECT coalesce(min({old}), {count}) FROM runs WHERE {old} < {count}"));
    assert_eq!(first, count - left, "the oldest go first");
    assert_eq!(column(path, "PRAGMA integrity_check"), ["ok"]);
    for broken in [
        "files WHERE blob NOT IN (SELECT id FROM blobs)",
        "blobs WHERE id NOT IN (SELECT blob FROM files)",
        "snapshots WHERE 3 != (SELECT count(*) FROM files WHERE snapshot = id)",
        "runs WHERE snapshot NOT IN (SELECT id FROM snapshots)",
    ] {
        assert_eq!(number(path, &format!("SELECT count(*) FROM {broken}")), 0, "{broken}");
    }
    left
}

#[test]
fn tidying_goes_in_steps() {
    // As in store.rs: pages of a step, to which pages of SQLite's own come, and steps of an opening.
    let (step, steps, count) = (256 + 4, 32, 5000);
    let (_folder, path) = filled(count);
    age_all(&path, count);
    let pages = || number(&path, "PRAGMA page_count");
    let free = || number(&path, "PRAGMA freelist_count");
    let (mut before, mut openings) = (pages(), 0);
    while old_ones_left(&path, count) > 0 {
        let store = Store::open(&path, 0).unwrap();
        let opened = pages();
        // How many steps there is time for is the machine's business, but there is one.
        assert!(opened < before && before - opened <= steps * step, "{before} pages, then {opened}");
        assert!(free() <= step, "dropped, but not given back: {}", free());
        if openings == 0 {
            assert!(old_ones_left(&path, count) > count / 3);
            insert(&store, count..count + 1); // two insertions
            assert!(pages() < opened && opened - pages() <= 2 * step, "{opened} pages, then {}", pages());
            assert!(free() <= step, "dropped, but not given back: {}", free());
        }
        (before, openings) = (pages(), openings + 1);
    }
    assert!(openings > 1, "one opening did it all");
    drop(Store::open(&path, 0).unwrap());
    assert_eq!((free(), column(&path, "SELECT key FROM runs")), (0, vec![key(count).0]));
    assert!(fs::metadata(&path).unwrap().len() < 100 * 4096, "the file was not shortened");
}

#[test]
fn tidying_survives_kill_9() {
    if let Some((path, number)) = as_child() {
        return insert_until_killed(&path, number);
    }
    let count = 6000;
    let (_folder, path) = filled(count);
    age_all(&path, count);
    let (mut kills, mut committed, mut left) = (0, vec![], count);
    while left > 0 {
        // One that tidies, and one that only inserts.
        let first = [0, 1].map(|kind| 100_000 * (kills + 1) + 10_000 * kind + kind);
        let mut children = first.map(|first| start("tidying_survives_kill_9", &path, first));
        kills += 1;
        assert!(kills < 80, "{left} are left");
        std::thread::sleep(Duration::from_millis(10 * kills as u64));
        children.iter_mut().for_each(|child| child.kill().unwrap());
        for (child, first) in children.into_iter().zip(first) {
            let said = String::from_utf8(child.wait_with_output().unwrap().stderr).unwrap();
            committed.extend(first..said.lines().last().map_or(first, |last| last.parse().unwrap()));
        }
        let now_left = old_ones_left(&path, count);
        assert!(now_left <= left);
        left = now_left;
    }
    assert!(kills > 2, "none was killed while it tidied");
    let store = Store::open(&path, 0).unwrap();
    assert!(!committed.is_empty());
    assert!(committed.iter().all(|&i| has_snapshot(&store, i) && has_run(&store, i)), "what was committed is gone");
}

#[test]
fn a_snapshot_without_a_text_is_not_written() {
    let (_folder, path) = filled(1);
    let store = Store::open(&path, LARGE).unwrap();
    assert!(store.insert_snapshots(&[snapshot(10), snapshot(11)], &HashMap::new()).is_err());
    assert_eq!(column(&path, "SELECT id FROM snapshots"), [id(0).0]);
    assert_eq!(store.snapshot(&id(10)).unwrap(), None);
}
