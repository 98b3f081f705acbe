//! The embedded demo: a tiny pretrained model and a world of search and recommendation to tune it for.
//!
//! Made by `assets/make/build.sh`; `docs/demo.md` says what it is and what it may claim.

use crate::config::{Config, Layer};
use crate::error::{Error, Result};
use std::path::{Path, PathBuf};

/// What the rows of the demo's table are.
pub const LEGEND: &str = "rec: what is bought next; search: what is looked for; knowledge.search: the same in words that no log contains\n";

/// Where the demo is unpacked inside its run, so that the run is whole by itself.
pub const INSIDE: &str = "demo";

/// Where the model and the data of a run come from.
pub enum Source {
    /// The demo, unpacked in this directory.
    Demo(PathBuf),
    /// The user named them.
    Given,
}

impl Source {
    /// That of the run in `run`. Both it and the paths of `config` are whole.
    pub fn of_run(run: &Path, config: &Config) -> Self {
        let demo = run.join(INSIDE);
        let own = |path: &str, name: &str| Path::new(path) == demo.join(name);
        match own(&config.model.path, "model") && own(&config.data.path, "data") {
            true => Source::Demo(demo),
            false => Source::Given,
        }
    }
}

const SETTINGS: &str = include_str!("../../assets/demo.toml");

macro_rules! files {
    ($($name:literal $packed:literal),* $(,)?) => {
        &[$(($name, $packed, include_bytes!(concat!("../../assets/demo/", $name, $packed)) as &[u8])),*]
    };
}

/// (path, `.zst` where packed, content) of every file.
const FILES: &[(&str, &str, &[u8])] = files![
    "model/config.json" "",
    "model/tokenizer_config.json" "",
    "model/tokenizer.json" ".zst",
    "model/model.safetensors" ".zst",
    "data/items.jsonl" ".zst",
    "data/train.jsonl" ".zst",
    "data/valid.jsonl" ".zst",
    "data/test.jsonl" ".zst",
    "data/test-knowledge.jsonl" ".zst",
    "data/general.txt" ".zst",
    "data/general-heldout.txt" ".zst",
    "data/sentences.txt" ".zst",
];

/// The demo's settings, with its model and data under `directory`.
pub fn settings(directory: &Path) -> Result<Vec<Layer>> {
    let table = SETTINGS.parse().map_err(|e: toml::de::Error| Error::data(e.to_string()).at("the demo"))?;
    let path = |name: &str| toml::Value::from(directory.join(name).display().to_string());
    Ok(vec![
        Layer::table("the demo's settings", table),
        Layer::value("the demo", "model.path", path("model")),
        Layer::value("the demo", "data.path", path("data")),
    ])
}

/// Writes the demo's model and data under `directory`; what is there already stays.
pub fn unpack(directory: &Path) -> Result<()> {
    for (name, packed, bytes) in FILES {
        let path = directory.join(name);
        if path.is_file() {
            continue;
        }
        let parent = path.parent().unwrap_or(directory);
        std::fs::create_dir_all(parent).map_err(|e| Error::io("create", parent, e))?;
        let content = match packed.is_empty() {
            true => bytes.to_vec(),
            false => zstd::decode_all(*bytes).map_err(|e| Error::io("unpack", &path, e))?,
        };
        crate::files::write_atomically(&path, &content)?;
    }
    Ok(())
}
