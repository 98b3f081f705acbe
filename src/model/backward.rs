//! The backward pass: the forward pass read upwards. Gradients leave through a [`Tap`] while they are live.

use super::Model;
use super::forward::{
    AttentionActivations, FeedForwardActivations, PreNorm, SavedStack, StackContext, SublayerActivations,
    Wanted,
};
use super::layout::{AttentionBlock, FeedForward, Stack, Sublayer};
use super::rows::Rows;
use crate::backend::{
    ActivateBackward, AttentionBackward, ColumnSums, DType, LinearInputGrad, Mat, PerSegment,
    RmsnormBackward, RowGroups, ScatterAdd, Tensor, trace,
};
use crate::error::Result;
use crate::layers::{LinearGradient, Tap, Want};
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
        context: &StackContext,
        saved: SavedStack,
        wanted: Wanted,
        g: Tensor,
        (need_input, mut memory_gradient): (bool, Option<&mut Tensor>),
    ) -> Result<Option<Tensor>> {
        let be = &self.model.backend;
        let own = &context.rows.segments;
        let mut segments: &[Range<usize>] = wanted.map_or(own, |(_, s)| s);
        let mut stream = be.alloc(saved.end.x.rows(), saved.end.x.cols(), saved.end.x.dtype())?;
        self.norm(stack.final_norm, &saved.end, &g, &mut stream, false, segments)?;
        drop((g, saved.end));
        for (index, (block, kept)) in stack.blocks.iter().zip(saved.blocks).enumerate().rev() {
            let _span = trace::numbered(block.name(), index);
            let s = kept.s;
            let activations = match kept.activations {
                Some(activations) => activations,
                None => {
                    let n = block.before.map(|norm| self.model.norm(&s, norm)).transpose()?;
                    self.model.block(block, context, &s, n.map(|(n, _)| n), &mut None)?.1
                }
            };
            // The gradient of the sublayer's output: the stream's own, through the norm behind, or scaled.
            let mut through = match (block.after, activations.pre_norm) {
                (Some(norm), Some(pre_norm)) => {
                    let mut dx = be.alloc(stream.rows(), stream.cols(), stream.dtype())?;
                    self.norm(norm, &pre_norm, &stream, &mut dx, false, segments)?;
                    Some(dx)
                }
                _ => None,
            };
            let scale = self.model.architecture.residual_scale;
            if scale != 1.0 {
                let mut scaled = match through {
                    Some(through) => through,
                    None => be.duplicate(stream.mat(), stream.dtype())?,
                };
                be.scale(scaled.mat_mut(), scale)?;
                through = Some(scaled);
            }
            let (n, g) = (activations.n, through.as_ref().unwrap_or(&stream));
            let (x, need) = (n.as_ref().unwrap_or(&s), need_input || index > 0);
            let dx = match (&block.sublayer, activations.sublayer) {
                (Sublayer::FeedForward(f), SublayerActivations::FeedForward(kept)) => {
                    self.feed_forward(f, x, kept, g, segments, need)?
                }
                (Sublayer::Attention(a), SublayerActivations::Attention(kept)) => {
                    self.attention(a, context, x, kept, g, (need, memory_gradient.as_deref_mut()))?
                }
                _ => unreachable!("activations belong to their block"),
            };
            drop((n, through));
            let Some(dx) = dx else { return Ok(None) };
            // The stream's gradient is written in place: what arrived, plus what went through the block.
            match (block.before, kept.inv_rms) {
                (Some(norm), Some(inv_rms)) => {
                    self.norm(norm, &PreNorm { x: s, inv_rms }, &dx, &mut stream, true, segments)?
                }
                _ => be.axpy(1.0, dx.mat(), stream.mat_mut())?,
            }
            if let (true, Some((rows, _))) = (index + 1 == stack.blocks.len(), wanted) {
                stream = self.spread(&stream, &rows.host, context.rows.count())?;
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
        be.run(ScatterAdd {
            from: chosen.mat(),
            groups: &groups,
            scale: 1.0,
            first_row: 0,
            to: all.mat_mut(),
        })?;
        Ok(all)
    }

    /// Gradient through the norm of rows, or of heads where the weight is as wide as a head.
    fn norm(
        &mut self,
        norm: usize,
        PreNorm { x, inv_rms }: &PreNorm,
        dy: &Tensor,
        dx: &mut Tensor,
        accumulate: bool,
        segments: &[Range<usize>],
    ) -> Result<()> {
        let (model, w) = (self.model, self.model.parameter(norm));
        let (width, count, per_row) = (w.cols, x.len() / w.cols, x.cols() / w.cols);
        let sum = self.sums.wanted(model, self.tap, norm, segments.len())?;
        let parts: Vec<_> = segments_or_whole(segments, sum.as_ref().is_some_and(|s| s.2))
            .into_iter()
            .map(|s| s.start * per_row..s.end * per_row)
            .collect();
        model.backend.run(RmsnormBackward {
            s: x.mat().reshape(count, width),
            w,
            inv_rms: inv_rms.mat(),
            dy: dy.mat().reshape(count, width),
            dx: dx.mat_mut().reshape(count, width),
            accumulate,
            dw: sum.map(|(sum, _, _)| PerSegment { segments: &parts, out: sum.mat_mut() }),
        })
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
                let (z, dx) = (z.as_mut().map(Tensor::mat_mut), dx.mat_mut());
                be.run(LinearInputGrad { layer, dy, z, dx, accumulate })?;
            }
            (None, Some(branch), Some(z)) => be.product(z.mat_mut(), 0.0, 1.0, dy.n(), branch.b.mat().n())?,
            (None, ..) => {}
        }
        if let Some(bias) = model.bias_of[site]
            && let Some((sum, _, per_task)) = self.sums.wanted(model, self.tap, bias, segments.len())?
        {
            let segments = &segments_or_whole(segments, per_task);
            be.run(ColumnSums { dy, sums: PerSegment { segments, out: sum.mat_mut() } })?;
        }
        let gradient =
            LinearGradient { x, dy, h: h.map(Tensor::mat), z: z.as_ref().map(Tensor::mat), segments };
        self.tap.linear(site, &gradient)
    }

    fn feed_forward(
        &mut self,
        block: &FeedForward,
        x: &Tensor,
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
        let (gate, up) = kept.gate_and_up();
        let mut dgate = like(&kept.act)?;
        let mut dup = if up.is_some() { Some(like(&kept.act)?) } else { None };
        be.run(ActivateBackward {
            kind: self.model.architecture.activation,
            gate,
            up,
            dy: dact.mat(),
            dgate: dgate.mat_mut(),
            dup: dup.as_mut().map(Tensor::mat_mut),
        })?;
        drop(dact);
        if let (None, Some(second)) = (block.inputs.get(1), &dup) {
            dgate = self.side_by_side(&[&dgate, second])?;
            dup = None;
        }
        let mut dx = if need_input { Some(like(x)?) } else { None };
        if let (Some(site), Some(dup)) = (block.inputs.get(1), &dup) {
            self.linear(*site, x.mat(), dup.mat(), hu.as_ref(), dx.as_mut().map(|d| (d, false)), segments)?;
        }
        let added = dup.is_some();
        self.linear(
            block.inputs[0],
            x.mat(),
            dgate.mat(),
            hg.as_ref(),
            dx.as_mut().map(|d| (d, added)),
            segments,
        )?;
        Ok(dx)
    }

    fn attention(
        &mut self,
        block: &AttentionBlock,
        context: &StackContext,
        x: &Tensor,
        kept: AttentionActivations,
        g: &Tensor,
        (need_input, memory_gradient): (bool, Option<&mut Tensor>),
    ) -> Result<Option<Tensor>> {
        let (model, be) = (self.model, &self.model.backend);
        let ho = &kept.h[3];
        let like = |t: &Tensor| be.alloc(t.rows(), t.cols(), t.dtype());
        let own = &context.rows.segments;
        let mut dout = like(&kept.out)?;
        self.linear(block.o, kept.out.mat(), g.mat(), ho.as_ref(), Some((&mut dout, false)), own)?;

        let (mut dq, mut dk, mut dv) = (like(&kept.q)?, like(&kept.k)?, like(&kept.v)?);
        {
            let bias = match block.bias {
                Some(table) => self.sums.wanted(model, self.tap, table, own.len())?,
                None => None,
            };
            let sequences = context.rows.sequence_segments();
            let parts = segments_or_whole(&sequences, bias.as_ref().is_some_and(|b| b.2));
            be.run(AttentionBackward {
                spec: model.attention_spec(block, context),
                q: kept.q.mat(),
                k: kept.k.mat(),
                v: kept.v.mat(),
                out: kept.out.mat(),
                lse: kept.lse.mat(),
                dout: dout.mat(),
                dq: dq.mat_mut(),
                dk: dk.mat_mut(),
                dv: dv.mat_mut(),
                dbias: bias.map(|(sum, _, _)| PerSegment { segments: &parts, out: sum.mat_mut() }),
            })?;
        }
        drop(dout);
        let (source, source_rows): (Mat, &Rows) = match (block.cross, context.memory) {
            (true, Some((memory, rows))) => (memory.mat(), rows),
            _ => (x.mat(), context.rows),
        };
        let a = &model.architecture;
        model.rotate(block, [(&mut dq, context.rows, a.heads), (&mut dk, source_rows, a.kv_heads)], true)?;
        let source_segments = &source_rows.segments;
        if let (Some(norms), Some(pre_norms)) = (block.qk_norm, &kept.pre_norm) {
            let gradients = [(&mut dq, own), (&mut dk, source_segments)];
            for ((norm, pre_norm), (dy, segments)) in norms.into_iter().zip(pre_norms).zip(gradients) {
                let mut dx = like(&pre_norm.x)?;
                self.norm(norm, pre_norm, dy, &mut dx, false, segments)?;
                *dy = dx;
            }
        }
        let mut dx = if need_input { Some(like(x)?) } else { None };
        let [hq, hk, hv, _] = kept.h.each_ref().map(Option::as_ref);
        let [q_site, k_site, v_site] = match block.qkv[..] {
            [q, k, v] => [q, k, v],
            _ => {
                let all = self.side_by_side(&[&dq, &dk, &dv])?;
                self.linear(block.qkv[0], x.mat(), all.mat(), hq, dx.as_mut().map(|d| (d, false)), own)?;
                return Ok(dx);
            }
        };
        self.linear(q_site, x.mat(), dq.mat(), hq, dx.as_mut().map(|d| (d, false)), own)?;
        let mut to = if block.cross { memory_gradient } else { dx.as_mut() };
        let to_k = to.as_deref_mut().map(|d| (d, true));
        self.linear(k_site, source, dk.mat(), hk, to_k, source_segments)?;
        self.linear(v_site, source, dv.mat(), hv, to.map(|d| (d, true)), source_segments)?;
        Ok(dx)
    }

    /// The gradients of what one matrix makes, as that of its output.
    fn side_by_side(&self, parts: &[&Tensor]) -> Result<Tensor> {
        let be = &self.model.backend;
        let width = parts.iter().map(|part| part.cols()).sum();
        let (mut all, mut at) = (be.alloc(parts[0].rows(), width, parts[0].dtype())?, 0);
        for part in parts {
            be.copy(part.mat(), all.mat_mut().col_range(at..at + part.cols()))?;
            at += part.cols();
        }
        Ok(all)
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
            let (from, groups, scale) = (gradient.mat(), &groups, model.architecture.embedding_scale);
            model.backend.run(ScatterAdd { from, groups, scale, first_row, to })?;
        }
        Ok(())
    }
}
