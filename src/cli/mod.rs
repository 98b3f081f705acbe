//! The commands: the only place that wires everything together.

use std::process::ExitCode;

/// Parses the command line, runs the command, prints an error once, returns its exit code.
pub fn main() -> ExitCode {
    ExitCode::SUCCESS
}
