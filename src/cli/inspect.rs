//! The verbs that answer or inspect and make no run: generate, score, task, data, report.

use super::args::{DataCommand, GenerateArgs, ReportArgs, ScoreArgs, TaskArgs, TaskCommand};
use super::given::Given;
use super::{audit, session};
use crate::backend::Backend;
use crate::backend::oracle::Oracle;
use crate::batch::{self, LossBatch};
use crate::checkpoint;
use crate::config::Config;
use crate::console::{out, outln};
use crate::dataset::{self, Limit, Severity};
use crate::environment::{Environment, Files};
use crate::error::{Error, Result};
use crate::files::{publish, regular};
use crate::message::Message;
use crate::model::{Activations, Policy};
use crate::plan::Work;
use crate::report;
use crate::rollout::{Engine, Request};
use crate::run::Device;
use crate::task::{Grade, Task};
use serde::Deserialize;
use serde_json::json;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, IsTerminal, Write};
use std::path::Path;
use std::sync::Arc;

/// `onestep generate`
pub fn generate(args: &GenerateArgs) -> Result<()> {
    let given = Given { verb: "generate", section: "sampling", file: None, overrides: &args.overrides };
    let config = given.settings(&[], &[("--device", "run.device", args.device.clone())])?;
    // Only memory is checked here: the engine refuses lengths that do not fit, and it knows the prompt's own length.
    let planned = session::planned(&config, &args.model, args.adapter.as_deref(), Work::Eval)?;
    session::check_memory(&config, &planned)?;
    session::threads(&config)?;
    let backend = session::backend(&config, None)?;
    let speaker = session::speaker(&*backend, &args.model, &config)?;
    let adapter = session::adapter(&*backend, &speaker.model, &args.model, args.adapter.as_deref())?;
    let prompt = match args.raw {
        true => speaker.dialog.tokenizer.encode(&args.prompt)?,
        false => speaker.dialog.prompt(&[Message::new("user", &args.prompt)])?,
    };
    let request = Request {
        prompt,
        samples: args.samples,
        seed: args.seed,
        stream: "generate".to_string(),
        max_tokens: config.sampling.max_tokens,
    };
    let mut engine = Engine::new(&*backend, &speaker.model, &config.engine)?;
    let policy = Policy { model: &speaker.model, adapter: adapter.as_ref() };
    let samples = engine.generate(policy, &[request], &config.sampling, &speaker.dialog.stop)?;
    for sample in samples.iter().flatten() {
        outln!("{}", speaker.dialog.text(&sample.ids));
    }
    Ok(())
}

/// A line of `score`'s input.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ScoreLine {
    ids: Vec<u32>,
}

/// Most tokens in one forward pass of `score`; a longer line gets a pass of its own.
const SCORE_TOKENS: usize = 2048;

