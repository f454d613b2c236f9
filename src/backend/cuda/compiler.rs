//! Compiles kernel sources to cubins with NVRTC, once: cubins are kept in a folder, under a name made from everything
//! that determines their content. A folder filled elsewhere serves a machine without NVRTC. The driver loads the
//! cubins.

use super::kernels::{self, HEADER};
use super::library::{self, Loaded, Name, Places, Version};
use crate::error::{Error, Result};
use crate::files::write_whole;
use std::ffi::{CStr, CString, c_char, c_void};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Default architectures of `kernels compile`: Ampere, Ada, Hopper, Blackwell.
pub const ARCHS: [&str; 6] = ["sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a", "sm_120a"];

/// Resources that a kernel takes on an architecture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resources {
    /// The stem of its source.
    pub file: String,
    /// The kernel's name.
    pub kernel: String,
    /// Architecture, such as "sm_90a".
    pub arch: String,
    /// Registers per thread.
    pub registers: u32,
    /// Bytes of static shared memory per block, without those that a launch adds.
    pub shared: u32,
    /// Bytes of local memory per thread, spilled registers included.
    pub stack: u32,
    /// Bytes of registers spilled to local memory.
    pub spill_stores: u32,
    /// Bytes of spilled registers loaded back.
    pub spill_loads: u32,
}

/// A compiled source.
#[derive(Debug, Clone)]
pub struct Compiled {
    /// The machine code of its kernels, an ELF file.
    pub cubin: Vec<u8>,
    /// Report of the assembler.
    pub log: String,
    /// Time of the compilation; `None` when the result was already there.
    pub took: Option<Duration>,
}

/// NVRTC and the folder of its results.
pub struct Compiler {
    folder: PathBuf,
    nvrtc: Result<Nvrtc>,
}

impl Compiler {
    /// Makes a compiler that keeps cubins in `folder`. A missing NVRTC is an error only when something must be
    /// compiled.
    pub fn new(folder: PathBuf) -> Self {
        Self::with(folder, library::places(), library::driver_version())
    }

    /// Makes a compiler with the NVRTC found in `places`. `driver` is the CUDA version that the driver runs, if there
    /// is one.
    pub fn with(folder: PathBuf, places: &Places, driver: Option<Version>) -> Self {
        let nvrtc = places.open(Name::Nvrtc, driver).and_then(Nvrtc::new);
        Self { folder, nvrtc }
    }

    /// Returns the version of NVRTC. Error: why there is none.
    pub fn version(&self) -> Result<Version> {
        self.nvrtc.as_ref().map(|nvrtc| nvrtc.version).map_err(Clone::clone)
    }

    /// Returns the cubin of kernels/STEM.cu for an architecture such as "sm_90a".
    ///
    /// # Errors
    /// System: there is no NVRTC and no cubin compiled ahead; the source does not compile (with the compiler's log);
    /// the folder cannot be written.
    pub fn cubin(&self, stem: &str, arch: &str) -> Result<Vec<u8>> {
        self.compile(stem, arch).map(|compiled| compiled.cubin)
    }

    /// Returns the resources of every kernel of the source.
    pub fn resources(&self, stem: &str, arch: &str) -> Result<Vec<Resources>> {
        Ok(parse(stem, arch, &self.compile(stem, arch)?.log))
    }

    /// Looks up the compiled source, or compiles and keeps it.
    pub fn compile(&self, stem: &str, arch: &str) -> Result<Compiled> {
        let source = kernels::source(stem).ok_or_else(|| Error::system(format!("there is no kernels/{stem}.cu")))?;
        self.compile_source(stem, source, arch)
    }

    /// Compiles a source that is not among the crate's, as `compile` does.
    pub fn compile_source(&self, stem: &str, source: &str, arch: &str) -> Result<Compiled> {
        self.compile_with(stem, source, arch, &[])
    }

