//! Finds NVIDIA's libraries in a fixed order of places, opens them by absolute path and keeps them for the life of the
//! process. Nothing is linked, so the program starts without any of them. Their use is in other files.

use crate::error::{Error, Result};
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// A library that the GPU backend can use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Name {
    /// The driver's library, which comes with it.
    Driver,
    /// The compiler of kernels at run time.
    Nvrtc,
    /// Matrix products.
    CublasLt,
    /// Communication between several GPUs.
    Nccl,
}

impl Name {
    /// All libraries, in the order in which they are reported.
    pub const ALL: [Name; 4] = [Name::Driver, Name::Nvrtc, Name::CublasLt, Name::Nccl];

    fn stem(self) -> &'static str {
        match self {
            Name::Driver => "cuda",
            Name::Nvrtc => "nvrtc",
            Name::CublasLt => "cublasLt",
            Name::Nccl => "nccl",
        }
    }

    /// Major versions in the sonames, best first. Those of NVRTC and cuBLASLt are CUDA's.
    fn majors(self) -> &'static [u32] {
        match self {
            Name::Driver => &[1],
            Name::Nvrtc | Name::CublasLt => &[13, 12],
            Name::Nccl => &[2],
        }
    }

    /// Whether its version must not be newer than the CUDA that the driver runs.
    fn follows_driver(self) -> bool {
        matches!(self, Name::Nvrtc | Name::CublasLt)
    }

    /// Returns the advice for a missing library; `driver` is the CUDA version that the driver runs, if known.
    pub fn install(self, driver: Option<Version>) -> String {
        let old = driver.is_some_and(|version| version.major < 13);
        let pip = |new: &str, old_name: &str| format!("`python3 -m pip install {}`", if old { old_name } else { new });
        match self {
            Name::Driver => {
                "install NVIDIA's driver, the distribution's package (Ubuntu: `apt-get install nvidia-driver-580-server`), or \
                 start the container with its GPUs (docker: --gpus all)"
                    .to_string()
            }
            Name::Nvrtc => pip("nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12"),
            Name::CublasLt => pip("nvidia-cublas", "nvidia-cublas-cu12"),
            Name::Nccl => pip("nvidia-nccl-cu13", "nvidia-nccl-cu12"),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Name::Driver => "CUDA driver",
            Name::Nvrtc => "NVRTC",
            Name::CublasLt => "cuBLASLt",
            Name::Nccl => "NCCL",
        })
    }
}

/// The version of a library; for the driver, that of the CUDA it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// The 13 of 13.0.
    pub major: u32,
    /// The 0 of 13.0.
    pub minor: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// The folders that are searched for libraries, in order.
#[derive(Debug)]
pub struct Places {
    folders: Vec<(PathBuf, &'static str)>,
    /// The interpreter that is asked for its packages when no folder has a library.
    python: Option<&'static str>,
    packages: OnceLock<Vec<PathBuf>>,
}

/// The places in words, for messages.
const PLACES: &str = "LD_LIBRARY_PATH, CUDA_HOME, CUDA_PATH, the usual folders or the packages of python3";
/// Folders where distributions and containers put the driver and the toolkit.
const SYSTEM: [&str; 9] = [
    "usr/lib/x86_64-linux-gnu",
    "usr/lib64",
    "usr/lib",
    "usr/local/nvidia/lib64",
    "usr/local/nvidia/lib",
    "usr/lib/wsl/lib",
    "run/opengl-driver/lib",
    "usr/lib/x86_64-linux-gnu/nvidia/current",
    "lib/x86_64-linux-gnu",
];
/// Library folders below a toolkit's folder.
const TOOLKIT: [&str; 3] = ["lib64", "lib", "targets/x86_64-linux/lib"];
/// Library folders of NVIDIA's packages below a site-packages folder, those for CUDA 13 first.
const PIP: [&str; 4] = ["nvidia/cu13/lib", "nvidia/cuda_nvrtc/lib", "nvidia/cublas/lib", "nvidia/nccl/lib"];

impl Places {
    /// Takes the places from LD_LIBRARY_PATH, CUDA_HOME, CUDA_PATH, the usual folders, the loader's configuration and
    /// the packages of the `python3` in PATH. These variables are read nowhere else.
    pub fn from_environment() -> Self {
        Self::new(|name| std::env::var_os(name), Path::new("/"), Some("python3"))
    }

    /// Searches only this folder.
    pub fn only(folder: &Path) -> Self {
        Self { folders: vec![(folder.to_path_buf(), "given")], python: None, packages: OnceLock::new() }
    }

