//! Uploads to a GPU, through a ring of host memory that the driver knows. An asynchronous copy from other host memory
//! may read it after the call has returned, on hosts whose memory the GPU reads directly.
//!
//! The contract of all `unsafe` here is that of driver.rs.

use cudarc::driver::{DriverError, result, sys};
use std::collections::VecDeque;

/// Bytes of the ring, and the most that one copy takes of it: several copies can run while the next is filled in.
const RING: usize = 32 << 20;
const COPY: usize = 8 << 20;
/// Copies begin at multiples of this.
const ALIGNMENT: usize = 256;
/// The most pending copies; beyond them the oldest is waited for.
const MOST_PENDING: usize = 128;

/// A ring of host memory. It lives as long as the program.
pub(super) struct Uploads {
    memory: *mut u8,
    /// Where the next copy begins.
    next: usize,
    /// Copies that may be unfinished, oldest first.
    pending: VecDeque<Pending>,
    /// Events of finished copies, for reuse.
    events: Vec<sys::CUevent>,
}

// SAFETY: the memory is the ring's alone, and events may be used from any thread; the owner holds a mutex around this.
unsafe impl Send for Uploads {}

/// A copy out of the ring's bytes from `start` to `end`; it is done when `event` is.
struct Pending {
    start: usize,
    end: usize,
    event: sys::CUevent,
}

impl Uploads {
    /// Allocates the ring. A context must be current.
    pub fn new() -> Result<Self, DriverError> {
        // SAFETY: a plain allocation of the driver, never freed.
        let memory = unsafe { result::malloc_host(RING, 0) }?;
        Ok(Self { memory: memory.cast(), next: 0, pending: VecDeque::new(), events: vec![] })
    }

    /// Copies `bytes` to the device address `to` in the stream's order; they have been read when the call returns. The
    /// context must be current.
    pub fn copy(&mut self, to: u64, bytes: &[u8], stream: sys::CUstream) -> Result<(), DriverError> {
        let mut to = to;
        for part in bytes.chunks(COPY) {
            let start = self.reserve(part.len())?;
            let event = match self.events.pop() {
                Some(event) => event,
                None => result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)?,
            };
            // SAFETY: `reserve` returns `part.len()` bytes of the ring that no copy reads any more; nobody writes them
            // before the event.
            unsafe {
                let room = std::slice::from_raw_parts_mut(self.memory.add(start), part.len());
                room.copy_from_slice(part);
                result::memcpy_htod_async(to, room, stream)?;
                result::event::record(event, stream)?;
            }
            self.pending.push_back(Pending { start, end: start + part.len(), event });
            to += part.len() as u64;
        }
        Ok(())
    }

    /// Returns the start of `bytes` free bytes, at most `COPY`; waits for copies that still read there.
    fn reserve(&mut self, bytes: usize) -> Result<usize, DriverError> {
        let start = if self.next + bytes > RING { 0 } else { self.next };
        let end = start + bytes;
        let is_there = |copy: &Pending| copy.start < end && start < copy.end;
        while self.pending.len() >= MOST_PENDING || self.pending.iter().any(is_there) {
            let Some(oldest) = self.pending.pop_front() else { break };
            // SAFETY: the event was made and recorded by `copy`.
            unsafe { result::event::synchronize(oldest.event) }?;
            self.events.push(oldest.event);
        }
        self.next = end.next_multiple_of(ALIGNMENT);
        Ok(start)
    }
}
