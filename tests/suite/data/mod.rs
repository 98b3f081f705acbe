//! Records, prompts, tokens, packing: against worked examples, golden batches and properties.

mod balance;
mod encoding;
mod general;
mod packing;
mod parquet;
mod prompts;
mod reading;
mod rows;
mod semantic;
mod tokens;

use crate::support::Golden;
use gems_engine::data::*;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

fn write(dir: &Path, name: &str, rows: &[Value]) {
    let lines: Vec<String> = rows.iter().map(Value::to_string).collect();
    std::fs::write(dir.join(name), lines.join("\n") + "\n").unwrap();
}

fn cue() -> DataSettings {
    DataSettings { prompts: PromptPreset::Cue, ..DataSettings::default() }
}

/// A small directory with items 0..n (ids are numbers, titles are words).
fn directory(n: usize, train: &[Value]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let items: Vec<Value> = (0..n).map(|i| json!({"item": i, "text": format!("title {i}")})).collect();
    write(dir.path(), "items.jsonl", &items);
    write(dir.path(), "train.jsonl", train);
    dir
}

fn is_t5(golden: &Golden, model: &str) -> bool {
    golden.json(&format!("models/{model}/config.json"))["is_encoder_decoder"] == true
}

fn architecture(golden: &Golden, model: &str) -> PromptSide {
    let config = golden.json(&format!("models/{model}/config.json"));
    match is_t5(golden, model) {
        true => {
            PromptSide::Encoder { decoder_start: config["decoder_start_token_id"].as_u64().unwrap() as u32 }
        }
        false => PromptSide::Decoder,
    }
}

fn catalogue(ids: &[String]) -> Catalogue {
    let mut items = Catalogue::default();
    ids.iter().for_each(|id| {
        items.add(id, Some(&format!("warm {id}"))).unwrap();
    });
    items
}

/// The first model of a kind; of encoder-decoders one of T5's own, if there is one.
fn some_model(golden: &Golden, t5: bool) -> PathBuf {
    let of_kind = || golden.folders("models").into_iter().filter(|m| is_t5(golden, m) == t5);
    let name = of_kind().find(|m| m.starts_with("t5")).or_else(|| of_kind().next()).unwrap();
    golden.dir.join("models").join(name)
}

/// Everything an encoder needs, over one of the golden tokenizers.
struct Bench {
    items: Catalogue,
    vocabulary: Vocabulary,
    prompts: Prompts,
    tasks: Vec<String>,
    settings: DataSettings,
    kind: PromptSide,
}

impl Bench {
    fn new(t5: bool, settings: DataSettings) -> Self {
        let kind = if t5 { PromptSide::Encoder { decoder_start: 0 } } else { PromptSide::Decoder };
        let items = catalogue(&(0..40).map(|i| i.to_string()).collect::<Vec<_>>());
        let dir = some_model(&Golden::open(), t5);
        let vocabulary = Vocabulary::new(&dir, &items, &settings, kind, None).unwrap();
        let prompts = Prompts::new(&settings, None, Some(&vocabulary)).unwrap();
        Self { items, vocabulary, prompts, tasks: vec!["rec".into(), "search".into()], settings, kind }
    }
    fn encoder(&self) -> Encoder<'_> {
        Encoder::new(&self.vocabulary, &self.prompts, &self.tasks, self.kind, &self.settings)
    }
    /// Items named in a prompt, in order.
    fn items_of(&self, tokens: &[u32]) -> Vec<u32> {
        let number = |t: &u32| (0..self.items.len() as u32).find(|i| self.vocabulary.item(*i) == [*t]);
        tokens.iter().filter_map(number).collect()
    }
}

fn record(task: u32, history: &[u32], query: Option<&str>, target: &[u32]) -> Record {
    Record {
        task,
        history: history.into(),
        query: query.map(Into::into),
        target: target.into(),
        ..Record::default()
    }
}
