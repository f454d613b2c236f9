//! Makes the base model's pre-training data: random scripts in the layouts of the bundled tasks, and indifferent
//! replies to them (a good edit is as likely as a crashing one). Nothing is executed; no held-out script or idea ever
//! appears.

mod layout;
mod tokenizer;

pub use layout::{Inputs, Layout};
pub use tokenizer::{save_tokenizer, train_tokenizer, vocab_size};

use crate::environment::action::{self, Action};
use crate::environment::patch::{self, line_start_patch};
use crate::environment::prompt::compact_text;
use crate::error::{Error, Result};
use crate::ideas::{Edit, Kind, Library};
use crate::rng::Philox;
use crate::task::Metric;
use regex::{Captures, Regex};
use std::collections::BTreeMap;

/// The baseline scripts of the held-out tasks: no exercise shows one.
const HELD_OUT_SCRIPTS: [&str; 6] = [
    include_str!("../data/tasks/friedman/train.py"),
    include_str!("../data/tasks/reviews/train.py"),
    include_str!("../data/tasks/roles/train.py"),
    include_str!("../data/tasks/sales/train.py"),
    include_str!("../data/tasks/shapes/train.py"),
    include_str!("../data/tasks/wine/train.py"),
];

const ENTRY: &str = "train.py";
const MODULES: [&str; 8] =
    ["linear_model", "ensemble", "svm", "neighbors", "preprocessing", "naive_bayes", "tree", "dummy"];
/// The variables that an exercise may rename.
const VARIABLES: [&str; 4] = ["n", "k", "lags", "hops"];

/// A prompt with replies to it, each of a sensible form; nothing says which is better.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exercise {
    /// The content of the single user message, laid out as the environment's compact prompt.
    pub prompt: String,
    /// Actions in the no-thought format, as text.
    pub replies: Vec<String>,
}

/// Source of exercises. An exercise depends only on the random stream it is drawn from.
#[derive(Debug)]
pub struct Exercises {
    held_in: Library,
    held_out: Library,
    /// Estimators of the held-in library, for classification and for regression.
    models: [Vec<String>; 2],
    number: Regex,
    setting: Regex,
    variable: Regex,
}

impl Exercises {
    /// Makes the exercises of the bundled base model.
    ///
    /// # Errors
    /// Content errors of the bundled libraries.
    pub fn bundled() -> Result<Self> {
        let held_in = Library::held_in()?;
        let models = [Kind::Classification, Kind::Regression].map(|kind| {
            let of_kind = held_in.ideas.iter().filter(|idea| idea.rule.kind == Some(kind));
            of_kind.filter_map(|idea| idea.rule.replace.strip_prefix("model = ")).map(str::to_string).collect()
        });
        let regex = |pattern: &str| Regex::new(pattern).map_err(|e| Error::system(format!("pattern {pattern}: {e}")));
        Ok(Self {
            held_in,
            held_out: Library::held_out()?,
            models,
            number: regex(r"\d[\d.]*")?,
            setting: regex(r"random_state=\d+|= ?\d[\d.]*")?,
            variable: regex(&format!(r"\b(?:{})\b", VARIABLES.join("|")))?,
        })
    }

    /// Draws one exercise with `replies` replies.
    pub fn draw(&self, rng: &mut Philox, replies: usize) -> Exercise {
        let (description, metric, script) = self.prompt_parts(rng);
        let names = new_names(&script, rng);
        let rename = |text: &str| -> String {
            let renamed = |c: &Captures| names.get(&c[0]).map_or(c[0].to_string(), String::clone);
            self.variable.replace_all(text, renamed).into_owned()
        };
        let shown = rename(&script);
        let direction = if metric.higher_is_better() { "higher" } else { "lower" };
        let last = observation(rng);
        let prompt = compact_text(&description, metric.name(), direction, ENTRY, &shown, &last);
        let replies = (0..replies).map(|_| self.reply(&script, &shown, &rename, rng)).collect();
        Exercise { prompt, replies }
    }

