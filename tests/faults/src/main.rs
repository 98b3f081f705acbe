//! A campaign of faults against real runs of `gems-engine`: see docs/faults.md.
//!
//! Each case runs a command on a tiny model, lets one thing go wrong, and gives the command again. It must come to the bits of
//! the undisturbed run; where that cannot be, one message has to say why.

mod disk;
mod fault;
mod gate;
mod judge;
mod point;
mod soak;
mod subject;
mod trace;

use clap::Parser;
use judge::{Bench, Files, Verdict};
use std::collections::BTreeMap;
use std::io::{Error, Result};
use std::path::PathBuf;
use std::time::Instant;
use subject::{Subject, World};
use trace::Trace;

/// Faults against runs of gems-engine.
#[derive(Parser)]
struct Arguments {
    /// The program, with the feature `simt`.
    #[arg(long, default_value = "target/release/gems-engine")]
    engine: PathBuf,
    /// Where to work; a file system in memory is faster.
    #[arg(long, default_value = "/dev/shm/gems-faults")]
    work: PathBuf,
    /// What the faults are drawn from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many [default: 1000; with --short 100].
    #[arg(long)]
    faults: Option<u64>,
    /// A short campaign, without the SIMT machine.
    #[arg(long)]
    short: bool,
    /// This case only.
    #[arg(long)]
    only: Option<u64>,
    /// From this case on.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// A disk that keeps nothing that is flushed, to see that the campaign sees it.
    #[arg(long)]
    lying_disk: bool,
    /// Only this command, as the table of commands names it; its cases have numbers of their own.
    #[arg(long)]
    on: Option<String>,
    /// Only faults whose kind has this in its name.
    #[arg(long)]
    kind: Option<String>,
    /// Instead of faults: the file calls of every command.
    #[arg(long)]
    calls: bool,
    /// Every case in a line of its own.
    #[arg(long)]
    verbose: bool,
    /// Instead of faults: a run of so many minutes, whose memory, files and speed must stay as they are.
    #[arg(long, value_name = "MINUTES")]
    soak: Option<f64>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if let Err(error) = gate::Gate::probe() {
        println!(
            "SKIP  no campaign of faults: this system has no gate for file calls (seccomp's notification): {error}"
        );
        return Ok(());
    }
    let work = arguments.work.join(std::process::id().to_string());
    let world = World::make(&arguments.engine, &work)?;
    let done = match arguments.soak {
        Some(minutes) => soak::run(&world, minutes),
        None => campaign(&arguments, &world, &work),
    };
    std::fs::remove_dir_all(&work)?;
    match done? {
        0 => Ok(()),
        broken => {
            eprintln!("{broken} promises broken");
            std::process::exit(1)
        }
    }
}

/// Undisturbed runs: what they leave, and their file calls.
fn observe(
    world: &World,
    arguments: &Arguments,
) -> Result<(BTreeMap<Subject, Files>, BTreeMap<Subject, Trace>)> {
    let wanted = |subject: &Subject| match &arguments.on {
        Some(name) => *name == subject.name(),
        None => !arguments.short || *subject != Subject::Simt,
    };
    world.train_what_is_read()?;
    let (mut references, mut traces) = (BTreeMap::new(), BTreeMap::new());
    for subject in Subject::ALL.into_iter().filter(wanted) {
        world.set_up(subject)?;
        let mut command = world.command(subject);
        let told = std::fs::File::create(world.given.join("told"))?;
        command.stdout(std::process::Stdio::null()).stderr(told);
        let trace = trace::observe(&mut command, &world.disk, subject).map_err(|e| {
            let said = std::fs::read_to_string(world.given.join("told")).unwrap_or_default();
            Error::other(format!("{}: {e}: {said}", subject.name()))
        })?;
        references.insert(subject, world.result(subject)?);
        println!(
            "{:15} {:4} changes of files, {:4} reads, {:.2} s",
            subject.name(),
            trace.changes.len(),
            trace.reads,
            trace.lasted.as_secs_f64()
        );
        traces.insert(subject, trace);
    }
    Ok((references, traces))
}

