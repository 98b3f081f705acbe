//! Opening the device that a configuration asks for.

use super::options::DeviceArgs;
use crate::backend::cpu::Cpu;
use crate::backend::cuda::{Cuda, architectures, driver_present};
use crate::backend::{Backend, DType};
use crate::config::{Config, Device, Precision};
use crate::error::{Error, Result};
use std::sync::Arc;

/// The backend of `config`. `auto` takes a GPU when there is a driver, a device and kernels for it, else the
/// CPU; why not is said on stderr when there is a driver.
pub fn open(config: &Config, args: &DeviceArgs) -> Result<Arc<dyn Backend>> {
    let refuse = |what: &str, remedy: &str| Err(Error::usage(what).at("precision").remedy(remedy));
    match (config.device, config.precision) {
        (Device::Cpu, Precision::Bf16) => {
            refuse("the CPU backend computes in f32 only", "use precision f32, or --device simt")
        }
        (Device::Cpu, _) => Ok(Cpu::open(args.threads)?),
        (Device::Simt, Precision::Bf16) => Cuda::open_simt(DType::BF16),
        (Device::Simt, _) => Cuda::open_simt(DType::F32),
        (Device::Cuda(_), Precision::F32) => {
            refuse("on a GPU layers compute in bf16", "use precision bf16 or auto, or --device cpu")
        }
        (Device::Cuda(ordinal), _) => Cuda::open_device(ordinal),
        (Device::Auto, precision) => auto(precision, args),
    }
}

fn auto(precision: Precision, args: &DeviceArgs) -> Result<Arc<dyn Backend>> {
    if precision != Precision::F32 && driver_present() {
        if architectures().is_empty() {
            eprintln!(
                "note: this binary has no GPU kernels; computing on the CPU (`gems-engine doctor` says more)"
            );
        } else {
            match Cuda::open_device(0) {
                Ok(gpu) => return Ok(gpu),
                Err(error) => eprintln!("note: computing on the CPU, because: {error}"),
            }
        }
    }
    Cpu::open(args.threads)
}
