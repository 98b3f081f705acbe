//! How a communicator is given up: by whoever finds it broken, or by a watch where the host waits for something else.

use super::library::{Handle, Simple};
use crate::distributed::communicator::{Failure, Moved};
use crate::distributed::exit;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What the host waits for itself fails sooner, and says more.
const LATER: Duration = Duration::from_secs(1);

/// What can end a communicator from any thread.
pub(super) struct Ending {
    abort: Simple,
    communicator: AtomicUsize,
    /// Why it was given up, once it was.
    why: Mutex<Option<Failure>>,
}

impl Ending {
    /// Ends with this function of the library.
    pub fn of(abort: Simple) -> Self {
        Self { abort, communicator: AtomicUsize::new(0), why: Mutex::default() }
    }

    /// Ends this one.
    pub fn of_communicator(&self, made: Handle) {
        self.communicator.store(made as usize, Ordering::SeqCst);
    }

    /// Ends what is under way: a stream that waits for a dead rank keeps the device from ever being idle, and so everybody
    /// who frees memory. The library gets some time for it.
    pub fn give_up(&self) {
        self.give_up_for(Failure::Library("the communicator was given up".into()));
    }

    fn give_up_for(&self, failure: Failure) {
        {
            let mut why = self.why.lock().unwrap_or_else(PoisonError::into_inner);
            if why.is_some() {
                return;
            }
            *why = Some(failure);
        }
        let (abort, communicator) = (self.abort, self.communicator.load(Ordering::SeqCst));
        let (sender, receiver) = channel();
        std::thread::spawn(move || {
            // SAFETY: may be called at any time, by any thread; nothing of the communicator is used afterwards.
            unsafe { abort(communicator as Handle) };
            let _ = sender.send(());
        });
        let _ = receiver.recv_timeout(exit::ENDING);
    }

    /// Refuses what a communicator is asked for after its end.
    pub fn has_not_come(&self) -> Moved<()> {
        let why = self.why.lock().unwrap_or_else(PoisonError::into_inner);
        why.clone().map_or(Ok(()), Err)
    }
}

/// Gives a communicator up unless it is dropped in time. The host may wait where no deadline is: for memory of a device
/// whose stream waits for a rank that is dead.
pub(super) struct Watch {
    /// Its beginning.
    pub since: Instant,
    _is_needed: Sender<()>,
}

impl Watch {
    /// From now on.
    pub fn over(ending: &Arc<Ending>, patience: Duration) -> Self {
        let (sender, receiver) = channel();
        let ending = Arc::clone(ending);
        std::thread::spawn(move || {
            if receiver.recv_timeout(patience + LATER) == Err(RecvTimeoutError::Timeout) {
                ending.give_up_for(Failure::Late(patience + LATER));
            }
        });
        Self { since: Instant::now(), _is_needed: sender }
    }
}
