//! Tables as they come, read row by row for a few columns: delimited text of any dialect, JSON, Parquet.
//!
//! A table is opened before anything is read: what it is is told by its content, and whether it has the columns that
//! were named.

mod delimited;
mod dialect;
mod fields;
mod json;
mod lines;
mod look;
mod parquet;
mod plain;
mod reading;

pub(super) use lines::each_line_of;
pub use reading::Reading;

use super::cell::Cell;
use super::inputs::Input;
use super::intake::Intake;
use crate::data::fault::Checked;
use crate::data::{content, filenames};
use crate::error::{self, Error, Result};
use dialect::Dialect;
use json::Shape;
use std::fs::File;
use std::io::{BufRead, Cursor, Read};
use std::path::Path;

/// Most columns that any source reads.
const MAX_COLUMNS: usize = 9;
/// Bytes of a text that are looked at to tell what it is.
const SAMPLE: usize = 1 << 16;

/// A row's values, in the order of the wanted columns.
type Cells<'a> = [Cell<'a>; MAX_COLUMNS];

/// A column that a source reads.
#[derive(Debug, Clone, Default)]
pub(super) struct Column {
    /// What the files call it: a name, a path such as `user.id` in JSON and Parquet, or, in a table without a header, a
    /// number from 1 on.
    pub name: String,
    /// What else it may be called, where it was not named: without case, `_` and `-`.
    pub also: &'static [&'static str],
    pub need: Need,
    /// Whether it holds ids.
    pub id: bool,
    /// The flag that names it; empty: nothing does.
    pub flag: &'static str,
    /// What else to do where it is not there.
    pub hint: &'static str,
}

/// Which files must have a column.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Need {
    /// Every file that has rows.
    Always,
    /// One of the files at least: it was named.
    Somewhere,
    #[default]
    Never,
}

impl Column {
    pub fn required(name: &str) -> Self {
        Self { name: name.into(), need: Need::Always, ..Self::default() }
    }
    pub fn optional(name: &str) -> Self {
        Self { name: name.into(), ..Self::default() }
    }
    fn is(&self, name: &str) -> bool {
        let plain = || name.to_lowercase().replace(['_', '-'], "");
        self.name == name || !self.also.is_empty() && self.also.contains(&plain().as_str())
    }
}

/// A file that was looked at.
pub(super) struct Table {
    input: Input,
    form: Form,
    /// By wanted column.
    found: Vec<Place>,
    /// What the file calls the wanted columns.
    called: Vec<String>,
    /// The columns there are, as far as was looked.
    names: Vec<String>,
    /// The text of what cannot be opened twice.
    pipe: Option<Box<dyn BufRead>>,
    encoding: Option<&'static encoding_rs::Encoding>,
    missing: Vec<String>,
    /// Whether there is a row.
    pub has_rows: bool,
}

/// Where a column's values come from.
#[derive(Debug, Clone, PartialEq)]
enum Place {
    Nowhere,
    /// The column of this number.
    At(usize),
    /// Fields of JSON and Parquet are found by name.
    Named,
    /// The file's path gives them all.
    Path(Option<String>),
}

enum Form {
    Parquet,
    Json(Shape),
    Delimited(Dialect),
}

