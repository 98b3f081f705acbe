//! Layers of settings: defaults < file < `--set` < flags, merged as TOML tables.
//!
//! Every layer is checked against the schema by itself, so that a misspelt key or a value that cannot be is reported
//! with the place it came from and the nearest that exists.

use super::values;
use crate::error::{Error, Result};
use serde_json::Value as Json;
use std::path::Path;
use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

/// One source of settings and its name for messages (`run.toml`, `--set`).
pub struct Layer {
    /// Where it came from.
    pub source: String,
    /// The settings.
    pub table: Table,
    /// The text that they stand in, if they stand in one.
    text: Option<String>,
}

impl Layer {
    /// Reads a TOML file.
    pub fn file(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io("read the configuration", path, e))?;
        let table = text.parse::<Table>().map_err(|e| {
            Error::usage(format!("not valid TOML: {}", e.message()))
                .at(place_of(&text, e.span()))
                .at(path.display())
        })?;
        Ok(Self { source: path.display().to_string(), table, text: Some(text) })
    }
    /// Settings that stand in no file of the user's.
    pub fn table(source: impl Into<String>, table: Table) -> Self {
        Self { source: source.into(), table, text: None }
    }
    /// Parses `a.b.c=value`; the value is TOML, or a bare string.
    pub fn assignment(text: &str) -> Result<Self> {
        let (key, value) = text.split_once('=').ok_or_else(|| {
            Error::usage(format!("`{text}` is not an assignment"))
                .at("--set")
                .remedy("write --set section.key=value")
        })?;
        let value = value.trim();
        let parsed = format!("v = {value}").parse::<Table>().ok().and_then(|mut t| t.remove("v"));
        Ok(Self::value("--set", key.trim(), parsed.unwrap_or_else(|| Value::from(value))))
    }
    /// The value of a key of the top level.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.table.get(key)
    }
    /// A single value under a dotted key.
    pub fn value(source: &str, key: &str, value: Value) -> Self {
        let mut parts: Vec<&str> = key.split('.').collect();
        let last = parts.pop().unwrap_or_default();
        let mut table = Table::from_iter([(last.to_string(), value)]);
        for part in parts.into_iter().rev() {
            table = Table::from_iter([(part.to_string(), Value::Table(table))]);
        }
        Self::table(source, table)
    }

    /// `error`, which is about the setting `key`, with the place where it stands.
    fn blame(&self, key: &str, error: Error) -> Error {
        let line = self.text.as_deref().and_then(|text| line_of(text, key));
        let error = if let Some(line) = line { error.at(line) } else { error };
        error.at(&self.source)
    }
}

/// The line on which the setting of a dotted key stands, or the first that is below it.
fn line_of(text: &str, key: &str) -> Option<String> {
    let root = DeTable::parse(text).ok()?;
    let (mut table, mut place) = (root.get_ref(), None);
    for part in key.split('.') {
        let (name, value) = table.get_key_value(part)?;
        place = Some(name.span());
        match value.get_ref() {
            DeValue::Table(inner) => table = inner,
            _ => break,
        }
    }
    Some(place_of(text, place))
}

fn place_of(text: &str, span: Option<std::ops::Range<usize>>) -> String {
    let start = span.map_or(0, |s| s.start).min(text.len());
    format!("line {}", text[..start].matches('\n').count() + 1)
}

/// Merges layers, later ones over earlier ones, after checking every key and value of each against `schema`.
pub fn merge(layers: &[Layer], schema: &Json) -> Result<Table> {
    let mut merged = Table::new();
    for layer in layers {
        check(&layer.table, schema, schema, "").map_err(|(key, error)| layer.blame(&key, error))?;
        overlay(&mut merged, &layer.table);
    }
    Ok(merged)
}

