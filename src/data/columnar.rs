//! Parquet columns as JSON values.
//!
//! NaN and infinities have no JSON form: nested in a value they are null, alone they are asked for with
//! [`not_finite`].

use super::parquet_file::ParquetFile;
use super::parquet_pages::{BATCH_ROWS, Pages};
use crate::error::{Error, Result};
use arrow_array::cast::AsArray;
use arrow_array::types::*;
use arrow_array::{Array, RecordBatch};
use arrow_schema::{DataType, Field, FieldRef, SchemaRef, TimeUnit};
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader, RowGroups,
};
use parquet::arrow::{ProjectionMask, parquet_to_arrow_field_levels};
use serde_json::{Map, Number, Value};
use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

/// Opens a Parquet file and yields its row batches.
///
/// # Errors
/// A file that cannot be opened or is not Parquet; then, batch by batch, damaged pages.
pub(crate) fn batches(path: &Path) -> Result<impl Iterator<Item = Result<RecordBatch>> + use<>> {
    batches_of(path, None)
}

/// A Parquet file's columns and its number of rows.
///
/// # Errors
/// A file that cannot be opened or is not Parquet.
pub(crate) fn layout(path: &Path) -> Result<(SchemaRef, u64)> {
    let file = ParquetFile::open(path)?;
    let opened = caught(path, || ArrowReaderMetadata::load(&file, ArrowReaderOptions::new()))?;
    let rows = opened.metadata().file_metadata().num_rows();
    Ok((opened.schema().clone(), rows.max(0) as u64))
}

/// What the decoder makes of a file. It checks most of what a damaged one can say, but not all of it: a panic in it is an
/// error about the file.
fn caught<T, E: Display>(path: &Path, decode: impl FnOnce() -> std::result::Result<T, E>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(decode)) {
        Ok(outcome) => outcome.map_err(|e| damaged(path, &e.to_string())),
        Err(_) => Err(damaged(path, "its contents contradict its header")),
    }
}

fn damaged(path: &Path, what: &str) -> Error {
    // The decoder says so of codecs that it was built without.
    let remedy = match what.contains("feature") {
        true => "write the file with Snappy, zstd or gzip",
        false => "write the file again; it may be cut off or damaged",
    };
    Error::data(format!("not a readable Parquet file: {what}")).at(path.display()).remedy(remedy)
}

/// As [`batches`], with only those of the named columns that the file has.
pub(crate) fn batches_of(
    path: &Path,
    names: Option<&[&str]>,
) -> Result<impl Iterator<Item = Result<RecordBatch>> + use<>> {
    let file = ParquetFile::open(path)?;
    let path = path.to_path_buf();
    let mut reader = caught(&path, || reader(file, names))?;
    let mut failed = false;
    Ok(std::iter::from_fn(move || {
        if failed {
            return None;
        }
        let next = caught(&path, || reader.next().transpose()).transpose();
        failed = next.as_ref().is_some_and(Result::is_err);
        next
    }))
}

fn reader(file: ParquetFile, names: Option<&[&str]>) -> parquet::errors::Result<ParquetRecordBatchReader> {
    let opened = ArrowReaderMetadata::load(&file, ArrowReaderOptions::new())?;
    let fields = opened.schema().fields().iter().map(viewed_field).collect();
    let named = opened.schema().fields().iter().enumerate();
    let named = named.filter(|(_, field)| names.is_none_or(|names| names.contains(&field.name().as_str())));
    let roots = ProjectionMask::roots(opened.parquet_schema(), named.map(|(at, _)| at));
    let levels = parquet_to_arrow_field_levels(opened.parquet_schema(), roots, Some(&fields))?;
    let pages = Pages { file: Arc::new(file), metadata: opened.metadata().clone() };
    let rows = BATCH_ROWS.min(pages.num_rows());
    ParquetRecordBatchReader::try_new_with_row_groups(&levels, &pages, rows, None)
}

/// The type to decode into: text and bytes as views of pages, so that there is one copy of a value that a dictionary gives to
/// many rows.
fn viewed(of: &DataType) -> DataType {
    match of {
        DataType::Utf8 | DataType::LargeUtf8 => DataType::Utf8View,
        DataType::Binary | DataType::LargeBinary => DataType::BinaryView,
        DataType::Dictionary(_, value) => viewed(value),
        DataType::List(field) => DataType::List(viewed_field(field)),
        DataType::LargeList(field) => DataType::LargeList(viewed_field(field)),
        DataType::FixedSizeList(field, size) => DataType::FixedSizeList(viewed_field(field), *size),
        DataType::Map(field, sorted) => DataType::Map(viewed_field(field), *sorted),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(viewed_field).collect()),
        other => other.clone(),
    }
}

fn viewed_field(field: &FieldRef) -> FieldRef {
    Arc::new(Field::clone(field).with_data_type(viewed(field.data_type())))
}

