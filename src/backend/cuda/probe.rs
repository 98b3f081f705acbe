//! What this machine offers to the kernels, found without opening a device for work.

use super::images::{architectures, choose};
use cudarc::driver::{result, sys};
use nvml_wrapper::enum_wrappers::device::{Clock, P2pCapabilitiesIndex, P2pStatus, TemperatureSensor};
use nvml_wrapper::{Device, Nvml};
use serde::Serialize;

/// One GPU, as NVIDIA's management library sees it; `None` where it does not say.
#[derive(Debug, Clone, Serialize)]
pub struct GpuFacts {
    /// The number that NVIDIA's management library gives it.
    pub index: u32,
    /// The number it has as a CUDA device; `None` when CUDA does not see it (CUDA_VISIBLE_DEVICES).
    pub ordinal: Option<u32>,
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
    /// Multiprocessors.
    pub multiprocessors: Option<u32>,
}

/// How two GPUs reach each other; `None` where nobody says.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Link {
    /// Their numbers.
    pub gpus: (u32, u32),
    /// Whether each can read the other's memory.
    pub peers: Option<bool>,
    /// Whether they do so over NVLink.
    pub nvlink: Option<bool>,
    /// What they have in common otherwise: a PCIe switch, a host bridge, ...
    pub path: Option<String>,
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
    /// Every pair of them.
    pub links: Vec<Link>,
    /// Why NVIDIA's management library says nothing.
    pub nvml_error: Option<String>,
    /// Optional libraries.
    pub libraries: Vec<Library>,
}

/// Whether there is a driver library at all.
pub fn driver_present() -> bool {
    // SAFETY: tries to open a library by its fixed names.
    unsafe { sys::is_culib_present() }
}

/// Looks around.
pub fn facts() -> Facts {
    let mut facts = Facts {
        driver: driver_present(),
        driver_version: None,
        cuda: None,
        gpus: Vec::new(),
        links: Vec::new(),
        nvml_error: None,
        libraries: libraries(),
    };
    match Nvml::init() {
        Ok(nvml) => {
            facts.driver_version = nvml.sys_driver_version().ok();
            facts.cuda = nvml.sys_cuda_driver_version().ok().map(|v| (v / 1000, v % 1000 / 10));
            let (count, seen) = (nvml.device_count().unwrap_or(0), cuda_devices());
            facts.gpus = (0..count).filter_map(|i| gpu(&nvml, i, seen.as_deref())).collect();
            let pairs = (0..count).flat_map(|i| (i + 1..count).map(move |j| (i, j)));
            facts.links = pairs.filter_map(|pair| link(&nvml, pair)).collect();
        }
        Err(error) => facts.nvml_error = Some(error.to_string()),
    }
    facts
}

/// The identifiers of all devices that CUDA sees, in its order; `None` when it does not say.
fn cuda_devices() -> Option<Vec<String>> {
    if !driver_present() {
        return None;
    }
    let list = || {
        result::init().ok()?;
        let count = result::device::get_count().ok()?;
        (0..count)
            .map(|i| Some(identifier(&result::device::get_uuid(result::device::get(i).ok()?).ok()?)))
            .collect()
    };
    // The binding panics at the first symbol that an old driver lacks.
    std::panic::catch_unwind(list).ok().flatten()
}

/// As the management library writes it: `GPU-` and groups of 8, 4, 4, 4 and 12 hexadecimal digits.
fn identifier(uuid: &sys::CUuuid) -> String {
    let digits: String = uuid.bytes.iter().map(|b| format!("{:02x}", *b as u8)).collect();
    let group = |from: usize, to: usize| &digits[from..to];
    format!("GPU-{}-{}-{}-{}-{}", group(0, 8), group(8, 12), group(12, 16), group(16, 20), group(20, 32))
}

/// `seen`: the identifiers that CUDA sees, where it says.
fn gpu(nvml: &Nvml, index: u32, seen: Option<&[String]>) -> Option<GpuFacts> {
    let device = nvml.device_by_index(index).ok()?;
    let ordinal = match (seen, device.uuid()) {
        (Some(seen), Ok(own)) => seen.iter().position(|s| *s == own).map(|i| i as u32),
        _ => Some(index),
    };
    let capability = device.cuda_compute_capability().ok().map(|c| (c.major as u32, c.minor as u32));
    let image = capability.and_then(|(major, minor)| choose(&architectures(), major, minor).ok());
    let clock = |kind| Some((device.clock_info(kind).ok()?, device.max_clock_info(kind).ok()?));
    let watts = || {
        let (now, most) = (device.power_usage().ok()?, device.enforced_power_limit().ok()?);
        Some((f64::from(now) / 1e3, f64::from(most) / 1e3))
    };
    Some(GpuFacts {
        index,
        ordinal,
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
        multiprocessors: capability.zip(device.num_cores().ok()).map(|(c, cores)| cores / cores_of(c)),
    })
}