/// How often a kind of fault came to what: unharmed, recovered, refused, failed.
type Table = BTreeMap<&'static str, [usize; 4]>;

fn campaign(arguments: &Arguments, world: &World, work: &std::path::Path) -> Result<usize> {
    let begun = Instant::now();
    let (references, traces) = observe(world, arguments)?;
    if arguments.calls {
        list_calls(&traces);
        return Ok(0);
    }
    let bench = Bench {
        world,
        references: &references,
        traces: &traces,
        told: work.join("told"),
        clock: judge::clock()?,
        lies: arguments.lying_disk,
    };
    let faults = arguments.faults.unwrap_or(if arguments.short { 100 } else { 1000 });
    let wanted = |case: &u64| {
        let (_, fault, _) = fault::draw(arguments.seed, *case, &traces);
        arguments.kind.as_ref().is_none_or(|kind| fault.kind().contains(kind))
    };
    let cases: Vec<u64> = match arguments.only {
        Some(case) => vec![case],
        // A kind that a command cannot suffer comes never.
        None => (arguments.from..).take(1_000_000).filter(wanted).take(faults as usize).collect(),
    };
    let (mut table, mut points, mut failures) = (Table::new(), Table::new(), Vec::new());
    for case in cases {
        let (subject, fault, mut chance) = fault::draw(arguments.seed, case, &traces);
        let verdict = bench.run(subject, fault, &mut chance)?;
        let place =
            fault.call().map(|n| format!(", at: {}", traces[&subject].describe(n))).unwrap_or_default();
        let line = format!("case {case}: {} {fault:?}{place}", subject.name());
        let column = match &verdict {
            Verdict::Unharmed => 0,
            Verdict::Recovered => 1,
            Verdict::Refused => 2,
            Verdict::Failed(why) => {
                println!("FAILED {line}: {why}");
                failures.push(line.clone());
                3
            }
        };
        table.entry(fault.kind()).or_default()[column] += 1;
        if let Some(n) = fault.call() {
            let trace = &traces[&subject];
            let point = match fault {
                fault::Fault::KillBetween(..) => point::after_call(subject, trace, n),
                _ => point::of_call(subject, trace, n),
            };
            points.entry(point).or_default()[column] += 1;
        }
        if arguments.verbose && column < 3 {
            println!("{line}: {verdict:?}");
        }
    }
    print("fault", &table);
    print("where, of those that strike at a file call or after one", &points);
    println!(
        "seed {}, {:.0} s; again: --seed {} --only CASE",
        arguments.seed,
        begun.elapsed().as_secs_f64(),
        arguments.seed
    );
    Ok(failures.len())
}

/// Every command's file calls, and the seconds at which they came.
fn list_calls(traces: &BTreeMap<Subject, Trace>) {
    for (subject, trace) in traces {
        for (i, (_, _, when)) in trace.changes.iter().enumerate() {
            let (name, seconds) = (subject.name(), when.as_secs_f64());
            let point = point::of_call(*subject, trace, i + 1);
            println!("{name} {} {seconds:.4} {} ({point})", i + 1, trace.describe(i + 1));
        }
    }
}

fn print(what: &str, table: &Table) {
    println!("\n| {what} | cases | unharmed | given again: the same bits | refused by name | FAILED |");
    println!("| --- | --- | --- | --- | --- | --- |");
    let mut all = [0; 4];
    for (kind, counts) in table {
        let [unharmed, recovered, refused, failed] = counts;
        println!(
            "| {kind} | {} | {unharmed} | {recovered} | {refused} | {failed} |",
            counts.iter().sum::<usize>()
        );
        (0..4).for_each(|i| all[i] += counts[i]);
    }
    println!("| all | {} | {} | {} | {} | {} |", all.iter().sum::<usize>(), all[0], all[1], all[2], all[3]);
}
