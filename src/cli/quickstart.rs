//! `onestep quickstart`: the whole pipeline on a small scale. Evaluates the base, collects expert trajectories, trains
//! by SFT and step-wise RL, evaluates after each, and writes the report.

use super::args::QuickstartArgs;
use super::evaluation::evaluated;
use super::given::Given;
use super::session::{self, World};
use super::train::{self, collected, reinforced, save_trajectories, snapshots};
use crate::checkpoint;
use crate::config::{Config, locate};
use crate::console::{out, outln};
use crate::error::{Error, Result, check_interrupt};
use crate::evaluate::{self, Evaluations};
use crate::files::write_whole;
use crate::identity::Identity;
use crate::metrics;
use crate::plan::Work;
use crate::report;
use crate::run::{Place, Run};
use crate::sft::{self, Trained};
use crate::trajectory;
use crate::version;
use serde_json::{Map, Value, json};
use std::path::Path;
use std::time::Instant;

const SETTINGS: &str = "data/config/quickstart.toml";
const MODEL: &str = "weights/quickstart";

/// `onestep quickstart`
pub fn run(args: &QuickstartArgs) -> Result<()> {
    let settings = locate(Path::new(SETTINGS))?;
    let given = Given { verb: "quickstart", section: "rl", file: args.config.as_deref(), overrides: &args.overrides };
    let options = [
        ("--seed", "run.seed", args.seed.map(|seed| seed.to_string())),
        ("--device", "run.device", args.device.device.clone()),
    ];
    let mut config = given.settings(&[&settings], &options)?;
    if config.sft.full {
        return Err(Error::usage("sft.full=true: the quickstart trains adapters; expected sft.full=false"));
    }
    config.tasks.names = vec!["all".to_string()];
    let out = args.out.as_path();
    let place = Place { out, phase: "quickstart", resume: false, inputs: &[] };
    place.check()?;
    let mut clock = Clock::new();

    let model_dir = locate(Path::new(MODEL))?;
    session::check_plan(&config, &model_dir, None, Work::Rl)?;
    let tasks = session::task_list(&config)?;
    let held_in: Vec<String> = tasks.iter().filter(|t| !t.held_out).map(|t| t.name.clone()).collect();
    let library = train::library(&config)?;
    if args.dry_run {
        train::check_policy(&config, &model_dir, None)?;
        session::check_python(args.python.python.as_deref())?;
        let identity = Identity::new("quickstart", &config.to_toml()?)?;
        return train::show(&config, &[("model", Some(&model_dir))], out, &place.preview(&identity)?);
    }
    let world = session::world(&config, args.python.python.as_deref(), tasks)?;
    world.announce();
    session::threads(&config)?;
    let identity = session::identity(&config, &world, "quickstart", &model_dir)?;
    let folder = place.begin(&config.to_toml()?, identity)?;
    print_recipe(&config);
    let backend = session::backend(&config, Some(out))?;
    let speaker = session::speaker(&*backend, &model_dir, &config)?;
    clock.lap("setup");

    let evaluation = |name: &str, adapter: Option<(&Path, &_)>| -> Result<Evaluations> {
        check_interrupt(&world.interrupted)?;
        let mut played = session::identity(&config, &world, "eval", &model_dir)?;
        played.add_adapter(adapter.map(|(dir, _)| dir))?;
        let adapter = adapter.map(|(_, adapter)| adapter);
        let evaluations = evaluated(&*backend, &config, &world, &speaker, adapter, name, out, played)?;
        let e = &evaluations.policies[name];
        let show = |m: Option<evaluate::Mean>| {
            m.map_or("-".into(), |m| format!("{:.3} [{:.3}, {:.3}]", m.normalised, m.low, m.high))
        };
        outln!("{name}: normalised score held-in {}, held-out {}", show(e.held_in), show(e.held_out));
        Ok(evaluations)
    };
    evaluation("base", None)?;
    clock.lap("evaluate base");

    let environment = &world.environment;
    let bundled = locate(&config.tasks.expert).map_err(|e| e.context("tasks.expert"))?;
    environment.store.load(&snapshots(&bundled))?;
    let mut expert = trajectory::read_jsonl(&bundled)?;
    let live = collected(&config, &library, &world, &held_in)?;
    outln!("expert: {} bundled trajectories, {} collected live", expert.len(), live.len());
    expert.extend(live);
    let expert_file = out.join("trajectories").join("expert.jsonl");
    save_trajectories(&expert_file, environment, &expert)?;
    clock.lap("collect");

    let start = train::start_of_sft(&*backend, &config, &speaker, None)?;
    let examples = train::examples(&config, &speaker, &expert_file)?;
    let mut sft_run = Run::open(&*backend, &config.run, &folder, "sft", &world.interrupted)?;
    let trained = sft::train(&mut sft_run, &config.sft, &speaker.model, start, &examples)?;
    let Trained::Adapter(sft) = trained else {
        return Err(Error::usage("sft.full=true: the quickstart trains adapters; expected sft.full=false"));
    };
    let sft_dir = out.join("sft").join("adapter");
    checkpoint::save_adapter(&sft_dir, &sft, MODEL)?;
    clock.lap("sft");
    evaluation("sft", Some((&sft_dir, &sft)))?;
    clock.lap("evaluate sft");

    let mut rl_run = Run::open(&*backend, &config.run, &folder, "rl", &world.interrupted)?;
    let pool = train::state_pool(environment, &held_in, &expert)?;
    let rl = reinforced(&mut rl_run, &config, &world, &speaker, sft.copied(&*backend)?, pool, out)?;
    let rl_dir = out.join("rl").join("adapter");
    checkpoint::save_adapter(&rl_dir, &rl, MODEL)?;
    clock.lap("rl");
    let evaluations = evaluation("rl", Some((&rl_dir, &rl)))?;
    clock.lap("evaluate rl");

    let records = metrics::read(&out.join(metrics::FILE))?;
    let summary = summary(&config, &world, &evaluations, &records, &clock);
    let text = serde_json::to_string_pretty(&summary).map_err(|e| Error::system(format!("summary.json: {e}")))?;
    write_whole(&out.join("summary.json"), text.as_bytes())?;
    report::write(out, &out.join("report.html"))?;
    out!("\n{}", evaluate::table(&evaluations));
    outln!("scripts: {}; seconds: {}", environment.cache.counts(), clock.summary());
    outln!("report: {}", out.join("report.html").display());
    Ok(())
}

