//! `onestep bench`: what its rows, floors, checks and table are; the whole of it, tiny, on the CPU. Times mean nothing here.
#![allow(clippy::unwrap_used)]

use onestep::backend::cpu::Cpu;
use onestep::bench::compare::{Draw, Op, Output, allowance, check, error};
use onestep::bench::end_to_end::{EndToEnd, bytes_needed};
use onestep::bench::measure::{Target, Times};
use onestep::bench::plain::Plain;
use onestep::bench::record::{Bar, Ceilings, Cost, Recorder, Row, date, read};
use onestep::bench::work::{self, Sizes, Task};
use onestep::bench::{Options, parity, run, table};
use onestep::error::Result;
use std::cell::Cell;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, UNIX_EPOCH};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn quantiles_dates_and_datasheets() {
    let times = Times::of(vec![4.0, 1.0, 3.0, 2.0, 5.0]).unwrap();
    assert_eq!((times.median, times.repeats), (3.0, 5));
    assert!((times.p20 - 1.8).abs() < 1e-12 && (times.p80 - 4.2).abs() < 1e-12, "{times:?}");
    assert!(Times::of(vec![]).is_none());
    assert_eq!(date(UNIX_EPOCH + Duration::from_secs(1_709_210_096)), "2024-02-29T12:34:56Z");
    assert_eq!(date(UNIX_EPOCH + Duration::from_secs(1_767_225_599)), "2025-12-31T23:59:59Z");
    let sheet = |name| Ceilings::datasheet(name).map(|c| (c.flops / 1e12, c.bytes / 1e12));
    assert_eq!(sheet("NVIDIA H200"), Some((989.0, 4.8)));
    assert_eq!(sheet("NVIDIA H100 80GB HBM3"), Some((989.0, 3.35)));
    assert_eq!(sheet("NVIDIA H100 PCIe"), Some((756.0, 2.0)));
    assert_eq!(sheet("NVIDIA A100-SXM4-80GB"), Some((312.0, 2.0)));
    assert_eq!(sheet("NVIDIA L4"), Some((121.0, 0.3)));
    assert_eq!(sheet("SIMT emulation"), None);
}

/// The figures of the performance page for one H200, from the costs of the rows.
#[test]
fn floors_are_those_that_were_derived_by_hand() {
    let sizes = Sizes::of("qwen2.5-7b").unwrap();
    let models = work::models(&sizes);
    let speed = |wanted: &str| {
        let work = models.iter().find(|w| format!("{} {}", w.kernel, w.shape).contains(wanted)).unwrap();
        work.cost.tokens / work.cost.floor(&Ceilings::H200)
    };
    let expected = [
        ("lora sft", 25.2e3),
        ("batch 1, context 4096", 299.0),
        ("batch 64, context 4096", 9433.0),
        ("batch 256, context 4096", 13_789.0),
    ];
    for (name, tokens) in expected {
        assert!((speed(name) / tokens - 1.0).abs() < 0.005, "{name}: {} against {tokens}", speed(name));
    }
    let shapes = work::adapter_shapes(&sizes.model.1, 16);
    let megabytes = 4e-6 * shapes.iter().map(|s| s[0] * s[1]).sum::<usize>() as f64;
    assert!((megabytes - 161.0).abs() < 1.0, "{megabytes}");
    let needed = |task: &Task| bytes_needed(&sizes, task) / 1e9;
    assert!((30.0..50.0).contains(&needed(&Task::Sft { t: 4096 })));
    assert!((77.0..82.0).contains(&needed(&Task::Decode { b: 256, context: 4096 })), "weights 15.2 and a cache of 62");
}

