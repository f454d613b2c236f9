//! Every setting with values that it cannot have or hardly can: refused by name, or planned in bounded work. No panic, no abort.

use crate::support::*;
use onestep::config::{Config, Range, SETTINGS, Setting};
use onestep::identity::is_read;
use std::fs;
use std::ops::Bound::{Excluded, Included};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tempfile::{TempDir, tempdir};

/// Values of every type, most of them wrong for most settings.
const VALUES: [&str; 14] = [
    "nan",
    "inf",
    "-inf",
    "-1",
    "0",
    "1e18",
    "9223372036854775807",
    "18446744073709551615",
    "1.5",
    "1e3",
    "",
    "x",
    "[\"q\", \"q\"]",
    "true",
];

/// Kilobytes of address space of a dry run: what it must not grow beyond.
const MEMORY: u64 = 4 << 20;
/// No dry run on the tiny model takes so long, however busy the machine is, unless its work grows with a value.
const BOUND: Duration = Duration::from_secs(60);

/// The ends of a setting's range, as they are typed: the most extreme values that are valid.
fn ends(setting: &Setting) -> Vec<String> {
    match setting.range {
        Range::Whole(low, high) => vec![low.to_string(), high.to_string()],
        Range::PerCore { .. } => vec!["0".into(), "1".into()],
        Range::Number(low, high) | Range::ZeroOr(_, low, high) => [low, high]
            .into_iter()
            .filter_map(|bound| match bound {
                Included(x) => Some(format!("{x:?}")),
                Excluded(_) => None,
                std::ops::Bound::Unbounded => panic!("{} has no end", setting.key),
            })
            .collect(),
        Range::Word(words) => words.iter().map(ToString::to_string).collect(),
        _ => vec![],
    }
}

fn values(setting: &Setting) -> Vec<String> {
    let long = "y".repeat(5000);
    VALUES.iter().map(ToString::to_string).chain([long]).chain(ends(setting)).collect()
}

/// What dry runs read: a tiny model, conversations, trajectories of an expert.
struct World {
    folder: TempDir,
    verbs: Vec<(&'static str, Vec<String>)>,
}

impl World {
    fn new() -> Self {
        let folder = tempdir().unwrap();
        let (model, data) = (model(folder.path()), messages(folder.path()));
        let strings = |words: &[&str]| words.iter().map(ToString::to_string).collect::<Vec<_>>();
        let (model, data) = (text(&model), text(&data));
        let verbs = vec![
            ("sft", strings(&["--dry-run", "--model", model, "--data", data])),
            ("rl", strings(&["--dry-run", "--model", model, "--data", "data/expert/trajectories.jsonl"])),
            ("eval", strings(&["--dry-run", "--model", model])),
            ("collect", strings(&["--dry-run"])),
            ("pretrain", strings(&["--dry-run"])),
            ("quickstart", strings(&["--dry-run"])),
            ("plan", strings(&["--model", model, "--for", "sft"])),
            ("plan", strings(&["--model", model, "--for", "rl"])),
        ];
        Self { folder, verbs }
    }

    /// Runs one verb with `key=value` under a limit of memory; says what is wrong with how it ends. The exit code.
    fn tried(&self, place: usize, key: &str, value: &str) -> Result<i32, String> {
        let (verb, arguments) = &self.verbs[place];
        let out = self.folder.path().join(format!("out-{place}"));
        let typed = format!("{key}={value}");
        let mut words: Vec<&str> = vec![verb];
        words.extend(arguments.iter().map(String::as_str));
        if *verb != "plan" {
            words.extend(["--out", text(&out)]);
        }
        words.push(&typed);
        let begun = Instant::now();
        let ended = onestep_within(MEMORY, &words);
        let shown = typed.chars().take(60).collect::<String>();
        let wrong = |why: &str| Err(format!("{verb} {shown}: {why}: {ended:?}"));
        match ended.code {
            _ if begun.elapsed() > BOUND => wrong("takes too long"),
            _ if out.exists() => wrong("leaves something behind"),
            Some(0) => Ok(0),
            Some(2) if ended.stderr.contains(key) => Ok(2),
            Some(2) => wrong("is refused without its key"),
            _ => wrong("ends otherwise than with 0 or 2"),
        }
    }

