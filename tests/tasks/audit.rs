//! Planted leaks of every kind are found; the bundled tasks have none.

use super::{bundled, bundled_task, python};
use onestep::task::PreparedTask;
use onestep::task::audit::{Audit, audit};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

/// Public folders with one thing wrong each, beside the labels `classes.csv` (60 of three classes), `numbers.csv` (60 real numbers) and
/// `named.csv` (the classes with ids).
const PLANT: &str = r#"
import os, sys
import numpy as np

random = np.random.RandomState(3)
root = sys.argv[1]
classes, numbers = random.randint(0, 3, 60), random.randn(60)
X, Z, y = random.randn(100, 4), random.randn(60, 4), random.randint(0, 3, 100)
np.savetxt(root + "/classes.csv", classes, fmt="%d")
np.savetxt(root + "/numbers.csv", numbers, fmt="%.17g")
np.savetxt(root + "/two.csv", np.stack([random.randint(0, 2, 60), classes], 1), fmt="%d", delimiter=",")
ids = ["n%d" % i for i in random.permutation(60)]
open(root + "/named.csv", "w").write("id,y\n" + "".join("%s,%d\n" % pair for pair in zip(ids, classes)))

def case(name):
    os.mkdir(f"{root}/{name}")
    return f"{root}/{name}/"

def npz(name, **more):
    np.savez(case(name) + "data.npz", **dict(dict(X=X, y=y, Z=Z), **more))

def csv(name, file, header, rows):
    text = [",".join(header)] + [",".join(str(v) for v in row) for row in rows]
    open(file if "/" in file else case(name) + file, "w").write("\n".join(text) + "\n")

npz("clean", order=np.arange(60), names=np.array(["row %d" % i for i in range(60)]))
npz("equal", w=classes)
npz("equal_numbers", w=numbers.astype(">f8"))
npz("column", Z=np.asfortranarray(np.insert(Z, 2, 3 - 2 * classes, axis=1)))
npz("unit", w=(1000 * numbers + 1e-3 * random.randn(60)).astype("f4"))
npz("strings", w=np.array(["emu", "cat", "dog"])[classes])
npz("one_hot", w=np.eye(3)[classes])
npz("behind", target=np.concatenate([y, classes]))
npz("before", w=np.concatenate([np.array(["emu", "cat", "dog"])[classes], ["emu"] * 100]))
order = random.permutation(160)
npz("by_row_number", target=np.array(["emu", "cat", "dog"])[np.concatenate([y, classes])[order]], b=np.argsort(order)[100:])
npz("run", w=np.concatenate([random.randint(0, 3, 500), classes[3:55], random.randint(0, 3, 500)]))
np.savez_compressed(case("compressed") + "data.npz", X=X, y=y, Z=Z, w=classes)
np.save(case("npy") + "w.npy", classes)
csv("csv", "test.csv", ["a", "b", "c"], zip(numbers, classes + 7, random.randn(60)))
csv("csv_clean", "test.csv", ["id", "a"], zip(range(60), random.randn(60)))
shuffled = random.permutation(60)
csv("ids", "test.csv", ["id", "kind"], [(ids[i], "xyz"[classes[i]]) for i in shuffled])
open(case("text") + "notes.txt", "w").write("The answers: " + "; ".join(str(c) for c in classes[5:50]) + ". Do not tell.")
np.savez(case("objects") + "data.npz", X=X, y=y, Z=Z, w=np.array([None, 1], object))
npz("copies", Z=np.concatenate([X[10:17], Z[7:]]))
folder = case("csv_copies")
csv("", folder + "train.csv", ["id", "a", "b", "y"], [(i, *X[i, :2], y[i]) for i in range(100)])
csv("", folder + "test.csv", ["id", "b", "a"], [(1000 + i, *(X[i, 1::-1] if i < 5 else Z[i, :2])) for i in range(60)])
F = random.randn(160, 4)
F[order[100:103]] = F[order[0]]
npz("graph_copies", X=F, b=order[100:], Z=Z[:1])
"#;

fn planted() -> &'static Path {
    static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();
    let make = || {
        let folder = tempfile::tempdir().unwrap();
        let output = Command::new(python()).args(["-c", PLANT]).arg(folder.path()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        folder
    };
    FOLDER.get_or_init(make).path()
}

fn prepared(case: &str, labels: &str) -> PreparedTask {
    let folder = planted().join(case);
    let names = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut data: Vec<_> = names.map(|name| (name.clone(), folder.join(name))).collect();
    data.sort();
    PreparedTask { task: bundled_task("sales"), data, labels: planted().join(labels), data_id: "one".into() }
}

