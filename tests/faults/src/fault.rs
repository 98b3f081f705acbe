//! What goes wrong: drawn by chance from a seed and the number of a case, so that every case can be had again.

use crate::point;
use crate::subject::Subject;
use crate::trace::Trace;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;

/// A fault.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fault {
    /// Killed when it asks for the n-th change of a file.
    Kill(usize),
    /// The same, after a part of what it writes.
    KillInWrite(usize),
    /// Killed between two calls: after the n-th, and a share of the time to the next.
    KillBetween(usize, f64),
    /// Power is lost at the n-th change.
    PowerLoss(usize),
    /// From the n-th change on nothing more can be written: this error.
    NoRoom(usize, i32),
    /// The n-th change fails once: this error.
    Once(usize, i32),
    /// From the n-th change on everything that changes files fails: this error.
    Forbidden(usize, i32),
    /// The n-th reading call fails.
    CannotRead(usize),
    /// What it writes in is removed before its n-th change.
    Removed(usize),
    /// The same command is given twice at once.
    Twice,
    /// The wall clock jumps by so many seconds, and back.
    Clock(i64),
    /// Stopped for a while at the n-th change.
    Paused(usize),
    /// Asked to stop, or to save, at the n-th change: by this signal.
    Asked(usize, i32),
    /// So many MiB of addresses.
    Memory(u64),
    /// The GPU is lost at a launch.
    GpuLost(u64),
    /// The GPU has so many bytes.
    GpuFull(u64),
    /// A number that is none in a weight.
    BadWeight(f32),
    /// Steps far too long.
    Storm(f64),
}

impl Fault {
    /// Its line in the table.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Kill(_) => "SIGKILL at a file call",
            Self::KillInWrite(_) => "SIGKILL inside a write",
            Self::KillBetween(..) => "SIGKILL while it computes",
            Self::PowerLoss(_) => "power lost: unsynced data torn or gone",
            Self::NoRoom(_, libc::EDQUOT) => "EDQUOT from a call on",
            Self::NoRoom(..) => "ENOSPC from a call on",
            Self::Once(_, libc::EIO) => "EIO once",
            Self::Once(..) => "ENOSPC once",
            Self::Forbidden(_, libc::EROFS) => "EROFS from a call on",
            Self::Forbidden(..) => "EACCES from a call on",
            Self::CannotRead(_) => "EIO when it reads",
            Self::Removed(_) => "directory removed under it",
            Self::Twice => "two of it at once",
            Self::Clock(_) => "wall clock jumps",
            Self::Paused(_) => "SIGSTOP, SIGCONT",
            Self::Asked(_, libc::SIGUSR2) => "asked to save (SIGUSR2)",
            Self::Asked(..) => "asked to stop (SIGTERM, SIGUSR1)",
            Self::Memory(_) => "address space limited",
            Self::GpuLost(_) => "GPU lost at a launch (SIMT)",
            Self::GpuFull(_) => "GPU memory full (SIMT)",
            Self::BadWeight(_) => "NaN or infinity in a weight",
            Self::Storm(_) => "steps 10^6 to 10^38 too long",
        }
    }

    /// The call at which it strikes.
    pub fn call(&self) -> Option<usize> {
        match self {
            Self::Kill(n) | Self::KillInWrite(n) | Self::KillBetween(n, _) | Self::PowerLoss(n) => Some(*n),
            Self::NoRoom(n, _) | Self::Once(n, _) | Self::Forbidden(n, _) => Some(*n),
            Self::Removed(n) | Self::Paused(n) | Self::Asked(n, _) => Some(*n),
            _ => None,
        }
    }
}

/// Kinds, and how often each is drawn. The last one is drawn by the name of the place, all names alike.
const KINDS: [(usize, usize); 23] = [
    (0, 17),
    (1, 5),
    (2, 9),
    (3, 24),
    (4, 6),
    (5, 3),
    (6, 6),
    (7, 2),
    (8, 3),
    (9, 3),
    (10, 4),
    (11, 3),
    (12, 1),
    (13, 2),
    (14, 2),
    (15, 2),
    (16, 2),
    (17, 2),
    (18, 1),
    (19, 1),
    (20, 1),
    (21, 1),
    (22, 18),
];

