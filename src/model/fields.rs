//! Fields of a configuration, with named errors and bounds.

use crate::error::{Error, Result};
use serde_json::Value;

/// Reads fields of a JSON object.
pub(super) struct Fields<'a> {
    pub json: &'a Value,
    /// Names the object in errors.
    pub place: String,
}

impl<'a> Fields<'a> {
    /// The error of a field whose value is not among those `supported`.
    pub fn bad(&self, name: &str, supported: &str) -> Error {
        let value = self.json.get(name).map_or("missing".to_string(), Value::to_string);
        Error::model(format!("`{name}` is {value}")).at(&self.place).remedy(format!("supported: {supported}"))
    }
    fn given(&self, name: &str) -> Option<&'a Value> {
        self.json.get(name).filter(|value| !value.is_null())
    }
    /// Whether the field is there and not null.
    pub fn has(&self, name: &str) -> bool {
        self.given(name).is_some()
    }
    /// The first object among some fields; fields of nothing if there is none.
    pub fn object(&self, names: &[&str], what: &str) -> Fields<'a> {
        let found = names.iter().find_map(|name| self.json.get(*name).filter(|v| v.is_object()));
        Fields { json: found.unwrap_or(&Value::Null), place: format!("{}: {what}", self.place) }
    }
    /// A size.
    pub fn size(&self, name: &str) -> Result<usize> {
        self.json[name]
            .as_u64()
            .filter(|n| (1..=1 << 24).contains(n))
            .map(|n| n as usize)
            .ok_or_else(|| self.bad(name, "a whole number from 1 to 16777216"))
    }
    /// A number of layers: each costs memory before any weight is looked at.
    pub fn layers(&self, name: &str, default: Option<usize>) -> Result<usize> {
        let given = default.map_or_else(|| self.size(name), |n| self.size_or(name, n)).ok();
        given.filter(|n| *n <= 1024).ok_or_else(|| self.bad(name, "a whole number from 1 to 1024"))
    }
    /// A size, or `default` where it is left out or null.
    pub fn size_or(&self, name: &str, default: usize) -> Result<usize> {
        if self.has(name) { self.size(name) } else { Ok(default) }
    }
    /// A positive number, or `default` where it is left out or null.
    pub fn number_or(&self, name: &str, default: f64) -> Result<f64> {
        let positive = |value: &Value| value.as_f64().filter(|n| n.is_finite() && *n > 0.0);
        let Some(value) = self.given(name) else { return Ok(default) };
        positive(value).ok_or_else(|| self.bad(name, "a positive number"))
    }
    /// A positive number; null means none, left out means `default`.
    pub fn optional(&self, name: &str, default: Option<f64>) -> Result<Option<f64>> {
        match self.json.get(name) {
            None => Ok(default),
            Some(Value::Null) => Ok(None),
            Some(_) => self.number_or(name, 0.0).map(Some),
        }
    }
    /// `count` positive numbers.
    pub fn numbers(&self, name: &str, count: usize) -> Result<Vec<f64>> {
        let list = self.json[name].as_array().into_iter().flatten().map(|v| v.as_f64().filter(|n| *n > 0.0));
        let found: Option<Vec<f64>> = list.collect();
        let wanted = || self.bad(name, &format!("a list of {count} positive numbers"));
        found.filter(|list| list.len() == count).ok_or_else(wanted)
    }
    /// True or false.
    pub fn flag_or(&self, name: &str, default: bool) -> Result<bool> {
        let Some(value) = self.given(name) else { return Ok(default) };
        value.as_bool().ok_or_else(|| self.bad(name, "true or false"))
    }
    /// A text.
    pub fn text_or<'b>(&'b self, name: &str, default: &'b str) -> Result<&'b str> {
        let Some(value) = self.given(name) else { return Ok(default) };
        value.as_str().ok_or_else(|| self.bad(name, "a text"))
    }
    /// A token, or the first of a list.
    pub fn token(&self, name: &str) -> Option<u32> {
        match &self.json[name] {
            Value::Array(list) => list.first().and_then(Value::as_u64),
            value => value.as_u64(),
        }
        .and_then(|t| u32::try_from(t).ok())
    }
    /// A token, or a list of them.
    pub fn tokens(&self, name: &str) -> Vec<u32> {
        match &self.json[name] {
            Value::Array(list) => list.iter().filter_map(|v| v.as_u64().map(|t| t as u32)).collect(),
            value => value.as_u64().map(|t| t as u32).into_iter().collect(),
        }
    }
}
