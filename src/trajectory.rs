//! Records of play: prompts, replies, masks, log-probabilities, rewards; read and written as JSONL, one trajectory a
//! line.

use crate::error::{Error, Result};
use crate::files::write_whole;
use crate::message::{self, Message};
use crate::reward::Case;
use crate::task::Flag;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// One action and its outcome.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// Messages that the agent saw.
    pub prompt: Vec<Message>,
    /// Its reply as text.
    pub reply: String,
    /// Token ids of prompt and reply; empty when no tokenizer was at hand.
    pub ids: Vec<u32>,
    /// As long as `ids`: true where the agent produced the token.
    pub is_sampled: Vec<bool>,
    /// Log-probabilities when sampled, one per true entry of `is_sampled`; empty for an expert.
    pub logprobs: Vec<f32>,
    /// The action's name, or `Invalid`.
    pub action: String,
    /// Its case for the reward.
    pub case: Case,
    /// The reward in the run's form.
    pub reward: f64,
    /// Metric on the reward split before the action.
    pub metric_before: f64,
    /// Metric on the reward split after it; equal to before when nothing was graded.
    pub metric_after: f64,
    /// Metric on the report split before the action.
    pub report_before: f64,
    /// Metric on the report split after it; equal to before when nothing was graded.
    pub report_after: f64,
    /// What is suspicious about the graded submission.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub flags: Vec<Flag>,
    /// Observation that the agent gets.
    pub observation: String,
    /// The observation in a few words, for the compact prompt.
    #[serde(default)]
    pub compact: String,
    /// Content id of the workspace before the action.
    pub snapshot_before: String,
    /// Content id of the workspace after it.
    pub snapshot_after: String,
}

/// One episode, or a single step cut out of one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trajectory {
    /// The task's name.
    pub task: String,
    /// Who played: expert, base, sft or rl.
    pub source: String,
    /// Its place in the run's random streams.
    pub index: u64,
    /// The ideas an expert was given; empty otherwise.
    pub ideas: Vec<String>,
    /// The steps in order.
    pub steps: Vec<Step>,
    /// The metric of the final state on the reward split.
    pub metric_final: f64,
    /// The best metric along the way on the reward split.
    pub metric_best: f64,
    /// The metric of the final state on the report split.
    pub report_final: f64,
    /// The metric on the report split of the state that is best on the reward split.
    pub report_best: f64,
    /// True when the final state has no valid graded run of its own; it then scores as its last graded one, or m_init.
    pub failed: bool,
}

impl Trajectory {
    /// Makes an episode without steps.
    pub fn new(task: &str, source: &str, index: u64) -> Self {
        Self {
            task: task.to_string(),
            source: source.to_string(),
            index,
            ideas: vec![],
            steps: vec![],
            metric_final: f64::NAN,
            metric_best: f64::NAN,
            report_final: f64::NAN,
            report_best: f64::NAN,
            failed: false,
        }
    }
}

/// Text for errors about a line that is not a trajectory.
const EXPECTED: &str = "expected one trajectory a line, as `collect` writes them: {\"task\": \"digits\", \"source\": \"expert\", \
                        \"steps\": [{\"prompt\": [{\"role\": \"user\", \"content\": \"...\"}], \"reply\": \"...\", ...}], ...}";

/// Parses one line of JSONL; errors name `place` (file:line).
pub fn from_line(line: &str, place: &str) -> Result<Trajectory> {
    let trajectory: Trajectory =
        serde_json::from_str(line).map_err(|e| Error::content(format!("{place}: {e}; {EXPECTED}")))?;
    for (i, step) in trajectory.steps.iter().enumerate() {
        let mut keys = step.prompt.iter().flat_map(|message| message.more.keys());
        if let Some(key) = keys.find(|key| !message::FIELDS.contains(&key.as_str())) {
            let known = message::FIELDS.join(", ");
            return Err(Error::content(format!(
                "{place}: step {i}: unknown key `{key}` of a message; expected role, content, {known}"
            )));
        }
        let sampled = step.is_sampled.iter().filter(|&&s| s).count();
        if step.ids.len() != step.is_sampled.len() || !(step.logprobs.is_empty() || step.logprobs.len() == sampled) {
            return Err(Error::content(format!(
                "{place}: step {i} has {} ids, {} entries of is_sampled ({sampled} true) and {} logprobs; expected as many \
                 is_sampled as ids, and no logprobs or one for each true",
                step.ids.len(),
                step.is_sampled.len(),
                step.logprobs.len()
            )));
        }
    }
    Ok(trajectory)
}

