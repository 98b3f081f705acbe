//! Opening the device that a configuration asks for.

use super::options::DeviceArgs;
use super::ranks;
use crate::backend::cpu::{Cpu, Products, tiles};
use crate::backend::cuda::{Cuda, DeviceSpec, Faults, architectures, driver_present};
use crate::backend::{Backend, DType};
use crate::config::{Config, Device, Precision};
use crate::error::{Error, Result};
use std::sync::Arc;

/// The backend of `config`. `auto` takes a GPU when there is a driver, a device and kernels for it, else the
/// CPU; why not is said on stderr when there is a driver.
pub fn open(config: &Config, args: &DeviceArgs) -> Result<Arc<dyn Backend>> {
    match (config.device, config.precision) {
        (Device::Cpu, precision) => cpu(precision, args),
        (Device::Simt | Device::Cuda(_), Precision::Mixed) => {
            refuse("precision mixed is the CPU's", "use precision bf16 or auto, or --device cpu")
        }
        (Device::Simt, Precision::Bf16) => simt(DType::BF16),
        (Device::Simt, _) => simt(DType::F32),
        (Device::Cuda(_), Precision::F32) => {
            refuse("on a GPU layers compute in bf16", "use precision bf16 or auto, or --device cpu")
        }
        (Device::Cuda(ordinal), _) => gpu(ordinal),
        (Device::Auto, precision) => auto(precision, args),
    }
}

fn refuse<T>(what: &str, remedy: &str) -> Result<T> {
    Err(Error::usage(what).at("precision").remedy(remedy))
}

fn cpu(precision: Precision, args: &DeviceArgs) -> Result<Arc<dyn Backend>> {
    let products = match precision {
        Precision::Mixed if tiles::available() => Products::Bf16,
        Precision::Mixed => {
            return refuse(
                "this processor does not multiply bf16 by itself (Intel's AMX)",
                "use precision auto or f32, which are faster here",
            );
        }
        Precision::Auto | Precision::F32 | Precision::Bf16 => Products::F32,
    };
    Cpu::open_with(ranks::threads(args.threads), products)
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
    if of_cpu(precision) {
        return (None, "precision is f32 or mixed, which are the CPU's".into());
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

fn of_cpu(precision: Precision) -> bool {
    matches!(precision, Precision::F32 | Precision::Mixed)
}

fn auto(precision: Precision, args: &DeviceArgs) -> Result<Arc<dyn Backend>> {
    let (gpu, why) = automatic(precision);
    if gpu.is_none() && !of_cpu(precision) && driver_present() {
        super::say(&format!("note: computing on the CPU, because {why} (`gems-engine doctor` says more)"));
    }
    gpu.map_or_else(|| cpu(precision, args), Ok)
}
