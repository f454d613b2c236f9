//! The verbs that make a run: pretrain, collect, sft, rl. A dry run takes the same path and stops before it writes
//! anything.

use super::args::{CollectArgs, DeviceArgs, PretrainArgs, RlArgs, RunArgs, SftArgs};
use super::given::{Given, needed};
use super::session::{self, World};
use crate::backend::Backend;
use crate::backend::cpu::Cpu;
use crate::checkpoint;
use crate::config::Config;
use crate::console::{errln, outln};
use crate::dataset::{self, Limit, Loaded};
use crate::environment::{Environment, SnapshotStore};
use crate::error::{Error, Result};
use crate::exercises;
use crate::expert::{self, Expert};
use crate::export;
use crate::files::scratch::Scratch;
use crate::files::write_whole;
use crate::ideas::{Library, Selection};
use crate::identity::Identity;
use crate::model::Model;
use crate::model::lora::Adapter;
use crate::plan::Work;
use crate::ppo::Learner;
use crate::pretrain;
use crate::rl;
use crate::run::{Place, Run};
use crate::sft::{self, Trained};
use crate::state_pool::{self, Origin, StatePool};
use crate::task::Task;
use crate::tensor::DType;
use crate::trajectory::{self, Trajectory};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The options that stand for settings: option, key, value.
pub fn options(run: &RunArgs, device: Option<&DeviceArgs>) -> [(&'static str, &'static str, Option<String>); 2] {
    let device = device.and_then(|args| args.device.clone());
    [("--seed", "run.seed", run.seed.map(|seed| seed.to_string())), ("--device", "run.device", device)]
}

/// Ends a dry run: prints what would run, as a configuration.
pub fn show(config: &Config, paths: &[(&str, Option<&Path>)], out: &Path, more: &str) -> Result<()> {
    for (name, path) in paths {
        if let Some(path) = path {
            outln!("# {name}: {}", path.display());
        }
    }
    outln!("# out: {}\n# {more}\n{}", out.display(), config.to_toml()?);
    Ok(())
}

/// The backend of a run. A dry run gets the CPU, after a check that the device exists.
fn backend(config: &Config, out: &Path, is_dry: bool) -> Result<Box<dyn Backend>> {
    if is_dry {
        session::check_device(config)?;
        return Ok(Box::new(Cpu));
    }
    session::backend(config, Some(out))
}

/// Checks for a dry run that the device exists and that model and adapter open and fit together.
pub fn check_policy(config: &Config, model: &Path, adapter: Option<&Path>) -> Result<()> {
    session::check_device(config)?;
    let speaker = session::speaker(&Cpu, model, config)?;
    session::adapter(&Cpu, &speaker.model, model, adapter).map(drop)
}

/// `onestep pretrain`: trains a model and writes it to --out/model, and nowhere else.
pub fn pretrain(args: &PretrainArgs) -> Result<()> {
    let given = Given::of_run("pretrain", &args.run);
    let config = given.settings(&[], &options(&args.run, Some(&args.device)))?;
    let out = args.run.out.as_path();
    let place = Place { out, phase: "pretrain", resume: args.resume, inputs: &[] };
    place.check()?;
    let interrupted = session::interrupt()?;
    session::threads(&config)?;
    let backend = backend(&config, out, args.run.dry_run)?;
    let shape = pretrain::shape(&config.pretrain)?;
    let (kind, _, available) = session::memory(&config);
    crate::plan::check_pretraining(&shape, &config, kind, available.unwrap_or(usize::MAX))?;
    let mut identity = Identity::new("pretrain", &config.to_toml()?)?;
    identity.add("device", session::device(&config));
    if args.run.dry_run {
        return show(&config, &[], out, &place.preview(&identity)?);
    }
    // The tokenizer is small and always the same: a scratch copy serves until the run has its folder.
    let copy = Scratch::new()?;
    exercises::save_tokenizer(copy.path(), config.run.seed)?;
    let dialog = session::dialog(copy.path(), &config)?;
    let model = Model::random(&*backend, shape, config.run.seed, DType::F32)?;
    let folder = place.begin(&config.to_toml()?, identity)?;
    outln!("{} parameters, {} steps", model.parameters(), config.pretrain.steps);
    let mut run = Run::open(&*backend, &config.run, &folder, "pretrain", &interrupted)?;
    let model = pretrain::train(&mut run, &config.pretrain, &dialog, model)?;
    let target = out.join("model");
    checkpoint::save_model(&target, &model, DType::F32)?;
    exercises::save_tokenizer(&target, config.run.seed)?;
    outln!("model written to {}", target.display());
    Ok(())
}

