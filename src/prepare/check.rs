//! Looks at a data directory before a run does, and explains.

use super::card::grouped;
use super::leaks::{Held, Leaks};
use super::requests::Part;
use crate::data::{
    Catalogue, DataSettings, Dataset, GeneralText, ItemIdentity, PromptSide, Record, Split, Vocabulary,
};
use crate::error::Result;
use serde::Serialize;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write;
use std::path::Path;

/// What a data directory is like.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Check {
    /// What a run would stumble over. Empty: the directory can be used.
    pub problems: Vec<String>,
    /// What to know about it.
    pub notes: Vec<String>,
    /// Items.
    pub items: usize,
    /// Items with a text.
    pub items_with_text: usize,
    /// Rows by split and task.
    pub rows: BTreeMap<String, BTreeMap<String, usize>>,
    /// Mean history items of a row, by split.
    pub history: BTreeMap<String, f64>,
    /// Test pairs that training gives away; of rows that name their user.
    pub leaks: Leaks,
    /// Share of those pairs.
    pub leak_rate: f64,
    /// Share of the test targets that training never has as a target.
    pub cold_targets: f64,
    /// Share of the negatives in test rows that the same user takes in training.
    pub negatives_taken: f64,
    /// Documents of general text: to learn from, held out.
    pub general: (usize, usize),
    /// Share of the queries and of the items' texts that a model's tokenizer cannot write down again.
    pub lost_words: BTreeMap<&'static str, f64>,
}

/// Most texts of a kind that are tried on a tokenizer.
const TRIED: usize = 2000;

/// Checks `dir` as training with `settings` would read it; with the directory of a `model`, also whether its
/// tokenizer knows the words.
///
/// # Errors
/// What cannot be read at all; rows that are not as they must be become problems.
pub fn check(dir: &Path, settings: &DataSettings, model: Option<&Path>) -> Result<Check> {
    let tolerant = DataSettings { skip_bad_rows: usize::MAX, ..settings.clone() };
    let data = Dataset::load(dir, &tolerant)?;
    let mut check = Check {
        items: data.items.len(),
        items_with_text: (0..data.items.len() as u32).filter(|i| data.items.text(*i).is_some()).count(),
        ..Check::default()
    };
    for (reason, n) in &data.skipped {
        let first = data.first_faults.get(reason).map_or("", String::as_str);
        check.problems.push(format!("{n} bad rows: {reason}, the first: {first}"));
    }
    for split in [&data.train, &data.valid, &data.test].into_iter().chain(&data.extra) {
        check.count(&data, split);
    }
    check.look_for_leaks(&data);
    check.look_at_targets(&data);
    check.look_at_items(&data);
    check.notes.extend(super::notes::not_read(&data.unread));
    let general = GeneralText::load(&data.general, settings)?;
    check.general = (general.calibration.len(), general.held_out.len());
    if general.calibration.is_empty() {
        check.notes.push(format!(
            "no general text: nothing to learn a null space from or to measure forgetting with; put a general.txt \
             there, or gems-engine prepare sample --model MODEL --out {}/general.jsonl",
            dir.display()
        ));
    }
    if let Some(model) = model {
        check.look_at_words(&data, model)?;
    }
    Ok(check)
}

impl Check {
    fn count(&mut self, data: &Dataset, split: &Split) {
        let rows = self.rows.entry(split.name.clone()).or_default();
        for record in &split.records {
            *rows.entry(data.tasks[record.task as usize].clone()).or_default() += 1;
        }
        let items: usize = split.records.iter().map(|r| r.history.len()).sum();
        self.history.insert(split.name.clone(), items as f64 / split.records.len().max(1) as f64);
        if split.records.is_empty() {
            let what = match split.name.as_str() {
                "train" => "nothing can be trained",
                "valid" => "no best checkpoint can be chosen",
                _ => "nothing can be judged",
            };
            self.problems.push(format!("{} has no rows: {what}", split.name));
        }
    }

    fn look_for_leaks(&mut self, data: &Dataset) {
        let mut pairs: HashMap<&str, Vec<(u32, Part)>> = HashMap::new();
        for record in &data.test.records {
            if let Some(user) = record.user.as_deref() {
                pairs.entry(user).or_default().extend(record.target.iter().map(|t| (*t, Part::Test)));
            }
        }
        let mut held: HashMap<&str, Held> = pairs.into_iter().map(|(u, p)| (u, Held::new(p))).collect();
        for record in &data.train.records {
            if let Some(held) = record.user.as_deref().and_then(|u| held.get_mut(u)) {
                held.train(record.task as u8, &record.history, &record.target);
            }
        }
        for record in &data.test.records {
            if let Some(held) = record.user.as_deref().and_then(|u| held.get(u)) {
                held.test(record.task as u8, &record.history, &record.target, &mut self.leaks);
            }
        }
        self.leak_rate = self.leaks.rate();
        if self.leaks.any > 0 {
            self.notes.push(format!(
                "{:.1} % of the test pairs of user and target are known from training: metrics will be too good",
                100.0 * self.leak_rate
            ));
        }
        let anonymous = data.test.records.iter().filter(|r| r.user.is_none()).count();
        if anonymous > 0 {
            self.notes.push(format!("{anonymous} test rows name no user: their leaks cannot be measured"));
        }
        let row = |r: &'_ Record| (r.task, r.history.clone(), r.query.clone(), r.target.clone());
        let seen: HashSet<_> = data.train.records.iter().map(row).collect();
        let again = data.test.records.iter().filter(|r| seen.contains(&row(r))).count();
        if again > 0 {
            self.notes
                .push(format!("{again} test rows are also training rows, history, query and target alike"));
        }
    }

