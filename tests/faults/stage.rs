//! What the runs are given: a tiny model, conversations, a task that takes milliseconds, an expert's trajectories on it; and each run's own room.

use crate::support::{done, messages, model, python, text};
use onestep::metrics;
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The program under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_onestep");
/// No run here takes nearly as long on its own: one that does hangs.
pub const HANGS: Duration = Duration::from_secs(400);

/// What a run is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verb {
    Sft,
    Ppo,
    Grpo,
    Pretrain,
    Export,
    Collect,
    Eval,
}

impl Verb {
    /// All, by the time that a run takes.
    pub const BY_TIME: [Verb; 7] =
        [Verb::Export, Verb::Sft, Verb::Pretrain, Verb::Eval, Verb::Grpo, Verb::Ppo, Verb::Collect];

    /// Those that take less time.
    pub fn quicker(self) -> &'static [Verb] {
        Self::BY_TIME.split(|&verb| verb == self).next().unwrap_or(&[])
    }

    pub fn name(self) -> &'static str {
        match self {
            Verb::Sft => "sft",
            Verb::Ppo => "rl, ppo",
            Verb::Grpo => "rl, grpo",
            Verb::Pretrain => "pretrain",
            Verb::Export => "export",
            Verb::Collect => "collect",
            Verb::Eval => "eval",
        }
    }

    /// True when the verb has `--resume`; others begin anew.
    pub fn resumes(self) -> bool {
        !matches!(self, Verb::Export | Verb::Collect | Verb::Eval)
    }
}

/// A script that numpy suffices for, with a line for each axis of ideas.
const SCRIPT: &str = r#"import numpy as np

data = np.load("data.npz")
X, y, Z = data["X"], data["y"], data["Z"]
n = 20
degree = 1
ridge = 10.0
X, y = X[:n], y[:n]
F, G = (np.stack([x ** d for d in range(degree + 1)], 1) for x in (X, Z))
for _ in range(300):
    w = np.linalg.solve(F.T @ F + ridge * np.eye(F.shape[1]), F.T @ y)
np.savetxt("submission.csv", G @ w, delimiter=",")
"#;
const PREPARE: &str = r#"import sys
import numpy as np

public, private = sys.argv[1:3]
random = np.random.RandomState(3)
x = random.uniform(-1, 1, 200)
y = 1 + x - 2 * x ** 2 + 0.1 * random.randn(200)
np.savez(public + "/data.npz", X=x[:100], y=y[:100], Z=x[100:])
np.savetxt(private + "/labels.csv", y[100:], fmt="%.17g")
"#;
const TASK: &str = r#"name = "curve"
description = "fit a curve"
modality = "tabular"
metric = "rmse"
m_init = 0.8
m_best = 0.1
noise_floor = 0.001
held_out = false
entry = "train.py"
submission = "submission.csv"
preload = ["numpy"]

[limits]
cpu_seconds = 2.0
wall_seconds = 5.0
memory_bytes = 1073741824
output_bytes = 65536
file_bytes = 16777216
disk_bytes = 67108864
processes = 32

[report]
m_init = 0.8
m_best = 0.1
"#;

/// What all runs read.
pub struct Stage {
    /// Holds all of it.
    pub folder: PathBuf,
    model: PathBuf,
    messages: PathBuf,
    /// The tiny model when it has learnt to say actions.
    trained: PathBuf,
    trajectories: PathBuf,
    tasks: String,
    ideas: String,
}

