//! Ranks as threads of one process: for tests of everything that passes between ranks.

use super::communicator::{Communicator, Failure, Moved, Passage};
use crate::backend::{Backend, Tensor};
use crate::error::Error;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// One rank among threads.
pub struct Threads {
    rank: usize,
    size: usize,
    host: String,
    /// Whether it moves what is in the memory of any device, as NCCL does.
    reaches_devices: bool,
    /// Operations that this rank has done.
    done: AtomicU64,
    hall: Arc<Hall>,
}

/// Where they meet.
#[derive(Default)]
struct Hall {
    /// What every rank has brought to an operation, by its number.
    rounds: Mutex<BTreeMap<u64, Round>>,
    came: Condvar,
}

#[derive(Default)]
struct Round {
    brought: BTreeMap<usize, Arc<Brought>>,
    left: usize,
}

/// Bytes, or numbers in parts for every rank.
enum Brought {
    Bytes(Vec<u8>),
    Parts(Vec<f32>, Vec<Range<usize>>),
}

impl Threads {
    /// `size` ranks, each for one thread.
    pub fn new(size: usize) -> Vec<Self> {
        let hall = Arc::new(Hall::default());
        let rank = |rank| Self {
            rank,
            size,
            host: "threads".into(),
            reaches_devices: false,
            done: AtomicU64::new(0),
            hall: Arc::clone(&hall),
        };
        (0..size).map(rank).collect()
    }

    /// The same rank on a machine of this name.
    pub fn on(self, host: &str) -> Self {
        Self { host: host.into(), ..self }
    }

    /// The same rank, moving what is in the memory of any device.
    pub fn reaching_devices(self) -> Self {
        Self { reaches_devices: true, ..self }
    }

    /// Brings something and waits for what the others bring.
    fn meet(&self, own: Brought, patience: Duration) -> Result<Vec<Arc<Brought>>, Failure> {
        let number = self.done.fetch_add(1, Ordering::SeqCst);
        let until = Instant::now() + patience;
        let mut rounds = self.hall.rounds.lock().unwrap_or_else(PoisonError::into_inner);
        rounds.entry(number).or_default().brought.insert(self.rank, Arc::new(own));
        self.hall.came.notify_all();
        loop {
            let round = rounds.entry(number).or_default();
            if round.brought.len() == self.size {
                let all = round.brought.values().cloned().collect();
                round.left += 1;
                if round.left == self.size {
                    rounds.remove(&number);
                }
                return Ok(all);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let ranks = (0..self.size).filter(|rank| !round.brought.contains_key(rank)).collect();
                return Err(Failure::Silent { ranks, after: patience });
            }
            rounds = self.hall.came.wait_timeout(rounds, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Communicator for Threads {
    fn place(&self) -> (usize, usize) {
        (self.rank, self.size)
    }

    fn name(&self) -> &str {
        "threads"
    }

    fn gather(&self, own: &[u8], patience: Duration) -> Moved<Vec<u8>> {
        let all = self.meet(Brought::Bytes(own.to_vec()), patience)?;
        let bytes = |brought: &Arc<Brought>| match &**brought {
            Brought::Bytes(bytes) if bytes.len() == own.len() => Ok(bytes.clone()),
            _ => Err(Failure::Library("ranks gather different things".into())),
        };
        Ok(all.iter().map(bytes).collect::<Moved<Vec<_>>>()?.concat())
    }

    fn host(&self) -> String {
        self.host.clone()
    }

    fn reaches(&self, at: &dyn Backend, _patience: Duration) -> Moved<bool> {
        Ok(self.reaches_devices || !at.info().launches_kernels())
    }

    fn exchange(&self, passage: Passage, patience: Duration) -> Moved<Tensor> {
        let Passage { send, mut to, parts, at } = passage;
        let device = |error: Error| Failure::Library(error.to_string());
        let values = at.download(send.mat()).map_err(device)?;
        let all = self.meet(Brought::Parts(values, parts.send.clone()), patience)?;
        for (brought, place) in all.iter().zip(&parts.receive) {
            match &**brought {
                Brought::Parts(values, sent) if sent[self.rank].len() == place.len() => {
                    let (values, to) = (&values[sent[self.rank].clone()], to.mat_mut());
                    at.upload(values, to.col_range(place.clone())).map_err(device)?;
                }
                _ => return Err(Failure::Library("ranks exchange different things".into())),
            }
        }
        Ok(to)
    }
}
