//! Supervised data from files: every format in, every malformed thing refused with its place, packs and splits.

#![allow(clippy::unwrap_used)]

#[path = "common/byte_tokenizer.rs"]
mod fixture;

use onestep::chat::ChatTemplate;
use onestep::dataset::{Example, Limit, Severity, load, pack, preview, split_validation, validate};
use onestep::message::Message;
use onestep::tokenizer::Tokenizer;
use onestep::trajectory::{Step, Trajectory, write_jsonl};
use onestep::{error::Error, reward::Case};
use proptest::prelude::*;
use serde_json::json;

const LIMIT: Limit = Limit { max_tokens: 1000, positions: 2000 };
const LINE: &str = r#"{"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]}"#;

fn tokenizer() -> Tokenizer {
    let dir = tempfile::tempdir().unwrap();
    fixture::byte_tokenizer_files(dir.path(), &["<extra>"], &json!({"eos_token": "<|im_end|>"}));
    Tokenizer::open(dir.path()).unwrap()
}

fn load_bytes(bytes: &[u8], max_tokens: usize) -> Result<Vec<Example>, Error> {
    let tokenizer = tokenizer();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data.jsonl");
    std::fs::write(&path, bytes).unwrap();
    let limit = Limit { max_tokens, positions: 2000 };
    load(&path, &tokenizer, &ChatTemplate::of(&tokenizer).unwrap(), limit).map(|loaded| loaded.examples)
}

/// The text that has a loss, and where the example came from (its file name on).
fn learned(examples: &[Example]) -> Vec<(String, &str)> {
    let tokenizer = tokenizer();
    let text = |e: &Example| {
        let ids: Vec<u32> = e.ids.iter().zip(&e.is_sampled).filter(|(_, s)| **s).map(|(&id, _)| id).collect();
        tokenizer.decode(&ids)
    };
    examples.iter().map(|e| (text(e), e.source.rsplit('/').next().unwrap())).collect()
}

fn step(reply: &str, ids: Vec<u32>, is_sampled: Vec<bool>) -> Step {
    Step {
        prompt: vec![Message::new("user", "go"), Message::new("assistant", "before"), Message::new("user", "on")],
        reply: reply.into(),
        ids,
        is_sampled,
        logprobs: vec![],
        action: "List Files".into(),
        case: Case::Neutral,
        reward: 0.0,
        metric_before: 0.5,
        metric_after: 0.5,
        report_before: 0.5,
        report_after: 0.5,
        flags: vec![],
        observation: String::new(),
        compact: String::new(),
        snapshot_before: String::new(),
        snapshot_after: String::new(),
    }
}

fn trajectory(steps: Vec<Step>) -> Trajectory {
    Trajectory {
        task: "digits".into(),
        source: "expert".into(),
        index: 0,
        ideas: vec![],
        steps,
        metric_final: 0.5,
        metric_best: 0.5,
        report_final: 0.5,
        report_best: 0.5,
        failed: false,
    }
}

#[test]
fn openai_messages_and_sharegpt_are_read_in_lines_and_in_arrays() {
    let sharegpt = r#"{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}, {"from": "human", "value": "c"}, {"from": "gpt", "value": "d"}], "system": "s"}"#;
    let parts = r#"{"id": 7, "messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}, {"role": "assistant", "content": "y"}]}"#;
    let lines = load_bytes(format!("\u{feff}{LINE}\n\n{sharegpt}\r\n{parts}").as_bytes(), 1000).unwrap();
    let end = "<|im_end|>";
    let (one, two, three) = (format!("4{end}"), format!("b{end}d{end}"), format!("y{end}"));
    let expected = [(one.clone(), "data.jsonl:1"), (two.clone(), "data.jsonl:3"), (three.clone(), "data.jsonl:4")];
    assert_eq!(learned(&lines), expected);
    assert!(tokenizer().decode(&lines[1].ids).starts_with("<|im_start|>system\ns<|im_end|>\n<|im_start|>user\na"));
    let array = load_bytes(format!("\n[{LINE},\n{sharegpt}, {parts}]\n").as_bytes(), 1000).unwrap();
    let expected = [(one, "data.jsonl: item 1"), (two, "data.jsonl: item 2"), (three, "data.jsonl: item 3")];
    assert_eq!(learned(&array), expected);
    assert_eq!(array.iter().map(|e| &e.ids).collect::<Vec<_>>(), lines.iter().map(|e| &e.ids).collect::<Vec<_>>());
}