/// `onestep score`: works through the input a few lines at a time, so that memory does not grow with the file. The
/// output file appears when it is complete.
pub fn score(args: &ScoreArgs) -> Result<()> {
    let mut config = session::settings(&[], &[], "run")?;
    session::threads(&config)?;
    let backend: Box<dyn Backend> = match args.device.as_str() {
        "oracle" => Box::new(Oracle::f32()),
        device => {
            let device = Device::try_from(device.to_string());
            config.run.device =
                device.map_err(|e| Error::usage(format!("--device {}: {e}, or oracle", args.device)))?;
            session::backend(&config, None)?
        }
    };
    let model = session::model(&*backend, &args.model)?;
    let adapter = session::adapter(&*backend, &model, &args.model, args.adapter.as_deref())?;
    let policy = Policy { model: &model, adapter: adapter.as_ref() };
    let input = File::open(&args.input).map_err(|e| Error::io("reading", &args.input, &e))?;
    let mut acts = Activations::default();
    publish(&args.output, |temporary| {
        let failed = |e: std::io::Error| Error::io("writing", &args.output, &e);
        let mut output = BufWriter::new(File::create(temporary).map_err(failed)?);
        let (mut bytes, mut lines, mut pending) = (0, 0, vec![]);
        let mut flush = |pending: &mut Vec<(usize, Vec<u32>)>, acts: &mut Activations| -> Result<()> {
            for line in scored(&*backend, policy, pending, &args.input, acts)? {
                bytes += line.len() as u64 + 1;
                writeln!(output, "{line}").map_err(failed)?;
            }
            pending.clear();
            output.flush().map_err(failed)
        };
        for (index, line) in BufReader::new(input).lines().enumerate() {
            let place = format!("{}, line {}", args.input.display(), index + 1);
            let line = line.map_err(|e| Error::content(format!("{place}: {e}")))?;
            if line.trim().is_empty() {
                continue;
            }
            let ScoreLine { ids } = serde_json::from_str(&line)
                .map_err(|e| Error::content(format!("{place}: {e}; expected {{\"ids\": [1, 2, 3]}}")))?;
            if ids.len() < 2 {
                return Err(Error::content(format!("{place}: {} ids; expected at least 2", ids.len())));
            }
            let tokens: usize = pending.iter().map(|(_, ids): &(usize, Vec<u32>)| ids.len()).sum();
            if !pending.is_empty() && tokens + ids.len() > SCORE_TOKENS {
                flush(&mut pending, &mut acts)?;
            }
            pending.push((index + 1, ids));
            lines += 1;
        }
        if lines == 0 {
            return Err(Error::content(format!(
                "{} holds no line; expected lines {{\"ids\": [1, 2, 3]}}",
                args.input.display()
            )));
        }
        flush(&mut pending, &mut acts)?;
        Ok(bytes)
    })
}

/// The output lines of a few input lines (line number, ids), computed as one packed batch.
fn scored(
    backend: &dyn Backend,
    policy: Policy,
    lines: &[(usize, Vec<u32>)],
    input: &Path,
    acts: &mut Activations,
) -> Result<Vec<String>> {
    let config = &policy.model.config;
    for (line, ids) in lines {
        let place = format!("{}, line {line}", input.display());
        if let Some(id) = ids.iter().find(|&&id| id as usize >= config.vocab) {
            let last = config.vocab - 1;
            return Err(Error::content(format!("{place}: token id {id}; the model has ids 0 to {last}")));
        }
        if ids.len() > config.max_positions {
            let (n, most) = (ids.len(), config.max_positions);
            return Err(Error::content(format!("{place}: {n} ids; the model has {most} positions")));
        }
    }
    let masks: Vec<Vec<bool>> = lines.iter().map(|(_, ids)| vec![true; ids.len()]).collect();
    let sequences: Vec<(&[u32], &[bool])> =
        lines.iter().zip(&masks).map(|((_, ids), mask)| (ids.as_slice(), mask.as_slice())).collect();
    let batch = LossBatch::from_sequences(backend, config, &sequences)?;
    let scores = batch::forward(backend, policy, &batch, 1.0, false, acts)?;
    let (logp, entropy) = (backend.read(&scores.logp)?, backend.read(&scores.entropy)?);
    for ((line, _), span) in lines.iter().zip(&batch.samples) {
        if let Some(logp) = logp[span.clone()].iter().find(|logp| !logp.is_finite()) {
            return Err(Error::content(format!(
                "{}, line {line}: a log-probability is {logp}: the weights or the adapter hold values that are not finite (or so large \
                 that a sum overflows); load an earlier checkpoint",
                input.display()
            )));
        }
    }
    let line = |((_, ids), span): (&(usize, Vec<u32>), &std::ops::Range<usize>)| {
        json!({"ids": ids, "logprobs": logp[span.clone()], "entropies": entropy[span.clone()]}).to_string()
    };
    Ok(lines.iter().zip(&batch.samples).map(line).collect())
}

