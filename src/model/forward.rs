//! The forward pass: a stack of residual blocks over packed rows.
//!
//! Each block reads the sum of the residual stream and the block before it (added inside the norm), so
//! the stream is written once a block. The last feed-forward block, the final norm and the head only
//! see the rows that somebody wants: labelled rows in training, the rows asked for in inference.

use super::Model;
use super::layout::{AttentionBlock, Block, FeedForward, Stack, Sublayer};
use super::rows::Rows;
use crate::backend::{
    Activate, Attention, AttentionSpec, DType, Gather, Indices, Linear, Mask, Mat, RelativeBias, Rmsnorm,
    Tensor, trace,
};
use crate::error::Result;
use std::ops::Range;

/// Sees every linear layer's input and output during a forward pass (second moments for the knowledge basis).
pub trait Observer {
    /// Site number, input `[T x N]`, output `[T x M]`.
    fn linear(&mut self, site: usize, x: Mat, y: Mat) -> Result<()>;
}

/// What a stack's blocks read besides the residual stream.
pub(super) struct StackContext<'a> {
    /// The stack's own rows.
    pub rows: &'a Rows,
    /// The encoder's output and rows, for cross attention.
    pub memory: Option<(&'a Tensor, &'a Rows)>,
    /// A trie's visibility instead of causal attention.
    pub visible: Option<(&'a Indices, &'a Indices)>,
    /// The same within the window, for blocks that have one.
    pub visible_near: Option<(&'a Indices, &'a Indices)>,
}

/// A normalised tensor, and the norms' inverse RMS.
type Normed = (Tensor, Tensor);

/// The rows wanted of a stack and the task segments among them; `None`: all rows.
pub(super) type Wanted<'a> = Option<(&'a Indices, &'a [Range<usize>])>;

/// What the backward pass of a norm reads.
pub(super) struct PreNorm {
    /// `[T x D]`, or q or k: what was normalised.
    pub x: Tensor,
    /// *f32*, `[T x 1]` or `[T heads x 1]`.
    pub inv_rms: Tensor,
}

/// A block's activations, kept for the backward pass.
pub(super) struct Activations {
    /// `[T x D]`: the normalised input; without a norm in front, the input is the stream itself.
    pub n: Option<Tensor>,
    pub sublayer: SublayerActivations,
    /// The sublayer's output, where a norm is behind it.
    pub pre_norm: Option<PreNorm>,
}

#[allow(clippy::large_enum_variant, reason = "one a block, moved once")]
pub(super) enum SublayerActivations {
    Attention(AttentionActivations),
    FeedForward(FeedForwardActivations),
}

/// Keys and values have the rows `T_k` of the sequence they are read from: the stack's own, or the encoder's.
pub(super) struct AttentionActivations {
    /// `x Aᵀ` of q (or q, k and v in one), k, v, o: `[T x R]`, `[T_k x R]` twice, `[T x R]`.
    pub h: [Option<Tensor>; 4],
    /// q and k before their norms.
    pub pre_norm: Option<[PreNorm; 2]>,
    /// `[T x H d]`, after norm and rotation.
    pub q: Tensor,
    /// `[T_k x kv_heads d]`, after norm and rotation.
    pub k: Tensor,
    /// `[T_k x kv_heads d]`.
    pub v: Tensor,
    /// `[T x H d]`: what o reads.
    pub out: Tensor,
    /// *f32* `[T x H]`: log-sum-exp of the scores.
    pub lse: Tensor,
}

impl FeedForwardActivations {
    /// What is gated, and by what.
    pub fn gate_and_up(&self) -> (Mat<'_>, Option<Mat<'_>>) {
        halves(&self.gate, self.up.as_ref(), self.act.cols())
    }
}

/// Gate and up, `[T x F]` each: two matrices, the halves of one, or a gate alone.
fn halves<'a>(gate: &'a Tensor, up: Option<&'a Tensor>, width: usize) -> (Mat<'a>, Option<Mat<'a>>) {
    match up {
        None if gate.cols() > width => {
            let both = gate.mat();
            (both.col_range(0..width), Some(both.col_range(width..2 * width)))
        }
        up => (gate.mat(), up.map(Tensor::mat)),
    }
}

pub(super) struct FeedForwardActivations {
    /// `x Aᵀ` of gate (or gate and up in one), up, down: `[T x R]`.
    pub h: [Option<Tensor>; 3],
    /// `[T x F]`, before the nonlinearity; `[T x 2 F]` where gate and up are one.
    pub gate: Tensor,
    /// `[T x F]`, where gated by a matrix of its own.
    pub up: Option<Tensor>,
    /// `[T x F]`: what down reads.
    pub act: Tensor,
}