/// `onestep collect`: plays the expert and writes its trajectories. Adds them to the folder of another run; a folder
/// that already holds a collection is renamed first.
pub fn collect(args: &CollectArgs) -> Result<()> {
    let out = args.run.out.as_path();
    let config = Given::of_run("collect", &args.run).settings(&[], &options(&args.run, None))?;
    let library = library(&config)?;
    let tasks = session::task_list(&config)?;
    let (path, settings) = (out.join("trajectories.jsonl"), out.join("config.toml"));
    let place = Place { out, phase: "collect", resume: false, inputs: &[] };
    let adds = !path.exists() && !snapshots(&path).exists() && settings.exists();
    if adds {
        session::check_out(out)?
    } else {
        place.check()?
    }
    let mut identity = Identity::new("collect", &config.to_toml()?)?;
    if args.run.dry_run {
        session::check_python(args.python.python.as_deref())?;
        let more = if adds { "adds to the run that is there".to_string() } else { place.preview(&identity)? };
        return show(&config, &[], out, &more);
    }
    let world = session::world(&config, args.python.python.as_deref(), tasks)?;
    world.announce();
    identity.add_tasks(world.environment.tasks().map(|task| &**task))?;
    let _folder = match adds {
        true => write_whole(&out.join("collect.toml"), config.to_toml()?.as_bytes()).map(|()| None)?,
        false => Some(place.begin(&config.to_toml()?, identity)?),
    };
    let trajectories = collected(&config, &library, &world, &names(&world.environment))?;
    save_trajectories(&path, &world.environment, &trajectories)?;
    let steps: usize = trajectories.iter().map(|t| t.steps.len()).sum();
    outln!("scripts: {}", world.environment.cache.counts());
    outln!("{} trajectories, {steps} steps -> {}", trajectories.len(), path.display());
    Ok(())
}

/// The names of an environment's tasks.
pub fn names(environment: &Environment) -> Vec<String> {
    environment.tasks().map(|t| t.task.name.clone()).collect()
}

/// The ideas the expert draws from.
pub fn library(config: &Config) -> Result<Library> {
    let library = crate::config::locate(&config.tasks.ideas).and_then(|path| Library::load(&path));
    let library = library.map_err(|e| e.context("tasks.ideas"))?;
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

/// Writes trajectories, and beside them the environment's snapshots, together with those that are already there for
/// other trajectories.
pub fn save_trajectories(path: &Path, environment: &Environment, trajectories: &[Trajectory]) -> Result<()> {
    let snapshots = snapshots(path);
    if snapshots.join("snapshots.jsonl").exists() {
        environment.store.load(&snapshots)?;
    }
    environment.store.save(&snapshots)?;
    trajectory::write_jsonl(path, trajectories)
}

/// Adds to `store` the workspaces beside `data`, which the steps of its trajectories start from. Error: their folder is
/// missing.
fn load_states(store: &SnapshotStore, data: &Path) -> Result<()> {
    let folder = snapshots(data);
    if !folder.exists() {
        let (data, folder) = (data.display(), folder.display());
        return Err(Error::content(format!(
            "{data}: the workspaces of its steps belong beside it, in {folder}, which is not there; copy that folder too, or collect again"
        )));
    }
    store.load(&folder)
}

/// The folder of workspace snapshots beside a trajectory file.
pub fn snapshots(trajectories: &Path) -> PathBuf {
    trajectories.with_file_name("snapshots")
}

/// `onestep sft`
pub fn sft(args: &SftArgs) -> Result<()> {
    let given = Given::of_run("sft", &args.run);
    let config = given.settings(&[], &options(&args.run, Some(&args.device)))?;
    let (out, adapter) = (args.run.out.as_path(), args.policy.adapter.as_deref());
    let model = needed(&args.policy.model, "--model", "~/models/Qwen2.5-0.5B")?;
    let data = needed(&args.data, "--data", "trajectories.jsonl")?;
    if config.sft.full {
        given.check_lora(&config, None)?;
    }
    let inputs = inputs(model, adapter, data);
    let place = Place { out, phase: "sft", resume: args.resume, inputs: &inputs };
    place.check()?;
    session::check_plan(&config, model, adapter, Work::Sft)?;
    let interrupted = session::interrupt()?;
    session::threads(&config)?;
    let backend = backend(&config, out, args.run.dry_run)?;
    let speaker = session::speaker(&*backend, model, &config)?;
    let start = session::adapter(&*backend, &speaker.model, model, adapter)?;
    if let (Some(dir), Some(start), false) = (adapter, &start, config.sft.full) {
        given.check_lora(&config, Some((dir, &start.config)))?;
    }
    let examples = examples(&config, &speaker, data)?;
    sft::check(&examples.training, &config.sft, config.run.seed)?;
    let dtype = saved_dtype(&config, model)?;
    let mut identity = Identity::new("sft", &config.to_toml()?)?;
    identity.add_model(model)?;
    identity.add_adapter(adapter)?;
    identity.add_data(data)?;
    identity.add("device", session::device(&config));
    if args.run.dry_run {
        let paths = [("model", Some(model)), ("adapter", adapter), ("data", Some(data))];
        return show(&config, &paths, out, &place.preview(&identity)?);
    }
    let start = start_of_sft(&*backend, &config, &speaker, start)?;
    let folder = place.begin(&config.to_toml()?, identity)?;
    let mut run = Run::open(&*backend, &config.run, &folder, "sft", &interrupted)?;
    match sft::train(&mut run, &config.sft, &speaker.model, start, &examples)? {
        Trained::Adapter(adapter) => save_adapter(out, &adapter, model),
        Trained::Weights { model, folder } => {
            let target = out.join("model");
            let notes = export::trained(&target, &model, dtype, &folder)?;
            notes.iter().for_each(|note| errln!("note: {note}"));
            outln!("model written to {} in {dtype:?}", target.display());
            Ok(())
        }
    }
}

/// The paths that a training verb reads, with their options.
fn inputs<'a>(model: &'a Path, adapter: Option<&'a Path>, data: &'a Path) -> Vec<(&'static str, &'a Path)> {
    let adapter = adapter.map(|adapter| ("--adapter", adapter));
    [("--model", model), ("--data", data)].into_iter().chain(adapter).collect()
}

