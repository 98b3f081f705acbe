//! `gems-engine licences`.

use crate::error::{Error, Result};
use std::io::{ErrorKind, Write};

/// What this program and the work inside it may be used under.
const NOTICES: [(&str, &str); 4] = [
    ("gems-engine, at your option under this licence,", include_str!("../../LICENSE-MIT")),
    ("or under this one:", include_str!("../../LICENSE-APACHE")),
    (
        "The demo's model, texts and logs are derived from WordNet:",
        include_str!("../../assets/LICENSE-wordnet"),
    ),
    ("", include_str!("../../assets/third-party-licences.txt")),
];

/// Prints the licences of the program, of the demo's data, and of every crate in it.
pub fn print() -> Result<()> {
    let mut out = std::io::stdout().lock();
    for (head, text) in NOTICES {
        match writeln!(out, "{head}\n\n{}\n", text.trim_end()) {
            Err(e) if e.kind() == ErrorKind::BrokenPipe => return Ok(()),
            written => written.map_err(|e| Error::io("write", "standard output", e))?,
        }
    }
    Ok(())
}
