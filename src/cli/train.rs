//! The verbs that make a run: pretrain, collect, sft, rl, eval.

use super::args::RunArgs;
use super::session::{self, World};
use crate::backend::Backend;
use crate::checkpoint;
use crate::config::Config;
use crate::dataset::{self, Example};
use crate::environment::Environment;
use crate::error::{Error, Result};
use crate::evaluate::{self, Evaluations};
use crate::exercises;
use crate::expert::{self, Expert};
use crate::export;
use crate::files::write_whole;
use crate::ideas::{Library, Selection};
use crate::model::Policy;
use crate::model::lora::Adapter;
use crate::plan::Work;
use crate::ppo::Learner;
use crate::pretrain;
use crate::rl;
use crate::run::Run;
use crate::sft::{self, Trained};
use crate::state_pool::{self, Origin, StatePool};
use crate::tensor::DType;
use crate::trajectory::{self, Trajectory};
use std::path::{Path, PathBuf};

/// The settings of a training verb, `section` its own. `None` after a dry run, which prints them.
fn open(args: &RunArgs, section: &str) -> Result<Option<Config>> {
    let layers: Vec<&Path> = args.config.iter().map(PathBuf::as_path).collect();
    let mut overrides = args.overrides.clone();
    overrides.extend(args.seed.map(|seed| format!("run.seed={seed}")));
    overrides.extend(args.device.as_ref().map(|device| format!("run.device={device}")));
    let config = session::settings(&layers, &overrides, section)?;
    if args.dry_run {
        for (name, path) in [("model", &args.model), ("adapter", &args.adapter), ("data", &args.data)] {
            if let Some(path) = path {
                println!("# {name}: {}", path.display());
            }
        }
        println!("# out: {}\n{}", args.out.display(), config.to_toml()?);
        return Ok(None);
    }
    session::check_out(&args.out)?;
    Ok(Some(config))
}

fn needed<'a>(path: &'a Option<PathBuf>, option: &str, example: &str) -> Result<&'a Path> {
    path.as_deref().ok_or_else(|| Error::usage(format!("{option} is needed, for example {option} {example}")))
}

/// `onestep pretrain`
pub fn pretrain(args: &RunArgs) -> Result<()> {
    let Some(config) = open(args, "pretrain")? else { return Ok(()) };
    let target = args.model.clone().unwrap_or_else(|| PathBuf::from("weights/quickstart"));
    let interrupted = session::interrupt()?;
    session::threads(&config)?;
    let backend = session::backend(&config, Some(&args.out))?;
    std::fs::create_dir_all(&target).map_err(|e| Error::io("making", &target, &e))?;
    exercises::save_tokenizer(&target, config.run.seed)?;
    let dialog = crate::agent::Dialog::new(crate::tokenizer::Tokenizer::open(&target)?)?;
    let model = pretrain::model(&*backend, &config.pretrain, &dialog, config.run.seed)?;
    println!("{} parameters, {} steps", model.parameters(), config.pretrain.steps);
    session::write_config(&args.out, &config)?;
    let mut run = Run::open(&*backend, &config, &args.out, "pretrain", args.resume, &interrupted)?;
    let model = pretrain::train(&mut run, &dialog, model)?;
    checkpoint::save_model(&target, &model, DType::F32)?;
    println!("model written to {}", target.display());
    Ok(())
}

/// `onestep collect`
pub fn collect(args: &RunArgs) -> Result<()> {
    let Some(config) = open(args, "collect")? else { return Ok(()) };
    let library = library(&config)?;
    let world = session::world(&config, args.python.as_deref(), session::task_list(&config)?)?;
    world.announce();
    session::write_config(&args.out, &config)?;
    let trajectories = collected(&config, &library, &world, &names(&world.environment))?;
    let path = args.out.join("trajectories.jsonl");
    save_trajectories(&path, &world.environment, &trajectories)?;
    let steps: usize = trajectories.iter().map(|t| t.steps.len()).sum();
    println!("scripts: {}", world.environment.cache.counts());
    println!("{} trajectories, {steps} steps -> {}", trajectories.len(), path.display());
    Ok(())
}

/// The names of an environment's tasks.
fn names(environment: &Environment) -> Vec<String> {
    environment.tasks().map(|t| t.task.name.clone()).collect()
}

/// The ideas the expert draws from.
pub fn library(config: &Config) -> Result<Library> {
    let library = Library::load(&crate::config::locate(&config.tasks.ideas)?)?;
    Ok(match config.collect.select {
        0 => library,
        n => library.select(Selection::FarthestPoint(n)),
    })
}