/// `error`, about settings that do not go together: with the file and line of the first that it names, if a file has it.
pub fn blame(layers: &[Layer], error: Error) -> Error {
    let named = error.place().and_then(|place| place.split([',', ':', ' ']).next()).map(String::from);
    let Some(key) = named else { return error };
    let sets = |layer: &&Layer| {
        let mut parts = key.split('.');
        let first = parts.next().and_then(|part| layer.table.get(part));
        parts.try_fold(first, |value, part| Some(value?.as_table()?.get(part))).flatten().is_some()
    };
    match layers.iter().rev().find(sets).filter(|layer| layer.text.is_some()) {
        Some(layer) => layer.blame(&key, error),
        None => error,
    }
}

fn overlay(under: &mut Table, over: &Table) {
    for (key, value) in over {
        match (under.get_mut(key), value) {
            (Some(Value::Table(below)), Value::Table(above)) => overlay(below, above),
            (_, value) => {
                under.insert(key.clone(), value.clone());
            }
        }
    }
}

/// Follows `$ref`, and looks through the wrappers schemars puts around optional and defaulted types.
fn resolve<'a>(mut node: &'a Json, root: &'a Json) -> &'a Json {
    for _ in 0..16 {
        if let Some(pointer) = node["$ref"].as_str().and_then(|r| r.strip_prefix('#')) {
            match root.pointer(pointer) {
                Some(target) => node = target,
                None => return node,
            }
        } else if let Some(inner) =
            ["anyOf", "allOf"].iter().find_map(|k| node[*k].as_array()).and_then(|options| {
                options
                    .iter()
                    .find(|o| o["type"] != "null" && (o["$ref"].is_string() || o["properties"].is_object()))
            })
        {
            node = inner;
        } else {
            return node;
        }
    }
    node
}

/// Checks the keys of a table, and the values of those that are no tables. An error comes with the key it is about.
fn check(table: &Table, node: &Json, root: &Json, prefix: &str) -> std::result::Result<(), (String, Error)> {
    let node = resolve(node, root);
    let properties = node["properties"].as_object();
    for (key, value) in table {
        let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        let child = properties.and_then(|p| p.get(key)).or(Some(&node["additionalProperties"]));
        match child.filter(|c| c.is_object()).map(|child| resolve(child, root)) {
            Some(child) => match value {
                Value::Table(inner) if child["type"] == "object" => check(inner, child, root, &path)?,
                value => values::check(value, child).map_err(|e| (path.clone(), e.at(path)))?,
            },
            None => {
                let path = leaf(path, value);
                let nearest = nearest(&path, &known_keys(root));
                let all = "`gems-engine config-schema` prints all settings";
                let error = Error::usage(format!("unknown setting `{path}`")).remedy(match nearest {
                    Some(nearest) => format!("did you mean `{nearest}`? {all}"),
                    None => all.into(),
                });
                return Err((path, error));
            }
        }
    }
    Ok(())
}

/// The dotted key of the only value below `path`, or `path` itself.
fn leaf(path: String, value: &Value) -> String {
    match value.as_table().filter(|table| table.len() == 1).and_then(|table| table.iter().next()) {
        Some((key, inner)) => leaf(format!("{path}.{key}"), inner),
        None => path,
    }
}

/// Every dotted key of the schema.
pub fn known_keys(root: &Json) -> Vec<String> {
    fn walk(node: &Json, root: &Json, prefix: &str, keys: &mut Vec<String>) {
        if let Some(properties) = resolve(node, root)["properties"].as_object() {
            for (name, child) in properties {
                let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
                walk(child, root, &path, keys);
                keys.push(path);
            }
        }
    }
    let mut keys = Vec::new();
    walk(root, root, "", &mut keys);
    keys
}

fn nearest(key: &str, known: &[String]) -> Option<String> {
    let last = |k: &str| k.rsplit('.').next().unwrap_or(k).to_string();
    known
        .iter()
        .map(|k| (strsim::jaro_winkler(key, k).max(0.97 * strsim::jaro_winkler(&last(key), &last(k))), k))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .filter(|(score, _)| *score > 0.75)
        .map(|(_, k)| k.clone())
}
