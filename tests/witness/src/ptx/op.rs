//! What instructions do: the operations of a program, and which registers they have.

/// What a register holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// Nothing: the instruction has no such operand.
    None,
    /// A bit a lane.
    Predicate,
    /// 32 bits a lane, or fewer.
    Word,
    /// 64 bits a lane.
    Long,
}

/// A comparison; those that end in `u` are also true of NaN.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Cmp {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    Equ,
    Neu,
    Ltu,
    Leu,
    Gtu,
    Geu,
    /// Either is NaN.
    Nan,
    /// Neither is.
    Num,
}

/// Arithmetic of 32-bit integers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum WordOp {
    Add,
    Sub,
    Mul,
    MulHighS,
    MulHighU,
    Mad,
    MinS,
    MaxS,
    MinU,
    MaxU,
    DivS,
    DivU,
    RemS,
    RemU,
    And,
    Or,
    Xor,
    Not,
    Neg,
    /// Of 16 bits.
    NegHalf,
    AbsS,
    Shl,
    ShrS,
    ShrU,
    Popc,
    Clz,
    /// `bfi`: position and length in `imm`.
    Insert,
    /// `cvt` of a register to a narrower integer and back: bits in `imm`.
    ExtendS,
    ExtendU,
}

/// Arithmetic of 64-bit integers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum LongOp {
    Add,
    Sub,
    Mul,
    MinS,
    MaxS,
    MinU,
    MaxU,
    DivS,
    DivU,
    RemS,
    RemU,
    And,
    Or,
    Xor,
    Not,
    Neg,
    Shl,
    ShrS,
    ShrU,
    /// `bfi`: position and length in `imm`.
    Insert,
    /// Of two words.
    MulWideS,
    MulWideU,
    MadWideS,
    MadWideU,
}

/// Arithmetic of f32; `imm` 1: subnormals are zero (`.ftz`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum FloatOp {
    Add,
    Sub,
    Mul,
    Fma,
    FmaDown,
    Div,
    Rcp,
    Sqrt,
    Ex2,
    Min,
    Max,
    Neg,
    Abs,
    Copysign,
    Saturate,
}

/// Arithmetic of f64.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum DoubleOp {
    Add,
    Sub,
    Mul,
    Fma,
    Div,
    Rcp,
    /// `rcp.approx.ftz.f64`: of the upper 32 bits.
    RcpApprox,
    Sqrt,
    Min,
    Max,
    Neg,
    Abs,
}

/// Logic of predicates; `Set` takes its value from `imm`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum LogicOp {
    And,
    Or,
    Xor,
    Not,
    Copy,
    Set,
}

/// How `setp` reads its operands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Compared {
    S16,
    U16,
    S32,
    U32,
    S64,
    U64,
    F32,
    F64,
}

/// Copies and conversions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Convert {
    Word,
    Long,
    /// Two halves, the lower first, to a word; two words to a long; and back (the upper part goes to `c`).
    Pack16,
    Unpack16,
    PackLong,
    UnpackLong,
    SelectWord,
    SelectLong,
    F64OfF32,
    F32OfF64,
    Bf16OfF32,
    /// Two f32, the first to the upper half.
    PackBf16,
    F32OfBf16,
    F32OfS32,
    F32OfU32,
    F32OfU16,
    F64OfS32,
    F64OfS64,
    S32OfF32Nearest,
    S64OfS32,
    U64OfU32,
    U32OfU64,
    /// a + the address of the arguments (`cvta.param`).
    OfParameter,
    /// a + the window of local memory, and back.
    OfLocal,
    ToLocal,
}

/// How far an operation's order reaches.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Scope {
    /// The operation is weak: it orders nothing.
    Weak,
    /// The block.
    Block,
    /// The device, and what is larger: one device is all there is.
    Device,
}

/// What a memory operation orders.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Order {
    /// Whom it is strong with.
    pub scope: Scope,
    /// It is an acquire.
    pub acquire: bool,
    /// It is a release.
    pub release: bool,
}

impl Order {
    /// An ordinary load or store.
    pub const WEAK: Self = Self { scope: Scope::Weak, acquire: false, release: false };
}

/// What an atomic operation computes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Atomic {
    Add,
    MinS,
    MaxS,
    MinU,
    MaxU,
    And,
    Or,
    Xor,
    Exchange,
    CompareAndSwap,
}

/// Which lane a lane of `shfl` reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Shuffle {
    Xor,
    Up,
    Down,
    Index,
}

/// What `vote` tells.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Vote {
    All,
    Any,
    Ballot,
}

/// Which memory a proxy fence is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProxySpace {
    /// All of it.
    Any,
    /// Global memory.
    Global,
    /// Shared memory.
    Shared,
}

