//! A run's settings by their dotted names, as tables and pages tell them.

use crate::error::{Error, Result};
use serde_json::{Map, Value, json};
use std::path::Path;

/// The settings that a run was started with; none where they cannot be read as TOML.
pub fn of(run: &Path) -> Result<toml::Table> {
    let path = run.join("config.toml");
    let text = std::fs::read_to_string(&path).map_err(|e| Error::io("read", &path, e))?;
    Ok(text.parse().unwrap_or_default())
}

/// Every setting by its dotted name.
pub fn by_name(table: &toml::Table) -> Map<String, Value> {
    fn collect(prefix: &str, table: &toml::Table, all: &mut Map<String, Value>) {
        for (key, value) in table {
            match value {
                toml::Value::Table(inner) => collect(&format!("{prefix}{key}."), inner, all),
                value => drop(all.insert(format!("{prefix}{key}"), json!(value))),
            }
        }
    }
    let mut all = Map::new();
    collect("", table, &mut all);
    all
}

/// The same for a page that is passed on. Of an absolute path the last part is told: where it lies on the machine that it was
/// on is nobody's business.
pub fn shareable(table: &toml::Table) -> Vec<(String, Value)> {
    fn told(value: Value) -> Value {
        match value {
            Value::String(text) if Path::new(&text).is_absolute() => {
                json!(Path::new(&text).file_name().map_or("/".into(), |name| name.to_string_lossy()))
            }
            Value::Array(values) => values.into_iter().map(told).collect(),
            other => other,
        }
    }
    by_name(table).into_iter().map(|(name, value)| (name, told(value))).collect()
}
