//! Layers against steps as shaded cells: what a mean over layers hides.

use super::Line;
use super::format::{compact, number};
use super::plot::{INK, SERIES};
use minijinja::HtmlEscape;
use serde_json::Value;
use std::fmt::Write;

/// More cells than this nobody tells apart; neighbours become one, by their mean.
const MOST_ROWS: usize = 48;
const MOST_COLUMNS: usize = 32;

/// In the picture's own units: it is as wide as the other plots.
const WIDTH: f64 = 1120.0;
const NAMES: f64 = 330.0;
const ROW: f64 = 30.0;
const FOOT: f64 = 40.0;
const FONT: f64 = 23.0;

/// A value a layer and step.
#[derive(Debug)]
pub(super) struct HeatMap {
    pub title: String,
    pub caption: String,
    /// Names of the rows.
    rows: Vec<String>,
    /// First and last step of every column.
    columns: Vec<(f64, f64)>,
    /// Row by row; none where nothing is known.
    cells: Vec<Vec<Option<f64>>>,
    /// Zero divides good from bad: two colours.
    signed: bool,
}

impl HeatMap {
    /// The lists that the lines have under `key`, a value a layer; `layers` names these. None without any.
    pub(super) fn of(history: &[Line], key: &str, layers: &[String], signed: bool) -> Option<Self> {
        let list = |line: &Line| -> Option<(f64, Vec<Option<f64>>)> {
            let values = line.get(key)?.as_array()?.iter().map(Value::as_f64).collect();
            Some((line.get("step")?.as_f64()?, values))
        };
        let lists: Vec<_> = history.iter().filter_map(list).collect();
        let count = lists.first()?.1.len();
        let lists: Vec<_> = lists.into_iter().filter(|(_, values)| values.len() == count).collect();
        if count == 0 || lists.iter().all(|(_, values)| values.iter().all(Option::is_none)) {
            return None;
        }
        let names: Vec<String> = match layers.len() == count {
            true => layers.iter().map(|name| short(name)).collect(),
            false => (1..=count).map(|number| format!("adapted layer {number}")).collect(),
        };
        let (tall, wide) = (count.div_ceil(MOST_ROWS), lists.len().div_ceil(MOST_COLUMNS));
        let rows = names.chunks(tall).map(|of| match of {
            [first, .., last] => format!("{first} – {last}"),
            _ => of[0].clone(),
        });
        let cell = |row: usize, lists: &[(f64, Vec<Option<f64>>)]| {
            let all = lists.iter().flat_map(|(_, values)| values.iter().skip(row * tall).take(tall));
            let known: Vec<f64> = all.flatten().copied().collect();
            (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64)
        };
        Some(Self {
            title: String::new(),
            caption: String::new(),
            rows: rows.collect(),
            columns: lists.chunks(wide).map(|of| (of[0].0, of[of.len() - 1].0)).collect(),
            cells: (0..count.div_ceil(tall))
                .map(|row| lists.chunks(wide).map(|of| cell(row, of)).collect())
                .collect(),
            signed,
        })
    }

    /// With what stands above it.
    pub(super) fn called(self, title: impl Into<String>, caption: impl Into<String>) -> Self {
        Self { title: title.into(), caption: caption.into(), ..self }
    }

