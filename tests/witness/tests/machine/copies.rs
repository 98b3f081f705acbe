//! cp.async, mbarriers, bulk tensor copies.

use super::arguments::tensor_map;
use super::rig::{Buffer, Random, Shape, assemble, bf16, expect_fault};
use gems_witness::fault::Kind;

/// Every thread copies 16 bytes of `a`, of which it reads %r12, to its own place in shared memory, %r11; its place in `b` is %rd7.
const COPY: &str = "mov.u32 %r10, shared; mul.lo.u32 %r13, %r2, 16; add.s32 %r11, %r10, %r13; cvt.u64.u32 %rd4, %r13;\n\
     add.s64 %rd5, %rd1, %rd4; add.s64 %rd7, %rd2, %rd4;\n";
const STORE: &str =
    "ld.shared.v4.u32 {%r20, %r21, %r22, %r23}, [%r11]; st.global.v4.u32 [%rd7], {%r20, %r21, %r22, %r23};";

#[test]
fn cp_async_fills_with_zeros() {
    let bytes: Vec<u8> = {
        let mut r = Random::new(1);
        (0..17 * 16).map(|_| r.bits() as u8).collect()
    };
    let (a, b) = (Buffer::of_bytes(&bytes), Buffer::unwritten(17 * 16));
    let p = assemble(&format!(
        "{COPY}mov.u32 %r12, %r2; cp.async.cg.shared.global [%r11], [%rd5], 16, %r12; cp.async.commit_group; cp.async.wait_group 0;\n{STORE}"
    ));
    Shape::threads(17).shared(17 * 16).run(&p, &[&a, &b]).unwrap();
    let want: Vec<u8> = (0..17 * 16).map(|i| if i % 16 < i / 16 { bytes[i] } else { 0 }).collect();
    assert_eq!(
        b.u32s(),
        want.chunks(4).map(|c| u32::from_le_bytes(c.try_into().unwrap())).collect::<Vec<_>>()
    );
}

#[test]
fn cp_async_is_there_when_its_group_was_waited_for() {
    let run = |waits: u32| {
        let (a, b) = (Buffer::zeros(32 * 16), Buffer::unwritten(32 * 16));
        let p = assemble(&format!(
            "{COPY}cp.async.cg.shared.global [%r11], [%rd5], 16, 16; cp.async.commit_group;\n\
             add.s32 %r11, %r11, 512; cp.async.cg.shared.global [%r11], [%rd5], 16, 16; cp.async.commit_group; cp.async.wait_group {waits};\n{STORE}\ncp.async.wait_group 0;"
        ));
        Shape::threads(32).shared(1024).run(&p, &[&a, &b])
    };
    run(0).unwrap();
    expect_fault(run(1), Kind::Race, &["thread 0", "a cp.async of thread 0"]);
    let p = assemble(&format!(
        "{COPY}cp.async.cg.shared.global [%r11], [%rd5], 16, 16; cp.async.commit_group;\n{STORE}"
    ));
    let (a, b) = (Buffer::zeros(512), Buffer::unwritten(512));
    let mut shape = Shape::threads(32).shared(512);
    expect_fault(shape.run(&p, &[&a, &b]), Kind::Race, &["a cp.async of thread 0"]);
    shape.options.races = false;
    expect_fault(shape.run(&p, &[&a, &b]), Kind::Unwritten, &["shared byte 0"]);
    let p = assemble(&format!("{COPY}cp.async.cg.shared.global [%r11], [%rd5], 16, 16;"));
    expect_fault(shape.run(&p, &[&a, &b]), Kind::Unfinished, &["32 cp.async"]);
    let p =
        assemble(&format!("{COPY}add.s64 %rd5, %rd5, 8; cp.async.cg.shared.global [%r11], [%rd5], 16, 16;"));
    expect_fault(shape.run(&p, &[&a, &b]), Kind::Misaligned, &["cp.async"]);
}

