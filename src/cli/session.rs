//! What was typed becomes ready objects: settings, sandboxes and tasks (started first, before threads), then model and text.

use crate::agent::{Agent, Dialog};
use crate::backend::Backend;
use crate::backend::cpu::Cpu;
use crate::backend::cuda::device::Device as _;
use crate::backend::cuda::driver::{self, Gpu};
use crate::backend::cuda::probe::GpuInfo;
use crate::backend::cuda::{Cuda, library};
use crate::checkpoint;
use crate::config::{self, Config, Device};
use crate::console::errln;
use crate::environment::{self, Environment, Store};
use crate::error::{self, Error, Result};
use crate::files::scratch::Scratch;
use crate::machine;
use crate::model::Model;
use crate::model::config::ModelConfig;
use crate::model::lora::{Adapter, LoraConfig, Module};
use crate::plan::{Kind, Plan, Target, Work, plan};
use crate::rng::Philox;
use crate::rollout::Engine;
use crate::sandbox::{Pool, Python, Wanted};
use crate::task::{PreparedTask, Task};
use crate::tokenizer::Tokenizer;
use signal_hook::consts::{SIGINT, SIGTERM};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};

/// Settings from --config and overrides; a bare override key belongs to `section`. Those that do nothing are named on stderr.
pub fn settings(layers: &[&Path], overrides: &[String], section: &str) -> Result<Config> {
    let read = |path: &&Path| {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io("reading the configuration", path, &e))?;
        Ok((path.display().to_string(), text))
    };
    let layers = layers.iter().map(read).collect::<Result<Vec<_>>>()?;
    let (config, notes) = Config::load_noting(&layers, overrides, section)?;
    notes.iter().for_each(|note| errln!("note: {note}"));
    Ok(config)
}

/// Where private environments and prepared data are kept between runs.
pub fn cache() -> Result<PathBuf> {
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|p| p.is_absolute()).or_else(home);
    base.map(|base| base.join("onestep")).ok_or_else(|| {
        Error::usage("no cache folder: neither XDG_CACHE_HOME nor HOME is set; set one, for example HOME=/tmp/home")
    })
}

/// Set by SIGTERM.
static TERMINATED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// A flag that the first Ctrl-C or SIGTERM sets; the second one ends the program at once with 130 or 143.
pub fn interrupt() -> Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    let failed = |e: std::io::Error| Error::system(format!("listening for Ctrl-C: {e}"));
    signal_hook::flag::register(SIGTERM, TERMINATED.clone()).map_err(failed)?;
    for (signal, code) in [(SIGINT, 130), (SIGTERM, 143)] {
        signal_hook::flag::register_conditional_shutdown(signal, code, flag.clone()).map_err(failed)?;
        signal_hook::flag::register(signal, flag.clone()).map_err(failed)?;
    }
    Ok(flag)
}

/// The program's exit code after `error`. Whoever sends SIGTERM wants to hear whether the command `can_resume` without loss: then it is 0.
pub fn exit_code(error: &Error, can_resume: bool) -> u8 {
    match error.kind() {
        error::Kind::Stopped if can_resume && TERMINATED.load(Ordering::SeqCst) => 0,
        error::Kind::Stopped | error::Kind::Interrupted if TERMINATED.load(Ordering::SeqCst) => 143,
        _ => error.exit_code(),
    }
}

/// The number asked for, or one for each core.
pub fn count(asked: usize) -> usize {
    if asked > 0 { asked } else { machine::cores() }
}

/// Starts the compute threads. Call it after `tasks`: sandboxes are forked first.
pub fn threads(config: &Config) -> Result<()> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(count(config.run.threads)).build_global();
    pool.map_err(|e| Error::system(format!("starting compute threads: {e}")))
}

/// The backend of `run.device`. What is chosen for a GPU (GEMM algorithms) is kept in the run's folder `out`, when there is one, so that
/// a resumed run computes as the first did.
pub fn backend(config: &Config, out: Option<&Path>) -> Result<Box<dyn Backend>> {
    let ordinal = match config.run.device {
        Device::Cpu => return Ok(Box::new(Cpu)),
        Device::Auto if library::probe().is_err() => return Ok(Box::new(Cpu)),
        Device::Auto => 0,
        Device::Cuda(ordinal) => ordinal,
    };
    let gpu = gpu(config, ordinal, out)?;
    errln!("device: {}", gpu.name());
    if let Err(why) = gpu.gemm_library() {
        errln!(
            "warning: {why}. Without it this program's own matrix products serve, which take 2 to 2.5 times as long"
        );
    }
    Ok(Box::new(Cuda::new(Arc::new(gpu))))
}

