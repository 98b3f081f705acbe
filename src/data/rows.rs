//! Rows of JSONL and Parquet files, one at a time, with their place for messages.

use super::columnar::{batches, not_finite, value_at};
use super::content;
use super::fault::{Checked, Fault, UNREADABLE, describe};
use crate::error::{Error, Kind, Result};
use arrow_array::Array;
use serde_json::{Map, Value};
use std::fs::File;
use std::io::{BufRead, Read};
use std::path::Path;

/// Longest line of a text file, in bytes.
pub(crate) const MAX_LINE_BYTES: usize = 16 << 20;

/// One row: field names and values.
pub(crate) struct Row {
    /// Line number (JSONL) or row number (Parquet), from 1.
    pub number: usize,
    /// The fields.
    pub fields: Map<String, Value>,
}

/// The rows of a file.
pub(crate) type Rows = Box<dyn Iterator<Item = Checked<Row>>>;

/// Opens the rows of a JSONL or Parquet file. Of a Parquet file only the `known` columns have values, the others just
/// their names; without `known` all have.
pub(crate) fn open(path: &Path, known: Option<&'static [&'static str]>) -> Result<Rows> {
    let named = super::filenames::is_parquet(&super::filenames::name(path).1);
    if named || content::is_parquet(path)? { parquet_rows(path, known) } else { json_rows(path) }
}

/// A text file to read line by line; gzip and zstd are unpacked on the way.
pub(crate) fn open_text(path: &Path) -> Result<Box<dyn BufRead>> {
    content::text(path, File::open(path).map_err(|e| Error::io("open", path, e))?, None)
}

/// Reads the next line into `line`, without its end. `Ok(false)`: the file is at its end.
///
/// # Errors
/// A line longer than [`MAX_LINE_BYTES`] (the rest of it is passed over), or the file system.
pub(crate) fn next_line(reader: &mut dyn BufRead, line: &mut Vec<u8>, path: &Path) -> Result<bool> {
    line.clear();
    let failed = |e: std::io::Error| Error::io("read", path, e);
    let read = reader.take(MAX_LINE_BYTES as u64 + 1).read_until(b'\n', line).map_err(failed)?;
    if read == 0 {
        return Ok(false);
    }
    if line.last() == Some(&b'\n') {
        line.pop();
        if line.last() == Some(&b'\r') {
            line.pop();
        }
    } else if line.len() > MAX_LINE_BYTES {
        line.clear();
        while !pass_over(reader).map_err(failed)? {}
        return Err(Error::data(format!("longer than {MAX_LINE_BYTES} bytes"))
            .remedy("a row a line, lines that end in \\n; is this really a text file of rows?"));
    }
    Ok(true)
}

/// Drops what is buffered up to the end of the line; whether the end was met.
fn pass_over(reader: &mut dyn BufRead) -> std::io::Result<bool> {
    let buffer = reader.fill_buf()?;
    let (used, done) = match memchr::memchr(b'\n', buffer) {
        Some(at) => (at + 1, true),
        None => (buffer.len(), buffer.is_empty()),
    };
    reader.consume(used);
    Ok(done)
}

fn json_rows(path: &Path) -> Result<Rows> {
    Ok(json_lines(open_text(path)?, path))
}

fn json_lines(mut reader: Box<dyn BufRead>, path: &Path) -> Rows {
    let (path, mut line, mut number) = (path.to_path_buf(), Vec::new(), 0);
    let mut failed = false;
    Box::new(std::iter::from_fn(move || {
        while !failed {
            number += 1;
            let row = match next_line(&mut *reader, &mut line, &path) {
                Ok(false) => return None,
                Ok(true) if line.trim_ascii().is_empty() => continue,
                Ok(true) => json_row(&line, number),
                Err(error) if error.kind == Kind::Data => Err(Fault::new("line too long", error)),
                Err(error) => {
                    failed = true;
                    return Some(Err(Fault::new(UNREADABLE, error)));
                }
            };
            return Some(row.map_err(|f| f.place(&path, "line", number as u64)));
        }
        None
    }))
}

/// The objects of a JSONL (or Parquet) file with their line numbers.
///
/// # Errors
/// A file that cannot be opened; then, row by row, what is wrong with it.
pub fn json_objects(path: &Path) -> Result<impl Iterator<Item = Result<(usize, Map<String, Value>)>>> {
    Ok(open(path, None)?.map(numbered))
}

/// The objects of JSON lines as they are read; `name` is what messages call their place.
pub fn read_json_objects(
    reader: Box<dyn BufRead>,
    name: &Path,
) -> impl Iterator<Item = Result<(usize, Map<String, Value>)>> {
    json_lines(reader, name).map(numbered)
}

