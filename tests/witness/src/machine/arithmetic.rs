//! Arithmetic of all lanes at once. Integers wrap; f32 and f64 round to nearest even by the host's own arithmetic, which is
//! IEEE's; `ex2.approx`, `rcp.approx` and `rcp.approx.f64` are the correctly rounded results, which lie within what PTX allows.
//! Division by zero, unspecified in PTX, is all ones; a NaN that arithmetic makes has the host's bits.

use super::registers::{Lanes, Registers};
use crate::ptx::program::{Cmp, Compared, Convert, DoubleOp, FloatOp, Instruction, LogicOp, LongOp, WordOp};
use std::array::from_fn;

/// 32-bit integers.
#[inline]
pub fn word(op: WordOp, i: &Instruction, r: &mut Registers, mask: u32) {
    let (a, b, c) = (r.word(i.a), r.word(i.b), r.word(i.c));
    macro_rules! u { (|$a:ident $(, $b:ident $(, $c:ident)?)?| $e:expr) => { from_fn(|l| { let $a = a[l]; $(let $b = b[l]; $(let $c = c[l];)?)? $e }) } }
    macro_rules! s { (|$a:ident $(, $b:ident)?| $e:expr) => { from_fn(|l| { let $a = a[l] as i32; $(let $b = b[l] as i32;)? ($e) as u32 }) } }
    let (at, length) = (i.imm as u32 & 0xff, i.imm as u32 >> 8 & 0xff);
    let t: Lanes<u32> = match op {
        WordOp::Add => u!(|a, b| a.wrapping_add(b)),
        WordOp::Sub => u!(|a, b| a.wrapping_sub(b)),
        WordOp::Mul => u!(|a, b| a.wrapping_mul(b)),
        WordOp::MulHighS => s!(|a, b| (i64::from(a) * i64::from(b)) >> 32),
        WordOp::MulHighU => u!(|a, b| ((u64::from(a) * u64::from(b)) >> 32) as u32),
        WordOp::Mad => u!(|a, b, c| a.wrapping_mul(b).wrapping_add(c)),
        WordOp::MinS => s!(|a, b| a.min(b)),
        WordOp::MaxS => s!(|a, b| a.max(b)),
        WordOp::MinU => u!(|a, b| a.min(b)),
        WordOp::MaxU => u!(|a, b| a.max(b)),
        WordOp::DivS => s!(|a, b| if b == 0 { -1 } else { a.wrapping_div(b) }),
        WordOp::DivU => u!(|a, b| a.checked_div(b).unwrap_or(u32::MAX)),
        WordOp::RemS => s!(|a, b| if b == 0 { a } else { a.wrapping_rem(b) }),
        WordOp::RemU => u!(|a, b| a.checked_rem(b).unwrap_or(a)),
        WordOp::And => u!(|a, b| a & b),
        WordOp::Or => u!(|a, b| a | b),
        WordOp::Xor => u!(|a, b| a ^ b),
        WordOp::Not => u!(|a| !a),
        WordOp::Neg => u!(|a| a.wrapping_neg()),
        WordOp::NegHalf => u!(|a| a.wrapping_neg() & 0xffff),
        WordOp::AbsS => s!(|a| a.wrapping_abs()),
        WordOp::Shl => u!(|a, b| a.checked_shl(b).unwrap_or(0)),
        WordOp::ShrU => u!(|a, b| a.checked_shr(b).unwrap_or(0)),
        WordOp::ShrS => from_fn(|l| (a[l] as i32 >> b[l].min(31)) as u32),
        WordOp::Popc => u!(|a| a.count_ones()),
        WordOp::Clz => u!(|a| a.leading_zeros()),
        WordOp::Insert => {
            let m = insert_mask(at, length) as u32;
            u!(|a, b| b & !m | (u64::from(a) << at.min(32)) as u32 & m)
        }
        WordOp::ExtendS => {
            let by = 32 - i.imm as u32;
            s!(|a| a << by >> by)
        }
        WordOp::ExtendU => {
            let by = 32 - i.imm as u32;
            u!(|a| a << by >> by)
        }
    };
    r.put(i.d, &t, mask);
}

fn insert_mask(at: u32, length: u32) -> u64 {
    let ones = if length >= 64 { u64::MAX } else { (1 << length) - 1 };
    ones.checked_shl(at).unwrap_or(0)
}