/// What an instruction does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Op {
    Word(WordOp),
    Long(LongOp),
    Float(FloatOp),
    Double(DoubleOp),
    Logic(LogicOp),
    Compare(Compared, Cmp),
    Convert(Convert),
    /// `d` is an index of `accesses`.
    Load,
    Store,
    /// `d` old value (a slot even of `red`), `a` address, `b`, `c` values; `imm` the offset.
    Atomic(Atomic, Order),
    /// To the instruction `imm`.
    Branch,
    Exit,
    /// `imm` is an index of `lists`: clamp, members.
    Shuffle(Shuffle),
    /// `a` predicate, `b` members; `d` a predicate, or a word of a ballot.
    Vote(Vote),
    /// `a` members; `d` the predicate of one of them.
    Elect,
    Barrier,
    WarpBarrier,
    /// `fence`, `membar`: whether it is sequentially consistent.
    Fence(Scope, bool),
    ProxyFence(ProxySpace),
    /// Known to copies from here on: initialised mbarriers.
    MbarrierInitFence,
    /// `imm` an offset, `d` a list of as many registers as matrices.
    LdMatrix {
        count: u8,
        transposed: bool,
    },
    /// `d` a list: 4 of d, 4 of a, 2 of b, 4 of c.
    Mma,
    /// `d` to, `a` from, `b` bytes that are read; `imm` an offset of `a`.
    CopyAsync,
    CopyCommit,
    CopyWait,
    MbarrierInit,
    MbarrierArrive,
    MbarrierExpect,
    MbarrierTryWait,
    /// `d` a list: to, map, x, y, mbarrier.
    TensorLoad,
    WgmmaFence,
    /// `d` a list of 64 accumulators; `imm` bit 0: A is transposed, bit 1: B.
    Wgmma,
    WgmmaCommit,
    WgmmaWait,
    /// A hint.
    Nothing,
}

impl Op {
    /// Classes of `d`, `a`, `b` and `c` where they are registers.
    pub fn classes(self) -> [Class; 4] {
        use Class::{Long as L, None as N, Predicate as P, Word as W};
        match self {
            Op::Word(op) => match op {
                WordOp::Not
                | WordOp::Neg
                | WordOp::NegHalf
                | WordOp::AbsS
                | WordOp::Popc
                | WordOp::Clz
                | WordOp::ExtendS
                | WordOp::ExtendU => [W, W, N, N],
                WordOp::Mad => [W, W, W, W],
                _ => [W, W, W, N],
            },
            Op::Long(op) => match op {
                LongOp::Not | LongOp::Neg => [L, L, N, N],
                LongOp::Shl | LongOp::ShrS | LongOp::ShrU => [L, L, W, N],
                LongOp::MulWideS | LongOp::MulWideU => [L, W, W, N],
                LongOp::MadWideS | LongOp::MadWideU => [L, W, W, L],
                _ => [L, L, L, N],
            },
            Op::Float(op) => match op {
                FloatOp::Fma | FloatOp::FmaDown => [W, W, W, W],
                FloatOp::Rcp
                | FloatOp::Sqrt
                | FloatOp::Ex2
                | FloatOp::Neg
                | FloatOp::Abs
                | FloatOp::Saturate => [W, W, N, N],
                _ => [W, W, W, N],
            },
            Op::Double(op) => match op {
                DoubleOp::Fma => [L, L, L, L],
                DoubleOp::Rcp | DoubleOp::RcpApprox | DoubleOp::Sqrt | DoubleOp::Neg | DoubleOp::Abs => {
                    [L, L, N, N]
                }
                _ => [L, L, L, N],
            },
            Op::Logic(op) => match op {
                LogicOp::Set => [P, N, N, N],
                LogicOp::Not | LogicOp::Copy => [P, P, N, N],
                _ => [P, P, P, N],
            },
            Op::Compare(of, _) => match of {
                Compared::S64 | Compared::U64 | Compared::F64 => [P, L, L, N],
                _ => [P, W, W, N],
            },
            Op::Convert(op) => op.classes(),
            Op::Atomic(Atomic::CompareAndSwap, _) => [W, L, W, W],
            Op::Atomic(..) => [W, L, W, N],
            Op::Shuffle(_) => [W, W, W, P],
            Op::Vote(Vote::Ballot) => [W, P, W, N],
            Op::Vote(_) => [P, P, W, N],
            Op::Elect => [P, W, N, N],
            Op::CopyAsync => [N, L, W, N],
            Op::MbarrierInit | Op::MbarrierExpect => [N, W, W, N],
            Op::MbarrierTryWait => [P, W, W, N],
            Op::LdMatrix { .. } | Op::MbarrierArrive => [N, W, N, N],
            Op::Wgmma => [N, L, L, N],
            _ => [N; 4],
        }
    }
}

impl Convert {
    fn classes(self) -> [Class; 4] {
        use Class::{Long as L, None as N, Predicate as P, Word as W};
        match self {
            Convert::Word
            | Convert::Bf16OfF32
            | Convert::F32OfBf16
            | Convert::F32OfS32
            | Convert::F32OfU32
            | Convert::F32OfU16
            | Convert::S32OfF32Nearest => [W, W, N, N],
            Convert::Long
            | Convert::F64OfS64
            | Convert::OfParameter
            | Convert::OfLocal
            | Convert::ToLocal => [L, L, N, N],
            Convert::Pack16 | Convert::PackBf16 => [W, W, W, N],
            // `c` is written.
            Convert::Unpack16 => [W, W, N, W],
            Convert::PackLong => [L, W, W, N],
            Convert::UnpackLong => [W, L, N, W],
            Convert::SelectWord => [W, W, W, P],
            Convert::SelectLong => [L, L, L, P],
            Convert::F64OfF32 | Convert::F64OfS32 | Convert::S64OfS32 | Convert::U64OfU32 => [L, W, N, N],
            Convert::F32OfF64 | Convert::U32OfU64 => [W, L, N, N],
        }
    }
}
