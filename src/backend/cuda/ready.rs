//! Makes NVIDIA's libraries ready: finds the GPUs, and makes cudarc's functions safe to call.

use super::library::{Loaded, Name, driver_version, places};
use super::probe::{self, GpuInfo};
use crate::error::{Error, Result};

/// Initialises the driver and lists the GPUs of this machine, at least one. Never panics.
///
/// # Errors
/// System: no driver, a driver that is too old, no device; each with advice.
pub fn probe() -> Result<Vec<GpuInfo>> {
    probe::gpus(&places().open(Name::Driver, None)?)
}

/// Makes cudarc's driver functions safe to call: cudarc panics when it finds no library, or one that lacks a function.
///
/// # Errors
/// As `probe`.
pub fn driver() -> Result<()> {
    let driver = places().open(Name::Driver, None)?;
    probe::gpus(&driver)?;
    // SAFETY: it looks for libraries by name; this one is open.
    if !unsafe { cudarc::driver::sys::is_culib_present() } {
        return Err(unseen(&driver));
    }
    // SAFETY: as above; `culib` panics only where `is_culib_present` is false. The address is not called.
    let seen =
        unsafe { cudarc::driver::sys::culib().get::<unsafe extern "C" fn()>(b"cuInit") }.map(|f| *f as usize).ok();
    same(&driver, "cuInit", seen)
}

/// Makes cudarc's cuBLASLt functions safe to call.
///
/// # Errors
/// System: it is missing, or another one shadows the one that fits the driver.
pub fn cublaslt() -> Result<()> {
    let library = places().open(Name::CublasLt, driver_version())?;
    // SAFETY: as in `driver`.
    if !unsafe { cudarc::cublaslt::sys::is_culib_present() } {
        return Err(unseen(&library));
    }
    // SAFETY: as in `driver`.
    let culib = unsafe { cudarc::cublaslt::sys::culib() };
    // SAFETY: the address is not called.
    let seen = unsafe { culib.get::<unsafe extern "C" fn()>(b"cublasLtCreate") }.map(|f| *f as usize).ok();
    same(&library, "cublasLtCreate", seen)
}

fn unseen(library: &Loaded) -> Error {
    Error::system(format!("{} is open but not found by its name; is the file renamed?", library.path.display()))
}

/// Checks that the library found by name (`seen`: the address of its `function`) is the one that was opened by path.
fn same(library: &Loaded, function: &str, seen: Option<usize>) -> Result<()> {
    // SAFETY: the address is not called.
    let own = unsafe { library.function::<unsafe extern "C" fn()>(function) }? as usize;
    match seen == Some(own) {
        true => Ok(()),
        false => Err(Error::system(format!(
            "another {} (a stub of the toolkit?) stands before {}: take its folder out of LD_LIBRARY_PATH",
            library.name,
            library.path.display()
        ))),
    }
}
