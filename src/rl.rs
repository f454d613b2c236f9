//! Step-wise reinforcement learning (ML-Agent, arXiv 2505.23723, section 3.2): restores a state, samples one action,
//! executes and rewards it, updates. The loop is `train`.

use crate::agent::{self, Agent, Prompt};
use crate::batch::Group;
use crate::environment::{Environment, State, StepResult};
use crate::error::{Error, Result};
use crate::model::lora::Adapter;
use crate::model::{Model, Policy};
use crate::ppo::{self, Learner, Round, UpdateStats};
use crate::reward::{self, Case};
use crate::rng::Philox;
use crate::rollout;
use crate::run::{Run, Suspects};
use crate::state_pool::{Origin, StatePool};
use crate::task::Flag;
use crate::trajectory::{self, Step, Trajectory};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// What a checkpoint keeps beside learner, record and snapshots.
#[derive(Serialize, Deserialize)]
struct Saved {
    step: usize,
    reached: Vec<State>,
}

/// What step-wise RL works with.
pub struct Setup<'a> {
    /// `[rl]`
    pub settings: &'a ppo::Settings,
    /// `[reward]`
    pub reward: &'a reward::Settings,
    /// `[sampling]`
    pub sampling: &'a rollout::Sampling,
    /// The frozen base.
    pub base: &'a Model,
    /// Samples the actions.
    pub agent: Agent<'a>,
    /// Executes them.
    pub environment: &'a Environment,
    /// States to start from; states that are reached are added.
    pub pool: StatePool,
    /// Updates the policy.
    pub learner: Learner<'a>,
    /// Folder of the snapshots that a checkpoint needs.
    pub snapshots: PathBuf,
}

/// Runs `rl.steps` rounds and returns the trained actor. `record` receives the first sample of every state as a
/// one-step trajectory. Errors: an empty pool; a gradient that is not finite; log-probabilities of engine and trainer
/// that differ too much; a sandbox that fails; interrupted (a checkpoint is there then, unless it was in the first
/// step).
pub fn train(run: &mut Run, setup: &mut Setup, record: &mut Vec<Trajectory>) -> Result<Adapter> {
    let Setup { settings, reward, sampling, base, agent, environment, pool, learner, snapshots } = setup;
    let (seed, snapshots) = (run.settings.seed, snapshots.as_path());
    if pool.is_empty() {
        return Err(Error::content("the state pool is empty: give expert trajectories with steps (onestep collect)"));
    }
    let mut start = 0;
    if let Some((dir, Saved { step, reached })) = run.resumed::<Saved>()? {
        environment.store.load(snapshots)?;
        for state in reached {
            pool.add(state, Origin::Reached);
        }
        learner.load(&dir, step)?;
        *record = trajectory::read_jsonl(&dir.join(RECORD))?;
        start = step;
    }
    let mut progress = run.progress(settings.steps, start);
    let mut divergence = run.divergence(base.config.vocab)?;
    let (mut had_few_edits, mut dead_steps) = (false, 0);
    for step in start + 1..=settings.steps {
        let clock = Instant::now();
        let drawn = pool.draw(settings.states, step, seed, settings.initial_share, settings.refresh_share);
        let prompts = agent.prompts(environment, &drawn.iter().collect::<Vec<_>>(), settings.samples)?;
        let Playable { states, prompts, streams, too_long } = playable(step, drawn, prompts)?;
        if let Some(note) = &too_long {
            progress.say(note);
        }
        let actor = Policy { model: base, adapter: Some(&learner.actor) };
        let acted = agent.act(actor, &prompts, settings.samples, seed, &streams).and_then(|replies| {
            let generated = clock.elapsed();
            let texts = states.iter().zip(&replies).flat_map(|(s, rs)| rs.iter().map(|r| (s.clone(), r.text.clone())));
            Ok((environment.step_many(texts.collect())?, replies, generated))
        });
        let (results, replies, generated) = match acted {
            Ok(acted) => acted,
            Err(error) => {
                let saved = Saved { step: step - 1, reached: pool.reached().cloned().collect() };
                let write = |dir: &Path| save(dir, environment, snapshots, record, learner);
                return Err(run.step_undone(error, step - 1, settings.steps, &saved, write));
            }
        };
        let rewards: Vec<f64> = results.iter().map(|r| reward.of(r.case, r.share, !r.flags.is_empty())).collect();
        let executed = clock.elapsed();

        let groups: Vec<Group> = prompts
            .iter()
            .zip(&replies)
            .map(|(p, rs)| Group { prompt: p.ids.clone(), replies: rs.iter().map(|r| r.ids.clone()).collect() })
            .collect();
        let logprobs: Vec<Vec<f32>> = replies.iter().flatten().map(|r| r.logprobs.clone()).collect();
        let is_truncated: Vec<bool> = replies.iter().flatten().map(|r| r.is_truncated).collect();
        let round = Round {
            groups: &groups,
            logprobs: &logprobs,
            rewards: &rewards,
            is_truncated: &is_truncated,
            max_tokens: sampling.max_tokens,
            temperature: sampling.temperature,
        };
        let stats = learner.update(&round).map_err(|error| {
            let suspects = Suspects { base: (&base.names, &base.weights), trained: learner.trained() };
            run.lost(error, step, &suspects, || content(&round, &states))
        })?;
        let updated = clock.elapsed();
        if let Some(gauge) = stats.gauge.filter(|gauge| gauge.is_nan() || *gauge > GAUGE_LIMIT) {
            return Err(Error::system(format!(
                "rl step {step}: engine and trainer disagree on log-probabilities by {gauge:.4} a token (limit {GAUGE_LIMIT}): what \
                 was sampled is not what is trained; the newest checkpoint is older than this step"
            )));
        }

        let mut values = summary(&states, &results, &rewards, &logprobs, &stats, settings.samples);
        values["seconds"] = json!({
            "generate": generated.as_secs_f64(),
            "sandbox": (executed - generated).as_secs_f64(),
            "update": (updated - executed).as_secs_f64(),
        });
        run.log(step, &values)?;
        let edit_share = values["edit_share"].as_f64().unwrap_or_default();
        if edit_share < FEW_EDITS && !had_few_edits {
            progress.say(&few_edits(step, edit_share));
        }
        had_few_edits = edit_share < FEW_EDITS;
        dead_steps = if stats.dead_groups == Some(1.0) { dead_steps + 1 } else { 0 };
        if dead_steps == MOST_DEAD_STEPS {
            progress.say(&all_dead(step));
        }
        // Without a live group there was no update, and nothing was measured.
        let watched = match stats.minibatches.is_empty() {
            true => Ok(None),
            false => divergence.policy(stats.policy.entropy, stats.policy.kl),
        };
        if let Some(line) = watched.map_err(|error| error.context(format!("rl step {step}")))? {
            progress.say(&format!("warning: rl step {step}: {line}"));
        }
        let tokens = logprobs.iter().map(Vec::len).sum();
        progress.advance(step, tokens, &format!("reward {:+.3}", values["reward"].as_f64().unwrap_or_default()));

        for (i, ((state, prompt), mut reply)) in states.iter().zip(prompts).zip(replies).enumerate() {
            let (result, reward) = (&results[i * settings.samples], rewards[i * settings.samples]);
            let step_record = agent::record_sampled(state, prompt, reply.swap_remove(0), result, reward);
            record.push(one_step(state, step, step_record, result));
        }
        refresh(pool, &results, seed, step);
        let saved = Saved { step, reached: pool.reached().cloned().collect() };
        run.step_done(step, settings.steps, &saved, |dir| save(dir, environment, snapshots, record, learner))?;
    }
    progress.finish();
    learner.actor.copied(run.backend)
}

