//! Parquet columns as JSON values.

use crate::error::{Error, Result};
use arrow_array::cast::AsArray;
use arrow_array::types::*;
use arrow_array::{Array, RecordBatch};
use arrow_schema::{DataType, TimeUnit};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::{Map, Number, Value};
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// Opens a Parquet file and yields its row batches.
///
/// # Errors
/// A file that cannot be opened or is not Parquet; then, batch by batch, damaged pages.
pub(crate) fn batches(path: &Path) -> Result<impl Iterator<Item = Result<RecordBatch>> + use<>> {
    batches_of(path, None)
}

/// As [`batches`], with only those of the named columns that the file has.
pub(crate) fn batches_of(
    path: &Path,
    names: Option<&[&str]>,
) -> Result<impl Iterator<Item = Result<RecordBatch>> + use<>> {
    let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
    let place = path.display().to_string();
    let damaged = move |what: String| {
        Error::data(format!("not a readable Parquet file: {what}"))
            .at(&place)
            .remedy("write the file again; it may be cut off or damaged")
    };
    // The decoder checks most of what a damaged file can say, but not all of it: a panic in it is
    // an error about the file.
    let caught = "its contents contradict its header";
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
    let mut reader = reader.map_err(|_| damaged(caught.into()))?.map_err(|e| damaged(e.to_string()))?;
    let mut failed = false;
    Ok(std::iter::from_fn(move || {
        if failed {
            return None;
        }
        let next = match catch_unwind(AssertUnwindSafe(|| reader.next())) {
            Ok(next) => next?.map_err(|e| damaged(e.to_string())),
            Err(_) => Err(damaged(caught.into())),
        };
        failed = next.is_err();
        Some(next)
    }))
}

/// The value of `array` at `row`; lists, structs and maps of any depth included.
///
/// # Errors
/// A type that JSON has no counterpart for here (binary, intervals).
pub(crate) fn value_at(array: &dyn Array, row: usize) -> Result<Value> {
    if array.is_null(row) {
        return Ok(Value::Null);
    }
    macro_rules! integer {
        ($t:ty) => {
            Value::from(array.as_primitive::<$t>().value(row))
        };
    }
    let float = |x: f64| Number::from_f64(x).map_or(Value::from("NaN"), Value::Number);
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
        DataType::Date32 => integer!(Date32Type),
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
        other => {
            return Err(Error::data(format!("a column of type {other} cannot be read"))
                .remedy("use integers, floats, strings, lists or structs of them"));
        }
    })
}
