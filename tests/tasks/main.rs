//! The bundled tasks, their manifests, the metrics against scikit-learn's values, and the data scripts; the grader against hostile
//! submissions and the audit have files of their own. The only scripts that run are the project's own.
#![allow(clippy::unwrap_used)]

mod audit;
mod submissions;

use onestep::error::Kind;
use onestep::sandbox::Python;
use onestep::task::grader::grade;
use onestep::task::split::split_rows;
use onestep::task::{Flag, Metric, PreparedTask, Table, Task};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

fn bundled() -> Vec<Task> {
    Task::load_all(&Path::new(env!("CARGO_MANIFEST_DIR")).join("data/tasks")).unwrap()
}

fn bundled_task(name: &str) -> Task {
    Task::find(&bundled(), &[name]).unwrap().remove(0)
}

#[test]
fn bundled_tasks_cover_what_they_must() {
    let tasks = bundled();
    for held_out in [false, true] {
        let group: Vec<&Task> = tasks.iter().filter(|task| task.held_out == held_out).collect();
        let modalities: BTreeSet<&str> = group.iter().map(|task| task.modality.as_str()).collect();
        let directions: BTreeSet<bool> = group.iter().map(|task| task.metric.higher_is_better()).collect();
        assert!(group.len() >= 6, "held_out = {held_out}: {} tasks", group.len());
        assert!(modalities.len() >= 4, "held_out = {held_out}: only {modalities:?}");
        assert_eq!(directions.len(), 2, "held_out = {held_out}: one direction only");
    }
    let names: Vec<&str> = tasks.iter().map(|task| task.name.as_str()).collect();
    assert!(names.is_sorted());
    for task in &tasks {
        let gap = (task.m_best - task.m_init).abs();
        assert!(task.description.split_whitespace().count() <= 12, "{}", task.name);
        assert_ne!(task.report, task.reward_scale(), "{}: the splits are the same rows", task.name);
        // 5 %, and half a unit of the third digit.
        assert!(task.noise_floor > 0.0 && task.noise_floor <= 0.05025 * gap, "{}: {}", task.name, task.noise_floor);
        assert!(task.starter[&task.entry].contains(&format!("np.savetxt(\"{}\", p", task.submission)), "{}", task.name);
    }
}

#[test]
fn scores_run_from_baseline_to_best_in_either_direction() {
    for name in ["digits", "load"] {
        let task = bundled_task(name);
        let gap = task.m_best - task.m_init;
        assert_eq!(task.normalised(task.m_init), 0.0);
        assert_eq!(task.normalised(task.m_best), 1.0);
        assert_eq!(
            (task.report.normalised(task.report.m_init), task.report.normalised(task.report.m_best)),
            (0.0, 1.0)
        );
        assert_eq!(task.share(task.m_init, task.m_best), 1.0);
        assert_eq!(task.share(task.m_best, task.m_init), -1.0);
        let small = 0.9 * task.noise_floor * gap.signum();
        assert_eq!(task.share(task.m_init, task.m_init + small), 0.0);
        assert_eq!(task.share(task.m_init, task.m_init - small), 0.0);
        assert!(task.share(task.m_init, task.m_init + 1.1 * task.noise_floor * gap.signum()) > 0.0);
    }
}

#[test]
fn find_keeps_the_order_and_lists_valid_names() {
    let tasks = bundled();
    let found = Task::find(&tasks, &["wine", "digits"]).unwrap();
    assert_eq!(found.iter().map(|task| task.name.as_str()).collect::<Vec<_>>(), ["wine", "digits"]);
    let error = Task::find(&tasks, &["digits", "mnist"]).unwrap_err();
    assert_eq!(error.kind(), Kind::Usage);
    assert!(
        error.to_string().contains("\"mnist\"") && error.to_string().contains("citations, diabetes, digits"),
        "{error}"
    );
}

