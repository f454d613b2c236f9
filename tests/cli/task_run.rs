//! Scripts that a Kaggle entrant would write, on a task whose ids have leading zeros (tests/cli/tasks): each is worth what its predictions are.

use crate::support::*;
use std::fs;
use tempfile::tempdir;

const TASKS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cli/tasks");
/// Every script predicts 0.5 for each id.
const RMSE: &str = "0.32176";
/// The first lines of each script.
const HEAD: &str = "import atexit, csv, numpy as np, threading\nids = [str(i) for i in np.load('data.npz')['ids']]\n\
    text = 'id,amount\\n' + ''.join('%s,0.5\\n' % i for i in ids)\n";

#[test]
fn honest_scripts_are_graded() {
    let folder = tempdir().unwrap();
    for (name, script) in [
        ("closed", "open('submission.csv', 'w').write(text)"),
        ("left open", "f = open('submission.csv', 'w')\nf.write(text)"),
        (
            "left open in a function",
            "def f():\n  yield open('submission.csv', 'w')\ng = f()\nh = next(g)\nh.write(text)\nkeep = [h, f, g]",
        ),
        ("left open in a class", "class A:\n  f = open('submission.csv', 'w')\nA.f.write(text)"),
        ("left open by a library", "np.f = open('submission.csv', 'w')\nnp.f.write(text)"),
        ("written at exit", "atexit.register(lambda: open('submission.csv', 'w').write(text))"),
        ("written by a thread", "t = threading.Timer(0.1, lambda: open('submission.csv', 'w').write(text))\nt.start()"),
        ("left open at sys.exit", "import sys\nf = open('submission.csv', 'w')\nf.write(text)\nsys.exit(0)"),
        (
            "quoted unless a number",
            "f = open('submission.csv', 'w', newline='')\nw = csv.writer(f, quoting=csv.QUOTE_NONNUMERIC)\n\
             w.writerow(['id', 'amount'])\nw.writerows([i, 0.5] for i in ids)\nf.close()",
        ),
        (
            "quoted",
            "w = csv.writer(open('submission.csv', 'w'), quoting=csv.QUOTE_ALL)\nw.writerow(['id', 'amount'])\n\
             w.writerows([i, 0.5] for i in ids)",
        ),
        ("quoted ids", "open('submission.csv', 'w').write('id,amount\\n' + ''.join('\"%s\",0.5\\n' % i for i in ids))"),
        ("byte order mark", "open('submission.csv', 'w', encoding='utf-8-sig').write(text)"),
        ("other line ends", "open('submission.csv', 'w', newline='\\r\\n').write(text + '\\n\\n')"),
        (
            "columns the other way round",
            "open('submission.csv', 'w').write('amount,id\\n' + ''.join('0.5,%s\\n' % i for i in ids))",
        ),
        (
            "numbered rows",
            "open('submission.csv', 'w').write(',id,amount\\n' + ''.join('%d,%s,0.5\\n' % r for r in enumerate(ids)))",
        ),
    ] {
        let path = folder.path().join("script.py");
        fs::write(&path, format!("{HEAD}{script}\n")).unwrap();
        let dir = format!("dir={TASKS}");
        let said = done(&["task", "run", "kaggle", "--script", text(&path), "--python", python(), &dir]);
        assert!(said.contains(RMSE), "{name}: {said}");
    }
}

#[test]
fn ids_that_have_become_numbers_are_named() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("script.py");
    fs::write(
        &path,
        format!("{HEAD}open('submission.csv', 'w').write('id,amount\\n' + ''.join('%d,0.5\\n' % int(i) for i in ids))"),
    )
    .unwrap();
    let dir = format!("dir={TASKS}");
    let ended = onestep(&["task", "run", "kaggle", "--script", text(&path), "--python", python(), &dir]);
    let said = format!("{}{}", ended.stdout, ended.stderr);
    assert!(said.contains("row 1: unknown id \"0\"; the id is \"0000\": read and write ids as text"), "{said}");
}
