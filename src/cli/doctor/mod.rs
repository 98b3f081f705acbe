//! `gems-engine doctor`.

mod knowledge;
mod layers;
mod machine;
mod ranks;

use super::options::OutputArgs;
use super::products;
use super::protection::Protected;
use crate::backend::cuda::probe::{self, Facts, GpuFacts};
use crate::backend::cuda::{architectures, compiler as built_by, driver_needed};
use crate::config::Precision;
use crate::data::{Catalogue, DataSettings, PromptSide, Vocabulary};
use crate::error::{Error, Result};
use crate::gems::MethodSettings;
use crate::layers::Site;
use crate::model::{Architecture, Checked, Layout, hub};
use clap::Args;
use serde::Serialize;
use serde_json::json;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Say what this program and this machine can do together, and what would bring more.
///
/// Example: gems-engine doctor --model Qwen2.5-0.5B --out runs
#[derive(Args)]
pub struct DoctorArgs {
    /// A base model to look at: can it be read, do tokenizer and weights fit, which kernels do its layers take?
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// A knowledge basis of that model: what does it hold of each layer, and what would be protected?
    #[arg(long, value_name = "FILE", requires = "model")]
    basis: Option<PathBuf>,
    /// Where runs would be written.
    #[arg(long, value_name = "DIR", default_value = ".")]
    out: PathBuf,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
enum Status {
    Pass,
    Warn,
    Fail,
}

/// One line of the report.
#[derive(Debug, Serialize)]
struct Check {
    name: String,
    status: Status,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

fn pass(name: &str, found: impl Into<String>) -> Check {
    Check { name: name.into(), status: Status::Pass, found: found.into(), hint: None }
}

/// Nothing wrong, and something to know.
fn note(name: &str, found: impl Into<String>, hint: impl Into<String>) -> Check {
    Check { hint: Some(hint.into()), ..pass(name, found) }
}

fn warn(name: &str, found: impl Into<String>, hint: impl Into<String>) -> Check {
    Check { name: name.into(), status: Status::Warn, found: found.into(), hint: Some(hint.into()) }
}

fn fail(name: &str, found: impl Into<String>, hint: impl Into<String>) -> Check {
    Check { name: name.into(), status: Status::Fail, found: found.into(), hint: Some(hint.into()) }
}

/// Runs the command.
///
/// # Errors
/// A check failed.
pub fn run(args: &DoctorArgs) -> Result<()> {
    let facts = probe::facts();
    let (gpu, why) = super::device::automatic(Precision::Auto);
    let device = gpu.as_ref().map_or("cpu".to_string(), |gpu| gpu.info().name.clone());
    let mut checks = vec![kernels(&facts), compiler(), driver(&facts, gpu.is_some())];
    checks.extend(facts.gpus.iter().map(gpu_check));
    checks.extend(links(&facts.links));
    checks.extend(facts.libraries.iter().map(|l| library(l, !facts.gpus.is_empty())));
    checks.extend(machine::checks(&args.out, !facts.gpus.is_empty()));
    checks.extend(ranks::checks(!facts.gpus.is_empty()));
    let named = args.model.as_deref().map(|m| hub::Cache::of_environment().locate(m));
    checks.extend(named.as_deref().map(model));
    checks.extend(named.as_deref().and_then(room));
    let layers = named.as_deref().map_or(Vec::new(), |dir| layers::of(dir, &facts));
    checks.extend(layers.iter().map(layers::check));
    let known = named.as_deref().map(|dir| knowledge::of(dir, args.basis.as_deref()));
    let (known, protected) = known.unwrap_or_default();
    checks.extend(known);
    checks.push(automatic(&facts, gpu.is_some(), format!("{device}, because {why}")));
    let failed = checks.iter().filter(|c| c.status == Status::Fail).count();
    let out = &mut std::io::stdout();
    let written = match args.output.json {
        _ if !super::ranks::world().is_first() => Ok(()),
        true => {
            writeln!(out, "{}", document(&facts, &checks, (&layers, protected.as_ref()), (&device, &why)))
        }
        false => checks.iter().try_for_each(|c| line(out, c)).and_then(|()| {
            layers
                .iter()
                .try_for_each(|l| writeln!(out, "\n{}\n{}", l.title(), products::text(&l.layers)))?;
            protected
                .iter()
                .try_for_each(|p| writeln!(out, "\nProtected with the default settings:\n{}", p.table()))
        }),
    };
    written.map_err(|e| Error::io("write", "standard output", e))?;
    match failed {
        0 => Ok(()),
        n => {
            Err(Error::device(format!("{n} of {} checks failed", checks.len())).remedy("see the FAIL lines"))
        }
    }
}

fn line(out: &mut impl Write, check: &Check) -> std::io::Result<()> {
    let status = match check.status {
        Status::Pass => "PASS",
        Status::Warn => "WARN",
        Status::Fail => "FAIL",
    };
    writeln!(out, "{status}  {:<14} {}", check.name, check.found)?;
    check.hint.iter().try_for_each(|hint| writeln!(out, "{:<20} -> {hint}", ""))
}

fn document(
    facts: &Facts,
    checks: &[Check],
    (layers, protected): (&[layers::OnDevice], Option<&Protected>),
    (device, why): (&str, &str),
) -> serde_json::Value {
    let (binary, ptx): (Vec<&str>, Vec<&str>) =
        architectures().into_iter().partition(|a| a.starts_with("sm_"));
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "architectures": binary,
        "ptx": ptx,
        "simt": cfg!(feature = "simt"),
        "device": {"auto": device, "why": why},
        "gpu": facts,
        "checks": checks,
        "ranks": super::ranks::document(),
        "products": layers,
        "knowledge": protected,
    })
}

