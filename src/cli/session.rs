//! Builds the objects that verbs work with from settings and arguments: sandboxes and tasks (before any thread starts),
//! then backend, model and tokenizer.

use crate::agent::{Agent, Dialog};
use crate::backend::Backend;
use crate::backend::cpu::Cpu;
use crate::backend::cuda::device::Device as _;
use crate::backend::cuda::driver::{self, Gpu};
use crate::backend::cuda::probe::GpuInfo;
use crate::backend::cuda::{Cuda, ready};
use crate::checkpoint;
use crate::config::{self, Config};
use crate::console::errln;
use crate::environment::{Environment, Store};
use crate::error::{self, Error, Result};
use crate::files::scratch::Scratch;
use crate::identity::Identity;
use crate::machine;
use crate::model::Model;
use crate::model::config::ModelConfig;
use crate::model::lora::{Adapter, LoraConfig, Module};
use crate::plan::{Kind, Plan, Target, Work, plan};
use crate::rng::Philox;
use crate::rollout::Engine;
use crate::run::Device;
use crate::sandbox::{Pool, Python, Wanted};
use crate::task::{PreparedTask, Task};
use crate::tokenizer::Tokenizer;
use signal_hook::consts::{SIGINT, SIGTERM};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};

/// Loads the settings from the files `layers` and from overrides; a bare override key belongs to `section`. Settings
/// that do nothing are named on stderr.
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

/// The folder in which private environments and prepared data are kept between runs. Error: neither XDG_CACHE_HOME nor
/// HOME is set.
pub fn cache() -> Result<PathBuf> {
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|p| p.is_absolute()).or_else(home);
    base.map(|base| base.join("onestep")).ok_or_else(|| {
        Error::usage("no cache folder: neither XDG_CACHE_HOME nor HOME is set; set one, for example HOME=/tmp/home")
    })
}

/// Set by SIGTERM.
static TERMINATED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// Registers handlers for Ctrl-C and SIGTERM. The first signal sets the returned flag; the second ends the program at
/// once with 130 or 143.
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

/// The program's exit code after `error`. After SIGTERM it is 143 for an interrupted command, but 0 if that command
/// saved a checkpoint and `can_resume` from it: this tells the sender that nothing is lost.
pub fn exit_code(error: &Error, can_resume: bool) -> u8 {
    match error.kind() {
        error::Kind::Stopped if can_resume && TERMINATED.load(Ordering::SeqCst) => 0,
        error::Kind::Stopped | error::Kind::Interrupted if TERMINATED.load(Ordering::SeqCst) => 143,
        _ => error.exit_code(),
    }
}

/// Returns `asked`, or one per core when it is 0.
pub fn count(asked: usize) -> usize {
    if asked > 0 { asked } else { machine::cores() }
}

/// Starts the compute threads. Call it after [`world`]: sandboxes are forked before any thread starts.
pub fn threads(config: &Config) -> Result<()> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(count(config.run.threads)).build_global();
    pool.map_err(|e| Error::system(format!("starting compute threads: {e}")))
}

