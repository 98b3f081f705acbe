//! Validation during a run: ranking metrics and losses of the validation records, and the one that decides.

use crate::data::{Dataset, Encoder, Example, micro_batches};
use crate::distributed::World;
use crate::error::{Error, Result};
use crate::eval::metrics::names;
use crate::eval::{EvaluateSettings, rank_split_over};
use crate::model::Model;
use std::collections::BTreeMap;

/// `TASK.metric` and `TASK.loss` of the validation records, and `loss` over all labels. Each task's first
/// `settings.records` records (0: all) count.
///
/// # Errors
/// A record that cannot be encoded, a likelihood that is not finite, the device.
pub fn measure(
    (model, world): (&Model, &World),
    encoder: &Encoder,
    data: &Dataset,
    settings: &EvaluateSettings,
) -> Result<BTreeMap<String, f64>> {
    let ranked = rank_split_over(world, model, encoder, data, &data.valid, settings, &mut |_, _| {})?;
    let mut values = BTreeMap::new();
    for (task, metrics) in ranked.metrics(&data.tasks, settings) {
        values.extend(metrics.into_iter().map(|(name, value)| (format!("{task}.{name}"), value)));
    }
    values.extend(losses((model, world), encoder, data, settings)?);
    Ok(values)
}

/// Mean negative log-likelihood of the labels, by task and of all.
fn losses(
    (model, world): (&Model, &World),
    encoder: &Encoder,
    data: &Dataset,
    settings: &EvaluateSettings,
) -> Result<BTreeMap<String, f64>> {
    let mut taken = vec![0usize; data.tasks.len()];
    let mut examples: Vec<Example> = Vec::new();
    for (number, record) in data.valid.records.iter().enumerate() {
        let taken = &mut taken[record.task as usize];
        if settings.records == 0 || *taken < settings.records {
            *taken += 1;
            let place = || format!("{} row {}", data.valid.name, number + 1);
            examples.push(encoder.encode(record, 0).map_err(|e| e.at(place()))?);
        }
    }
    let mut sums = vec![(0.0, 0usize); data.tasks.len()];
    let batches = micro_batches(&examples, data.tasks.len(), settings.batch_tokens)?;
    let of_batches = world.in_turns(batches.len(), |number| {
        let batch = &batches[number];
        let nll = model.forward(batch, false, None)?.nll(&*model.backend)?;
        let of_task = |labels: &std::ops::Range<usize>| {
            let sum = nll[labels.clone()].iter().map(|v| f64::from(*v)).sum::<f64>();
            // A NaN has no other way between ranks.
            (sum.to_bits(), labels.len())
        };
        Ok(batch.labels.segments.iter().map(of_task).collect::<Vec<_>>())
    })?;
    for (sum, (bits, labels)) in of_batches.iter().flat_map(|batch| (0..).zip(batch)) {
        sums[sum].0 += f64::from_bits(*bits);
        sums[sum].1 += labels;
    }
    let whole = sums.iter().fold((0.0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
    let named = data.tasks.iter().map(|task| format!("{task}.loss")).zip(sums);
    let named = named.chain([("loss".to_string(), whole)]).filter(|(_, (_, labels))| *labels > 0);
    Ok(named.map(|(name, (sum, labels))| (name, sum / labels as f64)).collect())
}

/// Refuses a `train.best_metric` that validation will not have, before anything is computed.
///
/// # Errors
/// Names the metrics there are.
pub fn check_metric(name: &str, tasks: &[String], settings: &EvaluateSettings) -> Result<()> {
    let mut known = names(&settings.k, settings.published_metrics);
    known.push("loss".into());
    let of_task = |task: &String| name.strip_prefix(task.as_str())?.strip_prefix('.');
    let metric = tasks.iter().find_map(of_task).unwrap_or(name);
    if known.iter().any(|k| k == metric) {
        return Ok(());
    }
    Err(Error::usage(format!("train.best_metric: there is no {name:?}")).remedy(format!(
        "one of {}, or TASK.METRIC ({})",
        known.join(", "),
        tasks.join(", ")
    )))
}

/// The metric a run is judged by: `loss`, `TASK.metric`, or the mean of `metric` over tasks.
///
/// # Errors
/// When there is no such metric, for instance since no validation record is of the task.
pub fn chosen(metrics: &BTreeMap<String, f64>, name: &str) -> Result<f64> {
    if let Some(value) = metrics.get(name) {
        return Ok(*value);
    }
    let ending = format!(".{name}");
    let all: Vec<f64> = metrics.iter().filter(|(k, _)| k.ends_with(&ending)).map(|(_, v)| *v).collect();
    if all.is_empty() {
        let known: Vec<&str> = metrics.keys().map(String::as_str).collect();
        return Err(Error::usage(format!(
            "train.best_metric: the validation records have no {name:?}; there are {}",
            known.join(", ")
        ))
        .remedy("choose one of these, add records to valid, or set train.validate_every = 0"));
    }
    Ok(all.iter().sum::<f64>() / all.len() as f64)
}
