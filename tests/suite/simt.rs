//! Every kernel on the SIMT machine, against f64 formulas or the CPU backend, in f32 and bf16; and the
//! machine itself against planted bugs. Outputs start out as NaN, so what a kernel forgets to write shows.

use super::support::{assert_close, kernel_devices, numbers};
use gems_engine::backend::cpu::Cpu;
use gems_engine::backend::cuda::simt::{Schedule, configure, run_planted};
use gems_engine::backend::cuda::{Cuda, MatmulShape};
use gems_engine::backend::*;
use half::bf16;
use std::ops::Range;

const TYPES: [DType; 2] = [DType::F32, DType::BF16];

/// Values that `dtype` holds exactly.
fn values(dtype: DType, seed: u64, n: usize) -> Vec<f32> {
    let exact = |v: f32| if dtype == DType::BF16 { bf16::from_f32(v).to_f32() } else { v };
    numbers(seed, n).into_iter().map(exact).collect()
}

/// Relative to the largest value: f32 sums of a few hundred terms; one rounding of bf16 and a product of
/// rounded probabilities.
fn tolerance(dtype: DType) -> f64 {
    if dtype == DType::F32 { 1e-5 } else { 1.2e-2 }
}

#[track_caller]
fn close(what: &str, dtype: DType, got: &[f32], want: &[f32]) {
    let largest = want.iter().filter(|w| w.is_finite()).fold(0f64, |m, w| m.max(w.abs() as f64));
    assert_close(what, got, want, tolerance(dtype), tolerance(dtype) * largest);
}

/// A tensor inside a larger one: `pad` columns more, so that rows are not contiguous; starts as NaN.
struct Padded {
    tensor: Tensor,
    cols: usize,
}

impl Padded {
    fn new(be: &dyn Backend, data: &[f32], rows: usize, cols: usize, pad: usize, dtype: DType) -> Self {
        let mut tensor = be.alloc(rows, cols + pad, dtype).unwrap();
        be.fill(tensor.mat_mut(), f32::NAN).unwrap();
        if !data.is_empty() {
            be.upload(data, tensor.mat_mut().col_range(0..cols)).unwrap();
        }
        Self { tensor, cols }
    }
    fn mat(&self) -> Mat<'_> {
        self.tensor.mat().col_range(0..self.cols)
    }
    fn mat_mut(&mut self) -> MatMut<'_> {
        self.tensor.mat_mut().col_range(0..self.cols)
    }
    /// The values; fails if the padding was written.
    #[track_caller]
    fn read(&self, be: &dyn Backend) -> Vec<f32> {
        let all = self.tensor.mat();
        let padding = be.download(all.col_range(self.cols..all.cols)).unwrap();
        assert!(padding.iter().all(|v| v.is_nan()), "written outside the view");
        be.download(self.mat()).unwrap()
    }
}

/// Runs `f` on the CPU in f32 and on the SIMT machine (and a GPU, where there is one) in both types (inputs are
/// the same numbers), and compares everything it returns.
#[track_caller]
fn parity(what: &str, f: impl Fn(&dyn Backend, DType, &dyn Fn(u64, usize) -> Vec<f32>) -> Vec<Vec<f32>>) {
    let cpu = Cpu::open(None).unwrap();
    for dtype in TYPES {
        let inputs = |seed: u64, n: usize| values(dtype, seed, n);
        let want = f(&*cpu, DType::F32, &inputs);
        for (d, device) in kernel_devices(dtype).into_iter().enumerate() {
            let got = f(&*device, dtype, &inputs);
            assert_eq!(got.len(), want.len());
            for (i, (g, w)) in got.iter().zip(&want).enumerate() {
                close(&format!("{what} ({}, {dtype:?}, output {i})", device.name()), dtype, g, w);
            }
            // The machine is this test's own, a GPU is shared by all tests.
            assert!(d > 0 || device.memory().live == 0, "{what}: memory is left over");
        }
    }
}

/// op(a) op(b) in f64.
fn product(a: &[f32], op_a: Op, b: &[f32], op_b: Op, (m, n, k): (usize, usize, usize)) -> Vec<f32> {
    let mut c = vec![0f32; m * n];
    for i in 0..m {
        for j in 0..n {
            let term = |l: usize| {
                let x = if op_a == Op::N { a[i * k + l] } else { a[l * m + i] };
                let y = if op_b == Op::N { b[l * n + j] } else { b[j * k + l] };
                x as f64 * y as f64
            };
            c[i * n + j] = (0..k).map(term).sum::<f64>() as f32;
        }
    }
    c
}

fn check_matmul(shape: (usize, usize, usize), ops: (Op, Op), types: [DType; 3], beta: f32, pad: usize) {
    kernel_devices(DType::BF16)
        .into_iter()
        .for_each(|be| check_matmul_on(&*be, shape, ops, types, beta, (pad, pad)));
}

/// `pads`: of the operands' rows, and of the result's.
fn check_matmul_on(
    be: &dyn Backend,
    shape: (usize, usize, usize),
    ops: (Op, Op),
    types: [DType; 3],
    beta: f32,
    pads: (usize, usize),
) {
    let (m, n, k) = shape;
    let (a, b, c) = (values(types[0], 1, m * k), values(types[1], 2, k * n), values(types[2], 3, m * n));
    let stored = |op: Op, r: usize, c: usize| if op == Op::N { (r, c) } else { (c, r) };
    let ((ar, ac), (br, bc)) = (stored(ops.0, m, k), stored(ops.1, k, n));
    let ta = Padded::new(be, &a, ar, ac, pads.0, types[0]);
    let tb = Padded::new(be, &b, br, bc, pads.0, types[1]);
    let mut tc = Padded::new(be, if beta == 0.0 { &[] } else { &c }, m, n, pads.1, types[2]);
    be.matmul(tc.mat_mut(), beta, 0.5, ta.mat(), ops.0, tb.mat(), ops.1).unwrap();
    let want: Vec<f32> =
        product(&a, ops.0, &b, ops.1, shape).iter().zip(&c).map(|(p, c)| 0.5 * p + beta * c).collect();
    let precision = if types[2] == DType::F32 { DType::F32 } else { DType::BF16 };
    close(&format!("{shape:?} {ops:?} {types:?} beta {beta} pads {pads:?}"), precision, &tc.read(be), &want);
}

