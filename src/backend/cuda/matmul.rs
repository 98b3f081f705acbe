//! Matrix products: `kernels/matmul.cu` and, on Hopper, `kernels/matmul_sm90a.cu`; which of them, and why.

use super::Cuda;
use super::abi::{
    BRANCH_TILE_N, HOPPER_M, HOPPER_SHARED_128, HOPPER_SHARED_256, HOPPER_THREADS, HOPPER_WARPS,
    HopperArguments, Launch, LinearArguments, MatmulArguments, PLAIN_SHARED, PLAIN_THREADS, PLAIN_TILE,
    TILE_BAND, TILE_M, TILE_N, TILE_SHARED, TILE_THREADS, TensorMap,
};
use super::driver::PlainProduct;
use super::kernels::{self, Kernel};
use super::launch::{view, view_mut, view_or_none};
use crate::backend::work::{Work, bytes, bytes_mut};
use crate::backend::{DType, Mat, MatMut, Matmul, MatmulSplit, Operand, Rounding, Tensor};
use crate::error::Result;
use bytemuck::Zeroable;

/// `C = beta C + alpha (A0 B0 + A1 B1) + bias`, operands as stored, with their orientation.
#[derive(Clone, Copy)]
pub(super) struct Product<'a> {
    pub alpha: f32,
    pub beta: f32,
    pub a: Operand<'a>,
    pub b: Operand<'a>,
    /// A second pair, oriented as the first.
    pub second: Option<(Mat<'a>, Mat<'a>)>,
    pub bias: Option<Mat<'a>>,
    pub rounding: Rounding,
}

// ---- which kernel ---------------------------------------------------------------------------

/// What decides which kernel computes `op(A) op(B)`.
#[derive(Debug, Clone, Copy)]
pub struct MatmulShape {
    /// Rows and columns of the result, and the summed dimension of the first pair.
    pub size: (usize, usize, usize),
    /// Whether A and B enter transposed.
    pub transposed: (bool, bool),
    /// Whether all operands are bf16 with base and rows aligned to 16 bytes.
    pub tensor_cores: bool,
    /// The result's type.
    pub result: DType,
    /// Rank of the low-rank branch that is to be computed and added in the same launch; 0: none.
    pub branch: usize,
}

#[derive(Clone, Copy)]
enum Family {
    Plain,
    Ampere(Kernel<MatmulArguments>),
    /// With a branch in the same launch.
    AmpereBranch(Kernel<LinearArguments>),
    /// With so many columns of a tile.
    Hopper(Kernel<HopperArguments>, usize),
}

/// A choice among the kernels for matrix products.
#[derive(Clone, Copy)]
pub struct MatmulKernel {
    /// Why this one.
    pub why: &'static str,
    family: Family,
}

impl MatmulKernel {
    /// The kernel's name; operands' types are missing in that of a plain kernel.
    pub fn name(&self) -> &'static str {
        match self.family {
            Family::Plain => "matmul_plain",
            Family::Ampere(kernel) => kernel.name(),
            Family::AmpereBranch(kernel) => kernel.name(),
            Family::Hopper(kernel, _) => kernel.name(),
        }
    }
}

impl MatmulShape {
    /// The kernel for this product on a device with `multiprocessors`, which has wgmma if it is a `hopper`.
    pub fn kernel(&self, hopper: bool, multiprocessors: usize) -> MatmulKernel {
        if !self.tensor_cores {
            let why = "an operand is f32 or not aligned to 16 bytes: CUDA cores";
            return MatmulKernel { why, family: Family::Plain };
        }
        let columns = self.columns(multiprocessors);
        let wgmma = kernels::matmul_sm90a(self.transposed, self.result, columns);
        let why = match (hopper, wgmma) {
            (true, Some(kernel)) if self.size.2 > 0 => {
                return MatmulKernel {
                    why: "wgmma and bulk copies",
                    family: Family::Hopper(kernel, columns),
                };
            }
            (true, Some(_)) => "mma.sync and cp.async: nothing to sum",
            (true, None) => "mma.sync and cp.async: no wgmma kernel for this orientation",
            (false, _) => "mma.sync and cp.async: the device has no wgmma",
        };
        let family = match kernels::linear_tc(self.transposed, self.result) {
            Some(kernel) if self.branch > 0 => Family::AmpereBranch(kernel),
            _ => Family::Ampere(kernels::matmul_tc(self.transposed, self.result)),
        };
        MatmulKernel { why, family }
    }

