//! Adam on many matrices: `kernels/adam.cu`.

use super::Cuda;
use super::abi::{self, ADAM_BLOCKS, ADAM_MATRICES, AdamArguments, AdamMatrix, Launch, Matrix, QUAD};
use super::kernels;
use super::launch::{view, view_mut};
use crate::backend::work::Work;
use crate::backend::{Adam, AdamBlock, AdamUpdate, DType};
use crate::error::Result;
use bytemuck::Zeroable;

/// One matrix and some of its blocks, as a launch sees it.
struct Part {
    matrix: AdamMatrix,
    blocks: Vec<abi::AdamBlock>,
    /// Which update it is of.
    update: usize,
    copy: DType,
    work: Work,
}

impl Part {
    /// An update in parts of at most as many blocks as a launch takes; all but the first leave other columns alone.
    fn of(update: usize, u: &AdamUpdate) -> Vec<Self> {
        let copy = u.copy.as_ref().map_or(DType::F32, |c| c.0.dtype);
        let matrix = AdamMatrix {
            x: view_mut(&u.x),
            g: view(u.g),
            m: view_mut(&u.m),
            v: view_mut(&u.v),
            copy: u.copy.as_ref().map_or(Matrix::NONE, |c| view_mut(&c.0)),
            change: u.change.as_ref().map_or(Matrix::NONE, view_mut),
            copy_scale: u.copy.as_ref().map_or(1.0, |c| c.1),
            held: u.held.map_or(0, |h| view(h).data),
            held_ld: u.held.map_or(0, |h| h.ld as i64),
            ..AdamMatrix::zeroed()
        };
        // Without blocks a launch still copies, and tells that nothing changed.
        let starts = (0..u.blocks.len().max(1)).step_by(ADAM_BLOCKS);
        let part = |start: usize| {
            let some = &u.blocks[start..u.blocks.len().min(start + ADAM_BLOCKS)];
            Self {
                matrix: AdamMatrix { only_blocks: i32::from(start > 0), ..matrix },
                blocks: some.iter().map(abi::AdamBlock::from).collect(),
                update,
                copy,
                work: u.work(some, start == 0),
            }
        };
        starts.map(part).collect()
    }

    fn quads(&self) -> usize {
        self.matrix.x.rows as usize * (self.matrix.x.cols as usize).div_ceil(QUAD)
    }
}

impl Cuda {
    pub(super) fn adam(&self, op: Adam) -> Result<()> {
        let Adam { updates, factors, squares } = op;
        if let Some(squares) = &squares
            && updates.iter().any(|u| u.x.rows == 0 || u.x.cols == 0)
        {
            self.fill(squares, 0.0)?;
        }
        let squares = squares.map_or(0, |s| view_mut(&s).data);
        let factors = factors.map_or(0, |f| view(f).data);
        let real = updates.iter().enumerate().filter(|(_, u)| u.x.rows > 0 && u.x.cols > 0);
        let parts: Vec<Part> = real.flat_map(|(i, u)| Part::of(i, u)).collect();
        let mut rest = &parts[..];
        while !rest.is_empty() {
            let (now, later) = rest.split_at(self.together_with_first(rest));
            self.adam_launch(now, factors, squares)?;
            rest = later;
        }
        Ok(())
    }

    /// How many parts fit one launch: neighbours among the updates, one type of copy, distinct lists of blocks.
    fn together_with_first(&self, parts: &[Part]) -> usize {
        let (mut blocks, mut count) = (0, 0);
        for (i, p) in parts.iter().enumerate().take(ADAM_MATRICES) {
            let known = parts[..i].iter().any(|q| q.blocks == p.blocks);
            blocks += if known { 0 } else { p.blocks.len() };
            let follows = p.update == parts[0].update + i;
            if blocks > ADAM_BLOCKS || p.copy != parts[0].copy || !follows {
                break;
            }
            count = i + 1;
        }
        count.max(1)
    }

    fn adam_launch(&self, parts: &[Part], factors: u64, squares: u64) -> Result<()> {
        let widest = parts.iter().map(|p| p.quads().div_ceil(256)).max().unwrap_or(1);
        let sums = self.arena.take(if squares != 0 { 8 * widest * parts.len() } else { 8 })?;
        let first = parts[0].update;
        let mut arguments = AdamArguments {
            factors,
            squares: if squares != 0 { squares + 4 * first as u64 } else { 0 },
            sums: sums.address,
            tickets: self.tickets(ADAM_MATRICES)?,
            ..AdamArguments::zeroed()
        };
        let mut used = 0;
        for (i, p) in parts.iter().enumerate() {
            let same = (0..i).find(|j| parts[*j].blocks == p.blocks);
            let from = match same {
                Some(j) => arguments.matrix[j].first_block as usize,
                None => {
                    arguments.block[used..used + p.blocks.len()].copy_from_slice(&p.blocks);
                    used += p.blocks.len();
                    used - p.blocks.len()
                }
            };
            let (first_block, end_block) = (from as i32, (from + p.blocks.len()) as i32);
            arguments.matrix[i] = AdamMatrix { first_block, end_block, ..p.matrix };
        }
        let work = parts.iter().fold(Work::default(), |all, p| all + p.work);
        let shape = Launch::line(widest, 256).grid_yz(parts.len(), 1).shared(512);
        self.launch(kernels::adam(parts[0].copy), shape, &arguments, work)
    }
}

impl From<&AdamBlock> for abi::AdamBlock {
    fn from(b: &AdamBlock) -> Self {
        Self {
            first: b.columns.start as i32,
            end: b.columns.end as i32,
            from: b.from as i32,
            terms: b.terms as i32,
            stride: b.stride as i32,
            gate: b.gate.map_or(-1, |g| g as i32),
            beta1: b.beta1,
            beta2: b.beta2,
            step: b.step,
            sqrt_correction2: b.sqrt_correction2,
            eps: b.eps,
            keep_before: b.keep_before,
            keep_after: b.keep_after,
            grad_scale: b.grad_scale,
            held: b.held,
        }
    }
}
