//! ldmatrix, mma and wgmma: fragments and descriptors as the PTX ISA lays them out, products against f64.

use super::rig::{Buffer, Random, Shape, assemble, bf16, expect_fault};
use gems_witness::fault::Kind;

#[test]
fn ldmatrix_gives_each_lane_its_values() {
    // Row r of matrix m begins at a place of its own; its values are 100 m + 8 r + column.
    let place = |m: usize, r: usize| ((m * 8 + r) * 5 % 32) * 16;
    let mut image = vec![0u8; 512];
    for (m, r, c) in (0..4).flat_map(|m| (0..8).flat_map(move |r| (0..8).map(move |c| (m, r, c)))) {
        image[place(m, r) + 2 * c..][..2].copy_from_slice(&((100 * m + 8 * r + c) as u16).to_le_bytes());
    }
    for (count, trans) in [(1, ""), (2, ""), (4, ""), (4, ".trans"), (2, ".trans")] {
        let (a, b) = (Buffer::of_bytes(&image), Buffer::unwritten(512));
        let list = ["%r20", "%r21", "%r22", "%r23"][..count].join(", ");
        let stores: String =
            (0..count).map(|n| format!("st.global.u32 [%rd7+{}], %r{};", 4 * n, 20 + n)).collect();
        let p = assemble(&format!(
            "mov.u32 %r10, shared; mul.lo.u32 %r11, %r2, 16; add.s32 %r12, %r10, %r11; mul.wide.u32 %rd4, %r2, 16; add.s64 %rd5, %rd1, %rd4; add.s64 %rd7, %rd2, %rd4;\n\
             ld.global.v4.u32 {{%r13, %r14, %r15, %r16}}, [%rd5]; st.shared.v4.u32 [%r12], {{%r13, %r14, %r15, %r16}}; bar.sync 0;\n\
             mul.lo.u32 %r17, %r2, 80; and.b32 %r17, %r17, 511; add.s32 %r17, %r10, %r17;\n\
             ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {{{list}}}, [%r17];\n{stores}"
        ));
        Shape::threads(32).shared(512).run(&p, &[&a, &b]).unwrap();
        let got = b.u32s();
        for (lane, m) in (0..32).flat_map(|l| (0..count).map(move |m| (l, m))) {
            let (row, col) = (lane / 4, lane % 4 * 2);
            let value = |i: usize| {
                (if trans.is_empty() { 100 * m + 8 * row + col + i } else { 100 * m + 8 * (col + i) + row })
                    as u32
            };
            assert_eq!(
                got[lane * 4 + m],
                value(0) | value(1) << 16,
                "x{count}{trans}, lane {lane}, matrix {m}"
            );
        }
    }
}

fn pack(low: f32, high: f32) -> u32 {
    u32::from(bf16(low)) | u32::from(bf16(high)) << 16
}

