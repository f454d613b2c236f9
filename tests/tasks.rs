//! The bundled tasks, their manifests, the metrics against scikit-learn's values, the grader against hostile submissions, and the
//! data scripts. The only scripts that run are the project's own.
#![allow(clippy::unwrap_used)]

use onestep::error::Kind;
use onestep::sandbox::Python;
use onestep::task::grader::grade;
use onestep::task::split::split_rows;
use onestep::task::{Flag, Grade, Labels, Metric, PreparedTask, Table, Task};
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
    ("[report]\nm_init = 0.21\nm_best = 0.966667", "", &["key report", "missing"]),
    ("m_best = 0.966667", "", &["key m_best", "missing"]),
    ("m_best = 0.966667", "m_best = 0.966667\nnoise_floor = 0.1", &["key noise_floor", "unknown field"]),
    ("m_init = 0.21\n", "m_init = 0.0\n", &["key report.m_init", "undefined", "m_init = 0.21"]),
    ("m_best = 0.966667", "m_best = inf", &["key report.m_best", "not finite", "m_best = 0.966667"]),
    ("m_best = 0.966667", "m_best = 0.2", &["key report.m_best", "worse than m_init 0.21"]),
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

/// A place for one submission and what the grader says of it.
struct Desk {
    folder: tempfile::TempDir,
    task: Task,
    labels: Labels,
}

impl Desk {
    /// The labels 1, 2, 3 under MAE.
    fn new() -> Self {
        Self::of("sales", "1\n2\n3\n", |_| {})
    }

    fn of(task: &str, labels: &str, change: impl FnOnce(&mut Task)) -> Self {
        let mut task = bundled_task(task);
        change(&mut task);
        let labels = Labels::parse(&task, labels).unwrap();
        Self { folder: tempfile::tempdir().unwrap(), task, labels }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join(&self.task.submission)
    }

    fn grade(&self) -> Result<Grade, String> {
        grade(&self.task, &self.path(), &self.labels)
    }

    fn grade_text(&self, text: impl AsRef<[u8]>) -> Result<Grade, String> {
        fs::write(self.path(), text).unwrap();
        self.grade()
    }

    /// The metrics of both splits.
    fn metrics(&self, text: impl AsRef<[u8]>) -> Result<(f64, f64), String> {
        self.grade_text(text).map(|grade| (grade.reward, grade.report))
    }
}

#[test]
fn well_formed_submissions_are_graded() {
    let desk = Desk::new();
    assert_eq!(desk.metrics("1.000000000000000000e+00\n2.0\n3\n"), Ok((0.0, 0.0)));
    assert_eq!(desk.metrics("2\r\n 3 \r\n4"), Ok((1.0, 1.0)));
    assert_eq!(desk.metrics("4\n5\n6\n\n"), Ok((3.0, 3.0)));
}

