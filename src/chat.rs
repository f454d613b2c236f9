//! Chat templates (Jinja, as transformers renders them): renders conversations as text or as tokens with a loss mask.
//! Reads no files.

mod carried;
mod dialect;
mod python;

use crate::error::{Error, Result};
use crate::message::{Context, Conversation, Message};
use crate::settings::section;
use crate::tokenizer::Tokenizer;
use dialect::Dialect;
use minijinja::{Environment, ErrorKind};
use python::chain;
use serde_json::{Map, Value, json};
use std::collections::HashSet;
use std::sync::OnceLock;

section! {
    /// `[chat]`
    Settings { template_arguments: toml::Table }
}

/// ChatML, the template for a folder that has none.
pub const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}\
                          {% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// Names that the program sets itself; they cannot be template arguments.
const RESERVED: [&str; 5] = ["messages", "tools", "add_generation_prompt", "continue_final_message", "chat_template"];

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    sources: Vec<String>,
    special: Map<String, Value>,
    arguments: Map<String, Value>,
    dialect: OnceLock<Dialect>,
    unusable: Option<String>,
}

/// A conversation as tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Masked {
    /// Token ids (T).
    pub ids: Vec<u32>,
    /// (T): true for tokens that the agent produces and learns: its replies, each with the token that ends it.
    pub is_sampled: Vec<bool>,
}

