//! Plays the scripted expert of exploration-enriched fine-tuning, which composes real edits from ideas drawn uniformly
//! over axes (ML-Agent, arXiv 2505.23723, section 3.1). Every step is executed. The expert may look at the true metric;
//! the policy never does.

use crate::agent;
use crate::environment::{Action, Environment, ReplyFormat, State, StepResult, action};
use crate::error::{Result, check_interrupt};
use crate::ideas::{Axis, Library, draw_axes, draw_one};
use crate::progress::Progress;
use crate::reward;
use crate::reward::Case;
use crate::rng::Philox;
use crate::settings::section;
use crate::trajectory::Trajectory;
use std::sync::atomic::AtomicBool;

section! {
    /// `[collect]`
    Settings { trajectories: usize, rounds: usize, redraws: usize, select: usize, other_share: f64 }
}

/// One trajectory while it is played.
struct Play {
    state: State,
    record: Trajectory,
    todo: Vec<Axis>,
    rng: Philox,
}

/// The expert's next reply, and the idea it came from.
struct Move {
    reply: String,
    idea: Option<(Axis, String)>,
}

/// Settings of the expert.
pub struct Expert<'a> {
    /// Library that its ideas come from.
    pub library: &'a Library,
    /// Number and length of the trajectories.
    pub settings: &'a Settings,
    /// Reward that the record states for each step.
    pub reward: &'a reward::Settings,
    /// The run's seed.
    pub seed: u64,
    /// Set when the user wants to stop.
    pub interrupted: &'a AtomicBool,
}

/// Plays `trajectories` episodes of every task in lockstep. An episode has `rounds` times k ~ U{1,2,3} axes with one
/// idea each, a step without an edit now and then, and a Final Answer. An idea that crashes or hurts is drawn again, up
/// to `redraws` times.
pub fn play(environment: &Environment, tasks: &[String], expert: &Expert) -> Result<Vec<Trajectory>> {
    let Expert { library, settings, reward, seed, interrupted } = *expert;
    let mut plays = vec![];
    for task in tasks {
        for index in 0..settings.trajectories {
            let mut rng = Philox::named(seed, &format!("expert {task} {index}"));
            let todo = (0..settings.rounds).flat_map(|_| draw_axes(&mut rng)).collect();
            let record = Trajectory::new(task, "expert", index as u64);
            plays.push(Play { state: environment.reset(task)?, record, todo, rng });
        }
    }
    let mut progress = Progress::new("collect", environment.settings().max_steps, 0);
    for round in 1.. {
        if plays.iter().all(|p| p.state.done) {
            break;
        }
        check_interrupt(interrupted)?;
        let live: Vec<usize> = (0..plays.len()).filter(|&i| !plays[i].state.done).collect();
        let mut moves: Vec<Move> =
            live.iter().map(|&i| plays[i].next(environment, library, settings)).collect::<Result<_>>()?;
        let mut results: Vec<Option<StepResult>> = live.iter().map(|_| None).collect();
        for attempt in 0..=settings.redraws {
            let open: Vec<usize> = (0..live.len()).filter(|&j| results[j].is_none()).collect();
            let actions = open.iter().map(|&j| (plays[live[j]].state.clone(), moves[j].reply.clone())).collect();
            for (&j, result) in open.iter().zip(environment.step_many(actions)?) {
                let good = result.case == Case::Edit && result.share >= 0.0;
                let axis = moves[j].idea.as_ref().map(|(axis, _)| *axis);
                let again = axis.filter(|_| !good && attempt < settings.redraws);
                match again.and_then(|axis| plays[live[j]].draw(environment, library, axis).transpose()) {
                    Some(other) => moves[j] = other?,
                    None => results[j] = Some(result),
                }
            }
        }
        for ((i, step), result) in live.into_iter().zip(moves).zip(results) {
            let Some(result) = result else { continue };
            let play = &mut plays[i];
            let messages = environment.messages(&play.state)?;
            let reward = reward.of(result.case, result.share, !result.flags.is_empty());
            play.record.steps.push(agent::record(&play.state, messages, step.reply, &result, reward));
            play.record.ideas.extend(step.idea.map(|(_, name)| name));
            play.state = result.next;
        }
        let open = plays.iter().filter(|p| !p.state.done).count();
        progress.advance(round, 0, &format!("{open} of {} trajectories under way", plays.len()));
    }
    progress.finish();
    let finish = |Play { state, mut record, .. }: Play| {
        (record.metric_final, record.metric_best) = (state.metric, state.best);
        (record.report_final, record.report_best) = (state.report, state.best_report);
        record.failed = !state.graded_final;
        record
    };
    Ok(plays.into_iter().map(finish).collect())
}

impl Play {
    /// Chooses the next move: an idea of the next axis, another action, or the end.
    fn next(&mut self, environment: &Environment, library: &Library, settings: &Settings) -> Result<Move> {
        let format = environment.settings().format;
        let entry = environment.task(&self.state.task)?.task.entry.clone();
        if self.todo.is_empty() {
            let done = Action::FinalAnswer { final_answer: "done".to_string() };
            return Ok(Move { reply: say(&done, "No idea is left to try.", format), idea: None });
        }
        if self.rng.uniform() >= settings.other_share {
            let axis = self.todo.remove(0);
            if let Some(edit) = self.draw(environment, library, axis)? {
                return Ok(edit);
            }
        }
        let others = [
            Action::ExecuteScript { script_name: entry.clone() },
            Action::ListFiles { dir_path: ".".to_string() },
            Action::InspectScriptLines { script_name: entry, start_line_number: 1, end_line_number: 20 },
        ];
        Ok(Move { reply: say(self.rng.choose(&others), "Look before the next change.", format), idea: None })
    }

    /// Draws an idea of `axis` for the current script; `None` when none applies.
    fn draw(&mut self, environment: &Environment, library: &Library, axis: Axis) -> Result<Option<Move>> {
        let entry = &environment.task(&self.state.task)?.task.entry;
        let files = environment.files(&self.state)?;
        let script = files.get(entry).map_or("", |text| text);
        let Some(edit) = draw_one(library, script, axis, &mut self.rng) else { return Ok(None) };
        let action = Action::EditScript {
            script_name: entry.clone(),
            search: edit.search.clone(),
            replace: edit.replace.clone(),
        };
        let reply = say(&action, &edit.idea.text, environment.settings().format);
        Ok(Some(Move { reply, idea: Some((axis, edit.idea.name.clone())) }))
    }
}

/// Writes the reply in the run's format.
fn say(action: &Action, thought: &str, format: ReplyFormat) -> String {
    let action = action::render(action);
    match format {
        ReplyFormat::NoThought => action,
        ReplyFormat::Thought => format!(
            "Reflection: The last observation was read.\nResearch Plan and Status: One change at a time, each run and graded.\n\
             Fact Check: Only what a run has shown is taken as known.\nThought: {thought}\n{action}"
        ),
    }
}
