//! A run seen call by call: undisturbed, to know what there is to disturb; and then with its fault.

use crate::disk::Disk;
use crate::fault::Fault;
use crate::gate::{Act, Answer, Call, Gate};
use crate::subject::Subject;
use rand_chacha::ChaCha8Rng;
use std::io::Result;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

/// Longer than anything here takes on a machine that others use too.
pub const LIMIT: Duration = Duration::from_secs(240);

/// The file calls of an undisturbed run.
#[derive(Debug, Default)]
pub struct Trace {
    /// What changes files: a word for the act, the path from the disk's root, when it came.
    pub changes: Vec<(String, PathBuf, Duration)>,
    /// Reading calls.
    pub reads: usize,
    /// Checkpoints: the change that made each safe, and its step.
    pub checkpoints: Vec<(usize, u64)>,
    /// How long it took.
    pub lasted: Duration,
}

impl Trace {
    /// The number of the first write that is not before the n-th change.
    pub fn write_at_or_after(&self, n: usize) -> usize {
        let found = self.changes.iter().enumerate().skip(n - 1).find(|(_, (act, ..))| act == "write");
        found.map_or(n, |(i, _)| i + 1)
    }

    /// The change before a share of the whole time, and the share of the time to the next one.
    pub fn between(&self, share: f64) -> (usize, f64) {
        let at = self.lasted.mul_f64(share);
        let before = self.changes.iter().take_while(|(.., when)| *when <= at).count();
        let from = before.checked_sub(1).map_or(Duration::ZERO, |i| self.changes[i].2);
        (before, (at - from.min(at)).as_secs_f64())
    }

    /// The seconds that are computed between the n-th change and the next one, where they are worth the name.
    pub fn pause_after(&self, n: usize) -> Option<f64> {
        let from = n.checked_sub(1).map_or(Duration::ZERO, |i| self.changes[i].2);
        let to = self.changes.get(n).map_or(self.lasted, |(.., when)| *when);
        Some((to - from).as_secs_f64()).filter(|seconds| *seconds > 0.002)
    }

    /// The last change before which the result can be removed so that the command can still notice it: the one that gives a
    /// directory its name, else the last but one.
    pub fn last_that_notices(&self) -> usize {
        let whole = |(act, path, _): &(String, PathBuf, Duration)| {
            act == "exchange" || (act == "rename" && path.iter().count() == 1)
        };
        let named = self.changes.iter().rposition(whole);
        named.unwrap_or(self.changes.len().saturating_sub(2)) + 1
    }

    /// The step of the newest checkpoint that was safe before the n-th change; a few calls are left for chance.
    pub fn safe_step(&self, n: usize) -> u64 {
        let safe = self.checkpoints.iter().filter(|(at, _)| at + 5 < n);
        safe.map(|(_, step)| *step).max().unwrap_or(0)
    }

    /// What the n-th change does.
    pub fn describe(&self, n: usize) -> String {
        let found = n.checked_sub(1).and_then(|i| self.changes.get(i));
        found.map_or("the start".into(), |(act, path, _)| format!("{act} {}", path.display()))
    }
}

fn word(act: &Act) -> &'static str {
    match act {
        Act::Open { .. } => "create",
        Act::Write(_) => "write",
        Act::Truncate => "truncate",
        Act::Sync => "sync",
        Act::Rename(_) => "rename",
        Act::Exchange(_) => "exchange",
        Act::Remove => "remove",
        Act::MakeDirectory => "mkdir",
        Act::MakeLink(_) => "link",
        Act::Permit => "chmod",
        Act::Read | Act::Other => "call",
    }
}

/// How a program ended.
pub struct Ended {
    /// By itself or by a signal.
    pub status: ExitStatus,
    /// It did not end in time, and was killed.
    pub hung: bool,
    /// Calls that the model of the disk does not know.
    pub unknown: usize,
}

/// Where a command works.
pub struct Place<'a> {
    /// The directory that it writes in.
    pub root: &'a Path,
    /// Which command.
    pub subject: Subject,
    /// Whether the disk keeps nothing that is flushed.
    pub lies: bool,
}

/// Runs an undisturbed command and notes its calls.
///
/// # Errors
/// The system; a command that fails.
pub fn observe(command: &mut Command, root: &Path, subject: Subject) -> Result<Trace> {
    let (mut trace, begun, mut named) = (Trace::default(), Instant::now(), None);
    let ended = watch(command, root, &mut |call, _| {
        match call.changes() {
            true => {
                let path = call.path.strip_prefix(root).unwrap_or(&call.path).to_path_buf();
                match &call.act {
                    Act::Rename(to) | Act::Exchange(to) => named = step_of(to).or(named),
                    Act::Sync if path.ends_with("checkpoints") => {
                        trace.checkpoints.extend(named.take().map(|step| (trace.changes.len() + 1, step)));
                    }
                    _ => {}
                }
                trace.changes.push((word(&call.act).into(), path, begun.elapsed()));
            }
            false => trace.reads += 1,
        }
        cannot(subject, call).unwrap_or(Answer::Go)
    })?;
    trace.lasted = begun.elapsed();
    match ended.status.success() && ended.unknown == 0 {
        true => Ok(trace),
        false => {
            Err(std::io::Error::other(format!("undisturbed, it fails: {} {}", ended.status, ended.unknown)))
        }
    }
}

/// The step whose checkpoint has this name.
fn step_of(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.strip_prefix("step-")?.parse().ok()
}

