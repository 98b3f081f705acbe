//! Divergence, loops, shuffles, votes, barriers.

use super::rig::{Buffer, Shape, assemble, expect_fault};
use gems_witness::fault::Kind;

/// A thread's own word of `b`, at %rd7; of `a`, at %rd5.
const PLACES: &str = "mul.wide.u32 %rd4, %r2, 4; add.s64 %rd5, %rd1, %rd4; add.s64 %rd7, %rd2, %rd4;\n";

fn outcome(threads: u32, body: &str) -> Vec<u32> {
    let (a, b) = (
        Buffer::of_u32(&(0..threads).map(|t| t * 3 + 1).collect::<Vec<_>>()),
        Buffer::unwritten(4 * threads as usize),
    );
    let p = assemble(&format!("{PLACES}{body}"));
    for seed in [0, 1, 2] {
        let mut shape = Shape::threads(threads).shared(4096);
        shape.options.seed = seed;
        shape.run(&p, &[&a, &b]).unwrap_or_else(|e| panic!("{e}"));
    }
    b.u32s()
}

#[test]
fn lanes_part_and_meet_again() {
    // Collatz steps of thread + 1: every lane its own number of rounds; then all meet in a shuffle.
    let got = outcome(
        64,
        "add.s32 %r10, %r2, 1; mov.u32 %r11, 0;\n\
         LOOP: setp.eq.s32 %p1, %r10, 1; @%p1 bra DONE;\n\
         and.b32 %r12, %r10, 1; setp.eq.s32 %p2, %r12, 0; @%p2 bra EVEN;\n\
         mad.lo.s32 %r10, %r10, 3, 1; bra.uni NEXT;\n\
         EVEN: shr.u32 %r10, %r10, 1;\n\
         NEXT: add.s32 %r11, %r11, 1; bra LOOP;\n\
         DONE: shfl.sync.bfly.b32 %r13, %r11, 1, 31, -1; add.s32 %r11, %r11, %r13;\n\
         st.global.u32 [%rd7], %r11;",
    );
    let steps = |n: u32| {
        let (mut n, mut count) = (n, 0);
        while n != 1 {
            n = if n % 2 == 0 { n / 2 } else { 3 * n + 1 };
            count += 1;
        }
        count
    };
    let want: Vec<u32> = (0..64u32).map(|t| steps(t + 1) + steps((t ^ 1) + 1)).collect();
    assert_eq!(got, want);
}

#[test]
fn lanes_that_end_are_not_waited_for() {
    let got = outcome(
        32,
        "st.global.u32 [%rd7], %r2; setp.lt.u32 %p1, %r2, 20; @%p1 bra ON; ret;\n\
         ON: vote.sync.ballot.b32 %r10, %p1, 0xfffff; bar.warp.sync 0xfffff; st.global.u32 [%rd7], %r10;",
    );
    let want: Vec<u32> = (0..32).map(|t| if t < 20 { 0xf_ffff } else { t }).collect();
    assert_eq!(got, want);
}

#[test]
fn shuffles_in_segments() {
    type F = fn(u32) -> Option<u32>;
    // From which lane; none: the own value, and the predicate is false.
    let list: &[(&str, F)] = &[
        ("shfl.sync.bfly.b32 %r20|%p1, %r10, 5, 31, -1", |l| Some(l ^ 5)),
        ("shfl.sync.up.b32 %r20|%p1, %r10, 3, 0, -1", |l| l.checked_sub(3)),
        ("shfl.sync.down.b32 %r20|%p1, %r10, 3, 31, -1", |l| Some(l + 3).filter(|f| *f < 32)),
        ("shfl.sync.idx.b32 %r20|%p1, %r10, 7, 31, -1", |_| Some(7)),
        // Segments of eight lanes: 24 << 8.
        ("shfl.sync.idx.b32 %r20|%p1, %r10, 2, 6175, -1", |l| Some(l / 8 * 8 + 2)),
        ("shfl.sync.down.b32 %r20|%p1, %r10, 3, 6175, -1", |l| Some(l + 3).filter(|f| f / 8 == l / 8)),
        ("shfl.sync.up.b32 %r20|%p1, %r10, 1, 6144, -1", |l| l.checked_sub(1).filter(|f| f / 8 == l / 8)),
    ];
    for (op, from) in list {
        let got = outcome(
            32,
            &format!(
                "ld.global.u32 %r10, [%rd5]; {op}; selp.b32 %r21, 1000, 0, %p1; add.s32 %r20, %r20, %r21; st.global.u32 [%rd7], %r20;"
            ),
        );
        let want: Vec<u32> = (0..32).map(|l| from(l).map_or(l * 3 + 1, |f| 1000 + f * 3 + 1)).collect();
        assert_eq!(got, want, "{op}");
    }
}