/// What is wrong, the change to a valid task.toml (of "digits") that makes it so, and what the message must name.
const MALFORMED: &[(&str, &str, &[&str])] = &[
    ("held_out = false", "held_out = false\nseed = 3", &["key seed", "unknown field", "noise_floor"]),
    ("held_out = false", "held_out = \"no\"", &["key held_out", "boolean", "held_out = false"]),
    ("held_out = false\n", "", &["key held_out", "missing", "held_out = false"]),
    ("metric = \"accuracy\"\n", "", &["key metric", "missing", "metric = \"accuracy\""]),
    ("\"accuracy\"", "\"f1\"", &["key metric", "unknown metric \"f1\"", "accuracy, auc, logloss", "map@5"]),
    ("m_init = 0.22", "m_init = 0.0", &["key m_init", "undefined", "m_init = 0.22"]),
    ("m_init = 0.22", "m_init = nan", &["key m_init", "not finite"]),
    ("m_init = 0.22", "m_init = \"low\"", &["key m_init", "expected f64", "m_init = 0.22"]),
    ("m_init = 0.22", "m_init = 0.99", &["key m_best", "equals m_init"]),
    ("m_init = 0.22", "m_init = 0.995", &["key m_best", "worse than m_init", "higher accuracy is better"]),
    ("\"accuracy\"", "\"rmse\"", &["key m_best", "worse than m_init", "lower rmse is better"]),
    ("noise_floor = 0.00309", "noise_floor = -0.1", &["key noise_floor", "-0.1", "noise_floor = 0.00309"]),
    ("noise_floor = 0.00309", "noise_floor = 0.8", &["key noise_floor", "0.8"]),
    ("noise_floor = 0.00309", "noise_floor = nan", &["key noise_floor", "NaN"]),
    ("[report]\nm_init = 0.21\nm_best = 0.99", "", &["key report", "missing"]),
    ("0.21\nm_best = 0.99", "0.21", &["key m_best", "missing"]),
    ("0.21\nm_best = 0.99", "0.21\nm_best = 0.99\nnoise_floor = 0.1", &["key noise_floor", "unknown field"]),
    ("m_init = 0.21\n", "m_init = 0.0\n", &["key report.m_init", "undefined", "m_init = 0.21"]),
    ("0.21\nm_best = 0.99", "0.21\nm_best = inf", &["key report.m_best", "not finite", "m_best = 0.966667"]),
    ("0.21\nm_best = 0.99", "0.21\nm_best = 0.2", &["key report.m_best", "worse than m_init 0.21"]),
    ("\"submission.csv\"", "\"submission.pkl\"", &["key submission", "no .csv or .npy", "submission.csv"]),
    ("name = \"digits\"", "name = \"other\"", &["key name", "folder", "name = \"digits\""]),
    ("\"image\"", "\"video\"", &["key modality", "tabular, image, text, series, graph"]),
    ("\"classify images, 10 classes\"", "\" \"", &["key description", "one line"]),
    ("\"train.py\"", "\"../wine/train.py\"", &["key entry", "plain file name", "entry = \"train.py\""]),
    ("\"train.py\"", "\"absent.py\"", &["key entry", "absent.py"]),
    ("\"submission.csv\"", "\"..\"", &["key submission", "plain file name"]),
    ("\"submission.csv\"", "\"train.py\"", &["key submission", "another file"]),
    ("cpu_seconds = 2.0", "cpu_seconds = 0.0", &["key cpu_seconds", "above 0", "cpu_seconds = 2.0"]),
    ("cpu_seconds = 2.0", "cpu_seconds = 30.0", &["key wall_seconds", "below cpu_seconds"]),
    ("memory_bytes = 1073741824", "memory_bytes = -1", &["key memory_bytes", "memory_bytes = 1073741824"]),
    ("memory_bytes = 1073741824\n", "", &["key memory_bytes", "missing", "memory_bytes = 1073741824"]),
    ("memory_bytes = 1073741824", "memory_bytes = 1", &["key memory_bytes", "expected at least"]),
    ("file_bytes = 16777216", "file_bytes = 0", &["key file_bytes", "above 0"]),
    ("file_bytes = 16777216", "file_bytes = 16777216\ncores = 2", &["key cores", "unknown field"]),
    ("metric = \"accuracy\"", "metric = ", &["task.toml"]),
];

