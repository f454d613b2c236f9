//! Keeps what outlives a run in one SQLite database for all runs on this machine: workspaces by content, executed runs
//! by key, and which tasks gave equal results twice. Any number of processes and threads may use it at once. What a key
//! is made of is left to the cache.
//!
//! Durability: a write-ahead log with synchronous = NORMAL. Committed data survives the end of the process at any
//! instant, even by kill -9. A crash of the whole machine may lose the last transactions, but only whole ones. Texts
//! are checked against their hash when they are read.
//!
//! Two processes that execute the same run at the same moment both execute it; the first to finish is kept.

use super::record::{BlobId, Executed, Files, RunKey, RunResult, Snapshot, SnapshotId};
use crate::error::{Error, Result};
use crate::files::{self, lock};
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, Row, Transaction, TransactionBehavior, params};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// Version of the database: raised when a table changes, or when equal runs get other results. A database of version
/// `OLDER` keeps everything but its runs; any other version is refused.
const VERSION: i64 = 2;
/// Version 1, which has the same tables. Its runs are dropped because they counted files left open at a script's end as
/// empty, and refused quoted submissions.
const OLDER: i64 = 1;
/// Application id that tells our databases from those of other programs: "1Stp".
const APPLICATION: i64 = 0x3153_7470;
/// Longest wait for another process's transaction.
const PATIENCE: Duration = Duration::from_secs(60);
/// Entries unused for this many seconds are dropped: 90 days.
const KEPT_SECONDS: i64 = 90 * 86_400;
/// Entries used within this many seconds are never dropped, because a live process may hold them: a day.
const LIVE_SECONDS: i64 = 86_400;
/// A use is recorded only if the recorded one is older than this many seconds, so that most reads write nothing.
const STALE_SECONDS: i64 = 3_600;
/// Pages of one step of tidying, 1 MiB: it drops entries until this many are free, and gives back at most this many.
const STEP_PAGES: i64 = 256;
/// Most snapshots and runs that one step of tidying looks at.
const STEP_ENTRIES: usize = 256;
/// Most steps of tidying when a database is opened.
const OPENING_STEPS: usize = 32;
/// Longest search for damage when a database is opened. Tidying at opening begins no step after running this long.
const OPENING_TIME: Duration = Duration::from_millis(500);

const SCHEMA: &str = "
    CREATE TABLE blobs (id TEXT PRIMARY KEY, zstd BLOB NOT NULL);
    CREATE TABLE snapshots (id TEXT PRIMARY KEY, last_used INTEGER NOT NULL);
    CREATE TABLE files (
        snapshot TEXT NOT NULL REFERENCES snapshots (id) ON DELETE CASCADE,
        name TEXT NOT NULL,
        blob TEXT NOT NULL REFERENCES blobs (id),
        PRIMARY KEY (snapshot, name)
    ) WITHOUT ROWID;
    CREATE INDEX files_by_blob ON files (blob);
    CREATE INDEX snapshots_by_use ON snapshots (last_used);
    CREATE TABLE runs (
        key TEXT PRIMARY KEY,
        task TEXT NOT NULL,
        snapshot TEXT NOT NULL, -- of the files it ran on; kept while the run is
        result TEXT NOT NULL,   -- RunResult as JSON
        hash TEXT NOT NULL,     -- blake3 of key and result
        wall_seconds REAL NOT NULL,
        created INTEGER NOT NULL, -- Unix seconds, as last_used
        last_used INTEGER NOT NULL
    );
    CREATE INDEX runs_by_snapshot ON runs (snapshot);
    CREATE INDEX runs_by_use ON runs (last_used);
    CREATE TABLE tasks (version TEXT PRIMARY KEY, is_deterministic INTEGER NOT NULL, created INTEGER NOT NULL);
";

/// The database. Threads share it.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    limit: u64,
    connection: Mutex<Connection>,
    /// True while the tidying that opening began is not finished.
    is_untidy: AtomicBool,
}

