//! The emulated device: kernels compiled by the C++ compiler against tests/simt, run on the CPU in a chosen thread order, in memory
//! with redzones. `unsafe` here: the C interface of the compiled kernels, and host memory behind device addresses.

use libloading::Library;
use onestep::backend::Recording;
use onestep::backend::cuda::device::{Arg, Device, Gemm, Launch, Matrix};
use onestep::backend::cuda::kernels::{HEADER, Kernel, source};
use onestep::error::{Error, Result};
use onestep::tensor::{DType, DeviceMemory};
use std::collections::{BTreeMap, HashMap};
use std::ffi::{CStr, c_char, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Instant;

/// In which order the threads of a block take their turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    Forward = 0,
    Reverse = 1,
    Random = 2,
}

/// Bytes before and behind every allocation that no kernel may change. They are NaN, so that a read of them shows.
const REDZONE: usize = 256;
/// NaN as f32 and as bf16, and a large number as an integer: -1 is one off from what a counter begins with.
const POISON: u64 = 0x7FC0_7FC0_7FC0_7FC0;

type Entry =
    unsafe extern "C" fn(*const u32, u32, usize, *mut *mut c_void, *const u32, u32, u32, u64, *mut c_char, usize);

/// The device of one test.
pub struct Simt {
    shared: Arc<Shared>,
    /// Matrix products done by the library.
    pub gemms: Arc<AtomicUsize>,
}

struct Shared {
    order: Order,
    seed: u64,
    has_gemm: bool,
    blocks: Mutex<BTreeMap<u64, Block>>,
    recording: Mutex<Option<Tape>>,
}

/// What a recording has got so far, and the memory that it keeps.
#[derive(Default)]
struct Tape {
    work: Vec<Work>,
    held: Vec<Block>,
}

enum Work {
    Launch { kernel: Kernel, grid: [u32; 3], block: u32, shared: u32, args: Vec<Arg> },
    Gemm(Gemm),
    Copy(u64, u64, usize),
    Zero(u64, usize),
}

struct Block {
    storage: Vec<u64>,
    bytes: usize,
}

struct Memory {
    address: u64,
    shared: Arc<Shared>,
}

impl DeviceMemory for Memory {
    fn address(&self) -> u64 {
        self.address
    }

    fn download(&self, bytes: &mut [u8]) -> Result<()> {
        if self.shared.recording.lock().unwrap().is_some() {
            return Err(Error::system("values were read while work was recorded"));
        }
        let from = self.shared.range(self.address, bytes.len())?;
        // SAFETY: the range lies in a live allocation of this device, and only this device's calls touch it.
        unsafe { std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let block = self.shared.blocks.lock().unwrap().remove(&self.address);
        if let (Some(tape), Some(block)) = (&mut *self.shared.recording.lock().unwrap(), block) {
            tape.held.push(block);
        }
    }
}

impl Block {
    fn start(&self) -> usize {
        let base = self.storage.as_ptr() as usize + REDZONE;
        base.next_multiple_of(256) - self.storage.as_ptr() as usize
    }

    fn is_intact(&self) -> bool {
        let bytes: &[u8] = bytemuck::cast_slice(&self.storage);
        let start = self.start();
        let outside = |&(i, _): &(usize, &u8)| i < start || i >= start + self.bytes;
        bytes.iter().enumerate().filter(outside).all(|(i, &b)| b == POISON.to_le_bytes()[i % 8])
    }
}

impl Simt {
    /// A device that runs threads in `order`; `seed` is that of a random one. Without `has_gemm` there is no vendor's library.
    pub fn new(order: Order, seed: u64, has_gemm: bool) -> Self {
        let (blocks, recording) = (Mutex::default(), Mutex::default());
        Self { shared: Arc::new(Shared { order, seed, has_gemm, blocks, recording }), gemms: Arc::default() }
    }
}

impl Shared {
    /// True when the work was recorded, and is not to be done now.
    fn records(&self, work: impl FnOnce() -> Work) -> bool {
        let recording = &mut *self.recording.lock().unwrap();
        recording.as_mut().map(|tape| tape.work.push(work())).is_some()
    }

    fn check_redzones(&self, after: &str) -> Result<()> {
        let blocks = self.blocks.lock().unwrap();
        match blocks.values().find(|block| !block.is_intact()) {
            Some(block) => {
                Err(Error::system(format!("{after} wrote outside an allocation, next to one of {} bytes", block.bytes)))
            }
            None => Ok(()),
        }
    }