#[test]
fn each_split_has_its_own_metric() {
    let labels = "0\n".repeat(9);
    let desk = Desk::of("sales", &labels, |_| {});
    let (reward, report) = split_rows("sales", 9);
    assert_eq!((reward.len(), report.len()), (5, 4));
    let written =
        |rows: &[usize]| -> String { (0..9).map(|i| if rows.contains(&i) { "2\n" } else { "0\n" }).collect() };
    assert_eq!(desk.metrics(written(&reward)), Ok((2.0, 0.0)));
    assert_eq!(desk.metrics(written(&report)), Ok((0.0, 2.0)));
    assert_eq!(desk.metrics(written(&report[..1])), Ok((0.0, 0.5)));
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

#[test]
fn labels_that_cannot_be_divided_are_refused() {
    let parse = |name: &str, text: &str| Labels::parse(&bundled_task(name), text).unwrap_err();
    assert_eq!(parse("sales", "1\n"), "has 1 row; expected at least 2, for rewards and for the report");
    for name in ["cancer", "reviews"] {
        let error = parse(name, "0\n1\n");
        assert_eq!(error, "cannot be divided: a half of its 2 rows lacks a class; expected more rows", "{name}");
    }
    assert_eq!(parse("sales", "id,y\na,1\nb,2\na,3\n"), "has id \"a\" twice");
    assert!(parse("sales", "id\na\nb\n").contains("no number behind its id"));
    let mut npy = bundled_task("sales");
    npy.submission = "p.npy".into();
    assert!(Labels::parse(&npy, "id,y\na,1\nb,2\n").unwrap_err().contains("cannot have them"));
}

#[test]
fn rows_with_ids_are_matched_in_any_order() {
    let desk = Desk::of("sales", "id,y\nc,1\na,2\nb,3\n", |_| {});
    assert_eq!(desk.metrics("id,p\nc,1\na,2\nb,3\n"), Ok((0.0, 0.0)));
    assert_eq!(desk.metrics("id,p\n b , 3\nc,1\n\na,2"), Ok((0.0, 0.0)));
    for (text, expected) in [
        ("id,p\nc,1\na,2\nd,3\n", "submission row 3: unknown id \"d\""),
        ("id,p\nc,1\nc,2\na,3\n", "submission row 2: id \"c\" is repeated"),
        ("id,p\nb,1\nc,2\n", "submission lacks id \"a\""),
        ("id,p\nc,1\na,2\nb,3\nx,4\ny,4\n", "submission row 4: unknown id \"x\""),
        ("id,p\nc,1\na,2\nb,3\nb,4\n", "submission row 4: id \"b\" is repeated"),
        ("id,p\nc,1\na\nb,3\n", "submission row 2 has no number behind its id"),
        ("id,p\nc,1\na,1,2\nb,3\n", "submission row 2 has 2 columns, row 1 has 1"),
        ("id,p\nc,x\na,1\nb,3\n", "submission row 1: \"x\" is not a number"),
        ("id,p\n", "submission is empty"),
    ] {
        assert_eq!(desk.grade_text(text), Err(expected.into()), "{text:?}");
    }
    let error = desk.grade_text("c,1\na,2\nb,3\n").unwrap_err();
    assert!(error.contains("no header whose first column is id"), "{error}");
    let long = format!("id,p\n{},1\na,2\nb,3\n", "q".repeat(1000));
    assert!(desk.grade_text(long).unwrap_err().len() < 100);
}

#[test]
fn suspicious_submissions_are_graded_and_flagged() {
    let labels: String = (0..40).map(|i| format!("{}\n", i % 10)).collect();
    let rows = |f: &dyn Fn(i32) -> String| -> String { (0..40).map(|i| f(i) + "\n").collect() };
    let flags = |desk: &Desk, text: String| desk.grade_text(text).unwrap().flags;
    let desk = |m_best: f64| Desk::of("sales", &labels, |task| (task.m_init, task.m_best) = (3.0, m_best));
    // The gap is 2, half of it 1: an error of 0 is perfect, one of 0.1 is not better than m_best by 1.
    let far = desk(1.0);
    assert_eq!(flags(&far, rows(&|i| (i % 10).to_string())), [Flag::TooGood]);
    assert_eq!(flags(&far, rows(&|i| format!("{}.1", i % 10))), []);
    assert_eq!(flags(&far, rows(&|i| format!("{}.001", i % 10))), [Flag::TooGood]);
    assert_eq!(flags(&far, rows(&|_| "4.5".into())), [Flag::Constant]);
    // m_best 0.05 is within 5 % of the gap from perfect.
    assert_eq!(flags(&desk(0.05), rows(&|i| (i % 10).to_string())), []);
    // The gap is 1, half of it 0.5: an error of 1.4 is better than 1.5.
    let near = desk(2.0);
    assert_eq!(flags(&near, rows(&|i| format!("{}.4", i % 10 + 1))), [Flag::TooGood]);
    assert_eq!(flags(&near, rows(&|i| format!("{}.6", i % 10 + 1))), []);
    // Constant and better than m_best by far.
    let easy = Desk::of("sales", &labels, |task| (task.m_init, task.m_best) = (9.0, 8.0));
    assert_eq!(flags(&easy, rows(&|_| "4".into())), [Flag::Constant, Flag::TooGood]);
}

/// A version 1 .npy file.
fn npy(header: &str, data: &[u8]) -> Vec<u8> {
    let length = (header.len() as u16).to_le_bytes();
    [b"\x93NUMPY\x01\x00", length.as_slice(), header.as_bytes(), data].concat()
}

fn npy_of(descr: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    npy(&format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({shape}), }}   \n"), data)
}

#[test]
fn npy_submissions_of_every_kind_of_number_are_graded() {
    let desk = Desk::of("sales", "1\n2\n3\n", |task| task.submission = "p.npy".into());
    let folder = desk.folder.path();
    let program = "import sys, numpy as np\n\
        for name in 'f2 f4 f8 >f8 >f4 i1 i2 i4 i8 >i4 u1 u2 u4 u8'.split():\n    np.save(f'{sys.argv[1]}/{name}.npy', np.array([1, 2, 4], name))\n\
        np.save(sys.argv[1] + '/column.npy', np.array([[1], [2], [4.0]]))\n\
        np.save(sys.argv[1] + '/wide.npy', np.asfortranarray([[1, 0.5], [2, 0.25], [4, 8]]))\n\
        np.save(sys.argv[1] + '/strings.npy', np.array(['1', '2', '4']))\n\
        np.save(sys.argv[1] + '/bools.npy', np.array([True, False, True]))\n\
        np.save(sys.argv[1] + '/complex.npy', np.array([1j, 2, 3]))\n\
        np.save(sys.argv[1] + '/objects.npy', np.array([1, None, 3]))\n\
        np.save(sys.argv[1] + '/fields.npy', np.array([(1, 2)], [('a', 'f4'), ('b', 'i4')]))\n\
        np.save(sys.argv[1] + '/deep.npy', np.zeros((3, 1, 1)))\n\
        np.save(sys.argv[1] + '/number.npy', np.array(3.0))\n\
        np.save(sys.argv[1] + '/none.npy', np.zeros((0, 1)))\n\
        np.save(sys.argv[1] + '/nan.npy', np.array([1, 2, np.nan]))";
    let output = Command::new(python()).args(["-c", program]).arg(folder).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let graded = |name: &str| desk.metrics(fs::read(folder.join(format!("{name}.npy"))).unwrap());
    let expected = desk_value(&desk, &[0.0, 0.0, 1.0]);
    for name in "f2 f4 f8 >f8 >f4 i1 i2 i4 i8 >i4 u1 u2 u4 u8 column".split(' ') {
        assert_eq!(graded(name), Ok(expected), "{name}");
    }
    assert_eq!(graded("bools"), Ok(desk_value(&desk, &[0.0, 2.0, 2.0])));
    for (name, problem) in [
        ("strings", "submission holds items of NumPy's type U; expected floats or integers"),
        ("complex", "submission holds items of NumPy's type c; expected floats or integers"),
        ("objects", "submission holds pickled objects; expected floats or integers"),
        ("fields", "submission holds an array that is not of one plain type; expected floats or integers"),
        ("deep", "submission has 3 dimensions, expected 1 or 2"),
        ("number", "submission has 0 dimensions, expected 1 or 2"),
        ("none", "submission is empty"),
        ("nan", "submission row 3: NaN is not finite"),
        ("wide", "submission has 2 columns, expected 1"),
    ] {
        assert_eq!(graded(name), Err(problem.into()), "{name}");
    }
    // In Fortran order the rows are still rows.
    let mut wide = Desk::of("sales", "1,0.5\n2,0.25\n4,7\n", |task| task.submission = "p.npy".into());
    wide.task.metric = Metric::Mcrmse;
    let (reward, report) = split_rows("sales", 3);
    let of = |rows: &[usize]| if rows.contains(&2) { 0.5 / (rows.len() as f64).sqrt() } else { 0.0 };
    assert_eq!(wide.metrics(fs::read(folder.join("wide.npy")).unwrap()), Ok((of(&reward), of(&report))));
}

