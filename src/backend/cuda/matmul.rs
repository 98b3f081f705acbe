//! Matrix products: `kernels/matmul.cu` and, on Hopper, `kernels/matmul_sm90a.cu`; which of them, and why.

use super::Cuda;
use super::driver::Shape;
use super::launch::{TensorMap, View, tag, view, view_mut, view_or_none};
use super::library::PlainProduct;
use crate::backend::trace::{Work, bytes};
use crate::backend::{DType, Mat, MatMut, Op, Rounding};
use crate::error::Result;
use bytemuck::{Pod, Zeroable};

/// `struct MatmulArguments`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct MatmulArguments {
    a0: View,
    b0: View,
    a1: View,
    b1: View,
    c: View,
    bias: View,
    m: i32,
    n: i32,
    k0: i32,
    k1: i32,
    transpose_a: i32,
    transpose_b: i32,
    alpha: f32,
    beta: f32,
    stochastic: i32,
    unused: i32,
    seed: u64,
}

/// `struct HopperArguments`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(128))]
struct HopperArguments {
    a0: TensorMap,
    b0: TensorMap,
    a1: TensorMap,
    b1: TensorMap,
    branch_b: TensorMap,
    product: MatmulArguments,
    branch: MatmulArguments,
    tickets: u64,
    unused: [u32; 30],
}

/// `struct LinearArguments`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct LinearArguments {
    product: MatmulArguments,
    branch: MatmulArguments,
    tickets: u64,
    unused: u64,
}

