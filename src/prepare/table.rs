//! Tables as they come: CSV, TSV, JSONL or Parquet, gzip or zstd, read row by row for a few named columns.

use super::cell::Cell;
use super::intake::Intake;
use crate::data::columnar::{batches_of, value_at};
use crate::data::rows::{self, Fault, UNREADABLE};
use crate::error::{Error, Kind, Result};
use arrow_array::cast::AsArray;
use arrow_array::types::{Float64Type, Int32Type, Int64Type};
use arrow_array::{Array, RecordBatch};
use arrow_schema::DataType;
use serde::Deserializer;
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, Visitor};
use std::borrow::Cow;
use std::cell::Cell as Counter;
use std::fmt;
use std::io::Read;
use std::path::Path;
use std::rc::Rc;

pub(super) type Checked<T> = std::result::Result<T, Fault>;

/// A column that a source reads.
#[derive(Debug, Clone)]
pub(super) struct Column {
    pub name: String,
    /// A file without it is an error at once.
    pub required: bool,
}

impl Column {
    pub fn required(name: &str) -> Self {
        Self { name: name.into(), required: true }
    }
    pub fn optional(name: &str) -> Self {
        Self { name: name.into(), required: false }
    }
}

/// Most columns that any source reads.
const MAX_COLUMNS: usize = 12;

/// Reads `columns` of every row of a file and hands them to `each`.
///
/// # Errors
/// A file that cannot be read or lacks a required column; more bad rows than are allowed.
pub(super) fn read(
    intake: &mut Intake,
    path: &Path,
    columns: &[Column],
    each: &mut dyn FnMut(&[Cell]) -> Checked<()>,
) -> Result<()> {
    debug_assert!(columns.len() <= MAX_COLUMNS);
    match kind(path) {
        Some("parquet") => read_parquet(intake, path, columns, each),
        Some("jsonl" | "json" | "ndjson") => each_line(intake, path, &mut |text| {
            let mut cells: [Cell; MAX_COLUMNS] = Default::default();
            json_cells(text, columns, &mut cells)?;
            each(&cells[..columns.len()])
        }),
        Some("csv") => read_csv(intake, path, b',', columns, each),
        Some("tsv" | "inter" | "item") => read_csv(intake, path, b'\t', columns, each),
        _ => Err(Error::usage("not a kind of table that is read")
            .at(path.display())
            .remedy(".csv, .tsv, .jsonl (each also .gz or .zst) or .parquet")),
    }
}

/// The extension that says how a file is written, below `.gz` and `.zst`.
pub(super) fn kind(path: &Path) -> Option<&str> {
    let name = path.file_name()?.to_str()?;
    let name = [".gz", ".zst", ".zstd"].iter().find_map(|e| name.strip_suffix(e)).unwrap_or(name);
    name.rsplit_once('.').map(|(_, extension)| extension)
}

/// Whether a file name is that of a table.
pub(super) fn is_table(path: &Path) -> bool {
    matches!(kind(path), Some("parquet" | "jsonl" | "json" | "ndjson" | "csv" | "tsv" | "inter" | "item"))
}

/// Hands every line that is not blank to `each`.
pub(super) fn each_line(
    intake: &mut Intake,
    path: &Path,
    each: &mut dyn FnMut(&str) -> Checked<()>,
) -> Result<()> {
    let mut reader = rows::unpack(path, intake.stream(path)?)?;
    let (mut line, mut number) = (Vec::new(), 0);
    loop {
        number += 1;
        let outcome = match rows::next_line(&mut *reader, &mut line, path) {
            Ok(false) => return Ok(()),
            Ok(true) if line.trim_ascii().is_empty() => continue,
            Ok(true) => rows::utf8(&line, number).and_then(&mut *each),
            Err(error) if error.kind == Kind::Data => Err(Fault::new("line too long", error)),
            Err(error) => return Err(error.remedy("the file may be cut off: fetch it again")),
        };
        intake.row(outcome.map_err(|f| place(f, path, "line", number as u64)))?;
    }
}

fn place(fault: Fault, path: &Path, unit: &str, number: u64) -> Fault {
    Fault::new(fault.reason, fault.error.at(format!("{} {unit} {number}", path.display())))
}