impl Store {
    /// Opens the database at `path`, or makes it if there is none, looks for damage, and tidies. Tidying drops what
    /// nobody used for 90 days and, while the content is larger than `limit` bytes, the least recently used runs and
    /// snapshots, but nothing from the last 24 hours; freed space is given back. Checking and tidying together take
    /// about a second at most, whatever the size: content that is not checked now is checked when it is used, and
    /// tidying goes on by one step with each insertion, and at later openings.
    ///
    /// # Errors
    /// Content, naming the file and what to do: it is damaged, not a database, another program's, or of another
    /// version. System: it cannot be made, read or written, or another process has kept its lock for a minute.
    ///
    /// Reports once on stderr that the runs of an older version are dropped and, after waiting a second for a lock,
    /// which process holds it.
    pub fn open(path: &Path, limit: u64) -> Result<Self> {
        let folder = files::parent(path);
        std::fs::create_dir_all(folder).map_err(|e| Error::io("creating the folder", folder, &e))?;
        // Only one process at a time makes the database. The lock ends with the process.
        let lock = lock::take(&sibling(path, ".lock"), lock::BRIEF, |line| crate::console::errln!("{line}"))?;
        if !path.exists() {
            create(path)?;
        }
        drop(lock);
        let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE)
            .map_err(|e| failed("opening", path, &e))?;
        let (connection, is_untidy) = (Mutex::new(connection), AtomicBool::new(true));
        let store = Self { path: path.to_path_buf(), limit, connection, is_untidy };
        store.check()?;
        store.drop_older_runs()?;
        let start = Instant::now();
        for _ in 0..OPENING_STEPS {
            store.tidy_on()?;
            if start.elapsed() > OPENING_TIME {
                break;
            }
        }
        Ok(store)
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        // A transaction that a panic interrupts is rolled back.
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `work` in one transaction that writes.
    fn write<T>(&self, doing: &str, work: impl FnOnce(&Transaction) -> rusqlite::Result<T>) -> Result<T> {
        let mut connection = self.lock();
        let result = connection.transaction_with_behavior(TransactionBehavior::Immediate).and_then(|transaction| {
            let value = work(&transaction)?;
            transaction.commit()?;
            Ok(value)
        });
        result.map_err(|e| failed(doing, &self.path, &e))
    }

    /// Runs `work` in one transaction that reads: it sees the database as it is at one instant.
    fn read<T>(&self, doing: &str, work: impl FnOnce(&Transaction) -> rusqlite::Result<T>) -> Result<T> {
        let mut connection = self.lock();
        let result = connection.transaction().and_then(|transaction| work(&transaction));
        result.map_err(|e| failed(doing, &self.path, &e))
    }

    /// Sets the connection up and checks the database. Error: it is not one of this program, of an unknown version, or
    /// found damaged within `OPENING_TIME`.
    fn check(&self) -> Result<()> {
        let mut connection = self.lock();
        let read = |connection: &mut Connection| {
            connection.busy_timeout(PATIENCE)?;
            connection.pragma_update(None, "synchronous", "NORMAL")?;
            connection.pragma_update(None, "foreign_keys", true)?;
            let whole = quick_check(connection)?;
            Ok((number(connection, "application_id")?, number(connection, "user_version")?, whole))
        };
        let (application, version, whole) = read(&mut connection).map_err(|e| failed("opening", &self.path, &e))?;
        let refused = |what: String| Err(Error::content(format!("{}: {what}; {REMEDY}", self.path.display())));
        if application != APPLICATION {
            return refused("a database, but not one of this program".to_string());
        }
        if ![VERSION, OLDER].contains(&version) {
            return refused(format!("a database of version {version}, and this program's is version {VERSION}"));
        }
        if whole != "ok" {
            return refused(format!("a damaged database ({})", whole.replace('\n', " ")));
        }
        Ok(())
    }