    /// Draws a reply to `shown`, which is `script` with its variables renamed.
    fn reply(&self, script: &str, shown: &str, rename: &dyn Fn(&str) -> String, rng: &mut Philox) -> String {
        let share = rng.uniform();
        if share >= 0.86 {
            return action::render(&other_action(rng));
        }
        loop {
            let idea = if share < 0.72 { self.idea_edit(script, rng) } else { None };
            let (line, made) = idea.unwrap_or_else(|| self.copy_edit(script, rng));
            // An edit is checked in the script's own names, then written in those of the prompt.
            if !self.is_allowed(&with_line(script, line, &made)) {
                continue;
            }
            if let Some((search, replace)) = line_start_patch(shown, line, &rename(&made)) {
                return action::render(&Action::EditScript { script_name: ENTRY.to_string(), search, replace });
            }
        }
    }

    /// Draws description, metric and script of a prompt. The script is not a held-out baseline, and no held-out idea
    /// makes a line of it.
    fn prompt_parts(&self, rng: &mut Philox) -> (String, Metric, String) {
        loop {
            let (description, metric, layout) = self.layout(rng);
            let mut script = layout.script();
            for _ in 0..*rng.choose(&[0, 0, 1, 2, 3]) {
                if let Some(edit) = self.any_edit(&script, rng) {
                    script = patch::apply(&script, &edit.search, &edit.replace).unwrap_or(script);
                }
            }
            if self.is_allowed(&script) {
                return (description, metric, script);
            }
        }
    }

    /// True when the base model may see `script`: it is not a held-out baseline, and no held-out idea makes a line of
    /// it.
    pub fn is_allowed(&self, script: &str) -> bool {
        !HELD_OUT_SCRIPTS.contains(&script) && !self.held_out.is_used_in(script)
    }

    /// Draws a random script's values, with a description and a metric that suit it.
    fn layout(&self, rng: &mut Philox) -> (String, Metric, Layout) {
        let is_regression = rng.uniform() < 0.4;
        let mut modules = MODULES;
        rng.shuffle(&mut modules);
        let modules = modules[..2 + rng.below(4)].join(", ");
        let (rows, columns) = (10 + rng.below(391), 1 + rng.below(60));
        let model = rng.choose(&self.models[usize::from(is_regression)]);
        let model = self.jitter(model, 0.6, rng);
        let (classes, metric) = match is_regression {
            true => (0, *rng.choose(&[Metric::Mae, Metric::Rmse])),
            false => (2 + rng.below(11), *rng.choose(&[Metric::Accuracy, Metric::LogLoss, Metric::Auc])),
        };
        let output = if matches!(metric, Metric::LogLoss | Metric::Auc) { "predict_proba" } else { "predict" };
        let (description, inputs) = match (is_regression, rng.below(4)) {
            (true, 0 | 1) => ("predict a number from rows".to_string(), Inputs::Columns(columns)),
            (true, _) => ("forecast a time series".to_string(), Inputs::History(1 + rng.below(29))),
            (false, 0) => (format!("classify rows, {classes} classes"), Inputs::Columns(columns)),
            (false, 1) => (format!("classify images, {classes} classes"), Inputs::Columns(columns)),
            (false, 2) => {
                let vectorizer = rng.choose(&["CountVectorizer", "TfidfVectorizer"]);
                let words = self.jitter(&format!("{vectorizer}(max_features={})", 5 + rng.below(496)), 0.6, rng);
                (format!("classify text, {classes} classes"), Inputs::Words(words))
            }
            (false, _) => {
                (format!("classify nodes of a graph, {classes} classes"), Inputs::Graph { columns, hops: rng.below(6) })
            }
        };
        (description, metric, Layout { modules, rows, inputs, model, output })
    }

    /// Draws a held-in idea that applies, each with equal chance; one in four gets random numbers.
    fn idea_edit(&self, script: &str, rng: &mut Philox) -> Option<(usize, String)> {
        let edit = self.any_edit(script, rng)?;
        let made = if rng.uniform() < 0.25 { self.jitter(&edit.replace, 1.0, rng) } else { edit.replace };
        Some((edit.line, made))
    }

