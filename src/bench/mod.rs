//! Checks and times a GPU in one command: every kernel against the oracle, whole models against the CPU, then speed
//! beside its floor. Rows are written as they are made, most valuable first; a wrong kernel gets no time. Judges
//! nothing: a slow row is only a row.

pub mod compare;
pub mod end_to_end;
pub mod kernels;
pub mod measure;
pub mod ops;
pub mod parity;
pub mod plain;
pub mod record;
pub mod table;
pub mod work;

use crate::backend::cuda::device::{Gemm, Matrix};
use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor};
use end_to_end::{EndToEnd, bytes_needed};
use measure::{Method, Stopwatch, Target};
use ops::Case;
use record::{Ceilings, Cost, Recorder, Row, line, write_machine};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;
use work::{Sizes, Task, Work};

/// Settings of a bench run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Only rows whose `suite/kernel/mode/shape` contains this.
    pub only: Option<String>,
    /// Seconds after which no further row begins.
    pub seconds: f64,
    /// Tiny shapes and few repeats: shows that everything runs; its times mean nothing.
    pub quick: bool,
}

/// A run in progress.
struct Bench<'a> {
    target: Target<'a>,
    options: &'a Options,
    recorder: Recorder,
    watch: Stopwatch<'a>,
    start: Instant,
    cases: Vec<Case>,
    /// Whether all cases of each kernel and mode were right.
    right: BTreeMap<(&'static str, &'static str), bool>,
    ceilings: Option<Ceilings>,
    sheet: Option<Ceilings>,
    free_at_start: usize,
}

const KERNEL: Method = Method { seconds: 0.4, fewest: 5, most: 100, warmups: 3 };
const MODEL: Method = Method { seconds: 6.0, fewest: 3, most: 50, warmups: 3 };
const ROLLOUT: Method = Method { seconds: 6.0, fewest: 2, most: 5, warmups: 1 };
const QUICK: Method = Method { seconds: 0.0, fewest: 2, most: 2, warmups: 1 };

/// Runs everything and returns the rows. Error: the folder cannot be written; a wrong row is no error.
pub fn run(target: Target, folder: &Path, options: &Options) -> Result<Vec<Row>> {
    let recorder = Recorder::create(folder)?;
    write_machine(folder, &target, options.seconds)?;
    let sizes = if options.quick { Sizes::tiny()? } else { Sizes::of("qwen2.5-7b")? };
    let free_at_start = target.memory()?.0;
    let mut bench = Bench {
        target,
        options,
        recorder,
        watch: Stopwatch::new(target, sizes.flush)?,
        start: Instant::now(),
        cases: ops::cases(!options.quick),
        right: BTreeMap::new(),
        ceilings: None,
        sheet: Ceilings::datasheet(&target.name()),
        free_at_start,
    };
    bench.correctness()?;
    bench.parity()?;
    bench.ceilings(&sizes)?;
    for work in work::kernels(&sizes) {
        bench.kernel(&work)?;
    }
    bench.models(sizes)?;
    target.backend.keep_choices()?;
    Ok(bench.recorder.rows)
}

/// Summarises the rows: what was checked, what is wrong, what was measured.
pub fn summary(rows: &[Row]) -> String {
    let count = |suite: &str, wanted: fn(&Row) -> bool| rows.iter().filter(|r| r.suite == suite && wanted(r)).count();
    let mut text = String::new();
    for suite in ["correctness", "parity"] {
        let (right, all) =
            (count(suite, |r| r.status == "checked"), count(suite, |r| !r.status.starts_with("not run")));
        text += &format!("{suite}: {right} of {all} right\n");
    }
    for row in rows.iter().filter(|r| r.is_wrong() || matches!(r.suite.as_str(), "ceiling" | "kernel" | "model")) {
        text += &line(row);
        text.push('\n');
    }
    text
}