    /// Compiles with further options of NVRTC, for example "--fmad=false".
    pub fn compile_with(&self, stem: &str, source: &str, arch: &str, more: &[&str]) -> Result<Compiled> {
        let options: Vec<String> = options(arch).into_iter().chain(more.iter().map(|o| (*o).to_string())).collect();
        let key = key(stem, source, arch, &options);
        let known = match &self.nvrtc {
            Ok(nvrtc) => Some(self.folder.join(format!("{key}-{}.cubin", nvrtc.version))),
            Err(_) => newest(&self.folder, &key),
        };
        if let Some(compiled) = known.as_deref().and_then(read) {
            return Ok(compiled);
        }
        let nvrtc = self.nvrtc.as_ref().map_err(|why| {
            Error::system(format!(
                "kernels/{stem}.cu for {arch} is not among the compiled kernels in {}, and to compile it: {why}. Or run `onestep \
                 kernels compile --arch {arch}` on a machine that has NVRTC and copy its folder here",
                self.folder.display()
            ))
        })?;
        let start = Instant::now();
        let compiled = nvrtc.compile(&format!("{stem}.cu"), source, &options);
        let (cubin, log) = compiled.map_err(|e| e.context(format!("compiling kernels/{stem}.cu for {arch}")))?;
        let path = self.folder.join(format!("{key}-{}.cubin", nvrtc.version));
        // Write the log first: an entry counts as there when its cubin is.
        write_whole(&path.with_extension("cubin.log"), log.as_bytes())?;
        write_whole(&path, &cubin)?;
        Ok(Compiled { cubin, log, took: Some(start.elapsed()) })
    }
}

/// Returns the options of every compilation. Line numbers cost nothing at run time and locate a fault.
fn options(arch: &str) -> Vec<String> {
    let fixed = ["--std=c++17", "-default-device", "--generate-line-info", "--ptxas-options=-v"];
    std::iter::once(format!("--gpu-architecture={arch}")).chain(fixed.map(String::from)).collect()
}

/// Returns a file name without the compiler's version; it contains everything else that determines the content.
fn key(stem: &str, source: &str, arch: &str, options: &[String]) -> String {
    let mut hasher = blake3::Hasher::new();
    for part in [source, HEADER, &options.join(" ")] {
        hasher.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
    }
    format!("{stem}-{arch}-{}", &hasher.finalize().to_hex()[..24])
}

/// Finds the entry of this key by the newest compiler.
fn newest(folder: &Path, key: &str) -> Option<PathBuf> {
    let version = |path: &Path| -> Option<(u32, u32)> {
        let name = path.file_name()?.to_str()?;
        let (major, minor) = name.strip_prefix(key)?.strip_prefix('-')?.strip_suffix(".cubin")?.split_once('.')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    };
    let paths = std::fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path());
    paths.filter_map(|path| Some((version(&path)?, path))).max().map(|(_, path)| path)
}

/// Reads a kept entry, if it is there and whole.
fn read(path: &Path) -> Option<Compiled> {
    let cubin = std::fs::read(path).ok().filter(|bytes| bytes.starts_with(b"\x7fELF"))?;
    let log = std::fs::read_to_string(path.with_extension("cubin.log")).ok()?;
    Some(Compiled { cubin, log, took: None })
}

/// Counts the cubins in a folder.
pub fn count(folder: &Path) -> usize {
    let paths = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    paths.filter(|path| path.extension().is_some_and(|e| e == "cubin")).count()
}

/// Parses the assembler's report, kernel by kernel. The resources of a function that was not inlined are counted for
/// the kernel above it.
pub fn parse(file: &str, arch: &str, log: &str) -> Vec<Resources> {
    let mut found: Vec<Resources> = vec![];
    for line in log.lines() {
        if let Some(kernel) = line.split("Compiling entry function '").nth(1).and_then(|rest| rest.split('\'').next()) {
            let (file, kernel, arch) = (file.to_string(), kernel.to_string(), arch.to_string());
            let none = (0, 0, 0, 0, 0);
            let (registers, shared, stack, spill_stores, spill_loads) = none;
            found.push(Resources { file, kernel, arch, registers, shared, stack, spill_stores, spill_loads });
        }
        let Some(last) = found.last_mut() else { continue };
        let number = |unit: &str| -> u32 {
            let before = line.split(unit).next().filter(|before| before.len() < line.len());
            before.and_then(|text| text.split_whitespace().next_back()?.parse().ok()).unwrap_or(0)
        };
        last.registers = last.registers.max(number(" registers"));
        last.shared = last.shared.max(number(" bytes smem"));
        last.stack += number(" bytes stack frame");
        last.spill_stores += number(" bytes spill stores");
        last.spill_loads += number(" bytes spill loads");
    }
    found.sort_by(|a, b| a.kernel.cmp(&b.kernel));
    found
}