    /// Tries ideas at random until one applies, which is cheaper than making all edits for one draw. `None` after 1000
    /// tries, which is enough for any script of ours.
    fn any_edit(&self, script: &str, rng: &mut Philox) -> Option<Edit<'_>> {
        (0..1000).find_map(|_| rng.choose(&self.held_in.ideas).edit(script))
    }

    /// Draws a line and makes its numbers random, or comments it out when it has none: practice in naming and copying a
    /// line.
    fn copy_edit(&self, script: &str, rng: &mut Philox) -> (usize, String) {
        let lines: Vec<(usize, &str)> = script.split('\n').enumerate().filter(|(_, line)| !line.is_empty()).collect();
        let &(index, line) = rng.choose(&lines);
        let made = self.number.replace_all(line, |_: &Captures| number(rng));
        (index, if made == line { format!("# {line}") } else { made.into_owned() })
    }

    /// Makes each number of `text` after an equals sign random with probability `share`; a `random_state` stays.
    fn jitter(&self, text: &str, share: f64, rng: &mut Philox) -> String {
        let random = |c: &Captures| {
            let name = c[0].trim_end_matches(|x: char| x.is_ascii_digit() || x == '.');
            let stays = name.starts_with("random_state") || rng.uniform() >= share;
            if stays { c[0].to_string() } else { format!("{name}{}", number(rng)) }
        };
        self.setting.replace_all(text, random).into_owned()
    }
}

/// Returns `script` with line `index` replaced by `made`.
fn with_line(script: &str, index: usize, made: &str) -> String {
    let lines = script.split('\n').enumerate().map(|(i, line)| if i == index { made } else { line });
    lines.collect::<Vec<_>>().join("\n")
}

/// Draws a number of a size that settings have.
fn number(rng: &mut Philox) -> String {
    match rng.below(5) {
        0 => (1 + rng.below(30)).to_string(),
        1 => (30 + rng.below(970)).to_string(),
        2 => format!("0.{}", 1 + rng.below(99)),
        3 => format!("0.0{}", 1 + rng.below(9)),
        _ => format!("0.00{}", 1 + rng.below(9)),
    }
}

/// Draws other names for some of the script's variables in two exercises of five, so that the model has to read
/// `search` and cannot remember it. A new name is not a word of the script.
fn new_names(script: &str, rng: &mut Philox) -> BTreeMap<&'static str, String> {
    let mut names = BTreeMap::new();
    if rng.uniform() >= 0.4 {
        return names;
    }
    let words: Vec<&str> = script.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
    for variable in VARIABLES {
        if rng.uniform() < 0.6 {
            let letter = *rng.choose(b"abcdefghmpqtuvw") as char;
            let tail = match rng.below(3) {
                0 => String::new(),
                1 => format!("_{}", *rng.choose(b"abcxyz") as char),
                _ => (*rng.choose(&["rows", "size", "cut", "top", "len"])).to_string(),
            };
            let name = format!("{letter}{tail}");
            if !words.contains(&name.as_str()) && !names.values().any(|taken| *taken == name) {
                names.insert(variable, name);
            }
        }
    }
    names
}

/// Makes up a last observation in the environment's compact form; nothing ran.
fn observation(rng: &mut Philox) -> String {
    match rng.below(6) {
        0 => "start".to_string(),
        1 | 2 => format!("Script ran. train score {}", (rng.uniform() * 150.0 - 50.0).round() / 100.0),
        3 => {
            let module = rng.choose(&MODULES);
            let failures = [
                format!("NameError: name '{module}' is not defined"),
                "ValueError: Input contains NaN.".to_string(),
                format!("AttributeError: module 'sklearn.{module}' has no attribute"),
                "search not found".to_string(),
                "no valid action".to_string(),
                "time limit".to_string(),
            ];
            format!("Undone. {}", rng.choose(&failures))
        }
        4 => (*rng.choose(&["data.npz train.py", "Nothing changed."])).to_string(),
        _ => "Shown.".to_string(),
    }
}

/// Draws an action that edits nothing; a copy is the rarest.
fn other_action(rng: &mut Philox) -> Action {
    let script_name = ENTRY.to_string();
    match rng.below(21) {
        0..5 => Action::ExecuteScript { script_name },
        5..10 => Action::ListFiles { dir_path: ".".to_string() },
        10..15 => Action::InspectScriptLines { script_name, start_line_number: 1, end_line_number: 20 },
        15..20 => Action::FinalAnswer { final_answer: "done".to_string() },
        _ => Action::CopyFile { source: script_name, destination: "old.py".to_string() },
    }
}
