//! TensorBoard event files, written without TensorFlow.
//!
//! The file is a sequence of TFRecords, each
//! ```text
//! length: u64 | masked crc32c of length: u32 | data: length bytes | masked crc32c of data: u32
//! ```
//! (little-endian), whose data is an `Event` message in protobuf's wire format (tensorflow's
//! `event.proto` and `summary.proto`; the fields used are named below).

use super::Line;
use crate::error::{Error, Result};
use crate::files::create_last;
use serde_json::Value;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Writes scalars to an event file of its own in a log directory.
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
        writer.record(&Event::new(0).version())?;
        if let Some(step) = resumed_after {
            writer.record(&Event::new(step.saturating_add(1)).session_start())?;
        }
        Ok(writer)
    }

    /// Appends the numbers of a line of the metrics log at the line's `step`; a `null` is a NaN. The
    /// first dot of a name becomes a slash, by which TensorBoard groups: `loss.search` is shown as
    /// `search` beneath `loss`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&mut self, line: &Line) -> Result<()> {
        let step = line.get("step").and_then(Value::as_u64).unwrap_or(0);
        let scalars = line.iter().filter(|(name, _)| *name != "step").filter_map(|(name, value)| {
            let scalar = if value.is_null() { f64::NAN } else { value.as_f64()? };
            Some((name.replacen('.', "/", 1), scalar as f32))
        });
        self.record(&Event::new(step).scalars(scalars))
    }

    /// The event file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Frames one message and writes it with one call, so that a reader never meets half a frame.
    fn record(&mut self, event: &Event) -> Result<()> {
        let data = &event.0;
        let length = (data.len() as u64).to_le_bytes();
        let mut frame = Vec::with_capacity(data.len() + 16);
        frame.extend_from_slice(&length);
        frame.extend_from_slice(&masked_crc32c(&length).to_le_bytes());
        frame.extend_from_slice(data);
        frame.extend_from_slice(&masked_crc32c(data).to_le_bytes());
        self.file.write_all(&frame).map_err(|e| Error::io("write the TensorBoard events", &self.path, e))
    }
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
struct Event(Vec<u8>);

impl Event {
    fn new(step: u64) -> Self {
        let mut data = Vec::new();
        tag(&mut data, 1, Wire::Fixed64);
        data.extend_from_slice(&now().as_secs_f64().to_le_bytes());
        tag(&mut data, 2, Wire::Varint);
        varint(&mut data, step);
        Self(data)
    }
    fn version(mut self) -> Self {
        bytes(&mut self.0, 3, b"brain.Event:2");
        self
    }
    /// `SessionLog { status = 1 (enum): START = 1 }`
    fn session_start(mut self) -> Self {
        let mut log = Vec::new();
        tag(&mut log, 1, Wire::Varint);
        varint(&mut log, 1);
        bytes(&mut self.0, 7, &log);
        self
    }
    /// `Summary { value = 1 (repeated Value { tag = 1 (string), simple_value = 2 (float) }) }`
    fn scalars(mut self, scalars: impl Iterator<Item = (String, f32)>) -> Self {
        let mut summary = Vec::new();
        for (name, scalar) in scalars {
            let mut value = Vec::new();
            bytes(&mut value, 1, name.as_bytes());
            tag(&mut value, 2, Wire::Fixed32);
            value.extend_from_slice(&scalar.to_le_bytes());
            bytes(&mut summary, 1, &value);
        }
        bytes(&mut self.0, 5, &summary);
        self
    }
}

/// Protobuf's wire types.
#[derive(Clone, Copy)]
enum Wire {
    Varint = 0,
    Fixed64 = 1,
    Bytes = 2,
    Fixed32 = 5,
}

fn tag(out: &mut Vec<u8>, field: u64, wire: Wire) {
    varint(out, field << 3 | wire as u64);
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn bytes(out: &mut Vec<u8>, field: u64, content: &[u8]) {
    tag(out, field, Wire::Bytes);
    varint(out, content.len() as u64);
    out.extend_from_slice(content);
}

/// TFRecord's checksum: a crc32c that is safe to store beside the data it covers.
fn masked_crc32c(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// Time since 1970; zero on a machine whose clock stands before that.
fn now() -> std::time::Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