/// 64-bit integers.
#[inline]
pub fn long(op: LongOp, i: &Instruction, r: &mut Registers, mask: u32) {
    use LongOp::{MadWideS, MadWideU, MulWideS, MulWideU};
    if let MulWideS | MulWideU | MadWideS | MadWideU = op {
        return wide(op, i, r, mask);
    }
    let (a, words) = (r.long(i.a), r.word(i.b));
    let b = if let LongOp::Shl | LongOp::ShrS | LongOp::ShrU | LongOp::Not | LongOp::Neg = op {
        [0; 32]
    } else {
        r.long(i.b)
    };
    macro_rules! u { (|$a:ident $(, $b:ident)?| $e:expr) => { from_fn(|l| { let $a = a[l]; $(let $b = b[l];)? $e }) } }
    macro_rules! s {
        (|$a:ident, $b:ident| $e:expr) => {
            from_fn(|l| {
                let ($a, $b) = (a[l] as i64, b[l] as i64);
                ($e) as u64
            })
        };
    }
    let t: Lanes<u64> = match op {
        LongOp::Add => u!(|a, b| a.wrapping_add(b)),
        LongOp::Sub => u!(|a, b| a.wrapping_sub(b)),
        LongOp::Mul => u!(|a, b| a.wrapping_mul(b)),
        LongOp::MinS => s!(|a, b| a.min(b)),
        LongOp::MaxS => s!(|a, b| a.max(b)),
        LongOp::MinU => u!(|a, b| a.min(b)),
        LongOp::MaxU => u!(|a, b| a.max(b)),
        LongOp::DivS => s!(|a, b| if b == 0 { -1 } else { a.wrapping_div(b) }),
        LongOp::DivU => u!(|a, b| a.checked_div(b).unwrap_or(u64::MAX)),
        LongOp::RemS => s!(|a, b| if b == 0 { a } else { a.wrapping_rem(b) }),
        LongOp::RemU => u!(|a, b| a.checked_rem(b).unwrap_or(a)),
        LongOp::And => u!(|a, b| a & b),
        LongOp::Or => u!(|a, b| a | b),
        LongOp::Xor => u!(|a, b| a ^ b),
        LongOp::Not => u!(|a| !a),
        LongOp::Neg => u!(|a| a.wrapping_neg()),
        LongOp::Shl => from_fn(|l| a[l].checked_shl(words[l]).unwrap_or(0)),
        LongOp::ShrU => from_fn(|l| a[l].checked_shr(words[l]).unwrap_or(0)),
        LongOp::ShrS => from_fn(|l| (a[l] as i64 >> words[l].min(63)) as u64),
        _ => {
            let (at, length) = (i.imm as u32 & 0xff, i.imm as u32 >> 8 & 0xff);
            let m = insert_mask(at, length);
            u!(|a, b| b & !m | a.checked_shl(at).unwrap_or(0) & m)
        }
    };
    r.put_long(i.d, &t, mask);
}

fn wide(op: LongOp, i: &Instruction, r: &mut Registers, mask: u32) {
    let (a, b) = (r.word(i.a), r.word(i.b));
    let signed = matches!(op, LongOp::MulWideS | LongOp::MadWideS);
    let mut t: Lanes<u64> = match signed {
        true => from_fn(|l| (i64::from(a[l] as i32) * i64::from(b[l] as i32)) as u64),
        false => from_fn(|l| u64::from(a[l]) * u64::from(b[l])),
    };
    if let LongOp::MadWideS | LongOp::MadWideU = op {
        let c = r.long(i.c);
        t = from_fn(|l| t[l].wrapping_add(c[l]));
    }
    r.put_long(i.d, &t, mask);
}

/// A subnormal becomes zero of its sign.
fn flush(x: f32) -> f32 {
    if x.is_subnormal() { 0f32.copysign(x) } else { x }
}

