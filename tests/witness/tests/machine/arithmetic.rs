//! Integers, floats, predicates, conversions, against Rust's own arithmetic in wider types.

use super::rig::{Buffer, Random, Shape, assemble, try_assemble};

pub const THREADS: usize = 512;

/// Values at the edges, then anything.
pub fn words(seed: u64) -> Vec<u32> {
    let edges = [
        0,
        1,
        2,
        5,
        31,
        32,
        33,
        0x7f,
        0x80,
        0xff,
        0x7fff,
        0x8000,
        0xffff,
        0x7fff_ffff,
        0x8000_0000,
        0xffff_ffff,
    ];
    let mut random = Random::new(seed);
    let any = |i: usize, r: u64| {
        if i < 256 {
            edges[i * 7 % 16] ^ if i.is_multiple_of(5) { r as u32 & 3 } else { 0 }
        } else {
            (r >> 13) as u32
        }
    };
    (0..THREADS).map(|i| any(i, random.bits())).collect()
}

fn pairs(seed: u64) -> Vec<u64> {
    words(seed)
        .into_iter()
        .zip(words(seed + 9))
        .map(|(a, b)| if a % 3 == 0 { u64::from(a) } else { u64::from(a) | u64::from(b) << 32 })
        .collect()
}

pub fn floats(seed: u64) -> Vec<f32> {
    let edges = [
        0.0,
        -0.0,
        1.0,
        -1.5,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        f32::MAX,
        f32::MIN_POSITIVE,
        1e-41,
        -3e-42,
        0.1,
        -7.25,
        3e9,
    ];
    let mut random = Random::new(seed);
    let any = |i: usize, r: u64| {
        if i.is_multiple_of(3) {
            edges[(r % 14) as usize]
        } else {
            ((r >> 40) as f32 / (1 << 20) as f32 - 8.0) * if i.is_multiple_of(2) { 1.0 } else { 1e-3 }
        }
    };
    (0..THREADS).map(|i| any(i, random.bits())).collect()
}

/// Runs `op` with operands %r10, %r11, %r12 (or their f32, f64, u64 twins) on every thread; the result is %r20 (%f20, %fd20,
/// %rd20), or the predicate %p20.
pub fn results(op: &str, operands: [&[u64]; 3], loads: &str, result: &str) -> Vec<u64> {
    let interleaved: Vec<u32> = (0..THREADS)
        .flat_map(|t| operands.iter().flat_map(move |o| [o[t] as u32, (o[t] >> 32) as u32]))
        .collect();
    let (a, b) = (Buffer::of_u32(&interleaved), Buffer::unwritten(8 * THREADS));
    let p = assemble(&format!(
        "mul.wide.u32 %rd4, %r2, 24; add.s64 %rd5, %rd1, %rd4; mul.wide.u32 %rd6, %r2, 8; add.s64 %rd7, %rd2, %rd6;\n\
         mov.u64 %rd8, 0; st.global.u64 [%rd7], %rd8;\n{loads}\n{op};\n{result}"
    ));
    Shape::threads(THREADS as u32).run(&p, &[&a, &b]).unwrap_or_else(|e| panic!("{op}: {e}"));
    b.u64s()
}

pub const WORDS: &str =
    "ld.global.u32 %r10, [%rd5]; ld.global.u32 %r11, [%rd5+8]; ld.global.u32 %r12, [%rd5+16];";
const LONGS: &str = "ld.global.u64 %rd10, [%rd5]; ld.global.u64 %rd11, [%rd5+8]; ld.global.u64 %rd12, [%rd5+16]; ld.global.u32 %r11, [%rd5+8];";
pub const FLOATS: &str =
    "ld.global.f32 %f10, [%rd5]; ld.global.f32 %f11, [%rd5+8]; ld.global.f32 %f12, [%rd5+16];";
const DOUBLES: &str =
    "ld.global.f64 %fd10, [%rd5]; ld.global.f64 %fd11, [%rd5+8]; ld.global.f64 %fd12, [%rd5+16];";

pub fn wide(v: Vec<u32>) -> Vec<u64> {
    v.into_iter().map(u64::from).collect()
}