/// Plays the expert on `tasks`.
pub fn collected(config: &Config, library: &Library, world: &World, tasks: &[String]) -> Result<Vec<Trajectory>> {
    let expert = Expert {
        library,
        settings: &config.collect,
        reward: &config.reward,
        seed: config.run.seed,
        interrupted: &world.interrupted,
    };
    expert::play(&world.environment, tasks, &expert)
}

/// Writes trajectories and the snapshots they name beside them.
pub fn save_trajectories(path: &Path, environment: &Environment, trajectories: &[Trajectory]) -> Result<()> {
    environment.store.save(&snapshots(path))?;
    trajectory::write_jsonl(path, trajectories)
}

/// The folder of workspace snapshots beside a trajectory file.
pub fn snapshots(trajectories: &Path) -> PathBuf {
    trajectories.with_file_name("snapshots")
}

/// `onestep sft`
pub fn sft(args: &RunArgs) -> Result<()> {
    let Some(config) = open(args, "sft")? else { return Ok(()) };
    let model = needed(&args.model, "--model", "~/models/Qwen2.5-0.5B")?;
    let data = needed(&args.data, "--data", "trajectories.jsonl")?;
    session::check_memory(&config, model, Work::Sft)?;
    let interrupted = session::interrupt()?;
    session::threads(&config)?;
    let backend = session::backend(&config, Some(&args.out))?;
    let speaker = session::speaker(&*backend, model)?;
    let start = session::adapter(&*backend, &speaker.model, args.adapter.as_deref())?;
    let (start, examples) = prepared(&*backend, &config, &speaker, start, data)?;
    session::write_config(&args.out, &config)?;
    let mut run = Run::open(&*backend, &config, &args.out, "sft", args.resume, &interrupted)?;
    match tuned(&mut run, &speaker, start, examples)? {
        Trained::Adapter(adapter) => save_adapter(&args.out, &adapter, model),
        Trained::Weights { model, folder } => {
            let target = args.out.join("model");
            export::trained(&target, &model, DType::BF16, &folder)?;
            println!("model written to {}", target.display());
            Ok(())
        }
    }
}

fn save_adapter(out: &Path, adapter: &Adapter, base: &Path) -> Result<()> {
    let target = out.join("adapter");
    checkpoint::save_adapter(&target, adapter, &base.display().to_string())?;
    println!("adapter written to {}", target.display());
    Ok(())
}

/// What supervised fine-tuning starts from (`start`, a fresh adapter, or all weights) and what it learns (the file `data`), both
/// checked before a run writes anything.
pub fn prepared(
    backend: &dyn Backend,
    config: &Config,
    speaker: &session::Speaker,
    start: Option<Adapter>,
    data: &Path,
) -> Result<(Trained, Vec<Example>)> {
    let (dialog, model) = (&speaker.dialog, &speaker.model);
    let limit = config.sft.max_tokens.min(model.config.max_positions);
    let examples = dataset::load(data, &dialog.tokenizer, &dialog.template, limit)?;
    let weights = |model| Trained::Weights { model, folder: speaker.folder.clone() };
    let trained = match (config.sft.full, start) {
        (true, Some(adapter)) => weights(model.merged(backend, &adapter)?.widen(backend)?),
        (true, None) => weights(model.widen(backend)?),
        (false, Some(adapter)) => Trained::Adapter(adapter),
        (false, None) => Trained::Adapter(session::new_adapter(backend, model, config, "sft adapter")?),
    };
    Ok((trained, examples))
}

/// Supervised fine-tuning of `start` on `examples`, some of them set aside for validation.
pub fn tuned(run: &mut Run, speaker: &session::Speaker, start: Trained, examples: Vec<Example>) -> Result<Trained> {
    let config = run.config;
    let (training, validation) = dataset::split_validation(examples, config.sft.validation_share, config.run.seed);
    sft::train(run, &speaker.model, start, &training, &validation)
}

/// `onestep rl`
pub fn rl(args: &RunArgs) -> Result<()> {
    let Some(config) = open(args, "rl")? else { return Ok(()) };
    let model = needed(&args.model, "--model", "~/models/Qwen2.5-0.5B")?;
    let data = needed(&args.data, "--data", "runs/collect/trajectories.jsonl")?;
    let expert = trajectory::read_jsonl(data)?;
    session::check_memory(&config, model, Work::Rl)?;
    let world = session::world(&config, args.python.as_deref(), session::task_list(&config)?)?;
    world.announce();
    session::threads(&config)?;
    let backend = session::backend(&config, Some(&args.out))?;
    let speaker = session::speaker(&*backend, model)?;
    let start = session::adapter(&*backend, &speaker.model, args.adapter.as_deref())?;
    let reference = match start {
        Some(adapter) => adapter,
        None => session::new_adapter(&*backend, &speaker.model, &config, "rl adapter")?,
    };
    world.environment.store.load(&snapshots(data))?;
    let pool = state_pool(&world.environment, &names(&world.environment), &expert)?;
    session::write_config(&args.out, &config)?;
    let mut run = Run::open(&*backend, &config, &args.out, "rl", args.resume, &world.interrupted)?;
    let actor = reinforced(&mut run, &world, &speaker, reference, pool, &args.out)?;
    println!("scripts: {}", world.environment.cache.counts());
    save_adapter(&args.out, &actor, model)
}

