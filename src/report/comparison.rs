//! Measurements before and after training, side by side.

use serde_json::{Map, Value};

/// The measures that come first, and whose first one stands for its group.
const HEADLINES: [&str; 4] = ["ndcg@10", "hit@10", "mrr", "perplexity"];
const HIGHER_IS_BETTER: [&str; 6] = ["ndcg", "hit", "mrr", "map", "recall", "precision"];
const LOWER_IS_BETTER: [&str; 4] = ["perplexity", "kl", "item_mass", "loss"];

/// The key of general knowledge among the tasks.
const GENERAL: &str = "general";

/// Everything measured before and after, in the order of the report.
#[derive(Debug, Default)]
pub(super) struct Comparison {
    /// One group a task.
    pub tasks: Vec<Group>,
    /// General knowledge; without measures when it was not measured.
    pub general: Group,
}

/// The measures of one task.
#[derive(Debug, Default)]
pub(super) struct Group {
    pub name: String,
    pub measures: Vec<Measure>,
}

/// One measure; a value is `None` when it was not measured or is not finite.
#[derive(Debug)]
pub(super) struct Measure {
    pub name: String,
    pub before: Option<f64>,
    pub after: Option<f64>,
}

/// What a change means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Better,
    Worse,
    Same,
}

impl Comparison {
    /// Pairs `{"<task>": {"<metric>": number}, "general": {...}}` before with the same after.
    pub(super) fn new(before: Option<&Value>, after: Option<&Value>) -> Self {
        let empty = Map::new();
        let object = |value: Option<&'_ Value>| value.and_then(Value::as_object).cloned();
        let before = object(before).unwrap_or_else(|| empty.clone());
        let after = object(after).unwrap_or(empty);
        let mut comparison = Self::default();
        for name in union(&after, &before) {
            let group = Group::new(name, before.get(name), after.get(name));
            match name {
                GENERAL => comparison.general = group,
                _ if group.measures.is_empty() => {}
                _ => comparison.tasks.push(group),
            }
        }
        comparison
    }
}

impl Group {
    fn new(name: &str, before: Option<&Value>, after: Option<&Value>) -> Self {
        let empty = Map::new();
        let before = before.and_then(Value::as_object).unwrap_or(&empty);
        let after = after.and_then(Value::as_object).unwrap_or(&empty);
        // A null is a measure that came out NaN; texts and nested objects are no measures.
        let scalar = |value: &Value| value.is_number() || value.is_null();
        let mut measures: Vec<Measure> = union(after, before)
            .filter(|key| [before, after].iter().all(|side| side.get(*key).is_none_or(scalar)))
            .map(|key| Measure {
                name: key.to_string(),
                before: before.get(key).and_then(Value::as_f64),
                after: after.get(key).and_then(Value::as_f64),
            })
            .collect();
        let place = |m: &Measure| HEADLINES.iter().position(|h| *h == m.name).unwrap_or(HEADLINES.len());
        measures.sort_by_key(place);
        Self { name: name.to_string(), measures }
    }

    /// The measure of that name.
    pub(super) fn measure(&self, name: &str) -> Option<&Measure> {
        self.measures.iter().find(|m| m.name == name)
    }
}

impl Measure {
    /// After minus before.
    pub(super) fn change(&self) -> Option<f64> {
        Some(self.after? - self.before?)
    }

    /// The change relative to before; `None` when that is zero.
    pub(super) fn relative(&self) -> Option<f64> {
        let before = self.before.filter(|b| *b != 0.0)?;
        Some(self.change()? / before.abs())
    }

    /// Whether the change is for the better; `None` when unknown which direction is good.
    pub(super) fn verdict(&self) -> Option<Verdict> {
        let stem = self.name.split('@').next().unwrap_or_default();
        let gain = if HIGHER_IS_BETTER.contains(&stem) {
            self.change()?
        } else if LOWER_IS_BETTER.contains(&stem) {
            -self.change()?
        } else {
            return None;
        };
        Some(match gain {
            gain if gain > 0.0 => Verdict::Better,
            gain if gain < 0.0 => Verdict::Worse,
            _ => Verdict::Same,
        })
    }
}

/// The keys of `first`, then those only `second` has.
fn union<'a>(first: &'a Map<String, Value>, second: &'a Map<String, Value>) -> impl Iterator<Item = &'a str> {
    let rest = second.keys().filter(|key| !first.contains_key(*key));
    first.keys().chain(rest).map(String::as_str)
}
