//! Shapes of well-known models, for benchmarks on random weights: nothing has to be downloaded.
//!
//! Each file in `shapes/` is what the model's own `config.json` says, without what the engine does not read; the
//! PyTorch peers build their models from the same files.

use super::Architecture;
use crate::error::{Error, Result};

/// Names that [`architecture`] knows.
pub const NAMES: [&str; 5] = ["t5-base", "qwen2.5-0.5b", "qwen2.5-1.5b", "qwen2.5-7b", "llama-3.1-8b"];

fn config(name: &str) -> Option<&'static str> {
    Some(match name {
        "t5-base" => include_str!("shapes/t5-base.json"),
        "qwen2.5-0.5b" => include_str!("shapes/qwen2.5-0.5b.json"),
        "qwen2.5-1.5b" => include_str!("shapes/qwen2.5-1.5b.json"),
        "qwen2.5-7b" => include_str!("shapes/qwen2.5-7b.json"),
        "llama-3.1-8b" => include_str!("shapes/llama-3.1-8b.json"),
        _ => return None,
    })
}

/// The architecture of a known model.
///
/// # Errors
/// An unknown name.
pub fn architecture(name: &str) -> Result<Architecture> {
    let text = config(name).ok_or_else(|| {
        Error::usage(format!("no shape is called {name:?}")).remedy(format!("one of {}", NAMES.join(", ")))
    })?;
    let json = serde_json::from_str(text).map_err(|e| Error::model(e.to_string()).at(name))?;
    Architecture::from_json(json, name)
}