    /// Columns of a tile: those with which the last tile is done first, and 256 where there are so many and that is the same.
    fn columns(&self, multiprocessors: usize) -> usize {
        let duration = |columns| self.duration(columns, multiprocessors) as u64 * self.nanoseconds(columns);
        if self.size.1 > 128 && duration(256) <= duration(128) { 256 } else { 128 }
    }

    /// What 64 columns of such a tile take, as measured on an H100 (docs/kernels.md): a stage's products, and the end of the tile.
    fn nanoseconds(&self, columns: usize) -> u64 {
        let stage = if columns == 256 { 165 } else { 205 };
        stage * self.size.2.div_ceil(64) as u64 + 400
    }

    /// Runs into which the summed dimension is cut so that there is a tile for every multiprocessor: where there are fewer than
    /// half as many, in runs of at least eight stages.
    fn splits(&self, columns: usize, multiprocessors: usize) -> usize {
        let (m, n, k) = self.size;
        let tiles = m.div_ceil(HOPPER_M) * n.div_ceil(columns);
        let stages = k.div_ceil(64);
        let splits = (multiprocessors / tiles.max(1)).min(stages / 8).max(1);
        stages.div_ceil(stages.div_ceil(splits).max(1)).max(1) // none of them empty
    }

    /// When the last tile is done, in the time that 64 columns of a tile take: every multiprocessor takes the next one when it
    /// is done with one, in the order of `kernels/matmul_sm90a.cu`.
    fn duration(&self, columns: usize, multiprocessors: usize) -> usize {
        let (m, n, _) = self.size;
        let (branch, last) = (branch_columns(self.branch, columns), branch_columns(n % columns, columns));
        let of_a_row = [
            (self.branch.div_ceil(branch), branch / 64),
            (n / columns, columns / 64),
            ((n % columns).min(1), last / 64),
        ];
        // Multiprocessors by the time until they are free.
        let (mut time, mut free) = (0, [multiprocessors, 0, 0, 0, 0]);
        let rows = m.div_ceil(HOPPER_M);
        for band in (0..rows).step_by(TILE_BAND) {
            for (count, width) in of_a_row {
                let mut left = count * TILE_BAND.min(rows - band);
                while left > 0 {
                    if free[0] == 0 {
                        free.rotate_left(1);
                        time += 1;
                    }
                    let taken = left.min(free[0]);
                    (free[0], left) = (free[0] - taken, left - taken);
                    free[width] += taken;
                }
            }
        }
        time + free.iter().rposition(|n| *n > 0).unwrap_or(0)
    }
}

/// Columns of a branch's tiles beside tiles with `columns`: as few as wgmma can multiply that hold its rank.
fn branch_columns(rank: usize, columns: usize) -> usize {
    [64, 128].into_iter().find(|c| rank <= *c).unwrap_or(columns)
}

/// Blocks of the Hopper kernels, with so many columns of a tile.
fn hopper_launch(blocks: usize, columns: usize) -> Launch {
    let shared = if columns == 256 { HOPPER_SHARED_256 } else { HOPPER_SHARED_128 };
    Launch::line(blocks, HOPPER_THREADS).shared(shared)
}

/// Least rows, columns and summed dimension of a product for which splitting its operands pays.
const SPLIT_FROM: usize = 128;

// ---- launches -------------------------------------------------------------------------------

fn tensor_cores(operands: &[Mat]) -> bool {
    operands.iter().all(|x| x.dtype == DType::BF16 && view(*x).aligned(x.dtype))
}

