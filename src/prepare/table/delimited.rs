//! Rows of delimited text.
//!
//! Fields in double quotes may hold the separator, line ends, and quotes that are doubled. Behind a closing quote only
//! a separator or the end of the line may follow (Python's csv calls it `strict`): otherwise a stray quote would make
//! one field of many rows.

use super::Cells;
use super::dialect::{BLANKS, Dialect};
use super::lines::unreadable_line;
use crate::data::fault::{Checked, Fault, short};
use crate::data::rows::{self, MAX_LINE_BYTES};
use crate::error::{Error, Kind, Result};
use crate::prepare::cell::{Cell, whole};
use crate::prepare::intake::Intake;
use std::borrow::Cow;
use std::io::BufRead;
use std::path::Path;

/// Reads the rows of `text` and hands the fields at `places` to `each`.
pub(super) fn read(
    intake: &mut Intake,
    path: &Path,
    text: Box<dyn BufRead>,
    dialect: &Dialect,
    places: &[Option<usize>],
    missing: &[String],
    each: &mut dyn FnMut(&mut Cells) -> Checked<()>,
) -> Result<()> {
    let mut records = Records::new(path, text, dialect);
    for _ in 0..usize::from(dialect.announced) + usize::from(dialect.header) {
        let _ = records.next()?;
    }
    records.fault = None;
    while let Some(line) = records.next()? {
        let outcome = match records.fault.take() {
            Some(fault) => Err(fault),
            None => records.cells(places, missing).and_then(|mut cells| each(&mut cells)),
        };
        intake.row(outcome.map_err(|f| f.place(path, "line", line)))?;
    }
    Ok(())
}

/// Records, one after the other.
pub(super) struct Records<'d> {
    path: &'d Path,
    dialect: &'d Dialect,
    text: Box<dyn BufRead>,
    /// The record: a line, or several where a field in quotes holds line ends.
    record: Vec<u8>,
    fields: Vec<Field>,
    /// Lines that were read and turned out to be no part of a record, from `.1` on; then a line that cannot be read.
    waiting: (Vec<u8>, usize),
    broken: Option<Error>,
    line: u64,
    /// What is wrong with the record.
    pub fault: Option<Fault>,
}

/// Where a field stands in its record.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Field {
    start: usize,
    end: usize,
    /// It holds doubled quotes or escapes.
    marked: bool,
    quoted: bool,
}

/// A field that does not end with its line.
#[derive(Debug, Clone, Copy)]
struct Open {
    start: usize,
    /// It was looked through up to here.
    at: usize,
    marked: bool,
    quoted: bool,
}

impl<'d> Records<'d> {
    pub fn new(path: &'d Path, text: Box<dyn BufRead>, dialect: &'d Dialect) -> Self {
        let (record, fields, waiting) = (Vec::new(), Vec::new(), (Vec::new(), 0));
        Self { path, dialect, text, record, fields, waiting, broken: None, line: 0, fault: None }
    }

    /// Reads the next record and returns the number of its first line; what is wrong with it is in `fault`.
    ///
    /// # Errors
    /// A stream that cannot be read.
    pub fn next(&mut self) -> Result<Option<u64>> {
        loop {
            self.fields.clear();
            self.line += 1;
            let line = self.line;
            let mut record = std::mem::take(&mut self.record);
            let read = self.next_line(&mut record);
            self.record = record;
            match read {
                Ok(false) => return Ok(None),
                Ok(true) if self.is_blank() => continue,
                Ok(true) => self.finish()?,
                Err(error) => self.fault = Some(unreadable_line(error)?),
            }
            return Ok(Some(line));
        }
    }

    fn is_blank(&self) -> bool {
        self.record.is_empty() || self.dialect.separator != b"\t" && self.record.trim_ascii().is_empty()
    }

    fn next_line(&mut self, line: &mut Vec<u8>) -> Result<bool> {
        let (waiting, at) = &mut self.waiting;
        if let Some(length) = memchr::memchr(b'\n', &waiting[*at..]) {
            line.clear();
            line.extend_from_slice(&waiting[*at..*at + length]);
            *at += length + 1;
            return Ok(true);
        }
        match self.broken.take() {
            Some(error) => Err(error),
            None => rows::next_line(&mut *self.text, line, self.path),
        }
    }

