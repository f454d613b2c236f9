//! Recorded work as a CUDA graph.
//!
//! The contract of all `unsafe` here: as in driver.rs.

use super::driver::{Context, failed};
use super::memory::{Recorded, State, lock};
use crate::backend::Recording;
use crate::error::Result;
use cudarc::driver::{DriverError, result, sys};
use std::sync::{Arc, Mutex};

/// What the driver is taken to keep for a launch of a graph, in bytes of device memory outside the arena.
const LAUNCH: usize = 8 << 10;

/// A CUDA graph and the memory that is its own.
pub(super) struct Graph {
    executable: Option<sys::CUgraphExec>,
    context: Context,
    recorded: Recorded,
    state: Arc<Mutex<State>>,
    name: String,
}

// SAFETY: an instantiated graph may be launched from any thread.
unsafe impl Send for Graph {}
// SAFETY: launches of one graph on one stream are ordered by the driver.
unsafe impl Sync for Graph {}

impl Graph {
    /// Owns what was recorded; runs nothing yet. `name` is the GPU's.
    pub fn new(recorded: Recorded, context: Context, state: Arc<Mutex<State>>, name: String) -> Self {
        Self { executable: None, context, recorded, state, name }
    }

    /// Makes `graph`, which is destroyed, what a replay runs. The context is current.
    pub fn instantiate(&mut self, graph: sys::CUgraph) -> std::result::Result<(), DriverError> {
        // SAFETY: the graph was just made, and is destroyed once it is instantiated.
        unsafe {
            let executable = result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0));
            result::graph::destroy(graph)?;
            self.executable = Some(executable?);
        }
        Ok(())
    }
}

impl Recording for Graph {
    fn replay(&self) -> Result<()> {
        let Some(executable) = self.executable else { return Ok(()) };
        // SAFETY: context, stream and graph are live; the memory that the graph uses is held by it or by tensors of its maker.
        unsafe {
            let bound = result::ctx::set_current(self.context.context);
            bound.and_then(|()| result::graph::launch(executable, self.context.stream))
        }
        .map_err(|e| failed(&format!("replaying recorded work on {}", self.name), e))
    }

    fn bytes(&self) -> usize {
        self.recorded.free.bytes() + self.recorded.launches * LAUNCH
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if let Some(executable) = self.executable {
            // The thread that drops it need not be one that used the GPU.
            // SAFETY: destroyed once. An error has nobody to go to, and the memory is given back in any case.
            let _ = unsafe {
                result::ctx::set_current(self.context.context).and_then(|()| result::graph::exec_destroy(executable))
            };
        }
        let mut state = lock(&self.state);
        for (offset, bytes) in self.recorded.free.drain() {
            state.arena.give(offset, bytes);
        }
    }
}
