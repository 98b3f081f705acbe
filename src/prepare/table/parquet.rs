//! Rows of Parquet files.

use super::Cells;
use crate::data::columnar::{batches_of, decimal_text, layout, text_at, value_at};
use crate::data::fault::{Checked, Fault, UNREADABLE};
use crate::error::{Error, Result};
use crate::prepare::cell::Cell;
use crate::prepare::intake::Intake;
use crate::prepare::unit::Unit;
use arrow_array::cast::AsArray;
use arrow_array::types::*;
use arrow_array::{Array, RecordBatch, StructArray};
use arrow_schema::{DataType, Field, TimeUnit};
use std::path::Path;

/// Names of a file's columns, fields of structs as paths, and whether it has rows.
///
/// # Errors
/// A file that cannot be read.
pub(super) fn columns(path: &Path) -> Result<(Vec<String>, bool)> {
    let (schema, rows) = layout(path)?;
    let mut names = Vec::new();
    for field in schema.fields() {
        add_names(field, field.name(), &mut names);
    }
    Ok((names, rows > 0))
}

fn add_names(field: &Field, name: &str, names: &mut Vec<String>) {
    names.push(name.into());
    if let DataType::Struct(fields) = field.data_type() {
        fields.iter().for_each(|f| add_names(f, &format!("{name}.{}", f.name()), names));
    }
}

/// Reads the rows of a file and hands the wanted columns to `each`.
pub(super) fn read(
    intake: &mut Intake,
    path: &Path,
    columns: &[String],
    each: &mut dyn FnMut(&mut Cells) -> Checked<()>,
) -> Result<()> {
    let roots: Vec<&str> =
        columns.iter().flat_map(|n| [n.as_str(), n.split('.').next().unwrap_or_default()]).collect();
    let mut number = 0;
    for batch in batches_of(path, Some(&roots))? {
        let batch = batch?;
        let chains = columns.iter().map(|name| chain(&batch, name)).enumerate();
        let arrays: Vec<(usize, Vec<&dyn Array>)> = chains.filter(|(_, chain)| !chain.is_empty()).collect();
        for row in 0..batch.num_rows() {
            number += 1;
            let mut cells: Cells = Default::default();
            let outcome = fill(&mut cells, &arrays, columns, row).and_then(|()| each(&mut cells));
            intake.row(outcome.map_err(|f| f.place(path, "row", number)))?;
        }
    }
    intake.advance(std::fs::metadata(path).map_or(0, |m| m.len()));
    Ok(())
}

/// The array of a column behind the structs around it; none if there is none.
fn chain<'b>(batch: &'b RecordBatch, name: &str) -> Vec<&'b dyn Array> {
    if let Some(array) = batch.column_by_name(name) {
        return vec![array.as_ref()];
    }
    let mut parts = name.split('.');
    let root = parts.next().and_then(|root| batch.column_by_name(root));
    let mut arrays: Vec<&dyn Array> = root.map(|a| a.as_ref()).into_iter().collect();
    for part in parts {
        let inner = arrays.last().and_then(|a| a.as_any().downcast_ref::<StructArray>());
        match inner.and_then(|s| s.column_by_name(part)) {
            Some(array) => arrays.push(array.as_ref()),
            None => return Vec::new(),
        }
    }
    arrays
}

/// The values of a row.
fn fill<'b>(
    cells: &mut Cells<'b>,
    arrays: &[(usize, Vec<&'b dyn Array>)],
    names: &[String],
    row: usize,
) -> Checked<()> {
    for (at, chain) in arrays {
        let Some(array) = chain.last().filter(|_| chain.iter().all(|a| !a.is_null(row))) else { continue };
        cells[*at] = read_cell(*array, row).map_err(|error| Fault::new(UNREADABLE, error.at(&names[*at])))?;
    }
    Ok(())
}

fn read_cell(array: &dyn Array, row: usize) -> Result<Cell<'_>> {
    macro_rules! value {
        ($t:ty) => {
            array.as_primitive::<$t>().value(row)
        };
    }
    Ok(match array.data_type() {
        DataType::Utf8View | DataType::BinaryView => Cell::Text(text_at(array, row)?.into()),
        DataType::Int32 => Cell::Int(value!(Int32Type).into()),
        DataType::Int64 => Cell::Int(value!(Int64Type)),
        DataType::Float32 => Cell::Float(value!(Float32Type).into()),
        DataType::Float64 => Cell::Float(value!(Float64Type)),
        DataType::Date32 => Cell::Date(value!(Date32Type)),
        DataType::Date64 => Cell::Time(value!(Date64Type), Unit::Milliseconds),
        DataType::Timestamp(TimeUnit::Second, _) => Cell::Time(value!(TimestampSecondType), Unit::Seconds),
        DataType::Timestamp(TimeUnit::Millisecond, _) => {
            Cell::Time(value!(TimestampMillisecondType), Unit::Milliseconds)
        }
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            Cell::Time(value!(TimestampMicrosecondType), Unit::Microseconds)
        }
        DataType::Timestamp(TimeUnit::Nanosecond, _) => {
            Cell::Time(value!(TimestampNanosecondType), Unit::Nanoseconds)
        }
        DataType::Decimal32(..)
        | DataType::Decimal64(..)
        | DataType::Decimal128(..)
        | DataType::Decimal256(..) => {
            // As a decimal says it, exactly.
            decimal_text(array, row).map_or(Cell::Missing, |text| Cell::Field(text.into()))
        }
        DataType::FixedSizeBinary(_) | DataType::Interval(_) | DataType::Duration(_) => {
            return Err(Error::data(format!("a column of type {} cannot be read", array.data_type()))
                .remedy("write it as integers or strings"));
        }
        _ => value_at(array, row)?.into(),
    })
}
