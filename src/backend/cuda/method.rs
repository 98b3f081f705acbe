//! The method's own operations: `kernels/dots.cu`, and products.

use super::Cuda;
use super::driver::Shape;
use super::launch::{View, view, view_mut};
use super::matmul::Product;
use crate::backend::trace::{Work, bytes};
use crate::backend::{DType, Mat, MatMut, Op, Rounding};
use crate::error::Result;
use bytemuck::{Pod, Zeroable};

const PAIRS: usize = 32;

/// `struct DotsArguments`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct DotsArguments {
    partial: u64,
    out: u64,
    pairs: i32,
    blocks: i32,
    x: [View; PAIRS],
    y: [View; PAIRS],
}

impl Cuda {
    /// See [`Backend::dots`].
    pub(super) fn dots(&self, pairs: &[(Mat, Mat)], mut out: MatMut) -> Result<()> {
        for (i, some) in pairs.chunks(PAIRS).enumerate() {
            let (mut x, mut y, mut largest) = ([View::NONE; PAIRS], [View::NONE; PAIRS], 0);
            for (j, (a, b)) in some.iter().enumerate() {
                assert!(a.shape() == b.shape() && a.dtype == DType::F32 && b.dtype == DType::F32, "dots");
                (x[j], y[j]) = (view(*a), view(*b));
                largest = largest.max(a.rows * a.cols);
            }
            // 8 elements a thread, at least; no more blocks than keep the device busy.
            let blocks = largest.div_ceil(2048).clamp(1, self.driver.wide());
            let partial = self.arena.take(some.len() * blocks * 8)?;
            let to = view_mut(&out.reborrow().col_range(i * PAIRS..i * PAIRS + some.len()));
            let (pairs, blocks_i) = (some.len() as i32, blocks as i32);
            let arguments =
                DotsArguments { partial: partial.address, out: to.data, pairs, blocks: blocks_i, x, y };
            let read: u64 = some.iter().map(|(a, b)| bytes(*a) + bytes(*b)).sum();
            let shape = Shape::line(blocks, 256).grid_yz(some.len(), 1).shared(256);
            self.launch("dots", shape, &arguments, Work::new(read, read / 4))?;
            let work = Work::new((some.len() * (8 * blocks + 4)) as u64, (some.len() * blocks) as u64);
            self.launch("dots_sum", Shape::line(some.len(), 32), &arguments, work)?;
        }
        Ok(())
    }

    /// See [`Backend::project_rows`].
    pub(super) fn project_rows(&self, x: MatMut, k: Mat) -> Result<()> {
        let mut inner = self.scratch(x.rows, k.cols)?;
        self.matmul(inner.mat_mut(), 0.0, 1.0, (x.as_mat(), Op::N), (k, Op::N))?;
        self.matmul(x, 1.0, -1.0, (inner.mat(), Op::N), (k, Op::T))
    }

    /// See [`Backend::project_columns`].
    pub(super) fn project_columns(&self, x: MatMut, k: Mat) -> Result<()> {
        let mut inner = self.scratch(k.cols, x.cols)?;
        self.matmul(inner.mat_mut(), 0.0, 1.0, (k, Op::T), (x.as_mat(), Op::N))?;
        self.matmul(x, 1.0, -1.0, (k, Op::N), (inner.mat(), Op::N))
    }

    /// See [`Backend::fold`].
    pub(super) fn fold(
        &self,
        w: MatMut,
        keep: f32,
        scale: f32,
        (b, a): (Mat, Mat),
        rounding: Rounding,
    ) -> Result<()> {
        let base = |b| Product {
            alpha: scale,
            beta: keep,
            a: (b, Op::N),
            b: (a, Op::N),
            second: None,
            bias: None,
            rounding,
        };
        if b.dtype != DType::F32 || a.dtype != DType::BF16 || !view(a).aligned(DType::BF16) || b.cols == 0 {
            return self.product(&w, base(b));
        }
        // f32 coordinates on the tensor cores: as the sum of two bf16 matrices they keep 16 bits.
        let columns = b.cols.next_multiple_of(8);
        let half = || self.new_tensor(b.rows, columns, DType::BF16);
        let (mut high, mut low) = (half()?, half()?);
        let high_to = high.mat_mut().col_range(0..b.cols);
        self.combine(1.0, b, 0.0, &high_to)?;
        let low_to = low.mat_mut().col_range(0..b.cols);
        self.combine(1.0, high.mat().col_range(0..b.cols), 0.0, &low_to)?;
        self.combine(1.0, b, -1.0, &low_to)?;
        let second = Some((low.mat().col_range(0..b.cols), a));
        self.product(&w, Product { second, ..base(high.mat().col_range(0..b.cols)) })
    }
}
