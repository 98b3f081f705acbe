//! A long run: its memory, its open files, its files on disk and what a step costs must stay as they are.

use crate::subject::{Subject, World};
use std::fs::{self, File};
use std::io::{Read, Result, Seek, SeekFrom};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Parts of a run that are held beside each other.
const SLICES: usize = 10;

/// Looks at the run in each of them.
const LOOKS: usize = 60;

/// What is seen of a run at a time.
#[derive(Debug, Clone, Copy)]
struct Sample {
    cpu_seconds: f64,
    resident_mib: f64,
    open_files: usize,
    files: usize,
    /// Of the files that do not grow by a line a step.
    kib: f64,
    steps: u64,
}

/// A part of a run: of what is seen in it the middle one, of open files the most. A checkpoint on its way is there by chance.
struct Slice {
    minutes: f64,
    steps: u64,
    step_ms: f64,
    resident_mib: f64,
    open_files: usize,
    files: f64,
    kib: f64,
}

/// Runs for so many minutes; the number of figures that are not flat.
///
/// # Errors
/// The system.
pub fn run(world: &World, minutes: f64) -> Result<usize> {
    world.set_up(Subject::Train)?;
    let (given, endless) = (world.command(Subject::Train), std::ffi::OsStr::new("10000000"));
    let mut command = Command::new(given.get_program());
    command.args(given.get_args().map(|arg| if arg == "6" { endless } else { arg }));
    // A page keeps 500 validations at most: they are there before the first slice is over.
    command.args(["--set", "train.validate_every=20", "--set", "checkpoint.every=20"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let (begun, mut samples, mut slices) = (Instant::now(), Vec::new(), Vec::new());
    let every = Duration::from_secs_f64(minutes * 60.0 / (SLICES * LOOKS) as f64);
    println!("minutes    steps  CPU ms a step  resident MiB  open files  files  their KiB without logs");
    while slices.len() < SLICES && child.try_wait()?.is_none() {
        std::thread::sleep(every);
        samples.push(Sample::of(child.id(), &world.out())?);
        if samples.len() > LOOKS {
            let slice = Slice::of(begun.elapsed().as_secs_f64() / 60.0, &samples);
            slice.print();
            slices.push(slice);
            samples.drain(..LOOKS);
        }
    }
    crate::trace::signal(child.id(), libc::SIGTERM);
    let ended = child.wait()?;
    println!("asked to stop, it ends with {ended}");
    let whole = slices.len() == SLICES && ended.code() == Some(130);
    Ok(judge(&slices) + usize::from(!whole))
}

impl Sample {
    fn of(process: u32, run: &Path) -> Result<Self> {
        let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
        let resident = |line: &str| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse().ok();
        let resident: Option<f64> = status.lines().find_map(resident);
        let mut sizes = Vec::new();
        sizes_of(run, &mut sizes);
        Ok(Self {
            cpu_seconds: cpu_seconds(process),
            resident_mib: resident.unwrap_or(0.0) / 1024.0,
            open_files: fs::read_dir(format!("/proc/{process}/fd")).map_or(0, Iterator::count),
            files: sizes.len(),
            kib: sizes.iter().sum::<u64>() as f64 / 1024.0,
            steps: steps(run).unwrap_or(0),
        })
    }
}

/// The sizes of all files below a directory; nothing of those that have a line a step. What is on its way may be gone.
fn sizes_of(directory: &Path, sizes: &mut Vec<u64>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let Ok(what) = entry.metadata() else { continue };
        let name = name.to_string_lossy();
        let grows = name == "metrics.jsonl" || name == "log.txt" || name.contains("tfevents");
        match what.is_dir() {
            true => sizes_of(&path, sizes),
            false => sizes.push(if grows { 0 } else { what.len() }),
        }
    }
}

/// The last step of the log of a run.
fn steps(run: &Path) -> Option<u64> {
    let mut file = File::open(run.join("metrics.jsonl")).ok()?;
    let size = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(size.saturating_sub(65_536))).ok()?;
    let mut end = Vec::new();
    file.read_to_end(&mut end).ok()?;
    let end = String::from_utf8_lossy(&end);
    end.rsplit("{\"step\":").next()?.split(',').next()?.parse().ok()
}

/// What a process has computed: others may use the machine.
fn cpu_seconds(process: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // After the name, which may hold spaces: user and system time are the 12th and 13th.
    let after = stat.rsplit_once(')').map_or("", |(_, after)| after);
    let ticks: f64 = after.split_whitespace().skip(11).take(2).filter_map(|t| t.parse::<f64>().ok()).sum();
    // SAFETY: a plain number.
    ticks / unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64
}

impl Slice {
    fn of(minutes: f64, samples: &[Sample]) -> Self {
        let (first, last) = (samples[0], samples[samples.len() - 1]);
        let steps = last.steps - first.steps;
        let middle = |what: fn(&Sample) -> f64| middle(samples.iter().map(what));
        Self {
            minutes,
            steps: last.steps,
            step_ms: 1e3 * (last.cpu_seconds - first.cpu_seconds) / steps as f64,
            resident_mib: middle(|s| s.resident_mib),
            open_files: samples.iter().map(|s| s.open_files).max().unwrap_or(0),
            files: middle(|s| s.files as f64),
            kib: middle(|s| s.kib),
        }
    }

    fn print(&self) {
        println!(
            "{:7.1}  {:7}  {:13.2}  {:12.1}  {:10}  {:5}  {:22.0}",
            self.minutes, self.steps, self.step_ms, self.resident_mib, self.open_files, self.files, self.kib
        );
    }
}

fn middle(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// A figure of a slice by its name; by what factor it may grow, and by how much more.
type Figure = (&'static str, fn(&Slice) -> f64, f64, f64);

/// The last three slices beside the three after the first, which warms up: by how much each figure may grow. Other work on the
/// machine makes a step cost a tenth more or less; the best checkpoint may be the newest or one more.
fn judge(slices: &[Slice]) -> usize {
    if slices.len() < SLICES {
        return 1;
    }
    let figures: [Figure; 5] = [
        ("CPU milliseconds a step", |s| s.step_ms, 1.15, 0.0),
        ("resident MiB", |s| s.resident_mib, 1.05, 1.0),
        ("open files", |s| s.open_files as f64, 1.0, 1.0),
        ("files", |s| s.files, 1.0, 4.0),
        ("KiB of files without logs", |s| s.kib, 1.25, 64.0),
    ];
    let mut wrong = 0;
    for (name, of, factor, more) in figures {
        let early = middle(slices[1..4].iter().map(of));
        let late = middle(slices[SLICES - 3..].iter().map(of));
        // A figure that could not be had is not flat.
        let flat = late <= early * factor + more;
        println!("{name}: {early:.1}, then {late:.1}{}", if flat { "" } else { ": NOT FLAT" });
        wrong += usize::from(!flat);
    }
    wrong
}
