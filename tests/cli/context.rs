//! Prompts that do not fit: which limit binds, and what to do. No op's own error reaches the user.

use crate::support::*;
use tempfile::tempdir;

const MODEL: &str = "weights/quickstart"; // 2048 positions

/// `eval` of one episode of digits in the full style, with these settings.
fn eval(settings: &[&str]) -> Ended {
    let out = tempdir().unwrap();
    let fixed = [
        "eval",
        "--model",
        MODEL,
        "--out",
        text(out.path()),
        "--python",
        python(),
        "tasks.names=digits",
        "trajectories=1",
    ];
    onestep(&[&fixed[..], settings].concat())
}

/// The number behind a part of a text.
fn number_behind(said: &str, part: &str) -> usize {
    let behind = said.split(part).nth(1).unwrap_or_else(|| panic!("{said} lacks {part:?}"));
    behind.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap()
}

#[test]
fn a_prompt_that_no_shortening_makes_fit_names_the_limit_that_binds() {
    for (settings, parts) in [
        // The defaults: environment.context_limit is 15000.
        (
            &[][..],
            &[
                "may have 1024",
                "the model has 2048 positions",
                "sampling.max_tokens=1024",
                "environment.prompt=compact",
            ][..],
        ),
        (&["sampling.max_tokens=4096"], &["may have 0", "the model has 2048 positions"]),
        (
            &["sampling.max_tokens=64", "environment.context_limit=500"],
            &["may have 436", "environment.context_limit is 500"],
        ),
        (&["sampling.max_tokens=64", "engine.cache_tokens=512"], &["engine.cache_tokens is 512", "raise it"]),
        (&["environment.prompt=compact", "sampling.max_tokens=2047"], &["may have 1", "the model has 2048 positions"]),
    ] {
        let ended = eval(settings);
        assert_eq!(ended.code, Some(2), "{settings:?}: {ended:?}");
        assert!(!ended.stderr.contains("qk_norm_rope"), "{ended:?}");
        parts.iter().for_each(|part| assert!(ended.stderr.contains(part), "{settings:?}: {part:?}: {ended:?}"));
    }
}

#[test]
fn what_the_message_says_to_set_is_enough_and_an_episode_ends_where_its_prompt_no_longer_fits() {
    let refused = eval(&[]);
    let most = number_behind(&refused.stderr, "set sampling.max_tokens=");
    let tokens = number_behind(&refused.stderr, "the prompt of task digits has ");
    assert_eq!(tokens + most, 2048);
    // The first prompt fits exactly; the next, with a turn more, does not.
    let context = format!("environment.context_limit={}", tokens + 32);
    let ended = eval(&["sampling.max_tokens=32", &context]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let note =
        "note: 1 of 1 episodes of digits ended before their last step and score as their last graded state: the prompt";
    assert!(ended.stderr.contains(note) && ended.stderr.contains(&context.replace('=', " is ")), "{ended:?}");
}

#[test]
fn generate_refuses_what_does_not_fit_and_says_what_would() {
    let folder = tempdir().unwrap();
    let long = "word ".repeat(3000);
    for (prompt, settings, parts) in [
        (long.as_str(), &[][..], &["2048 positions", "shorten the prompt"][..]),
        ("hello", &["sampling.max_tokens=5000"], &["2048 positions", "set sampling.max_tokens="]),
        ("hello", &["engine.cache_tokens=64"], &["engine.cache_tokens"]),
    ] {
        refused(folder.path(), &[&["generate", "--model", MODEL, "--prompt", prompt][..], settings].concat(), parts);
    }
    let ended = onestep(&["generate", "--model", MODEL, "--prompt", "hello", "sampling.max_tokens=5000"]);
    let most = number_behind(&ended.stderr, "set sampling.max_tokens=");
    done(&[
        "generate",
        "--model",
        MODEL,
        "--prompt",
        "hello",
        &format!("sampling.max_tokens={most}"),
        "engine.cache_tokens=4096",
    ]);
}