    /// Finds the fields of the record, and reads on while one is open.
    fn finish(&mut self) -> Result<()> {
        let (first, mut from, mut more) = (self.record.len(), None, Vec::new());
        loop {
            match self.split(from) {
                Ok(None) => return Ok(()),
                Ok(open) => from = open,
                Err(fault) => {
                    self.give_back(first);
                    self.fault = Some(fault);
                    return Ok(());
                }
            }
            let read = match self.record.len() > MAX_LINE_BYTES {
                true => false,
                false => self.next_line(&mut more).or_else(|error| match error.kind {
                    Kind::Data => {
                        self.broken = Some(error);
                        Ok(false)
                    }
                    _ => Err(error),
                })?,
            };
            if !read {
                let column = self.fields.len() + 1;
                self.give_back(first);
                self.fault = Some(left_open(column));
                return Ok(());
            }
            self.line += 1;
            self.record.push(b'\n');
            self.record.extend_from_slice(&more);
        }
    }

    /// Keeps the lines behind the first, which is `first` bytes long, for the records that they are.
    fn give_back(&mut self, first: usize) {
        if self.record.len() == first {
            return;
        }
        let mut lines = self.record.split_off(first + 1);
        self.record.pop();
        self.line -= memchr::memchr_iter(b'\n', &lines).count() as u64 + 1;
        lines.push(b'\n');
        lines.extend_from_slice(&self.waiting.0[self.waiting.1..]);
        self.waiting = (lines, 0);
    }

    /// Finds fields, from the beginning or within one that is open; returns the one that is open at the end.
    fn split(&mut self, within: Option<Open>) -> Checked<Option<Open>> {
        let Self { record, fields, dialect, .. } = self;
        if dialect.separator == BLANKS {
            fields.extend(blank_separated(record));
            return Ok(None);
        }
        let (mut at, mut within) = (0, within);
        loop {
            let quoted = dialect.quotes && record.get(at) == Some(&b'"');
            let start = at + usize::from(quoted);
            let mut open = within.take().unwrap_or(Open { start, at: start, marked: false, quoted });
            let end = match open.quoted {
                true => closing(record, &mut open, dialect.escapes),
                false => separator(record, &mut open, dialect),
            };
            let Some(end) = end else { return Ok(Some(open)) };
            fields.push(Field { start: open.start, end, marked: open.marked, quoted: open.quoted });
            at = end + usize::from(open.quoted);
            if at == record.len() {
                return Ok(None);
            }
            if !record[at..].starts_with(&dialect.separator) {
                return Err(stray(record, open.start, at, fields.len(), dialect));
            }
            at += dialect.separator.len();
        }
    }

    /// The fields as text, for a header or a look at the data.
    pub fn texts(&self) -> Vec<String> {
        let text =
            |f: &Field| String::from_utf8_lossy(&value(&self.record, *f, self.dialect.escapes)).into_owned();
        self.fields.iter().map(text).collect()
    }

    fn cells(&self, places: &[Option<usize>], missing: &[String]) -> Checked<Cells<'_>> {
        self.check_length()?;
        let mut cells: Cells = Default::default();
        let line = std::str::from_utf8(&self.record).ok();
        for ((number, cell), place) in cells.iter_mut().enumerate().zip(places) {
            let Some(place) = place else { continue };
            let Some(field) = self.fields.get(*place).filter(|f| f.start < f.end) else { continue };
            let text = match line.and_then(|line| line.get(field.start..field.end)) {
                Some("\\N") => continue,
                Some(text) if !field.marked => Cow::Borrowed(text.trim()),
                _ => self.text(*field, *place)?,
            };
            if text.is_empty() || missing.iter().any(|word| *word == text) {
                continue;
            }
            let float = self.dialect.floats.contains(&number);
            *cell = Cell::Field(if float { self.without_point(text, *place)? } else { text });
        }
        Ok(cells)
    }

    /// A row may end with separators that add nothing.
    fn check_length(&self) -> Checked<()> {
        let (wanted, there) = (self.dialect.names.len(), self.fields.len());
        if there == wanted || there > wanted && self.fields[wanted..].iter().all(|f| f.start == f.end) {
            return Ok(());
        }
        let error = Error::data(format!("{there} fields instead of {wanted}"));
        let shown = self.dialect.shown();
        let remedy = match (self.dialect.quotes, there > wanted) {
            (true, _) => format!("fields that hold {shown}, quotes or line ends belong in double quotes"),
            (false, true) => {
                format!("{shown} separates fields wherever it stands; is it the right separator?")
            }
            (false, false) => format!("is {shown} the right separator, and the line whole?"),
        };
        let quoted = !self.dialect.quotes && self.record.contains(&b'"');
        let remedy =
            remedy + if quoted { " where fields stand in double quotes, give --quotes on" } else { "" };
        Err(Fault::new("wrong number of fields", error.remedy(remedy)))
    }

    /// A field with doubled quotes or escapes, or in a record that is not UTF-8; without surrounding blanks.
    fn text(&self, field: Field, place: usize) -> Checked<Cow<'_, str>> {
        let bytes = value(&self.record, field, self.dialect.escapes);
        match std::str::from_utf8(&bytes) {
            Ok(text) => Ok(Cow::Owned(text.trim().into())),
            Err(e) => {
                let at = e.valid_up_to();
                let error = Error::data(format!("not UTF-8 from byte {} of the field on", at + 1));
                let error = error.at(&self.dialect.names[place]).remedy(rows::not_utf8(&bytes, at));
                Err(Fault::new("bad UTF-8", error))
            }
        }
    }

    /// An id of a column whose ids were all written as floats.
    fn without_point<'r>(&self, text: Cow<'r, str>, place: usize) -> Checked<Cow<'r, str>> {
        match whole(&text) {
            Some(digits) => Ok(Cow::Owned(digits.into())),
            None if text.bytes().all(|b| b.is_ascii_digit()) => Ok(text),
            None => {
                let what = format!("{:?} in a column of integers that were written as floats", short(&text));
                let error = Error::data(what).at(&self.dialect.names[place]);
                Err(Fault::new("wrong type", error.remedy("write ids as integers or strings, not as floats")))
            }
        }
    }
}