/// Returns the text of the committed table kernels/RESOURCES.csv: the compiler in the first line, then a line for each
/// kernel and architecture.
pub fn table(version: Version, rows: &[Resources]) -> String {
    let mut text = format!("# NVRTC {version}\nfile,kernel,arch,registers,shared,stack,spill_stores,spill_loads\n");
    let mut rows: Vec<&Resources> = rows.iter().collect();
    let order = |row: &Resources| ARCHS.iter().position(|arch| *arch == row.arch).unwrap_or(ARCHS.len());
    rows.sort_by(|a, b| (&a.file, &a.kernel, order(a)).cmp(&(&b.file, &b.kernel, order(b))));
    for r in rows {
        let numbers = [r.registers, r.shared, r.stack, r.spill_stores, r.spill_loads].map(|n| n.to_string()).join(",");
        text.push_str(&format!("{},{},{},{numbers}\n", r.file, r.kernel, r.arch));
    }
    text
}

type Program = *mut c_void;

/// Functions of NVRTC, from the library that was found and no other.
#[derive(Clone)]
struct Nvrtc {
    version: Version,
    create: unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        i32,
        *const *const c_char,
        *const *const c_char,
    ) -> i32,
    destroy: unsafe extern "C" fn(*mut Program) -> i32,
    compile: unsafe extern "C" fn(Program, i32, *const *const c_char) -> i32,
    cubin_size: unsafe extern "C" fn(Program, *mut usize) -> i32,
    cubin: unsafe extern "C" fn(Program, *mut c_char) -> i32,
    log_size: unsafe extern "C" fn(Program, *mut usize) -> i32,
    log: unsafe extern "C" fn(Program, *mut c_char) -> i32,
    error: unsafe extern "C" fn(i32) -> *const c_char,
}

impl Nvrtc {
    fn new(library: Loaded) -> Result<Self> {
        // SAFETY: the types are those of nvrtc.h.
        unsafe {
            Ok(Self {
                version: library.version,
                create: library.function("nvrtcCreateProgram")?,
                destroy: library.function("nvrtcDestroyProgram")?,
                compile: library.function("nvrtcCompileProgram")?,
                cubin_size: library.function("nvrtcGetCUBINSize")?,
                cubin: library.function("nvrtcGetCUBIN")?,
                log_size: library.function("nvrtcGetProgramLogSize")?,
                log: library.function("nvrtcGetProgramLog")?,
                error: library.function("nvrtcGetErrorString")?,
            })
        }
    }

