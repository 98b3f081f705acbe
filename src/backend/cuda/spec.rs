//! Which device to open, and how.

use super::drivers::Faults;
use crate::backend::{DType, DeviceInfo};
use crate::error::{Error, Result};

/// What launches the kernels.
#[derive(Debug, Clone)]
pub enum DriverKind {
    /// A GPU.
    Gpu {
        /// The number it has here.
        ordinal: usize,
        /// Whether plain products go to cuBLASLt.
        blas: bool,
    },
    /// The host SIMT machine.
    Simt {
        /// Whether with the kernels for sm_90a, in place of the general ones where there are such.
        hopper: bool,
    },
    /// Nothing: launches are counted, as this device would make them.
    DryRun(DeviceInfo),
}

/// A device to open with [`super::Cuda::open`].
#[derive(Debug, Clone)]
pub struct DeviceSpec {
    /// What launches the kernels.
    pub driver: DriverKind,
    /// The type of weights and activations. f32 has no tensor-core kernels, and is for tests.
    pub dtype: DType,
    /// Whether launches are gathered into graphs.
    pub graphs: bool,
    /// What goes wrong, for tests of how it is reported.
    pub faults: Faults,
}

impl DeviceSpec {
    /// Without graphs and faults.
    fn new(driver: DriverKind, dtype: DType) -> Self {
        Self { driver, dtype, graphs: false, faults: Faults::default() }
    }

    /// GPU number `ordinal`, computing in bf16 by the engine's own kernels.
    pub fn gpu(ordinal: usize) -> Self {
        Self::new(DriverKind::Gpu { ordinal, blas: false }, DType::BF16)
    }

    /// The host SIMT machine.
    pub fn simt(dtype: DType) -> Self {
        Self::new(DriverKind::Simt { hopper: false }, dtype)
    }

    /// A device that computes nothing and launches what `like` would.
    pub fn dry_run(like: DeviceInfo) -> Self {
        let dtype = like.compute_dtype;
        Self::new(DriverKind::DryRun(like), dtype)
    }

    /// A device that computes nothing, spread out as an H100: for the launches of a step and what they cost the host.
    pub fn dry_run_of_h100(dtype: DType) -> Self {
        Self { dtype, ..Self::dry_run(DeviceInfo::of_image("sm_90a", 132)) }
    }

    /// The same, to count the memory that a run on `device` takes.
    pub fn counting(device: &DeviceInfo) -> Self {
        let &DeviceInfo { compute_dtype: dtype, max_logits, max_widened, .. } = device;
        let like = DeviceInfo { max_logits, max_widened, ..DeviceInfo::of_image("sm_90a", 132) };
        Self { dtype, ..Self::dry_run(like) }
    }

    /// The same with what the environment switches on: graphs by `GEMS_GRAPHS=on`, and on a GPU cuBLASLt by
    /// `GEMS_CUBLASLT=on`.
    ///
    /// # Errors
    /// A switch says neither on nor off.
    pub fn with_switches(mut self) -> Result<Self> {
        self.graphs = switch("GEMS_GRAPHS")?;
        if let DriverKind::Gpu { blas, .. } = &mut self.driver {
            *blas = switch("GEMS_CUBLASLT")?;
        }
        Ok(self)
    }
}

fn switch(name: &str) -> Result<bool> {
    match std::env::var(name).as_deref() {
        Err(_) | Ok("off" | "") => Ok(false),
        Ok("on") => Ok(true),
        Ok(other) => Err(Error::usage(format!("{other:?}")).at(name).remedy("on or off")),
    }
}