/// Compares every thread's result; NaNs are alike.
#[track_caller]
pub fn same<T: Copy + std::fmt::Debug>(
    op: &str,
    got: &[u64],
    want: impl Fn(usize) -> T,
    bits: impl Fn(T) -> u64,
    nan: impl Fn(u64) -> bool,
) {
    for (t, g) in got.iter().enumerate() {
        let w = want(t);
        assert!(
            *g == bits(w) || nan(*g) && nan(bits(w)),
            "{op}, thread {t}: {g:#x}, {w:?} = {:#x} wanted",
            bits(w)
        );
    }
}

#[test]
fn integers_of_32_bits() {
    type F = fn(i64, i64, i64) -> i64;
    let signed: &[(&str, F)] = &[
        ("add.s32 %r20, %r10, %r11", |a, b, _| a + b),
        ("sub.s32 %r20, %r10, %r11", |a, b, _| a - b),
        ("mul.lo.s32 %r20, %r10, %r11", |a, b, _| a.wrapping_mul(b)),
        ("mul.hi.s32 %r20, %r10, %r11", |a, b, _| (a * b) >> 32),
        ("mad.lo.s32 %r20, %r10, %r11, %r12", |a, b, c| (a * b).wrapping_add(c)),
        ("min.s32 %r20, %r10, %r11", |a, b, _| a.min(b)),
        ("max.s32 %r20, %r10, %r11", |a, b, _| a.max(b)),
        ("div.s32 %r20, %r10, %r11", |a, b, _| if b == 0 { -1 } else { a / b }),
        ("rem.s32 %r20, %r10, %r11", |a, b, _| if b == 0 { a } else { a % b }),
        ("neg.s32 %r20, %r10", |a, _, _| -a),
        ("abs.s32 %r20, %r10", |a, _, _| a.abs()),
        ("shr.s32 %r20, %r10, %r11", |a, b, _| a >> (b as u32).min(31)),
        ("cvt.s32.s8 %r20, %r10", |a, _, _| i64::from(a as i8)),
    ];
    let unsigned: &[(&str, F)] = &[
        ("mul.hi.u32 %r20, %r10, %r11", |a, b, _| ((a as u64 * b as u64) >> 32) as i64),
        ("min.u32 %r20, %r10, %r11", |a, b, _| a.min(b)),
        ("max.u32 %r20, %r10, %r11", |a, b, _| a.max(b)),
        ("div.u32 %r20, %r10, %r11", |a, b, _| if b == 0 { 0xffff_ffff } else { a / b }),
        ("rem.u32 %r20, %r10, %r11", |a, b, _| if b == 0 { a } else { a % b }),
        ("and.b32 %r20, %r10, %r11", |a, b, _| a & b),
        ("or.b32 %r20, %r10, %r11", |a, b, _| a | b),
        ("xor.b32 %r20, %r10, %r11", |a, b, _| a ^ b),
        ("not.b32 %r20, %r10", |a, _, _| !a),
        ("shl.b32 %r20, %r10, %r11", |a, b, _| if b > 31 { 0 } else { a << b }),
        ("shr.u32 %r20, %r10, %r11", |a, b, _| if b > 31 { 0 } else { a >> b }),
        ("popc.b32 %r20, %r10", |a, _, _| a.count_ones().into()),
        ("clz.b32 %r20, %r10", |a, _, _| i64::from(a.leading_zeros()) - 32),
        ("bfi.b32 %r20, %r10, %r11, 5, 9", |a, b, _| b & !(0x1ff << 5) | (a & 0x1ff) << 5),
        ("bfi.b32 %r20, %r10, %r11, 0, 32", |a, _, _| a),
        ("cvt.u32.u16 %r20, %r10", |a, _, _| a & 0xffff),
        (
            "cvt.u16.u32 %rs20, %r10; cvt.u16.u32 %rs21, %r11; and.b16 %rs22, %rs20, %rs21; cvt.u32.u16 %r20, %rs22",
            |a, b, _| a & b & 0xffff,
        ),
        (
            "cvt.u16.u32 %rs20, %r10; cvt.u16.u32 %rs21, %r11; or.b16 %rs22, %rs20, %rs21; cvt.u32.u16 %r20, %rs22",
            |a, b, _| (a | b) & 0xffff,
        ),
        (
            "cvt.u16.u32 %rs20, %r10; cvt.u16.u32 %rs21, %r11; xor.b16 %rs22, %rs20, %rs21; cvt.u32.u16 %r20, %rs22",
            |a, b, _| (a ^ b) & 0xffff,
        ),
        ("cvt.u16.u32 %rs20, %r10; neg.s16 %rs22, %rs20; cvt.u32.u16 %r20, %rs22", |a, _, _| -a & 0xffff),
        ("cvt.u16.u32 %rs20, %r10; shr.u16 %rs22, %rs20, 3; cvt.u32.u16 %r20, %rs22", |a, _, _| {
            (a & 0xffff) >> 3
        }),
        ("cvt.u16.u32 %rs20, %r10; cvt.u16.u32 %rs21, %r11; mul.wide.u16 %r20, %rs20, %rs21", |a, b, _| {
            (a & 0xffff) * (b & 0xffff)
        }),
    ];
    let v = [words(1), words(2), words(3)];
    let o: Vec<Vec<u64>> = v.iter().cloned().map(wide).collect();
    for (list, is_signed) in [(signed, true), (unsigned, false)] {
        for (op, f) in list {
            let got = results(op, [&o[0], &o[1], &o[2]], WORDS, "st.global.u32 [%rd7], %r20;");
            let of = |x: u32| if is_signed { i64::from(x as i32) } else { i64::from(x) };
            same(op, &got, |t| f(of(v[0][t]), of(v[1][t]), of(v[2][t])), |w| u64::from(w as u32), |_| false);
        }
    }
}

