//! Products of matrices.

use super::*;
use gems_engine::backend::cuda::MatmulShape;

type Size = (usize, usize, usize);

/// A product of any orientation, in any types.
#[derive(Clone, Copy)]
pub struct Product {
    /// m, n, k.
    pub size: Size,
    /// Whether A and B are stored transposed.
    pub transposed: (bool, bool),
    /// Of A, B and C; the compute type where there are none.
    pub types: Option<[DType; 3]>,
    pub beta: f32,
    pub alpha: f32,
    /// Columns around the operands, and around the result.
    pub pads: (usize, usize),
}

impl Product {
    /// In the compute type, written, of whole matrices.
    pub fn plain(size: Size, transposed: (bool, bool)) -> Self {
        Self { size, transposed, types: None, beta: 0.0, alpha: 1.0, pads: (0, 0) }
    }
    /// As its operands are stored.
    fn stored(&self) -> [(usize, usize); 2] {
        let ((m, n, k), (ta, tb)) = (self.size, self.transposed);
        [if ta { (k, m) } else { (m, k) }, if tb { (n, k) } else { (k, n) }]
    }
    pub fn case(self, name: impl Into<String>) -> Case {
        let ((m, n, _), [stored_a, stored_b]) = (self.size, self.stored());
        Case::new(name, move |on| {
            let types = self.types.unwrap_or([on.be.compute_dtype(); 3]);
            let a = on.view(1, stored_a, self.pads.0, types[0]);
            let b = on.view(2, stored_b, self.pads.0, types[1]);
            let c = match self.beta {
                0.0 => on.nan((m, n), self.pads.1, types[2]),
                _ => on.view(3, (m, n), self.pads.1, types[2]),
            };
            Prepared::new([("c", c)], move |[c], run| {
                let operand = |mat, transposed| Operand { mat, transposed };
                let (a, b) = (operand(a.mat(), self.transposed.0), operand(b.mat(), self.transposed.1));
                run(Matmul { c, beta: self.beta, alpha: self.alpha, a, b }.into())
            })
        })
    }
    /// Against f64.
    #[track_caller]
    fn check(self, be: &dyn Backend) {
        let ((m, n, k), types) = (self.size, self.types.expect("types"));
        let [a, b, c] = [(1, m * k), (2, k * n), (3, m * n)].map(|(s, n)| values(types[s - 1], s as u64, n));
        let product = product(&a, self.transposed.0, &b, self.transposed.1, self.size);
        let want: Vec<f32> = product.iter().zip(&c).map(|(p, c)| self.alpha * p + self.beta * c).collect();
        let Self { size, transposed, beta, pads, .. } = self;
        let case = self.case(format!("{size:?} {transposed:?} {types:?} beta {beta} pads {pads:?}"));
        let precision = if types[2] == DType::F32 { DType::F32 } else { DType::BF16 };
        close(&case.name, precision, &outputs(be, DType::F32, &case)[0].1, &want);
    }
}

/// Independent small products in f32, each inside larger matrices.
pub fn many(sizes: Vec<Size>, transpose_b: bool, beta: f32, alpha: f32) -> Case {
    Case::new(format!("{} products of {:?}", sizes.len(), sizes[0]), move |on| {
        let view = |i: usize, which: u64, shape| on.view(3 * i as u64 + which, shape, 1 + i % 3, DType::F32);
        let (mut inputs, mut outputs) = (Vec::new(), Vec::new());
        for (i, &(m, n, k)) in sizes.iter().enumerate() {
            inputs.push([view(i, 0, (m, k)), view(i, 1, if transpose_b { (n, k) } else { (k, n) })]);
            let c = if beta == 0.0 { on.nan((m, n), 1 + i % 3, DType::F32) } else { view(i, 2, (m, n)) };
            outputs.push(("c", c));
        }
        Prepared::many(outputs, move |outputs, run| {
            let products = outputs.into_iter().zip(&inputs).map(|(c, [a, b])| (c, a.mat(), b.mat()));
            run(MatmulMany { beta, alpha, transpose_b, products: products.collect() }.into())
        })
    })
}