/// `C = beta C + alpha (A0 B0 + A1 B1) + bias`, operands as stored, with their orientation.
#[derive(Clone, Copy)]
pub(super) struct Product<'a> {
    pub alpha: f32,
    pub beta: f32,
    pub a: (Mat<'a>, Op),
    pub b: (Mat<'a>, Op),
    /// A second pair, oriented as the first.
    pub second: Option<(Mat<'a>, Mat<'a>)>,
    pub bias: Option<Mat<'a>>,
    pub rounding: Rounding,
}

// Shared memory of a block, as `kernels/matmul_tile.cuh` works it out: tensor cores with 64 and 128 columns.
pub(super) const TILE_SHARED: [usize; 2] = [3 * 32 * 2 * (128 + 64), 3 * 32 * 2 * (128 + 128)];
pub(super) const PLAIN_SHARED: usize = 2 * 16 * 68 * 4;

// ---- which kernel ---------------------------------------------------------------------------

/// What decides which kernel computes `op(A) op(B)`.
#[derive(Debug, Clone, Copy)]
pub struct MatmulShape {
    /// Rows and columns of the result, and the summed dimension of the first pair.
    pub size: (usize, usize, usize),
    /// How A and B enter.
    pub ops: (Op, Op),
    /// Whether all operands are bf16 with base and rows aligned to 16 bytes.
    pub tensor_cores: bool,
    /// The result's type.
    pub result: DType,
    /// Whether a low-rank branch is to be computed and added in the same launch.
    pub branch: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    Plain,
    /// With a branch in the same launch?
    Ampere(bool),
    /// With so many columns of a tile.
    Hopper(usize),
}

/// A choice among the kernels for matrix products.
#[derive(Debug, Clone)]
pub struct MatmulKernel {
    /// The kernel's name; operands' types are missing in that of a plain kernel.
    pub name: String,
    /// Why this one.
    pub why: &'static str,
    family: Family,
}

impl MatmulShape {
    /// The kernel for this product on a device with `multiprocessors`, which has wgmma if it is a `hopper`.
    pub fn kernel(&self, hopper: bool, multiprocessors: usize) -> MatmulKernel {
        let letter = |op| if op == Op::N { "n" } else { "t" };
        let ending = format!("{}{}_{}", letter(self.ops.0), letter(self.ops.1), tag(self.result));
        if !self.tensor_cores {
            let why = "an operand is f32 or not aligned to 16 bytes: CUDA cores";
            return MatmulKernel { name: "matmul_plain".into(), why, family: Family::Plain };
        }
        let oriented = match self.ops {
            (Op::N, _) => true,
            (Op::T, Op::N) => self.result == DType::F32,
            (Op::T, Op::T) => false,
        };
        if hopper && oriented && self.size.2 > 0 {
            let columns = self.columns(multiprocessors);
            let name = format!("matmul_sm90a_{ending}_{columns}");
            return MatmulKernel { name, why: "wgmma and bulk copies", family: Family::Hopper(columns) };
        }
        let why = match (hopper, oriented) {
            (false, _) => "mma.sync and cp.async: the device has no wgmma",
            (true, false) => "mma.sync and cp.async: no wgmma kernel for this orientation",
            (true, true) => "mma.sync and cp.async: nothing to sum",
        };
        let fused = self.branch && self.ops.0 == Op::N && self.result == DType::BF16;
        let name = format!("{}_{ending}", if fused { "linear_tc" } else { "matmul_tc" });
        MatmulKernel { name, why, family: Family::Ampere(fused) }
    }

    /// Columns of a tile: those that finish first when every multiprocessor works on one tile at a time.
    fn columns(&self, multiprocessors: usize) -> usize {
        let (m, n, _) = self.size;
        let rounds = |columns: usize| (m.div_ceil(128) * n.div_ceil(columns)).div_ceil(multiprocessors);
        if rounds(256) * 2 <= rounds(128) { 256 } else { 128 }
    }
}

/// Shared memory of a block of the Hopper kernels: `Ring<BN>::SHARED_BYTES`.
fn hopper_shared(columns: usize) -> usize {
    let stages = if columns == 256 { 4 } else { 6 };
    1024 + stages * ((128 + columns) / 64 * 8192 + 16) + 32
}

// ---- launches -------------------------------------------------------------------------------

fn oriented(m: Mat, op: Op) -> (usize, usize) {
    if op == Op::N { (m.rows, m.cols) } else { (m.cols, m.rows) }
}

fn tensor_cores(operands: &[Mat]) -> bool {
    operands.iter().all(|x| x.dtype == DType::BF16 && view(*x).aligned(x.dtype))
}

impl Product<'_> {
    fn operands(&self) -> Vec<Mat<'_>> {
        let second = self.second.map(|(a, b)| [a, b]);
        [self.a.0, self.b.0].into_iter().chain(second.into_iter().flatten()).collect()
    }

    fn shape(&self, c: &MatMut) -> MatmulShape {
        let k = oriented(self.a.0, self.a.1).1;
        MatmulShape {
            size: (c.rows, c.cols, k),
            ops: (self.a.1, self.b.1),
            tensor_cores: tensor_cores(&self.operands()),
            result: c.dtype,
            branch: false,
        }
    }

    fn arguments(&self, c: &MatMut) -> MatmulArguments {
        let ((m, k0), (kb, n)) = (oriented(self.a.0, self.a.1), oriented(self.b.0, self.b.1));
        assert!((m, n) == c.shape() && k0 == kb, "product of {m} x {k0} and {kb} x {n} into {:?}", c.shape());
        let k1 = self.second.map_or(0, |(a, b)| {
            assert!(
                a.dtype == self.a.0.dtype && b.dtype == self.b.0.dtype,
                "two products of different types"
            );
            let (a, b) = (oriented(a, self.a.1), oriented(b, self.b.1));
            assert!(a.0 == m && b.1 == n && a.1 == b.0, "second product of {a:?} and {b:?} into {m} x {n}");
            a.1
        });
        let (stochastic, seed) = match self.rounding {
            Rounding::Nearest => (0, 0),
            Rounding::Stochastic(seed) => (i32::from(c.dtype == DType::BF16), seed),
        };
        MatmulArguments {
            a0: view(self.a.0),
            b0: view(self.b.0),
            a1: view_or_none(self.second.map(|s| s.0)),
            b1: view_or_none(self.second.map(|s| s.1)),
            c: view_mut(c),
            bias: view_or_none(self.bias),
            m: m as i32,
            n: n as i32,
            k0: k0 as i32,
            k1: k1 as i32,
            transpose_a: i32::from(self.a.1 == Op::T),
            transpose_b: i32::from(self.b.1 == Op::T),
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
        shape.kernel(self.driver.hopper(), self.driver.wide().div_ceil(2))
    }

    /// Launches a product; see [`crate::backend::Backend::matmul`].
    pub(super) fn product(&self, c: &MatMut, p: Product) -> Result<()> {
        let arguments = p.arguments(c);
        let (m, n) = c.shape();
        if m == 0 || n == 0 {
            return Ok(());
        }
        let inner = (arguments.k0 + arguments.k1) as usize;
        let work = Work::product((m, n, inner), p.a.0.dtype, p.b.0.dtype, c.dtype, p.beta != 0.0);
        let (shape, plain) =
            (p.shape(c), p.second.is_none() && p.bias.is_none() && arguments.stochastic == 0);
        let ask = shape.tensor_cores && plain && self.driver.has_library();
        if ask && self.cublaslt_product(&arguments, c.dtype, work)? {
            return Ok(());
        }
        let kernel = self.kernel_for(&shape);
        match kernel.family {
            Family::Hopper(columns) => {
                let a = self.hopper_arguments(&p, arguments)?;
                let blocks = (m.div_ceil(128) * n.div_ceil(columns)).min(self.driver.wide().div_ceil(2));
                let shape = Shape::line(blocks, 384).shared(hopper_shared(columns));
                self.launch(&kernel.name, shape, &a, work)
            }
            Family::Ampere(_) => {
                let shape = Shape::line(m.div_ceil(128) * n.div_ceil(128), 256).shared(TILE_SHARED[1]);
                self.launch(&kernel.name, shape, &arguments, work)
            }
            Family::Plain => {
                let types = (tag(p.a.0.dtype), tag(p.b.0.dtype), tag(c.dtype));
                let name = format!("{}_{}_{}_{}", kernel.name, types.0, types.1, types.2);
                let shape = Shape::line(m.div_ceil(64) * n.div_ceil(64), 256).shared(PLAIN_SHARED);
                self.launch(&name, shape, &arguments, work)
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
        let name = format!("cublaslt_{}", tag(c));
        let matrices = [a.a0.data, a.b0.data, a.c.data];
        let start = || self.driver.plain_product(&product, (a.alpha, a.beta), matrices);
        self.recorder.run(self.driver.as_ref(), (&name, 0), work, start)
    }

    fn hopper_arguments(&self, p: &Product, product: MatmulArguments) -> Result<HopperArguments> {
        let map = |m: &Mat| self.driver.tensor_map(&view(*m));
        let (a0, b0) = (map(&p.a.0)?, map(&p.b.0)?);
        let (a1, b1) = match &p.second {
            Some((a, b)) if product.k1 > 0 => (map(a)?, map(b)?),
            _ => (a0, b0),
        };
        let tickets = self.tickets(1 + 2 * (product.m as usize).div_ceil(128))?;
        Ok(HopperArguments { a0, b0, a1, b1, product, tickets, ..HopperArguments::zeroed() })
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
        let shape = MatmulShape { branch: true, ..whole.shape(c) };
        let kernel = self.kernel_for(&shape);
        let real = s.cols > 0 && c.rows > 0 && c.cols > 0 && tensor_cores(&[p]);
        if !real || matches!(kernel.family, Family::Plain | Family::Ampere(false)) {
            self.matmul(s.reborrow(), 0.0, 1.0, product.a, (p, product.b.1))?;
            return self.product(c, Product { second: Some((s.as_mat(), q)), ..product });
        }
        let branch =
            Product { alpha: 1.0, beta: 0.0, b: (p, product.b.1), bias: None, ..product }.arguments(&s);
        let (m, n, k0, r) = (c.rows, c.cols, branch.k0 as usize, s.cols);
        let flops = Work::product((m, r, k0), p.dtype, p.dtype, p.dtype, false).flops;
        let base = Work::product((m, n, k0 + r), p.dtype, p.dtype, c.dtype, product.beta != 0.0);
        let work = base + Work::new(bytes(p) + bytes(s.as_mat()), flops);
        let tiles_m = m.div_ceil(128);
        if let Family::Hopper(columns) = kernel.family {
            let arguments = HopperArguments {
                branch_b: self.driver.tensor_map(&view(p))?,
                branch,
                ..self.hopper_arguments(&whole, whole.arguments(c))?
            };
            let tiles = tiles_m * (n.div_ceil(columns) + r.div_ceil(columns));
            let shape =
                Shape::line(tiles.min(self.driver.wide().div_ceil(2)), 384).shared(hopper_shared(columns));
            return self.launch(&kernel.name, shape, &arguments, work);
        }
        let tickets = self.tickets(1 + 2 * tiles_m)?;
        let arguments = LinearArguments { product: whole.arguments(c), branch, tickets, unused: 0 };
        let blocks = tiles_m * (n.div_ceil(128) + r.div_ceil(64));
        self.launch(&kernel.name, Shape::line(blocks, 256).shared(TILE_SHARED[1]), &arguments, work)
    }

    /// See [`crate::backend::Backend::matmul`].
    pub(super) fn matmul(&self, c: MatMut, beta: f32, alpha: f32, a: (Mat, Op), b: (Mat, Op)) -> Result<()> {
        let rounding = Rounding::Nearest;
        self.product(&c, Product { alpha, beta, a, b, second: None, bias: None, rounding })
    }
}