    /// Upgrades a database of version `OLDER` by dropping its runs. When several processes open it at once, only one
    /// does.
    fn drop_older_runs(&self) -> Result<()> {
        if self.read("opening", |transaction| number(transaction, "user_version"))? == VERSION {
            return Ok(());
        }
        let dropped = self.write("dropping old runs from", |transaction| {
            if number(transaction, "user_version")? == VERSION {
                return Ok(0);
            }
            transaction.pragma_update(None, "user_version", VERSION)?;
            transaction.execute("DELETE FROM runs", [])
        })?;
        if dropped > 0 {
            crate::console::errln!(
                "note: {}: {dropped} runs that an older version of this program remembered are dropped, since it graded some in another way; \
                 they are executed again",
                self.path.display()
            );
        }
        Ok(())
    }

    /// Returns those of these runs that are remembered. A damaged run, or one of another shape, is dropped and will be
    /// executed again.
    pub fn runs(&self, keys: &[RunKey]) -> Result<BTreeMap<RunKey, RunResult>> {
        let (mut found, mut stale, mut broken) = (BTreeMap::new(), vec![], vec![]);
        let now = now();
        self.read("reading runs from", |transaction| {
            let mut select = transaction.prepare_cached("SELECT result, hash, last_used FROM runs WHERE key = ?")?;
            for key in keys {
                let row = select.query_row([&key.0], |row| {
                    let (result, hash) = (row.get_ref(0)?, row.get_ref(1)?);
                    let result = result.as_bytes().ok().filter(|r| hash.as_str() == Ok(&run_hash(key, r)));
                    let result = result.and_then(|r| serde_json::from_slice::<RunResult>(r).ok());
                    Ok((result, row.get::<_, i64>(2)?))
                });
                match row.optional()? {
                    Some((Some(result), used)) => {
                        found.insert(key.clone(), result);
                        stale.extend((used < now - STALE_SECONDS).then_some(key));
                    }
                    Some((None, _)) => broken.push(key),
                    None => {}
                }
            }
            Ok(())
        })?;
        if !stale.is_empty() || !broken.is_empty() {
            self.write("writing to", |transaction| {
                for key in stale {
                    transaction.execute("UPDATE runs SET last_used = ? WHERE key = ?", params![now, key.0])?;
                }
                for key in broken {
                    transaction.execute("DELETE FROM runs WHERE key = ?", [&key.0])?;
                }
                Ok(())
            })?;
        }
        Ok(found)
    }

