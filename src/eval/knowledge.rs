//! What was forgotten: perplexity and divergence from the base model on general text.

use crate::backend::{DType, Op, Tensor};
use crate::error::Result;
use crate::model::{Model, Packed, general_pass, passes};
use serde::Serialize;

/// General knowledge of a model, over the old vocabulary.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct General {
    /// exp of the mean negative log-likelihood a token, renormalised over the old vocabulary.
    pub perplexity: f64,
    /// Mean KL(base || model) a token, both renormalised over the old vocabulary, in nats.
    pub kl: f64,
    /// Mean probability of tokens that the base model does not have.
    pub item_mass: f64,
    /// Tokens measured.
    pub tokens: usize,
}

/// The base model's predictions on general text, kept as hidden states and head, so that they can be compared with
/// a model that has been tuned since.
pub struct Reference {
    chunks: Vec<Vec<u32>>,
    hidden: Vec<Tensor>,
    head: Tensor,
    old: usize,
}

/// Rows whose logits are held at a time.
const LOGIT_ROWS: usize = 256;

/// Rows of a pass that predict a token of their text, and that token.
fn predictions(decoder: &Packed, chunks: &[Vec<u32>], encoder_decoder: bool) -> (Vec<u32>, Vec<u32>) {
    let (mut rows, mut targets) = (Vec::new(), Vec::new());
    for (chunk, offset) in chunks.iter().zip(&decoder.offsets) {
        // A decoder-only row predicts the next token; an encoder-decoder's row i the i-th of the second half.
        let predicted = if encoder_decoder { &chunk[chunk.len() / 2..] } else { &chunk[1..] };
        for (i, target) in predicted.iter().enumerate() {
            rows.push(offset + i as u32);
            targets.push(*target);
        }
    }
    (rows, targets)
}

impl Reference {
    /// Runs `chunks` (token ids of general text) through the base model, whose first `old` vocabulary rows are its
    /// own.
    pub fn capture(model: &Model, chunks: Vec<Vec<u32>>, old: usize) -> Result<Self> {
        let head = model.parameter(model.head()).row_range(0..old);
        let head = model.backend.duplicate(head, head.dtype)?;
        let hidden =
            passes(&chunks).into_iter().map(|group| Ok(hidden_of(model, group)?.0)).collect::<Result<_>>()?;
        Ok(Self { chunks, hidden, head, old })
    }

    /// Compares a model with the base.
    pub fn measure(&self, model: &Model) -> Result<General> {
        let be = &model.backend;
        let (mut nll, mut kl, mut mass, mut tokens) = (0.0, 0.0, 0.0, 0usize);
        let head = model.parameter(model.head());
        let scale = model.architecture.logit_scale;
        for (group, base) in passes(&self.chunks).into_iter().zip(&self.hidden) {
            let (hidden, targets) = hidden_of(model, group)?;
            for start in (0..targets.len()).step_by(LOGIT_ROWS) {
                let rows = start..(start + LOGIT_ROWS).min(targets.len());
                let mut logits = be.alloc(rows.len(), head.rows, DType::F32)?;
                let mut before = be.alloc(rows.len(), self.old, DType::F32)?;
                be.matmul(
                    logits.mat_mut(),
                    0.0,
                    scale,
                    hidden.mat().row_range(rows.clone()),
                    Op::N,
                    head,
                    Op::T,
                )?;
                be.matmul(
                    before.mat_mut(),
                    0.0,
                    scale,
                    base.mat().row_range(rows.clone()),
                    Op::N,
                    self.head.mat(),
                    Op::T,
                )?;
                let (logits, before) = (be.download(logits.mat())?, be.download(before.mat())?);
                for (i, row) in rows.enumerate() {
                    let now = &logits[i * head.rows..(i + 1) * head.rows];
                    let p = log_softmax(&before[i * self.old..(i + 1) * self.old]);
                    let q = log_softmax(&now[..self.old]);
                    nll -= q[(targets[row] as usize).min(self.old - 1)];
                    kl += p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
                    mass += item_share(now, self.old);
                    tokens += 1;
                }
            }
        }
        let n = tokens.max(1) as f64;
        Ok(General { perplexity: (nll / n).exp(), kl: (kl / n).max(0.0), item_mass: mass / n, tokens })
    }
}

fn hidden_of(model: &Model, group: &[Vec<u32>]) -> Result<(Tensor, Vec<u32>)> {
    let mut pass = general_pass(model, group);
    let (rows, targets) = predictions(&pass.decoder, group, pass.encoder.is_some());
    pass.rows = rows;
    Ok((model.hidden(&pass)?, targets))
}

fn log_sum(logits: &[f32]) -> f64 {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max) as f64;
    most + logits.iter().map(|l| (*l as f64 - most).exp()).sum::<f64>().ln()
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let total = log_sum(logits);
    logits.iter().map(|l| *l as f64 - total).collect()
}

fn item_share(logits: &[f32], old: usize) -> f64 {
    if old >= logits.len() { 0.0 } else { (log_sum(&logits[old..]) - log_sum(logits)).exp() }
}
