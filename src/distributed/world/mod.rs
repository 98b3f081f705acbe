//! All ranks, as one of them sees them: who they are, and what each says before anything is done together.

mod ending;
mod running_sum;
mod sums;
mod together;

use super::communicator::Communicator;
use super::settings::DistributedSettings;
use super::tree::leaves_of;
use super::word::{Operation, Word};
use crate::backend::Backend;
use crate::error::Result;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

pub use running_sum::RunningSum;

/// How long ranks that all have an error wait for each other to print it.
const PRINTING: Duration = Duration::from_secs(2);
/// The limit of the first meeting: libraries, models and file systems may be slow to open.
const START: Duration = Duration::from_secs(300);

/// A rank, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The name of its machine.
    pub host: String,
    /// Its process.
    pub pid: u32,
}

/// What the sums of a step cost this rank.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Costs {
    /// Bytes that this rank sent.
    pub bytes: u64,
    /// Those of them that went to other machines.
    pub outside: u64,
    /// Time of moving and adding.
    pub exchange: Duration,
    /// Time that this rank waited for others before.
    pub wait: Duration,
    /// The rank that computed longest.
    pub slowest: usize,
}

/// All ranks of a run, as one of them sees them. Of a run in one process it costs nothing.
pub struct World {
    link: Option<Box<dyn Communicator>>,
    rank: usize,
    size: usize,
    members: Vec<Member>,
    /// Where sums are taken whose leaves are in memory that `link` does not reach.
    host: OnceLock<Arc<dyn Backend>>,
    state: Mutex<State>,
}

struct State {
    /// Operations so far.
    number: u64,
    step: u64,
    /// The end of the last operation.
    since: Instant,
    costs: Costs,
    /// Limits within a step, and of a phase.
    limits: (Duration, Duration),
    /// As the settings say.
    overlap: Option<bool>,
    end: Option<End>,
}

/// Why nothing more can be done together.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// All ranks know the error.
    Told,
    /// A rank is silent, or the library failed.
    Broken,
    /// A rank is silent, and nobody can say which.
    Late,
}

impl World {
    /// A run in one process.
    pub fn alone() -> Self {
        Self::of(None, (0, 1))
    }

    fn of(link: Option<Box<dyn Communicator>>, (rank, size): (usize, usize)) -> Self {
        let limits = DistributedSettings::default().limits();
        let (since, costs) = (Instant::now(), Costs::default());
        let state = State { number: 0, step: 0, since, costs, limits, overlap: None, end: None };
        Self { link, rank, size, members: Vec::new(), host: OnceLock::new(), state: Mutex::new(state) }
    }

    /// All ranks that `link` reaches. They tell each other who they are.
    ///
    /// # Errors
    /// A rank that does not come, or runs another version of this program.
    pub fn over(link: Box<dyn Communicator>) -> Result<Self> {
        let (place, host) = (link.place(), link.host());
        let mut world = Self::of(Some(link), place);
        world.members = vec![Member { host: "?".into(), pid: 0 }; world.size];
        let own = Member { host, pid: std::process::id() };
        let text = format!("{}\n{}\n{}", own.host, own.pid, env!("CARGO_PKG_VERSION"));
        world.limit_for(START);
        let all = world.share_as(Operation::Meet, text.as_bytes())?;
        let mut versions = Vec::new();
        for (member, text) in world.members.iter_mut().zip(&all) {
            let text = String::from_utf8_lossy(text);
            let mut lines = text.lines();
            member.host = lines.next().unwrap_or("?").to_string();
            member.pid = lines.next().and_then(|pid| pid.parse().ok()).unwrap_or(0);
            versions.push(lines.next().unwrap_or("?").to_string());
        }
        world.follow(&DistributedSettings::default());
        world.same("the version of this program", &versions[world.rank])?;
        Ok(world)
    }

    // ---- who is there -----------------------------------------------------------------------

