//! Opening the device that a configuration asks for.

use super::options::DeviceArgs;
use super::ranks;
use crate::backend::cpu::Cpu;
use crate::backend::cuda::{Cuda, DeviceSpec, Faults, architectures, driver_present};
use crate::backend::{Backend, DType};
use crate::config::{Config, Device, Precision};
use crate::error::{Error, Result};
use std::sync::Arc;

/// The backend of `config`. `auto` takes a GPU when there is a driver, a device and kernels for it, else the
/// CPU; why not is said on stderr when there is a driver.
pub fn open(config: &Config, args: &DeviceArgs) -> Result<Arc<dyn Backend>> {
    let refuse = |what: &str, remedy: &str| Err(Error::usage(what).at("precision").remedy(remedy));
    match (config.device, config.precision) {
        (Device::Cpu, _) => Ok(Cpu::open(ranks::threads(args.threads))?),
        (Device::Simt, Precision::Bf16) => simt(DType::BF16),
        (Device::Simt, _) => simt(DType::F32),
        (Device::Cuda(_), Precision::F32) => {
            refuse("on a GPU layers compute in bf16", "use precision bf16 or auto, or --device cpu")
        }
        (Device::Cuda(ordinal), _) => gpu(ordinal),
        (Device::Auto, precision) => auto(precision, args),
    }
}

fn gpu(ordinal: usize) -> Result<Arc<dyn Backend>> {
    Ok(Cuda::open(DeviceSpec::gpu(ordinal).with_switches()?)?)
}

/// The SIMT machine; `GEMS_SIMT_MEMORY` (bytes) and `GEMS_SIMT_LOST_AT` (a launch) give it a GPU's faults.
fn simt(dtype: DType) -> Result<Arc<dyn Backend>> {
    let number = |name: &str| match std::env::var(name) {
        Err(_) => Ok(None),
        Ok(text) => text.parse().map(Some).map_err(|_| Error::usage(format!("{text:?}")).at(name)),
    };
    let faults = Faults { memory: number("GEMS_SIMT_MEMORY")?, lost_at: number("GEMS_SIMT_LOST_AT")? };
    Ok(Cuda::open(DeviceSpec { faults, ..DeviceSpec::simt(dtype).with_switches()? })?)
}

/// What `auto` takes: the first GPU (of several ranks, each its own), if it works (`None`: the CPU), and why.
pub fn automatic(precision: Precision) -> (Option<Arc<dyn Backend>>, String) {
    if precision == Precision::F32 {
        return (None, "precision is f32, which is the CPU's".into());
    }
    if !driver_present() {
        return (None, "there is no CUDA driver on this machine".into());
    }
    if architectures().is_empty() {
        return (None, "there is a driver, but this program was built without GPU kernels".into());
    }
    match gpu(ranks::gpu()) {
        Ok(gpu) => (Some(gpu), "the driver, a GPU and kernels for it are there".into()),
        Err(error) => (None, error.to_string()),
    }
}

fn auto(precision: Precision, args: &DeviceArgs) -> Result<Arc<dyn Backend>> {
    let (gpu, why) = automatic(precision);
    if gpu.is_none() && precision != Precision::F32 && driver_present() {
        super::say(&format!("note: computing on the CPU, because {why} (`gems-engine doctor` says more)"));
    }
    gpu.map_or_else(|| Ok(Cpu::open(ranks::threads(args.threads))? as Arc<dyn Backend>), Ok)
}