/// A round's content, for inspection: for each state its task, the prompt's ids, and the replies with their
/// log-probabilities and rewards.
fn content(round: &Round, states: &[State]) -> Value {
    let mut at = 0;
    let mut one = |(group, state): (&Group, &State)| {
        let replies: Vec<Value> = group
            .replies
            .iter()
            .map(|ids| {
                at += 1;
                // As text, since JSON has no NaN.
                let logprobs: Vec<String> = round.logprobs[at - 1].iter().map(f32::to_string).collect();
                json!({"ids": ids, "logprobs": logprobs, "reward": round.rewards[at - 1].to_string()})
            })
            .collect();
        json!({"task": state.task, "prompt": group.prompt, "replies": replies})
    };
    Value::Array(round.groups.iter().zip(states).map(&mut one).collect())
}

/// The states of a step whose prompts fit, their prompts and random streams, and a note on the others.
struct Playable {
    states: Vec<State>,
    prompts: Vec<Prompt>,
    streams: Vec<String>,
    too_long: Option<String>,
}

/// Leaves out the states whose prompts are too long. Error: no state is left.
fn playable(step: usize, drawn: Vec<State>, prompts: Vec<Result<Prompt>>) -> Result<Playable> {
    let count = drawn.len();
    let mut fitting = Playable { states: vec![], prompts: vec![], streams: vec![], too_long: None };
    let mut problems = vec![];
    for (i, (state, prompt)) in drawn.into_iter().zip(prompts).enumerate() {
        match prompt {
            Ok(prompt) => {
                fitting.states.push(state);
                fitting.prompts.push(prompt);
                fitting.streams.push(format!("rl {step} {i}"));
            }
            Err(problem) => problems.push(problem),
        }
    }
    let left_out = problems.len();
    match problems.pop() {
        Some(problem) if fitting.states.is_empty() => Err(problem.context(format!("rl step {step}, every state"))),
        Some(problem) => {
            fitting.too_long =
                Some(format!("warning: rl step {step}: {left_out} of {count} states are left out: {problem}"));
            Ok(fitting)
        }
        None => Ok(fitting),
    }
}

