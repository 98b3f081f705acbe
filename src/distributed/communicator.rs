//! The seam to what moves bytes between ranks.

use std::time::Duration;

/// How many numbers go to every rank, and come from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counts {
    /// By receiving rank.
    pub send: Vec<usize>,
    /// By sending rank.
    pub receive: Vec<usize>,
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
    /// The bytes of every rank, one after the other; all give equally many.
    ///
    /// # Errors
    /// A [`Failure`], at the latest a second or two after `patience`.
    fn gather(&self, own: &[u8], patience: Duration) -> Moved<Vec<u8>>;
    /// Sends every rank its part of `send`, the parts in the order of ranks; returns what they sent here, likewise.
    ///
    /// # Errors
    /// As [`Communicator::gather`].
    fn exchange(&self, send: Vec<f32>, counts: &Counts, patience: Duration) -> Moved<Vec<f32>>;
    /// Ends in order, when all ranks do.
    fn leave(&self) {}
    /// Ends every rank that can be reached, and this process with `code`.
    fn abort(&self, _code: u8) {}
}