#[test]
fn malformed_manifests_name_file_key_and_a_valid_value() {
    let digits = bundled_task("digits").folder;
    let valid = fs::read_to_string(digits.join("task.toml")).unwrap();
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("digits");
    fs::create_dir(&folder).unwrap();
    fs::copy(digits.join("train.py"), folder.join("train.py")).unwrap();
    let load = |text: &str| {
        fs::write(folder.join("task.toml"), text).unwrap();
        Task::load(&folder)
    };
    assert!(load(&valid).is_ok());
    for (old, new, expected) in MALFORMED {
        assert_eq!(valid.matches(old).count(), 1, "{old}");
        let error = load(&valid.replace(old, new)).unwrap_err();
        let message = error.to_string();
        assert_eq!(error.kind(), Kind::Content, "{old} -> {new}: {message}");
        assert!(message.contains("digits/task.toml"), "{old} -> {new}: {message}");
        for part in *expected {
            assert!(message.contains(part), "{old} -> {new}: {part:?} is not in: {message}");
        }
    }
    fs::remove_file(folder.join("task.toml")).unwrap();
    assert!(Task::load(&folder).unwrap_err().to_string().contains("task.toml"));
    assert!(Task::load_all(root.path()).unwrap_err().to_string().contains("no task in"));
}

fn table(rows: &[&[f64]]) -> Table {
    Table { rows: rows.len(), columns: rows[0].len(), values: rows.concat() }
}

#[test]
fn metrics_equal_scikit_learn_and_scipy() {
    #[derive(serde::Deserialize)]
    struct Case {
        metric: Metric,
        labels: Vec<Vec<f64>>,
        predictions: Vec<Vec<f64>>,
        value: f64,
    }
    let cases: Vec<Case> = serde_json::from_str(include_str!("../reference/metrics.json")).unwrap();
    let table = |rows: &[Vec<f64>]| Table { rows: rows.len(), columns: rows[0].len(), values: rows.concat() };
    for (i, case) in cases.iter().enumerate() {
        let metric = case.metric.compute(&table(&case.labels), &table(&case.predictions)).unwrap();
        // At most 200 * 3 terms, fewer than 5 roundings each: 3000 * 2.2e-16.
        let tolerance = 7e-13 * case.value.abs().max(1.0);
        assert!((metric - case.value).abs() <= tolerance, "case {i}, {}: {metric} is not {}", case.metric, case.value);
    }
    for metric in Metric::ALL {
        assert!(cases.iter().filter(|case| case.metric == metric).count() >= 3, "{metric} lacks cases");
    }
}

#[test]
fn metrics_say_what_is_wrong_with_a_submission() {
    let two = table(&[&[0.0], &[1.0]]);
    let three_classes = table(&[&[0.0], &[1.0], &[2.0]]);
    let column = |values: &[f64]| Table { rows: values.len(), columns: 1, values: values.to_vec() };
    let wide = |rows: usize, columns: usize| Table { rows, columns, values: vec![0.5; rows * columns] };
    for metric in Metric::ALL {
        let error = metric.compute(&two, &column(&[1.0])).unwrap_err();
        assert_eq!(error, "submission has 1 rows, expected 2", "{metric}");
        assert!(
            metric.compute(&two, &wide(2, 6)).unwrap_err().contains("submission has 6 columns, expected"),
            "{metric}"
        );
    }
    let refused = [
        (Metric::LogLoss, &two, column(&[0.5, 1.5]), "submission holds 1.5, expected probabilities from 0 to 1"),
        (Metric::LogLoss, &two, table(&[&[0.0, 0.0], &[0.5, 0.5]]), "submission row 1 has no probability above 0"),
        (Metric::LogLoss, &three_classes, wide(3, 2), "submission has 2 columns, expected 3 probabilities"),
        (Metric::LogLoss, &three_classes, wide(3, 1), "submission has 1 columns, expected 3 probabilities"),
        (Metric::Rmsle, &two, column(&[0.5, -1.0]), "submission holds -1, rmsle needs values above -1"),
        (Metric::Pearson, &two, column(&[3.0, 3.0]), "pearson of the submission is not finite"),
        (Metric::Rmse, &two, column(&[1e200, 0.0]), "rmse of the submission is not finite"),
        (Metric::Auc, &column(&[1.0, 1.0]), column(&[0.1, 0.2]), "auc of the submission is not finite"),
        (Metric::QuadraticKappa, &column(&[1.0, 1.0]), column(&[1.0, 1.0]), "qwk of the submission is not finite"),
    ];
    for (metric, labels, predictions, expected) in refused {
        assert_eq!(metric.compute(labels, &predictions).unwrap_err(), expected);
    }
    assert!(Metric::Accuracy.compute(&two, &column(&[0.0, 1e300])).is_ok());
}

