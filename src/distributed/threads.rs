//! Ranks as threads of one process: for tests of everything that passes between ranks.

use super::communicator::{Communicator, Counts, Failure, Moved};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// One rank among threads.
pub struct Threads {
    rank: usize,
    size: usize,
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
    Parts(Vec<f32>, Vec<usize>),
}

impl Threads {
    /// `size` ranks, each for one thread.
    pub fn new(size: usize) -> Vec<Self> {
        let hall = Arc::new(Hall::default());
        let rank = |rank| Self { rank, size, done: AtomicU64::new(0), hall: Arc::clone(&hall) };
        (0..size).map(rank).collect()
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

    fn exchange(&self, send: Vec<f32>, counts: &Counts, patience: Duration) -> Moved<Vec<f32>> {
        let all = self.meet(Brought::Parts(send, counts.send.clone()), patience)?;
        let mut received = Vec::with_capacity(counts.receive.iter().sum());
        for (brought, wanted) in all.iter().zip(&counts.receive) {
            match &**brought {
                Brought::Parts(values, parts) if parts[self.rank] == *wanted => {
                    let start: usize = parts[..self.rank].iter().sum();
                    received.extend_from_slice(&values[start..start + wanted]);
                }
                _ => return Err(Failure::Library("ranks exchange different things".into())),
            }
        }
        Ok(received)
    }
}