fn numbered(row: Checked<Row>) -> Result<(usize, Map<String, Value>)> {
    row.map(|r| (r.number, r.fields)).map_err(Error::from)
}

/// The lines of a text file that are not empty, without blanks around them.
///
/// # Errors
/// A file that cannot be read, and a line that is too long or not UTF-8.
pub fn lines_of(path: &Path) -> Result<Vec<String>> {
    let (mut reader, mut line, mut number, mut lines) = (open_text(path)?, Vec::new(), 0, Vec::new());
    loop {
        number += 1;
        let place = |e: Error| e.at(format!("{} line {number}", path.display()));
        if !next_line(&mut *reader, &mut line, path).map_err(place)? {
            return Ok(lines);
        }
        let text = utf8(&line).map_err(|f| place(f.into()))?.trim();
        if !text.is_empty() {
            lines.push(text.to_string());
        }
    }
}

/// A line as text.
pub(crate) fn utf8(line: &[u8]) -> Checked<&str> {
    std::str::from_utf8(line).map_err(|e| {
        let at = e.valid_up_to();
        let error = Error::data(format!("not UTF-8 from byte {} of the line on", at + 1));
        Fault::new("bad UTF-8", error.remedy(not_utf8(line, at)))
    })
}

/// What to do about bytes that are not UTF-8 from `at` on.
pub(crate) fn not_utf8(bytes: &[u8], at: usize) -> String {
    let around =
        bytes[..at].iter().rposition(|b| *b < 0x80 && !b.is_ascii_alphanumeric()).map_or(0, |p| p + 1);
    let end = bytes.len().min(at + 24);
    format!(
        "save the file as UTF-8 (`prepare events` also takes --encoding: {})",
        content::guesses(&bytes[around..end])
    )
}

/// What a line that is not JSON is answered with.
pub(crate) fn not_json(text: &str, e: &serde_json::Error) -> Fault {
    let nan = ["NaN", "Infinity"].iter().find(|word| text.contains(**word));
    let what = format!("not valid JSON at column {}: {}", e.column(), strip_position(e));
    let remedy = match nan {
        Some(word) => format!("JSON has no {word}: leave the field out, or write null"),
        None => "one JSON object a line, strings in double quotes".into(),
    };
    Fault::new("not JSON", Error::data(what).remedy(remedy))
}

fn json_row(line: &[u8], number: usize) -> Checked<Row> {
    let text = utf8(line)?;
    match serde_json::from_str::<Value>(text) {
        Ok(Value::Object(fields)) => Ok(Row { number, fields }),
        Ok(other) => {
            let error = Error::data(format!("{} instead of an object", describe(&other)));
            Err(Fault::new("not an object", error.remedy("write one {\"field\": value, ..} a line")))
        }
        Err(e) => Err(not_json(text, &e)),
    }
}

/// serde_json's message without its own "at line 1 column n".
fn strip_position(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.split(" at line ").next().unwrap_or_default().to_string()
}

fn parquet_rows(path: &Path, known: Option<&'static [&'static str]>) -> Result<Rows> {
    let mut source = batches(path)?;
    let path = path.to_path_buf();
    let (mut batch, mut next, mut number) = (None::<arrow_array::RecordBatch>, 0, 0);
    Ok(Box::new(std::iter::from_fn(move || {
        while batch.as_ref().is_none_or(|b| next >= b.num_rows()) {
            match source.next()? {
                Ok(fresh) => (batch, next) = (Some(fresh), 0),
                Err(error) => return Some(Err(Fault::new(UNREADABLE, error))),
            }
        }
        let current = batch.as_ref()?;
        (next, number) = (next + 1, number + 1);
        let schema = current.schema();
        let fields = schema.fields().iter().zip(current.columns()).map(|(field, column)| {
            let name = field.name();
            let wanted = known.is_none_or(|known| known.contains(&name.as_str()));
            let value =
                if wanted { known_value(column, next - 1).map_err(|e| e.at(name))? } else { Value::Null };
            Ok((name.clone(), value))
        });
        let fields = fields.collect::<Result<Map<_, _>>>();
        let row = fields.map(|fields| Row { number, fields });
        Some(row.map_err(|e| Fault::new("column type", e).place(&path, "row", number as u64)))
    })))
}

/// A value that is read; a float that is not finite is none.
fn known_value(column: &dyn Array, row: usize) -> Result<Value> {
    match not_finite(column, row) {
        Some(what) => {
            Err(Error::data(format!("{what} instead of a value")).remedy("write null where there is none"))
        }
        None => value_at(column, row),
    }
}