    /// Compiles `source`, which may include "device.cuh", to a cubin and a log.
    fn compile(&self, name: &str, source: &str, options: &[String]) -> Result<(Vec<u8>, String)> {
        let c = |text: &str| CString::new(text).map_err(|e| Error::system(format!("{name}: {e}")));
        let (source, header, title, include) = (c(source)?, c(HEADER)?, c(name)?, c("device.cuh")?);
        let options = options.iter().map(|option| c(option)).collect::<Result<Vec<_>>>()?;
        let options: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
        let mut program: Program = std::ptr::null_mut();
        // SAFETY: every pointer is to a live C string, and the counts are those of the arrays. The program is used only
        // between its creation and its destruction, and by one thread. Each buffer has the size that NVRTC asks for.
        unsafe {
            let made =
                (self.create)(&mut program, source.as_ptr(), title.as_ptr(), 1, &header.as_ptr(), &include.as_ptr());
            self.checked("taking the source", made)?;
            let status = (self.compile)(program, options.len() as i32, options.as_ptr());
            let take = |size: unsafe extern "C" fn(Program, *mut usize) -> i32,
                        copy: unsafe extern "C" fn(Program, *mut c_char) -> i32|
             -> Result<Vec<u8>> {
                let mut bytes = 0;
                self.checked("measuring", size(program, &mut bytes))?;
                let mut buffer = vec![0u8; bytes];
                self.checked("copying", copy(program, buffer.as_mut_ptr().cast()))?;
                Ok(buffer)
            };
            let log = take(self.log_size, self.log)
                .map(|bytes| String::from_utf8_lossy(&bytes).trim_end_matches(['\0', '\n']).to_string());
            let result = match (self.checked("NVRTC", status), log) {
                (Ok(()), Ok(log)) => take(self.cubin_size, self.cubin).map(|cubin| (cubin, log)),
                (Err(why), Ok(log)) => Err(Error::system(format!("{why}\n{log}"))),
                (_, Err(why)) => Err(why),
            };
            (self.destroy)(&mut program);
            result
        }
    }

    fn checked(&self, doing: &str, status: i32) -> Result<()> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: nvrtcGetErrorString gives a constant C string for any status.
        let text = unsafe { CStr::from_ptr((self.error)(status)) }.to_string_lossy();
        Err(Error::system(format!("{doing}: {text}")))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_assemblers_report_is_read() {
        let log = "ptxas info    : 4 bytes gmem
ptxas info    : Compiling entry function 'b' for 'sm_80'
ptxas info    : Function properties for b
ptxas         .     24 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 24 bytes cumulative stack size, 4096 bytes smem, 400 bytes cmem[0]
ptxas info    : Compile time = 37.602 ms
ptxas info    : Compiling entry function 'a' for 'sm_80'
ptxas info    : Function properties for a
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 26 registers, used 0 barriers";
        let rows = parse("file", "sm_80", log);
        let version = Version { major: 13, minor: 0 };
        assert_eq!(
            table(version, &rows),
            "# NVRTC 13.0\nfile,kernel,arch,registers,shared,stack,spill_stores,spill_loads\n\
             file,a,sm_80,26,0,0,0,0\nfile,b,sm_80,255,4096,24,8,12\n"
        );
    }

    #[test]
    fn without_a_compiler_the_newest_entry_of_the_content_serves() {
        let folder = tempfile::tempdir().unwrap();
        let compiler = Compiler::with(folder.path().to_path_buf(), &Places::only(&folder.path().join("nothing")), None);
        let error = compiler.cubin("tensor", "sm_80").unwrap_err().to_string();
        for part in ["tensor.cu for sm_80", "pip install nvidia-cuda-nvrtc", "kernels compile --arch sm_80"] {
            assert!(error.contains(part), "{error}");
        }
        let key = key("tensor", kernels::source("tensor").unwrap(), "sm_80", &options("sm_80"));
        let put = |name: String, bytes: &[u8]| {
            std::fs::write(folder.path().join(format!("{name}.log")), "").unwrap();
            std::fs::write(folder.path().join(name), bytes).unwrap();
        };
        put(format!("{key}-12.9.cubin"), b"\x7fELF 12.9");
        put(format!("{key}-13.0.cubin"), b"\x7fELF 13.0");
        put(format!("{key}-12.10.cubin"), b"\x7fELF 12.10");
        put("tensor-sm_80-other-14.0.cubin".to_string(), b"\x7fELF other");
        assert_eq!(compiler.cubin("tensor", "sm_80").unwrap(), b"\x7fELF 13.0");
        assert!(compiler.cubin("tensor", "sm_90a").is_err());
        put(format!("{key}-13.0.cubin"), b"torn");
        assert!(compiler.cubin("tensor", "sm_80").is_err(), "a torn file was taken");
        assert_eq!(count(folder.path()), 4);
    }
}