/// A block's input, and (unless it is to be computed again) what it computed from it.
pub(super) struct SavedBlock {
    /// `[T x D]`: the residual stream at the block.
    pub s: Tensor,
    /// *f32* `[T x 1]`: of the norm in front.
    pub inv_rms: Option<Tensor>,
    pub activations: Option<Activations>,
}

/// What the backward pass of a stack needs.
pub(super) struct SavedStack {
    pub blocks: Vec<SavedBlock>,
    /// The residual stream at the final norm.
    pub end: PreNorm,
}

/// How much of the activations to keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Nothing: no backward pass will follow.
    Nothing,
    /// Block inputs only; the backward pass computes the rest again.
    Inputs,
    /// Everything.
    Everything,
}

impl Keep {
    /// What a forward pass keeps that a backward pass follows, or does not.
    pub(super) fn of(checkpointing: bool, backward: bool) -> Self {
        match (backward, checkpointing) {
            (false, _) => Keep::Nothing,
            (true, true) => Keep::Inputs,
            (true, false) => Keep::Everything,
        }
    }
}

impl Model {
    /// Runs a stack on its embedded input; returns the output of its final norm on the wanted rows.
    pub(super) fn run_stack(
        &self,
        stack: &Stack,
        context: &StackContext,
        embedded: Tensor,
        wanted: Wanted,
        keep: Keep,
        observer: &mut Option<&mut dyn Observer>,
    ) -> Result<(Tensor, Option<SavedStack>)> {
        let mut saved: Vec<SavedBlock> = Vec::new();
        // The stream as of the last block: its own tensor, or the last saved block's input.
        let mut stream = Some(embedded);
        let mut delta: Option<Tensor> = None;
        for (index, block) in stack.blocks.iter().enumerate() {
            let _span = trace::numbered(block.name(), index);
            let last = index + 1 == stack.blocks.len();
            let rows = wanted.filter(|_| last).map(|(rows, _)| rows);
            let (s, normed) = self.advance(&mut stream, &saved, delta.take(), block.before, rows)?;
            let (n, inv_rms) = normed.unzip();
            let (out, activations) = self.block(block, context, &s, n, observer)?;
            delta = Some(out);
            if keep == Keep::Nothing {
                stream = Some(s);
            } else {
                let activations = (keep == Keep::Everything).then_some(activations);
                saved.push(SavedBlock { s, inv_rms, activations });
            }
        }
        let (x, normed) = self.advance(&mut stream, &saved, delta, Some(stack.final_norm), None)?;
        let Some((n, inv_rms)) = normed else { unreachable!("a stack ends with a norm") };
        let end = PreNorm { x, inv_rms };
        Ok((n, (keep != Keep::Nothing).then_some(SavedStack { blocks: saved, end })))
    }

    /// Adds what the block before put out to the stream (on `rows` only, if given); returns the sum, and its norm.
    fn advance(
        &self,
        stream: &mut Option<Tensor>,
        saved: &[SavedBlock],
        delta: Option<Tensor>,
        norm: Option<usize>,
        rows: Option<&Indices>,
    ) -> Result<(Tensor, Option<Normed>)> {
        let owned = stream.take();
        let select = |t: Tensor| match rows {
            Some(rows) => self.gather(&t, rows),
            None => Ok(t),
        };
        let delta = delta.map(select).transpose()?;
        let owned = match (owned, saved.last(), rows) {
            (Some(owned), ..) => select(owned)?,
            (None, Some(block), Some(rows)) => self.gather(&block.s, rows)?,
            (None, Some(block), None) => match &delta {
                Some(delta) => return self.sum(&block.s, delta, norm),
                None => unreachable!("a saved block put something out"),
            },
            (None, None, _) => unreachable!("the stream is either owned or saved"),
        };
        match delta {
            Some(delta) => self.sum(&owned, &delta, norm),
            None => {
                let normed = norm.map(|norm| self.norm(&owned, norm)).transpose()?;
                Ok((owned, normed))
            }
        }
    }

    pub(super) fn gather(&self, from: &Tensor, rows: &Indices) -> Result<Tensor> {
        let mut to = self.backend.alloc(rows.len(), from.cols(), from.dtype())?;
        self.backend.run(Gather { from: from.mat(), rows, scale: 1.0, to: to.mat_mut() })?;
        Ok(to)
    }

