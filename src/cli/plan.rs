//! `onestep plan`: prints the memory and time that a run would take, before anything is loaded.

use super::args::{DeviceKind, PlanArgs, PlannedWork};
use super::given::Given;
use super::session;
use crate::checkpoint;
use crate::config::Config;
use crate::console::{errln, out, outln};
use crate::error::{Error, Result};
use crate::model::config::ModelConfig;
use crate::model::shapes;
use crate::plan::floors::Peaks;
use crate::plan::{Kind, Plan, Target, Work, plan};
use crate::run::Device;
use serde_json::json;
use std::path::Path;

/// `onestep plan`. Error: there is no such model; or, after everything is printed, the run does not fit.
pub fn run(args: &PlanArgs) -> Result<()> {
    let works = match args.work {
        None => vec![Work::Sft, Work::Rl],
        Some(PlannedWork::Sft) => vec![Work::Sft],
        Some(PlannedWork::Rl) => vec![Work::Rl],
        Some(PlannedWork::Eval) => vec![Work::Eval],
    };
    let layers: Vec<&Path> = args.config.iter().map(|path| path.as_path()).collect();
    let config = session::settings(&layers, &args.overrides, works[0].name())?;
    Given { verb: "plan", section: works[0].name(), file: None, overrides: &args.overrides }.tell_unread();
    let (name, model, stored) = shape(args)?;
    let kind = kind(args, &config);
    let asked = args.memory.map(|bytes| bytes as usize);
    let own =
        if args.device_kind.is_none() { session::present_gpu(&config).map(|gpu| gpu.memory as usize) } else { None };
    let available = asked.or(own).or(Peaks::of(kind).memory);
    let target =
        |work| Target { stored, prompt: args.prompt_tokens, reply: args.reply_tokens, ..Target::new(work, kind) };
    let plans: Vec<Plan> = works.into_iter().map(|work| plan(&model, &config, target(work))).collect();
    if args.json {
        let one = |plan: &Plan| json!({"plan": plan, "fit": available.map(|bytes| plan.fit(bytes))});
        let all = json!({"model": name, "plans": plans.iter().map(one).collect::<Vec<_>>()});
        outln!("{all:#}");
    } else {
        outln!("{name}");
        plans.iter().for_each(|plan| out!("\n{}", plan.table(available)));
    }
    plans.iter().try_for_each(|plan| plan.check_settings().and_then(|()| plan.check_rank()))?;
    available.map_or(Ok(()), |bytes| plans.iter().try_for_each(|plan| plan.check(bytes)))
}

/// Name and shape of the model, and the bytes of its weight files when there are any; they are not opened.
fn shape(args: &PlanArgs) -> Result<(String, ModelConfig, Option<usize>)> {
    match (&args.model, &args.random_weights) {
        (Some(dir), _) => {
            let (model, notes) = checkpoint::read_config_with_notes(dir)?;
            notes.iter().for_each(|note| errln!("note: {note}"));
            let files = std::fs::read_dir(dir).map_err(|e| Error::io("listing", dir, &e))?;
            let weights = files.flatten().filter(|f| f.path().extension().is_some_and(|e| e == "safetensors"));
            let stored: u64 = weights.filter_map(|f| std::fs::metadata(f.path()).ok()).map(|m| m.len()).sum();
            Ok((dir.display().to_string(), model, usize::try_from(stored).ok().filter(|&bytes| bytes > 0)))
        }
        (None, Some(name)) => Ok((name.clone(), shapes::named(name)?, None)),
        (None, None) => Err(Error::usage(format!(
            "--model or --random-weights is needed, for example --random-weights {}",
            shapes::NAMES[3]
        ))),
    }
}

/// The device kind of --device-kind, else that of `run.device`.
fn kind(args: &PlanArgs, config: &Config) -> Kind {
    let cpu = Kind::Cpu { cores: session::count(config.run.threads) };
    match args.device_kind {
        Some(DeviceKind::H100) => Kind::H100,
        Some(DeviceKind::H200) => Kind::H200,
        Some(DeviceKind::Gpu) => Kind::Gpu,
        Some(DeviceKind::Cpu) => cpu,
        None => match config.run.device {
            Device::Cpu => cpu,
            Device::Cuda(_) => session::present_gpu(config).map_or(Kind::Gpu, |gpu| Kind::of_gpu(&gpu.name)),
            Device::Auto => session::present_gpu(config).map_or(cpu, |gpu| Kind::of_gpu(&gpu.name)),
        },
    }
}
