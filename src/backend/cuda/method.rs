//! The method's own operations: `kernels/{dots,adam}.cu`, and products.

use super::Cuda;
use super::driver::Shape;
use super::launch::{View, tag, view, view_mut};
use super::matmul::Product;
use crate::backend::trace::{Work, bytes};
use crate::backend::{AdamBlock, DType, Mat, MatMut, Op, Rounding};
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

const BLOCKS: usize = 32;

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Block {
    first: i32,
    end: i32,
    beta1: f32,
    beta2: f32,
    step: f32,
    sqrt_correction2: f32,
    eps: f32,
    keep_before: f32,
    keep_after: f32,
    grad_scale: f32,
}

/// `struct AdamArguments`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct AdamArguments {
    x: View,
    g: View,
    m: View,
    v: View,
    copy: View,
    change: View,
    blocks: i32,
    only_blocks: i32,
    block: [Block; BLOCKS],
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

    /// See [`Backend::adam`].
    pub(super) fn adam(
        &self,
        (x, g, m, v): (MatMut, Mat, MatMut, MatMut),
        blocks: &[AdamBlock],
        copy: Option<MatMut>,
        change: Option<MatMut>,
    ) -> Result<()> {
        assert!(x.shape() == g.shape() && x.shape() == m.shape() && x.shape() == v.shape(), "adam");
        if x.rows == 0 || x.cols == 0 {
            return Ok(());
        }
        let copy_dtype = copy.as_ref().map_or(DType::F32, |c| c.dtype);
        // The first launch also does the columns outside all blocks; without blocks that is all there is.
        for start in (0..blocks.len().max(1)).step_by(BLOCKS) {
            let some = &blocks[start..blocks.len().min(start + BLOCKS)];
            let mut block = [Block::zeroed(); BLOCKS];
            block.iter_mut().zip(some).for_each(|(to, b)| *to = Block::from(b));
            let arguments = AdamArguments {
                x: view_mut(&x),
                g: view(g),
                m: view_mut(&m),
                v: view_mut(&v),
                copy: copy.as_ref().map_or(View::NONE, view_mut),
                change: change.as_ref().map_or(View::NONE, view_mut),
                blocks: some.len() as i32,
                only_blocks: i32::from(start > 0),
                block,
            };
            // x, m, v read and written, g read; the columns of this launch's blocks count.
            let elements = x.rows * some.iter().map(|b| b.columns.len()).sum::<usize>();
            let more = copy.as_ref().map_or(0, |c| c.dtype.bytes()) + if change.is_some() { 4 } else { 0 };
            let work = Work::new((elements * (28 + more)) as u64, 12 * elements as u64);
            let name = format!("adam_{}", tag(copy_dtype));
            self.launch(&name, Shape::cover(x.rows * x.cols), &arguments, work)?;
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

impl From<&AdamBlock> for Block {
    fn from(b: &AdamBlock) -> Self {
        Self {
            first: b.columns.start as i32,
            end: b.columns.end as i32,
            beta1: b.beta1,
            beta2: b.beta2,
            step: b.step,
            sqrt_correction2: b.sqrt_correction2,
            eps: b.eps,
            keep_before: b.keep_before,
            keep_after: b.keep_after,
            grad_scale: b.grad_scale,
        }
    }
}
