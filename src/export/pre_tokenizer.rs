//! Finds llama.cpp's name for the way a tokenizer.json splits text before BPE, by its structure.

use serde_json::Value;

/// One splitting step, as far as it decides where a text is cut.
#[derive(Debug, PartialEq)]
enum Cut<'a> {
    /// Each match of the expression is a piece.
    Matches(&'a str),
    /// Each digit is a piece.
    Digits,
    /// GPT-2's expression, which byte-level pre-tokenizers have built in.
    Gpt2,
}

const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The splits that llama.cpp has a name for (`llm_tokenizer_bpe` of its src/llama-vocab.cpp).
const NAMED: [(&[Cut], &str); 6] = [
    (&[Cut::Gpt2], "gpt-2"),
    (&[Cut::Digits, Cut::Gpt2], "smollm"),
    (&[Cut::Matches(r"\p{N}"), Cut::Gpt2], "smollm"),
    (&[Cut::Matches(QWEN2)], "qwen2"),
    (&[Cut::Matches(LLAMA3)], "llama-bpe"),
    (&[Cut::Matches(QWEN35)], "qwen35"),
];

/// Names under which llama.cpp takes a word that is a token as a whole, before it merges.
const IGNORING_MERGES: [&str; 1] = ["llama-bpe"];

/// llama.cpp's name for the pre-tokenizer of a tokenizer.json, "default" if it has none, and in words what llama.cpp
/// does differently.
pub fn name(json: &Value) -> (&'static str, Vec<String>) {
    let mut unlike = vec![];
    let component = &json["pre_tokenizer"];
    let parts = component["pretokenizers"].as_array().map_or(std::slice::from_ref(component), Vec::as_slice);
    let cuts: Option<Vec<Vec<Cut>>> = parts.iter().map(cuts).collect();
    let cuts: Option<Vec<Cut>> = cuts.map(|cuts| cuts.into_iter().flatten().collect());
    let named = cuts.and_then(|cuts| NAMED.iter().find(|(known, _)| *known == cuts).map(|(_, name)| *name));
    if named.is_none() {
        unlike.push(format!(
            "llama.cpp has no name for its pre-tokenizer ({component}); \"default\" is written, which may cut some texts differently"
        ));
    }
    let name = named.unwrap_or("default");
    if parts.iter().any(|part| part["type"] == "ByteLevel" && part["add_prefix_space"] == true) {
        unlike.push("its pre-tokenizer puts a space before a text (add_prefix_space), which llama.cpp does not".into());
    }
    match &json["normalizer"] {
        Value::Null => {}
        // llama.cpp omits it for every model that has it; text is almost always NFC.
        normalizer if normalizer["type"] == "NFC" => {}
        normalizer => unlike
            .push(format!("its normalizer ({normalizer}) is not in llama.cpp: texts that it changes differ there")),
    }
    let ignores = json["model"]["ignore_merges"] == true;
    if named.is_some() && ignores != IGNORING_MERGES.contains(&name) {
        unlike.push(format!(
            "its model.ignore_merges is {ignores}, which llama.cpp does otherwise for {name:?}: rare words may differ"
        ));
    }
    (name, unlike)
}

/// The splitting steps of one component; `None` if it splits in a way that is not listed.
fn cuts(part: &Value) -> Option<Vec<Cut<'_>>> {
    match part["type"].as_str()? {
        "ByteLevel" if part["use_regex"] == false => Some(vec![]),
        "ByteLevel" => Some(vec![Cut::Gpt2]),
        "Digits" if part["individual_digits"] == true => Some(vec![Cut::Digits]),
        "Split" if part["behavior"] == "Isolated" && part["invert"] != true => {
            Some(vec![Cut::Matches(part["pattern"]["Regex"].as_str()?)])
        }
        _ => None,
    }
}