    fn look_at_targets(&mut self, data: &Dataset) {
        let trained: HashSet<u32> =
            data.train.records.iter().flat_map(|r| r.target.iter().copied()).collect();
        let targets = || data.test.records.iter().flat_map(|r| r.target.iter());
        let cold = targets().filter(|t| !trained.contains(t)).count();
        self.cold_targets = cold as f64 / targets().count().max(1) as f64;
        if cold > 0 {
            self.notes.push(format!(
                "{:.1} % of the test targets are cold (no training target): atomic item tokens cannot reach them",
                100.0 * self.cold_targets
            ));
        }
        let mut taken: HashMap<&str, HashSet<u32>> = HashMap::new();
        for record in &data.train.records {
            if let Some(user) = record.user.as_deref() {
                taken.entry(user).or_default().extend(record.target.iter());
            }
        }
        let (mut bad, mut all) = (0, 0);
        for record in &data.test.records {
            let known = record.user.as_deref().and_then(|u| taken.get(u));
            all += record.negatives.len();
            bad += record.negatives.iter().filter(|n| known.is_some_and(|k| k.contains(n))).count();
        }
        self.negatives_taken = bad as f64 / all.max(1) as f64;
        if bad > 0 {
            self.notes.push(format!(
                "{bad} of {all} test negatives are items that the same user takes in training"
            ));
        }
    }

    fn look_at_items(&mut self, data: &Dataset) {
        let mut texts: HashMap<&str, usize> = HashMap::new();
        for text in (0..data.items.len() as u32).filter_map(|i| data.items.text(i)) {
            *texts.entry(text).or_default() += 1;
        }
        let shared: usize = texts.values().filter(|n| **n > 1).sum();
        if shared > 0 {
            self.notes.push(format!("{shared} items share their text with another"));
        }
        if self.items_with_text < self.items {
            let without = self.items - self.items_with_text;
            self.notes.push(format!(
                "{without} of {} items have no text: only atomic item tokens work",
                self.items
            ));
        }
    }

    fn look_at_words(&mut self, data: &Dataset, model: &Path) -> Result<()> {
        // A catalogue without items adds no tokens.
        let plain = DataSettings { item_identity: ItemIdentity::Text, ..DataSettings::default() };
        let vocabulary = Vocabulary::new(model, &Catalogue::default(), &plain, PromptSide::Decoder, None)?;
        let queries = data.test.records.iter().chain(&data.train.records).filter_map(|r| r.query.as_deref());
        let texts = (0..data.items.len() as u32).filter_map(|i| data.items.text(i));
        let kinds: [(&'static str, Vec<&str>); 2] =
            [("queries", queries.take(TRIED).collect()), ("items", texts.take(TRIED).collect())];
        let letters = |text: &str| -> String { text.chars().filter(|c| c.is_alphanumeric()).collect() };
        for (kind, texts) in kinds.into_iter().filter(|(_, t)| !t.is_empty()) {
            let mut lost = 0;
            for text in &texts {
                let again = vocabulary.decode(&vocabulary.plain(text)?, true)?;
                lost += usize::from(letters(&again).to_lowercase() != letters(text).to_lowercase());
            }
            let share = lost as f64 / texts.len() as f64;
            self.lost_words.insert(kind, share);
            if share > 0.01 {
                self.notes.push(format!(
                    "this model's tokenizer loses words of {:.0} % of the {kind}: choose a model of their language",
                    100.0 * share
                ));
            }
        }
        let (items, own) = (data.items.len(), vocabulary.base_size());
        if items > own {
            self.notes.push(format!(
                "{items} atomic item tokens are more than the model's own {own}: consider semantic ids, or fewer items"
            ));
        }
        Ok(())
    }

    /// The findings in words.
    pub fn describe(&self) -> String {
        let mut text = String::new();
        let mut line = |what: &str, value: String| {
            let _ = writeln!(text, "{what:<44} {value:>14}");
        };
        line("items", grouped(self.items as u64));
        line("  with a text", grouped(self.items_with_text as u64));
        for (split, tasks) in &self.rows {
            line(&format!("{split} rows"), grouped(tasks.values().sum::<usize>() as u64));
            for (task, n) in tasks {
                line(&format!("  {task}"), grouped(*n as u64));
            }
            line("  mean history items", format!("{:.1}", self.history.get(split).unwrap_or(&0.0)));
        }
        let of = grouped(self.leaks.pairs);
        line("test pairs known from training", format!("{:.2} % of {of}", 100.0 * self.leak_rate));
        line("test targets that are cold", format!("{:.2} %", 100.0 * self.cold_targets));
        line("general documents, held out", format!("{}, {}", self.general.0, self.general.1));
        for note in &self.notes {
            let _ = writeln!(text, "note: {note}");
        }
        for problem in &self.problems {
            let _ = writeln!(text, "problem: {problem}");
        }
        if self.problems.is_empty() {
            text.push_str("the directory can be used\n");
        }
        text
    }
}
