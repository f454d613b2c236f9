//! Trains the small model's tokenizer: a byte-level BPE learned from exercises. Whole boilerplate strings are one token
//! each, so that a prompt takes about 110 tokens and an edit about 20.

use super::{ENTRY, Exercises};
use crate::environment::action::{self, Action};
use crate::error::{Error, Result};
use crate::files::write_whole;
use crate::rng::Philox;
use std::path::Path;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, PreTokenizerWrapper, SplitDelimiterBehavior, Tokenizer};

/// Tokens of the BPE itself; the boilerplate comes on top.
const BPE_TOKENS: usize = 960;
const EXERCISES: usize = 3000;
const REPLIES: usize = 6;

/// Special tokens. The first three are those of ChatML; the others join what stands around a message into one token.
const SPECIAL: [&str; 5] =
    ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"];

/// ChatML template, which the special tokens are made for.
const CHAT_TEMPLATE: &str = "{% for message in messages %}\
    {{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}\
    {% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// Returns the number of tokens, which is the same for every seed.
pub fn vocab_size() -> usize {
    BPE_TOKENS + boilerplate().len()
}

/// Trains the tokenizer: equal seeds give equal tokenizers.
///
/// # Errors
/// Content errors of the bundled libraries; system errors of the trainer.
pub fn train_tokenizer(seed: u64) -> Result<Tokenizer> {
    let exercises = Exercises::bundled()?;
    let mut rng = Philox::named(seed, "tokenizer");
    let boilerplate = boilerplate();
    let mut longest_first: Vec<&str> = boilerplate.iter().map(String::as_str).collect();
    longest_first.sort_by_key(|text| std::cmp::Reverse(text.len()));
    let mut texts = Vec::with_capacity(EXERCISES);
    for _ in 0..EXERCISES {
        let exercise = exercises.draw(&mut rng, REPLIES);
        let text = exercise.prompt + &exercise.replies.concat();
        texts.push(longest_first.iter().fold(text, |text, piece| text.replace(piece, "\n")));
    }

    let failed = |e: tokenizers::Error| Error::system(format!("training the tokenizer: {e}"));
    let words = SplitPattern::Regex(r" ?[A-Za-z]+|\d+|\n| ?[^A-Za-z\d\n ]+| +".to_string());
    let words = Split::new(words, SplitDelimiterBehavior::Isolated, false).map_err(failed)?;
    let bytes = ByteLevel::new(false, false, false);
    let mut tokenizer = Tokenizer::new(BPE::default());
    tokenizer
        .with_pre_tokenizer(Some(Sequence::new(vec![
            PreTokenizerWrapper::Split(words),
            PreTokenizerWrapper::ByteLevel(bytes),
        ])))
        .with_decoder(Some(bytes));
    let special = SPECIAL.map(|text| AddedToken::from(text, true).normalized(false));
    let trainer = BpeTrainer::builder()
        .vocab_size(BPE_TOKENS)
        .min_frequency(20)
        .show_progress(false)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .special_tokens(special.to_vec())
        .build();
    tokenizer.train(&mut TrainerWrapper::from(trainer), texts.into_iter()).map_err(failed)?;
    let boilerplate: Vec<AddedToken> =
        boilerplate.into_iter().map(|text| AddedToken::from(text, false).normalized(false)).collect();
    tokenizer.add_tokens(&boilerplate);
    Ok(tokenizer)
}

/// Trains the tokenizer and writes `tokenizer.json` and `tokenizer_config.json` into `folder`, each whole or not at
/// all.
///
/// # Errors
/// Those of [`train_tokenizer`]; input and output errors that name the file.
pub fn save_tokenizer(folder: &Path, seed: u64) -> Result<()> {
    let tokenizer = train_tokenizer(seed)?;
    let json = tokenizer.to_string(true).map_err(|e| Error::system(format!("writing the tokenizer: {e}")))?;
    let config = serde_json::json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": CHAT_TEMPLATE,
        "bos_token": null,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": null,
        "add_prefix_space": false,
        "clean_up_tokenization_spaces": false,
        "model_max_length": 512,
    });
    let config = serde_json::to_string_pretty(&config)
        .map_err(|e| Error::system(format!("writing the tokenizer's configuration: {e}")))?;
    for (name, text) in [("tokenizer.json", json), ("tokenizer_config.json", config)] {
        let path = folder.join(name);
        folder.metadata().map_err(|e| Error::io("writing", &path, &e))?; // a missing folder is not made
        write_whole(&path, (text + "\n").as_bytes())?;
    }
    Ok(())
}

/// Returns strings that scripts and replies often contain; each becomes one token.
fn boilerplate() -> Vec<String> {
    let script_name = || ENTRY.to_string();
    let marks = Action::EditScript { script_name: script_name(), search: "<1>".into(), replace: "<2>".into() };
    let marks = action::render(&marks);
    let mut texts: Vec<String> = marks.split("<1>").flat_map(|part| part.split("<2>")).map(str::to_string).collect();
    texts.extend(
        [
            Action::ExecuteScript { script_name: script_name() },
            Action::ListFiles { dir_path: ".".to_string() },
            Action::InspectScriptLines { script_name: script_name(), start_line_number: 1, end_line_number: 20 },
            Action::FinalAnswer { final_answer: "done".to_string() },
        ]
        .iter()
        .map(action::render),
    );
    texts.extend(
        [
            "import numpy as np\nfrom sklearn import ",
            "\nfrom sklearn.feature_extraction import text\n",
            "\ndata = np.load(\"data.npz\")\n",
            "X, y, Z = data[\"X\"], data[\"y\"], data[\"Z\"]\n",
            "\nmodel.fit(X, y)\nprint(\"train score\", round(model.score(X, y), 2))\np = model.",
            "(Z)\nnp.savetxt(\"submission.csv\", p, delimiter=\",\")\n",
            "X = vec.fit_transform(X).toarray()\nZ = vec.transform(Z).toarray()\n",
            "A, F, y = data[\"A\"], data[\"F\"], data[\"y\"]\n",
            "X, Z = F[data[\"a\"]], F[data[\"b\"]]\n",
        ]
        .map(str::to_string),
    );
    texts
}