// ---- the kernels and the GPU ------------------------------------------------------------------

/// What `--device auto` takes. A GPU that is there, has kernels and cannot be opened must not pass unseen.
fn automatic(facts: &Facts, opened: bool, found: String) -> Check {
    let usable = facts.gpus.iter().any(|g| g.ordinal.is_some() && g.image.is_some());
    match usable && !opened {
        true => fail(
            "--device auto",
            found,
            "the GPU cannot be used: see the message, nvidia-smi and the lines above",
        ),
        false => pass("--device auto", found),
    }
}

fn kernels(facts: &Facts) -> Check {
    let built = architectures();
    let simt = if cfg!(feature = "simt") { ", and for the host SIMT machine (--device simt)" } else { "" };
    match (built.is_empty(), facts.driver) {
        (false, _) => pass("kernels", format!("for {}{simt}", built.join(", "))),
        (true, false) => warn(
            "kernels",
            format!("for no GPU{simt}"),
            "to build them: `just cuda-toolchain`, then `cargo build --release`",
        ),
        (true, true) => fail(
            "kernels",
            format!("for no GPU, though there is a driver{simt}"),
            "`just cuda-toolchain`, then `cargo build --release`; or use --device cpu",
        ),
    }
}

/// The compiler that a build here would find.
fn compiler() -> Check {
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(std::env::var_os).map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = homes.map(|h| h.join("bin")).chain([PathBuf::from(".cuda/bin")]);
    let candidates = std::env::var_os("NVCC").map(PathBuf::from).into_iter().chain(
        places
            .chain(std::env::split_paths(&path).collect::<Vec<_>>())
            .map(|directory| directory.join("nvcc")),
    );
    let Some(nvcc) = candidates.into_iter().find(|p| p.is_file()) else {
        let hint = "only needed to build kernels: `just cuda-toolchain` brings it, without root";
        return warn("compiler", "no nvcc in $NVCC, $CUDA_HOME, $CUDA_PATH, .cuda or PATH", hint);
    };
    let said = Command::new(&nvcc).arg("--version").output().ok();
    let text = said.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
    let release = text.split("release ").nth(1).and_then(|t| t.split(',').next()).unwrap_or("?");
    pass("compiler", format!("nvcc {release} ({})", nvcc.display()))
}

/// `opened`: whether CUDA opened a GPU, whatever the management library lists.
fn driver(facts: &Facts, opened: bool) -> Check {
    let version = facts.driver_version.as_deref().unwrap_or("of unknown version");
    match (facts.driver, facts.gpus.is_empty(), facts.cuda) {
        (false, _, _) => warn(
            "driver",
            "no CUDA driver library (libcuda)",
            format!(
                "on a machine with a GPU, update the NVIDIA driver{}; without a GPU, --device cpu",
                driver_needed()
            ),
        ),
        (true, true, _) if opened => warn(
            "driver",
            format!(
                "{version}; GPUs work, and are not listed ({})",
                facts.nvml_error.as_deref().unwrap_or("none")
            ),
            "libnvidia-ml.so.1 is missing: in a container, NVIDIA_DRIVER_CAPABILITIES=compute,utility",
        ),
        (true, true, _) => fail(
            "driver",
            format!("{version}, but no GPU ({})", facts.nvml_error.as_deref().unwrap_or("none is listed")),
            "see nvidia-smi; in a container, pass the GPU through (--gpus all)",
        ),
        (true, false, Some((major, minor)))
            if (major as u32, minor as u32) < built_by().unwrap_or((12, 4)) =>
        {
            let found = format!("{version}, for CUDA {major}.{minor} at most");
            fail("driver", found, format!("update the NVIDIA driver{}", driver_needed()))
        }
        (true, false, cuda) => {
            let cuda = cuda.map_or(String::new(), |(major, minor)| format!(", for CUDA {major}.{minor}"));
            pass("driver", format!("{version}{cuda}"))
        }
    }
}

