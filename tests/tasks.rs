//! The bundled tasks, their manifests, the metrics against scikit-learn's values, the grader against hostile submissions, and the
//! data scripts. The only scripts that run are the project's own.
#![allow(clippy::unwrap_used)]

use onestep::error::Kind;
use onestep::sandbox::Python;
use onestep::task::grader::grade;
use onestep::task::{Metric, PreparedTask, Table, Task};
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
        assert!(task.noise_floor > 0.0 && task.noise_floor <= 0.0501 * gap, "{}: {}", task.name, task.noise_floor);
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
    ("m_init = 0.215", "m_init = 0.0", &["key m_init", "undefined", "m_init = 0.215"]),
    ("m_init = 0.215", "m_init = nan", &["key m_init", "not finite"]),
    ("m_init = 0.215", "m_init = \"low\"", &["key m_init", "expected f64", "m_init = 0.215"]),
    ("m_init = 0.215", "m_init = 0.991667", &["key m_best", "equals m_init"]),
    ("m_init = 0.215", "m_init = 0.995", &["key m_best", "worse than m_init", "higher accuracy is better"]),
    ("\"accuracy\"", "\"rmse\"", &["key m_best", "worse than m_init", "lower rmse is better"]),
    ("noise_floor = 0.003", "noise_floor = -0.1", &["key noise_floor", "-0.1", "noise_floor = 0.003"]),
    ("noise_floor = 0.003", "noise_floor = 0.8", &["key noise_floor", "0.8"]),
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
    let cases: Vec<Case> = serde_json::from_str(include_str!("reference/metrics.json")).unwrap();
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

/// A place for one submission and what the grader says of it, against the labels 1, 2, 3 under MAE.
struct Desk {
    folder: tempfile::TempDir,
    task: Task,
    labels: Table,
}

impl Desk {
    fn new() -> Self {
        let labels = table(&[&[1.0], &[2.0], &[3.0]]);
        Self { folder: tempfile::tempdir().unwrap(), task: bundled_task("sales"), labels }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join(&self.task.submission)
    }

    fn grade(&self) -> Result<f64, String> {
        grade(&self.task, &self.path(), &self.labels)
    }

    fn grade_text(&self, text: impl AsRef<[u8]>) -> Result<f64, String> {
        fs::write(self.path(), text).unwrap();
        self.grade()
    }
}

#[test]
fn well_formed_submissions_are_graded() {
    let desk = Desk::new();
    assert_eq!(desk.grade_text("1.000000000000000000e+00\n2.0\n3\n"), Ok(0.0));
    assert_eq!(desk.grade_text("2\r\n 3 \r\n4"), Ok(1.0));
    assert_eq!(desk.grade_text("4\n5\n6\n\n"), Ok(3.0));
}

#[test]
fn malformed_submissions_are_refused_with_a_reason() {
    let desk = Desk::new();
    assert_eq!(desk.grade(), Err("submission is missing".into()));
    for (text, expected) in [
        ("", "submission is empty"),
        ("\n \n", "submission is empty"),
        ("1\n2\n", "submission has 2 rows, expected 3"),
        ("1\n2\n3\n4\n", "submission has 4 rows, expected 3"),
        ("1,1\n2,2\n3,3\n", "submission has 2 columns, expected 1"),
        ("1\n2,2\n3\n", "submission row 2 has 2 columns, row 1 has 1"),
        ("1\nnan\n3\n", "submission row 2: NaN is not finite"),
        ("1\n2\n-inf\n", "submission row 3: -inf is not finite"),
        ("1\n2\n1e999\n", "submission row 3: inf is not finite"),
        ("prediction\n1\n2\n3\n", "submission row 1: \"prediction\" is not a number"),
        ("1\n2,\n3\n", "submission row 2: \"\" is not a number"),
        ("import os; os.system(\"reboot\")", "submission row 1: \"import os; os.system\" is not a number"),
        ("1\n2\n3\0\n", "submission row 3: \"3\\0\" is not a number"),
    ] {
        assert_eq!(desk.grade_text(text), Err(expected.into()), "{text:?}");
    }
    assert_eq!(desk.grade_text([0xff, 0xfe, b'1']), Err("submission is not text".into()));
    let many = "1\n".repeat(100_000);
    assert_eq!(desk.grade_text(many), Err("submission has 100000 rows, expected 3".into()));
    let wide = format!("1{}\n", ",1".repeat(1_000_000));
    assert_eq!(desk.grade_text(wide.repeat(3)), Err("submission has 1000001 columns, expected 1".into()));
}

#[test]
fn a_submission_that_is_no_regular_file_is_never_opened_as_one() {
    let refused = Err("submission is not a regular file that can be read".to_string());
    let desk = Desk::new();
    let labels = desk.folder.path().join("labels.csv");
    fs::write(&labels, "1\n2\n3\n").unwrap();
    std::os::unix::fs::symlink(&labels, desk.path()).unwrap();
    assert_eq!(desk.grade(), refused);

    let desk = Desk::new();
    std::os::unix::fs::symlink("/dev/zero", desk.path()).unwrap();
    assert_eq!(desk.grade(), refused);

    let desk = Desk::new();
    fs::create_dir(desk.path()).unwrap();
    assert_eq!(desk.grade(), refused);

    let desk = Desk::new();
    assert!(Command::new("mkfifo").arg(desk.path()).status().unwrap().success());
    assert_eq!(desk.grade(), refused);

    let desk = Desk::new();
    let _listener = std::os::unix::net::UnixListener::bind(desk.path()).unwrap();
    assert_eq!(desk.grade(), refused);
}

#[test]
fn a_huge_submission_is_refused_unread() {
    let desk = Desk::new();
    fs::File::create(desk.path()).unwrap().set_len(1 << 40).unwrap();
    assert_eq!(desk.grade(), Err("submission is larger than 16777216 bytes".into()));
    fs::File::create(desk.path()).unwrap().set_len(desk.task.limits.file_bytes).unwrap();
    assert!(desk.grade().unwrap_err().contains("is not a number"));
}

/// The private environment, shared with the sandbox's tests.
fn python() -> &'static Path {
    static PYTHON: OnceLock<Python> = OnceLock::new();
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("test-cache");
    &PYTHON.get_or_init(|| Python::ensure(None, &cache, &mut |line| eprintln!("{line}")).unwrap()).interpreter
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

        // A mark that would be gone if it were made again.
        fs::write(made[0].data[0].1.with_file_name("mark"), "").unwrap();
        let again = PreparedTask::prepare(&task, python(), caches[0].path()).unwrap();
        assert_eq!(again.data.len(), 2, "{name} was made again");
        assert_ne!(again.data_id, made[0].data_id);
    }
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
        let metric = grade(task, &folder.join(&task.submission), &prepared.load_labels().unwrap()).unwrap();
        // Six digits are stated; the noise floor leaves room for another CPU's BLAS.
        assert!((metric - task.m_init).abs() <= task.noise_floor, "{}: {metric} is not {}", task.name, task.m_init);
    }
}
