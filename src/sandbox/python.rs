//! Makes the private Python environment of the tasks on first use: pinned packages in a venv under the cache folder.
//! Installs nothing anywhere else, and uses an interpreter given by the user as it is.

use crate::error::{Error, Result};
use crate::files::lock;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Exact versions, in pip's format.
const REQUIREMENTS: &str = include_str!("../../data/python/requirements.txt");
/// Minor versions of Python 3 for which the pinned packages have wheels.
const SUPPORTED: std::ops::RangeInclusive<u32> = 10..=13;
/// Interpreters that are tried, in this order.
const CANDIDATES: [&str; 5] = ["python3", "python3.13", "python3.12", "python3.11", "python3.10"];
/// File written into an environment when it is complete and its imports have been tested.
const MARKER: &str = "onestep.json";
/// Megabytes that an environment needs, with what is unpacked while it is made.
const ROOM_MB: u64 = 600;
/// Advice that ends the error messages here.
const ELSEWHERE: &str = "or name an interpreter that has numpy and scikit-learn with --python PATH";
/// Python program that prints one line of JSON: interpreter, version, and the version of each package, or null where it
/// cannot be imported.
const INSPECT: &str = "
import importlib, importlib.metadata, json, sys
versions = {}
for name in sys.argv[1:]:
    try:
        importlib.import_module({'scikit-learn': 'sklearn'}.get(name, name))
        versions[name] = importlib.metadata.version(name)
    except Exception:
        versions[name] = None
print(json.dumps({'executable': sys.executable, 'version': list(sys.version_info[:3]), 'packages': versions}))
";

/// Python program that prints the folders of the system's libraries and of the interpreter (its prefix where it has one
/// of its own), parents first, and the folders inside them that hold data sets: they have the labels of a task made
/// from one.
const FOLDERS: &str = "
import json, os, sys
system = ['/lib', '/lib32', '/lib64', '/libx32', '/bin', '/usr/lib', '/usr/lib32', '/usr/lib64', '/usr/libx32', '/usr/bin',
          '/usr/local/lib', '/usr/local/bin', '/usr/share/zoneinfo']
own = [sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix]
own = [p for p in own if p not in ('/usr', '/usr/local')]
own += [p for p in sys.path if os.path.isdir(p)] + [os.path.dirname(sys.executable)]
own += [os.path.realpath(p) for p in own] + [os.path.dirname(os.path.realpath(sys.executable))]
found = sorted({os.path.abspath(p) for p in system + own if os.path.isdir(p)} - {'/', '/usr', '/tmp'}, key=len)
data = [os.path.join(os.path.realpath(p), 'sklearn', 'datasets', name) for p in sys.path for name in ('data', 'tests')]
print(json.dumps({'read': found, 'hidden': sorted({p for p in data if os.path.isdir(p)})}))
";

/// An interpreter that can import what the tasks need.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Python {
    /// Path of the executable.
    pub interpreter: PathBuf,
    /// Names and versions, `python` first.
    pub versions: Vec<(String, String)>,
    /// Hash of the versions: part of the cache key of a graded run.
    pub id: String,
}

/// Folders of the machine that scripts may read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Folders {
    /// Folders that may be read with everything in them, parents first.
    pub read: Vec<PathBuf>,
    /// Folders inside `read` whose files are hidden from scripts: data sets that packages ship, with their labels.
    pub hidden: Vec<PathBuf>,
}

/// Output of [`INSPECT`].
#[derive(Deserialize)]
struct Inspected {
    executable: PathBuf,
    version: [u32; 3],
    packages: std::collections::BTreeMap<String, Option<String>>,
}

impl Python {
    /// Returns the interpreter of the tasks. `base` (the option `--python PATH`) is used as it is when it can import
    /// the packages. Without it, the private environment below `cache` is used, and made if it does not exist
    /// (`progress` gets a line for each step). Several processes may do this at once; an environment appears whole.
    ///
    /// # Errors
    /// Content: `base` cannot be executed or lacks packages (named). System: no usable Python 3, venv or pip, no
    /// network; the message says which package or option helps.
    pub fn ensure(base: Option<&Path>, cache: &Path, progress: &mut dyn FnMut(&str)) -> Result<Self> {
        match base {
            Some(interpreter) => given(interpreter, progress),
            None => private(cache, progress),
        }
    }