#[test]
fn mma_multiplies_its_fragments() {
    let mut random = Random::new(2);
    let (a, b, c) = (random.values(16 * 16), random.values(16 * 8), random.values(16 * 8));
    // PTX ISA, matrix fragments for mma.m16n8k16: element i of a lane.
    let row_a = |lane: usize, i: usize| lane / 4 + if i / 2 % 2 == 1 { 8 } else { 0 };
    let col_a = |lane: usize, i: usize| lane % 4 * 2 + i % 2 + if i >= 4 { 8 } else { 0 };
    let row_b = |lane: usize, i: usize| lane % 4 * 2 + i % 2 + if i >= 2 { 8 } else { 0 };
    let row_c = |lane: usize, i: usize| lane / 4 + if i >= 2 { 8 } else { 0 };
    let col_c = |lane: usize, i: usize| lane % 4 * 2 + i % 2;
    let mut fragments = Vec::new();
    for l in 0..32 {
        let of_a = |i: usize| a[row_a(l, i) * 16 + col_a(l, i)];
        let of_b = |i: usize| b[row_b(l, i) * 8 + l / 4];
        fragments.extend((0..4).map(|n| pack(of_a(2 * n), of_a(2 * n + 1))));
        fragments.extend((0..2).map(|n| pack(of_b(2 * n), of_b(2 * n + 1))));
        fragments.extend([0, 0]);
        fragments.extend((0..4).map(|i| c[row_c(l, i) * 8 + col_c(l, i)].to_bits()));
    }
    let (x, y) = (Buffer::of_u32(&fragments), Buffer::unwritten(32 * 16));
    let p = assemble(
        "mul.wide.u32 %rd4, %r2, 48; add.s64 %rd5, %rd1, %rd4; mul.wide.u32 %rd6, %r2, 16; add.s64 %rd7, %rd2, %rd6;\n\
         ld.global.v4.u32 {%r10, %r11, %r12, %r13}, [%rd5]; ld.global.v2.u32 {%r14, %r15}, [%rd5+16]; ld.global.v4.f32 {%f10, %f11, %f12, %f13}, [%rd5+32];\n\
         mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f20, %f21, %f22, %f23}, {%r10, %r11, %r12, %r13}, {%r14, %r15}, {%f10, %f11, %f12, %f13};\n\
         st.global.v4.f32 [%rd7], {%f20, %f21, %f22, %f23};",
    );
    Shape::threads(32).run(&p, &[&x, &y]).unwrap();
    for (n, got) in y.f32s().into_iter().enumerate() {
        let (row, col) = (row_c(n / 4, n % 4), col_c(n / 4, n % 4));
        let want = (0..16).map(|k| f64::from(a[row * 16 + k]) * f64::from(b[k * 8 + col])).sum::<f64>()
            + f64::from(c[row * 8 + col]);
        assert!((f64::from(got) - want).abs() < 1e-5, "({row}, {col}): {got}, {want} wanted");
    }
}

/// Shared memory with a 128-byte swizzle: the 16-byte piece c of row r of eight lies at c ^ r.
pub fn swizzled_image(rows: usize, values: impl Fn(usize, usize) -> f32) -> Vec<u8> {
    let mut image = vec![0u8; rows * 128];
    for (r, c) in (0..rows).flat_map(|r| (0..64).map(move |c| (r, c))) {
        let piece = (c / 8) ^ (r % 8);
        image[r * 128 + piece * 16 + c % 8 * 2..][..2].copy_from_slice(&bf16(values(r, c)).to_le_bytes());
    }
    image
}

/// Fields of a descriptor, in bytes; the start is added by the program.
fn descriptor(leading: u64, stride: u64) -> u64 {
    (leading / 16) << 16 | (stride / 16) << 32 | 1 << 62
}

/// [`wgmma_program_of`] 128 columns.
fn wgmma_program(
    bytes: usize,
    a: (usize, u64),
    b: (usize, u64),
    flags: &str,
    fence: &str,
    wait: &str,
) -> String {
    wgmma_program_of(128, bytes, a, b, [flags, fence, wait])
}