    fn new(variable: impl Fn(&str) -> Option<OsString>, root: &Path, python: Option<&'static str>) -> Self {
        let mut folders = vec![];
        if let Some(path) = variable("LD_LIBRARY_PATH") {
            let given = std::env::split_paths(&path).filter(|folder| folder.is_absolute());
            folders.extend(given.map(|folder| (folder, "LD_LIBRARY_PATH")));
        }
        let mut toolkit = |base: &Path, origin: &'static str| {
            folders.extend(TOOLKIT.iter().map(|below| (base.join(below), origin)));
        };
        for name in ["CUDA_HOME", "CUDA_PATH"] {
            if let Some(base) = variable(name).map(PathBuf::from).filter(|base| base.is_absolute()) {
                toolkit(&base, name);
            }
        }
        for base in toolkits(root) {
            toolkit(&base, "toolkit");
        }
        folders.extend(SYSTEM.iter().map(|folder| (root.join(folder), "system")));
        folders.extend(configured(&root.join("etc/ld.so.conf.d")).into_iter().map(|folder| (folder, "ld.so.conf")));
        Self { folders, python, packages: OnceLock::new() }
    }

    /// Returns the folders of pip's packages. The interpreter is started only once.
    fn packages(&self) -> &[PathBuf] {
        self.packages.get_or_init(|| {
            let Some(python) = self.python else { return vec![] };
            let mut command = Command::new(python);
            command.args(["-c", "import sys; print('\\n'.join(sys.path))"]).stdin(Stdio::null()).stderr(Stdio::null());
            let said = command.output().map(|output| output.stdout).unwrap_or_default();
            let said = String::from_utf8_lossy(&said);
            let sites = said.lines().map(Path::new).filter(|path| path.is_absolute() && path.is_dir());
            sites.flat_map(|site| PIP.iter().map(|below| site.join(below))).filter(|folder| folder.is_dir()).collect()
        })
    }

    /// Returns the library of the first folder that has it, and the kind of that place. `driver` is the CUDA version
    /// that the driver runs; a newer library is skipped, since the driver could not load its output.
    ///
    /// # Errors
    /// System: it is nowhere; the message says what to install.
    pub fn find(&self, name: Name, driver: Option<Version>) -> Result<(PathBuf, &'static str)> {
        let mut too_new = None;
        let packages = std::iter::once_with(|| self.packages().iter().map(|folder| (folder, "python3")));
        let folders = self.folders.iter().map(|(folder, origin)| (folder, *origin));
        for (folder, origin) in folders.chain(packages.flatten()) {
            for major in name.majors() {
                let path = folder.join(format!("lib{}.so.{major}", name.stem()));
                if !path.is_file() {
                    continue;
                }
                if name.follows_driver() && driver.is_some_and(|version| version.major < *major) {
                    too_new.get_or_insert(path);
                    continue;
                }
                return Ok((path, origin));
            }
        }
        let install = name.install(driver);
        Err(Error::system(match (too_new, driver) {
            (Some(path), Some(driver)) => format!(
                "{name}: {} is newer than CUDA {driver}, which the driver runs; {install}, or update the driver",
                path.display()
            ),
            _ => {
                let files: Vec<String> =
                    name.majors().iter().map(|major| format!("lib{}.so.{major}", name.stem())).collect();
                format!("{name} not found (no {} in {PLACES}); {install}", files.join(" or "))
            }
        }))
    }

    /// Finds and opens a library.
    ///
    /// # Errors
    /// System: it is nowhere, or the loader refuses it.
    pub fn open(&self, name: Name, driver: Option<Version>) -> Result<Loaded> {
        let (path, origin) = self.find(name, driver)?;
        let path = std::path::absolute(&path).map_err(|e| Error::io("opening", &path, &e))?;
        if name == Name::Nvrtc {
            builtins(&path)?;
        }
        let library = keep(&path)?;
        let mut loaded = Loaded { name, path, origin, version: Version { major: 0, minor: 0 }, library };
        loaded.version = loaded.ask_version()?;
        Ok(loaded)
    }
}

/// The places of this program's libraries, read once.
pub fn places() -> &'static Places {
    static PLACES: OnceLock<Places> = OnceLock::new();
    PLACES.get_or_init(Places::from_environment)
}

/// Returns the CUDA version that the driver runs, if there is a driver.
pub fn driver_version() -> Option<Version> {
    places().open(Name::Driver, None).ok().map(|driver| driver.version)
}

/// Lists the toolkits below `root`: usr/local/cuda, then usr/local/cuda-X.Y from the newest, then opt/cuda.
fn toolkits(root: &Path) -> Vec<PathBuf> {
    let local = root.join("usr/local");
    let numbers = |name: &str| name.split(['-', '.']).filter_map(|part| part.parse::<u32>().ok()).collect::<Vec<_>>();
    let names = std::fs::read_dir(&local).into_iter().flatten().flatten();
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<String> = names.filter(|name| name.starts_with("cuda-")).collect();
    names.sort_by_key(|name| std::cmp::Reverse(numbers(name)));
    let versions = names.iter().map(|name| local.join(name));
    [local.join("cuda")].into_iter().chain(versions).chain([root.join("opt/cuda")]).collect()
}

