//! The viewer of trajectories: shows each step's action, reply, observation with coloured diffs, case and reward.

use super::html::{escape, fixed, number};
use super::sections::{absent, case_colour};
use crate::message::Message;
use crate::reward::Case;
use crate::trajectory::{Step, Trajectory};
use std::collections::{BTreeMap, BTreeSet};

/// Trajectories shown per task and player, so that the page stays readable and small enough to send.
const SHOWN: usize = 4;

/// The section of trajectories.
pub fn trajectories(all: &[Trajectory]) -> String {
    if all.is_empty() {
        return absent("trajectories (trajectories/*.jsonl)");
    }
    let mut seen: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    let shown: Vec<&Trajectory> = all
        .iter()
        .filter(|t| {
            let count = seen.entry((&t.task, &t.source)).or_default();
            *count += 1;
            *count <= SHOWN
        })
        .collect();
    let options = |name: &str, of: fn(&Trajectory) -> &String| {
        let values: BTreeSet<&String> = shown.iter().map(|t| of(t)).collect();
        let option = |v: &&String| format!("<option>{}</option>", escape(v));
        let options: String = values.iter().map(option).collect();
        format!(r#"<label>{name} <select><option value="">all</option>{options}</select></label>"#)
    };
    let (task, source) = (options("task", |t| &t.task), options("played by", |t| &t.source));
    let cards: String = shown.iter().map(|t| card(t)).collect();
    format!(
        r#"<p class="note">The first {SHOWN} of each task and player: {} of {}.</p><div class="pick" hidden>{task}{source}<output class="muted"></output></div>{cards}"#,
        shown.len(),
        all.len()
    )
}

fn card(trajectory: &Trajectory) -> String {
    let ideas = match trajectory.ideas.as_slice() {
        [] => String::new(),
        ideas => format!(r#"<p class="note">Ideas given: {}</p>"#, escape(&ideas.join("; "))),
    };
    let start = trajectory.steps.first().map_or(f64::NAN, |s| s.metric_before);
    let steps: String = trajectory.steps.iter().enumerate().map(|(i, s)| step(i, s)).collect();
    let failed = if trajectory.failed { r#"<span class="tag c3">no graded final state</span>"# } else { "" };
    format!(
        r#"<details data-task="{task}" data-source="{source}"><summary><b>{task}</b><span class="muted">{source} #{}</span><span class="muted">{} step{}</span><span>{} → {} <span class="muted">best {}, final on the report split {}</span></span>{failed}</summary>{ideas}{steps}</details>"#,
        trajectory.index,
        trajectory.steps.len(),
        if trajectory.steps.len() == 1 { "" } else { "s" },
        number(start),
        number(trajectory.metric_final),
        number(trajectory.metric_best),
        number(trajectory.report_final),
        task = escape(&trajectory.task),
        source = escape(&trajectory.source),
    )
}

fn step(index: usize, step: &Step) -> String {
    let case = name(step.case);
    let metric = if step.case == Case::Edit {
        format!("<span>{} → {}</span>", number(step.metric_before), number(step.metric_after))
    } else {
        String::new()
    };
    let flags: String = step.flags.iter().map(|f| format!(r#"<span class="tag c3">{}</span>"#, f.name())).collect();
    let prompt: String = step.prompt.iter().map(message).collect();
    format!(
        r#"<div class="step"><header><span class="muted">{}</span><b>{}</b><span class="tag c{}">{case}</span><span>reward {}</span>{metric}{flags}</header>
        <h4>reply</h4><pre>{}</pre><h4>observation</h4><pre>{}</pre>
        <details><summary>what the agent saw</summary>{prompt}</details></div>"#,
        index + 1,
        escape(&step.action),
        case_colour(case),
        fixed(step.reward, 3),
        escape(step.reply.trim_end()),
        diff(&step.observation),
    )
}

fn message(message: &Message) -> String {
    format!("<h4>{}</h4><pre>{}</pre>", escape(&message.role), escape(message.content.trim_end()))
}

/// The name of a case, as reward.rs writes it.
fn name(case: Case) -> &'static str {
    match case {
        Case::Invalid => "invalid",
        Case::Error => "error",
        Case::Neutral => "neutral",
        Case::Corner => "corner",
        Case::Edit => "edit",
    }
}

/// Escapes a text and colours the lines of unified diffs in it. A diff begins with a `---` line followed by a `+++`
/// line and ends at the first line that cannot be part of it.
pub(super) fn diff(text: &str) -> String {
    let lines: Vec<&str> = text.trim_end().lines().collect();
    let mut out = String::new();
    let mut inside = false;
    for (i, line) in lines.iter().enumerate() {
        let opens = line.starts_with("--- ") && lines.get(i + 1).is_some_and(|next| next.starts_with("+++ "));
        inside = opens || (inside && (line.is_empty() || line.starts_with([' ', '+', '-', '@', '\\'])));
        let tag = match line.chars().next() {
            _ if opens || (inside && (line.starts_with("+++ ") || line.starts_with("@@"))) => Some("b"),
            Some('+') if inside => Some("ins"),
            Some('-') if inside => Some("del"),
            _ => None,
        };
        match tag {
            // These elements are blocks: a line break after one would show as an empty line.
            Some(tag) => out += &format!("<{tag}>{}</{tag}>", escape(line)),
            None => out += &format!("{}\n", escape(line)),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_lines_of_a_diff_are_coloured() {
        let text = "Changed:\n- a list\n--- t.py\n+++ t.py\n@@ -1,2 +1,2 @@\n x < 1\n-a\n+b\nIt ran.\n- no\n+ no\n";
        let expected = "Changed:\n- a list\n<b>--- t.py</b><b>+++ t.py</b><b>@@ -1,2 +1,2 @@</b> x &lt; 1\n<del>-a</del><ins>+b</ins>It ran.\n- no\n+ no\n";
        assert_eq!(diff(text), expected);
    }
}
