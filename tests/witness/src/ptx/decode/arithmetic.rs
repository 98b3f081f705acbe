//! Arithmetic, comparisons, moves and conversions.

use super::{Decoder, Result, bits_of, integer, unknown};
use crate::ptx::parse::Operand;
use crate::ptx::program::{
    Class, Cmp, Compared, Convert, DoubleOp as D, FloatOp as F, LogicOp as P, LongOp as L, Op, WordOp as W,
};

/// The instruction of an opcode whose operands are plain, and its `imm`.
pub(super) fn table(op: &str) -> Option<(Op, i64)> {
    let found =
        word(op).map(Op::Word).or_else(|| long(op).map(Op::Long)).or_else(|| double(op).map(Op::Double));
    let found = found
        .or_else(|| logic(op).map(Op::Logic))
        .or_else(|| compare(op))
        .or_else(|| convert(op).map(Op::Convert));
    found
        .map(|op| (op, 0))
        .or_else(|| float(op).map(|(op, ftz)| (Op::Float(op), ftz.into())))
        .or_else(|| extend(op))
}

fn word(op: &str) -> Option<W> {
    Some(match op {
        "add.s32" | "add.u32" => W::Add,
        "sub.s32" | "sub.u32" => W::Sub,
        "mul.lo.s32" | "mul.lo.u32" | "mul.wide.u16" => W::Mul,
        "mul.hi.s32" => W::MulHighS,
        "mul.hi.u32" => W::MulHighU,
        "mad.lo.s32" | "mad.lo.u32" => W::Mad,
        "min.s32" => W::MinS,
        "max.s32" => W::MaxS,
        "min.u32" => W::MinU,
        "max.u32" => W::MaxU,
        "div.s32" => W::DivS,
        "div.u32" => W::DivU,
        "rem.s32" => W::RemS,
        "rem.u32" => W::RemU,
        // Registers of 16 bits hold them without a sign in the lower half of a word: these leave it so.
        "and.b32" | "and.b16" => W::And,
        "or.b32" | "or.b16" => W::Or,
        "xor.b32" | "xor.b16" => W::Xor,
        "not.b32" => W::Not,
        "neg.s32" => W::Neg,
        "neg.s16" => W::NegHalf,
        "abs.s32" => W::AbsS,
        "shl.b32" => W::Shl,
        "shr.s32" => W::ShrS,
        "shr.u32" | "shr.b32" | "shr.u16" => W::ShrU,
        "popc.b32" => W::Popc,
        "clz.b32" => W::Clz,
        _ => return None,
    })
}

fn long(op: &str) -> Option<L> {
    Some(match op {
        "add.s64" | "add.u64" => L::Add,
        "sub.s64" | "sub.u64" => L::Sub,
        "mul.lo.s64" | "mul.lo.u64" => L::Mul,
        "mul.wide.s32" => L::MulWideS,
        "mul.wide.u32" => L::MulWideU,
        "mad.wide.s32" => L::MadWideS,
        "mad.wide.u32" => L::MadWideU,
        "min.s64" => L::MinS,
        "max.s64" => L::MaxS,
        "min.u64" => L::MinU,
        "max.u64" => L::MaxU,
        "div.s64" => L::DivS,
        "div.u64" => L::DivU,
        "rem.s64" => L::RemS,
        "rem.u64" => L::RemU,
        "and.b64" => L::And,
        "or.b64" => L::Or,
        "xor.b64" => L::Xor,
        "not.b64" => L::Not,
        "neg.s64" => L::Neg,
        "shl.b64" => L::Shl,
        "shr.s64" => L::ShrS,
        "shr.u64" | "shr.b64" => L::ShrU,
        _ => return None,
    })
}

