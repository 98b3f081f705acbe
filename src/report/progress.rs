//! Progress of anything that takes a while, on standard error only: standard output belongs to results.

use super::Line;
use super::talk::{Talk, talk};
use indicatif::{BinaryBytes, HumanCount, HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;
use std::io::Write;
use std::time::{Duration, Instant};

/// Plain lines come when this much of the work has passed since the last one ...
const SHARE: f64 = 0.05;
/// ... but not more often than this ...
const AT_MOST: Duration = Duration::from_secs(1);
/// ... and at the latest after this long.
const AT_LEAST: Duration = Duration::from_secs(10);

/// How far some work is: a bar on a terminal, lines at a sensible distance anywhere else.
pub struct Progress {
    sink: Sink,
}

enum Sink {
    Silent,
    Bar(ProgressBar),
    Lines(Lines),
}

impl Progress {
    /// Progress of work of `total` units (0: unknown), called `label`. `quiet` shows nothing.
    pub fn new(label: &str, total: u64, quiet: bool) -> Self {
        let target = ProgressDrawTarget::stderr();
        if quiet || talk() == Talk::Errors {
            Self { sink: Sink::Silent }
        } else if target.is_hidden() {
            Self::to_writer(label, total, Box::new(std::io::stderr()))
        } else {
            Self { sink: Sink::Bar(bar(label, total, target)) }
        }
    }

    /// Progress as plain lines written to `out`.
    pub fn to_writer(label: &str, total: u64, out: Box<dyn Write + Send>) -> Self {
        let lines = Lines {
            label: label.to_string(),
            total,
            out,
            started: Instant::now(),
            first: 0,
            shown: (0, Duration::ZERO),
            latest: 0,
            message: String::new(),
        };
        Self { sink: Sink::Lines(lines) }
    }

    /// Work that goes on at `position`; the remaining time is then estimated from what follows.
    pub fn starting_at(mut self, position: u64) -> Self {
        match &mut self.sink {
            Sink::Silent => {}
            Sink::Bar(bar) => {
                bar.set_position(position);
                bar.reset_eta();
            }
            Sink::Lines(lines) => lines.start_at(position),
        }
        self
    }

    /// Says that `position` units are done, with a few words on how it goes.
    pub fn tick(&mut self, position: u64, message: impl FnOnce() -> String) {
        match &mut self.sink {
            Sink::Silent => {}
            Sink::Bar(bar) => {
                let message = message();
                bar.set_message(if message.is_empty() { message } else { format!("· {message}") });
                bar.set_position(position);
            }
            Sink::Lines(lines) => lines.tick(position, message()),
        }
    }

    /// Shows a line of its own, above the bar if there is one. Not shown when quiet.
    pub fn note(&mut self, line: &str) {
        match &mut self.sink {
            Sink::Silent => {}
            Sink::Bar(bar) => bar.println(line),
            Sink::Lines(lines) => lines.print(line),
        }
    }

    /// Ends the display; the last state stays visible.
    pub fn finish(&mut self) {
        match &mut self.sink {
            Sink::Silent => {}
            Sink::Bar(bar) => {
                bar.set_style(style(DONE));
                bar.abandon();
            }
            Sink::Lines(lines) => lines.finish(),
        }
    }
}

const RUNNING: &str = "{prefix:.bold} {bar:20.cyan} {pos}/{len} · {eta} left {wide_msg}";
const ENDLESS: &str = "{prefix:.bold} {spinner} {pos} · {elapsed} {wide_msg}";
const DONE: &str = "{prefix:.bold} {pos} in {elapsed} {wide_msg}";

/// The templates are constants, so the default style is never what is shown.
fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("━━─")
}

fn bar(label: &str, total: u64, target: ProgressDrawTarget) -> ProgressBar {
    let bar = ProgressBar::with_draw_target((total > 0).then_some(total), target)
        .with_style(style(if total > 0 { RUNNING } else { ENDLESS }))
        .with_prefix(label.to_string());
    bar.enable_steady_tick(Duration::from_millis(500));
    bar
}

/// The plain-text display.
struct Lines {
    label: String,
    total: u64,
    out: Box<dyn Write + Send>,
    started: Instant,
    /// Where this process began.
    first: u64,
    /// Position and time of the last line.
    shown: (u64, Duration),
    /// What was last ticked.
    latest: u64,
    message: String,
}

impl Lines {
    fn start_at(&mut self, position: u64) {
        (self.first, self.latest) = (position, position);
        self.shown = (position, self.started.elapsed());
    }

    fn tick(&mut self, position: u64, message: String) {
        let now = self.started.elapsed();
        (self.latest, self.message) = (position, message);
        if due(position.saturating_sub(self.shown.0), now.saturating_sub(self.shown.1), self.total) {
            self.show(now);
        }
    }

    fn finish(&mut self) {
        if self.latest != self.shown.0 {
            self.show(self.started.elapsed());
        }
    }

    /// Prints where the work stands, `now` being the time since it began.
    fn show(&mut self, now: Duration) {
        let (position, total) = (self.latest, self.total);
        let mut line = format!("{}: {position}", self.label);
        if total > 0 {
            line += &format!("/{total} ({:.0} %)", 100.0 * position as f64 / total as f64);
        }
        let (done, left) = (position.saturating_sub(self.first), total.saturating_sub(position));
        if done > 0 && left > 0 {
            let seconds = now.as_secs_f64() * left as f64 / done as f64;
            let remaining = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
            line += &format!(", {} left", HumanDuration(remaining));
        }
        if !self.message.is_empty() {
            line += &format!(": {}", self.message);
        }
        self.print(&line);
        self.shown = (position, now);
    }

    /// A progress line that cannot be written is no reason to stop the work.
    fn print(&mut self, line: &str) {
        let _ = writeln!(self.out, "{line}").and_then(|()| self.out.flush());
    }
}

/// Whether a line is due after `advanced` of `total` units and `waited` since the last one.
fn due(advanced: u64, waited: Duration, total: u64) -> bool {
    let share = if total == 0 { 0.0 } else { advanced as f64 / total as f64 };
    waited >= AT_LEAST || (waited >= AT_MOST && share >= SHARE)
}

/// The few words of a training step, from its line of the metrics log: loss of each task, gates, speed,
/// memory.
pub fn training_message(line: &Line) -> String {
    let find = |name: &str| line.get(name).and_then(Value::as_f64);
    let family = |prefix: &str| {
        let members =
            line.iter().filter_map(|(key, value)| Some((key.strip_prefix(prefix)?, value.as_f64()?)));
        members.map(|(task, value)| format!("{task} {value:.3}")).collect::<Vec<_>>().join(" ")
    };
    let (losses, gates) = (family("loss."), family("gate."));
    let mut parts = Vec::new();
    if !losses.is_empty() {
        parts.push(format!("loss {losses}"));
    } else if let Some(loss) = find("loss") {
        parts.push(format!("loss {loss:.3}"));
    }
    if !gates.is_empty() {
        parts.push(format!("gates {gates}"));
    }
    if let Some(rate) = find("tokens_per_second") {
        parts.push(format!("{} tok/s", HumanCount(rate.round() as u64)));
    }
    if let Some(bytes) = find("memory_bytes") {
        parts.push(BinaryBytes(bytes as u64).to_string());
    }
    parts.join(" · ")
}
