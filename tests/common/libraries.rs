//! NVIDIA's libraries as stand-ins: compiled from tests/simt/libraries, over the emulation.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

pub const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The folder of the stand-in libraries, compiled once.
pub fn libraries() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("gpu");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("none.cpp"), "").unwrap();
        compile(&source("cuda.cpp"), &folder, "libcuda.so.1");
        compile(&source("nvrtc.cpp"), &folder, "libnvrtc.so.13");
        compile(&folder.join("none.cpp"), &folder, "libnvrtc-builtins.so.13.0");
        compile(&source("cublasLt.cpp"), &folder, "libcublasLt.so.13");
        folder
    })
}

/// A file of tests/simt/libraries.
pub fn source(name: &str) -> PathBuf {
    Path::new(ROOT).join("tests/simt/libraries").join(name)
}

/// Makes the library `name`, its soname too, in `folder`: whole, since another process may have it open.
pub fn compile(source: &Path, folder: &Path, name: &str) {
    let unfinished = folder.join(format!("{name}.{}", std::process::id()));
    let mut command = Command::new("c++");
    command.args(["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared"]);
    command.arg(format!("-Wl,-soname,{name}")).arg(source).arg("-o").arg(&unfinished).arg("-ldl");
    let output = command.output().expect("running c++; install a C++ compiler (Debian: apt-get install g++)");
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    std::fs::rename(unfinished, folder.join(name)).unwrap();
}

/// The cubins that the stand-in compiler made are kept between runs; they hold the emulation, which their names do not know.
pub fn cache() -> PathBuf {
    let emulation =
        blake3::hash(concat!(include_str!("../simt/simt.hpp"), include_str!("../simt/switch.S")).as_bytes());
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("gpu-cache-{}", &emulation.to_hex()[..8]))
}
