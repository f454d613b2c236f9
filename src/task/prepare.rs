//! Makes a task's data with the task's own script, once, in a cache keyed by that script's content, and checks that
//! they stay unchanged. Never runs agent code.

use super::{Labels, MOST_TEXT, PreparedTask, Task};
use crate::error::{Error, Result};
use crate::files::{regular, write_whole};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const SCRIPT: &str = "prepare.py";
const LABELS: &str = "private/labels.csv";
/// File with the blake3 hash of every file of a prepared folder, by its path in the folder.
const MANIFEST: &str = "manifest.json";
/// Layout of prepared folders. It is part of the key, so that folders of another layout are left alone.
const LAYOUT: &[u8] = b"public, private, manifest.json";

impl PreparedTask {
    /// Runs the task's prepare.py (`python prepare.py PUBLIC_DIR PRIVATE_DIR`) unless `cache` already holds what the
    /// same text, run by the same `python`, made. The folder appears complete, by one rename.
    ///
    /// # Errors
    /// Content: the script fails, or makes no data, no labels or labels that are not numbers; the cache does not hold
    /// what the script made. System: the cache cannot be written.
    pub fn prepare(task: &Task, python: &Path, cache: &Path) -> Result<PreparedTask> {
        let script = task.folder.join(SCRIPT);
        let text = regular::read(&script, MOST_TEXT)?;
        // The interpreter stands for the package versions: data that scikit-learn ships can change with them.
        let mut key = blake3::Hasher::new();
        key.update(LAYOUT).update(&text).update(python.as_os_str().as_encoded_bytes());
        let key = key.finalize().to_hex();
        fs::create_dir_all(cache).map_err(|e| Error::io("creating", cache, &e))?;
        // Absolute, because workspaces point to the data from elsewhere.
        let cache = &cache.canonicalize().map_err(|e| Error::io("opening", cache, &e))?;
        let folder = cache.join(format!("{}-{}", task.name, &key[..16]));
        if !folder.is_dir() {
            make(task, &script, python, cache, &folder)?;
        }
        open(task, &folder)
    }

    /// Loads the labels that the grader compares with, one row per example.
    pub fn load_labels(&self) -> Result<Labels> {
        let text = fs::read_to_string(&self.labels).map_err(|e| Error::io("reading", &self.labels, &e))?;
        Labels::parse(&self.task, &text).map_err(|problem| {
            Error::content(format!(
                "labels {} {problem}; expected a line like 1.0 for each example",
                self.labels.display()
            ))
        })
    }
}

/// Runs the script into a temporary sibling of `folder`, checks what it made, and renames it.
fn make(task: &Task, script: &Path, python: &Path, cache: &Path, folder: &Path) -> Result<()> {
    let temporary = tempfile::Builder::new()
        .prefix(&format!("{}-", task.name))
        .suffix(".part")
        .tempdir_in(cache)
        .map_err(|e| Error::io("creating a folder in", cache, &e))?;
    for part in ["public", "private"] {
        let part = temporary.path().join(part);
        fs::create_dir(&part).map_err(|e| Error::io("creating", &part, &e))?;
    }
    let output = Command::new(python)
        .args(["-s", "-B"])
        .arg(script)
        .args([temporary.path().join("public"), temporary.path().join("private")])
        .env_remove("PYTHONPATH")
        .env_remove("PYTHONHOME")
        .env("OMP_NUM_THREADS", "1")
        .env("OPENBLAS_NUM_THREADS", "1")
        .stdin(Stdio::null())
        .output()
        .map_err(|e| Error::io("running", python, &e))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let last = stderr.trim_end().lines().last().unwrap_or("no message").to_owned();
        return Err(Error::content(format!(
            "{} failed ({}): {last}; run it by hand to see more: {} {0} PUBLIC_DIR PRIVATE_DIR",
            script.display(),
            output.status,
            python.display(),
        )));
    }
    let described = data_files(task, temporary.path()).and_then(|_| hashes(temporary.path())).and_then(|hashes| {
        let text = serde_json::to_vec_pretty(&hashes).map_err(|e| Error::system(format!("{MANIFEST}: {e}")))?;
        write_whole(&temporary.path().join(MANIFEST), &text)
    });
    let prepared = described.and_then(|()| open(task, temporary.path()));
    let prepared = prepared.and_then(|prepared| prepared.load_labels().and(Ok(prepared)));
    let prepared = prepared.map_err(|e| e.context(script.display()))?;
    for path in prepared.data.iter().map(|(_, path)| path).chain([&prepared.labels]) {
        fs::File::open(path).and_then(|f| f.sync_all()).map_err(|e| Error::io("writing", path, &e))?;
    }
    match fs::rename(temporary.path(), folder) {
        // Another process made the same data in the meantime.
        Err(_) if folder.is_dir() => Ok(()),
        result => result.map_err(|e| Error::io("creating", folder, &e)),
    }
}

