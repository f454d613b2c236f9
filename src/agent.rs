//! The policy at the table: a state becomes a prompt, a prompt becomes replies, a reply becomes text. Executes nothing.

use crate::chat::ChatTemplate;
use crate::config::Config;
use crate::environment::{Environment, State, StepResult};
use crate::error::Result;
use crate::model::Policy;
use crate::rollout::{Engine, Request};
use crate::tokenizer::Tokenizer;
use crate::trajectory::{Message, Step};

/// Text to ids and back, as one model's conversations go.
pub struct Dialog {
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    /// The chat template.
    pub template: ChatTemplate,
    /// Ids that end a reply; the first closes replies that are written for the model.
    pub stop: Vec<u32>,
}

impl Dialog {
    /// Of a tokenizer and its own template.
    pub fn new(tokenizer: Tokenizer) -> Result<Self> {
        let template = ChatTemplate::of(&tokenizer)?;
        let stop = template.stop_ids(&tokenizer)?;
        Ok(Self { tokenizer, template, stop })
    }

    /// The ids from which a reply is sampled.
    pub fn prompt(&self, messages: &[Message]) -> Result<Vec<u32>> {
        self.template.prompt_ids(messages, &self.tokenizer)
    }

    /// A reply's text: without the token that ends it.
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

/// Samples actions for states.
pub struct Agent<'a> {
    dialog: &'a Dialog,
    engine: Engine<'a>,
    config: &'a Config,
}

impl<'a> Agent<'a> {
    /// An agent that samples with `engine` under the run's settings.
    pub fn new(dialog: &'a Dialog, engine: Engine<'a>, config: &'a Config) -> Self {
        Self { dialog, engine, config }
    }

    /// What the agent sees in each state; the history is shortened to the context limit.
    pub fn prompts(&self, environment: &Environment, states: &[&State]) -> Result<Vec<Prompt>> {
        let limit = self.config.environment.context_limit.saturating_sub(self.config.sampling.max_tokens);
        let one = |state: &&State| {
            let count = |messages: &[Message]| self.dialog.prompt(messages).map_or(usize::MAX, |ids| ids.len());
            let messages = environment.messages_within(state, &count, limit)?;
            let ids = self.dialog.prompt(&messages)?;
            Ok(Prompt { messages, ids })
        };
        states.iter().map(one).collect()
    }

    /// `samples` replies to each prompt; `streams` name the random stream of each prompt.
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
            max_tokens: self.config.sampling.max_tokens,
        };
        let requests: Vec<Request> = prompts.iter().zip(streams).map(request).collect();
        let played = self.engine.generate(policy, &requests, &self.config.sampling, &self.dialog.stop)?;
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
