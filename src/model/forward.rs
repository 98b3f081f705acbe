//! The forward pass: a stack of residual blocks over packed rows.
//!
//! Each block reads the sum of the residual stream and the block before it (added inside the norm), so
//! the stream is written once a block. The last feed-forward block, the final norm and the head only
//! see the rows that somebody wants: labelled rows in training, the rows asked for in inference.

use super::layout::{AttentionBlock, Block, FeedForward, Stack};
use super::{Model, Packed};
use crate::backend::{Attention, DType, Indices, Mask, Mat, RelativeBias, Tensor, trace};
use crate::error::Result;
use std::ops::Range;

/// Sees every linear layer's input and output during a forward pass (second moments for the knowledge basis).
pub trait Observer {
    /// Site number, input `[T x N]`, output `[T x M]`.
    fn linear(&mut self, site: usize, x: Mat, y: Mat) -> Result<()>;
}

/// A packing on the device.
pub(super) struct Rows {
    pub tokens: Indices,
    pub positions: Indices,
    pub offsets: Indices,
    pub segments: Vec<Range<usize>>,
}

impl Rows {
    pub fn new(model: &Model, packed: &Packed) -> Result<Self> {
        let be = &model.backend;
        Ok(Self {
            tokens: be.indices(&packed.tokens)?,
            positions: be.indices(&packed.positions)?,
            offsets: be.indices(&packed.offsets)?,
            segments: packed.segments.clone(),
        })
    }
    pub fn count(&self) -> usize {
        self.tokens.len()
    }
    /// The sequences of every task, for sums over sequences.
    pub fn sequence_segments(&self) -> Vec<Range<usize>> {
        let starts = &self.offsets.host;
        let at = |row: usize| starts.partition_point(|o| (*o as usize) < row);
        self.segments.iter().map(|s| at(s.start)..at(s.end)).collect()
    }
}

/// What a stack's blocks read besides the residual stream.
pub(super) struct Surroundings<'a> {
    /// The stack's own rows.
    pub rows: &'a Rows,
    /// The encoder's output and rows, for cross attention.
    pub memory: Option<(&'a Tensor, &'a Rows)>,
    /// A trie's visibility instead of causal attention.
    pub visible: Option<(&'a Indices, &'a Indices)>,
}

/// The rows wanted of a stack and the task segments among them; `None`: all rows.
pub(super) type Wanted<'a> = Option<(&'a Indices, &'a [Range<usize>])>;

/// A block's activations, kept for the backward pass.
#[allow(clippy::large_enum_variant, reason = "one a block, moved once")]
pub(super) enum Inner {
    Attention(AttentionActivations),
    FeedForward(FeedForwardActivations),
}

pub(super) struct AttentionActivations {
    /// The normalised input.
    pub n: Tensor,
    /// `x Aᵀ` of q, k, v, o.
    pub h: [Option<Tensor>; 4],
    /// q and k before their norms, with the norms' inverse RMS.
    pub raw: Option<[(Tensor, Tensor); 2]>,
    pub q: Tensor,
    pub k: Tensor,
    pub v: Tensor,
    pub out: Tensor,
    pub lse: Tensor,
}

pub(super) struct FeedForwardActivations {
    pub n: Tensor,
    /// `x Aᵀ` of gate, up, down.
    pub h: [Option<Tensor>; 3],
    pub gate: Tensor,
    pub up: Option<Tensor>,
    pub act: Tensor,
}

/// A block's input, and (unless it is to be computed again) what it computed from it.
pub(super) struct SavedBlock {
    /// The residual stream at the block, `[T x D]`.
    pub s: Tensor,
    pub inv_rms: Tensor,
    pub inner: Option<Inner>,
}

/// What the backward pass of a stack needs.
pub(super) struct SavedStack {
    pub blocks: Vec<SavedBlock>,
    /// The residual stream at the final norm.
    pub s: Tensor,
    pub inv_rms: Tensor,
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

impl Model {
    /// Runs a stack on its embedded input; returns the output of its final norm on the wanted rows.
    pub(super) fn run_stack(
        &self,
        stack: &Stack,
        around: &Surroundings,
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
            let (s, n, inv_rms) = self.advance(&mut stream, &saved, delta.take(), block.norm(), rows)?;
            let (out, inner) = self.block(block, around, n, observer)?;
            delta = Some(out);
            if keep == Keep::Nothing {
                stream = Some(s);
            } else {
                saved.push(SavedBlock { s, inv_rms, inner: (keep == Keep::Everything).then_some(inner) });
            }
        }
        let (s, n, inv_rms) = self.advance(&mut stream, &saved, delta, stack.final_norm, None)?;
        Ok((n, (keep != Keep::Nothing).then_some(SavedStack { blocks: saved, s, inv_rms })))
    }