/// The type of the trained weights on disk (sft.save_dtype), where `base` is the type of the model in `folder`. An
/// adapter is always written in f32.
fn saved_dtype(config: &Config, folder: &Path) -> Result<DType> {
    match config.sft.save_dtype {
        sft::SaveDtype::Base if config.sft.full => {
            let (dtype, note) = checkpoint::stored_dtype(folder)?;
            note.into_iter().for_each(|note| errln!("note: {note}"));
            Ok(dtype)
        }
        sft::SaveDtype::Base => Ok(DType::F32),
        sft::SaveDtype::Bf16 => Ok(DType::BF16),
        sft::SaveDtype::F16 => Ok(DType::F16),
        sft::SaveDtype::F32 => Ok(DType::F32),
    }
}

fn save_adapter(out: &Path, adapter: &Adapter, base: &Path) -> Result<()> {
    let target = out.join("adapter");
    checkpoint::save_adapter(&target, adapter, &base.display().to_string())?;
    outln!("adapter written to {}", target.display());
    Ok(())
}

/// Loads the examples in the file `data` and splits them.
pub fn examples(config: &Config, speaker: &session::Speaker, data: &Path) -> Result<sft::Examples> {
    let dialog = &speaker.dialog;
    let limit = Limit { max_tokens: config.sft.max_tokens, positions: speaker.model.config.max_positions };
    let Loaded { examples, notes } = dataset::load(data, &dialog.tokenizer, &dialog.template, limit)?;
    session::warn(&notes);
    let (training, validation) = dataset::split_validation(examples, config.sft.validation_share, config.run.seed);
    Ok(sft::Examples { training, validation })
}

/// The starting point of supervised fine-tuning: `start` or a fresh adapter; with sft.full all weights, `start` merged
/// into them.
pub fn start_of_sft(
    backend: &dyn Backend,
    config: &Config,
    speaker: &session::Speaker,
    start: Option<Adapter>,
) -> Result<Trained> {
    let model = &speaker.model;
    let weights = |model| Trained::Weights { model, folder: speaker.folder.clone() };
    Ok(match (config.sft.full, start) {
        (true, Some(adapter)) => weights(model.merged(backend, &adapter)?.widen(backend)?),
        (true, None) => weights(model.widen(backend)?),
        (false, Some(adapter)) => Trained::Adapter(adapter),
        (false, None) => Trained::Adapter(session::new_adapter(backend, model, config, "sft adapter")?),
    })
}