/// A program of one wgmma of 64 x `columns`, 16 k, whose operands lie at `a` and `b` bytes behind a multiple of 1024, images of `bytes` bytes.
fn wgmma_program_of(
    columns: usize,
    bytes: usize,
    (a, da): (usize, u64),
    (b, db): (usize, u64),
    [flags, fence, wait]: [&str; 3],
) -> String {
    let (each, each_bytes) = (columns / 2, columns * 2);
    let list = (0..each).map(|i| format!("%f{}", 20 + i)).collect::<Vec<_>>().join(", ");
    let zeros: String = (0..each).map(|i| format!("mov.f32 %f{}, 0f00000000; ", 20 + i)).collect();
    let stores: String =
        (0..each).map(|i| format!("st.global.f32 [%rd7+{}], %f{};\n", 4 * i, 20 + i)).collect();
    format!(
        "mul.wide.u32 %rd6, %r2, {each_bytes}; add.s64 %rd7, %rd2, %rd6; mov.u32 %r10, shared; add.s32 %r10, %r10, 1023; and.b32 %r10, %r10, -1024;\n\
         mul.lo.u32 %r11, %r2, 16;\n\
         COPY: setp.ge.u32 %p1, %r11, {bytes}; @%p1 bra COPIED; cvt.u64.u32 %rd8, %r11; add.s64 %rd9, %rd1, %rd8; add.s32 %r12, %r10, %r11;\n\
         ld.global.v4.u32 {{%r13, %r14, %r15, %r16}}, [%rd9]; st.shared.v4.u32 [%r12], {{%r13, %r14, %r15, %r16}}; add.s32 %r11, %r11, 2048; bra COPY;\n\
         COPIED: {fence} bar.sync 0;\n{zeros}\n\
         shr.u32 %r17, %r10, 4; cvt.u64.u32 %rd10, %r17; add.s64 %rd11, %rd10, {}; add.s64 %rd12, %rd10, {};\n\
         wgmma.fence.sync.aligned;\n\
         wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.bf16.bf16 {{{list}}}, %rd11, %rd12, 1, 1, 1, {flags};\n\
         wgmma.commit_group.sync.aligned;\n{wait}\n{stores}",
        da as i64 + (a / 16) as i64,
        db as i64 + (b / 16) as i64
    )
}

/// The accumulators of all threads as a 64 x columns matrix: PTX ISA, register fragments of wgmma's D.
fn result_of(got: &[f32], columns: usize) -> Vec<f32> {
    let mut d = vec![0f32; 64 * columns];
    for (n, value) in got.iter().enumerate() {
        let (t, i) = (n / (columns / 2), n % (columns / 2));
        let (row, col) = (16 * (t / 32) + t % 32 / 4 + 8 * (i / 2 % 2), 8 * (i / 4) + 2 * (t % 4) + i % 2);
        d[row * columns + col] = *value;
    }
    d
}

const FENCE: &str = "fence.proxy.async.shared::cta;";
const WAIT: &str = "wgmma.wait_group.sync.aligned 0;";

#[test]
fn wgmma_multiplies_what_descriptors_say() {
    let mut random = Random::new(3);
    let (a, b) = (random.values(64 * 64), random.values(256 * 64));
    let want = |k0: usize, row: usize, col: usize| {
        (0..16).map(|k| f64::from(a[row * 64 + k0 + k]) * f64::from(b[col * 64 + k0 + k])).sum::<f64>()
    };
    // K-major: a row of 128 bytes is an output; eight rows after 1024 bytes; k advances along the row.
    let k_major = |v: &[f32], outputs: usize| swizzled_image(outputs, |r, c| v[r * 64 + c]);
    // MN-major: a row is a k; 64 outputs a row, the next 64 outputs 8192 bytes further.
    let mn_major = |v: &[f32], outputs: usize| -> Vec<u8> {
        (0..outputs / 64).flat_map(|chunk| swizzled_image(64, |k, m| v[(chunk * 64 + m) * 64 + k])).collect()
    };
    let orientations = [(false, false), (true, false), (false, true), (true, true)];
    for (columns, (ta, tb)) in [64, 128, 256].into_iter().flat_map(|c| orientations.map(|o| (c, o))) {
        let mut image = if ta { mn_major(&a, 64) } else { k_major(&a, 64) };
        let b_at = image.len();
        image.extend(if tb { mn_major(&b, columns) } else { k_major(&b, columns) });
        for k0 in [0, 16, 48] {
            let place = |transposed: bool| {
                if transposed { (k0 * 128, descriptor(8192, 1024)) } else { (k0 * 2, descriptor(16, 1024)) }
            };
            let ((pa, da), (pb, db)) = (place(ta), place(tb));
            let flags = format!("{}, {}", u8::from(ta), u8::from(tb));
            let (a, b) = ((pa, da), (b_at + pb, db));
            let p = assemble(&wgmma_program_of(columns, image.len(), a, b, [&flags, FENCE, WAIT]));
            let (x, y) = (Buffer::of_bytes(&image), Buffer::unwritten(64 * columns * 4));
            Shape::threads(128).shared(1024 + image.len() as u32).run(&p, &[&x, &y]).unwrap();
            for (n, got) in result_of(&y.f32s(), columns).into_iter().enumerate() {
                let w = want(k0, n / columns, n % columns);
                assert!(
                    (f64::from(got) - w).abs() < 1e-5,
                    "{columns} columns, {flags}, k {k0}: ({}, {}) is {got}, {w} wanted",
                    n / columns,
                    n % columns
                );
            }
        }
    }
}

