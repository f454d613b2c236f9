//! Discovery of GPUs. It never panics and changes nothing: without a driver, with one that is too old or without a
//! device it returns the reason.

use super::library::{Loaded, Name, Version};
use crate::error::{Error, Result};
use std::ffi::{CStr, c_char};

/// The oldest CUDA that a driver may run: older ones lack functions that driver.rs calls (cuEventElapsedTime_v2).
pub const OLDEST_DRIVER: Version = Version { major: 12, minor: 8 };
/// The oldest compute capability: earlier GPUs have no bf16 tensor cores and no asynchronous copies.
pub const OLDEST_CAPABILITY: (u32, u32) = (8, 0);

/// A GPU as the driver describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuInfo {
    /// Index N in `cuda:N`.
    pub index: usize,
    /// Name, for example "NVIDIA H200".
    pub name: String,
    /// Compute capability, (9, 0) for a Hopper.
    pub capability: (u32, u32),
    /// Memory in bytes.
    pub memory: u64,
    /// Streaming multiprocessors.
    pub multiprocessors: usize,
}

impl GpuInfo {
    /// Whether the kernels run on it.
    pub fn is_supported(&self) -> bool {
        self.capability >= OLDEST_CAPABILITY
    }

    /// Architecture that its kernels are compiled for.
    pub fn arch(&self) -> String {
        arch(self.capability)
    }
}

/// Returns "sm_80" for (8, 0). From Hopper on the name includes the features of exactly that architecture: "sm_90a" for
/// (9, 0).
pub fn arch((major, minor): (u32, u32)) -> String {
    format!("sm_{major}{minor}{}", if major >= 9 { "a" } else { "" })
}

/// Lists the GPUs that an open driver knows, at least one.
///
/// # Errors
/// System: a driver that is too old, no device; each with advice.
pub fn gpus(driver: &Loaded) -> Result<Vec<GpuInfo>> {
    if driver.version < OLDEST_DRIVER {
        return Err(Error::system(format!(
            "the driver ({}) runs CUDA {}; expected {OLDEST_DRIVER} or newer: {}",
            driver.path.display(),
            driver.version,
            Name::Driver.install(None)
        )));
    }
    // SAFETY: cuInit has this type; any thread may call it, any number of times.
    let status = unsafe { driver.function::<unsafe extern "C" fn(u32) -> i32>("cuInit")?(0) };
    checked(driver, "cuInit", status)?;
    let mut count = 0;
    // SAFETY: cuDeviceGetCount has this type and writes one int.
    let status = unsafe { driver.function::<unsafe extern "C" fn(*mut i32) -> i32>("cuDeviceGetCount")?(&mut count) };
    checked(driver, "cuDeviceGetCount", status)?;
    if count < 1 {
        return Err(Error::system("the driver is there, but no GPU: check `nvidia-smi` and CUDA_VISIBLE_DEVICES"));
    }
    (0..count).map(|index| gpu(driver, index)).collect()
}

/// Attribute numbers of the driver's interface.
const MULTIPROCESSORS: i32 = 16;
const CAPABILITY_MAJOR: i32 = 75;
const CAPABILITY_MINOR: i32 = 76;

fn gpu(driver: &Loaded, index: i32) -> Result<GpuInfo> {
    let (mut device, mut memory, mut name) = (0, 0usize, [0u8; 256]);
    // SAFETY: the functions have these types; each writes one value, or at most `name.len()` bytes with a final zero.
    unsafe {
        let get = driver.function::<unsafe extern "C" fn(*mut i32, i32) -> i32>("cuDeviceGet")?;
        checked(driver, "cuDeviceGet", get(&mut device, index))?;
        let get = driver.function::<unsafe extern "C" fn(*mut usize, i32) -> i32>("cuDeviceTotalMem_v2")?;
        checked(driver, "cuDeviceTotalMem", get(&mut memory, device))?;
        let get = driver.function::<unsafe extern "C" fn(*mut c_char, i32, i32) -> i32>("cuDeviceGetName")?;
        checked(driver, "cuDeviceGetName", get(name.as_mut_ptr().cast(), name.len() as i32 - 1, device))?;
    }
    let attribute = |which: i32| -> Result<u32> {
        let mut value = 0;
        // SAFETY: cuDeviceGetAttribute has this type and writes one int.
        let status = unsafe {
            driver.function::<unsafe extern "C" fn(*mut i32, i32, i32) -> i32>("cuDeviceGetAttribute")?(
                &mut value, which, device,
            )
        };
        checked(driver, "cuDeviceGetAttribute", status)?;
        Ok(value.max(0) as u32)
    };
    let name = CStr::from_bytes_until_nul(&name).map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    Ok(GpuInfo {
        index: index as usize,
        name,
        capability: (attribute(CAPABILITY_MAJOR)?, attribute(CAPABILITY_MINOR)?),
        memory: memory as u64,
        multiprocessors: attribute(MULTIPROCESSORS)? as usize,
    })
}

/// Turns a driver status into an error, with advice where there is any; 0 is success.
fn checked(driver: &Loaded, call: &str, status: i32) -> Result<()> {
    let advice = match status {
        0 => return Ok(()),
        34 => "this is the toolkit's stub, not a driver: take its folder out of LD_LIBRARY_PATH",
        100 => "no GPU is visible: check `nvidia-smi`, CUDA_VISIBLE_DEVICES and, in a container, --gpus all",
        802 => "the system is not ready: on machines with NVSwitch the fabric manager must run",
        803 | 804 => "the driver's library and its kernel module have different versions: restart after an update",
        _ => "check `nvidia-smi` and the kernel's log",
    };
    let mut text = std::ptr::null();
    // SAFETY: cuGetErrorName has this type; it writes a pointer to a constant string, or null for an unknown status.
    let name = unsafe {
        driver.function::<unsafe extern "C" fn(i32, *mut *const c_char) -> i32>("cuGetErrorName")?(status, &mut text);
        if text.is_null() { "an unknown error".into() } else { CStr::from_ptr(text).to_string_lossy() }
    };
    Err(Error::system(format!("{call}: {name} ({status}); {advice}")))
}

#[cfg(test)]
mod tests {
    use super::arch;

    #[test]
    fn architectures_from_hopper_on_have_their_own_features() {
        let names = [(8, 0), (8, 9), (9, 0), (10, 0), (12, 0)].map(arch);
        assert_eq!(names, ["sm_80", "sm_89", "sm_90a", "sm_100a", "sm_120a"]);
    }
}
