//! Addresses, alignment, what nobody has written, limits of a launch, atomics.

use super::rig::{Buffer, Random, Shape, assemble, expect_fault, launch};
use gems_witness::fault::Kind;
use gems_witness::machine::Options;

#[test]
fn vectors_and_narrow_types() {
    let mut random = Random::new(1);
    let bytes: Vec<u8> = (0..64).map(|_| random.bits() as u8).collect();
    let (a, b) = (Buffer::of_bytes(&bytes), Buffer::unwritten(80));
    let p = assemble(
        "ld.global.v4.u32 {%r10, %r11, %r12, %r13}, [%rd1]; st.global.v4.u32 [%rd2], {%r13, %r12, %r11, %r10};\n\
         ld.global.v2.f64 {%fd10, %fd11}, [%rd1+16]; st.global.v2.f64 [%rd2+16], {%fd11, %fd10};\n\
         ld.global.s8 %r14, [%rd1+33]; st.global.u32 [%rd2+32], %r14; ld.global.u8 %r14, [%rd1+33]; st.global.u32 [%rd2+36], %r14;\n\
         ld.global.s16 %r14, [%rd1+34]; st.global.u32 [%rd2+40], %r14; ld.global.u16 %rs14, [%rd1+34]; st.global.u16 [%rd2+44], %rs14;\n\
         st.global.u8 [%rd2+46], %r14; st.global.u8 [%rd2+47], %r2;\n\
         ld.global.s32 %rd14, [%rd1+36]; st.global.u64 [%rd2+48], %rd14;\n\
         ld.global.cg.v2.u32 {%r15, %r16}, [%rd1+40]; st.global.v2.u32 [%rd2+56], {%r16, %r15};",
    );
    Shape::threads(1).run(&p, &[&a, &b]).unwrap();
    let (w, half) = (
        |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()),
        |at: usize| i16::from_le_bytes([bytes[at], bytes[at + 1]]),
    );
    let mut want = vec![w(12), w(8), w(4), w(0), w(24), w(28), w(16), w(20)];
    want.extend([bytes[33] as i8 as u32, bytes[33].into(), half(34) as u32]);
    want.extend([
        u32::from(half(34) as u16) | u32::from(bytes[34]) << 16,
        w(36),
        (w(36) as i32 >> 31) as u32,
        w(44),
        w(40),
    ]);
    assert_eq!(b.u32s()[..16], want);
}

#[test]
fn arguments_and_local_memory() {
    let a = Buffer::unwritten(8 * 64);
    let p = assemble(
        "mov.b64 %rd10, depot; cvta.local.u64 %rd11, %rd10; mul.wide.u32 %rd12, %r2, 8; add.s64 %rd13, %rd1, %rd12;\n\
         st.local.u32 [%rd10+4], %r2; st.u32 [%rd11+8], %r1; ld.u32 %r10, [%rd11+4]; ld.local.u32 %r11, [%rd10+8];\n\
         mov.b64 %rd14, n; cvta.param.u64 %rd15, %rd14; ld.u32 %r12, [%rd15]; add.s32 %r11, %r11, %r12; st.global.v2.u32 [%rd13], {%r10, %r11};",
    );
    Shape { n: 21, ..Shape::threads(64) }.run(&p, &[&a]).unwrap();
    assert_eq!(a.u32s(), (0..64).flat_map(|t| [t, 42]).collect::<Vec<u32>>());
    let p = assemble("mov.b64 %rd10, depot; ld.local.u32 %r10, [%rd10+12];");
    expect_fault(Shape::threads(1).run(&p, &[]), Kind::Unwritten, &["byte 12 of local memory"]);
    let p = assemble("mov.b64 %rd10, depot; st.local.u32 [%rd10+64], %r1;");
    expect_fault(Shape::threads(1).run(&p, &[]), Kind::Bounds, &["byte 64 of 64 of local memory"]);
}

