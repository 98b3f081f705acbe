//! Many small products at once: `kernels/matmul_many.cu`.

use super::Cuda;
use super::abi::{Launch, MATMUL_MANY, MatmulManyArguments, PLAIN_SHARED, PLAIN_THREADS, PLAIN_TILE};
use super::kernels;
use super::launch::{view, view_mut};
use crate::backend::work::Work;
use crate::backend::{DType, MatmulMany};
use crate::error::Result;
use bytemuck::Zeroable;

impl Cuda {
    pub(super) fn matmul_many(&self, op: MatmulMany) -> Result<()> {
        let MatmulMany { beta, alpha, transpose_b, products } = op;
        let products: Vec<_> = products.iter().filter(|(c, ..)| c.rows > 0 && c.cols > 0).collect();
        for some in products.chunks(MATMUL_MANY) {
            let mut arguments = MatmulManyArguments::zeroed();
            (arguments.alpha, arguments.beta, arguments.transpose_b) = (alpha, beta, i32::from(transpose_b));
            let (mut tiles, mut work) = (0, Work::default());
            for (i, (c, a, b)) in some.iter().enumerate() {
                (arguments.a[i], arguments.b[i], arguments.c[i]) = (view(*a), view(*b), view_mut(c));
                tiles = tiles.max(c.rows.div_ceil(PLAIN_TILE) * c.cols.div_ceil(PLAIN_TILE));
                let shape = (c.rows, c.cols, a.cols);
                work = work + Work::product(shape, DType::F32, DType::F32, DType::F32, beta != 0.0);
            }
            let shape = Launch::line(tiles, PLAIN_THREADS).grid_yz(some.len(), 1).shared(PLAIN_SHARED);
            self.launch(kernels::MATMUL_MANY, shape, &arguments, work)?;
        }
        Ok(())
    }
}