#[test]
fn cp_async_of_another_lane_takes_a_barrier() {
    let run = |barrier: &str| {
        let (a, b) = (Buffer::zeros(32 * 16), Buffer::unwritten(32 * 16));
        let p = assemble(&format!(
            "{COPY}cp.async.cg.shared.global [%r11], [%rd5], 16, 16; cp.async.commit_group; cp.async.wait_group 0;\n{barrier}\n\
             xor.b32 %r13, %r13, 16; add.s32 %r11, %r10, %r13;\n{STORE}"
        ));
        Shape::threads(32).shared(512).run(&p, &[&a, &b])
    };
    run("bar.warp.sync -1;").unwrap();
    run("bar.sync 0;").unwrap();
    expect_fault(run(""), Kind::Race, &["thread 0", "a cp.async of thread 1"]);
}

/// Thread 0 makes an mbarrier of one arrival at %r11 and loads a box of the map in `a` to %r12 (aligned to 1024), at column %r1 and row
/// -3, expecting `bytes`; then all copy the box's 8192 bytes to `b`.
fn bulk(init: &str, bytes: u32, wait: &str) -> String {
    format!(
        "mov.u32 %r10, shared; add.s32 %r12, %r10, 1023; and.b32 %r12, %r12, -1024; add.s32 %r11, %r12, 8192; mov.u32 %r13, -3; mov.u32 %r14, {bytes};\n\
         setp.ne.u32 %p1, %r2, 0; @%p1 bra WAIT;\n{init}\n\
         mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r11], %r14;\n\
         cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%r12], [%rd1, {{%r1, %r13}}], [%r11];\n\
         WAIT: bar.sync 0;\n{wait}\n\
         mul.lo.u32 %r15, %r2, 64; add.s32 %r16, %r12, %r15; cvt.u64.u32 %rd4, %r15; add.s64 %rd7, %rd2, %rd4; mov.u32 %r17, 0;\n\
         NEXT: ld.shared.v4.u32 {{%r20, %r21, %r22, %r23}}, [%r16]; st.global.v4.u32 [%rd7], {{%r20, %r21, %r22, %r23}};\n\
         add.s32 %r16, %r16, 16; add.s64 %rd7, %rd7, 16; add.s32 %r17, %r17, 1; setp.lt.u32 %p2, %r17, 4; @%p2 bra NEXT;"
    )
}

const INIT: &str = "mbarrier.init.shared::cta.b64 [%r11], 1; fence.mbarrier_init.release.cluster;";
const WAIT: &str = "AGAIN: mbarrier.try_wait.parity.shared::cta.b64 %p3, [%r11], 0; @!%p3 bra AGAIN;";

fn run_bulk(text: &str, x: i32, seed: u64) -> (Result<(), gems_witness::fault::Fault>, Vec<u32>, Vec<f32>) {
    let (rows, cols) = (70, 104);
    let values = Random::new(4).values(rows * cols);
    let matrix = Buffer::of_bf16(&values);
    let (map, b) = (Buffer::of_bytes(&tensor_map(&matrix, rows, cols, 64)), Buffer::unwritten(8192));
    let mut shape = Shape { n: x as u32, ..Shape::threads(128) }.shared(1024 + 8192 + 64);
    shape.options.seed = seed;
    let result = shape.run(&assemble(text), &[&map, &b, &matrix]);
    (result, b.u32s(), values)
}

#[test]
fn bulk_copies_swizzle_and_fill_with_zeros() {
    for (x, seed) in [(0, 0), (-8, 0), (64, 1), (72, 2)] {
        let (result, got, values) = run_bulk(&bulk(INIT, 8192, WAIT), x, seed);
        result.unwrap_or_else(|e| panic!("{e}"));
        for (r, c) in (0..64).flat_map(|r| (0..64).map(move |c| (r, c))) {
            let (row, col) = (r as i32 - 3, c as i32 + x);
            let inside = (0..70).contains(&row) && (0..104).contains(&col);
            let want = if inside { bf16(values[row as usize * 104 + col as usize]) } else { 0 };
            let at = r * 128 + ((c / 8) ^ (r % 8)) * 16 + c % 8 * 2;
            assert_eq!((got[at / 4] >> (at % 4 * 8)) as u16, want, "box at {x}: ({r}, {c})");
        }
    }
}