/// The stage of this run of tests: made once.
pub fn stage() -> &'static Stage {
    static STAGE: OnceLock<Stage> = OnceLock::new();
    STAGE.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("faults");
        let _ = fs::remove_dir_all(&folder);
        let place = |name: &str| folder.join(name);
        let task = place("tasks/curve");
        fs::create_dir_all(&task).unwrap();
        for (name, content) in [("train.py", SCRIPT), ("prepare.py", PREPARE), ("task.toml", TASK)] {
            fs::write(task.join(name), content).unwrap();
        }
        fs::write(place("ideas.toml"), ideas()).unwrap();
        let stage = Stage {
            model: model(&folder),
            messages: messages(&folder),
            trained: place("trained/model"),
            trajectories: place("expert/trajectories.jsonl"),
            tasks: format!("tasks.dir={}", place("tasks").display()),
            ideas: format!("tasks.ideas={}", place("ideas.toml").display()),
            folder: folder.clone(),
        };
        let room = Room::cold();
        room.succeeds(&stage, Verb::Collect, &[]);
        copy(&room.out, &place("expert"));
        copy(&room.cache.join("onestep/tasks"), &place("prepared"));
        let named = ["sft", "--model", text(&stage.model), "--data", text(&stage.trajectories)];
        let learn = ["full=true", "validation_share=0", "epochs=80", "learning_rate=1e-2", "batch_tokens=1024"];
        done(&[&named[..], &["--out", text(&place("trained"))], &learn].concat());
        stage
    })
}

/// Two ideas on each axis.
fn ideas() -> String {
    let idea = |(axis, key, value): (&str, &str, u32)| {
        format!(
            "[[idea]]\naxis = \"{axis}\"\nfamily = \"{key}\"\nname = \"{key}={value}\"\ntext = \"Take {key} {value}.\"\n\
             line = \"{key} = \"\nreplace = \"{key} = {value}\"\n\n"
        )
    };
    let values = [("data", "n", 30), ("data", "n", 60), ("model", "degree", 2), ("model", "degree", 3)];
    values.into_iter().chain([("learning", "ridge", 1), ("learning", "ridge", 2)]).map(idea).collect()
}

/// Copies a folder and all in it.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(|entry| entry.unwrap()) {
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(fs::copy(entry.path(), target).unwrap()),
        }
    }
}

impl Stage {
    /// The command line of `verb` with its output in `out`.
    pub fn arguments(&self, verb: Verb, out: &Path) -> Vec<String> {
        let (base, trained, data) = (text(&self.model), text(&self.trained), text(&self.trajectories));
        let mut line = match verb {
            Verb::Sft => vec!["sft", "--model", base, "--data", text(&self.messages)],
            Verb::Ppo | Verb::Grpo => vec!["rl", "--model", trained, "--data", data],
            Verb::Collect => vec!["collect"],
            Verb::Eval => vec!["eval", "--model", trained],
            Verb::Pretrain => vec!["pretrain"],
            Verb::Export => vec!["export", "--model", base, "--format", "hf"],
        };
        line.extend(["--out", text(out)]);
        line.extend(settings(verb));
        if matches!(verb, Verb::Ppo | Verb::Grpo | Verb::Collect | Verb::Eval) {
            line.extend([&self.tasks[..], "tasks.names=curve", "environment.prompt=compact", "run.workers=2"]);
            line.extend(["environment.format=no_thought", "environment.max_steps=3"]);
        }
        if verb == Verb::Collect {
            line.push(&self.ideas);
        }
        line.into_iter().map(str::to_string).collect()
    }
}

/// The settings of a verb alone: small, with a checkpoint after each step.
fn settings(verb: Verb) -> &'static [&'static str] {
    const RL: [&str; 10] = [
        "rl.steps=8",
        "rl.states=2",
        "rl.samples=2",
        "rl.learning_rate=2e-3",
        "rl.refresh_share=1.0",
        "sampling.max_tokens=48",
        "engine.cache_tokens=4096",
        "lora.rank=4",
        "run.checkpoint_every=1",
        "run.reuse_rewards=false",
    ];
    const PPO: [&str; 11] = with(RL, "rl.algorithm=ppo");
    const GRPO: [&str; 11] = with(RL, "rl.algorithm=grpo");
    match verb {
        Verb::Sft => &[
            "epochs=16",
            "learning_rate=1e-2",
            "batch_tokens=64",
            "micro_tokens=32",
            "validation_share=0.25",
            "lora.rank=4",
            "run.checkpoint_every=1",
        ],
        Verb::Ppo => &PPO,
        Verb::Grpo => &GRPO,
        Verb::Pretrain => &[
            "steps=3",
            "exercises=1",
            "replies=1",
            "hidden=16",
            "layers=1",
            "heads=2",
            "kv_heads=1",
            "mlp=16",
            "run.checkpoint_every=1",
        ],
        Verb::Export => &[],
        Verb::Collect => &["trajectories=3", "rounds=1"],
        Verb::Eval => &["trajectories=2", "sampling.max_tokens=48", "engine.cache_tokens=4096"],
    }
}