/// f32 units of a multiprocessor, by which the library counts.
fn cores_of(capability: (u32, u32)) -> u32 {
    if capability == (8, 0) { 64 } else { 128 }
}

fn link(nvml: &Nvml, (i, j): (u32, u32)) -> Option<Link> {
    let (a, b) = (nvml.device_by_index(i).ok()?, nvml.device_by_index(j).ok()?);
    let can = |what| a.p2p_status(&b, what).ok().map(|status| status == P2pStatus::Ok);
    let peers = can(P2pCapabilitiesIndex::Read);
    let nvlink = can(P2pCapabilitiesIndex::NvLink);
    Some(Link { gpus: (i, j), peers, nvlink, path: path(&a, b) })
}

#[cfg(target_os = "linux")]
fn path(a: &Device, b: Device) -> Option<String> {
    use nvml_wrapper::enum_wrappers::device::TopologyLevel as Level;
    let text = match a.topology_common_ancestor(b).ok()? {
        Level::Internal => "one board",
        Level::Single => "one PCIe switch",
        Level::Multiple => "PCIe switches",
        Level::HostBridge => "one host bridge",
        Level::Node => "host bridges of one NUMA node",
        Level::System => "NUMA nodes",
    };
    Some(text.to_string())
}

#[cfg(not(target_os = "linux"))]
fn path(_a: &Device, _b: Device) -> Option<String> {
    None
}

/// How GPUs reach each other in words, pairs that are alike together; `None` with fewer than two GPUs.
pub fn describe(links: &[Link]) -> Option<String> {
    let words = |link: &Link| match (link.nvlink, link.peers) {
        (Some(true), _) => "over NVLink".to_string(),
        (_, Some(true)) => format!("directly over {}", link.path.as_deref().unwrap_or("PCIe")),
        (_, Some(false)) => {
            let path = link.path.as_deref().map_or(String::new(), |p| format!(" ({p})"));
            format!("through host memory only{path}")
        }
        (_, None) => "in an unknown way".to_string(),
    };
    let mut kinds: Vec<(String, Vec<String>)> = Vec::new();
    for link in links {
        let (words, pair) = (words(link), format!("{}-{}", link.gpus.0, link.gpus.1));
        match kinds.iter_mut().find(|(known, _)| *known == words) {
            Some((_, pairs)) => pairs.push(pair),
            None => kinds.push((words, vec![pair])),
        }
    }
    let text = match &kinds[..] {
        [] => return None,
        [(words, _)] => format!("all reach each other {words}"),
        several => {
            let say = |(words, pairs): &(String, Vec<String>)| format!("{} {words}", pairs.join(", "));
            several.iter().map(say).collect::<Vec<_>>().join("; ")
        }
    };
    Some(text)
}

/// How many processes besides this one compute on CUDA device `ordinal`; 0 where nobody says.
pub fn other_processes(ordinal: usize) -> usize {
    let Ok(nvml) = Nvml::init() else { return 0 };
    let own = cuda_devices().and_then(|seen| seen.get(ordinal).cloned());
    let device = own.map_or_else(|| nvml.device_by_index(ordinal as u32), |own| nvml.device_by_uuid(own));
    let Ok(processes) = device.and_then(|d| d.running_compute_processes()) else { return 0 };
    processes.iter().filter(|p| p.pid != std::process::id()).count()
}

fn libraries() -> Vec<Library> {
    let library = |name, purpose, searched: &[&'static str]| {
        // SAFETY: opens a library by a fixed name and closes it again; these have harmless initialisers.
        let there = |file: &&&str| unsafe { libloading::Library::new(**file) }.is_ok();
        Library { name, purpose, found: searched.iter().find(there).copied(), searched: searched.to_vec() }
    };
    vec![library(
        "cuBLASLt",
        "plain products where it is faster than the engine's own",
        // Those that the binding opens: it is for CUDA 12.
        &["libcublasLt.so", "libcublasLt.so.12"],
    )]
}
