//! A step's decisions and its updates: `kernels/{decide,adam}.cu`.

use super::Cuda;
use super::driver::Shape;
use super::launch::{View, address, tag, view, view_mut};
use crate::backend::trace::Work;
use crate::backend::{AdamBlock, AdamUpdate, DType, Decision, GateRule, Mat, MatMut};
use crate::error::Result;
use bytemuck::{Pod, Zeroable};

const MATRICES: usize = 16;
const BLOCKS: usize = 24;
const TASKS: usize = 16;

#[derive(Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
struct Block {
    first: i32,
    end: i32,
    from: i32,
    terms: i32,
    stride: i32,
    gate: i32,
    beta1: f32,
    beta2: f32,
    step: f32,
    sqrt_correction2: f32,
    eps: f32,
    keep_before: f32,
    keep_after: f32,
    grad_scale: f32,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Matrix {
    x: View,
    g: View,
    m: View,
    v: View,
    copy: View,
    change: View,
    first_block: i32,
    end_block: i32,
    only_blocks: i32,
    copy_scale: f32,
}

/// `struct AdamArguments`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct AdamArguments {
    factors: u64,
    squares: u64,
    sums: u64,
    tickets: u64,
    matrix: [Matrix; MATRICES],
    block: [Block; BLOCKS],
}

/// `struct DecideArguments`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct DecideArguments {
    products: u64,
    quantity: u64,
    losses: u64,
    factors: u64,
    count: i32,
    tasks: i32,
    rule: i32,
    pcgrad: i32,
    clip_norm: f32,
    fixed: f32,
    share: [f32; 3],
    unused: f32,
    labels: [f32; TASKS],
    counts: [f32; TASKS],
}

/// One matrix and some of its blocks, as a launch sees it.
struct Part {
    matrix: Matrix,
    blocks: Vec<Block>,
    /// Which update it is of.
    update: usize,
    copy: DType,
    work: Work,
}

impl Part {
    /// An update in parts of at most as many blocks as a launch takes; all but the first leave other columns alone.
    fn of(update: usize, u: &AdamUpdate) -> Vec<Self> {
        let sorted = u.blocks.windows(2).all(|w| w[0].columns.end <= w[1].columns.start);
        assert!(u.x.shape() == u.m.shape() && u.x.shape() == u.v.shape() && u.g.rows == u.x.rows, "adam");
        assert!(sorted && u.blocks.last().is_none_or(|b| b.columns.end <= u.x.cols), "adam: blocks in order");
        let copy = u.copy.as_ref().map_or(DType::F32, |c| c.0.dtype);
        let matrix = Matrix {
            x: view_mut(&u.x),
            g: view(u.g),
            m: view_mut(&u.m),
            v: view_mut(&u.v),
            copy: u.copy.as_ref().map_or(View::NONE, |c| view_mut(&c.0)),
            change: u.change.as_ref().map_or(View::NONE, view_mut),
            copy_scale: u.copy.as_ref().map_or(1.0, |c| c.1),
            ..Matrix::zeroed()
        };
        // Without blocks a launch still copies, and tells that nothing changed.
        let starts = (0..u.blocks.len().max(1)).step_by(BLOCKS);
        let part = |start: usize| {
            let some = &u.blocks[start..u.blocks.len().min(start + BLOCKS)];
            // x, m, v read and written, g read.
            let columns = |b: &AdamBlock| b.columns.len() * (6 + b.terms);
            let (columns, all) =
                (some.iter().map(columns).sum::<usize>(), if start == 0 { u.x.cols } else { 0 });
            let more =
                if u.copy.is_some() { copy.bytes() } else { 0 } + if u.change.is_some() { 4 } else { 0 };
            let changed: usize = some.iter().map(|b| b.columns.len()).sum();
            Self {
                matrix: Matrix { only_blocks: i32::from(start > 0), ..matrix },
                blocks: some.iter().map(Block::from).collect(),
                update,
                copy,
                work: Work::new(
                    (u.x.rows * (4 * columns + more * all)) as u64,
                    (12 * u.x.rows * changed) as u64,
                ),
            }
        };
        starts.map(part).collect()
    }

    fn quads(&self) -> usize {
        self.matrix.x.rows as usize * (self.matrix.x.cols as usize).div_ceil(4)
    }
}

impl Cuda {
    /// See [`crate::backend::Backend::adam`].
    pub(super) fn adam(
        &self,
        updates: &[AdamUpdate],
        factors: Option<Mat>,
        mut squares: Option<MatMut>,
    ) -> Result<()> {
        if let Some(squares) = &mut squares {
            assert!(squares.rows == 1 && squares.cols == updates.len(), "adam: squares");
            if updates.iter().any(|u| u.x.rows == 0 || u.x.cols == 0) {
                Cuda::fill(self, squares, 0.0)?;
            }
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
        for (i, p) in parts.iter().enumerate().take(MATRICES) {
            let known = parts[..i].iter().any(|q| q.blocks == p.blocks);
            blocks += if known { 0 } else { p.blocks.len() };
            let follows = p.update == parts[0].update + i;
            if blocks > BLOCKS || p.copy != parts[0].copy || !follows {
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
            tickets: self.tickets(MATRICES)?,
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
            arguments.matrix[i] = Matrix { first_block, end_block, ..p.matrix };
        }
        let work = parts.iter().fold(Work::default(), |all, p| all + p.work);
        let shape = Shape::line(widest, 256).grid_yz(parts.len(), 1).shared(512);
        self.launch(&format!("adam_{}", tag(parts[0].copy)), shape, &arguments, work)
    }

    /// See [`crate::backend::Backend::decide`].
    pub(super) fn decide(&self, d: &Decision, products: Mat, losses: Mat, factors: MatMut) -> Result<bool> {
        let (count, tasks) = (d.quantities.len(), d.labels.len());
        if tasks > TASKS {
            return Ok(false);
        }
        assert!(products.cols == count && losses.cols == tasks && factors.cols == 1 + 2 * tasks, "decide");
        let list = |values: &[f32]| {
            let mut all = [0.0; TASKS];
            all[..tasks].copy_from_slice(values);
            all
        };
        let (rule, fixed, share) = match d.gates {
            GateRule::Fixed(value) => (0, value, [0.0; 3]),
            GateRule::Shares(share) => (1, 0.0, share),
            GateRule::InverseNorm => (2, 0.0, [0.0; 3]),
        };
        let arguments = DecideArguments {
            products: view(products).data,
            quantity: address(d.quantities),
            losses: view(losses).data,
            factors: view_mut(&factors).data,
            count: count as i32,
            tasks: tasks as i32,
            rule,
            pcgrad: i32::from(d.pcgrad),
            clip_norm: d.clip_norm,
            fixed,
            share,
            unused: 0.0,
            labels: list(d.labels),
            counts: list(d.counts),
        };
        let shape = Shape::line(1, 256).shared(8 * (3 * tasks * tasks + tasks + 1));
        self.launch("decide", shape, &arguments, Work::new(8 * count as u64, count as u64))?;
        Ok(true)
    }
}

impl From<&AdamBlock> for Block {
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
        }
    }
}
