//! The seam to what moves bytes between ranks.

use crate::backend::cuda::driver::Event;
use crate::backend::{Backend, Tensor};
use crate::error::Result;
use std::mem::ManuallyDrop;
use std::ops::Range;
use std::time::Duration;

/// Which numbers of what is sent go to every rank, and where those that come from it are put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parts {
    /// By receiving rank; several may get the same.
    pub send: Vec<Range<usize>>,
    /// By sending rank, one after the other.
    pub receive: Vec<Range<usize>>,
}

/// Numbers on their way: *f32* `[1 x n]`, both in the memory of one device.
pub struct Passage<'a> {
    /// What is sent from.
    pub send: Tensor,
    /// What is received into.
    pub to: Tensor,
    /// Which of them.
    pub parts: &'a Parts,
    /// Whose memory it is.
    pub at: &'a dyn Backend,
}

/// An exchange that was started and is not waited for by the host. Until it has landed the library may use the memory, so
/// nothing else frees it.
pub struct OnWay {
    to: ManuallyDrop<Tensor>,
    /// What is sent from, and when it has been.
    from: Option<(ManuallyDrop<Tensor>, Event)>,
}

impl OnWay {
    /// Numbers that `send` is read for and `to` is filled with until `arrived`.
    pub fn started(send: Tensor, to: Tensor, arrived: Event) -> Self {
        Self { to: ManuallyDrop::new(to), from: Some((ManuallyDrop::new(send), arrived)) }
    }

    /// Numbers that are there.
    pub fn arrived(to: Tensor) -> Self {
        Self { to: ManuallyDrop::new(to), from: None }
    }

    /// What arrived: the work that is given to `at` from now on comes after it.
    ///
    /// # Errors
    /// The device.
    pub fn land(self, at: &dyn Backend) -> Result<Tensor> {
        if let Some((send, arrived)) = self.from {
            at.come_after(&arrived)?;
            drop(ManuallyDrop::into_inner(send));
        }
        Ok(ManuallyDrop::into_inner(self.to))
    }
}

/// Why bytes did not arrive. After any of these nothing more can be moved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// These ranks gave no sign of life when they were called, `after` so long.
    Silent {
        /// Who did not answer; nobody, where all did and still nothing came.
        ranks: Vec<usize>,
        /// How long they were waited for.
        after: Duration,
    },
    /// Somebody did not come, and the library cannot say who.
    Late(Duration),
    /// What the library said.
    Library(String),
}

/// What arrived, or why nothing did.
pub type Moved<T> = std::result::Result<T, Failure>;

/// Moves bytes between ranks; adds nothing up. Every rank calls the same operations in the same order, from one thread.
pub trait Communicator: Send + Sync {
    /// This rank, and how many there are.
    fn place(&self) -> (usize, usize);
    /// What moves the bytes, for people: name and version of a library.
    fn name(&self) -> &str;
    /// The name of this rank's machine.
    fn host(&self) -> String {
        hostname()
    }
    /// Whether [`Communicator::exchange`] moves what is in the memory of `at`: everybody's host memory, and of some the
    /// memory of GPUs. Asked by all ranks at the same time.
    ///
    /// # Errors
    /// As [`Communicator::gather`].
    fn reaches(&self, at: &dyn Backend, _patience: Duration) -> Moved<bool> {
        Ok(!at.info().launches_kernels())
    }
    /// The bytes of every rank, one after the other; all give equally many.
    ///
    /// # Errors
    /// A [`Failure`], at the latest a second or two after `patience`.
    fn gather(&self, own: &[u8], patience: Duration) -> Moved<Vec<u8>>;
    /// Sends every rank its part and puts what they send here into its place; returns that. What the device was given to
    /// do before comes before it. After a failure the library may still use the memory, so it is never freed.
    ///
    /// # Errors
    /// As [`Communicator::gather`].
    fn exchange(&self, passage: Passage, patience: Duration) -> Moved<Tensor>;
    /// Starts the same and does not wait for it, where the library can. All that was started is ended by one
    /// [`Communicator::settle`].
    ///
    /// # Errors
    /// As [`Communicator::gather`].
    fn start(&self, passage: Passage, patience: Duration) -> Moved<OnWay> {
        self.exchange(passage, patience).map(OnWay::arrived)
    }
    /// Waits until everything that was started has landed in the memory of `at`.
    ///
    /// # Errors
    /// As [`Communicator::gather`], counted from the first start.
    fn settle(&self, _at: &dyn Backend, _patience: Duration) -> Moved<()> {
        Ok(())
    }
    /// Ends in order, when all ranks do.
    fn leave(&self) {}
    /// Ends every rank that can be reached, and this process with `code`.
    fn abort(&self, _code: u8) {}
}

fn hostname() -> String {
    #[cfg(unix)]
    return rustix::system::uname().nodename().to_string_lossy().into_owned();
    #[cfg(not(unix))]
    std::env::var("COMPUTERNAME").unwrap_or_else(|_| "?".into())
}