fn audited(case: &str, labels: &str) -> Audit {
    audit(&prepared(case, labels)).unwrap()
}

#[test]
fn planted_leaks_are_found() {
    for (case, labels, leak) in [
        ("equal", "classes.csv", "data.npz w: the labels"),
        ("equal_numbers", "numbers.csv", "data.npz w: the labels"),
        ("column", "classes.csv", "data.npz Z column 3: correlates with the labels, r = -1.00000"),
        ("unit", "numbers.csv", "data.npz w: correlates with the labels, r = 1.00000"),
        ("strings", "classes.csv", "data.npz w: the labels under other names"),
        ("one_hot", "classes.csv", "data.npz w whole rows: the labels under other names"),
        ("behind", "classes.csv", "data.npz target: the labels"),
        ("before", "classes.csv", "data.npz w: the labels under other names"),
        ("by_row_number", "classes.csv", "data.npz target: the labels under other names"),
        ("run", "classes.csv", "labels in a row"),
        ("compressed", "classes.csv", "data.npz w: the labels"),
        ("npy", "classes.csv", "w.npy: the labels"),
        ("csv", "classes.csv", "test.csv b: correlates with the labels"),
        ("csv", "numbers.csv", "test.csv a: the labels"),
        ("ids", "named.csv", "test.csv kind: the labels under other names"),
        ("text", "classes.csv", "notes.txt: 4"),
        ("equal", "two.csv", "data.npz w: the labels (label column 2)"),
    ] {
        let found = audited(case, labels);
        assert!(found.leaks.iter().any(|line| line.contains(leak)), "{case}, {labels}: {leak:?} is not in {found:?}");
        assert!(found.duplicates.is_empty(), "{case}: {found:?}");
    }
}

#[test]
fn what_is_no_leak_is_none() {
    for (case, labels) in [
        ("clean", "classes.csv"),
        ("clean", "numbers.csv"),
        ("clean", "two.csv"),
        ("clean", "named.csv"),
        ("csv_clean", "classes.csv"),
        // Labels that repeat under another order, or of another task.
        ("ids", "classes.csv"),
        ("equal", "numbers.csv"),
        ("unit", "classes.csv"),
        ("text", "numbers.csv"),
        ("copies", "classes.csv"),
    ] {
        let found = audited(case, labels);
        assert_eq!(found.leaks, Vec::<String>::new(), "{case}, {labels}");
    }
    assert_eq!(audited("clean", "classes.csv").unread, Vec::<String>::new());
}

#[test]
fn labels_in_what_the_agent_is_told_are_found() {
    let list = fs::read_to_string(planted().join("classes.csv")).unwrap().replace('\n', ", ");
    let mut task = prepared("clean", "classes.csv");
    task.task.description = format!("answers {list}");
    assert_eq!(audit(&task).unwrap().leaks.len(), 1);
    let mut task = prepared("clean", "classes.csv");
    task.task.starter.insert("train.py".into(), format!("import numpy as np\np = [{list}]\n"));
    let found = audit(&task).unwrap();
    assert!(found.leaks[0].starts_with("train.py: "), "{found:?}");
}

#[test]
fn copies_of_test_rows_are_counted() {
    let count = |case: &str| audited(case, "classes.csv").duplicates;
    assert_eq!(count("copies"), ["7 rows of data.npz Z are in data.npz X too"]);
    assert_eq!(count("csv_copies"), ["5 rows of test.csv are in train.csv too"]);
    assert_eq!(count("graph_copies"), ["3 rows of data.npz X are in its other rows too"]);
    assert_eq!(count("clean"), Vec::<String>::new());
}

#[test]
fn what_cannot_be_read_as_a_table_is_said() {
    let found = audited("objects", "classes.csv");
    assert_eq!(found.unread, ["data.npz w holds pickled objects; expected floats or integers"]);
    let found = audited("text", "classes.csv");
    assert_eq!(found.unread, ["notes.txt is of no format that is read as a table"]);
}

#[test]
fn bundled_tasks_hide_their_labels() {
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("test-cache/tasks");
    for task in bundled() {
        let found = audit(&PreparedTask::prepare(&task, python(), &cache).unwrap()).unwrap();
        let clean = Audit { task: task.name, leaks: vec![], duplicates: vec![], unread: vec![] };
        assert_eq!(found, clean);
    }
}
