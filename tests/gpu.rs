//! The whole program on a GPU that is not there: NVIDIA's libraries are stood in for by tests/simt/libraries, over the emulation. What
//! this shows: that the driver layer opens, allocates, compiles, launches, multiplies, records and fails as it should. What it cannot
//! show: speed, and that the real libraries behave as the stand-ins do.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The folder of the stand-in libraries, compiled once.
fn libraries() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("gpu");
        std::fs::create_dir_all(&folder).unwrap();
        let sources = Path::new(ROOT).join("tests/simt/libraries");
        std::fs::write(folder.join("none.cpp"), "").unwrap();
        let none = folder.join("none.cpp");
        for (source, name) in [
            (sources.join("cuda.cpp"), "libcuda.so.1"),
            (sources.join("nvrtc.cpp"), "libnvrtc.so.13"),
            (none, "libnvrtc-builtins.so.13.0"),
            (sources.join("cublasLt.cpp"), "libcublasLt.so.13"),
        ] {
            let mut command = Command::new("c++");
            command.args(["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared"]);
            command.arg(format!("-Wl,-soname,{name}")).arg(source).arg("-o").arg(folder.join(name)).arg("-ldl");
            let output = command.output().expect("running c++; install a C++ compiler (Debian: apt-get install g++)");
            assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        }
        folder
    })
}

/// The cubins that the stand-in compiler made are kept between runs; they hold the emulation, which their names do not know.
fn cache() -> PathBuf {
    let emulation = blake3::hash(concat!(include_str!("simt/simt.hpp"), include_str!("simt/switch.S")).as_bytes());
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("gpu-cache-{}", &emulation.to_hex()[..8]))
}

/// `onestep ARGS` on the stand-in GPU.
fn onestep(args: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_onestep"));
    command.current_dir(ROOT).args(args).env("LD_LIBRARY_PATH", libraries()).env("XDG_CACHE_HOME", cache());
    command.env("SIMT_INCLUDE", Path::new(ROOT).join("tests/simt")).envs(variables.iter().copied());
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn succeed(args: &[&str]) -> Output {
    let output = onestep(args, &[]);
    assert!(output.status.success(), "{args:?}: {}{}", text(&output.stdout), text(&output.stderr));
    output
}

const MODEL: &str = "weights/quickstart";

#[test]
fn the_doctor_sees_the_gpu() {
    let said = text(&succeed(&["doctor"]).stdout);
    assert!(said.contains("SIMT emulation") && said.contains("8.0"), "{said}");
}

/// Log-probabilities of one line of ids, on a device.
fn scores(device: &str, folder: &Path) -> Vec<f64> {
    let (input, output) = (folder.join("ids.jsonl"), folder.join(format!("{device}.jsonl")));
    let ids: Vec<u32> = (0..40).map(|i| (i * 37 + 5) % 900).collect();
    std::fs::write(&input, format!("{{\"ids\": {ids:?}}}\n")).unwrap();
    let (input, output) = (input.to_str().unwrap(), output.to_str().unwrap());
    succeed(&["score", "--model", MODEL, "--backend", device, "--input", input, "--output", output]);
    let line: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(output).unwrap()).unwrap();
    line["logprobs"].as_array().unwrap().iter().filter_map(serde_json::Value::as_f64).collect()
}

#[test]
fn scores_are_those_of_the_cpu_but_for_bf16() {
    let folder = tempfile::tempdir().unwrap();
    let (cpu, gpu) = (scores("cpu", folder.path()), scores("cuda", folder.path()));
    assert!(cpu.len() == 39 && gpu.len() == 39);
    // Weights and activations have 8 bits: logits of magnitude about 10 are good to a few hundredths.
    let worst = cpu.iter().zip(&gpu).fold(0.0, |m: f64, (a, b)| m.max((a - b).abs()));
    assert!(worst > 0.0 && worst < 0.15, "{worst}");
}

#[test]
fn sampling_trains_and_saves() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let data = path("data.json");
    let turns = r#"[{"conversations": [{"from": "human", "value": "Say x."}, {"from": "gpt", "value": "x"}]},
        {"conversations": [{"from": "human", "value": "Say y."}, {"from": "gpt", "value": "y"}]}]"#;
    std::fs::write(&data, turns).unwrap();
    let out = path("run");
    // Enough that the reply is sure: where two tokens are about as probable, bf16 and f32 may differ.
    let settings = ["lora.rank=4", "sft.epochs=8", "sft.learning_rate=1e-2"];
    let sft = ["sft", "--model", MODEL, "--data", &data, "--out", &out, "--device", "cuda"];
    let said = succeed(&[&sft[..], &settings].concat());
    assert!(text(&said.stderr).contains("device: SIMT emulation"), "{}", text(&said.stderr));
    assert!(Path::new(&out).join("gemms.json").exists(), "the chosen GEMM algorithms are kept with the run");
    let adapter = Path::new(&out).join("adapter");
    let generate = |device: &str| {
        let device = format!("run.device={device}");
        let adapter = adapter.to_str().unwrap();
        let args = [
            "generate",
            "--model",
            MODEL,
            "--adapter",
            adapter,
            "--prompt",
            "Say x.",
            &device,
            "max_tokens=6",
            "temperature=0.0",
        ];
        text(&succeed(&args).stdout)
    };
    assert_eq!((generate("cuda").as_str(), generate("cpu").as_str()), ("x\n", "x\n"), "replies of a trained adapter");
}

#[test]
fn failures_say_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    // A wild address is seen later than its launch: the newest launches are named, and how to see which.
    let generate = ["generate", "--model", MODEL, "--prompt", "x", "run.device=cuda", "max_tokens=2"];
    let output = onestep(&generate, &[("SIMT_FAIL_AT", "5")]);
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    for part in ["ILLEGAL_ADDRESS", "newest launches", "run.gpu_check=true"] {
        assert!(error.contains(part), "{error}");
    }
    let checked = [&generate[..], &["run.gpu_check=true"]].concat();
    let error = text(&onestep(&checked, &[("SIMT_FAIL_AT", "5")]).stderr);
    assert!(error.contains("the last one failed"), "{error}");

    // More than there is.
    let error = text(&onestep(&[&generate[..], &["run.gpu_memory=0.0001"]].concat(), &[]).stderr);
    assert!(error.contains("out of GPU memory") && error.contains("onestep plan"), "{error}");

    // The plan says so before anything is loaded.
    let data = folder.path().join("data.json");
    let turns = r#"[{"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]}]"#;
    std::fs::write(&data, turns).unwrap();
    let out = folder.path().join("run");
    let (data, out) = (data.to_str().unwrap(), out.to_str().unwrap());
    let sft = ["sft", "--model", MODEL, "--data", data, "--out", out, "--device", "cuda", "run.gpu_memory=0.12"];
    let error = text(&onestep(&sft, &[]).stderr);
    assert!(error.contains("what would fit: ") && error.contains("sft.micro_tokens"), "{error}");
    assert!(!Path::new(out).exists(), "a refused run writes nothing");

    // No such GPU, and no GPU at all.
    let output = onestep(&["generate", "--model", MODEL, "--prompt", "x", "run.device=cuda:3"], &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("cuda:0"), "{}", text(&output.stderr));
    let nowhere = tempfile::tempdir().unwrap();
    let output = onestep(&generate, &[("LD_LIBRARY_PATH", nowhere.path().to_str().unwrap())]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("driver"), "{}", text(&output.stderr));
}
