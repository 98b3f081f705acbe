//! What is wrong with one row of a file.

use crate::error::{Error, Kind};
use serde_json::Value;
use std::path::Path;

/// Something wrong with one row, and the few words it is counted under.
pub(crate) struct Fault {
    /// Why, for the count of skipped rows.
    pub reason: &'static str,
    /// The whole message.
    pub error: Error,
}

/// What became of a row, or of a value in it.
pub(crate) type Checked<T> = std::result::Result<T, Fault>;

/// The reason of a fault that ends the file.
pub(crate) const UNREADABLE: &str = "unreadable file";

impl Fault {
    pub(crate) fn new(reason: &'static str, error: Error) -> Self {
        Self { reason, error }
    }
    /// Whether the rest of the file can still be read.
    pub(crate) fn is_skippable(&self) -> bool {
        self.error.kind == Kind::Data && self.reason != UNREADABLE
    }
    /// Says in which row of which file: `unit` is `line` or `row`, counted from 1.
    pub(crate) fn place(self, path: &Path, unit: &str, number: u64) -> Self {
        Self::new(self.reason, self.error.at(format!("{} {unit} {number}", path.display())))
    }
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        debug_assert!(matches!(fault.error.kind, Kind::Data | Kind::Io));
        fault.error
    }
}

/// A value in a few words, for messages.
pub(crate) fn describe(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(b) => format!("the boolean {b}"),
        Value::Number(n) => format!("the number {n}"),
        Value::String(s) => describe_text(s),
        Value::Array(_) => format!("the list {}", short(&value.to_string())),
        Value::Object(_) => format!("the object {}", short(&value.to_string())),
    }
}

/// A string in a few words, for messages.
pub(crate) fn describe_text(text: &str) -> String {
    format!("the string {:?}", short(text))
}

/// The beginning of a text.
pub(crate) fn short(text: &str) -> String {
    let head: String = text.chars().take(40).collect();
    if head.len() < text.len() { format!("{head}…") } else { head }
}