impl<'a> Product<'a> {
    /// `C = beta C + alpha A B`.
    pub fn new(beta: f32, alpha: f32, a: Operand<'a>, b: Operand<'a>, rounding: Rounding) -> Self {
        Self { alpha, beta, a, b, second: None, bias: None, rounding }
    }
}

impl Product<'_> {
    fn operands(&self) -> Vec<Mat<'_>> {
        let second = self.second.map(|(a, b)| [a, b]);
        [self.a.mat, self.b.mat].into_iter().chain(second.into_iter().flatten()).collect()
    }

    fn shape(&self, c: &MatMut) -> MatmulShape {
        let k = self.a.shape().1;
        MatmulShape {
            size: (c.rows, c.cols, k),
            transposed: (self.a.transposed, self.b.transposed),
            tensor_cores: tensor_cores(&self.operands()),
            result: c.dtype,
            branch: 0,
        }
    }

    fn arguments(&self, c: &MatMut) -> MatmulArguments {
        let ((m, k0), (kb, n)) = (self.a.shape(), self.b.shape());
        assert!((m, n) == c.shape() && k0 == kb, "product of {m} x {k0} and {kb} x {n} into {:?}", c.shape());
        let k1 = self.second.map_or(0, |(a, b)| {
            assert!(
                a.dtype == self.a.mat.dtype && b.dtype == self.b.mat.dtype,
                "two products of different types"
            );
            let (a, b) = (Operand { mat: a, ..self.a }.shape(), Operand { mat: b, ..self.b }.shape());
            assert!(a.0 == m && b.1 == n && a.1 == b.0, "second product of {a:?} and {b:?} into {m} x {n}");
            a.1
        });
        let (stochastic, seed) = match self.rounding {
            Rounding::Nearest => (0, 0),
            Rounding::Stochastic(seed) => (i32::from(c.dtype == DType::BF16), seed),
        };
        MatmulArguments {
            a0: view(self.a.mat),
            b0: view(self.b.mat),
            a1: view_or_none(self.second.map(|s| s.0)),
            b1: view_or_none(self.second.map(|s| s.1)),
            c: view_mut(c),
            bias: view_or_none(self.bias),
            m: m as i32,
            n: n as i32,
            k0: k0 as i32,
            k1: k1 as i32,
            transpose_a: i32::from(self.a.transposed),
            transpose_b: i32::from(self.b.transposed),
            alpha: self.alpha,
            beta: self.beta,
            stochastic,
            unused: 0,
            seed,
        }
    }
}

impl Cuda {
    fn kernel_for(&self, shape: &MatmulShape) -> MatmulKernel {
        shape.kernel(self.info.hopper, self.info.sms)
    }

    /// Launches a product.
    pub(super) fn product(&self, c: &MatMut, p: Product) -> Result<()> {
        let arguments = p.arguments(c);
        let (m, n) = c.shape();
        if m == 0 || n == 0 {
            return Ok(());
        }
        let inner = (arguments.k0 + arguments.k1) as usize;
        let work = Work::product((m, n, inner), p.a.mat.dtype, p.b.mat.dtype, c.dtype, p.beta != 0.0);
        let (shape, plain) =
            (p.shape(c), p.second.is_none() && p.bias.is_none() && arguments.stochastic == 0);
        let ask = shape.tensor_cores && plain && self.info.blas;
        if ask && self.cublaslt_product(&arguments, c.dtype, work)? {
            return Ok(());
        }
        match self.kernel_for(&shape).family {
            Family::Hopper(kernel, columns) => {
                let tiles = m.div_ceil(HOPPER_M) * n.div_ceil(columns);
                let splits = if p.second.is_some() { 1 } else { shape.splits(columns, self.info.sms) };
                let (runs, sums) = (splits * usize::from(splits > 1), tiles * HOPPER_M * columns);
                let partial = if runs > 0 { Some(self.arena.take(4 * runs * sums)?) } else { None };
                let a = HopperArguments {
                    splits: splits as i32,
                    partial: partial.as_ref().map_or(0, |memory| memory.address),
                    ..self.hopper_arguments(&p, arguments, columns, tiles * usize::from(runs > 0))?
                };
                let work = work + Work::new(2 * (4 * runs * sums) as u64, 0);
                self.launch(kernel, hopper_launch((tiles * splits).min(self.info.sms), columns), &a, work)
            }
            Family::Ampere(kernel) => {
                let blocks = m.div_ceil(TILE_M) * n.div_ceil(TILE_N);
                let shape = Launch::line(blocks, TILE_THREADS).shared(TILE_SHARED);
                self.launch(kernel, shape, &arguments, work)
            }
            Family::AmpereBranch(_) => unreachable!("a product without a branch"),
            Family::Plain => {
                let kernel = kernels::matmul_plain(p.a.mat.dtype, p.b.mat.dtype, c.dtype);
                let blocks = m.div_ceil(PLAIN_TILE) * n.div_ceil(PLAIN_TILE);
                let shape = Launch::line(blocks, PLAIN_THREADS).shared(PLAIN_SHARED);
                self.launch(kernel, shape, &arguments, work)
            }
        }
    }

