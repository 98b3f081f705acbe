//! The machine around the GPU: what makes a run slow, or stops it, without being wrong.

use super::{Check, fail, note, pass, warn};
use crate::backend::cpu::tiles;
use crate::cli::ranks;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Bytes of pinned memory that uploads to a GPU go through.
const PINNED: u64 = 8 << 20;

/// All checks of the machine; `out` is where runs would be written.
pub fn checks(out: &Path, gpu: bool) -> Vec<Check> {
    let mut checks = vec![processor()];
    checks.extend(load().into_iter().chain(if gpu { locked_memory() } else { None }));
    checks.extend([memory(), disk(out), writable(out)]);
    checks.extend(launcher());
    checks
}

fn processor() -> Check {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let read = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        read.lines().find_map(|l| l.strip_prefix("model name")).map(|l| l.trim_matches([' ', '\t', ':']));
    let vectors = ranks::vector_units().join(", ");
    let all = read.lines().filter(|l| l.starts_with("processor")).count();
    let of_all = if all > threads { format!(" of {all}") } else { String::new() };
    let model = model.unwrap_or(std::env::consts::ARCH);
    let bf16 = if tiles::available() { ", AMX (--set precision=mixed)" } else { "" };
    let found = format!("{model}, {threads}{of_all} threads, {vectors}{bf16}");
    match all > threads {
        true => note(
            "processor",
            found,
            "an affinity or a quota allows no more here: taskset, docker --cpus, Slurm --cpus-per-task",
        ),
        false => pass("processor", found),
    }
}

/// Whether something else uses the processor now.
fn load() -> Option<Check> {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let text = std::fs::read_to_string("/proc/loadavg").ok()?;
    let busy: f64 = text.split_whitespace().next()?.parse().ok()?;
    let found = format!("{busy:.1} threads were busy in the last minute");
    Some(match busy > threads as f64 / 2.0 {
        true => {
            warn("load", found, "other work shares the processor: times measured now are not the machine's")
        }
        false => pass("load", found),
    })
}

/// Whether uploads to a GPU get the pinned memory that they go through.
#[cfg(unix)]
fn locked_memory() -> Option<Check> {
    let most = rustix::process::getrlimit(rustix::process::Resource::Memlock).current;
    let Some(bytes) = most else { return Some(pass("locked memory", "no limit (ulimit -l)")) };
    let found = format!("at most {:.1} MiB (ulimit -l)", bytes as f64 / f64::from(1 << 20));
    Some(match bytes < PINNED {
        true => warn(
            "locked memory",
            found,
            "uploads go through 8 MiB of pinned memory: if opening the GPU fails, raise it (`ulimit -l unlimited`, \
             docker --ulimit memlock=-1)",
        ),
        false => pass("locked memory", found),
    })
}

#[cfg(not(unix))]
fn locked_memory() -> Option<Check> {
    None
}

fn memory() -> Check {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let gib = |key: &str| -> Option<f64> {
        let value = text.lines().find_map(|l| l.strip_prefix(key))?.split_whitespace().next()?;
        Some(value.parse::<f64>().ok()? / f64::from(1 << 20))
    };
    match (gib("MemTotal:"), gib("MemAvailable:")) {
        (Some(all), Some(free)) if free < 2.0 => warn(
            "memory",
            format!("{free:.1} of {all:.1} GiB available"),
            "`train --dry-run` says what a run needs",
        ),
        (Some(all), Some(free)) => pass("memory", format!("{free:.1} of {all:.1} GiB available")),
        _ => pass("memory", "unknown on this system"),
    }
}

fn disk(out: &Path) -> Check {
    let Some(free) = crate::files::free_space(&existing(out)) else {
        return pass("disk", "free space is unknown on this system");
    };
    let found = format!("{:.1} GiB free for {}", free as f64 / f64::from(1 << 30), out.display());
    match free < 5 << 30 {
        true => warn("disk", found, "a checkpoint holds weights and moments: free some space or use --out"),
        false => pass("disk", found),
    }
}

/// The path itself, or the nearest directory above it that there is.
fn existing(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    absolute.ancestors().find(|p| p.is_dir()).unwrap_or(Path::new("/")).to_path_buf()
}

/// Writes, reads back and removes a file where runs would go.
fn writable(out: &Path) -> Check {
    let place = existing(out);
    let test = || -> std::io::Result<bool> {
        let mut file = tempfile::NamedTempFile::new_in(&place)?;
        let bytes: Vec<u8> = (0..=255).cycle().take(1 << 20).collect();
        file.write_all(&bytes)?;
        file.as_file().sync_all()?;
        Ok(std::fs::read(file.path())? == bytes)
    };
    match test() {
        Ok(true) => pass("output", format!("{} can be written", place.display())),
        Ok(false) => fail(
            "output",
            format!("{}: what was written is not what is read back", place.display()),
            "check the file system, or use another --out",
        ),
        Err(error) => fail("output", format!("{}: {error}", place.display()), "choose another --out"),
    }
}

/// Variables by which launchers and containers change what a run sees.
fn launcher() -> Option<Check> {
    let names = [
        "CUDA_VISIBLE_DEVICES",
        "GEMS_CUBLASLT",
        "GEMS_GRAPHS",
        "NVIDIA_VISIBLE_DEVICES",
        "OMPI_COMM_WORLD_RANK",
        "PMI_RANK",
        "SLURM_PROCID",
        "RANK",
        "WORLD_SIZE",
    ];
    let seen: Vec<String> =
        names.iter().filter_map(|n| std::env::var(n).ok().map(|v| format!("{n}={v}"))).collect();
    (!seen.is_empty()).then(|| pass("environment", seen.join(", ")))
}