/// `onestep task ...`
pub fn task(command: &TaskCommand) -> Result<()> {
    let settings = |args: &TaskArgs| {
        Given { verb: "task", section: "tasks", file: None, overrides: &args.overrides }.settings(&[], &[])
    };
    match command {
        TaskCommand::List { args } => {
            let mut config = settings(args)?;
            if args.overrides.iter().all(|o| !o.contains("names")) {
                config.tasks.names = vec!["all".to_string()];
            }
            outln!(
                "{:<11}{:<10}{:<9}{:<9}{:>10}{:>10}  description",
                "task",
                "modality",
                "split",
                "metric",
                "m_init",
                "m_best"
            );
            for t in session::task_list(&config)? {
                let split = if t.held_out { "held-out" } else { "held-in" };
                outln!(
                    "{:<11}{:<10}{:<9}{:<9}{:>10.4}{:>10.4}  {}",
                    t.name,
                    t.modality,
                    split,
                    t.metric.name(),
                    t.m_init,
                    t.m_best,
                    t.description
                );
            }
            Ok(())
        }
        TaskCommand::Show { name, args } => {
            let t = one(&settings(args)?, name)?;
            let better = if t.metric.higher_is_better() { "higher" } else { "lower" };
            outln!(
                "{}: {} ({}, {})",
                t.name,
                t.description,
                t.modality,
                if t.held_out { "held out" } else { "held in" }
            );
            outln!(
                "metric {} ({better} is better): m_init {}, m_best {}, noise floor {}; report split: m_init {}, m_best {}",
                t.metric.name(),
                t.m_init,
                t.m_best,
                t.noise_floor,
                t.report.m_init,
                t.report.m_best
            );
            outln!(
                "limits: {} s CPU, {} s wall, {} MiB",
                t.limits.cpu_seconds,
                t.limits.wall_seconds,
                t.limits.memory_bytes >> 20
            );
            for (file, text) in &t.starter {
                outln!("--- {file}\n{text}");
            }
            Ok(())
        }
        TaskCommand::Run { name, script, args } => {
            let mut config = settings(args)?;
            config.run.reuse_rewards = false; // run the script even if a result is stored
            let task = one(&config, name)?;
            let mut files: Files = task.starter.iter().map(|(n, t)| (n.clone(), Arc::from(t.as_str()))).collect();
            if let Some(path) = script {
                let text = regular::read_text(path, super::sandbox::MOST_SCRIPT)?;
                files.insert(task.entry.clone(), Arc::from(text.as_str()));
            }
            let world = session::world(&config, args.python.as_deref(), vec![task.clone()])?;
            world.announce();
            match graded(&world.environment, &task, files)? {
                (output, Ok(Grade { reward, report, flags })) => {
                    out!("{output}");
                    let flags: String = flags.iter().map(|flag| format!("; {}", flag.name())).collect();
                    outln!(
                        "{} {reward} (normalised {:.4}); report split {report} (normalised {:.4}){flags}",
                        task.metric.name(),
                        task.normalised(reward),
                        task.report.normalised(report)
                    );
                }
                (output, Err(problem)) => {
                    out!("{output}");
                    outln!("not graded: {problem}");
                }
            }
            Ok(())
        }
        TaskCommand::Validate { args } => validate(&settings(args)?, args),
        TaskCommand::Audit(args) => audit::run(args),
    }
}

fn one(config: &Config, name: &str) -> Result<Task> {
    let all = session::all_tasks(config)?;
    let mut found = Task::find(&all, &[name])?;
    found.pop().ok_or_else(|| Error::content(format!("no task {name}")))
}

/// Runs the entry script with these files and returns its output and grade.
fn graded(
    environment: &Environment,
    task: &Task,
    files: Files,
) -> Result<(String, std::result::Result<Grade, String>)> {
    let snapshot = environment.store.insert(&files);
    let run = environment.run(&task.name, &snapshot)?;
    let why = || Err(format!("the script ended with {:?}", run.outcome));
    Ok((format!("{}{}", run.stdout, run.stderr), run.grade.clone().unwrap_or_else(why)))
}