    /// `stream + delta`, and its norm in the same pass.
    fn sum(&self, stream: &Tensor, delta: &Tensor, norm: Option<usize>) -> Result<(Tensor, Option<Normed>)> {
        let be = &self.backend;
        let Some(norm) = norm else {
            let mut sum = be.duplicate(stream.mat(), stream.dtype())?;
            be.axpy(1.0, delta.mat(), sum.mat_mut())?;
            return Ok((sum, None));
        };
        let mut n = be.alloc(stream.rows(), stream.cols(), stream.dtype())?;
        let mut inv_rms = be.alloc(stream.rows(), 1, DType::F32)?;
        let mut sum = be.alloc(stream.rows(), stream.cols(), stream.dtype())?;
        be.run(Rmsnorm {
            x: stream.mat(),
            residual: Some((delta.mat(), sum.mat_mut())),
            w: self.parameter(norm),
            eps: self.architecture.eps,
            y: n.mat_mut(),
            inv_rms: inv_rms.mat_mut(),
        })?;
        Ok((sum, Some((n, inv_rms))))
    }

    /// The norm of every row, or of every head where the weight is as wide as a head; returns it and the inverse RMS.
    pub(super) fn norm(&self, x: &Tensor, norm: usize) -> Result<Normed> {
        let (be, w) = (&self.backend, self.parameter(norm));
        let (count, width) = (x.len() / w.cols, w.cols);
        let mut y = be.alloc(x.rows(), x.cols(), x.dtype())?;
        let mut inv_rms = be.alloc(count, 1, DType::F32)?;
        be.run(Rmsnorm {
            x: x.mat().reshape(count, width),
            residual: None,
            w,
            eps: self.architecture.eps,
            y: y.mat_mut().reshape(count, width),
            inv_rms: inv_rms.mat_mut(),
        })?;
        Ok((y, inv_rms))
    }

    /// A linear layer; returns its output and `x Aᵀ`.
    fn linear(
        &self,
        site: usize,
        x: &Tensor,
        observer: &mut Option<&mut dyn Observer>,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let (be, layer) = (&self.backend, &self.linears[site]);
        let mut y = be.alloc(x.rows(), layer.weight.rows(), x.dtype())?;
        let mut h = match &layer.branch {
            Some(branch) => Some(be.alloc(x.rows(), branch.a.rows(), x.dtype())?),
            None => None,
        };
        be.run(Linear { layer, x: x.mat(), h: h.as_mut().map(Tensor::mat_mut), y: y.mat_mut() })?;
        if let Some(observer) = observer {
            observer.linear(site, x.mat(), y.mat())?;
        }
        Ok((y, h))
    }

    /// One block on the stream `s` and its norm `n`; returns what it adds to the stream, and its activations.
    pub(super) fn block(
        &self,
        block: &Block,
        context: &StackContext,
        s: &Tensor,
        n: Option<Tensor>,
        observer: &mut Option<&mut dyn Observer>,
    ) -> Result<(Tensor, Activations)> {
        let x = n.as_ref().unwrap_or(s);
        let (mut out, sublayer) = match &block.sublayer {
            Sublayer::Attention(a) => {
                let (out, kept) = self.attention(a, context, x, observer)?;
                (out, SublayerActivations::Attention(kept))
            }
            Sublayer::FeedForward(f) => {
                let (out, kept) = self.feed_forward(f, x, observer)?;
                (out, SublayerActivations::FeedForward(kept))
            }
        };
        let scale = self.architecture.residual_scale;
        if scale != 1.0 {
            self.backend.scale(out.mat_mut(), scale)?;
        }
        let Some(norm) = block.after else { return Ok((out, Activations { n, sublayer, pre_norm: None })) };
        let (y, inv_rms) = self.norm(&out, norm)?;
        Ok((y, Activations { n, sublayer, pre_norm: Some(PreNorm { x: out, inv_rms }) }))
    }

