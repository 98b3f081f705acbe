//! Attention over packed sequences.

use super::PerSegment;
use crate::backend::work::Work;
use crate::backend::{DType, Indices, Mat, MatMut};
use std::ops::Range;

/// Which keys a query row sees.
#[derive(Clone, Copy)]
pub enum Mask<'a> {
    /// Row i of a sequence sees the rows 0..=i of the same sequence (queries and keys are the same rows), or the last
    /// `window` of them: itself and the `window - 1` before it.
    Causal {
        /// At least 1.
        window: Option<usize>,
    },
    /// Every row sees all keys of its sequence (T5's encoder and its cross attention).
    Full,
    /// Query row i sees exactly the key rows `keys[offsets[i]..offsets[i + 1]]`: a trie whose nodes
    /// see the prompt and their ancestors. Forward only.
    Listed {
        /// `T + 1` offsets into `keys`.
        offsets: &'a Indices,
        /// Key row numbers.
        keys: &'a Indices,
    },
}

impl Mask<'_> {
    /// The keys of a sequence of `keys` that its row `i` sees. Both ends grow with `i`. Not of a listed mask.
    pub fn range(&self, i: usize, keys: usize) -> Range<usize> {
        match *self {
            Mask::Causal { window } => (i + 1).saturating_sub(window.unwrap_or(usize::MAX))..i + 1,
            Mask::Full => 0..keys,
            Mask::Listed { .. } => unreachable!("a listed mask names its keys"),
        }
    }
}

/// T5's relative position bias: `bias[h, i, j] = table[bucket(pos_k(j) - pos_q(i)), h]`.
#[derive(Clone, Copy)]
pub struct RelativeBias<'a> {
    /// `[buckets x H]`, compute type.
    pub table: Mat<'a>,
    /// Position of every query row within its sequence, `T_q` values.
    pub q_positions: &'a Indices,
    /// Position of every key row within its sequence, `T_k` values.
    pub k_positions: &'a Indices,
    /// Encoder (true) or decoder (false) buckets.
    pub bidirectional: bool,
    /// `relative_attention_max_distance`.
    pub max_distance: usize,
}

/// What is attended to, and how.
#[derive(Clone, Copy)]
pub struct AttentionSpec<'a> {
    /// `n + 1` offsets of the sequences' query rows.
    pub q_offsets: &'a Indices,
    /// `n + 1` offsets of the sequences' key rows.
    pub k_offsets: &'a Indices,
    /// Query heads H.
    pub heads: usize,
    /// Key and value heads; H is a multiple of it.
    pub kv_heads: usize,
    /// Size of one head, d.
    pub head_dim: usize,
    /// Factor on the scores before the softmax (`1/sqrt(d)`; 1 for T5).
    pub scale: f32,
    /// Scaled scores become `softcap * tanh(score / softcap)`, before the bias (Gemma 2).
    pub softcap: Option<f32>,
    /// Which keys a row sees.
    pub mask: Mask<'a>,
    /// Bias added to the scores.
    pub bias: Option<RelativeBias<'a>>,
}

impl AttentionSpec<'_> {
    fn check(&self, q: Mat, k: Mat, v: Mat) {
        assert!(q.cols == self.heads * self.head_dim && k.cols == self.kv_heads * self.head_dim, "attention");
        assert!(k.shape() == v.shape() && q.dtype == k.dtype && q.dtype == v.dtype, "attention");
        assert!((1..=256).contains(&self.head_dim), "attention: head size {}", self.head_dim);
        assert!(self.softcap.is_none_or(|cap| cap > 0.0 && cap.is_finite()), "attention: softcap");
        assert!(!matches!(self.mask, Mask::Causal { window: Some(0) }), "attention: a window of 0");
        if let Some(bias) = &self.bias {
            assert_eq!(bias.table.dtype, q.dtype, "attention bias");
        }
    }
}

/// `out = softmax(cap(scale * q kᵀ) + bias) v` within sequences; `cap` is the identity without a softcap.
pub struct Attention<'a> {
    /// What is attended to, and how.
    pub spec: AttentionSpec<'a>,
    /// `[T_q x H d]`.
    pub q: Mat<'a>,
    /// `[T_k x kv_heads d]`.
    pub k: Mat<'a>,
    /// `[T_k x kv_heads d]`.
    pub v: Mat<'a>,
    /// `[T_q x H d]`, contiguous, written.
    pub out: MatMut<'a>,
    /// *f32* `[T_q x H]`, contiguous, written: log-sum-exp of the scores.
    pub lse: MatMut<'a>,
}

impl Attention<'_> {
    pub(in crate::backend) fn check(&self) {
        self.spec.check(self.q, self.k, self.v);
        assert!(self.out.shape() == self.q.shape(), "attention: out");
        assert!(self.lse.shape() == (self.q.rows, self.spec.heads), "attention: lse");
    }
    pub(in crate::backend) fn work(&self) -> Work {
        Work::attention(&self.spec, self.q.dtype, AttentionPass::Forward)
    }
}

