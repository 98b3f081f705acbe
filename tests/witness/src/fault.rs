//! What the machine found: one line that names kernel, block, threads, PTX line and source line.

use std::fmt;

/// What is wrong, in a word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// An address outside of every live allocation, or of the block's shared or local memory.
    Bounds,
    /// An address that is not a multiple of what is accessed.
    Misaligned,
    /// A byte is read that nobody has written.
    Unwritten,
    /// Two accesses that conflict and that nothing orders.
    Race,
    /// They are ordered, but the asynchronous proxy need not see it: a proxy fence is missing.
    ProxyFence,
    /// A part of a warp, or of a block, where all of it must be.
    Divergence,
    /// Nobody goes on.
    Deadlock,
    /// An mbarrier that is not initialised, or is arrived at too often, or has bytes left.
    Mbarrier,
    /// Copies or products that nobody waited for.
    Unfinished,
    /// A tensor map or a matrix descriptor.
    Descriptor,
    /// More instructions than a launch may have.
    Limit,
    /// The launch's own numbers: threads, arguments, shared memory.
    Launch,
    /// What an instruction does not allow.
    Instruction,
}

/// An error of a launch.
#[derive(Clone, Debug)]
pub struct Fault {
    /// What is wrong, in a word.
    pub kind: Kind,
    /// The kernel.
    pub kernel: String,
    /// The block, where one is at fault.
    pub block: Option<[u32; 3]>,
    /// The thread within its block, linear.
    pub thread: Option<u32>,
    /// PTX line and source line.
    pub place: String,
    /// What is wrong, in full.
    pub message: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.kernel)?;
        if let Some([x, y, z]) = self.block {
            write!(f, ", block ({x}, {y}, {z})")?;
        }
        if let Some(thread) = self.thread {
            write!(f, ", thread {thread} (warp {}, lane {})", thread / 32, thread % 32)?;
        }
        if !self.place.is_empty() {
            write!(f, ", {}", self.place)?;
        }
        write!(f, ": {}", self.message)
    }
}

impl std::error::Error for Fault {}

/// An error on its way from where it is noticed to where block and place are known.
#[derive(Debug)]
pub(crate) struct Stop {
    pub kind: Kind,
    pub lane: Option<usize>,
    pub message: String,
}

impl Stop {
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, lane: None, message: message.into() }
    }

    pub fn lane(mut self, lane: usize) -> Self {
        self.lane.get_or_insert(lane);
        self
    }
}

pub(crate) type Result<T> = std::result::Result<T, Stop>;
