//! `onestep bench` on the emulated GPU: its checks of ops and of whole models, with tiny shapes.

use crate::simt::Order;
use crate::support::gpu;
use onestep::bench::measure::Target;
use onestep::bench::record::Row;
use onestep::bench::{Options, run};

fn rows(only: &str, has_gemm: bool) -> Vec<Row> {
    let gpu = gpu(Order::Forward, 0, has_gemm);
    let out = tempfile::tempdir().unwrap();
    let options = Options { only: Some(only.into()), seconds: 1e9, quick: true };
    run(Target::gpu(&gpu), out.path(), &options).unwrap()
}

fn wrong(rows: &[Row]) -> Vec<String> {
    let text = |r: &Row| format!("{} {} {} {}: {}", r.suite, r.kernel, r.mode, r.shape, r.status);
    rows.iter().filter(|r| r.status != "checked" && r.suite != "ceiling").map(text).collect()
}

#[test]
fn every_op_agrees_with_the_oracle_and_whole_models_with_the_cpu() {
    for suite in ["correctness/", "parity/"] {
        let rows = rows(suite, true);
        assert!(rows.len() > 45, "{} rows", rows.len());
        let wrong = wrong(&rows);
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        let ceilings: Vec<&Row> = rows.iter().filter(|r| r.suite == "ceiling").collect();
        assert_eq!(ceilings.len(), 2);
        assert!(ceilings.iter().all(|r| r.status == "measured" && r.median.is_some_and(|t| t > 0.0)), "{ceilings:?}");
    }
}

#[test]
fn every_timed_row_runs() {
    let rows = [rows("kernel/", true), rows("model/", true)].concat();
    let bad: Vec<&Row> = rows.iter().filter(|r| !matches!(r.status.as_str(), "checked" | "measured")).collect();
    assert!(bad.is_empty(), "{bad:#?}");
    for row in rows.iter().filter(|r| matches!(r.suite.as_str(), "kernel" | "model") && r.kernel != "rollout") {
        assert!(row.median.is_some() && row.floor.is_some_and(|f| f > 0.0) && row.checked, "{row:?}");
    }
}

#[test]
fn a_device_without_the_vendors_library_has_no_ceiling_and_says_why() {
    let rows = rows("correctness/gemm", false);
    let gemm: Vec<&Row> = rows.iter().filter(|r| r.kernel == "gemm").collect();
    assert!(gemm.len() > 3 && gemm.iter().all(|r| r.is_wrong() && r.median.is_none()), "{gemm:#?}");
    assert!(gemm[0].status.contains("no library for matrix products"), "{}", gemm[0].status);
}

#[test]
fn times_without_the_vendors_library_are_no_result() {
    for only in ["kernel/", "model/"] {
        let rows = rows(only, false);
        let timed: Vec<&Row> = rows.iter().filter(|r| only.trim_end_matches('/') == r.suite).collect();
        assert!(timed.len() > 5, "{only}: {} rows", timed.len());
        for row in timed {
            assert!(row.is_wrong() && row.median.is_none() && row.tokens_per_second.is_none(), "{row:?}");
            assert!(row.status.contains("no result") && row.status.contains("made without a library"), "{row:?}");
        }
    }
}