/// The mean of these errors over the rows of each split.
fn desk_value(desk: &Desk, errors: &[f64]) -> (f64, f64) {
    let (reward, report) = split_rows(&desk.task.name, errors.len());
    let mean = |rows: &[usize]| rows.iter().map(|row| errors[*row]).sum::<f64>() / rows.len() as f64;
    (mean(&reward), mean(&report))
}

#[test]
fn malformed_npy_submissions_are_refused_with_a_reason() {
    let desk = Desk::of("sales", "1\n2\n3\n", |task| task.submission = "p.npy".into());
    let three = [1.0_f64, 2.0, 3.0].map(f64::to_le_bytes).concat();
    assert_eq!(desk.metrics(npy_of("<f8", "3,", &three)), Ok((0.0, 0.0)));
    let none = "is no .npy file";
    let plain = "not of one plain type";
    for (bytes, expected) in [
        (b"1\n2\n3\n".to_vec(), none),
        (vec![], none),
        (b"\x93NUMPY\x01\x00".to_vec(), none),
        (b"\x93NUMPY\x09\x00\x02\x00{}".to_vec(), none),
        // A header that says it is 4 GiB long.
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff{".to_vec(), none),
        (npy_of("<f8", "3,", &three[..23]), "holds 23 bytes of data"),
        (npy_of("<f8", "3,", &[&three[..], b"x"].concat()), "holds 25 bytes of data"),
        (npy_of("<f8", "4,", &three), "asks for another number"),
        (npy_of("<f8", "2,", &three[..16]), "has 2 rows, expected 3"),
        (npy_of("<f8", "18446744073709551615, 18446744073709551615", &three), "asks for another number"),
        (npy_of("<f8", "99999999999999999999999", &three), none),
        (npy_of("<f8", "4294967296, 4294967296, 0", b""), "asks for another number"),
        (npy_of("<f8", "0, 18446744073709551615", b""), "is empty"),
        (npy_of("<f8", "3, 0", b""), "is empty"),
        (npy_of("<f3", "8,", &three), "NumPy's type f"),
        (npy_of("<f0", "3,", b""), plain),
        (npy_of("|O", "3,", b"\x80\x04cos\nsystem\n"), "pickled objects"),
        (npy_of("<U99999999999999999999", "1,", &three), none),
        (npy("{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': (3,), }", &three), plain),
        (npy(&"(".repeat(9_999), &three), plain),
        (npy(&"(".repeat(10_001), &three), none),
        (npy("{'descr': __import__('os'), 'fortran_order': False, 'shape': (3,), }", &three), plain),
    ] {
        let error = desk.grade_text(&bytes).unwrap_err();
        assert!(error.starts_with("submission ") && error.contains(expected), "{expected:?} is not in: {error}");
        assert!(error.len() < 150, "{error}");
    }
}

#[test]
fn a_link_on_the_way_is_not_followed_either() {
    let desk = Desk::new();
    fs::write(desk.folder.path().join("real.csv"), "1\n2\n3\n").unwrap();
    std::os::unix::fs::symlink("real.csv", desk.path()).unwrap();
    assert_eq!(desk.grade(), Err("submission is not a regular file that can be read".to_string()));
    fs::remove_file(desk.path()).unwrap();
    fs::rename(desk.folder.path().join("real.csv"), desk.path()).unwrap();
    assert!(desk.grade().is_ok());
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