#[test]
fn out_of_bounds_by_one() {
    let (a, b) = (Buffer::zeros(4 * 32), Buffer::unwritten(4 * 31));
    let p = assemble(
        "mul.wide.u32 %rd4, %r2, 4; add.s64 %rd5, %rd1, %rd4; add.s64 %rd7, %rd2, %rd4;\nld.global.u32 %r10, [%rd5];\nst.global.u32 [%rd7], %r10;",
    );
    let fault = expect_fault(
        Shape::threads(32).run(&p, &[&a, &b]),
        Kind::Bounds,
        &["4 bytes", "allocation of 124 bytes"],
    );
    assert_eq!((fault.thread, fault.block), (Some(31), Some([0, 0, 0])));
    let p =
        assemble("mov.u32 %r10, shared; st.shared.u32 [%r10+1020], %r1;\nst.shared.u32 [%r10+1024], %r1;");
    expect_fault(Shape::threads(1).shared(1024).run(&p, &[]), Kind::Bounds, &["shared byte 1024 of 1024"]);
    let p = assemble("mov.u32 %r10, shared; ld.shared.u32 %r11, [%r10+-4];");
    expect_fault(Shape::threads(1).shared(1024).run(&p, &[]), Kind::Bounds, &["shared byte -4"]);
    let p = assemble("mov.u64 %rd10, 16; ld.global.u32 %r11, [%rd10];");
    expect_fault(Shape::threads(1).run(&p, &[&a]), Kind::Bounds, &["before all allocations"]);
}

#[test]
fn use_after_free() {
    let (freed, other) = (Buffer::zeros(64), Buffer::zeros(64));
    let p = assemble("ld.global.u32 %r10, [%rd1];");
    Shape::threads(1).run(&p, &[&freed, &other]).unwrap();
    let mut arguments = freed.at().to_le_bytes().to_vec();
    arguments.extend([0; 20]);
    let result = launch(&p, [1; 3], [1; 3], 0, &arguments, &[&other], &Options::default());
    expect_fault(result, Kind::Bounds, &["in no live allocation"]);
}

#[test]
fn misaligned() {
    let a = Buffer::zeros(256);
    for (op, offset) in [
        ("ld.global.v4.u32 {%r10, %r11, %r12, %r13}, [%rd1+8]", "16 bytes"),
        ("ld.global.u64 %rd10, [%rd1+4]", "8 bytes"),
        ("st.global.u16 [%rd1+1], %rs1", "2 bytes"),
        ("atom.global.add.u32 %r10, [%rd1+2], 1", "4 bytes"),
    ] {
        let p = assemble(&format!("{op};"));
        let result = Shape::threads(1).run(&p, &[&a]);
        expect_fault(
            result,
            Kind::Misaligned,
            if op.starts_with("atom") { &["global"] } else { std::slice::from_ref(&offset) },
        );
    }
    // Shared memory begins at a multiple of 128 and of nothing larger.
    let p = assemble("mov.u32 %r10, shared; ld.shared.v4.f32 {%f1, %f2, %f3, %f4}, [%r10+8];");
    expect_fault(Shape::threads(1).shared(1024).run(&p, &[]), Kind::Misaligned, &["shared byte 8"]);
}

#[test]
fn what_nobody_has_written() {
    let a = Buffer::unwritten(64);
    a.allocation.mark_written(a.at(), 36);
    let p = assemble("ld.global.u32 %r10, [%rd1+32];\nld.global.v2.u32 {%r10, %r11}, [%rd1+32];");
    let fault = expect_fault(
        Shape::threads(1).run(&p, &[&a]),
        Kind::Unwritten,
        &["byte 36 of an allocation of 64 bytes"],
    );
    let line =
        |f: &gems_witness::fault::Fault| f.place.trim_start_matches("PTX line ").parse::<u32>().unwrap();
    let first = line(&fault);
    // What a kernel writes may be read, by it and by the next one.
    let p = assemble("st.global.u32 [%rd1+36], %r1; ld.global.v2.u32 {%r10, %r11}, [%rd1+32];");
    Shape::threads(1).run(&p, &[&a]).unwrap();
    let p = assemble(
        "ld.global.u32 %r10, [%rd1+32];\nld.global.v2.u32 {%r10, %r11}, [%rd1+32];\nld.global.u32 %r10, [%rd1+40];",
    );
    assert_eq!(line(&expect_fault(Shape::threads(1).run(&p, &[&a]), Kind::Unwritten, &[])), first + 1);
    let p = assemble(
        "mov.u32 %r10, shared; st.shared.u32 [%r10], %r1; ld.shared.u32 %r11, [%r10];\nld.shared.u32 %r11, [%r10+4];",
    );
    expect_fault(Shape::threads(1).shared(64).run(&p, &[]), Kind::Unwritten, &["shared byte 4"]);
    let p = assemble("red.global.add.u32 [%rd1+60], 1;");
    expect_fault(Shape::threads(1).run(&p, &[&a]), Kind::Unwritten, &["byte 60"]);
}