/// Writes what a checkpoint holds beside [`Saved`].
fn save(
    dir: &Path,
    environment: &Environment,
    snapshots: &Path,
    record: &[Trajectory],
    learner: &Learner,
) -> Result<()> {
    environment.store.save(snapshots)?;
    trajectory::write_jsonl(&dir.join(RECORD), record)?;
    learner.save(dir)
}

/// Share of edits below which a policy is about to learn to do nothing.
const FEW_EDITS: f64 = 0.2;

fn few_edits(step: usize, share: f64) -> String {
    format!(
        "warning: rl step {step}: {:.0} % of the actions are edits, below {:.0} %: the policy may learn to do nothing; a larger \
         rl.kl_coefficient holds it closer to where it started",
        100.0 * share,
        100.0 * FEW_EDITS
    )
}

/// Consecutive steps in which the replies of every group earned equal rewards, before a warning.
const MOST_DEAD_STEPS: usize = 3;

fn all_dead(step: usize) -> String {
    format!(
        "warning: rl step {step}: in {MOST_DEAD_STEPS} steps in a row the replies of every group earned equal rewards: nothing is learnt \
         from them; more rl.samples, a higher sampling.temperature or other tasks help"
    )
}

/// File of the trajectories recorded so far, in a checkpoint.
const RECORD: &str = "record.jsonl";

/// Greatest mean difference per token between the log-probabilities of engine and trainer; a run stops above it.
const GAUGE_LIMIT: f64 = 0.01;
/// Share of the usable states reached by samples that enter the pool.
const REFRESH: f64 = 0.3;

/// Adds to the pool a random share of the states that this step's samples led to.
fn refresh(pool: &mut StatePool, results: &[StepResult], seed: u64, step: usize) {
    let mut rng = Philox::named(seed, &format!("refresh of step {step}"));
    for result in results {
        let usable = matches!(result.case, Case::Edit | Case::Neutral);
        if rng.uniform() < REFRESH && usable {
            pool.add(result.next.clone(), Origin::Reached);
        }
    }
}

fn one_step(state: &State, step: usize, record: Step, result: &StepResult) -> Trajectory {
    Trajectory {
        steps: vec![record],
        metric_final: result.metric_after,
        metric_best: result.next.best,
        report_final: result.report_after,
        report_best: result.next.best_report,
        ..trajectory::Trajectory::new(&state.task, "rl", step as u64)
    }
}

/// The figures that a step logs.
fn summary(
    states: &[State],
    results: &[StepResult],
    rewards: &[f64],
    logprobs: &[Vec<f32>],
    stats: &UpdateStats,
    samples: usize,
) -> Value {
    let n = results.len() as f64;
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let share = |wanted: Case| results.iter().filter(|r| r.case == wanted).count() as f64 / n;
    let cases: BTreeMap<String, f64> = [Case::Invalid, Case::Error, Case::Neutral, Case::Corner, Case::Edit]
        .map(|c| (c.name().to_string(), share(c)))
        .into();
    let (mut actions, mut by_task, mut by_case) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    for (i, (result, reward)) in results.iter().zip(rewards).enumerate() {
        *actions.entry(result.action.clone()).or_insert(0.0) += 1.0 / n;
        by_task.entry(states[i / samples].task.clone()).or_insert_with(Vec::new).push(*reward);
        by_case.entry(result.case.name().to_string()).or_insert_with(Vec::new).push(*reward);
    }
    let means = |lists: &BTreeMap<String, Vec<f64>>| {
        lists.iter().map(|(k, v)| (k.clone(), mean(v))).collect::<BTreeMap<String, f64>>()
    };
    let flags: BTreeMap<&str, usize> =
        Flag::ALL.map(|f| (f.name(), results.iter().filter(|r| r.flags.contains(&f)).count())).into();
    let edit_share = actions.get("Edit Script").copied().unwrap_or(0.0);
    json!({
        "reward": mean(rewards),
        "edit_reward": by_case.get(Case::Edit.name()).map(|list| mean(list)),
        "edit_share": edit_share,
        "invalid_share": share(Case::Invalid),
        "cases": cases,
        "actions": actions,
        "flags": flags,
        "by_task": means(&by_task),
        "by_case": means(&by_case),
        "kl": stats.policy.kl,
        "entropy": stats.policy.entropy,
        "clip_fraction": stats.policy.clip_fraction,
        "approx_kl": stats.policy.approx_kl,
        "policy_loss": stats.policy.policy_loss,
        "value_loss": stats.value_loss,
        "explained_variance": stats.explained_variance,
        "grad_norm": stats.grad_norm,
        "ratio_max": stats.policy.ratio_max,
        "passes": stats.passes,
        "learning_rate_factor": stats.rate_factor,
        "dead_groups": stats.dead_groups,
        "dropped_groups": stats.dropped_groups,
        "truncated": stats.truncated,
        "reply_tokens": logprobs.iter().map(Vec::len).sum::<usize>() as f64 / n,
        "gauge": stats.gauge,
        "gauge_max": stats.gauge_max,
    })
}