#[test]
fn matmul_of_all_orientations_and_types() {
    use DType::{BF16, F32};
    for ops in [(Op::N, Op::N), (Op::N, Op::T), (Op::T, Op::N), (Op::T, Op::T)] {
        // Tensor cores: one tile and a bit, ragged in every dimension.
        check_matmul((130, 136, 72), ops, [BF16, BF16, F32], 0.0, 0);
        check_matmul((24, 40, 16), ops, [BF16, BF16, BF16], 1.0, 8);
        // Odd sizes, odd strides, mixed types.
        check_matmul((65, 67, 19), ops, [BF16, BF16, BF16], 0.0, 3);
        check_matmul((7, 130, 33), ops, [F32, F32, F32], 1.0, 1);
    }
    for a in TYPES {
        for b in TYPES {
            for c in TYPES {
                check_matmul((33, 17, 29), (Op::N, Op::T), [a, b, c], 0.0, 1);
            }
        }
    }
}

#[test]
fn matmul_of_edge_sizes() {
    use DType::{BF16, F32};
    for shape in [(1, 1, 1), (1, 8, 8), (129, 8, 8), (128, 128, 32), (64, 64, 0), (257, 8, 200)] {
        check_matmul(shape, (Op::N, Op::T), [BF16, BF16, F32], 0.0, 0);
        check_matmul(shape, (Op::N, Op::N), [F32, F32, F32], 1.0, 0);
    }
    // Nine bands of tiles: the order of tiles covers every tile once.
    check_matmul((1100, 264, 8), (Op::N, Op::T), [BF16, BF16, F32], 0.0, 0);
}

#[test]
fn adapted_linear_and_its_input_gradient() {
    let sizes = [
        (37, 40, 72, 16),
        (5, 24, 136, 7),
        (1, 8, 8, 0),
        (150, 200, 272, 136),
        (260, 72, 136, 24),
        (129, 8, 264, 8),
    ];
    for (t, n, m, r) in sizes {
        parity("linear", |be, dtype, x| {
            let of = |seed, rows, cols| be.tensor(&x(seed, rows * cols), rows, cols, dtype).unwrap();
            let branch = (r > 0).then(|| Branch { a: of(3, r, n), b: of(4, m, r) });
            let layer = AdaptedLinear { weight: of(1, m, n), bias: Some(of(2, 1, m)), branch };
            let (input, dy) = (of(5, t, n), of(6, t, m));
            let (mut h, mut z) = (be.alloc(t, r, dtype).unwrap(), be.alloc(t, r, dtype).unwrap());
            let (mut y, mut dx) = (be.alloc(t, m, dtype).unwrap(), of(7, t, n));
            be.linear(&layer, input.mat(), (r > 0).then(|| h.mat_mut()), y.mat_mut()).unwrap();
            be.linear_input_gradient(&layer, dy.mat(), (r > 0).then(|| z.mat_mut()), dx.mat_mut(), true)
                .unwrap();
            [&h, &y, &z, &dx].map(|t| be.download(t.mat()).unwrap()).to_vec()
        });
    }
}

/// The kernels for sm_90a against f64, at sizes around their tiles: less than one, one and a bit, several for each
/// of the machine's blocks; every orientation they have, views with padding, results added to.
#[test]
fn products_on_hopper() {
    use DType::{BF16, F32};
    let sizes = [(1usize, 8, 8), (130, 136, 72), (64, 264, 200), (300, 120, 64), (257, 520, 136)];
    let be = Cuda::open_simt_hopper();
    for (i, size) in sizes.into_iter().enumerate() {
        for (ops, result) in [
            ((Op::N, Op::T), BF16),
            ((Op::N, Op::T), F32),
            ((Op::N, Op::N), BF16),
            ((Op::N, Op::N), F32),
            ((Op::T, Op::N), F32),
        ] {
            let size = if ops.0 == Op::T { (size.0.next_multiple_of(8), size.1, size.2) } else { size };
            let (beta, pad) = ([0.0, 1.0][i % 2], [0, 8][i / 2 % 2]);
            check_matmul_on(&*be, size, ops, [BF16, BF16, result], beta, (pad, pad + i % 3));
        }
    }
}

/// The branch's tiles and the tiles that wait for them, with one and with two column tiles of each.
#[test]
fn adapted_linear_on_hopper() {
    let (cpu, be) = (Cpu::open(None).unwrap(), Cuda::open_simt_hopper());
    for (t, n, m, r) in [(37, 40, 72, 16), (150, 200, 272, 136), (260, 328, 136, 24), (5, 264, 8, 8)] {
        let run = |be: &dyn Backend, dtype| {
            let of = |seed, rows, cols| {
                be.tensor(&values(DType::BF16, seed, rows * cols), rows, cols, dtype).unwrap()
            };
            let branch = Some(Branch { a: of(3, r, n), b: of(4, m, r) });
            let layer = AdaptedLinear { weight: of(1, m, n), bias: Some(of(2, 1, m)), branch };
            let (input, dy) = (of(5, t, n), of(6, t, m));
            let (mut h, mut z) = (be.alloc(t, r, dtype).unwrap(), be.alloc(t, r, dtype).unwrap());
            let (mut y, mut dx) = (be.alloc(t, m, dtype).unwrap(), of(7, t, n));
            be.linear(&layer, input.mat(), Some(h.mat_mut()), y.mat_mut()).unwrap();
            be.linear_input_gradient(&layer, dy.mat(), Some(z.mat_mut()), dx.mat_mut(), true).unwrap();
            [&h, &y, &z, &dx].map(|t| be.download(t.mat()).unwrap())
        };
        for (i, (got, want)) in run(&*be, DType::BF16).iter().zip(run(&*cpu, DType::F32)).enumerate() {
            close(&format!("{t} x {n} -> {m}, rank {r}, output {i}"), DType::BF16, got, &want);
        }
    }
}

