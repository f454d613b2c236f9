//! Content-addressed store of workspaces: the agent's text files by their hash. Task data is not part of it; the
//! sandbox puts it beside the files, read-only, when a workspace is made.

use super::database::Store;
use super::record::{BlobId, Files, Snapshot, SnapshotId};
use crate::error::{Error, Result};
use crate::files::write_whole;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// All snapshots of a run: in memory and, if there is one, in a database behind it. Threads share it.
#[derive(Debug, Default)]
pub struct SnapshotStore {
    inner: Mutex<Inner>,
    store: Option<Arc<Store>>,
}

#[derive(Debug, Default)]
struct Inner {
    blobs: HashMap<BlobId, Arc<str>>,
    snapshots: BTreeMap<SnapshotId, Snapshot>,
    /// Snapshots that are not yet in the database.
    pending: Vec<SnapshotId>,
}

impl Inner {
    /// Keeps these files in memory; returns their id and whether they are new.
    fn keep(&mut self, files: &Files) -> (SnapshotId, bool) {
        let ids: Vec<BlobId> = files.values().map(|text| blake3::hash(text.as_bytes()).to_hex().to_string()).collect();
        let snapshot = Snapshot { files: files.keys().cloned().zip(ids.iter().cloned()).collect() };
        let id = snapshot.id();
        for (blob, text) in ids.into_iter().zip(files.values()) {
            self.blobs.entry(blob).or_insert_with(|| text.clone());
        }
        let is_new = self.snapshots.insert(id.clone(), snapshot).is_none();
        (id, is_new)
    }

    fn files(&self, id: &SnapshotId) -> Option<Files> {
        let file = |(name, blob): (&String, &BlobId)| Some((name.clone(), self.blobs.get(blob)?.clone()));
        self.snapshots.get(id)?.files.iter().map(file).collect()
    }
}

/// One line of the saved file.
#[derive(Serialize, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum Line {
    Blob { blob: BlobId, text: String },
    Snapshot { snapshot: SnapshotId, files: BTreeMap<String, BlobId> },
}

const FILE: &str = "snapshots.jsonl";

