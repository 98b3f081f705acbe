//! Order between threads of a block and between blocks: small programs that are right, and the same with one thing left out.

use super::arguments::tensor_map;
use super::rig::{Buffer, Shape, assemble, expect_fault};
use gems_witness::fault::{Fault, Kind};

/// Block 0 writes 42 to `a` and raises the flag `b`; block 1 waits for the flag, reads `a` and writes what it read to `b` + 4.
fn message(release: &str, raise: &str, look: &str, acquire: &str) -> String {
    format!(
        "setp.ne.u32 %p1, %r3, 0; @%p1 bra READER;\n\
         mov.u32 %r10, 42; st.global.u32 [%rd1], %r10;\n{release}\n{raise}\nret;\n\
         READER: {look} setp.eq.u32 %p2, %r11, 0; @%p2 bra READER;\n{acquire}\n\
         ld.global.u32 %r12, [%rd1]; st.global.u32 [%rd2+4], %r12;"
    )
}

/// In order and in three random orders; the first fault, or that there was none.
fn in_all_orders(text: &str, threads: u32, buffers: &dyn Fn() -> Vec<Buffer>) -> Result<(), Fault> {
    for seed in 0..4 {
        let b = buffers();
        let mut shape = Shape { threads, ..Shape::blocks(2) }.shared(12 * 1024);
        shape.options.seed = seed;
        shape.run(&assemble(text), &b.iter().collect::<Vec<_>>())?;
    }
    Ok(())
}

fn messages(text: &str) -> Result<(), Fault> {
    in_all_orders(text, 1, &|| vec![Buffer::zeros(4), Buffer::zeros(8)])
}

const ADD: &str = "atom.global.add.u32 %r13, [%rd2], 1;";
const STORE: &str = "mov.u32 %r13, 1; st.volatile.global.u32 [%rd2], %r13;";
const LOOK: &str = "ld.volatile.global.u32 %r11, [%rd2];";

