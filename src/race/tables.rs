//! The tables of a race: on the terminal at most 80 columns wide, and on the page.

use super::curve::Beyond;
use super::findings::{Equal, Estimate, Finding, Findings, Together, Versus};
use super::methods::PLAIN;
use super::verdict::{Race, kl, p_value, verdict};
use crate::report::ReportTable;
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

const WIDTH: u16 = 80;
/// More tasks than this stand on the page only.
const TASKS: usize = 2;

/// Cells without a result that the terminal lists.
const LISTED: usize = 5;

/// Everything for the terminal: tables, then what to take.
pub fn text(race: &Race) -> String {
    let mut text = String::new();
    for table in [chosen(race, TASKS), equal(race), interference(race)].into_iter().flatten() {
        text += &format!("{}\n{}\n\n", table.title, printed(&table));
    }
    for (cell, why) in race.missing.iter().take(LISTED) {
        let why = why.lines().next().unwrap_or_default();
        text += &wrapped(&format!("No result: {}: {why}", cell.name(&race.tasks)));
    }
    if race.missing.len() > LISTED {
        text += &format!("No result: {} more; the page lists them\n", race.missing.len() - LISTED);
    }
    for sentence in verdict(race) {
        text += &wrapped(&sentence);
    }
    text
}

/// A table in plain text.
fn printed(table: &ReportTable) -> String {
    let mut shown = Table::new();
    shown
        .load_style(presets::UTF8_HORIZONTAL_ONLY)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_width(WIDTH)
        .set_header(table.header.clone());
    for row in &table.rows {
        shown.add_row(row.iter().map(|cell| printable(cell)));
    }
    for column in shown.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
        column.set_padding((1, 0));
    }
    shown.trim_fmt()
}