    /// The product by a library, if there is one that does it.
    fn cublaslt_product(&self, a: &MatmulArguments, c: DType, work: Work) -> Result<bool> {
        let product = PlainProduct {
            m: a.m as usize,
            n: a.n as usize,
            k: a.k0 as usize,
            transpose_a: a.transpose_a != 0,
            transpose_b: a.transpose_b != 0,
            ld: [a.a0.ld as usize, a.b0.ld as usize, a.c.ld as usize],
            c,
        };
        let name = match c {
            DType::F32 => "cublaslt_f32",
            DType::BF16 => "cublaslt_bf16",
        };
        let matrices = [a.a0.data, a.b0.data, a.c.data];
        let start = || self.driver.plain_product(&product, (a.alpha, a.beta), matrices);
        self.recorder.run(self.driver.as_ref(), (name, 0), work, start)
    }

    /// Boxes of an operand that lies along k hold all `outputs` of a tile, others 64 x 64.
    fn tensor_map(&self, m: Mat, along_k: bool, outputs: usize) -> Result<TensorMap> {
        self.driver.tensor_map(&view(m), if along_k { outputs } else { 64 })
    }

    /// Without a branch and splits; tickets for `split_tiles` whose runs are added.
    fn hopper_arguments(
        &self,
        p: &Product,
        product: MatmulArguments,
        columns: usize,
        split_tiles: usize,
    ) -> Result<HopperArguments> {
        let maps = |a: Mat, b: Mat| -> Result<(TensorMap, TensorMap)> {
            let of_a = self.tensor_map(a, !p.a.transposed, HOPPER_M)?;
            Ok((of_a, self.tensor_map(b, p.b.transposed, columns)?))
        };
        let (a0, b0) = maps(p.a.mat, p.b.mat)?;
        let (a1, b1) = match p.second {
            Some((a, b)) if product.k1 > 0 => maps(a, b)?,
            _ => (a0, b0),
        };
        let tickets = 1 + 2 * (product.m as usize).div_ceil(HOPPER_M) + HOPPER_WARPS * split_tiles;
        Ok(HopperArguments {
            a0,
            b0,
            a1,
            b1,
            product,
            tickets: self.tickets(tickets)?,
            branch_columns: 64, // of no tile, and divided by
            splits: 1,
            ..HopperArguments::zeroed()
        })
    }