/// The GPU of `run.device`, when this machine has it.
pub fn present_gpu(config: &Config) -> Option<GpuInfo> {
    let ordinal = match config.run.device {
        Device::Cpu => return None,
        Device::Auto => 0,
        Device::Cuda(ordinal) => ordinal,
    };
    library::probe().ok()?.into_iter().nth(ordinal)
}

/// What computes under these settings: the GPU's name, or the CPU's.
pub fn device(config: &Config) -> String {
    present_gpu(config).map_or_else(|| format!("cpu ({})", super::machine::cpu_model()), |gpu| gpu.name)
}

/// Refuses a device that this machine does not have, without opening it.
pub fn check_device(config: &Config) -> Result<()> {
    match (config.run.device, library::probe()) {
        (Device::Cuda(_), Err(why)) => Err(Error::system(format!("run.device = \"cuda\": {why}"))),
        (Device::Cuda(ordinal), Ok(gpus)) if ordinal >= gpus.len() => Err(Error::usage(format!(
            "run.device = \"cuda:{ordinal}\": this machine has {} GPUs, from cuda:0",
            gpus.len()
        ))),
        _ => Ok(()),
    }
}

/// Refuses a `dir` that is no model's folder, and a run on its model that settings or memory do not allow, before anything is started or
/// loaded. An adapter that is given settles [lora]. Error: which setting, and what the model allows; what the work asks, what is there, what
/// would fit.
pub fn check_plan(config: &Config, dir: &Path, adapter: Option<&Path>, work: Work) -> Result<()> {
    let planned = planned(config, dir, adapter, work)?;
    planned.check_settings()?;
    if adapter.is_none() {
        planned.check_rank()?;
    }
    check_memory(config, &planned)
}

/// The plan of `work` on the model in `dir`. Error: it is no model's folder, or `adapter` is none of its adapters.
pub fn planned(config: &Config, dir: &Path, adapter: Option<&Path>, work: Work) -> Result<Plan> {
    checkpoint::check_model(dir)?;
    let model = checkpoint::read_config(dir)?;
    let mut config = config.clone();
    if let Some(adapter) = adapter {
        config.lora.rank = adapter_shape(&model, adapter)?.rank;
    }
    let (kind, ..) = memory(&config);
    Ok(plan(&model, &config, Target::new(work, kind)))
}

/// Refuses a plan that there is no memory for.
pub fn check_memory(config: &Config, planned: &Plan) -> Result<()> {
    let (_, name, available) = memory(config);
    available.map_or(Ok(()), |bytes| planned.check(bytes).map_err(|e| e.context(name)))
}

/// What computes under these settings, its name, and the bytes of memory that a run may have there.
pub fn memory(config: &Config) -> (Kind, String, Option<usize>) {
    match present_gpu(config) {
        Some(gpu) => {
            let bytes = (gpu.memory as f64 * config.run.gpu_memory) as usize;
            (Kind::of_gpu(&gpu.name), gpu.name, Some(bytes))
        }
        None => (Kind::Cpu { cores: count(config.run.threads) }, "this machine".to_string(), machine::memory()),
    }
}

/// The shape of the adapter that `dir` means, for a model of this shape.
pub fn adapter_shape(model: &ModelConfig, dir: &Path) -> Result<LoraConfig> {
    let (dir, _) = checkpoint::adapter_folder(dir)?; // its note comes when the adapter is opened for use
    Ok(checkpoint::load_adapter(&Cpu, model, &dir)?.config)
}

/// Opens a GPU under the run's settings.
pub fn gpu(config: &Config, ordinal: usize, out: Option<&Path>) -> Result<Gpu> {
    let cache = cache()?;
    Gpu::open(&driver::Options {
        ordinal,
        memory: config.run.gpu_memory,
        kernels: cache.join("kernels"),
        gemms: out.map(|out| out.join("gemms.json")),
        fixed_gemms: config.run.gpu_fixed_gemms,
        check_each: config.run.gpu_check,
        separate_allocations: config.run.gpu_separate_allocations,
    })
}

/// The tasks in the folder `tasks.dir`.
pub fn all_tasks(config: &Config) -> Result<Vec<Task>> {
    let all = config::locate(&config.tasks.dir).and_then(|folder| Task::load_all(&folder));
    all.map_err(|e| e.context("tasks.dir"))
}