/// [`many`] Gram matrices `Y Yᵀ` one by one.
pub fn one_by_one(count: usize, r: usize, n: usize) -> Case {
    Case::new(format!("{count} products, one by one"), move |on| {
        let inputs: Vec<[Tensor; 2]> =
            (0..count as u64).map(|i| [3 * i, 3 * i + 1].map(|seed| on.f32(seed, r, n))).collect();
        let outputs = (0..count).map(|_| ("c", on.unwritten_f32(r, r))).collect();
        Prepared::many(outputs, move |outputs, run| {
            outputs.into_iter().zip(&inputs).try_for_each(|(c, [a, b])| {
                run(Matmul { c, beta: 0.0, alpha: 1.0, a: a.mat().n(), b: b.mat().t() }.into())
            })
        })
    })
}

/// A product of f32 matrices of which 16 bits are enough.
pub fn split((m, n, k): Size, transposed: (bool, bool), beta: f32) -> Case {
    Case::new(format!("split product {m}x{k} {k}x{n}, transposed {transposed:?}"), move |on| {
        let oriented = |turned: bool, (rows, cols)| if turned { (cols, rows) } else { (rows, cols) };
        let a = on.view(1, oriented(transposed.0, (m, k)), 1, DType::F32);
        let b = on.view(2, oriented(transposed.1, (k, n)), 2, DType::F32);
        let c = if beta == 0.0 { on.nan((m, n), 3, DType::F32) } else { on.view(3, (m, n), 3, DType::F32) };
        Prepared::new([("c", c)], move |[c], run| {
            let a = Operand { mat: a.mat(), transposed: transposed.0 };
            let b = Operand { mat: b.mat(), transposed: transposed.1 };
            run(MatmulSplit(Matmul { c, beta, alpha: 0.5, a, b }).into())
        })
    })
}

pub fn at(s: &Sizes) -> Vec<Timed> {
    let (t, r, mut all) = (s.tokens, s.rank, Vec::<Timed>::new());
    for (name, m, n) in s.linear_layers() {
        let shape = format!("{name} {t}x{n}->{m}");
        let (forward, gradient) =
            (Product::plain((t, m, n), (false, true)), Product::plain((t, n, m), (false, false)));
        all.push(forward.case(format!("matmul forward {shape}")).into());
        all.push(gradient.case(format!("matmul gradient {shape}")).into());
    }
    all.push(split((s.hidden, s.intermediate, s.hidden), (true, false), 0.0).into());
    for n in [s.hidden, s.intermediate] {
        let case = many(vec![(r, r, n); s.layers], true, 0.0, 1.0)
            .named(format!("{} Gram matrices of {r}x{n}", s.layers));
        all.push(Timed { case, unfused: Some(one_by_one(s.layers, r, n)) });
    }
    all
}

/// op(a) op(b) in f64.
fn product(a: &[f32], transposed_a: bool, b: &[f32], transposed_b: bool, (m, n, k): Size) -> Vec<f32> {
    let mut c = vec![0f32; m * n];
    for i in 0..m {
        for j in 0..n {
            let term = |l: usize| {
                let x = if transposed_a { a[l * m + i] } else { a[i * k + l] };
                let y = if transposed_b { b[j * k + l] } else { b[l * n + j] };
                x as f64 * y as f64
            };
            c[i * n + j] = (0..k).map(term).sum::<f64>() as f32;
        }
    }
    c
}

fn check(size: Size, transposed: (bool, bool), types: [DType; 3], beta: f32, pad: usize) {
    let product = Product { size, transposed, types: Some(types), beta, alpha: 0.5, pads: (pad, pad) };
    kernel_devices(DType::BF16).iter().for_each(|be| product.check(&**be));
}