    /// Stores runs, all in one transaction. A run that is already there stays as it is.
    pub fn insert_runs<'a>(&self, runs: impl IntoIterator<Item = &'a Executed>) -> Result<()> {
        let now = now();
        self.write("writing runs to", |transaction| {
            let mut insert = transaction.prepare_cached(
                "INSERT OR IGNORE INTO runs (key, task, snapshot, result, hash, wall_seconds, created, last_used)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?7)",
            )?;
            for Executed { key, task, snapshot, run } in runs {
                let result =
                    serde_json::to_string(&**run).map_err(|e| rusqlite::Error::ToSqlConversionFailure(e.into()))?;
                let hash = run_hash(key, result.as_bytes());
                insert.execute(params![key.0, task, snapshot.0, result, hash, run.wall_seconds, now])?;
            }
            Ok(())
        })?;
        self.tidy_on()
    }

    /// Returns the files of a snapshot; None when the database does not hold it.
    ///
    /// # Errors
    /// Content, naming the blob or the snapshot: a text or the list of files does not hash to its id.
    pub fn snapshot(&self, id: &SnapshotId) -> Result<Option<Files>> {
        type Row = (String, BlobId, Option<Vec<u8>>);
        let now = now();
        let row = self.read("reading a snapshot from", |transaction| {
            let used = "SELECT last_used FROM snapshots WHERE id = ?";
            let used = transaction.query_row(used, [&id.0], |row| row.get::<_, i64>(0)).optional()?;
            let Some(used) = used else { return Ok(None) };
            let mut select = transaction.prepare_cached(
                "SELECT name, blob, zstd FROM files LEFT JOIN blobs ON blobs.id = files.blob WHERE snapshot = ?",
            )?;
            let rows = select.query_map([&id.0], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
            Ok(Some((used, rows.collect::<rusqlite::Result<Vec<Row>>>()?)))
        })?;
        let Some((used, rows)) = row else { return Ok(None) };
        let damaged = |what: String| Error::content(format!("{}: {what}; {REMEDY}", self.path.display()));
        let (mut files, mut snapshot) = (Files::new(), Snapshot { files: BTreeMap::new() });
        for (name, blob, bytes) in rows {
            let bytes = bytes.and_then(|bytes| zstd::decode_all(&*bytes).ok());
            let text = bytes.filter(|bytes| blake3::hash(bytes).to_hex().as_str() == blob);
            let text = text.and_then(|bytes| String::from_utf8(bytes).ok());
            let text = text.ok_or_else(|| damaged(format!("the text of blob {blob} (file {name}) is damaged")))?;
            files.insert(name.clone(), Arc::from(text));
            snapshot.files.insert(name, blob);
        }
        if snapshot.id() != *id {
            return Err(damaged(format!("the list of files of snapshot {id} is damaged")));
        }
        if used < now - STALE_SECONDS {
            self.write("writing to", |transaction| {
                transaction.execute("UPDATE snapshots SET last_used = ? WHERE id = ?", params![now, id.0])
            })?;
        }
        Ok(Some(files))
    }

    /// Stores snapshots, all in one transaction. `blobs` has the text of every file they name.
    ///
    /// # Errors
    /// System, also for a missing text; nothing is written then.
    pub fn insert_snapshots(
        &self,
        snapshots: &[(SnapshotId, Snapshot)],
        blobs: &HashMap<BlobId, Arc<str>>,
    ) -> Result<()> {
        let now = now();
        self.write("writing snapshots to", |transaction| {
            let mut is_there = transaction.prepare_cached("SELECT 1 FROM blobs WHERE id = ?")?;
            let mut blob = transaction.prepare_cached("INSERT INTO blobs (id, zstd) VALUES (?, ?)")?;
            let mut snapshot = transaction.prepare_cached(
                "INSERT INTO snapshots (id, last_used) VALUES (?, ?)
                 ON CONFLICT (id) DO UPDATE SET last_used = excluded.last_used",
            )?;
            let mut file =
                transaction.prepare_cached("INSERT OR IGNORE INTO files (snapshot, name, blob) VALUES (?, ?, ?)")?;
            for (id, Snapshot { files }) in snapshots {
                snapshot.execute(params![id.0, now])?;
                for (name, text) in files {
                    if !is_there.exists([text])? {
                        // If the text is missing, its blob is not inserted, and the reference below then fails.
                        if let Some(text_of) = blobs.get(text) {
                            let packed = zstd::encode_all(text_of.as_bytes(), zstd::DEFAULT_COMPRESSION_LEVEL)
                                .map_err(|e| rusqlite::Error::ToSqlConversionFailure(e.into()))?;
                            blob.execute(params![text, packed])?;
                        }
                    }
                    file.execute(params![id.0, name, text])?;
                }
            }
            Ok(())
        })?;
        self.tidy_on()
    }

    /// Returns true when the task of this version (the key of its baseline's run) gave equal results twice; None when
    /// it was not tested.
    pub fn is_deterministic(&self, version: &RunKey) -> Result<Option<bool>> {
        self.read("reading from", |transaction| {
            let select = "SELECT is_deterministic FROM tasks WHERE version = ?";
            transaction.query_row(select, [&version.0], |row| row.get(0)).optional()
        })
    }

    /// Stores whether tasks gave equal results twice. Once false, it stays false.
    pub fn insert_tasks(&self, tasks: &[(RunKey, bool)]) -> Result<()> {
        let now = now();
        self.write("writing to", |transaction| {
            for (version, is_deterministic) in tasks {
                transaction.execute(
                    "INSERT INTO tasks (version, is_deterministic, created) VALUES (?, ?, ?) ON CONFLICT (version)
                     DO UPDATE SET is_deterministic = min(is_deterministic, excluded.is_deterministic)",
                    params![version.0, is_deterministic, now],
                )?;
            }
            Ok(())
        })
    }

    /// Does one step of tidying in one transaction: drops some of the due entries and gives back some free pages.
    /// Returns true while there is more to do.
    fn tidy(&self) -> Result<bool> {
        self.write("tidying", |transaction| {
            let more = drop_due(transaction, self.limit)?;
            // Each row that is read frees a page.
            let mut vacuum = transaction.prepare(&format!("PRAGMA incremental_vacuum({STEP_PAGES})"))?;
            let mut rows = vacuum.query([])?;
            while rows.next()?.is_some() {}
            Ok(more || number(transaction, "freelist_count")? > 0)
        })
    }

    /// Does one step of tidying if opening left any.
    fn tidy_on(&self) -> Result<()> {
        if self.is_untidy.load(Ordering::Relaxed) {
            self.is_untidy.store(self.tidy()?, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// Checks the database for at most `OPENING_TIME`. Returns "ok", also when the time ran out, or what is wrong.
fn quick_check(connection: &mut Connection) -> rusqlite::Result<String> {
    let end = Instant::now() + OPENING_TIME;
    // SQLite asks every 256 pages or so: a small database is always read to its end.
    connection.progress_handler(256, Some(move || Instant::now() > end))?;
    let whole = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0));
    connection.progress_handler(0, None::<fn() -> bool>)?;
    match whole {
        Err(e) if e.sqlite_error_code() == Some(ErrorCode::OperationInterrupted) => Ok("ok".to_string()),
        whole => whole,
    }
}

/// Drops due entries, least recently used first, up to the share of one step. Returns true when more may be due.
fn drop_due(transaction: &Transaction, limit: u64) -> rusqlite::Result<bool> {
    let (now, limit) = (now(), i64::try_from(limit).unwrap_or(i64::MAX));
    let page_size = number(transaction, "page_size")?;
    let mut oldest_snapshot =
        transaction.prepare_cached("SELECT last_used, id FROM snapshots ORDER BY last_used LIMIT 1")?;
    let mut oldest_run = transaction.prepare_cached("SELECT last_used, key FROM runs ORDER BY last_used LIMIT 1")?;
    for _ in 0..STEP_ENTRIES {
        // Giving pages back takes longer the more are free.
        let free = number(transaction, "freelist_count")?;
        if free >= STEP_PAGES {
            return Ok(true);
        }
        let is_over = (number(transaction, "page_count")? - free) * page_size > limit;
        let before = now - if is_over { LIVE_SECONDS } else { KEPT_SECONDS };
        let entry = |row: &Row| Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?));
        let snapshot = oldest_snapshot.query_row([], entry).optional()?;
        match (snapshot, oldest_run.query_row([], entry).optional()?) {
            (Some((used, id)), run) if used < before && run.as_ref().is_none_or(|run| used <= run.0) => {
                drop_snapshot(transaction, &id, used)?;
            }
            (_, Some((used, key))) if used < before => {
                transaction.execute("DELETE FROM runs WHERE key = ?", [key])?;
            }
            _ => return Ok(false),
        }
    }
    Ok(true)
}

