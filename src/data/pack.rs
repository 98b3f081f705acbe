//! Examples laid end to end, ordered by task, without padding.

use super::encode::Example;
use crate::error::{Error, Result};
use crate::model::{Batch, Labels, Packed};

/// Packs `examples` into one batch of `tasks` segments; examples of a task keep their order. Every
/// label counts `weight` (1 / labels of the whole step, so that accumulation is exact).
pub fn pack(examples: &[Example], tasks: usize, weight: f32) -> Batch {
    let mut by_task: Vec<Vec<&Example>> = vec![Vec::new(); tasks];
    for example in examples {
        by_task[example.task as usize].push(example);
    }
    let inputs: Vec<Vec<&[u32]>> =
        by_task.iter().map(|list| list.iter().map(|e| &e.tokens[..e.tokens.len() - 1]).collect()).collect();
    let decoder = Packed::new(&inputs);
    let encoder = examples.iter().any(|e| e.encoder.is_some()).then(|| {
        let inputs: Vec<Vec<&[u32]>> =
            by_task.iter().map(|list| list.iter().filter_map(|e| e.encoder.as_deref()).collect()).collect();
        Packed::new(&inputs)
    });
    let mut labels = Labels::default();
    let mut starts = decoder.offsets.iter();
    for list in &by_task {
        let first = labels.rows.len();
        for (example, &start) in list.iter().zip(starts.by_ref()) {
            let from = example.labels_from;
            labels.rows.extend((from..example.tokens.len()).map(|at| start + at as u32 - 1));
            labels.targets.extend_from_slice(&example.tokens[from..]);
        }
        labels.segments.push(first..labels.rows.len());
    }
    labels.weights = vec![weight; labels.rows.len()];
    Batch { encoder, decoder, labels }
}

/// Packs the examples of one optimizer step into as few passes as `max_rows` allows (0: one pass),
/// in order. Every label weighs 1 / labels of the step.
///
/// # Errors
/// An example that is longer than `max_rows` by itself.
pub fn micro_batches(examples: &[Example], tasks: usize, max_rows: usize) -> Result<Vec<Batch>> {
    micro_batches_of(examples, tasks, max_rows, examples.iter().map(Example::labels).sum())
}

/// The same of some of the examples of a step that has `labels` labels in all.
///
/// # Errors
/// An example that is longer than `max_rows` by itself.
pub fn micro_batches_of(
    examples: &[Example],
    tasks: usize,
    max_rows: usize,
    labels: usize,
) -> Result<Vec<Batch>> {
    let limit = if max_rows == 0 { usize::MAX } else { max_rows };
    let weight = 1.0 / labels.max(1) as f32;
    let (mut batches, mut start, mut rows) = (Vec::new(), 0, 0);
    for (i, example) in examples.iter().enumerate() {
        if example.rows() > limit {
            return Err(Error::usage(format!("an example has {} rows, more than {limit}", example.rows()))
                .at("train.micro_batch_tokens")
                .remedy("raise it, or lower data.max_length"));
        }
        if rows + example.rows() > limit {
            batches.push(pack(&examples[start..i], tasks, weight));
            (start, rows) = (i, 0);
        }
        rows += example.rows();
    }
    if start < examples.len() {
        batches.push(pack(&examples[start..], tasks, weight));
    }
    Ok(batches)
}