/// The tasks that `tasks.names` means: held_in, held_out, all, or names.
pub fn task_list(config: &Config) -> Result<Vec<Task>> {
    let all = all_tasks(config)?;
    let mut chosen: Vec<Task> = vec![];
    for name in &config.tasks.names {
        let more: Vec<Task> = match name.as_str() {
            "all" => all.clone(),
            "held_in" => all.iter().filter(|t| !t.held_out).cloned().collect(),
            "held_out" => all.iter().filter(|t| t.held_out).cloned().collect(),
            name => Task::find(&all, &[name]).map_err(|e| e.context("tasks.names"))?,
        };
        chosen.extend(more.into_iter().filter(|t| chosen.iter().all(|c| c.name != t.name)).collect::<Vec<_>>());
    }
    if chosen.is_empty() {
        return Err(Error::content("tasks.names is empty: expected held_in, held_out, all or names of tasks"));
    }
    Ok(chosen)
}

/// An environment and what it was made from.
pub struct World {
    /// Tasks, snapshots, remembered runs.
    pub environment: Environment,
    /// Set by the first Ctrl-C or SIGTERM.
    pub interrupted: Arc<AtomicBool>,
    /// The protection in force, as lines for the user.
    pub protection: Vec<String>,
    /// Its tier, 0 to 3.
    pub tier: u8,
    /// The Python that runs scripts, and its packages, with their versions.
    pub python: String,
    /// Where runs happen; removed with the world.
    _scratch: Scratch,
}

/// The Python environment, the sandboxes and the tasks' data, with a line for each on stderr.
pub fn world(config: &Config, python: Option<&Path>, tasks: Vec<Task>) -> Result<World> {
    let interrupted = interrupt()?;
    let cache = cache()?;
    let python = Python::ensure(python, &cache, &mut |line| errln!("{line}"))?;
    let prepare = |task: &Task| PreparedTask::prepare(task, &python.interpreter, &cache.join("tasks"));
    let prepared = tasks.iter().map(prepare).collect::<Result<Vec<_>>>()?;
    let program = std::env::current_exe().map_err(|e| Error::system(format!("finding this program: {e}")))?;
    let (best, unsafe_without) = (config.run.sandbox_tier, config.run.unsafe_no_sandbox);
    let wanted = Wanted { best, unsafe_without, preload: preload(&tasks) };
    let pool = Pool::start(&program, count(config.run.workers), &python, &wanted, interrupted.clone())?;
    let (protection, tier) = (pool.protection().notes.clone(), pool.protection().tier);
    let versions = python.versions.iter().map(|(name, version)| format!("{name} {version}"));
    let versions = versions.collect::<Vec<_>>().join(", ");
    let scratch = Scratch::new()?;
    let c = &config.environment;
    let settings = environment::Settings {
        format: c.format,
        prompt: c.prompt,
        max_steps: c.max_steps,
        episode_seconds: c.episode_seconds,
        observation_limit: c.observation_limit,
        undo_failed_edits: c.undo_failed_edits,
        scratch: scratch.path().to_path_buf(),
    };
    // A script may come to something else under another protection: its run is not reused there.
    let runs_by = format!("{} in tier {}", python.id, pool.protection().tier);
    let mut environment = Environment::new(Arc::new(pool), &runs_by, prepared, settings)?;
    if config.run.reuse_rewards {
        let store = Store::open(&cache.join("store.sqlite"), config.run.store_bytes)?;
        environment = environment.with_store(Arc::new(store), config.run.seed)?;
        let varying = environment.varying();
        if !varying.is_empty() {
            errln!(
                "note: two runs of the baseline of {} differed, or met the wall clock; results are reused within one seed only",
                varying.join(", ")
            );
        }
    }
    Ok(World { environment, interrupted, protection, tier, python: versions, _scratch: scratch })
}

/// Refuses an interpreter that was given and cannot run the tasks, as `world` would.
pub fn check_python(python: Option<&Path>) -> Result<()> {
    let Some(given) = python else { return Ok(()) };
    Python::ensure(Some(given), &cache()?, &mut |line| errln!("{line}")).map(drop)
}

/// What the fork-servers of these tasks load: numpy, which is seeded before each script, and what the tasks list; all that the sandbox
/// knows when one of them lists nothing.
fn preload(tasks: &[Task]) -> Option<Vec<String>> {
    let lists: Vec<&Vec<String>> = tasks.iter().map(|task| task.preload.as_ref()).collect::<Option<_>>()?;
    let mut modules = vec!["numpy".to_string()];
    for module in lists.into_iter().flatten() {
        if !modules.contains(module) {
            modules.push(module.clone());
        }
    }
    Some(modules)
}