fn read_csv(
    intake: &mut Intake,
    path: &Path,
    delimiter: u8,
    columns: &[Column],
    each: &mut dyn FnMut(&[Cell]) -> Checked<()>,
) -> Result<()> {
    let left = Rc::new(Counter::new(rows::MAX_LINE_BYTES));
    let text = Limited { text: rows::unpack(path, intake.stream(path)?)?, left: Rc::clone(&left) };
    let mut reader = csv::ReaderBuilder::new().delimiter(delimiter).flexible(true).from_reader(text);
    let failed = |e: csv::Error| match e.into_kind() {
        csv::ErrorKind::Io(e) if e.kind() == std::io::ErrorKind::InvalidData => Error::data(e.to_string())
            .at(path.display())
            .remedy("close the quotes; or is this no CSV at all?"),
        csv::ErrorKind::Io(e) => Error::io("read", path, e).remedy("the file may be cut off: fetch it again"),
        other => Error::data(format!("not readable as CSV: {other:?}")).at(path.display()),
    };
    let header = reader.byte_headers().map_err(failed)?.clone();
    let names: Vec<String> = header.iter().map(header_name).collect();
    let fields = positions(path, columns, &names)?;
    let mut record = csv::ByteRecord::new();
    while reader.read_byte_record(&mut record).map_err(failed)? {
        left.set(rows::MAX_LINE_BYTES);
        let line = record.position().map_or(0, csv::Position::line);
        let outcome = csv_cells(&record, &names, &fields).and_then(|cells| each(&cells[..fields.len()]));
        intake.row(outcome.map_err(|f| place(f, path, "line", line)))?;
    }
    Ok(())
}

/// Text of which no more than `left` bytes are read until someone allows for more: a quote that is never closed
/// would otherwise make a single field of the rest of the file.
struct Limited<R> {
    text: R,
    left: Rc<Counter<usize>>,
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.text.read(buffer)?;
        match self.left.get().checked_sub(read) {
            Some(left) => self.left.set(left),
            None => {
                let what = format!("a row of more than {} bytes: a quote is left open", rows::MAX_LINE_BYTES);
                return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, what));
            }
        }
        Ok(read)
    }
}

/// A column's name, without a byte order mark and without RecBole's `:type`.
fn header_name(raw: &[u8]) -> String {
    let name = String::from_utf8_lossy(raw);
    let name = name.trim_start_matches('\u{feff}').trim();
    let typed = [":token", ":token_seq", ":float", ":float_seq"].iter().find_map(|t| name.strip_suffix(t));
    typed.unwrap_or(name).to_string()
}

fn csv_cells<'r>(
    record: &'r csv::ByteRecord,
    names: &[String],
    fields: &[Option<usize>],
) -> Checked<[Cell<'r>; MAX_COLUMNS]> {
    if record.len() != names.len() {
        let error = Error::data(format!("{} fields instead of {}", record.len(), names.len()));
        return Err(Fault::new(
            "wrong number of fields",
            error.remedy("put fields that hold commas, quotes or line ends in double quotes"),
        ));
    }
    let mut cells: [Cell; MAX_COLUMNS] = Default::default();
    for (cell, field) in cells.iter_mut().zip(fields) {
        let Some(field) = field else { continue };
        let raw = &record[*field];
        let text = std::str::from_utf8(raw).map_err(|e| {
            let error = Error::data(format!("not UTF-8 from byte {} of the field on", e.valid_up_to() + 1));
            Fault::new("bad UTF-8", error.at(&names[*field]).remedy("save the file as UTF-8"))
        })?;
        if !text.is_empty() {
            *cell = Cell::Text(Cow::Borrowed(text));
        }
    }
    Ok(cells)
}

/// Where each wanted column stands.
fn positions(path: &Path, columns: &[Column], names: &[String]) -> Result<Vec<Option<usize>>> {
    let find = |column: &Column| {
        let at = names.iter().position(|n| *n == column.name);
        match (at, column.required) {
            (None, true) => Err(Error::data(format!("no column `{}`; there are: {}", column.name, names.join(", ")))
                .at(path.display())
                .remedy("a header line names the columns; `prepare events --columns user=NAME,..` says which is which")),
            (at, _) => Ok(at),
        }
    };
    columns.iter().map(find).collect()
}

