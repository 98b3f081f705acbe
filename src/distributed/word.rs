//! What every rank says before an operation, so that ranks that are about to do different things are told apart.

/// What is about to be done by all ranks together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    Meet,
    Compare,
    Agree,
    Decide,
    Share,
    Sum,
    Leave,
    Summed,
}

impl Operation {
    const ALL: [Self; 8] = [
        Self::Meet,
        Self::Compare,
        Self::Agree,
        Self::Decide,
        Self::Share,
        Self::Sum,
        Self::Leave,
        Self::Summed,
    ];

    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Meet => "the start",
            Self::Compare => "the comparison of what ranks run with",
            Self::Agree => "the end of a phase",
            Self::Decide => "a decision",
            Self::Share => "the exchange of results",
            Self::Sum => "the sum of gradients",
            Self::Summed => "the end of the sum of gradients",
            Self::Leave => "the end",
        }
    }
}

/// One rank's word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Word {
    pub operation: Operation,
    /// Operations before this one.
    pub number: u64,
    /// The step of the run.
    pub step: u64,
    /// What must be equal: a size, or a hash of sizes; 0 where ranks may differ.
    pub size: u64,
    /// This rank has an error to tell instead.
    pub failed: bool,
    /// A yes to what is to be decided.
    pub yes: bool,
    /// Microseconds since the last operation: what this rank computed meanwhile.
    pub busy: u64,
    /// Something that may differ: the bytes of a share.
    pub own: u64,
}

impl Word {
    pub const BYTES: usize = 8 * 8;
    /// Says that a word is a word, and of which kind: it changes with the fields.
    const MAGIC: u64 = 0x6765_6d73_0000_0001;

    pub fn bytes(&self) -> [u8; Self::BYTES] {
        let flags = self.operation as u64 | u64::from(self.failed) << 8 | u64::from(self.yes) << 9;
        let all =
            [Self::MAGIC, flags, self.number, self.step, self.size, self.busy, self.own, Self::MAGIC ^ flags];
        let mut bytes = [0; Self::BYTES];
        bytes.chunks_exact_mut(8).zip(all).for_each(|(to, value)| to.copy_from_slice(&value.to_le_bytes()));
        bytes
    }

    /// `None`: these bytes are no word.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let field = |i: usize| Some(u64::from_le_bytes(bytes.get(8 * i..8 * i + 8)?.try_into().ok()?));
        let flags = field(1)?;
        let sound = field(0)? == Self::MAGIC && field(7)? == Self::MAGIC ^ flags;
        Some(Self {
            operation: *Operation::ALL.get((flags & 0xff) as usize).filter(|_| sound)?,
            failed: flags >> 8 & 1 == 1,
            yes: flags >> 9 & 1 == 1,
            number: field(2)?,
            step: field(3)?,
            size: field(4)?,
            busy: field(5)?,
            own: field(6)?,
        })
    }

    /// Whether two ranks are about to do the same.
    pub fn agrees(&self, other: &Self) -> bool {
        let what = |w: &Self| (w.operation, w.number, w.step, w.size);
        what(self) == what(other)
    }
}
