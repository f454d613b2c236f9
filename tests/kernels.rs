//! The kernels' code without a GPU: NVIDIA's compiler takes every source for every architecture, what the kernels take is what the
//! committed table says, and the machine code uses the tensor cores. Compiler and disassembler come from PyPI into target/.
#![allow(clippy::unwrap_used)]

use onestep::backend::cuda::compiler::{ARCHS, Compiler, Resources, parse, table};
use onestep::backend::cuda::kernels::{SOURCES, names};
use onestep::backend::cuda::library::Places;
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

/// The compiler's version decides about the table; a disassembler of 13.0 is not published.
const NVRTC: &str = "nvidia-cuda-nvrtc==13.0.88";
const NVDISASM: &str = "nvidia-cuda-nvdisasm==13.2.51";
const TABLE: &str = "kernels/RESOURCES.csv";
/// (kernel, why): kernels that may use local memory.
const MAY_SPILL: &[(&str, &str)] = &[
    (
        "prompt_128",
        "8 bytes on sm_100a at 128 registers, which leave room for two blocks on a multiprocessor; all the registers it wants, 198, leave one",
    ),
    ("prompt_64", "8 bytes on sm_120a, as prompt_128"),
    ("scatter_add_rows_f32", "8 bytes on sm_100a, read back once a block: it runs when an embedding is trained"),
];
/// Sources whose kernels multiply matrices on tensor cores.
const TENSOR_CORES: &[&str] = &["attention", "attention_backward", "attention_paged", "gemm", "linear"];

fn target() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
}

/// The folder of a package of PyPI, installed when it is not there. A package that cannot be had fails the test.
fn package(requirement: &str) -> PathBuf {
    let folder = target().join("pypi").join(requirement.replace("==", "-"));
    if folder.exists() {
        return folder;
    }
    let parent = folder.parent().unwrap();
    std::fs::create_dir_all(parent).unwrap();
    let unfinished = tempfile::tempdir_in(parent).unwrap();
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", "--no-deps"]);
    pip.args(["--only-binary", ":all:", "--target"]).arg(unfinished.path()).arg(requirement);
    let help = format!(
        "this test needs {requirement} from PyPI: a package index that can be reached once, and pip (Debian: apt-get install \
         python3-pip); or put its files into {}",
        folder.display()
    );
    let output = pip.output().unwrap_or_else(|e| panic!("python3: {e}; {help}"));
    assert!(output.status.success(), "{}\n{help}", String::from_utf8_lossy(&output.stderr));
    // Another test may have been faster.
    if std::fs::rename(unfinished.path(), &folder).is_ok() {
        let _ = unfinished.keep();
    }
    folder
}

fn nvrtc() -> &'static Path {
    static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| package(NVRTC).join("nvidia/cu13/lib"));
    &FOLDER
}

/// Keeps what it compiles between runs, as the program does.
fn compiler() -> &'static Compiler {
    static COMPILER: LazyLock<Compiler> =
        LazyLock::new(|| Compiler::with(target().join("cubins"), &Places::only(nvrtc()), None));
    &COMPILER
}

/// All sources on all architectures, each as (stem, architecture).
fn pairs() -> Vec<(&'static str, &'static str)> {
    SOURCES.iter().flat_map(|(stem, _)| ARCHS.map(|arch| (*stem, arch))).collect()
}

fn rows() -> Vec<Resources> {
    let of = |&(stem, arch): &(&str, &str)| compiler().resources(stem, arch).unwrap_or_else(|e| panic!("{e}"));
    pairs().par_iter().flat_map_iter(of).collect()
}

#[test]
fn every_kernel_compiles_for_every_architecture() {
    let rows = rows();
    for (stem, source) in SOURCES {
        let exported: BTreeSet<&str> = names(source).collect();
        for arch in ARCHS {
            let of = rows.iter().filter(|r| r.file == *stem && r.arch == arch);
            let compiled: BTreeSet<&str> = of.map(|r| r.kernel.as_str()).collect();
            assert_eq!(compiled, exported, "kernels/{stem}.cu on {arch}: what is compiled, and what EXPORT( lines say");
        }
    }
    let kernels: BTreeSet<&str> = rows.iter().map(|r| r.kernel.as_str()).collect();
    let defined: usize = SOURCES.iter().map(|(_, source)| names(source).count()).sum();
    assert_eq!(kernels.len(), defined, "a kernel's name is used twice");
    println!("{defined} kernels of {} sources on {} architectures", SOURCES.len(), ARCHS.len());
}

