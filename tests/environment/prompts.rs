//! What the agent sees.

use super::world::*;
use onestep::environment::action::{self, Action};
use onestep::environment::*;
use onestep::error::Error;
use onestep::message::Message;

#[test]
fn compact_prompt() {
    let world = world();
    let text = |state: &State| {
        let messages = world.environment.messages(state).unwrap();
        assert_eq!((messages.len(), messages[0].role.as_str()), (1, "user"));
        messages[0].content.clone()
    };
    let start = world.start();
    let head = "Task: say yes ten times. accuracy, higher is better.\ntrain.py:\nprint two right\n";
    assert_eq!(text(&start), format!("{head}right 2\n# end\nLast: start"));
    let step = world.step(&start, edit("right", "right 6"));
    assert_eq!(text(&step.next), format!("{head}right 6\n# end\nLast: Script ran. two right"));
    let undone = world.step(&step.next, edit("right", "raise NameError: x"));
    assert_eq!(text(&undone.next), format!("{head}right 6\n# end\nLast: Undone. NameError: x"));
}

#[test]
fn full_prompt_and_its_shortening() {
    let world = world_of(START, Fake::default(), |s| (s.prompt, s.format) = (Style::Full, ReplyFormat::Thought));
    let thought =
        |action: String| format!("Reflection: r\nResearch Plan and Status: p\nFact Check: f\nThought: t\n{action}");
    let mut state = world.start();
    for reply in [inspect("train.py", 1, 3), list("."), edit("right", "right 6")] {
        state = world.step(&state, thought(reply)).next;
    }
    assert_eq!(state.metric, 0.6);
    let all = world.environment.messages(&state).unwrap();
    let roles: Vec<&str> = all.iter().map(|m| m.role.as_str()).collect();
    assert_eq!(roles, ["system", "user", "assistant", "user", "assistant", "user", "assistant", "user"]);
    for part in [
        "List Files",
        "Copy File",
        "Inspect Script Lines",
        "Execute Script",
        "Edit Script",
        "Final Answer",
        "Fact Check:",
    ] {
        assert!(all[0].content.contains(part), "{part}");
    }
    // The example in the prompt is one the parser takes.
    let example = all[0].content.split("\"model =\":\n").nth(1).unwrap().split("\n\nYou have").next().unwrap();
    assert!(matches!(action::parse(example, ReplyFormat::Thought), Ok(Action::EditScript { .. })), "{example}");
    for part in [
        "say yes ten times.",
        "accuracy, higher is better",
        "data.npz (data, read-only)",
        "train.py:\n```\nprint two right\nright 2\n",
    ] {
        assert!(all[1].content.contains(part), "{part}: {}", all[1].content);
    }
    assert!(all[7].content.starts_with("Observation: The file was changed:"));

    let count = |messages: &[Message]| messages.iter().map(|m| m.content.len()).sum::<usize>();
    let within = |limit: usize| world.environment.messages_within(&state, &|m| Ok(count(m)), limit).unwrap();
    assert_eq!(within(count(&all)).unwrap(), all);
    let shorter = within(count(&all) - 1).unwrap();
    assert_eq!(shorter[3].content, "Observation: Shown.");
    assert_eq!(shorter[5..], all[5..]);
    let least = count(&all[..2])
        + "\n\nThe first 2 steps are left out here.".len()
        + count(&all[6..7])
        + "Observation: Script ran. two right".len();
    let last = within(least).unwrap();
    assert_eq!((last.len(), count(&last)), (4, least));
    assert_eq!(within(least - 1), Err(least));
    let failing = |_: &[Message]| Err(Error::content("no such template"));
    let error = world.environment.messages_within(&state, &failing, least).unwrap_err();
    assert_eq!(error.to_string(), "no such template");
    for limit in least..=count(&all) {
        assert!(count(&within(limit).unwrap()) <= limit);
    }
}