/// The operation, and whether subnormals are zero.
fn float(op: &str) -> Option<(F, bool)> {
    let ftz = op.contains(".ftz.");
    let plain = op.replace(".ftz", "");
    let found = match plain.as_str() {
        "add.f32" | "add.rn.f32" => F::Add,
        "sub.f32" | "sub.rn.f32" => F::Sub,
        "mul.f32" | "mul.rn.f32" => F::Mul,
        "fma.rn.f32" => F::Fma,
        "fma.rm.f32" => F::FmaDown,
        "div.rn.f32" => F::Div,
        "rcp.rn.f32" | "rcp.approx.f32" => F::Rcp,
        "sqrt.rn.f32" => F::Sqrt,
        "ex2.approx.f32" => F::Ex2,
        "min.f32" => F::Min,
        "max.f32" => F::Max,
        "neg.f32" => F::Neg,
        "abs.f32" => F::Abs,
        "cvt.sat.f32.f32" => F::Saturate,
        "copysign.f32" if !ftz => F::Copysign,
        _ => return None,
    };
    Some((found, ftz))
}

fn double(op: &str) -> Option<D> {
    Some(match op {
        "add.f64" | "add.rn.f64" => D::Add,
        "sub.f64" | "sub.rn.f64" => D::Sub,
        "mul.f64" | "mul.rn.f64" => D::Mul,
        "fma.rn.f64" => D::Fma,
        "div.rn.f64" => D::Div,
        "rcp.rn.f64" => D::Rcp,
        "rcp.approx.ftz.f64" => D::RcpApprox,
        "sqrt.rn.f64" => D::Sqrt,
        "min.f64" => D::Min,
        "max.f64" => D::Max,
        "neg.f64" => D::Neg,
        "abs.f64" => D::Abs,
        _ => return None,
    })
}

fn logic(op: &str) -> Option<P> {
    Some(match op {
        "and.pred" => P::And,
        "or.pred" => P::Or,
        "xor.pred" => P::Xor,
        "not.pred" => P::Not,
        _ => return None,
    })
}

fn compare(op: &str) -> Option<Op> {
    let (cmp, kind) = op.strip_prefix("setp.")?.split_once('.')?;
    let of = match kind {
        "s16" => Compared::S16,
        "u16" | "b16" => Compared::U16,
        "s32" => Compared::S32,
        "u32" | "b32" => Compared::U32,
        "s64" => Compared::S64,
        "u64" | "b64" => Compared::U64,
        "f32" => Compared::F32,
        "f64" => Compared::F64,
        _ => return None,
    };
    let float = kind.starts_with('f');
    let cmp = match cmp {
        "eq" => Cmp::Eq,
        "ne" => Cmp::Ne,
        _ if kind.starts_with('b') => return None,
        "lt" => Cmp::Lt,
        "le" => Cmp::Le,
        "gt" => Cmp::Gt,
        "ge" => Cmp::Ge,
        "lo" if !float => Cmp::Lt,
        "ls" if !float => Cmp::Le,
        "hi" if !float => Cmp::Gt,
        "hs" if !float => Cmp::Ge,
        "equ" if float => Cmp::Equ,
        "neu" if float => Cmp::Neu,
        "ltu" if float => Cmp::Ltu,
        "leu" if float => Cmp::Leu,
        "gtu" if float => Cmp::Gtu,
        "geu" if float => Cmp::Geu,
        "nan" if float => Cmp::Nan,
        "num" if float => Cmp::Num,
        _ => return None,
    };
    Some(Op::Compare(of, cmp))
}

fn convert(op: &str) -> Option<Convert> {
    if let Some(kind) = op.strip_prefix("selp.") {
        return match bits_of(kind)? {
            64 => Some(Convert::SelectLong),
            16 | 32 => Some(Convert::SelectWord),
            _ => None,
        };
    }
    Some(match op {
        "cvta.to.global.u64" | "cvta.global.u64" => Convert::Long,
        "cvta.param.u64" => Convert::OfParameter,
        "cvta.local.u64" => Convert::OfLocal,
        "cvta.to.local.u64" => Convert::ToLocal,
        _ => return None,
    })
}

fn extend(op: &str) -> Option<(Op, i64)> {
    Some(match op {
        "cvt.u32.u16" | "cvt.u16.u32" | "cvt.s32.u16" => (Op::Word(W::ExtendU), 16),
        "cvt.s32.s16" => (Op::Word(W::ExtendS), 16),
        "cvt.u32.u8" | "cvt.u16.u8" | "cvt.s32.u8" => (Op::Word(W::ExtendU), 8),
        "cvt.s32.s8" => (Op::Word(W::ExtendS), 8),
        _ => return None,
    })
}

