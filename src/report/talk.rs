//! How much this process says on standard error: chosen once, by its user.

use std::io::Write;
use std::sync::atomic::{AtomicU8, Ordering};

/// How much is said besides results.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Talk {
    /// Progress, and what one should know.
    Usual,
    /// Errors only.
    Errors,
    /// Also what a run's log keeps.
    All,
}

static CHOSEN: AtomicU8 = AtomicU8::new(Talk::Usual as u8);

/// Chooses for the whole process.
pub fn set_talk(talk: Talk) {
    CHOSEN.store(talk as u8, Ordering::Relaxed);
}

/// What was chosen.
pub fn talk() -> Talk {
    match CHOSEN.load(Ordering::Relaxed) {
        talk if talk == Talk::Errors as u8 => Talk::Errors,
        talk if talk == Talk::All as u8 => Talk::All,
        _ => Talk::Usual,
    }
}

/// A line on standard error, if anybody listens, in one write: other ranks may be telling something at the same time.
pub fn tell(text: &str) {
    let _ = std::io::stderr().write_all(format!("{text}\n").as_bytes());
}
