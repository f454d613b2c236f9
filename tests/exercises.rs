//! Exercises of the base model: their shape, that no held-out script or idea comes up, and the tokenizer made of them.
#![allow(clippy::unwrap_used)]

use onestep::environment::action::{self, Action, ReplyFormat};
use onestep::environment::{patch, prompt};
use onestep::exercises::{Exercise, Exercises, Inputs, Layout, save_tokenizer, train_tokenizer, vocab_size};
use onestep::ideas::Library;
use onestep::rng::Philox;
use onestep::task::Task;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use tokenizers::Tokenizer;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn tasks() -> Vec<Task> {
    Task::load_all(&root().join("data/tasks")).unwrap()
}

fn script(task: &Task) -> &str {
    &task.starter[&task.entry]
}

fn draw(count: usize, replies: usize) -> Vec<Exercise> {
    let exercises = Exercises::bundled().unwrap();
    let mut rng = Philox::named(1, "test of exercises");
    (0..count).map(|_| exercises.draw(&mut rng, replies)).collect()
}

/// The script a prompt shows.
fn shown(exercise: &Exercise) -> &str {
    let (_, rest) = exercise.prompt.split_once("\ntrain.py:\n").unwrap();
    &rest[..=rest.rfind("\nLast: ").unwrap()]
}

/// The bundled baselines are the layouts with their own values: the base model practises the very form it will work on.
#[test]
fn bundled_scripts_have_the_layouts() {
    for task in tasks() {
        let text = script(&task);
        let value = |start: &str| text.lines().find_map(|l| l.strip_prefix(start)).unwrap_or_default().to_string();
        let number = |start: &str| value(start).parse().unwrap_or_default();
        let inputs = match task.modality.as_str() {
            "text" => Inputs::Words(value("vec = text.")),
            "series" => Inputs::History(number("lags = ")),
            "graph" => Inputs::Graph { columns: number("k = "), hops: number("hops = ") },
            _ => Inputs::Columns(number("k = ")),
        };
        let output = if text.contains("predict_proba") { "predict_proba" } else { "predict" };
        let modules = value("from sklearn import ");
        let layout = Layout { modules, rows: number("n = "), inputs, model: value("model = "), output };
        assert_eq!(layout.script(), text, "{}", task.name);
    }
}

#[test]
fn no_held_out_script_or_idea_comes_up() {
    let held_out = Library::held_out().unwrap();
    let exercises = Exercises::bundled().unwrap();
    let baselines: Vec<String> = tasks().iter().filter(|t| t.held_out).map(|t| script(t).to_string()).collect();
    assert!(baselines.len() >= 6);
    for baseline in &baselines {
        assert!(!exercises.is_allowed(baseline));
        for edit in held_out.applicable(baseline) {
            let edited = patch::apply(baseline, &edit.search, &edit.replace).unwrap();
            assert!(!exercises.is_allowed(&edited), "{}", edit.idea.name);
        }
    }
    for exercise in draw(5000, 4) {
        let script = shown(&exercise);
        assert!(!baselines.iter().any(|baseline| baseline == script));
        assert!(!held_out.is_used_in(script), "{script}");
        let forbidden: BTreeSet<String> =
            held_out.applicable(script).iter().flat_map(|e| e.replace.lines().map(str::to_string)).collect();
        for reply in &exercise.replies {
            let Action::EditScript { search, replace, .. } = action::parse(reply, ReplyFormat::NoThought).unwrap()
            else {
                continue;
            };
            assert!(replace.lines().all(|line| !forbidden.contains(line)), "{reply}");
            let edited = patch::apply(script, &search, &replace).unwrap();
            assert!(!held_out.is_used_in(&edited) && !baselines.contains(&edited), "{reply}");
        }
    }
}

#[test]
fn replies_are_canonical_actions_in_the_stated_shares() {
    let exercises = draw(1000, 8);
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for exercise in &exercises {
        for reply in &exercise.replies {
            let parsed = action::parse(reply, ReplyFormat::NoThought).unwrap();
            assert_eq!(action::render(&parsed), *reply);
            if let Action::EditScript { search, replace, .. } = &parsed {
                let script = shown(exercise);
                let line = script.lines().find(|line| line.starts_with(search.as_str())).unwrap();
                assert!(patch::apply(script, search, replace).is_ok(), "{reply}");
                assert!(search == line || search.ends_with(" ="), "{search:?} is no natural line start");
            }
            *counts.entry(action::name(&parsed)).or_default() += 1;
        }
    }
    // Binomial: six standard deviations around the stated share.
    let total = 8000.0_f64;
    let within = |name: &str, p: f64| {
        let (count, deviation) = (counts[name] as f64, (total * p * (1.0 - p)).sqrt());
        assert!((count - total * p).abs() < 6.0 * deviation, "{name}: {count} of {total}, expected a share of {p}");
    };
    within("Edit Script", 0.86);
    for name in ["Execute Script", "List Files", "Inspect Script Lines", "Final Answer"] {
        within(name, 0.14 * 5.0 / 21.0);
    }
    within("Copy File", 0.14 / 21.0);
}

