//! `gems-engine evaluate`.

use super::measure::{rankings, reference, summary};
use super::options::{DeviceArgs, OutputArgs, SettingsArgs};
use super::session::Session;
use crate::error::{Error, Result};
use crate::eval::trec;
use crate::report::before_after;
use clap::Args;
use serde_json::json;
use std::io::Write;
use std::path::PathBuf;

/// Rank a run's test records and measure what its model forgot.
///
/// Example: gems-engine evaluate --run runs/first --trec runs/first/trec
#[derive(Args)]
pub struct EvaluateArgs {
    /// The run directory.
    #[arg(long, value_name = "DIR")]
    run: PathBuf,
    /// Also write TREC run and qrels files into this directory.
    #[arg(long, value_name = "DIR")]
    trec: Option<PathBuf>,
    #[command(flatten)]
    settings: SettingsArgs,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// Runs the command.
pub fn run(args: &EvaluateArgs) -> Result<()> {
    let base = Session::open(
        super::session::run_configuration(&args.run, &args.settings, &args.device)?,
        &args.device,
    )?;
    let reference = reference(&base)?;
    drop(base);
    let session = Session::open_run(&args.run, &args.settings, &args.device)?;
    let settings = &session.config.evaluate;
    let ranked = rankings(&session, settings, args.output.json)?;
    if let Some(dir) = &args.trec {
        std::fs::create_dir_all(dir).map_err(|e| Error::io("create", dir, e))?;
        for (split, rankings) in &ranked {
            trec::write(dir, &split.name, &session.data, split, rankings)?;
        }
    }
    let result = summary(&session, settings, &ranked, reference.as_ref())?;
    let text = match args.output.json {
        true => json!({"run": args.run.display().to_string(), "result": result}).to_string(),
        false => before_after(None, &result),
    };
    writeln!(std::io::stdout(), "{text}").map_err(|e| Error::io("write", "standard output", e))
}
