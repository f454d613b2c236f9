//! `onestep bench`: measures kernels and whole steps, or prints the table of an earlier bench. crate::bench does the
//! measuring.

use super::args::BenchArgs;
use super::session;
use crate::backend::cpu::Cpu;
use crate::backend::cuda::Cuda;
use crate::bench::measure::Target;
use crate::bench::{self, Options, table};
use crate::console::{errln, out, outln};
use crate::error::{Error, Result};
use crate::files::set_aside;
use crate::run::Device;
use std::path::Path;
use std::sync::Arc;

/// `onestep bench`
pub fn run(args: &BenchArgs) -> Result<()> {
    if let Some(folder) = &args.table {
        return print_table(folder);
    }
    let Some(out) = &args.out else {
        return Err(Error::usage("bench: where to? Give --out DIR, for example --all --out runs/bench"));
    };
    if !args.all && args.only.is_none() {
        return Err(Error::usage("bench: what? Give --all, or --only PATTERN, for example --only attention"));
    }
    let options = Options { only: args.only.clone(), seconds: args.seconds, quick: args.quick };
    let separate = format!("run.gpu_separate_allocations={}", args.separate_allocations);
    let config = session::settings(&[], &[format!("run.device={}", args.device), separate], "run")?;
    session::threads(&config)?;
    let ordinal = match config.run.device {
        Device::Cpu => None,
        Device::Auto => Some(0),
        Device::Cuda(ordinal) => Some(ordinal),
    };
    if ordinal.is_none() && !args.quick {
        return Err(Error::usage("bench --device cpu tries the bench itself; give --quick with it"));
    }
    let rows = match ordinal {
        None => {
            keep_earlier(out)?;
            bench::run(Target::host(&Cpu), out, &options)?
        }
        Some(ordinal) => {
            let gpu = Cuda::new(Arc::new(session::gpu(&config, ordinal, Some(out))?));
            keep_earlier(out)?;
            bench::run(Target::gpu(&gpu), out, &options)?
        }
    };
    out!("{}", bench::summary(&rows));
    outln!("rows written to {}", out.join("bench.jsonl").display());
    // Ceilings are measured whatever --only says: ceilings alone mean that it matched nothing.
    if let Some(only) = &args.only
        && rows.iter().all(|row| row.suite == "ceiling")
        && !only.contains("ceiling")
    {
        return Err(Error::usage(format!("--only {only}: no row's suite/kernel/mode/shape contains it")));
    }
    match rows.iter().filter(|row| row.is_wrong()).count() {
        0 => Ok(()),
        n => Err(Error::system(format!("{n} rows are wrong; see the lines with `wrong:` above"))),
    }
}

/// Renames the files of an earlier bench in `out` and prints a note for each.
fn keep_earlier(out: &Path) -> Result<()> {
    for name in ["bench.jsonl", "bench.csv", "machine.json"] {
        let path = out.join(name);
        if path.exists() {
            errln!("note: {} of an earlier bench is now {}", name, set_aside(&path)?.display());
        }
    }
    Ok(())
}

fn print_table(folder: &Path) -> Result<()> {
    let rows = table::rows(folder);
    let machine = std::fs::read_to_string(folder.join("machine.json")).unwrap_or_default();
    let machine: serde_json::Value = serde_json::from_str(&machine).unwrap_or_default();
    out!("{}", table::markdown(&rows, machine["device"].as_str().filter(|_| !rows.is_empty()))?);
    Ok(())
}
