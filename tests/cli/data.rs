//! Conversations as they come: what stands in a file is learnt, or refused by name, or named once; a template fits its tokenizer.

use crate::support::*;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::tempdir;

fn reference() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference")
}

/// A folder with a small tokenizer (`qwen` or `llama3`) and the template of that name beside it, or none.
fn speaker(folder: &Path, tokenizer: &str, template: Option<&str>) -> PathBuf {
    let model = folder.join("speaker");
    fs::create_dir_all(&model).unwrap();
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(reference().join("tokenizers").join(tokenizer).join(file), model.join(file)).unwrap();
    }
    if let Some(name) = template {
        let source = reference().join(format!("templates/{name}.jinja"));
        fs::copy(source, model.join("chat_template.jinja")).unwrap();
    }
    model
}

/// What `data preview` says of a file.
fn previewed(model: &Path, data: &str, more: &[&str]) -> Ended {
    let folder = tempdir().unwrap();
    let path = folder.path().join("data.jsonl");
    fs::write(&path, data).unwrap();
    let arguments = ["data", "preview", "--model", text(model), "--data", text(&path), "-n", "9"];
    onestep(&[&arguments[..], more].concat())
}

/// What is learnt, one text a run of tokens.
fn learnt(shown: &str) -> Vec<&str> {
    shown.split('⟦').skip(1).map(|rest| rest.split_once('⟧').unwrap().0).collect()
}

/// `data` is learnt as `expected` with Qwen3's template, and stderr has every one of `parts` (none: nothing is said).
fn learns(data: &str, expected: &[&str], parts: &[&str]) {
    let folder = tempdir().unwrap();
    let ended = previewed(&speaker(folder.path(), "qwen", Some("qwen3")), data, &[]);
    assert_eq!(ended.code, Some(0), "{data}: {ended:?}");
    assert_eq!(learnt(&ended.stdout), expected, "{data}: {ended:?}");
    for part in parts {
        assert!(ended.stderr.contains(part), "{data}: {:?} lacks {part:?}", ended.stderr);
    }
    assert!(!parts.is_empty() || ended.stderr.is_empty(), "{data}: {ended:?}");
}

/// `data` is refused with a template, and stderr has every one of `parts`.
fn is_refused_with(template: &str, data: &str, parts: &[&str]) {
    let folder = tempdir().unwrap();
    let ended = previewed(&speaker(folder.path(), "qwen", Some(template)), data, &[]);
    assert_eq!(ended.code, Some(2), "{data}: {ended:?}");
    for part in parts {
        assert!(ended.stderr.contains(part), "{data}: {:?} lacks {part:?}", ended.stderr);
    }
}

fn is_refused(data: &str, parts: &[&str]) {
    is_refused_with("qwen3", data, parts);
}

/// Two turns; the first reply is bad. `reply` and `item` are added to the bad reply and to the item.
fn two_turns(reply: Value, item: Value) -> String {
    let mut bad = json!({"role": "assistant", "content": "bad"});
    bad.as_object_mut().unwrap().extend(reply.as_object().unwrap().clone());
    let messages = json!([{"role": "user", "content": "a"}, bad, {"role": "user", "content": "b"}, {"role": "assistant", "content": "good"}]);
    let mut line = json!({ "messages": messages });
    line.as_object_mut().unwrap().extend(item.as_object().unwrap().clone());
    line.to_string()
}

/// One turn with more keys in the reply and the item.
fn one_turn(reply: Value, item: Value) -> String {
    let mut answer = json!({"role": "assistant", "content": "4"});
    answer.as_object_mut().unwrap().extend(reply.as_object().unwrap().clone());
    let mut line = json!({"messages": [{"role": "user", "content": "2+2?"}, answer]});
    line.as_object_mut().unwrap().extend(item.as_object().unwrap().clone());
    line.to_string()
}

const PLAIN: &str = "<think>\n\n</think>\n\n4<|im_end|>";
const BAD: &str = "<think>\n\n</think>\n\nbad<|im_end|>";
const GOOD: &str = "<think>\n\n</think>\n\ngood<|im_end|>";

