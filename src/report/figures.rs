//! The figures of a report, from the lines of `metrics.jsonl`.

use super::Line;
use super::curves::{Curve, CurveFigure, CurvePoint};
use super::format::compact;
use super::plot::{Figure, Series};
use serde_json::Value;

const GIB: f64 = (1u64 << 30) as f64;

/// All figures the history has values for, in the order of the report.
pub(super) fn figures(history: &[Line]) -> Vec<Figure> {
    let history = History::new(history);
    let mut figures = vec![history.loss()];
    figures.extend(history.validation());
    let divergence = "KL from the base model to the tuned one on held-out general text, at every validation, in nats a token.";
    figures.push(history.single(DIVERGENCE, "Divergence from the base model", divergence, 1.0, &[0.0]));
    figures.push(history.single("lr", "Learning rate", "Of the adapted layers.", 1.0, &[0.0]));
    figures.push(history.cosines());
    figures.push(history.family(
        "energy.",
        "Energy each basis keeps",
        "Share of a gradient's squared norm that its subspace's basis holds.",
        &[],
    ));
    figures.push(history.single(
        "room",
        "Energy the null space leaves",
        "Share of the gradient's squared norm outside the protected directions: what is left to learn with.",
        1.0,
        &[],
    ));
    let gates = history.family("gate.", "Gates", "Weight of each task's own update.", &[0.0]);
    figures.extend(Some(gates).filter(varies));
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

/// Whether a figure has a line that is not level.
fn varies(figure: &Figure) -> bool {
    figure.series.iter().any(|series| series.points.iter().any(|point| point.1 != series.points[0].1))
}

/// The validation metrics that are shown.
const VALIDATION: [&str; 3] = [" ndcg@10", " hit@10", " mrr@10"];

/// What was forgotten, as validations measure it.
const DIVERGENCE: &str = "valid.general.kl";

/// Of every task its ranking on validation records against [`DIVERGENCE`], validation by validation.
pub(super) fn trade_off(history: &[Line]) -> Option<CurveFigure> {
    let lines: Vec<&Line> = history.iter().filter(|line| line.contains_key(DIVERGENCE)).collect();
    let tasks = History::new(history).tasks;
    let metric = |name: &&&str| {
        let has = |task: &&str| {
            lines.iter().any(|l| l.contains_key(&format!("valid.{task}{}", name.replace(' ', "."))))
        };
        tasks.iter().any(has)
    };
    let metric = VALIDATION.iter().find(metric)?.trim_start();
    let point = |line: &&Line, task: &str| {
        let value = |key: &str| line.get(key)?.as_f64();
        Some(CurvePoint {
            label: format!("step {}", compact(value("step")?)),
            x: value(DIVERGENCE)?,
            y: value(&format!("valid.{task}.{metric}"))?,
            x_interval: None,
            y_interval: None,
            marked: line.get("best").and_then(Value::as_bool) == Some(true),
        })
    };
    let curve = |task: &&str| {
        let mut points: Vec<CurvePoint> = lines.iter().filter_map(|line| point(line, task)).collect();
        // Every new best was marked when it came: the last one is the best.
        let best = points.iter().rposition(|p| p.marked);
        points.iter_mut().enumerate().for_each(|(at, p)| p.marked = Some(at) == best);
        Curve { label: task.to_string(), points }
    };
    let figure = CurveFigure {
        title: format!("{metric} against divergence"),
        caption:
            "A point a validation, from before the first step on; ringed: the step that was kept. Up is \
                  better ranking, right is more forgotten."
                .into(),
        x: "KL from the base model, nats a token".into(),
        linear: true,
        curves: tasks.iter().map(curve).collect(),
    };
    figure.curves.iter().any(|curve| curve.points.len() > 1).then_some(figure)
}

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
        let of_task = |(hue, task): (usize, &&str)| {
            let found =
                self.series(&format!("valid.{task}.loss"), &format!("{task}, validation"), Some(hue), 1.0)?;
            Some(Series { dashed: true, noisy: false, ..found })
        };
        figure.series.extend(self.tasks.iter().enumerate().filter_map(of_task));
        if figure.series.iter().any(|series| series.dashed) {
            figure.caption += " Dashed: on validation records.";
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
            // Losses stand beside those of training, what was forgotten by itself.
            if metric == "loss" || *key == DIVERGENCE || *key == "valid.general.perplexity" {
                continue;
            }
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
        let (label, noisy) = (label.to_string(), noisy(key));
        let mut series = Series { label, hue, points: Vec::new(), missing: 0, dashed: false, noisy };
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

/// What single steps scatter; everything else is drawn as it is.
fn noisy(key: &str) -> bool {
    ["loss", "cosine.", "task_norm.", "tokens_per_second"].iter().any(|prefix| key.starts_with(prefix))
}
