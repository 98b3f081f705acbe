//! Fingerprints of what a run was made of and does not copy.

use crate::data::{Catalogue, Dataset, GeneralText, Record, Split};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::BTreeMap;

const FORMAT: u32 = 1;

/// `sources.json`. Hashes are blake3, in hexadecimal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sources {
    /// Of this file.
    format: u32,
    /// The engine's version.
    pub version: String,
    /// [`Model::fingerprint`](crate::model::Model::fingerprint) of the base model: what config.json says of its shape,
    /// and every weight.
    pub model: String,
    /// [`Vocabulary::fingerprint`](crate::data::Vocabulary::fingerprint): what the base model's files say of tokens.
    pub tokenizer: String,
    /// Of catalogue.jsonl, byte for byte.
    pub catalogue: String,
    /// Records by split: `train`, `valid`, `test`, and `test-NAME`.
    pub records: BTreeMap<String, Part>,
    /// Documents of general text: `calibration`, `held-out`.
    pub general: BTreeMap<String, Part>,
}

/// Things in order: how many, and a hash of what they say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// How many there are.
    pub count: usize,
    /// Of all of them, one after the other.
    pub blake3: String,
}

impl Sources {
    /// Of a model, by its fingerprints, and data. That of the catalogue is known when it is written.
    pub fn of(model: &str, tokenizer: &str, data: &Dataset, general: &GeneralText) -> Self {
        Self {
            format: FORMAT,
            version: env!("CARGO_PKG_VERSION").into(),
            model: model.into(),
            tokenizer: tokenizer.into(),
            catalogue: String::new(),
            records: records(data),
            general: documents(general),
        }
    }

    pub(super) fn check_format(&self) -> Result<()> {
        match self.format {
            FORMAT => Ok(()),
            other => Err(Error::data(format!("format {other} is not the {FORMAT} that this version reads"))
                .remedy("use the run with the version that made it")),
        }
    }

    /// Refuses another base model or tokenizer.
    ///
    /// # Errors
    /// Says which of them it is.
    pub fn check_model(&self, model: &str, tokenizer: &str) -> Result<()> {
        let what = match (self.model == model, self.tokenizer == tokenizer) {
            (true, true) => return Ok(()),
            (false, _) => {
                "this is not the base model that the run was made of: its weights or shape are others"
            }
            (_, false) => {
                "the tokenizer is not the one that the run was made with: texts or tokens would have other ids"
            }
        };
        Err(Error::model(what).remedy("put it back, or say where it is with --set model.path=DIR"))
    }
}

/// The parts of a data directory's records.
pub(super) fn records(data: &Dataset) -> BTreeMap<String, Part> {
    let fixed = [("train", &data.train), ("valid", &data.valid), ("test", &data.test)];
    let fixed = fixed.into_iter().map(|(name, split)| (name.to_string(), split));
    let extra = data.extra.iter().map(|split| (format!("test-{}", split.name), split));
    let all = fixed.chain(extra).filter(|(_, split)| !split.records.is_empty());
    all.map(|(name, split)| (name, part(split, &data.items, &data.tasks))).collect()
}

/// A split's records, by the names of tasks and items: the format of the file and the items' order do not count.
pub fn part(split: &Split, items: &Catalogue, tasks: &[String]) -> Part {
    let mut hasher = blake3::Hasher::new();
    for record in &split.records {
        let Record { task, user, history, query, target, answer, negatives, timestamp, text } = record;
        let ids = |numbers: &[u32]| numbers.iter().map(|n| items.id(*n)).collect::<Vec<_>>();
        let (history, target, negatives) = (ids(history), ids(target), ids(negatives));
        let task = &tasks[*task as usize];
        let row = json!([task, user, history, query, target, answer, negatives, timestamp, text]);
        hasher.update(row.to_string().as_bytes());
        hasher.update(b"\n");
    }
    Part { count: split.records.len(), blake3: hasher.finalize().to_hex().to_string() }
}

/// The parts of general text.
pub(super) fn documents(general: &GeneralText) -> BTreeMap<String, Part> {
    let part = |all: &[String]| {
        let mut hasher = blake3::Hasher::new();
        for document in all {
            hasher.update(&(document.len() as u64).to_le_bytes());
            hasher.update(document.as_bytes());
        }
        Part { count: all.len(), blake3: hasher.finalize().to_hex().to_string() }
    };
    let all = [("calibration", &general.calibration), ("held-out", &general.held_out)];
    all.into_iter().map(|(name, texts)| (name.to_string(), part(texts))).collect()
}

/// What differs between parts then and now, in words, by name of the part.
pub(super) fn differences(
    then: &BTreeMap<String, Part>,
    now: &BTreeMap<String, Part>,
    things: &str,
) -> BTreeMap<String, String> {
    let names = then.keys().chain(now.keys().filter(|name| !then.contains_key(*name)));
    let say = |name: &String| match (then.get(name), now.get(name)) {
        (Some(a), Some(b)) if a == b => None,
        (Some(a), Some(b)) if a.count == b.count => {
            Some(format!("{name}: {} {things}, but not the same or not in the same order", a.count))
        }
        (a, b) => {
            let count = |part: Option<&Part>| part.map_or("none".into(), |p| p.count.to_string());
            Some(format!("{name}: {} {things} then, {} now", count(a), count(b)))
        }
    };
    names.filter_map(|name| Some((name.clone(), say(name)?))).collect()
}
