//! Pool of states from which step-wise reinforcement learning starts: states of expert trajectories, first states of
//! tasks, and states that earlier samples led to. Draws are balanced over tasks, and each state is held once.

use crate::environment::{SnapshotId, State, Turn};
use crate::rng::Philox;
use crate::task::Task;
use crate::trajectory::Trajectory;
use std::collections::{BTreeMap, HashSet};

/// Restorable states by task.
#[derive(Debug, Clone, Default)]
pub struct StatePool {
    tasks: BTreeMap<String, TaskStates>,
    seen: HashSet<String>,
}

#[derive(Debug, Clone, Default)]
struct TaskStates {
    first: Option<State>,
    expert: Vec<State>,
    reached: Vec<State>,
}

/// Where a state came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// A task's first state.
    First,
    /// An expert's trajectory.
    Expert,
    /// An earlier sample of this run.
    Reached,
}

/// Makes the key of a state; two states with the same task, files and history are one.
fn key(state: &State) -> String {
    let said: Vec<&str> = state.history.iter().flat_map(|t| [t.reply.as_str(), t.observation.as_str()]).collect();
    format!("{} {} {}", state.task, state.snapshot, blake3::hash(said.join("\0").as_bytes()))
}

/// Returns the state before each step of a recorded episode.
pub fn states(trajectory: &Trajectory, task: &Task) -> Vec<State> {
    let (mut history, mut best, mut best_report) = (vec![], task.m_init, task.report.m_init);
    let one = |(steps, step): (usize, &crate::trajectory::Step)| {
        if (step.metric_before > best) == task.metric.higher_is_better() {
            (best, best_report) = (step.metric_before, step.report_before);
        }
        let state = State {
            task: trajectory.task.clone(),
            snapshot: SnapshotId(step.snapshot_before.clone()),
            history: history.clone(),
            metric: step.metric_before,
            report: step.report_before,
            best,
            best_report,
            graded_final: true,
            steps,
            seconds: 0.0,
            done: false,
        };
        history.push(Turn {
            reply: step.reply.clone(),
            observation: step.observation.clone(),
            compact: step.compact.clone(),
        });
        state
    };
    trajectory.steps.iter().enumerate().map(one).collect()
}

impl StatePool {
    /// Adds a state unless an equal one is there or its episode is over; returns whether it was added.
    pub fn add(&mut self, state: State, origin: Origin) -> bool {
        if state.done || !self.seen.insert(key(&state)) {
            return false;
        }
        let states = self.tasks.entry(state.task.clone()).or_default();
        match origin {
            Origin::First => states.first = Some(state),
            Origin::Expert => states.expert.push(state),
            Origin::Reached => states.reached.push(state),
        }
        true
    }

    /// Draws `n` states for one step. Tasks take turns, going on where the previous step stopped. Each state is a first
    /// state with probability `initial`, else a reached one with probability `refresh`, else an expert's; if the task
    /// has none of that kind, it is one of another kind.
    pub fn draw(&self, n: usize, step: usize, seed: u64, initial: f64, refresh: f64) -> Vec<State> {
        let tasks: Vec<&TaskStates> = self.tasks.values().collect();
        let mut rng = Philox::named(seed, &format!("states of step {step}"));
        let one = |i: usize| {
            let states = tasks[(step * n + i) % tasks.len()];
            let (u, v) = (rng.uniform(), rng.uniform());
            let lists = if v < refresh { [&states.reached, &states.expert] } else { [&states.expert, &states.reached] };
            let drawn = lists.into_iter().find(|list| !list.is_empty()).map(|list| rng.choose(list));
            let first = states.first.as_ref();
            let (one, other) = if u < initial { (first, drawn) } else { (drawn, first) };
            one.or(other).cloned()
        };
        if tasks.is_empty() { vec![] } else { (0..n).filter_map(one).collect() }
    }

    /// Returns the states that earlier samples led to, for a checkpoint: task by task, in the order in which they were
    /// added.
    pub fn reached(&self) -> impl Iterator<Item = &State> {
        self.tasks.values().flat_map(|t| &t.reached)
    }

    /// Describes the pool for the user: `digits 40+3, ...` (expert + reached).
    pub fn summary(&self) -> String {
        let one = |(name, t): (&String, &TaskStates)| format!("{name} {}+{}", t.expert.len(), t.reached.len());
        self.tasks.iter().map(one).collect::<Vec<_>>().join(", ")
    }

    /// Returns the number of states.
    pub fn len(&self) -> usize {
        self.seen.len()
    }

    /// True when there is no state.
    pub fn is_empty(&self) -> bool {
        self.seen.is_empty()
    }
}
