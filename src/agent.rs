//! Plays a policy: turns states into prompts, samples replies and decodes them into text. Executes no action.

use crate::chat::ChatTemplate;
use crate::environment::{self, Environment, State, StepResult, Style};
use crate::error::{Error, Result};
use crate::message::Message;
use crate::model::Policy;
use crate::rollout::{Engine, Request, Sampling};
use crate::tokenizer::Tokenizer;
use crate::trajectory::Step;

/// The tokenizer and chat template of one model: conversations to token ids, and replies back to text.
pub struct Dialog {
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    /// The chat template.
    pub template: ChatTemplate,
    /// Ids that end a reply; the first one closes replies that the program itself writes for training.
    pub stop: Vec<u32>,
    unusable: Option<String>,
}

impl Dialog {
    /// A dialog with the tokenizer's own template, which gets `arguments` (such as `enable_thinking`) in every
    /// conversation.
    pub fn new(tokenizer: Tokenizer, arguments: &toml::Table) -> Result<Self> {
        let arguments = serde_json::to_value(arguments).ok().and_then(|v| v.as_object().cloned()).unwrap_or_default();
        let template = ChatTemplate::of(&tokenizer)?.with_arguments(arguments);
        let template = template.map_err(|e| e.context("chat.template_arguments"))?;
        // No error yet: a template that cannot be sampled with does no harm to data that comes as tokens.
        let (stop, unusable) = match template.stop_ids(&tokenizer) {
            Ok(stop) => (stop, None),
            Err(why) => (tokenizer.eos_ids().to_vec(), Some(why.to_string())),
        };
        Ok(Self { tokenizer, template, stop, unusable })
    }

    /// Token ids of the prompt from which a reply is sampled. Error: the template cannot render the conversation, or it
    /// closes replies with no token that would end one.
    pub fn prompt(&self, messages: &[Message]) -> Result<Vec<u32>> {
        match &self.unusable {
            Some(why) => Err(Error::content(why.clone())),
            None => self.template.prompt_ids(messages, &self.tokenizer),
        }
    }

    /// Text of a reply, without the token that ends it.
    pub fn text(&self, ids: &[u32]) -> String {
        let end = ids.last().is_some_and(|id| self.stop.contains(id));
        self.tokenizer.decode(&ids[..ids.len() - usize::from(end)])
    }
}

/// A prompt as messages and as ids.
#[derive(Debug, Clone)]
pub struct Prompt {
    /// What the agent sees.
    pub messages: Vec<Message>,
    /// The same as ids, up to where the reply begins.
    pub ids: Vec<u32>,
}

/// One sampled reply.
#[derive(Debug, Clone)]
pub struct Reply {
    /// Its text, without the end token. A reply that hit the length limit is cut there and will not parse.
    pub text: String,
    /// Its ids, the end token included.
    pub ids: Vec<u32>,
    /// Log-probability of each id when it was sampled.
    pub logprobs: Vec<f32>,
    /// True when it was cut off: it does not end with a token that ends replies.
    pub is_truncated: bool,
}

/// Which limit on a prompt's length is the tightest.
#[derive(Debug, Clone, Copy)]
enum Binding {
    Positions,
    Context,
    Cache,
}

/// Samples actions for states.
pub struct Agent<'a> {
    dialog: &'a Dialog,
    engine: Engine<'a>,
    sampling: &'a Sampling,
    environment: &'a environment::Settings,
}

impl<'a> Agent<'a> {
    /// An agent that samples with `engine` under the run's settings.
    pub fn new(
        dialog: &'a Dialog,
        engine: Engine<'a>,
        sampling: &'a Sampling,
        environment: &'a environment::Settings,
    ) -> Self {
        Self { dialog, engine, sampling, environment }
    }

    /// Prompts for `states`, their histories shortened to the tightest limit when `samples` replies are drawn from
    /// each.
    ///
    /// # Errors
    /// Those of the environment and of the chat template. A prompt that cannot be shortened enough is an inner error
    /// (content) that names the limit.
    pub fn prompts(&self, environment: &Environment, states: &[&State], samples: usize) -> Result<Vec<Result<Prompt>>> {
        let (limit, binding) = self.prompt_limit(samples);
        let count = |messages: &[Message]| Ok(self.dialog.prompt(messages)?.len());
        let one = |state: &&State| match environment.messages_within(state, &count, limit)? {
            Ok(messages) => Ok(Ok(Prompt { ids: self.dialog.prompt(&messages)?, messages })),
            Err(tokens) => Ok(Err(self.too_long(&state.task, tokens, limit, binding))),
        };
        states.iter().map(one).collect()
    }