#[test]
fn thoughts_are_learnt_under_each_of_their_names() {
    let expected = "<think>\nTwo and two make four.\n</think>\n\n4<|im_end|>";
    for key in ["reasoning_content", "thinking", "reasoning"] {
        learns(&one_turn(json!({key: "Two and two make four."}), json!({})), &[expected], &[]);
        let item = json!({"instruction": "2+2?", "output": "4", key: "Two and two make four."});
        learns(&item.to_string(), &[expected], &[]);
        let sharegpt = json!({"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4", key: "Two and two make four."}]});
        learns(&sharegpt.to_string(), &[expected], &[]);
        learns(&one_turn(json!({key: null}), json!({})), &[PLAIN], &[]);
        is_refused(&one_turn(json!({key: ["a"]}), json!({})), &[":1", key, "is no text"]);
        is_refused_with(
            "qwen2_5",
            &one_turn(json!({key: "why"}), json!({})),
            &[":1", "message 1", "does not render", "why"],
        );
    }
    is_refused(&one_turn(json!({"thinking": "a", "reasoning": "b"}), json!({})), &["different thoughts"]);
    is_refused(
        r#"{"messages": [{"role": "user", "content": "x", "thinking": "y"}, {"role": "assistant", "content": "z"}]}"#,
        &["message 0", "of a user message"],
    );
    for key in ["thoughts", "reasoning_details", "chain_of_thought", "cot"] {
        is_refused(&one_turn(json!({key: "why"}), json!({})), &[key, "reasoning_content"]);
    }
}

#[test]
fn tools_and_calls_reach_the_template_or_are_refused() {
    let tool = json!({"type": "function", "function": {"name": "now", "description": "the time", "parameters": {"type": "object", "properties": {}}}});
    let folder = tempdir().unwrap();
    let model = speaker(folder.path(), "qwen", Some("qwen3"));
    for tools in [json!([tool]), json!(json!([tool]).to_string()), json!([tool.to_string()])] {
        let ended = previewed(&model, &one_turn(json!({}), json!({ "tools": tools })), &[]);
        assert!(
            ended.stdout.contains("<tools>\n{\"type\": \"function\", \"function\": {\"name\": \"now\", "),
            "{ended:?}"
        );
        is_refused_with(
            "chatml",
            &one_turn(json!({}), json!({ "tools": tools })),
            &[":1", "`tools`", "does not render"],
        );
    }
    for none in [json!([]), json!(null), json!("")] {
        learns(&one_turn(json!({"tool_calls": none}), json!({"tools": none})), &[PLAIN], &[]);
    }
    is_refused(&one_turn(json!({}), json!({"tools": "now()"})), &["tools", "is no list of tools"]);
    is_refused(&one_turn(json!({}), json!({"functions": [tool]})), &["functions", "tools"]);

    let called = "<tool_call>\n{\"name\": \"now\", \"arguments\": {\"zone\": \"UTC\"}}\n</tool_call><|im_end|>";
    let expected = format!("<think>\n\n</think>\n\n{called}");
    let function = json!({"name": "now", "arguments": {"zone": "UTC"}});
    let text_function = json!({"name": "now", "arguments": "{\"zone\": \"UTC\"}"});
    let call = |function: &Value| json!([{"type": "function", "id": "1", "function": function}]);
    for calls in [call(&function), call(&text_function), json!(call(&function).to_string()), json!([function])] {
        learns(&one_turn(json!({"content": null, "tool_calls": calls}), json!({})), &[&expected], &[]);
    }
    let sharegpt = json!({"conversations": [{"from": "human", "value": "time?"}, {"from": "function_call", "value": function.to_string()},
        {"from": "observation", "value": "12:00"}, {"from": "gpt", "value": "noon"}], "tools": json!([tool]).to_string()});
    let ended = previewed(&model, &sharegpt.to_string(), &[]);
    assert_eq!(learnt(&ended.stdout).len(), 2, "{ended:?}");
    assert!(ended.stdout.contains(called) && ended.stdout.contains("<tool_response>\n12:00"), "{ended:?}");

    // A template that would quote the text gets an object, and it is said.
    let folder = tempdir().unwrap();
    let qwen2 = speaker(folder.path(), "qwen", Some("qwen2_5"));
    let ended =
        previewed(&qwen2, &one_turn(json!({"content": null, "tool_calls": call(&text_function)}), json!({})), &[]);
    assert!(
        ended.stdout.contains("\"arguments\": {\"zone\": \"UTC\"}}")
            && ended.stderr.contains("arguments of tool calls"),
        "{ended:?}"
    );

    let chatml = |reply: Value, parts: &[&str]| is_refused_with("chatml", &one_turn(reply, json!({})), parts);
    chatml(json!({"tool_calls": call(&function)}), &[":1", "message 1", "tool_calls", "does not render"]);
    for wrong in
        [json!(["now"]), json!([{"name": 3}]), json!([{"function": {"name": "now", "arguments": "zone"}}]), json!(5)]
    {
        is_refused(
            &one_turn(json!({"tool_calls": wrong}), json!({})),
            &[":1", "message 1", "tool_calls", "is no call"],
        );
    }
    is_refused(&one_turn(json!({"function_call": function}), json!({})), &["function_call", "tool_calls"]);
    is_refused(&one_turn(json!({"content": null}), json!({})), &["no text under \"content\""]);
    is_refused(&one_turn(json!({"content": [{"type": "image_url"}]}), json!({})), &["message 1", "image_url"]);
}

