//! Idea library: one-line ideas on three axes, each with the rule that turns it into an exact edit of a script. Also
//! selects diverse ideas and draws those that an expert works from. It edits text and executes nothing.

use crate::environment::patch::line_start_patch;
use crate::error::{Error, Result};
use crate::rng::Philox;
use regex::Regex;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Axis of an idea (ML-Agent, arXiv 2505.23723: ideas along data, model and learning).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Axis {
    /// Rows, columns, features, vectorizers.
    Data,
    /// The estimator.
    Model,
    /// The settings of the script's estimator.
    Learning,
}

impl Axis {
    /// All three, in order.
    pub const ALL: [Axis; 3] = [Axis::Data, Axis::Model, Axis::Learning];
}

/// Kind of script that an idea makes sense for; decided from the script's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The model line holds an estimator that is not a regressor.
    Classification,
    /// The model line holds a regressor.
    Regression,
    /// The script turns text into columns.
    Text,
}

impl Kind {
    /// True when `script` is of this kind. A script without a model line is neither classification nor regression.
    pub fn holds(self, script: &str) -> bool {
        const REGRESSORS: [&str; 10] = [
            "Regressor",
            "Ridge(",
            "RidgeCV(",
            "Lasso",
            "Lars",
            "ElasticNet",
            "SVR",
            "LinearRegression",
            "ARDRegression",
            "MatchingPursuit",
        ];
        let model = script.lines().find_map(|line| line.strip_prefix("model = "));
        let regression = model.map(|m| REGRESSORS.iter().any(|r| m.contains(r)));
        match self {
            Kind::Classification => regression == Some(false),
            Kind::Regression => regression == Some(true),
            Kind::Text => script.lines().any(|line| line.starts_with("vec = ")),
        }
    }
}

/// How an idea changes a script: the one line it applies to, and the line's new text.
#[derive(Debug, Clone)]
pub struct Rule {
    /// Beginning of the line, for example `n = `; exactly one line of the script must begin like this.
    pub line: String,
    /// The part of the line that is replaced (its first match); the whole line when there is none.
    pub find: Option<Regex>,
    /// The replacement; `$1` or `${1}` is what the first group of `find` matched. May hold several lines.
    pub replace: String,
    /// Kind of script it is for; any when there is none.
    pub kind: Option<Kind>,
}

impl Rule {
    /// Finds the line of `script` that this rule is about. Returns its index and its new text, which may equal the old.
    fn rewrite(&self, script: &str) -> Option<(usize, String)> {
        let mut lines = script.split('\n').enumerate().filter(|(_, line)| line.starts_with(&self.line));
        let (Some((index, line)), None) = (lines.next(), lines.next()) else { return None };
        if self.kind.is_some_and(|kind| !kind.holds(script)) {
            return None;
        }
        match &self.find {
            None => Some((index, self.replace.clone())),
            Some(find) if find.is_match(line) => Some((index, find.replace(line, self.replace.as_str()).into_owned())),
            Some(_) => None,
        }
    }

    /// True when this rule can make `line`, whatever stood there before.
    fn makes(&self, line: &str) -> bool {
        match (&self.find, self.replace.strip_prefix("${1}")) {
            (None, _) => self.replace.lines().any(|made| made == line),
            (Some(_), Some(tail)) => line.starts_with(&self.line) && line.ends_with(tail),
            (Some(find), None) => {
                line.starts_with(&self.line) && find.is_match(line) && find.replace(line, self.replace.as_str()) == line
            }
        }
    }
}

/// One idea.
#[derive(Debug, Clone)]
pub struct Idea {
    /// Axis of the idea.
    pub axis: Axis,
    /// Unique in its library, for example `rows=100`.
    pub name: String,
    /// The idea in one line of plain words.
    pub text: String,
    /// The group it belongs to, such as `rows` or `model`: a draw picks a group first, then one idea of it.
    pub family: String,
    /// How it changes a script.
    pub rule: Rule,
}

impl Idea {
    /// Makes the idea an edit of `script`; `None` when it does not apply or would change nothing.
    pub fn edit(&self, script: &str) -> Option<Edit<'_>> {
        let (line, made) = self.rule.rewrite(script)?;
        let (search, replace) = line_start_patch(script, line, &made)?;
        Some(Edit { idea: self, line, search, replace })
    }
}

/// An idea as an exact line-start patch (see [`crate::environment::patch`]).
#[derive(Debug, Clone)]
pub struct Edit<'a> {
    /// The idea.
    pub idea: &'a Idea,
    /// Index of the line it changes, from 0.
    pub line: usize,
    /// Text that names exactly that line: its beginning, or the whole line.
    pub search: String,
    /// New text of that whole line.
    pub replace: String,
}