#[test]
fn no_kernel_spills_and_the_table_is_what_was_compiled() {
    let rows = rows();
    let spilling = rows.iter().filter(|r| r.stack + r.spill_stores + r.spill_loads > 0);
    let wrong: Vec<String> = spilling
        .filter(|r| !MAY_SPILL.iter().any(|(kernel, _)| *kernel == r.kernel))
        .map(|r| {
            format!(
                "{} on {}: stack {}, spilled {}, read back {}",
                r.kernel, r.arch, r.stack, r.spill_stores, r.spill_loads
            )
        })
        .collect();
    assert!(wrong.is_empty(), "kernels use local memory and stand not in MAY_SPILL:\n{}", wrong.join("\n"));
    let committed = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(TABLE)).unwrap_or_default();
    let found = table(compiler().version().unwrap(), &rows);
    let (old, new): (BTreeSet<&str>, BTreeSet<&str>) = (committed.lines().collect(), found.lines().collect());
    let lines = |sign: char, a: &BTreeSet<&str>, b: &BTreeSet<&str>| -> String {
        a.difference(b).take(20).map(|line| format!("{sign} {line}\n")).collect()
    };
    assert!(
        committed == found,
        "{TABLE} is not what was compiled:\n{}{}write it again and look at the difference:\n\
         LD_LIBRARY_PATH={} cargo run --release -- kernels table --out {TABLE}",
        lines('-', &old, &new),
        lines('+', &new, &old),
        nvrtc().display()
    );
}

#[test]
fn matrix_kernels_use_the_tensor_cores() {
    let missing: Vec<_> = TENSOR_CORES.iter().filter(|stem| SOURCES.iter().all(|(name, _)| name != *stem)).collect();
    assert!(missing.is_empty(), "no sources of {missing:?}");
    let all: Vec<_> = pairs().into_iter().filter(|(stem, _)| TENSOR_CORES.contains(stem)).collect();
    all.par_iter().for_each(|(stem, arch)| {
        let text = disassembled(&compiler().cubin(stem, arch).unwrap());
        // mma.sync becomes HMMA, wgmma HGMMA, tcgen05 UTCHMMA.
        assert!(text.contains("HMMA") || text.contains("HGMMA"), "kernels/{stem}.cu on {arch} uses no tensor core");
    });
}