impl SnapshotStore {
    /// An empty store in front of `store`.
    pub fn new(store: Option<Arc<Store>>) -> Self {
        Self { inner: Mutex::default(), store }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Each insertion is complete in itself, so a panic elsewhere leaves nothing half-done.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps these files; equal files give the same id and are kept once. The database has them after the next `flush`.
    pub fn insert(&self, files: &Files) -> SnapshotId {
        let mut inner = self.lock();
        let (id, is_new) = inner.keep(files);
        if is_new && self.store.is_some() {
            inner.pending.push(id.clone());
        }
        id
    }

    /// Writes new snapshots to the database, in one transaction; does nothing without a database.
    ///
    /// # Errors
    /// Those of the database.
    pub fn flush(&self) -> Result<()> {
        let Some(store) = &self.store else { return Ok(()) };
        let (snapshots, blobs) = {
            let mut inner = self.lock();
            let pending = std::mem::take(&mut inner.pending);
            let snapshots: Vec<_> =
                pending.into_iter().filter_map(|id| Some((id.clone(), inner.snapshots.get(&id)?.clone()))).collect();
            let blobs = snapshots.iter().flat_map(|(_, s)| s.files.values());
            let blobs = blobs.filter_map(|blob| Some((blob.clone(), inner.blobs.get(blob)?.clone()))).collect();
            (snapshots, blobs)
        };
        if snapshots.is_empty() { Ok(()) } else { store.insert_snapshots(&snapshots, &blobs) }
    }

    /// Returns the files of a snapshot.
    ///
    /// # Errors Content: the store does not hold the snapshot. Those of the database.
    pub fn get(&self, id: &SnapshotId) -> Result<Files> {
        if let Some(files) = self.lock().files(id) {
            return Ok(files);
        }
        let files = self.store.as_ref().map(|store| store.snapshot(id)).transpose()?.flatten();
        let files = files
            .ok_or_else(|| Error::content(format!("snapshot {id} is not in the store; load the run's {FILE} first")))?;
        self.lock().keep(&files);
        Ok(files)
    }

    /// Returns the number of snapshots in memory.
    pub fn len(&self) -> usize {
        self.lock().snapshots.len()
    }

    /// True when there is no snapshot in memory.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes `folder`/snapshots.jsonl, complete or not at all: blobs first, then snapshots, both sorted by id.
    pub fn save(&self, folder: &Path) -> Result<()> {
        let inner = self.lock();
        let blobs: BTreeMap<&BlobId, &Arc<str>> = inner.blobs.iter().collect();
        let blobs = blobs.into_iter().map(|(id, text)| Line::Blob { blob: id.clone(), text: text.to_string() });
        let snapshots = inner.snapshots.iter();
        let snapshots = snapshots.map(|(id, s)| Line::Snapshot { snapshot: id.clone(), files: s.files.clone() });
        write_lines(&folder.join(FILE), blobs.chain(snapshots))
    }

    /// Adds the content of `folder`/snapshots.jsonl to the store.
    ///
    /// # Errors
    /// Content, naming file and line: a line is malformed, its id is not the hash of its content, or a blob is missing.
    pub fn load(&self, folder: &Path) -> Result<()> {
        let path = folder.join(FILE);
        let mut inner = self.lock();
        read_lines(&path, |number, line: Line| {
            let bad = |what: String| Error::content(format!("{}:{number}: {what}", path.display()));
            match line {
                Line::Blob { blob, text } if blake3::hash(text.as_bytes()).to_hex().as_str() == blob => {
                    inner.blobs.insert(blob, Arc::from(text));
                }
                Line::Blob { blob, .. } => return Err(bad(format!("the text is not that of blob {blob}"))),
                Line::Snapshot { snapshot: id, files } => {
                    let snapshot = Snapshot { files };
                    if snapshot.id() != id {
                        return Err(bad(format!("the files are not those of snapshot {id}")));
                    }
                    if let Some((name, blob)) = snapshot.files.iter().find(|(_, b)| !inner.blobs.contains_key(*b)) {
                        return Err(bad(format!("blob {blob} of file {name} is in no earlier line")));
                    }
                    inner.snapshots.insert(id, snapshot);
                }
            }
            Ok(())
        })
    }
}

/// Writes JSON lines; the file appears complete or not at all.
fn write_lines<T: Serialize>(path: &Path, lines: impl Iterator<Item = T>) -> Result<()> {
    let mut bytes = vec![];
    for line in lines {
        serde_json::to_writer(&mut bytes, &line)
            .map_err(|e| Error::system(format!("writing {}: {e}", path.display())))?;
        bytes.push(b'\n');
    }
    write_whole(path, &bytes)
}

/// Hands each line of a JSONL file, with its number from 1, to `take`.
fn read_lines<T: serde::de::DeserializeOwned>(path: &Path, mut take: impl FnMut(usize, T) -> Result<()>) -> Result<()> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io("cannot read", path, &e))?;
    for (i, line) in text.lines().enumerate() {
        let value = serde_json::from_str(line)
            .map_err(|e| Error::content(format!("{}:{}: not a line of this file: {e}", path.display(), i + 1)))?;
        take(i + 1, value)?;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::error::Kind;

    fn files(pairs: &[(&str, &str)]) -> Files {
        pairs.iter().map(|(n, t)| (n.to_string(), Arc::from(*t))).collect()
    }

    #[test]
    fn ids_are_of_content() {
        let store = SnapshotStore::default();
        let a = store.insert(&files(&[("a.py", "x"), ("b.py", "y")]));
        assert_eq!(a, store.insert(&files(&[("b.py", "y"), ("a.py", "x")])));
        for other in [[("a.py", "y"), ("b.py", "x")], [("a.py", "x"), ("c.py", "y")]] {
            assert_ne!(a, store.insert(&files(&other)));
        }
        assert_eq!(store.len(), 3);
        assert_eq!(store.get(&a).unwrap(), files(&[("a.py", "x"), ("b.py", "y")]));
        assert_eq!(store.get(&SnapshotId("0".into())).unwrap_err().kind(), Kind::Content);
    }

    #[test]
    fn saved_and_loaded_is_the_same() {
        let (store, other) = (SnapshotStore::default(), SnapshotStore::default());
        let folder = tempfile::tempdir().unwrap();
        let ids = [files(&[]), files(&[("a.py", "é\n\"")]), files(&[("a.py", "2"), ("d/b.py", "")])]
            .map(|f| (store.insert(&f), f));
        store.save(folder.path()).unwrap();
        other.load(folder.path()).unwrap();
        for (id, files) in ids {
            assert_eq!(other.get(&id).unwrap(), files);
        }
        let read = || std::fs::read(folder.path().join(FILE)).unwrap();
        let first = read();
        other.save(folder.path()).unwrap();
        assert_eq!(first, read());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn tampered_files_are_refused_with_their_line() {
        let store = SnapshotStore::default();
        store.insert(&files(&[("a.py", "text")]));
        let folder = tempfile::tempdir().unwrap();
        store.save(folder.path()).unwrap();
        let path = folder.path().join(FILE);
        let good = std::fs::read_to_string(&path).unwrap();
        let snapshot_only = good.lines().nth(1).unwrap().to_string();
        for (bad, line) in [
            (good.replace("\"text\":\"text\"", "\"text\":\"other\""), 1),
            (good.replace("a.py", "b.py"), 2),
            (snapshot_only, 1),
            (good.replace("\"files\"", "\"fils\""), 2),
            (good.trim_end().trim_end_matches('}').to_string(), 2),
        ] {
            std::fs::write(&path, &bad).unwrap();
            let error = SnapshotStore::default().load(folder.path()).unwrap_err();
            assert_eq!(error.kind(), Kind::Content);
            assert!(error.to_string().contains(&format!("{FILE}:{line}:")), "{error}");
        }
    }
}
