//! Text line by line.

use crate::data::fault::{Checked, Fault};
use crate::data::{content, rows};
use crate::error::{Error, Kind, Result};
use crate::prepare::intake::Intake;
use std::io::BufRead;
use std::path::Path;

/// Hands every line that is not blank to `each`.
pub(super) fn each_line(
    intake: &mut Intake,
    path: &Path,
    text: &mut dyn BufRead,
    each: &mut dyn FnMut(&str) -> Checked<()>,
) -> Result<()> {
    let (mut line, mut number) = (Vec::new(), 0);
    loop {
        number += 1;
        let outcome = match rows::next_line(text, &mut line, path) {
            Ok(false) => return Ok(()),
            Ok(true) if line.trim_ascii().is_empty() => continue,
            Ok(true) => rows::utf8(&line).and_then(&mut *each),
            Err(error) => Err(unreadable_line(error)?),
        };
        intake.row(outcome.map_err(|f| f.place(path, "line", number)))?;
    }
}

/// The lines of a file; see [`each_line`].
pub(in crate::prepare) fn each_line_of(
    intake: &mut Intake,
    path: &Path,
    each: &mut dyn FnMut(&str) -> Checked<()>,
) -> Result<()> {
    let mut text = content::text(path, intake.stream(path)?, None)?;
    each_line(intake, path, &mut *text, each)
}

/// A line that is too long is one bad row; anything else ends the file.
pub(super) fn unreadable_line(error: Error) -> Result<Fault> {
    match error.kind {
        Kind::Data => Ok(Fault::new("line too long", error)),
        _ => Err(error.remedy("the file may be cut off or damaged: fetch it again")),
    }
}

/// A file that ends too early.
pub(super) fn cut(path: &Path, error: std::io::Error) -> Error {
    Error::io("read", path, error).remedy("the file may be cut off or damaged: fetch it again")
}