impl ChatTemplate {
    /// Compiles `source`, with `bos` and `eos` as its `bos_token` and `eos_token`.
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
        environment.add_function("strftime_now", python::strftime);
        environment.add_filter("tojson", python::tojson);
        let special = [("bos_token", bos), ("eos_token", eos)].map(|(key, token)| (key.to_string(), json!(token)));
        let template = Self {
            environment,
            sources: vec![],
            special: Map::from_iter(special),
            arguments: Map::new(),
            dialect: OnceLock::new(),
            unusable: None,
        };
        template.with_source("default", source)
    }

    fn with_source(mut self, name: &'static str, source: &str) -> Result<Self> {
        self.environment
            .add_template_owned(name, python::without_generation_tags(source))
            .map_err(|e| Error::content(format!("chat template: {}", chain(&e))))?;
        self.sources.push(source.to_string());
        Ok(self)
    }

    /// The template of a tokenizer's folder, or ChatML if it has none. If the tokenizer lacks ChatML's tokens too,
    /// every rendering is an error that says so.
    pub fn of(tokenizer: &Tokenizer) -> Result<Self> {
        let source = tokenizer.chat_template();
        let (bos, eos) = (tokenizer.bos().unwrap_or_default(), tokenizer.eos().unwrap_or_default());
        let mut template = Self::new(source.unwrap_or(CHATML), bos, eos)?;
        template.special.extend(tokenizer.special_tokens().iter().map(|(key, token)| (key.clone(), json!(token))));
        if let Some(source) = tokenizer.tool_template() {
            template = template.with_source("tool_use", source)?;
        }
        let is_token = |text: &str| tokenizer.encode(text).is_ok_and(|ids| ids.len() == 1);
        if source.is_none() && !(is_token("<|im_start|>") && is_token("<|im_end|>")) {
            template.unusable = Some(format!(
                "{}: it has no chat template, and ChatML, which is taken then, needs the tokens <|im_start|> and <|im_end|>, which \
                 this tokenizer does not have: put the model's own template there as chat_template.jinja",
                tokenizer.folder().display()
            ));
        }
        Ok(template)
    }

    /// The same template with `arguments` for every conversation, such as `enable_thinking`; a conversation's own
    /// override them. Error: an argument that the program sets itself.
    pub fn with_arguments(mut self, arguments: Map<String, Value>) -> Result<Self> {
        Self::check_arguments(&arguments)?;
        self.arguments = arguments;
        Ok(self)
    }

    /// Refuses arguments that the program sets itself.
    pub fn check_arguments(arguments: &Map<String, Value>) -> Result<()> {
        match arguments.keys().find(|key| RESERVED.contains(&key.as_str())) {
            None => Ok(()),
            Some(key) => Err(Error::content(format!(
                "template argument `{key}` is set by the program itself; expected one that the chat template reads, such as \
                 enable_thinking = false"
            ))),
        }
    }

    /// The arguments given with `with_arguments` that the template does not read.
    pub fn unread_arguments(&self) -> Vec<&str> {
        let read = self.variables();
        self.arguments.keys().map(String::as_str).filter(|key| !read.contains(*key)).collect()
    }

    /// Names that the template looks up and does not set itself.
    pub fn variables(&self) -> HashSet<String> {
        self.environment.templates().flat_map(|(_, template)| template.undeclared_variables(false)).collect()
    }

    /// Whether the template's source has `key` as a field: `.key`, `'key'` or `"key"`.
    pub fn reads_field(&self, key: &str) -> bool {
        let ends = |rest: &str| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_');
        self.sources.iter().any(|source| {
            let dotted = source.split('.').skip(1).any(|rest| rest.strip_prefix(key).is_some_and(ends));
            dotted || source.contains(&format!("'{key}'")) || source.contains(&format!("\"{key}\""))
        })
    }

    /// Renders a conversation as text; `add_generation_prompt` appends the opening of the agent's reply.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        self.render_with(messages, &Context::default(), add_generation_prompt)
    }

    /// As `render`, with tools and template arguments.
    pub fn render_with(&self, messages: &[Message], context: &Context, add_generation_prompt: bool) -> Result<String> {
        if let Some(why) = &self.unusable {
            return Err(Error::content(why.clone()));
        }
        let messages = messages.iter().map(|message| self.dialect().value(message)).collect();
        self.text(messages, context, add_generation_prompt)
    }

    /// As `render_with`, for messages already in the template's form. The variables have the names that transformers
    /// uses.
    fn text(&self, messages: Value, context: &Context, add_generation_prompt: bool) -> Result<String> {
        let fail = |e: minijinja::Error| Error::content(format!("chat template: {}", chain(&e)));
        let named = if context.tools.is_some() { self.environment.get_template("tool_use").ok() } else { None };
        let template = named.map_or_else(|| self.environment.get_template("default"), Ok).map_err(fail)?;
        let mut values = Map::from_iter([("documents".to_string(), Value::Null)]);
        for more in [&self.special, &self.arguments, &context.arguments] {
            values.extend(more.iter().map(|(key, value)| (key.clone(), value.clone())));
        }
        values.insert("messages".to_string(), messages);
        values.insert("tools".to_string(), json!(context.tools));
        values.insert("add_generation_prompt".to_string(), json!(add_generation_prompt));
        template.render(minijinja::Value::from_serialize(&values)).map_err(fail)
    }

    fn dialect(&self) -> &Dialect {
        self.dialect.get_or_init(|| Dialect::of(&|messages| self.text(messages, &Context::default(), false).ok()))
    }

    /// Whether a call's arguments are passed to the template in the other form (object or JSON text), because it reads
    /// only that one.
    pub fn converts(&self, arguments: &Value) -> bool {
        self.dialect().converts(arguments)
    }

    /// The tokens from which the agent's next reply is sampled.
    pub fn prompt_ids(&self, messages: &[Message], tokenizer: &Tokenizer) -> Result<Vec<u32>> {
        tokenizer.encode(&self.render(messages, true)?)
    }

    /// Ids that end a reply: the tokenizer's eos ids and the token with which this template closes a reply. (A base
    /// model's eos often differs from its template's: Qwen2.5 has `<|endoftext|>` and `<|im_end|>`.) Error: the
    /// template closes replies with no such token, so a roll-out would not stop.
    pub fn stop_ids(&self, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
        let mut ids = tokenizer.eos_ids().to_vec();
        let closing = self.closing_id(tokenizer)?;
        if !ids.contains(&closing) {
            ids.push(closing);
        }
        Ok(ids)
    }

    /// The id of the token with which this template closes a reply. Error: there is no such token.
    pub fn closing_id(&self, tokenizer: &Tokenizer) -> Result<u32> {
        let ids = tokenizer.eos_ids();
        let probe = [Message::new("user", "ask"), Message::new("assistant", "answer")];
        let text = self.render(&probe, false)?;
        let tail = text.rsplit_once("answer").map_or("", |(_, tail)| tail);
        // An end mark that no file declares: one token, opening with < or [, that is all the text behind the reply.
        let is_mark = |id: u32| {
            let token = tokenizer.decode(&[id]);
            let token = token.trim();
            token.len() > 2 && token.starts_with(['<', '[']) && tail.trim() == token
        };
        let behind = tokenizer.encode(tail)?;
        let closing = behind.into_iter().find(|&id| ids.contains(&id) || tokenizer.is_added(id) || is_mark(id));
        closing.ok_or_else(|| unclosed(tail, tokenizer))
    }

    /// Tokens of a conversation and which of them the agent learns, as one sequence; as several if the template
    /// rewrites earlier messages once others follow (reasoning models drop the thoughts of earlier replies). Each reply
    /// is then learnt behind the prompt it would be sampled from: a new sequence begins at every reply whose prompt
    /// does not continue the sequence before. Messages after the last learnt reply are left out.
    ///
    /// A reply is what `messages[..=i]` adds to `messages[..i]` with the generation prompt, cut after its last token of
    /// `stop_ids` (templates write a line break there that nobody samples). No token spans the boundary between prompt
    /// and reply, as in sampling. Errors name the message: a reply that is not rendered behind its prompt, or not
    /// closed by a token of `stop_ids`; a text, thought, tool or call that the template leaves out.
    pub fn render_with_mask(
        &self,
        conversation: &Conversation,
        tokenizer: &Tokenizer,
        stop_ids: &[u32],
    ) -> Result<Vec<Masked>> {
        let Conversation { messages, is_learnt, context } = conversation;
        let mut sequences: Vec<Masked> = Vec::new();
        let mut text = String::new();
        for (i, _) in is_learnt.iter().enumerate().filter(|(_, learnt)| **learnt) {
            let at = |e: Error| e.context(format!("message {i}"));
            let prompt = self.render_with(&messages[..i], context, true).map_err(at)?;
            let whole = self.render_with(&messages[..=i], context, false).map_err(at)?;
            if !whole.starts_with(&prompt) {
                return Err(Error::content(format!(
                    "chat template, message {i} (assistant): the reply is not rendered behind the generation prompt; a loss mask needs \
                     a template whose `add_generation_prompt` writes what a reply begins with, and template arguments (such as \
                     enable_thinking) that fit the reply"
                )));
            }
            self.check_reply(conversation, i, &prompt, &whole)?;
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
            let end = reply.iter().rposition(|id| stop_ids.contains(id));
            let Some(end) = end.filter(|&end| tokenizer.decode(&reply[end + 1..]).trim().is_empty()) else {
                return Err(at(unclosed(&whole[prompt.len()..], tokenizer)));
            };
            masked.is_sampled.resize(masked.is_sampled.len() + end + 1, true);
            masked.is_sampled.resize(masked.ids.len(), false);
            sequences.push(masked);
            text = whole;
        }
        if let Some(last) = is_learnt.iter().rposition(|&learnt| learnt) {
            self.check_prompt(conversation, last)?;
        }
        sequences.iter_mut().for_each(Masked::trim);
        Ok(sequences)
    }
}