fn read_parquet(
    intake: &mut Intake,
    path: &Path,
    columns: &[Column],
    each: &mut dyn FnMut(&[Cell]) -> Checked<()>,
) -> Result<()> {
    let wanted: Vec<&str> = columns.iter().map(|c| c.name.as_str()).collect();
    let all: Vec<String> = column_names(path)?;
    positions(path, columns, &all)?;
    let mut number = 0;
    for batch in batches_of(path, Some(&wanted))? {
        let batch = batch?;
        let arrays: Vec<Option<&dyn Array>> =
            wanted.iter().map(|name| batch.column_by_name(name).map(|a| a.as_ref())).collect();
        for row in 0..batch.num_rows() {
            number += 1;
            let outcome = array_cells(&arrays, columns, row).and_then(|cells| each(&cells[..columns.len()]));
            intake.row(outcome.map_err(|f| place(f, path, "row", number)))?;
        }
    }
    intake.advance(std::fs::metadata(path).map_or(0, |m| m.len()));
    Ok(())
}

fn column_names(path: &Path) -> Result<Vec<String>> {
    let first: Option<RecordBatch> = batches_of(path, None)?.next().transpose()?;
    Ok(first.map_or(Vec::new(), |b| b.schema().fields().iter().map(|f| f.name().clone()).collect()))
}

fn array_cells<'b>(
    arrays: &[Option<&'b dyn Array>],
    columns: &[Column],
    row: usize,
) -> Checked<[Cell<'b>; MAX_COLUMNS]> {
    let mut cells: [Cell; MAX_COLUMNS] = Default::default();
    for ((cell, array), column) in cells.iter_mut().zip(arrays).zip(columns) {
        let Some(array) = array.filter(|a| !a.is_null(row)) else { continue };
        *cell = match array.data_type() {
            DataType::Utf8 => Cell::Text(array.as_string::<i32>().value(row).into()),
            DataType::LargeUtf8 => Cell::Text(array.as_string::<i64>().value(row).into()),
            DataType::Utf8View => Cell::Text(array.as_string_view().value(row).into()),
            DataType::Int32 => Cell::Int(array.as_primitive::<Int32Type>().value(row).into()),
            DataType::Int64 => Cell::Int(array.as_primitive::<Int64Type>().value(row)),
            DataType::Float64 => Cell::Float(array.as_primitive::<Float64Type>().value(row)),
            _ => match value_at(array, row) {
                Ok(value) => value.into(),
                Err(error) => return Err(Fault::new(UNREADABLE, error.at(&column.name))),
            },
        };
    }
    Ok(cells)
}

/// The wanted fields of a JSON object; the others are passed over.
fn json_cells<'de>(text: &'de str, columns: &[Column], cells: &mut [Cell<'de>; MAX_COLUMNS]) -> Checked<()> {
    let mut source = serde_json::Deserializer::from_str(text);
    let read = Fields { columns, cells }.deserialize(&mut source).and_then(|()| source.end());
    read.map_err(|e| match text.trim_start().starts_with('{') {
        true => rows::not_json(text, &e),
        false => {
            let head: String = text.chars().take(40).collect();
            let error = Error::data(format!("`{head}` is not a JSON object"));
            Fault::new("not an object", error.remedy("write one {\"field\": value, ..} a line"))
        }
    })
}

struct Fields<'c, 'de> {
    columns: &'c [Column],
    cells: &'c mut [Cell<'de>; MAX_COLUMNS],
}

impl<'de> DeserializeSeed<'de> for Fields<'_, 'de> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, source: D) -> std::result::Result<(), D::Error> {
        source.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Fields<'_, 'de> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<(), A::Error> {
        while let Some(field) = map.next_key_seed(Key(self.columns))? {
            match field {
                Some(field) => self.cells[field] = map.next_value()?,
                None => map.next_value::<IgnoredAny>().map(|_| ())?,
            }
        }
        Ok(())
    }
}

/// Which of the columns a key names.
struct Key<'c>(&'c [Column]);

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = Option<usize>;
    fn deserialize<D: Deserializer<'de>>(self, source: D) -> std::result::Result<Self::Value, D::Error> {
        source.deserialize_str(self)
    }
}

impl Visitor<'_> for Key<'_> {
    type Value = Option<usize>;
    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a name")
    }
    fn visit_str<E>(self, name: &str) -> std::result::Result<Self::Value, E> {
        Ok(self.0.iter().position(|c| c.name == name))
    }
}