/// Reads the trajectories of a JSONL file, in order. Blank lines are skipped. Error: a malformed line, with its number.
pub fn read_jsonl(path: &Path) -> Result<Vec<Trajectory>> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io("reading", path, &e))?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines.map(|(i, line)| from_line(line, &format!("{}:{}", path.display(), i + 1))).collect()
}

/// Writes trajectories as JSONL; the file appears complete or not at all.
pub fn write_jsonl(path: &Path, trajectories: &[Trajectory]) -> Result<()> {
    let mut bytes = Vec::new();
    for trajectory in trajectories {
        serde_json::to_writer(&mut bytes, trajectory)
            .map_err(|e| Error::system(format!("writing {}: task {}: {e}", path.display(), trajectory.task)))?;
        bytes.push(b'\n');
    }
    write_whole(path, &bytes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn trajectory() -> Trajectory {
        let step = Step {
            prompt: vec![Message::new("user", "line\nbreak \u{2028} \"quote\"")],
            reply: "Action: x".into(),
            ids: vec![1, 2, 3],
            is_sampled: vec![false, true, true],
            logprobs: vec![-0.1, -1.0 / 3.0],
            action: "Edit Script".into(),
            case: Case::Edit,
            reward: 0.1 + 0.2,
            metric_before: 1.0 / 3.0,
            metric_after: 0.5,
            report_before: 1.0 / 7.0,
            report_after: 0.4,
            flags: vec![Flag::TooGood],
            observation: "ok".into(),
            compact: "ok".into(),
            snapshot_before: "a".into(),
            snapshot_after: "b".into(),
        };
        Trajectory {
            task: "digits".into(),
            source: "sft".into(),
            index: 3,
            ideas: vec!["scale".into()],
            steps: vec![step],
            metric_final: 0.5,
            metric_best: 0.5,
            report_final: 0.4,
            report_best: 0.4,
            failed: false,
        }
    }

    #[test]
    fn trajectories_come_back_to_the_last_bit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.jsonl");
        let all = [trajectory(), Trajectory { steps: vec![], ..trajectory() }];
        write_jsonl(&path, &all).unwrap();
        assert_eq!(read_jsonl(&path).unwrap(), all);
        write_jsonl(&path, &[]).unwrap();
        assert!(read_jsonl(&path).unwrap().is_empty());
    }

    #[test]
    fn malformed_lines_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.jsonl");
        let check = |line: &str, part: &str| {
            let good = serde_json::to_string(&trajectory()).unwrap();
            std::fs::write(&path, format!("{good}\n\n{line}\n")).unwrap();
            let error = read_jsonl(&path).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains("t.jsonl:3") && error.to_string().contains(part), "{error}");
        };
        check("{\"task\":", "expected one trajectory a line");
        check("{\"task\": \"x\"}", "missing field");
        let mut wrong = trajectory();
        wrong.steps[0].is_sampled.pop();
        wrong.steps[0].logprobs.clear();
        check(&serde_json::to_string(&wrong).unwrap(), "step 0 has 3 ids, 2 entries");
        wrong = trajectory();
        wrong.steps[0].logprobs.pop();
        check(&serde_json::to_string(&wrong).unwrap(), "1 logprobs");
        assert_eq!(read_jsonl(&folder.path().join("none")).unwrap_err().exit_code(), 2);
    }
}