/// Lists the folders named in the files of /etc/ld.so.conf.d.
fn configured(folder: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut files: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|e| e == "conf")).collect();
    files.sort();
    let texts = files.iter().filter_map(|path| std::fs::read_to_string(path).ok());
    let lines = texts.flat_map(|text| text.lines().map(|line| PathBuf::from(line.trim())).collect::<Vec<_>>());
    lines.filter(|folder| folder.is_absolute()).collect()
}

/// Opens NVRTC's builtins if they lie beside it. NVRTC opens them by name when it compiles, and a library that is open
/// already satisfies that, wherever it lies. If there are none here, NVRTC looks for them itself and reports a failure.
fn builtins(nvrtc: &Path) -> Result<()> {
    let major = nvrtc.extension().unwrap_or_default().to_string_lossy();
    let prefix = format!("libnvrtc-builtins.so.{major}");
    let folder = crate::files::parent(nvrtc);
    let entries = std::fs::read_dir(folder).map_err(|e| Error::io("looking into", folder, &e))?;
    let names = entries.flatten().map(|entry| entry.path());
    let is_builtins = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix));
    names.filter(is_builtins).try_for_each(|path| keep(&path).map(|_| ()))
}

/// Opens a library globally and never closes it: later lookups by its soname, also by other code, find this one.
fn keep(path: &Path) -> Result<&'static Library> {
    // SAFETY: initialisers of NVIDIA's libraries run, as in any program linked with them; they need nothing else.
    let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) };
    let library = library.map_err(|e| {
        let why = std::error::Error::source(&e).map_or_else(|| e.to_string(), |source| source.to_string());
        Error::system(format!("opening {}: {why}", path.display()))
    })?;
    Ok(Box::leak(Box::new(library)))
}

/// An open library.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The library's name.
    pub name: Name,
    /// Path of its file.
    pub path: PathBuf,
    /// The kind of place where it was found.
    pub origin: &'static str,
    /// The version that it reports.
    pub version: Version,
    library: &'static Library,
}

impl Loaded {
    /// Returns a function of the library.
    ///
    /// # Errors
    /// System: it has no function of this name, so it is too old.
    ///
    /// # Safety
    /// `F` is the function's type, an `unsafe extern "C" fn`.
    pub(super) unsafe fn function<F: Copy>(&self, name: &str) -> Result<F> {
        // SAFETY: the caller's promise. The pointer stays valid: the library is never closed.
        let symbol = unsafe { self.library.get::<F>(name.as_bytes()) };
        symbol.map(|symbol| *symbol).map_err(|_| {
            let (path, version) = (self.path.display(), self.version);
            Error::system(format!("{path} (version {version}) has no {name}: too old; {}", self.name.install(None)))
        })
    }

    /// Checks that the library has these functions, before code that takes them for granted. Error: one is missing.
    pub fn require(&self, functions: &[&str]) -> Result<()> {
        // SAFETY: the address is not called.
        functions.iter().try_for_each(|name| unsafe { self.function::<unsafe extern "C" fn()>(name) }.map(|_| ()))
    }

