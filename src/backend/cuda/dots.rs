//! Inner products: `kernels/dots.cu`.

use super::Cuda;
use super::abi::{DOTS_PAIRS, DotsArguments, Launch, Matrix};
use super::kernels;
use super::launch::{view, view_mut};
use crate::backend::Dots;
use crate::backend::work::{Work, bytes};
use crate::error::Result;

impl Cuda {
    pub(super) fn dots(&self, op: Dots) -> Result<()> {
        let Dots { pairs, mut out } = op;
        for (i, some) in pairs.chunks(DOTS_PAIRS).enumerate() {
            let (mut x, mut y, mut largest) = ([Matrix::NONE; DOTS_PAIRS], [Matrix::NONE; DOTS_PAIRS], 0);
            for (j, (a, b)) in some.iter().enumerate() {
                (x[j], y[j]) = (view(*a), view(*b));
                largest = largest.max(a.rows * a.cols);
            }
            // 8 elements a thread, at least; no more blocks than keep the device busy.
            let blocks = largest.div_ceil(2048).clamp(1, 2 * self.info.sms);
            let partial = self.arena.take(some.len() * blocks * 8)?;
            let to = view_mut(&out.reborrow().col_range(i * DOTS_PAIRS..i * DOTS_PAIRS + some.len()));
            let (pairs, blocks_i) = (some.len() as i32, blocks as i32);
            let arguments =
                DotsArguments { partial: partial.address, out: to.data, pairs, blocks: blocks_i, x, y };
            let read: u64 = some.iter().map(|(a, b)| bytes(*a) + bytes(*b)).sum();
            let shape = Launch::line(blocks, 256).grid_yz(some.len(), 1).shared(256);
            self.launch(kernels::DOTS, shape, &arguments, Work::new(read, read / 4))?;
            let work = Work::new((some.len() * (8 * blocks + 4)) as u64, (some.len() * blocks) as u64);
            self.launch(kernels::DOTS_SUM, Launch::line(some.len(), 32), &arguments, work)?;
        }
        Ok(())
    }
}