#[test]
fn limits_of_a_launch() {
    let p = assemble("");
    let run = |grid, block, arguments: usize| {
        launch(&p, grid, block, 0, &vec![0; arguments], &[], &Options::default())
    };
    run([1, 1, 1], [1024, 1, 1], 28).unwrap();
    expect_fault(
        run([1, 1, 1], [1025, 1, 1], 28),
        Kind::Launch,
        &["1025 threads a block, at most 1024 (.maxntid)"],
    );
    expect_fault(run([1, 1, 1], [32, 1, 1], 24), Kind::Launch, &["24 bytes of arguments, 28 wanted"]);
    expect_fault(run([1, 65536, 1], [32, 1, 1], 28), Kind::Launch, &["65536"]);
    expect_fault(run([0, 1, 1], [32, 1, 1], 28), Kind::Launch, &["grid"]);
    expect_fault(run([1, 1, 1], [1, 1, 65], 28), Kind::Launch, &["grid"]);
}

#[test]
fn atomics_of_all_lanes() {
    type F = fn(u32, u32) -> u32;
    let list: &[(&str, F)] = &[
        ("add.u32", |a, b| a.wrapping_add(b)),
        ("min.s32", |a, b| (a as i32).min(b as i32) as u32),
        ("max.s32", |a, b| (a as i32).max(b as i32) as u32),
        ("min.u32", |a, b| a.min(b)),
        ("max.u32", |a, b| a.max(b)),
        ("and.b32", |a, b| a & b),
        ("or.b32", |a, b| a | b),
        ("xor.b32", |a, b| a ^ b),
        ("exch.b32", |_, b| b),
    ];
    let values: Vec<u32> = {
        let mut r = Random::new(3);
        (0..128).map(|_| r.bits() as u32).collect()
    };
    for (op, f) in list {
        let (a, b, c) = (Buffer::of_u32(&[0x5555_1234]), Buffer::of_u32(&values), Buffer::unwritten(4 * 128));
        let p = assemble(&format!(
            "mul.wide.u32 %rd4, %r2, 4; add.s64 %rd5, %rd2, %rd4; add.s64 %rd6, %rd3, %rd4; ld.global.u32 %r10, [%rd5];\natom.global.{op} %r11, [%rd1], %r10; st.global.u32 [%rd6], %r11;"
        ));
        Shape::threads(128).run(&p, &[&a, &b, &c]).unwrap();
        // In order, warps and lanes come one after the other.
        let mut value = 0x5555_1234;
        for (t, old) in c.u32s().into_iter().enumerate() {
            assert_eq!(old, value, "{op}, thread {t}");
            value = f(value, values[t]);
        }
        assert_eq!(a.u32s(), [value], "{op}");
    }
    // Compare and swap: one thread of all wins each number.
    let (a, b) = (Buffer::zeros(4), Buffer::unwritten(4 * 64));
    let p = assemble(
        "mul.wide.u32 %rd4, %r2, 4; add.s64 %rd7, %rd2, %rd4; add.s32 %r10, %r2, 1; atom.relaxed.gpu.global.cas.b32 %r11, [%rd1], 0, %r10; st.global.u32 [%rd7], %r11;",
    );
    Shape::threads(64).run(&p, &[&a, &b]).unwrap();
    assert_eq!((a.u32s()[0], b.u32s()), (1, [0].into_iter().chain(vec![1; 63]).collect()));
}