#[test]
fn matmul_of_all_orientations_and_types() {
    use DType::{BF16, F32};
    for transposed in [(false, false), (false, true), (true, false), (true, true)] {
        // Tensor cores: one tile and a bit, ragged in every dimension.
        check((130, 136, 72), transposed, [BF16, BF16, F32], 0.0, 0);
        check((24, 40, 16), transposed, [BF16, BF16, BF16], 1.0, 8);
        // Odd sizes, odd strides, mixed types.
        check((65, 67, 19), transposed, [BF16, BF16, BF16], 0.0, 3);
        check((7, 130, 33), transposed, [F32, F32, F32], 1.0, 1);
    }
    for a in TYPES {
        for b in TYPES {
            for c in TYPES {
                check((33, 17, 29), (false, true), [a, b, c], 0.0, 1);
            }
        }
    }
}

#[test]
fn matmul_of_edge_sizes() {
    use DType::{BF16, F32};
    for shape in [(1, 1, 1), (1, 8, 8), (129, 8, 8), (128, 128, 32), (64, 64, 0), (257, 8, 200)] {
        check(shape, (false, true), [BF16, BF16, F32], 0.0, 0);
        check(shape, (false, false), [F32, F32, F32], 1.0, 0);
    }
    // Few tiles and much to sum: where there is wgmma, in runs.
    check((136, 104, 1100), (false, true), [BF16, BF16, F32], 0.0, 0);
    check((40, 264, 4100), (false, false), [BF16, BF16, BF16], 1.0, 8);
    // More rows of tiles than a band has: the order of tiles covers every tile once.
    check((2100, 264, 8), (false, true), [BF16, BF16, F32], 0.0, 0);
}

/// By its formula, with the error of 16 bits: some 2^-17 of every term, while that of bf16 would be 2^-8.
#[test]
fn products_of_split_operands() {
    let devices = || kernel_devices(DType::BF16).into_iter().chain([hopper(), Cpu::open(None).unwrap() as _]);
    for (size, beta) in
        [((1, 1, 1), 0.0), ((127, 140, 130), 1.0), ((133, 150, 139), 1.0), ((128, 136, 200), 0.0)]
    {
        for transposed in [(false, false), (false, true), (true, false), (true, true)] {
            let ((m, n, k), case) = (size, split(size, transposed, beta));
            let [a, b, c] = [(1, m * k), (2, k * n), (3, m * n)].map(|(seed, n)| values(DType::F32, seed, n));
            let sums = product(&a, transposed.0, &b, transposed.1, size);
            let want: Vec<f32> = sums.iter().zip(&c).map(|(sum, c)| 0.5 * sum + beta * c).collect();
            let largest = want.iter().fold(0f64, |most, v| most.max(f64::from(v.abs())));
            for be in devices() {
                let got = outputs(&*be, DType::F32, &case).remove(0).1;
                assert_close(
                    &format!("{} on {}", case.name, be.info().name),
                    &got,
                    &want,
                    0.0,
                    2e-5 * largest,
                );
            }
        }
    }
}

/// The kernels for sm_90a against f64, at sizes around their tiles: less than one, one and a bit, several for each
/// of the machine's blocks; every orientation they have, views with padding, results added to.
#[test]
fn products_on_hopper() {
    use DType::{BF16, F32};
    // So many tiles that both warpgroups of a block have several; a summed dimension that is cut into runs, the last one shorter,
    // for the warps of one tile and of two; last, operands of a single short row: their maps have a stride of their own.
    let sizes = [
        (1usize, 8, 8),
        (130, 136, 72),
        (64, 264, 200),
        (300, 120, 64),
        (257, 520, 136),
        (1030, 392, 456),
        (70, 56, 2056),
        (136, 104, 1100),
        (1, 1, 1),
    ];
    let be = hopper();
    for (i, size) in sizes.into_iter().enumerate() {
        for (transposed, result) in [
            ((false, true), BF16),
            ((false, true), F32),
            ((false, false), BF16),
            ((false, false), F32),
            ((true, false), F32),
        ] {
            let size = if transposed.0 { (size.0.next_multiple_of(8), size.1, size.2) } else { size };
            let (beta, pad) = ([0.0, 1.0][i % 2], [0, 8][i / 2 % 2]);
            let (types, pads) = (Some([BF16, BF16, result]), (pad, pad + i % 3));
            Product { size, transposed, types, beta, alpha: 0.5, pads }.check(&*be);
        }
    }
}