#[test]
fn a_conversation_is_an_example_a_reply_where_the_template_rewrites_earlier_messages() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data.jsonl");
    let talk = r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]}"#;
    std::fs::write(&path, talk).unwrap();
    let forgetful = "{% for m in messages %}{{ m.role }}:{% if loop.last or m.role == 'user' %}{{ m.content }}{% endif %}<|im_end|>{% endfor %}\
                     {% if add_generation_prompt %}assistant:{% endif %}";
    let tokenizer = tokenizer();
    let examples = load(&path, &tokenizer, &ChatTemplate::new(forgetful, "", "").unwrap(), LIMIT).unwrap().examples;
    let expected = [("b<|im_end|>".to_string(), "data.jsonl:1"), ("d<|im_end|>".to_string(), "data.jsonl:1")];
    assert_eq!(learned(&examples), expected);
}

#[test]
fn each_step_of_a_trajectory_is_an_example_with_a_loss_on_its_own_reply() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.jsonl");
    let ids = vec![256, 97, 98, 257, 10];
    let given = step("b", ids.clone(), vec![false, false, true, true, false]);
    write_jsonl(&path, &[trajectory(vec![step("now", vec![], vec![]), given])]).unwrap();
    let tokenizer = tokenizer();
    let examples = load(&path, &tokenizer, &ChatTemplate::of(&tokenizer).unwrap(), LIMIT).unwrap().examples;
    let expected = [("now<|im_end|>".to_string(), "t.jsonl:1"), ("b<|im_end|>".to_string(), "t.jsonl:1")];
    assert_eq!(learned(&examples), expected);
    assert!(tokenizer.decode(&examples[0].ids).contains("assistant\nbefore<|im_end|>"), "earlier replies are context");
    assert_eq!(examples[1].ids, ids, "ids are never made again from text");
}