/// The fault of a case, its subject, and the chance that is left for what depends on chance.
pub fn draw(seed: u64, case: u64, traces: &BTreeMap<Subject, Trace>) -> (Subject, Fault, ChaCha8Rng) {
    let mut chance = ChaCha8Rng::seed_from_u64(seed);
    chance.set_stream(case);
    let all: usize = KINDS.iter().map(|(_, share)| share).sum();
    let mut left = chance.random_range(0..all);
    let kind = KINDS.iter().find(|(_, share)| {
        let found = left < *share;
        left = left.saturating_sub(*share);
        found
    });
    let kind = kind.map_or(0, |(kind, _)| *kind);
    if kind == 22 {
        let (subject, fault) = by_name(&mut chance, traces);
        return (subject, fault, chance);
    }
    let gpu = traces.contains_key(&Subject::Simt) && (18..20).contains(&kind);
    let writes = |s: &Subject| *s != Subject::Simt && (s.is_run() || traces[s].changes.len() > 3);
    let mut from: Vec<Subject> = match kind {
        _ if gpu => vec![Subject::Simt],
        15 | 20 | 21 => vec![Subject::Train, Subject::Steps, Subject::Lora],
        10 | 17 => traces.keys().copied().filter(|s| *s != Subject::Simt).collect(),
        // Runs twice as often: they write most.
        _ => (traces.keys().copied().filter(|s| writes(s)))
            .flat_map(|s| std::iter::repeat_n(s, if s.is_run() { 2 } else { 1 }))
            .collect(),
    };
    from.retain(|subject| traces.contains_key(subject));
    if from.is_empty() {
        from.extend(traces.keys());
    }
    let subject = from[chance.random_range(0..from.len())];
    let trace = &traces[&subject];
    let n = chance.random_range(1..=trace.changes.len().max(1));
    let fault = match kind {
        0 => Fault::Kill(n),
        1 => Fault::KillInWrite(trace.write_at_or_after(n)),
        2 => {
            let (call, share) = trace.between(chance.random());
            Fault::KillBetween(call, share)
        }
        3 => Fault::PowerLoss(n),
        4 => Fault::NoRoom(n, libc::ENOSPC),
        5 => Fault::NoRoom(n, libc::EDQUOT),
        6 => Fault::Once(n, libc::EIO),
        7 => Fault::Once(n, libc::ENOSPC),
        8 => Fault::Forbidden(n, libc::EROFS),
        9 => Fault::Forbidden(n, libc::EACCES),
        10 => Fault::CannotRead(chance.random_range(1..=trace.reads.max(1))),
        11 => Fault::Removed(n.min(trace.last_that_notices()).max(1)),
        12 => Fault::Twice,
        13 => Fault::Clock(
            [-4_000_000_000, -86_400, -3, 7, 31_536_000, 9_000_000_000][chance.random_range(0..6)],
        ),
        14 => Fault::Paused(n),
        15 if subject.is_run() => Fault::Asked(n, libc::SIGUSR2),
        16 if subject.is_run() => Fault::Asked(n, [libc::SIGTERM, libc::SIGUSR1][chance.random_range(0..2)]),
        17 => Fault::Memory(chance.random_range(40..500)),
        18 if gpu => Fault::GpuLost(chance.random_range(1..4000)),
        19 if gpu => Fault::GpuFull(chance.random_range(100_000..3_500_000)),
        20 if subject.is_run() => {
            Fault::BadWeight([f32::NAN, f32::INFINITY, f32::NEG_INFINITY][chance.random_range(0..3)])
        }
        21 if subject.is_run() => Fault::Storm(10f64.powi(chance.random_range(6..39))),
        _ => Fault::Kill(n),
    };
    (subject, fault, chance)
}

/// A command, a change of files, and the seconds to the next one where it is between them.
type Place = (Subject, usize, Option<f64>);

/// A fault at a place that is drawn by its name: at a call, or between two.
fn by_name(chance: &mut ChaCha8Rng, traces: &BTreeMap<Subject, Trace>) -> (Subject, Fault) {
    let mut places: BTreeMap<&str, Vec<Place>> = BTreeMap::new();
    for (&subject, trace) in traces.iter().filter(|(s, _)| **s != Subject::Simt) {
        for n in 0..=trace.changes.len() {
            let name = point::of_call(subject, trace, n);
            if n > 0 {
                places.entry(name).or_default().push((subject, n, None));
            }
            if let Some(pause) = trace.pause_after(n) {
                let name = point::after_call(subject, trace, n);
                places.entry(name).or_default().push((subject, n, Some(pause)));
            }
        }
    }
    let names: Vec<_> = places.keys().copied().collect();
    let of = &places[names[chance.random_range(0..names.len())]];
    let (subject, n, pause) = of[chance.random_range(0..of.len())];
    let fault = match (pause, chance.random_range(0..5)) {
        (Some(seconds), _) => Fault::KillBetween(n, seconds * chance.random::<f64>()),
        (None, 0 | 1) => Fault::PowerLoss(n),
        (None, 2) => Fault::Once(n, libc::EIO),
        (None, 3) => Fault::NoRoom(n, libc::ENOSPC),
        _ => Fault::Kill(n),
    };
    (subject, fault)
}
