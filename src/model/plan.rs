//! What a step will need, before it is run: bytes of weights, activations and workspace.

use super::layout::Block;
use super::{Architecture, DenseKind, Layout};
use crate::backend::DType;

/// The size of a batch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BatchShape {
    /// Rows of the decoder's packing.
    pub tokens: usize,
    /// Rows of the encoder's packing.
    pub encoder_tokens: usize,
    /// Labelled rows.
    pub labels: usize,
}

/// Bytes by part.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Weights and tables.
    pub weights: usize,
    /// Activations kept from the forward to the backward pass.
    pub activations: usize,
    /// Gradients and temporaries at the fullest moment, logits included.
    pub workspace: usize,
}

impl MemoryPlan {
    /// Predicts a forward and backward pass with branches of rank `rank` in every layer.
    pub fn predict(
        a: &Architecture,
        shape: BatchShape,
        rank: usize,
        checkpointing: bool,
        dtype: DType,
    ) -> Self {
        let layout = Layout::new(a);
        let e = dtype.bytes();
        let dense: usize = layout
            .dense
            .iter()
            .filter(|d| !matches!(d.kind, DenseKind::Bias(_)))
            .map(|d| d.rows * d.cols)
            .sum();
        let linear: usize =
            layout.sites.iter().map(|s| s.outputs * s.inputs + usize::from(s.bias) * s.outputs).sum();
        let q = a.heads * a.head_dim;
        let kv = a.kv_heads * a.head_dim;
        // Per row: what a block keeps besides its input.
        let attention = |cross: bool| {
            let memory = if cross { shape.encoder_tokens } else { shape.tokens.max(1) };
            let ratio = memory as f64 / shape.tokens.max(1) as f64;
            let raw = if a.qk_norm { q + kv } else { 0 };
            (a.hidden + 2 * q + raw + 4 * rank) * e + a.heads * 4 + (2.0 * kv as f64 * ratio) as usize * e
        };
        let width = a.intermediate;
        let ff = (a.hidden + if a.gated { 3 } else { 2 } * width + if a.gated { 3 } else { 2 } * rank) * e;
        let mut activations = 0;
        let mut largest = 0;
        let mut stack = |blocks: &[Block], rows: usize, last_rows: usize| {
            for (i, block) in blocks.iter().enumerate() {
                let rows = if i + 1 == blocks.len() { last_rows } else { rows };
                let inner = rows
                    * match block {
                        Block::Attention(block) => attention(block.cross),
                        Block::FeedForward(_) => ff,
                    };
                activations += rows * (a.hidden * e + 4);
                largest = largest.max(inner);
                if !checkpointing {
                    activations += inner;
                }
            }
            activations += last_rows * (a.hidden * e + 4);
        };
        stack(&layout.decoder().blocks, shape.tokens, shape.labels);
        if let Some(encoder) = &layout.encoder {
            stack(&encoder.blocks, shape.encoder_tokens, shape.encoder_tokens);
            activations += shape.encoder_tokens * a.hidden * e;
        }
        let rows = shape.tokens.max(shape.encoder_tokens);
        let backward = rows * (2 * a.hidden + (2 * width).max(q + 2 * kv)) * e;
        let logits = (a.vocabulary * shape.labels * 4).min(16 << 20);
        let again = if checkpointing { largest } else { 0 };
        Self { weights: (dense + linear) * e, activations, workspace: (backward + again).max(logits) }
    }

    /// All of it.
    pub fn total(&self) -> usize {
        self.weights + self.activations + self.workspace
    }
}