#[test]
fn wgmma_with_a_wrong_descriptor() {
    let image = swizzled_image(192, |_, _| 1.0);
    let x = Buffer::of_bytes(&image);
    let run = |a: (usize, u64), b: (usize, u64)| {
        let y = Buffer::unwritten(64 * 128 * 4);
        let p = assemble(&wgmma_program(image.len(), a, b, "0, 0", FENCE, WAIT));
        Shape::threads(128).shared(1024 + image.len() as u32).run(&p, &[&x, &y])
    };
    let good = descriptor(16, 1024);
    run((0, good), (8192, good)).unwrap();
    expect_fault(
        run((0, good & !(3 << 62)), (8192, good)),
        Kind::Descriptor,
        &["not a swizzle of 128 bytes"],
    );
    expect_fault(run((0, good | 1 << 49), (8192, good)), Kind::Descriptor, &["base offset"]);
    expect_fault(run((0, good | 1 << 15), (8192, good)), Kind::Descriptor, &["bits that mean nothing"]);
    // Beyond the operands lies what nobody has written, and beyond that nothing.
    for b in [(8192, descriptor(16, 1056)), (8192, descriptor(16, 4096)), (16384, good)] {
        let fault = run((0, good), b).expect_err("nothing was found");
        assert!(
            [Kind::Unwritten, Kind::Bounds].contains(&fault.kind)
                && fault.message.contains("reads shared byte"),
            "{fault}"
        );
    }
}

#[test]
fn wgmma_without_a_wait_or_a_proxy_fence() {
    let image = swizzled_image(192, |_, _| 1.0);
    let x = Buffer::of_bytes(&image);
    let run = |fence: &str, wait: &str| {
        let y = Buffer::unwritten(64 * 128 * 4);
        let d = descriptor(16, 1024);
        let p = assemble(&wgmma_program(image.len(), (0, d), (8192, d), "0, 0", fence, wait));
        Shape::threads(128).shared(1024 + image.len() as u32).run(&p, &[&x, &y])
    };
    let parts = ["the asynchronous proxy reads shared byte", "no fence.proxy.async", "thread", "PTX line"];
    expect_fault(run("", WAIT), Kind::ProxyFence, &parts);
    expect_fault(run("fence.proxy.async.global;", WAIT), Kind::ProxyFence, &parts);
    expect_fault(run(FENCE, ""), Kind::Unfinished, &["accumulators"]);
    let text = wgmma_program(
        image.len(),
        (0, descriptor(16, 1024)),
        (8192, descriptor(16, 1024)),
        "0, 0",
        FENCE,
        WAIT,
    );
    let y = Buffer::unwritten(64 * 128 * 4);
    let without = assemble(&text.replace("wgmma.fence.sync.aligned;", ""));
    let result = Shape::threads(128).shared(1024 + image.len() as u32).run(&without, &[&x, &y]);
    expect_fault(result, Kind::Unfinished, &["since the last wgmma.fence"]);
    expect_fault(run(FENCE, "wgmma.wait_group.sync.aligned 1;"), Kind::Unfinished, &["accumulators"]);
}
