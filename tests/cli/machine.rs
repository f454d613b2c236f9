//! The verbs about this machine, with drivers that are there, too old, without a GPU, or no driver at all.

use crate::support::*;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::tempdir;

/// A folder with a libcuda.so.1 that runs CUDA `version`, answers cuInit with `status` and has one GPU.
fn driver(folder: &Path, version: u32, status: u32) -> PathBuf {
    let source = format!(
        r#"
#include <stdio.h>
int cuDriverGetVersion(int* version) {{ *version = {version}; return 0; }}
int cuInit(unsigned flags) {{ return {status}; }}
int cuDeviceGetCount(int* count) {{ *count = 1; return 0; }}
int cuDeviceGet(int* device, int index) {{ *device = index; return 0; }}
int cuDeviceGetName(char* name, int size, int device) {{ snprintf(name, size, "Paper GPU"); return 0; }}
int cuDeviceTotalMem_v2(unsigned long* bytes, int device) {{ *bytes = 80000000000; return 0; }}
int cuDeviceGetAttribute(int* value, int which, int device) {{
  *value = which == 75 ? 9 : which == 76 ? 0 : 132;
  return 0;
}}
int cuGetErrorName(int status, const char** name) {{ *name = "CUDA_ERROR_NO_DEVICE"; return 0; }}
"#
    );
    let (path, library) = (folder.join("cuda.c"), folder.join("libcuda.so.1"));
    fs::write(&path, source).unwrap();
    let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&path).status();
    assert!(built.expect("this test needs a C compiler (Debian: apt-get install gcc)").success());
    folder.to_path_buf()
}

/// What doctor says with libraries from `folder` first; it must succeed.
fn doctor(folder: &Path) -> String {
    let ended = onestep_with(&[("LD_LIBRARY_PATH", text(folder))], &["doctor"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    ended.stdout
}

fn holds(said: &str, parts: &[&str]) {
    for part in parts {
        assert!(said.contains(part), "{said}\nlacks {part:?}");
    }
}

#[test]
fn doctor_says_what_is_there_and_what_to_install() {
    let folder = tempdir().unwrap();
    let said = doctor(&driver(folder.path(), 13000, 0));
    let library = folder.path().join("libcuda.so.1");
    let place = format!("runs CUDA 13.0: {} (LD_LIBRARY_PATH)", library.display());
    holds(&said, &[&place, "cuda:0", "Paper GPU, compute capability 9.0 (sm_90a), 80.0 GB, 132 SMs"]);
    holds(
        &said,
        &["onestep", env!("CARGO_PKG_VERSION"), "CPU", "threads", "NVRTC", "cuBLASLt", "NCCL", "cache", "Python"],
    );
}

#[test]
fn doctor_says_why_a_driver_gives_no_gpu() {
    let folder = tempdir().unwrap();
    let said = doctor(&driver(folder.path(), 11040, 0));
    holds(&said, &["runs CUDA 11.4; expected 12.8 or newer", "install NVIDIA's driver"]);
    let said = doctor(&driver(folder.path(), 13000, 100));
    holds(&said, &["cuInit: CUDA_ERROR_NO_DEVICE (100)", "nvidia-smi", "--gpus all"]);
    fs::write(folder.path().join("libcuda.so.1"), "not a library").unwrap();
    holds(&doctor(folder.path()), &["opening", "libcuda.so.1", "none without a driver"]);
}

#[test]
fn kernels_are_listed() {
    let listed = done(&["kernels", "list"]);
    assert!(listed.lines().any(|line| line.split_whitespace().eq(["tensor", "cast_f32_bf16"])), "{listed}");
}

#[test]
fn kernels_are_compiled_for_architectures_that_exist() {
    let folder = tempdir().unwrap();
    refused(folder.path(), &["kernels", "compile", "--arch", "90"], &["--arch 90", "sm_90a"]);
}