#[test]
fn releases_and_acquires_that_order_blocks() {
    for (release, raise, look, acquire) in [
        ("membar.gl;", ADD, LOOK, "membar.gl;"),
        ("fence.acq_rel.gpu;", ADD, LOOK, "fence.acq_rel.gpu;"),
        ("membar.gl;", STORE, LOOK, "membar.gl;"),
        ("", "red.release.gpu.global.add.u32 [%rd2], 1;", "ld.acquire.gpu.global.u32 %r11, [%rd2];", ""),
        (
            "",
            "mov.u32 %r13, 1; st.release.sys.global.u32 [%rd2], %r13;",
            "ld.acquire.gpu.global.u32 %r11, [%rd2];",
            "",
        ),
        (
            "",
            "mov.u32 %r13, 1; st.release.gpu.global.u32 [%rd2], %r13;",
            "ld.relaxed.gpu.global.u32 %r11, [%rd2];",
            "fence.acq_rel.gpu;",
        ),
        (
            "",
            "atom.acq_rel.gpu.global.add.u32 %r13, [%rd2], 1;",
            "atom.acquire.gpu.global.add.u32 %r11, [%rd2], 0;",
            "",
        ),
    ] {
        let text = message(release, raise, look, acquire);
        messages(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    }
}

#[test]
fn messages_that_lack_something() {
    for (what, release, raise, look, acquire) in [
        ("no fence before the flag", "", ADD, LOOK, "membar.gl;"),
        ("no fence after the flag", "membar.gl;", ADD, LOOK, ""),
        ("a fence of the block only", "membar.cta;", ADD, LOOK, "membar.gl;"),
        ("an acquire fence of the block only", "membar.gl;", ADD, LOOK, "fence.acq_rel.cta;"),
        (
            "a release for the block only",
            "",
            "red.release.cta.global.add.u32 [%rd2], 1;",
            "ld.acquire.gpu.global.u32 %r11, [%rd2];",
            "",
        ),
        (
            "an acquire for the block only",
            "",
            "red.release.gpu.global.add.u32 [%rd2], 1;",
            "ld.acquire.cta.global.u32 %r11, [%rd2];",
            "",
        ),
        (
            "a relaxed read",
            "",
            "red.release.gpu.global.add.u32 [%rd2], 1;",
            "ld.relaxed.gpu.global.u32 %r11, [%rd2];",
            "",
        ),
        (
            "a relaxed write",
            "",
            "red.relaxed.gpu.global.add.u32 [%rd2], 1;",
            "ld.acquire.gpu.global.u32 %r11, [%rd2];",
            "",
        ),
        (
            "the fence behind the flag",
            "",
            "atom.global.add.u32 %r13, [%rd2], 1; membar.gl;",
            LOOK,
            "membar.gl;",
        ),
        (
            "a reduction that is to acquire",
            "membar.gl;",
            ADD,
            "red.global.add.u32 [%rd2], 0; mov.u32 %r11, 1;",
            "membar.gl;",
        ),
    ] {
        let fault = messages(&message(release, raise, look, acquire)).expect_err(what);
        assert_eq!(fault.kind, Kind::Race, "{what}: {fault}");
        for part in ["block (", "thread 0", "PTX line", "of an allocation of", "of block ["] {
            assert!(fault.to_string().contains(part), "{what}: {fault}");
        }
    }
    // A weak flag races with whoever looks at it.
    let weak = message("membar.gl;", "mov.u32 %r13, 1; st.global.u32 [%rd2], %r13;", LOOK, "membar.gl;");
    expect_fault(messages(&weak), Kind::Race, &["of an allocation of 8 bytes"]);
}

/// What kernels do that go on in the last block: every thread writes, fences, and meets the others; one thread counts.
fn last_block(fence: &str, barrier: &str, after: &str) -> String {
    format!(
        "mad.lo.s32 %r10, %r3, 64, %r2; mul.wide.u32 %rd4, %r10, 4; add.s64 %rd5, %rd1, %rd4; st.global.u32 [%rd5], %r10;\n\
         {fence} {barrier} mov.u32 %r20, shared; setp.ne.u32 %p1, %r2, 0; @%p1 bra JOIN;\n\
         atom.global.add.u32 %r11, [%rd2], 1; st.shared.u32 [%r20], %r11;\n\
         JOIN: bar.sync 0; ld.shared.u32 %r11, [%r20]; {after} setp.eq.u32 %p2, %r11, 0; @%p2 bra END;\n\
         mov.u32 %r12, 127; sub.s32 %r12, %r12, %r2; mul.wide.u32 %rd6, %r12, 4; add.s64 %rd6, %rd1, %rd6; ld.global.u32 %r13, [%rd6];\n\
         mul.wide.u32 %rd7, %r2, 4; add.s64 %rd7, %rd3, %rd7; ld.global.u32 %r14, [%rd1]; add.s32 %r13, %r13, %r14; st.global.u32 [%rd7], %r13;\nEND:"
    )
}

#[test]
fn the_last_block_sees_what_all_threads_wrote() {
    let buffers = || vec![Buffer::unwritten(4 * 128), Buffer::zeros(4), Buffer::unwritten(4 * 64)];
    let run = |fence, barrier, after| in_all_orders(&last_block(fence, barrier, after), 64, &buffers);
    run("membar.gl;", "bar.sync 0;", "membar.gl;").unwrap_or_else(|e| panic!("{e}"));
    // Only the counting thread's fence, but behind the barrier: cumulative.
    run("bar.sync 0;", "membar.gl;", "membar.gl;").unwrap_or_else(|e| panic!("{e}"));
    for (fence, barrier, after) in [
        ("", "bar.sync 0;", "membar.gl;"),
        ("membar.gl;", "", "membar.gl;"),
        ("membar.gl;", "bar.sync 0;", ""),
        ("membar.cta;", "bar.sync 0;", "membar.gl;"),
    ] {
        expect_fault(run(fence, barrier, after), Kind::Race, &["PTX line"]);
    }
}

#[test]
fn counters_are_reset_by_who_has_seen_all() {
    // Each block counts itself; the last makes the counter zero. An order comes from the count itself.
    let reset = |seen: &str| {
        format!(
            "atom.global.add.u32 %r10, [%rd1], 1; setp.ne.u32 %p1, %r10, {seen}; @%p1 bra END; mov.u32 %r11, 0; st.global.u32 [%rd1], %r11;\nEND:"
        )
    };
    let run = |text: &str, blocks: u32| {
        (0..4).try_for_each(|seed| {
            let mut shape = Shape { threads: 1, ..Shape::blocks(blocks) };
            shape.options.seed = seed;
            shape.run(&assemble(text), &[&Buffer::zeros(4)])
        })
    };
    run(&reset("4"), 5).unwrap_or_else(|e| panic!("{e}"));
    // By the second of three: the third may count before or after.
    expect_fault(run(&reset("1"), 3), Kind::Race, &["of an allocation of 4 bytes"]);
}

#[test]
fn warps_and_lanes_of_a_block() {
    let run = |body: &str| {
        let text = format!(
            "mul.wide.u32 %rd4, %r2, 4; add.s64 %rd5, %rd1, %rd4; xor.b32 %r10, %r2, 1; mul.wide.u32 %rd6, %r10, 4; add.s64 %rd7, %rd1, %rd6;\n\
             xor.b32 %r11, %r2, 33; mul.wide.u32 %rd8, %r11, 4; add.s64 %rd9, %rd1, %rd8;\nst.global.u32 [%rd5], %r2;\n{body}"
        );
        Shape::threads(64).run(&assemble(&text), &[&Buffer::zeros(256)])
    };
    run("bar.warp.sync -1; ld.global.u32 %r12, [%rd7];").unwrap();
    run("bar.sync 0; ld.global.u32 %r12, [%rd9];").unwrap();
    run("ld.global.u32 %r12, [%rd5];").unwrap();
    expect_fault(
        run("ld.global.u32 %r12, [%rd7];"),
        Kind::Race,
        &["thread 0", "written by thread 1 of block"],
    );
    expect_fault(
        run("bar.warp.sync -1; ld.global.u32 %r12, [%rd9];"),
        Kind::Race,
        &["thread 32", "thread 1 of block"],
    );
    expect_fault(run("st.global.u32 [%rd1], %r2;"), Kind::Race, &["writes byte"]);
    expect_fault(
        run("bar.sync 0; ld.global.u32 %r12, [%rd9]; st.global.u32 [%rd5], %r2;"),
        Kind::Race,
        &["thread", "PTX line 15"],
    );
    // Neighbours of two bytes are told apart.
    let text =
        "mul.wide.u32 %rd4, %r2, 2; add.s64 %rd5, %rd1, %rd4; mov.u16 %rs1, 7; st.global.u16 [%rd5], %rs1;";
    Shape::threads(64).run(&assemble(text), &[&Buffer::unwritten(128)]).unwrap();
}

#[test]
fn constant_loads_of_what_is_written() {
    let text = "setp.ne.u32 %p1, %r3, 0; @%p1 bra OTHER; st.global.u32 [%rd1], %r2; ret;\nOTHER: ld.global.nc.u32 %r10, [%rd1+ADD];";
    let run = |add: &str| in_all_orders(&text.replace("ADD", add), 1, &|| vec![Buffer::zeros(8)]);
    run("4").unwrap();
    expect_fault(run("0"), Kind::Race, &["ld.nc"]);
}

#[test]
fn a_block_that_waits_for_one_that_has_not_begun() {
    let text = "setp.ne.u32 %p1, %r3, 0; @%p1 bra RAISE;\nWAIT: ld.acquire.gpu.global.u32 %r11, [%rd2]; setp.eq.u32 %p2, %r11, 0; @%p2 bra WAIT; ret;\n\
                RAISE: red.release.gpu.global.add.u32 [%rd2], 1;";
    let run = |resident| {
        let mut shape = Shape { threads: 1, ..Shape::blocks(2) };
        shape.options.resident = resident;
        shape.run(&assemble(text), &[&Buffer::zeros(4), &Buffer::zeros(4)])
    };
    run(2).unwrap();
    expect_fault(
        run(1),
        Kind::Deadlock,
        &["k, block (0, 0, 0)", "1 blocks have not begun (1 at a time)", "PTX line"],
    );
}

/// Block 0 writes a matrix of 64 x 64 by ordinary stores; block 1 learns of it and copies it in bulk.
fn written_then_copied(write_fence: &str, read_fence: &str) -> String {
    format!(
        "setp.ne.u32 %p1, %r3, 0; @%p1 bra READER; mov.u32 %r10, 0;\n\
         NEXT: mad.lo.s32 %r11, %r10, 32, %r2; mul.wide.u32 %rd4, %r11, 16; add.s64 %rd5, %rd3, %rd4; st.global.v4.u32 [%rd5], {{%r2, %r2, %r2, %r2}};\n\
         add.s32 %r10, %r10, 1; setp.lt.u32 %p2, %r10, 16; @%p2 bra NEXT;\n\
         bar.warp.sync -1; setp.ne.u32 %p3, %r2, 0; @%p3 bra END; {write_fence} red.release.gpu.global.add.u32 [%rd2], 1; ret;\n\
         READER: setp.ne.u32 %p3, %r2, 0; @%p3 bra END; mov.u32 %r12, shared; add.s32 %r12, %r12, 1023; and.b32 %r12, %r12, -1024; add.s32 %r13, %r12, 8192;\n\
         mbarrier.init.shared::cta.b64 [%r13], 1; fence.mbarrier_init.release.cluster; mov.u32 %r14, 8192; mov.u32 %r15, 0;\n\
         WAIT: ld.acquire.gpu.global.u32 %r11, [%rd2]; setp.eq.u32 %p2, %r11, 0; @%p2 bra WAIT;\n{read_fence}\n\
         mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r13], %r14;\n\
         cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%r12], [%rd1, {{%r15, %r15}}], [%r13];\n\
         AGAIN: mbarrier.try_wait.parity.shared::cta.b64 %p4, [%r13], 0; @!%p4 bra AGAIN;\nEND:"
    )
}

#[test]
fn the_asynchronous_proxy_takes_a_fence_in_its_block() {
    let run = |write: &str, read: &str| {
        in_all_orders(&written_then_copied(write, read), 32, &|| {
            let matrix = Buffer::unwritten(8192);
            vec![Buffer::of_bytes(&tensor_map(&matrix, 64, 64, 64)), Buffer::zeros(4), matrix]
        })
    };
    let fence = "fence.proxy.async.global;";
    run(fence, fence).unwrap_or_else(|e| panic!("{e}"));
    run("", "fence.proxy.async;").unwrap_or_else(|e| panic!("{e}"));
    for (write, read) in [(fence, ""), ("", ""), (fence, "fence.proxy.async.shared::cta;")] {
        expect_fault(
            run(write, read),
            Kind::ProxyFence,
            &["block (1, 0, 0), thread 0", "of block [0, 0, 0]", "no fence.proxy.async", "PTX line"],
        );
    }
}
