//! Rows of JSON: an object a line (or a Python dictionary), a list of objects, or an object of rows by key.

use super::fields::{Wanted, python};
use super::lines::{cut, each_line};
use super::{Cells, Column};
use crate::data::fault::{Checked, Fault, describe};
use crate::data::rows::MAX_LINE_BYTES;
use crate::error::{Error, Result};
use crate::prepare::cell::Cell;
use crate::prepare::intake::Intake;
use serde::Deserializer;
use serde::de::{Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use std::cell::Cell as Counter;
use std::fmt;
use std::io::{BufRead, Read};
use std::path::Path;

/// How the rows lie in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// An object a line.
    Lines,
    /// Objects one after the other, of several lines each.
    Stream,
    /// `[{..}, {..}]`
    List,
    /// `{"key": .., "key": ..}`: the columns [`KEY`] and [`VALUE`], and the fields of values that are objects.
    Map,
}

/// The key of a row in an object of rows.
pub(super) const KEY: &str = "@key";
/// Its value.
pub(super) const VALUE: &str = "@value";

/// Rows whose fields are looked at.
const ROWS: usize = 200;
/// Deepest field that is named.
const DEPTH: usize = 5;

impl Shape {
    /// The shape of a text that begins with `sample`; none: it is no JSON.
    pub fn of(sample: &[u8], columns: &[Column], suffix: &str) -> Option<Self> {
        let mut marks = sample.iter().filter(|b| !b.is_ascii_whitespace());
        let by_key = columns.iter().any(|c| c.name == KEY || c.name == VALUE);
        match (marks.next(), marks.next()) {
            (Some(b'{'), _) if by_key => Some(Shape::Map),
            (Some(b'['), Some(b'{' | b']')) => Some(Shape::List),
            (Some(b'{'), _) if spans_lines(sample) => Some(Shape::Stream),
            (Some(b'{'), _) => Some(Shape::Lines),
            _ => crate::data::filenames::is_json(suffix).then_some(Shape::Lines),
        }
    }
    pub fn describe(self) -> &'static str {
        match self {
            Shape::Lines => "JSON, an object a line",
            Shape::Stream => "JSON, objects of several lines",
            Shape::List => "JSON, a list of objects",
            Shape::Map => "JSON, an object of rows",
        }
    }

    /// Names of the fields in the first rows; a wanted element of a list too, if there is one.
    pub fn names(self, sample: &[u8], columns: &[Column]) -> Vec<String> {
        let text = String::from_utf8_lossy(sample);
        let paths = columns.iter().filter(|c| c.name.contains('.')).map(|c| c.name.as_str()).collect();
        let mut names = Names { paths, all: Vec::new(), rows: 0 };
        // What was cut off is no row.
        let _ = match self {
            Shape::Lines => {
                let parse = |line| serde_json::from_str(line).ok().or_else(|| python(line)?.ok());
                text.lines().take(ROWS).filter_map(parse).for_each(|row| names.take(&row));
                Ok(())
            }
            Shape::Stream => {
                let rows = serde_json::Deserializer::from_str(&text).into_iter::<Value>();
                rows.take(ROWS).map_while(std::result::Result::ok).for_each(|row| names.take(&row));
                Ok(())
            }
            Shape::List => serde_json::Deserializer::from_str(&text).deserialize_seq(&mut names),
            Shape::Map => {
                names.all.extend([KEY.to_string(), VALUE.to_string()]);
                serde_json::Deserializer::from_str(&text).deserialize_map(&mut names)
            }
        };
        names.all
    }

    /// Reads the rows of `text` and hands the wanted fields to `each`.
    pub fn read(
        self,
        intake: &mut Intake,
        path: &Path,
        mut text: Box<dyn BufRead>,
        columns: &[String],
        each: &mut dyn FnMut(&mut Cells) -> Checked<()>,
    ) -> Result<()> {
        let wanted = Wanted::new(columns);
        if self == Shape::Lines {
            return each_line(intake, path, &mut *text, &mut |line| {
                let mut cells: Cells = Default::default();
                wanted.cells(line, &mut cells)?;
                each(&mut cells)
            });
        }
        let left = Counter::new(MAX_LINE_BYTES);
        let text = Limited { text, left: &left };
        let mut source = serde_json::Deserializer::from_reader(std::io::BufReader::new(text));
        let mut rows = Rows { intake, path, wanted: &wanted, each, left: &left, number: 0, failure: None };
        let read = match self {
            Shape::Map => source.deserialize_map(&mut rows).and_then(|()| source.end()),
            Shape::Stream => rows.each(source.into_iter()),
            _ => source.deserialize_seq(&mut rows).and_then(|()| source.end()),
        };
        match (rows.failure.take(), read) {
            (Some(failure), _) => Err(failure),
            (None, Err(e)) if e.is_io() => Err(cut(path, e.into())),
            (None, Err(e)) => {
                let error = Error::data(format!("not valid JSON: {e}")).at(path.display());
                Err(error.remedy("one list of objects, or an object a line"))
            }
            (None, Ok(())) => Ok(()),
        }
    }
}