    /// The least and the largest value.
    pub(super) fn ends(&self) -> (f64, f64) {
        let known = self.cells.iter().flatten().flatten();
        known.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(*v), high.max(*v)))
    }

    /// What the shades mean.
    pub(super) fn legend(&self) -> String {
        let (low, high) = self.ends();
        match self.signed {
            true => format!(
                "Blue is above zero (up to {}), orange below (down to {}).",
                number(high),
                number(low)
            ),
            false => format!("From {} (faint) to {} (strong).", number(low), number(high)),
        }
    }

    /// What the map shows, for those who do not see it.
    pub(super) fn described(&self) -> String {
        let mean = |row: &Vec<Option<f64>>| {
            let known: Vec<f64> = row.iter().flatten().copied().collect();
            known.iter().sum::<f64>() / known.len().max(1) as f64
        };
        let mut means: Vec<(f64, &String)> = self.cells.iter().map(mean).zip(&self.rows).collect();
        means.sort_by(|a, b| a.0.total_cmp(&b.0));
        let ends = means.first().zip(means.last()).map_or(String::new(), |(low, high)| {
            format!(
                "lowest in {} ({} on average), highest in {} ({})",
                low.1,
                number(low.0),
                high.1,
                number(high.0)
            )
        });
        format!("{}: {ends}.", self.title)
    }

    /// The map as an `<svg>` element.
    pub(super) fn svg(&self) -> String {
        let height = ROW * self.rows.len() as f64 + FOOT;
        let step = (WIDTH - NAMES) / self.columns.len() as f64;
        let mut svg = format!(
            "<svg viewBox=\"0 0 {WIDTH} {height}\" xmlns=\"http://www.w3.org/2000/svg\" class=\"heat\" \
             font-family=\"sans-serif\" font-size=\"{FONT}\">\n"
        );
        for (row, name) in self.rows.iter().enumerate() {
            let y = ROW * row as f64;
            // Writing to memory cannot fail.
            let _ = writeln!(
                svg,
                "<text x=\"{}\" y=\"{}\" text-anchor=\"end\" fill=\"{}\">{}</text>",
                NAMES - 12.0,
                y + 0.75 * ROW,
                INK.hex(),
                HtmlEscape(name)
            );
            for (column, value) in self.cells[row].iter().enumerate() {
                let Some(value) = value else { continue };
                let x = NAMES + step * column as f64;
                svg += &self.cell((x, y, step), (row, column), *value);
            }
        }
        let (first, last) = (self.columns[0].0, self.columns[self.columns.len() - 1].1);
        for (x, anchor, text) in [(NAMES, "start", first), (WIDTH, "end", last)] {
            let _ = write!(
                svg,
                "<text x=\"{x}\" y=\"{}\" text-anchor=\"{anchor}\" fill=\"{}\">step {}</text>",
                height - 10.0,
                INK.hex(),
                compact(text)
            );
        }
        svg + "</svg>\n"
    }

    fn cell(&self, (x, y, width): (f64, f64, f64), (row, column): (usize, usize), value: f64) -> String {
        let (low, high) = self.ends();
        let (tone, share) = match self.signed {
            true => {
                (usize::from(value < 0.0), value.abs() / low.abs().max(high.abs()).max(f64::MIN_POSITIVE))
            }
            false => (0, (value - low) / (high - low).max(f64::MIN_POSITIVE)),
        };
        let steps = match self.columns[column] {
            (first, last) if first == last => format!("step {}", compact(first)),
            (first, last) => format!("steps {} to {}", compact(first), compact(last)),
        };
        format!(
            "<rect x=\"{x:.1}\" y=\"{y}\" width=\"{width:.1}\" height=\"{ROW}\" fill=\"{}\" \
             fill-opacity=\"{:.2}\"><title>{}, {steps}: {}</title></rect>\n",
            SERIES[tone].hex(),
            0.05 + 0.95 * share.clamp(0.0, 1.0),
            HtmlEscape(&self.rows[row]),
            number(value)
        )
    }
}

/// A layer's name without what all of them begin with.
fn short(name: &str) -> String {
    let name = ["model.layers.", "model.language_model.layers."]
        .iter()
        .find_map(|p| name.strip_prefix(p))
        .unwrap_or(name);
    let name =
        name.replace("self_attn.", "").replace("mlp.", "").replace(".layer.", ".").replace(".block.", ".");
    name.trim_end_matches(".weight").to_string()
}

/// Maps of everything that is logged layer by layer.
pub(super) fn maps(history: &[Line], layers: &[String]) -> Vec<HeatMap> {
    let mut keys: Vec<&str> = Vec::new();
    for key in history.iter().flat_map(|line| line.keys()).filter(|key| key.starts_with("layers.")) {
        if !keys.contains(&key.as_str()) {
            keys.push(key);
        }
    }
    let map = |key: &&str| {
        let what = key.strip_prefix("layers.")?;
        let (family, of) = what.split_once('.').unwrap_or((what, ""));
        let (title, caption, signed) = match family {
            "update_norm" => ("Drift by layer".to_string(), "Norm of a step's change of the layer.", false),
            "room" => (
                "Room by layer".to_string(),
                "Share of the gradient's energy that the null space leaves, at every refresh.",
                false,
            ),
            "energy" => (
                format!("Energy by layer: {of}"),
                "Share of the gradient's energy that this subspace's basis holds, at every refresh.",
                false,
            ),
            "cosine" => (
                format!("Conflict by layer: {}", of.replacen('.', " · ", 1)),
                "Cosine between the tasks' gradients.",
                true,
            ),
            _ => return None,
        };
        let map = HeatMap::of(history, key, layers, signed)?.called(title, caption);
        // What is the same everywhere needs no picture.
        let (low, high) = map.ends();
        (high - low > 1e-9).then_some(map)
    };
    keys.iter().filter_map(map).collect()
}
