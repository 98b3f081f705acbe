//! Many small products at once: `kernels/matmul_many.cu`.

use super::Cuda;
use super::driver::Shape;
use super::launch::{View, view, view_mut};
use crate::backend::trace::Work;
use crate::backend::{DType, Mat, MatMut, Op};
use crate::error::Result;
use bytemuck::{Pod, Zeroable};

/// Products of a launch: their views fit its 4 KB.
const PRODUCTS: usize = 48;
/// Rows and columns of a block's tile, and the shared memory of its operands.
const TILE: usize = 64;
const SHARED: usize = 2 * 16 * (TILE + 4) * 4;

/// `struct MatmulManyArguments`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct MatmulManyArguments {
    a: [View; PRODUCTS],
    b: [View; PRODUCTS],
    c: [View; PRODUCTS],
    alpha: f32,
    beta: f32,
    transpose_b: i32,
    unused: i32,
}

impl Cuda {
    /// See [`crate::backend::Backend::matmul_many`].
    pub(super) fn matmul_many(
        &self,
        beta: f32,
        alpha: f32,
        op_b: Op,
        all: &mut [(MatMut, Mat, Mat)],
    ) -> Result<()> {
        let all: Vec<_> = all.iter().filter(|(c, ..)| c.rows > 0 && c.cols > 0).collect();
        for some in all.chunks(PRODUCTS) {
            let mut arguments = MatmulManyArguments::zeroed();
            (arguments.alpha, arguments.beta, arguments.transpose_b) =
                (alpha, beta, i32::from(op_b == Op::T));
            let (mut tiles, mut work) = (0, Work::default());
            for (i, (c, a, b)) in some.iter().enumerate() {
                let inner = if op_b == Op::T { (b.cols, b.rows) } else { (b.rows, b.cols) };
                assert!((a.rows, inner) == (c.rows, (a.cols, c.cols)), "matmul_many: shapes");
                assert!([a.dtype, b.dtype, c.dtype] == [DType::F32; 3], "matmul_many: types");
                (arguments.a[i], arguments.b[i], arguments.c[i]) = (view(*a), view(*b), view_mut(c));
                tiles = tiles.max(c.rows.div_ceil(TILE) * c.cols.div_ceil(TILE));
                let shape = (c.rows, c.cols, a.cols);
                work = work + Work::product(shape, DType::F32, DType::F32, DType::F32, beta != 0.0);
            }
            let shape = Shape::line(tiles, 256).grid_yz(some.len(), 1).shared(SHARED);
            self.launch("matmul_many", shape, &arguments, work)?;
        }
        Ok(())
    }
}