    /// The address must lie, with its bytes, in a live allocation.
    fn range(&self, at: u64, bytes: usize) -> Result<*mut u8> {
        let blocks = self.blocks.lock().unwrap();
        let inside = blocks
            .range(..=at)
            .next_back()
            .is_some_and(|(&start, block)| (at - start) as usize + bytes <= block.bytes.max(1));
        if !inside {
            return Err(Error::system(format!("{bytes} bytes at {at:x} lie in no live allocation")));
        }
        Ok(at as *mut u8)
    }

    fn load(&self, m: Matrix, row: usize, column: usize) -> f32 {
        let at = m.address as usize + (row * m.stride + column) * m.dtype.size();
        // SAFETY: `gemm` has checked that the whole matrix lies in live allocations.
        unsafe {
            match m.dtype {
                DType::F32 => *(at as *const f32),
                _ => half::bf16::from_bits(*(at as *const u16)).to_f32(),
            }
        }
    }
}

impl Device for Simt {
    fn name(&self) -> &str {
        "SIMT emulation"
    }

    fn multiprocessors(&self) -> usize {
        3
    }

    fn alloc(&self, bytes: usize) -> Result<Arc<dyn DeviceMemory>> {
        let block = Block { storage: vec![POISON; (bytes + 2 * REDZONE + 256) / 8 + 1], bytes };
        let start = block.start();
        let address = block.storage.as_ptr() as u64 + start as u64;
        self.shared.blocks.lock().unwrap().insert(address, block);
        Ok(Arc::new(Memory { address, shared: self.shared.clone() }))
    }

    fn upload(&self, to: u64, bytes: &[u8]) -> Result<()> {
        if self.shared.recording.lock().unwrap().is_some() {
            return Err(Error::system("values from the host were written while work was recorded"));
        }
        let to = self.shared.range(to, bytes.len())?;
        // SAFETY: the range lies in a live allocation of this device, and only this device's calls touch it.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
        Ok(())
    }

    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        if self.shared.records(|| Work::Copy(from, to, bytes)) { Ok(()) } else { self.shared.copy(from, to, bytes) }
    }

    fn zero(&self, at: u64, bytes: usize) -> Result<()> {
        if self.shared.records(|| Work::Zero(at, bytes)) { Ok(()) } else { self.shared.zero(at, bytes) }
    }

    fn launch(&self, launch: &Launch) -> Result<()> {
        let Launch { kernel, grid, block, shared, args } = launch;
        let work =
            || Work::Launch { kernel: *kernel, grid: *grid, block: *block, shared: *shared, args: args.to_vec() };
        if self.shared.records(work) { Ok(()) } else { self.shared.launch(launch) }
    }

    fn gemm_library(&self) -> Result<()> {
        if self.shared.has_gemm { Ok(()) } else { Err(Error::system("this emulation was made without a library")) }
    }

