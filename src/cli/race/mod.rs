//! `gems-engine race`.

mod cells;
mod plan;
mod results;

use super::options::{DeviceArgs, OutputArgs, SettingsArgs};
use crate::error::{Error, Kind, Result};
use crate::report::Journal;
use crate::run::RunDirectory;
use cells::Runner;
use clap::Args;
use plan::Plan;
use std::path::PathBuf;

/// Race methods against each other on your model and data: ranking against what is forgotten, with tests.
///
/// Without --model and --data it races on the embedded demo. The same command goes on after an interruption.
///
/// Example: gems-engine race --model Qwen2.5-0.5B --data data --out races/first --steps 1000 --seeds 0,1,2
#[derive(Args)]
pub struct RaceArgs {
    /// The base model: a Hugging Face directory.
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// The data directory (see `prepare`), with general text.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// A knowledge basis made by `basis` [default: learned once for the whole race].
    #[arg(long, value_name = "FILE")]
    basis: Option<PathBuf>,
    /// The race's directory [default: races/NAME-OF-DATA].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// The methods; `plain` is always among them [default: all].
    #[arg(long, value_name = "NAME,..", value_delimiter = ',')]
    methods: Vec<String>,
    /// Methods from this file instead of the engine's (docs/race.md).
    #[arg(long, value_name = "FILE")]
    methods_from: Option<PathBuf>,
    /// Learning rates of every method [default: each method's multiples of train.lr].
    #[arg(long, value_name = "LR,..", value_delimiter = ',')]
    lr: Vec<f64>,
    /// Seeds; fewer than three say nothing of the luck of training.
    #[arg(long, value_name = "N,..", value_delimiter = ',', default_value = "0,1,2")]
    seeds: Vec<u64>,
    /// Optimizer steps of every cell [default: train.steps].
    #[arg(long, value_name = "N", conflicts_with = "minutes")]
    steps: Option<u64>,
    /// Minutes in steps of every cell instead: each method gets the steps that it does in this time.
    #[arg(long, value_name = "M")]
    minutes: Option<f64>,
    /// Leave out the runs of each task alone, which measure interference.
    #[arg(long)]
    no_alone: bool,
    /// Choose the smallest learning rate whose validation metric lacks at most this share of the best.
    #[arg(long, value_name = "SHARE", default_value_t = 0.02)]
    within: f64,
    /// Cells at a time; the threads of the CPU are shared out among them.
    #[arg(long, value_name = "N", default_value_t = 1)]
    jobs: usize,
    /// Run cells anew whose settings, model or data have changed since.
    #[arg(long)]
    afresh: bool,
    /// Print what would be run, and stop.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    settings: SettingsArgs,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    output: OutputArgs,
}

impl RaceArgs {
    /// Threads of the CPU backend, where they are given.
    fn threads(&self) -> Option<usize> {
        self.device.threads
    }
}

/// Runs the command.
pub fn run(args: &RaceArgs) -> Result<()> {
    let quiet = args.output.json;
    let mut plan = Plan::of(args)?;
    if args.dry_run {
        return plan.print(quiet);
    }
    let directory = RunDirectory::open(&plan.out, false)?;
    let journal = Journal::open(&directory.join("log.txt"), "race", quiet)?;
    plan.notes.iter().for_each(|note| journal.say(note));
    plan.read_files(args)?;
    let mut runner = Runner::new(args, &plan, &journal)?;
    runner.learn_basis(&plan)?;
    if let Some(minutes) = args.minutes {
        runner.pace(&mut plan, minutes)?;
    }
    let mut kept = plan.kept(args.afresh)?;
    let missing = runner.cells(&plan, &mut kept)?;
    let race = results::judge(&plan, &kept, missing);
    results::write(&race, &plan, &kept)?;
    results::print(&race, &plan, &kept, quiet)?;
    let out = plan.out.display();
    if super::catch_interrupts()?.load(std::sync::atomic::Ordering::SeqCst) {
        let what = format!("stopped with {} of {} cells done", kept.len(), plan.cells.len());
        return Err(Error::new(Kind::Interrupted, what).remedy("the same command goes on"));
    }
    match race.missing.as_slice() {
        [] => Ok(()),
        [(cell, why), ..] => {
            let (n, first) = (race.missing.len(), cell.name(&plan.common.tasks));
            Err(Error::data(format!("{n} of {} cells failed; {first}: {why}", plan.cells.len()))
                .at(out)
                .remedy("put right what they say; the same command runs them again, and only them"))
        }
    }
}