/// Ideas in the order of their file.
#[derive(Debug, Clone)]
pub struct Library {
    /// The ideas.
    pub ideas: Vec<Idea>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileFormat {
    idea: Vec<IdeaFormat>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct IdeaFormat {
    axis: Axis,
    family: String,
    name: String,
    text: String,
    line: String,
    find: Option<String>,
    replace: String,
    kind: Option<Kind>,
}

impl Library {
    /// Loads the bundled ideas that experts and the base model's exercises draw from.
    pub fn held_in() -> Result<Self> {
        Self::parse(include_str!("../data/ideas/held_in.toml"), "data/ideas/held_in.toml")
    }

    /// Loads the bundled ideas for the held-out tasks: no exercise and no expert of the training tasks ever uses one.
    pub fn held_out() -> Result<Self> {
        Self::parse(include_str!("../data/ideas/held_out.toml"), "data/ideas/held_out.toml")
    }

    /// Reads a library from a TOML file with one `[[idea]]` per idea.
    ///
    /// # Errors
    /// Content errors that name the file and the idea: unknown or missing keys, a repeated name, text of more than one
    /// line, a `find` that is not a regular expression; no idea at all.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io("reading ideas from", path, &e))?;
        Self::parse(&text, &path.display().to_string())
    }

    /// Reads a library from TOML text; `origin` names it in errors. The errors are those of [`Library::load`].
    pub fn parse(text: &str, origin: &str) -> Result<Self> {
        let file: FileFormat = toml::from_str(text).map_err(|e| Error::content(format!("{origin}: {e}")))?;
        let mut names = BTreeSet::new();
        let mut ideas = Vec::with_capacity(file.idea.len());
        for raw in file.idea {
            let wrong = |what: &str| Error::content(format!("{origin}: idea `{}`: {what}", raw.name));
            if !names.insert(raw.name.clone()) {
                return Err(wrong("its name is there twice; expected a unique name such as `rows=100`"));
            }
            if raw.text.is_empty() || raw.text.contains('\n') {
                return Err(wrong("expected `text` to be one line such as `Train on the first 100 rows.`"));
            }
            if raw.line.is_empty() || raw.line.contains('\n') {
                return Err(wrong("expected `line` to be how one line of the script begins, such as `n = `"));
            }
            let find = raw.find.as_deref().map(Regex::new).transpose().map_err(|e| {
                wrong(&format!("`find` is no regular expression, expected one such as `C=[0-9.]+`: {e}"))
            })?;
            let rule = Rule { line: raw.line, find, replace: raw.replace, kind: raw.kind };
            ideas.push(Idea { axis: raw.axis, name: raw.name, text: raw.text, family: raw.family, rule });
        }
        if ideas.is_empty() {
            return Err(Error::content(format!("{origin}: no idea in it; expected at least one [[idea]]")));
        }
        Ok(Self { ideas })
    }

    /// Returns every edit that the library offers on `script`, in the library's order; never one that changes nothing.
    pub fn applicable(&self, script: &str) -> Vec<Edit<'_>> {
        self.ideas.iter().filter_map(|idea| idea.edit(script)).collect()
    }

    /// True when an idea of this library can make a line of `script`. Exercises use it to avoid held-out ideas.
    pub fn is_used_in(&self, script: &str) -> bool {
        script.lines().any(|line| self.ideas.iter().any(|idea| idea.rule.makes(line)))
    }

    /// Returns the library with only its diverse ideas, in order of selection.
    pub fn select(&self, selection: Selection) -> Self {
        let chosen = match selection {
            Selection::MeanDistance(k) => mean_distance(&self.embeddings(|_| true).1, k),
            Selection::FarthestPoint(k) => Axis::ALL
                .iter()
                .flat_map(|&axis| {
                    let (places, points) = self.embeddings(|idea| idea.axis == axis);
                    farthest_point(&points, k).into_iter().map(move |i| places[i])
                })
                .collect(),
        };
        Self { ideas: chosen.into_iter().map(|i| self.ideas[i].clone()).collect() }
    }

    /// Returns the indices of the ideas that `keep` accepts, and the embeddings of their texts.
    fn embeddings(&self, keep: impl Fn(&Idea) -> bool) -> (Vec<usize>, Vec<Vec<f32>>) {
        let kept = self.ideas.iter().enumerate().filter(|(_, idea)| keep(idea));
        kept.map(|(i, idea)| (i, embed(&idea.text))).unzip()
    }
}

/// Method of selecting diverse ideas (ML-Agent, section 3.1; both of its versions).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Selection {
    /// v1: the k ideas of the whole library with the largest mean distance to the others.
    MeanDistance(usize),
    /// v2: farthest-point sampling of k ideas on each axis.
    FarthestPoint(usize),
}

/// Length of an embedding.
pub const EMBEDDING: usize = 512;

