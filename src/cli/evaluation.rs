//! `onestep eval`: plays one policy, scores it, and stores the scores under the policy's name.

use super::args::EvalArgs;
use super::given::{Given, needed};
use super::session::{self, World};
use super::train::{self, names, save_trajectories};
use crate::backend::Backend;
use crate::config::Config;
use crate::console::{errln, out, outln};
use crate::environment::Environment;
use crate::error::{Error, Result};
use crate::evaluate::{self, Evaluations};
use crate::files::json;
use crate::files::{lock, write_whole};
use crate::identity::{self, Identity};
use crate::model::Policy;
use crate::model::lora::Adapter;
use crate::plan::Work;
use crate::trajectory::Trajectory;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

/// Name of the scores file in a run's folder.
const FILE: &str = "evaluation.json";

/// `onestep eval`
pub fn eval(args: &EvalArgs) -> Result<()> {
    let out = args.run.out.as_path();
    let given = Given::of_run("eval", &args.run);
    let config = given.settings(&[], &train::options(&args.run, Some(&args.device)))?;
    let model = needed(&args.policy.model, "--model", "~/models/Qwen2.5-0.5B")?;
    let adapter = args.policy.adapter.as_deref();
    let wanted = name(&config, model, adapter)?;
    session::check_out(out)?;
    session::check_plan(&config, model, adapter, Work::Eval)?;
    let tasks = session::task_list(&config)?;
    read(out)?;
    if args.run.dry_run {
        train::check_policy(&config, model, adapter)?;
        session::check_python(args.python.python.as_deref())?;
        let paths = [("model", Some(model)), ("adapter", adapter)];
        return train::show(&config, &paths, out, &format!("policy: {wanted}"));
    }
    let world = session::world(&config, args.python.python.as_deref(), tasks)?;
    world.announce();
    session::threads(&config)?;
    let backend = session::backend(&config, Some(out))?;
    let speaker = session::speaker(&*backend, model, &config)?;
    let adapter_loaded = session::adapter(&*backend, &speaker.model, model, adapter)?;
    let mut played = session::identity(&config, &world, "eval", model)?;
    played.add_adapter(adapter)?;

    let evaluations = read(out)?;
    let name = free_name(out, &evaluations, &wanted, &played);
    if name != wanted {
        tell_name(out, &wanted, &name);
    }
    if evaluations.policies.contains_key(&name) {
        errln!("note: {}: {name} is the same policy, played the same way; it is replaced", out.join(FILE).display());
    }
    let settings = out.join("config.toml");
    if !settings.exists() {
        write_whole(&settings, config.to_toml()?.as_bytes())?;
    }
    let episodes = play(&*backend, &config, &world, &speaker, adapter_loaded.as_ref(), &name)?;
    let (called, evaluations) = record(out, &world.environment, &wanted, episodes, played)?;
    if called != name {
        tell_name(out, &name, &called);
    }
    out!("{}", evaluate::table(&evaluations));
    outln!("scripts: {}", world.environment.cache.counts());
    outln!("{called} written to {}", out.join(FILE).display());
    Ok(())
}

/// Reads the scores in a run's folder; empty when there are none.
fn read(out: &Path) -> Result<Evaluations> {
    let path = out.join(FILE);
    if path.exists() { json::read(&path) } else { Ok(Evaluations::default()) }
}

fn trajectories(out: &Path, name: &str) -> PathBuf {
    out.join("trajectories").join(format!("eval-{name}.jsonl"))
}

/// The name to store `played` under: `wanted` if it is free or already names the same policy, else `wanted` with a
/// number.
fn free_name(out: &Path, evaluations: &Evaluations, wanted: &str, played: &Identity) -> String {
    evaluations.name_for(wanted, played, |name| !trajectories(out, name).exists())
}

fn tell_name(out: &Path, taken: &str, name: &str) {
    let path = out.join(FILE);
    errln!("note: {}: {taken} is another policy, or played otherwise; this one is called {name}", path.display());
}

/// The policy's name: eval.source, or one derived from what is played. A run's adapter or model takes the run's name
/// (`runs/sft/adapter`: sft), that of a checkpoint the run's name and the step, any other adapter its folder's name; a
/// model alone is `base`. Error: eval.source cannot be part of a file name.
fn name(config: &Config, model: &Path, adapter: Option<&Path>) -> Result<String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let source = config.eval.source.as_str();
    if !source.is_empty() {
        return match source.chars().all(is_plain) && !source.starts_with('.') {
            true => Ok(source.to_string()),
            false => Err(Error::content(format!(
                "eval.source = {source:?}: expected a name of letters, digits, - _ and . for the policy, for example sft; empty takes \
                 that of the adapter"
            ))),
        };
    }
    let folder = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    let name = match adapter.map(folder) {
        Some(adapter) => of_folder(&adapter),
        None => {
            let model = folder(model);
            let is_trained = model.parent().is_some_and(|run| run.join(identity::FILE).exists());
            if is_trained { of_folder(&model) } else { return Ok("base".to_string()) }
        }
    };
    let name: String = name.chars().map(|c| if is_plain(c) { c } else { '-' }).collect();
    let name = name.trim_start_matches('.');
    // `base` is reserved for a model without an adapter.
    Ok(match name {
        "" => "adapter".to_string(),
        "base" => "base-adapter".to_string(),
        name => name.to_string(),
    })
}