/// f32.
#[inline]
pub fn float(op: FloatOp, i: &Instruction, r: &mut Registers, mask: u32) {
    let (a, b, c) = (r.word(i.a), r.word(i.b), r.word(i.c));
    let ftz = i.imm != 0;
    let of = |x: u32| if ftz { flush(f32::from_bits(x)) } else { f32::from_bits(x) };
    macro_rules! f { (|$a:ident $(, $b:ident $(, $c:ident)?)?| $e:expr) => { from_fn(|l| {
        let $a = of(a[l]); $(let $b = of(b[l]); $(let $c = of(c[l]);)?)?
        let result: f32 = $e;
        if ftz { flush(result) } else { result }.to_bits()
    }) } }
    let t: Lanes<u32> = match op {
        FloatOp::Add => f!(|a, b| a + b),
        FloatOp::Sub => f!(|a, b| a - b),
        FloatOp::Mul => f!(|a, b| a * b),
        FloatOp::Div => f!(|a, b| a / b),
        FloatOp::Fma => f!(|a, b, c| a.mul_add(b, c)),
        FloatOp::FmaDown => f!(|a, b, c| fma_down(a, b, c)),
        FloatOp::Rcp => f!(|a| 1.0 / a),
        FloatOp::Sqrt => f!(|a| a.sqrt()),
        FloatOp::Ex2 => f!(|a| f64::from(a).exp2() as f32),
        FloatOp::Min => f!(|a, b| smaller(a, b)),
        FloatOp::Max => f!(|a, b| -smaller(-a, -b)),
        FloatOp::Saturate => f!(|a| if a > 0.0 { a.min(1.0) } else { 0.0 }),
        FloatOp::Neg => from_fn(|l| of(a[l]).to_bits() ^ 0x8000_0000),
        FloatOp::Abs => from_fn(|l| of(a[l]).to_bits() & 0x7fff_ffff),
        FloatOp::Copysign => from_fn(|l| a[l] & 0x8000_0000 | b[l] & 0x7fff_ffff),
    };
    r.put(i.d, &t, mask);
}

/// The smaller one, of which -0 is smaller than 0 and anything is than NaN.
fn smaller<T: PartialOrd + Copy + Into<f64>>(a: T, b: T) -> T {
    let (x, y): (f64, f64) = (a.into(), b.into());
    if y.is_nan() || x < y || x == y && x.is_sign_negative() { a } else { b }
}

/// a b + c, rounded down: the product is exact in f64, and so is the error of its sum with c.
fn fma_down(a: f32, b: f32, c: f32) -> f32 {
    let (p, c) = (f64::from(a) * f64::from(b), f64::from(c));
    let s = p + c;
    if !s.is_finite() {
        return s as f32;
    }
    let t = s - p;
    let error = (p - (s - t)) + (c - t);
    if s == 0.0 && error == 0.0 && (p != 0.0 || p.is_sign_negative() != c.is_sign_negative()) {
        return -0.0;
    }
    let r = s as f32;
    if f64::from(r) > s || f64::from(r) == s && error < 0.0 { r.next_down() } else { r }
}

/// f64.
#[inline]
pub fn double(op: DoubleOp, i: &Instruction, r: &mut Registers, mask: u32) {
    let unary =
        matches!(op, DoubleOp::Rcp | DoubleOp::RcpApprox | DoubleOp::Sqrt | DoubleOp::Neg | DoubleOp::Abs);
    let a = r.long(i.a);
    let b = if unary { a } else { r.long(i.b) };
    let c = if op == DoubleOp::Fma { r.long(i.c) } else { a };
    macro_rules! f { (|$a:ident $(, $b:ident $(, $c:ident)?)?| $e:expr) => { from_fn(|l| {
        let $a = f64::from_bits(a[l]); $(let $b = f64::from_bits(b[l]); $(let $c = f64::from_bits(c[l]);)?)?
        f64::to_bits($e)
    }) } }
    let t: Lanes<u64> = match op {
        DoubleOp::Add => f!(|a, b| a + b),
        DoubleOp::Sub => f!(|a, b| a - b),
        DoubleOp::Mul => f!(|a, b| a * b),
        DoubleOp::Div => f!(|a, b| a / b),
        DoubleOp::Fma => f!(|a, b, c| a.mul_add(b, c)),
        DoubleOp::Rcp => f!(|a| 1.0 / a),
        // The upper 32 bits of the reciprocal, as the hardware gives them.
        DoubleOp::RcpApprox => {
            from_fn(|l| (1.0 / f64::from_bits(a[l] & !0xffff_ffff)).to_bits() & !0xffff_ffff)
        }
        DoubleOp::Sqrt => f!(|a| a.sqrt()),
        DoubleOp::Min => f!(|a, b| smaller(a, b)),
        DoubleOp::Max => f!(|a, b| -smaller(-a, -b)),
        DoubleOp::Neg => from_fn(|l| a[l] ^ 1 << 63),
        DoubleOp::Abs => from_fn(|l| a[l] & !(1 << 63)),
    };
    r.put_long(i.d, &t, mask);
}

