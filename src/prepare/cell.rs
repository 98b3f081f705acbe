//! One value of a table, whatever the table is written in.

use super::literal;
use super::table::Checked;
use crate::data::rows::{Fault, describe};
use crate::error::Error;
use serde::de::{MapAccess, SeqAccess, Visitor, value::MapAccessDeserializer};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use std::borrow::Cow;
use std::fmt;

/// One value of a row.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) enum Cell<'a> {
    /// Absent, null, or an empty CSV field.
    #[default]
    Missing,
    Int(i64),
    Float(f64),
    Text(Cow<'a, str>),
    /// A list or an object.
    Nested(Value),
}

/// The wrong kind of value in `column`.
pub(super) fn wrong(column: &str, cell: &Cell, wanted: &str) -> Fault {
    let error = Error::data(format!("{} instead of {wanted}", cell.describe())).at(column);
    Fault::new("wrong type", error.remedy(format!("write {wanted}, or --skip-bad-rows N")))
}

/// Nothing in `column`, which every row must have.
pub(super) fn absent(column: &str) -> Fault {
    let error = Error::data("missing or empty").at(column);
    Fault::new("missing value", error.remedy("fill it in, or leave such rows out with --skip-bad-rows N"))
}

impl Cell<'_> {
    pub fn describe(&self) -> String {
        match self {
            Cell::Missing => "nothing".into(),
            Cell::Int(n) => format!("the number {n}"),
            Cell::Float(x) => format!("the number {x}"),
            Cell::Text(text) => describe(&Value::from(text.as_ref())),
            Cell::Nested(value) => describe(value),
        }
    }
    pub fn is_missing(&self) -> bool {
        match self {
            Cell::Missing => true,
            Cell::Text(text) => matches!(text.trim(), "" | "nan" | "NaN" | "None" | "null" | "NULL" | "NaT"),
            Cell::Float(x) => x.is_nan(),
            _ => false,
        }
    }
    /// An id as text; an integer that a data frame stored as a float is one. `None`: missing.
    pub fn id(&self, column: &str) -> Checked<Option<Cow<'_, str>>> {
        if self.is_missing() {
            return Ok(None);
        }
        match self {
            Cell::Text(text) => Ok(Some(Cow::Borrowed(match text.trim().strip_suffix(".0") {
                Some(head) if !head.is_empty() && head.bytes().all(|b| b.is_ascii_digit()) => head,
                _ => text.trim(),
            }))),
            Cell::Int(n) => Ok(Some(Cow::Owned(n.to_string()))),
            Cell::Float(x) if x.fract() == 0.0 && x.abs() < 9e15 => {
                Ok(Some(Cow::Owned((*x as i64).to_string())))
            }
            other => Err(wrong(column, other, "a string or an integer")),
        }
    }
    /// A finite number. `None`: missing.
    pub fn number(&self, column: &str) -> Checked<Option<f64>> {
        if self.is_missing() {
            return Ok(None);
        }
        let number = match self {
            Cell::Int(n) => Some(*n as f64),
            Cell::Float(x) => Some(*x),
            Cell::Text(text) => match text.trim() {
                "True" | "true" => Some(1.0),
                "False" | "false" => Some(0.0),
                text => text.parse().ok(),
            },
            _ => None,
        };
        match number.filter(|x| x.is_finite()) {
            Some(x) => Ok(Some(x)),
            None => Err(wrong(column, self, "a finite number")),
        }
    }
    /// A text that says something, surrounding blanks removed.
    pub fn text(&self, column: &str) -> Checked<Option<Cow<'_, str>>> {
        if self.is_missing() {
            return Ok(None);
        }
        match self {
            Cell::Text(text) => Ok(Some(Cow::Borrowed(text.trim()))),
            Cell::Int(n) => Ok(Some(Cow::Owned(n.to_string()))),
            Cell::Float(x) => Ok(Some(Cow::Owned(x.to_string()))),
            other => Err(wrong(column, other, "a string")),
        }
    }
    /// A list or object; a text is read as a JSON, Python or numpy literal. Missing: null.
    pub fn nested(&self, column: &str) -> Checked<Value> {
        match self {
            _ if self.is_missing() => Ok(Value::Null),
            Cell::Nested(value) => Ok(value.clone()),
            Cell::Text(text) => literal::parse(text).map_err(|what| {
                let error = Error::data(format!("{what} of {}", self.describe())).at(column);
                Fault::new(
                    "bad literal",
                    error.remedy("lists like [1, 2] or [1 2], missing values as null or nan"),
                )
            }),
            other => Err(wrong(column, other, "a list")),
        }
    }
}

impl From<Value> for Cell<'static> {
    fn from(value: Value) -> Self {
        match value {
            Value::Null => Cell::Missing,
            Value::Bool(b) => Cell::Int(b.into()),
            Value::Number(n) => {
                n.as_i64().map_or_else(|| Cell::Float(n.as_f64().unwrap_or(f64::NAN)), Cell::Int)
            }
            Value::String(text) => Cell::Text(text.into()),
            nested => Cell::Nested(nested),
        }
    }
}

impl<'de> Deserialize<'de> for Cell<'de> {
    fn deserialize<D: Deserializer<'de>>(source: D) -> std::result::Result<Self, D::Error> {
        source.deserialize_any(AnyCell)
    }
}

struct AnyCell;

impl<'de> Visitor<'de> for AnyCell {
    type Value = Cell<'de>;
    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a value")
    }
    fn visit_unit<E>(self) -> std::result::Result<Self::Value, E> {
        Ok(Cell::Missing)
    }
    fn visit_bool<E>(self, value: bool) -> std::result::Result<Self::Value, E> {
        Ok(Cell::Int(value.into()))
    }
    fn visit_i64<E>(self, value: i64) -> std::result::Result<Self::Value, E> {
        Ok(Cell::Int(value))
    }
    fn visit_u64<E>(self, value: u64) -> std::result::Result<Self::Value, E> {
        Ok(i64::try_from(value).map_or(Cell::Text(value.to_string().into()), Cell::Int))
    }
    fn visit_f64<E>(self, value: f64) -> std::result::Result<Self::Value, E> {
        Ok(Cell::Float(value))
    }
    fn visit_borrowed_str<E>(self, text: &'de str) -> std::result::Result<Self::Value, E> {
        Ok(Cell::Text(Cow::Borrowed(text)))
    }
    fn visit_str<E>(self, text: &str) -> std::result::Result<Self::Value, E> {
        Ok(Cell::Text(Cow::Owned(text.into())))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> std::result::Result<Self::Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = list.next_element()? {
            values.push(value);
        }
        Ok(Cell::Nested(Value::Array(values)))
    }
    fn visit_map<A: MapAccess<'de>>(self, map: A) -> std::result::Result<Self::Value, A::Error> {
        Value::deserialize(MapAccessDeserializer::new(map)).map(Cell::Nested)
    }
}
