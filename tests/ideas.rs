//! The bundled idea libraries on the bundled tasks, the selections on points laid out by hand, the draw, and bad files.
#![allow(clippy::unwrap_used)]

use onestep::environment::patch;
use onestep::error::Kind;
use onestep::ideas::{
    Axis, Edit, Library, Selection, draw, draw_axes, draw_one, embed, farthest_point, mean_distance, unique_names,
};
use onestep::rng::Philox;
use onestep::task::Task;
use std::collections::BTreeSet;
use std::path::Path;

fn tasks() -> Vec<Task> {
    Task::load_all(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/data/tasks"))).unwrap()
}

fn script(task: &Task) -> &str {
    &task.starter[&task.entry]
}

fn apply(edit: &Edit, script: &str) -> String {
    patch::apply(script, &edit.search, &edit.replace).unwrap()
}

/// The paper asks for at least 100 one-line ideas for each task.
#[test]
fn a_hundred_ideas_apply_to_each_task() {
    for (held_out, library) in [(false, Library::held_in().unwrap()), (true, Library::held_out().unwrap())] {
        for task in tasks().iter().filter(|task| task.held_out == held_out) {
            let edits = library.applicable(script(task));
            let per_axis = unique_names(edits.iter().map(|e| e.idea));
            println!("{}: {} of {} ideas apply, {per_axis:?}", task.name, edits.len(), library.ideas.len());
            assert!(edits.len() >= 100, "{}: {}", task.name, edits.len());
            assert!(Axis::ALL.iter().all(|axis| per_axis[axis] >= 5), "{}: {per_axis:?}", task.name);
        }
    }
}

#[test]
fn an_edit_changes_its_one_line_and_no_other() {
    for library in [Library::held_in().unwrap(), Library::held_out().unwrap()] {
        for task in tasks() {
            let before: Vec<&str> = script(&task).lines().collect();
            for edit in library.applicable(script(&task)) {
                let after = apply(&edit, script(&task));
                let mut expected = before.clone();
                expected.splice(edit.line..=edit.line, edit.replace.lines());
                assert_eq!(after.lines().collect::<Vec<_>>(), expected, "{}", edit.idea.name);
                assert_ne!(after, script(&task), "{}", edit.idea.name);
                assert!(after.ends_with('\n'), "{}", edit.idea.name);
            }
        }
    }
}

/// No line that one library makes is one the other makes, also where two ideas change the same line one after another.
#[test]
fn the_libraries_share_no_line() {
    let (held_in, held_out) = (Library::held_in().unwrap(), Library::held_out().unwrap());
    for (ours, others) in [(&held_in, &held_out), (&held_out, &held_in)] {
        for task in tasks() {
            let base = script(&task);
            let edits = others.applicable(base);
            let theirs: BTreeSet<&str> = edits.iter().flat_map(|e| e.replace.lines()).collect();
            let is_clean = !others.is_used_in(base);
            for first in ours.applicable(base) {
                let shared = first.replace.lines().find(|line| theirs.contains(line));
                assert_eq!(shared, None, "{}: {}", task.name, first.idea.name);
                let once = apply(&first, base);
                for second in ours.applicable(&once).iter().filter(|e| e.search == first.search && is_clean) {
                    let names = (&first.idea.name, &second.idea.name);
                    assert!(!others.is_used_in(&apply(second, &once)), "{}: {names:?}", task.name);
                }
            }
        }
    }
}

#[test]
fn a_library_knows_its_own_lines() {
    for library in [Library::held_in().unwrap(), Library::held_out().unwrap()] {
        for task in tasks() {
            for edit in library.applicable(script(&task)) {
                assert!(library.is_used_in(&apply(&edit, script(&task))), "{}: {}", task.name, edit.idea.name);
            }
        }
    }
}

#[test]
fn selections_on_a_line_of_points() {
    let points: Vec<Vec<f32>> = [0.0, 1.0, 2.0, 3.0, 10.0].iter().map(|&x| vec![x, 0.0]).collect();
    // Sums of distances: 16, 13, 12, 13, 34.
    assert_eq!(mean_distance(&points, 3), [4, 0, 1]);
    // From 10 the farthest is 0; then 3 is 3 away from 0 and 7 from 10; then 1 and 2 are both 1 from a chosen one.
    assert_eq!(farthest_point(&points, 4), [4, 0, 3, 1]);
    assert_eq!(farthest_point(&points, 9).len(), 5);
    assert!(farthest_point(&points, 0).is_empty() && farthest_point(&[], 3).is_empty());
    // Two clusters far apart: v1 takes the smaller one twice, v2 one of each.
    let clusters: Vec<Vec<f32>> = [0.0, 0.1, 0.2, 9.0, 9.1].iter().map(|&x| vec![x]).collect();
    assert_eq!(mean_distance(&clusters, 2), [4, 3]);
    assert_eq!(farthest_point(&clusters, 2), [4, 0]);
}

#[test]
fn equal_points_are_all_taken_once() {
    assert_eq!(farthest_point(&vec![vec![1.0]; 3], 3), [0, 1, 2]);
}

#[test]
fn embeddings_are_unit_length_and_close_for_shared_words() {
    let [a, b, c] = ["Grow 20 trees.", "Grow 80 trees.", "Fit naive Bayes on counts."].map(embed);
    let dot = |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(a, b)| a * b).sum::<f32>();
    // A sum of at most 512 products, each rounded to 2^-24 of at most 1.
    let rounding = 512.0 * 2.0_f32.powi(-24);
    assert!((dot(&a, &a) - 1.0).abs() < rounding);
    assert!(dot(&a, &b) > 0.5 && dot(&a, &c) < 0.5, "{} {}", dot(&a, &b), dot(&a, &c));
    assert_eq!(a, embed("grow 20 trees"));
    assert_eq!(dot(&embed(""), &embed("")), 0.0);
}

