//! Comparisons, predicates and conversions.

use super::arithmetic::{FLOATS, WORDS, floats, results, same, wide, words};

const SET: &str = "selp.b32 %r20, 1, 0, %p20; st.global.u32 [%rd7], %r20;";

#[test]
fn comparisons_know_nan() {
    let v = [floats(15), floats(16)];
    let o: Vec<Vec<u64>> = v.iter().map(|v| v.iter().map(|x| x.to_bits().into()).collect()).collect();
    type F = fn(f32, f32) -> bool;
    let list: &[(&str, F)] = &[
        ("eq", |a, b| a == b),
        ("ne", |a, b| a.partial_cmp(&b).is_some_and(std::cmp::Ordering::is_ne)),
        ("lt", |a, b| a < b),
        ("le", |a, b| a <= b),
        ("gt", |a, b| a > b),
        ("ge", |a, b| a >= b),
        ("equ", |a, b| a == b || a.is_nan() || b.is_nan()),
        ("neu", |a, b| a != b),
        ("ltu", |a, b| {
            !matches!(a.partial_cmp(&b), Some(std::cmp::Ordering::Equal | std::cmp::Ordering::Greater))
        }),
        ("leu", |a, b| a <= b || a.is_nan() || b.is_nan()),
        ("gtu", |a, b| a > b || a.is_nan() || b.is_nan()),
        ("geu", |a, b| a >= b || a.is_nan() || b.is_nan()),
        ("nan", |a, b| a.is_nan() || b.is_nan()),
        ("num", |a, b| !a.is_nan() && !b.is_nan()),
    ];
    for (cmp, f) in list {
        let got = results(&format!("setp.{cmp}.f32 %p20, %f10, %f11"), [&o[0], &o[1], &o[0]], FLOATS, SET);
        same(cmp, &got, |t| f(v[0][t], v[1][t]), u64::from, |_| false);
    }
    let w = [words(17), words(18)];
    let o: Vec<Vec<u64>> = w.iter().cloned().map(wide).collect();
    type G = fn(u32, u32) -> bool;
    let list: &[(&str, G)] = &[
        ("lt.s32", |a, b| (a as i32) < b as i32),
        ("ge.s32", |a, b| a as i32 >= b as i32),
        ("gt.u32", |a, b| a > b),
        ("ls.u32", |a, b| a <= b),
        ("eq.b32", |a, b| a == b),
        ("ne.s16", |a, b| a as u16 != b as u16),
        ("lt.s16", |a, b| (a as i16) < b as i16),
    ];
    for (cmp, f) in list {
        let (a, b) = if cmp.ends_with("16") { ("%rs10", "%rs11") } else { ("%r10", "%r11") };
        let op = format!(
            "mov.b32 {{%rs10, %rs12}}, %r10; mov.b32 {{%rs11, %rs12}}, %r11; setp.{cmp} %p20, {a}, {b}"
        );
        let got = results(&op, [&o[0], &o[1], &o[0]], WORDS, SET);
        same(cmp, &got, |t| f(w[0][t], w[1][t]), u64::from, |_| false);
    }
}

