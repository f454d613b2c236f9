//! Plays whole episodes on tasks and scores them on the report split, which no reward saw: avg@n, best@n and gain
//! (ML-Agent, arXiv 2505.23723, section 4.1); in addition the normalised score (m - m_init)/(m_best - m_init) with
//! bootstrap intervals, the best state along the way, and the failed share.

use crate::agent::{self, Agent};
use crate::console::errln;
use crate::environment::{Environment, State};
use crate::error::{Error, Result, check_interrupt};
use crate::identity::Identity;
use crate::model::Policy;
use crate::progress::Progress;
use crate::reward;
use crate::rng::Philox;
use crate::settings::section;
use crate::task::Task;
use crate::trajectory::Trajectory;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;

section! {
    /// `[eval]`
    Settings { trajectories: usize, source: String }
}

/// Lower bound of a normalised score: without it one bad edit on an unbounded metric would outweigh all else. `avg` is
/// not clipped.
pub const LOWEST: f64 = -1.0;
/// Bootstrap resamples behind every interval.
const RESAMPLES: usize = 2000;

/// One task's figures over n trajectories.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskScore {
    /// True when the task was never trained on.
    pub held_out: bool,
    /// The metric's name.
    pub metric: String,
    /// The baseline's metric; it and all figures below are on the report split.
    pub m_init: f64,
    /// The metric of the task's stated best.
    pub m_best: f64,
    /// Mean metric of the final states.
    pub avg: f64,
    /// Standard deviation of the final metrics over trajectories (n - 1).
    pub std: f64,
    /// Best metric among the final states.
    pub best: f64,
    /// Mean over trajectories of the metric of each one's best state, chosen on the reward split.
    pub best_state: f64,
    /// beta (avg - m_init) / m_init, with beta = -1 where lower is better, else 1.
    pub gain: f64,
    /// Mean of (m - m_init) / (m_best - m_init) of the final states, each at least `LOWEST`.
    pub normalised: f64,
    /// (best_state - m_init) / (m_best - m_init), not clipped.
    pub normalised_best_state: f64,
    /// Lower end of the 95 % bootstrap interval of `normalised`.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
    /// Share of trajectories whose final state was never graded; they score as their last graded state, or m_init.
    pub failed: f64,
    /// Normalised score of each trajectory, at least `LOWEST`.
    pub scores: Vec<f64>,
    /// Graded steps with each flag; only flags that occur.
    #[serde(default)]
    pub flags: BTreeMap<String, usize>,
}

/// A mean over tasks with its interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Mean {
    /// Mean over tasks of the mean over trajectories.
    pub normalised: f64,
    /// Lower end of the 95 % bootstrap interval; trajectories are resampled within tasks.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
}

/// One policy's evaluation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Mean over the held-in tasks evaluated, if there are any.
    pub held_in: Option<Mean>,
    /// Mean over the held-out tasks evaluated, if there are any.
    pub held_out: Option<Mean>,
    /// Scores by task.
    pub tasks: BTreeMap<String, TaskScore>,
    /// What was played: model, adapter, tasks, settings, seed. `None` in files of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub played: Option<Identity>,
}

/// evaluation.json: policies by name (base, sft, rl, ...) and how they differ.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Evaluations {
    /// Evaluations by policy.
    pub policies: BTreeMap<String, Evaluation>,
    /// "rl - sft" and the like: difference of normalised scores, held in and held out.
    #[serde(default)]
    pub differences: BTreeMap<String, BTreeMap<String, Mean>>,
}

impl Evaluations {
    /// The name for `played`: `wanted` if it is free or already stands for the same, else `wanted`-2, `wanted`-3, ...
    /// `is_free` says whether nothing else has a name.
    pub fn name_for(&self, wanted: &str, played: &Identity, is_free: impl Fn(&str) -> bool) -> String {
        let fits = |name: &String| match self.policies.get(name) {
            Some(earlier) => earlier.played.as_ref().is_some_and(|earlier| earlier.is_same_but_for_the_build(played)),
            None => is_free(name),
        };
        let numbered = (2..).map(|number| format!("{wanted}-{number}"));
        std::iter::once(wanted.to_string()).chain(numbered).find(fits).unwrap_or_default()
    }