#[test]
fn the_kernel_of_a_product_is_chosen_in_sight() {
    let shape =
        |size, ops, tensor_cores, result| MatmulShape { size, ops, tensor_cores, result, branch: false };
    let adapted = |size, ops, result| MatmulShape { size, ops, tensor_cores: true, result, branch: true };
    let nt = (Op::N, Op::T);
    for (shape, hopper, name) in [
        (shape((8192, 4096, 4096), nt, true, DType::BF16), true, "matmul_sm90a_nt_bf16_256"),
        (shape((2048, 896, 896), nt, true, DType::BF16), true, "matmul_sm90a_nt_bf16_128"),
        (shape((2048, 896, 896), nt, true, DType::BF16), false, "matmul_tc_nt_bf16"),
        (adapted((2048, 896, 896), nt, DType::BF16), false, "linear_tc_nt_bf16"),
        (adapted((2048, 896, 896), (Op::N, Op::N), DType::BF16), false, "linear_tc_nn_bf16"),
        (adapted((2048, 896, 896), nt, DType::F32), false, "matmul_tc_nt_f32"),
        (adapted((2048, 896, 896), nt, DType::BF16), true, "matmul_sm90a_nt_bf16_128"),
        (shape((64, 64, 64), (Op::T, Op::T), true, DType::F32), true, "matmul_tc_tt_f32"),
        (shape((64, 64, 64), nt, false, DType::F32), true, "matmul_plain"),
    ] {
        let kernel = shape.kernel(hopper, 132);
        assert_eq!(kernel.name, name, "{shape:?}: {}", kernel.why);
    }
}

#[test]
fn outer_of_parts() {
    let part = |rows: Range<usize>, columns: Range<usize>, to, scale| OuterPart { rows, columns, to, scale };
    // (tokens, M, columns of X, parts): subspaces of tasks; overlapping parts in order; long runs that are split.
    let cases = [
        (
            70,
            136,
            32,
            vec![part(0..70, 0..16, 0, 1.0), part(0..30, 16..24, 16, 0.5), part(30..70, 24..32, 24, 2.0)],
        ),
        (41, 13, 9, vec![part(3..20, 1..9, 1, 1.0), part(20..41, 0..5, 4, -1.0), part(5..5, 0..9, 0, 1.0)]),
        (1500, 24, 16, vec![part(0..1500, 0..16, 0, 1.0)]),
        (
            1300,
            70,
            24,
            vec![part(0..700, 0..8, 0, 1.0), part(700..1300, 8..24, 8, 3.0), part(1..2, 0..24, 0, 1.0)],
        ),
    ];
    for (t, m, n, parts) in &cases {
        parity("outer", |be, dtype, x| {
            let y = Padded::new(be, &x(1, t * m), *t, *m, 8, dtype);
            let input = Padded::new(be, &x(2, t * n), *t, *n, 8, dtype);
            let mut out = Padded::new(be, &x(3, m * n), *m, *n, 5, DType::F32);
            be.outer(y.mat(), input.mat(), parts, out.mat_mut()).unwrap();
            vec![out.read(be)]
        });
    }
}

/// The task gradient of a step: written afresh or added to, with products of blocks of columns of the result.
#[test]
fn task_gradient_and_its_products() {
    let part = |rows: Range<usize>, columns: Range<usize>, to, scale| OuterPart { rows, columns, to, scale };
    let pair = |a, b, width| ColumnPair { a, b, width };
    // (tokens, M, columns of X, columns of the result, parts, pairs): one tile; runs that are split, columns that no
    // part writes, several tiles of rows; products of columns that no part of this launch touches.
    let cases = [
        (
            9,
            5,
            3,
            6,
            vec![part(0..4, 0..3, 0, 1.0), part(4..9, 0..3, 3, 2.0)],
            vec![pair(0, 3, 3), pair(0, 0, 6)],
        ),
        (
            1300,
            150,
            24,
            40,
            vec![part(0..700, 0..8, 0, 1.0), part(700..1300, 8..24, 24, 0.5)],
            vec![pair(0, 8, 8), pair(24, 24, 16), pair(16, 0, 8)],
        ),
        (
            600,
            300,
            32,
            64,
            vec![part(0..600, 0..32, 0, 1.0)],
            vec![pair(0, 32, 32), pair(0, 0, 64), pair(32, 32, 1)],
        ),
        (40, 20, 80, 80, vec![part(0..40, 0..80, 0, 1.0)], vec![]),
    ];
    for (t, m, n, wide, parts, pairs) in &cases {
        for fresh in [true, false] {
            parity("task gradient", |be, dtype, x| {
                let y = Padded::new(be, &x(1, t * m), *t, *m, 8, dtype);
                let input = Padded::new(be, &x(2, t * n), *t, *n, 8, dtype);
                let before = if fresh { vec![] } else { x(3, m * wide) };
                let mut out = Padded::new(be, &before, *m, *wide, 5, DType::F32);
                let mut products = be.alloc(1, pairs.len() + 1, DType::F32).unwrap();
                be.fill(products.mat_mut(), f32::NAN).unwrap();
                let to = products.mat_mut().col_range(0..pairs.len());
                be.task_gradient(y.mat(), input.mat(), parts, out.mat_mut(), fresh, pairs, to).unwrap();
                let products = be.download(products.mat()).unwrap();
                assert!(products[pairs.len()].is_nan(), "written beyond the products");
                vec![out.read(be), products[..pairs.len()].to_vec()]
            });
        }
    }
}

#[test]
fn elementwise() {
    for (rows, cols, pad) in [(1, 1, 0), (3, 8, 8), (5, 13, 3), (70, 257, 7)] {
        parity("elementwise", |be, dtype, x| {
            let a = Padded::new(be, &x(1, rows * cols), rows, cols, pad, dtype);
            let mut copied = Padded::new(be, &[], rows, cols, pad, DType::F32);
            be.copy(a.mat(), copied.mat_mut()).unwrap();
            let mut back = Padded::new(be, &[], rows, cols, pad, dtype);
            be.copy(copied.mat(), back.mat_mut()).unwrap();
            let mut sum = Padded::new(be, &x(2, rows * cols), rows, cols, pad, DType::F32);
            be.axpy(-1.5, a.mat(), sum.mat_mut()).unwrap();
            be.scale(sum.mat_mut(), 0.25).unwrap();
            let mut filled = Padded::new(be, &[], rows, cols, pad, dtype);
            be.fill(filled.mat_mut(), 3.0).unwrap();
            [&copied, &back, &sum, &filled].map(|t| t.read(be)).to_vec()
        });
    }
}

#[test]
fn conversion_rounds_as_half_does() {
    kernel_devices(DType::BF16).iter().for_each(|be| conversion(&**be));
}