const fn with(settings: [&'static str; 10], more: &'static str) -> [&'static str; 11] {
    let mut all = [more; 11];
    let mut i = 0;
    while i < settings.len() {
        all[i] = settings[i];
        i += 1;
    }
    all
}

/// Folders of one run: its own output, temporary files and cache.
pub struct Room {
    folder: TempDir,
    pub out: PathBuf,
    pub temporary: PathBuf,
    pub cache: PathBuf,
}

impl Room {
    /// A room where the tasks' data is prepared.
    pub fn new(stage: &Stage) -> Self {
        let room = Self::cold();
        copy(&stage.folder.join("prepared"), &room.cache.join("onestep/tasks"));
        room
    }

    /// A room whose cache holds the Python environment and nothing else.
    pub fn cold() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str| folder.path().join(name);
        let (out, temporary, cache) = (place("runs/run"), place("tmp"), place("cache"));
        let kept = cache.join("onestep");
        [&place("runs"), &temporary, &cache, &kept].iter().for_each(|folder| fs::create_dir(folder).unwrap());
        let environment = Path::new(python()).ancestors().nth(2).unwrap();
        symlink(environment, kept.join(environment.file_name().unwrap())).unwrap();
        Self { folder, out, temporary, cache }
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The folders in which a run has its files; what it says on stderr goes elsewhere.
    pub fn files(&self) -> [PathBuf; 3] {
        [self.path().join("runs"), self.temporary.clone(), self.cache.clone()]
    }

    /// Where what the program says on stderr goes.
    fn said_path(&self) -> PathBuf {
        self.path().join("said")
    }

    /// What the program said on stderr when it was last started here.
    pub fn said(&self) -> String {
        fs::read_to_string(self.said_path()).unwrap_or_default()
    }

    /// How many lines the run's log has by now.
    pub fn logged(&self) -> usize {
        fs::read_to_string(self.out.join(metrics::FILE)).map_or(0, |text| text.lines().count())
    }

    /// Starts `verb` in a process group of its own, with more arguments and variables.
    pub fn start(&self, stage: &Stage, verb: Verb, more: &[&str], variables: &[(&str, String)]) -> Life {
        let mut command = Command::new(PROGRAM);
        command.args(stage.arguments(verb, &self.out)).args(more).envs(variables.iter().cloned());
        command.current_dir(env!("CARGO_MANIFEST_DIR")).env("TMPDIR", &self.temporary);
        command.env("XDG_CACHE_HOME", &self.cache).process_group(0);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(self.said_path()).unwrap());
        Life { child: command.spawn().unwrap(), begun: Instant::now() }
    }

    /// Runs `verb` to its end, which must be a good one; returns how long it took.
    pub fn succeeds(&self, stage: &Stage, verb: Verb, more: &[&str]) -> Duration {
        let mut life = self.start(stage, verb, more, &[]);
        let code = life.end();
        assert_eq!(code, Some(0), "{verb:?} {more:?}: {}", self.said());
        life.begun.elapsed()
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.folder.disable_cleanup(true);
            println!("left in {}", self.path().display());
        }
    }
}

/// A run of the program that is under way.
pub struct Life {
    child: Child,
    begun: Instant,
}

impl Life {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for its end: the exit code, `None` after a signal. Panics when the program hangs.
    pub fn end(&mut self) -> Option<i32> {
        self.end_within(HANGS).expect("the program hangs")
    }

    /// The exit code when it ends within `time`.
    pub fn end_within(&mut self, time: Duration) -> Option<Option<i32>> {
        let deadline = Instant::now() + time;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return Some(status.code());
            }
            if Instant::now() >= deadline {
                return None;
            }
            std::thread::sleep(Duration::from_millis(2).min(deadline - Instant::now()));
        }
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        // Only of a test that has failed: what is below it sees it go.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