/// Predicates.
#[inline]
pub fn logic(op: LogicOp, i: &Instruction, r: &mut Registers, mask: u32) {
    let (a, b) = (r.predicate(i.a), r.predicate(i.b));
    let t = match op {
        LogicOp::And => a & b,
        LogicOp::Or => a | b,
        LogicOp::Xor => a ^ b,
        LogicOp::Not => !a,
        LogicOp::Copy => a,
        LogicOp::Set => u32::from(i.imm == 0).wrapping_sub(1),
    };
    r.put_predicate(i.d, t, mask);
}

fn compare<T: PartialOrd>(c: Cmp, a: T, b: T) -> bool {
    use std::cmp::Ordering::{Equal, Greater, Less};
    let o = a.partial_cmp(&b);
    match c {
        Cmp::Eq => o == Some(Equal),
        Cmp::Ne => o.is_some_and(|o| o != Equal),
        Cmp::Lt => o == Some(Less),
        Cmp::Le => matches!(o, Some(Less | Equal)),
        Cmp::Gt => o == Some(Greater),
        Cmp::Ge => matches!(o, Some(Greater | Equal)),
        Cmp::Equ => matches!(o, Some(Equal) | None),
        Cmp::Neu => o != Some(Equal),
        Cmp::Ltu => matches!(o, Some(Less) | None),
        Cmp::Leu => matches!(o, Some(Less | Equal) | None),
        Cmp::Gtu => matches!(o, Some(Greater) | None),
        Cmp::Geu => matches!(o, Some(Greater | Equal) | None),
        Cmp::Nan => o.is_none(),
        Cmp::Num => o.is_some(),
    }
}

/// `setp`.
#[inline]
pub fn set_predicate(of: Compared, c: Cmp, i: &Instruction, r: &mut Registers, mask: u32) {
    macro_rules! bits {
        (|$l:ident| $a:expr, $b:expr) => {{
            let bit = |c: Cmp| (0..32).fold(0u32, |m, $l| m | u32::from(compare(c, $a, $b)) << $l);
            // So that the compiler makes a loop of each of the common ones.
            match c {
                Cmp::Lt => bit(Cmp::Lt),
                Cmp::Eq => bit(Cmp::Eq),
                Cmp::Ge => bit(Cmp::Ge),
                Cmp::Ne => bit(Cmp::Ne),
                c => bit(c),
            }
        }};
    }
    macro_rules! words {
        ($t:ty) => {{
            let (a, b) = (r.word(i.a), r.word(i.b));
            bits!(|l| a[l] as $t, b[l] as $t)
        }};
    }
    let t = match of {
        Compared::S16 => words!(i16),
        Compared::U16 => words!(u16),
        Compared::S32 => words!(i32),
        Compared::U32 => words!(u32),
        Compared::F32 => {
            let (a, b) = (r.word(i.a), r.word(i.b));
            bits!(|l| f32::from_bits(a[l]), f32::from_bits(b[l]))
        }
        _ => {
            let (a, b) = (r.long(i.a), r.long(i.b));
            match of {
                Compared::S64 => bits!(|l| a[l] as i64, b[l] as i64),
                Compared::U64 => bits!(|l| a[l], b[l]),
                _ => bits!(|l| f64::from_bits(a[l]), f64::from_bits(b[l])),
            }
        }
    };
    r.put_predicate(i.d, t, mask);
}

/// bf16 as f32: exact.
pub fn of_bf16(x: u16) -> f32 {
    f32::from_bits(u32::from(x) << 16)
}

/// The nearest bf16, ties to even; NaN is 0x7fff.
fn to_bf16(x: f32) -> u16 {
    if x.is_nan() {
        return 0x7fff;
    }
    let b = x.to_bits();
    ((b + 0x7fff + (b >> 16 & 1)) >> 16) as u16
}