fn conversion(be: &dyn Backend) {
    let mut bits: Vec<u32> = (0..=u16::MAX as u32).map(|b| b << 16).collect();
    bits.extend((0..4096u32).map(|i| 0x3f80_0000 + i * 1021 + 0x7fff));
    let from: Vec<f32> = bits.into_iter().map(f32::from_bits).collect();
    let x = be.tensor(&from, 1, from.len(), DType::BF16).unwrap();
    for (got, f) in be.download(x.mat()).unwrap().iter().zip(&from) {
        let want = bf16::from_f32(*f).to_f32();
        assert!(
            got.to_bits() == want.to_bits() || (got.is_nan() && want.is_nan()),
            "{f:e}: {got:e}, {want:e}"
        );
    }
}

#[test]
fn rows_gather_and_scatter() {
    for (table, d) in [(5, 8), (40, 13), (300, 72)] {
        parity("rows", |be, dtype, x| {
            let t = 2 * table + 1;
            let ids: Vec<u32> = (0..t as u32).map(|i| (i * 7 + i * i) % table as u32).collect();
            let weights = be.tensor(&x(1, table * d), table, d, dtype).unwrap();
            let list = be.indices(&ids).unwrap();
            let (mut y, mut z) = (be.alloc(t, d, dtype).unwrap(), be.alloc(t, d, dtype).unwrap());
            be.embed(weights.mat(), &list, 2.5, y.mat_mut()).unwrap();
            be.gather_rows(weights.mat(), &list, z.mat_mut()).unwrap();
            let groups = RowGroups::new(be, ids.iter().zip(0..).map(|(&r, s)| (r, s))).unwrap();
            let mut sums = be.tensor(&x(2, (table - 2) * d), table - 2, d, DType::F32).unwrap();
            be.scatter_add_rows(y.mat(), &groups, 0.5, 2, sums.mat_mut()).unwrap();
            [&y, &z, &sums].map(|t| be.download(t.mat()).unwrap()).to_vec()
        });
    }
}

#[test]
fn rmsnorm_and_its_gradient() {
    for (t, n) in [(1, 1), (9, 7), (13, 64), (3, 1024), (2, 1025), (2, 2600)] {
        parity(&format!("rmsnorm {t} x {n}"), |be, dtype, x| {
            let of = |seed, rows, cols| be.tensor(&x(seed, rows * cols), rows, cols, dtype).unwrap();
            let (a, r, w, dy) = (of(1, t, n), of(2, t, n), of(3, 1, n), of(4, t, n));
            let (mut s, mut y, mut inv) = (of(5, t, n), of(6, t, n), be.alloc(t, 1, DType::F32).unwrap());
            be.rmsnorm(a.mat(), Some((r.mat(), s.mat_mut())), w.mat(), 1e-2, y.mat_mut(), inv.mat_mut())
                .unwrap();
            let (mut plain, mut inv2) = (of(7, t, n), be.alloc(t, 1, DType::F32).unwrap());
            be.rmsnorm(a.mat(), None, w.mat(), 1e-2, plain.mat_mut(), inv2.mat_mut()).unwrap();
            let segments = [0..t / 2, t / 2..t];
            let (mut dx, mut dw) = (of(8, t, n), be.zeros(2, n, DType::F32).unwrap());
            let weight = Some((&segments[..], dw.mat_mut()));
            be.rmsnorm_backward(a.mat(), w.mat(), inv2.mat(), dy.mat(), dx.mat_mut(), true, weight).unwrap();
            let (mut written, mut sums) = (of(9, t, n), be.zeros(2, n, DType::F32).unwrap());
            be.rmsnorm_backward(a.mat(), w.mat(), inv2.mat(), dy.mat(), written.mat_mut(), false, None)
                .unwrap();
            be.column_sums(dy.mat(), &segments, sums.mat_mut()).unwrap();
            [&s, &y, &inv, &plain, &dx, &dw, &written, &sums].map(|t| be.download(t.mat()).unwrap()).to_vec()
        });
    }
}

#[test]
fn rope_and_back() {
    for (t, heads, d) in [(1, 1, 2), (11, 3, 10), (40, 2, 64)] {
        parity("rope", |be, dtype, x| {
            let positions: Vec<u32> = (0..t as u32).map(|i| i * 37).collect();
            let frequencies: Vec<f32> =
                (0..d / 2).map(|j| 10_000f32.powf(-2.0 * j as f32 / d as f32)).collect();
            let (list, table) =
                (be.indices(&positions).unwrap(), be.tensor(&frequencies, 1, d / 2, DType::F32).unwrap());
            let mut a = Padded::new(be, &x(1, t * heads * d), t, heads * d, 5, dtype);
            be.rope(a.mat_mut(), &list, table.mat(), heads, false).unwrap();
            let turned = a.read(be);
            be.rope(a.mat_mut(), &list, table.mat(), heads, true).unwrap();
            vec![turned, a.read(be)]
        });
    }
}

#[test]
fn activations() {
    for kind in [Activation::Silu, Activation::Relu, Activation::GeluTanh] {
        for (t, f) in [(1, 1), (6, 24), (9, 131)] {
            parity("activation", |be, dtype, x| {
                // gate and up are halves of one buffer
                let both = be.tensor(&x(1, t * 2 * f), t, 2 * f, dtype).unwrap();
                let (gate, up) = (both.mat().col_range(0..f), both.mat().col_range(f..2 * f));
                let dy = be.tensor(&x(2, t * f), t, f, dtype).unwrap();
                let mut outs: Vec<Tensor> = (0..5).map(|_| be.alloc(t, f, dtype).unwrap()).collect();
                let [y, alone, dgate, dup, dalone] = &mut outs[..] else { unreachable!() };
                be.activation(kind, gate, Some(up), y.mat_mut()).unwrap();
                be.activation(kind, gate, None, alone.mat_mut()).unwrap();
                be.activation_backward(kind, gate, Some(up), dy.mat(), dgate.mat_mut(), Some(dup.mat_mut()))
                    .unwrap();
                be.activation_backward(kind, gate, None, dy.mat(), dalone.mat_mut(), None).unwrap();
                outs.iter().map(|t| be.download(t.mat()).unwrap()).collect()
            });
        }
    }
}