impl Bench<'_> {
    fn wants(&self, suite: &str, kernel: &str, mode: &str, shape: &str) -> bool {
        let name = format!("{suite}/{kernel}/{mode}/{shape}");
        self.options.only.as_ref().is_none_or(|only| name.contains(only.as_str()))
    }

    fn row(&self, suite: &str, kernel: &str, mode: &str, shape: &str) -> Row {
        Row {
            suite: suite.into(),
            kernel: kernel.into(),
            provider: "ours".into(),
            mode: mode.into(),
            shape: shape.into(),
            dtype: self.target.dtype(),
            ..Row::default()
        }
    }

    /// Whether the time budget is used up; if so, adds `row` with a status that says it.
    fn is_late(&mut self, row: &Row) -> Result<bool> {
        let late = self.start.elapsed().as_secs_f64() > self.options.seconds;
        if late {
            let status = format!("not run: the {} seconds were used up", self.options.seconds);
            self.recorder.add(Row { status, ..row.clone() })?;
        }
        Ok(late)
    }

    fn check(&mut self, index: usize) -> Result<()> {
        let case = &self.cases[index];
        let row = self.row("correctness", case.kernel, case.mode, &case.shape);
        let key = (case.kernel, case.mode);
        if self.is_late(&row)? {
            return Ok(());
        }
        let case = &self.cases[index];
        let verdict = compare::check(self.target.backend, self.target.device(), case.rounded, &case.op);
        let checked = verdict.problem.is_none();
        *self.right.entry(key).or_insert(true) &= checked;
        let status = verdict.problem.map_or("checked".into(), |problem| format!("wrong: {problem}"));
        let measured = verdict.allowance > 0.0;
        let (error, allowance) = (measured.then_some(verdict.error), measured.then_some(verdict.allowance));
        self.recorder.add(Row { status, checked, error, allowance, ..row })
    }

    /// Checks every op against the oracle.
    fn correctness(&mut self) -> Result<()> {
        for index in 0..self.cases.len() {
            let case = &self.cases[index];
            if self.wants("correctness", case.kernel, case.mode, &case.shape) {
                self.check(index)?;
            }
        }
        Ok(())
    }

    /// Whether a kernel agrees with the oracle; checks it when that has not been done.
    fn is_right(&mut self, kernel: &'static str, mode: &'static str) -> Result<bool> {
        for index in 0..self.cases.len() {
            let case = &self.cases[index];
            if (case.kernel, case.mode) == (kernel, mode) && !self.right.contains_key(&(kernel, mode)) {
                let all: Vec<usize> = (index..self.cases.len())
                    .filter(|&i| (self.cases[i].kernel, self.cases[i].mode) == (kernel, mode))
                    .collect();
                all.into_iter().try_for_each(|i| self.check(i))?;
            }
        }
        Ok(self.right.get(&(kernel, mode)).copied().unwrap_or(false))
    }

    /// Compares whole models with the CPU.
    fn parity(&mut self) -> Result<()> {
        let large = !self.options.quick;
        for (name, config) in parity::shapes(large) {
            if !self.wants("parity", name, "full", "") {
                continue;
            }
            let row = self.row("parity", name, "full", "");
            if self.is_late(&row)? {
                continue;
            }
            match parity::compare(&self.target, &config, large) {
                Err(e) => self.recorder.add(Row { status: format!("wrong: {e}"), ..row })?,
                Ok(findings) => {
                    for f in findings {
                        let checked = f.error <= f.allowance && f.allowance.is_finite();
                        let status =
                            if checked { "checked".into() } else { "wrong: off by more than allowed".to_string() };
                        let note = format!("a plain bf16 computation is off by {:.2e}", f.plain);
                        let (error, allowance) = (Some(f.error), Some(f.allowance));
                        self.recorder.add(Row {
                            shape: f.what,
                            status,
                            checked,
                            error,
                            allowance,
                            note,
                            ..row.clone()
                        })?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Reason not to time anything on this device: it lacks the vendor's library for matrix products.
    fn refusal(&self) -> Option<String> {
        let missing = self.target.device()?.gemm_library().err()?;
        Some(format!("wrong: not timed, as no result without the vendor's matrix products: {missing}"))
    }

    /// Times a step, or returns a row that says why not.
    fn time(
        &mut self,
        row: Row,
        (cost, runs): (&Cost, usize),
        method: Method,
        step: Result<kernels::Step>,
        uses_ceilings: bool,
    ) -> Result<Row> {
        let method = if self.options.quick { QUICK } else { method };
        let times = step.and_then(|mut step| {
            let times = self.watch.measure(method, &mut *step)?.of_one(runs);
            Ok((times, self.target.memory()?.0))
        });
        Ok(match times {
            Err(e) => Row { status: format!("wrong: {e}"), ..row },
            Ok((times, free)) => {
                let has_floor = uses_ceilings && cost.flops + cost.bytes > 0.0;
                let ceilings = |c: Option<Ceilings>| c.filter(|_| has_floor);
                let used = self.free_at_start.saturating_sub(free);
                let memory_gb = (self.target.device().is_some() && used > 0).then_some(used as f64 / 1e9);
                let row = Row { memory_gb, checked: true, ..row };
                row.timed(&times, cost, ceilings(self.ceilings), ceilings(self.sheet))
            }
        })
    }

    /// Measures the device's ceilings: a large product by the vendor's library, and a copy.
    fn ceilings(&mut self, sizes: &Sizes) -> Result<()> {
        let (n, bytes) = sizes.ceiling;
        let (target, sheet) = (self.target, self.sheet);
        let Some(device) = target.device() else {
            let row = self.row("ceiling", "gemm", "full", "");
            return self.recorder.add(Row { status: "not run: no device".into(), ..row });
        };
        let share = |row: Row, per_second: f64, most: Option<f64>| Row {
            share_of_datasheet: most.map(|most| per_second / most),
            ..row
        };
        let product = || -> Result<kernels::Step> {
            let (a, b) = (target.normal(&[n, n], 1.0, 1)?, target.normal(&[n, n], 1.0, 2)?);
            let c = target.backend.alloc(&[n, n], target.backend.activation())?;
            let matrix = |t: &Tensor| {
                let address = t.device_address().ok_or_else(|| Error::system("a tensor that is not on the device"))?;
                Ok::<_, Error>(Matrix { address, stride: n, dtype: t.dtype() })
            };
            let (ma, mb, mc) = (matrix(&a)?, matrix(&b)?, matrix(&c)?);
            let (transpose_a, transpose_b, alpha, beta) = (false, true, 1.0, 0.0);
            let gemm = Gemm { m: n, n, k: n, a: ma, transpose_a, b: mb, transpose_b, c: mc, alpha, beta };
            Ok(Box::new(move || {
                let _keep = (&a, &b, &c); // the product works on their addresses
                match device.gemm(&gemm)? {
                    true => Ok(()),
                    false => Err(Error::system("the device has no library for matrix products")),
                }
            }))
        };
        let row = self.row("ceiling", "gemm", "full", &format!("M N K {n}"));
        let right = self.is_right("gemm", "full")?;
        let cost = Cost { flops: 2.0 * (n as f64).powi(3), ..Cost::default() };
        let gemm = match right {
            true => self.time(row, (&cost, 1), KERNEL, product(), false)?,
            false => Row { status: "wrong: does not agree with the oracle, so it is not timed".into(), ..row },
        };
        let flops = gemm.tflops.map(|t| t * 1e12);
        self.recorder.add(share(gemm, flops.unwrap_or(0.0), sheet.map(|s| s.flops).filter(|_| flops.is_some())))?;

        let copy = || -> Result<kernels::Step> {
            let from = target.random(&[bytes / 4], DType::F32, 1.0, 3)?;
            let mut to = target.backend.alloc(&[bytes / 4], DType::F32)?;
            Ok(Box::new(move || target.backend.copy(&from, &mut to)))
        };
        let row = self.row("ceiling", "copy", "full", &format!("{} MiB", bytes >> 20));
        let cost = Cost { bytes: 2.0 * bytes as f64, ..Cost::default() };
        let copied = self.time(row, (&cost, 1), KERNEL, copy(), false)?;
        let rate = copied.gbps.map(|g| g * 1e9);
        self.recorder.add(share(copied, rate.unwrap_or(0.0), sheet.map(|s| s.bytes).filter(|_| rate.is_some())))?;
        self.ceilings = flops.zip(rate).map(|(flops, bytes)| Ceilings { flops, bytes });
        Ok(())
    }

    fn kernel(&mut self, work: &Work) -> Result<()> {
        if !self.wants(work.suite, work.kernel, work.mode, &work.shape) {
            return Ok(());
        }
        let row = self.row(work.suite, work.kernel, work.mode, &work.shape);
        if self.is_late(&row)? {
            return Ok(());
        }
        let right = self.is_right(work.kernel, work.mode)?;
        if self.is_late(&row)? {
            return Ok(());
        }
        if let Some(status) = self.refusal() {
            return self.recorder.add(Row { status, ..row });
        }
        let row = match right {
            true => self.time(row, (&work.cost, work.runs), KERNEL, kernels::prepare(self.target, work), true)?,
            false => Row { status: "wrong: does not agree with the oracle, so it is not timed".into(), ..row },
        };
        self.recorder.add(row)
    }

    /// Runs the rows of the largest model that can be trained here.
    fn models(&mut self, sizes: Sizes) -> Result<()> {
        let smaller = if self.options.quick { &[][..] } else { &["qwen2.5-1.5b", "qwen2.5-0.5b"][..] };
        let mut candidates = vec![sizes];
        for name in smaller {
            candidates.push(Sizes::of(name)?);
        }
        for sizes in candidates {
            let works = work::models(&sizes);
            let wanted: Vec<&Work> = works.iter().filter(|w| self.wants(w.suite, w.kernel, w.mode, &w.shape)).collect();
            let Some(least) = wanted.iter().map(|w| bytes_needed(&sizes, &w.task)).min_by(f64::total_cmp) else {
                continue;
            };
            let training = bytes_needed(&sizes, &Task::Sft { t: sizes.tokens[0] });
            let free = self.target.memory()?.0 as f64;
            if least.max(training) > free {
                for work in wanted {
                    self.too_large(work, bytes_needed(&sizes, &work.task), free)?;
                }
                continue;
            }
            return self.model(&sizes, &wanted);
        }
        Ok(())
    }

    fn too_large(&mut self, work: &Work, needed: f64, free: f64) -> Result<()> {
        let row = self.row(work.suite, work.kernel, work.mode, &work.shape);
        let status = format!("not run: needs {:.1} GB, has {:.1} GB", needed / 1e9, free / 1e9);
        self.recorder.add(Row { status, ..row })
    }

    fn model(&mut self, sizes: &Sizes, wanted: &[&Work]) -> Result<()> {
        let free = self.target.memory()?.0 as f64;
        let mut made = None;
        for work in wanted {
            let row = self.row(work.suite, work.kernel, work.mode, &work.shape);
            if self.is_late(&row)? {
                continue;
            }
            if let Some(status) = self.refusal() {
                self.recorder.add(Row { status, ..row })?;
                continue;
            }
            let needed = bytes_needed(sizes, &work.task);
            if needed > free {
                self.too_large(work, needed, free)?;
                continue;
            }
            let model = match &mut made {
                Some(model) => model,
                None => match EndToEnd::new(self.target, sizes) {
                    Ok(model) => made.insert(model),
                    Err(e) => {
                        return self.recorder.add(Row { status: format!("wrong: making the weights: {e}"), ..row });
                    }
                },
            };
            let method = match work.task {
                Task::Sft { .. } | Task::RaggedSft { .. } | Task::Decode { .. } => MODEL,
                _ => ROLLOUT,
            };
            let mut row = self.time(row, (&work.cost, work.runs), method, model.prepare(work), true)?;
            let findings = model.findings.borrow().clone();
            row.note = findings.note;
            if let Some((error, allowance)) = findings.error {
                (row.error, row.allowance) = (Some(error).filter(|e| e.is_finite()), Some(allowance));
                if row.median.is_some() && error > allowance {
                    let status = format!("wrong: {}", row.note);
                    row = Row { status, checked: false, median: None, tokens_per_second: None, ..row };
                }
            }
            self.recorder.add(row)?;
        }
        Ok(())
    }
}