    /// Adds a policy, replacing one of its name, and its differences to the others. A pair that is already there keeps
    /// its direction.
    pub fn insert(&mut self, name: &str, evaluation: Evaluation) {
        for (other, before) in self.policies.iter().filter(|(other, _)| *other != name) {
            let (forward, backward) = (format!("{name} - {other}"), format!("{other} - {name}"));
            let is_backward = self.differences.contains_key(&backward);
            if is_backward {
                self.differences.insert(backward, differences(&evaluation, before));
            }
            if !is_backward || self.differences.contains_key(&forward) {
                self.differences.insert(forward, differences(before, &evaluation));
            }
        }
        self.policies.insert(name.to_string(), evaluation);
    }
}

/// How a policy is evaluated.
pub struct Plan<'a> {
    /// The policy's name, which names its random streams too.
    pub name: &'a str,
    /// Episodes per task.
    pub trajectories: usize,
    /// The run's seed.
    pub seed: u64,
    /// How steps are rewarded in the record.
    pub reward: &'a reward::Settings,
    /// Set when the user wants to stop.
    pub interrupted: &'a AtomicBool,
}

/// Plays the planned episodes of every task in lockstep: the next actions of all live episodes are sampled in one batch
/// and executed in one batch. An episode whose prompt no longer fits ends with its last graded state; stderr says how
/// many did.
///
/// # Errors
/// Content: no episode's first prompt fits. A sandbox that fails; interrupted.
pub fn play(
    agent: &mut Agent,
    policy: Policy,
    environment: &Environment,
    tasks: &[String],
    plan: &Plan,
) -> Result<Vec<Trajectory>> {
    let Plan { name, trajectories, seed, .. } = *plan;
    struct Episode {
        state: State,
        record: Trajectory,
    }
    let mut episodes: Vec<Episode> = vec![];
    for task in tasks {
        for index in 0..trajectories {
            let record = Trajectory::new(task, name, index as u64);
            episodes.push(Episode { state: environment.reset(task)?, record });
        }
    }
    let mut progress = Progress::new(format!("eval {name}"), environment.settings().max_steps, 0);
    let mut too_long: BTreeMap<String, (usize, Error)> = BTreeMap::new();
    for round in 1.. {
        check_interrupt(plan.interrupted)?;
        let live: Vec<usize> = (0..episodes.len()).filter(|&i| !episodes[i].state.done).collect();
        if live.is_empty() {
            break;
        }
        let states: Vec<&State> = live.iter().map(|&i| &episodes[i].state).collect();
        let (mut playable, mut prompts) = (vec![], vec![]);
        for (i, prompt) in live.into_iter().zip(agent.prompts(environment, &states, 1)?) {
            match prompt {
                Ok(prompt) => {
                    playable.push(i);
                    prompts.push(prompt);
                }
                Err(problem) => {
                    episodes[i].state.done = true;
                    too_long.entry(episodes[i].record.task.clone()).or_insert((0, problem)).0 += 1;
                }
            }
        }
        let live = playable;
        let streams: Vec<String> = live
            .iter()
            .map(|&i| {
                let e = &episodes[i];
                format!("eval {name} {} {} {}", e.record.task, e.record.index, e.state.steps)
            })
            .collect();
        let replies = agent.act(policy, &prompts, 1, seed, &streams)?;
        let actions = live.iter().zip(&replies).map(|(&i, r)| (episodes[i].state.clone(), r[0].text.clone()));
        let results = environment.step_many(actions.collect())?;
        let drawn = replies.iter().flatten().map(|reply| reply.ids.len()).sum();
        let mut rewards = 0.0;
        for (((&i, result), prompt), mut reply) in live.iter().zip(results).zip(prompts).zip(replies) {
            let episode = &mut episodes[i];
            let reward = plan.reward.of(result.case, result.share, !result.flags.is_empty());
            episode.record.steps.push(agent::record_sampled(&episode.state, prompt, reply.remove(0), &result, reward));
            episode.state = result.next;
            rewards += reward;
        }
        let open = episodes.iter().filter(|e| !e.state.done).count();
        let mean = rewards / live.len().max(1) as f64;
        progress.advance(round, drawn, &format!("reward {mean:+.3}, {open} of {} episodes under way", episodes.len()));
    }
    progress.finish();
    for (task, (count, problem)) in too_long {
        if episodes.iter().all(|episode| episode.record.steps.is_empty()) {
            return Err(problem);
        }
        errln!(
            "note: {count} of {trajectories} episodes of {task} ended before their last step and score as their last graded state: {problem}"
        );
    }
    let finish = |Episode { state, mut record }: Episode| {
        (record.metric_final, record.metric_best) = (state.metric, state.best);
        (record.report_final, record.report_best) = (state.report, state.best_report);
        record.failed = !state.graded_final;
        record
    };
    Ok(episodes.into_iter().map(finish).collect())
}

