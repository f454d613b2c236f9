//! Memory of a GPU, for tensors and for recordings, which keep the memory they worked in. It consists of parts of one
//! arena or, for finding accesses outside a tensor, of one driver allocation per tensor.
//!
//! The contract of all `unsafe` here is that of driver.rs.

use super::arena::{Arena, FreeParts};
use super::context::{Context, failed};
use super::kernels::Kernel;
use crate::error::{Error, Result};
use crate::tensor::DeviceMemory;
use cudarc::driver::{DriverError, result, sys};
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;

/// State of a GPU that changes as it is used.
pub(super) struct State {
    /// Only counts bytes where every tensor has an allocation of its own.
    pub arena: Arena,
    pub functions: HashMap<Kernel, Function>,
    pub modules: HashMap<&'static str, Module>,
    /// The newest launches, for the message when one has failed.
    pub recent: VecDeque<&'static str>,
    pub recording: Option<Recorded>,
    /// Whether to wait after every launch.
    pub check_each: bool,
}

/// A recording in progress.
pub(super) struct Recorded {
    /// The thread whose work is recorded. No other thread's tensors may lie in the recording's memory.
    thread: ThreadId,
    /// Memory freed since the recording began, which belongs to it. The recording takes memory from here first: the
    /// work on it runs in order.
    pub free: FreeParts,
    /// Launches so far.
    pub launches: usize,
}

impl Recorded {
    /// Begins a recording of the calling thread.
    pub fn new() -> Self {
        Self { thread: std::thread::current().id(), free: FreeParts::default(), launches: 0 }
    }
}

#[derive(Clone, Copy)]
pub(super) struct Module(pub sys::CUmodule);
// SAFETY: modules are read-only after loading and belong to the context, not to a thread.
unsafe impl Send for Module {}

#[derive(Clone, Copy)]
pub(super) struct Function {
    pub handle: sys::CUfunction,
    /// Bytes of dynamic shared memory that it may take.
    pub shared: u32,
}
// SAFETY: as `Module`.
unsafe impl Send for Function {}

/// Returns the error of a failed wait for the GPU, with the launches that may have caused it.
pub(super) fn lost(state: &Mutex<State>, doing: &str, error: DriverError) -> Error {
    let State { recent, check_each, .. } = &*lock(state);
    let recent: Vec<&str> = recent.iter().copied().collect();
    let hint = if *check_each { "the last one failed" } else { "run again with run.gpu_check=true to see which" };
    failed(doing, error).context(format!("newest launches: {}; {hint}", recent.join(", ")))
}

/// The state is consistent between statements, so a panic of another thread does not spoil it.
pub(super) fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    /// Takes `bytes` bytes and returns their offset. Error: (free bytes, bytes of the longest part).
    pub fn take(&mut self, bytes: usize) -> std::result::Result<usize, (usize, usize)> {
        let own = self.recording.as_mut().filter(|recorded| recorded.thread == std::thread::current().id());
        let own = own.and_then(|recorded| recorded.free.take(bytes));
        own.or_else(|| self.arena.take(bytes)).ok_or_else(|| self.arena.available())
    }

    fn give(&mut self, offset: usize, bytes: usize) {
        match &mut self.recording {
            Some(recorded) => recorded.free.give(offset, bytes),
            None => self.arena.give(offset, bytes),
        }
    }
}

/// The memory of one tensor.
pub(super) struct Memory {
    address: u64,
    offset: usize,
    bytes: usize,
    is_separate: bool,
    state: Arc<Mutex<State>>,
    context: Context,
}

impl Memory {
    /// Makes the memory of `bytes` bytes that the state has reserved at `offset`. `base` is the arena's address, or
    /// `None` where each tensor has an allocation of its own; a context must then be current.
    pub fn new(
        offset: usize,
        bytes: usize,
        base: Option<u64>,
        state: &Arc<Mutex<State>>,
        context: Context,
    ) -> std::result::Result<Self, DriverError> {
        let address = match base {
            Some(base) => Ok(base + offset as u64),
            // SAFETY: a plain allocation, freed once by `drop`.
            None => unsafe { result::malloc_sync(bytes.max(1)) },
        };
        let address = address.inspect_err(|_| lock(state).give(offset, bytes))?;
        Ok(Self { address, offset, bytes, is_separate: base.is_none(), state: state.clone(), context })
    }
}

impl DeviceMemory for Memory {
    fn address(&self) -> u64 {
        self.address
    }

    fn download(&self, bytes: &mut [u8]) -> Result<()> {
        if lock(&self.state).recording.is_some() {
            return Err(Error::system("values were read while work was recorded; read them before"));
        }
        let n = bytes.len();
        // SAFETY: see the contract above; the stream is waited for before the bytes are used.
        unsafe {
            let Context { context, stream } = self.context;
            result::ctx::set_current(context)
                .and_then(|()| result::memcpy_dtoh_async(bytes, self.address, stream))
                .and_then(|()| result::stream::synchronize(stream))
        }
        .map_err(|e| lost(&self.state, &format!("copying {n} bytes from the GPU"), e))
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.is_separate {
            let Context { context, stream } = self.context;
            // SAFETY: the allocation is this tensor's; work on it has ended. An error cannot be reported to anyone.
            let _ = unsafe {
                result::ctx::set_current(context)
                    .and_then(|()| result::stream::synchronize(stream))
                    .and_then(|()| result::memory_free(self.address))
            };
        }
        lock(&self.state).give(self.offset, self.bytes);
    }
}