/// The gradients of [`Attention`].
pub struct AttentionBackward<'a> {
    /// As in the forward pass; not a listed mask.
    pub spec: AttentionSpec<'a>,
    /// `[T_q x H d]`.
    pub q: Mat<'a>,
    /// `[T_k x kv_heads d]`.
    pub k: Mat<'a>,
    /// `[T_k x kv_heads d]`.
    pub v: Mat<'a>,
    /// `[T_q x H d]`, from the forward pass.
    pub out: Mat<'a>,
    /// *f32* `[T_q x H]`, from the forward pass.
    pub lse: Mat<'a>,
    /// `[T_q x H d]`.
    pub dout: Mat<'a>,
    /// `[T_q x H d]`, contiguous, written.
    pub dq: MatMut<'a>,
    /// `[T_k x kv_heads d]`, contiguous, written.
    pub dk: MatMut<'a>,
    /// `[T_k x kv_heads d]`, contiguous, written.
    pub dv: MatMut<'a>,
    /// The bias table's gradient by segments of sequences: *f32* `[S * buckets x H]`, added to.
    pub dbias: Option<PerSegment<'a>>,
}

impl AttentionBackward<'_> {
    pub(in crate::backend) fn check(&self) {
        self.spec.check(self.q, self.k, self.v);
        assert!(!matches!(self.spec.mask, Mask::Listed { .. }), "attention: listed masks are forward only");
        let shape = self.q.shape();
        assert!([self.out.shape(), self.dout.shape(), self.dq.shape()] == [shape; 3], "attention_backward");
        assert!([self.dk.shape(), self.dv.shape()] == [self.k.shape(); 2], "attention_backward");
        assert!(self.dbias.is_none() || self.spec.bias.is_some(), "attention_backward: dbias without a bias");
    }
    pub(in crate::backend) fn work(&self) -> Work {
        Work::attention(&self.spec, self.q.dtype, AttentionPass::Backward)
    }
}

// ---- its floor ------------------------------------------------------------------------------

impl Work {
    /// A pass over the scores of attention.
    pub fn attention(spec: &AttentionSpec, dtype: DType, pass: AttentionPass) -> Self {
        let rows = |offsets: &[u32]| u64::from(offsets.last().copied().unwrap_or(0));
        let (queries, keys) = (rows(&spec.q_offsets.host), rows(&spec.k_offsets.host));
        let (d, e) = (spec.head_dim as u64, dtype.bytes() as u64);
        let (heads, kv_heads) = (spec.heads as u64, spec.kv_heads as u64);
        let log_sums = 4 * queries * heads;
        let (qs, ks, products) = pass.counts();
        let moved = (qs * queries * heads + ks * keys * kv_heads) * d * e + log_sums;
        Self::new(moved, 2 * products * visible_pairs(spec) * heads * d)
    }
}

/// A pass over the scores of attention; [`Work::attention`] counts what it moves and multiplies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttentionPass {
    /// Scores and output.
    Forward,
    /// Scores, their gradients, and from those dq.
    Dq,
    /// Scores, their gradients, and from those dk and dv.
    Dkv,
    /// All gradients with the scores computed once.
    Backward,
}

impl AttentionPass {
    /// Matrices shaped like q that move, matrices shaped like k, products for every visible pair.
    fn counts(self) -> (u64, u64, u64) {
        match self {
            // q and out; k and v; q kᵀ and p v.
            Self::Forward => (2, 2, 2),
            // q, dout and dq; k and v; q kᵀ, dout vᵀ and ds k.
            Self::Dq => (3, 2, 3),
            // q and dout; k, v, dk and dv; q kᵀ, dout vᵀ, pᵀ dout and dsᵀ q.
            Self::Dkv => (2, 4, 4),
            // q, out, dout and dq; k, v, dk and dv; q kᵀ, dout vᵀ, pᵀ dout, ds k and dsᵀ q.
            Self::Backward => (4, 4, 5),
        }
    }
}

/// Pairs of a query row and a key row that it sees.
fn visible_pairs(spec: &AttentionSpec) -> u64 {
    let runs = |offsets: &[u32]| offsets.windows(2).map(|w| u64::from(w[1] - w[0])).collect::<Vec<_>>();
    let (queries, keys) = (runs(&spec.q_offsets.host), runs(&spec.k_offsets.host));
    match spec.mask {
        Mask::Listed { keys, .. } => keys.len() as u64,
        // The first rows see 1, 2, .. keys, all others as many as the window has.
        Mask::Causal { window } => {
            let pairs = |n: u64, w: u64| w * (w + 1) / 2 + (n - w) * w;
            queries.iter().map(|n| pairs(*n, window.map_or(*n, |w| (w as u64).min(*n)))).sum()
        }
        Mask::Full => queries.iter().zip(&keys).map(|(q, k)| q * k).sum(),
    }
}
