//! The main job, small: base evaluated, expert trajectories collected, SFT, step-wise RL, evaluation, report.

use super::args::QuickstartArgs;
use super::session;
use super::train::{self, collected, evaluated, reinforced, save_trajectories, snapshots, tuned};
use crate::checkpoint;
use crate::config::{Config, locate};
use crate::error::{Error, Result, check_interrupt};
use crate::evaluate::{self, Evaluations};
use crate::files::write_whole;
use crate::metrics;
use crate::report;
use crate::run::Run;
use crate::sft::Trained;
use crate::trajectory;
use serde_json::{Map, Value, json};
use std::path::Path;
use std::time::Instant;

const SETTINGS: &str = "data/config/quickstart.toml";
const MODEL: &str = "weights/quickstart";

/// `onestep quickstart`
pub fn run(args: &QuickstartArgs) -> Result<()> {
    let settings = locate(Path::new(SETTINGS))?;
    let mut layers = vec![settings.as_path()];
    layers.extend(args.config.as_deref());
    let mut overrides = args.overrides.clone();
    overrides.push(format!("run.seed={}", args.seed));
    let mut config = session::settings(&layers, &overrides, "rl")?;
    config.tasks.names = vec!["all".to_string()];
    let out = args.out.as_path();
    session::check_out(out)?;
    let mut clock = Clock::new();

    let tasks = session::task_list(&config)?;
    let held_in: Vec<String> = tasks.iter().filter(|t| !t.held_out).map(|t| t.name.clone()).collect();
    let library = train::library(&config)?;
    let world = session::world(&config, args.python.as_deref(), tasks)?;
    world.announce();
    session::threads(&config)?;
    session::write_config(out, &config)?;
    print_recipe(&config);
    let backend = session::backend(&config, Some(out))?;
    let model_dir = locate(Path::new(MODEL))?;
    let speaker = session::speaker(&*backend, &model_dir, &config)?;
    clock.lap("setup");

    let mut evaluations = Evaluations::default();
    let evaluation = |name: &str, adapter, evaluations: &mut Evaluations| -> Result<()> {
        check_interrupt(&world.interrupted)?;
        evaluated(&*backend, &config, &world, &speaker, adapter, name, out, evaluations)?;
        let e = &evaluations.policies[name];
        let show = |m: Option<evaluate::Mean>| {
            m.map_or("-".into(), |m| format!("{:.3} [{:.3}, {:.3}]", m.normalised, m.low, m.high))
        };
        println!("{name}: normalised score held-in {}, held-out {}", show(e.held_in), show(e.held_out));
        Ok(())
    };
    evaluation("base", None, &mut evaluations)?;
    clock.lap("evaluate base");

    let environment = &world.environment;
    let bundled = locate(&config.tasks.expert)?;
    environment.store.load(&snapshots(&bundled))?;
    let mut expert = trajectory::read_jsonl(&bundled)?;
    let live = collected(&config, &library, &world, &held_in)?;
    println!("expert: {} bundled trajectories, {} collected live", expert.len(), live.len());
    expert.extend(live);
    let expert_file = out.join("trajectories").join("expert.jsonl");
    save_trajectories(&expert_file, environment, &expert)?;
    clock.lap("collect");

    let (start, examples) = train::prepared(&*backend, &config, &speaker, None, &expert_file)?;
    let mut sft_run = Run::open(&*backend, &config, out, "sft", false, &world.interrupted)?;
    let Trained::Adapter(sft) = tuned(&mut sft_run, &speaker, start, examples)? else {
        return Err(Error::usage("sft.full=true: the quickstart trains adapters; expected sft.full=false"));
    };
    checkpoint::save_adapter(&out.join("sft").join("adapter"), &sft, MODEL)?;
    clock.lap("sft");
    evaluation("sft", Some(&sft), &mut evaluations)?;
    clock.lap("evaluate sft");

    let mut rl_run = Run::open(&*backend, &config, out, "rl", false, &world.interrupted)?;
    let pool = train::state_pool(environment, &held_in, &expert)?;
    let rl = reinforced(&mut rl_run, &world, &speaker, sft.copied(&*backend)?, pool, out)?;
    checkpoint::save_adapter(&out.join("rl").join("adapter"), &rl, MODEL)?;
    clock.lap("rl");
    evaluation("rl", Some(&rl), &mut evaluations)?;
    clock.lap("evaluate rl");

    let records = metrics::read(&out.join(metrics::FILE))?;
    let summary = summary(&config, &world.protection, &evaluations, &records, &clock);
    let text = serde_json::to_string_pretty(&summary).map_err(|e| Error::system(format!("summary.json: {e}")))?;
    write_whole(&out.join("summary.json"), text.as_bytes())?;
    report::write(out, &out.join("report.html"))?;
    print!("\n{}", evaluate::table(&evaluations));
    println!("scripts: {}; seconds: {}", environment.cache.counts(), clock.summary());
    println!("report: {}", out.join("report.html").display());
    Ok(())
}

/// Wall seconds of phases.
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

/// What is run, beside what the paper ran.
fn print_recipe(config: &Config) {
    let (sft, rl) = (&config.sft, &config.rl);
    println!(
        "sft: LoRA rank {}, lr {}, {} epochs (paper: full training, lr 2e-5, 2 epochs)",
        config.lora.rank, sft.learning_rate, sft.epochs
    );
    println!(
        "rl: {:?}, {} steps of {} states x {} samples, lr {}, KL {} in the {:?} (paper: PPO, 39 steps of 256 x 1, lr 1e-6, KL 0.001 in the reward)",
        rl.algorithm, rl.steps, rl.states, rl.samples, rl.learning_rate, rl.kl_coefficient, rl.kl_in
    );
}

fn summary(
    config: &Config,
    protection: &[String],
    evaluations: &Evaluations,
    records: &[Value],
    clock: &Clock,
) -> Value {
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
        "tier": "cpu",
        "protection": protection,
        "seconds": clock.laps.iter().map(|(k, v)| (k.to_string(), json!(v))).collect::<Map<_, _>>(),
        "tasks": tasks,
        "rl": {"reward": column("reward"), "cases": column("cases"), "edit_reward": column("edit_reward"),
               "edit_share": column("edit_share")},
    })
}