#[test]
fn selection_keeps_diverse_ideas() {
    let library = Library::held_in().unwrap();
    assert_eq!(library.select(Selection::MeanDistance(10)).ideas.len(), 10);
    let diverse = library.select(Selection::FarthestPoint(10));
    assert_eq!(unique_names(&diverse.ideas).into_iter().collect::<Vec<_>>(), Axis::ALL.map(|axis| (axis, 10)));
    let families = |ideas: &[onestep::ideas::Idea]| {
        ideas.iter().filter(|i| i.axis == Axis::Data).map(|i| i.family.clone()).collect::<BTreeSet<_>>().len()
    };
    // The first ten ideas on the data axis are all about rows.
    assert_eq!(families(&library.ideas[..10]), 1);
    assert!(families(&diverse.ideas) >= 4, "{}", families(&diverse.ideas));
}

#[test]
fn draws_take_one_to_three_axes_in_every_order() {
    let library = Library::held_in().unwrap();
    let tasks = tasks();
    let mut rng = Philox::new(5, 0);
    let orders: BTreeSet<Vec<Axis>> = (0..1000).map(|_| draw_axes(&mut rng)).collect();
    assert_eq!(orders.len(), 3 + 6 + 6);
    let mut seen = BTreeSet::new();
    for task in tasks.iter().filter(|t| !t.held_out) {
        for _ in 0..200 {
            let ideas = draw(&library, script(task), &mut rng);
            assert!((1..=3).contains(&ideas.len()));
            assert_eq!(unique_names(ideas.iter().copied()).len(), ideas.len(), "one idea of an axis");
            seen.extend(ideas.iter().map(|idea| idea.name.clone()));
        }
    }
    // A hundred ideas of each of six tasks, 400 draws a task: most of the library must come up.
    assert!(seen.len() > library.ideas.len() / 2, "{}", seen.len());
    let none = draw_one(&library, "print(1)\n", Axis::Data, &mut rng);
    assert!(none.is_none());
}

#[test]
fn an_idea_applies_to_one_line_of_the_right_kind() {
    let toml = r#"
        [[idea]]
        axis = "learning"
        family = "C"
        name = "C=1"
        text = "Set C to 1."
        line = "model = "
        find = '\bC=[\d.]+'
        replace = "C=1"
        kind = "classification"
    "#;
    let library = Library::parse(toml, "test").unwrap();
    let replaced = |script: &str| library.applicable(script).first().map(|e| (e.search.clone(), e.replace.clone()));
    let patch = |a: &str, b: &str| Some((a.to_string(), b.to_string()));
    assert_eq!(replaced("x = 1\nmodel = SVC(C=9)\n"), patch("model =", "model = SVC(C=1)"));
    assert_eq!(replaced("model = SVC(C=1)\n"), None, "it would change nothing");
    assert_eq!(replaced("model = SVR(C=9)\n"), None, "a regressor");
    assert_eq!(replaced("model = KNN()\n"), None, "nothing to find");
    assert_eq!(replaced("model = SVC(C=9)\nmodel = SVC(C=8)\n"), None, "two such lines");
    assert_eq!(replaced("model = SVC(C=9)\nmodel =SVC()\nmodel =\n"), patch("model = SVC(C=9)", "model = SVC(C=1)"));
}

#[test]
fn bad_libraries_are_refused_with_their_place() {
    let good = "[[idea]]\naxis = \"data\"\nfamily = \"rows\"\nname = \"rows=5\"\ntext = \"Few rows.\"\n\
                line = \"n = \"\nreplace = \"n = 5\"\n";
    assert_eq!(Library::parse(good, "good.toml").unwrap().ideas.len(), 1);
    let cases = [
        (good.replace("axis = \"data\"", "axis = \"speed\""), "speed"),
        (good.replace("text = \"Few rows.\"\n", ""), "text"),
        (format!("{good}surprise = 1\n"), "surprise"),
        (format!("{good}{good}"), "rows=5"),
        (good.replace("Few rows.", "Few\\nrows."), "rows=5"),
        (good.replace("line = \"n = \"", "line = \"\""), "rows=5"),
        (format!("{good}find = '('\n"), "rows=5"),
        ("idea = []".to_string(), "[[idea]]"),
    ];
    for (text, place) in cases {
        let error = Library::parse(&text, "bad.toml").unwrap_err();
        assert_eq!(error.kind(), Kind::Content);
        assert!(error.to_string().contains("bad.toml") && error.to_string().contains(place), "{error}");
    }
    let missing = Library::load(Path::new("/nowhere/ideas.toml")).unwrap_err();
    assert_eq!(missing.exit_code(), 2);
    assert!(missing.to_string().contains("/nowhere/ideas.toml"));
}
