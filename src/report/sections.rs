//! The sections of the page about numbers: scores, training curves, evaluation, time, settings. viewer.rs has the
//! trajectories.

use super::html::{escape, fixed, number};
use super::run::Run;
use super::svg::{self, Dot, Frame, Layer, Series};
use crate::evaluate::{self, Evaluation, Mean};
use serde_json::Value;
use std::collections::BTreeSet;

/// Cases with their colour classes, in the order in which they are stacked, from the bottom up.
const CASES: [(&str, usize); 5] = [("edit", 2), ("neutral", 6), ("corner", 4), ("error", 1), ("invalid", 3)];
const PHASES: [(&str, usize); 3] = [("generate", 0), ("sandbox", 1), ("update", 2)];
const CHART: (f64, f64) = (500.0, 210.0);

/// Colour class of a case.
pub fn case_colour(case: &str) -> usize {
    CASES.iter().find(|c| c.0 == case).map_or(6, |c| c.1)
}

/// Policies in the order in which a run makes them (key, name on the page, colour class, evaluation), then any others.
fn policies(run: &Run) -> Vec<(&str, String, usize, &Evaluation)> {
    let Some(evaluations) = &run.evaluations else { return Vec::new() };
    let known = [("base", "base", 6), ("sft", "after SFT", 0), ("rl", "after RL", 2)];
    let mut all: Vec<_> = known
        .iter()
        .filter_map(|&(key, name, colour)| Some((key, name.to_string(), colour, evaluations.policies.get(key)?)))
        .collect();
    let others = evaluations.policies.iter().filter(|(key, _)| !known.iter().any(|k| k.0 == key.as_str()));
    all.extend(others.enumerate().map(|(i, (key, e))| (key.as_str(), key.clone(), [4, 5, 7, 8, 1, 3][i % 6], e)));
    all
}