#[test]
fn rows_say_what_follows_from_times_and_work() {
    let times = Times::of(vec![2e-3; 3]).unwrap();
    let cost = Cost { flops: 1e12, bytes: 1e9, bar: Some(Bar::Tflops(400.0)), ..Cost::default() };
    let measured = Ceilings { flops: 800e12, bytes: 4e12 };
    let row = Row::default().timed(&times, &cost, Some(measured), Some(Ceilings { flops: 1e15, ..measured }));
    assert_eq!((row.tflops, row.gbps, row.floor), (Some(500.0), Some(500.0), Some(1.25e-3)));
    assert_eq!((row.share_of_measured, row.share_of_datasheet), (Some(0.625), Some(0.5)));
    assert_eq!((row.bar, row.bar_unit.as_str(), row.reached), (Some(400.0), "TFLOP/s", Some(true)));
    let cost = Cost { bytes: 4e9, further_bytes: 2e9, bar: Some(Bar::OfFloor(0.9)), ..Cost::default() };
    let row = Row::default().timed(&times, &cost, Some(measured), None);
    assert_eq!((row.floor, row.reached, row.share_of_datasheet), (Some(1.5e-3), Some(false), None));
    // Without a ceiling there is no floor, and a bar of floors says nothing.
    let row = Row::default().timed(&times, &cost, None, None);
    assert_eq!((row.floor, row.reached), (None, None));
}

#[test]
fn rows_are_in_the_files_as_soon_as_they_are_made() {
    let dir = tempfile::tempdir().unwrap();
    let mut recorder = Recorder::create(dir.path()).unwrap();
    let first = Row { kernel: "a".into(), status: "wrong: 1, \"2\"\n3".into(), median: Some(0.25), ..Row::default() };
    recorder.add(first.clone()).unwrap();
    let path = dir.path().join("bench.jsonl");
    assert_eq!(read(&path), vec![first.clone()]);
    recorder.add(Row { kernel: "b".into(), ..Row::default() }).unwrap();
    let csv = std::fs::read_to_string(dir.path().join("bench.csv")).unwrap();
    assert_eq!(csv.lines().count(), 3, "{csv}");
    assert!(csv.lines().nth(1).unwrap().contains("\"wrong: 1, \"\"2\"\" 3\",false"), "{csv}");
    assert_eq!(csv.lines().next().unwrap().split(',').count(), csv.lines().nth(2).unwrap().split(',').count());
    // A cut-off last line is left out.
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, &text[..text.len() - 9]).unwrap();
    assert_eq!(read(&path), vec![first]);
    assert!(read(&dir.path().join("nothing")).is_empty());
}

/// Twice a vector, computed by the backend under test with `fault` on top.
fn doubled(fault: impl Fn(&mut Vec<f64>) + 'static) -> Op {
    Box::new(move |d: &mut Draw| -> Result<Vec<Output>> {
        let mut values: Vec<f64> = d.values(50, 1.0).iter().map(|x| 2.0 * f64::from(*x)).collect();
        if d.backend.name() == "cpu" {
            fault(&mut values);
        }
        Ok(vec![Output::Values(values)])
    })
}

#[test]
fn wrong_results_are_found() {
    let problem = |op: Op| check(&Cpu, None, 0, &op).problem;
    assert_eq!(problem(doubled(|_| ())), None);
    assert!(problem(doubled(|v| v[7] += 1e-3)).unwrap().contains("is off by"));
    assert!(problem(doubled(|v| v[7] = f64::NAN)).unwrap().contains("not finite"));
    assert!(problem(doubled(|v| v.truncate(49))).unwrap().contains("is off by inf"));
    let runs = Cell::new(0.0);
    let other = problem(doubled(move |v| {
        runs.set(runs.get() + 1e-9);
        v[0] += runs.get();
    }));
    assert!(other.unwrap().contains("differs between two runs"));
    let zero: Op = Box::new(|_| Ok(vec![Output::Values(vec![0.0; 3])]));
    assert!(problem(zero).unwrap().contains("shows nothing"));
    assert_eq!(error(&[1.0, f64::NAN], &[1.0, 1.0]), f64::INFINITY);
    // Twice the plain error and two roundings of half a unit in the last place; 16 f32 units more.
    assert!((allowance(0.01, 2, 4.0) - (0.02 + 4.0 / 128.0)).abs() < 1e-5);
}