#[test]
fn what_is_malformed_is_refused_with_its_place_and_a_valid_value() {
    let check = |second_line: &str, part: &str| {
        let error = load_bytes(format!("{LINE}\n{second_line}\n").as_bytes(), 1000).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("data.jsonl:2") && text.contains(part), "{second_line}: {text}");
        assert_eq!(error.exit_code(), 2);
    };
    check(r#"{"messages": [{"role": "user""#, "EOF");
    check("3", "3 is no object");
    check(
        r#"{"text": "x"}"#,
        r#"its keys are ["text"]; expected one of "conversations", "messages", "instruction", "steps""#,
    );
    check(r#"{"messages": "hi"}"#, "is no list");
    check(r#"{"messages": []}"#, "no reply of the agent");
    check(r#"{"messages": [{"role": "user", "content": "x"}]}"#, "no reply of the agent");
    check(r#"{"messages": [{"role": "assistent", "content": "x"}]}"#, r#"message 0: role is "assistent", not one of"#);
    check(r#"{"messages": [{"content": "x"}]}"#, r#"no text under "role""#);
    check(r#"{"messages": [{"role": "user", "content": null}]}"#, r#"no text under "content""#);
    check(r#"{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}"#, r#"no text under "content""#);
    check(
        r#"{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": " "}]}"#,
        "reply is empty",
    );
    check(r#"{"messages": [{"role": "assistant", "content": "x", "weight": 0}]}"#, "leave no reply to learn from");
    check(r#"{"conversations": [{"value": "x"}]}"#, r#"expected {"conversations": [{"from": "human""#);
    check(r#"{"steps": 3}"#, "expected one trajectory a line");
    let whole = |bytes: &[u8], part: &str| {
        let error = load_bytes(bytes, 1000).unwrap_err();
        assert!(error.to_string().contains(part) && error.exit_code() == 2, "{error}");
    };
    whole(b"", "no examples in it");
    whole(b"[]", "no examples in it");
    whole(b"\n  \n", "no examples in it");
    whole(b"{}\n\xff\xfe", "data.jsonl:2: not UTF-8");
    whole(format!("[{LINE},\n{LINE}").as_bytes(), "data.jsonl:2: EOF");
    whole(format!("[{LINE}, 5]").as_bytes(), "item 2: 5 is no object");
    whole(b"{\n\"messages\": []\n}", "data.jsonl:1: no reply of the agent");
}

#[test]
fn examples_beyond_the_limit_or_of_another_tokenizer_are_refused() {
    let length = load_bytes(LINE.as_bytes(), 1000).unwrap()[0].ids.len();
    assert!(load_bytes(LINE.as_bytes(), length).is_ok());
    let error = load_bytes(LINE.as_bytes(), length - 1).unwrap_err().to_string();
    assert!(error.contains("data.jsonl:1") && error.contains(&format!("sft.max_tokens={length}")), "{error}");
    let check = |step: Step, part: &str| {
        let line = serde_json::to_string(&trajectory(vec![step])).unwrap();
        let error = load_bytes(line.as_bytes(), 1000).unwrap_err().to_string();
        assert!(error.contains("data.jsonl:1, step 0") && error.contains(part), "{error}");
    };
    check(step("b", vec![97, 99], vec![false, true]), "do not spell its reply");
    check(step("", vec![97, 999], vec![false, true]), "token id 999; this tokenizer's ids end at 258");
    check(step("", vec![97, 98], vec![false, false]), "no reply of the agent");
}

#[test]
fn alpaca_becomes_turns() {
    let line = json!({"instruction": "Add.", "input": "2 3", "output": "5", "system": "s", "history": [["a", "b"]]});
    let examples = load_bytes(line.to_string().as_bytes(), 1000).unwrap();
    assert_eq!(learned(&examples), [("b<|im_end|>5<|im_end|>".to_string(), "data.jsonl:1")]);
    let (start, end) = ("<|im_start|>", "<|im_end|>");
    let turn = |role: &str, text: &str| format!("{start}{role}\n{text}{end}\n");
    let expected = [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "Add.\n2 3")].map(|(r, t)| turn(r, t));
    let whole = format!("{}{start}assistant\n5{end}", expected.concat());
    assert_eq!(tokenizer().decode(&examples[0].ids), whole);
    let plain = load_bytes(br#"{"instruction": "x", "output": "y"}"#, 1000).unwrap();
    assert_eq!(tokenizer().decode(&plain[0].ids), format!("{}{start}assistant\ny{end}", turn("user", "x")));
    for (line, part) in [
        (r#"{"instruction": "x", "output": " "}"#, "the agent's reply is empty"),
        (r#"{"instruction": "x"}"#, "the agent's reply is empty"),
        (r#"{"instruction": 3, "output": "y"}"#, "instruction: 3 is no text"),
        (r#"{"instruction": "x", "output": "y", "history": [["a"]]}"#, "history: [\"a\"] is no pair"),
        (r#"{"instruction": "x", "output": "y", "messages": []}"#, "expected one of"),
    ] {
        let error = load_bytes(line.as_bytes(), 1000).unwrap_err().to_string();
        assert!(error.contains("data.jsonl:1: ") && error.contains(part), "{line}: {error}");
    }
}

#[test]
fn roles_have_synonyms_and_dialects_mix() {
    let line = json!({"conversations": [{"role": "system", "content": "s"}, {"from": "user", "value": "a"}, {"from": "model", "value": "b"},
        {"from": "observation", "value": "t"}, {"role": "chatgpt", "value": "c"}]});
    let examples = load_bytes(line.to_string().as_bytes(), 1000).unwrap();
    assert_eq!(learned(&examples), [("b<|im_end|>c<|im_end|>".to_string(), "data.jsonl:1")]);
    assert!(tokenizer().decode(&examples[0].ids).contains("<|im_start|>tool\nt<|im_end|>"));
}

/// The files were written by tests/reference/parquet.py.
#[test]
fn parquet_rows_are_items() {
    let tokenizer = tokenizer();
    let template = ChatTemplate::of(&tokenizer).unwrap();
    let reference = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference");
    let lines = format!("{LINE}\n{}", LINE.replace("2+2?", "ä日本🙂?").replace('4', "ja"));
    let expected = load_bytes(lines.as_bytes(), 1000).unwrap();
    for name in ["messages.parquet", "sharegpt.parquet", "alpaca.parquet"] {
        let found = load(&reference.join(name), &tokenizer, &template, LIMIT).unwrap().examples;
        assert_eq!(
            found.iter().map(|e| &e.ids).collect::<Vec<_>>(),
            expected.iter().map(|e| &e.ids).collect::<Vec<_>>()
        );
        assert!(found[1].source.ends_with(&format!("{name}: row 2")), "{}", found[1].source);
        let whole = std::fs::read(reference.join(name)).unwrap();
        let error = load_bytes(&whole[..whole.len() - 9], 1000).unwrap_err().to_string();
        assert!(error.contains("data.jsonl: ") && error.contains("expected a whole parquet file"), "{error}");
    }
}

#[test]
fn a_whole_file_is_validated_with_every_problem_in_its_place() {
    let long = LINE.replace("2+2?", &"x".repeat(60));
    let empty = LINE.replace('4', " ");
    let twice = r#"{"conversations": [{"from": "human", "value": "a"}, {"from": "human", "value": "b"}, {"from": "gpt", "value": "c"}]}"#;
    let text = [LINE, "", "{", &long, &empty, twice, LINE, r#"{"instruction": "i", "output": "o"}"#].join("\n");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data.jsonl");
    std::fs::write(&path, text).unwrap();
    let tokenizer = tokenizer();
    let template = ChatTemplate::of(&tokenizer).unwrap();
    let report = validate(&path, &tokenizer, &template, Limit { max_tokens: 64, ..LIMIT }).unwrap();
    assert_eq!(report.formats, [("ShareGPT", 1), ("messages", 2), ("Alpaca", 1)]);
    // Bytes and specials: start, "user\n", text, end, "\n", start, "assistant\n", text, end.
    let length = |texts: usize| 1 + 5 + texts + 2 + 1 + 10 + 1;
    assert_eq!(report.lengths, [length(2), length(5), length(5), length(3) + 8]);
    assert_eq!(report.learned, 4 * 2, "a byte and the end, four times");
    let expected = [
        (Severity::Error, ":3", "EOF"),
        (Severity::Error, ":4", "more than sft.max_tokens = 64"),
        (Severity::Error, ":5", "reply is empty"),
        (Severity::Warning, ":6", "roles out of order: message 1 (user) follows user"),
        (Severity::Warning, ":7", "the same tokens as"),
    ];
    assert_eq!(report.problems.len(), expected.len(), "{report}");
    for ((found, text), (severity, line, part)) in report.problems.iter().zip(expected) {
        assert_eq!(*found, severity);
        assert!(text.starts_with(&format!("{}{line}: ", path.display())) && text.contains(part), "{text}");
    }
    let shown = report.to_string();
    let total: usize = report.lengths.iter().sum();
    let masked = 100.0 * (total - 8) as f64 / total as f64;
    for part in [
        format!("examples: 4, {total} tokens, {masked:.1} % of them masked"),
        "items: ShareGPT 1, messages 2, Alpaca 1".into(),
        format!("{} least, {} median", length(2), length(5)),
        "3 errors, 2 warnings".into(),
    ] {
        assert!(shown.contains(&part), "{shown} lacks {part}");
    }
    std::fs::write(&path, "").unwrap();
    assert_eq!(
        validate(&path, &tokenizer, &template, Limit { max_tokens: 64, ..LIMIT }).unwrap().count(Severity::Error),
        1
    );
}

#[test]
fn validation_keeps_sources_apart_and_the_order() {
    let examples: Vec<Example> =
        (0..40).map(|i| Example { ids: vec![i], is_sampled: vec![true], source: format!("f:{}", i / 4) }).collect();
    let (train, validation) = split_validation(examples.clone(), 0.25, 1);
    assert_eq!(validation.len(), 12, "a quarter of 10 sources is 2.5, rounded up");
    assert!(train.iter().all(|t| validation.iter().all(|v| v.source != t.source)));
    assert!(train.is_sorted_by_key(|e| e.ids[0]) && validation.is_sorted_by_key(|e| e.ids[0]));
    assert_eq!(split_validation(examples.clone(), 0.25, 1).1, validation);
    assert_ne!(split_validation(examples.clone(), 0.25, 2).1, validation);
    assert_eq!(split_validation(examples.clone(), 0.0, 1).1.len(), 0);
    assert_eq!(split_validation(examples.clone(), 0.001, 1).1.len(), 4);
    assert_eq!(split_validation(examples.clone(), 1.0, 1).0.len(), 4, "training never runs out");
    assert_eq!(split_validation(examples[..4].to_vec(), 0.5, 1).1.len(), 0, "one source is not split");
}

#[test]
fn packs_are_full_where_they_can_be() {
    assert_eq!(pack(&[5, 7, 3, 5, 2, 8], 10), [vec![0, 3], vec![1, 2], vec![4, 5]]);
    assert_eq!(pack(&[12, 3, 3], 10), [vec![0], vec![1, 2]]);
    assert!(pack(&[], 10).is_empty());
}

proptest! {
    #[test]
    fn packs_hold_every_sequence_once_within_the_limit(lengths in prop::collection::vec(1usize..100, 0..200)) {
        let packs = pack(&lengths, 100);
        let mut all: Vec<usize> = packs.concat();
        all.sort_unstable();
        prop_assert_eq!(all, (0..lengths.len()).collect::<Vec<_>>());
        let sums: Vec<usize> = packs.iter().map(|p| p.iter().map(|&i| lengths[i]).sum()).collect();
        prop_assert!(sums.iter().all(|&sum| sum <= 100));
        // No two packs would fit into one: best fit opens a row only when no other takes the sequence.
        let mut sorted = sums;
        sorted.sort_unstable();
        prop_assert!(sorted.len() < 2 || sorted[0] + sorted[1] > 100);
    }
}

#[test]
fn the_preview_shows_the_mask_and_no_control_characters() {
    let text = r#"{"messages": [{"role": "user", "content": "ring\u0007\u001b[2J"}, {"role": "assistant", "content": "ok\t🙂"}]}"#;
    let examples = load_bytes(format!("{text}\n{text}").as_bytes(), 1000).unwrap();
    let plain = preview(&examples, &tokenizer(), 1, false);
    assert!(plain.contains("⟦ok\t🙂<|im_end|>⟧") && plain.contains("ring\\u{7}\\u{1b}[2J<|im_end|>"), "{plain}");
    assert!(plain.contains("data.jsonl:1: ") && plain.contains("8 with a loss") && !plain.contains("data.jsonl:2"));
    let coloured = preview(&examples, &tokenizer(), 5, true);
    assert!(coloured.contains("\x1b[32mok\t🙂<|im_end|>\x1b[0m") && coloured.contains("data.jsonl:2"), "{coloured}");
    assert!(!coloured.contains("\x1b[2J"), "the data cannot act on the terminal");
}
