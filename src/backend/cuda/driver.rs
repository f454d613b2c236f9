//! A real GPU as a `Device`: the primary context, one stream, one arena of memory, kernels loaded at first use,
//! products by cuBLASLt (`gemm_library`). CUDA is called only here and in compiler, gemm_library, graph, library,
//! memory, probe and uploads.
//!
//! The contract of all `unsafe` here: handles (context, stream, module, function, event) are made by this file and live
//! as long as the program; device addresses come from live tensors of this arena, whose shapes the ops have checked;
//! host buffers outlive the call, which returns only when they have been read or written (uploads.rs).

use super::arena::Arena;
use super::compiler::Compiler;
use super::context::{Context, failed};
use super::device::{Arg, Device, Gemm, Launch};
use super::gemm_library::GemmLibrary;
use super::graph::Graph;
use super::kernels::Kernel;
use super::memory::{Function, Memory, Module, Recorded, State, lock, lost};
use super::ready;
use super::uploads::Uploads;
use crate::backend::Recording;
use crate::error::{Error, Result};
use crate::tensor::DeviceMemory;
use cudarc::driver::{DriverError, result, sys};
use std::collections::{HashMap, VecDeque};
use std::ffi::{CString, c_void};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// Settings for the use of a GPU.
#[derive(Debug, Clone)]
pub struct Options {
    /// Index of the GPU, from 0.
    pub ordinal: usize,
    /// Share of the GPU's free memory that the arena takes, in (0, 1].
    pub memory: f64,
    /// Folder of compiled kernels.
    pub kernels: PathBuf,
    /// File with the choices of GEMM algorithms; read when it exists.
    pub gemms: Option<PathBuf>,
    /// Take the library's first algorithm for every product instead of the fastest of several: equal bits on equal
    /// machines.
    pub fixed_gemms: bool,
    /// Wait after every launch, so that an error names the launch that caused it. Slow.
    pub check_each: bool,
    /// Give every tensor an allocation of its own, so that compute-sanitizer sees accesses outside it. Slow, and
    /// nothing is recorded.
    pub separate_allocations: bool,
}

/// One GPU.
pub struct Gpu {
    name: String,
    multiprocessors: usize,
    arch: String,
    context: Context,
    state: Arc<Mutex<State>>,
    /// Address of the arena; `None` where every tensor has an allocation of its own.
    base: Option<u64>,
    uploads: Mutex<Uploads>,
    compiler: Compiler,
    /// The GEMM library, or the reason why there is none.
    gemms: Result<Mutex<GemmLibrary>>,
}

/// Bytes of dynamic shared memory that every kernel may take without an attribute.
const DEFAULT_SHARED: u32 = 48 * 1024;
/// Launches remembered for error messages.
const RECENT: usize = 8;
/// Bytes left to the driver, modules and the GEMM library beside the arena.
const SPARE: usize = 600 << 20;

impl Gpu {
    /// Opens a GPU and takes its memory. Errors: no driver, no such GPU, no memory, each with advice.
    pub fn open(options: &Options) -> Result<Self> {
        ready::driver()?;
        let ordinal = options.ordinal as i32;
        let count = result::device::get_count().map_err(|e| failed("counting GPUs", e))?;
        if ordinal >= count {
            return Err(Error::usage(format!(
                "device cuda:{ordinal}: this machine has {count} GPUs; expected cuda:0 to cuda:{}",
                count - 1
            )));
        }
        let device = result::device::get(ordinal).map_err(|e| failed("opening the GPU", e))?;
        let attribute = |which| {
            // SAFETY: `device` was just given by the driver.
            unsafe { result::device::get_attribute(device, which) }.map_err(|e| failed("asking the GPU", e))
        };
        use sys::CUdevice_attribute::*;
        let major = attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        let name = result::device::get_name(device).map_err(|e| failed("asking the GPU's name", e))?;
        if major < 8 {
            return Err(Error::system(format!(
                "{name} has compute capability {major}.{minor}; the kernels need 8.0 or later (bf16 tensor cores); use --device cpu"
            )));
        }
        // SAFETY: `device` is valid; the context is retained for the life of the program.
        let context = unsafe { result::primary_ctx::retain(device) }.map_err(|e| failed("making a context", e))?;
        // SAFETY: the context was just retained.
        unsafe { result::ctx::set_current(context) }.map_err(|e| failed("making the context current", e))?;
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking)
            .map_err(|e| failed("making a stream", e))?;
        let context = Context { context, stream };
        // Architecture-specific features (wgmma on 9.0, tcgen05 on 10.0 and 12.0) need the suffix.
        let arch = format!("sm_{major}{minor}{}", if major >= 9 { "a" } else { "" });