/// What `cvta` adds.
pub struct Windows {
    /// Where the arguments lie.
    pub parameters: u64,
    /// What local memory looks like as a generic address.
    pub local: u64,
}

/// Copies and conversions.
#[inline]
pub fn convert(op: Convert, i: &Instruction, r: &mut Registers, mask: u32, windows: &Windows) {
    macro_rules! word {
        ($from:ident, |$a:ident| $e:expr) => {{
            let v = r.$from(i.a);
            let t: Lanes<u32> = from_fn(|l| {
                let $a = v[l];
                $e
            });
            r.put(i.d, &t, mask)
        }};
    }
    macro_rules! long {
        ($from:ident, |$a:ident| $e:expr) => {{
            let v = r.$from(i.a);
            let t: Lanes<u64> = from_fn(|l| {
                let $a = v[l];
                $e
            });
            r.put_long(i.d, &t, mask)
        }};
    }
    match op {
        Convert::Word => word!(word, |a| a),
        Convert::Long => long!(long, |a| a),
        Convert::Pack16 | Convert::PackLong => {
            let (a, b) = (*r.word(i.a), *r.word(i.b));
            match op {
                Convert::Pack16 => r.put(i.d, &from_fn(|l| a[l] & 0xffff | b[l] << 16), mask),
                _ => r.put_long(i.d, &from_fn(|l| u64::from(a[l]) | u64::from(b[l]) << 32), mask),
            }
        }
        Convert::Unpack16 => {
            let a = *r.word(i.a);
            r.put(i.d, &a.map(|a| a & 0xffff), mask);
            r.put(i.c, &a.map(|a| a >> 16), mask);
        }
        Convert::UnpackLong => {
            let a = r.long(i.a);
            r.put(i.d, &a.map(|a| a as u32), mask);
            r.put(i.c, &a.map(|a| (a >> 32) as u32), mask);
        }
        Convert::SelectWord => {
            let (a, b, p) = (*r.word(i.a), *r.word(i.b), r.predicate(i.c));
            r.put(i.d, &from_fn(|l| if p >> l & 1 != 0 { a[l] } else { b[l] }), mask);
        }
        Convert::SelectLong => {
            let (a, b, p) = (r.long(i.a), r.long(i.b), r.predicate(i.c));
            r.put_long(i.d, &from_fn(|l| if p >> l & 1 != 0 { a[l] } else { b[l] }), mask);
        }
        Convert::F64OfF32 => long!(word, |a| f64::from(f32::from_bits(a)).to_bits()),
        Convert::F32OfF64 => word!(long, |a| (f64::from_bits(a) as f32).to_bits()),
        Convert::PackBf16 => {
            let (high, low) = (*r.word(i.a), *r.word(i.b));
            let bf16 = |bits| u32::from(to_bf16(f32::from_bits(bits)));
            r.put(i.d, &from_fn(|l| bf16(low[l]) | bf16(high[l]) << 16), mask)
        }
        Convert::Bf16OfF32 => word!(word, |a| u32::from(to_bf16(f32::from_bits(a)))),
        Convert::F32OfBf16 => word!(word, |a| a << 16),
        Convert::F32OfS32 => word!(word, |a| (a as i32 as f32).to_bits()),
        Convert::F32OfU32 => word!(word, |a| (a as f32).to_bits()),
        Convert::F32OfU16 => word!(word, |a| f32::from(a as u16).to_bits()),
        Convert::F64OfS32 => long!(word, |a| f64::from(a as i32).to_bits()),
        Convert::F64OfS64 => long!(long, |a| (a as i64 as f64).to_bits()),
        Convert::S32OfF32Nearest => word!(word, |a| f32::from_bits(a).round_ties_even() as i32 as u32),
        Convert::S64OfS32 => long!(word, |a| i64::from(a as i32) as u64),
        Convert::U64OfU32 => long!(word, |a| u64::from(a)),
        Convert::U32OfU64 => word!(long, |a| a as u32),
        Convert::OfParameter => long!(long, |a| a.wrapping_add(windows.parameters)),
        Convert::OfLocal => long!(long, |a| a.wrapping_add(windows.local)),
        Convert::ToLocal => long!(long, |a| a.wrapping_sub(windows.local)),
    }
}
