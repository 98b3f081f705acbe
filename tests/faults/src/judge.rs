//! A case from its fault to its verdict.

use crate::fault::Fault;
use crate::subject::{Subject, World};
use crate::trace::{Ended, LIMIT, Place, Trace, disturb, was_killed};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;
use std::fs;
use std::io::Result;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What a command leaves: files by their names.
pub type Files = BTreeMap<PathBuf, Vec<u8>>;

/// How a case came out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The fault did not hinder it: the same bits.
    Unharmed,
    /// The same command, given again, came to the same bits.
    Recovered,
    /// It was refused by name, and nothing else would have been right.
    Refused,
    /// The promise is broken: so.
    Failed(String),
}

/// One case after another in a world.
pub struct Bench<'a> {
    /// Where everything is.
    pub world: &'a World,
    /// What undisturbed commands leave.
    pub references: &'a BTreeMap<Subject, Files>,
    /// And do.
    pub traces: &'a BTreeMap<Subject, Trace>,
    /// Where standard error goes.
    pub told: PathBuf,
    /// The library of the clock that jumps.
    pub clock: PathBuf,
    /// Whether the disk keeps nothing that is flushed.
    pub lies: bool,
}

impl Bench<'_> {
    /// Runs a case.
    ///
    /// # Errors
    /// The system on which this runs; not the engine.
    pub fn run(&self, subject: Subject, fault: Fault, chance: &mut ChaCha8Rng) -> Result<Verdict> {
        self.world.set_up(subject)?;
        let before = self.world.result(subject)?;
        match fault {
            Fault::Twice => return self.twice(subject),
            Fault::BadWeight(value) => return self.bad_weight(subject, value, chance),
            _ => {}
        }
        let mut command = self.world.command(subject);
        self.arm(&mut command, fault);
        let place = Place { root: &self.world.disk, subject, lies: self.lies };
        let ended = disturb(self.quietly(&mut command)?, &place, fault, chance)?;
        // Before it listens, a signal to end does just that.
        let asked =
            matches!(fault, Fault::Asked(_, libc::SIGTERM)) && ended.status.signal() == Some(libc::SIGTERM);
        if let Err(wrong) = self.ended_well(&ended).or_else(|wrong| if asked { Ok(()) } else { Err(wrong) }) {
            return Ok(Verdict::Failed(wrong));
        }
        let reference = &self.references[&subject];
        let mut now = self.world.result(subject)?;
        if let Fault::Asked(..) = fault {
            like(reference, &mut now);
        }
        if ended.status.success() {
            return Ok(match fault {
                // Other steps: other weights; that nothing but numbers was saved is looked at below.
                Fault::Storm(_) => self.finite(&now),
                // Of the commands that only print, nothing is left to compare.
                _ => differing(reference, &now)
                    .map_or(Verdict::Unharmed, |d| Verdict::Failed(format!("it ended well, but {d}"))),
            });
        }
        if let Fault::Storm(_) = fault {
            return Ok(match self.finite(&now) {
                Verdict::Unharmed => Verdict::Refused,
                failed => failed,
            });
        }
        let verdict = self.again(subject, &before, &now, fault)?;
        // There is no run any more to resume: nothing else would be right.
        let gone = matches!((subject, fault), (Subject::Resume, Fault::Removed(_)));
        Ok(match verdict {
            Verdict::Failed(why) if gone && why.contains("no run to resume here") => Verdict::Refused,
            verdict => verdict,
        })
    }

    /// Gives the command again, without a fault.
    fn again(&self, subject: Subject, before: &Files, now: &Files, fault: Fault) -> Result<Verdict> {
        let reference = &self.references[&subject];
        if !subject.is_run() && !now.is_empty() && subject != Subject::Evaluate {
            // What appears as a whole is the new one, or the old one.
            if differing(reference, now).is_none() {
                return Ok(Verdict::Recovered);
            }
            if now != before {
                return Ok(Verdict::Failed("half of the result is there, under its name".into()));
            }
        }
        // Where names cannot be exchanged there may be none, but then the old one is whole beside it.
        let moved = now.is_empty() && !before.is_empty() && subject.overwrites();
        if moved && (subject == Subject::Overwrite || !self.world.on_their_way()?.contains(before)) {
            return Ok(Verdict::Failed("neither the old one nor the new one is there".into()));
        }
        let mut command = self.world.command(subject);
        let ended = self.finish(self.quietly(&mut command)?)?;
        if !ended.status.success() {
            let said = fs::read_to_string(&self.told)?;
            return Ok(Verdict::Failed(format!(
                "given again, it ends with {}: {}",
                ended.status,
                short(&said)
            )));
        }
        let safe = match fault {
            Fault::Removed(_) => 0,
            _ => fault.call().map_or(0, |n| self.traces[&subject].safe_step(n)),
        };
        let from = went_on_after(&fs::read_to_string(&self.told)?);
        if from < safe {
            let what = format!("the checkpoint of step {safe} was safe, but it goes on after step {from}");
            return Ok(Verdict::Failed(what));
        }
        let mut have = self.world.result(subject)?;
        if let Fault::Asked(..) = fault {
            like(reference, &mut have);
        }
        let differs = differing(reference, &have);
        Ok(differs.map_or(Verdict::Recovered, |d| Verdict::Failed(format!("given again, {d}"))))
    }

    /// What a fault needs at the start.
    fn arm(&self, command: &mut Command, fault: Fault) {
        match fault {
            Fault::Clock(seconds) => {
                command.env("LD_PRELOAD", &self.clock);
                command.env("GEMS_FAULTS_CLOCK", format!("0,{seconds},0,{}", -seconds / 3));
            }
            Fault::GpuLost(at) => drop(command.env("GEMS_SIMT_LOST_AT", at.to_string())),
            Fault::GpuFull(bytes) => drop(command.env("GEMS_SIMT_MEMORY", bytes.to_string())),
            Fault::Storm(times) => {
                command.args([
                    "--set",
                    &format!("train.lr={:e}", 1e-3 * times),
                    "--set",
                    "optimizer.clip_norm=0",
                ]);
            }
            Fault::Memory(mib) => {
                let limit = libc::rlimit { rlim_cur: mib << 20, rlim_max: mib << 20 };
                // SAFETY: one call that may be made between fork and exec, with a structure of its own.
                unsafe {
                    command.pre_exec(move || match libc::setrlimit(libc::RLIMIT_AS, &limit) {
                        0 => Ok(()),
                        _ => Err(std::io::Error::last_os_error()),
                    });
                }
            }
            _ => {}
        }
    }

    fn quietly<'c>(&self, command: &'c mut Command) -> Result<&'c mut Command> {
        Ok(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(fs::File::create(&self.told)?))
    }

    /// Whether it ended as a program may: killed by us, or by itself with one clear message.
    fn ended_well(&self, ended: &Ended) -> std::result::Result<(), String> {
        let said = fs::read_to_string(&self.told).unwrap_or_default();
        match (ended.hung, ended.status.code()) {
            (true, _) => Err(format!("it hangs: {}", short(&said))),
            _ if said.contains("panicked at") => Err(format!("it panics: {}", short(&said))),
            (_, Some(0)) => Ok(()),
            (_, Some(1 | 2 | 130)) if said.contains("error: ") => Ok(()),
            (_, None) if was_killed(ended.status) => Ok(()),
            (_, None)
                if ended.status.signal() == Some(libc::SIGABRT) && said.contains("memory allocation of") =>
            {
                Ok(())
            }
            // Where the system cannot even load the program, it is the system that says so.
            (_, Some(127 | 1)) if said.contains("error while loading shared libraries") => Ok(()),
            _ => Err(format!("it ends with {}: {}", ended.status, short(&said))),
        }
    }

    fn finish(&self, command: &mut Command) -> Result<Ended> {
        let (mut child, begun) = (command.spawn()?, Instant::now());
        while begun.elapsed() < LIMIT {
            if let Some(status) = child.try_wait()? {
                return Ok(Ended { status, hung: false, unknown: 0 });
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        child.kill()?;
        Ok(Ended { status: child.wait()?, hung: true, unknown: 0 })
    }

    /// Two at once: one works, the other is refused by name or finds everything done.
    fn twice(&self, subject: Subject) -> Result<Verdict> {
        let (mut one, mut other) = (self.world.command(subject), self.world.command(subject));
        let mut first = self.quietly(&mut one)?.spawn()?;
        let second = other.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        let second = second.wait_with_output()?;
        let first = first.wait()?;
        let said = String::from_utf8_lossy(&second.stderr).into_owned() + &fs::read_to_string(&self.told)?;
        if said.contains("panicked at") || (!first.success() && !second.status.success()) {
            return Ok(Verdict::Failed(format!("of two, none comes to its end: {}", short(&said))));
        }
        let differs = differing(&self.references[&subject], &self.world.result(subject)?);
        Ok(differs.map_or(Verdict::Unharmed, |d| Verdict::Failed(format!("of two at once {d}"))))
    }

    /// A base model with a weight that is no number is refused, and nothing is begun.
    fn bad_weight(&self, subject: Subject, value: f32, chance: &mut ChaCha8Rng) -> Result<Verdict> {
        let model = self.world.disk.join("model");
        crate::subject::copy(&self.world.given.join("llama_tied"), &model)?;
        let file = model.join("model.safetensors");
        let mut bytes = fs::read(&file)?;
        let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap_or_default()) as usize;
        let at = header + chance.random_range(0..(bytes.len() - header) / 4) * 4;
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        fs::write(&file, bytes)?;
        let command = self.world.command(subject);
        let given = self.world.given.join("llama_tied");
        let mut other = Command::new(command.get_program());
        other.args(
            command.get_args().map(|arg| if arg == given.as_os_str() { model.as_os_str() } else { arg }),
        );
        let ended = self.finish(self.quietly(&mut other)?)?;
        let said = fs::read_to_string(&self.told)?;
        let named = !ended.status.success() && said.contains("error: ") && said.contains("at element");
        Ok(match named && self.world.result(subject)?.is_empty() {
            true => Verdict::Refused,
            false => Verdict::Failed(format!("a weight that is {value}: {} {}", ended.status, short(&said))),
        })
    }

    /// Whether what was saved consists of numbers.
    fn finite(&self, files: &Files) -> Verdict {
        let saved = files.iter().filter(|(path, _)| path.extension().is_some_and(|e| e == "safetensors"));
        for (path, bytes) in saved {
            let Ok(read) = safetensors::SafeTensors::deserialize(bytes) else {
                return Verdict::Failed(format!("{} cannot be read", path.display()));
            };
            let floats =
                read.tensors().into_iter().filter(|(_, view)| view.dtype() == safetensors::Dtype::F32);
            for (name, view) in floats {
                let number = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
                if view.data().chunks_exact(4).any(|b| !number(b).is_finite()) {
                    return Verdict::Failed(format!(
                        "{}: {name} was saved with what is no number",
                        path.display()
                    ));
                }
            }
        }
        Verdict::Unharmed
    }
}