    fn ask_version(&self) -> Result<Version> {
        let refused = || Error::system(format!("{} does not say its version", self.path.display()));
        let version = |n: u32, major: u32, minor: u32| Version { major: n / major, minor: n % major / minor };
        match self.name {
            Name::Driver | Name::Nccl => {
                let name = if self.name == Name::Driver { "cuDriverGetVersion" } else { "ncclGetVersion" };
                let mut number = 0i32;
                // SAFETY: both are `int f(int*)` and write one int; neither needs an initialised library.
                let status = unsafe { self.function::<unsafe extern "C" fn(*mut i32) -> i32>(name)?(&mut number) };
                let number = u32::try_from(number).ok().filter(|_| status == 0).ok_or_else(refused)?;
                Ok(if self.name == Name::Driver { version(number, 1000, 10) } else { version(number, 10_000, 100) })
            }
            Name::Nvrtc => {
                type F = unsafe extern "C" fn(*mut i32, *mut i32) -> i32;
                let (mut major, mut minor) = (0, 0);
                // SAFETY: nvrtcVersion has this type and writes two ints.
                let status = unsafe { self.function::<F>("nvrtcVersion")?(&mut major, &mut minor) };
                let number = |n: i32| u32::try_from(n).ok().filter(|_| status == 0).ok_or_else(refused);
                Ok(Version { major: number(major)?, minor: number(minor)? })
            }
            Name::CublasLt => {
                // SAFETY: cublasLtGetVersion has this type and needs no handle.
                let number = unsafe { self.function::<unsafe extern "C" fn() -> usize>("cublasLtGetVersion")?() };
                Ok(version(number as u32, 10_000, 100))
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    /// Makes empty files below a temporary folder.
    fn tree(files: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for file in files {
            let path = root.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        root
    }

    fn places(root: &Path, variables: &[(&str, &str)]) -> Places {
        let variables: HashMap<&str, String> =
            variables.iter().map(|(name, below)| (*name, root.join(below).display().to_string())).collect();
        Places::new(|name| variables.get(name).map(OsString::from), root, None)
    }

    const CUDA_12: Option<Version> = Some(Version { major: 12, minor: 4 });

    #[test]
    fn places_are_tried_in_order() {
        let root = tree(&[
            "mine/libnvrtc.so.12",
            "home/targets/x86_64-linux/lib/libnvrtc.so.13",
            "usr/local/cuda/lib64/libnvrtc.so.13",
            "usr/local/cuda-12.9/lib64/libcublasLt.so.12",
            "usr/local/cuda-12.10/lib64/libcublasLt.so.12",
            "usr/lib/x86_64-linux-gnu/libcuda.so.1",
            "usr/local/cuda/lib64/stubs/libcuda.so",
        ]);
        let found = |variables: &[(&str, &str)], name| {
            let (path, origin) = places(root.path(), variables).find(name, None).unwrap();
            (path.strip_prefix(root.path()).unwrap().display().to_string(), origin)
        };
        let all = [("LD_LIBRARY_PATH", "mine"), ("CUDA_HOME", "home")];
        assert_eq!(found(&all, Name::Nvrtc), ("mine/libnvrtc.so.12".into(), "LD_LIBRARY_PATH"));
        let home = "home/targets/x86_64-linux/lib/libnvrtc.so.13".to_string();
        assert_eq!(found(&all[1..], Name::Nvrtc), (home, "CUDA_HOME"));
        assert_eq!(found(&[], Name::Nvrtc), ("usr/local/cuda/lib64/libnvrtc.so.13".into(), "toolkit"));
        // 12.10 is newer than 12.9, and the driver's library is not the toolkit's stub.
        assert_eq!(found(&all, Name::CublasLt).0, "usr/local/cuda-12.10/lib64/libcublasLt.so.12");
        assert_eq!(found(&all, Name::Driver), ("usr/lib/x86_64-linux-gnu/libcuda.so.1".into(), "system"));
    }

    #[test]
    fn what_the_driver_cannot_run_is_passed_over() {
        let root = tree(&["mine/libnvrtc.so.13", "usr/local/cuda/lib/libnvrtc.so.12", "mine/libcublasLt.so.13"]);
        let places = places(root.path(), &[("LD_LIBRARY_PATH", "mine")]);
        assert!(places.find(Name::Nvrtc, CUDA_12).unwrap().0.ends_with("cuda/lib/libnvrtc.so.12"));
        let error = places.find(Name::CublasLt, CUDA_12).unwrap_err().to_string();
        assert!(error.contains("libcublasLt.so.13 is newer than CUDA 12.4"), "{error}");
        assert!(error.contains("pip install nvidia-cublas-cu12`, or update the driver"), "{error}");
    }

    #[test]
    fn the_loaders_configuration_counts() {
        let root = tree(&["there/libnccl.so.2"]);
        let conf = root.path().join("etc/ld.so.conf.d");
        std::fs::create_dir_all(&conf).unwrap();
        std::fs::write(conf.join("a.conf"), format!("# a note\n{}\n", root.path().join("there").display())).unwrap();
        assert_eq!(places(root.path(), &[]).find(Name::Nccl, None).unwrap().1, "ld.so.conf");
    }

    #[test]
    fn what_is_missing_or_no_library_is_said_with_what_to_install() {
        let root = tree(&["mine/libnvrtc.so.13", "mine/libcuda.so.1"]);
        let places = places(root.path(), &[("LD_LIBRARY_PATH", "mine")]);
        let error = places.find(Name::Nccl, CUDA_12).unwrap_err().to_string();
        for part in ["NCCL not found (no libnccl.so.2 in LD_LIBRARY_PATH", "nvidia-nccl-cu12"] {
            assert!(error.contains(part), "{error}");
        }
        // An empty file is no library; the loader says so.
        let error = places.open(Name::Driver, None).unwrap_err().to_string();
        assert!(error.contains("libcuda.so.1: ") && error.contains("file too short"), "{error}");
    }
}
