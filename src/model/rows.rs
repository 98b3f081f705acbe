//! A packing on the device, and how its rows rotate.

use super::layout::AttentionBlock;
use super::rotary::{Longer, Rotary};
use super::{Model, Packed};
use crate::backend::{Backend, DType, Indices, Rope, Tensor};
use crate::error::Result;
use std::borrow::Cow;
use std::ops::Range;

/// A packing on the device.
pub(super) struct Rows {
    pub tokens: Indices,
    pub positions: Indices,
    pub offsets: Indices,
    pub segments: Vec<Range<usize>>,
    /// Where texts are so long that they rotate otherwise: of every rotation, all rows by what they rotate; else nothing.
    turns: Vec<Vec<Turn>>,
}

/// Rows that rotate by the same frequencies.
struct Turn {
    rows: Range<usize>,
    positions: Indices,
    inv_freq: Tensor,
}

impl Turn {
    /// The rows of a packing by their frequencies; nothing if all have the usual ones.
    fn all(be: &dyn Backend, rotary: &Rotary, packed: &Packed) -> Result<Vec<Self>> {
        if rotary.longer == Longer::Same {
            return Ok(Vec::new());
        }
        let mut found: Vec<(Range<usize>, Cow<[f32]>)> = Vec::new();
        for (number, ends) in packed.offsets.windows(2).enumerate() {
            let rows = ends[0] as usize..ends[1] as usize;
            let length = packed.positions[rows.clone()].iter().max().map_or(0, |last| *last as usize + 1);
            let length = packed.lengths.get(number).map_or(length, |whole| length.max(*whole as usize));
            match found.last_mut().filter(|(_, before)| *before == rotary.at(length)) {
                Some((before, _)) => before.end = rows.end,
                None => found.push((rows, rotary.at(length))),
            }
        }
        if found.iter().all(|(_, inv_freq)| **inv_freq == rotary.inv_freq) {
            return Ok(Vec::new());
        }
        let turn = |(rows, inv_freq): (Range<usize>, Cow<[f32]>)| {
            let positions = be.indices(&packed.positions[rows.clone()])?;
            let inv_freq = be.tensor(&inv_freq, 1, inv_freq.len(), DType::F32)?;
            Ok(Self { rows, positions, inv_freq })
        };
        found.into_iter().map(turn).collect()
    }
}

impl Rows {
    pub fn new(model: &Model, packed: &Packed) -> Result<Self> {
        let be = &model.backend;
        let turns = model.layout.rotary.iter().map(|rotary| Turn::all(be.as_ref(), rotary, packed));
        Ok(Self {
            turns: turns.collect::<Result<_>>()?,
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

impl Model {
    /// Rotates queries and keys of some rows, or (their gradients) back.
    pub(super) fn rotate(
        &self,
        block: &AttentionBlock,
        all: [(&mut Tensor, &Rows, usize); 2],
        inverse: bool,
    ) -> Result<()> {
        let Some(number) = block.rotary else { return Ok(()) };
        for (x, rows, heads) in all {
            let factor = self.layout.rotary[number].factor;
            for Turn { rows, positions, inv_freq } in &rows.turns[number] {
                let (x, inv_freq) = (x.mat_mut().row_range(rows.clone()), inv_freq.mat());
                self.backend.run(Rope { x, positions, inv_freq, heads, factor, inverse })?;
            }
            if rows.turns[number].is_empty() {
                let (positions, inv_freq) = (&rows.positions, self.rotary[number].mat());
                self.backend.run(Rope { x: x.mat_mut(), positions, inv_freq, heads, factor, inverse })?;
            }
        }
        Ok(())
    }
}
