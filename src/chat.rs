//! Chat templates (Jinja, as transformers renders them) and the tokens of a conversation with their loss mask. Knows no files.

use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;
use crate::trajectory::Message;
use minijinja::value::{Kwargs, Value};
use minijinja::{Environment, ErrorKind, context};
use regex::{Captures, Regex};
use serde::Serialize;
use serde_json::ser::{CompactFormatter, Formatter, PrettyFormatter, Serializer};
use std::io::{self, Write};

/// What a folder without a template of its own gets: ChatML.
pub const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}\
                          {% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos: String,
    eos: String,
}

/// A conversation as tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Masked {
    /// Token ids (T).
    pub ids: Vec<u32>,
    /// (T): true where the agent produces the token: its replies, each with the token that ends it.
    pub is_sampled: Vec<bool>,
}

impl ChatTemplate {
    /// Compiles `source`; `bos` and `eos` are what it knows as `bos_token` and `eos_token`.
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<Self> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function(
            "raise_exception",
            |message: String| -> std::result::Result<String, minijinja::Error> {
                Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
            },
        );
        environment.add_function("strftime_now", strftime);
        environment.add_filter("tojson", tojson);
        environment
            .add_template_owned("chat", without_generation_tags(source))
            .map_err(|e| Error::content(format!("chat template: {}", chain(&e))))?;
        Ok(Self { environment, bos: bos.to_string(), eos: eos.to_string() })
    }

    /// The template of a tokenizer's folder; ChatML where it has none.
    pub fn of(tokenizer: &Tokenizer) -> Result<Self> {
        Self::new(
            tokenizer.chat_template().unwrap_or(CHATML),
            tokenizer.bos().unwrap_or_default(),
            tokenizer.eos().unwrap_or_default(),
        )
    }

    /// The text of a conversation, with the opening of the agent's reply behind it when asked for.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let fail = |e: minijinja::Error| Error::content(format!("chat template: {}", chain(&e)));
        let template = self.environment.get_template("chat").map_err(fail)?;
        template
            .render(context! {
                messages => messages, add_generation_prompt => add_generation_prompt,
                bos_token => self.bos, eos_token => self.eos, tools => (), documents => (),
            })
            .map_err(fail)
    }

    /// The tokens from which the agent's next reply is sampled.
    pub fn prompt_ids(&self, messages: &[Message], tokenizer: &Tokenizer) -> Result<Vec<u32>> {
        tokenizer.encode(&self.render(messages, true)?)
    }

    /// Ids at which a reply ends: the tokenizer's eos ids and the special token with which this template closes a reply. (A base
    /// model's eos is often another one than its template's: Qwen2.5 has `<|endoftext|>` and `<|im_end|>`.)
    pub fn stop_ids(&self, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
        let mut ids = tokenizer.eos_ids().to_vec();
        let probe = [Message::new("user", "ask"), Message::new("assistant", "answer")];
        let text = self.render(&probe, false)?;
        let tail = text.rsplit_once("answer").map_or("", |(_, tail)| tail);
        if let Some(&closing) = tokenizer.encode(tail)?.iter().find(|&&id| tokenizer.is_special(id))
            && !ids.contains(&closing)
        {
            ids.push(closing);
        }
        Ok(ids)
    }

    /// The tokens of a conversation and where the agent produced them: one sequence, or more where the template rewrites earlier messages
    /// once others follow (reasoning models drop the thoughts of earlier replies). Then each reply is learnt behind the prompt that it
    /// would be sampled from: a new sequence begins at every reply whose prompt does not continue the sequence before. Messages after the last
    /// reply are left out.
    ///
    /// A reply is what `messages[..=i]` adds to `messages[..i]` with generation prompt, cut behind its last token of `stop_ids`
    /// (templates write a line break there that nobody samples). The boundary is one of tokens too, as it is when sampling: no
    /// token spans it. A reply that is not rendered behind its prompt is an error that names the message.
    pub fn render_with_mask(
        &self,
        messages: &[Message],
        tokenizer: &Tokenizer,
        stop_ids: &[u32],
    ) -> Result<Vec<Masked>> {
        let mut sequences: Vec<Masked> = Vec::new();
        let mut text = String::new();
        for (i, _) in messages.iter().enumerate().filter(|(_, m)| m.role == "assistant") {
            let at = |e: Error| e.context(format!("message {i}"));
            let prompt = self.render(&messages[..i], true).map_err(at)?;
            let whole = self.render(&messages[..=i], false).map_err(at)?;
            if !whole.starts_with(&prompt) {
                return Err(Error::content(format!(
                    "chat template, message {i} (assistant): the reply is not rendered behind the generation prompt; a loss mask needs \
                     a template whose `add_generation_prompt` writes what a reply begins with"
                )));
            }
            let mut masked = match sequences.pop() {
                Some(masked) if prompt.starts_with(&text) => masked,
                before => {
                    sequences.extend(before);
                    text.clear();
                    Masked { ids: Vec::new(), is_sampled: Vec::new() }
                }
            };
            masked.extend(&text, &prompt, tokenizer)?;
            masked.is_sampled.resize(masked.ids.len(), false);
            masked.extend(&prompt, &whole, tokenizer)?;
            let reply = &masked.ids[masked.is_sampled.len()..];
            let sampled = reply.iter().rposition(|id| stop_ids.contains(id)).map_or(reply.len(), |end| end + 1);
            masked.is_sampled.resize(masked.is_sampled.len() + sampled, true);
            masked.is_sampled.resize(masked.ids.len(), false);
            sequences.push(masked);
            text = whole;
        }
        sequences.iter_mut().for_each(Masked::trim);
        Ok(sequences)
    }
}

