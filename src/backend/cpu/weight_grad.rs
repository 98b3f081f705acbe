//! [`crate::backend::WeightGrad`], a product for all blocks of the same rows.

use super::Products;
use super::dots::dots;
use super::elementwise::{axpy, copy, fill};
use super::matmul::layer_matmul;
use crate::backend::{
    Axpy, Copy, DType, Dots, Fill, GradBlock, Gram, HostPool, Mat, MatMut, Matmul, Storage, Tensor,
    WeightGrad, Write,
};

pub fn weight_grad(threads: usize, products: Products, pool: &HostPool, op: WeightGrad) {
    let WeightGrad { dy, x, blocks, mut out, write, gram } = op;
    if write == Write::Replace {
        fill(Fill { x: out.reborrow(), value: 0.0 });
    }
    for blocks in blocks.chunk_by(|a, b| a.rows == b.rows) {
        add((threads, products, pool), (dy, x), blocks, &mut out);
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

/// Adds blocks of the same rows. The columns of several are put side by side: a product with few columns costs nearly as
/// much as one with twice as many, and reads all of dy as well.
fn add(
    (threads, products, pool): (usize, Products, &HostPool),
    (dy, x): (Mat, Mat),
    blocks: &[GradBlock],
    out: &mut MatMut,
) {
    let rows = blocks[0].rows.clone();
    let width: usize = blocks.iter().map(|b| b.columns.len()).sum();
    if rows.is_empty() || width == 0 {
        return;
    }
    let to = |b: &GradBlock| b.to..b.to + b.columns.len();
    let (dy, x) = (dy.row_range(rows.clone()), x.row_range(rows.clone()));
    if let [block] = blocks {
        let c = out.reborrow().col_range(to(block));
        let b = x.col_range(block.columns.clone()).n();
        return layer_matmul(
            threads,
            products,
            pool,
            Matmul { c, beta: 1.0, alpha: block.scale, a: dy.t(), b },
        );
    }
    let new = |rows: usize| Tensor::new(Storage::Host(pool.take(rows * width)), rows, width, DType::F32);
    let (mut beside, mut sums) = (new(rows.len()), new(dy.cols));
    let places = blocks.iter().scan(0, |first, block| {
        *first += block.columns.len();
        Some((block, *first - block.columns.len()..*first))
    });
    for (block, place) in places.clone() {
        copy(Copy { from: x.col_range(block.columns.clone()), to: beside.mat_mut().col_range(place) });
    }
    layer_matmul(
        threads,
        products,
        pool,
        Matmul { c: sums.mat_mut(), beta: 0.0, alpha: 1.0, a: dy.t(), b: beside.mat().n() },
    );
    for (block, place) in places {
        let (x, y) = (sums.mat().col_range(place), out.reborrow().col_range(to(block)));
        axpy(Axpy { alpha: block.scale, x, y });
    }
}
