//! SIGKILL and SIGSTOP at any instant, to any process of a run but a script's own. When a signal comes is drawn over the run's length
//! from a seed; what must hold afterwards does not depend on it.

use crate::processes::{self, Leftovers, Process, Role};
use crate::results::Right;
use crate::stage::{HANGS, Life, Room, Stage, Verb};
use onestep::rng::Philox;
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::time::Duration;

/// What has happened, over many runs.
#[derive(Default)]
pub struct Tally {
    /// Signals by verb and process.
    pub hits: BTreeMap<(Verb, Role), usize>,
    /// Runs that ended with an error after a process below the trainer was lost.
    pub gave_up: usize,
    pub resumes: usize,
    /// Runs that came to their end, all equal to the uninterrupted one.
    pub ends: usize,
    pub leftovers: BTreeMap<&'static str, usize>,
}

/// One run, however often it is begun again.
struct Run<'a> {
    stage: &'a Stage,
    right: &'a Right,
    room: Room,
    left: Leftovers,
    is_begun: bool,
}

impl<'a> Run<'a> {
    fn new(stage: &'a Stage, right: &'a Right) -> Self {
        Self { stage, right, room: Room::new(stage), left: Leftovers::before(), is_begun: false }
    }

    /// Begins or resumes it.
    fn live(&mut self, tally: &mut Tally) -> Life {
        let more: &[&str] = if self.is_begun { &["--resume"] } else { &[] };
        tally.resumes += usize::from(self.is_begun);
        self.is_begun = true;
        self.room.start(self.stage, self.right.verb, more, &[])
    }

    /// Resumes it when it has not come to its end; then everything must be right and nothing be left.
    fn finish(mut self, is_over: bool, what: &str, tally: &mut Tally) {
        if !is_over {
            let code = self.live(tally).end();
            assert_eq!(code, Some(0), "{what}, resumed: {}", self.room.said());
        }
        self.right.check_end(&self.room.out, what);
        tally.ends += 1;
        for (kind, count) in self.left.count(&self.room) {
            *tally.leftovers.entry(kind).or_default() += count;
        }
    }

    /// A run that is not killed itself may end with an error when it has lost a process, and then says so.
    fn check_code(&self, code: Option<i32>, hit: &[Role], what: &str, tally: &mut Tally) {
        let said = self.room.said();
        if code != Some(0) {
            assert!(code == Some(1) && !hit.is_empty(), "{what}: exit code {code:?} after {hit:?}: {said}");
            assert!(said.contains("sandbox") && said.contains("--resume"), "{what}: {said}");
            tally.gave_up += 1;
        }
        assert!(!said.contains("panicked"), "{what}: {said}");
    }
}

/// Kills processes of a run `kills` times, and resumes it whenever it has ended by that; when it comes to its end in between, another begins.
pub fn killed(stage: &Stage, right: &Right, seed: u64, kills: usize, tally: &mut Tally) {
    let mut rng = Philox::named(seed, &format!("kills of {}", right.verb.name()));
    // A quarter of the lives end while they start, the others after a part of the work: a run has about as many as there are kills.
    let work = right.length.saturating_sub(right.start).max(Duration::from_millis(20)).mul_f64(2.0 / kills as f64);
    let (mut run, mut done) = (Run::new(stage, right), 0);
    while done < kills {
        let mut what = format!("{} with seed {seed}, from kill {} on", right.verb.name(), done + 1);
        let mut life = run.live(tally);
        let mut hit = vec![];
        let code = loop {
            let pause = match (hit.is_empty(), rng.below(4)) {
                (true, 0) => right.start.mul_f64(rng.uniform()),
                (true, _) => right.start.mul_f64(0.8) + work.mul_f64(rng.uniform()),
                (false, _) => work.mul_f64(rng.uniform()),
            };
            let code = life.end_within(pause);
            if let Some(code) = code {
                run.check_code(code, &hit, &what, tally);
                break code;
            }
            run.left.look(&run.room);
            let (role, victims) = drawn(&mut rng, life.pid());
            if processes::send_all(&victims, Signal::KILL) == 0 {
                continue;
            }
            done += 1;
            *tally.hits.entry((right.verb, role)).or_default() += 1;
            hit.push(role);
            what = format!("{what}, {}", role.name());
            if role.ends_the_run() || done == kills {
                // Its own exit code when it was quicker: after a loss before, or at its end.
                let code = life.end();
                if code.is_some() || !role.ends_the_run() {
                    run.check_code(code, &hit, &what, tally);
                }
                break code;
            }
        };
        right.check_middle(&run.room.out, &what);
        if code == Some(0) {
            std::mem::replace(&mut run, Run::new(stage, right)).finish(true, &what, tally);
        }
    }
    if run.is_begun {
        run.finish(false, &format!("{} with seed {seed}, at its end", right.verb.name()), tally);
    }
}

/// A role of those that are there, and whom of it to signal.
fn drawn(rng: &mut Philox, trainer: u32) -> (Role, Vec<Process>) {
    let roles = processes::roles(trainer);
    let mut names: Vec<Role> = roles.keys().copied().collect();
    names.push(Role::All);
    let role = *rng.choose(&names);
    match roles.get(&role) {
        Some(all) => (role, vec![rng.choose(all).clone()]),
        None => (role, processes::everything(trainer)),
    }
}

/// Stops the processes of one role of a run when it has logged a drawn number of its steps. A trainer is let go on after `pause`; of the others
/// it must notice, and go on or end with a word.
pub fn stopped(stage: &Stage, right: &Right, role: Role, seed: u64, pause: Duration, tally: &mut Tally) {
    let what = format!("{}, {} stopped, seed {seed}", right.verb.name(), role.name());
    let mut rng = Philox::named(seed, &what);
    // From the first line on every role is there; half of the steps remain.
    let lines = 1 + rng.below(right.lines() / 2);
    let mut try_once = || {
        let mut run = Run::new(stage, right);
        let mut life = run.live(tally);
        while life.end_within(Duration::from_millis(2)).is_none() && run.room.logged() < lines {}
        run.left.look(&run.room);
        let victims = match role {
            Role::All => processes::everything(life.pid()),
            role => processes::roles(life.pid()).remove(&role).unwrap_or_default(),
        };
        (processes::send_all(&victims, Signal::STOP) > 0).then_some((run, life, victims))
    };
    // A run that this process was too slow for is over by now: another is tried.
    let (run, mut life, victims) = (0..5).find_map(|_| try_once()).unwrap_or_else(|| panic!("{what}: there is none"));
    *tally.hits.entry((right.verb, role)).or_default() += 1;
    if role.ends_the_run() {
        std::thread::sleep(pause);
        processes::send_all(&victims, Signal::CONT);
    }
    let code = life.end_within(HANGS);
    let Some(code) = code else {
        processes::send_all(&processes::everything(life.pid()), Signal::KILL);
        panic!("{what}: the run has not noticed in {HANGS:?}: {}", run.room.said());
    };
    run.check_code(code, &[role], &what, tally);
    right.check_middle(&run.room.out, &what);
    run.finish(code == Some(0), &what, tally);
}
