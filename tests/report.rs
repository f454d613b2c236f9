//! The report of a synthetic run: all sections there, hostile text harmless, nothing loaded from elsewhere.

#![allow(clippy::unwrap_used)]

use onestep::message::Message;
use onestep::metrics::MetricsLog;
use onestep::report;
use onestep::reward::Case;
use onestep::rng::Philox;
use onestep::task::Flag;
use onestep::trajectory::{Step, Trajectory, write_jsonl};
use serde_json::{Value, json};
use std::path::Path;

const SECTIONS: [&str; 10] = [
    "Scores",
    "Reward",
    "Reward by task",
    "Optimisation",
    "Supervised fine-tuning",
    "Evaluation",
    "Time",
    "Protection in force",
    "Configuration",
    "Trajectories",
];
const TASKS: [(&str, bool, &str, f64, f64); 8] = [
    ("digits", false, "accuracy", 0.874, 0.981),
    ("diabetes", false, "mae", 58.31, 43.9),
    ("wine-quality", false, "auc", 0.712, 0.958),
    ("sines", false, "rmse", 0.4123, 0.0871),
    ("spam", false, "logloss", 0.5311, 0.1242),
    ("cancer", true, "auc", 0.941, 0.995),
    ("moons", true, "accuracy", 0.852, 0.972),
    ("prices", true, "rmsle", 0.2931, 0.1514),
];
const HOSTILE: &str = "</pre><script>alert('x')</script><img src=x onerror=\"alert(1)\">&lt;\u{202e}\u{1b}[31m";

fn rl_record(step: u64, random: &mut Philox) -> Value {
    let progress = 1.0 - (-(step as f64) / 12.0).exp();
    let mut noise = |scale: f64| scale * random.normal();
    let edit = 0.55 + 0.2 * progress + noise(0.02);
    let (invalid, error) = (0.09 * (1.0 - progress) + 0.01, 0.16 * (1.0 - 0.7 * progress));
    let corner = 0.02;
    let neutral = 1.0 - edit - invalid - error - corner;
    let by_task: Value = TASKS
        .iter()
        .filter(|t| !t.1)
        .map(|t| (t.0.to_string(), json!(-0.25 + 0.5 * progress + noise(0.08))))
        .collect::<serde_json::Map<_, _>>()
        .into();
    json!({
        "reward": -0.22 + 0.48 * progress + noise(0.03), "edit_reward": if step == 7 { None } else { Some(0.05 + 0.4 * progress + noise(0.03)) },
        "edit_share": edit, "invalid_share": invalid,
        "cases": {"invalid": invalid, "error": error, "neutral": neutral, "corner": corner, "edit": edit},
        "actions": {"Edit Script": edit + error, "Execute Script": neutral * 0.6, "List Files": neutral * 0.4 + corner, "Invalid": invalid},
        "by_task": by_task, "kl": 0.02 * progress + noise(0.001).abs(), "entropy": 0.9 - 0.4 * progress + noise(0.01),
        "clip_fraction": 0.0, "explained_variance": 0.5 * progress + noise(0.05), "policy_loss": noise(0.01), "value_loss": 0.2 - 0.1 * progress,
        "grad_norm": 0.8 + noise(0.1).abs(), "reply_tokens": 21.0 - 6.0 * progress + noise(0.3), "gauge": 1.2e-6 + noise(1e-7).abs(),
        "seconds": {"generate": 1.4 + noise(0.1), "sandbox": 1.0 + noise(0.2).abs(), "update": 2.1 + noise(0.1)}
    })
}

fn evaluation() -> Value {
    let policy = |share: f64| {
        let task = |&(_, held_out, metric, init, best): &(&str, bool, &str, f64, f64)| {
            let share = if held_out { share * 0.6 } else { share };
            let avg: f64 = init + share * (best - init);
            let gain = (avg - init) / init * if best > init { 1.0 } else { -1.0 };
            json!({"held_out": held_out, "metric": metric, "m_init": init, "m_best": best, "avg": avg, "std": 0.1 * (best - init).abs(),
                   "best": init + 1.3 * share * (best - init), "best_state": avg, "gain": gain, "normalised": share,
                   "normalised_best_state": share, "low": share - 0.11, "high": share + 0.09, "failed": 0.125, "scores": [share], "flags": {"constant": 2}})
        };
        let tasks: serde_json::Map<String, Value> = TASKS.iter().map(|t| (t.0.to_string(), task(t))).collect();
        json!({"held_in": {"normalised": share, "low": share - 0.06, "high": share + 0.05},
               "held_out": {"normalised": share * 0.6, "low": share * 0.6 - 0.08, "high": share * 0.6 + 0.07}, "tasks": tasks})
    };
    json!({"policies": {"base": policy(0.08), "sft": policy(0.33), "rl": policy(0.61)},
           "differences": {"rl - sft": {"held_in": {"normalised": 0.28, "low": 0.2, "high": 0.36}}}})
}