/// Embeds a text as counts of its words and of their three-character pieces, hashed into [`EMBEDDING`] places and
/// scaled to Euclidean length 1 (all zero without a word). It replaces the paper's embedding model: closeness is shared
/// wording, not shared meaning.
pub fn embed(text: &str) -> Vec<f32> {
    let mut v = vec![0.0_f32; EMBEDDING];
    let mut count = |piece: &str| {
        let hash = blake3::hash(piece.as_bytes());
        v[usize::from(u16::from_le_bytes([hash.as_bytes()[0], hash.as_bytes()[1]])) % EMBEDDING] += 1.0;
    };
    let lower = text.to_lowercase();
    for word in lower.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty()) {
        count(word);
        let padded: Vec<char> = format!("<{word}>").chars().collect();
        padded.windows(3).for_each(|three| count(&three.iter().collect::<String>()));
    }
    let norm = v.iter().map(|x| x * x).sum::<f32>().sqrt();
    if norm > 0.0 {
        v.iter_mut().for_each(|x| *x /= norm);
    }
    v
}

/// Computes the Euclidean distance of two embeddings.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(x, y)| f64::from(x - y).powi(2)).sum::<f64>().sqrt()
}

/// Returns the indices of the `k` points with the largest mean distance to all others, the largest first (all points
/// when there are fewer). Ties go to the first.
pub fn mean_distance(points: &[Vec<f32>], k: usize) -> Vec<usize> {
    let total: Vec<f64> = points.iter().map(|p| points.iter().map(|q| distance(p, q)).sum()).collect();
    let mut order: Vec<usize> = (0..points.len()).collect();
    order.sort_by(|&a, &b| total[b].total_cmp(&total[a]));
    order.truncate(k);
    order
}

/// Selects `k` points by farthest-point sampling and returns their indices (all points when there are fewer). It begins
/// with the point of the largest mean distance, then repeatedly takes the point whose nearest chosen point is farthest.
/// Ties go to the first.
pub fn farthest_point(points: &[Vec<f32>], k: usize) -> Vec<usize> {
    let mut chosen = mean_distance(points, k.min(1));
    let mut nearest = vec![f64::INFINITY; points.len()];
    while let Some(&last) = chosen.last().filter(|_| chosen.len() < k.min(points.len())) {
        let mut best: Option<usize> = None;
        for i in 0..points.len() {
            nearest[i] = nearest[i].min(distance(&points[i], &points[last]));
            if !chosen.contains(&i) && best.is_none_or(|b| nearest[i] > nearest[b]) {
                best = Some(i);
            }
        }
        chosen.extend(best);
    }
    chosen
}

/// Draws one idea of `axis` that changes `script`: first a family, then an idea of it, each with equal chance. `None`
/// when the axis has none.
pub fn draw_one<'a>(library: &'a Library, script: &str, axis: Axis, rng: &mut Philox) -> Option<Edit<'a>> {
    let mut families: BTreeMap<&str, Vec<Edit<'a>>> = BTreeMap::new();
    for edit in library.applicable(script).into_iter().filter(|e| e.idea.axis == axis) {
        families.entry(&edit.idea.family).or_default().push(edit);
    }
    let mut families: Vec<Vec<Edit<'a>>> = families.into_values().collect();
    if families.is_empty() {
        return None;
    }
    let mut family = families.swap_remove(rng.below(families.len()));
    let one = rng.below(family.len());
    Some(family.swap_remove(one))
}

/// Draws k ~ U{1,2,3} axes in random order (ML-Agent, section 3.1).
pub fn draw_axes(rng: &mut Philox) -> Vec<Axis> {
    let mut axes = Axis::ALL;
    rng.shuffle(&mut axes);
    axes[..=rng.below(3)].to_vec()
}

/// Draws the ideas of one episode: the axes of [`draw_axes`], and on each one idea that applies to the current
/// `script`. An axis on which nothing applies gives none. Once the script has changed, [`Idea::edit`] makes the next
/// idea an edit again.
pub fn draw<'a>(library: &'a Library, script: &str, rng: &mut Philox) -> Vec<&'a Idea> {
    let axes = draw_axes(rng);
    axes.into_iter().filter_map(|axis| draw_one(library, script, axis, rng)).map(|edit| edit.idea).collect()
}

/// Counts the distinct names of `ideas` on each axis, a measure of diversity; an axis without any is absent.
pub fn unique_names<'a>(ideas: impl IntoIterator<Item = &'a Idea>) -> BTreeMap<Axis, usize> {
    let mut names: BTreeMap<Axis, BTreeSet<&str>> = BTreeMap::new();
    for idea in ideas {
        names.entry(idea.axis).or_default().insert(&idea.name);
    }
    names.into_iter().map(|(axis, names)| (axis, names.len())).collect()
}
