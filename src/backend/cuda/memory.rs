//! Who has which memory of a GPU: tensors, and recordings, which keep what they worked in. Parts of one arena, or, to find accesses
//! outside of a tensor, an allocation of the driver for each.
//!
//! The contract of all `unsafe` here: as in driver.rs.

use super::arena::{Arena, FreeParts};
use super::driver::{Context, lost};
use super::kernels::Kernel;
use crate::error::{Error, Result};
use crate::tensor::DeviceMemory;
use cudarc::driver::{DriverError, result, sys};
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;

/// What changes as a GPU is used.
pub(super) struct State {
    /// Where every tensor has an allocation of its own it only counts.
    pub arena: Arena,
    pub functions: HashMap<Kernel, Function>,
    pub modules: HashMap<&'static str, Module>,
    /// The newest launches, for the message when one failed.
    pub recent: VecDeque<&'static str>,
    pub recording: Option<Recorded>,
    /// Wait after every launch.
    pub check_each: bool,
}

/// A recording while it is made.
pub(super) struct Recorded {
    /// Whose work is recorded. No other thread's tensors may lie in the recording's memory.
    thread: ThreadId,
    /// What was freed since it began: the recording's own. What it takes next it takes from there: the work on it stands in order.
    pub free: FreeParts,
    /// Launches so far.
    pub launches: usize,
}

impl Recorded {
    /// Begun by the calling thread.
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
    /// Bytes of dynamic shared memory it may take.
    pub shared: u32,
}
// SAFETY: as `Module`.
unsafe impl Send for Function {}

/// The state is consistent between statements, so a panic of another thread does not spoil it.
pub(super) fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    /// The offset of `bytes` bytes. Error: (free bytes, bytes of the longest part).
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

/// Memory of one tensor.
pub(super) struct Memory {
    address: u64,
    offset: usize,
    bytes: usize,
    is_separate: bool,
    state: Arc<Mutex<State>>,
    context: Context,
}

impl Memory {
    /// `bytes` bytes that the state has at `offset`; `base` is the arena's address, or `None` where tensors have allocations of their own,
    /// in a context that is current then.
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
        // SAFETY: see the contract above; the stream is waited for before the bytes are looked at.
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
            // SAFETY: the allocation is this tensor's; work on it has ended. An error has nobody to go to.
            let _ = unsafe {
                result::ctx::set_current(context)
                    .and_then(|()| result::stream::synchronize(stream))
                    .and_then(|()| result::memory_free(self.address))
            };
        }
        lock(&self.state).give(self.offset, self.bytes);
    }
}
