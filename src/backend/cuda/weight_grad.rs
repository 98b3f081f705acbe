//! The gradient of weights, task by task: `kernels/weight_grad.cu`.

use super::Cuda;
use super::abi::{
    self, CHUNK, GRAD_PAIRS, GRAD_PARTS, GRAD_THREADS, GRAD_TILE_M, GRAD_TILE_N, GRAD_TILE_SHARED, GradGroup,
    GradPair, Launch, PLAIN_SHARED, PLAIN_THREADS, PLAIN_TILE, WeightGradArguments,
};
use super::kernels;
use super::launch::{view, view_mut};
use crate::backend::work::Work;
use crate::backend::{DType, Dots, GradBlock, Gram, WeightGrad, Write};
use crate::error::Result;
use bytemuck::Zeroable;

/// Columns of a matrix whose products one block may take for a tile of rows.
const NARROW: usize = 2048;

/// How many of `blocks` may go into one launch: the longest run from the start whose columns are disjoint.
fn disjoint(blocks: &[GradBlock]) -> usize {
    let columns = |b: &GradBlock| b.to..b.to + b.columns.len();
    let meets =
        |p: &GradBlock, q: &GradBlock| columns(p).start < columns(q).end && columns(q).start < columns(p).end;
    let clash = (0..blocks.len()).find(|&i| blocks[..i].iter().any(|b| meets(b, &blocks[i])));
    clash.unwrap_or(blocks.len()).min(GRAD_PARTS)
}

/// Blocks of the same rows, which read dY together, one after the other.
fn grouped(blocks: &[GradBlock]) -> Vec<Vec<&GradBlock>> {
    let mut groups: Vec<Vec<&GradBlock>> = Vec::new();
    for block in blocks {
        match groups.iter_mut().find(|g| g[0].rows == block.rows) {
            Some(group) => group.push(block),
            None => groups.push(vec![block]),
        }
    }
    groups
}

/// Columns of a group's tiles in units of eight, of which no unit is of two blocks.
fn units(group: &[&GradBlock]) -> usize {
    group.iter().map(|b| b.columns.len().div_ceil(CHUNK)).sum()
}

/// The blocks that add something.
fn real(blocks: &[GradBlock]) -> Vec<GradBlock> {
    blocks.iter().filter(|b| !b.rows.is_empty() && !b.columns.is_empty()).cloned().collect()
}

impl Cuda {
    /// One launch, unless there are many tasks or `out` is wide.
    pub(super) fn weight_grad(&self, op: WeightGrad) -> Result<()> {
        let blocks = real(op.blocks);
        let alone = disjoint(&blocks) == blocks.len() && !blocks.is_empty() && op.dy.cols > 0;
        let fits = op.gram.as_ref().is_none_or(|g| g.pairs.len() <= GRAD_PAIRS) && op.out.cols <= NARROW;
        match alone && fits || op.write == Write::Add && op.gram.is_none() {
            true => self.weight_grad_launches(op, &blocks),
            false => self.weight_grad_in_steps(op, &blocks),
        }
    }

    /// Zeros first, then all blocks, then the products.
    fn weight_grad_in_steps(&self, op: WeightGrad, blocks: &[GradBlock]) -> Result<()> {
        let WeightGrad { dy, x, mut out, write, gram, .. } = op;
        if write == Write::Replace {
            self.fill(&out, 0.0)?;
        }
        let (add, to) = (Write::Add, out.reborrow());
        self.weight_grad_launches(WeightGrad { dy, x, blocks, out: to, write: add, gram: None }, blocks)?;
        let Some(Gram { pairs, products }) = gram else { return Ok(()) };
        let block = |first: usize, width: usize| out.as_mat().col_range(first..first + width);
        let pairs = pairs.iter().map(|p| (block(p.a, p.width), block(p.b, p.width))).collect();
        self.dots(Dots { pairs, out: products })
    }

    /// Blocks that write the same columns follow each other.
    fn weight_grad_launches(&self, op: WeightGrad, blocks: &[GradBlock]) -> Result<()> {
        let mut rest = blocks;
        while !rest.is_empty() && op.dy.cols > 0 {
            let (now, later) = rest.split_at(disjoint(rest));
            self.weight_grad_launch(&op, now)?;
            rest = later;
        }
        Ok(())
    }

