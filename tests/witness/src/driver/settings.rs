//! What the environment says about the device, and which faults are asked for.

use super::status::parse;
use crate::machine::Options;
use std::path::PathBuf;

/// How the device is and how hostile it is; read once, when the first function is called.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Compute capability times ten.
    pub capability: u32,
    /// Multiprocessors that it says it has.
    pub multiprocessors: u32,
    /// Bytes of memory that it says it has.
    pub memory: usize,
    /// How launches are run. Its seed is also where the order of streams and graph nodes comes from; 0: as late as
    /// allowed, in order.
    pub machine: Options,
    /// A folder with the PTX of machine code that programs bring.
    pub ptx: Option<PathBuf>,
    /// A file to which every fault is appended.
    pub log: Option<PathBuf>,
    /// Say every launch as it is done.
    pub trace: bool,
    /// Say what ran, when the context ends.
    pub report: bool,
    /// A folder where the ranks of NCCL meet.
    pub nccl: Option<PathBuf>,
    /// Faults that are asked for.
    pub injected: Vec<Injected>,
}

/// The nth event of a kind fails.
#[derive(Debug, Clone)]
pub struct Injected {
    /// One of [`KINDS`].
    pub kind: String,
    /// Counted from 1.
    pub nth: u64,
    /// The `CUresult` that it fails with.
    pub status: u32,
}

/// What faults can be asked for at.
pub const KINDS: [&str; 4] = ["launch", "allocation", "copy", "wait"];

impl Default for Settings {
    fn default() -> Self {
        Self {
            capability: 80,
            multiprocessors: 2,
            memory: 4096 << 20,
            machine: Options::default(),
            ptx: None,
            log: None,
            trace: false,
            report: false,
            nccl: None,
            injected: Vec::new(),
        }
    }
}

impl Settings {
    /// By the variables of the environment; see docs/witness.md.
    pub fn of_environment() -> Self {
        let word = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
        let number = |name: &str, default: u64| match word(name) {
            Some(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text}: not a number")),
            None => default,
        };
        let is_set = |name: &str| word(name).is_some();
        Self {
            capability: number("WITNESS_CAPABILITY", 80) as u32,
            multiprocessors: number("WITNESS_MULTIPROCESSORS", 2) as u32,
            memory: (number("WITNESS_MEMORY_MIB", 4096) as usize) << 20,
            machine: Options::from_environment(),
            ptx: word("WITNESS_PTX").map(PathBuf::from),
            log: word("WITNESS_LOG").map(PathBuf::from),
            trace: is_set("WITNESS_TRACE"),
            report: is_set("WITNESS_REPORT"),
            nccl: word("WITNESS_NCCL").map(PathBuf::from),
            injected: word("WITNESS_FAIL").map_or(Vec::new(), |text| {
                injected(&text).unwrap_or_else(|| panic!("WITNESS_FAIL={text}: {FORM}"))
            }),
        }
    }
}

const FORM: &str = "`launch:3:719,allocation:5:OUT_OF_MEMORY` fails the third launch and the fifth allocation (also copy, wait)";

/// `KIND:N:ERROR,..`.
pub fn injected(text: &str) -> Option<Vec<Injected>> {
    let one = |part: &str| {
        let mut words = part.split(':');
        let (kind, nth, status) = (words.next()?, words.next()?.parse().ok()?, parse(words.next()?)?);
        (KINDS.contains(&kind) && nth > 0).then(|| Injected { kind: kind.into(), nth, status })
    };
    text.split(',').map(|part| one(part.trim())).collect()
}
