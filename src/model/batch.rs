//! A packed batch: sequences without padding, ordered by task.

use std::ops::Range;

/// Sequences laid end to end, ordered by task: task t's rows are `segments[t]`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Packed {
    /// Token ids, one a row.
    pub tokens: Vec<u32>,
    /// Position of each row within its sequence (from 0).
    pub positions: Vec<u32>,
    /// Where sequences begin: n + 1 row numbers, first 0, last the number of rows.
    pub offsets: Vec<u32>,
    /// Rows of each task, in task order, together all rows; a task without sequences has an empty range.
    pub segments: Vec<Range<usize>>,
    /// How long the text of each sequence is, where its rows may be a part of it; else empty. Rotations that change
    /// with the length go by it.
    pub lengths: Vec<u32>,
}

impl Packed {
    /// Number of rows (tokens).
    pub fn rows(&self) -> usize {
        self.tokens.len()
    }
    /// Number of sequences.
    pub fn sequences(&self) -> usize {
        self.offsets.len().saturating_sub(1)
    }
    /// Packs sequences given task by task: `tasks[t]` holds task t's sequences.
    pub fn new<S: AsRef<[u32]>>(tasks: &[Vec<S>]) -> Self {
        let mut packed = Packed { offsets: vec![0], ..Packed::default() };
        for sequences in tasks {
            let start = packed.tokens.len();
            for sequence in sequences {
                let sequence = sequence.as_ref();
                packed.tokens.extend_from_slice(sequence);
                packed.positions.extend(0..sequence.len() as u32);
                packed.offsets.push(packed.tokens.len() as u32);
            }
            packed.segments.push(start..packed.tokens.len());
        }
        packed
    }
}

/// The rows whose next token is to be predicted, and how much each counts.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Labels {
    /// Rows (of the decoder's packing) that predict, ascending.
    pub rows: Vec<u32>,
    /// The token each of them must predict.
    pub targets: Vec<u32>,
    /// Factor of each negative log-likelihood in the loss that is differentiated
    /// (1 / labels of the whole step, so that accumulation is exact).
    pub weights: Vec<f32>,
    /// Labels of each task, in task order.
    pub segments: Vec<Range<usize>>,
}

impl Labels {
    /// Labels of each task.
    pub fn per_task(&self) -> Vec<usize> {
        self.segments.iter().map(ExactSizeIterator::len).collect()
    }
}

/// What one forward and backward pass works on.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Batch {
    /// The encoder's input of an encoder-decoder model.
    pub encoder: Option<Packed>,
    /// The decoder's (or decoder-only model's) input.
    pub decoder: Packed,
    /// What is to be predicted.
    pub labels: Labels,
}

impl Batch {
    /// Rows (tokens) of all packings.
    pub fn rows(&self) -> usize {
        self.decoder.rows() + self.encoder.as_ref().map_or(0, Packed::rows)
    }
}

/// A forward pass without gradients: hidden states of chosen rows.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Inference {
    /// The encoder's input of an encoder-decoder model; its i-th sequence goes with the decoder's i-th.
    pub encoder: Option<Packed>,
    /// The decoder's (or decoder-only model's) input. `segments` may be empty.
    pub decoder: Packed,
    /// For tries: decoder row i sees exactly the decoder rows `keys[offsets[i]..offsets[i + 1]]`
    /// (itself included); without it, causal within each sequence. Positions are the caller's.
    pub visible: Option<Visible>,
    /// Decoder rows whose final hidden state is wanted.
    pub rows: Vec<u32>,
}

/// Which rows each row sees; see [`Inference::visible`].
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Visible {
    /// `rows + 1` offsets into `keys`.
    pub offsets: Vec<u32>,
    /// Row numbers.
    pub keys: Vec<u32>,
}

impl Visible {
    /// Of the rows that each row sees, those less than `window` positions before it.
    pub fn within(&self, window: usize, positions: &[u32]) -> Self {
        let mut near = Self { offsets: vec![0], keys: Vec::new() };
        for (range, position) in self.offsets.windows(2).zip(positions) {
            let keys = &self.keys[range[0] as usize..range[1] as usize];
            let close = |key: &u32| ((position - positions[*key as usize]) as usize) < window;
            near.keys.extend(keys.iter().copied().filter(close));
            near.offsets.push(near.keys.len() as u32);
        }
        near
    }
}
