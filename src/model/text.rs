//! General text as forward passes.

use super::{Inference, Model, Packed};

/// Rows of one pass.
const PASS_ROWS: usize = 4096;

/// Pieces of general text as one forward pass; an encoder-decoder model reads the first half of each piece and
/// its decoder the second.
pub fn general_pass(model: &Model, chunks: &[Vec<u32>]) -> Inference {
    let a = &model.architecture;
    if !a.is_encoder_decoder() {
        let decoder = Packed::new(&[chunks.to_vec()]);
        let rows = (0..decoder.rows() as u32).collect();
        return Inference { encoder: None, decoder, visible: None, rows };
    }
    let halves: Vec<(&[u32], &[u32])> = chunks.iter().map(|c| c.split_at(c.len() / 2)).collect();
    let start = a.decoder_start.unwrap_or(0);
    let encoder = Packed::new(&[halves.iter().map(|h| h.0).collect::<Vec<_>>()]);
    let shifted = |half: &[u32]| {
        std::iter::once(start).chain(half[..half.len() - 1].iter().copied()).collect::<Vec<_>>()
    };
    let decoder = Packed::new(&[halves.iter().map(|h| shifted(h.1)).collect::<Vec<_>>()]);
    let rows = (0..decoder.rows() as u32).collect();
    Inference { encoder: Some(encoder), decoder, visible: None, rows }
}

/// Groups of chunks that fit a pass.
pub fn passes(chunks: &[Vec<u32>]) -> Vec<&[Vec<u32>]> {
    let (mut groups, mut start, mut rows) = (Vec::new(), 0, 0);
    for (i, chunk) in chunks.iter().enumerate() {
        if rows + chunk.len() > PASS_ROWS && i > start {
            groups.push(&chunks[start..i]);
            (start, rows) = (i, 0);
        }
        rows += chunk.len();
    }
    if start < chunks.len() {
        groups.push(&chunks[start..]);
    }
    groups
}