impl Masked {
    /// Appends the tokens of what `whole` has beyond `done`. The tokens of the whole are taken where they continue those at hand
    /// (tokenizers that write a space at the front of a text need that), otherwise those of the rest alone.
    fn extend(&mut self, done: &str, whole: &str, tokenizer: &Tokenizer) -> Result<()> {
        let ids = tokenizer.encode(whole)?;
        if ids.starts_with(&self.ids) {
            self.ids = ids;
        } else {
            self.ids.extend(tokenizer.encode(&whole[done.len()..])?);
        }
        Ok(())
    }

    /// Leaves out what stands behind the last sampled token.
    fn trim(&mut self) {
        let end = self.is_sampled.iter().rposition(|&s| s).map_or(0, |last| last + 1);
        self.ids.truncate(end);
        self.is_sampled.truncate(end);
    }
}

/// `{% generation %}` and `{% endgeneration %}`, with which templates mark replies for transformers, as a block that is always there; where
/// they strip white space, it does.
fn without_generation_tags(source: &str) -> String {
    let Ok(tags) = Regex::new(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}") else { return source.to_string() };
    let block =
        |c: &Captures| format!("{{%{} {} {}%}}", &c[1], if c.get(2).is_some() { "endif" } else { "if true" }, &c[3]);
    tags.replace_all(source, block).into_owned()
}

/// Python's `json.dumps(value, ensure_ascii=False, indent=indent)`, which is what transformers gives templates under this name.
fn tojson(value: &Value, indent: Option<Value>, options: Kwargs) -> std::result::Result<Value, minijinja::Error> {
    let indent = indent.map_or_else(|| options.get::<Option<Value>>("indent"), |indent| Ok(Some(indent)))?;
    let indent = indent.filter(|i| !i.is_none()).map(usize::try_from).transpose()?;
    options.assert_all_used()?;
    let mut text = Vec::new();
    let written = match indent.map(|n| " ".repeat(n)) {
        Some(indent) => {
            let lines = PrettyFormatter::with_indent(indent.as_bytes());
            value.serialize(&mut Serializer::with_formatter(&mut text, lines))
        }
        None => value.serialize(&mut Serializer::with_formatter(&mut text, Spaced(CompactFormatter))),
    };
    let wrong = |e: &dyn std::fmt::Display| minijinja::Error::new(ErrorKind::BadSerialization, format!("tojson: {e}"));
    written.map_err(|e| wrong(&e))?;
    Ok(Value::from(String::from_utf8(text).map_err(|e| wrong(&e))?))
}

/// JSON in one line as Python writes it: a space behind `,` and `:`.
struct Spaced(CompactFormatter);

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.0.begin_array_value(writer, first)?;
        if first { Ok(()) } else { writer.write_all(b" ") }
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.0.begin_object_key(writer, first)?;
        if first { Ok(()) } else { writer.write_all(b" ") }
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.begin_object_value(writer)?;
        writer.write_all(b" ")
    }
}

