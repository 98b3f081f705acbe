//! Rows of JSONL and Parquet files, one at a time, with their place for messages.

use super::columnar::{batches, value_at};
use crate::error::{Error, Kind, Result};
use serde_json::{Map, Value};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

/// Longest line of a text file, in bytes.
pub(crate) const MAX_LINE_BYTES: usize = 16 << 20;

/// One row: field names and values.
pub(crate) struct Row {
    /// Line number (JSONL) or row number (Parquet), from 1.
    pub number: usize,
    /// The fields.
    pub fields: Map<String, Value>,
}

/// Something wrong with one row, and the few words it is counted under.
pub(crate) struct Fault {
    /// Why, for the count of skipped rows.
    pub reason: &'static str,
    /// The whole message.
    pub error: Error,
}

impl Fault {
    pub(crate) fn new(reason: &'static str, error: Error) -> Self {
        Self { reason, error }
    }
    /// Whether the rest of the file can still be read.
    pub(crate) fn is_skippable(&self) -> bool {
        self.error.kind == Kind::Data && self.reason != UNREADABLE
    }
}

/// The reason of a fault that ends the file.
pub(crate) const UNREADABLE: &str = "unreadable file";

/// The rows of a file.
pub(crate) type Rows = Box<dyn Iterator<Item = std::result::Result<Row, Fault>>>;

/// `dir/stem.jsonl` or `dir/stem.parquet`, whichever exists.
///
/// # Errors
/// Both exist.
pub(crate) fn find(dir: &Path, stem: &str) -> Result<Option<PathBuf>> {
    let [jsonl, parquet] = ["jsonl", "parquet"].map(|ext| dir.join(format!("{stem}.{ext}")));
    match (jsonl.is_file(), parquet.is_file()) {
        (true, true) => Err(Error::data(format!("both {stem}.jsonl and {stem}.parquet exist"))
            .at(dir.display())
            .remedy("remove one of them")),
        (true, false) => Ok(Some(jsonl)),
        (false, true) => Ok(Some(parquet)),
        (false, false) => Ok(None),
    }
}

/// Opens the rows of a `.jsonl` or `.parquet` file.
pub(crate) fn open(path: &Path) -> Result<Rows> {
    if path.extension().is_some_and(|e| e == "parquet") { parquet_rows(path) } else { json_rows(path) }
}

/// A text file to read line by line; `.gz` and `.zst` are unpacked on the way.
pub(crate) fn open_text(path: &Path) -> Result<Box<dyn BufRead>> {
    unpack(path, File::open(path).map_err(|e| Error::io("open", path, e))?)
}

/// The text of a `stream` of the bytes of `path`, unpacked as the name says.
pub(crate) fn unpack(path: &Path, stream: impl Read + 'static) -> Result<Box<dyn BufRead>> {
    let capacity = 1 << 18;
    let file = BufReader::with_capacity(capacity, stream);
    Ok(match path.extension().and_then(|e| e.to_str()) {
        Some("gz") => {
            Box::new(BufReader::with_capacity(capacity, flate2::bufread::MultiGzDecoder::new(file)))
        }
        Some("zst" | "zstd") => {
            let decoder =
                zstd::stream::read::Decoder::with_buffer(file).map_err(|e| Error::io("unpack", path, e))?;
            Box::new(BufReader::with_capacity(capacity, decoder))
        }
        _ => Box::new(file),
    })
}

/// Reads the next line into `line`, without its end. `Ok(false)`: the file is at its end.
///
/// # Errors
/// A line longer than [`MAX_LINE_BYTES`] (the rest of it is passed over), or the file system.
pub(crate) fn next_line(reader: &mut dyn BufRead, line: &mut Vec<u8>, path: &Path) -> Result<bool> {
    line.clear();
    let failed = |e| Error::io("read", path, e);
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
            .remedy("one JSON object a line; is this really JSONL?"));
    }
    Ok(true)
}

/// Drops what is buffered up to the end of the line; whether the end was met.
fn pass_over(reader: &mut dyn BufRead) -> std::io::Result<bool> {
    let buffer = reader.fill_buf()?;
    let (used, done) = match buffer.iter().position(|&b| b == b'\n') {
        Some(at) => (at + 1, true),
        None => (buffer.len(), buffer.is_empty()),
    };
    reader.consume(used);
    Ok(done)
}

fn json_rows(path: &Path) -> Result<Rows> {
    let mut reader = open_text(path)?;
    let (path, mut line, mut number) = (path.to_path_buf(), Vec::new(), 0);
    Ok(Box::new(std::iter::from_fn(move || {
        loop {
            number += 1;
            match next_line(&mut *reader, &mut line, &path) {
                Ok(false) => return None,
                Ok(true) if line.trim_ascii().is_empty() => continue,
                Ok(true) => {
                    return Some(json_row(&line, number).map_err(|f| place(f, &path, "line", number)));
                }
                Err(error) if error.kind == Kind::Data => {
                    return Some(Err(place(Fault::new("line too long", error), &path, "line", number)));
                }
                Err(error) => return Some(Err(Fault::new(UNREADABLE, error))),
            }
        }
    })))
}

/// The objects of a JSONL (or Parquet) file with their line numbers.
///
/// # Errors
/// A file that cannot be opened; then, row by row, what is wrong with it.
pub fn json_objects(path: &Path) -> Result<impl Iterator<Item = Result<(usize, Map<String, Value>)>>> {
    Ok(open(path)?.map(|row| row.map(|r| (r.number, r.fields)).map_err(Error::from)))
}

fn place(fault: Fault, path: &Path, unit: &str, number: usize) -> Fault {
    Fault::new(fault.reason, fault.error.at(format!("{} {unit} {number}", path.display())))
}

/// A line as text, without a byte order mark.
pub(crate) fn utf8(line: &[u8], number: usize) -> std::result::Result<&str, Fault> {
    let text = std::str::from_utf8(line).map_err(|e| {
        let error = Error::data(format!("not UTF-8 from byte {} of the line on", e.valid_up_to() + 1));
        Fault::new("bad UTF-8", error.remedy("save the file as UTF-8"))
    })?;
    Ok(if number == 1 { text.trim_start_matches('\u{feff}') } else { text })
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

fn json_row(line: &[u8], number: usize) -> std::result::Result<Row, Fault> {
    let text = utf8(line, number)?;
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

fn parquet_rows(path: &Path) -> Result<Rows> {
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
            let value = value_at(column, next - 1).map_err(|e| e.at(field.name()))?;
            Ok((field.name().clone(), value))
        });
        let fields = fields.collect::<Result<Map<_, _>>>();
        let row = fields.map(|fields| Row { number, fields });
        Some(row.map_err(|e| place(Fault::new("column type", e), &path, "row", number)))
    })))
}

/// A value in a few words, for messages.
pub(crate) fn describe(value: &Value) -> String {
    let short = |text: &str| -> String {
        let head: String = text.chars().take(40).collect();
        if head.len() < text.len() { format!("{head}…") } else { head }
    };
    match value {
        Value::Null => "null".into(),
        Value::Bool(b) => format!("the boolean {b}"),
        Value::Number(n) => format!("the number {n}"),
        Value::String(s) => format!("the string {:?}", short(s)),
        Value::Array(_) => format!("the list {}", short(&value.to_string())),
        Value::Object(_) => format!("the object {}", short(&value.to_string())),
    }
}