#[test]
fn cross_entropy_and_its_gradients() {
    for (l, d, v, first) in [(1, 8, 3, 0), (9, 16, 50, 40), (40, 24, 331, 328)] {
        parity("cross entropy", |be, dtype, x| {
            let (h, head) = (
                be.tensor(&x(1, l * d), l, d, dtype).unwrap(),
                be.tensor(&x(2, v * d), v, d, dtype).unwrap(),
            );
            let targets: Vec<u32> = (0..l as u32).map(|i| (i * 13) % v as u32).collect();
            let targets = be.indices(&targets).unwrap();
            let weights: Vec<f32> = (0..l).map(|i| 0.5 + i as f32 / l as f32).collect();
            let weights = be.tensor(&weights, l, 1, DType::F32).unwrap();
            let (mut nll, mut dx) = (be.alloc(l, 1, DType::F32).unwrap(), be.alloc(l, d, dtype).unwrap());
            let segments = [0..l / 3, l / 3..l];
            let mut out = be.tensor(&x(3, 2 * (v - first) * d), 2 * (v - first), d, DType::F32).unwrap();
            let gradient = HeadGradient { first_row: first, segments: &segments, out: out.mat_mut() };
            let (x, w) = (h.mat(), weights.mat());
            be.cross_entropy(
                x,
                head.mat(),
                0.3,
                &targets,
                w,
                nll.mat_mut(),
                Some(dx.mat_mut()),
                Some(gradient),
            )
            .unwrap();
            let mut alone = be.alloc(l, 1, DType::F32).unwrap();
            be.cross_entropy(x, head.mat(), 0.3, &targets, w, alone.mat_mut(), None, None).unwrap();
            [&nll, &dx, &out, &alone].map(|t| be.download(t.mat()).unwrap()).to_vec()
        });
    }
}

fn adam_block(columns: Range<usize>, step: f32) -> AdamBlock {
    AdamBlock {
        from: columns.start,
        columns,
        terms: 1,
        stride: 0,
        gate: None,
        beta1: 0.9,
        beta2: 0.99,
        step,
        sqrt_correction2: 0.3,
        eps: 1e-6,
        keep_before: 0.99,
        keep_after: 0.98,
        grad_scale: 0.5,
    }
}

#[test]
fn dots_and_adam() {
    for (m, r) in [(1, 1), (33, 7), (90, 64)] {
        parity("dots and adam", |be, _, x| {
            let of = |seed| be.tensor(&x(seed, m * r), m, r, DType::F32).unwrap();
            let (mut w, g, mut first) = (of(1), of(2), of(3));
            let mut second =
                be.tensor(&x(4, m * r).iter().map(|v| v * v).collect::<Vec<_>>(), m, r, DType::F32).unwrap();
            let mut products = be.alloc(1, 34, DType::F32).unwrap();
            let pairs: Vec<(Mat, Mat)> =
                (0..34).map(|i| if i % 2 == 0 { (w.mat(), g.mat()) } else { (g.mat(), g.mat()) }).collect();
            be.dots(&pairs, products.mat_mut()).unwrap();
            let blocks = vec![adam_block(0..r / 2, 0.01), adam_block(r / 2..r - r / 4, 0.1)];
            let mut change = be.alloc(m, r, DType::F32).unwrap();
            let mut copy = be.alloc(m, r, be.compute_dtype()).unwrap();
            let update = AdamUpdate {
                x: w.mat_mut(),
                g: g.mat(),
                m: first.mat_mut(),
                v: second.mat_mut(),
                blocks,
                copy: Some((copy.mat_mut(), 0.5)),
                change: Some(change.mat_mut()),
            };
            be.adam(vec![update], None, None).unwrap();
            [&products, &w, &first, &second, &change, &copy].map(|t| be.download(t.mat()).unwrap()).to_vec()
        });
    }
}

/// Layers of many shapes in one call: gradients combined from the columns of two tasks, gates and clipping from the
/// device, squared norms of the changes; and a step that is skipped.
#[test]
fn adam_of_many_matrices() {
    // (M, shared rank, rank of each of two tasks); more matrices than one launch takes.
    let mut shapes = vec![(1, 1, 1), (70, 5, 3), (300, 16, 8), (2, 4, 4), (129, 7, 1)];
    shapes.extend((0..15).map(|i| (3 + i, 4, 2)));
    for clip in [0.7, f32::NAN] {
        parity("adam of many", |be, _, x| {
            let factors = be.tensor(&[clip, 0.5, 1.5, 0.25, 2.0], 1, 5, DType::F32).unwrap();
            let of = |seed, m: usize, n: usize| be.tensor(&x(seed, m * n), m, n, DType::F32).unwrap();
            let mut all: Vec<[Tensor; 5]> = Vec::new();
            for (i, &(m, r, own)) in shapes.iter().enumerate() {
                let (n, seed) = (r + 2 * own, 10 * i as u64);
                let squares: Vec<f32> = x(seed + 4, m * n).iter().map(|v| v * v).collect();
                let second = be.tensor(&squares, m, n, DType::F32).unwrap();
                let copy = be.zeros(m, n, be.compute_dtype()).unwrap();
                all.push([
                    of(seed + 1, m, n),
                    of(seed + 2, m, 2 * (r + own)),
                    of(seed + 3, m, n),
                    second,
                    copy,
                ]);
            }
            let mut squares = be.alloc(1, shapes.len(), DType::F32).unwrap();
            be.fill(squares.mat_mut(), f32::NAN).unwrap();
            let updates = all
                .iter_mut()
                .zip(&shapes)
                .map(|([x, g, m, v, copy], (_, r, own))| {
                    let shared = AdamBlock { terms: 2, stride: *r, ..adam_block(0..*r, 0.01) };
                    let task = |t: usize| AdamBlock {
                        from: 2 * r + t * own,
                        gate: Some(factors::gate(2, t)),
                        ..adam_block(r + t * own..r + (t + 1) * own, 0.1)
                    };
                    let blocks = vec![shared, task(0), task(1)];
                    let (x, g, m, v) = (x.mat_mut(), g.mat(), m.mat_mut(), v.mat_mut());
                    AdamUpdate { x, g, m, v, blocks, copy: Some((copy.mat_mut(), 1.0)), change: None }
                })
                .collect();
            be.adam(updates, Some(factors.mat()), Some(squares.mat_mut())).unwrap();
            let all = all.iter().flat_map(|[x, _, m, v, copy]| [x, m, v, copy]).chain([&squares]);
            all.map(|t| be.download(t.mat()).unwrap()).collect()
        });
    }
}