        let (free, total) = result::mem_get_info().map_err(|e| failed("asking for free memory", e))?;
        let arena = Arena::new((free.saturating_sub(SPARE) as f64 * options.memory) as usize);
        let base = match options.separate_allocations {
            true => None,
            // SAFETY: a plain allocation; it lives as long as the program.
            false => Some(unsafe { result::malloc_sync(arena.total()) }.map_err(|e| {
                let [taken, free, total] = [arena.total(), free, total].map(|bytes| bytes >> 20);
                failed(&format!("taking {taken} MB of the {free} MB free of {total} MB on {name}"), e)
            })?),
        };
        let gemms = match ready::cublaslt() {
            Ok(()) => Ok(Mutex::new(GemmLibrary::open(options.gemms.clone(), options.fixed_gemms)?)),
            Err(why) => Err(why),
        };
        let state = State {
            arena,
            functions: HashMap::new(),
            modules: HashMap::new(),
            recent: VecDeque::new(),
            recording: None,
            check_each: options.check_each,
        };
        Ok(Self {
            name,
            multiprocessors: attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as usize,
            compiler: Compiler::new(options.kernels.clone()),
            arch,
            context,
            uploads: Mutex::new(Uploads::new().map_err(|e| failed("taking host memory for uploads", e))?),
            state: Arc::new(Mutex::new(state)),
            base,
            gemms,
        })
    }

    /// The most bytes of the arena in use at one time.
    pub fn peak(&self) -> usize {
        lock(&self.state).arena.peak()
    }

    /// Makes the context current on the calling thread.
    fn bind(&self) -> Result<()> {
        // SAFETY: the context lives as long as the program.
        unsafe { result::ctx::set_current(self.context.context) }.map_err(|e| failed("making the context current", e))
    }

    fn lost(&self, doing: &str, error: DriverError) -> Error {
        lost(&self.state, doing, error)
    }

    fn function(&self, kernel: Kernel, shared: u32) -> Result<sys::CUfunction> {
        let mut state = lock(&self.state);
        let known = state.functions.get(&kernel).copied();
        let function = match known {
            Some(function) => function,
            None => {
                let module = match state.modules.get(kernel.file) {
                    Some(module) => *module,
                    None => {
                        let cubin = self.compiler.cubin(kernel.file, &self.arch)?;
                        // SAFETY: the image is a whole cubin; the driver checks it and copies what it needs.
                        let module = unsafe { result::module::load_data(cubin.as_ptr().cast()) };
                        let module =
                            Module(module.map_err(|e| failed(&format!("loading kernels/{}.cu", kernel.file), e))?);
                        state.modules.insert(kernel.file, module);
                        module
                    }
                };
                let name = CString::new(kernel.name).map_err(|_| Error::system("a kernel's name has a zero byte"))?;
                // SAFETY: modules are never unloaded.
                let handle = unsafe { result::module::get_function(module.0, name) };
                let handle = handle
                    .map_err(|e| failed(&format!("finding kernel {} in kernels/{}.cu", kernel.name, kernel.file), e))?;
                Function { handle, shared: DEFAULT_SHARED }
            }
        };
        let allowed = Function { shared: function.shared.max(shared), ..function };
        if allowed.shared > function.shared {
            let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function belongs to a module that is never unloaded.
            unsafe { result::function::set_function_attribute(function.handle, attribute, shared as i32) }
                .map_err(|e| failed(&format!("giving kernel {} {shared} bytes of shared memory", kernel.name), e))?;
        }
        state.functions.insert(kernel, allowed);
        Ok(allowed.handle)
    }

    /// Notes a launch that is about to go to the stream.
    fn remember(&self, name: &'static str) {
        let State { recent, recording, .. } = &mut *lock(&self.state);
        if recent.len() == RECENT {
            recent.pop_front();
        }
        recent.push_back(name);
        recording.iter_mut().for_each(|recorded| recorded.launches += 1);
    }

    fn after_launch(&self) -> Result<()> {
        if lock(&self.state).check_each { self.synchronize() } else { Ok(()) }
    }

    fn is_recording(&self) -> bool {
        lock(&self.state).recording.is_some()
    }
}