/// Scores one policy's trajectories by task.
pub fn score<'a>(tasks: impl IntoIterator<Item = &'a Task>, trajectories: &[Trajectory]) -> Evaluation {
    let mut scores = BTreeMap::new();
    for task in tasks {
        let own: Vec<&Trajectory> = trajectories.iter().filter(|t| t.task == task.name).collect();
        if !own.is_empty() {
            scores.insert(task.name.clone(), task_score(task, &own));
        }
    }
    let mean = |held_out: bool| {
        let lists: Vec<&[f64]> =
            scores.values().filter(|s: &&TaskScore| s.held_out == held_out).map(|s| s.scores.as_slice()).collect();
        (!lists.is_empty()).then(|| bootstrap(&lists))
    };
    Evaluation { held_in: mean(false), held_out: mean(true), tasks: scores, played: None }
}

fn task_score(task: &Task, own: &[&Trajectory]) -> TaskScore {
    let finals: Vec<f64> = own.iter().map(|t| t.report_final).collect();
    let n = own.len() as f64;
    let avg = average(&finals);
    let variance = finals.iter().map(|m| (m - avg) * (m - avg)).sum::<f64>() / (n - 1.0).max(1.0);
    let higher = task.metric.higher_is_better();
    let better = |a: f64, b: f64| if (b > a) == higher { b } else { a };
    let best_state = average(&own.iter().map(|t| t.report_best).collect::<Vec<_>>());
    let scores: Vec<f64> = finals.iter().map(|&m| task.report.normalised(m).max(LOWEST)).collect();
    let mean = bootstrap(&[&scores]);
    TaskScore {
        held_out: task.held_out,
        metric: task.metric.name().to_string(),
        m_init: task.report.m_init,
        m_best: task.report.m_best,
        avg,
        std: variance.sqrt(),
        best: finals.iter().copied().fold(finals[0], better),
        best_state,
        gain: if higher { 1.0 } else { -1.0 } * (avg - task.report.m_init) / task.report.m_init,
        normalised: mean.normalised,
        normalised_best_state: task.report.normalised(best_state),
        low: mean.low,
        high: mean.high,
        failed: own.iter().filter(|t| t.failed).count() as f64 / n,
        scores,
        flags: count_flags(own),
    }
}

fn count_flags(own: &[&Trajectory]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for flag in own.iter().flat_map(|t| &t.steps).flat_map(|s| &s.flags) {
        *counts.entry(flag.name().to_string()).or_insert(0) += 1;
    }
    counts
}

/// One line for each policy with flagged submissions: which flags, and on which tasks.
pub fn flagged(evaluations: &Evaluations) -> Vec<String> {
    let of_task = |(name, task): (&String, &TaskScore)| {
        let counts: Vec<String> = task.flags.iter().map(|(flag, count)| format!("{flag} {count}")).collect();
        (!counts.is_empty()).then(|| format!("{name} {}", counts.join(" ")))
    };
    let of_policy = |(policy, evaluation): (&String, &Evaluation)| {
        let tasks: Vec<String> = evaluation.tasks.iter().filter_map(of_task).collect();
        (!tasks.is_empty()).then(|| format!("flagged submissions of {policy}: {}", tasks.join(", ")))
    };
    evaluations.policies.iter().filter_map(of_policy).collect()
}