#[test]
fn loss_flags_decide_what_is_learnt() {
    for key in ["loss_mask", "train", "trainable", "training", "loss", "weight"] {
        for (off, on) in [(json!(0), json!(1)), (json!(false), json!(true)), (json!(0.0), json!(1.0))] {
            learns(&two_turns(json!({key: off}), json!({})), &[GOOD], &[]);
            learns(&two_turns(json!({key: on}), json!({key: null})), &[BAD, GOOD], &[]);
            learns(&two_turns(json!({}), json!({key: [off, off, off, on]})), &[GOOD], &[]);
            learns(&two_turns(json!({}), json!({key: on})), &[BAD, GOOD], &[]);
            is_refused(&two_turns(json!({}), json!({key: off})), &[":1", "no reply to learn from"]);
            is_refused(&two_turns(json!({key: on}), json!({key: [off, off, off, on]})), &["message 1", "differ"]);
            let user =
                json!({"messages": [{"role": "user", "content": "a", key: on}, {"role": "assistant", "content": "b"}]});
            is_refused(&user.to_string(), &["message 0 (user)", "asks to learn it"]);
        }
        is_refused(&two_turns(json!({key: 0.5}), json!({})), &[":1", "message 1", key, "0.5"]);
        is_refused(&two_turns(json!({key: "yes"}), json!({})), &["message 1", key]);
        is_refused(&two_turns(json!({}), json!({key: [0, 1]})), &[key, "2 flags for 4 messages"]);
    }
    let sharegpt = json!({"loss_mask": [0, 0, 0, 1], "system": "s", "conversations": [{"from": "human", "value": "a"},
        {"from": "gpt", "value": "bad"}, {"from": "human", "value": "b"}, {"from": "gpt", "value": "good"}]});
    learns(&sharegpt.to_string(), &[GOOD], &[]);
    is_refused(&two_turns(json!({"train": 1, "loss": 0}), json!({})), &["train", "loss", "differ"]);
    for key in ["mask", "is_trainable", "doTrain", "masked"] {
        is_refused(&two_turns(json!({key: true}), json!({})), &[key, "loss_mask"]);
        is_refused(&two_turns(json!({}), json!({key: [0, 1, 0, 1]})), &[key, "loss_mask"]);
    }
}