/// The backend of `run.device`. The GEMM algorithms chosen for a GPU are kept in the run's folder `out`, if one is
/// given, so that a resumed run computes as the first did.
pub fn backend(config: &Config, out: Option<&Path>) -> Result<Box<dyn Backend>> {
    let ordinal = match config.run.device {
        Device::Cpu => return Ok(Box::new(Cpu)),
        Device::Auto if ready::probe().is_err() => return Ok(Box::new(Cpu)),
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
    ready::probe().ok()?.into_iter().nth(ordinal)
}

/// The name of the GPU that computes under these settings; without one, `cpu` and the CPU's name.
pub fn device(config: &Config) -> String {
    present_gpu(config).map_or_else(|| format!("cpu ({})", machine::cpu_model()), |gpu| gpu.name)
}

/// Refuses a device that this machine does not have, without opening it.
pub fn check_device(config: &Config) -> Result<()> {
    match (config.run.device, ready::probe()) {
        (Device::Cuda(_), Err(why)) => Err(Error::system(format!("run.device = \"cuda\": {why}"))),
        (Device::Cuda(ordinal), Ok(gpus)) if ordinal >= gpus.len() => Err(Error::usage(format!(
            "run.device = \"cuda:{ordinal}\": this machine has {} GPUs, from cuda:0",
            gpus.len()
        ))),
        _ => Ok(()),
    }
}

/// Checks, before anything is started or loaded, that `dir` is a model's folder and that settings and memory allow the
/// run on that model. A given adapter fixes the settings in `[lora]`. Error: names the setting and what the model
/// allows; or what the work needs, what is there and what would fit.
pub fn check_plan(config: &Config, dir: &Path, adapter: Option<&Path>, work: Work) -> Result<()> {
    let planned = planned(config, dir, adapter, work)?;
    planned.check_settings()?;
    if adapter.is_none() {
        planned.check_rank()?;
    }
    check_memory(config, &planned)
}

/// The plan of `work` on the model in `dir`. Error: `dir` is not a model's folder, or `adapter` is not an adapter of
/// that model.
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

/// Checks that there is memory for a plan. Error: there is not enough.
pub fn check_memory(config: &Config, planned: &Plan) -> Result<()> {
    let (_, name, available) = memory(config);
    available.map_or(Ok(()), |bytes| planned.check(bytes).map_err(|e| e.context(name)))
}

/// The kind and name of the device that computes under these settings, and the bytes of memory that a run may use
/// there; `None` when they are not known.
pub fn memory(config: &Config) -> (Kind, String, Option<usize>) {
    match present_gpu(config) {
        Some(gpu) => {
            let bytes = (gpu.memory as f64 * config.run.gpu_memory) as usize;
            (Kind::of_gpu(&gpu.name), gpu.name, Some(bytes))
        }
        None => (Kind::Cpu { cores: count(config.run.threads) }, "this machine".to_string(), machine::memory()),
    }
}

/// The shape of the adapter in `dir` (or in the run or checkpoint `dir`), for a model of this shape.
pub fn adapter_shape(model: &ModelConfig, dir: &Path) -> Result<LoraConfig> {
    let (dir, _) = checkpoint::adapter_folder(dir)?; // its note is printed when the adapter is opened for use
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

/// The tasks that `tasks.names` selects: held_in, held_out, all, or names.
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

/// An environment, and facts about how its scripts run.
pub struct World {
    /// Tasks, snapshots, remembered runs.
    pub environment: Environment,
    /// Set by the first Ctrl-C or SIGTERM.
    pub interrupted: Arc<AtomicBool>,
    /// The protection in force, as lines for the user.
    pub protection: Vec<String>,
    /// The tier of that protection, 0 to 3.
    pub tier: u8,
    /// Versions of the Python that runs scripts and of its packages.
    pub python: String,
    /// Folder in which scripts run; removed with the world.
    _scratch: Scratch,
}

/// Prepares the Python environment, the tasks' data and the sandboxes, and opens the store of results; notes go to
/// stderr.
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
    // A script may give another result under another protection, so runs are reused within one tier only.
    let runs_by = format!("{} in tier {}", python.id, pool.protection().tier);
    let mut environment =
        Environment::new(Arc::new(pool), &runs_by, prepared, config.environment.clone(), scratch.path())?;
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

/// Checks that the interpreter, if one is given, can run the tasks, as [`world`] does.
pub fn check_python(python: Option<&Path>) -> Result<()> {
    let Some(given) = python else { return Ok(()) };
    Python::ensure(Some(given), &cache()?, &mut |line| errln!("{line}")).map(drop)
}

/// The modules that the fork-servers of these tasks load: numpy, which is seeded before each script, and those that the
/// tasks list. `None`, which means all that the sandbox knows, when a task lists nothing.
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
    /// Prints on stderr which protection scripts run under.
    pub fn announce(&self) {
        errln!("sandbox: {}", self.protection.join("; "));
    }
}

/// A loaded model with its tokenizer and chat template.
pub struct Speaker {
    /// The weights, mapped.
    pub model: Model,
    /// Its tokenizer and chat template.
    pub dialog: Dialog,
    /// The model's folder.
    pub folder: PathBuf,
}

/// Opens a model folder with its tokenizer; notes go to stderr.
pub fn speaker(backend: &dyn Backend, dir: &Path, config: &Config) -> Result<Speaker> {
    let model = model(backend, dir)?;
    let dialog = dialog(dir, config)?;
    dialog.tokenizer.check(model.config.vocab)?;
    Ok(Speaker { model, dialog, folder: dir.to_path_buf() })
}

/// The tokenizer and chat template of a model folder; template arguments that the template does not read are named on
/// stderr.
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

/// Prints each note on stderr as a warning.
pub fn warn(notes: &[String]) {
    notes.iter().for_each(|note| errln!("warning: {note}"));
}

/// Opens a model folder without its tokenizer; notes go to stderr.
pub fn model(backend: &dyn Backend, dir: &Path) -> Result<Model> {
    let (model, notes) = checkpoint::load_model(backend, dir)?;
    notes.iter().for_each(|note| errln!("note: {note}"));
    Ok(model)
}

/// Opens the adapter in `dir` (or in the run or checkpoint `dir`) for `model`, which comes from the folder `base`;
/// `None` when no `dir` is given. Notes go to stderr.
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

/// The adapter's shape from the settings. Module names are known: the settings were checked.
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
    Ok(Agent::new(&speaker.dialog, engine, &config.sampling, &config.environment))
}

/// Checks that `out` can become a run's folder, before anything is computed for it. Error: it, or a folder above it, is
/// a file.
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

/// The identity of an evaluation, or of a run on tasks, without its data and adapter.
pub fn identity(config: &Config, world: &World, verb: &str, model: &Path) -> Result<Identity> {
    let mut identity = Identity::new(verb, &config.to_toml()?)?;
    identity.add_model(model)?;
    identity.add_tasks(world.environment.tasks().map(|task| &**task))?;
    identity.add("device", device(config));
    identity.add("python", &world.python);
    identity.add("sandbox", format!("tier {}", world.tier));
    Ok(identity)
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
