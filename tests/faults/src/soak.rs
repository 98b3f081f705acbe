//! A long run: its memory, its open files and its speed must stay as they are.

use crate::subject::{Subject, World};
use std::fs;
use std::io::Result;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// What is seen of a run at a time.
#[derive(Debug, Clone, Copy)]
struct Sample {
    minutes: f64,
    cpu_seconds: f64,
    resident_mib: f64,
    files: usize,
    steps: usize,
}

/// Runs for so many minutes, ten times as many samples and at least twenty; the number of figures that are not flat.
///
/// # Errors
/// The system.
pub fn run(world: &World, minutes: f64) -> Result<usize> {
    world.set_up(Subject::Train)?;
    let (given, endless) = (world.command(Subject::Train), std::ffi::OsStr::new("1000000"));
    let mut command = std::process::Command::new(given.get_program());
    command.args(given.get_args().map(|arg| if arg == "6" { endless } else { arg }));
    command.args(["--set", "train.validate_every=50", "--set", "checkpoint.every=20"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let (begun, mut samples) = (Instant::now(), Vec::new());
    let every = Duration::from_secs_f64(minutes * 60.0 / (minutes * 10.0).max(20.0));
    println!("minutes  CPU seconds  resident MiB  open files  steps");
    while begun.elapsed().as_secs_f64() < minutes * 60.0 && child.try_wait()?.is_none() {
        std::thread::sleep(every);
        let log = fs::read_to_string(world.out().join("metrics.jsonl")).unwrap_or_default();
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let kib = status
            .lines()
            .find_map(|l| l.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse::<f64>().ok());
        let sample = Sample {
            minutes: begun.elapsed().as_secs_f64() / 60.0,
            cpu_seconds: cpu_seconds(child.id()),
            resident_mib: kib.unwrap_or(0.0) / 1024.0,
            files: fs::read_dir(format!("/proc/{}/fd", child.id())).map_or(0, Iterator::count),
            steps: log.lines().filter(|line| line.contains("\"loss\"")).count(),
        };
        println!(
            "{:7.1}  {:11.1}  {:12.1}  {:10}  {:5}",
            sample.minutes, sample.cpu_seconds, sample.resident_mib, sample.files, sample.steps
        );
        samples.push(sample);
    }
    crate::trace::signal(child.id(), libc::SIGTERM);
    let ended = child.wait()?;
    println!("asked to stop, it ends with {ended}");
    Ok(judge(&samples) + usize::from(ended.code() != Some(130)))
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

/// The second half beside the first, of which the first tenth is left out: it warms up.
fn judge(samples: &[Sample]) -> usize {
    let (half, warm) = (samples.len() / 2, samples.len() / 10 + 1);
    let (first, second) = (&samples[warm.min(half)..half], &samples[half..]);
    let mean =
        |of: &[Sample], what: fn(&Sample) -> f64| of.iter().map(what).sum::<f64>() / of.len().max(1) as f64;
    let cost = |of: &[Sample]| match (of.first(), of.last()) {
        (Some(a), Some(b)) if b.steps > a.steps => {
            1e3 * (b.cpu_seconds - a.cpu_seconds) / (b.steps - a.steps) as f64
        }
        _ => f64::NAN,
    };
    let most = |of: &[Sample]| of.iter().map(|s| s.files).max().unwrap_or(0);
    let memory = (mean(first, |s| s.resident_mib), mean(second, |s| s.resident_mib));
    println!("resident MiB: {:.1}, then {:.1}", memory.0, memory.1);
    println!("open files at most: {}, then {}", most(first), most(second));
    println!("CPU milliseconds a step: {:.1}, then {:.1}", cost(first), cost(second));
    let wrong =
        [memory.1 > memory.0 * 1.05 + 1.0, most(second) > most(first) + 2, cost(second) > 1.25 * cost(first)];
    wrong.iter().filter(|wrong| **wrong).count()
}