fn legend(entries: impl IntoIterator<Item = (String, usize)>) -> String {
    let entry = |(name, colour): (String, usize)| format!(r#"<span><i class="c{colour}"></i>{}</span>"#, escape(&name));
    format!(r#"<div class="legend">{}</div>"#, entries.into_iter().map(entry).collect::<String>())
}

fn figure(title: &str, note: &str, legend: &str, svg: &str) -> String {
    let note = if note.is_empty() { String::new() } else { format!(r#"<span class="note">{}</span>"#, escape(note)) };
    format!("<figure><figcaption><h3>{}</h3>{note}{legend}</figcaption>{svg}</figure>", escape(title))
}

/// A section of figures; when all are missing, a note that they need `missing`.
fn grid(figures: Vec<Option<String>>, missing: &str) -> String {
    let drawn: String = figures.into_iter().flatten().collect();
    if drawn.is_empty() { absent(missing) } else { format!(r#"<div class="grid">{drawn}</div>"#) }
}

/// The note in place of a section without data.
pub fn absent(what: &str) -> String {
    format!(r#"<p class="note">Not in this run: {}.</p>"#, escape(what))
}

/// Normalised scores with intervals: base, after SFT, after RL.
pub fn headline(run: &Run) -> String {
    let policies = policies(run);
    let means = policies.iter().flat_map(|p| [p.3.held_in, p.3.held_out]).flatten();
    let range: Vec<f64> = means.flat_map(|m| [m.low, m.high]).collect();
    let set = |title: &str, key: &str, of: fn(&Evaluation) -> Option<Mean>| {
        let scores: Vec<_> = policies.iter().filter_map(|p| Some((p.1.clone(), p.2, of(p.3)?))).collect();
        let big: String = scores
            .iter()
            .map(|(name, colour, mean)| {
                let interval = format!("{name} [{}, {}]", fixed(mean.low, 2), fixed(mean.high, 2));
                let score = fixed(mean.normalised, 3);
                format!(r#"<div class="c{colour}"><b>{score}</b><span>{}</span></div>"#, escape(&interval))
            })
            .collect();
        let dot = |(name, colour, mean): &(String, usize, Mean)| {
            let interval = Some((mean.low, mean.high));
            (name.clone(), vec![Dot { colour: *colour, name: String::new(), value: mean.normalised, interval }])
        };
        let rows: Vec<_> = scores.iter().map(dot).collect();
        let svg = svg::dots(title, (CHART.0, 74.0), "normalised score", &range, &rows)?;
        let difference = run.evaluations.as_ref().and_then(|e| e.differences.get("rl - sft")?.get(key));
        let note = difference.map_or(String::new(), |d| {
            let (low, high) = (fixed(d.low, 3), fixed(d.high, 3));
            format!("RL minus SFT: {} [{low}, {high}]", fixed(d.normalised, 3))
        });
        Some(figure(title, &note, &format!(r#"<div class="scores">{big}</div>"#), &svg))
    };
    let figures = vec![
        set("Held-in tasks", "held_in", |e| e.held_in),
        set("Held-out tasks, never trained on", "held_out", |e| e.held_out),
    ];
    let intro = r#"<p class="note">0 is the task's baseline script, 1 the best stated for it. Mean over tasks of the final state, with 95 % bootstrap intervals.</p>"#;
    intro.to_string() + &grid(figures, "scores (evaluation.json, which quickstart and eval write)")
}

/// The values of `key` in the records of a phase that have it, with their steps.
fn column<'a>(run: &'a Run, phase: &'a str, key: &'a str) -> impl Iterator<Item = (f64, &'a Value)> {
    let of_phase = run.metrics.iter().filter(move |r| r["phase"] == phase && r.get(key).is_some());
    of_phase.filter_map(move |r| Some((r["step"].as_f64()?, &r[key])))
}

fn points(run: &Run, phase: &str, key: &str) -> Vec<(f64, f64)> {
    column(run, phase, key).map(|(step, v)| (step, v.as_f64().unwrap_or(f64::NAN))).collect()
}

/// A figure of some curves of a phase; `keys` holds (key, name, colour class).
fn curves(
    run: &Run,
    phase: &str,
    title: &str,
    note: &str,
    keys: &[(&str, &str, usize)],
    frame: &Frame,
) -> Option<String> {
    let series: Vec<Series> = keys
        .iter()
        .map(|&(key, name, colour)| Series { name, colour, points: points(run, phase, key) })
        .filter(|s| s.points.iter().any(|p| p.1.is_finite()))
        .collect();
    let svg = svg::lines(title, frame, &series)?;
    let names = series.iter().map(|s| (s.name.to_string(), s.colour));
    let legend = if series.len() > 1 { legend(names) } else { String::new() };
    Some(figure(title, note, &legend, &svg))
}

/// A figure of stacked columns from an object per step. Layers not among `known` follow in the order of their names.
fn stack(run: &Run, key: &str, title: &str, note: &str, known: &[(&str, usize)], frame: &Frame) -> Option<String> {
    let rows: Vec<(f64, &Value)> = column(run, "rl", key).collect();
    let names: BTreeSet<&str> =
        rows.iter().filter_map(|(_, row)| row.as_object()).flatten().map(|(name, _)| name.as_str()).collect();
    let mut order: Vec<(&str, usize)> = known.iter().copied().filter(|(name, _)| names.contains(name)).collect();
    let others = names.iter().filter(|name| !known.iter().any(|k| k.0 == **name));
    let free: Vec<usize> =
        [6, 1, 4, 5, 7, 8, 0, 2, 3].into_iter().filter(|c| !known.iter().any(|k| k.1 == *c)).collect();
    order.extend(others.enumerate().map(|(i, &name)| (name, free.get(i % free.len().max(1)).copied().unwrap_or(6))));
    let layers: Vec<Layer> = order
        .iter()
        .map(|&(name, colour)| {
            let heights = rows.iter().map(|(_, row)| row[name].as_f64().unwrap_or(0.0)).collect();
            Layer { name, colour, heights }
        })
        .collect();
    let xs: Vec<f64> = rows.iter().map(|r| r.0).collect();
    let svg = svg::stacked(title, frame, &xs, &layers)?;
    Some(figure(title, note, &legend(order.iter().map(|&(n, c)| (n.to_string(), c))), &svg))
}

/// Charts of reward, cases, actions and reply length.
pub fn reward(run: &Run) -> String {
    let frame = Frame { size: CHART, x_label: "RL step", include: &[0.0], limits: &[] };
    let share = Frame { size: CHART, x_label: "RL step", include: &[1.0], limits: &[] };
    let keys = [("reward", "all steps", 0), ("edit_reward", "case edit only", 2)];
    let note = "A policy that only learns the format raises the first curve, not the second.";
    let action = [("Edit Script", 2), ("Execute Script", 0), ("Invalid", 3)];
    grid(
        vec![
            curves(run, "rl", "Mean reward of a step", note, &keys, &frame),
            stack(run, "cases", "What steps led to", "Share of the samples of a step, by case.", &CASES, &share),
            stack(run, "actions", "What the agent did", "Share of the samples of a step, by action.", &action, &share),
            curves(run, "rl", "Length of a reply", "Mean tokens.", &[("reply_tokens", "tokens", 0)], &frame),
        ],
        "reinforcement learning (phase rl of metrics.jsonl)",
    )
}

/// Mean reward by task, one small chart each on its own axis.
pub fn by_task(run: &Run) -> String {
    let rows: Vec<(f64, &Value)> = column(run, "rl", "by_task").collect();
    let tasks: BTreeSet<&String> =
        rows.iter().filter_map(|r| r.1.as_object()).flatten().map(|(task, _)| task).collect();
    let frame = Frame { size: (260.0, 130.0), x_label: "", include: &[0.0], limits: &[] };
    let drawn: String = tasks
        .iter()
        .filter_map(|task| {
            let points = rows.iter().map(|(x, row)| (*x, row[task.as_str()].as_f64().unwrap_or(f64::NAN))).collect();
            let svg = svg::lines(task, &frame, &[Series { name: task, colour: 0, points }])?;
            Some(figure(task, "", "", &svg))
        })
        .collect();
    if drawn.is_empty() {
        return absent("reward by task (phase rl of metrics.jsonl)");
    }
    let note = "Mean reward of a step over RL steps. 0 is no change; 1 closes the whole gap between baseline and best.";
    format!(r#"<p class="note">{note}</p><div class="grid small">{drawn}</div>"#)
}

/// Charts of PPO's diagnostics.
pub fn optimisation(run: &Run) -> String {
    let free = Frame { size: CHART, x_label: "RL step", include: &[0.0], limits: &[] };
    let limits = [(0.005, "expected below 0.005"), (0.01, "a run stops at 0.01")];
    let gauge = Frame { size: CHART, x_label: "RL step", include: &[0.0], limits: &limits };
    let one = |key, title, note, colour| curves(run, "rl", title, note, &[(key, title, colour)], &free);
    let loss = [("policy_loss", "policy", 0), ("value_loss", "value", 1)];
    let highest = points(run, "rl", "gauge").iter().map(|p| p.1).fold(f64::NAN, f64::max);
    let gauge_note =
        format!("Mean |log p(engine) \u{2212} log p(trainer)| of sampled tokens; highest {}.", number(highest));
    grid(
        vec![
            one("kl", "KL to the SFT policy", "Mean over sampled tokens.", 0),
            one("entropy", "Entropy", "Mean over sampled tokens, nats.", 0),
            one("clip_fraction", "Clip fraction", "Share of tokens whose ratio was clipped.", 0),
            one("grad_norm", "Gradient norm", "Before clipping.", 0),
            curves(run, "rl", "Gauge", &gauge_note, &[("gauge", "gauge", 0)], &gauge),
            curves(run, "rl", "Losses", "", &loss, &free),
            one("explained_variance", "Explained variance of the critic", "", 0),
        ],
        "reinforcement learning (phase rl of metrics.jsonl)",
    )
}

/// Loss curves of supervised fine-tuning.
pub fn fine_tuning(run: &Run) -> String {
    let auto = Frame { size: CHART, x_label: "SFT step", include: &[], limits: &[] };
    let zero = Frame { size: CHART, x_label: "SFT step", include: &[0.0], limits: &[] };
    let keys = [("loss", "training", 0), ("validation_loss", "validation", 1)];
    grid(
        vec![
            curves(run, "sft", "Loss", "Mean negative log-probability of a reply's token, nats.", &keys, &auto),
            curves(run, "sft", "Gradient norm", "Before clipping.", &[("grad_norm", "norm", 0)], &zero),
        ],
        "supervised fine-tuning (phase sft of metrics.jsonl)",
    )
}

/// Scores of every task under every policy: a chart and a table.
pub fn evaluation(run: &Run) -> String {
    let policies = policies(run);
    let mut tasks: Vec<(bool, &String)> =
        policies.iter().flat_map(|p| p.3.tasks.iter().map(|(name, t)| (t.held_out, name))).collect();
    tasks.sort_unstable();
    tasks.dedup();
    if tasks.is_empty() {
        return absent("an evaluation (evaluation.json, which quickstart and eval write)");
    }
    let score = |task: &str, p: &Evaluation| p.tasks.get(task).map(|t| (t.normalised, Some((t.low, t.high))));
    let rows: Vec<(String, Vec<Dot>)> = tasks
        .iter()
        .map(|(held_out, task)| {
            let dots = policies.iter().filter_map(|(_, name, colour, p)| {
                let (value, interval) = score(task, p)?;
                Some(Dot { colour: *colour, name: name.clone(), value, interval })
            });
            let star = if *held_out { " *" } else { "" };
            (format!("{task}{star}"), dots.collect())
        })
        .collect();
    let chart =
        svg::dots("Normalised score by task", (1040.0, 190.0), "normalised score", &[], &rows).unwrap_or_default();
    let names = policies.iter().map(|p| (p.1.clone(), p.2));
    let chart = figure("Normalised score by task", "* never trained on", &legend(names), &chart);

    let mut body = String::new();
    for (i, (held_out, task)) in tasks.iter().enumerate() {
        if i == 0 || tasks[i - 1].0 != *held_out {
            let name = if *held_out { "held-out: never trained on" } else { "held-in" };
            body += &format!(r#"<tr class="set"><td colspan="10">{name}</td></tr>"#);
        }
        let scores: Vec<_> = policies.iter().filter_map(|p| Some((&p.1, p.2, p.3.tasks.get(*task)?))).collect();
        for (row, (policy, colour, t)) in scores.iter().enumerate() {
            let shared = if row == 0 {
                format!(
                    r#"<td rowspan="{n}">{}</td><td rowspan="{n}" class="left">{}</td><td rowspan="{n}">{}</td><td rowspan="{n}">{}</td>"#,
                    escape(task),
                    escape(&t.metric),
                    number(t.m_init),
                    number(t.m_best),
                    n = scores.len()
                )
            } else {
                String::new()
            };
            body += &format!(
                r#"<tr>{shared}<td class="left policy c{colour}">{}</td><td>{} <span class="muted">± {}</span></td><td>{}</td><td>{} %</td><td>{} <span class="muted">[{}, {}]</span></td><td>{} %</td></tr>"#,
                escape(policy),
                number(t.avg),
                number(t.std),
                number(t.best),
                fixed(100.0 * t.gain, 1),
                fixed(t.normalised, 3),
                fixed(t.low, 2),
                fixed(t.high, 2),
                number(100.0 * t.failed)
            );
        }
    }
    let flagged: String = run
        .evaluations
        .iter()
        .flat_map(evaluate::flagged)
        .map(|line| format!(r#"<p class="note below">{}</p>"#, escape(&line)))
        .collect();
    let heads = ["m_init", "m_best"].map(|h| format!("<th>{h}</th>")).concat();
    let scores = ["average", "best", "gain", "normalised", "failed"].map(|h| format!("<th>{h}</th>")).concat();
    format!(
        r#"{chart}<p></p><div class="table"><table><thead><tr><th>task</th><th class="left">metric</th>{heads}<th class="left">policy</th>{scores}</tr></thead><tbody>{body}</tbody></table></div>
        <p class="note below">Average (± standard deviation over trajectories) and best are of the final states, in the task's own metric. Gain is relative to the baseline's metric, positive where it is better. Failed is the share of trajectories whose final state was never graded. All are of the report split of the labels, which no reward saw.</p>{flagged}"#
    )
}

/// Where the time went.
pub fn time(run: &Run) -> String {
    let whole = run.summary.get("seconds").and_then(Value::as_object).and_then(|seconds| {
        let colours = [6, 7, 0, 1, 5, 2, 4, 8, 3];
        let parts =
            seconds.iter().filter_map(|(name, s)| Some((name, s.as_f64()?))).filter(|(name, _)| *name != "total");
        let parts: Vec<(String, usize, f64)> =
            parts.enumerate().map(|(i, (name, s))| (name.clone(), colours[i % 9], s)).collect();
        let total: f64 = parts.iter().map(|p| p.2).sum();
        let svg = svg::bar("Seconds by phase", 1040.0, &parts)?;
        let names = parts.iter().map(|(name, colour, s)| (format!("{name} {} s", number(*s)), *colour));
        Some(figure(&format!("The run: {} s", number(total)), "", &legend(names), &svg))
    });
    let sums: Vec<(String, usize, f64)> = PHASES
        .iter()
        .map(|&(name, colour)| {
            let sum = column(run, "rl", "seconds").filter_map(|(_, row)| row[name].as_f64()).sum();
            (name.to_string(), colour, sum)
        })
        .collect();
    let rl = svg::bar("Seconds of RL", 1040.0, &sums).map(|svg| {
        let names = sums.iter().map(|(name, colour, s)| (format!("{name} {} s", number(*s)), *colour));
        figure("Reinforcement learning: all steps together", "", &legend(names), &svg)
    });
    let frame = Frame { size: (1040.0, 190.0), x_label: "RL step", include: &[], limits: &[] };
    let steps = stack(run, "seconds", "Reinforcement learning: seconds of a step", "", &PHASES, &frame);
    let figures: String = [whole, rl, steps].into_iter().flatten().collect();
    if figures.is_empty() {
        return absent("times (summary.json, or phase rl of metrics.jsonl)");
    }
    format!(r#"<div class="rows">{figures}</div>"#)
}

/// The protection in force while the agent's code ran, as the run recorded it.
pub fn protection(run: &Run) -> String {
    match run.summary.get("protection") {
        None | Some(Value::Null) => absent("the protection in force (summary.json)"),
        Some(found) => {
            let items: Vec<String> = match found {
                Value::Object(map) => map.iter().flat_map(|(key, value)| items(Some(key), value)).collect(),
                other => items(None, other),
            };
            let rows: String = items.iter().map(|item| format!("<li>{}</li>", escape(item))).collect();
            format!(r#"<div class="card"><ul>{rows}</ul></div>"#)
        }
    }
}

/// One line for a value, several for a list.
fn items(key: Option<&str>, value: &Value) -> Vec<String> {
    let name = key.map_or(String::new(), |k| format!("{}: ", k.replace('_', " ")));
    match value {
        Value::Array(list) => list.iter().flat_map(|v| items(None, v)).collect(),
        Value::String(text) => vec![format!("{name}{text}")],
        Value::Bool(yes) => vec![format!("{name}{}", if *yes { "yes" } else { "no" })],
        other => vec![format!("{name}{other}")],
    }
}

/// The run's settings, folded.
pub fn configuration(run: &Run) -> String {
    match &run.config {
        None => absent("its configuration (config.toml)"),
        Some(text) => format!("<details><summary>config.toml</summary><pre>{}</pre><p></p></details>", escape(text)),
    }
}