/// The device's decisions are the host's, worked out by the method's own functions.
#[test]
fn decisions_on_the_device() {
    use gems_engine::gems::{TaskSignals, clip_factor, heuristic, pcgrad_weights};
    let kinds = |tasks: usize| -> Vec<Quantity> {
        let pairs = || (0..tasks).flat_map(|i| (i..tasks).map(move |j| (i, j))).collect::<Vec<_>>();
        let mut all: Vec<Quantity> = pairs().into_iter().map(|(i, j)| Quantity::Layer(i, j)).collect();
        all.extend(pairs().into_iter().map(|(i, j)| Quantity::Dense(i, j)));
        all.extend((0..tasks).map(Quantity::Own));
        all.push(Quantity::Whole);
        [all.clone(), all.clone(), all].concat()
    };
    for be in kernel_devices(DType::BF16) {
        for (tasks, pcgrad, clip_norm, poison) in [
            (1, false, 0.0, false),
            (2, true, 1.0, false),
            (3, true, 0.5, false),
            (5, false, 100.0, false),
            (2, true, 1.0, true),
        ] {
            let kinds = kinds(tasks);
            // Gram matrices of vectors, so that they are what they may be.
            let vectors: Vec<Vec<f32>> = (0..3 * tasks).map(|i| numbers(i as u64, 4)).collect();
            let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
            let mut values: Vec<f32> = kinds
                .iter()
                .map(|q| match *q {
                    Quantity::Layer(i, j) => dot(&vectors[i], &vectors[j]),
                    Quantity::Dense(i, j) => dot(&vectors[tasks + i], &vectors[tasks + j]),
                    Quantity::Own(t) => dot(&vectors[2 * tasks + t], &vectors[2 * tasks + t]),
                    _ => 0.75,
                })
                .collect();
            let sum = |wanted: &dyn Fn(&Quantity) -> bool| -> f64 {
                kinds.iter().zip(&values).filter(|(q, _)| wanted(q)).map(|(_, v)| *v as f64).sum()
            };
            let gram: Vec<Vec<f64>> = (0..tasks)
                .map(|i| {
                    let of = |j: usize| (i.min(j), i.max(j));
                    let entry = |(i, j)| sum(&|q| *q == Quantity::Layer(i, j) || *q == Quantity::Dense(i, j));
                    (0..tasks).map(|j| entry(of(j))).collect()
                })
                .collect();
            let weights = if pcgrad { pcgrad_weights(&gram) } else { vec![1.0; tasks] };
            let of_pairs: f64 = (0..tasks * tasks)
                .map(|k| weights[k / tasks] * weights[k % tasks] * gram[k / tasks][k % tasks])
                .sum();
            let norm = (of_pairs + sum(&|q| *q == Quantity::Whole)).sqrt();
            let clip = if clip_norm > 0.0 { clip_factor(norm, clip_norm as f64) } else { 1.0 };
            let (labels, counts) = (vec![3.0; tasks], (0..tasks).map(|t| t as f32).collect::<Vec<_>>());
            let losses: Vec<f32> = (0..tasks).map(|t| 1.0 + t as f32).collect();
            let norms: Vec<f64> = (0..tasks).map(|t| sum(&|q| *q == Quantity::Own(t)).sqrt()).collect();
            let signals = TaskSignals {
                losses: losses.iter().map(|l| *l as f64 / 3.0).collect(),
                norms: norms.clone(),
                counts: counts.iter().map(|c| *c as f64).collect(),
            };
            let inverse: f64 = norms.iter().map(|n| 1.0 / n).sum();
            let rules = [
                (GateRule::Fixed(0.3), vec![f64::from(0.3f32); tasks]),
                (GateRule::Shares([0.5, 0.25, 0.25]), heuristic(&signals, [0.5, 0.25, 0.25])),
                (GateRule::InverseNorm, norms.iter().map(|n| 1.0 / n / inverse).collect()),
            ];
            if poison {
                values[4] = f32::INFINITY;
            }
            for (gates, want) in rules {
                let numbers: Vec<u32> = kinds.iter().map(|q| q.number(tasks) as u32).collect();
                let quantities = &be.indices(&numbers).unwrap();
                let (labels, counts) = (&labels[..], &counts[..]);
                let decision = Decision { quantities, gates, pcgrad, clip_norm, labels, counts };
                let products = be.tensor(&values, 1, values.len(), DType::F32).unwrap();
                let losses = be.tensor(&losses, 1, tasks, DType::F32).unwrap();
                let mut out = be.alloc(1, factors::count(tasks), DType::F32).unwrap();
                assert!(be.decide(&decision, products.mat(), losses.mat(), out.mat_mut()).unwrap());
                let got = be.download(out.mat()).unwrap();
                if poison {
                    assert!(got[0].is_nan(), "{gates:?}: {got:?}");
                    continue;
                }
                let all: Vec<f32> = [clip].iter().chain(&weights).chain(&want).map(|v| *v as f32).collect();
                assert_close(&format!("{tasks} tasks, {gates:?}"), &got, &all, 1e-6, 1e-6);
            }
        }
    }
}

#[test]
fn projections_and_orthonormal_rows() {
    for (r, n) in [(1, 1), (5, 12), (12, 300)] {
        parity("projections", |be, _, x| {
            let mut basis = be.tensor(&x(1, r * n), r, n, DType::F32).unwrap();
            be.orthonormalize_rows(&mut [basis.mat_mut()]).unwrap();
            let mut k = be.alloc(n, r, DType::F32).unwrap();
            let identity: Vec<f32> = (0..r * r).map(|i| f32::from(i % (r + 1) == 0)).collect();
            let one = be.tensor(&identity, r, r, DType::F32).unwrap();
            be.matmul(k.mat_mut(), 0.0, 1.0, basis.mat(), Op::T, one.mat(), Op::N).unwrap();
            let (mut rows, mut columns) = (
                be.tensor(&x(2, 9 * n), 9, n, DType::F32).unwrap(),
                be.tensor(&x(3, n * 4), n, 4, DType::F32).unwrap(),
            );
            be.project_rows(rows.mat_mut(), k.mat()).unwrap();
            be.project_columns(columns.mat_mut(), k.mat()).unwrap();
            // A 1 x 1 space leaves nothing but rounding: compare with what was there.
            let add =
                |t: &Tensor| be.download(t.mat()).unwrap().iter().map(|v| v + 1.0).collect::<Vec<f32>>();
            vec![be.download(basis.mat()).unwrap(), add(&rows), add(&columns)]
        });
    }
}

