//! Progress of anything that takes a while, on standard error only: standard output belongs to results.

use super::format::compact;
use indicatif::{HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{IsTerminal, Write};
use std::sync::{Mutex, PoisonError};
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
    Lines(Mutex<Lines>),
}

impl Progress {
    /// Progress of work of `total` units (0: unknown), called `label`. `quiet` shows nothing.
    pub fn new(label: &str, total: u64, quiet: bool) -> Self {
        let target = ProgressDrawTarget::stderr();
        let sink = if quiet {
            Sink::Silent
        } else if std::io::stderr().is_terminal() && !target.is_hidden() {
            Sink::Bar(bar(label, total, target))
        } else {
            return Self::to_writer(label, total, Box::new(std::io::stderr()));
        };
        Self { sink }
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
            latest: (0, String::new()),
        };
        Self { sink: Sink::Lines(Mutex::new(lines)) }
    }

    /// Work that goes on at `position`; the remaining time is then estimated from what follows.
    pub fn starting_at(self, position: u64) -> Self {
        match &self.sink {
            Sink::Silent => {}
            Sink::Bar(bar) => {
                bar.set_position(position);
                bar.reset_eta();
            }
            Sink::Lines(lines) => with(lines, |lines| {
                lines.first = position;
                lines.shown.0 = position;
                lines.latest.0 = position;
            }),
        }
        self
    }

    /// Says that `position` units are done, with a few words on how it goes.
    pub fn tick(&self, position: u64, message: &str) {
        match &self.sink {
            Sink::Silent => {}
            Sink::Bar(bar) => {
                bar.set_message(message.to_string());
                bar.set_position(position);
            }
            Sink::Lines(lines) => with(lines, |lines| lines.tick(position, message)),
        }
    }

    /// Shows a line of its own, above the bar if there is one. Not shown when quiet.
    pub fn say(&self, line: &str) {
        match &self.sink {
            Sink::Silent => {}
            Sink::Bar(bar) => bar.println(line),
            Sink::Lines(lines) => with(lines, |lines| lines.print(line)),
        }
    }

    /// Ends the display; the last state stays visible.
    pub fn finish(self) {
        match &self.sink {
            Sink::Silent => {}
            Sink::Bar(bar) => bar.abandon(),
            Sink::Lines(lines) => with(lines, Lines::finish),
        }
    }
}

fn bar(label: &str, total: u64, target: ProgressDrawTarget) -> ProgressBar {
    let template = match total {
        0 => "{prefix:.bold} {spinner} {pos} · {elapsed} · {wide_msg}",
        _ => "{prefix:.bold} {bar:20.cyan} {pos}/{len} · {eta} left · {wide_msg}",
    };
    // The templates are constants, so the default style is never what is shown.
    let style = ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("━━─");
    let bar = ProgressBar::with_draw_target((total > 0).then_some(total), target)
        .with_style(style)
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
    latest: (u64, String),
}

impl Lines {
    fn tick(&mut self, position: u64, message: &str) {
        let now = self.started.elapsed();
        self.latest = (position, message.to_string());
        if due(position - self.shown.0.min(position), now.saturating_sub(self.shown.1), self.total) {
            self.show(now);
        }
    }

    fn finish(&mut self) {
        if self.latest.0 != self.shown.0 {
            self.show(self.started.elapsed());
        }
    }

    /// Prints where the work stands, `now` being the time since it began.
    fn show(&mut self, now: Duration) {
        let (position, message) = std::mem::take(&mut self.latest);
        let mut line = format!("{}: {position}", self.label);
        if self.total > 0 {
            let share = 100.0 * position as f64 / self.total as f64;
            line += &format!("/{} ({share:.0} %)", self.total);
        }
        let done = position.saturating_sub(self.first);
        let left = self.total.saturating_sub(position);
        if done > 0 && left > 0 {
            let seconds = now.as_secs_f64() * left as f64 / done as f64;
            let remaining = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
            line += &format!(", {} left", HumanDuration(remaining));
        }
        if !message.is_empty() {
            line += &format!(": {message}");
        }
        self.print(&line);
        self.shown = (position, now);
        self.latest = (position, message);
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

fn with<R>(lines: &Mutex<Lines>, act: impl FnOnce(&mut Lines) -> R) -> R {
    act(&mut lines.lock().unwrap_or_else(PoisonError::into_inner))
}

/// The few words of a training step: loss of each task, gates, speed, memory; from the step's scalars.
pub fn training_message(values: &[(String, f64)]) -> String {
    let find = |name: &str| values.iter().find(|(key, _)| key == name).map(|(_, value)| *value);
    let family = |prefix: &str| {
        let members = values.iter().filter_map(|(key, value)| Some((key.strip_prefix(prefix)?, value)));
        members.map(|(task, value)| format!("{task} {value:.3}")).collect::<Vec<_>>().join(" ")
    };
    let mut parts = Vec::new();
    match (family("loss."), find("loss")) {
        (tasks, _) if !tasks.is_empty() => parts.push(format!("loss {tasks}")),
        (_, Some(loss)) => parts.push(format!("loss {loss:.3}")),
        _ => {}
    }
    let gates = family("gate.");
    if !gates.is_empty() {
        parts.push(format!("gates {gates}"));
    }
    if let Some(rate) = find("tokens_per_second") {
        parts.push(format!("{} tok/s", compact(rate.round())));
    }
    if let Some(bytes) = find("memory_bytes") {
        parts.push(format!("{:.1} GiB", bytes / f64::from(1u32 << 30)));
    }
    parts.join(" · ")
}