/// Drops a snapshot that was last used at `used` (Unix seconds), with its runs and the texts that no other snapshot
/// has. If one of its runs was used later, the snapshot stays and takes over that time, so that it does not come up
/// again before.
fn drop_snapshot(transaction: &Transaction, id: &str, used: i64) -> rusqlite::Result<()> {
    let run_used = "SELECT max(last_used) FROM runs WHERE snapshot = ?";
    let run_used: Option<i64> = transaction.prepare_cached(run_used)?.query_row([id], |row| row.get(0))?;
    if let Some(run_used) = run_used.filter(|&run_used| run_used > used) {
        let update = "UPDATE snapshots SET last_used = ? WHERE id = ?";
        transaction.prepare_cached(update)?.execute(params![run_used, id])?;
        return Ok(());
    }
    transaction.prepare_cached("DELETE FROM runs WHERE snapshot = ?")?.execute([id])?;
    let mut select = transaction.prepare_cached("SELECT blob FROM files WHERE snapshot = ?")?;
    let blobs = select.query_map([id], |row| row.get::<_, BlobId>(0))?.collect::<rusqlite::Result<Vec<_>>>()?;
    transaction.prepare_cached("DELETE FROM snapshots WHERE id = ?")?.execute([id])?;
    let unused = "DELETE FROM blobs WHERE id = ? AND NOT EXISTS (SELECT 1 FROM files WHERE files.blob = blobs.id)";
    let mut delete = transaction.prepare_cached(unused)?;
    for blob in blobs {
        delete.execute([blob])?;
    }
    Ok(())
}

