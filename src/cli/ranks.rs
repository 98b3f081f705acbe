//! The ranks that do this command together: found and opened once, before anything else.

use crate::config::Config;
use crate::distributed::{Communicator, Launcher, Means, Mpi, Nccl, NcclBesideMpi, World};
use crate::error::{Error, Result};
use crate::report::Journal;
use crate::run::RunDirectory;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

static WORLD: OnceLock<World> = OnceLock::new();
/// So long those who meet the same end have to say so.
const ROLL_CALL: Duration = Duration::from_secs(2);
/// Where ranks keep their errors, once it is known.
static LOGS: Mutex<Option<PathBuf>> = Mutex::new(None);

/// All ranks of this command; one, where nobody started more.
pub fn world() -> &'static World {
    WORLD.get_or_init(World::alone)
}

/// Who started this process, by its environment.
pub fn launcher() -> Result<Option<Launcher>> {
    Launcher::find(&|name| std::env::var(name).ok())
}

/// Meets the other ranks, if a launcher has started some.
///
/// # Errors
/// A launcher whose ranks cannot be reached; a command that one process does.
pub fn open(command: &str, shared: bool) -> Result<()> {
    let Some(launcher) = launcher()? else { return Ok(()) };
    let (name, size) = (launcher.name, launcher.size);
    if !shared {
        return Err(Error::usage(format!("`{command}` runs in one process, and {name} has started {size}"))
            .remedy("start it without the launcher"));
    }
    let link: Box<dyn Communicator> = match &launcher.means {
        Means::Mpi => Box::new(NcclBesideMpi::over(Mpi::open(&launcher)?)),
        Means::Nccl(place) => {
            Box::new(Nccl::open(&launcher, place.as_deref(), device(launcher.local_rank.unwrap_or(0)))?)
        }
    };
    let _ = WORLD.set(World::over(link)?);
    bound(world()).iter().for_each(|warning| super::say(warning));
    Ok(())
}

/// What to say where ranks may not use all cores of their machine: Open MPI gives each of few ranks one.
fn bound(world: &World) -> Option<String> {
    let (mine, here) = (cores_allowed(), world.local().1);
    let all = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let all = all.lines().filter(|line| line.starts_with("processor")).count();
    (mine * here < all && mine < all).then(|| {
        format!(
            "warning: each of {here} ranks on this machine may use {mine} of its {all} cores; mpirun --bind-to none, or \
             srun --cpus-per-task, gives them more"
        )
    })
}

fn cores_allowed() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}

/// What the processor's sums depend on.
pub fn vector_units() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    let known = [
        ("AVX2", is_x86_feature_detected!("avx2")),
        ("FMA", is_x86_feature_detected!("fma")),
        ("AVX-512", is_x86_feature_detected!("avx512f")),
    ];
    #[cfg(not(target_arch = "x86_64"))]
    let known = [("128-bit vectors", true)];
    known.into_iter().filter(|(_, there)| *there).map(|(name, _)| name).collect()
}

/// Threads of this rank: those that were asked for; else its share of the cores that it may use together with others.
pub fn threads(asked: Option<usize>) -> Option<usize> {
    let (_, here) = world().local();
    asked.or((here > 1).then(|| (cores_allowed() / here).max(1)))
}

/// The GPU of this rank.
pub fn gpu() -> usize {
    device(world().local().0)
}

/// The GPU of the rank of this number on its machine: the same number, where the rank sees more than its own.
fn device(local_rank: usize) -> usize {
    let visible = std::env::var("CUDA_VISIBLE_DEVICES").unwrap_or_default();
    let one = !visible.is_empty() && !visible.contains(',');
    if one { 0 } else { local_rank }
}

/// The first line of a log: who is there.
pub fn described() -> Option<String> {
    let (world, started) = (world(), launcher().ok().flatten()?);
    let hosts: std::collections::BTreeSet<&str> = world.members().iter().map(|m| m.host.as_str()).collect();
    (!world.is_alone()).then(|| {
        format!(
            "{} ranks on {} (started by {}, through {})",
            world.size(),
            hosts.into_iter().collect::<Vec<_>>().join(", "),
            started.name,
            world.transport()
        )
    })
}