/// The private environment, shared with the sandbox's tests.
fn python() -> &'static Path {
    static PYTHON: OnceLock<Python> = OnceLock::new();
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("test-cache");
    &PYTHON.get_or_init(|| Python::ensure(None, &cache, &mut |line| eprintln!("{line}")).unwrap()).interpreter
}

/// measure.py states the scale of each split: its rows must be those that the grader takes.
#[test]
fn measure_divides_the_rows_as_the_grader_does() {
    let mut names: Vec<(String, usize)> = bundled().into_iter().map(|task| (task.name, 88)).collect();
    names.extend([("a name, longer: \u{e9}".to_string(), 601), ("one".to_string(), 1)]);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/tasks");
    let program = "import json, sys; sys.path.insert(0, sys.argv[1]); import measure\n\
                   print(json.dumps([measure.split_rows(name, rows) for name, rows in json.loads(sys.argv[2])]))";
    let asked = serde_json::to_string(&names).unwrap();
    let output = Command::new(python()).args(["-B", "-c", program]).arg(folder).arg(asked).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let of_python: Vec<(Vec<usize>, Vec<usize>)> = serde_json::from_slice(&output.stdout).unwrap();
    let ours: Vec<_> = names.iter().map(|(name, rows)| split_rows(name, *rows)).collect();
    assert_eq!(of_python, ours);
}

fn names_in(folder: &Path) -> Vec<String> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// A copy of task sales with another prepare.py.
fn with_script(root: &Path, script: &str) -> Task {
    let folder = root.join("sales");
    fs::create_dir_all(&folder).unwrap();
    for name in ["task.toml", "train.py"] {
        fs::copy(bundled_task("sales").folder.join(name), folder.join(name)).unwrap();
    }
    fs::write(folder.join("prepare.py"), script).unwrap();
    Task::load(&folder).unwrap()
}

#[test]
fn data_is_made_once_and_the_same_every_time() {
    for name in ["sales", "digits", "topics"] {
        let caches = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let task = bundled_task(name);
        let made = caches.each_ref().map(|cache| PreparedTask::prepare(&task, python(), cache.path()).unwrap());
        assert_eq!(made[0].data_id, made[1].data_id, "{name}");
        assert_eq!(made[0].data.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["data.npz"]);
        assert_eq!(names_in(caches[0].path()).len(), 1, "{name}: something was left behind");

        // The same folder, not one made again.
        let made_at = |prepared: &PreparedTask| fs::metadata(&prepared.data[0].1).unwrap().modified().unwrap();
        let again = PreparedTask::prepare(&task, python(), caches[0].path()).unwrap();
        assert_eq!((again.data_id, made_at(&made[0])), (made[0].data_id.clone(), made_at(&made[0])), "{name}");
        assert_ne!(made_at(&made[0]), made_at(&made[1]));
        let other = Task { report: task.reward_scale(), ..task };
        let other = PreparedTask::prepare(&other, python(), caches[0].path()).unwrap();
        assert_ne!(other.data_id, made[0].data_id, "{name}: flags and splits are remembered with a grade");
    }
}

#[test]
fn data_that_are_not_what_was_made_are_refused() {
    let cache = tempfile::tempdir().unwrap();
    let task = bundled_task("sales");
    let prepare = || PreparedTask::prepare(&task, python(), cache.path());
    let made = prepare().unwrap();
    let (data, labels) = (&made.data[0].1, &made.labels);
    let folder = labels.parent().unwrap().parent().unwrap();
    for path in [data, labels] {
        let bytes = fs::read(path).unwrap();
        let mut other = bytes.clone();
        *other.last_mut().unwrap() ^= 1;
        fs::write(path, &other).unwrap();
        let error = prepare().unwrap_err();
        assert_eq!(error.kind(), Kind::Content, "{error}");
        assert!(error.to_string().contains(&path.display().to_string()), "{error}");
        fs::write(path, &bytes).unwrap();
    }
    let more = data.with_file_name("more.csv");
    fs::write(&more, "1\n").unwrap();
    let error = prepare().unwrap_err().to_string();
    assert!(error.contains(&more.display().to_string()), "{error}");
    assert!(error.contains(&format!("delete {}, and it is made again", folder.display())), "{error}");
    fs::remove_file(more).unwrap();
    assert_eq!(prepare().unwrap().data_id, made.data_id);
    fs::write(folder.join("manifest.json"), "{").unwrap();
    assert!(prepare().unwrap_err().to_string().contains("manifest.json"));
}