/// Runs every baseline, prints its metrics and compares them with the stated m_init of both splits. A difference within
/// the noise floor passes: another kind of CPU may round differently. Error: a baseline differs by more, or is not
/// graded.
fn validate(config: &Config, args: &TaskArgs) -> Result<()> {
    let mut config = config.clone();
    config.run.reuse_rewards = false;
    if args.overrides.iter().all(|o| !o.contains("names")) {
        config.tasks.names = vec!["all".to_string()];
    }
    let tasks = session::task_list(&config)?;
    let world = session::world(&config, args.python.as_deref(), tasks.clone())?;
    world.announce();
    let mut wrong = vec![];
    for task in &tasks {
        let files = task.starter.iter().map(|(n, t)| (n.clone(), Arc::from(t.as_str()))).collect();
        let (_, grade) = graded(&world.environment, task, files)?;
        let verdict = match grade {
            Ok(Grade { reward, report, .. }) => {
                let found = format!("baseline {reward}, report split {report}");
                let holds = |m: f64, m_init: f64| (m - m_init).abs() <= task.noise_floor;
                if holds(reward, task.m_init) && holds(report, task.report.m_init) {
                    format!("ok: {found}")
                } else {
                    wrong.push(task.name.as_str());
                    let (m_init, of_report) = (task.m_init, task.report.m_init);
                    format!("WRONG: {found}; task.toml says m_init = {m_init}, report.m_init = {of_report}")
                }
            }
            Err(problem) => {
                wrong.push(task.name.as_str());
                format!("WRONG: baseline is not graded: {problem}")
            }
        };
        outln!("{:<11} {verdict}", task.name);
    }
    match wrong.is_empty() {
        true => Ok(()),
        false => Err(Error::content(format!("tasks that do not hold: {}", wrong.join(", ")))),
    }
}

/// `onestep data ...`
pub fn data(command: &DataCommand) -> Result<()> {
    let open = |model: &Path, overrides: &[String]| {
        let config = Given { verb: "data", section: "sft", file: None, overrides }.settings(&[], &[])?;
        if !model.join("tokenizer.json").exists() {
            checkpoint::check_model(model)?; // its error says what is there instead
        }
        // A folder with only a tokenizer sets no limit on positions.
        let positions = match model.join("config.json").exists() {
            true => checkpoint::read_config(model)?.max_positions,
            false => usize::MAX,
        };
        let limit = Limit { max_tokens: config.sft.max_tokens, positions };
        Ok::<_, Error>((session::dialog(model, &config)?, limit))
    };
    match command {
        DataCommand::Preview { model, data, examples, overrides } => {
            let (dialog, limit) = open(model, overrides)?;
            let loaded = dataset::load(data, &dialog.tokenizer, &dialog.template, limit)?;
            session::warn(&loaded.notes);
            let coloured = std::io::stdout().is_terminal();
            out!("{}", dataset::preview(&loaded.examples, &dialog.tokenizer, *examples, coloured));
            outln!("{} examples", loaded.examples.len());
            Ok(())
        }
        DataCommand::Validate { model, data, overrides } => {
            let (dialog, limit) = open(model, overrides)?;
            let report = dataset::validate(data, &dialog.tokenizer, &dialog.template, limit)?;
            out!("{report}");
            match report.count(Severity::Error) {
                0 => Ok(()),
                count => Err(Error::content(format!("{}: {count} errors; sft refuses this file", data.display()))),
            }
        }
    }
}

/// `onestep report`
pub fn report(args: &ReportArgs) -> Result<()> {
    let out = args.out.clone().unwrap_or_else(|| args.run.join("report.html"));
    report::write(&args.run, &out)?;
    outln!("report written to {}", out.display());
    Ok(())
}