    /// Adds what the block before put out to the stream (on `rows` only, if given) and normalises.
    fn advance(
        &self,
        stream: &mut Option<Tensor>,
        saved: &[SavedBlock],
        delta: Option<Tensor>,
        norm: usize,
        rows: Option<&Indices>,
    ) -> Result<(Tensor, Tensor, Tensor)> {
        let owned = stream.take();
        let select = |t: Tensor| match rows {
            Some(rows) => self.gather(&t, rows),
            None => Ok(t),
        };
        let delta = delta.map(select).transpose()?;
        match (owned, saved.last(), rows) {
            (Some(owned), _, _) => {
                let owned = select(owned)?;
                self.norm_of_sum(owned, delta, norm)
            }
            (None, Some(block), Some(rows)) => self.norm_of_sum(self.gather(&block.s, rows)?, delta, norm),
            (None, Some(block), None) => match &delta {
                Some(delta) => self.norm_sum(&block.s, delta, norm),
                None => unreachable!("a saved block put something out"),
            },
            (None, None, _) => unreachable!("the stream is either owned or saved"),
        }
    }

    pub(super) fn gather(&self, from: &Tensor, rows: &Indices) -> Result<Tensor> {
        let mut to = self.backend.alloc(rows.len(), from.cols(), from.dtype())?;
        self.backend.gather_rows(from.mat(), rows, to.mat_mut())?;
        Ok(to)
    }

    /// The norm of `stream + delta`; returns (sum, normalised, inverse RMS).
    fn norm_of_sum(
        &self,
        stream: Tensor,
        delta: Option<Tensor>,
        norm: usize,
    ) -> Result<(Tensor, Tensor, Tensor)> {
        if let Some(delta) = delta {
            return self.norm_sum(&stream, &delta, norm);
        }
        let (mut n, mut inv_rms) = self.norm_outputs(&stream)?;
        let (w, eps) = (self.parameter(norm), self.architecture.eps);
        self.backend.rmsnorm(stream.mat(), None, w, eps, n.mat_mut(), inv_rms.mat_mut())?;
        Ok((stream, n, inv_rms))
    }

    fn norm_sum(&self, stream: &Tensor, delta: &Tensor, norm: usize) -> Result<(Tensor, Tensor, Tensor)> {
        let (mut n, mut inv_rms) = self.norm_outputs(stream)?;
        let mut sum = self.backend.alloc(stream.rows(), stream.cols(), stream.dtype())?;
        let (w, eps) = (self.parameter(norm), self.architecture.eps);
        let residual = Some((delta.mat(), sum.mat_mut()));
        self.backend.rmsnorm(stream.mat(), residual, w, eps, n.mat_mut(), inv_rms.mat_mut())?;
        Ok((sum, n, inv_rms))
    }

    fn norm_outputs(&self, like: &Tensor) -> Result<(Tensor, Tensor)> {
        let n = self.backend.alloc(like.rows(), like.cols(), like.dtype())?;
        Ok((n, self.backend.alloc(like.rows(), 1, DType::F32)?))
    }

    /// The normalised input of a saved block, computed again.
    pub(super) fn normalise_again(&self, s: &Tensor, norm: usize) -> Result<Tensor> {
        let (mut n, mut inv_rms) = self.norm_outputs(s)?;
        let (w, eps) = (self.parameter(norm), self.architecture.eps);
        self.backend.rmsnorm(s.mat(), None, w, eps, n.mat_mut(), inv_rms.mat_mut())?;
        Ok(n)
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
        be.linear(layer, x.mat(), h.as_mut().map(Tensor::mat_mut), y.mat_mut())?;
        if let Some(observer) = observer {
            observer.linear(site, x.mat(), y.mat())?;
        }
        Ok((y, h))
    }

    /// One block on its normalised input; returns what it adds to the stream, and its activations.
    pub(super) fn block(
        &self,
        block: &Block,
        around: &Surroundings,
        n: Tensor,
        observer: &mut Option<&mut dyn Observer>,
    ) -> Result<(Tensor, Inner)> {
        match block {
            Block::Attention(a) => {
                let (out, kept) = self.attention(a, around, n, observer)?;
                Ok((out, Inner::Attention(kept)))
            }
            Block::FeedForward(f) => {
                let (out, kept) = self.feed_forward(f, n, observer)?;
                Ok((out, Inner::FeedForward(kept)))
            }
        }
    }

