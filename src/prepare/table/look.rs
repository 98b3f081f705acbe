//! The dialect of a delimited text, told by its first lines and by what is wanted of it.

use super::delimited::Records;
use super::dialect::{BLANKS, Dialect};
use super::{Column, Need, Reading, SAMPLE};
use crate::error::{Error, Result};
use crate::prepare::cell::whole;
use std::io::Cursor;
use std::path::Path;

/// Rows that are looked at.
const ROWS: usize = 200;

/// What was found: the dialect, all names, the place of every wanted column, whether there is a row.
type Look = (Dialect, Vec<String>, Vec<Option<usize>>, bool);

/// Tells the dialect of a text that begins with `sample`.
///
/// # Errors
/// Columns named in two ways, a name that two columns have.
pub(super) fn look(
    path: &Path,
    sample: &[u8],
    columns: &[Column],
    reading: &Reading,
    suffix: &str,
) -> Result<Look> {
    // A line that is cut off says nothing.
    let whole_lines = match (sample.len() == SAMPLE, memchr::memrchr(b'\n', sample)) {
        (true, Some(end)) => &sample[..=end],
        _ => sample,
    };
    if whole_lines.contains(&b'\r') && !whole_lines.contains(&b'\n') {
        return Err(Error::data("lines end in CR alone")
            .at(path.display())
            .remedy("save the file with line ends of Unix or Windows: tr '\\r' '\\n'"));
    }
    let header = has_header(columns, reading)?;
    let (announced, whole_lines) = announcement(whole_lines);
    let separators = match reading.separator()?.or(announced.clone()) {
        Some(separator) => vec![separator],
        None => candidates(suffix),
    };
    let (escapes, announced) = (reading.escapes, announced.is_some());
    let mut best: Option<(Score, Look)> = None;
    for separator in separators {
        let quotes = reading.quotes.unwrap_or(separator != b"\t" && separator != b"\x01");
        let dialect = Dialect { separator, quotes, escapes, header, announced, ..Dialect::default() };
        let (score, look) = attempt(path, whole_lines, columns, dialect, reading)?;
        if best.as_ref().is_none_or(|(so_far, _)| score > *so_far) {
            best = Some((score, look));
        }
        let needed = columns.iter().filter(|c| c.need != Need::Never);
        let (all, ids) = (needed.clone().count(), needed.filter(|c| c.id).count());
        if score.wanted == all && score.clean >= ids && score.even {
            break;
        }
    }
    let (mut dialect, names, found, has_rows) = best.map(|(_, look)| look).unwrap_or_default();
    dialect.keeps_quotes &= reading.quotes.is_none();
    for (column, at) in columns.iter().zip(&found) {
        if at.is_some() && dialect.header {
            refuse_ambiguous(path, column, &names)?;
        }
    }
    Ok((dialect, names, found, has_rows))
}

/// What a first line `sep=;` says, and the lines behind it.
fn announcement(sample: &[u8]) -> (Option<Vec<u8>>, &[u8]) {
    let end = memchr::memchr(b'\n', sample).map_or(sample.len(), |at| at + 1);
    match sample[..end].trim_ascii_end() {
        [b's', b'e', b'p', b'=', separator] => (Some(vec![*separator]), &sample[end..]),
        // A tab is trimmed too.
        b"sep=" => (Some(b"\t".to_vec()), &sample[end..]),
        _ => (None, sample),
    }
}

/// Whether the first line names the columns: unless they are named by number.
fn has_header(columns: &[Column], reading: &Reading) -> Result<bool> {
    let named = || columns.iter().filter(|c| c.need != Need::Never);
    let by_number = named().filter(|c| c.name.parse::<usize>().is_ok()).count();
    match (reading.header, by_number) {
        (Some(true), _) | (None, 0) => Ok(true),
        (_, n) if n == named().count() && n > 0 => Ok(false),
        _ => {
            let name = named().find(|c| c.name.parse::<usize>().is_err()).map_or("", |c| c.name.as_str());
            let what = match by_number {
                0 => format!("without a header there is no column `{name}`"),
                _ => format!("some columns are named by number, and `{name}` is not"),
            };
            Err(Error::usage(what)
                .at("--columns, --item-columns")
                .remedy("name all by number from 1 on, such as user=1,item=2, or add --header on"))
        }
    }
}

fn candidates(suffix: &str) -> Vec<Vec<u8>> {
    let all: [&[u8]; 7] = match suffix {
        "csv" => [b",", b";", b"\t", b"|", b"::", b"\x01", b"\t"],
        "tsv" | "tab" | "inter" | "item" => [b"\t", b",", b";", b"|", b"::", b"\x01", b"\t"],
        _ => [b"\t", b"::", b"\x01", b"|", b";", b",", BLANKS],
    };
    all.iter().map(|s| s.to_vec()).collect()
}

/// How well a separator fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Score {
    /// The wanted columns that there are.
    wanted: usize,
    /// Columns of ids in which no other separator stands.
    clean: usize,
    /// All rows have as many fields, more than one.
    even: bool,
    /// The first row has more than one field.
    several: bool,
}

/// Whether a value holds what probably separates fields.
fn is_separated(value: &str) -> bool {
    value.contains(['\t', ',', ';', '|', '\u{1}']) || value.contains("::")
}

