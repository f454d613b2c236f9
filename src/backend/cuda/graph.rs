//! Recorded work as a CUDA graph, which keeps the memory it works in.
//!
//! The contract of all `unsafe` here is that of driver.rs.

use super::context::{Context, failed};
use super::memory::{Recorded, State, lock};
use crate::backend::Recording;
use crate::error::Result;
use cudarc::driver::{DriverError, result, sys};
use std::sync::{Arc, Mutex};

/// Assumed bytes of device memory, outside the arena, that the driver keeps per launch of a graph.
const LAUNCH: usize = 8 << 10;

/// A CUDA graph and the memory that belongs to it.
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
    /// Takes over a recording without running anything. `name` is the GPU's.
    pub fn new(recorded: Recorded, context: Context, state: Arc<Mutex<State>>, name: String) -> Self {
        Self { executable: None, context, recorded, state, name }
    }

    /// Instantiates `graph`, so that `replay` runs it, and destroys it. The context must be current.
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
        // SAFETY: context, stream and graph are live; the memory that the graph uses is held by it or by tensors of its
        // maker.
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
            // The thread that drops the graph may never have used the GPU.
            // SAFETY: destroyed once. An error cannot be reported to anyone, and the memory is given back in any case.
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