    fn attention(
        &self,
        block: &AttentionBlock,
        around: &Surroundings,
        n: Tensor,
        observer: &mut Option<&mut dyn Observer>,
    ) -> Result<(Tensor, AttentionActivations)> {
        let (be, a) = (&self.backend, &self.architecture);
        let (source, source_rows) = match (block.cross, around.memory) {
            (true, Some((memory, rows))) => (memory, rows),
            _ => (&n, around.rows),
        };
        let [q_site, k_site, v_site, o_site] = block.sites;
        let (mut q, hq) = self.linear(q_site, &n, observer)?;
        let (mut k, hk) = self.linear(k_site, source, observer)?;
        let (v, hv) = self.linear(v_site, source, observer)?;
        let raw = match block.qk_norm {
            Some([q_norm, k_norm]) => {
                let (normed_q, inv_q) = self.head_norm(&q, q_norm)?;
                let (normed_k, inv_k) = self.head_norm(&k, k_norm)?;
                let raw_q = std::mem::replace(&mut q, normed_q);
                let raw_k = std::mem::replace(&mut k, normed_k);
                Some([(raw_q, inv_q), (raw_k, inv_k)])
            }
            None => None,
        };
        if let Some(frequencies) = &self.inv_freq {
            be.rope(q.mat_mut(), &around.rows.positions, frequencies.mat(), a.heads, false)?;
            be.rope(k.mat_mut(), &source_rows.positions, frequencies.mat(), a.kv_heads, false)?;
        }
        let mut out = be.alloc(q.rows(), q.cols(), q.dtype())?;
        let mut lse = be.alloc(q.rows(), a.heads, DType::F32)?;
        let spec = self.attention_spec(block, around);
        be.attention(&spec, q.mat(), k.mat(), v.mat(), out.mat_mut(), lse.mat_mut())?;
        let (y, ho) = self.linear(o_site, &out, observer)?;
        Ok((y, AttentionActivations { n, h: [hq, hk, hv, ho], raw, q, k, v, out, lse }))
    }

    /// The norm of every head of q or k; returns it and the inverse RMS.
    fn head_norm(&self, x: &Tensor, norm: usize) -> Result<(Tensor, Tensor)> {
        let (be, d) = (&self.backend, self.architecture.head_dim);
        let heads = x.len() / d;
        let mut y = be.alloc(x.rows(), x.cols(), x.dtype())?;
        let mut inv_rms = be.alloc(heads, 1, DType::F32)?;
        let view = y.mat_mut().reshape(heads, d);
        let eps = self.architecture.eps;
        be.rmsnorm(x.mat().reshape(heads, d), None, self.parameter(norm), eps, view, inv_rms.mat_mut())?;
        Ok((y, inv_rms))
    }

    pub(super) fn attention_spec<'a>(
        &'a self,
        block: &AttentionBlock,
        around: &Surroundings<'a>,
    ) -> Attention<'a> {
        let a = &self.architecture;
        let source = match (block.cross, around.memory) {
            (true, Some((_, rows))) => rows,
            _ => around.rows,
        };
        let mask = match (block.causal, around.visible) {
            (true, Some((offsets, keys))) => Mask::Listed { offsets, keys },
            (true, None) => Mask::Causal,
            (false, _) => Mask::Full,
        };
        let bias = block.bias.zip(a.relative).map(|(table, relative)| RelativeBias {
            table: self.parameter(table),
            q_positions: &around.rows.positions,
            k_positions: &source.positions,
            bidirectional: !block.causal,
            max_distance: relative.max_distance,
        });
        Attention {
            q_offsets: &around.rows.offsets,
            k_offsets: &source.offsets,
            heads: a.heads,
            kv_heads: a.kv_heads,
            head_dim: a.head_dim,
            scale: a.attention_scale,
            mask,
            bias,
        }
    }

    fn feed_forward(
        &self,
        block: &FeedForward,
        n: Tensor,
        observer: &mut Option<&mut dyn Observer>,
    ) -> Result<(Tensor, FeedForwardActivations)> {
        let be = &self.backend;
        let (gate, hg) = self.linear(block.gate, &n, observer)?;
        let (up, hu) = match block.up {
            Some(site) => {
                let (up, h) = self.linear(site, &n, observer)?;
                (Some(up), h)
            }
            None => (None, None),
        };
        let mut act = be.alloc(gate.rows(), gate.cols(), gate.dtype())?;
        be.activation(self.architecture.activation, gate.mat(), up.as_ref().map(Tensor::mat), act.mat_mut())?;
        let (y, hd) = self.linear(block.down, &act, observer)?;
        Ok((y, FeedForwardActivations { n, h: [hg, hu, hd], gate, up, act }))
    }
}