/// Runs a command with its fault.
///
/// # Errors
/// The system.
pub fn disturb(command: &mut Command, place: &Place, fault: Fault, chance: &mut ChaCha8Rng) -> Result<Ended> {
    let root = place.root;
    let mut disk = matches!(fault, Fault::PowerLoss(_)).then(|| Disk::new(root, place.lies));
    let (mut changes, mut reads) = (0, 0);
    let mut lost = false;
    let ended = watch(command, root, &mut |call, child| {
        let changing = call.changes();
        changes += usize::from(changing);
        reads += usize::from(call.act == Act::Read);
        let cannot = cannot(place.subject, call);
        let strikes = matches!(fault, Fault::PowerLoss(n) if n <= changes);
        if let Some(disk) = disk.as_mut().filter(|_| changing && !strikes && cannot.is_none()) {
            disk.before(call);
        }
        if !changing {
            return match fault {
                Fault::CannotRead(n) if n == reads && call.act == Act::Read => Answer::Fail(libc::EIO),
                _ => Answer::Go,
            };
        }
        lost |= matches!(fault, Fault::PowerLoss(n) if n == changes);
        match (strike(fault, changes, call, child, root), cannot) {
            (Answer::Go, Some(refusal)) => refusal,
            (answer, _) => answer,
        }
    })?;
    if let Some(disk) = disk.filter(|_| lost) {
        disk.lose_power(chance)?;
    }
    Ok(ended)
}

/// What a file system refuses that cannot exchange names.
fn cannot(subject: Subject, call: &Call) -> Option<Answer> {
    let exchange = matches!(call.act, Act::Exchange(_));
    (subject == Subject::OverwriteInTurn && exchange).then_some(Answer::Fail(libc::EINVAL))
}

/// What becomes of the `number`-th change.
fn strike(fault: Fault, number: usize, call: &Call, child: &mut Child, root: &Path) -> Answer {
    let mut kill = || drop(child.kill());
    match fault {
        // A thread whose answer is there when the signal wakes it would still do what it asked for: it is not let.
        Fault::Kill(n) | Fault::PowerLoss(n) if n == number => {
            kill();
            return Answer::Fail(libc::EIO);
        }
        Fault::KillInWrite(n) if n == number => {
            call.write_part(0.5);
            kill();
            return Answer::Fail(libc::EIO);
        }
        Fault::KillBetween(n, seconds) if n == number => {
            let process = child.id();
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_secs_f64(seconds));
                signal(process, libc::SIGKILL);
            });
        }
        Fault::NoRoom(n, code) if n <= number => return no_room(call, n == number, code),
        Fault::Once(n, code) if n == number => return Answer::Fail(code),
        Fault::Forbidden(n, code) if n <= number && !matches!(call.act, Act::Write(_) | Act::Sync) => {
            return Answer::Fail(code);
        }
        Fault::Removed(n) if n == number => drop(std::fs::remove_dir_all(root.join("out"))),
        Fault::Paused(n) if n == number => {
            let process = child.id();
            signal(process, libc::SIGSTOP);
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(50));
                signal(process, libc::SIGCONT);
            });
        }
        Fault::Asked(n, by) if n == number => signal(child.id(), by),
        _ => {}
    }
    Answer::Go
}

/// A full disk takes half of the first write that does not fit, and nothing new any more; it still removes and renames.
fn no_room(call: &Call, first: bool, code: i32) -> Answer {
    match call.act {
        Act::Write(_) if first => match call.write_part(0.5) {
            Some(written) if written > 0 => Answer::Done(written),
            _ => Answer::Fail(code),
        },
        Act::Write(_) | Act::Open { creates: true, .. } | Act::MakeDirectory | Act::MakeLink(_) => {
            Answer::Fail(code)
        }
        _ => Answer::Go,
    }
}

/// Sends a signal to a child of ours.
pub fn signal(process: u32, number: i32) {
    // SAFETY: plain numbers; the process is a child that nobody has waited for, or has just ended.
    unsafe { libc::kill(process as i32, number) };
}

/// Runs a command behind a gate; `decide` answers every call that touches something below `root`, or reads.
fn watch(
    command: &mut Command,
    root: &Path,
    decide: &mut dyn FnMut(&Call, &mut Child) -> Answer,
) -> Result<Ended> {
    let (mut child, gate) = Gate::start(command)?;
    let (begun, mut hung, mut unknown) = (Instant::now(), false, 0);
    while let Ok(call) = gate.next(100) {
        if begun.elapsed() > LIMIT && !hung {
            hung = true;
            child.kill()?;
        }
        let Some(call) = call else { continue };
        let other = match &call.act {
            Act::Rename(to) | Act::Exchange(to) => to.starts_with(root),
            _ => false,
        };
        let ours = call.path.starts_with(root) || other || reads_a_file(&call);
        unknown += usize::from(ours && call.act == Act::Other);
        let answer = if ours && !hung { decide(&call, &mut child) } else { Answer::Go };
        gate.answer(&call, answer);
    }
    Ok(Ended { status: child.wait()?, hung, unknown })
}

/// Whether data is read: a model, records, a run; not what the system keeps for itself.
fn reads_a_file(call: &Call) -> bool {
    let system = ["/proc", "/sys", "/dev", "/etc", "/usr", "/lib"];
    call.act == Act::Read && call.path.is_absolute() && !system.iter().any(|s| call.path.starts_with(s))
}

/// Whether somebody killed it from outside.
pub fn was_killed(status: ExitStatus) -> bool {
    status.signal() == Some(libc::SIGKILL)
}