/// A name for what `path` holds: the nearest folder, going up, whose name is not one that programs use (`GENERIC`); for
/// a checkpoint, the run's name and the step.
fn of_folder(path: &Path) -> String {
    const GENERIC: [&str; 4] = ["adapter", "actor", "model", "checkpoints"];
    let parts: Vec<String> = path.iter().map(|part| part.to_string_lossy().into_owned()).collect();
    let own = parts.last().cloned().unwrap_or_default();
    let Some(at) = parts.iter().rposition(|part| !GENERIC.contains(&part.as_str())) else { return own };
    match (parts[at].strip_prefix("step-").map(str::parse::<u64>), at) {
        // RUN/checkpoints/PHASE/step-00000010
        (Some(Ok(step)), 3..) if parts[at - 2] == "checkpoints" => format!("{}-step-{step}", parts[at - 3]),
        // Only the root is left: no other name to take.
        (_, 0) => own,
        _ => parts[at].clone(),
    }
}

/// Plays and scores one policy, adds the scores to evaluation.json, and writes the trajectories.
#[allow(clippy::too_many_arguments)]
pub fn evaluated(
    backend: &dyn Backend,
    config: &Config,
    world: &World,
    speaker: &session::Speaker,
    adapter: Option<&Adapter>,
    name: &str,
    out: &Path,
    played: Identity,
) -> Result<Evaluations> {
    let episodes = play(backend, config, world, speaker, adapter, name)?;
    let (called, evaluations) = record(out, &world.environment, name, episodes, played)?;
    if called != name {
        tell_name(out, name, &called);
    }
    Ok(evaluations)
}

/// Plays the episodes of one policy; `name` names their random streams.
fn play(
    backend: &dyn Backend,
    config: &Config,
    world: &World,
    speaker: &session::Speaker,
    adapter: Option<&Adapter>,
    name: &str,
) -> Result<Vec<Trajectory>> {
    let policy = Policy { model: &speaker.model, adapter };
    let mut agent = session::agent(backend, speaker, config, world)?;
    let plan = evaluate::Plan {
        name,
        trajectories: config.eval.trajectories,
        seed: config.run.seed,
        reward: &config.reward,
        interrupted: &world.interrupted,
    };
    let episodes = evaluate::play(&mut agent, policy, &world.environment, &names(&world.environment), &plan)?;
    backend.keep_choices()?;
    Ok(episodes)
}

/// Scores `episodes` and writes them and evaluation.json. Returns the name they are stored under and all evaluations.
/// The name is chosen while no other evaluation can write, because one may have taken `wanted` since these episodes
/// began.
fn record(
    out: &Path,
    environment: &Environment,
    wanted: &str,
    mut episodes: Vec<Trajectory>,
    played: Identity,
) -> Result<(String, Evaluations)> {
    let _lock = lock(&out.join("trajectories"))?;
    let mut evaluations = read(out)?;
    let name = free_name(out, &evaluations, wanted, &played);
    episodes.iter_mut().for_each(|episode| episode.source.clone_from(&name));
    let mut evaluation = evaluate::score(environment.tasks().map(|t| &t.task), &episodes);
    evaluation.played = Some(played);
    save_trajectories(&trajectories(out, &name), environment, &episodes)?;
    evaluations.insert(&name, evaluation);
    let text =
        serde_json::to_string_pretty(&evaluations).map_err(|e| Error::system(format!("evaluation.json: {e}")))?;
    write_whole(&out.join(FILE), text.as_bytes())?;
    Ok((name, evaluations))
}

/// Makes the folder, waits until no other evaluation holds its lock, and takes it until the file is dropped.
fn lock(folder: &Path) -> Result<File> {
    std::fs::create_dir_all(folder).map_err(|e| Error::io("making the folder", folder, &e))?;
    let held = File::open(folder).map_err(|e| Error::io("opening the folder", folder, &e))?;
    if let Err(TryLockError::Error(_)) = held.try_lock() {
        return Ok(held); // some network file systems have no locks
    }
    lock::wait(held, folder, lock::BRIEF, |line| errln!("{line}"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_named_after_what_is_played() {
        let config = |source: &str| Config::load(&[], &[format!("source={source}")], "eval");
        let named = |adapter: &str| name(&config("").unwrap(), Path::new("m"), Some(Path::new(adapter))).unwrap();
        for (adapter, expected) in [
            ("/r/runs/sft/adapter", "sft"),
            ("/r/runs/rl/adapter/", "rl"),
            ("/r/runs/quickstart/sft/adapter", "sft"),
            ("/r/runs/mine/checkpoints/rl/step-00000010/actor", "mine-step-10"),
            ("/r/runs/mine/checkpoints/sft/step-00000020/adapter", "mine-step-20"),
            ("/r/My Adapter", "My-Adapter"),
            ("/r/base/adapter", "base-adapter"),
            ("/r/.hidden", "hidden"),
            ("/adapter", "adapter"),
        ] {
            assert_eq!(named(adapter), expected, "{adapter}");
        }
        assert_eq!(name(&config("").unwrap(), Path::new("m"), None).unwrap(), "base");
        assert_eq!(name(&config("mine").unwrap(), Path::new("m"), None).unwrap(), "mine");
        for source in ["../x", "a/b", ".x", "a b"] {
            assert_eq!(name(&config(source).unwrap(), Path::new("m"), None).unwrap_err().exit_code(), 2, "{source}");
        }
    }
}