/// Checkpoints that were asked for stand in the place of others; the last one is the same.
fn like(reference: &Files, have: &mut Files) {
    let step = |path: &PathBuf| {
        path.starts_with("checkpoints").then(|| path.iter().nth(1).map(|s| s.to_owned())).flatten()
    };
    let last = reference.keys().filter_map(step).max();
    have.retain(|path, _| step(path).is_none() || step(path) == last);
    let missing = reference.iter().filter(|(path, _)| step(path).is_some() && step(path) != last);
    have.extend(missing.map(|(path, bytes)| (path.clone(), bytes.clone())));
}

/// What is not as it should be, in a few words.
fn differing(want: &Files, have: &Files) -> Option<String> {
    let missing =
        want.keys().find(|path| !have.contains_key(*path)).map(|p| format!("{} is missing", p.display()));
    let more =
        have.keys().find(|path| !want.contains_key(*path)).map(|p| format!("{} is left over", p.display()));
    let other = want.iter().find(|(path, bytes)| have.get(*path).is_some_and(|b| b != *bytes));
    missing.or(other.map(|(p, _)| format!("{} differs", p.display()))).or(more)
}

/// The step after which a run said that it goes on; 0 where it began anew.
fn went_on_after(said: &str) -> u64 {
    if said.contains("left to do") {
        return u64::MAX;
    }
    let step = said.split("going on after step ").nth(1).unwrap_or_default();
    step.split(|c: char| !c.is_ascii_digit()).next().and_then(|step| step.parse().ok()).unwrap_or(0)
}

/// The last words of a program.
fn short(said: &str) -> String {
    let lines: Vec<&str> = said.lines().filter(|line| !line.trim().is_empty()).collect();
    let from = lines.iter().position(|l| l.contains("panicked at") || l.contains("error: "));
    let told = &lines[from.unwrap_or(lines.len().saturating_sub(3))..];
    told.iter().take(3).map(|line| line.trim()).collect::<Vec<_>>().join(" | ").chars().take(400).collect()
}

/// The library beside this program.
pub fn clock() -> Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name("libgems_faults_clock.so");
    Ok(if Path::new(&path).exists() { path } else { PathBuf::new() })
}