impl Device for Gpu {
    fn name(&self) -> &str {
        &self.name
    }

    fn multiprocessors(&self) -> usize {
        self.multiprocessors
    }

    fn alloc(&self, bytes: usize) -> Result<Arc<dyn DeviceMemory>> {
        let (taken, total) = {
            let mut state = lock(&self.state);
            (state.take(bytes), state.arena.total())
        };
        let offset = taken.map_err(|(free, longest)| {
            Error::system(format!(
                "out of GPU memory: {:.1} MB asked, {:.1} MB free of {:.1} MB (longest piece {:.1} MB) on {}; `onestep plan` says what \
                 takes it and what would fit: smaller sft.micro_tokens, rl.micro_tokens or engine.cache_tokens",
                bytes as f64 / 1e6,
                free as f64 / 1e6,
                total as f64 / 1e6,
                longest as f64 / 1e6,
                self.name
            ))
        })?;
        if self.base.is_none() {
            self.bind()?;
        }
        let memory = Memory::new(offset, bytes, self.base, &self.state, self.context);
        Ok(Arc::new(memory.map_err(|e| failed(&format!("taking {bytes} bytes on {}", self.name), e))?))
    }

    fn upload(&self, to: u64, bytes: &[u8]) -> Result<()> {
        if self.is_recording() {
            return Err(Error::system("values from the host were written while work was recorded; write them before"));
        }
        self.bind()?;
        let mut uploads = self.uploads.lock().unwrap_or_else(PoisonError::into_inner);
        uploads
            .copy(to, bytes, self.context.stream)
            .map_err(|e| self.lost(&format!("copying {} bytes to the GPU", bytes.len()), e))
    }

    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        self.bind()?;
        // SAFETY: see the contract above.
        unsafe { result::memcpy_dtod_async(to, from, bytes, self.context.stream) }
            .map_err(|e| self.lost(&format!("copying {bytes} bytes on the GPU"), e))
    }

    fn zero(&self, at: u64, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        self.bind()?;
        // SAFETY: see the contract above.
        unsafe { result::memset_d8_async(at, 0, bytes, self.context.stream) }
            .map_err(|e| self.lost(&format!("setting {bytes} bytes to zero"), e))
    }

    fn launch(&self, launch: &Launch) -> Result<()> {
        self.bind()?;
        let function = self.function(launch.kernel, launch.shared)?;
        let mut values: Vec<u64> = launch
            .args
            .iter()
            .map(|arg| match *arg {
                Arg::Pointer(address) => address,
                Arg::I32(value) => u64::from(value as u32),
                Arg::I64(value) => value as u64,
                Arg::F32(value) => u64::from(value.to_bits()),
            })
            .collect();
        // Little-endian: a narrower argument lies at the start of its word.
        let mut pointers: Vec<*mut c_void> = values.iter_mut().map(|value| (value as *mut u64).cast()).collect();
        self.remember(launch.kernel.name);
        let [x, y, z] = launch.grid;
        // SAFETY: the argument list is the kernel's (tests/cuda runs the same launches through a device that checks
        // count and sizes); the addresses are of live tensors; the driver copies the values before it returns.
        unsafe {
            let stream = self.context.stream;
            result::launch_kernel(function, (x, y, z), (launch.block, 1, 1), launch.shared, stream, &mut pointers)
        }
        .map_err(|e| {
            let Launch { kernel, grid, block, shared, .. } = launch;
            let what =
                format!("launching {} with {grid:?} blocks of {block} threads, {shared} bytes shared", kernel.name);
            self.lost(&what, e)
        })?;
        self.after_launch()
    }

    fn gemm(&self, gemm: &Gemm) -> Result<bool> {
        let Ok(library) = &self.gemms else { return Ok(false) };
        self.bind()?;
        self.remember("cublasLtMatmul");
        let mut library = library.lock().unwrap_or_else(PoisonError::into_inner);
        let done = library.run(self, self.context.stream, gemm, self.is_recording())?;
        self.after_launch()?;
        Ok(done)
    }

    fn gemm_library(&self) -> Result<()> {
        self.gemms.as_ref().map(|_| ()).map_err(Clone::clone)
    }

    fn keep_choices(&self) -> Result<()> {
        let Ok(library) = &self.gemms else { return Ok(()) };
        library.lock().unwrap_or_else(PoisonError::into_inner).keep()
    }

    fn synchronize(&self) -> Result<()> {
        if self.is_recording() {
            return Ok(());
        }
        self.bind()?;
        // SAFETY: the stream lives as long as the program.
        unsafe { result::stream::synchronize(self.context.stream) }.map_err(|e| self.lost("waiting for the GPU", e))
    }

    fn elapsed(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
        self.bind()?;
        let timed = |e| self.lost("timing work on the GPU", e);
        let stream = self.context.stream;
        let make = || result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT).map_err(timed);
        let (start, end) = (make()?, make()?);
        // SAFETY: both events were just made, are recorded on one live stream, and are destroyed once, after their last
        // use.
        unsafe {
            result::event::record(start, stream).map_err(timed)?;
            let done = work();
            result::event::record(end, stream).map_err(timed)?;
            result::event::synchronize(end).map_err(timed)?;
            let milliseconds = result::event::elapsed(start, end).map_err(timed);
            result::event::destroy(start).map_err(timed)?;
            result::event::destroy(end).map_err(timed)?;
            done?;
            Ok(f64::from(milliseconds?) / 1e3)
        }
    }

    fn memory(&self) -> Result<(usize, usize)> {
        let arena = &lock(&self.state).arena;
        Ok((arena.available().0, arena.total()))
    }

    fn records(&self) -> bool {
        self.base.is_some()
    }

    fn record(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Box<dyn Recording>> {
        if !self.records() {
            return Err(Error::system("work was recorded where every tensor has an allocation of its own"));
        }
        self.bind()?;
        let doing = |e| self.lost("recording work for the GPU", e);
        lock(&self.state).recording = Some(Recorded::new());
        let stream = self.context.stream;
        // SAFETY: the stream is live; in this mode only the calls of this thread matter. The capture is ended whatever
        // `work` returns.
        let (done, graph) = unsafe {
            let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
            let begun = result::stream::begin_capture(stream, mode);
            let done = begun.map_err(doing).and_then(|()| work());
            (done, result::stream::end_capture(stream))
        };
        let recorded = lock(&self.state).recording.take().unwrap_or_else(Recorded::new);
        let mut recorded = Graph::new(recorded, self.context, self.state.clone(), self.name.clone());
        let made = graph.map_err(doing).and_then(|graph| recorded.instantiate(graph).map_err(doing));
        done.and(made)?;
        Ok(Box::new(recorded))
    }
}
