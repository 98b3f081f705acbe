//! What this machine offers to the kernels, found without opening a device for work.

use super::{architectures, choose, driver_present};
use nvml_wrapper::Nvml;
use nvml_wrapper::enum_wrappers::device::{Clock, TemperatureSensor};
use serde::Serialize;

/// One GPU, as NVIDIA's management library sees it; `None` where it does not say.
#[derive(Debug, Clone, Serialize)]
pub struct GpuFacts {
    /// The number it has here.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Compute capability.
    pub capability: Option<(u32, u32)>,
    /// The built-in kernels that would run on it.
    pub image: Option<String>,
    /// Bytes of memory: all, and not in use.
    pub memory: Option<(u64, u64)>,
    /// Processes that compute on it now.
    pub processes: Option<usize>,
    /// Whether its memory corrects errors.
    pub ecc: Option<bool>,
    /// Whether it is split into instances.
    pub mig: Option<bool>,
    /// Watts: drawn now, and allowed.
    pub watts: Option<(f64, f64)>,
    /// Clock of the multiprocessors in MHz: now, and at most.
    pub clock: Option<(u32, u32)>,
    /// Clock of the memory in MHz: now, and at most.
    pub memory_clock: Option<(u32, u32)>,
    /// Degrees Celsius.
    pub temperature: Option<u32>,
}

/// An optional library.
#[derive(Debug, Clone, Serialize)]
pub struct Library {
    /// Its name.
    pub name: &'static str,
    /// What it would be used for.
    pub purpose: &'static str,
    /// File names that were tried, in order.
    pub searched: Vec<&'static str>,
    /// The one that was found.
    pub found: Option<&'static str>,
}

/// Everything about GPUs here.
#[derive(Debug, Clone, Serialize)]
pub struct Facts {
    /// Whether the driver's library is there.
    pub driver: bool,
    /// The driver's version, if it says.
    pub driver_version: Option<String>,
    /// The newest CUDA that the driver runs.
    pub cuda: Option<(i32, i32)>,
    /// The GPUs.
    pub gpus: Vec<GpuFacts>,
    /// Why NVIDIA's management library says nothing.
    pub nvml_error: Option<String>,
    /// Optional libraries.
    pub libraries: Vec<Library>,
}

/// Looks around.
pub fn facts() -> Facts {
    let mut facts = Facts {
        driver: driver_present(),
        driver_version: None,
        cuda: None,
        gpus: Vec::new(),
        nvml_error: None,
        libraries: libraries(),
    };
    match Nvml::init() {
        Ok(nvml) => {
            facts.driver_version = nvml.sys_driver_version().ok();
            facts.cuda = nvml.sys_cuda_driver_version().ok().map(|v| (v / 1000, v % 1000 / 10));
            let count = nvml.device_count().unwrap_or(0);
            facts.gpus = (0..count).filter_map(|i| gpu(&nvml, i)).collect();
        }
        Err(error) => facts.nvml_error = Some(error.to_string()),
    }
    facts
}

fn gpu(nvml: &Nvml, index: u32) -> Option<GpuFacts> {
    let device = nvml.device_by_index(index).ok()?;
    let capability = device.cuda_compute_capability().ok().map(|c| (c.major as u32, c.minor as u32));
    let image = capability.and_then(|(major, minor)| choose(&architectures(), major, minor).ok());
    let clock = |kind| Some((device.clock_info(kind).ok()?, device.max_clock_info(kind).ok()?));
    let watts = || {
        let (now, most) = (device.power_usage().ok()?, device.enforced_power_limit().ok()?);
        Some((f64::from(now) / 1e3, f64::from(most) / 1e3))
    };
    Some(GpuFacts {
        index,
        name: device.name().unwrap_or_else(|_| "a GPU".into()),
        capability,
        image: image.map(str::to_string),
        memory: device.memory_info().ok().map(|m| (m.total, m.free)),
        processes: device.running_compute_processes().ok().map(|p| p.len()),
        ecc: device.is_ecc_enabled().ok().map(|e| e.currently_enabled),
        mig: device.mig_mode().ok().map(|m| m.current == 1),
        watts: watts(),
        clock: clock(Clock::SM),
        memory_clock: clock(Clock::Memory),
        temperature: device.temperature(TemperatureSensor::Gpu).ok(),
    })
}

/// How many processes besides this one compute on a GPU; 0 where nobody says.
pub fn other_processes(ordinal: usize) -> usize {
    let Ok(nvml) = Nvml::init() else { return 0 };
    let Ok(processes) = nvml.device_by_index(ordinal as u32).and_then(|d| d.running_compute_processes())
    else {
        return 0;
    };
    processes.iter().filter(|p| p.pid != std::process::id()).count()
}

fn libraries() -> Vec<Library> {
    let library = |name, purpose, searched: &[&'static str]| {
        // Sound: opens a library by a fixed name and closes it again; these have harmless initialisers.
        let there = |file: &&&str| unsafe { libloading::Library::new(**file) }.is_ok();
        Library { name, purpose, found: searched.iter().find(there).copied(), searched: searched.to_vec() }
    };
    vec![
        library(
            "cuBLASLt",
            "plain products where it is faster than the engine's own",
            &["libcublasLt.so", "libcublasLt.so.13", "libcublasLt.so.12"],
        ),
        library(
            "NVTX",
            "names of phases and layers in Nsight's timeline",
            &["libnvToolsExt.so", "libnvToolsExt.so.1"],
        ),
        library("NCCL", "sums over several GPUs", &["libnccl.so", "libnccl.so.2"]),
    ]
}