/// Reads the first rows in a dialect.
fn attempt(
    path: &Path,
    sample: &[u8],
    columns: &[Column],
    mut dialect: Dialect,
    reading: &Reading,
) -> Result<(Score, Look)> {
    let mut rows = rows(path, sample, &dialect)?;
    let first = if rows.is_empty() { Vec::new() } else { rows[0].clone() };
    let names: Vec<String> = match dialect.header {
        true => {
            rows.drain(..1.min(rows.len()));
            first.iter().map(|name| column_name(name)).collect()
        }
        false => (1..=first.len()).map(|n| n.to_string()).collect(),
    };
    let found: Vec<Option<usize>> =
        columns.iter().map(|c| place(c, &names, &first, dialect.header)).collect();
    let wanted = found.iter().zip(columns).filter(|(at, c)| at.is_some() && c.need != Need::Never).count();
    let even = names.len() > 1 && rows.iter().all(|row| fits(row, names.len()));
    let ids = found.iter().zip(columns).filter(|(_, c)| c.id).filter_map(|(at, _)| *at);
    let of_column = |at: usize| rows.iter().filter_map(move |row| row.get(at));
    let clean = ids.filter(|at| !of_column(*at).any(|value| is_separated(value))).count();
    let score = Score { wanted, clean, even, several: names.len() > 1 };
    if !dialect.header && reading.header.is_none() {
        refuse_header(path, &rows, &found)?;
    }
    let quoted = |value: &String| value.len() > 1 && value.starts_with('"') && value.ends_with('"');
    dialect.keeps_quotes = !dialect.quotes && (first.iter().all(quoted) || rows.iter().flatten().any(quoted));
    for (number, at) in found.iter().enumerate().filter(|(n, _)| columns[*n].id) {
        let Some(at) = at else { continue };
        let is_value = |v: &&str| !matches!(*v, "" | "\\N") && !reading.missing.iter().any(|word| word == v);
        let values = || rows.iter().filter_map(|row| row.get(*at)).map(|v| v.trim()).filter(is_value);
        if values().next().is_some() && values().all(|v| whole(v).is_some()) {
            dialect.floats.push(number);
        }
    }
    dialect.names = names.clone();
    let has_rows = !rows.is_empty();
    Ok((score, (dialect, names, found, has_rows)))
}

fn fits(row: &[String], fields: usize) -> bool {
    row.len() == fields || row.len() > fields && row[fields..].iter().all(String::is_empty)
}

/// The first rows, without those that cannot be read.
fn rows(path: &Path, sample: &[u8], dialect: &Dialect) -> Result<Vec<Vec<String>>> {
    let mut records = Records::new(path, Box::new(Cursor::new(sample.to_vec())), dialect);
    let mut rows = Vec::new();
    while rows.len() < ROWS && records.next()?.is_some() {
        if records.fault.take().is_none() {
            rows.push(records.texts());
        }
    }
    Ok(rows)
}

/// A column's name without RecBole's `:type`.
fn column_name(name: &str) -> String {
    let name = name.trim();
    let typed = [":token", ":token_seq", ":float", ":float_seq"].iter().find_map(|t| name.strip_suffix(t));
    typed.unwrap_or(name).to_string()
}

/// Where a wanted column stands: by name, or by its number from 1 on.
fn place(column: &Column, names: &[String], header: &[String], by_name: bool) -> Option<usize> {
    let number = || column.name.parse::<usize>().ok()?.checked_sub(1).filter(|at| *at < names.len());
    if !by_name {
        return number();
    }
    let whole = header.iter().position(|name| name.trim() == column.name);
    let exact = whole.or_else(|| names.iter().position(|name| *name == column.name));
    exact.or_else(|| names.iter().position(|name| column.is(name))).or_else(number)
}

fn refuse_ambiguous(path: &Path, column: &Column, names: &[String]) -> Result<()> {
    let exact = names.iter().filter(|n| **n == column.name).count();
    let called: Vec<&str> = names.iter().filter(|n| column.is(n)).map(String::as_str).collect();
    if exact == 1 || called.len() < 2 {
        return Ok(());
    }
    let what = match exact {
        0 => format!("`{}` may be {}", column.name, called.join(" or ")),
        n => format!("{n} columns are called `{}`", column.name),
    };
    Err(Error::data(what)
        .at(path.display())
        .remedy("say which with --columns ROLE=NAME, or ROLE=NUMBER for all with --header on"))
}

/// A header in a table that should have none: a word above numbers, or one of the usual names.
fn refuse_header(path: &Path, rows: &[Vec<String>], found: &[Option<usize>]) -> Result<()> {
    let [first, rest @ ..] = rows else { return Ok(()) };
    let number = |row: &Vec<String>, at: usize| row.get(at).is_some_and(|v| v.trim().parse::<f64>().is_ok());
    let usual = |value: &String| {
        let plain = value.trim().to_lowercase().replace(['_', '-'], "");
        matches!(plain.as_str(), "user" | "userid" | "item" | "itemid" | "timestamp" | "rating")
    };
    let places: Vec<usize> = found.iter().flatten().copied().collect();
    let above = |at: &usize| !number(first, *at) && rest.len() > 1 && rest.iter().all(|row| number(row, *at));
    if !places.iter().any(|at| above(at) || first.get(*at).is_some_and(usual)) {
        return Ok(());
    }
    let shown: Vec<&str> = places.iter().filter_map(|at| first.get(*at)).map(String::as_str).collect();
    Err(Error::data(format!("the first line looks like a header: {}", shown.join(", ")))
        .at(path.display())
        .remedy("name the columns by these names, or keep the numbers and add --header on (--header off: it is a row)"))
}