#[test]
fn votes() {
    let got = outcome(
        32,
        "setp.gt.u32 %p1, %r2, 29; vote.sync.any.pred %p2, %p1, -1; vote.sync.all.pred %p3, %p1, -1; vote.sync.ballot.b32 %r10, %p1, -1;\n\
         selp.b32 %r11, 1, 0, %p2; selp.b32 %r12, 2, 0, %p3; add.s32 %r10, %r10, %r11; add.s32 %r10, %r10, %r12; st.global.u32 [%rd7], %r10;",
    );
    assert_eq!(got, vec![0xc000_0001; 32]);
}

#[test]
fn one_lane_is_elected() {
    let elect = "elect.sync _|%p2, 0xffffffff; selp.u32 %r10, 1, 0, %p2; st.global.u32 [%rd7], %r10;";
    let got = outcome(64, elect);
    // Nobody may count on which lane it is: here not the first.
    assert!(got.chunks(32).all(|warp| warp.iter().sum::<u32>() == 1 && warp[0] == 0), "{got:?}");
    // Half of the warp asks for one of all of it.
    let half =
        format!("{PLACES}setp.gt.u32 %p3, %r2, 15; @%p3 bra OFF; {elect} OFF: bar.warp.sync 0xffffffff;");
    let b = Buffer::zeros(128);
    let fault = Shape::threads(32).run(&assemble(&half), &[&b, &b]).expect_err("nothing was found");
    assert!([Kind::Divergence, Kind::Deadlock].contains(&fault.kind), "{fault}");
}

#[test]
fn barriers_hand_on_shared_memory() {
    let got = outcome(
        96,
        "mov.u32 %r10, shared; mul.lo.u32 %r11, %r2, 4; add.s32 %r12, %r10, %r11; st.shared.u32 [%r12], %r2; bar.sync 0;\n\
         mov.u32 %r13, 380; sub.s32 %r13, %r13, %r11; add.s32 %r13, %r10, %r13; ld.shared.u32 %r14, [%r13]; st.global.u32 [%rd7], %r14;",
    );
    assert_eq!(got, (0..96).map(|t| 95 - t).collect::<Vec<u32>>());
}

#[test]
fn special_registers_of_a_grid() {
    let b = Buffer::unwritten(4 * 6 * 32);
    let p = assemble(
        "mov.u32 %r10, %nctaid.x; mov.u32 %r11, %ntid.x; mad.lo.s32 %r12, %r3, %r11, %r2; mul.wide.u32 %rd4, %r12, 4; add.s64 %rd7, %rd1, %rd4;\n\
         mov.u32 %r13, %laneid; mad.lo.s32 %r10, %r10, 100, %r13; st.global.u32 [%rd7], %r10;",
    );
    Shape { threads: 32, ..Shape::blocks(6) }.run(&p, &[&b]).unwrap();
    assert_eq!(b.u32s(), (0..192).map(|i| 600 + i % 32).collect::<Vec<u32>>());
}

#[test]
fn a_part_of_a_warp_at_what_takes_all_of_it() {
    let aligned = "mov.u32 %r10, shared; ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r11}, [%r10];";
    for (what, op) in [
        ("bar.sync", "bar.sync 0;"),
        ("ldmatrix", aligned),
        ("shfl", "shfl.sync.bfly.b32 %r11, %r2, 1, 31, -1;"),
    ] {
        let p =
            assemble(&format!("setp.lt.u32 %p1, %r2, 16; @%p1 bra ONE; {op} bra.uni END;\nONE: {op}\nEND:"));
        let fault = expect_fault(
            Shape::threads(32).shared(1024).run(&p, &[]),
            Kind::Divergence,
            &["k, block (0, 0, 0), thread"],
        );
        assert!(fault.place.contains("PTX line"), "{what}: {fault}");
    }
    let p = assemble("setp.lt.u32 %p1, %r2, 16; @%p1 bar.sync 0;");
    expect_fault(Shape::threads(32).run(&p, &[]), Kind::Divergence, &["guard"]);
}

#[test]
fn warps_that_end_before_a_barrier_of_the_block() {
    let p = assemble("setp.lt.u32 %p1, %r2, 32; @%p1 bra END; bar.sync 0;\nEND:");
    expect_fault(
        Shape::threads(96).run(&p, &[]),
        Kind::Divergence,
        &["2 warps", "1 warps of the block have ended", "PTX line"],
    );
}

#[test]
fn a_lane_that_takes_no_part_is_not_read() {
    let p = assemble(
        "setp.lt.u32 %p1, %r2, 16; @%p1 bra END; shfl.sync.bfly.b32 %r11, %r2, 16, 31, 0xffff0000;\nEND:",
    );
    expect_fault(Shape::threads(32).run(&p, &[]), Kind::Divergence, &["lane 16 reads lane 0"]);
    let p = assemble("shfl.sync.bfly.b32 %r11, %r2, 1, 31, 0xffff;");
    expect_fault(Shape::threads(32).run(&p, &[]), Kind::Divergence, &["are members of"]);
}

#[test]
fn loops_without_end() {
    let p = assemble("AGAIN: add.s32 %r10, %r10, 1; bra AGAIN;");
    expect_fault(Shape::threads(32).run(&p, &[]), Kind::Limit, &["no end after", "PTX line"]);
}
