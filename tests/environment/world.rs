//! A task of ten examples in each split, and a runner that plays scripts written in a few words, so that every ending of a run can be had
//! at will.

use onestep::environment::action::{Action, render};
use onestep::environment::*;
use onestep::error::{Error, Result};
use onestep::sandbox::{Job, Limits, Outcome, Verdict};
use onestep::task::split::split_rows;
use onestep::task::{Metric, PreparedTask, Scale, Task};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use tempfile::TempDir;

/// Plays scripts of one directive a line, and counts them.
#[derive(Default)]
pub struct Fake {
    pub runs: AtomicUsize,
    pub batches: Mutex<Vec<usize>>,
    pub ticks: AtomicUsize,
    pub fails: bool,
}

impl Fake {
    fn tick(&self) -> usize {
        self.ticks.fetch_add(1, Ordering::Relaxed)
    }

    fn play(&self, job: &Job) -> Verdict {
        let file = |name: &str| job.folder.join(name);
        let mut verdict = Verdict {
            outcome: Outcome::Exited(0),
            stdout: String::new(),
            stderr: String::new(),
            cpu_seconds: 0.5,
            wall_seconds: 1.0,
            peak_bytes: 0,
            is_truncated: false,
        };
        for line in fs::read_to_string(file(&job.script)).unwrap().lines() {
            let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
            match word {
                "print" => verdict.stdout += &format!("{rest}\n"),
                "warn" => verdict.stderr += &format!("{rest}\n"),
                // Never the same twice: what is printed, what is warned of, how many rows are right.
                "tick" => verdict.stdout += &format!("{}\n", self.tick()),
                "tock" => verdict.stderr += &format!("{}\n", self.tick()),
                "luck" => {
                    let right = self.tick() % 10;
                    fs::write(file("submission.csv"), rows(right, right)).unwrap();
                }
                // So many of the ten rows of each split are right; or so many of the reward split, and of the report split.
                "right" => {
                    let (reward, report) = rest.split_once(' ').unwrap_or((rest, rest));
                    fs::write(file("submission.csv"), rows(reward.parse().unwrap(), report.parse().unwrap())).unwrap();
                }
                "submit" => fs::write(file("submission.csv"), rest).unwrap(),
                "symlink" => symlink(rest, file("submission.csv")).unwrap(),
                "hardlink" => fs::hard_link(rest, file("submission.csv")).unwrap(),
                "leave" => fs::write(file("left.txt"), "left").unwrap(),
                "list" => {
                    let laid = fs::read_dir(&job.folder).unwrap();
                    let mut names: Vec<_> = laid.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
                    names.extend(job.data.iter().map(|(name, _)| name.clone()));
                    names.sort();
                    verdict.stdout += &format!("{}\n", names.join(" "));
                }
                "where" => verdict.stdout += &format!("{0} {0}/train.py\n", job.folder.display()),
                "raise" => {
                    verdict.stderr += &format!("Traceback (most recent call last):\n{rest}\n");
                    verdict.outcome = Outcome::Exited(1);
                    break;
                }
                "exit" => verdict.outcome = Outcome::Exited(rest.parse().unwrap()),
                "signal" => verdict.outcome = Outcome::Signaled(rest.parse().unwrap()),
                "end" => {
                    verdict.outcome = match rest {
                        "cpu" => Outcome::CpuLimit,
                        "wall" => Outcome::WallLimit,
                        "memory" => Outcome::MemoryLimit,
                        "output" => Outcome::OutputLimit,
                        _ => Outcome::FileLimit,
                    }
                }
                _ => assert!(line.starts_with('#') || line.is_empty(), "unknown directive {line:?}"),
            }
        }
        verdict
    }
}

/// A submission of which so many rows of each split are right.
fn rows(reward: usize, report: usize) -> String {
    let (of_reward, of_report) = split_rows("ten", 20);
    let right = [&of_reward[..reward], &of_report[..report]].concat();
    (0..20).map(|i| if right.contains(&i) { "1\n" } else { "0\n" }).collect()
}