/// Every product of a call against f64: no tile, one, several; an inner size of nothing and beyond the kernel's steps; a
/// result that was NaN, and one added to; more products than a launch takes.
#[test]
fn many_products_in_one_call() {
    let mut sizes =
        vec![(1, 1, 1), (3, 5, 0), (0, 4, 3), (24, 24, 300), (16, 130, 24), (65, 64, 17), (70, 129, 33)];
    sizes.extend((0..50).map(|i| (1 + i % 7, 2 + i % 5, 3 + i % 11)));
    for be in std::iter::once(Cpu::open(None).unwrap()).chain(kernel_devices(DType::F32)) {
        for (op, beta) in [(Op::N, 0.0), (Op::T, 0.0), (Op::N, 1.0), (Op::T, 1.0)] {
            let transposed = op == Op::T;
            let shape_b = |n: usize, k: usize| if transposed { (n, k) } else { (k, n) };
            let given = |i: usize, (m, n, k): (usize, usize, usize)| {
                let seed = 3 * i as u64;
                [numbers(seed, m * k), numbers(seed + 1, k * n), numbers(seed + 2, m * n)]
            };
            let mut held: Vec<[Padded; 3]> = (sizes.iter().enumerate())
                .map(|(i, &(m, n, k))| {
                    let ([a, b, c], (rows, cols)) = (given(i, (m, n, k)), shape_b(n, k));
                    let c = if beta == 0.0 { vec![] } else { c };
                    let of = |v: &[f32], rows, cols| Padded::new(&*be, v, rows, cols, 1 + i % 3, DType::F32);
                    [of(&c, m, n), of(&a, m, k), of(&b, rows, cols)]
                })
                .collect();
            let mut all: Vec<_> = held.iter_mut().map(|[c, a, b]| (c.mat_mut(), a.mat(), b.mat())).collect();
            be.matmul_many(beta, -0.5, op, &mut all).unwrap();
            for (i, &(m, n, k)) in sizes.iter().enumerate().filter(|(_, (m, ..))| *m > 0) {
                let [a, b, c] = given(i, (m, n, k));
                let mut want = product(&a, Op::N, &b, op, (m, n, k));
                want.iter_mut().zip(&c).for_each(|(w, c)| *w = -0.5 * *w + beta * c);
                let what = format!("{}, product {i} {op:?} {beta}", be.name());
                close(&what, DType::F32, &held[i][0].read(&*be), &want);
            }
        }
    }
}

/// A matrix's rows, of which those numbered in `dependent` are sums of the rows before them (zero for row 0).
/// Every third row nearly is one: it leaves its predecessor by a ten-thousandth, which one pass of Gram-Schmidt does not
/// make orthogonal.
fn with_dependent_rows(seed: u64, (r, n): (usize, usize), dependent: &[usize]) -> Vec<f32> {
    let mut rows = numbers(seed, r * n);
    for i in (2..r).step_by(3).filter(|_| r < n) {
        for c in 0..n {
            rows[i * n + c] = rows[(i - 1) * n + c] + 1e-4 * rows[i * n + c];
        }
    }
    for &i in dependent {
        for c in 0..n {
            rows[i * n + c] = (0..i).map(|j| (1.0 - 0.3 * j as f32) * rows[j * n + c]).sum();
        }
    }
    rows
}

/// Orthonormal to rounding, each row in the span of the given rows up to its own and along it; dependent rows zero.
#[track_caller]
fn orthonormal(what: &str, (r, n): (usize, usize), given: &[f32], got: &[f32], dependent: &[usize]) {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let row = |m: &'_ [f32], i: usize| m[i * n..(i + 1) * n].to_vec();
    for i in 0..r {
        let (q, a) = (row(got, i), row(given, i));
        for j in 0..=i {
            let want = f64::from(i == j && !dependent.contains(&i));
            let along = dot(&q, &row(got, j));
            assert!((along - want).abs() < 1e-6, "{what}: rows {i} and {j}: {along}");
        }
        let mut left: Vec<f64> = a.iter().map(|v| f64::from(*v)).collect();
        for j in 0..=i {
            let along = dot(&row(got, j), &a);
            left.iter_mut().zip(row(got, j)).for_each(|(l, q)| *l -= along * f64::from(q));
        }
        let (size, rest) = (dot(&a, &a).sqrt(), left.iter().map(|v| v * v).sum::<f64>().sqrt());
        assert!(rest <= 2e-6 * size, "{what}: row {i} left its span: {rest} of {size}");
        assert!(dot(&q, &a) >= 0.0, "{what}: row {i} points the other way");
    }
}

/// Less than a panel of rows, a panel, one more, several; rows of one number, rows of which shared memory holds two, one
/// and none; more matrices than a launch takes, in one call.
#[test]
fn orthonormal_rows_of_many_matrices() {
    let mut cases: Vec<((usize, usize), Vec<usize>)> = vec![
        ((1, 1), vec![]),
        ((3, 1), vec![1, 2]),
        ((4, 50), vec![0, 2]),
        ((7, 7), vec![]),
        ((8, 40), vec![7]),
        ((9, 41), vec![8]),
        ((20, 70), vec![1, 8, 15, 16]),
        ((40, 1030), vec![]),
        ((3, 14_336), vec![1]),
        ((2, 20_000), vec![]),
        ((2, 30_000), vec![1]),
    ];
    cases.extend((0..130).map(|i| ((1 + i % 5, 5 + i % 7), if i % 5 == 3 { vec![2] } else { vec![] })));
    let devices = std::iter::once(Cpu::open(None).unwrap()).chain(kernel_devices(DType::F32));
    for be in devices {
        let given: Vec<Vec<f32>> =
            cases.iter().zip(0..).map(|((size, rows), i)| with_dependent_rows(i, *size, rows)).collect();
        let mut held: Vec<Padded> = (cases.iter().zip(&given).enumerate())
            .map(|(i, (((r, n), _), values))| Padded::new(&*be, values, *r, *n, 1 + i % 3, DType::F32))
            .collect();
        let mut none = be.alloc(0, 5, DType::F32).unwrap();
        let mut all: Vec<MatMut> = held.iter_mut().map(Padded::mat_mut).collect();
        all.push(none.mat_mut());
        be.orthonormalize_rows(&mut all).unwrap();
        for (i, (size, dependent)) in cases.iter().enumerate() {
            let what = format!("{}, matrix {i} {size:?}", be.name());
            orthonormal(&what, *size, &given[i], &held[i].read(&*be), dependent);
        }
    }
}