    /// Tries all `pairs` (verb, key, value) on two threads. How many were done, and how many refused.
    fn walk(&self, pairs: &[(usize, &str, String)]) -> (usize, usize) {
        let (next, refused) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let worker = || {
            let mut wrong = vec![];
            while let Some((place, key, value)) = pairs.get(next.fetch_add(1, Ordering::SeqCst)) {
                match self.tried(*place, key, value) {
                    Ok(2) => drop(refused.fetch_add(1, Ordering::SeqCst)),
                    Ok(_) => {}
                    Err(why) => wrong.push(why),
                }
            }
            wrong
        };
        let wrong = std::thread::scope(|scope| {
            let threads = [scope.spawn(worker), scope.spawn(worker)];
            threads.map(|thread| thread.join().unwrap()).concat()
        });
        assert!(wrong.is_empty(), "{} of {} pairs:\n{}", wrong.len(), pairs.len(), wrong.join("\n"));
        let refused = refused.into_inner();
        (pairs.len() - refused, refused)
    }
}

#[test]
fn every_pair_of_key_and_value_is_taken_or_refused_by_name() {
    let (mut taken, mut refused) = (0, 0);
    for setting in SETTINGS {
        for value in values(setting) {
            let typed = format!("{}={value}", setting.key);
            match Config::load(&[], std::slice::from_ref(&typed), "run") {
                Ok(_) => taken += 1,
                Err(error) => {
                    let (text, shown) = (error.to_string(), typed.chars().take(40).collect::<String>());
                    assert_eq!(error.exit_code(), 2, "{text}");
                    assert!(text.starts_with(&format!("override `{shown}")), "{shown}: {text}");
                    assert!(text.contains("expected") && text.len() < 1000, "{text}");
                    assert!(
                        !["usize", "u64", "i32", "integer", "float"].iter().any(|word| text.contains(word)),
                        "{text}"
                    );
                    refused += 1;
                }
            }
        }
    }
    assert!(taken > 200 && refused > 1000, "{taken} taken, {refused} refused");
}

/// All pairs through the program under one verb, or each: `ONESTEP_ALL_SETTINGS=sft` (or `all`)
/// `cargo test --release --test cli -- --nocapture settings_at_their_ends`. Else the far ends of numbers, each under the verb of its own
/// section, and a few of each kind that is refused.
#[test]
fn settings_at_their_ends_are_planned_or_refused_by_name() {
    let world = World::new();
    let verb_of = |key: &str| {
        let own = world.verbs.iter().position(|(verb, _)| key.starts_with(&format!("{verb}.")));
        own.unwrap_or(match key.split('.').next() {
            Some("lora" | "chat") => 0,
            Some("tasks") => 3,
            _ => 1,
        })
    };
    let all = std::env::var("ONESTEP_ALL_SETTINGS").ok();
    let mut pairs: Vec<(usize, &str, String)> = vec![];
    for (index, setting) in SETTINGS.iter().enumerate() {
        let own = verb_of(setting.key);
        if let Some(wanted) = &all {
            let verbs = (0..world.verbs.len()).filter(|&v| wanted == "all" || world.verbs[v].0 == wanted);
            let verbs = verbs.filter(|&v| is_read(world.verbs[v].0, setting.key));
            pairs.extend(verbs.flat_map(|v| values(setting).into_iter().map(move |x| (v, setting.key, x))));
        } else {
            pairs.extend(ends(setting).last().map(|end| (own, setting.key, end.clone())));
            pairs.extend((index % 8 == 0).then(|| (own, setting.key, VALUES[index / 8 % VALUES.len()].to_string())));
        }
    }
    let (done, refused) = world.walk(&pairs);
    println!("{} pairs through the program: {done} exit 0, {refused} exit 2", pairs.len());
    assert!(done > 50 && refused > 10, "{done} done, {refused} refused");
}

#[test]
fn what_the_model_or_the_machine_does_not_allow_is_said_before_anything_is_made() {
    let folder = tempdir().unwrap();
    let (model, data, out) = (model(folder.path()), messages(folder.path()), folder.path().join("run"));
    let sft = ["sft", "--model", text(&model), "--data", text(&data), "--out", text(&out)];
    let trajectories = "data/expert/trajectories.jsonl";
    let rl = ["rl", "--model", text(&model), "--data", trajectories, "--out", text(&out)];
    let eval = ["eval", "--model", text(&model), "--out", text(&out)];
    let many = folder.path().join("many.jsonl");
    fs::write(&many, fs::read_to_string(&data).unwrap().repeat(70)).unwrap();
    let of_many = ["sft", "--model", text(&model), "--data", text(&many), "--out", text(&out)];
    let cases: [(&[&str], &str, &[&str]); 10] = [
        (&sft, "lora.rank=65", &["lora.rank = 65", "down_proj of this model, is (32, 64)", "at most 64"]),
        (&rl, "lora.rank=65", &["lora.rank = 65", "at most 64"]),
        (&sft, "warmup=100", &["sft.warmup = 100", "steps"]),
        (&of_many, "epochs=100000", &["sft.epochs = 100000 of", "expected at most"]),
        (&sft, "micro_tokens=16777216", &["GB", "sft.micro_tokens="]),
        (&rl, "samples=300", &["rl.samples = 300", "engine.max_running = 256"]),
        (&rl, "engine.cache_tokens=2000000000", &["KV cache", "engine.cache_tokens="]),
        (&eval, "engine.block_size=4096", &["engine.block_size = 4096", "at most 2048 tokens"]),
        (&eval, "sampling.max_tokens=2048", &["sampling.max_tokens = 2048", "the model has 2048 positions"]),
        (&eval, "engine.cache_tokens=512", &["engine.cache_tokens = 512", "1056 tokens"]),
    ];
    for (words, typed, parts) in cases {
        for dry in [&["--dry-run"][..], &[]] {
            refused(folder.path(), &[words, &[typed], dry].concat(), parts);
        }
    }
}

#[test]
fn numbers_behind_options_are_refused_by_the_option() {
    let folder = tempdir().unwrap();
    let values = ["nan", "inf", "-1", "1e18", "18446744073709551616", "", "x", "1.5e", "true"];
    let seven = ["plan", "--random-weights", "qwen2.5-7b"];
    let cases: [(&[&str], &[&str]); 8] = [
        (&["sft"], &["--seed"]),
        (&["rl"], &["--seed"]),
        (&["quickstart"], &["--seed"]),
        (&["generate", "--model", "m", "--prompt", "x"], &["--seed", "--samples"]),
        (&seven, &["--memory", "--prompt-tokens", "--reply-tokens"]),
        (&["sandbox", "run", "x.py"], &["--time", "--memory", "--output", "--disk", "--processes", "--tier"]),
        (&["data", "preview", "--model", "m", "--data", "d"], &["--examples"]),
        (&["bench", "--all", "--out", "o"], &["--seconds"]),
    ];
    for (words, options) in cases {
        for option in options {
            for value in values {
                refused(folder.path(), &[words, &[option, value]].concat(), &[option, "expected"]);
            }
        }
    }
    refused(folder.path(), &["sft", "--seed", "1", "--seed", "2"], &["--seed", "multiple times"]);
    let plan = ["plan", "--random-weights", "qwen2.5-7b", "--device-kind", "h200"];
    let twice = onestep(&[&plan[..], &["rl.states=3", "rl.states=7"]].concat());
    assert_eq!(twice.code, Some(0), "{twice:?}");
    assert!(twice.stderr.contains("rl.states is given twice") && twice.stderr.contains("last one counts"), "{twice:?}");
    let once = onestep(&[&plan[..], &["rl.states=7"]].concat());
    assert_eq!(twice.stdout, once.stdout);
    assert!(!once.stderr.contains("twice"), "{once:?}");
}

#[test]
fn settings_are_listed_and_the_page_of_the_documentation_is_that_list() {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/settings.md")).unwrap();
    assert_eq!(done(&["config", "--markdown"]), page, "make docs/settings.md by `onestep config --markdown`");
    let all = done(&["config"]);
    for setting in SETTINGS {
        assert!(all.contains(&format!("  {}={}  (", setting.key, setting.default())), "{}", setting.key);
        assert!(all.contains(setting.meaning) && page.contains(setting.meaning), "{}", setting.key);
    }
    let some = done(&["config", "engine", "rl.gamma", "warmup"]);
    let keys = some.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    assert_eq!(keys.count(), 5 + 1 + 3, "{some}");
    let folder = tempdir().unwrap();
    refused(folder.path(), &["config", "learning_rat"], &["`learning_rat`", "sft.learning_rate is near"]);
}
