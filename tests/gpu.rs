//! The whole program on a GPU that is not there: NVIDIA's libraries are stood in for by tests/simt/libraries, over the emulation. What
//! this shows: that the driver layer opens, allocates, compiles, launches, multiplies, records and fails as it should. What it cannot
//! show: speed, and that the real libraries behave as the stand-ins do.
#![allow(clippy::unwrap_used)]

#[path = "common/libraries.rs"]
mod libraries;

use libraries::{ROOT, cache, compile, libraries, source};
use std::path::Path;
use std::process::{Command, Output};

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
    assert!(error.contains("asks") && error.contains("what would fit"), "{error}");

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

#[test]
fn ragged_steps_choose_few_products_and_keep_them_at_their_ends() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    // Conversations of 20 lengths, one a step.
    let turn = |i: usize| {
        let text = "and again ".repeat(1 + i);
        format!(
            r#"{{"conversations": [{{"from": "human", "value": "Say {i} {text}."}}, {{"from": "gpt", "value": "{text}"}}]}}"#
        )
    };
    std::fs::write(path("data.json"), format!("[{}]", (0..20).map(turn).collect::<Vec<_>>().join(","))).unwrap();
    compile(&source("writes.cpp"), folder.path(), "writes.so");
    let (data, out, writes) = (path("data.json"), path("run"), path("writes"));
    let settings = ["lora.rank=4", "sft.epochs=1", "sft.batch_tokens=1", "sft.validation_share=0.0"];
    let sft = ["sft", "--model", MODEL, "--data", &data, "--out", &out, "--device", "cuda"];
    let variables = [("LD_PRELOAD", path("writes.so")), ("SIMT_WRITES", writes.clone())];
    let variables: Vec<(&str, &str)> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let output = onestep(&[&sft[..], &settings].concat(), &variables);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let metrics = std::fs::read_to_string(Path::new(&out).join("metrics.jsonl")).unwrap();
    let steps = metrics.lines().filter(|line| line.contains("learning_rate")).count();
    assert_eq!(steps, 20, "{metrics}");
    let kept = std::fs::read_to_string(Path::new(&out).join("gemms.json")).unwrap();
    let kept: serde_json::Value = serde_json::from_str(&kept).unwrap();
    let chosen = kept["algorithms"].as_object().unwrap().len();
    let written = std::fs::read_to_string(writes).unwrap();
    let writes = written.lines().filter(|line| line.contains("gemms.json")).count();
    println!("{steps} steps: {chosen} products chosen, written {writes} times");
    assert!((10..=40).contains(&chosen) && (1..=20).contains(&writes), "{chosen} chosen, written {writes} times");
}

#[test]
fn a_missing_or_shadowed_gemm_library_is_said_and_no_result() {
    let generate =
        ["generate", "--model", MODEL, "--prompt", "x", "run.device=cuda", "max_tokens=2", "temperature=0.0"];
    let with = succeed(&generate);
    assert!(!text(&with.stderr).contains("cuBLASLt"), "{}", text(&with.stderr));
    let (missing, shadowed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for name in ["libcuda.so.1", "libnvrtc.so.13", "libnvrtc-builtins.so.13.0", "libcublasLt.so.13"] {
        std::os::unix::fs::symlink(libraries().join(name), shadowed.path().join(name)).unwrap();
        if name != "libcublasLt.so.13" {
            std::os::unix::fs::symlink(libraries().join(name), missing.path().join(name)).unwrap();
        }
    }
    // Another one under the name without a version, which is looked for first.
    compile(&source("cublasLt.cpp"), shadowed.path(), "libcublasLt.so");
    for (folder, what) in [(&missing, "libcublasLt.so.13"), (&shadowed, "another cuBLASLt")] {
        let variables = [("LD_LIBRARY_PATH", folder.path().to_str().unwrap())];
        let output = onestep(&generate, &variables);
        let said = text(&output.stderr);
        assert!(output.status.success() && output.stdout == with.stdout, "{said}");
        let lines: Vec<&str> = said.lines().filter(|line| line.contains("cuBLASLt")).collect();
        assert!(lines.len() == 1 && lines[0].contains(what) && lines[0].contains("2 to 2.5 times"), "{said}");
    }
    let out = missing.path().join("bench");
    let only = "kernel/add_rmsnorm/forward";
    let bench = ["bench", "--quick", "--only", only, "--out", out.to_str().unwrap()];
    let output = onestep(&bench, &[("LD_LIBRARY_PATH", missing.path().to_str().unwrap())]);
    let (said, failed) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(1), "{said}{failed}");
    assert!(said.contains("no result without") && said.contains("cuBLASLt"), "{said}");
}

#[test]
fn separate_allocations_change_no_bit() {
    let generate = ["generate", "--model", MODEL, "--prompt", "Say x.", "run.device=cuda", "max_tokens=12"];
    let separate = [&generate[..], &["run.gpu_separate_allocations=true"]].concat();
    assert_eq!(text(&succeed(&separate).stdout), text(&succeed(&generate).stdout));
}
