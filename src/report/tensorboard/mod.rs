//! TensorBoard event files, written without TensorFlow.
//!
//! The file is a sequence of TFRecords, each
//! ```text
//! length: u64 | masked crc32c of length: u32 | data: length bytes | masked crc32c of data: u32
//! ```
//! (little-endian), whose data is an `Event` message in protobuf's wire format (tensorflow's
//! `event.proto` and `summary.proto`; the fields used are named below).

mod values;
mod wire;

use super::Line;
use crate::error::{Error, Result};
use crate::files::create_last;
use serde_json::Value;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};
use wire::Message;

/// Writes what a run tells to an event file of its own in a log directory.
#[derive(Debug)]
pub struct EventWriter {
    path: PathBuf,
    file: File,
}

impl EventWriter {
    /// Starts an event file in `directory`, which is created if need be. A run that goes on after step
    /// `resumed_after` says so: TensorBoard then forgets the later steps of the files before.
    ///
    /// # Errors
    /// When the directory or the file cannot be written.
    pub fn open(directory: &Path, resumed_after: Option<u64>) -> Result<Self> {
        create_last(directory).map_err(|e| Error::io("create the log directory", directory, e))?;
        let (path, file) = create_file(directory)?;
        let mut writer = Self { path, file };
        writer.record(event(0).bytes(3, b"brain.Event:2"))?;
        if let Some(step) = resumed_after {
            // `SessionLog { status = 1 (enum): START = 1 }`
            let start = Message::default().varint(1, 1);
            writer.record(event(step.saturating_add(1)).message(7, start))?;
        }
        Ok(writer)
    }

    /// Tells the run's `settings` (name and value) as hyperparameters, whose table shows the last values of `metrics` (names of
    /// a line) beside them, and as a text.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn settings(&mut self, settings: &[(String, Value)], metrics: &[String]) -> Result<()> {
        let as_text = |value: &dyn std::fmt::Display| without_markup(&value.to_string());
        let rows =
            settings.iter().map(|(name, value)| format!("| {} | {} |\n", as_text(name), as_text(value)));
        let text = "| setting | value |\n| --- | --- |\n".to_string() + &rows.collect::<String>();
        let metrics: Vec<String> = metrics.iter().map(|name| tag(name)).collect();
        let values = [
            values::experiment(settings, &metrics),
            values::session_start(settings, now().as_secs_f64()),
            values::text("settings/text_summary", &text),
        ];
        self.record(event(0).message(5, summary(values)))
    }

    /// The run came to its end.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn finish(&mut self) -> Result<()> {
        self.record(event(0).message(5, summary([values::session_end(now().as_secs_f64())])))
    }

    /// Appends the numbers of a line of the metrics log at the line's `step`, and its lists as histograms; a `null` is a NaN.
    /// The first dot of a name becomes a slash, by which TensorBoard groups: `loss.search` is shown as `search` beneath
    /// `loss`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&mut self, line: &Line) -> Result<()> {
        let step = line.get("step").and_then(Value::as_u64).unwrap_or(0);
        let shown = line.iter().filter(|(name, _)| *name != "step").filter_map(|(name, value)| match value {
            Value::Null => Some(values::scalar(&tag(name), f32::NAN)),
            Value::Array(all) => {
                let values: Vec<f64> = all.iter().filter_map(Value::as_f64).collect();
                values::histogram(&tag(name), &values)
            }
            value => Some(values::scalar(&tag(name), value.as_f64()? as f32)),
        });
        self.record(event(step).message(5, summary(shown)))
    }

    /// The event file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Frames one message and writes it with one call, so that a reader never meets half a frame.
    fn record(&mut self, event: Message) -> Result<()> {
        let data = event.encoded();
        let length = (data.len() as u64).to_le_bytes();
        let mut frame = Vec::with_capacity(data.len() + 16);
        frame.extend_from_slice(&length);
        frame.extend_from_slice(&masked_crc32c(&length).to_le_bytes());
        frame.extend_from_slice(data);
        frame.extend_from_slice(&masked_crc32c(data).to_le_bytes());
        self.file.write_all(&frame).map_err(|e| Error::io("write the TensorBoard events", &self.path, e))
    }
}

/// The name of a metric as TensorBoard shows it.
fn tag(name: &str) -> String {
    name.replacen('.', "/", 1)
}

/// A new file whose name sorts after those of earlier runs; TensorBoard reads them in that order.
fn create_file(directory: &Path) -> Result<(PathBuf, File)> {
    let seconds = now().as_secs();
    let mut serial = 0u32;
    loop {
        let name = format!("events.out.tfevents.{seconds:010}.{serial:04}.gems-engine");
        let path = directory.join(name);
        match File::create_new(&path) {
            Ok(file) => return Ok((path, file)),
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists && serial < 9999 => serial += 1,
            Err(e) => return Err(Error::io("create the TensorBoard events", &path, e)),
        }
    }
}

/// An `Event` message: `wall_time = 1 (double)`, `step = 2 (int64)`, and one of
/// `file_version = 3 (string)`, `summary = 5 (Summary)`, `session_log = 7 (SessionLog)`.
fn event(step: u64) -> Message {
    Message::default().double(1, now().as_secs_f64()).varint(2, step)
}

/// `Summary { value = 1 (repeated Value) }`
fn summary(values: impl IntoIterator<Item = Message>) -> Message {
    values.into_iter().fold(Message::default(), |summary, value| summary.message(1, value))
}

/// TFRecord's checksum: a crc32c that is safe to store beside the data it covers.
fn masked_crc32c(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// Time since 1970; zero on a machine whose clock stands before that.
fn now() -> std::time::Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// A text that Markdown shows as it is: a prompt's `|` would begin another column, its `<item>` would be taken for HTML.
fn without_markup(text: &str) -> String {
    let special = |c: char| "\\`*_{}[]<>#|&~!".contains(c);
    text.chars().map(|c| if special(c) { format!("&#{};", c as u32) } else { c.to_string() }).collect()
}