/// Wall-clock seconds of each phase.
struct Clock {
    start: Instant,
    laps: Vec<(&'static str, f64)>,
}

impl Clock {
    fn new() -> Self {
        Self { start: Instant::now(), laps: vec![] }
    }

    fn lap(&mut self, phase: &'static str) {
        self.laps.push((phase, self.start.elapsed().as_secs_f64()));
        self.start = Instant::now();
    }

    fn summary(&self) -> String {
        self.laps.iter().map(|(phase, seconds)| format!("{phase} {seconds:.0}")).collect::<Vec<_>>().join(", ")
    }
}

/// Prints the main settings beside the paper's.
fn print_recipe(config: &Config) {
    let (sft, rl) = (&config.sft, &config.rl);
    outln!(
        "sft: LoRA rank {}, lr {}, {} epochs (paper: full training, lr 2e-5, 2 epochs)",
        config.lora.rank,
        sft.learning_rate,
        sft.epochs
    );
    outln!(
        "rl: {:?}, {} steps of {} states x {} samples, lr {}, KL {} in the {:?} (paper: PPO, 39 steps of 256 x 1, lr 1e-6, KL 0.001 in the reward)",
        rl.algorithm,
        rl.steps,
        rl.states,
        rl.samples,
        rl.learning_rate,
        rl.kl_coefficient,
        rl.kl_in
    );
}

fn summary(config: &Config, world: &World, evaluations: &Evaluations, records: &[Value], clock: &Clock) -> Value {
    let mut tasks = Map::new();
    for (name, evaluation) in &evaluations.policies {
        for (task, score) in &evaluation.tasks {
            let entry = tasks
                .entry(task.clone())
                .or_insert_with(|| json!({"held_out": score.held_out, "m_init": score.m_init, "m_best": score.m_best}));
            entry[name] = json!({
                "avg": score.avg, "best": score.best, "gain": score.gain, "normalised": score.normalised, "failed": score.failed,
            });
        }
    }
    let rl: Vec<&Value> = records.iter().filter(|r| r["phase"] == "rl").collect();
    let column = |key: &str| rl.iter().map(|r| r[key].clone()).collect::<Vec<_>>();
    json!({
        "seed": config.run.seed,
        "device": session::device(config),
        "threads": session::count(config.run.threads),
        "version": version::VERSION,
        "commit": version::commit(),
        "program": version::program(),
        "command": version::command_line(),
        "sandbox_tier": world.tier,
        "protection": world.protection,
        "seconds": clock.laps.iter().map(|(k, v)| (k.to_string(), json!(v))).collect::<Map<_, _>>(),
        "tasks": tasks,
        "rl": {"reward": column("reward"), "cases": column("cases"), "edit_reward": column("edit_reward"),
               "edit_share": column("edit_share")},
    })
}