    /// Maximum tokens of a prompt with room for `samples` replies behind it, and which limit sets it.
    fn prompt_limit(&self, samples: usize) -> (usize, Binding) {
        let (reply, context) = (self.sampling.max_tokens, self.environment.context_limit);
        let limits = [
            (self.engine.positions().saturating_sub(reply), Binding::Positions),
            (context.saturating_sub(reply), Binding::Context),
            (self.engine.longest_prompt(samples, reply), Binding::Cache),
        ];
        let [first, rest @ ..] = limits;
        rest.into_iter().fold(first, |least, next| if next.0 < least.0 { next } else { least })
    }

    /// Error for a prompt that still has `tokens` tokens when it is as short as it can be.
    fn too_long(&self, task: &str, tokens: usize, limit: usize, binding: Binding) -> Error {
        let (reply, positions) = (self.sampling.max_tokens, self.engine.positions());
        let (cause, remedy) = match binding {
            Binding::Positions => (
                format!("the model has {positions} positions"),
                match positions.saturating_sub(tokens) {
                    0 => "take a model with more positions".to_string(),
                    left => format!("set sampling.max_tokens={left} or lower"),
                },
            ),
            Binding::Context => (
                format!("environment.context_limit is {}", self.environment.context_limit),
                format!("set environment.context_limit={} or higher", tokens.saturating_add(reply)),
            ),
            Binding::Cache => (
                format!("engine.cache_tokens is {}", self.engine.cache_tokens()),
                "raise it, or lower sampling.max_tokens or the number of samples".to_string(),
            ),
        };
        let shorter = match self.environment.prompt {
            Style::Full => ", or environment.prompt=compact",
            Style::Compact => "",
        };
        Error::content(format!(
            "the prompt of task {task} has {tokens} tokens at least and may have {limit}: {cause}, which a reply of \
             sampling.max_tokens={reply} must fit in too; {remedy}{shorter}"
        ))
    }

    /// Samples `samples` replies to each prompt; `streams` names the random stream of each prompt.
    pub fn act(
        &mut self,
        policy: Policy,
        prompts: &[Prompt],
        samples: usize,
        seed: u64,
        streams: &[String],
    ) -> Result<Vec<Vec<Reply>>> {
        let request = |(prompt, stream): (&Prompt, &String)| Request {
            prompt: prompt.ids.clone(),
            samples,
            seed,
            stream: stream.clone(),
            max_tokens: self.sampling.max_tokens,
        };
        let requests: Vec<Request> = prompts.iter().zip(streams).map(request).collect();
        let played = self.engine.generate(policy, &requests, self.sampling, &self.dialog.stop)?;
        let reply = |sample: crate::rollout::Sample| Reply {
            text: self.dialog.text(&sample.ids),
            is_truncated: !sample.ids.last().is_some_and(|id| self.dialog.stop.contains(id)),
            ids: sample.ids,
            logprobs: sample.logprobs,
        };
        Ok(played.into_iter().map(|samples| samples.into_iter().map(reply).collect()).collect())
    }
}

/// The record of a sampled step.
pub fn record_sampled(state: &State, prompt: Prompt, reply: Reply, result: &StepResult, reward: f64) -> Step {
    let is_sampled = (0..prompt.ids.len() + reply.ids.len()).map(|i| i >= prompt.ids.len()).collect();
    let ids = [prompt.ids, reply.ids].concat();
    Step { ids, is_sampled, logprobs: reply.logprobs, ..record(state, prompt.messages, reply.text, result, reward) }
}

/// The record of a step whose tokens are not known.
pub fn record(state: &State, prompt: Vec<Message>, reply: String, result: &StepResult, reward: f64) -> Step {
    Step {
        prompt,
        reply,
        ids: vec![],
        is_sampled: vec![],
        logprobs: vec![],
        action: result.action.clone(),
        case: result.case,
        reward,
        metric_before: result.metric_before,
        metric_after: result.metric_after,
        report_before: result.report_before,
        report_after: result.report_after,
        flags: result.flags.clone(),
        observation: result.observation.clone(),
        compact: result.compact.clone(),
        snapshot_before: state.snapshot.to_string(),
        snapshot_after: result.next.snapshot.to_string(),
    }
}
