//! The verbs about this machine: doctor, kernels.

use super::args::{KernelsArgs, KernelsCommand};
use super::session;
use crate::backend::cuda::compiler::{self, ARCHS, Compiler, Resources};
use crate::backend::cuda::kernels::{self, SOURCES};
use crate::backend::cuda::library::{self, Name};
use crate::backend::cuda::ready;
use crate::console::{errln, outln};
use crate::error::{Error, Result};
use crate::files::write_whole;
use crate::sandbox::Python;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// `onestep doctor`: prints what was found where, and what to do about what is missing. Error: there is no cache
/// folder.
pub fn doctor() -> Result<()> {
    say("onestep", env!("CARGO_PKG_VERSION"));
    say("CPU", &cpu());
    let driver = library::driver_version();
    for name in Name::ALL {
        let found = match library::places().open(name, driver) {
            Ok(library) => {
                let what = if name == Name::Driver { "runs CUDA" } else { "version" };
                format!("{what} {}: {} ({})", library.version, library.path.display(), library.origin)
            }
            Err(why) => why.to_string(),
        };
        say(&name.to_string(), &found);
    }
    match ready::probe() {
        Err(_) if driver.is_none() => say("GPU", "none without a driver"),
        Err(why) => say("GPU", &why.to_string()),
        Ok(gpus) => {
            for gpu in gpus {
                let (major, minor) = gpu.capability;
                let label = format!("cuda:{}", gpu.index);
                let (memory, arch, sms) = (gpu.memory as f64 / 1e9, gpu.arch(), gpu.multiprocessors);
                let old = if gpu.is_supported() { "" } else { "; too old: the kernels need 8.0" };
                say(
                    &label,
                    &format!(
                        "{}, compute capability {major}.{minor} ({arch}), {memory:.1} GB, {sms} SMs{old}",
                        gpu.name
                    ),
                );
            }
        }
    }
    let cache = session::cache()?;
    let cubins = compiler::count(&cache.join("kernels"));
    say("cache", &format!("{} ({cubins} compiled kernel files)", cache.display()));
    // Not an error: training on given data needs no Python.
    match Python::base() {
        Ok((path, [major, minor, patch])) => {
            say("Python", &format!("{major}.{minor}.{patch}: {} (for the tasks)", path.display()))
        }
        Err(why) => say("Python", &format!("missing: {why}")),
    }
    Ok(())
}

fn say(name: &str, text: &str) {
    outln!("{name:<12} {text}");
}

fn cpu() -> String {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut features = vec![];
    #[cfg(target_arch = "x86_64")]
    {
        for (name, has) in [
            ("AVX2", std::arch::is_x86_feature_detected!("avx2")),
            ("FMA", std::arch::is_x86_feature_detected!("fma")),
            ("AVX-512", std::arch::is_x86_feature_detected!("avx512f")),
        ] {
            features.extend(has.then_some(name));
        }
    }
    format!("{}, {threads} threads, {}", crate::machine::cpu_model(), features.join(" "))
}

/// `onestep kernels ...`
pub fn kernels(command: &KernelsCommand) -> Result<()> {
    match command {
        KernelsCommand::List => {
            for (stem, source) in SOURCES {
                kernels::names(source).for_each(|name| outln!("{stem:<20} {name}"));
            }
            Ok(())
        }
        KernelsCommand::Compile { args } => {
            let (_, rows) = compile(args)?;
            show(&rows);
            Ok(())
        }
        KernelsCommand::Table { out, args } => {
            let (compiler, rows) = compile(args)?;
            write_whole(out, compiler::table(compiler.version()?, &rows).as_bytes())?;
            outln!("{} rows written to {}", rows.len(), out.display());
            Ok(())
        }
    }
}

/// Compiles every source for every architecture and prints a line for each.
fn compile(args: &KernelsArgs) -> Result<(Compiler, Vec<Resources>)> {
    let archs: Vec<&str> = match args.arch.is_empty() {
        true => ARCHS.to_vec(),
        false => args.arch.iter().map(String::as_str).collect(),
    };
    for arch in &archs {
        let digits = arch.strip_prefix("sm_").map(|rest| rest.trim_end_matches(['a', 'f']));
        if !digits.is_some_and(|digits| digits.len() >= 2 && digits.bytes().all(|b| b.is_ascii_digit())) {
            return Err(Error::usage(format!("--arch {arch}: expected an architecture such as {}", ARCHS.join(", "))));
        }
    }
    let folder: PathBuf = args.cache.clone().map_or_else(|| Ok(session::cache()?.join("kernels")), Ok)?;
    let compiler = Compiler::new(folder.clone());
    let mut rows = vec![];
    for arch in archs {
        for (stem, _) in SOURCES {
            let compiled = compiler.compile(stem, arch)?;
            let took = compiled.took.map_or("kept".to_string(), |took| format!("{:.2} s", took.as_secs_f64()));
            errln!("{arch:<8} {stem:<20} {:>7} bytes  {took}", compiled.cubin.len());
            rows.extend(compiler::parse(stem, arch, &compiled.log));
        }
    }
    errln!("{} files in {}", compiler::count(&folder), folder.display());
    Ok((compiler, rows))
}

/// Prints a line per kernel (registers per thread on each architecture, shared memory per block), then the kernels that
/// use a stack or spill.
fn show(rows: &[Resources]) {
    let mut archs: Vec<&str> = vec![];
    let mut lines: BTreeMap<(&str, &str), Vec<&Resources>> = BTreeMap::new();
    for row in rows {
        if !archs.contains(&row.arch.as_str()) {
            archs.push(&row.arch);
        }
        lines.entry((&row.file, &row.kernel)).or_default().push(row);
    }
    let head: String = archs.iter().map(|arch| format!("{arch:>9}")).collect();
    outln!("{:<20} {:<36} {:>7}  registers{head}", "file", "kernel", "shared");
    for ((file, kernel), row) in &lines {
        let registers: String = row.iter().map(|r| format!("{:>9}", r.registers)).collect();
        let shared = row.iter().map(|r| r.shared).max().unwrap_or(0);
        outln!("{file:<20} {kernel:<36} {shared:>7}           {registers}");
    }
    for r in rows.iter().filter(|r| r.stack + r.spill_stores + r.spill_loads > 0) {
        outln!(
            "{} on {}: {} bytes of stack, {} spilled, {} read back",
            r.kernel,
            r.arch,
            r.stack,
            r.spill_stores,
            r.spill_loads
        );
    }
}