#[test]
fn conversions() {
    let v = floats(19);
    let bits: Vec<u64> = v.iter().map(|x| x.to_bits().into()).collect();
    let run = |op: &str, result: &str| results(op, [&bits, &bits, &bits], FLOATS, result);
    // bf16: the candidates are the two neighbours; the nearer one, or the even one, is right.
    for (t, got) in run("cvt.rn.bf16.f32 %rs20, %f10", "st.global.u16 [%rd7], %rs20;").iter().enumerate() {
        let (x, below) = (v[t], v[t].to_bits() & 0xffff_0000);
        let (low, high) =
            (f64::from(f32::from_bits(below)), f64::from(f32::from_bits(below.wrapping_add(0x1_0000))));
        let (to_low, to_high) = ((f64::from(x) - low).abs(), (high - f64::from(x)).abs());
        let even = (below >> 16) % 2 == 0;
        let up = to_high < to_low || to_high == to_low && !even;
        let want = if x.is_nan() {
            0x7fff
        } else if x.is_infinite() || !up {
            below >> 16
        } else {
            (below >> 16) + 1
        };
        // Beyond the largest bf16 the upper neighbour is infinity, whose distance f64 cannot tell.
        if x.abs() < 3e38 || !x.is_finite() {
            assert_eq!(*got, u64::from(want), "{x}");
        }
    }
    same(
        "f64 of f32",
        &run("cvt.f64.f32 %fd20, %f10", "st.global.f64 [%rd7], %fd20;"),
        |t| f64::from(v[t]),
        f64::to_bits,
        |x| f64::from_bits(x).is_nan(),
    );
    let nearest = |t: usize| {
        let x = f64::from(v[t]);
        let floor = x.floor();
        let odd = floor.rem_euclid(2.0) == 1.0;
        let rounded = if x - floor > 0.5 || x - floor == 0.5 && odd { floor + 1.0 } else { floor };
        if x.is_nan() { 0 } else { rounded.clamp(-2147483648.0, 2147483647.0) as i64 as i32 }
    };
    same(
        "s32 of f32",
        &run("cvt.rni.s32.f32 %r20, %f10", "st.global.u32 [%rd7], %r20;"),
        nearest,
        |w| u64::from(w as u32),
        |_| false,
    );
    let w = words(20);
    let o = wide(w.clone());
    let run = |op: &str, result: &str| results(op, [&o, &o, &o], WORDS, result);
    let f32_result = "st.global.f32 [%rd7], %f20;";
    same(
        "f32 of s32",
        &run("cvt.rn.f32.s32 %f20, %r10", f32_result),
        |t| f64::from(w[t] as i32) as f32,
        |w| w.to_bits().into(),
        |_| false,
    );
    same(
        "f32 of u32",
        &run("cvt.rn.f32.u32 %f20, %r10", f32_result),
        |t| f64::from(w[t]) as f32,
        |w| w.to_bits().into(),
        |_| false,
    );
    same(
        "f32 of u16",
        &run("mov.b32 {%rs20, %rs21}, %r10; cvt.rn.f32.u16 %f20, %rs21", f32_result),
        |t| f64::from(w[t] >> 16) as f32,
        |w| w.to_bits().into(),
        |_| false,
    );
    same(
        "halves",
        &run("mov.b32 {%rs20, %rs21}, %r10; mov.b32 %r20, {%rs21, %rs20}", "st.global.u32 [%rd7], %r20;"),
        |t| w[t].rotate_left(16),
        u64::from,
        |_| false,
    );
}

#[test]
fn logic_of_predicates_and_selection() {
    let w = words(21);
    let o = wide(w.clone());
    let op = "setp.lt.s32 %p1, %r10, 100; setp.gt.u32 %p2, %r10, 7; and.pred %p3, %p1, %p2; xor.pred %p4, %p3, %p1; not.pred %p5, %p4;\n\
              mov.pred %p6, -1; or.pred %p7, %p5, %p3; and.pred %p20, %p7, %p6";
    let want = |t: usize| {
        let (p1, p2) = ((w[t] as i32) < 100, w[t] > 7);
        let p3 = p1 && p2;
        !(p3 ^ p1) || p3
    };
    same("logic", &results(op, [&o, &o, &o], WORDS, SET), want, u64::from, |_| false);
    let op = "setp.lt.s32 %p1, %r10, 0; selp.b32 %r20, 5, %r10, %p1; @%p1 add.s32 %r20, %r20, 1; @!%p1 xor.b32 %r20, %r20, -1";
    let got = results(op, [&o, &o, &o], WORDS, "st.global.u32 [%rd7], %r20;");
    same("guards", &got, |t| if (w[t] as i32) < 0 { 6 } else { !w[t] }, u64::from, |_| false);
}
