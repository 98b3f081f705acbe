//! A program: instructions whose operands are slots of a warp's register file, 32 lanes of 32 bits each; a value of 64 bits
//! takes two slots. Constants and special registers have slots, too.

pub use super::op::*;
use super::parse::Loc;
use std::collections::HashMap;

/// Where a load or store goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Space {
    Global,
    Shared,
    Local,
    Parameter,
    Generic,
}

/// What a load or store moves.
#[derive(Clone, Copy, Debug)]
pub struct Access {
    /// Where.
    pub space: Space,
    /// Bytes of a value.
    pub bytes: u8,
    /// Values a lane.
    pub count: u8,
    /// A load extends the sign.
    pub signed: bool,
    /// Registers of 64 bits.
    pub long: bool,
    /// The address is a register of 64 bits.
    pub wide: bool,
    /// `.nc`: from memory that nobody writes while the kernel runs.
    pub constant: bool,
    /// What it orders.
    pub order: Order,
    /// `count` slots.
    pub registers: [u32; 4],
}

/// An instruction; what its fields mean, [`Op`] says.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Instruction {
    pub op: Op,
    pub d: u32,
    pub a: u32,
    pub b: u32,
    pub c: u32,
    pub imm: i64,
    /// 0: always; else predicate + 1, negated when the top bit is set.
    pub guard: u32,
}

impl Instruction {
    /// How many accumulators a product of a warpgroup has in its list: one for two columns.
    pub fn accumulators(&self) -> usize {
        (self.imm >> 3) as usize
    }
}

/// The top bit of a negated guard.
pub const NEGATED: u32 = 1 << 31;

/// Where an instruction stands.
#[derive(Clone, Copy, Debug, Default)]
pub struct Place {
    /// Line of the PTX text.
    pub line: u32,
    /// Line of the source.
    pub source: Loc,
}

/// A kernel, ready to run.
#[derive(Debug)]
pub struct Program {
    /// The kernel's name.
    pub name: String,
    /// Its instructions.
    pub code: Vec<Instruction>,
    /// Where each of them stands.
    pub places: Vec<Place>,
    /// What loads and stores move.
    pub accesses: Vec<Access>,
    /// Slots of instructions with many operands.
    pub lists: Vec<u32>,
    /// Slots of a warp's register file.
    pub slots: u32,
    /// Predicates of a warp.
    pub predicates: u32,
    /// Slots that hold a constant of 32 bits.
    pub words: Vec<(u32, u32)>,
    /// Slots that hold a constant of 64 bits.
    pub longs: Vec<(u32, u64)>,
    /// Special registers; a name that ends in `:long` has 64 bits.
    pub specials: Vec<(String, u32)>,
    /// Bytes of the arguments.
    pub parameter_bytes: usize,
    /// Bytes of a thread's local memory.
    pub local_bytes: usize,
    /// Most threads of a block.
    pub max_threads: u32,
    /// Slots that each instruction reads or writes; only of programs with wgmma.
    pub touched: Vec<Box<[u32]>>,
    /// Products whose accumulators were touched since the last `wgmma.fence`, in order.
    pub unfenced: Vec<u32>,
    /// Source files by number.
    pub files: HashMap<u32, String>,
}

impl Program {
    /// Whether anything works in the asynchronous proxy.
    pub fn is_asynchronous(&self) -> bool {
        self.code.iter().any(|i| matches!(i.op, Op::TensorLoad | Op::Wgmma))
    }

    /// `PTX line 812, matmul.cu:83, called from matmul.cu:120`, as far as known.
    pub fn place(&self, pc: usize) -> String {
        let place = self.places.get(pc).copied().unwrap_or_default();
        let name = |file: u32| {
            let path = self.files.get(&file).map_or("?", String::as_str);
            path.rsplit('/').next().unwrap_or(path).to_string()
        };
        let mut text = format!("PTX line {}", place.line);
        let Loc { file, line, outer } = place.source;
        if file != 0 {
            text += &format!(", {}:{line}", name(file));
        }
        if outer.0 != 0 {
            text += &format!(", called from {}:{}", name(outer.0), outer.1);
        }
        text
    }
}