/// A name from the user's data without characters that would steer the terminal.
fn printable(name: &str) -> String {
    name.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// A sentence in lines of at most [`WIDTH`].
fn wrapped(sentence: &str) -> String {
    let (mut text, mut width) = (String::new(), 0);
    for word in printable(sentence).split(' ') {
        let length = word.chars().count();
        if width > 0 && width + 1 + length > WIDTH as usize {
            text.push('\n');
            width = 0;
        } else if width > 0 {
            text.push(' ');
            width += 1;
        }
        text += word;
        width += length;
    }
    text + "\n"
}

fn spread(estimate: &Estimate) -> String {
    estimate.interval.map_or("—".into(), |(low, high)| format!("{low:+.3} {high:+.3}"))
}

/// Every method at its learning rate; `most`: tasks with columns of their own.
pub(super) fn chosen(race: &Race, most: usize) -> Option<ReportTable> {
    let found = race.findings.as_ref()?;
    let tasks = if race.field.tasks.len() <= most { race.field.tasks.as_slice() } else { &[] };
    let base = race.base.iter().map(|base| {
        let of = |task: &String| {
            let values = base.requests.get(task);
            values.map_or(0.0, |v| v.iter().sum::<f64>() / v.len().max(1) as f64)
        };
        let mean = race.field.tasks.iter().map(of).sum::<f64>() / race.field.tasks.len().max(1) as f64;
        let head = ["(base model)".to_string(), String::new()];
        let tasks = tasks.iter().map(|t| format!("{:.3}", of(t)));
        let tail = [format!("{mean:.3}"), String::new(), String::new(), "0".into()];
        head.into_iter().chain(tasks).chain(tail).collect()
    });
    let row = |f: &Finding| {
        let (gain, p) = f.gain.as_ref().map_or((String::new(), String::new()), |(gain, test)| {
            (format!("{:+.3}", gain.value), p_value(test.holm))
        });
        let head = [f.method.clone(), format!("{}", f.lr)];
        let of_tasks = f.tasks.iter().take(tasks.len()).map(|e| format!("{:.3}", e.value));
        let tail = [format!("{:.3}", f.quality.value), gain, p, kl(f.kl.value)];
        head.into_iter().chain(of_tasks).chain(tail).collect()
    };
    Some(ReportTable {
        title: format!("{} at the learning rate that validation chose", race.metric),
        caption: format!(
            "Means over {} seeds; the gain is that of the mean over {PLAIN}; p of the paired test over requests, after \
             Holm's correction.",
            race.field.seeds.len()
        ),
        header: ["method", "lr"]
            .map(String::from)
            .into_iter()
            .chain(tasks.iter().cloned())
            .chain(["mean", "gain", "p", "KL"].map(String::from))
            .collect(),
        rows: base.chain(found.methods.iter().map(row)).collect(),
    })
}

/// Divergence at equal ranking quality.
pub(super) fn equal(race: &Race) -> Option<ReportTable> {
    let found = race.findings.as_ref()?;
    let mut rows = Vec::new();
    for finding in &found.methods {
        for (number, versus) in finding.against.iter().enumerate() {
            let name = if number == 0 { finding.method.clone() } else { String::new() };
            rows.push(
                [vec![name, versus.other.clone()], versus_cells(versus, race.field.seeds.len())].concat(),
            );
        }
        let absent = |control: &String| {
            let mut cells = vec![String::new(), control.clone(), "not in the race".into()];
            cells.resize(7, String::new());
            cells
        };
        rows.extend(finding.missing.iter().map(absent));
    }
    (!rows.is_empty()).then(|| ReportTable {
        title: format!("How many times nearer to the base model, at {PLAIN}'s ranking"),
        caption: format!(
            "KL of the other method over KL of this one at the mean {} that {PLAIN} has at its learning rate, between \
             learning rates, never beyond them; then over the whole range that both reach.",
            race.metric
        ),
        header: ["method", "than", "times", "95 %", "p", "seeds", "range"].map(String::from).to_vec(),
        rows,
    })
}

fn versus_cells(versus: &Versus, seeds: usize) -> Vec<String> {
    let range = versus.range.map_or("—".into(), |e| format!("{:.2}", e.value));
    let mut cells = match versus.equal {
        Equal::Times(times, test) => {
            let interval = times.interval.map_or("—".into(), |(low, high)| format!("{low:.2}–{high:.2}"));
            vec![
                format!("{:.2}", times.value),
                interval,
                p_value(test.holm),
                format!("{}/{seeds}", versus.seeds_agree),
            ]
        }
        Equal::Beyond { other, side } => {
            let what = match side {
                Beyond::NotReached => "not reached",
                Beyond::Surpassed => "surpassed",
            };
            let whose = if other { " by it" } else { "" };
            vec![format!("{what}{whose}"), String::new(), String::new(), String::new()]
        }
    };
    cells.push(range);
    cells
}

/// Tasks together against each alone.
pub(super) fn interference(race: &Race) -> Option<ReportTable> {
    let found = race.findings.as_ref()?;
    let mut rows = Vec::new();
    for task in &found.interference {
        let cells = |what: String, lr: f64, value: f64| {
            vec![task.task.clone(), what, lr.to_string(), format!("{value:.3}")]
        };
        rows.push([cells("alone".into(), task.lr, task.alone.value), vec![String::new(); 3]].concat());
        let row = |t: &Together, name: String| {
            let tail =
                vec![format!("{:+.3}", t.difference.value), spread(&t.difference), p_value(t.test.holm)];
            [cells(name, t.lr, task.alone.value + t.difference.value), tail].concat()
        };
        rows.extend(task.same_rate.iter().map(|t| row(t, format!("{PLAIN}, same lr"))));
        rows.extend(task.together.iter().map(|t| row(t, t.method.clone())));
    }
    (!rows.is_empty()).then(|| ReportTable {
        title: format!("What each task loses to the others: {}", race.metric),
        caption: "The same rows of the task in the same steps, alone and with the other tasks' rows beside them; each at \
                  the learning rate that validation chose for this task."
            .into(),
        header: ["task", "learned", "lr", "value", "change", "95 %", "p"].map(String::from).to_vec(),
        rows,
    })
}

/// The tasks' gradients, as far as the cells' logs have them.
pub(super) fn gradients(race: &Race) -> Option<ReportTable> {
    let found: &Findings = race.findings.as_ref()?;
    let mut keys: Vec<&String> = Vec::new();
    for run in race.field.entries.iter().flat_map(|e| &e.runs).flatten() {
        let told = |key: &&String| TOLD.iter().any(|(prefix, _)| key.starts_with(prefix));
        keys.extend(run.training.keys().filter(told));
    }
    keys.sort();
    keys.dedup();
    let row = |f: &Finding| {
        let entry = &race.field.entries[f.entry];
        let cell = |key: &&String| entry.fact(key).map_or("—".into(), |v| format!("{v:.3}"));
        let step = entry.fact("mean_update_norm").map_or("—".into(), |v| format!("{v:.3}"));
        let cost = |key: &str| entry.fact(key).map_or("—".into(), |v| format!("{v:.0}"));
        let tail = vec![step, cost("seconds"), cost("tokens"), cost("rehearsed_tokens")];
        [vec![f.method.clone(), f.lr.to_string()], keys.iter().map(cell).collect(), tail].concat()
    };
    let names = keys.iter().map(|key| told(key));
    Some(ReportTable {
        title: "Gradients of the tasks, and what a cell took".into(),
        caption: "Means over all steps and seeds, over all adapted layers together: cosine between the tasks' gradients; \
                  alignment, the cosine of each task's gradient with the sum of all; norm of each task's gradient; norm \
                  of a step, seconds in steps, tokens of the tasks, tokens rehearsed."
            .into(),
        header: ["method", "lr"]
            .map(String::from)
            .into_iter()
            .chain(names)
            .chain(["step", "seconds", "tokens", "rehearsed"].map(String::from))
            .collect(),
        rows: found.methods.iter().map(row).collect(),
    })
}

/// What the log tells of the tasks' gradients, as keys begin and as columns do.
const TOLD: [(&str, &str); 3] =
    [("cosine.", "cosine "), ("alignment.", "alignment "), ("task_norm.", "norm ")];

/// The column of a key.
fn told(key: &str) -> String {
    let name = |(prefix, column): &(&str, &str)| Some(format!("{column}{}", key.strip_prefix(prefix)?));
    TOLD.iter().find_map(name).unwrap_or_default().replace('.', " · ")
}

/// Where in the model the tasks compete: [`PLAIN`] at its learning rate, layer by layer.
pub(super) fn layers(race: &Race) -> Option<ReportTable> {
    let found = race.findings.as_ref()?.methods.iter().find(|f| f.method == PLAIN)?;
    let entry = &race.field.entries[found.entry];
    let keys = entry.runs.first()?.as_ref()?.training.keys();
    let of_layers = keys.filter_map(|key| Some((told(key.strip_prefix("layers.")?), entry.by_layer(key))));
    let columns: Vec<(String, Vec<f64>)> = of_layers.filter(|(_, values)| !values.is_empty()).collect();
    let count = columns.iter().map(|(_, values)| values.len()).min()?;
    let cell = |value: f64| if value.is_finite() { format!("{value:+.3}") } else { "—".into() };
    let row = |layer: usize| {
        let name = race.layers.get(layer).cloned().unwrap_or_else(|| format!("layer {}", layer + 1));
        std::iter::once(name).chain(columns.iter().map(|(_, values)| cell(values[layer]))).collect()
    };
    Some(ReportTable {
        title: "Where the tasks compete".into(),
        caption: format!(
            "{PLAIN} at learning rate {}, means over steps and seeds, layer by layer: alignment, the cosine of each \
             task's gradient with the sum of all, which the step goes along (1: as if alone, 0: nothing of the step is \
             the task's); cosine between the tasks' gradients (below 0: they pull against each other).",
            found.lr
        ),
        header: std::iter::once("layer".to_string()).chain(columns.iter().map(|c| c.0.clone())).collect(),
        rows: (0..count).map(row).collect(),
    })
}

/// A row a cell.
pub(super) fn cells(race: &Race) -> ReportTable {
    let mut rows = Vec::new();
    for entry in &race.field.entries {
        for (seed, run) in race.field.seeds.iter().zip(&entry.runs) {
            let only = entry.alone.clone().unwrap_or_else(|| "all".into());
            let mut row = vec![entry.method.clone(), only, entry.lr.to_string(), seed.to_string()];
            match run {
                None => row.push("no result".into()),
                Some(run) => {
                    let of = |task: &String| {
                        let values = run.requests.get(task).map_or(&[][..], |v| v);
                        format!("{:.4}", values.iter().sum::<f64>() / values.len().max(1) as f64)
                    };
                    let general = |key: &str| {
                        run.measured
                            .get("general")
                            .and_then(|g| g.get(key)?.as_f64())
                            .map_or("—".into(), |v| format!("{v:.3}"))
                    };
                    let valid =
                        |task: &String| run.valid.get(task).map_or("—".into(), |v| format!("{v:.4}"));
                    row.extend(race.field.tasks.iter().map(valid));
                    row.extend(race.field.tasks.iter().map(of));
                    row.extend([kl(run.kl()), general("perplexity"), general("item_mass")]);
                }
            }
            row.resize(7 + 2 * race.field.tasks.len(), String::new());
            rows.push(row);
        }
    }
    let tasks = |what: &str| race.field.tasks.iter().map(|t| format!("{t}, {what}")).collect::<Vec<_>>();
    let head = ["method", "tasks", "lr", "seed"].map(String::from).to_vec();
    let tail = ["KL", "perplexity", "item mass"].map(String::from).to_vec();
    ReportTable {
        title: "Every cell".into(),
        caption: format!("{} of validation and test records.", race.metric),
        header: [head, tasks("valid"), tasks("test"), tail].concat(),
        rows,
    }
}

/// Cells without a result.
pub(super) fn missing(race: &Race) -> Option<ReportTable> {
    let row = |(cell, why): &(super::Cell, String)| vec![cell.name(&race.tasks), why.clone()];
    (!race.missing.is_empty()).then(|| ReportTable {
        title: "Without a result".into(),
        caption:
            "A learning rate counts once all of its seeds have a result. The same command runs these again."
                .into(),
        header: ["cell", "why"].map(String::from).to_vec(),
        rows: race.missing.iter().map(row).collect(),
    })
}
