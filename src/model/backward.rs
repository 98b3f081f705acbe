//! The backward pass: the forward pass read upwards. Gradients leave through a [`Tap`] while they are live.

use super::forward::{
    AttentionActivations, FeedForwardActivations, Inner, Rows, SavedStack, Surroundings, Wanted,
};
use super::layout::{AttentionBlock, Block, FeedForward, Stack};
use super::{LinearGradient, Model, Tap, Want};
use crate::backend::{DType, Mat, RowGroups, Tensor, trace};
use crate::error::Result;
use std::collections::BTreeMap;
use std::ops::Range;

/// Gradients of dense parameters, summed over their uses in one pass.
#[derive(Default)]
pub(super) struct DenseSums(pub BTreeMap<usize, Tensor>);

impl DenseSums {
    /// The sum of parameter `index`, zero at first, if it is wanted; with the first wanted row and whether
    /// there is a block a task.
    pub fn wanted(
        &mut self,
        model: &Model,
        tap: &dyn Tap,
        index: usize,
        tasks: usize,
    ) -> Result<Option<(&mut Tensor, usize, bool)>> {
        let Want::Rows { first_row, per_task } = tap.wants(index) else { return Ok(None) };
        if let std::collections::btree_map::Entry::Vacant(entry) = self.0.entry(index) {
            let spec = &model.layout.dense[index];
            let blocks = if per_task { tasks } else { 1 };
            entry.insert(model.backend.zeros(blocks * (spec.rows - first_row), spec.cols, DType::F32)?);
        }
        Ok(self.0.get_mut(&index).map(|sum| (sum, first_row, per_task)))
    }
}

fn segments_or_whole(segments: &[Range<usize>], per_task: bool) -> Vec<Range<usize>> {
    let end = segments.last().map_or(0, |s| s.end);
    if per_task { segments.to_vec() } else { vec![0..end] }
}

/// One backward pass through the stacks.
pub(super) struct Backward<'a> {
    pub model: &'a Model,
    pub tap: &'a mut dyn Tap,
    pub sums: DenseSums,
}