    /// The adapted linear, forward and gradient: `S = A0 op(P)`, then `product` with the second pair (S, Q): one
    /// launch on tensor cores, else two.
    pub(super) fn product_with_branch(
        &self,
        c: &MatMut,
        product: Product,
        (p, mut s, q): (Mat, MatMut, Mat),
    ) -> Result<()> {
        let whole = Product { second: Some((s.as_mat(), q)), ..product };
        let shape = MatmulShape { branch: s.cols, ..whole.shape(c) };
        let family = self.kernel_for(&shape).family;
        let real = s.cols > 0 && c.rows > 0 && c.cols > 0 && tensor_cores(&[p]);
        if !real || matches!(family, Family::Plain | Family::Ampere(_)) {
            let b = Operand { mat: p, ..product.b };
            self.matmul(Matmul { c: s.reborrow(), beta: 0.0, alpha: 1.0, a: product.a, b })?;
            return self.product(c, Product { second: Some((s.as_mat(), q)), ..product });
        }
        let branch = Product::new(0.0, 1.0, product.a, Operand { mat: p, ..product.b }, product.rounding)
            .arguments(&s);
        let (m, n, k0, r) = (c.rows, c.cols, branch.k0 as usize, s.cols);
        let flops = Work::product((m, r, k0), p.dtype, p.dtype, p.dtype, false).flops;
        let base = Work::product((m, n, k0 + r), p.dtype, p.dtype, c.dtype, product.beta != 0.0);
        let work = base + Work::new(bytes(p) + bytes_mut(&s), flops);
        match family {
            Family::Hopper(kernel, columns) => {
                let of_branch = branch_columns(r, columns);
                let arguments = HopperArguments {
                    branch_b: self.tensor_map(p, product.b.transposed, of_branch)?,
                    branch,
                    branch_columns: of_branch as i32,
                    ..self.hopper_arguments(&whole, whole.arguments(c), columns, 0)?
                };
                let tiles = m.div_ceil(HOPPER_M) * (n.div_ceil(columns) + r.div_ceil(of_branch));
                self.launch(kernel, hopper_launch(tiles.min(self.info.sms), columns), &arguments, work)
            }
            Family::AmpereBranch(kernel) => {
                let tiles_m = m.div_ceil(TILE_M);
                let tickets = self.tickets(1 + 2 * tiles_m)?;
                let arguments = LinearArguments { product: whole.arguments(c), branch, tickets, unused: 0 };
                let blocks = tiles_m * (n.div_ceil(TILE_N) + r.div_ceil(BRANCH_TILE_N));
                let shape = Launch::line(blocks, TILE_THREADS).shared(TILE_SHARED);
                self.launch(kernel, shape, &arguments, work)
            }
            Family::Plain | Family::Ampere(_) => unreachable!("returned above"),
        }
    }

    pub(super) fn matmul(&self, op: Matmul) -> Result<()> {
        let Matmul { c, beta, alpha, a, b } = op;
        self.product(&c, Product::new(beta, alpha, a, b, Rounding::Nearest))
    }
    /// `(Ah + Al) (Bh + Bl)` without `Al Bl`, which is below what 16 bits hold.
    pub(super) fn matmul_split(&self, op: MatmulSplit) -> Result<()> {
        let Matmul { c, beta, alpha, a, b } = op.0;
        let (m, k) = a.shape();
        if self.info.compute_dtype == DType::F32 || m.min(k).min(c.cols) < SPLIT_FROM {
            return self.matmul(Matmul { c, beta, alpha, a, b });
        }
        let ([a_high, a_low], [b_high, b_low]) = (self.split(a.mat)?, self.split(b.mat)?);
        let of_a = |half| Operand { mat: part(half, a), ..a };
        let of_b = |half| Operand { mat: part(half, b), ..b };
        let first = Product::new(beta, alpha, of_a(&a_high), of_b(&b_high), Rounding::Nearest);
        let second = Some((part(&a_low, a), part(&b_high, b)));
        self.product(&c, Product { second, ..first })?;
        self.product(&c, Product::new(1.0, alpha, of_a(&a_high), of_b(&b_low), Rounding::Nearest))
    }
}

/// A half of an operand that was split, without the columns that align it.
fn part<'a>(half: &'a Tensor, of: Operand) -> Mat<'a> {
    half.mat().col_range(0..of.mat.cols)
}