/// Where a field in quotes ends; none: not yet.
fn closing(record: &[u8], open: &mut Open, escapes: bool) -> Option<usize> {
    while open.at < record.len() {
        let rest = &record[open.at..];
        let next = if escapes { memchr::memchr2(b'"', b'\\', rest) } else { memchr::memchr(b'"', rest) };
        let Some(offset) = next else { break };
        open.at += offset;
        match (record[open.at], record.get(open.at + 1)) {
            (b'\\', _) | (_, Some(b'"')) => (open.at, open.marked) = (open.at + 2, true),
            _ => return Some(open.at),
        }
    }
    open.at = open.at.max(record.len());
    None
}

/// Where a field without quotes ends: at a separator, or with the line unless that is escaped.
fn separator(record: &[u8], open: &mut Open, dialect: &Dialect) -> Option<usize> {
    while open.at <= record.len() {
        let rest = &record[open.at..];
        let end = find(rest, &dialect.separator).unwrap_or(rest.len());
        let escape = if dialect.escapes { memchr::memchr(b'\\', &rest[..end]) } else { None };
        match escape {
            Some(offset) => (open.at, open.marked) = (open.at + offset + 2, true),
            None => return Some(open.at + end),
        }
    }
    None
}

/// The bytes of a field.
fn value(record: &[u8], field: Field, escapes: bool) -> Cow<'_, [u8]> {
    let raw = &record[field.start..field.end];
    if !field.marked {
        return Cow::Borrowed(raw);
    }
    let (mut bytes, mut rest) = (Vec::with_capacity(raw.len()), raw);
    while let Some((first, tail)) = rest.split_first() {
        let mark = field.quoted && *first == b'"' || escapes && *first == b'\\';
        let (byte, next) = match tail.split_first() {
            Some((second, tail)) if mark => (*second, tail),
            _ => (*first, tail),
        };
        bytes.push(byte);
        rest = next;
    }
    Cow::Owned(bytes)
}

/// Where a separator is found.
fn find(text: &[u8], separator: &[u8]) -> Option<usize> {
    match separator {
        [one] => memchr::memchr(*one, text),
        _ => memchr::memmem::find(text, separator),
    }
}

/// Words between any number of blanks.
fn blank_separated(record: &[u8]) -> Vec<Field> {
    let (mut fields, mut start) = (Vec::new(), None);
    for (at, byte) in record.iter().chain(b" ").enumerate() {
        match (byte.is_ascii_whitespace(), start) {
            (false, None) => start = Some(at),
            (true, Some(from)) => {
                fields.push(Field { start: from, end: at, marked: false, quoted: false });
                start = None;
            }
            _ => {}
        }
    }
    fields
}

fn left_open(column: usize) -> Fault {
    let what = format!("a quote is left open in field {column}");
    let error = Error::data(what).remedy("close it; where quotes are ordinary characters, give --quotes off");
    Fault::new("open quote", error)
}

fn stray(record: &[u8], start: usize, at: usize, column: usize, dialect: &Dialect) -> Fault {
    let head = short(&String::from_utf8_lossy(&record[start - 1..])).escape_debug().to_string();
    let what = format!("field {column} ({head}) goes on behind its closing quote");
    let escaped = record[start..at].windows(2).any(|pair| pair == b"\\\"");
    let remedy = match escaped && !dialect.escapes {
        true => "give --escapes if a backslash stands before quotes that belong to the text",
        false => "double quotes within quotes; where quotes are ordinary characters, give --quotes off",
    };
    Fault::new("stray quote", Error::data(what).remedy(remedy))
}