#[test]
fn an_mbarrier_that_expects_wrong_bytes() {
    let (result, ..) = run_bulk(&bulk(INIT, 8192 + 16, WAIT), 0, 0);
    expect_fault(result, Kind::Deadlock, &["an mbarrier waits for 0 of 1 arrivals and 16 bytes", "PTX line"]);
    let (result, ..) = run_bulk(&bulk(INIT, 4096, WAIT), 0, 0);
    let fault = result.expect_err("nothing was found");
    assert!([Kind::Deadlock, Kind::Mbarrier].contains(&fault.kind), "{fault}");
}

#[test]
fn bulk_copies_that_nobody_waits_for() {
    for seed in [0, 1, 2, 3] {
        let (result, ..) = run_bulk(&bulk(INIT, 8192, ""), 0, seed);
        let fault = result.expect_err("nothing was found");
        assert!([Kind::Race, Kind::Unwritten].contains(&fault.kind), "{fault}");
    }
}

#[test]
fn mbarriers_that_are_not_initialised_or_not_known() {
    let (result, ..) = run_bulk(&bulk("", 8192, WAIT), 0, 0);
    expect_fault(result, Kind::Mbarrier, &["no mbarrier was initialised", "thread 0"]);
    let (result, ..) = run_bulk(&bulk("mbarrier.init.shared::cta.b64 [%r11], 1;", 8192, WAIT), 0, 0);
    expect_fault(result, Kind::ProxyFence, &["mbarrier_init or proxy.async"]);
    let (result, ..) = run_bulk(&bulk(INIT, 8192, WAIT).replace("bar.sync 0;", ""), 0, 0);
    expect_fault(result, Kind::Race, &["uses the mbarrier"]);
}

#[test]
fn arrivals_and_phases() {
    // Four warps arrive; everybody waits for both phases in turn, and reads what was written before them.
    let body = "mov.u32 %r10, shared; setp.ne.u32 %p1, %r2, 0; @%p1 bra START; mbarrier.init.shared::cta.b64 [%r10], 4;\n\
         START: bar.sync 0; mov.u32 %r11, 0; and.b32 %r13, %r2, 31; shr.u32 %r14, %r2, 5; shl.b32 %r14, %r14, 2; add.s32 %r14, %r14, %r10;\n\
         ROUND: setp.ne.u32 %p2, %r13, 0; @%p2 bra WAIT; add.s32 %r15, %r11, %r2; st.shared.u32 [%r14+64], %r15;\n\
         mbarrier.arrive.shared::cta.b64 _, [%r10];\n\
         WAIT: mbarrier.try_wait.parity.shared::cta.b64 %p3, [%r10], %r11; @!%p3 bra WAIT;\n\
         ld.shared.v4.u32 {%r20, %r21, %r22, %r23}, [%r10+64]; add.s32 %r20, %r20, %r21; add.s32 %r20, %r20, %r22; add.s32 %r20, %r20, %r23;\n\
         mul.wide.u32 %rd4, %r2, 8; mul.wide.u32 %rd5, %r11, 4; add.s64 %rd4, %rd4, %rd5; add.s64 %rd7, %rd1, %rd4; st.global.u32 [%rd7], %r20;\n\
         BARRIER add.s32 %r11, %r11, 1; setp.lt.u32 %p4, %r11, 2; @%p4 bra ROUND;";
    let b = Buffer::unwritten(8 * 128);
    for seed in [0, 1, 2, 3] {
        let mut shape = Shape::threads(128).shared(128);
        shape.options.seed = seed;
        shape
            .run(&assemble(&body.replace("BARRIER", "bar.sync 0;")), &[&b])
            .unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(b.u32s(), [192, 196].repeat(128));
        // Without the barrier the second round's write has nothing to wait for.
        expect_fault(shape.run(&assemble(&body.replace("BARRIER", "")), &[&b]), Kind::Race, &["shared byte"]);
        // An arrival too many ends the phase too early.
        let twice = body
            .replace("BARRIER", "bar.sync 0;")
            .replace("[%r10];\nWAIT", "[%r10]; mbarrier.arrive.shared::cta.b64 _, [%r10];\nWAIT");
        let fault = shape.run(&assemble(&twice), &[&b]).expect_err("nothing was found");
        assert!([Kind::Race, Kind::Unwritten, Kind::Deadlock].contains(&fault.kind), "{fault}");
    }
}