/// The name of a float at `row` that is not finite.
pub(crate) fn not_finite(array: &dyn Array, row: usize) -> Option<&'static str> {
    let value = match array.data_type() {
        _ if array.is_null(row) => return None,
        DataType::Float32 => f64::from(array.as_primitive::<Float32Type>().value(row)),
        DataType::Float64 => array.as_primitive::<Float64Type>().value(row),
        _ => return None,
    };
    match value {
        x if x.is_nan() => Some("NaN"),
        x if x.is_infinite() => Some("an infinity"),
        _ => None,
    }
}

/// Text, or bytes that are text: what Hive and Impala call a string. Text is looked at too: the decoder does so page by page,
/// where a value may begin within a character.
///
/// # Errors
/// What is not UTF-8.
pub(crate) fn text_at(array: &dyn Array, row: usize) -> Result<&str> {
    let bytes = match array.data_type() {
        DataType::Utf8View => array.as_string_view().value(row).as_bytes(),
        _ => array.as_binary_view().value(row),
    };
    std::str::from_utf8(bytes).map_err(|_| {
        Error::data("binary data that is not UTF-8").remedy("write the column as strings or integers")
    })
}

/// A decimal number as text, without zeros behind its point.
pub(crate) fn decimal_text(array: &dyn Array, row: usize) -> Option<String> {
    let text = match array.data_type() {
        DataType::Decimal32(..) => array.as_primitive::<Decimal32Type>().value_as_string(row),
        DataType::Decimal64(..) => array.as_primitive::<Decimal64Type>().value_as_string(row),
        DataType::Decimal128(..) => array.as_primitive::<Decimal128Type>().value_as_string(row),
        DataType::Decimal256(..) => array.as_primitive::<Decimal256Type>().value_as_string(row),
        _ => return None,
    };
    Some(if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').into() } else { text })
}

/// The value of `array` at `row`; lists, structs and maps of any depth included.
///
/// # Errors
/// A type that JSON has no counterpart for here (intervals), and binary data that is not text.
pub(crate) fn value_at(array: &dyn Array, row: usize) -> Result<Value> {
    if array.is_null(row) {
        return Ok(Value::Null);
    }
    macro_rules! integer {
        ($t:ty) => {
            Value::from(array.as_primitive::<$t>().value(row))
        };
    }
    let float = |x: f64| Number::from_f64(x).map_or(Value::Null, Value::Number);
    let list = |values: &dyn Array| -> Result<Value> {
        (0..values.len()).map(|i| value_at(values, i)).collect::<Result<Vec<_>>>().map(Value::Array)
    };
    Ok(match array.data_type() {
        DataType::Null => Value::Null,
        DataType::Boolean => Value::from(array.as_boolean().value(row)),
        DataType::Int8 => integer!(Int8Type),
        DataType::Int16 => integer!(Int16Type),
        DataType::Int32 => integer!(Int32Type),
        DataType::Int64 => integer!(Int64Type),
        DataType::UInt8 => integer!(UInt8Type),
        DataType::UInt16 => integer!(UInt16Type),
        DataType::UInt32 => integer!(UInt32Type),
        DataType::UInt64 => integer!(UInt64Type),
        DataType::Float16 => float(array.as_primitive::<Float16Type>().value(row).to_f64()),
        DataType::Float32 => float(array.as_primitive::<Float32Type>().value(row) as f64),
        DataType::Float64 => float(array.as_primitive::<Float64Type>().value(row)),
        DataType::Utf8View | DataType::BinaryView => Value::from(text_at(array, row)?),
        DataType::Date32 => integer!(Date32Type),
        DataType::Date64 => integer!(Date64Type),
        DataType::Timestamp(TimeUnit::Second, _) => integer!(TimestampSecondType),
        DataType::Timestamp(TimeUnit::Millisecond, _) => integer!(TimestampMillisecondType),
        DataType::Timestamp(TimeUnit::Microsecond, _) => integer!(TimestampMicrosecondType),
        DataType::Timestamp(TimeUnit::Nanosecond, _) => integer!(TimestampNanosecondType),
        DataType::List(_) => list(array.as_list::<i32>().value(row).as_ref())?,
        DataType::LargeList(_) => list(array.as_list::<i64>().value(row).as_ref())?,
        DataType::FixedSizeList(..) => list(array.as_fixed_size_list().value(row).as_ref())?,
        DataType::Struct(fields) => {
            let columns = array.as_struct().columns();
            let pairs = fields.iter().zip(columns).map(|(f, c)| Ok((f.name().clone(), value_at(c, row)?)));
            Value::Object(pairs.collect::<Result<Map<_, _>>>()?)
        }
        DataType::Decimal32(..)
        | DataType::Decimal64(..)
        | DataType::Decimal128(..)
        | DataType::Decimal256(..) => {
            let text = decimal_text(array, row).unwrap_or_default();
            text.parse::<Number>().map_or_else(|_| Value::from(text.as_str()), Value::Number)
        }
        other => {
            return Err(Error::data(format!("a column of type {other} cannot be read"))
                .remedy("use integers, floats, strings, lists or structs of them"));
        }
    })
}