    /// This rank's number.
    pub fn rank(&self) -> usize {
        self.rank
    }
    /// How many ranks there are.
    pub fn size(&self) -> usize {
        self.size
    }
    /// Whether this is the only one.
    pub fn is_alone(&self) -> bool {
        self.size == 1
    }
    /// Whether this is the rank that writes files and talks.
    pub fn is_first(&self) -> bool {
        self.rank == 0
    }
    /// The ranks, in order; nobody, of a run in one process.
    pub fn members(&self) -> &[Member] {
        &self.members
    }
    /// What moves the bytes.
    pub fn transport(&self) -> &str {
        self.link.as_ref().map_or("none", |link| link.name())
    }
    /// Ranks before this one on its machine, and all there.
    pub fn local(&self) -> (usize, usize) {
        let Some(own) = self.members.get(self.rank) else { return (0, 1) };
        let here = |members: &[Member]| members.iter().filter(|m| m.host == own.host).count();
        (here(&self.members[..self.rank]), here(&self.members))
    }
    /// The leaves of this rank, of `shards`.
    pub fn leaves(&self, shards: usize) -> std::ops::Range<usize> {
        leaves_of(self.rank, self.size, shards)
    }
    /// `rank 1 (host vm, process 33)`.
    pub fn call(&self, rank: usize) -> String {
        match self.members.get(rank) {
            Some(member) => format!("rank {rank} (host {}, process {})", member.host, member.pid),
            None => format!("rank {rank}"),
        }
    }

    /// Whether a rank is silent that the library could not name.
    pub fn misses_somebody(&self) -> bool {
        self.state().end == Some(End::Late)
    }

    /// Takes over the settings.
    pub fn follow(&self, settings: &DistributedSettings) {
        let mut state = self.state();
        (state.limits, state.overlap) = (settings.limits(), settings.overlap);
    }
    fn limit_for(&self, limit: Duration) {
        self.state().limits = (limit, limit);
    }
    /// Says which step is being done, for messages.
    pub fn at_step(&self, step: u64) {
        self.state().step = step;
    }
    /// What sums cost since this was asked last.
    pub fn costs(&self) -> Option<Costs> {
        (!self.is_alone()).then(|| std::mem::take(&mut self.state().costs))
    }
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // ---- the protocol -----------------------------------------------------------------------

    /// Says what this rank is about to do, and hears the others.
    fn announce(&self, operation: Operation, said: Said) -> Result<Vec<Word>> {
        let Some(link) = &self.link else { return Ok(Vec::new()) };
        let word = {
            let mut state = self.state();
            state.number += 1;
            let Said { size, failed, yes, own, .. } = said;
            let busy = state.since.elapsed().as_micros() as u64;
            Word { operation, number: state.number, step: state.step, size, failed, yes, busy, own }
        };
        let start = Instant::now();
        let all = link.gather(&word.bytes(), said.limit).map_err(|f| self.broken(operation, f))?;
        let words: Option<Vec<Word>> = all.chunks_exact(Word::BYTES).map(Word::read).collect();
        let words = words.ok_or_else(|| self.no_words())?;
        {
            let mut state = self.state();
            if operation == Operation::Sum {
                state.costs.wait += start.elapsed();
                state.costs.slowest = (0..words.len()).max_by_key(|rank| words[*rank].busy).unwrap_or(0);
            }
            state.since = Instant::now();
        }
        if words.iter().any(|w| w.failed) {
            return if said.failed { Ok(words) } else { Err(self.hear(&words, None)) };
        }
        match words.iter().position(|w| !w.agrees(&words[0])) {
            Some(other) => Err(self.disagree(&words, other)),
            None => Ok(words),
        }
    }
}

/// What a rank's word says, and how long it waits for the others'.
struct Said {
    size: u64,
    failed: bool,
    yes: bool,
    own: u64,
    limit: Duration,
}

impl Said {
    fn within(limit: Duration) -> Self {
        Self { size: 0, failed: false, yes: false, own: 0, limit }
    }
}
