//! Parquet columns as JSON values.
//!
//! NaN and infinities have no JSON form: nested in a value they are null, alone they are asked for with
//! [`not_finite`].

use super::parquet_file::ParquetFile;
use crate::error::{Error, Result};
use arrow_array::cast::AsArray;
use arrow_array::types::*;
use arrow_array::{Array, RecordBatch};
use arrow_schema::{DataType, SchemaRef, TimeUnit};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::{Map, Number, Value};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

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
    let opened = catch_unwind(AssertUnwindSafe(|| ParquetRecordBatchReaderBuilder::try_new(file)));
    let builder = opened.map_err(|_| damaged(path, CAUGHT))?.map_err(|e| damaged(path, &e.to_string()))?;
    let rows = builder.metadata().file_metadata().num_rows();
    Ok((builder.schema().clone(), rows.max(0) as u64))
}

/// The decoder checks most of what a damaged file can say, but not all of it: a panic in it is an error about the
/// file.
const CAUGHT: &str = "its contents contradict its header";

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
    let reader = catch_unwind(AssertUnwindSafe(|| {
        let builder = ParquetRecordBatchReaderBuilder::try_new(file)?.with_batch_size(8192);
        let roots: Vec<usize> = match names {
            None => return builder.build(),
            Some(names) => {
                let fields = builder.schema().fields().iter().enumerate();
                fields.filter(|(_, f)| names.contains(&f.name().as_str())).map(|(i, _)| i).collect()
            }
        };
        let mask = ProjectionMask::roots(builder.parquet_schema(), roots);
        builder.with_projection(mask).build()
    }));
    let mut reader =
        reader.map_err(|_| damaged(&path, CAUGHT))?.map_err(|e| damaged(&path, &e.to_string()))?;
    let mut failed = false;
    Ok(std::iter::from_fn(move || {
        if failed {
            return None;
        }
        let next = match catch_unwind(AssertUnwindSafe(|| reader.next())) {
            Ok(next) => next?.map_err(|e| damaged(&path, &e.to_string())),
            Err(_) => Err(damaged(&path, CAUGHT)),
        };
        failed = next.is_err();
        Some(next)
    }))
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

/// Bytes that are text: what Hive and Impala call a string.
pub(crate) fn binary_text(bytes: &[u8]) -> Result<&str> {
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
        DataType::Utf8 => Value::from(array.as_string::<i32>().value(row)),
        DataType::LargeUtf8 => Value::from(array.as_string::<i64>().value(row)),
        DataType::Utf8View => Value::from(array.as_string_view().value(row)),
        DataType::Binary => Value::from(binary_text(array.as_binary::<i32>().value(row))?),
        DataType::LargeBinary => Value::from(binary_text(array.as_binary::<i64>().value(row))?),
        DataType::BinaryView => Value::from(binary_text(array.as_binary_view().value(row))?),
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
        DataType::Dictionary(..) => {
            let cell = array.slice(row, 1);
            let dictionary = cell.as_any_dictionary();
            value_at(dictionary.values().as_ref(), dictionary.normalized_keys()[0])?
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