    /// Returns the folders of the interpreter and its libraries, and those inside them that scripts must not read.
    ///
    /// # Errors
    /// System: the interpreter cannot be executed.
    pub fn folders(&self) -> Result<Folders> {
        let mut command = Command::new(&self.interpreter);
        command.args(["-s", "-c", FOLDERS]).stdin(Stdio::null()).env_remove("PYTHONPATH").env_remove("PYTHONHOME");
        let failed = |error: io::Error| Error::io("executing", &self.interpreter, &error);
        let output = command.current_dir("/").output().map_err(failed)?;
        serde_json::from_slice(&output.stdout).map_err(|_| failed(io::Error::other(last_lines(&output.stderr))))
    }

    /// Returns path and version of the interpreter that the private environment is made with. Makes nothing.
    ///
    /// # Errors
    /// System: no usable Python 3; the message says what to install.
    pub fn base() -> Result<(PathBuf, [u32; 3])> {
        find_python().map(|found| (found.executable, found.version))
    }

    fn new(interpreter: PathBuf, inspected: &Inspected) -> Self {
        let [major, minor, patch] = inspected.version;
        let python = ("python".to_string(), format!("{major}.{minor}.{patch}"));
        let packages =
            inspected.packages.iter().map(|(name, version)| (name.clone(), version.clone().unwrap_or_default()));
        let versions: Vec<_> = std::iter::once(python).chain(packages).collect();
        let text: String = versions.iter().map(|(name, version)| format!("{name}=={version}\n")).collect();
        let id = hash(&text);
        Self { interpreter, versions, id }
    }
}

/// Names and versions in REQUIREMENTS.
fn pins() -> impl Iterator<Item = (&'static str, &'static str)> {
    REQUIREMENTS.lines().filter_map(|line| line.trim().split_once("=="))
}

/// Returns the version of a package; `None` if it could not be imported.
fn version_of<'a>(inspected: &'a Inspected, package: &str) -> Option<&'a str> {
    inspected.packages.get(package)?.as_deref()
}

fn hash(text: &str) -> String {
    blake3::hash(text.as_bytes()).to_hex()[..16].to_string()
}

/// Asks an interpreter about itself and `packages`, without PYTHONPATH, PYTHONHOME and the user's site folder.
fn inspect(interpreter: &Path, packages: impl Iterator<Item = &'static str>) -> io::Result<Inspected> {
    let mut command = Command::new(interpreter);
    command.args(["-s", "-c", INSPECT]).args(packages).stdin(Stdio::null());
    command.env_remove("PYTHONPATH").env_remove("PYTHONHOME").current_dir("/");
    let output = command.output()?;
    if !output.status.success() {
        let said = Some(last_lines(&output.stderr)).filter(|said| !said.is_empty());
        return Err(io::Error::other(said.unwrap_or_else(|| format!("it ended with {}", output.status))));
    }
    serde_json::from_slice(&output.stdout).map_err(|_| {
        let said = Some(last_lines(&output.stdout)).filter(|said| !said.is_empty());
        let said = said.map_or("nothing".to_string(), |said| format!("{said:?}"));
        io::Error::other(format!("asked for its version it printed {said}, so it is no Python interpreter"))
    })
}

fn last_lines(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(4)..].join("\n")
}