/// An error of minijinja with its causes, in one line.
fn chain(error: &minijinja::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// `strftime_now` of transformers on one fixed day, the one Llama 3 falls back to: a prompt must not depend on the day of the run.
fn strftime(format: &str) -> String {
    let fields = [
        ("%d", "26"),
        ("%m", "07"),
        ("%b", "Jul"),
        ("%B", "July"),
        ("%Y", "2024"),
        ("%y", "24"),
        ("%a", "Fri"),
        ("%A", "Friday"),
        ("%H", "00"),
        ("%M", "00"),
        ("%S", "00"),
    ];
    fields.iter().fold(format.to_string(), |text, (field, value)| text.replace(field, value))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::tokenizer::tests::byte_tokenizer;

    const LLAMA3: &str = "{{- bos_token }}\n{%- set date = strftime_now('%d %b %Y') %}\n\
        {%- if messages[0]['role'] == 'system' %}\n    {%- set system = messages[0]['content'].strip() %}\n    {%- set messages = messages[1:] %}\n\
        {%- else %}\n    {%- set system = '' %}\n{%- endif %}\n\
        {{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday: ' + date + '\\n\\n' + system + '<|eot_id|>' }}\n\
        {%- for message in messages %}\n    {%- if message.role not in ['user', 'assistant'] %}\n        {{- raise_exception('no role ' + message.role) }}\n    {%- endif %}\n\
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}\n{%- endfor %}\n\
        {%- if add_generation_prompt %}\n    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}\n{%- endif %}\n";
    const QWEN: &str = "{%- if messages[0]['role'] == 'system' %}\n    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}\n\
        {%- else %}\n    {{- '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}\n{%- endif %}\n\
        {%- for message in messages %}\n    {%- if (message.role == \"user\") or (message.role == \"system\" and not loop.first) or (message.role == \"assistant\" and not message.tool_calls) %}\n\
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}\n    {%- endif %}\n{%- endfor %}\n\
        {%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n";

    fn talk() -> Vec<Message> {
        [("system", "be short"), ("user", "one?"), ("assistant", "1"), ("user", "two?"), ("assistant", "2\n")]
            .map(|(role, content)| Message::new(role, content))
            .to_vec()
    }

    /// The text of the tokens under the mask, one string for each run of them.
    fn sampled(masked: &Masked, tokenizer: &Tokenizer) -> Vec<String> {
        let pairs: Vec<(u32, bool)> = masked.ids.iter().copied().zip(masked.is_sampled.iter().copied()).collect();
        let runs = pairs.chunk_by(|a, b| a.1 == b.1).filter(|run| run[0].1);
        runs.map(|run| tokenizer.decode(&run.iter().map(|p| p.0).collect::<Vec<_>>())).collect()
    }

    #[test]
    fn templates_render_as_transformers_does() {
        let chatml = ChatTemplate::new(CHATML, "", "").unwrap();
        let expected =
            "<|im_start|>system\nbe short<|im_end|>\n<|im_start|>user\none?<|im_end|>\n<|im_start|>assistant\n";
        assert_eq!(chatml.render(&talk()[..2], true).unwrap(), expected);
        let qwen = ChatTemplate::new(QWEN, "", "").unwrap();
        assert_eq!(qwen.render(&talk()[..2], true).unwrap(), expected);
        let default = "<|im_start|>system\nYou are helpful.<|im_end|>\n<|im_start|>user\none?<|im_end|>\n";
        assert_eq!(qwen.render(&talk()[1..2], false).unwrap(), default);
        let llama = ChatTemplate::new(LLAMA3, "<s>", "").unwrap();
        let header = |role: &str| format!("<|start_header_id|>{role}<|end_header_id|>\n\n");
        let expected = format!(
            "<s>{}Today: 26 Jul 2024\n\nbe short<|eot_id|>{}one?<|eot_id|>{}",
            header("system"),
            header("user"),
            header("assistant")
        );
        assert_eq!(llama.render(&talk()[..2], true).unwrap(), expected);
    }

    #[test]
    fn the_mask_covers_replies_and_their_end_only() {
        let tokenizer = byte_tokenizer(&["<s>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]);
        let check = |source: &str, expected: &[&str]| {
            let template = ChatTemplate::new(source, "<s>", "<|im_end|>").unwrap();
            let stop = template.stop_ids(&tokenizer).unwrap();
            let masked = template.render_with_mask(&talk(), &tokenizer, &stop).unwrap().remove(0);
            assert_eq!(sampled(&masked, &tokenizer), expected);
            let prompt = template.prompt_ids(&talk()[..2], &tokenizer).unwrap();
            assert_eq!(masked.ids[..prompt.len()], prompt, "trained on what is sampled from");
            assert_eq!(masked.is_sampled[..=prompt.len()], [vec![false; prompt.len()], vec![true]].concat());
            let whole = template.render(&talk(), false).unwrap();
            assert!(whole.starts_with(&tokenizer.decode(&masked.ids)));
        };
        check(CHATML, &["1<|im_end|>", "2\n<|im_end|>"]);
        check(QWEN, &["1<|im_end|>", "2\n<|im_end|>"]);
        check(LLAMA3, &["1<|eot_id|>", "2<|eot_id|>"]);
    }

    #[test]
    fn the_end_of_a_reply_is_found_where_the_eos_is_another_token() {
        let tokenizer = byte_tokenizer(&["<|eot_id|>"]);
        let llama = ChatTemplate::new(LLAMA3, "", "").unwrap();
        assert_eq!(llama.stop_ids(&tokenizer).unwrap(), [257, 258]);
        assert_eq!(ChatTemplate::of(&tokenizer).unwrap().stop_ids(&tokenizer).unwrap(), [257]);
    }

    #[test]
    fn what_follows_the_last_reply_is_left_out() {
        let tokenizer = byte_tokenizer(&[]);
        let template = ChatTemplate::of(&tokenizer).unwrap();
        let mut longer = talk();
        longer.push(Message::new("user", "three?"));
        let mask = |messages: &[Message]| template.render_with_mask(messages, &tokenizer, &[257]).unwrap();
        assert_eq!(mask(&longer), mask(&talk()));
        assert!(mask(&longer[..2]).is_empty(), "no reply, no tokens");
    }

    #[test]
    fn where_a_template_rewrites_earlier_messages_each_reply_has_its_own_prompt() {
        // As reasoning models do: thoughts stay in the last reply only.
        let forgetful = "{% for m in messages %}{{ m.role }}:{% if loop.last or m.role == 'user' %}{{ m.content }}{% endif %}<|im_end|>{% endfor %}\
                         {% if add_generation_prompt %}assistant:{% endif %}";
        let tokenizer = byte_tokenizer(&[]);
        let template = ChatTemplate::new(forgetful, "", "").unwrap();
        let sequences = template.render_with_mask(&talk()[1..], &tokenizer, &[257]).unwrap();
        let texts: Vec<String> = sequences.iter().map(|m| tokenizer.decode(&m.ids)).collect();
        let first = "user:one?<|im_end|>assistant:1<|im_end|>";
        assert_eq!(texts, [first, "user:one?<|im_end|>assistant:<|im_end|>user:two?<|im_end|>assistant:2\n<|im_end|>"]);
        assert_eq!(sampled(&sequences[0], &tokenizer), ["1<|im_end|>"]);
        assert_eq!(sampled(&sequences[1], &tokenizer), ["2\n<|im_end|>"]);
    }

    #[test]
    fn a_template_that_does_not_begin_replies_with_its_prompt_is_refused_with_the_message() {
        let tokenizer = byte_tokenizer(&[]);
        let no_prompt = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}GO{% endif %}";
        let template = ChatTemplate::new(no_prompt, "", "").unwrap();
        let error = template.render_with_mask(&talk(), &tokenizer, &[257]).unwrap_err();
        assert!(error.to_string().contains("message 2") && error.to_string().contains("generation prompt"), "{error}");
    }

    #[test]
    fn errors_of_a_template_say_what_it_said() {
        let error = ChatTemplate::new("{% for x in %}", "", "").unwrap_err();
        assert_eq!(error.exit_code(), 2);
        let template = ChatTemplate::new(LLAMA3, "", "").unwrap();
        let error = template.render(&[Message::new("tool", "x")], false).unwrap_err();
        assert!(error.to_string().contains("no role tool"), "{error}");
    }
}