#[test]
fn the_kernel_of_a_product_is_chosen_in_sight() {
    let shape = |size, transposed, tensor_cores, result| MatmulShape {
        size,
        transposed,
        tensor_cores,
        result,
        branch: 0,
    };
    let adapted =
        |size, transposed, result| MatmulShape { branch: 32, ..shape(size, transposed, true, result) };
    let nt = (false, true);
    for (shape, hopper, name) in [
        // By hand: 2048 tiles of 128 columns are 16 rounds of 132 multiprocessors, 1024 of 256 are eight, each twice as long but for
        // what a stage of 64 and the end of a tile take: 64 columns take 13.5 and 11.0 us.
        (shape((8192, 4096, 4096), nt, true, DType::BF16), true, "matmul_sm90a_nt_bf16_256"),
        // 2432 tiles are 19 rounds, 1216 ten of twice the length, and 64 columns take 3.3 and 2.7 us.
        (shape((8192, 4864, 896), nt, true, DType::BF16), true, "matmul_sm90a_nt_bf16_256"),
        (shape((2048, 896, 896), nt, true, DType::BF16), true, "matmul_sm90a_nt_bf16_128"),
        (shape((2048, 896, 896), nt, true, DType::BF16), false, "matmul_tc_nt_bf16"),
        (adapted((2048, 896, 896), nt, DType::BF16), false, "linear_tc_nt_bf16"),
        (adapted((2048, 896, 896), (false, false), DType::BF16), false, "linear_tc_nn_bf16"),
        (adapted((2048, 896, 896), nt, DType::F32), false, "matmul_tc_nt_f32"),
        (adapted((2048, 896, 896), nt, DType::BF16), true, "matmul_sm90a_nt_bf16_128"),
        // 128 tiles of 256 columns and 8 of the branch are one tile too many for a round; 256 of 128 columns fit two with them.
        (shape((1024, 4096, 4096), nt, true, DType::BF16), true, "matmul_sm90a_nt_bf16_256"),
        (adapted((1024, 4096, 4096), nt, DType::BF16), true, "matmul_sm90a_nt_bf16_128"),
        (adapted((8192, 128, 896), nt, DType::BF16), true, "matmul_sm90a_nt_bf16_128"),
        (adapted((2048, 1024, 4096), nt, DType::BF16), true, "matmul_sm90a_nt_bf16_128"),
        (shape((64, 64, 64), (true, true), true, DType::F32), true, "matmul_tc_tt_f32"),
        (shape((64, 64, 64), nt, false, DType::F32), true, "matmul_plain"),
    ] {
        let kernel = shape.kernel(hopper, 132);
        assert_eq!(kernel.name(), name, "{shape:?}: {}", kernel.why);
    }
}

/// Every product of a call against f64: no tile, one, several; an inner size of nothing and beyond the kernel's steps; a
/// result that was NaN, and one added to; more products than a launch takes.
#[test]
fn many_products_in_one_call() {
    let mut sizes =
        vec![(1, 1, 1), (3, 5, 0), (0, 4, 3), (24, 24, 300), (16, 130, 24), (65, 64, 17), (70, 129, 33)];
    sizes.extend((0..50).map(|i| (1 + i % 7, 2 + i % 5, 3 + i % 11)));
    for be in backends() {
        for (transpose_b, beta) in [(false, 0.0), (true, 0.0), (false, 1.0), (true, 1.0)] {
            let case = many(sizes.clone(), transpose_b, beta, -0.5);
            let got = outputs(&*be, DType::F32, &case);
            for (i, &(m, n, k)) in sizes.iter().enumerate() {
                let of = |which: u64, n| values(DType::F32, 3 * i as u64 + which, n);
                let mut want = product(&of(0, m * k), false, &of(1, k * n), transpose_b, (m, n, k));
                want.iter_mut().zip(of(2, m * n)).for_each(|(w, c)| *w = -0.5 * *w + beta * c);
                let what = format!("{}, product {i}, transposed {transpose_b}, beta {beta}", be.info().name);
                close(&what, DType::F32, &got[i].1, &want);
            }
        }
    }
}
