//! The commands: the only place that wires everything together.

pub mod ask;
mod basis;
mod card;
mod compare;
mod console;
mod demo;
mod device;
mod doctor;
mod evaluate;
mod export;
mod identity;
mod licences;
mod measure;
mod needs;
mod options;
mod page;
mod phases;
mod plan;
mod prepare;
mod products;
mod profile;
mod protection;
mod race;
mod rank;
mod ranks;
mod schema;
mod serve;
mod session;
mod settings;
mod shell;
mod summary;
mod train;

use crate::error::{Error, Result};
use crate::report;
use clap::{CommandFactory, Parser, Subcommand};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};

/// Fine-tune one language model for search and recommendation together, with GEMS.
///
/// Run `gems-engine train` without anything else to see it work on an embedded demo.
#[derive(Parser)]
#[command(name = "gems-engine", version, propagate_version = true, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Nothing on standard error but errors.
    #[arg(short, long, global = true, conflicts_with = "verbose", help_heading = "Terminal")]
    quiet: bool,
    /// On standard error too what otherwise only the log of a run keeps.
    #[arg(short, long, global = true, help_heading = "Terminal")]
    verbose: bool,
}

#[derive(Subcommand)]
enum Command {
    Train(Box<train::TrainArgs>),
    Prepare(Box<prepare::PrepareArgs>),
    Basis(basis::BasisArgs),
    Evaluate(evaluate::EvaluateArgs),
    Rank(rank::RankArgs),
    Serve(serve::ServeArgs),
    Export(export::ExportArgs),
    Compare(compare::CompareArgs),
    Race(Box<race::RaceArgs>),
    Doctor(doctor::DoctorArgs),
    Profile(profile::ProfileArgs),
    ConfigSchema(schema::SchemaArgs),
    /// Print the licences of the program, of the demo's data, and of every crate in it.
    Licences,
    /// Print the completion script of a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Write manual pages, one a command.
    Man {
        /// Where they go, such as ~/.local/share/man/man1.
        directory: std::path::PathBuf,
    },
}

static INTERRUPTED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);
static CATCHING: AtomicBool = AtomicBool::new(false);
/// Set by a signal that asks for a checkpoint.
static SAVE_ASKED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// Parses the command line, runs the command, prints an error once, returns its exit code.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            if error.use_stderr() && for_machines() {
                tell_machines(&Error::usage(error.render().to_string().trim()));
            }
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    report::set_talk(match (cli.quiet, cli.verbose) {
        (true, _) => report::Talk::Errors,
        (_, true) => report::Talk::All,
        _ => report::Talk::Usual,
    });
    let (name, shared) = cli.command.name();
    let done = ranks::open(name, shared).and_then(|()| run_or_panic(cli.command));
    // All ranks end together: one that is done waits for the others, and hears of their errors.
    match done.and_then(|()| ranks::world().leave()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            ranks::world().fail(&error, || {
                ranks::keep(&error);
                tell(&error);
            });
            ExitCode::from(error.exit_code())
        }
    }
}

/// Of several ranks a panic is an error, which the others hear of.
fn run_or_panic(command: Command) -> Result<()> {
    if ranks::world().is_alone() {
        return run(command);
    }
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(command))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
        Err(Error::new(crate::error::Kind::Distributed, format!("this rank panicked: {text}"))
            .remedy("report it; go on from the last checkpoint with --resume"))
    })
}

impl Command {
    /// Its name, and whether several ranks may share its work.
    fn name(&self) -> (&'static str, bool) {
        match self {
            Command::Train(_) => ("train", true),
            Command::Prepare(_) => ("prepare", false),
            Command::Basis(_) => ("basis", true),
            Command::Evaluate(_) => ("evaluate", true),
            Command::Rank(_) => ("rank", true),
            Command::Serve(_) => ("serve", false),
            Command::Export(_) => ("export", false),
            Command::Compare(_) => ("compare", false),
            Command::Race(_) => ("race", false),
            Command::Doctor(_) => ("doctor", true),
            Command::Profile(_) => ("profile", false),
            Command::ConfigSchema(_) => ("config-schema", false),
            Command::Licences => ("licences", false),
            Command::Completions { .. } => ("completions", false),
            Command::Man { .. } => ("man", false),
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Train(args) => train::run(&args),
        Command::Prepare(args) => prepare::run(&args),
        Command::Basis(args) => basis::run(&args),
        Command::Evaluate(args) => evaluate::run(&args),
        Command::Rank(args) => rank::run(&args),
        Command::Serve(args) => serve::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Compare(args) => compare::run(&args),
        Command::Race(args) => race::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Profile(args) => profile::run(&args),
        Command::ConfigSchema(args) => schema::print(&args),
        Command::Licences => licences::print(),
        Command::Completions { shell } => shell::completions(shell, Cli::command()),
        Command::Man { directory } => shell::man(&directory, Cli::command()),
    }
}

/// All commands with their arguments: for completions, manual pages, and who checks what documents say.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Tells the user something on standard error, once for all ranks, if anybody listens.
fn say(text: &str) {
    if !ranks::world().is_first() || report::talk() == report::Talk::Errors {
        return;
    }
    report::tell(text);
}

/// Prints an error the way every command does: what, where, what to do.
fn tell(error: &Error) {
    // In one piece: ranks share a terminal.
    report::tell(&format!("error: {error}"));
    if for_machines() {
        tell_machines(error);
    }
}

/// Whether JSON is asked for; also where the rest of the command line cannot be read.
fn for_machines() -> bool {
    std::env::args_os().any(|arg| arg == "--json")
}

/// The error as the last line of standard error: what was told on standard output before stays the result.
fn tell_machines(error: &Error) {
    report::tell(&error.json().to_string());
}

/// From now on SIGUSR1, which launchers pass on, asks to save and stop, and SIGUSR2 to save and go on. Neither ends a program
/// that is not there yet: schedulers send them whenever it suits them.
fn catch_requests() -> Result<()> {
    #[cfg(unix)]
    for (signal, flag) in
        [(signal_hook::consts::SIGUSR1, &*INTERRUPTED), (signal_hook::consts::SIGUSR2, &*SAVE_ASKED)]
    {
        signal_hook::flag::register(signal, Arc::clone(flag))
            .map_err(|e| Error::new(crate::error::Kind::Io, format!("cannot catch signals: {e}")))?;
    }
    Ok(())
}

/// From now on Ctrl-C (and SIGTERM) asks the running command to save and stop; a second one ends it at once.
fn catch_interrupts() -> Result<&'static AtomicBool> {
    if CATCHING.swap(true, Ordering::SeqCst) {
        return Ok(&INTERRUPTED);
    }
    catch_requests()?;
    ctrlc::set_handler(|| {
        if INTERRUPTED.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
        say("\nstopping after this step; press Ctrl-C again to stop without saving");
    })
    .map_err(|e| Error::new(crate::error::Kind::Io, format!("cannot catch interrupts: {e}")))?;
    Ok(&INTERRUPTED)
}