impl Table {
    /// Looks at a file.
    ///
    /// # Errors
    /// A file that cannot be read, is no table, or lacks a column that every file must have.
    pub fn open(input: &Input, columns: &[Column], reading: &Reading) -> Result<Self> {
        debug_assert!(columns.len() <= MAX_COLUMNS);
        let (path, suffix) = (&input.path, filenames::name(&input.path).1);
        if !path.exists() {
            return Err(filenames::missing(path));
        }
        let encoding = reading.encoding()?;
        let mut table = Table {
            input: input.clone(),
            form: Form::Parquet,
            found: vec![Place::Nowhere; columns.len()],
            called: columns.iter().map(|c| c.name.clone()).collect(),
            names: Vec::new(),
            pipe: None,
            encoding,
            missing: reading.missing.clone(),
            has_rows: false,
        };
        if filenames::is_parquet(&suffix) || content::is_parquet(path)? {
            (table.names, table.has_rows) = parquet::columns(path)?;
            table.find_named(columns)?;
        } else {
            let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
            let once = file.metadata().is_ok_and(|m| !m.is_file());
            let mut text = content::text(path, file, encoding)?;
            let mut sample = Vec::new();
            text.by_ref().take(SAMPLE as u64).read_to_end(&mut sample).map_err(|e| lines::cut(path, e))?;
            table.look_at(&sample, columns, reading, &suffix)?;
            table.has_rows |= sample.len() == SAMPLE;
            table.pipe = once.then(|| Box::new(Cursor::new(sample).chain(text)) as Box<dyn BufRead>);
        }
        table.look_at_path(columns);
        table.check(columns)?;
        Ok(table)
    }

    /// Tells what a text is by its beginning.
    fn look_at(&mut self, sample: &[u8], columns: &[Column], reading: &Reading, suffix: &str) -> Result<()> {
        let path = &self.input.path;
        match Shape::of(sample, columns, suffix) {
            Some(shape) => {
                self.has_rows = !sample.trim_ascii().is_empty();
                (self.names, self.form) = (shape.names(sample, columns), Form::Json(shape));
                self.find_named(columns)?;
            }
            None if json::is_lists(sample) => {
                return Err(Error::data("the rows are JSON lists, whose values have no names")
                    .at(path.display())
                    .remedy("write objects, {\"user\": .., \"item\": ..} a line, or delimited text"));
            }
            None => {
                let (dialect, names, found, has_rows) = look::look(path, sample, columns, reading, suffix)?;
                for (called, at) in self.called.iter_mut().zip(&found) {
                    if let Some(at) = at {
                        called.clone_from(&names[*at]);
                    }
                }
                let found = found.into_iter().map(|at| at.map_or(Place::Nowhere, Place::At)).collect();
                (self.form, self.names, self.found) = (Form::Delimited(dialect), names, found);
                self.has_rows = has_rows;
            }
        }
        Ok(())
    }

    /// Finds columns by name; where a first row does not fit into what was looked at, they may all be there.
    fn find_named(&mut self, columns: &[Column]) -> Result<()> {
        for ((place, called), column) in self.found.iter_mut().zip(&mut self.called).zip(columns) {
            let mut near = self.names.iter().filter(|n| column.is(n));
            let exact = self.names.contains(&column.name);
            if exact || self.names.is_empty() {
                *place = Place::Named;
            } else if let Some(name) = near.next() {
                if let Some(other) = near.next() {
                    return Err(Error::data(format!("`{}` may be {name} or {other}", column.name))
                        .at(self.input.path.display())
                        .remedy("say which with --columns ROLE=NAME"));
                }
                called.clone_from(name);
                *place = Place::Named;
            }
        }
        Ok(())
    }

    /// What a file lacks its path may say.
    fn look_at_path(&mut self, columns: &[Column]) {
        for (key, value) in &self.input.partitions {
            for (place, column) in self.found.iter_mut().zip(columns) {
                if column.is(key) && *place == Place::Nowhere {
                    *place = Place::Path(value.clone());
                }
            }
            self.names.push(key.clone());
        }
    }

    fn check(&self, columns: &[Column]) -> Result<()> {
        let lacking = columns.iter().zip(&self.found).find(|(column, place)| {
            column.need == Need::Always && **place == Place::Nowhere && self.has_rows
        });
        match lacking {
            Some((column, _)) => Err(self.lacks(column)),
            None => Ok(()),
        }
    }