fn trajectory(task: &str, source: &str, index: u64, steps: usize) -> Trajectory {
    let step = |i: usize| {
        let case = [Case::Edit, Case::Neutral, Case::Error, Case::Edit, Case::Invalid, Case::Corner][i % 6];
        Step {
            prompt: vec![
                Message::new("system", "You improve a machine-learning script, one action at a time."),
                Message::new("user", format!("Task: {task}.\nObservation: {HOSTILE}")),
            ],
            reply: "Thought: scale the features first.\nAction: Edit Script\nAction Input: {\"script_name\": \"train.py\", \"search\": \"C=0.01\", \"replace\": \"C=1.0\"}".into(),
            ids: vec![],
            is_sampled: vec![],
            logprobs: vec![],
            action: if case == Case::Neutral { "List Files" } else { "Edit Script" }.into(),
            case,
            reward: if case == Case::Edit { 0.31 } else { -0.5 },
            metric_before: 0.874,
            metric_after: if case == Case::Edit { 0.907 } else { 0.874 },
            report_before: 0.871,
            report_after: if case == Case::Edit { 0.901 } else { 0.871 },
            flags: if case == Case::Edit { vec![Flag::TooGood] } else { vec![] },
            observation: format!(
                "The file was changed:\n--- train.py\n+++ train.py\n@@ -3,4 +3,5 @@\n from sklearn.linear_model import LogisticRegression\n \
                 \n-model = LogisticRegression(C=0.01)\n+scaler = StandardScaler().fit(x)\n+model = LogisticRegression(C=1.0)\n model.fit(x, y)\n\
                 The script ran. It printed:\n{HOSTILE}"
            ),
            compact: String::new(),
            snapshot_before: "a".into(),
            snapshot_after: "b".into(),
        }
    };
    Trajectory {
        task: task.into(),
        source: source.into(),
        index,
        ideas: vec!["scale the features".into(), "less regularisation".into()],
        steps: (0..steps).map(step).collect(),
        metric_final: 0.907,
        metric_best: 0.912,
        report_final: 0.901,
        report_best: 0.903,
        failed: index == 3,
    }
}

fn write_run(dir: &Path) {
    let mut random = Philox::new(5, 0);
    let mut log = MetricsLog::create(dir).unwrap();
    for step in 1..=120u64 {
        let loss = 0.35 + 1.4 * (-(step as f64) / 25.0).exp();
        log.write("sft", step, &json!({"loss": loss + 0.04 * random.normal(), "learning_rate": 2e-4, "grad_norm": 1.0 + random.uniform(), "tokens": 4096}))
            .unwrap();
        if step % 20 == 0 {
            log.write("sft", step, &json!({"validation_loss": loss + 0.03})).unwrap();
        }
    }
    for step in 1..=40 {
        log.write("rl", step, &rl_record(step, &mut random)).unwrap();
    }
    let summary = json!({"seed": 7, "tier": "cpu-small", "seconds": {"setup": 3.1, "evaluate base": 21.4, "collect": 12.2, "sft": 48.3,
        "evaluate sft": 22.9, "rl": 131.0, "evaluate rl": 24.0}, "protection": {"network_closed": true, "own_pid_namespace": true,
        "notes": ["CPU time, wall clock, memory and output are limited", HOSTILE]}});
    std::fs::write(dir.join("summary.json"), summary.to_string()).unwrap();
    std::fs::write(dir.join("evaluation.json"), evaluation().to_string()).unwrap();
    std::fs::write(dir.join("config.toml"), format!("[run]\nseed = 7\n# {HOSTILE}\n")).unwrap();
    std::fs::create_dir(dir.join("trajectories")).unwrap();
    let expert = |task: &str| (0..6).map(|i| trajectory(task, "expert", i, 6)).collect::<Vec<_>>();
    write_jsonl(&dir.join("trajectories/expert.jsonl"), &[expert("digits"), expert("cancer")].concat()).unwrap();
    let rl = [trajectory("digits", "rl", 0, 1), trajectory(HOSTILE, "rl", 1, 1)];
    write_jsonl(&dir.join("trajectories/rl.jsonl"), &rl).unwrap();
}

/// Every start tag of the page, up to its `>`, with its attribute values but those of links taken out: they hold no `>`, since it
/// is always escaped.
fn tags(page: &str) -> Vec<String> {
    let tags = page.split('<').skip(1).filter(|t| !t.starts_with('/')).map(|t| t.split('>').next().unwrap());
    tags.map(|t| if t.starts_with("a ") { t.to_string() } else { t.split('"').step_by(2).collect() }).collect()
}

