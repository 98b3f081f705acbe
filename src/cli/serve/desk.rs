//! Where requests wait for the model. It answers those that wait at the moment together: under load a batch fills by
//! itself, and a request that comes alone waits for nobody.

use super::counters::Counters;
use crate::cli::ask::{Ask, Asker, TOGETHER};
use crate::error::{Error, Kind, Result};
use serde_json::Value;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use tokio::sync::oneshot;

/// What a request is answered with.
pub type Reply = Result<Value>;

/// A request on its way to the model.
struct Waiting {
    ask: Ask,
    reply: oneshot::Sender<Reply>,
}

/// Why a request cannot wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// Too many wait.
    Full,
    /// The model has stopped.
    Closed,
}

/// The asking side.
pub struct Desk {
    queue: SyncSender<Waiting>,
    /// What is counted.
    pub counters: Arc<Counters>,
}

/// The model's side.
pub struct Work {
    queue: Receiver<Waiting>,
    counters: Arc<Counters>,
}

impl Desk {
    /// A desk at which `places` requests may wait.
    pub fn open(places: usize) -> (Self, Work) {
        let (send, receive) = sync_channel(places);
        let counters = Arc::new(Counters::default());
        (Self { queue: send, counters: Arc::clone(&counters) }, Work { queue: receive, counters })
    }

    /// Puts a request into the queue; who drops what is returned gives it up.
    pub fn ask(&self, ask: Ask) -> std::result::Result<oneshot::Receiver<Reply>, Refused> {
        let (reply, answer) = oneshot::channel();
        self.counters.waiting.inc();
        self.queue.try_send(Waiting { ask, reply }).map_err(|refused| {
            self.counters.waiting.dec();
            match refused {
                TrySendError::Full(_) => Refused::Full,
                TrySendError::Disconnected(_) => Refused::Closed,
            }
        })?;
        Ok(answer)
    }
}

impl Work {
    /// Answers until every [`Desk`] is gone.
    ///
    /// # Errors
    /// What the model cannot recover from; those who waited for it are told.
    pub fn until_closed(self, asker: &Asker) -> Result<()> {
        while let Ok(first) = self.queue.recv() {
            let arrived = std::iter::once(first).chain(self.queue.try_iter());
            let arrived = arrived.inspect(|_| {
                self.counters.waiting.dec();
            });
            let together: Vec<Waiting> = arrived.filter(|w| !w.reply.is_closed()).take(TOGETHER).collect();
            if !together.is_empty() {
                self.answer(asker, together)?;
            }
        }
        Ok(())
    }

    fn answer(&self, asker: &Asker, together: Vec<Waiting>) -> Result<()> {
        self.counters.batches.observe(together.len() as f64);
        let (asks, replies): (Vec<Ask>, Vec<_>) = together.into_iter().map(|w| (w.ask, w.reply)).unzip();
        // Whoever has gone in the meantime is not missed.
        let failed = match asker.answer(&asks.iter().collect::<Vec<_>>()) {
            Ok(answers) => {
                for (answer, reply) in answers.into_iter().zip(replies) {
                    let _ = reply.send(answer.map(|answer| asker.json(&answer)));
                }
                return Ok(());
            }
            Err(error) => error,
        };
        for reply in replies {
            let _ = reply.send(Err(Error::new(failed.kind, failed.to_string())));
        }
        match failed.kind {
            Kind::Memory => Ok(()),
            _ => Err(failed),
        }
    }
}