impl Runner for Fake {
    fn run_many(&self, jobs: Vec<Job>) -> Result<Vec<Verdict>> {
        if self.fails {
            return Err(Error::system("the helper died"));
        }
        self.runs.fetch_add(jobs.len(), Ordering::Relaxed);
        self.batches.lock().unwrap().push(jobs.len());
        Ok(jobs.iter().map(|job| self.play(job)).collect())
    }
}

/// An environment of one task of ten examples in each split, from 2 of them right to all.
pub struct World {
    pub folder: TempDir,
    pub fake: Arc<Fake>,
    pub environment: Environment,
}

pub const START: &str = "print two right\nright 2\n# end\n";

pub fn prepared(folder: &Path, script: &str) -> PreparedTask {
    for (name, content) in
        [("labels.csv", "1\n".repeat(20).as_bytes()), ("data.npz", b"PK\0\xff\xfe"), ("notes.csv", b"a,b\n1,2\n")]
    {
        fs::write(folder.join(name), content).unwrap();
    }
    let task = Task {
        name: "ten".into(),
        description: "say yes ten times".into(),
        modality: "tabular".into(),
        metric: Metric::Accuracy,
        m_init: 0.2,
        m_best: 1.0,
        noise_floor: 0.05,
        report: Scale { m_init: 0.1, m_best: 0.9 },
        held_out: false,
        entry: "train.py".into(),
        submission: "submission.csv".into(),
        preload: None,
        limits: Limits {
            cpu_seconds: 2.0,
            wall_seconds: 20.0,
            memory_bytes: 1 << 30,
            output_bytes: 1 << 16,
            file_bytes: 1 << 16,
            disk_bytes: 1 << 20,
            processes: 8,
        },
        starter: BTreeMap::from([("train.py".to_string(), script.to_string())]),
        folder: folder.to_path_buf(),
    };
    let data = ["data.npz", "notes.csv"].map(|name| (name.to_string(), folder.join(name))).to_vec();
    PreparedTask { task, data, labels: folder.join("labels.csv"), data_id: "one".into() }
}

pub const SETTINGS: Settings = Settings {
    format: ReplyFormat::NoThought,
    prompt: Style::Compact,
    max_steps: 15,
    episode_seconds: 1800.0,
    observation_limit: 2000,
    context_limit: 1 << 20,
    undo_failed_edits: true,
};

/// An environment of one task, whose scripts `fake` runs.
pub fn environment(fake: Arc<Fake>, task: PreparedTask, settings: Settings, folder: &Path) -> Environment {
    Environment::new(fake, "python", vec![task], settings, &folder.join("scratch")).unwrap()
}

pub fn world_of(script: &str, fake: Fake, change: impl FnOnce(&mut Settings)) -> World {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = SETTINGS;
    change(&mut settings);
    let fake = Arc::new(fake);
    let task = prepared(folder.path(), script);
    let environment = environment(fake.clone(), task, settings, folder.path());
    World { folder, fake, environment }
}

pub fn world() -> World {
    world_of(START, Fake::default(), |_| {})
}

impl World {
    pub fn start(&self) -> State {
        self.environment.reset("ten").unwrap()
    }

    pub fn step(&self, state: &State, reply: impl Into<String>) -> StepResult {
        self.environment.step_many(vec![(state.clone(), reply.into())]).unwrap().remove(0)
    }

    pub fn runs(&self) -> usize {
        self.fake.runs.load(Ordering::Relaxed)
    }

    pub fn script(&self, state: &State) -> String {
        self.environment.files(state).unwrap()["train.py"].to_string()
    }
}

pub fn edit(search: &str, replace: &str) -> String {
    render(&Action::EditScript { script_name: "train.py".into(), search: search.into(), replace: replace.into() })
}

pub fn execute(script: &str) -> String {
    render(&Action::ExecuteScript { script_name: script.into() })
}

pub fn copy(source: &str, destination: &str) -> String {
    render(&Action::CopyFile { source: source.into(), destination: destination.into() })
}

pub fn list(folder: &str) -> String {
    render(&Action::ListFiles { dir_path: folder.into() })
}

pub fn inspect(script: &str, start: u64, end: u64) -> String {
    let script_name = script.to_string();
    render(&Action::InspectScriptLines { script_name, start_line_number: start, end_line_number: end })
}

pub fn finish() -> String {
    render(&Action::FinalAnswer { final_answer: "done".into() })
}