    fn weight_grad_launch(&self, op: &WeightGrad, blocks: &[GradBlock]) -> Result<()> {
        let WeightGrad { dy, x, out, write, .. } = op;
        let (pairs, products) = match &op.gram {
            Some(gram) if !gram.pairs.is_empty() => (gram.pairs, view_mut(&gram.products).data),
            _ => (&[][..], 0),
        };
        let fresh = *write == Write::Replace;
        let aligned = blocks.iter().all(|b| b.columns.start.is_multiple_of(8));
        let both = dy.dtype == DType::BF16 && x.dtype == DType::BF16;
        let fast = both && aligned && view(*dy).aligned(dy.dtype) && view(*x).aligned(x.dtype);
        let (tile_m, threads, shared) = match fast {
            true => (GRAD_TILE_M, GRAD_THREADS, GRAD_TILE_SHARED),
            false => (PLAIN_TILE, PLAIN_THREADS, PLAIN_SHARED),
        };
        let groups = if fast { grouped(blocks) } else { blocks.iter().map(|b| vec![b]).collect() };
        let tiles_m = dy.cols.div_ceil(tile_m);
        let tiles_n: usize = groups.iter().map(|g| (units(g) * CHUNK).div_ceil(GRAD_TILE_N)).sum();
        let longest = blocks.iter().map(|b| b.rows.len()).max().unwrap_or(0);
        // Three thread blocks for two multiprocessors, but runs of at least 512 tokens (measured on an H100, docs/kernels.md).
        let splits = (3 * self.info.sms).div_ceil(2 * tiles_m * tiles_n).clamp(1, longest.div_ceil(512));
        let values = tiles_m * tiles_n * splits * tile_m * GRAD_TILE_N;
        let partial = if splits > 1 { Some(self.arena.take(4 * values)?) } else { None };
        let sums = self.arena.take((tiles_m * pairs.len() * 8).max(8))?;
        let covered: usize = blocks.iter().map(|b| b.columns.len()).sum();
        let meets = splits > 1 || fresh || products != 0;
        let mut arguments = WeightGradArguments {
            y: view(*dy),
            x: view(*x),
            out: view_mut(out),
            partial: partial.as_ref().map_or(0, |memory| memory.address),
            tickets: if meets { self.tickets(tiles_m * tiles_n + tiles_m + 1)? } else { 0 },
            sums: sums.address,
            products,
            splits: splits as i32,
            groups: groups.len() as i32,
            blocks: blocks.len() as i32,
            pairs: pairs.len() as i32,
            fresh: i32::from(fresh),
            uncovered: i32::from(covered < out.cols),
            ..WeightGradArguments::zeroed()
        };
        let mut first = 0;
        for (to, group) in arguments.group.iter_mut().zip(&groups) {
            let (rows, blocks) = (&group[0].rows, group.len() as i32);
            *to = GradGroup { row0: rows.start as i32, rows: rows.len() as i32, first, blocks };
            first += blocks;
        }
        for (to, b) in arguments.block.iter_mut().zip(groups.iter().flatten()) {
            *to = abi::GradBlock {
                col0: b.columns.start as i32,
                cols: b.columns.len() as i32,
                to: b.to as i32,
                scale: b.scale,
            };
        }
        for (to, p) in arguments.pair.iter_mut().zip(pairs) {
            *to = GradPair { a: p.a as i32, b: p.b as i32, width: p.width as i32 };
        }
        let shape = Launch::line(tiles_m, threads).grid_yz(tiles_n, splits).shared(shared);
        let kernel = match fast {
            true => kernels::WEIGHT_GRAD_TC,
            false => kernels::weight_grad_plain(dy.dtype, x.dtype),
        };
        // Runs are written and read once; products read what was written.
        let written = (4 * dy.cols * covered) as u64;
        let again = (2 * splits as u64 * u64::from(splits > 1) + u64::from(products != 0)) * written;
        self.launch(kernel, shape, &arguments, op.work_of(blocks) + Work::new(again, 0))
    }
}
