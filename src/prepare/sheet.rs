//! Rows as they are written: JSON lines, or Parquet.

use super::ids::Ids;
use super::settings::Format;
use crate::error::{Error, Result};
use arrow_array::builder::{Int64Builder, ListBuilder, StringBuilder};
use arrow_array::{ArrayRef, RecordBatch};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What numbers are called.
pub(super) struct Names<'a> {
    pub items: &'a Ids,
    pub tasks: &'a [String],
    /// Ids as JSON strings with a comma behind each, end to end.
    quoted: Quoted,
}

impl<'a> Names<'a> {
    pub fn new(items: &'a Ids, tasks: &'a [String]) -> Self {
        Self { items, tasks, quoted: Quoted::new(items) }
    }
}

struct Quoted {
    text: Vec<u8>,
    ends: Vec<u64>,
}

impl Quoted {
    fn new(ids: &Ids) -> Self {
        let (mut text, mut ends) = (Vec::new(), Vec::with_capacity(ids.len() + 1));
        ends.push(0);
        for number in 0..ids.len() as u32 {
            quote(&mut text, ids.name(number));
            text.push(b',');
            ends.push(text.len() as u64);
        }
        Self { text, ends }
    }
    /// Appends the name of `number`. Most are short: a fixed number of bytes is copied faster than just as many as there are.
    fn append(&self, out: &mut Vec<u8>, number: u32) {
        let (start, end) = (self.ends[number as usize] as usize, self.ends[number as usize + 1] as usize);
        match self.text[start..].first_chunk::<16>() {
            Some(bytes) if end - start <= bytes.len() => {
                out.extend_from_slice(bytes);
                out.truncate(out.len() - bytes.len() + (end - start));
            }
            _ => out.extend_from_slice(&self.text[start..end]),
        }
    }
}

/// Appends `text` as a JSON string.
fn quote(out: &mut Vec<u8>, text: &str) {
    if text.bytes().all(|b| b >= b' ' && b != b'"' && b != b'\\') {
        out.push(b'"');
        out.extend_from_slice(text.as_bytes());
        out.push(b'"');
        return;
    }
    // Writing to memory cannot fail, and a string always has a JSON form.
    let _ = serde_json::to_writer(out, text);
}

/// One row of a split. What is empty or none is left out.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Row<'a> {
    pub task: &'a str,
    pub user: Option<&'a str>,
    pub history: &'a [u32],
    pub query: &'a str,
    pub targets: &'a [u32],
    /// The text that answers, instead of targets.
    pub answer: &'a str,
    pub negatives: &'a [u32],
    pub time: Option<i64>,
}

/// Rows on their way to a file.
pub(super) enum Sheet {
    Json(Vec<u8>),
    Columns(Box<Columns>),
    Batch(RecordBatch),
}

impl Sheet {
    pub fn new(format: Format) -> Self {
        match format {
            Format::Jsonl => Sheet::Json(Vec::new()),
            Format::Parquet => Sheet::Columns(Box::default()),
        }
    }
    pub fn push(&mut self, row: &Row, names: &Names) {
        match self {
            Sheet::Json(out) => json(out, row, names),
            Sheet::Columns(columns) => columns.push(row, names),
            Sheet::Batch(_) => {}
        }
    }
    /// Items and their texts.
    pub fn items(rows: &[(&str, Option<&str>)], format: Format) -> Result<Self> {
        if format == Format::Parquet {
            let (mut item, mut text) = (StringBuilder::new(), StringBuilder::new());
            for (id, words) in rows {
                item.append_value(id);
                text.append_option(*words);
            }
            return batch(vec![("item", Arc::new(item.finish())), ("text", Arc::new(text.finish()))])
                .map(Sheet::Batch);
        }
        let mut out = Vec::new();
        for (item, text) in rows {
            out.extend_from_slice(b"{\"item\":");
            quote(&mut out, item);
            if let Some(text) = text {
                out.extend_from_slice(b",\"text\":");
                quote(&mut out, text);
            }
            out.extend_from_slice(b"}\n");
        }
        Ok(Sheet::Json(out))
    }
}

fn json(out: &mut Vec<u8>, row: &Row, names: &Names) {
    let list = |out: &mut Vec<u8>, key: &[u8], items: &[u32]| {
        out.extend_from_slice(key);
        for item in items {
            names.quoted.append(out, *item);
        }
        // The bracket takes the place of the last comma.
        out.truncate(out.len() - usize::from(!items.is_empty()));
        out.push(b']');
    };
    out.extend_from_slice(b"{\"task\":");
    quote(out, row.task);
    if let Some(user) = row.user {
        out.extend_from_slice(b",\"user\":");
        quote(out, user);
    }
    list(out, b",\"history\":[", row.history);
    if !row.query.is_empty() {
        out.extend_from_slice(b",\"query\":");
        quote(out, row.query);
    }
    match row.answer {
        "" => list(out, b",\"target\":[", row.targets),
        answer => {
            out.extend_from_slice(b",\"answer\":");
            quote(out, answer);
        }
    }
    if !row.negatives.is_empty() {
        list(out, b",\"negatives\":[", row.negatives);
    }
    if let Some(time) = row.time {
        out.extend_from_slice(b",\"timestamp\":");
        let _ = serde_json::to_writer(&mut *out, &time);
    }
    out.extend_from_slice(b"}\n");
}