#[test]
fn integers_of_64_bits() {
    type F = fn(i128, i128, i128) -> i128;
    let signed: &[(&str, F)] = &[
        ("add.s64 %rd20, %rd10, %rd11", |a, b, _| a + b),
        ("sub.s64 %rd20, %rd10, %rd11", |a, b, _| a - b),
        ("mul.lo.s64 %rd20, %rd10, %rd11", |a, b, _| a.wrapping_mul(b)),
        ("min.s64 %rd20, %rd10, %rd11", |a, b, _| a.min(b)),
        ("max.s64 %rd20, %rd10, %rd11", |a, b, _| a.max(b)),
        ("div.s64 %rd20, %rd10, %rd11", |a, b, _| if b == 0 { -1 } else { a / b }),
        ("rem.s64 %rd20, %rd10, %rd11", |a, b, _| if b == 0 { a } else { a % b }),
        ("neg.s64 %rd20, %rd10", |a, _, _| -a),
        ("shr.s64 %rd20, %rd10, %r11", |a, b, _| a >> (b as u32).min(63)),
    ];
    let unsigned: &[(&str, F)] = &[
        ("div.u64 %rd20, %rd10, %rd11", |a, b, _| if b == 0 { u64::MAX.into() } else { a / b }),
        ("rem.u64 %rd20, %rd10, %rd11", |a, b, _| if b == 0 { a } else { a % b }),
        ("min.u64 %rd20, %rd10, %rd11", |a, b, _| a.min(b)),
        ("max.u64 %rd20, %rd10, %rd11", |a, b, _| a.max(b)),
        ("and.b64 %rd20, %rd10, %rd11", |a, b, _| a & b),
        ("or.b64 %rd20, %rd10, %rd11", |a, b, _| a | b),
        ("xor.b64 %rd20, %rd10, %rd11", |a, b, _| a ^ b),
        ("not.b64 %rd20, %rd10", |a, _, _| !a),
        ("shl.b64 %rd20, %rd10, %r11", |a, b, _| if b as u32 > 63 { 0 } else { a << (b as u32) }),
        ("shr.u64 %rd20, %rd10, %r11", |a, b, _| if b as u32 > 63 { 0 } else { a >> (b as u32) }),
        ("bfi.b64 %rd20, %rd10, %rd11, 20, 40", |a, b, _| {
            b & !(0xff_ffff_ffff << 20) | (a & 0xff_ffff_ffff) << 20
        }),
        ("mul.wide.u32 %rd20, %r11, %r11", |_, b, _| (b & 0xffff_ffff) * (b & 0xffff_ffff)),
        ("mad.wide.u32 %rd20, %r11, %r11, %rd12", |_, b, c| (b & 0xffff_ffff) * (b & 0xffff_ffff) + c),
        ("mul.wide.s32 %rd20, %r11, %r11", |_, b, _| i128::from(b as i32) * i128::from(b as i32)),
        ("cvt.s64.s32 %rd20, %r11", |_, b, _| i128::from(b as i32)),
        ("cvt.u64.u32 %rd20, %r11", |_, b, _| b & 0xffff_ffff),
        ("mov.b64 {%r20, %r21}, %rd10; mov.b64 %rd20, {%r21, %r20}", |a, _, _| {
            a >> 32 | (a & 0xffff_ffff) << 32
        }),
    ];
    let v = [pairs(4), pairs(5), pairs(6)];
    for (list, is_signed) in [(signed, true), (unsigned, false)] {
        for (op, f) in list {
            let got = results(op, [&v[0], &v[1], &v[2]], LONGS, "st.global.u64 [%rd7], %rd20;");
            let of = |x: u64| if is_signed { i128::from(x as i64) } else { i128::from(x) };
            same(op, &got, |t| f(of(v[0][t]), of(v[1][t]), of(v[2][t])), |w| w as u64, |_| false);
        }
    }
}

