//! The grader: what a submission of either format is worth on each split, and hostile ones.

use super::{bundled_task, python};
use onestep::task::grader::grade;
use onestep::task::split::split_rows;
use onestep::task::{Flag, Grade, Labels, Metric, Task};
use std::fs;
use std::path::PathBuf;
use std::process::Command;

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

#[test]
fn labels_that_cannot_be_divided_are_refused() {
    let parse = |name: &str, text: &str| Labels::parse(&bundled_task(name), text).unwrap_err();
    assert_eq!(parse("sales", "1\n"), "has 1 row; expected at least 2, for rewards and for the report");
    for name in ["cancer", "reviews"] {
        let error = parse(name, "0\n1\n");
        assert_eq!(error, "cannot be divided: a half of its 2 rows lacks a class; expected more rows", "{name}");
    }
    assert_eq!(parse("sales", "id,y\na,1\nb,2\na,3\n"), "has id \"a\" twice");
    assert!(parse("sales", "id\na\nb\n").contains("has no numbers beside its ids"));
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
        ("id,p\nc,1\na\nb,3\n", "submission row 2 has 1 columns, its first line 2"),
        ("id,p\nc,1\na,1,2\nb,3\n", "submission row 2 has 3 columns, its first line 2"),
        ("id,p\nc,x\na,1\nb,3\n", "submission row 1: \"x\" is not a number"),
        ("id,p\n", "submission is empty"),
    ] {
        assert_eq!(desk.grade_text(text), Err(expected.into()), "{text:?}");
    }
    let error = desk.grade_text("c,1\na,2\nb,3\n").unwrap_err();
    assert!(error.contains("no column id in its first line (\"c,1\")"), "{error}");
    let long = format!("id,p\n{},1\na,2\nb,3\n", "q".repeat(1000));
    assert!(desk.grade_text(long).unwrap_err().len() < 100);
}

/// What honest programs write: each file holds the right answers.
#[test]
fn every_way_to_write_a_csv_is_read() {
    let desk = Desk::of("sales", "id,y\n0007,1\n\"0014\",2\n21,3\n", |_| {});
    for text in [
        "id,y\n0007,1\n0014,2\n21,3\n",
        "id,y\n0007,1\n0014,2\n21,3",
        "\u{feff}id,y\n0007,1\n0014,2\n21,3\n",
        "\u{feff}\"id\",\"y\"\r\n\"0007\",1\r\n\"0014\",2\r\n\"21\",3\r\n",
        "id,y\r0007,1\r0014,2\r21,3\r",
        "\"id\",\"y\"\n\"0007\",\"1\"\n\"0014\",\"2\"\n\"21\",\"3\"\n",
        "\"id\", \"y\"\n\"0007\", 1\n \"0014\", \"2\"\n 21 , 3.0 \n",
        "\n\nid,y\n\n0007,1\n \t \n0014,2\r\n\r\n21,3e0\n\n\n  \n",
        "y,id\n1,0007\n2,0014\n3,21\n",
        "id,any name\n0007,1\n0014,2\n21,3\n",
        ",id,y\n0,0007,1\n1,0014,2\n2,21,3\n",
        "note,id,y,more\n\"a, \"\"b\"\"\nc\",0007,1,9\n,0014,2,x\nq,21,3,\n",
    ] {
        assert_eq!(desk.metrics(text), Ok((0.0, 0.0)), "{text:?}");
    }
    let rows = Desk::new();
    for text in ["\u{feff}1\n2\n3\n", "\"1\"\n\"2\"\n\"3\"\n", " 1\r2\r 3 ", "\"1\"\r\n\r\n\" 2 \"\r\n \"3\"\r\n"] {
        assert_eq!(rows.metrics(text), Ok((0.0, 0.0)), "{text:?}");
    }
    // Columns are told apart by name where the labels have names for them.
    let mut wide = Desk::of("sales", "id,a,b\n1,1,10\n2,2,20\n3,3,30\n", |_| {});
    wide.task.metric = Metric::Mcrmse;
    assert_eq!(wide.metrics("b,id,a\n10,1,1\n20,2,2\n30,3,3\n"), Ok((0.0, 0.0)));
    assert_eq!(wide.metrics("id,p,q\n1,1,10\n2,2,20\n3,3,30\n"), Ok((0.0, 0.0)));
    // A probability for each class: no names of the labels' own.
    let classes = Desk::of("reviews", "id,class\n1,0\n2,1\n3,0\n4,1\n5,0\n6,1\n", |task| task.metric = Metric::LogLoss);
    let honest = classes.metrics("id,class,other\n1,1,0\n2,0,1\n3,1,0\n4,0,1\n5,1,0\n6,0,1\n").unwrap();
    assert!(honest.0 < 1e-9 && honest.1 < 1e-9, "{honest:?}");
}

#[test]
fn what_is_no_such_csv_is_refused_with_words() {
    let desk = Desk::of("sales", "id,y\n0007,1\n0014,2\n21,3\n", |_| {});
    let as_text = "read and write ids as text, so that they stay as they are";
    for (text, expected) in [
        ("id;y\n0007;1\n0014;2\n21;3\n", "submission has its fields separated by ';'; expected commas".to_string()),
        ("\"id\";\"y\"\n\"0007\";1\n", "submission has its fields separated by ';'; expected commas".to_string()),
        ("id\ty\n0007\t1\n", "submission has its fields separated by '\\t'; expected commas".to_string()),
        ("id,y\n7,1\n14,2\n21,3\n", format!("submission row 1: unknown id \"7\"; the id is \"0007\": {as_text}")),
        (
            "id,y\n0007,1\n14.0,2\n21,3\n",
            format!("submission row 2: unknown id \"14.0\"; the id is \"0014\": {as_text}"),
        ),
        (
            "id,y\n0007,1\n0014,2\n0021,3\n",
            format!("submission row 3: unknown id \"0021\"; the id is \"21\": {as_text}"),
        ),
        ("id,y,y\n0007,1,1\n0014,2,2\n21,3,3\n", "submission has the column y twice".to_string()),
        ("id,id,y\n0007,1,1\n", "submission has the column id twice".to_string()),
        ("id,y\n0007,\"1\n0014,2\n21,3\n", "submission row 1: \"1\\n0014,2\\n21,3\" is not a number".to_string()),
        ("id,y\n0007,1,5\n0014,2\n21,3\n", "submission row 1 has 3 columns, its first line 2".to_string()),
        ("id,y\n0007,\n0014,2\n21,3\n", "submission row 1: \"\" is not a number".to_string()),
        ("id\n0007\n0014\n21\n", "submission has no numbers beside its ids".to_string()),
        (
            "Id,y\n0007,1\n",
            "submission has no column id in its first line (\"Id,y\"); expected one like id,prediction".to_string(),
        ),
    ] {
        assert_eq!(desk.grade_text(text), Err(expected), "{text:?}");
    }
    let mut wide = Desk::of("sales", "id,a,b\n1,1,10\n2,2,20\n3,3,30\n", |_| {});
    wide.task.metric = Metric::Mcrmse;
    let half = wide.grade_text("id,b,c\n1,10,1\n2,20,2\n3,30,3\n");
    assert_eq!(half, Err("submission lacks the column \"a\"; expected the columns id,a,b".into()));
    let rows = Desk::new();
    let by_semicolons = rows.grade_text("1;0\n2;0\n3;0\n");
    assert_eq!(by_semicolons, Err("submission has its fields separated by ';'; expected commas".into()));
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
    assert_eq!(desk.grade_text([0xff, 0xfe, b'1']), Err("submission is not text in UTF-8".into()));
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