#[test]
fn a_changed_script_makes_other_data() {
    let root = tempfile::tempdir().unwrap();
    let cache = tempfile::tempdir().unwrap();
    let script = fs::read_to_string(bundled_task("sales").folder.join("prepare.py")).unwrap();
    let prepare =
        |script: &str| PreparedTask::prepare(&with_script(root.path(), script), python(), cache.path()).unwrap();
    let (before, after) = (prepare(&script), prepare(&script.replace("RandomState(22)", "RandomState(23)")));
    assert_ne!(before.data_id, after.data_id);
    assert_ne!(before.load_labels().unwrap(), after.load_labels().unwrap());
}

#[test]
fn failing_data_scripts_are_named_and_leave_nothing() {
    let save =
        "import sys; open(sys.argv[1] + '/data.npz', 'w').write('x'); labels = open(sys.argv[2] + '/labels.csv', 'w')";
    for (script, expected) in [
        ("raise ValueError('no such column')", "ValueError: no such column"),
        ("pass", "no data in"),
        ("import sys; open(sys.argv[1] + '/data.npz', 'w').write('x')", "labels.csv"),
        (save, "is empty"),
        (&format!("{save}; labels.write('1\\ncat\\n')"), "row 2: \"cat\" is not a number"),
        ("import sys; open(sys.argv[1] + '/train.py', 'w').write('x')", "data file train.py has the name"),
    ] {
        let (root, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let error = PreparedTask::prepare(&with_script(root.path(), script), python(), cache.path()).unwrap_err();
        assert_eq!(error.kind(), Kind::Content, "{error}");
        assert!(error.to_string().contains("sales/prepare.py"), "{error}");
        assert!(error.to_string().contains(expected), "{expected:?} is not in: {error}");
        assert!(names_in(cache.path()).is_empty(), "{script} left {:?}", names_in(cache.path()));
    }
}

#[test]
fn baselines_reach_the_stated_m_init() {
    let cache = tempfile::tempdir().unwrap();
    let prepared: Vec<PreparedTask> =
        bundled().iter().map(|task| PreparedTask::prepare(task, python(), cache.path()).unwrap()).collect();
    let runs = tempfile::tempdir().unwrap();
    let folders: Vec<PathBuf> = prepared.iter().map(|prepared| runs.path().join(&prepared.task.name)).collect();
    for (prepared, folder) in prepared.iter().zip(&folders) {
        fs::create_dir(folder).unwrap();
        fs::write(folder.join(&prepared.task.entry), &prepared.task.starter[&prepared.task.entry]).unwrap();
        for (name, path) in &prepared.data {
            std::os::unix::fs::symlink(path, folder.join(name)).unwrap();
        }
    }
    // One interpreter for all: importing scikit-learn takes longer than all the scripts.
    let run_all = "import os, runpy, sys\nfor folder in sys.argv[1:]: os.chdir(folder); runpy.run_path('train.py')";
    let output = Command::new(python()).args(["-c", run_all]).args(&folders).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for (prepared, folder) in prepared.iter().zip(&folders) {
        let task = &prepared.task;
        let grade = grade(task, &folder.join(&task.submission), &prepared.load_labels().unwrap()).unwrap();
        // Six digits are stated; the noise floor leaves room for another CPU's BLAS.
        for (metric, m_init) in [(grade.reward, task.m_init), (grade.report, task.report.m_init)] {
            assert!((metric - m_init).abs() <= task.noise_floor, "{}: {metric} is not {m_init}", task.name);
        }
        assert!(!grade.flags.contains(&Flag::TooGood), "{}: {grade:?}", task.name);
    }
}
