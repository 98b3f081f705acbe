//! General text from the base model itself: what it would write, token by token.
//!
//! On such text KL(base || tuned) is measured on the base's own distribution, and no text needs to be at hand.

use crate::error::{Error, Result};
use crate::model::{Inference, Model, Packed};
use crate::random::{Purpose, stream};
use rand::RngExt;

/// Documents written side by side.
const TOGETHER: usize = 32;

/// What to write.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SampleSettings {
    /// Documents.
    pub documents: usize,
    /// Most tokens of a document.
    pub length: usize,
    /// Of every random decision.
    pub seed: u64,
}

/// Documents sampled from a decoder-only model, as token ids. Each begins with `begin`, or, if that is empty, with
/// any token; it ends at `eos`, which is not part of it. Only the first `vocabulary` tokens are written.
///
/// # Errors
/// An encoder-decoder model, which writes no text of its own; logits that are not finite; the device.
/// `progress` is told (documents done, documents in all).
pub fn sample_text(
    model: &Model,
    (begin, eos): (&[u32], Option<u32>),
    vocabulary: usize,
    settings: SampleSettings,
    progress: &mut dyn FnMut(usize, usize) -> Result<()>,
) -> Result<Vec<Vec<u32>>> {
    if model.architecture.is_encoder_decoder() {
        return Err(Error::usage("an encoder-decoder model does not write text of its own")
            .remedy("give general text as a file: --general FILE"));
    }
    let vocabulary = vocabulary.clamp(1, model.architecture.vocabulary);
    let mut all = Vec::with_capacity(settings.documents);
    while all.len() < settings.documents {
        progress(all.len(), settings.documents)?;
        let first = all.len();
        let mut random: Vec<_> = (first..settings.documents.min(first + TOGETHER))
            .map(|d| stream(settings.seed, Purpose::Text, d as u64, 0))
            .collect();
        let mut documents: Vec<Vec<u32>> =
            random
                .iter_mut()
                .map(|r| {
                    if begin.is_empty() { vec![r.random_range(0..vocabulary as u32)] } else { begin.to_vec() }
                })
                .collect();
        let mut open: Vec<usize> = (0..documents.len()).collect();
        while !open.is_empty() {
            let next = next_tokens(model, &open, &documents, vocabulary, &mut random)?;
            let mut going = Vec::new();
            for (document, token) in open.into_iter().zip(next) {
                if Some(token) == eos {
                    continue;
                }
                documents[document].push(token);
                if documents[document].len() < settings.length {
                    going.push(document);
                }
            }
            open = going;
        }
        all.extend(documents);
    }
    progress(all.len(), settings.documents)?;
    Ok(all)
}

fn next_tokens(
    model: &Model,
    open: &[usize],
    documents: &[Vec<u32>],
    vocabulary: usize,
    random: &mut [impl RngExt],
) -> Result<Vec<u32>> {
    let sequences: Vec<&[u32]> = open.iter().map(|d| documents[*d].as_slice()).collect();
    let decoder = Packed::new(&[sequences]);
    let rows = decoder.offsets[1..].iter().map(|end| end - 1).collect();
    let hidden = model.hidden(&Inference { encoder: None, decoder, visible: None, rows })?;
    let logits = model.backend.download(model.logits(&hidden)?.mat())?;
    let width = logits.len() / open.len();
    let draw = |(row, document): (&[f32], &usize)| {
        let row = &row[..vocabulary];
        let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weight = |l: &f32| f64::from(l - most).exp();
        let mut left = random[*document].random::<f64>() * row.iter().map(weight).sum::<f64>();
        if !left.is_finite() {
            return Err(Error::numeric("the model's logits are not finite"));
        }
        let found = row.iter().position(|l| {
            left -= weight(l);
            left < 0.0
        });
        Ok(found.unwrap_or(vocabulary - 1) as u32)
    };
    logits.chunks_exact(width).zip(open).map(draw).collect()
}
