//! One value of a table, whatever the table is written in.

use super::literal;
use super::unit::Unit;
use crate::data::fault::{Checked, Fault, describe, describe_text};
use crate::error::Error;
use serde::de::{MapAccess, SeqAccess, Visitor, value::MapAccessDeserializer};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use std::borrow::Cow;
use std::fmt;

/// One value of a row.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) enum Cell<'a> {
    /// Absent, null, or an empty field.
    #[default]
    Missing,
    Bool(bool),
    Int(i64),
    /// An integer beyond `i64`.
    Unsigned(u64),
    Float(f64),
    /// A string of a format that tells strings from numbers: it is what it is, whatever it spells.
    Text(Cow<'a, str>),
    /// A field of a text format that does not, without surrounding blanks and never empty: it may spell a number.
    Field(Cow<'a, str>),
    /// A time since 1970 whose unit the file says.
    Time(i64, Unit),
    /// A day since 1970.
    Date(i32),
    /// A list or an object. Few rows have one, and what they need for it all others would take along.
    Nested(Box<Value>),
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

/// What stands for no value where a number is meant.
fn is_no_number(text: &str) -> bool {
    text.len() <= 4
        && ["", "nan", "null", "none", "nat", "na", "n/a", "<na>"]
            .iter()
            .any(|w| w.eq_ignore_ascii_case(text))
}

/// A text without surrounding blanks. Hardly any has some, as its first and its last byte tell at once.
fn trimmed(text: &str) -> &str {
    match text.as_bytes() {
        [b'!'..=b'~'] | [b'!'..=b'~', .., b'!'..=b'~'] => text,
        _ => text.trim(),
    }
}

/// Largest float below which every integer is exact.
const EXACT: f64 = 9_007_199_254_740_992.0;

impl Cell<'_> {
    pub fn describe(&self) -> String {
        match self {
            Cell::Missing => "nothing".into(),
            Cell::Bool(b) => format!("the boolean {b}"),
            Cell::Int(n) => format!("the number {n}"),
            Cell::Unsigned(n) => format!("the number {n}"),
            Cell::Float(x) => format!("the number {x}"),
            Cell::Text(text) | Cell::Field(text) => describe_text(text),
            Cell::Time(time, unit) => format!("the time {time} ({unit:?})"),
            Cell::Date(days) => format!("the day {days} after 1970-01-01"),
            Cell::Nested(value) => describe(value),
        }
    }
    /// Whether there is nothing: no value, or a text of blanks.
    pub fn is_missing(&self) -> bool {
        match self {
            Cell::Missing => true,
            Cell::Text(text) => trimmed(text).is_empty(),
            Cell::Float(x) => x.is_nan(),
            _ => false,
        }
    }
    /// Whether there is no number: nothing, or a word that stands for none.
    pub fn is_no_value(&self) -> bool {
        match self {
            Cell::Text(text) => is_no_number(text.trim()),
            Cell::Field(text) => is_no_number(text),
            other => other.is_missing(),
        }
    }
    /// An id: a string as it is (a field without its surrounding blanks), or an integer, which a data frame may have
    /// stored as a float. `None`: missing.
    pub fn id(&self, column: &str) -> Checked<Option<Cow<'_, str>>> {
        match self {
            _ if self.is_missing() => Ok(None),
            Cell::Text(text) => Ok(Some(Cow::Borrowed(text))),
            Cell::Field(text) if is_rounded(text) => {
                let error = Error::data(format!(
                    "{} is a number that a spreadsheet or data frame has rounded",
                    self.describe()
                ));
                let remedy = "the id is lost: export the table again, with the column as text";
                Err(Fault::new("rounded id", error.at(column).remedy(remedy)))
            }
            Cell::Field(text) => Ok(Some(Cow::Borrowed(text))),
            Cell::Int(n) => Ok(Some(Cow::Owned(n.to_string()))),
            Cell::Unsigned(n) => Ok(Some(Cow::Owned(n.to_string()))),
            Cell::Float(x) if x.fract() == 0.0 && x.abs() < EXACT => {
                Ok(Some(Cow::Owned((*x as i64).to_string())))
            }
            Cell::Float(x) if x.fract() == 0.0 => {
                let error =
                    Error::data(format!("{x} is a float, too large to be an exact integer")).at(column);
                Err(Fault::new("rounded id", error.remedy("write ids as integers or strings")))
            }
            other => Err(wrong(column, other, "a string or an integer")),
        }
    }
    /// An id that is known to be an integer; a field such as `12.0` is one that a data frame stored as a float.
    pub fn integer_id(&self, column: &str) -> Checked<Option<Cow<'_, str>>> {
        let id = self.id(column)?;
        Ok(id.map(|id| match whole(&id) {
            Some(digits) => Cow::Owned(digits.into()),
            None => id,
        }))
    }
    /// A finite number. `None`: missing.
    pub fn number(&self, column: &str) -> Checked<Option<f64>> {
        let number = match self {
            _ if self.is_no_value() => return Ok(None),
            Cell::Bool(b) => Some(f64::from(u8::from(*b))),
            Cell::Int(n) => Some(*n as f64),
            Cell::Unsigned(n) => Some(*n as f64),
            Cell::Float(x) => Some(*x),
            Cell::Text(text) | Cell::Field(text) => match text.trim() {
                "True" | "true" | "TRUE" => Some(1.0),
                "False" | "false" | "FALSE" => Some(0.0),
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
        let text = match self {
            _ if self.is_missing() => return Ok(None),
            Cell::Text(text) => Cow::Borrowed(trimmed(text)),
            Cell::Field(text) => Cow::Borrowed(text.as_ref()),
            Cell::Int(n) => Cow::Owned(n.to_string()),
            Cell::Unsigned(n) => Cow::Owned(n.to_string()),
            Cell::Float(x) => Cow::Owned(x.to_string()),
            other => return Err(wrong(column, other, "a string")),
        };
        if memchr::memchr(0, text.as_bytes()).is_some() {
            let error = Error::data(format!("{} holds a NUL character", self.describe())).at(column);
            return Err(Fault::new("bad text", error.remedy("remove it, or --skip-bad-rows N")));
        }
        Ok(Some(text))
    }
    /// The elements of a list.
    pub fn list(&self) -> Option<&[Value]> {
        match self {
            Cell::Nested(value) => value.as_array().map(Vec::as_slice),
            _ => None,
        }
    }
    /// A list or object; a text is read as a JSON, Python or numpy literal. Missing: null.
    pub fn nested(&self, column: &str) -> Checked<Value> {
        match self {
            _ if self.is_no_value() => Ok(Value::Null),
            Cell::Nested(value) => Ok(Value::clone(value)),
            Cell::Text(text) | Cell::Field(text) => literal::parse(text).map_err(|what| {
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

/// The digits of an integer that was written as a float: `12` of `12.0`.
pub(super) fn whole(text: &str) -> Option<&str> {
    let (digits, zeros) = text.split_once('.')?;
    let unsigned = digits.strip_prefix('-').unwrap_or(digits);
    let sound = !unsigned.is_empty() && unsigned.bytes().all(|b| b.is_ascii_digit());
    (sound && !zeros.is_empty() && zeros.bytes().all(|b| b == b'0')).then_some(digits)
}

/// Whether a text is what spreadsheets and data frames make of a long number: `1.23457E+15`, `1.8446744073709552e+19`.
fn is_rounded(text: &str) -> bool {
    let Some((mantissa, exponent)) = text.split_once(['E', 'e']) else { return false };
    let Some(exponent) = exponent.strip_prefix('+') else { return false };
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits(exponent)
        && mantissa.split_once(['.', ',']).is_some_and(|(a, b)| a.len() == 1 && digits(a) && digits(b))
}

impl From<Value> for Cell<'static> {
    fn from(value: Value) -> Self {
        match value {
            Value::Null => Cell::Missing,
            Value::Bool(b) => Cell::Bool(b),
            Value::Number(n) => match (n.as_i64(), n.as_u64()) {
                (Some(n), _) => Cell::Int(n),
                (None, Some(n)) => Cell::Unsigned(n),
                _ => Cell::Float(n.as_f64().unwrap_or(f64::NAN)),
            },
            Value::String(text) => Cell::Text(text.into()),
            nested => Cell::Nested(nested.into()),
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
        Ok(Cell::Bool(value))
    }
    fn visit_i64<E>(self, value: i64) -> std::result::Result<Self::Value, E> {
        Ok(Cell::Int(value))
    }
    fn visit_u64<E>(self, value: u64) -> std::result::Result<Self::Value, E> {
        Ok(i64::try_from(value).map_or(Cell::Unsigned(value), Cell::Int))
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
        Ok(Cell::Nested(Value::Array(values).into()))
    }
    fn visit_map<A: MapAccess<'de>>(self, map: A) -> std::result::Result<Self::Value, A::Error> {
        Value::deserialize(MapAccessDeserializer::new(map)).map(|value| Cell::Nested(value.into()))
    }
}
