//! Turns a state into the messages that the agent sees, in two styles: compact for the small bundled model, full for
//! any other.

use super::action::ReplyFormat;
use super::record::Files;
use super::settings::{Settings, Style};
use super::state::{State, cut_middle};
use crate::error::Result;
use crate::message::Message;
use crate::task::{PreparedTask, Task};

/// Builds the messages of a state, not shortened. `files` are those of the state's snapshot.
pub fn messages(state: &State, files: &Files, prepared: &PreparedTask, settings: &Settings) -> Vec<Message> {
    match settings.prompt {
        Style::Compact => {
            let task = &prepared.task;
            let script = files.get(&task.entry).map_or("", |text| text);
            let last = state.history.last().map_or("start", |turn| &turn.compact);
            vec![Message::new("user", compact(task, script, last))]
        }
        Style::Full => full(state, prepared, settings, 0, 0),
    }
}

/// Builds the messages of a state, shortened until `count` of them (for example in tokens) is at most `limit`: first
/// observations are replaced by their compact form, oldest first; then whole turns are left out, oldest first. If even
/// the shortest form, the task and the last turn, is too long, the inner Err holds its count.
///
/// # Errors
/// Those of `count`.
pub fn messages_within(
    state: &State,
    files: &Files,
    prepared: &PreparedTask,
    settings: &Settings,
    count: &dyn Fn(&[Message]) -> Result<usize>,
    limit: usize,
) -> Result<std::result::Result<Vec<Message>, usize>> {
    let all = messages(state, files, prepared, settings);
    let mut shortest = count(&all)?;
    if shortest <= limit {
        return Ok(Ok(all));
    }
    let turns = if settings.prompt == Style::Full { state.history.len() } else { 0 };
    let shortened = (1..=turns).map(|shortened| (shortened, 0));
    let dropped = (1..turns).map(|dropped| (turns, dropped));
    for (shortened, dropped) in shortened.chain(dropped) {
        let messages = full(state, prepared, settings, shortened, dropped);
        shortest = count(&messages)?;
        if shortest <= limit {
            return Ok(Ok(messages));
        }
    }
    Ok(Err(shortest))
}

/// Builds the compact prompt from its parts. The small base model is trained on it too.
pub fn compact(task: &Task, script: &str, last: &str) -> String {
    let direction = if task.metric.higher_is_better() { "higher" } else { "lower" };
    compact_text(&task.description, task.metric.name(), direction, &task.entry, script, last)
}

/// Builds the compact prompt from plain text, for scripts that belong to no task.
pub fn compact_text(description: &str, metric: &str, direction: &str, entry: &str, script: &str, last: &str) -> String {
    let description = description.trim_end_matches('.');
    let newline = if script.ends_with('\n') { "" } else { "\n" };
    format!("Task: {description}. {metric}, {direction} is better.\n{entry}:\n{script}{newline}Last: {last}")
}

/// Builds the full prompt: system message, task, and the turns from `dropped` on. The first `shortened` of all turns
/// have compact observations.
fn full(state: &State, prepared: &PreparedTask, settings: &Settings, shortened: usize, dropped: usize) -> Vec<Message> {
    let mut task = task_text(prepared, settings);
    if dropped > 0 {
        task.push_str(&format!("\n\nThe first {dropped} steps are left out here."));
    }
    let mut messages = vec![Message::new("system", system_text(settings)), Message::new("user", task)];
    for (i, turn) in state.history.iter().enumerate().skip(dropped) {
        messages.push(Message::new("assistant", turn.reply.clone()));
        let observation = if i < shortened { &turn.compact } else { &turn.observation };
        messages.push(Message::new("user", format!("Observation: {observation}")));
    }
    messages
}

fn system_text(settings: &Settings) -> String {
    let (fields, thought) = match settings.format {
        ReplyFormat::NoThought => ("", ""),
        ReplyFormat::Thought => (
            "Reflection: what the last observation means and what went wrong, if anything\n\
             Research Plan and Status: the whole plan, with what is done and what is confirmed\n\
             Fact Check: which statements of the plan are confirmed by an observation and which are guesses\n\
             Thought: what you do now, and why\n",
            "Reflection: The baseline runs; its trees are few.\n\
             Research Plan and Status: 1. More trees (now). 2. Use all columns.\n\
             Fact Check: That the baseline runs is confirmed; that more trees help is a guess.\n\
             Thought: I raise the number of trees, which costs little time.\n",
        ),
    };
    format!(
        "You are a machine-learning engineer. You improve a script step by step: every reply is one action, whose outcome \
you then observe. After every edit the task's script is run, and what it submits is scored on labels that you cannot see.

Actions and their arguments:
- List Files: {{\"dir_path\"}}. Lists a folder; \".\" is the workspace.
- Copy File: {{\"source\", \"destination\"}}. Copies a file.
- Inspect Script Lines: {{\"script_name\", \"start_line_number\", \"end_line_number\"}}. Shows at most 100 lines.
- Execute Script: {{\"script_name\"}}. Runs a script and shows its output. What it writes is not kept.
- Edit Script: {{\"script_name\", \"search\", \"replace\"}}. Replaces one place of a script. \"search\" is how exactly one line \
begins (that whole line is replaced), or a passage of several lines, word for word, that occurs once.
- Final Answer: {{\"final_answer\"}}. Ends the work.

Reply with these fields only, in this order, each on a line of its own:
{fields}Action: the name of one action
Action Input: its arguments, a JSON object

An example, which replaces the line that begins with \"model =\":
{thought}Action: Edit Script
Action Input: {{\"script_name\": \"train.py\", \"search\": \"model =\", \"replace\": \"model = RandomForestClassifier(n_estimators=300)\"}}

You have at most {} steps.",
        settings.max_steps
    )
}

fn task_text(prepared: &PreparedTask, settings: &Settings) -> String {
    let task = &prepared.task;
    let direction = if task.metric.higher_is_better() { "higher" } else { "lower" };
    let mut text = format!(
        "Research problem: {}.\nMetric: {}, {direction} is better. {} is run and must write {}.\n\nFiles:\n",
        task.description.trim_end_matches('.'),
        task.metric.name(),
        task.entry,
        task.submission
    );
    for (name, _) in &prepared.data {
        text.push_str(&format!("{name} (data, read-only)\n"));
    }
    for (name, content) in &task.starter {
        let content = cut_middle(content, settings.observation_limit);
        text.push_str(&format!("{name}:\n```\n{}\n```\n", content.trim_end_matches('\n')));
    }
    text.truncate(text.trim_end().len());
    text
}