    /// What to say of a column that is not there.
    fn lacks(&self, column: &Column) -> Error {
        let kind = if matches!(self.form, Form::Json(_)) { "field" } else { "column" };
        let what = format!("no {kind} `{}`; there are: {}", column.name, listed(&self.names));
        let near = error::nearest(&column.name, self.names.iter().map(String::as_str));
        let near = near.map_or(String::new(), |near| format!("did you mean `{near}`? "));
        let remedy = match (column.flag, &self.form) {
            ("", _) => format!("{near}is this the right file?"),
            (_, Form::Delimited(dialect)) if dialect.keeps_quotes => {
                "the fields stand in double quotes: give --quotes on".into()
            }
            (flag, Form::Delimited(_)) => format!(
                "{near}`{flag} ROLE=NAME,..` says which is which; without a header line columns are named by number: \
                 `{flag} ROLE=1,..`"
            ),
            (flag, _) => {
                format!("{near}`{flag} ROLE=NAME,..` says which is which; a nested field is `user.id`")
            }
        };
        Error::data(what).at(self.input.path.display()).remedy(remedy + column.hint)
    }

    /// Whether the file has the column of this number, as far as was looked.
    pub fn has(&self, column: usize) -> bool {
        self.found[column] != Place::Nowhere
    }
    /// Whether columns may turn up in later rows.
    pub fn is_open(&self) -> bool {
        matches!(self.form, Form::Json(_))
    }
    pub fn is_delimited(&self) -> bool {
        matches!(self.form, Form::Delimited(_))
    }
    pub fn is_parquet(&self) -> bool {
        matches!(self.form, Form::Parquet)
    }
    /// Whether the column's values are in the file's path.
    pub fn has_in_path(&self, column: usize) -> bool {
        matches!(self.found[column], Place::Path(_))
    }
    /// Whether fields keep the double quotes that they stand in.
    pub fn keeps_quotes(&self) -> bool {
        matches!(&self.form, Form::Delimited(dialect) if dialect.keeps_quotes)
    }
    pub fn path(&self) -> &Path {
        &self.input.path
    }
    /// The columns that are there and not wanted.
    pub fn unread<'t>(&'t self, columns: &'t [Column]) -> impl Iterator<Item = &'t str> {
        let wanted =
            |name: &str| columns.iter().any(|c| c.is(name) || c.name.split('.').next() == Some(name));
        let by_number = columns.iter().any(|c| c.name.parse::<usize>().is_ok());
        let inside =
            |name: &str| name.split_once('.').is_some_and(|(head, _)| self.names.iter().any(|n| n == head));
        self.names.iter().map(String::as_str).filter(move |n| !by_number && !wanted(n) && !inside(n))
    }
    /// Columns that were found under other names than theirs.
    pub fn renamed<'t>(&'t self, columns: &'t [Column]) -> impl Iterator<Item = (&'t str, &'t str)> {
        let pairs = columns.iter().zip(&self.called).filter(|(c, called)| c.name != **called);
        pairs.filter(|(c, _)| !c.also.is_empty()).map(|(c, called)| (c.name.as_str(), called.as_str()))
    }
    /// What it was taken for.
    pub fn describe(&self) -> String {
        let form = match &self.form {
            Form::Parquet => return "Parquet".into(),
            Form::Json(shape) => shape.describe().to_string(),
            Form::Delimited(dialect) => dialect.describe(),
        };
        match self.encoding {
            Some(encoding) => format!("{form}, {}", encoding.name().to_lowercase()),
            None => form,
        }
    }

    /// Hands the wanted columns of every row to `each`.
    ///
    /// # Errors
    /// A file that cannot be read; more bad rows than are allowed; a file of bad rows only.
    pub fn read(
        &mut self,
        intake: &mut Intake,
        columns: &[Column],
        each: &mut dyn FnMut(&[Cell]) -> Checked<()>,
    ) -> Result<()> {
        let path = self.input.path.clone();
        let constants: Vec<(usize, Cell)> = self.found.iter().enumerate().filter_map(constant).collect();
        // Fields of JSON that the first rows lack may turn up later.
        let late = |(at, place): (usize, &Place)| (*place == Place::Nowhere).then_some((at, false));
        let mut late: Vec<(usize, bool)> = match self.form {
            Form::Json(_) => self.found.iter().enumerate().filter_map(late).collect(),
            _ => Vec::new(),
        };
        let missing = self.missing.clone();
        let is_none =
            |cell: &Cell| matches!(cell, Cell::Text(text) if missing.iter().any(|word| word == text.trim()));
        let mut each = |cells: &mut Cells| {
            if !missing.is_empty() {
                cells.iter_mut().filter(|cell| is_none(cell)).for_each(|cell| *cell = Cell::Missing);
            }
            for (at, cell) in &constants {
                cells[*at] = cell.clone();
            }
            late.iter_mut().for_each(|(at, seen)| *seen |= !matches!(cells[*at], Cell::Missing));
            each(&cells[..columns.len()])
        };
        intake.begin();
        if let Form::Parquet = self.form {
            parquet::read(intake, &path, &self.called, &mut each)?;
        } else {
            let text = match self.pipe.take() {
                Some(pipe) => pipe,
                None => content::text(&path, intake.stream(&path)?, self.encoding)?,
            };
            match &self.form {
                Form::Json(shape) => shape.read(intake, &path, text, &self.called, &mut each)?,
                Form::Delimited(dialect) => {
                    let places: Vec<Option<usize>> = self.found.iter().map(Place::number).collect();
                    delimited::read(intake, &path, text, dialect, &places, &self.missing, &mut each)?;
                }
                Form::Parquet => {}
            }
        }
        late.iter().filter(|(_, seen)| *seen).for_each(|(at, _)| self.found[*at] = Place::Named);
        intake.end(&path)
    }
}