fn given(interpreter: &Path, progress: &mut dyn FnMut(&str)) -> Result<Python> {
    let shown = interpreter.display();
    // A name is looked up in PATH; a path is made absolute, because the sandbox starts elsewhere.
    let inspected = if interpreter.components().count() > 1 {
        let path = std::path::absolute(interpreter).map_err(|error| Error::io("opening", interpreter, &error))?;
        inspect(&path, pins().map(|(name, _)| name))
    } else {
        inspect(interpreter, pins().map(|(name, _)| name))
    };
    let inspected = inspected.map_err(|error| {
        Error::content(format!("--python {shown}: {error}; expected a Python 3 interpreter, like /usr/bin/python3"))
    })?;
    let missing = pins().filter(|(name, _)| version_of(&inspected, name).is_none());
    let missing: Vec<String> = missing.map(|(name, version)| format!("{name}=={version}")).collect();
    if !missing.is_empty() {
        return Err(Error::content(format!(
            "--python {shown}: cannot import what the tasks need (the user's site folder is not used). Install it with \
             `{shown} -m pip install {}`, or leave --python out and a private environment is made",
            missing.join(" ")
        )));
    }
    for (name, pinned) in pins() {
        if let Some(version) = version_of(&inspected, name).filter(|version| *version != pinned) {
            progress(&format!("warning: --python {shown} has {name} {version}, figures were measured with {pinned}"));
        }
    }
    // Not resolved: a link into a venv means the venv.
    Ok(Python::new(inspected.executable.clone(), &inspected))
}

fn private(cache: &Path, progress: &mut dyn FnMut(&str)) -> Result<Python> {
    let base = find_python()?;
    let [major, minor, patch] = base.version;
    let key = hash(&format!("{REQUIREMENTS}{major}.{minor}.{patch}\n{}", base.executable.display()));
    std::fs::create_dir_all(cache).map_err(|error| Error::io("creating the cache folder", cache, &error))?;
    let cache = cache.canonicalize().map_err(|error| Error::io("opening the cache folder", cache, &error))?;
    let folder = cache.join(format!("python-{key}"));
    if let Some(python) = complete(&folder) {
        return Ok(python);
    }
    let lock_path = cache.join(format!("python-{key}.lock"));
    let held = File::create(&lock_path).map_err(|error| Error::io("creating", &lock_path, &error))?;
    if held.try_lock().is_err() {
        progress(&format!("waiting for {}, which makes the Python environment", lock::holder(&held)));
        held.lock().map_err(|error| Error::io("locking", &lock_path, &error))?;
    }
    if let Some(python) = complete(&folder) {
        return Ok(python);
    }
    let partial = cache.join(format!("python-{key}.partial"));
    for stale in [&partial, &folder] {
        match std::fs::remove_dir_all(stale) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(Error::io("removing", stale, &error)),
            _ => {}
        }
    }
    progress(&format!("making the private Python environment {} (once)", folder.display()));
    build(&base.executable, &partial, progress)?;
    progress("trying its packages");
    let inspected = inspect(&partial.join("bin/python"), pins().map(|(name, _)| name))
        .map_err(|error| Error::system(format!("the new Python environment {}: {error}", partial.display())))?;
    if let Some((name, pinned)) = pins().find(|(name, pin)| version_of(&inspected, name) != Some(*pin)) {
        return Err(Error::system(format!(
            "the new Python environment {}: {name} {pinned} was installed but cannot be imported; {ELSEWHERE}",
            partial.display()
        )));
    }
    let python = Python::new(folder.join("bin/python"), &inspected);
    let marker = partial.join(MARKER);
    let text = serde_json::to_vec(&python).map_err(|error| Error::system(format!("{}: {error}", marker.display())))?;
    let written = std::fs::write(&marker, text).and_then(|()| File::open(&marker)?.sync_all());
    written.map_err(|error| Error::io("writing", &marker, &error))?;
    std::fs::rename(&partial, &folder).map_err(|error| Error::io("renaming to", &folder, &error))?;
    progress("the Python environment is ready");
    Ok(python)
}

/// Reads a finished environment from its marker; `None` when it does not exist or its base interpreter has gone.
/// `folder` may be a link to one elsewhere.
fn complete(folder: &Path) -> Option<Python> {
    let folder = folder.canonicalize().ok()?;
    let python: Python = serde_json::from_slice(&std::fs::read(folder.join(MARKER)).ok()?).ok()?;
    (python.interpreter.starts_with(folder) && python.interpreter.exists()).then_some(python)
}