fn gpu_check(gpu: &GpuFacts) -> Check {
    let Some(ordinal) = gpu.ordinal else {
        return pass(&format!("GPU {}", gpu.index), format!("{}, hidden (CUDA_VISIBLE_DEVICES)", gpu.name));
    };
    let name = format!("cuda:{ordinal}");
    let mut found = vec![gpu.name.clone()];
    let mut say = |text: Option<String>| found.extend(text);
    say(gpu.capability.map(|(major, minor)| format!("compute capability {major}.{minor}")));
    say(gpu.image.as_ref().map(|image| format!("runs {image}")));
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    say(gpu.memory.map(|(all, free)| format!("{:.1} of {:.1} GiB free", gib(free), gib(all))));
    say(gpu.processes.map(|n| format!("{n} processes")));
    say(gpu.watts.map(|(now, most)| format!("{now:.0} of {most:.0} W")));
    say(gpu.clock.map(|(now, most)| format!("{now} of {most} MHz")));
    say(gpu.memory_clock.map(|(now, most)| format!("memory {now} of {most} MHz")));
    say(gpu.temperature.map(|t| format!("{t} °C")));
    say(gpu.ecc.map(|on| format!("ECC {}", if on { "on" } else { "off" })));
    say(gpu.mig.filter(|on| *on).map(|_| "split into MIG instances".to_string()));
    let found = found.join(", ");
    let full = gpu.memory.is_some_and(|(all, free)| free < all / 2);
    if gpu.image.is_none() && !architectures().is_empty() {
        return fail(
            &name,
            found,
            "no kernels for it are built in: build with GEMS_CUDA_ARCHS set to its compute capability",
        );
    }
    if full || gpu.processes.is_some_and(|n| n > 0) {
        return warn(&name, found, "other processes use it: times and memory are shared with them");
    }
    pass(&name, found)
}

/// How GPUs reach each other, where there are several.
fn links(links: &[probe::Link]) -> Option<Check> {
    let found = probe::describe(links)?;
    let hint = match links.iter().all(|l| l.peers == Some(false)) {
        true => {
            "copies between GPUs go through host memory: see `nvidia-smi topo -m`; in a virtual machine or with an \
             IOMMU, peer access is often off. A run of this engine uses one GPU: choose it with --device cuda:N"
        }
        false => "a run of this engine uses one GPU: choose it with --device cuda:N, and start one run a GPU",
    };
    Some(note("GPU links", found, hint))
}

fn library(library: &probe::Library, gpu: bool) -> Check {
    match library.found {
        Some(file) => pass(library.name, format!("{file}: {}", library.purpose)),
        None if gpu => warn(
            library.name,
            format!("not found ({}): {}", library.searched.join(", "), library.purpose),
            "optional: comes with the CUDA toolkit; put it on the library path",
        ),
        None => pass(library.name, format!("not found, not needed without a GPU: {}", library.purpose)),
    }
}

// ---- the model --------------------------------------------------------------------------------

/// Warns where the subspaces of the default ranks leave no direction of a layer's input to protect.
fn room(dir: &Path) -> Option<Check> {
    const TASKS: usize = 2;
    let a = Architecture::read(dir).ok()?;
    let (sites, settings) = (Layout::new(&a).sites, MethodSettings::default());
    let full = |site: &&Site| settings.ranks(site, TASKS).iter().sum::<usize>() >= site.inputs;
    let (bare, all) = (sites.iter().filter(full).count(), sites.len());
    let narrowest = sites.iter().map(|s| s.inputs).min().filter(|_| bare > 0)?;
    let rank = settings.gems.rank;
    let found = format!(
        "at gems.rank = {rank} the subspaces of {TASKS} tasks take every direction of {bare} of {all} layers ({:.0} %): \
         nothing of these is protected",
        100.0 * bare as f64 / all as f64
    );
    let hint = format!("choose gems.rank so that rank and task ranks together are well below {narrowest}");
    Some(warn("null space", found, &hint))
}

/// Whether a model and its tokenizer can be used: what `train` would refuse is refused here, in its words.
fn model(dir: &Path) -> Check {
    let look = || -> Result<(Architecture, usize, usize)> {
        let checked = Checked::open(dir)?;
        let tensors = checked.read_all()?;
        let a = checked.architecture;
        let (items, settings) = (Catalogue::default(), DataSettings::default());
        let vocabulary = Vocabulary::new(dir, &items, &settings, PromptSide::from(&a), None)?;
        vocabulary.rows_for(a.vocabulary)?;
        Ok((a, tensors, vocabulary.base_size()))
    };
    match look() {
        Err(error) => {
            let text = error.to_string();
            let (found, hint) = text.split_once("\n  try: ").unwrap_or((&text, "see docs/models.md"));
            fail("model", found, hint)
        }
        Ok((a, tensors, words)) => {
            let layers = match a.encoder_layers {
                0 => a.layers.to_string(),
                n => format!("{n} + {}", a.layers),
            };
            let found = format!(
                "{:?}, {layers} layers, {tensors} tensors, token ids below {words} in {} rows",
                a.family, a.vocabulary
            );
            pass("model", found)
        }
    }
}