/// The same for machines.
pub fn document() -> Value {
    let (world, started) = (world(), launcher().ok().flatten());
    let (local_rank, local_size) = world.local();
    json!({"launcher": started.map(|l| l.name), "transport": world.transport(), "rank": world.rank(),
        "size": world.size(), "local_rank": local_rank, "local_size": local_size,
        "hosts": world.members().iter().map(|m| m.host.as_str()).collect::<Vec<_>>()})
}

/// From here on errors are kept in `log.<rank>.txt` below `run` too. What an earlier run has left there goes.
pub fn keep_errors(run: &Path) {
    if !world().is_alone() {
        let _ = std::fs::remove_file(log(run, world().rank()));
        *LOGS.lock().unwrap_or_else(PoisonError::into_inner) = Some(run.to_path_buf());
    }
}

fn log(run: &Path, rank: usize) -> PathBuf {
    run.join(format!("log.{rank}.txt"))
}

/// Keeps an error. A log that cannot be written is no reason to hide it from the other ranks.
pub fn keep(error: &Error) {
    let run = LOGS.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let Some(run) = run else { return };
    let mut words = format!("error: {error}\n");
    let _ = std::fs::write(log(&run, world().rank()), &words);
    if world().misses_somebody() {
        let missing = format!("note: {}", missing(&run));
        super::say(&missing);
        words.push_str(&missing);
        let _ = std::fs::write(log(&run, world().rank()), words + "\n");
    }
}

/// Who has not left a word of the same end: a roll call through the directory that all ranks share.
fn missing(run: &Path) -> String {
    let start = Instant::now();
    let others = (0..world().size()).filter(|rank| *rank != world().rank());
    let mut silent: Vec<usize> = others.collect();
    while !silent.is_empty() && start.elapsed() < ROLL_CALL {
        silent.retain(|rank| !log(run, *rank).exists());
        std::thread::sleep(Duration::from_millis(50));
    }
    let names: Vec<String> = silent.iter().map(|rank| world().call(*rank)).collect();
    match names.is_empty() {
        true => "all other ranks have left a word in the run directory".into(),
        false => format!("{} left no word in the run directory within {ROLL_CALL:?}", names.join(", ")),
    }
}

/// Leaves of a step: as many as the settings say, else as there are ranks, rounded up to a power of two.
///
/// # Errors
/// Fewer leaves than ranks.
pub fn settle_shards(config: &mut Config) -> Result<()> {
    let (ranks, shards) = (world().size(), &mut config.train.shards);
    if *shards == 0 {
        *shards = ranks.next_power_of_two();
    }
    match *shards < ranks {
        true => Err(Error::usage(format!("{shards} leaves of a step cannot feed {ranks} ranks"))
            .at("train.shards")
            .remedy(format!("start at most {shards} ranks; a new run may have more leaves"))),
        false => Ok(()),
    }
}

/// Refuses a run directory that not all ranks see: each must be able to read what the first one writes.
///
/// # Errors
/// Names a rank that does not see it.
pub fn see(run: &Path) -> Result<()> {
    let (world, file) = (world(), run.join(".ranks"));
    if world.is_alone() {
        return Ok(());
    }
    let token = format!("{} {:?}", std::process::id(), std::time::SystemTime::now());
    let written = world.by_first(|| crate::files::write_atomically(&file, token.as_bytes()));
    let token = written.and_then(|_| world.of_first(token))?;
    match std::fs::read_to_string(&file).is_ok_and(|read| read == token) {
        true => world.any(false).map(drop),
        false => Err(Error::usage("this rank does not see what the first rank writes here")
            .at(run.display())
            .remedy("use a directory that all machines share")),
    }
}

/// Opens the directory of a run on the first rank, which writes it; the others follow.
///
/// # Errors
/// The first rank's; a rank that does not see the directory.
pub fn directory(out: &Path, resume: bool) -> Result<RunDirectory> {
    let opened = world().by_first(|| RunDirectory::open(out, resume))?;
    see(out)?;
    keep_errors(out);
    Ok(opened.unwrap_or_else(|| RunDirectory::followed(out)))
}

/// The log of a run, which the first rank keeps. Its first line says who takes part.
///
/// # Errors
/// The file system.
pub fn journal(out: &Path, command: &str, quiet: bool) -> Result<Journal> {
    if !world().is_first() {
        return Ok(Journal::silent());
    }
    let journal = Journal::open(&out.join("log.txt"), command, quiet)?;
    described().iter().for_each(|ranks| journal.say(ranks));
    Ok(journal)
}