/// The machine code of a cubin as text.
fn disassembled(cubin: &[u8]) -> String {
    let nvdisasm = package(NVDISASM).join("nvidia/cu13/bin/nvdisasm");
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(cubin).unwrap();
    let output = Command::new(&nvdisasm).arg(file.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Scalar f32 instructions of a kernel's machine code: [products, sums, both in one].
type Arithmetic = [usize; 3];

/// Those of every kernel in a disassembly, by name.
fn arithmetic(disassembly: &str) -> BTreeMap<String, Arithmetic> {
    let mut all: BTreeMap<String, Arithmetic> = BTreeMap::new();
    let mut kernel = None;
    for line in disassembly.lines() {
        if let Some(section) = line.trim().strip_prefix(".section\t") {
            let name = section.strip_prefix(".text.").and_then(|rest| rest.split(',').next());
            kernel = name.map(str::to_string);
        }
        let Some(kernel) = &kernel else { continue };
        let counts = all.entry(kernel.clone()).or_default();
        let words = line.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        for word in words {
            if let Some(place) = ["FMUL", "FADD", "FFMA"].iter().position(|name| *name == word) {
                counts[place] += 1;
            }
        }
    }
    all
}

#[test]
fn split_and_prompt_leave_the_compiler_no_product_to_fuse() {
    // Their results are the same to the bit only while each product is rounded, or fused with a sum, as the source says: then forbidding
    // the compiler to fuse changes nothing. Where it may fuse one, the machine code has other instructions.
    let (stem, source) = SOURCES.iter().find(|(stem, _)| *stem == "attention_paged").unwrap();
    let counts = |source: &str, arch: &str, more: &[&str]| {
        arithmetic(&disassembled(&compiler().compile_with(stem, source, arch, more).unwrap().cubin))
    };
    let explicit = "fmaf(l, old, tile_l * fresh)";
    let left_open = source.replace(explicit, "l * old + tile_l * fresh");
    assert_ne!(*source, left_open, "attention_paged.cu has no {explicit}");
    let alone = format!("{source}KERNEL(32) alone(float* x) {{ x[0] = scaled(x[0], x[1]) - x[2]; }}\n");
    ["sm_80", "sm_90a", "sm_120a"].par_iter().for_each(|arch| {
        let [free, bound] = [&[][..], &["--fmad=false"]].map(|more| counts(source, arch, more));
        assert_eq!(free.len(), names(source).count(), "{arch}: kernels {:?}", free.keys());
        assert!(free.values().all(|[products, sums, both]| products * sums * both > 0), "{arch}: {free:?}");
        assert_eq!(free, bound, "{arch}: [products, sums, both in one] with and without leave to fuse");
        assert_eq!(counts(&alone, arch, &[])["alone"], [1, 1, 0], "{arch}: a scaled maximum and a difference");
        // That a fused product shows: one left to the compiler.
        let [free, bound] = [&[][..], &["--fmad=false"]].map(|more| counts(&left_open, arch, more));
        for kernel in ["prompt_64", "merge_64"] {
            assert_ne!(free[kernel], bound[kernel], "{arch}: {kernel}");
        }
    });
}

#[test]
fn a_source_that_does_not_compile_is_an_error_with_the_compilers_log() {
    let source = "#include \"device.cuh\"\nKERNEL(32) broken(float* x) { x[0] = undeclared; }\n";
    let error = compiler().compile_source("broken", source, "sm_80").unwrap_err().to_string();
    for part in ["kernels/broken.cu", "broken.cu(2): error", "undeclared"] {
        assert!(error.contains(part), "{error}");
    }
    let error = compiler().compile_source("broken", "", "sm_10").unwrap_err().to_string();
    assert!(error.contains("sm_10"), "{error}");
}

#[test]
fn spills_and_shared_memory_of_a_real_kernel_are_seen() {
    // 64 live values with room for few registers, an array indexed at run time, 96 floats of shared memory.
    let source = "#include \"device.cuh\"
extern \"C\" __global__ void __launch_bounds__(1024, 2) greedy(float* x, int k) {
  SHARED(float, shared, 96);
  float a[64], b[8];
  for (int i = 0; i < 8; i++) b[i] = x[i * k];
#pragma unroll
  for (int i = 0; i < 64; i++) a[i] = x[i * 1024 + threadIdx.x];
  if (threadIdx.x < 96) shared[threadIdx.x] = b[k & 7];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 64; i++) x[i * 1024 + threadIdx.x] = a[i] * a[(i * 7 + 1) % 64] + shared[i];
}
KERNEL(32) modest(float* x) { x[threadIdx.x] = 1.f; }
";
    let log = compiler().compile_source("greedy", source, "sm_80").unwrap().log;
    let rows = parse("greedy", "sm_80", &log);
    let [greedy, modest] = &rows[..] else { panic!("{rows:?}") };
    assert!(greedy.spill_stores > 0 && greedy.spill_loads > 0 && greedy.stack > 0, "{greedy:?}\n{log}");
    assert_eq!((greedy.registers, greedy.shared), (32, 384), "{log}");
    assert_eq!((modest.kernel.as_str(), modest.stack + modest.shared + modest.spill_stores), ("modest", 0));
}

#[test]
fn what_was_compiled_ahead_serves_without_a_compiler() {
    let folder = tempfile::tempdir().unwrap();
    let (stem, _) = SOURCES[0];
    let with = Compiler::with(folder.path().to_path_buf(), &Places::only(nvrtc()), None);
    let first = with.compile(stem, "sm_90a").unwrap();
    assert!(first.took.is_some() && with.compile(stem, "sm_90a").unwrap().took.is_none(), "compiled twice");
    let without = Compiler::with(folder.path().to_path_buf(), &Places::only(Path::new("/nowhere")), None);
    assert!(without.version().is_err());
    assert_eq!(without.cubin(stem, "sm_90a").unwrap(), first.cubin);
    assert_eq!(without.resources(stem, "sm_90a").unwrap(), compiler().resources(stem, "sm_90a").unwrap());
    let error = without.cubin(stem, "sm_80").unwrap_err().to_string();
    assert!(error.contains("nvidia-cuda-nvrtc") && error.contains("kernels compile --arch sm_80"), "{error}");
}
