//! [`crate::backend::WeightGrad`], a product a block.

use super::dots::dots;
use super::elementwise::fill;
use super::matmul::matmul;
use crate::backend::{Dots, Fill, Gram, HostPool, Mat, Matmul, WeightGrad, Write};

pub fn weight_grad(threads: usize, pool: &HostPool, op: WeightGrad) {
    let WeightGrad { dy, x, blocks, mut out, write, gram } = op;
    if write == Write::Replace {
        fill(Fill { x: out.reborrow(), value: 0.0 });
    }
    for block in blocks.iter().filter(|b| !b.rows.is_empty() && !b.columns.is_empty()) {
        let c = out.reborrow().col_range(block.to..block.to + block.columns.len());
        let (rows, columns) = (block.rows.clone(), block.columns.clone());
        let (a, b) = (dy.row_range(rows.clone()).t(), x.row_range(rows).col_range(columns).n());
        matmul(threads, pool, Matmul { c, beta: 1.0, alpha: block.scale, a, b });
    }
    if let Some(Gram { pairs, products }) = gram
        && !pairs.is_empty()
    {
        let block = |first: usize, width: usize| out.as_mat().col_range(first..first + width);
        let pairs: Vec<(Mat, Mat)> =
            pairs.iter().map(|p| (block(p.a, p.width), block(p.b, p.width))).collect();
        dots(Dots { pairs, out: products });
    }
}
