//! The primary context, and how a failed call of the driver is reported.

use crate::error::Error;
use cudarc::driver::{DriverError, sys};

/// Handles of the primary context. It is current on every thread that calls.
#[derive(Clone, Copy)]
pub(super) struct Context {
    pub context: sys::CUcontext,
    pub stream: sys::CUstream,
}

// SAFETY: CUDA contexts and streams may be used from any thread; calls on one stream are ordered by the driver.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

pub(super) fn failed(doing: &str, error: DriverError) -> Error {
    let text = error.error_string().ok().and_then(|s| s.to_str().ok()).unwrap_or("no text").to_string();
    Error::system(format!("{doing}: CUDA says {:?}: {text}", error.0))
}
