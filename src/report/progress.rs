//! Progress on standard error: a bar on a terminal, plain lines elsewhere.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// How far something is.
pub struct Progress {
    label: String,
    bar: Option<ProgressBar>,
    total: u64,
    last: Option<(Instant, u64)>,
    quiet: bool,
}

impl Progress {
    /// Progress of `total` parts; `quiet` says nothing.
    pub fn new(label: &str, total: u64, quiet: bool) -> Self {
        let terminal = std::io::stderr().is_terminal() && !quiet;
        let bar = terminal.then(|| {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
            let style = "{prefix} {bar:24.cyan/black} {pos}/{len} {eta_precise} {msg}";
            bar.set_style(
                ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()),
            );
            bar.set_prefix(label.to_string());
            bar
        });
        Self { label: label.to_string(), bar, total, last: None, quiet }
    }
    /// Now at `position`; the message is asked for only when it is shown.
    pub fn tick(&mut self, position: u64, message: impl FnOnce() -> String) {
        if self.quiet {
            return;
        }
        if let Some(bar) = &self.bar {
            bar.set_position(position);
            bar.set_message(message());
            return;
        }
        let due = match self.last {
            None => true,
            Some((at, shown)) => {
                at.elapsed() > Duration::from_secs(10) || (position - shown) * 20 >= self.total.max(20)
            }
        };
        if due || position >= self.total {
            self.last = Some((Instant::now(), position));
            let _ = writeln!(std::io::stderr(), "{} {position}/{} {}", self.label, self.total, message());
        }
    }
    /// A line of its own.
    pub fn note(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None if self.quiet => {}
            None => {
                let _ = writeln!(std::io::stderr(), "{text}");
            }
        }
    }
    /// The end.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