impl Backward<'_> {
    /// Takes `g`, the gradient of the final norm's output on the wanted rows, down to the embedded input;
    /// returns the gradient there (unless `need_input` is false), and adds what cross attention sends to
    /// the encoder to `memory_gradient`.
    pub fn stack(
        &mut self,
        stack: &Stack,
        around: &Surroundings,
        saved: SavedStack,
        wanted: Wanted,
        g: Tensor,
        need_input: bool,
        mut memory_gradient: Option<&mut Tensor>,
    ) -> Result<Option<Tensor>> {
        let be = &self.model.backend;
        let own = &around.rows.segments;
        let mut segments: &[Range<usize>] = wanted.map_or(own, |(_, s)| s);
        let mut stream = be.alloc(saved.s.rows(), saved.s.cols(), saved.s.dtype())?;
        self.norm(stack.final_norm, &saved.s, &saved.inv_rms, g.mat(), &mut stream, false, segments)?;
        drop((g, saved.s, saved.inv_rms));
        for (index, (block, kept)) in stack.blocks.iter().zip(saved.blocks).enumerate().rev() {
            let _span = trace::numbered(block.name(), index);
            let inner = match kept.inner {
                Some(inner) => inner,
                None => {
                    let n = self.model.normalise_again(&kept.s, block.norm())?;
                    self.model.block(block, around, n, &mut None)?.1
                }
            };
            let need = need_input || index > 0;
            let dn = match (block, inner) {
                (Block::FeedForward(f), Inner::FeedForward(kept)) => {
                    self.feed_forward(f, kept, &stream, segments, need)?
                }
                (Block::Attention(a), Inner::Attention(kept)) => {
                    self.attention(a, around, kept, &stream, need, memory_gradient.as_deref_mut())?
                }
                _ => unreachable!("activations belong to their block"),
            };
            // The stream's gradient is written in place: what arrived, plus what went through the block.
            match &dn {
                Some(dn) => {
                    self.norm(block.norm(), &kept.s, &kept.inv_rms, dn.mat(), &mut stream, true, segments)?
                }
                None => return Ok(None),
            }
            if let (true, Some((rows, _))) = (index + 1 == stack.blocks.len(), wanted) {
                stream = self.spread(&stream, &rows.host, around.rows.count())?;
                segments = own;
            }
        }
        Ok(need_input.then_some(stream))
    }

    /// Puts the gradient of chosen rows back among all rows.
    fn spread(&self, chosen: &Tensor, rows: &[u32], count: usize) -> Result<Tensor> {
        let be = &self.model.backend;
        let mut all = be.zeros(count, chosen.cols(), chosen.dtype())?;
        let pairs = rows.iter().enumerate().map(|(i, row)| (*row, i as u32));
        let groups = RowGroups::new(be.as_ref(), pairs)?;
        be.scatter_add_rows(chosen.mat(), &groups, 1.0, 0, all.mat_mut())?;
        Ok(all)
    }

    fn norm(
        &mut self,
        norm: usize,
        s: &Tensor,
        inv_rms: &Tensor,
        dy: Mat,
        dx: &mut Tensor,
        accumulate: bool,
        segments: &[Range<usize>],
    ) -> Result<()> {
        let model = self.model;
        let w = model.parameter(norm);
        let sum = self.sums.wanted(model, self.tap, norm, segments.len())?;
        let parts = segments_or_whole(segments, sum.as_ref().is_some_and(|s| s.2));
        let dw = sum.map(|(sum, _, _)| (parts.as_slice(), sum.mat_mut()));
        model.backend.rmsnorm_backward(s.mat(), w, inv_rms.mat(), dy, dx.mat_mut(), accumulate, dw)
    }

    /// The gradient of one linear layer: to the tap, and to its input if `dx` is given.
    fn linear(
        &mut self,
        site: usize,
        x: Mat,
        dy: Mat,
        h: Option<&Tensor>,
        dx: Option<(&mut Tensor, bool)>,
        segments: &[Range<usize>],
    ) -> Result<()> {
        let (model, be) = (self.model, &self.model.backend);
        let layer = &model.linears[site];
        let mut z = match &layer.branch {
            Some(branch) => Some(be.alloc(dy.rows, branch.b.cols(), dy.dtype)?),
            None => None,
        };
        match (dx, &layer.branch, &mut z) {
            (Some((dx, accumulate)), _, z) => {
                be.linear_input_gradient(
                    layer,
                    dy,
                    z.as_mut().map(Tensor::mat_mut),
                    dx.mat_mut(),
                    accumulate,
                )?;
            }
            (None, Some(branch), Some(z)) => {
                use crate::backend::Op::N;
                be.matmul(z.mat_mut(), 0.0, 1.0, dy, N, branch.b.mat(), N)?;
            }
            (None, ..) => {}
        }
        if let Some(bias) = model.bias_of[site]
            && let Some((sum, _, per_task)) = self.sums.wanted(model, self.tap, bias, segments.len())?
        {
            be.column_sums(dy, &segments_or_whole(segments, per_task), sum.mat_mut())?;
        }
        let gradient =
            LinearGradient { x, dy, h: h.map(Tensor::mat), z: z.as_ref().map(Tensor::mat), segments };
        self.tap.linear(site, &gradient)
    }

    fn feed_forward(
        &mut self,
        block: &FeedForward,
        kept: FeedForwardActivations,
        g: &Tensor,
        segments: &[Range<usize>],
        need_input: bool,
    ) -> Result<Option<Tensor>> {
        let be = &self.model.backend;
        let [hg, hu, hd] = &kept.h;
        let like = |t: &Tensor| be.alloc(t.rows(), t.cols(), t.dtype());
        let mut dact = like(&kept.act)?;
        self.linear(block.down, kept.act.mat(), g.mat(), hd.as_ref(), Some((&mut dact, false)), segments)?;
        let mut dgate = like(&kept.gate)?;
        let mut dup = kept.up.as_ref().map(like).transpose()?;
        let kind = self.model.architecture.activation;
        let up = kept.up.as_ref().map(Tensor::mat);
        let dup_view = dup.as_mut().map(Tensor::mat_mut);
        be.activation_backward(kind, kept.gate.mat(), up, dact.mat(), dgate.mat_mut(), dup_view)?;
        drop(dact);
        let mut dn = if need_input { Some(like(&kept.n)?) } else { None };
        let n = kept.n.mat();
        if let (Some(site), Some(dup)) = (block.up, &dup) {
            self.linear(site, n, dup.mat(), hu.as_ref(), dn.as_mut().map(|d| (d, false)), segments)?;
        }
        let added = block.up.is_some();
        self.linear(block.gate, n, dgate.mat(), hg.as_ref(), dn.as_mut().map(|d| (d, added)), segments)?;
        Ok(dn)
    }

    fn attention(
        &mut self,
        block: &AttentionBlock,
        around: &Surroundings,
        kept: AttentionActivations,
        g: &Tensor,
        need_input: bool,
        memory_gradient: Option<&mut Tensor>,
    ) -> Result<Option<Tensor>> {
        let (model, be) = (self.model, &self.model.backend);
        let [hq, hk, hv, ho] = &kept.h;
        let [q_site, k_site, v_site, o_site] = block.sites;
        let like = |t: &Tensor| be.alloc(t.rows(), t.cols(), t.dtype());
        let own = &around.rows.segments;
        let mut dout = like(&kept.out)?;
        self.linear(o_site, kept.out.mat(), g.mat(), ho.as_ref(), Some((&mut dout, false)), own)?;

        let (mut dq, mut dk, mut dv) = (like(&kept.q)?, like(&kept.k)?, like(&kept.v)?);
        {
            let bias = match block.bias {
                Some(table) => self.sums.wanted(model, self.tap, table, own.len())?,
                None => None,
            };
            let sequences = around.rows.sequence_segments();
            let parts = segments_or_whole(&sequences, bias.as_ref().is_some_and(|b| b.2));
            let dbias = bias.map(|(sum, _, _)| (parts.as_slice(), sum.mat_mut()));
            let spec = model.attention_spec(block, around);
            let (q, k, v) = (kept.q.mat(), kept.k.mat(), kept.v.mat());
            let (out, lse) = (kept.out.mat(), kept.lse.mat());
            let to = (dq.mat_mut(), dk.mat_mut(), dv.mat_mut());
            be.attention_backward(&spec, q, k, v, out, lse, dout.mat(), to.0, to.1, to.2, dbias)?;
        }
        drop(dout);
        let (source, source_rows): (Mat, &Rows) = match (block.cross, around.memory) {
            (true, Some((memory, rows))) => (memory.mat(), rows),
            _ => (kept.n.mat(), around.rows),
        };
        if let Some(frequencies) = &model.inv_freq {
            let a = &model.architecture;
            be.rope(dq.mat_mut(), &around.rows.positions, frequencies.mat(), a.heads, true)?;
            be.rope(dk.mat_mut(), &source_rows.positions, frequencies.mat(), a.kv_heads, true)?;
        }
        if let (Some([q_norm, k_norm]), Some([raw_q, raw_k])) = (block.qk_norm, &kept.raw) {
            dq = self.head_norm(q_norm, raw_q, &dq, own)?;
            dk = self.head_norm(k_norm, raw_k, &dk, own)?;
        }
        let mut dn = if need_input { Some(like(&kept.n)?) } else { None };
        let source_segments = &source_rows.segments;
        self.linear(q_site, kept.n.mat(), dq.mat(), hq.as_ref(), dn.as_mut().map(|d| (d, false)), own)?;
        let mut to = if block.cross { memory_gradient } else { dn.as_mut() };
        self.linear(
            k_site,
            source,
            dk.mat(),
            hk.as_ref(),
            to.as_deref_mut().map(|d| (d, true)),
            source_segments,
        )?;
        self.linear(v_site, source, dv.mat(), hv.as_ref(), to.map(|d| (d, true)), source_segments)?;
        Ok(dn)
    }

    /// Gradient through the per-head norm of q or k.
    fn head_norm(
        &mut self,
        norm: usize,
        (raw, inv_rms): &(Tensor, Tensor),
        dy: &Tensor,
        segments: &[Range<usize>],
    ) -> Result<Tensor> {
        let (model, be) = (self.model, &self.model.backend);
        let d = model.architecture.head_dim;
        let (rows, per_row) = (raw.len() / d, raw.cols() / d);
        let mut dx = be.alloc(raw.rows(), raw.cols(), raw.dtype())?;
        let sum = self.sums.wanted(model, self.tap, norm, segments.len())?;
        let parts: Vec<_> = segments_or_whole(segments, sum.as_ref().is_some_and(|s| s.2))
            .into_iter()
            .map(|s| s.start * per_row..s.end * per_row)
            .collect();
        let dw = sum.map(|(sum, _, _)| (parts.as_slice(), sum.mat_mut()));
        let view = dx.mat_mut().reshape(rows, d);
        let (s, dy) = (raw.mat().reshape(rows, d), dy.mat().reshape(rows, d));
        be.rmsnorm_backward(s, model.parameter(norm), inv_rms.mat(), dy, view, false, dw)?;
        Ok(dx)
    }

    /// Adds the gradient of embedded rows to the embedding table's.
    pub fn embedding(&mut self, rows: &Rows, gradient: &Tensor) -> Result<()> {
        let model = self.model;
        let table = super::Layout::EMBEDDING;
        let vocabulary = model.layout.dense[table].rows;
        let tasks = rows.segments.len();
        let Some((sum, first_row, per_task)) = self.sums.wanted(model, self.tap, table, tasks)? else {
            return Ok(());
        };
        let trained = vocabulary - first_row;
        for (task, segment) in segments_or_whole(&rows.segments, per_task).into_iter().enumerate() {
            let pairs = segment
                .map(|row| (rows.tokens.host[row], row as u32))
                .filter(|(token, _)| *token as usize >= first_row);
            let groups = RowGroups::new(model.backend.as_ref(), pairs)?;
            let to = sum.mat_mut().row_range(task * trained..(task + 1) * trained);
            model.backend.scatter_add_rows(gradient.mat(), &groups, 1.0, first_row, to)?;
        }
        Ok(())
    }
}