/// Error for a template whose replies end in `text` and not in a token that stops a roll-out.
fn unclosed(text: &str, tokenizer: &Tokenizer) -> Error {
    let stops: Vec<String> = tokenizer.eos_ids().iter().map(|&id| format!("{:?}", tokenizer.decode(&[id]))).collect();
    let tail: String = text.chars().skip(text.chars().count().saturating_sub(20)).collect();
    Error::content(format!(
        "chat template of {}: a reply ends in {tail:?}, not in a token that ends a roll-out (eos is {}), so a model that learns it would \
         never stop: write {{{{ eos_token }}}} or another token of this tokenizer behind each reply in chat_template.jinja, or use the \
         template that came with this tokenizer",
        tokenizer.folder().display(),
        if stops.is_empty() { "not named".to_string() } else { stops.join(", ") }
    ))
}

impl Masked {
    /// Appends the tokens of the part of `whole` after `done`. If the encoding of `whole` continues the present ids, it
    /// is used (tokenizers that put a space before a text need that); otherwise the new part is encoded alone.
    fn extend(&mut self, done: &str, whole: &str, tokenizer: &Tokenizer) -> Result<()> {
        let ids = tokenizer.encode(whole)?;
        if ids.starts_with(&self.ids) {
            self.ids = ids;
        } else {
            self.ids.extend(tokenizer.encode(&whole[done.len()..])?);
        }
        Ok(())
    }

    /// Drops the tokens after the last sampled one.
    fn trim(&mut self) {
        let end = self.is_sampled.iter().rposition(|&s| s).map_or(0, |last| last + 1);
        self.ids.truncate(end);
        self.is_sampled.truncate(end);
    }
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
            let masked = template.render_with_mask(&talk().into(), &tokenizer, &stop).unwrap().remove(0);
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
        let mask =
            |messages: &[Message]| template.render_with_mask(&messages.to_vec().into(), &tokenizer, &[257]).unwrap();
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
        let sequences = template.render_with_mask(&talk()[1..].to_vec().into(), &tokenizer, &[257]).unwrap();
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
        let error = template.render_with_mask(&talk().into(), &tokenizer, &[257]).unwrap_err();
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