#[test]
fn exercises_are_varied_and_repeatable() {
    let once = draw(300, 2);
    assert_eq!(once, draw(300, 2));
    let prompts: BTreeSet<&str> = once.iter().map(|e| e.prompt.as_str()).collect();
    assert_eq!(prompts.len(), once.len());
    for part in
        ["Task: classify rows, ", "Task: classify images, ", "Task: classify text, ", "Task: forecast ", "graph"]
    {
        assert!(prompts.iter().any(|p| p.contains(part)), "{part}");
    }
    for end in ["\nLast: start", "\nLast: Shown.", "\nLast: Nothing changed.", "\nLast: data.npz train.py"] {
        assert!(prompts.iter().any(|p| p.ends_with(end)), "{end}");
    }
    let renamed = prompts.iter().filter(|p| p.contains("# rows\n") && !p.contains("# rows\nn = ")).count();
    assert!(renamed > 10, "{renamed}");
}

fn committed() -> Tokenizer {
    Tokenizer::from_file(root().join("weights/quickstart/tokenizer.json")).unwrap()
}

fn ids(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    tokenizer.encode_fast(text, false).unwrap().get_ids().to_vec()
}

fn template() -> String {
    let text = std::fs::read_to_string(root().join("weights/quickstart/tokenizer_config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_str(&text).unwrap();
    config["chat_template"].as_str().unwrap().to_string()
}

fn rendered(prompt: &str) -> String {
    let environment = minijinja::Environment::new();
    let messages = vec![BTreeMap::from([("role", "user"), ("content", prompt)])];
    let context = minijinja::context! { messages => messages, add_generation_prompt => true };
    environment.render_str(&template(), context).unwrap()
}

/// The files under weights/quickstart are what `save_tokenizer` writes.
#[test]
fn committed_tokenizer_is_the_one_the_command_makes() {
    let folder = tempfile::tempdir().unwrap();
    save_tokenizer(folder.path(), 0).unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        let made = std::fs::read(folder.path().join(name)).unwrap();
        let kept = std::fs::read(root().join("weights/quickstart").join(name)).unwrap();
        assert!(made == kept, "{name} differs from the committed one");
    }
}

#[test]
fn the_vocabulary_has_one_size_for_every_seed() {
    for seed in [1, 77] {
        assert_eq!(train_tokenizer(seed).unwrap().get_vocab_size(true), vocab_size());
    }
    assert_eq!(committed().get_vocab_size(true), vocab_size());
}

#[test]
fn round_trip_is_exact() {
    let tokenizer = committed();
    let mut texts: Vec<String> =
        draw(1000, 4).into_iter().flat_map(|e| [rendered(&e.prompt), e.replies.concat()]).collect();
    texts.extend(tasks().iter().map(|task| rendered(&prompt::compact(task, script(task), "start"))));
    texts.push("naïve ✓ \u{1F600}\r\n\t\"x\\n\" 10**6".to_string());
    for text in texts {
        assert_eq!(tokenizer.decode(&ids(&tokenizer, &text), false).unwrap(), text);
    }
}

/// A conversation in tokens is its parts in tokens: a prompt's tokens can be followed by a reply's, with masks between.
#[test]
fn chat_template_and_tokens_agree() {
    let tokenizer = committed();
    let special = |text: &str| tokenizer.token_to_id(text).unwrap();
    for exercise in draw(200, 1) {
        let prompt = rendered(&exercise.prompt);
        assert_eq!(prompt, format!("<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n", exercise.prompt));
        let before = ids(&tokenizer, &prompt);
        assert_eq!(before[0], special("<|im_start|>user\n"));
        assert_eq!(before[before.len() - 1], special("<|im_end|>\n<|im_start|>assistant\n"));
        let reply = format!("{}<|im_end|>", exercise.replies[0]);
        let after = ids(&tokenizer, &reply);
        assert_eq!(after[after.len() - 1], special("<|im_end|>"));
        assert_eq!(ids(&tokenizer, &(prompt + &reply)), [before, after.clone()].concat());
        // Without special tokens the reply is the action alone.
        assert_eq!(tokenizer.decode(&after, true).unwrap(), exercise.replies[0]);
    }
}

#[test]
fn prompts_and_replies_are_short() {
    let tokenizer = committed();
    let size = tokenizer.get_vocab_size(true);
    assert!((960..=1024).contains(&size), "{size}");
    let (mut prompts, mut replies) = (Vec::new(), Vec::new());
    for exercise in draw(1000, 4) {
        prompts.push(ids(&tokenizer, &rendered(&exercise.prompt)).len());
        replies.extend(exercise.replies.iter().map(|reply| ids(&tokenizer, reply).len() + 1));
    }
    let mean = |lengths: &[usize]| lengths.iter().sum::<usize>() as f64 / lengths.len() as f64;
    let max = |lengths: &[usize]| *lengths.iter().max().unwrap();
    println!("vocabulary {size}");
    println!("exercises: prompt {:.1}, at most {}", mean(&prompts), max(&prompts));
    println!("exercises: reply {:.1}, at most {}", mean(&replies), max(&replies));
    // What the quickstart's context of 256 must hold.
    assert!(max(&prompts) + max(&replies) <= 256);
    assert!(mean(&prompts) < 130.0 && mean(&replies) < 25.0);
    for task in tasks() {
        let length = ids(&tokenizer, &rendered(&prompt::compact(&task, script(&task), "start"))).len();
        println!("{}: {length}", task.name);
        assert!(length <= 130, "{}: {length}", task.name);
    }
}

#[test]
fn a_folder_that_is_not_there_is_named() {
    let error = save_tokenizer(Path::new("/nowhere/at/all"), 0).unwrap_err();
    assert!(error.to_string().contains("/nowhere/at/all/tokenizer.json"), "{error}");
}