#[test]
fn a_whole_run_gives_a_self_contained_page_with_every_section() {
    let dir = tempfile::tempdir().unwrap();
    write_run(dir.path());
    let out = dir.path().join("report.html");
    report::write(dir.path(), &out).unwrap();
    let page = std::fs::read_to_string(&out).unwrap();
    for section in SECTIONS {
        assert!(page.contains(&format!("<h2>{section}</h2>")), "{section}");
    }
    assert!(!page.contains("Not in this run"), "every section has its data");
    for figure in [
        "Held-in tasks",
        "Held-out tasks",
        "Mean reward of a step",
        "What steps led to",
        "What the agent did",
        "Length of a reply",
        "KL to the SFT",
        "Entropy",
        "Clip fraction",
        "Gradient norm",
        "Gauge",
        "Losses",
        "Explained variance",
        "Normalised score by task",
        "The run: ",
    ] {
        assert!(page.contains(&format!("<h3>{figure}")), "{figure}");
    }
    for text in [
        "0.330",
        "0.610",
        "[0.55, 0.66]",
        "RL minus SFT: 0.280 [0.200, 0.360]",
        "wine-quality",
        "network closed: yes",
        "seed 7",
    ] {
        assert!(page.contains(text), "{text}");
    }
    assert!(page.contains("<del>-model = LogisticRegression(C=0.01)</del><ins>+scaler"), "diffs are coloured");
    assert!(page.contains("10 of 14"), "four of each task and player");
    assert!(page.contains("too_good</span></header>"), "a flagged step says so");
    assert!(page.contains("flagged submissions of sft: "), "flags are counted");
    assert!(!page.contains("http:") && !page.contains("https:") && !page.contains("@import") && !page.contains("url("));
    for tag in tags(&page) {
        assert!(!tag.contains(" src=") && !tag.starts_with("link"), "loads something: {tag}");
        assert!(!tag.contains("href=") || tag.starts_with("a href=\"#"), "leads elsewhere: {tag}");
    }
}

#[test]
fn what_an_agent_wrote_stays_text() {
    let dir = tempfile::tempdir().unwrap();
    write_run(dir.path());
    let out = dir.path().join("report.html");
    report::write(dir.path(), &out).unwrap();
    let page = std::fs::read_to_string(&out).unwrap();
    assert!(page.contains("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;"), "it is shown");
    assert!(
        !page.contains("<script>") && !page.contains("<img") && !page.contains('\u{202e}') && !page.contains('\u{1b}')
    );
    assert_eq!(tags(&page).iter().filter(|t| t.starts_with("script")).count(), 1, "the only script is the page's own");
    let nonce = page.split("script nonce=\"").nth(1).unwrap().split('"').next().unwrap();
    assert!(nonce.len() == 32 && page.contains(&format!("script-src 'nonce-{nonce}'")), "no other script would run");
    report::write(dir.path(), &out).unwrap();
    assert_eq!(std::fs::read_to_string(&out).unwrap(), page, "the same run gives the same page");
}

#[test]
fn what_is_not_there_is_left_out_and_said() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = MetricsLog::create(dir.path()).unwrap();
    log.write("sft", 1, &json!({"loss": f64::NAN})).unwrap();
    log.write("sft", 2, &json!({"loss": 1.5})).unwrap();
    let out = dir.path().join("report.html");
    report::write(dir.path(), &out).unwrap();
    let page = std::fs::read_to_string(&out).unwrap();
    assert_eq!(page.matches("Not in this run").count(), SECTIONS.len() - 1, "all but supervised fine-tuning");
    assert!(SECTIONS.iter().all(|section| page.contains(&format!("<h2>{section}</h2>"))));
    assert_eq!(page.matches("<svg").count(), 1);
    assert!(!page.contains("NaN"));
}

#[test]
fn a_folder_without_a_run_or_with_broken_files_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("report.html");
    let check = |part: &str| {
        let error = report::write(dir.path(), &out).unwrap_err();
        assert!(error.to_string().contains(part) && error.exit_code() == 2, "{error}");
        assert!(!out.exists(), "nothing half-written");
    };
    check("no run in it; expected a folder that quickstart");
    for (file, text, part) in [
        ("metrics.jsonl", "{]\n", "metrics.jsonl:1"),
        ("summary.json", "{", "summary.json"),
        ("evaluation.json", r#"{"policies": 3}"#, "evaluation.json"),
    ] {
        std::fs::write(dir.path().join(file), text).unwrap();
        check(part);
        std::fs::remove_file(dir.path().join(file)).unwrap();
    }
    assert_eq!(report::write(&dir.path().join("absent"), &out).unwrap_err().exit_code(), 2);
}