#[test]
fn the_plain_bf16_computation_is_a_yardstick_and_a_wrong_model_is_beyond_it() {
    for (name, config) in parity::shapes(false) {
        let plain = Plain::new();
        let findings = parity::compare(&Target::host(&plain), &config, false).unwrap();
        assert_eq!(findings.len(), 2 + config.layers * 14);
        for f in &findings {
            assert!(f.error == f.plain && f.plain < 0.05, "{name} {}: {}", f.what, f.plain);
            assert!(f.plain > 1e-4 || f.what == "loss", "{name} {}: {} is no rounding error", f.what, f.plain);
        }
        // Another base of the rotary embedding: gradients of queries are beyond the allowance.
        let mut other = config.clone();
        other.rope.theta *= 3.0;
        let (right, wrong) = (parity::answer(&Cpu, &config, 9).unwrap(), parity::answer(&Cpu, &other, 9).unwrap());
        let (exact, found) = (&right.gradients[0].1, &wrong.gradients[0].1);
        let largest = exact.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
        let q = findings.iter().find(|f| f.what.contains("0.self_attn.q_proj.lora_A")).unwrap();
        assert!(error(found, exact) / largest > q.allowance, "{name}");
    }
}

/// The shapes that a real GPU is checked with, on the CPU.
#[test]
fn the_large_cases_are_right_on_the_cpu() {
    for case in onestep::bench::ops::cases(true) {
        let verdict = check(&Cpu, None, case.rounded, &case.op);
        assert_eq!(verdict.problem, None, "{} {} {}", case.kernel, case.mode, case.shape);
    }
    for (name, config) in parity::shapes(true) {
        let plain = Plain::new();
        for f in parity::compare(&Target::host(&plain), &config, true).unwrap() {
            assert!(f.plain < 0.1, "{name} {}: {}", f.what, f.plain);
        }
    }
}

/// All suites on the CPU, tiny: every row is there and right, and the files hold what was returned.
#[test]
fn the_whole_bench_runs_on_the_cpu() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { only: None, seconds: 1e9, quick: true };
    let rows = run(Target::host(&Cpu), dir.path(), &options).unwrap();
    assert_eq!(read(&dir.path().join("bench.jsonl")), rows);
    let wrong: Vec<&Row> = rows.iter().filter(|r| r.is_wrong()).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    let sizes = Sizes::tiny().unwrap();
    for work in work::kernels(&sizes).iter().chain(&work::models(&sizes)) {
        let row = rows
            .iter()
            .find(|r| (r.kernel.as_str(), r.mode.as_str(), &r.shape) == (work.kernel, work.mode, &work.shape));
        let row = row.unwrap_or_else(|| panic!("{} {}", work.kernel, work.shape));
        assert!(row.status == "measured" && row.checked && row.median.unwrap() > 0.0, "{row:?}");
    }
    let machine: serde_json::Value =
        serde_json::from_slice(&std::fs::read(dir.path().join("machine.json")).unwrap()).unwrap();
    assert_eq!(machine["device"], "cpu");
    assert!(machine["date"].as_str().unwrap().starts_with("20") && machine["commit"].is_string());
    // Without time, every row says so.
    let late = run(Target::host(&Cpu), dir.path(), &Options { seconds: 1e-9, ..options }).unwrap();
    assert!(late.iter().all(|r| r.status.starts_with("not run")) && late.len() > 80, "{}", late.len());
}

/// A step that is timed also trains: its loss starts where random weights put it and falls.
#[test]
fn a_timed_training_step_trains() {
    let sizes = Sizes::tiny().unwrap();
    let mut model = EndToEnd::new(Target::host(&Cpu), &sizes).unwrap();
    let work = &work::models(&sizes)[0];
    let mut step = model.prepare(work).unwrap();
    (0..12).for_each(|_| step().unwrap());
    drop(step);
    let findings = model.findings.borrow().clone();
    let (error, allowance) = findings.error.unwrap();
    assert!(error < 0.2 && allowance == 0.5 && findings.note.contains("in 12 steps"), "{error} {}", findings.note);
}

