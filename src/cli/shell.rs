//! `gems-engine completions` and `gems-engine man`: what a shell and `man` want to know of the command line.

use crate::error::{Error, Result};
use crate::files::write_atomically;
use clap::Command;
use clap_complete::Shell;
use std::io::{ErrorKind, Write};
use std::path::Path;

const NAME: &str = "gems-engine";

/// Prints the completion script of a shell.
pub fn completions(shell: Shell, mut command: Command) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, NAME, &mut script);
    let mut script = String::from_utf8_lossy(&script).into_owned();
    if shell == Shell::Bash {
        // The generator names a program with a hyphen in two ways (clap-rs/clap#6421).
        script = script.replace("gems__subcmd__engine", "gems__engine");
    }
    match std::io::stdout().write_all(script.as_bytes()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(Error::io("write", "standard output", e)),
        _ => Ok(()),
    }
}

/// Writes a manual page for the program and for each of its commands into `directory`.
pub fn man(directory: &Path, mut command: Command) -> Result<()> {
    std::fs::create_dir_all(directory).map_err(|e| Error::io("make", directory, e))?;
    command.build();
    page(directory, NAME, &command)
}

fn page(directory: &Path, name: &str, command: &Command) -> Result<()> {
    let path = directory.join(format!("{name}.1"));
    let mut text = Vec::new();
    let named = command.clone().display_name(name.to_string());
    clap_mangen::Man::new(named).render(&mut text).map_err(|e| Error::io("write", &path, e))?;
    write_atomically(&path, &text)?;
    let commands = command.get_subcommands().filter(|c| !c.is_hide_set() && c.get_name() != "help");
    for command in commands {
        page(directory, &format!("{name}-{}", command.get_name()), command)?;
    }
    Ok(())
}