/// Opens a prepared folder and checks it against its manifest.
fn open(task: &Task, folder: &Path) -> Result<PreparedTask> {
    let data = data_files(task, folder)?;
    let manifest = folder.join(MANIFEST);
    let text = fs::read_to_string(&manifest).map_err(|e| Error::io("reading", &manifest, &e))?;
    let again = || format!("delete {}, and it is made again", folder.display());
    let stated: BTreeMap<String, String> =
        serde_json::from_str(&text).map_err(|e| Error::content(format!("{}: {e}; {}", manifest.display(), again())))?;
    let found = hashes(folder)?;
    let mut names = stated.keys().chain(found.keys());
    if let Some(name) = names.find(|name| stated.get(*name) != found.get(*name)) {
        let path = folder.join(name);
        return Err(Error::content(format!("{} is not what {SCRIPT} made; {}", path.display(), again())));
    }
    let mut data_id = blake3::Hasher::new();
    let scales = format!("{:?} {:?}", task.reward_scale(), task.report);
    for part in [&text, &task.name, &scales] {
        data_id.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
    }
    let data_id = data_id.finalize().to_hex().to_string();
    Ok(PreparedTask { task: task.clone(), data, labels: folder.join(LABELS), data_id })
}

/// Lists the public files of a prepared folder. Error: there are none, or one has a name that the task uses.
fn data_files(task: &Task, folder: &Path) -> Result<Vec<(String, PathBuf)>> {
    let public = folder.join("public");
    let data = regular_files(&public)?;
    if data.is_empty() {
        return Err(Error::content(format!("no data in {}; expected a file like data.npz", public.display())));
    }
    if let Some((name, _)) = data.iter().find(|(name, _)| *name == task.entry || *name == task.submission) {
        return Err(Error::content(format!(
            "data file {name} has the name of task {}'s entry or submission",
            task.name
        )));
    }
    Ok(data)
}

/// Computes the blake3 hash of the labels and of every public file, by its path below `folder`.
fn hashes(folder: &Path) -> Result<BTreeMap<String, String>> {
    let public = regular_files(&folder.join("public"))?;
    let files = public.into_iter().map(|(name, path)| (format!("public/{name}"), path));
    let hash = |(name, path): (String, PathBuf)| {
        let bytes = fs::read(&path).map_err(|e| Error::io("reading", &path, &e))?;
        Ok((name, blake3::hash(&bytes).to_hex().to_string()))
    };
    files.chain([(LABELS.to_string(), folder.join(LABELS))]).map(hash).collect()
}

/// Lists name and path of every regular file, sorted by name.
fn regular_files(folder: &Path) -> Result<Vec<(String, PathBuf)>> {
    let failed = |e: std::io::Error| Error::io("listing", folder, &e);
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.file_type().map_err(failed)?.is_file() {
            files.push((entry.file_name().to_string_lossy().into_owned(), entry.path()));
        }
    }
    files.sort();
    Ok(files)
}