/// An f64 rounded to f32, once.
fn once(x: f64) -> f32 {
    x as f32
}

#[test]
fn floats_of_32_bits() {
    type F = fn(f64, f64, f64) -> f32;
    // The sum, product or quotient of two f32 rounded to f64 and then to f32 is rounded as if once (Figueroa).
    let list: &[(&str, F)] = &[
        ("add.f32 %f20, %f10, %f11", |a, b, _| once(a + b)),
        ("sub.f32 %f20, %f10, %f11", |a, b, _| once(a - b)),
        ("mul.f32 %f20, %f10, %f11", |a, b, _| once(a * b)),
        ("div.rn.f32 %f20, %f10, %f11", |a, b, _| once(a / b)),
        ("rcp.rn.f32 %f20, %f10", |a, _, _| once(1.0 / a)),
        ("sqrt.rn.f32 %f20, %f10", |a, _, _| once(a.sqrt())),
        ("neg.f32 %f20, %f10", |a, _, _| once(-a)),
        ("abs.f32 %f20, %f10", |a, _, _| once(a.abs())),
        ("copysign.f32 %f20, %f10, %f11", |a, b, _| once(b.copysign(a))),
        ("min.f32 %f20, %f10, %f11", |a, b, _| {
            once(if a.is_nan() || b < a || a == b && b.is_sign_negative() { b } else { a })
        }),
        ("max.f32 %f20, %f10, %f11", |a, b, _| {
            once(if a.is_nan() || b > a || a == b && b.is_sign_positive() { b } else { a })
        }),
        ("cvt.sat.f32.f32 %f20, %f10", |a, _, _| if a.is_nan() || a <= 0.0 { 0.0 } else { once(a.min(1.0)) }),
    ];
    let v = [floats(7), floats(8), floats(9)];
    let o: Vec<Vec<u64>> = v.iter().map(|v| v.iter().map(|x| x.to_bits().into()).collect()).collect();
    for (op, f) in list {
        let got = results(op, [&o[0], &o[1], &o[2]], FLOATS, "st.global.f32 [%rd7], %f20;");
        let want = |t: usize| f(v[0][t].into(), v[1][t].into(), v[2][t].into());
        same(op, &got, want, |w| w.to_bits().into(), |x| f32::from_bits(x as u32).is_nan());
    }
}