fn onestep(args: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_onestep")).args(args).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).to_string();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn the_verb_says_what_is_wrong_with_what_was_typed() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("new").display().to_string();
    for (args, part) in [
        (&["bench"][..], "--out DIR"),
        (&["bench", "--out", &out], "--all"),
        (&["bench", "--all", "--device", "cpu", "--out", &out], "--quick"),
        (&["bench", "--all", "--seconds", "0", "--out", &out], "480"),
        (&["bench", "--only", "no such row", "--device", "cpu", "--quick", "--out", &out], "no such row"),
    ] {
        let (code, _, stderr) = onestep(args);
        assert!(code == 2 && stderr.contains(part), "{args:?}: {code} {stderr}");
    }
    let (code, stdout, stderr) = onestep(&["bench", "--only", "swiglu", "--device", "cpu", "--quick", "--out", &out]);
    assert!(code == 0 && stdout.contains("correctness: 4 of 4 right"), "{code} {stdout} {stderr}");
}

#[test]
fn the_table_is_made_from_rows_and_says_what_was_not_measured() {
    let sizes = Sizes::of("qwen2.5-7b").unwrap();
    let empty = table::markdown(&[], None).unwrap();
    let lines: Vec<&str> = empty.lines().filter(|l| l.contains("forward") || l.contains("full")).collect();
    assert!(lines.len() > 10 && lines.iter().all(|l| l.contains("| not measured | - |")), "{empty}");
    assert!(empty.contains("| 25159 tok/s | 17000 tok/s |"), "{empty}");
    let sft = &work::models(&sizes)[0];
    let base = Row {
        suite: "model".into(),
        kernel: sft.kernel.into(),
        mode: sft.mode.into(),
        shape: sft.shape.clone(),
        ..Row::default()
    };
    let ours = |median| Row {
        provider: "ours".into(),
        status: "measured".into(),
        median: Some(median),
        floor: Some(0.16),
        ..base.clone()
    };
    let peer = Row { provider: "torch".into(), status: "measured".into(), median: Some(0.5), ..base.clone() };
    let gone = Row { provider: "liger".into(), status: "not run: liger is not installed".into(), ..base.clone() };
    // Ours before and after the peers: the mean of both.
    let text = table::markdown(&[ours(0.19), ours(0.21), peer, gone.clone()], Some("NVIDIA H200")).unwrap();
    assert!(text.contains("one NVIDIA H200"));
    let line = text.lines().find(|l| l.contains("lora sft")).unwrap();
    assert!(line.contains("| 20480 tok/s | 80 % |") && line.contains("torch 8192 tok/s, 2.50x our time"), "{line}");
    let text = table::markdown(&[gone], None).unwrap();
    assert!(text.lines().any(|l| l.contains("lora sft") && l.contains("liger is not installed")), "{text}");
}

/// The table of docs/gpu.md is what the command prints for the committed results.
#[test]
fn the_page_has_the_table_as_the_command_prints_it() {
    let page = std::fs::read_to_string(root().join("docs/gpu.md")).unwrap();
    let (start, end) = table::MARKERS;
    let found = page.split_once(start).and_then(|(_, rest)| rest.split_once(end)).unwrap().0;
    let folder = root().join("benches/results/gpu");
    let (code, printed, _) = onestep(&["bench", "--table", folder.to_str().unwrap()]);
    assert_eq!((code, found.trim()), (0, printed.trim()), "run: onestep bench --table benches/results/gpu");
}

/// The peers measure the same works under the same names, so that the table finds them.
#[test]
fn the_peers_name_their_rows_as_ours() {
    let script = root().join("benches/peers/gpu/peers.py");
    let output = Command::new("python3").arg("-B").arg(&script).arg("--list").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let sizes = Sizes::of("qwen2.5-7b").unwrap();
    let name = |w: &work::Work| format!("{}/{}/{}/{}/", w.suite, w.kernel, w.mode, w.shape);
    let ours: BTreeSet<String> = work::kernels(&sizes).iter().chain(&work::models(&sizes)).map(name).collect();
    let text = String::from_utf8_lossy(&output.stdout).to_string();
    let strangers: Vec<&str> = text
        .lines()
        .filter(|line| !line.starts_with("ceiling/") && !ours.iter().any(|o| line.starts_with(o)))
        .collect();
    // Liger's one pass does both directions.
    assert!(strangers.iter().all(|s| s.starts_with("kernel/linear_logprob/full/")), "{strangers:#?}");
    assert!(text.lines().count() > 50);
    assert!(
        !Command::new("python3").arg("-B").arg(&script).args(["--ceilings", "3"]).output().unwrap().status.success()
    );
}