/// Finds the first candidate in PATH that the pins support.
fn find_python() -> Result<Inspected> {
    let mut seen = Vec::new();
    for candidate in CANDIDATES {
        let Ok(inspected) = inspect(Path::new(candidate), std::iter::empty()) else { continue };
        let [major, minor, _] = inspected.version;
        if major == 3 && SUPPORTED.contains(&minor) {
            return Ok(inspected);
        }
        seen.push(format!("{candidate} is {major}.{minor}"));
    }
    let seen = if seen.is_empty() { "none was found".to_string() } else { seen.join(", ") };
    let (first, last) = (SUPPORTED.start(), SUPPORTED.end());
    Err(Error::system(format!(
        "the tasks need Python 3.{first} to 3.{last} in PATH ({seen}): `apt-get install python3 python3-venv`, {ELSEWHERE}"
    )))
}

/// Error: the output `said` of a failed program shows a full disk or a used-up quota; it says how much is free where.
fn refuse_full_disk(said: &[u8], folder: &Path) -> Result<()> {
    let said = String::from_utf8_lossy(said);
    // Python prints the error number too; other programs may translate the text.
    let signs = ["[Errno 28]", "[Errno 122]", "No space left on device", "Disk quota exceeded"];
    let Some(line) = said.lines().rev().find(|line| signs.iter().any(|sign| line.contains(sign))) else {
        return Ok(());
    };
    // Packages are unpacked in the folder for temporary files first.
    let room = [folder.to_path_buf(), std::env::temp_dir()].map(|place| {
        let free = rustix::fs::statvfs(&place).map_or(0, |info| info.f_bavail * info.f_frsize);
        format!("{} MB are free in {}", free / 1_000_000, place.display())
    });
    Err(Error::system(format!(
        "the disk is full: making the Python environment {} needs about {ROOM_MB} MB, and {} ({}). Free some, or name another cache folder \
         with XDG_CACHE_HOME or one for temporary files with TMPDIR; {ELSEWHERE}",
        folder.display(),
        room.join(", "),
        line.trim()
    )))
}