#[test]
fn fused_sums_round_once_and_as_told() {
    // Twelve bits each, so that the product and its sum with c are exact in f64.
    let mut random = Random::new(10);
    let mut small =
        || (0..THREADS).map(|_| ((random.bits() % 4096) as f32 - 2048.0) / 64.0).collect::<Vec<f32>>();
    let (a, b) = (small(), small());
    let c: Vec<f32> = small().iter().map(|x| x * 4096.0).collect();
    let bits = |v: &[f32]| v.iter().map(|x| u64::from(x.to_bits())).collect::<Vec<_>>();
    let exact = |t: usize| f64::from(a[t]) * f64::from(b[t]) + f64::from(c[t]);
    let down = |x: f64| {
        let r = x as f32;
        if f64::from(r) > x { r.next_down() } else { r }
    };
    for (op, round) in [
        ("fma.rn.f32 %f20, %f10, %f11, %f12", &once as &dyn Fn(f64) -> f32),
        ("fma.rm.f32 %f20, %f10, %f11, %f12", &down),
    ] {
        let got = results(op, [&bits(&a), &bits(&b), &bits(&c)], FLOATS, "st.global.f32 [%rd7], %f20;");
        for t in (0..THREADS).filter(|t| exact(*t) != 0.0) {
            assert_eq!(f32::from_bits(got[t] as u32), round(exact(t)), "{op}, thread {t}");
        }
    }
    // A cancellation that two roundings would lose: (1 + e)(1 - e) - 1 = -e e.
    let e = f32::EPSILON;
    let one = |x: f32| vec![u64::from(x.to_bits()); THREADS];
    let got = results(
        "fma.rn.f32 %f20, %f10, %f11, %f12",
        [&one(1.0 + e), &one(1.0 - e), &one(-1.0)],
        FLOATS,
        "st.global.f32 [%rd7], %f20;",
    );
    assert_eq!(f32::from_bits(got[0] as u32), -e * e);
}

#[test]
fn subnormals_are_zero_where_ftz_says_so() {
    let one = |x: f32| vec![u64::from(x.to_bits()); THREADS];
    let run = |op: &str, a: f32, b: f32| {
        f32::from_bits(
            results(op, [&one(a), &one(b), &one(0.0)], FLOATS, "st.global.f32 [%rd7], %f20;")[0] as u32,
        )
    };
    assert_eq!(run("add.ftz.f32 %f20, %f10, %f11", 1e-41, 0.0), 0.0);
    assert_eq!(run("add.f32 %f20, %f10, %f11", 1e-41, 0.0), 1e-41);
    assert_eq!(run("mul.ftz.f32 %f20, %f10, %f11", -1e-30, 1e-10).to_bits(), (-0f32).to_bits());
    assert_eq!(run("rcp.approx.ftz.f32 %f20, %f10", 1e-41, 0.0), f32::INFINITY);
    assert_eq!(run("ex2.approx.ftz.f32 %f20, %f10", -140.0, 0.0), 0.0);
    assert_eq!(run("ex2.approx.f32 %f20, %f10", -140.0, 0.0), 2f64.powi(-140) as f32);
    assert_eq!(run("ex2.approx.f32 %f20, %f10", 0.5, 0.0), 2f64.sqrt() as f32);
}

#[test]
fn two_halves_of_floats() {
    let one = |x: f32| vec![u64::from(x.to_bits()); THREADS];
    // 1.5 and -2 are exact; 1 + 2^-8 lies in the middle of two values, of which 1 is the even one.
    for (high, low, want) in [(1.5, -2.0, 0x3fc0_c000), (257.0 / 256.0, f32::INFINITY, 0x3f80_7f80)] {
        let (a, b, c) = (one(high), one(low), one(0.0));
        let got = results(
            "cvt.rn.bf16x2.f32 %r20, %f10, %f11",
            [&a, &b, &c],
            FLOATS,
            "st.global.u32 [%rd7], %r20;",
        );
        assert_eq!(got[0], want);
    }
}