/// Reads the value of a numeric pragma.
fn number(connection: &Connection, pragma: &str) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, pragma, |row| row.get(0))
}

/// Advice for a database that cannot be used.
const REMEDY: &str = "move it away, with its -wal file, or remove it (what it remembers is worked out again), or set run.reuse_rewards=false";

/// Makes an empty database; the file appears complete or not at all.
fn create(path: &Path) -> Result<()> {
    // A log left behind by a removed database would be taken for the new database's log.
    for ending in ["-wal", "-shm"] {
        let left = sibling(path, ending);
        match std::fs::remove_file(&left) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(Error::io("removing", &left, &e)),
            _ => {}
        }
    }
    let folder = files::parent(path);
    let temporary = tempfile::Builder::new().prefix("store.tmp-").tempfile_in(folder);
    // Closed at once: closing it later would release SQLite's locks on the same file.
    let temporary = temporary.map_err(|e| Error::io("creating a file in", folder, &e))?.into_temp_path();
    let make = || {
        let connection = Connection::open(&temporary)?;
        connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
        connection.pragma_update(None, "application_id", APPLICATION)?;
        connection.pragma_update(None, "user_version", VERSION)?;
        connection.execute_batch(SCHEMA)?;
        connection.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))?;
        connection.close().map_err(|(_, e)| e)
    };
    make().map_err(|e| failed("making", path, &e))?;
    std::fs::rename(&temporary, path).map_err(|e| Error::io("renaming to", path, &e))?;
    files::sync_folder(folder)
}

/// Turns an SQLite error into ours: what was being done to which file, and what to do.
fn failed(doing: &str, path: &Path, error: &rusqlite::Error) -> Error {
    let path = path.display();
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            Error::content(format!("{doing} {path}: it is damaged or no database ({error}); {REMEDY}"))
        }
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Error::system(format!(
            "{doing} {path}: another process has kept it locked for {} s; see which with fuser {path}",
            PATIENCE.as_secs()
        )),
        Some(_) => Error::system(format!(
            "{doing} {path}: {error}; it needs a local disk with free space that can be written to, or run.reuse_rewards=false"
        )),
        None => Error::content(format!("{doing} {path}: it is damaged ({error}); {REMEDY}")),
    }
}

/// Hash that ties a result to its key.
fn run_hash(key: &RunKey, result: &[u8]) -> String {
    let mut hash = blake3::Hasher::new();
    hash.update(&(key.0.len() as u64).to_le_bytes()).update(key.0.as_bytes()).update(result);
    hash.finalize().to_hex().to_string()
}

/// Returns the current time in Unix seconds.
fn now() -> i64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64)
}

/// Returns `path` with `ending` added to its name.
fn sibling(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_os_string();
    name.push(ending);
    PathBuf::from(name)
}