fn conversion(op: &str) -> Option<Convert> {
    Some(match op {
        "cvt.f64.f32" => Convert::F64OfF32,
        "cvt.rn.f32.f64" => Convert::F32OfF64,
        "cvt.rn.bf16.f32" => Convert::Bf16OfF32,
        "cvt.rn.bf16x2.f32" => Convert::PackBf16,
        "cvt.f32.bf16" => Convert::F32OfBf16,
        "cvt.rn.f32.s32" => Convert::F32OfS32,
        "cvt.rn.f32.u32" => Convert::F32OfU32,
        "cvt.rn.f32.u16" => Convert::F32OfU16,
        "cvt.rn.f64.s32" => Convert::F64OfS32,
        "cvt.rn.f64.s64" => Convert::F64OfS64,
        "cvt.rni.s32.f32" => Convert::S32OfF32Nearest,
        "cvt.s64.s32" => Convert::S64OfS32,
        "cvt.u64.u32" => Convert::U64OfU32,
        "cvt.u32.u64" | "cvt.s32.s64" => Convert::U32OfU64,
        _ => return None,
    })
}

impl Decoder<'_> {
    /// `mov`, `bfi` and `cvt`, whose operands have forms of their own.
    pub(super) fn special_arithmetic(&mut self, op: &str, o: &[Operand]) -> Result<()> {
        let (head, kind) = op.rsplit_once('.').ok_or("no type")?;
        match head {
            "mov" => self.mov(bits_of(kind).ok_or("no type")?, o),
            "bfi" => {
                let op = match kind {
                    "b32" => Op::Word(W::Insert),
                    "b64" => Op::Long(L::Insert),
                    _ => return unknown(),
                };
                let (at, length) = (integer(o.get(3))?, integer(o.get(4))?);
                self.plain(op, at & 0xff | (length & 0xff) << 8, &o[..3])
            }
            _ => {
                let convert = Op::Convert(conversion(op).ok_or("not modelled")?);
                // A source register may be wider than its type.
                if let [to, Operand::Name(name)] = o
                    && convert.classes()[1] == Class::Word
                    && let Some((Class::Long, wide)) = self.register(name)
                {
                    let (narrow, d) = (self.take(Class::Word, 1), self.value(to, convert.classes()[0])?);
                    let i = self.emit(Op::Convert(Convert::U32OfU64));
                    (i.d, i.a) = (narrow, wide);
                    let i = self.emit(convert);
                    (i.d, i.a) = (d, narrow);
                    return Ok(());
                }
                self.plain(convert, 0, o)
            }
        }
    }

    fn mov(&mut self, bits: u32, o: &[Operand]) -> Result<()> {
        match o {
            [Operand::List(to), from] if to.len() == 2 && bits >= 32 => {
                let op = Op::Convert(if bits == 64 { Convert::UnpackLong } else { Convert::Unpack16 });
                self.plain(op, 0, &[to[0].clone(), from.clone(), to[1].clone()])
            }
            [to, Operand::List(from)] if from.len() == 2 && bits >= 32 => {
                let op = Op::Convert(if bits == 64 { Convert::PackLong } else { Convert::Pack16 });
                self.plain(op, 0, &[to.clone(), from[0].clone(), from[1].clone()])
            }
            [to, Operand::Int(v)] if bits == 1 => {
                self.plain(Op::Logic(P::Set), (*v != 0).into(), std::slice::from_ref(to))
            }
            [_, Operand::Name(_)] if bits == 1 => self.plain(Op::Logic(P::Copy), 0, o),
            [_, Operand::List(_)] | [Operand::List(_), _] => unknown(),
            _ if bits == 64 => self.plain(Op::Convert(Convert::Long), 0, o),
            _ if bits == 16 || bits == 32 => self.plain(Op::Convert(Convert::Word), 0, o),
            _ => unknown(),
        }
    }
}