/// Step-wise RL from `reference` on the states of `pool`; one sample of every state is written to trajectories/rl.jsonl.
pub fn reinforced(
    run: &mut Run,
    world: &World,
    speaker: &session::Speaker,
    reference: Adapter,
    mut pool: StatePool,
    out: &Path,
) -> Result<Adapter> {
    let (backend, config) = (run.backend, run.config);
    let environment = &world.environment;
    println!("state pool: {} states ({})", pool.len(), pool.summary());
    let mut learner = Learner::new(backend, &speaker.model, &config.rl, reference)?;
    let mut agent = session::agent(backend, speaker, config, world)?;
    let mut record = vec![];
    let folder = out.join("trajectories");
    let model = &speaker.model;
    let snapshots = folder.join("snapshots");
    let actor = rl::train(run, model, &mut agent, environment, &mut pool, &mut learner, &snapshots, &mut record)?;
    save_trajectories(&folder.join("rl.jsonl"), environment, &record)?;
    Ok(actor)
}

/// The states of the expert's steps on `tasks`, and each task's first state.
pub fn state_pool(environment: &Environment, tasks: &[String], expert: &[Trajectory]) -> Result<StatePool> {
    let mut pool = StatePool::default();
    for name in tasks {
        let task = environment.task(name)?;
        pool.add(environment.reset(&task.task.name)?, Origin::First);
        for trajectory in expert.iter().filter(|t| t.task == task.task.name) {
            for state in state_pool::states(trajectory, &task.task) {
                environment.files(&state)?;
                pool.add(state, Origin::Expert);
            }
        }
    }
    Ok(pool)
}

/// `onestep eval`
pub fn eval(args: &RunArgs) -> Result<()> {
    let Some(config) = open(args, "eval")? else { return Ok(()) };
    let model = needed(&args.model, "--model", "~/models/Qwen2.5-0.5B")?;
    session::check_memory(&config, model, Work::Eval)?;
    let world = session::world(&config, args.python.as_deref(), session::task_list(&config)?)?;
    world.announce();
    session::threads(&config)?;
    let backend = session::backend(&config, Some(&args.out))?;
    let speaker = session::speaker(&*backend, model)?;
    let adapter = session::adapter(&*backend, &speaker.model, args.adapter.as_deref())?;
    let path = args.out.join("evaluation.json");
    let mut evaluations: Evaluations =
        if path.exists() { checkpoint::read_json(&path)? } else { Evaluations::default() };
    session::write_config(&args.out, &config)?;
    let name = config.eval.source.clone();
    evaluated(&*backend, &config, &world, &speaker, adapter.as_ref(), &name, &args.out, &mut evaluations)?;
    print!("{}", evaluate::table(&evaluations));
    println!("scripts: {}", world.environment.cache.counts());
    println!("written to {}", path.display());
    Ok(())
}

/// Plays and scores one policy; adds it to `evaluations` and writes evaluation.json and the trajectories.
#[allow(clippy::too_many_arguments)]
pub fn evaluated(
    backend: &dyn Backend,
    config: &Config,
    world: &World,
    speaker: &session::Speaker,
    adapter: Option<&Adapter>,
    name: &str,
    out: &Path,
    evaluations: &mut Evaluations,
) -> Result<()> {
    let environment = &world.environment;
    let policy = Policy { model: &speaker.model, adapter };
    let mut agent = session::agent(backend, speaker, config, world)?;
    let tasks = names(environment);
    let plan = evaluate::Plan {
        name,
        trajectories: config.eval.trajectories,
        seed: config.run.seed,
        reward: &config.reward,
        interrupted: &world.interrupted,
    };
    let played = evaluate::play(&mut agent, policy, environment, &tasks, &plan)?;
    evaluations.insert(name, evaluate::score(environment.tasks().map(|t| &t.task), &played));
    save_trajectories(&out.join("trajectories").join(format!("eval-{name}.jsonl")), environment, &played)?;
    let text = serde_json::to_string_pretty(evaluations).map_err(|e| Error::system(format!("evaluation.json: {e}")))?;
    write_whole(&out.join("evaluation.json"), text.as_bytes())
}