/// `onestep rl`
pub fn rl(args: &RlArgs) -> Result<()> {
    let given = Given::of_run("rl", &args.run);
    let config = given.settings(&[], &options(&args.run, Some(&args.device)))?;
    let (out, adapter) = (args.run.out.as_path(), args.policy.adapter.as_deref());
    let model = needed(&args.policy.model, "--model", "~/models/Qwen2.5-0.5B")?;
    let data = needed(&args.data, "--data", "runs/collect/trajectories.jsonl")?;
    let inputs = inputs(model, adapter, data);
    let place = Place { out, phase: "rl", resume: args.resume, inputs: &inputs };
    place.check()?;
    let expert = trajectory::read_jsonl(data)?;
    session::check_plan(&config, model, adapter, Work::Rl)?;
    let tasks = session::task_list(&config)?;
    tell_unused(&expert, &tasks);
    if let Some(dir) = adapter {
        let shape = session::adapter_shape(&checkpoint::read_config(model)?, dir)?;
        given.check_lora(&config, Some((dir, &shape)))?;
    }
    if args.run.dry_run {
        check_policy(&config, model, adapter)?;
        session::check_python(args.python.python.as_deref())?;
        check_states(&expert, &tasks, data)?;
        let mut identity = Identity::new("rl", &config.to_toml()?)?;
        identity.add_model(model)?;
        identity.add_adapter(adapter)?;
        identity.add_data(data)?;
        let paths = [("model", Some(model)), ("adapter", adapter), ("data", Some(data))];
        return show(&config, &paths, out, &place.preview(&identity)?);
    }
    let world = session::world(&config, args.python.python.as_deref(), tasks)?;
    world.announce();
    session::threads(&config)?;
    let backend = backend(&config, out, false)?;
    let speaker = session::speaker(&*backend, model, &config)?;
    let reference = match session::adapter(&*backend, &speaker.model, model, adapter)? {
        Some(adapter) => adapter,
        None => session::new_adapter(&*backend, &speaker.model, &config, "rl adapter")?,
    };
    load_states(&world.environment.store, data)?;
    let pool = state_pool(&world.environment, &names(&world.environment), &expert)?;
    let mut identity = session::identity(&config, &world, "rl", model)?;
    identity.add_adapter(adapter)?;
    identity.add_data(data)?;
    let folder = place.begin(&config.to_toml()?, identity)?;
    let mut run = Run::open(&*backend, &config.run, &folder, "rl", &world.interrupted)?;
    let actor = reinforced(&mut run, &config, &world, &speaker, reference, pool, out)?;
    checkpoint::save_adapter(&out.join("adapter"), &actor, &model.display().to_string())?;
    outln!("scripts: {}", world.environment.cache.counts());
    outln!("adapter written to {}", out.join("adapter").display());
    Ok(())
}

/// Prints a line for each task that has trajectories but is not among `tasks`.
fn tell_unused(expert: &[Trajectory], tasks: &[Task]) {
    let mut unused: BTreeMap<&str, usize> = BTreeMap::new();
    for trajectory in expert.iter().filter(|t| tasks.iter().all(|task| task.name != t.task)) {
        *unused.entry(&trajectory.task).or_default() += 1;
    }
    for (task, count) in unused {
        errln!("note: {count} trajectories of task {task} are not used: tasks.names does not choose it");
    }
}

/// Checks that the files are there of every state that `state_pool` will use.
fn check_states(expert: &[Trajectory], tasks: &[Task], data: &Path) -> Result<()> {
    let store = SnapshotStore::default();
    load_states(&store, data)?;
    for trajectory in expert {
        let task = tasks.iter().find(|task| task.name == trajectory.task);
        for state in task.into_iter().flat_map(|task| state_pool::states(trajectory, task)) {
            store.get(&state.snapshot)?;
        }
    }
    Ok(())
}

/// Runs step-wise RL from `reference` on the states of `pool` and returns the actor. One sample of every state is
/// written to trajectories/rl.jsonl.
pub fn reinforced(
    run: &mut Run,
    config: &Config,
    world: &World,
    speaker: &session::Speaker,
    reference: Adapter,
    pool: StatePool,
    out: &Path,
) -> Result<Adapter> {
    let (backend, environment) = (run.backend, &world.environment);
    outln!("state pool: {} states ({})", pool.len(), pool.summary());
    let folder = out.join("trajectories");
    let mut setup = rl::Setup {
        settings: &config.rl,
        reward: &config.reward,
        sampling: &config.sampling,
        base: &speaker.model,
        agent: session::agent(backend, speaker, config, world)?,
        environment,
        pool,
        learner: Learner::new(backend, &speaker.model, &config.rl, reference)?,
        snapshots: folder.join("snapshots"),
    };
    let mut record = vec![];
    let actor = rl::train(run, &mut setup, &mut record)?;
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
