//! Shows the progress of long work: a bar on a terminal, else a line with the same words on stderr now and then.

use crate::console::errln;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Shortest time between two lines without a terminal. The first and the last step always get a line.
const INTERVAL: Duration = Duration::from_secs(15);

/// The progress of one phase.
pub struct Progress {
    label: String,
    total: usize,
    /// Steps done when this process began.
    start: usize,
    at: usize,
    tokens: usize,
    begun: Instant,
    /// `None` without a terminal.
    bar: Option<ProgressBar>,
    last_line: Option<Instant>,
    /// The newest line that was not printed.
    pending: Option<String>,
}

impl Progress {
    /// Creates the progress of `label` over `total` steps, of which an earlier process has done `done`.
    pub fn new(label: impl Into<String>, total: usize, done: usize) -> Self {
        let label = label.into();
        let bar = std::io::stderr().is_terminal().then(|| bar(total, done, &label));
        Self {
            label,
            total,
            start: done,
            at: done,
            tokens: 0,
            begun: Instant::now(),
            bar,
            last_line: None,
            pending: None,
        }
    }

    /// Reports that step `step` (from 1) is done: it took `tokens` tokens (0: not counted), with the result `what`, for
    /// example `loss 1.234`.
    pub fn advance(&mut self, step: usize, tokens: usize, what: &str) {
        self.at = step;
        self.tokens += tokens;
        let words = self.words(what, self.begun.elapsed());
        match &self.bar {
            Some(bar) => {
                bar.set_message(words);
                bar.set_position(step as u64);
            }
            None => {
                let line = format!("{} step {step} of {}: {words}", self.label, self.total);
                let is_due = self.last_line.is_none_or(|at| at.elapsed() >= INTERVAL) || step >= self.total;
                self.pending = Some(line);
                if is_due {
                    self.print_pending();
                }
            }
        }
    }

    /// The result of a step, tokens per second, and the time left (after the last step, the time taken).
    fn words(&self, what: &str, elapsed: Duration) -> String {
        let (seconds, done) = (elapsed.as_secs_f64(), self.at.saturating_sub(self.start));
        let mut words = vec![what.to_string()];
        if self.tokens > 0 && seconds > 0.0 {
            words.push(format!("{:.0} tokens/s", self.tokens as f64 / seconds));
        }
        words.push(match self.total.saturating_sub(self.at) {
            0 => format!("took {}", time(seconds)),
            left => format!("{} left", time(seconds / done.max(1) as f64 * left as f64)),
        });
        words.retain(|word| !word.is_empty());
        words.join(", ")
    }

    fn print_pending(&mut self) {
        if let Some(line) = self.pending.take() {
            errln!("{line}");
            self.last_line = Some(Instant::now());
        }
    }

    /// Prints a line on stderr beside the bar.
    pub fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| errln!("{line}")),
            None => errln!("{line}"),
        }
    }

    /// Ends the display, maybe in fewer steps than planned: removes the bar, or prints the last step's line.
    pub fn finish(mut self) {
        self.print_pending();
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn bar(total: usize, done: usize, label: &str) -> ProgressBar {
    let bar = ProgressBar::new(total as u64).with_prefix(label.to_string());
    if let Ok(style) = ProgressStyle::with_template("{prefix:>10} [{bar:30}] {pos}/{len} {msg}") {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_position(done as u64);
    bar
}

/// Formats seconds in the two largest units: `45 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`.
fn time(seconds: f64) -> String {
    let s = seconds.round() as u64;
    match s {
        0..60 => format!("{s} s"),
        60..3600 => format!("{} min {} s", s / 60, s % 60),
        3600..86400 => format!("{} h {} min", s / 3600, s / 60 % 60),
        _ => format!("{} d {} h", s / 86400, s / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_name_rate_and_time_left() {
        let mut progress = Progress::new("sft", 100, 20);
        (progress.at, progress.tokens) = (30, 5000);
        assert_eq!(progress.words("loss 1.5", Duration::from_secs(10)), "loss 1.5, 500 tokens/s, 1 min 10 s left");
        (progress.at, progress.tokens) = (100, 0);
        assert_eq!(progress.words("", Duration::from_secs(7384)), "took 2 h 3 min");
        assert_eq!(time(187_000.0), "2 d 3 h");
    }
}