#[test]
fn fold_to_the_nearest_and_at_random() {
    parity("fold", |be, dtype, x| {
        let mut w = Padded::new(be, &x(1, 70 * 45), 70, 45, 3, dtype);
        let (b, a) = (
            be.tensor(&x(2, 70 * 6), 70, 6, DType::F32).unwrap(),
            be.tensor(&x(3, 6 * 45), 6, 45, dtype).unwrap(),
        );
        be.fold(w.mat_mut(), 0.9, 0.1, b.mat(), a.mat(), Rounding::Nearest).unwrap();
        vec![w.read(be)]
    });
    kernel_devices(DType::BF16).iter().for_each(|be| fold_at_random(&**be));
}

/// 1 + 2^-10 lies an eighth of the way from 1 to the next bf16: that share of 200 x 200 is rounded up.
fn fold_at_random(be: &dyn Backend) {
    let mut w = be.tensor(&[1.0; 40_000], 200, 200, DType::BF16).unwrap();
    let (b, a) = (
        be.tensor(&[1.0; 200], 200, 1, DType::F32).unwrap(),
        be.tensor(&[1.0; 200], 1, 200, DType::F32).unwrap(),
    );
    be.fold(w.mat_mut(), 1.0, 2f32.powi(-10), b.mat(), a.mat(), Rounding::Stochastic(7)).unwrap();
    let after = be.download(w.mat()).unwrap();
    assert!(after.iter().all(|v| *v == 1.0 || *v == 1.0078125));
    let up = after.iter().filter(|v| **v > 1.0).count() as f64 / 40_000.0;
    assert!((up - 0.125).abs() < 0.01, "{up} rounded up"); // six standard deviations
}

/// Runs a planted bug under every schedule; the machine's words, or the values that were left.
fn planted(bug: &str) -> Vec<Result<Vec<f32>, String>> {
    static ONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(|p| p.into_inner());
    let schedules = [Schedule::Forward, Schedule::Reversed, Schedule::Random(3), Schedule::Random(4)];
    let found = schedules.map(|schedule| {
        configure(1, schedule);
        let threads = if bug.starts_with("ring") { 256 } else { 64 };
        run_planted(bug, threads).map_err(|e| e.to_string())
    });
    configure(0, Schedule::Forward);
    found.into()
}

#[test]
fn planted_bugs_are_named() {
    let bugs = [
        ("divergent_barrier", "deadlock", ""),
        ("divergent_warp", "divergent warp", ""),
        ("global_overrun", "global memory out of bounds: a write of 4 bytes", "planted.cu"),
        ("shared_overrun", "shared memory out of bounds", "planted.cu"),
        ("misaligned_copy", "cp.async: misaligned address", ""),
        ("misaligned", "misaligned access of 4 bytes", "planted.cu"),
        ("endless_stack", "stack overflow", "planted.cu"),
        ("missing_wait", "before the copy into it was waited for", "planted.cu"),
        ("own_missing_wait", "before the copy into it was waited for", "planted.cu"),
        ("wait_without_barrier", "", "planted.cu"),
        // Without words: a race, an unwritten value or an unfinished copy, whichever the schedule meets first.
        ("missing_barrier", "", "planted.cu"),
        ("early_overwrite", "race on byte", "planted.cu"),
        ("missing_syncwarp", "", "planted.cu"),
        ("syncwarp_too_weak", "", "planted.cu"),
        ("uninitialised", "is read, but nobody wrote it", "planted.cu"),
        ("mbarrier_not_waited", "", "planted.cu"),
        ("mbarrier_not_told", "", ""),
        ("mbarrier_twice", "more than 1 arrivals in one phase", ""),
        ("ring_of_numbers_told_early", "race on byte", "planted.cu"),
        ("ring_not_arrived", "", ""),
        ("ring_not_free", "", ""),
        ("ring_not_multiplied", "", ""),
        ("unwritten", "of an allocation in global memory is read, but nobody wrote it", "planted.cu"),
    ];
    let lines = std::process::Command::new("addr2line").arg("--version").output().is_ok();
    for (bug, words, source) in bugs {
        for found in planted(bug) {
            let message = found.expect_err(bug);
            let kernel = format!("[kernel planted_{bug}, block (0, 0, 0), thread (");
            for word in [words, &kernel, if lines { source } else { "" }] {
                assert!(message.contains(word), "{bug}: {message} lacks {word}");
            }
            let known = ["race", "nobody wrote", "copy", "no mbarrier", "waited for", "arrivals"];
            assert!(!words.is_empty() || known.iter().any(|k| message.contains(k)), "{bug}: {message}");
        }
    }
}

#[test]
fn what_is_no_bug_is_not_reported() {
    for left in planted("nothing") {
        let want: Vec<f32> = (0..64).map(|i| ((63 - i) ^ 1) as f32).collect();
        assert_eq!(left.unwrap()[..64], want);
    }
    for left in planted("mbarrier") {
        let want: Vec<f32> = (0..64).map(|i| (i % 32) as f32).collect();
        assert_eq!(left.unwrap()[..64], want);
    }
    // Four products of 64 ones and 64 ones.
    for left in planted("ring") {
        assert_eq!(left.unwrap()[..128], [256.0; 128]);
    }
    // Read by seven warps at different times, each of which tells: nobody races.
    for left in planted("ring_of_numbers") {
        assert_eq!(left.unwrap()[32..256], [15.0; 224]);
    }
}

#[test]
fn a_random_schedule_is_replayed_from_its_seed() {
    let (first, again) = (planted("missing_barrier"), planted("missing_barrier"));
    assert_eq!(first, again);
    assert_ne!(first[2], first[3], "two seeds, one schedule");
}
