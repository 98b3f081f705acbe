//! The seam to what moves bytes between ranks.

use crate::backend::{Backend, Tensor};
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