/// Whether the first line of a text is a JSON list.
pub(super) fn is_lists(sample: &[u8]) -> bool {
    let first = sample.trim_ascii_start().split(|b| *b == b'\n').next().unwrap_or_default();
    first.starts_with(b"[") && serde_json::from_slice::<Vec<IgnoredAny>>(first).is_ok()
}

/// Whether the first object of a text goes on behind its first line.
fn spans_lines(sample: &[u8]) -> bool {
    let text = String::from_utf8_lossy(sample);
    let first = text.trim_start().lines().next().unwrap_or_default();
    let cut = serde_json::from_str::<IgnoredAny>(first).is_err_and(|e| e.is_eof());
    let whole = || serde_json::Deserializer::from_str(&text).into_iter::<IgnoredAny>().next();
    cut && whole().is_some_and(|row| row.is_ok())
}

/// Names of fields, those of objects in objects as paths.
struct Names<'c> {
    all: Vec<String>,
    /// Paths that are wanted.
    paths: Vec<&'c str>,
    rows: usize,
}

impl Names<'_> {
    fn take(&mut self, row: &Value) {
        self.rows += 1;
        self.add(row, "");
        let there = |path: &str| row.pointer(&format!("/{}", path.replace('.', "/"))).is_some();
        for path in self.paths.iter().filter(|path| there(path)) {
            if !self.all.iter().any(|name| name == path) {
                self.all.push(path.to_string());
            }
        }
    }
    fn add(&mut self, row: &Value, prefix: &str) {
        let Value::Object(fields) = row else { return };
        for (key, value) in fields {
            let name = format!("{prefix}{key}");
            if !self.all.contains(&name) {
                self.all.push(name.clone());
            }
            if prefix.matches('.').count() < DEPTH {
                self.add(value, &format!("{name}."));
            }
        }
    }
}

impl<'de> Visitor<'de> for &mut Names<'_> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("rows")
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> std::result::Result<(), A::Error> {
        while let Some(row) = list.next_element::<Value>()?.filter(|_| self.rows < ROWS) {
            self.take(&row);
        }
        Ok(())
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<(), A::Error> {
        while let Some((_, row)) = map.next_entry::<String, Value>()?.filter(|_| self.rows < ROWS) {
            self.take(&row);
        }
        Ok(())
    }
}

/// The rows of a list or of an object.
struct Rows<'r, 'i, 'w> {
    intake: &'r mut Intake<'i, 'w>,
    path: &'r Path,
    wanted: &'r Wanted<'r>,
    each: &'r mut dyn FnMut(&mut Cells) -> Checked<()>,
    left: &'r Counter<usize>,
    number: u64,
    failure: Option<Error>,
}

impl Rows<'_, '_, '_> {
    /// Takes rows that follow each other.
    fn each(&mut self, rows: impl Iterator<Item = serde_json::Result<Value>>) -> serde_json::Result<()> {
        for row in rows {
            if !self.take(row?, None) {
                break;
            }
        }
        Ok(())
    }
    /// Counts a row; `false`: it was one too many that is not as it must be.
    fn take(&mut self, row: Value, key: Option<&str>) -> bool {
        self.number += 1;
        self.left.set(MAX_LINE_BYTES);
        let outcome = self.cells(row, key).map_err(|f| f.place(self.path, "row", self.number));
        self.failure = self.intake.row(outcome).err();
        self.failure.is_none()
    }
    fn cells(&mut self, row: Value, key: Option<&str>) -> Checked<()> {
        let mut cells: Cells = Default::default();
        if let Some(key) = key {
            for (cell, name) in cells.iter_mut().zip(self.wanted.names) {
                match name.as_str() {
                    KEY => *cell = Cell::Text(key.to_string().into()),
                    VALUE => *cell = row.clone().into(),
                    _ => {}
                }
            }
        }
        if row.is_object() {
            self.wanted.take(row, &mut cells)?;
        } else if key.is_none() {
            let error = Error::data(format!("{} instead of an object", describe(&row)));
            return Err(Fault::new("not an object", error.remedy("a list of {\"field\": value, ..}")));
        }
        (self.each)(&mut cells)
    }
}

impl<'de> Visitor<'de> for &mut Rows<'_, '_, '_> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("rows")
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> std::result::Result<(), A::Error> {
        while let Some(row) = list.next_element::<Value>()? {
            if !self.take(row, None) {
                return Err(A::Error::custom("stopped"));
            }
        }
        Ok(())
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<(), A::Error> {
        while let Some((key, row)) = map.next_entry::<String, Value>()? {
            if !self.take(row, Some(&key)) {
                return Err(A::Error::custom("stopped"));
            }
        }
        Ok(())
    }
}

/// Text of which no more than `left` bytes are read until someone allows for more.
struct Limited<'l> {
    text: Box<dyn BufRead>,
    left: &'l Counter<usize>,
}

impl Read for Limited<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.text.read(buffer)?;
        match self.left.get().checked_sub(read) {
            Some(left) => self.left.set(left),
            None => {
                let what = format!("a row of more than {MAX_LINE_BYTES} bytes");
                return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, what));
            }
        }
        Ok(read)
    }
}