    fn gemm(&self, g: &Gemm) -> Result<bool> {
        if !self.shared.has_gemm {
            return Ok(false);
        }
        self.gemms.fetch_add(1, Ordering::Relaxed);
        if !self.shared.records(|| Work::Gemm(*g)) {
            self.shared.gemm(g)?;
        }
        Ok(true)
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    fn elapsed(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
        let clock = Instant::now();
        work()?;
        Ok(clock.elapsed().as_secs_f64())
    }

    fn memory(&self) -> Result<(usize, usize)> {
        Ok((1 << 30, 1 << 30))
    }

    fn record(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Box<dyn Recording>> {
        *self.shared.recording.lock().unwrap() = Some(Tape::default());
        let done = work();
        let tape = self.shared.recording.lock().unwrap().take().unwrap();
        done?;
        // Memory that was freed while recording is live again for the replays, under its old addresses.
        let mut blocks = self.shared.blocks.lock().unwrap();
        let mut held = vec![];
        for block in tape.held {
            let address = block.storage.as_ptr() as u64 + block.start() as u64;
            blocks.insert(address, block);
            held.push(address);
        }
        Ok(Box::new(Replay { work: tape.work, held, shared: self.shared.clone() }))
    }
}

struct Replay {
    work: Vec<Work>,
    held: Vec<u64>,
    shared: Arc<Shared>,
}

impl Recording for Replay {
    fn replay(&self) -> Result<()> {
        self.work.iter().try_for_each(|work| match work {
            Work::Launch { kernel, grid, block, shared, args } => {
                self.shared.launch(&Launch { kernel: *kernel, grid: *grid, block: *block, shared: *shared, args })
            }
            Work::Gemm(gemm) => self.shared.gemm(gemm),
            Work::Copy(from, to, bytes) => self.shared.copy(*from, *to, *bytes),
            Work::Zero(at, bytes) => self.shared.zero(*at, *bytes),
        })
    }
}

impl Drop for Replay {
    fn drop(&mut self) {
        let mut blocks = self.shared.blocks.lock().unwrap();
        self.held.iter().for_each(|address| drop(blocks.remove(address)));
    }
}

impl Shared {
    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        let (from, to) = (self.range(from, bytes)?, self.range(to, bytes)?);
        // SAFETY: both ranges lie in live allocations of this device, and only this device's calls touch them.
        unsafe { std::ptr::copy(from, to, bytes) };
        Ok(())
    }

    fn zero(&self, at: u64, bytes: usize) -> Result<()> {
        let at = self.range(at, bytes)?;
        // SAFETY: as in `copy`.
        unsafe { std::ptr::write_bytes(at, 0, bytes) };
        Ok(())
    }

    fn launch(&self, launch: &Launch) -> Result<()> {
        for arg in launch.args {
            if let Arg::Pointer(address @ 1..) = *arg {
                self.range(address, 0).map_err(|e| e.context(format!("an argument of {}", launch.kernel.name)))?;
            }
        }
        run(launch, self.order, self.seed)?;
        self.check_redzones(launch.kernel.name)
    }

    fn gemm(&self, g: &Gemm) -> Result<()> {
        let extent = |rows: usize, columns: usize, m: Matrix| {
            let last = (rows.max(1) - 1) * m.stride + columns;
            self.range(m.address, last * m.dtype.size())
        };
        let (m, n, k) = (g.m, g.n, g.k);
        if g.transpose_a {
            extent(k, m, g.a)?
        } else {
            extent(m, k, g.a)?
        };
        if g.transpose_b {
            extent(n, k, g.b)?
        } else {
            extent(k, n, g.b)?
        };
        extent(m, n, g.c)?;
        for i in 0..m {
            for j in 0..n {
                let mut sum = 0.0;
                for l in 0..k {
                    let a = if g.transpose_a { self.load(g.a, l, i) } else { self.load(g.a, i, l) };
                    let b = if g.transpose_b { self.load(g.b, j, l) } else { self.load(g.b, l, j) };
                    sum += a * b;
                }
                let old = if g.beta == 0.0 { 0.0 } else { g.beta * self.load(g.c, i, j) };
                let (value, at) = (g.alpha * sum + old, g.c.address as usize + (i * g.c.stride + j) * g.c.dtype.size());
                // SAFETY: `extent` has checked the range of c.
                unsafe {
                    match g.c.dtype {
                        DType::F32 => *(at as *mut f32) = value,
                        _ => *(at as *mut u16) = half::bf16::from_f32(value).to_bits(),
                    }
                }
            }
        }
        Ok(())
    }
}

/// Runs one launch on the CPU. Errors name the kernel and what is wrong with it.
pub fn run(launch: &Launch, order: Order, seed: u64) -> Result<()> {
    let (mut values, mut sizes) = (vec![], vec![]);
    for arg in launch.args {
        let (value, size) = match *arg {
            Arg::Pointer(address) => (address, 8),
            Arg::I32(value) => (value as u32 as u64, 4),
            Arg::I64(value) => (value as u64, 8),
            Arg::F32(value) => (value.to_bits() as u64, 4),
        };
        values.push(value);
        sizes.push(size);
    }
    let mut pointers: Vec<*mut c_void> = values.iter_mut().map(|v| (v as *mut u64).cast()).collect();
    let mut fault = [0u8; 1024];
    let library = library(launch.kernel.file)?;
    let name = format!("simt_launch_{}\0", launch.kernel.name);
    // SAFETY: EXPORT in tests/simt/simt.hpp gives every such symbol this type; it checks the arguments' count and sizes itself.
    unsafe {
        let entry = library.get::<Entry>(name.as_bytes());
        let entry = entry.map_err(|e| Error::system(format!("kernel {}: {e}", launch.kernel.name)))?;
        entry(
            launch.grid.as_ptr(),
            launch.block,
            launch.shared as usize,
            pointers.as_mut_ptr(),
            sizes.as_ptr(),
            sizes.len() as u32,
            order as u32,
            seed,
            fault.as_mut_ptr().cast(),
            fault.len(),
        );
    }
    let fault = CStr::from_bytes_until_nul(&fault).unwrap().to_string_lossy();
    if fault.is_empty() { Ok(()) } else { Err(Error::system(format!("kernel {}: {fault}", launch.kernel.name))) }
}

/// The compiled source of `stem`, loaded once. Sources of the crate, and those of the harness's own tests in tests/simt.
fn library(stem: &'static str) -> Result<Arc<Library>> {
    static LOADED: LazyLock<Mutex<HashMap<&'static str, Arc<Library>>>> = LazyLock::new(Mutex::default);
    let mut loaded = LOADED.lock().unwrap();
    if let Some(library) = loaded.get(stem) {
        return Ok(library.clone());
    }
    let path = compile(stem)?;
    // SAFETY: the library was compiled from this repository's sources and has no initialisers.
    let library = unsafe { Library::new(&path) }.map_err(|e| Error::system(format!("{}: {e}", path.display())))?;
    Ok(loaded.entry(stem).or_insert(Arc::new(library)).clone())
}

/// An access that is not aligned for its type is a fault, as on a GPU.
const FLAGS: &[&str] = &[
    "-std=c++17",
    "-O2",
    "-march=native",
    "-fPIC",
    "-fno-gnu-unique",
    "-fsanitize=alignment",
    "-fno-sanitize-recover=alignment",
    "-Wall",
    "-Wextra",
    "-Wno-unknown-pragmas",
    "-Werror",
];

/// Compiles kernels/STEM.cu with c++ into target/, unless the same text was compiled before.
fn compile(stem: &str) -> Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let harness = root.join("tests/simt");
    let (folder, text) = match source(stem) {
        Some(text) => (root.join("kernels"), text.to_string()),
        None => (harness.clone(), std::fs::read_to_string(harness.join(format!("{stem}.cu"))).unwrap()),
    };
    let mut key = blake3::Hasher::new();
    for part in [&text, HEADER, &FLAGS.join(" "), include_str!("../simt/simt.hpp"), include_str!("../simt/switch.S")] {
        key.update(part.as_bytes());
    }
    let key = key.finalize().to_hex();
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("simt");
    std::fs::create_dir_all(&out).unwrap();
    let target = out.join(format!("{stem}-{}.so", &key[..16]));
    if target.exists() {
        return Ok(target);
    }
    let unfinished = out.join(format!("{stem}-{}-{}.tmp", &key[..16], std::process::id()));
    let object = unfinished.with_extension("o");
    let mut command = Command::new("c++");
    command.args(FLAGS).arg("-I").arg(root.join("kernels")).arg("-I").arg(&harness);
    command.args(["-c", "-x", "c++"]).arg(folder.join(format!("{stem}.cu"))).arg("-o").arg(&object);
    succeed(command, stem)?;
    // Apart from the compilation, so that the sanitizer's own library is not asked for.
    let mut command = Command::new("c++");
    command.args(["-shared", "-Wl,-Bsymbolic"]).arg(&object).args(["-x", "assembler"]).arg(harness.join("switch.S"));
    command.args(["-x", "none", "-pthread", "-o"]).arg(&unfinished);
    succeed(command, stem)?;
    std::fs::remove_file(&object).unwrap();
    std::fs::rename(&unfinished, &target).unwrap();
    Ok(target)
}

fn succeed(mut command: Command, stem: &str) -> Result<()> {
    let output = command.output().map_err(|e| {
        Error::system(format!(
            "running c++ on kernels/{stem}.cu: {e}; install a C++ compiler (Debian: apt-get install g++)"
        ))
    })?;
    match output.status.success() {
        true => Ok(()),
        false => Err(Error::system(format!("kernels/{stem}.cu: {}", String::from_utf8_lossy(&output.stderr)))),
    }
}

/// Whether the compiled source has a kernel of this name.
pub fn exports(stem: &'static str, name: &str) -> bool {
    let library = library(stem).unwrap();
    // SAFETY: the address is not called.
    unsafe { library.get::<Entry>(format!("simt_launch_{name}\0").as_bytes()) }.is_ok()
}

/// A kernel of the harness's own tests.
pub fn own(name: &'static str) -> Kernel {
    Kernel { file: "faults", name }
}
