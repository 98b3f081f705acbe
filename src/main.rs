//! The command line, nothing else.

use std::process::ExitCode;

fn main() -> ExitCode {
    gems_engine::cli::main()
}