#[test]
fn doubles() {
    type F = fn(f64, f64, f64) -> f64;
    let list: &[(&str, F)] = &[
        ("add.f64 %fd20, %fd10, %fd11", |a, b, _| a + b),
        ("sub.f64 %fd20, %fd10, %fd11", |a, b, _| a - b),
        ("mul.f64 %fd20, %fd10, %fd11", |a, b, _| a * b),
        ("fma.rn.f64 %fd20, %fd10, %fd11, %fd12", |a, b, c| a.mul_add(b, c)),
        ("div.rn.f64 %fd20, %fd10, %fd11", |a, b, _| a / b),
        ("rcp.rn.f64 %fd20, %fd10", |a, _, _| 1.0 / a),
        ("sqrt.rn.f64 %fd20, %fd10", |a, _, _| a.sqrt()),
        ("neg.f64 %fd20, %fd10", |a, _, _| -a),
        ("abs.f64 %fd20, %fd10", |a, _, _| a.abs()),
        ("max.f64 %fd20, %fd10, %fd11", |a, b, _| {
            if a.is_nan() || b > a || a == b && b.is_sign_positive() { b } else { a }
        }),
    ];
    let v: Vec<Vec<f64>> =
        (11..14).map(|s| floats(s).into_iter().map(|x| f64::from(x) * 1.000_000_01).collect()).collect();
    let o: Vec<Vec<u64>> = v.iter().map(|v| v.iter().map(|x| x.to_bits()).collect()).collect();
    for (op, f) in list {
        let got = results(op, [&o[0], &o[1], &o[2]], DOUBLES, "st.global.f64 [%rd7], %fd20;");
        same(op, &got, |t| f(v[0][t], v[1][t], v[2][t]), f64::to_bits, |x| f64::from_bits(x).is_nan());
    }
}

#[test]
fn what_is_not_modelled_is_refused_by_name() {
    for op in [
        "mul24.lo.s32 %r20, %r10, %r11",
        "fma.rp.f32 %f20, %f10, %f11, %f12",
        "add.rz.f32 %f20, %f10, %f11",
        "ld.global.u128 %rd20, [%rd1]",
        "cvt.rzi.s32.f32 %r20, %f10",
        "bar.sync 1",
        "shfl.sync.bfly.b64 %rd20, %rd10, 1, 31, -1",
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%f1,%f2,%f3,%f4}, {%r1,%r2,%r3,%r4}, {%r5,%r6}, {%f1,%f2,%f3,%f4}",
        "call foo",
        "brx.idx %r1, table",
        "fence.proxy.alias",
        "mov.u32 %r20, %clock",
        "add.s32 %r20, %r10",
        "add.s32 %r20, %r10, %rd10",
        "ld.relaxed.global.u32 %r20, [%rd1]",
    ] {
        let error = try_assemble(&format!("{op};")).expect_err(op);
        let name = op.split_whitespace().next().unwrap_or_default();
        assert!(error.contains(name) && error.contains("PTX line"), "{error}");
    }
}

#[test]
fn text_that_is_no_ptx_is_an_error_and_no_panic() {
    use super::rig::{Random, program};
    let whole = ".version 9.0\n.target sm_80\n.visible .entry k(.param .u64 a)\n{\n.reg .b32 %r<9>;\n.reg .pred p;\nL: add.s32 %r1, %r2, 3;\n\
                 @p bra L;\nst.global.v2.u32 [%r1+4], {%r1, %r2};\n{ .reg .b64 x; mov.b64 {%r1, %r2}, x; }\nret;\n}\n";
    assert!(program(whole, "k").is_ok());
    for cut in 0..whole.len() {
        let _ = program(&whole[..cut], "k");
        let _ = program(&format!("{}{}", &whole[..cut], &whole[(cut + 7).min(whole.len())..]), "k");
    }
    let mut random = Random::new(30);
    for _ in 0..4000 {
        let mut bytes = whole.as_bytes().to_vec();
        for _ in 0..3 {
            let (at, by) = (random.bits() as usize % bytes.len(), random.bits() as usize % 18);
            bytes[at] = b"{}[]();:,.@%0-+<>\n"[by];
        }
        let _ = program(std::str::from_utf8(&bytes).expect("ASCII"), "k");
    }
}