/// The columns of a split.
#[derive(Default)]
pub(super) struct Columns {
    task: StringBuilder,
    user: StringBuilder,
    history: ListBuilder<StringBuilder>,
    query: StringBuilder,
    target: ListBuilder<StringBuilder>,
    answer: StringBuilder,
    negatives: ListBuilder<StringBuilder>,
    timestamp: Int64Builder,
}

impl Columns {
    fn push(&mut self, row: &Row, names: &Names) {
        let list = |column: &mut ListBuilder<StringBuilder>, items: &[u32]| {
            items.iter().for_each(|i| column.values().append_value(names.items.name(*i)));
            column.append(true);
        };
        let text = |text| Some(text).filter(|text: &&str| !text.is_empty());
        self.task.append_value(row.task);
        self.user.append_option(row.user);
        list(&mut self.history, row.history);
        self.query.append_option(text(row.query));
        list(&mut self.target, row.targets);
        self.answer.append_option(text(row.answer));
        list(&mut self.negatives, row.negatives);
        self.timestamp.append_option(row.time);
    }
    fn finish(&mut self) -> Result<RecordBatch> {
        batch(vec![
            ("task", Arc::new(self.task.finish())),
            ("user", Arc::new(self.user.finish())),
            ("history", Arc::new(self.history.finish())),
            ("query", Arc::new(self.query.finish())),
            ("target", Arc::new(self.target.finish())),
            ("answer", Arc::new(self.answer.finish())),
            ("negatives", Arc::new(self.negatives.finish())),
            ("timestamp", Arc::new(self.timestamp.finish())),
        ])
    }
}

pub(super) fn batch(columns: Vec<(&str, ArrayRef)>) -> Result<RecordBatch> {
    let columns = columns.into_iter().map(|(name, array)| (name, array, true));
    RecordBatch::try_from_iter_with_nullable(columns)
        .map_err(|e| Error::data(format!("the rows do not make a table: {e}")))
}

/// One file of the data directory while it is written.
pub(super) struct Output {
    path: PathBuf,
    writer: Writer,
}

enum Writer {
    Json(BufWriter<File>),
    Parquet(Option<Box<ArrowWriter<File>>>, File),
}

impl Output {
    /// Begins `dir/stem.{jsonl,parquet}`.
    pub fn create(dir: &Path, stem: &str, format: Format) -> Result<Self> {
        let path = dir.join(format!("{stem}.{}", format.extension()));
        let file = File::create(&path).map_err(|e| Error::io("create", &path, e))?;
        let writer = match format {
            Format::Jsonl => Writer::Json(BufWriter::with_capacity(1 << 18, file)),
            Format::Parquet => Writer::Parquet(None, file),
        };
        Ok(Self { path, writer })
    }
    /// Adds the rows of a sheet, which is left empty.
    pub fn append(&mut self, sheet: &mut Sheet) -> Result<()> {
        match (&mut self.writer, sheet) {
            (Writer::Json(out), Sheet::Json(rows)) => {
                out.write_all(rows).map_err(|e| Error::io("write", &self.path, e))?;
                rows.clear();
                Ok(())
            }
            (_, Sheet::Columns(columns)) => self.append_batch(&columns.finish()?),
            (_, Sheet::Batch(rows)) => self.append_batch(rows),
            // Sheets and outputs are made for one format.
            (Writer::Parquet(..), Sheet::Json(_)) => Ok(()),
        }
    }
    fn append_batch(&mut self, rows: &RecordBatch) -> Result<()> {
        let Writer::Parquet(writer, file) = &mut self.writer else { return Ok(()) };
        let failed = |e: parquet::errors::ParquetError| {
            Error::new(crate::error::Kind::Io, format!("cannot write: {e}")).at(self.path.display())
        };
        if writer.is_none() {
            let settings = WriterProperties::builder()
                .set_compression(Compression::ZSTD(ZstdLevel::default()))
                .set_max_row_group_row_count(Some(1 << 16))
                .build();
            let file = file.try_clone().map_err(|e| Error::io("write", &self.path, e))?;
            let new = ArrowWriter::try_new(file, rows.schema(), Some(settings)).map_err(failed)?;
            *writer = Some(Box::new(new));
        }
        writer.as_mut().map_or(Ok(()), |w| w.write(rows)).map_err(failed)
    }
    /// Ends the file and waits until it is on disk.
    pub fn finish(mut self) -> Result<()> {
        if let Writer::Parquet(None, _) = self.writer {
            // A file without rows has columns all the same.
            let empty = Columns::default().finish()?;
            self.append_batch(&empty)?;
        }
        let path = self.path;
        let failed = |e| Error::io("write", &path, e);
        match self.writer {
            Writer::Json(out) => {
                let file = out.into_inner().map_err(|e| failed(e.into_error()))?;
                file.sync_all().map_err(failed)
            }
            Writer::Parquet(writer, file) => {
                if let Some(writer) = writer {
                    writer.close().map_err(|e| {
                        Error::new(crate::error::Kind::Io, format!("cannot write: {e}")).at(path.display())
                    })?;
                }
                file.sync_all().map_err(failed)
            }
        }
    }
}