fn average(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Mean of the lists' means, with the 2.5 % and 97.5 % points over resamples within each list.
fn bootstrap(lists: &[&[f64]]) -> Mean {
    let mean = |draw: &mut dyn FnMut(&[f64]) -> f64| average(&lists.iter().map(|list| draw(list)).collect::<Vec<_>>());
    let normalised = mean(&mut |list| average(list));
    let mut rng = Philox::new(0, 0);
    let mut resamples: Vec<f64> = (0..RESAMPLES)
        .map(|_| mean(&mut |list| (0..list.len()).map(|_| *rng.choose(list)).sum::<f64>() / list.len() as f64))
        .collect();
    resamples.sort_by(f64::total_cmp);
    Mean { normalised, low: resamples[RESAMPLES / 40], high: resamples[RESAMPLES - 1 - RESAMPLES / 40] }
}

/// After minus before, held in and held out where both have played.
fn differences(before: &Evaluation, after: &Evaluation) -> BTreeMap<String, Mean> {
    let sides = [("held_in", false), ("held_out", true)];
    let mean = |(key, held_out): (&str, bool)| Some((key.to_string(), difference(before, after, held_out)?));
    sides.into_iter().filter_map(mean).collect()
}

/// After minus before over the tasks both have played.
fn difference(before: &Evaluation, after: &Evaluation, held_out: bool) -> Option<Mean> {
    let mut sides: [Vec<&[f64]>; 2] = [vec![], vec![]];
    for (name, task) in after.tasks.iter().filter(|(_, t)| t.held_out == held_out) {
        if let Some(earlier) = before.tasks.get(name) {
            sides[0].push(&earlier.scores);
            sides[1].push(&task.scores);
        }
    }
    if sides[0].is_empty() {
        return None;
    }
    let (a, b) = (bootstrap(&sides[0]), bootstrap(&sides[1]));
    // Independent samples: half-widths add in squares.
    let middle = b.normalised - a.normalised;
    let low = ((b.normalised - b.low).powi(2) + (a.high - a.normalised).powi(2)).sqrt();
    let high = ((b.high - b.normalised).powi(2) + (a.normalised - a.low).powi(2)).sqrt();
    Some(Mean { normalised: middle, low: middle - low, high: middle + high })
}

/// The table of an evaluation, for a terminal.
pub fn table(evaluations: &Evaluations) -> String {
    // In the order of training, others last.
    let place = |name: &&String| ["base", "sft", "rl"].iter().position(|p| p == name).unwrap_or(3);
    let mut names: Vec<&String> = evaluations.policies.keys().collect();
    names.sort_by_key(place);
    let mut text = format!("{:<11}{:<9}{:>10}{:>10}", "task", "metric", "m_init", "m_best");
    for name in &names {
        text += &format!(" | {:>9}{:>10}{:>8}{:>7}", format!("{name} avg"), "best", "norm", "failed");
    }
    text.push('\n');
    let rows: BTreeMap<(bool, &String), &TaskScore> =
        evaluations.policies.values().flat_map(|e| &e.tasks).map(|(n, t)| ((t.held_out, n), t)).collect();
    for ((_, name), task) in rows {
        text += &format!("{:<11}{:<9}{:>10.4}{:>10.4}", name, task.metric, task.m_init, task.m_best);
        for policy in &names {
            match evaluations.policies[*policy].tasks.get(name) {
                Some(t) => {
                    let (avg, best) = (number(t.avg), number(t.best));
                    text += &format!(" | {avg:>9}{best:>10}{:>8.3}{:>6.0}%", t.normalised, 100.0 * t.failed);
                }
                None => text += &format!(" | {:>9}{:>10}{:>8}{:>7}", "-", "-", "-", "-"),
            }
        }
        text.push('\n');
    }
    for (label, held_out) in [("held-in", false), ("held-out", true)] {
        let mut line = format!("{label:<40}");
        let mut any = false;
        for policy in &names {
            let e = &evaluations.policies[*policy];
            match if held_out { e.held_out } else { e.held_in } {
                Some(m) => {
                    line += &format!(" | {:>34}", format!("{:.3} [{:.3}, {:.3}]", m.normalised, m.low, m.high));
                    any = true;
                }
                None => line += &format!(" | {:>34}", "-"),
            }
        }
        if any {
            text += &line;
            text.push('\n');
        }
    }
    flagged(evaluations).iter().for_each(|line| text += &format!("{line}\n"));
    text
}

/// Four decimals; from 1e4 on, which one bad edit can reach on an unbounded metric, an exponent.
fn number(x: f64) -> String {
    if x.abs() < 1e4 { format!("{x:.4}") } else { format!("{x:.1e}") }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn the_report_split_is_what_is_scored() {
        let tasks = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/tasks");
        let digits = Task::load(&tasks.join("digits")).unwrap();
        let (init, gap) = (digits.report.m_init, digits.report.m_best - digits.report.m_init);
        let played = |of_final: f64, of_best: f64| Trajectory {
            // If a reward metric were read by mistake, the scores would be far off.
            metric_final: 1e6,
            metric_best: 1e6,
            report_final: init + of_final * gap,
            report_best: init + of_best * gap,
            ..Trajectory::new("digits", "rl", 0)
        };
        let evaluation = score([&digits], &[played(0.25, 0.5), played(0.75, 1.0)]);
        let found = &evaluation.tasks["digits"];
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} is not {b}");
        assert_eq!((found.m_init, found.m_best), (digits.report.m_init, digits.report.m_best));
        close(found.avg, init + 0.5 * gap);
        close(found.best, init + 0.75 * gap);
        close(found.gain, 0.5 * gap / init);
        close(found.normalised, 0.5);
        close(found.normalised_best_state, 0.75);
        assert!(found.flags.is_empty() && !table(&evaluations(evaluation)).contains("flagged"));
    }

    fn evaluations(evaluation: Evaluation) -> Evaluations {
        let mut all = Evaluations::default();
        all.insert("rl", evaluation);
        all
    }

    #[test]
    fn flagged_submissions_are_counted_in_a_line() {
        let tasks = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/tasks");
        let digits = Task::load(&tasks.join("digits")).unwrap();
        let step = |flags: &[&str]| {
            let text = serde_json::json!({"prompt": [], "reply": "", "ids": [], "is_sampled": [], "logprobs": [], "action": "Edit Script",
                "case": "edit", "reward": 0, "metric_before": 0, "metric_after": 0, "report_before": 0, "report_after": 0,
                "flags": flags, "observation": "", "snapshot_before": "", "snapshot_after": ""});
            serde_json::from_value::<crate::trajectory::Step>(text).unwrap()
        };
        let played = Trajectory {
            steps: vec![step(&["constant"]), step(&[]), step(&["constant", "too_good"])],
            report_final: 0.5,
            report_best: 0.5,
            ..Trajectory::new("digits", "rl", 0)
        };
        let text = table(&evaluations(score([&digits], &[played])));
        assert!(text.ends_with("\nflagged submissions of rl: digits constant 2 too_good 1\n"), "{text}");
    }

    #[test]
    fn a_policy_that_is_replaced_leaves_no_old_difference() {
        let tasks = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/tasks");
        let digits = Task::load(&tasks.join("digits")).unwrap();
        let scored = |share: f64| {
            let of_split = digits.report.m_init + share * (digits.report.m_best - digits.report.m_init);
            let played = Trajectory { report_final: of_split, ..Trajectory::new("digits", "any", 0) };
            score([&digits], &[played])
        };
        let mut all = Evaluations::default();
        for (name, share) in [("base", 0.0), ("sft", 0.25), ("rl", 0.75), ("sft", 0.5)] {
            all.insert(name, scored(share));
        }
        let pairs: Vec<&String> = all.differences.keys().collect();
        assert_eq!(pairs, ["rl - base", "rl - sft", "sft - base"]);
        for (pair, expected) in [("rl - base", 0.75), ("rl - sft", 0.25), ("sft - base", 0.5)] {
            let mean = all.differences[pair].values().next().unwrap();
            assert!((mean.normalised - expected).abs() < 1e-9, "{pair}: {mean:?}");
        }
    }

    #[test]
    fn bootstrap_of_constant_lists_has_no_width() {
        let mean = bootstrap(&[&[0.5, 0.5], &[1.0]]);
        assert_eq!(mean, Mean { normalised: 0.75, low: 0.75, high: 0.75 });
    }

    #[test]
    fn bootstrap_interval_is_near_the_normal_one() {
        // 100 values of deviation 1: the standard error is 0.1, the 95 % interval about +-0.196.
        let mut rng = Philox::new(3, 0);
        let values: Vec<f64> = (0..100).map(|_| rng.normal()).collect();
        let mean = bootstrap(&[&values]);
        assert!(mean.low < mean.normalised && mean.normalised < mean.high);
        let width = mean.high - mean.low;
        assert!((0.3..0.5).contains(&width), "width {width}");
    }
}