#[test]
fn keys_that_nobody_reads_are_named_once() {
    let lines = [
        one_turn(json!({"ts": 1}), json!({"id": 7})),
        one_turn(json!({}), json!({})),
        one_turn(json!({}), json!({"id": 8, "note": null})),
    ];
    learns(
        &lines.join("\n"),
        &[PLAIN; 3],
        &[
            "data.jsonl:1: key `id` of an item is not used (2 items have it)",
            "data.jsonl:1: key `ts` of a message is not used (1 item has it)",
        ],
    );
    let folder = tempdir().unwrap();
    let model = model(folder.path());
    let data = folder.path().join("data.jsonl");
    fs::write(&data, lines.join("\n")).unwrap();
    let ended = onestep(&["data", "validate", "--model", text(&model), "--data", text(&data)]);
    assert!(ended.stdout.contains("key `id` of an item is not used (2: lines 1, 3)"), "{ended:?}");
    let out = folder.path().join("run");
    let ended = onestep(&["sft", "--model", text(&model), "--data", text(&data), "--out", text(&out), "epochs=1"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(ended.stderr.matches("key `id`").count(), 1, "{ended:?}");

    for (key, value) in [
        ("chosen", json!("x")),
        ("images", json!(["a.png"])),
        ("input_ids", json!([1])),
        ("system_prompt", json!("s")),
        ("system", json!(3)),
        ("kto_tag", json!(false)),
    ] {
        is_refused(&one_turn(json!({}), json!({key: value})), &[":1", key]);
    }
    let trajectory = r#"{"task": "t", "source": "s", "index": 0, "ideas": [], "steps": [], "metric_final": 0, "metric_best": 0, "report_final": 0, "report_best": 0, "failed": false, "weight": 0}"#;
    is_refused(trajectory, &[":1", "weight"]);
}

#[test]
fn texts_that_a_template_leaves_out_are_refused() {
    let folder = tempdir().unwrap();
    let model = speaker(folder.path(), "qwen", None);
    let forgets = |what: &str| {
        format!(
            "{{% for m in messages if m.role != 'system' %}}<|im_start|>{{{{ m.role }}}}\n{{{{ {what} }}}}<|im_end|>\n{{% endfor %}}\
                                        {{% if add_generation_prompt %}}<|im_start|>assistant\n{{% endif %}}"
        )
    };
    let check = |what: &str, data: &str, parts: &[&str]| {
        fs::write(model.join("chat_template.jinja"), forgets(what)).unwrap();
        let ended = previewed(&model, data, &[]);
        assert_eq!(ended.code, Some(2), "{data}: {ended:?}");
        parts.iter().for_each(|part| assert!(ended.stderr.contains(part), "{data}: {ended:?}"));
    };
    check(
        "m.content",
        &one_turn(json!({}), json!({"system": "Be short."})),
        &["message 0 (system)", "does not render", "Be short."],
    );
    let thought = one_turn(json!({"content": "<think>why</think>4"}), json!({}));
    check("m.content.split('</think>')[-1]", &thought, &["message 1 (assistant)", "content", "does not render"]);

    // The same words elsewhere do not make up for it.
    let words = one_turn(
        json!({"content": "It is 4: two and two make four.", "reasoning_content": "two and two make four."}),
        json!({}),
    );
    check("m.content", &words, &["message 1 (assistant)", "thought", "does not render"]);
    let kind = json!({"messages": [{"role": "system", "content": "Be kind"}, {"role": "user", "content": "Be kind and say hi"},
        {"role": "assistant", "content": "hi"}]});
    check("m.content", &kind.to_string(), &["message 0 (system)", "does not render"]);
    let answer = json!({"messages": [{"role": "user", "content": "Is it 42?"}, {"role": "tool", "content": "42"},
        {"role": "assistant", "content": "It is 42."}]});
    check("m.content if m.role != 'tool'", &answer.to_string(), &["message 1 (tool)", "does not render"]);
    let call = json!([{"type": "function", "function": {"name": "search", "arguments": {"query": "look up x"}}}]);
    let beside = one_turn(json!({"content": "look up", "tool_calls": call}), json!({}));
    let either = "m.tool_calls | tojson if m.tool_calls else m.content";
    check(either, &beside, &["message 1 (assistant)", "content", "does not render"]);

    // A text that is also the template's default is rendered all the same.
    let default = "{% if messages[0].role == 'system' and messages[0].content %}{{ messages[0].content }}{% else %}Be kind{% endif %}\
                   {% for m in messages if m.role != 'system' %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
                   {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    fs::write(model.join("chat_template.jinja"), default).unwrap();
    let ended = previewed(&model, &kind.to_string(), &[]);
    assert_eq!(learnt(&ended.stdout), ["hi<|im_end|>"], "{ended:?}");
}

#[test]
fn keys_in_content_parts_and_calls_are_looked_at() {
    let part =
        |key: &str, value: Value| one_turn(json!({"content": [{"type": "text", "text": "4", key: value}]}), json!({}));
    is_refused(&part("loss", json!(0)), &[":1", "message 1", "content part", "`loss`", "loss_mask"]);
    learns(&part("cache_control", json!("on")), &[PLAIN], &["key `cache_control` of a content part is not used"]);
    learns(&part("loss", json!(null)), &[PLAIN], &[]);
    let called = "<think>\n\n</think>\n\n<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call><|im_end|>";
    let call = |call: Value, function: Value| {
        let mut whole =
            json!({"id": "1", "type": "function", "index": 0, "function": {"name": "now", "arguments": {}}});
        whole["function"].as_object_mut().unwrap().extend(function.as_object().unwrap().clone());
        whole.as_object_mut().unwrap().extend(call.as_object().unwrap().clone());
        one_turn(json!({"content": null, "tool_calls": [whole]}), json!({}))
    };
    learns(&call(json!({}), json!({})), &[called], &[]);
    is_refused(&call(json!({"train": false}), json!({})), &["message 1", "tool call", "`train`", "loss_mask"]);
    is_refused(&call(json!({}), json!({"weight": 0.5})), &["message 1", "tool call", "`weight`", "loss_mask"]);
    learns(&call(json!({"took": 3}), json!({})), &[called], &["key `took` of a tool call is not used"]);
}

#[test]
fn template_arguments_are_settings_and_keys_of_items() {
    let folder = tempdir().unwrap();
    let model = speaker(folder.path(), "qwen", Some("qwen3"));
    let off = "chat.template_arguments={enable_thinking=false}";
    let item = |item: Value| one_turn(json!({}), item);
    let check = |data: &str, more: &[&str], expected: &str, said: &str| {
        let ended = previewed(&model, data, more);
        assert_eq!(learnt(&ended.stdout), [expected], "{data} {more:?}: {ended:?}");
        assert!(ended.stderr.contains(said) && said.is_empty() == ended.stderr.is_empty(), "{ended:?}");
    };
    let answer = "4<|im_end|>";
    check(&item(json!({})), &[off], answer, "");
    check(&item(json!({})), &["chat.template_arguments={\"enable_thinking\": false}"], answer, "");
    check(&item(json!({"enable_thinking": false})), &[], answer, "");
    check(&item(json!({"chat_template_kwargs": {"enable_thinking": false}})), &[], answer, "");
    check(&item(json!({"chat_template_kwargs": "{\"enable_thinking\": false}"})), &[], answer, "");
    check(&item(json!({"chat_template_kwargs": {"enable_thinking": true}})), &[off], PLAIN, "");
    check(&item(json!({})), &["chat.template_arguments={thinkng=false}"], PLAIN, "`thinkng`");
    check(
        &item(json!({"chat_template_kwargs": {"thinkng": false}})),
        &[],
        PLAIN,
        "data.jsonl:1: template argument `thinkng`",
    );
    is_refused(&item(json!({"enable_thinking": "no"})), &["enable_thinking", "true or false"]);
    is_refused(
        &item(json!({"enable_thinking": true, "chat_template_kwargs": {"enable_thinking": false}})),
        &["differ"],
    );
    is_refused(&item(json!({"chat_template_kwargs": {"messages": []}})), &["`messages`"]);
    let ended = previewed(&model, &item(json!({})), &["chat.template_arguments={tools=[]}"]);
    assert!(ended.code == Some(2) && ended.stderr.contains("chat.template_arguments"), "{ended:?}");

    // The prompt of `generate` has them too.
    let folder = tempdir().unwrap();
    let model = crate::support::model(folder.path());
    let marked = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{{ opening }}{% endif %}";
    fs::write(model.join("chat_template.jinja"), marked).unwrap();
    let ask = |more: &[&str]| {
        done(
            &[&["generate", "--model", text(&model), "--prompt", "What is data?", "sampling.max_tokens=12"], more]
                .concat(),
        )
    };
    assert_eq!(ask(&[]), ask(&["chat.template_arguments={opening=\"\"}"]));
    assert_ne!(ask(&[]), ask(&["chat.template_arguments={opening=\"model\"}"]));
}

#[test]
fn every_reply_ends_with_a_token_that_stops_a_roll_out() {
    let folder = tempdir().unwrap();
    let data = one_turn(json!({}), json!({}));
    let refuses = |model: &Path, parts: &[&str]| {
        let ended = previewed(model, &data, &[]);
        assert_eq!(ended.code, Some(2), "{ended:?}");
        parts.iter().for_each(|part| assert!(ended.stderr.contains(part), "{ended:?} lacks {part}"));
    };
    let learns = |model: &Path| {
        let ended = previewed(model, &data, &[]);
        assert_eq!(learnt(&ended.stdout), ["4<|im_end|>"], "{ended:?}");
    };
    // No template, and ChatML is no text of this tokenizer.
    refuses(&speaker(folder.path(), "llama3", None), &["no chat template", "<|im_end|>", "chat_template.jinja"]);
    // A template of another tokenizer.
    refuses(&speaker(folder.path(), "llama3", Some("chatml")), &["speaker", "never stop", "eos_token"]);
    let model = speaker(folder.path(), "qwen", Some("chatml"));
    fs::write(model.join("chat_template.jinja"), "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}").unwrap();
    refuses(&model, &["speaker", "never stop"]);

    // The same tokens in other files.
    let model = speaker(folder.path(), "qwen", Some("chatml"));
    let whole: Value = serde_json::from_slice(&fs::read(model.join("tokenizer.json")).unwrap()).unwrap();
    let write = |file: &str, value: &Value| fs::write(model.join(file), value.to_string()).unwrap();
    let template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{{ eos_token }}\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    fs::write(model.join("chat_template.jinja"), template).unwrap();
    write("tokenizer_config.json", &json!({}));
    write("special_tokens_map.json", &json!({"eos_token": {"content": "<|im_end|>"}}));
    learns(&model);
    let mut plain = whole.clone();
    plain["added_tokens"].as_array_mut().unwrap().iter_mut().for_each(|token| token["special"] = json!(false));
    write("tokenizer.json", &plain);
    write("special_tokens_map.json", &json!({}));
    fs::write(model.join("chat_template.jinja"), template.replace("{{ eos_token }}", "<|im_end|>")).unwrap();
    learns(&model);
    let added = whole["added_tokens"].as_array().unwrap().clone();
    let decoder: serde_json::Map<String, Value> =
        added.iter().map(|token| (token["id"].to_string(), token.clone())).collect();
    let mut bare = whole.clone();
    bare["added_tokens"] = json!([]);
    bare["post_processor"] = json!(null);
    write("tokenizer.json", &bare);
    refuses(&model, &["never stop"]);
    write("tokenizer_config.json", &json!({"added_tokens_decoder": decoder}));
    learns(&model);
    let mut shifted = decoder.clone();
    let last = shifted.remove(&added.last().unwrap()["id"].to_string()).unwrap();
    shifted.insert("99999".to_string(), last);
    write("tokenizer_config.json", &json!({"added_tokens_decoder": shifted}));
    refuses(&model, &["is said to have id 99999"]);
    let ids: serde_json::Map<String, Value> =
        added.iter().map(|token| (token["content"].as_str().unwrap().to_string(), token["id"].clone())).collect();
    write("tokenizer_config.json", &json!({}));
    write("added_tokens.json", &Value::Object(ids));
    learns(&model);
    write("tokenizer_config.json", &json!({"split_special_tokens": true}));
    refuses(&model, &["split_special_tokens"]);
}

#[test]
fn a_length_beyond_the_limit_names_the_limit_that_binds() {
    let folder = tempdir().unwrap();
    let model = model(folder.path());
    let data = folder.path().join("long.jsonl");
    fs::write(&data, one_turn(json!({"content": "4 ".repeat(3000)}), json!({}))).unwrap();
    let out = folder.path().join("run");
    let verbs: [&[&str]; 3] = [&["data", "preview"], &["data", "validate"], &["sft", "--out", text(&out)]];
    for verb in verbs {
        for limit in ["sft.max_tokens=1000", "sft.max_tokens=15000"] {
            let ended = onestep(&[verb, &["--model", text(&model), "--data", text(&data), limit]].concat());
            let said = format!("{}{}", ended.stdout, ended.stderr);
            assert_eq!(ended.code, Some(2), "{said}");
            assert!(said.contains("2048 positions") && said.contains("max_position_embeddings"), "{said}");
            assert!(!said.contains("set sft.max_tokens="), "{said}");
        }
    }
    fs::write(&data, one_turn(json!({"content": "4 ".repeat(300)}), json!({}))).unwrap();
    refused(
        folder.path(),
        &["data", "preview", "--model", text(&model), "--data", text(&data), "sft.max_tokens=100"],
        &["sft.max_tokens = 100", "set sft.max_tokens="],
    );
}

#[test]
fn objects_may_spread_over_lines() {
    let line: Value = serde_json::from_str(&one_turn(json!({}), json!({"id": 1}))).unwrap();
    let pretty = serde_json::to_string_pretty(&line).unwrap();
    learns(&pretty, &[PLAIN], &["data.jsonl:1: key `id`"]);
    learns(
        &format!("\n{pretty}\n\n{pretty}\n"),
        &[PLAIN; 2],
        &["data.jsonl:2: key `id` of an item is not used (2 items have it)"],
    );
    learns(&format!("[{pretty},\n{pretty}]"), &[PLAIN; 2], &["item 1: key `id`"]);
    is_refused(
        r#"{"messages": [], "messages": [{"role": "user", "content": "a"}]}"#,
        &[":1", "`messages` stands twice"],
    );
    is_refused(&pretty[..pretty.len() - 3], &["expected one JSON object a line"]);
}
