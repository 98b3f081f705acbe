//! The figures of a report, from the lines of `metrics.jsonl`.

use super::Line;
use super::plot::{Figure, Series};
use serde_json::Value;

const GIB: f64 = (1u64 << 30) as f64;

/// All figures the history has values for, in the order of the report.
pub(super) fn figures(history: &[Line]) -> Vec<Figure> {
    let history = History::new(history);
    let mut figures = vec![history.loss()];
    figures.extend(history.validation());
    figures.push(history.single("lr", "Learning rate", "Of the adapted layers.", 1.0, &[0.0]));
    figures.push(history.cosines());
    figures.push(history.family(
        "energy.",
        "Energy each basis keeps",
        "Share of a gradient's squared norm that its subspace's basis holds.",
        &[0.0, 1.0],
    ));
    figures.push(history.single(
        "room",
        "Energy the null space leaves",
        "Share of the gradient's squared norm outside the protected directions: what is left to learn with.",
        1.0,
        &[0.0, 1.0],
    ));
    figures.push(history.family("gate.", "Gates", "Weight of each task's own update.", &[0.0]));
    let norm = "Norm of a step's change of the adapted weights.";
    figures.push(history.single("update_norm", "Update norm", norm, 1.0, &[0.0]));
    figures.push(history.family(
        "task_norm.",
        "Gradient norm of each task",
        "In the adapted layers.",
        &[0.0],
    ));
    let speed = "Tokens trained on in a second.";
    figures.push(history.single("tokens_per_second", "Tokens per second", speed, 1.0, &[0.0]));
    figures.push(history.memory());
    figures.retain(|figure| !figure.series.is_empty());
    figures
}

/// The validation metrics that are shown.
const VALIDATION: [&str; 4] = [" loss", " ndcg@10", " hit@10", " mrr@10"];

struct History<'a> {
    lines: &'a [Line],
    /// Every key, in the order of first appearance.
    keys: Vec<&'a str>,
    tasks: Vec<&'a str>,
}

impl<'a> History<'a> {
    fn new(lines: &'a [Line]) -> Self {
        let mut seen = std::collections::HashSet::new();
        let keys: Vec<&str> = lines
            .iter()
            .flat_map(|line| line.keys())
            .map(String::as_str)
            .filter(|k| seen.insert(*k))
            .collect();
        let tasks = keys.iter().filter_map(|key| key.strip_prefix("loss.")).collect();
        Self { lines, keys, tasks }
    }

    fn loss(&self) -> Figure {
        let mut figure =
            self.family("loss.", "Loss", "Mean cross-entropy of the labelled tokens of each task.", &[]);
        let total = self.series("loss", "all", Some(figure.series.len()), 1.0);
        // With one task the two lines are one.
        if figure.series.len() != 1 {
            figure.series.extend(total);
        }
        figure
    }

    /// One figure a validation metric, one line a task: from `valid.<task>.<metric>`. Where the usual ones are
    /// among them, the others tell nothing new and are left to the log.
    fn validation(&self) -> Vec<Figure> {
        let mut figures: Vec<Figure> = Vec::new();
        for key in &self.keys {
            let Some(rest) = key.strip_prefix("valid.") else { continue };
            let (task, metric) = rest.rsplit_once('.').unwrap_or(("all", rest));
            let title = format!("Validation {metric}");
            let place = figures.iter().position(|figure| figure.title == title).unwrap_or_else(|| {
                figures.push(figure(title, "On validation records, during training."));
                figures.len() - 1
            });
            let hue = self.hue(task, figures[place].series.len());
            figures[place].series.extend(self.series(key, task, Some(hue), 1.0));
        }
        figures.retain(|figure| !figure.series.is_empty());
        let usual = |figure: &Figure| VALIDATION.iter().any(|metric| figure.title.ends_with(metric));
        if figures.iter().any(usual) {
            figures.retain(usual);
        }
        figures
    }

    fn memory(&self) -> Figure {
        let now = self.series("memory_bytes", "in use", Some(self.tasks.len()), 1.0 / GIB);
        let peak = self.series("peak_memory_bytes", "peak", Some(self.tasks.len() + 1), 1.0 / GIB);
        let series = now.into_iter().chain(peak).collect();
        Figure { includes: &[0.0], series, ..figure("Memory".into(), "Tensors, in GiB.") }
    }

    fn cosines(&self) -> Figure {
        let mut figure = self.family(
            "cosine.",
            "Gradient cosine between tasks",
            "Below zero the tasks pull against each other.",
            &[0.0],
        );
        for series in &mut figure.series {
            series.label = self.pair(&series.label);
        }
        figure
    }

    /// `a.b` as two tasks; names of tasks may themselves have dots.
    fn pair(&self, label: &str) -> String {
        let split = label.match_indices('.').map(|(i, _)| (&label[..i], &label[i + 1..]));
        let known = |task: &str| self.tasks.contains(&task);
        split
            .into_iter()
            .find(|(a, b)| known(a) && known(b))
            .or_else(|| label.split_once('.'))
            .map_or(label.to_string(), |(a, b)| format!("{a} · {b}"))
    }

    /// All keys that start with `prefix`, one line each.
    fn family(&self, prefix: &str, title: &str, caption: &str, includes: &'static [f64]) -> Figure {
        let mut series: Vec<Series> = Vec::new();
        for key in &self.keys {
            let Some(label) = key.strip_prefix(prefix) else { continue };
            series.extend(self.series(key, label, Some(self.hue(label, series.len())), 1.0));
        }
        Figure { includes, series, ..figure(title.into(), caption) }
    }

    /// The one line of `key`, its values times `scale`.
    fn single(&self, key: &str, title: &str, caption: &str, scale: f64, includes: &'static [f64]) -> Figure {
        let series = self.series(key, title, None, scale).into_iter().collect();
        Figure { includes, series, ..figure(title.into(), caption) }
    }

    /// A task has the same colour in every figure; others take those that follow.
    fn hue(&self, label: &str, place: usize) -> usize {
        let others = self.tasks.len() + place;
        self.tasks.iter().position(|task| *task == label).unwrap_or(others)
    }

    /// The values of `key` over the steps; `None` when no line has a number there.
    fn series(&self, key: &str, label: &str, hue: Option<usize>, scale: f64) -> Option<Series> {
        let mut series = Series { label: label.to_string(), hue, points: Vec::new(), missing: 0 };
        for (index, line) in self.lines.iter().enumerate() {
            let Some(value) = line.get(key) else { continue };
            let step = line.get("step").and_then(Value::as_f64).unwrap_or(index as f64);
            match value.as_f64().map(|value| value * scale).filter(|value| value.is_finite()) {
                Some(value) => series.points.push((step, value)),
                None => series.missing += 1,
            }
        }
        (!series.points.is_empty()).then_some(series)
    }
}

fn figure(title: String, caption: &str) -> Figure {
    Figure { title, caption: caption.into(), series: Vec::new(), includes: &[] }
}