    fn attention(
        &self,
        block: &AttentionBlock,
        context: &StackContext,
        x: &Tensor,
        observer: &mut Option<&mut dyn Observer>,
    ) -> Result<(Tensor, AttentionActivations)> {
        let (be, a) = (&self.backend, &self.architecture);
        let (source, source_rows) = match (block.cross, context.memory) {
            (true, Some((memory, rows))) => (memory, rows),
            _ => (x, context.rows),
        };
        let ([mut q, mut k, v], [hq, hk, hv]) = self.qkv(block, x, source, observer)?;
        let pre_norm = match block.qk_norm {
            Some([q_norm, k_norm]) => {
                let (normed_q, inv_q) = self.norm(&q, q_norm)?;
                let (normed_k, inv_k) = self.norm(&k, k_norm)?;
                Some([
                    PreNorm { x: std::mem::replace(&mut q, normed_q), inv_rms: inv_q },
                    PreNorm { x: std::mem::replace(&mut k, normed_k), inv_rms: inv_k },
                ])
            }
            None => None,
        };
        self.rotate(block, [(&mut q, context.rows, a.heads), (&mut k, source_rows, a.kv_heads)], false)?;
        let mut out = be.alloc(q.rows(), q.cols(), q.dtype())?;
        let mut lse = be.alloc(q.rows(), a.heads, DType::F32)?;
        let spec = self.attention_spec(block, context);
        be.run(Attention {
            spec,
            q: q.mat(),
            k: k.mat(),
            v: v.mat(),
            out: out.mat_mut(),
            lse: lse.mat_mut(),
        })?;
        let (y, ho) = self.linear(block.o, &out, observer)?;
        Ok((y, AttentionActivations { h: [hq, hk, hv, ho], pre_norm, q, k, v, out, lse }))
    }

    /// Queries, keys and values, and the `x Aᵀ` of their layers.
    fn qkv(
        &self,
        block: &AttentionBlock,
        x: &Tensor,
        source: &Tensor,
        observer: &mut Option<&mut dyn Observer>,
    ) -> Result<([Tensor; 3], [Option<Tensor>; 3])> {
        if let [q, k, v] = block.qkv[..] {
            let (q, hq) = self.linear(q, x, observer)?;
            let (k, hk) = self.linear(k, source, observer)?;
            let (v, hv) = self.linear(v, source, observer)?;
            return Ok(([q, k, v], [hq, hk, hv]));
        }
        let (all, h) = self.linear(block.qkv[0], x, observer)?;
        let part = |columns| self.backend.duplicate(all.mat().col_range(columns), all.dtype());
        let [q, k, v] = self.architecture.qkv_columns();
        Ok(([part(q)?, part(k)?, part(v)?], [h, None, None]))
    }

    pub(super) fn attention_spec<'a>(
        &'a self,
        block: &AttentionBlock,
        context: &StackContext<'a>,
    ) -> AttentionSpec<'a> {
        let a = &self.architecture;
        let source = match (block.cross, context.memory) {
            (true, Some((_, rows))) => rows,
            _ => context.rows,
        };
        let visible = if block.window.is_some() { context.visible_near } else { context.visible };
        let mask = match (block.causal, visible) {
            (true, Some((offsets, keys))) => Mask::Listed { offsets, keys },
            (true, None) => Mask::Causal { window: block.window },
            (false, _) => Mask::Full,
        };
        let bias = block.bias.zip(a.relative).map(|(table, relative)| RelativeBias {
            table: self.parameter(table),
            q_positions: &context.rows.positions,
            k_positions: &source.positions,
            bidirectional: !block.causal,
            max_distance: relative.max_distance,
        });
        AttentionSpec {
            q_offsets: &context.rows.offsets,
            k_offsets: &source.offsets,
            heads: a.heads,
            kv_heads: a.kv_heads,
            head_dim: a.head_dim,
            scale: a.attention_scale,
            softcap: a.softcap,
            mask,
            bias,
        }
    }

    fn feed_forward(
        &self,
        block: &FeedForward,
        x: &Tensor,
        observer: &mut Option<&mut dyn Observer>,
    ) -> Result<(Tensor, FeedForwardActivations)> {
        let be = &self.backend;
        let (gate, hg) = self.linear(block.inputs[0], x, observer)?;
        let up = block.inputs.get(1).map(|site| self.linear(*site, x, observer)).transpose()?;
        let (up, hu) = up.map_or((None, None), |(up, h)| (Some(up), h));
        let (kind, width) = (self.architecture.activation, self.architecture.intermediate);
        let mut act = be.alloc(gate.rows(), width, gate.dtype())?;
        let (gates, ups) = halves(&gate, up.as_ref(), width);
        be.run(Activate { kind, gate: gates, up: ups, y: act.mat_mut() })?;
        let (y, hd) = self.linear(block.down, &act, observer)?;
        Ok((y, FeedForwardActivations { h: [hg, hu, hd], gate, up, act }))
    }
}