impl World {
    /// Says on stderr which protection scripts run under.
    pub fn announce(&self) {
        errln!("sandbox: {}", self.protection.join("; "));
    }
}

/// A model folder, ready to speak.
pub struct Speaker {
    /// The weights, mapped.
    pub model: Model,
    /// Its tokenizer and chat template.
    pub dialog: Dialog,
    /// Where it lies.
    pub folder: PathBuf,
}

/// Opens a model folder with its tokenizer; notes go to stderr.
pub fn speaker(backend: &dyn Backend, dir: &Path, config: &Config) -> Result<Speaker> {
    let model = model(backend, dir)?;
    let dialog = dialog(dir, config)?;
    dialog.tokenizer.check(model.config.vocab)?;
    Ok(Speaker { model, dialog, folder: dir.to_path_buf() })
}

/// The tokenizer and chat template of a model folder; template arguments that the template does not read are named on stderr.
pub fn dialog(dir: &Path, config: &Config) -> Result<Dialog> {
    let dialog = Dialog::new(Tokenizer::open(dir)?, &config.chat.template_arguments)?;
    for name in dialog.template.unread_arguments() {
        errln!(
            "warning: chat.template_arguments has `{name}`, which the chat template in {} does not read",
            dir.display()
        );
    }
    Ok(dialog)
}

/// Says on stderr what a file holds that is not used.
pub fn warn(notes: &[String]) {
    notes.iter().for_each(|note| errln!("warning: {note}"));
}

/// Opens a model folder without its tokenizer; notes go to stderr.
pub fn model(backend: &dyn Backend, dir: &Path) -> Result<Model> {
    let (model, notes) = checkpoint::load_model(backend, dir)?;
    notes.iter().for_each(|note| errln!("note: {note}"));
    Ok(model)
}

/// The adapter in `dir` (or where the run or checkpoint `dir` keeps it) for `model` from the folder `base`, or none; notes go to stderr.
pub fn adapter(backend: &dyn Backend, model: &Model, base: &Path, dir: Option<&Path>) -> Result<Option<Adapter>> {
    let Some(dir) = dir else { return Ok(None) };
    let (adapter, notes) = checkpoint::open_adapter(backend, &model.config, base, dir)?;
    notes.iter().for_each(|note| errln!("note: {note}"));
    Ok(Some(adapter))
}

/// A fresh adapter of the settings' shape.
pub fn new_adapter(backend: &dyn Backend, model: &Model, config: &Config, name: &str) -> Result<Adapter> {
    Adapter::new(backend, &model.config, lora(config), &mut Philox::named(config.run.seed, name))
}

/// The settings of adapters. Their modules exist: the settings were checked.
fn lora(config: &Config) -> LoraConfig {
    let modules = config.lora.modules.iter().filter_map(|name| Module::named(name)).collect();
    LoraConfig { rank: config.lora.rank, alpha: config.lora.alpha, rslora: config.lora.rslora, modules }
}

/// An agent over the speaker's model, for the states of `world`.
pub fn agent<'a>(
    backend: &'a dyn Backend,
    speaker: &'a Speaker,
    config: &'a Config,
    world: &'a World,
) -> Result<Agent<'a>> {
    let engine = Engine::new(backend, &speaker.model, &config.engine)?.interrupted_by(&world.interrupted);
    Ok(Agent::new(&speaker.dialog, engine, config))
}

/// Refuses a place that cannot become a run's folder, before anything is computed for it.
pub fn check_out(out: &Path) -> Result<()> {
    match out.ancestors().find(|path| path.exists()) {
        Some(path) if !path.is_dir() => Err(Error::usage(format!(
            "--out {}: {} is a file; expected a folder or the path of a new one, for example runs/mine",
            out.display(),
            path.display()
        ))),
        _ => Ok(()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn fork_servers_load_what_all_tasks_list_and_everything_when_one_lists_nothing() {
        let tasks = Task::load_all(Path::new("data/tasks")).unwrap();
        assert_eq!(preload(&tasks), None);
        let listing = |modules: &[&str]| Task {
            preload: Some(modules.iter().map(|m| m.to_string()).collect()),
            ..tasks[0].clone()
        };
        let both = [listing(&["sklearn.svm", "numpy"]), listing(&["scipy.stats", "sklearn.svm"])];
        assert_eq!(preload(&both).unwrap(), ["numpy", "sklearn.svm", "scipy.stats"]);
    }
}