/// Makes a venv with the pinned packages.
fn build(base: &Path, folder: &Path, progress: &mut dyn FnMut(&str)) -> Result<()> {
    let venv = Command::new(base).args(["-m", "venv"]).arg(folder).stdin(Stdio::null()).output();
    let venv = venv.map_err(|error| Error::io("executing", base, &error))?;
    if !venv.status.success() {
        // venv explains a missing ensurepip on stdout.
        let said = [venv.stdout, venv.stderr].concat();
        refuse_full_disk(&said, folder)?;
        return Err(Error::system(format!(
            "`{} -m venv` failed: {}\nOn Debian and Ubuntu `apt-get install python3-venv` helps; {ELSEWHERE}",
            base.display(),
            last_lines(&said)
        )));
    }
    let requirements = folder.join("requirements.txt");
    std::fs::write(&requirements, REQUIREMENTS).map_err(|error| Error::io("writing", &requirements, &error))?;
    let log_path = folder.join("pip.log");
    let log = File::create(&log_path).map_err(|error| Error::io("writing", &log_path, &error))?;
    let mut pip = Command::new(folder.join("bin/python"))
        .args(["-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--only-binary", ":all:", "-r"])
        .arg(&requirements)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .map_err(|error| Error::io("executing pip in", folder, &error))?;
    for line in pip.stdout.take().into_iter().flat_map(|pipe| BufReader::new(pipe).lines()).map_while(io::Result::ok) {
        // Drop the note in brackets that says where the requirement comes from.
        let line = line.split(" (from").next().unwrap_or_default().trim();
        if line.starts_with("Collecting ") || line.starts_with("Installing ") {
            progress(line);
        }
    }
    let status = pip.wait().map_err(|error| Error::io("waiting for pip in", folder, &error))?;
    if !status.success() {
        let said = std::fs::read(&log_path).unwrap_or_default();
        refuse_full_disk(&said, folder)?;
        return Err(Error::system(format!(
            "pip could not install the pinned packages ({status}): {}\nIt needs a package index that it can reach, once: check \
             the network, the proxy and pip's configuration (`pip config list`); {ELSEWHERE}",
            last_lines(&said)
        )));
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn every_requirement_is_an_exact_pin() {
        assert_eq!(pins().count(), REQUIREMENTS.lines().filter(|line| !line.trim().is_empty()).count());
        assert!(pins().any(|(name, _)| name == "scikit-learn") && pins().any(|(name, _)| name == "numpy"));
    }

    #[test]
    fn a_given_interpreter_that_is_none_is_named() {
        let cache = tempfile::tempdir().unwrap();
        let error = Python::ensure(Some(Path::new("/bin/false")), cache.path(), &mut |_| ()).unwrap_err();
        assert_eq!(error.kind(), Kind::Content);
        assert!(error.to_string().contains("/bin/false") && error.to_string().contains("expected"), "{error}");
    }

    #[test]
    fn a_program_that_is_no_interpreter_is_said_to_be_none() {
        let cache = tempfile::tempdir().unwrap();
        let error = Python::ensure(Some(Path::new("/bin/true")), cache.path(), &mut |_| ()).unwrap_err();
        assert_eq!(error.kind(), Kind::Content);
        let text = error.to_string();
        assert!(text.contains("/bin/true") && text.contains("printed nothing") && text.contains("no Python"), "{text}");
    }

    #[test]
    fn a_full_disk_is_named_whoever_meets_it() {
        let folder = tempfile::tempdir().unwrap();
        let executable: std::fs::Permissions = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        let program = |path: &Path, text: &str| {
            std::fs::write(path, format!("#!/bin/sh\n{text}\n")).unwrap();
            std::fs::set_permissions(path, executable.clone()).unwrap();
        };
        let full = "echo 'OSError: [Errno 28] No space left on device' >&2; exit 1";
        let (base, made) = (folder.path().join("base"), folder.path().join("made"));
        // First the environment itself does not fit, then what pip puts there.
        program(&base, full);
        let by_venv = build(&base, &made, &mut |_| ()).unwrap_err();
        std::fs::create_dir_all(made.join("bin")).unwrap();
        program(&base, "exit 0");
        program(&made.join("bin/python"), full);
        let by_pip = build(&base, &made, &mut |_| ()).unwrap_err();
        for error in [by_venv, by_pip] {
            let text = error.to_string();
            assert_eq!(error.kind(), Kind::System);
            assert!(text.contains("the disk is full") && text.contains(&made.display().to_string()), "{text}");
            assert!(!text.contains("apt-get") && !text.contains("proxy"), "{text}");
        }
        // Another failure is not reported as a full disk.
        program(&made.join("bin/python"), "echo 'no route to host' >&2; exit 1");
        let error = build(&base, &made, &mut |_| ()).unwrap_err().to_string();
        assert!(error.contains("proxy") && !error.contains("full"), "{error}");
    }

    #[test]
    fn a_given_interpreter_without_packages_says_what_is_missing() {
        let folder = tempfile::tempdir().unwrap();
        // A stand-in for an interpreter: only what INSPECT prints matters.
        let path = folder.path().join("python");
        let answer = r#"{"executable":"/x/python","version":[3,11,0],"packages":{"numpy":"1.0","scipy":null}}"#;
        std::fs::write(&path, format!("#!/bin/sh\necho '{answer}'\n")).unwrap();
        let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&path, executable).unwrap();
        let error = Python::ensure(Some(&path), folder.path(), &mut |_| ()).unwrap_err();
        assert_eq!(error.kind(), Kind::Content);
        assert!(error.to_string().contains("scipy==") && !error.to_string().contains("numpy=="), "{error}");
    }
}
