//! Values of settings against the schema: their types, their bounds, and the words that are allowed.

use crate::error::{Error, Result};
use serde_json::Value as Json;
use toml::Value;

/// Checks one value against its (resolved) `node` of the schema.
///
/// # Errors
/// What the value is not; where it is one word of several, the nearest.
pub fn check(value: &Value, node: &Json) -> Result<()> {
    let words = words(node);
    if !words.is_empty() {
        return match value.as_str() {
            Some(word) if words.contains(&word) => Ok(()),
            Some(word) => Err(Error::usage(format!("there is no {word:?}")).meant(word, &words)),
            None => Err(wrong(value, "a word").remedy(format!("one of {}", words.join(", ")))),
        };
    }
    let kind = kind(node);
    let whole = kind == Some("integer");
    match (kind, value) {
        (Some("integer"), Value::Integer(n)) => bounds(*n as f64, value, node),
        (Some("number"), Value::Integer(n)) => bounds(*n as f64, value, node),
        (Some("number"), Value::Float(x)) if x.is_finite() => bounds(*x, value, node),
        (Some("integer" | "number"), _) => Err(number(value, node, whole)),
        (Some("boolean"), Value::Boolean(_)) | (Some("string"), Value::String(_)) => Ok(()),
        (Some("boolean"), _) => Err(wrong(value, "a switch").remedy("true or false, without quotes")),
        (Some("string"), _) => Err(wrong(value, "a text").remedy(format!("write '\"{}\"'", plain(value)))),
        (Some("array"), Value::Array(list)) => array(list, node),
        (Some("array"), _) => Err(wrong(value, "a list").remedy(format!("write [{value}]"))),
        (Some("object"), Value::Table(_)) | (None, _) => Ok(()),
        (Some(_), _) => Err(wrong(value, "a section").remedy("write section.key=value")),
    }
}

fn wrong(value: &Value, wanted: &str) -> Error {
    Error::usage(format!("{value} instead of {wanted}"))
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_string)
}

/// The words that a setting may be, if it may be these only.
fn words(node: &Json) -> Vec<&str> {
    let listed = node["oneOf"].as_array().into_iter().flatten().filter_map(|o| o["const"].as_str());
    let plain = node["enum"].as_array().into_iter().flatten().filter_map(Json::as_str);
    listed.chain(plain).collect()
}

/// The type, without `null`.
fn kind(node: &Json) -> Option<&str> {
    match &node["type"] {
        Json::Array(kinds) => kinds.iter().filter_map(Json::as_str).find(|k| *k != "null"),
        kind => kind.as_str(),
    }
}

fn bounds(number: f64, value: &Value, node: &Json) -> Result<()> {
    let bound = |key: &str| node[key].as_f64();
    let low = bound("minimum").is_some_and(|m| number < m)
        || bound("exclusiveMinimum").is_some_and(|m| number <= m);
    let high = bound("maximum").is_some_and(|m| number > m)
        || bound("exclusiveMaximum").is_some_and(|m| number >= m);
    match low || high {
        false => Ok(()),
        true => Err(Error::usage(format!("{value} is out of range")).remedy(allowed(node))),
    }
}

/// The error of what is no number, or no whole one.
fn number(value: &Value, node: &Json, whole: bool) -> Error {
    wrong(value, if whole { "a whole number" } else { "a number" }).remedy(allowed(node))
}

/// The numbers that are allowed, in words.
fn allowed(node: &Json) -> String {
    let bound = |key: &str, words: &str| node[key].as_f64().map(|m| format!("{words} {m}"));
    let low = bound("exclusiveMinimum", "above").or(bound("minimum", "at least"));
    let high = bound("exclusiveMaximum", "below").or(bound("maximum", "at most"));
    let kind = if kind(node) == Some("integer") { "a whole number" } else { "a number" };
    let parts: Vec<String> = low.into_iter().chain(high).collect();
    format!("{kind} {}", parts.join(", ")).trim_end().to_string()
}

fn array(list: &[Value], node: &Json) -> Result<()> {
    let count = |key: &str| node[key].as_u64().map(|n| n as usize);
    let (least, most) = (count("minItems").unwrap_or(0), count("maxItems").unwrap_or(usize::MAX));
    if !(least..=most).contains(&list.len()) {
        let remedy = if least == most { format!("give {least}") } else { format!("give at least {least}") };
        return Err(Error::usage(format!("a list of {}", list.len())).remedy(remedy));
    }
    list.iter().try_for_each(|value| check(value, &node["items"]))
}