impl Place {
    fn number(&self) -> Option<usize> {
        if let Place::At(at) = self { Some(*at) } else { None }
    }
}

fn constant((at, place): (usize, &Place)) -> Option<(usize, Cell<'static>)> {
    match place {
        Place::Path(Some(value)) if !value.trim().is_empty() => {
            Some((at, Cell::Field(value.trim().to_string().into())))
        }
        _ => None,
    }
}

/// Opens all files.
///
/// # Errors
/// As [`Table::open`]; no rows at all.
pub(super) fn open_all(inputs: &[Input], columns: &[Column], reading: &Reading) -> Result<Vec<Table>> {
    let tables: Vec<Table> =
        inputs.iter().map(|input| Table::open(input, columns, reading)).collect::<Result<_>>()?;
    if tables.iter().all(|table| !table.has_rows) {
        let place = inputs.first().map(|input| input.path.display().to_string()).unwrap_or_default();
        let what = match inputs.len() {
            1 => "there are no rows in this file".to_string(),
            n => format!("there are no rows in any of the {n} files"),
        };
        return Err(Error::data(what).at(place).remedy(
            "tables are delimited text (.csv, .tsv, ..), .jsonl (each also .gz or .zst) or .parquet",
        ));
    }
    if !tables.iter().any(Table::is_open) {
        check_named(&tables, columns)?;
    }
    Ok(tables)
}

/// Checks that what was named is in one of the files at least.
///
/// # Errors
/// A column that none of them has.
pub(super) fn check_named(tables: &[Table], columns: &[Column]) -> Result<()> {
    for (at, column) in columns.iter().enumerate().filter(|(_, c)| c.need == Need::Somewhere) {
        if !tables.iter().any(|table| table.has(at))
            && let Some(table) = tables.iter().find(|table| table.has_rows)
        {
            return Err(table.lacks(column));
        }
    }
    Ok(())
}

/// Names in a row, not too many.
fn listed(names: &[String]) -> String {
    const MOST: usize = 40;
    let more = if names.len() > MOST { ", .." } else { "" };
    let shown = names.iter().take(MOST).map(String::as_str).collect::<Vec<_>>().join(", ");
    let shown = shown.chars().take(1000).collect::<String>();
    if shown.is_empty() { "none".into() } else { shown + more }
}
