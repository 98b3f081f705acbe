//! Devices that compute: memory, and the operations of [`ops`] as values.
//!
//! Two implementations of [`Backend`]: [`cpu`] (native f32, threads) and [`cuda`] (the kernels in `kernels/`, launched on a
//! GPU through the driver or on the host SIMT machine).

pub mod cpu;
pub mod cuda;
mod host_copy;
mod info;
mod nvtx;
pub mod ops;
mod pool;
mod relative_bias;
mod tensor;
pub mod trace;
pub mod work;

pub use host_copy::HostCopy;
pub use info::DeviceInfo;
pub use ops::*;
pub use pool::{HostBuffer, HostPool, MemoryUse};
pub use tensor::{Bytes, DType, DeviceBuffer, Indices, Mat, MatMut, Storage, Tensor};

use crate::error::Result;
use half::bf16;
use half::slice::HalfFloatSliceExt;
use trace::Stopwatch;

/// A device. What computes is asynchronous where the device is; [`Backend::download`] and [`Backend::synchronize`] wait.
pub trait Backend: Send + Sync {
    // ---- the device -------------------------------------------------------------------------
    /// What it runs on, and in what type.
    fn info(&self) -> &DeviceInfo;
    /// The type of weights and activations.
    fn compute_dtype(&self) -> DType {
        self.info().compute_dtype
    }
    /// Memory of live tensors.
    fn memory(&self) -> MemoryUse;
    /// Forgets the peaks so far.
    fn reset_peak_memory(&self);
    /// Gives memory that nobody uses back to the device: worth it after what is done once, such as loading.
    fn trim(&self) {}
    /// Waits for everything launched; an error that occurred meanwhile comes out here.
    fn synchronize(&self) -> Result<()>;
    /// From now on remembers what is done.
    fn record(&self) -> Result<()>;
    /// What was done since [`Backend::record`], and ends that. Waits.
    fn recorded(&self) -> Result<Vec<trace::Record>>;
    /// The clock of whole operations, on a device that is done when it returns; one that launches kernels times those.
    fn stopwatch(&self) -> Option<&Stopwatch> {
        None
    }
    /// How often the host has waited for the device so far: [`Backend::download`] and
    /// [`Backend::synchronize`]. Always 0 where operations are done when they return.
    fn waits(&self) -> u64 {
        0
    }
    /// The point in its work up to which everything was given to it: what another stream of a GPU waits for before it
    /// touches the same memory.
    fn event(&self) -> Result<cuda::driver::Event> {
        Ok(cuda::driver::Event::Host(std::time::Instant::now()))
    }
    /// What is given to the device from now on comes after `event`, which may be of another stream. The host does not wait.
    fn come_after(&self, _event: &cuda::driver::Event) -> Result<()> {
        Ok(())
    }
    /// Tells an external profiler (Nsight) that the steps worth looking at begin or end.
    fn profiler(&self, _on: bool) -> Result<()> {
        Ok(())
    }

    // ---- memory -----------------------------------------------------------------------------
    /// `rows x cols` elements of unspecified value.
    fn alloc(&self, rows: usize, cols: usize, dtype: DType) -> Result<Tensor>;
    /// Row numbers, positions or token ids on the device.
    fn indices(&self, values: &[u32]) -> Result<Indices>;
    /// `len` bytes of unspecified value.
    fn alloc_bytes(&self, len: usize) -> Result<Bytes>;
    /// Fills `to`, which is as long.
    fn upload_bytes(&self, values: &[u8], to: &mut Bytes) -> Result<()>;
    /// Host f32 values into `to`, rounding to its type. `values.len()` is rows * cols.
    fn upload(&self, values: &[f32], to: MatMut) -> Result<()>;
    /// Host bf16 values into `to`: of the same type no other copy is made.
    fn upload_bf16(&self, values: &[bf16], to: MatMut) -> Result<()> {
        self.upload(&values.to_f32_vec(), to)
    }
    /// The values of `from` as f32, row by row. Waits.
    fn download(&self, from: Mat) -> Result<Vec<f32>>;
    /// The values of `from` as bf16, row by row. Waits.
    fn download_bf16(&self, from: Mat) -> Result<Vec<bf16>> {
        Ok(self.download(from)?.into_iter().map(bf16::from_f32).collect())
    }

    // ---- operations -------------------------------------------------------------------------
    /// Does an operation whose operands have been checked: callers use [`run`](trait.Backend.html#method.run).
    fn execute(&self, op: Operation) -> Result<()>;
}

impl dyn Backend + '_ {
    /// Does an operation.
    ///
    /// # Errors
    /// What the device or the machine refuses. Operands that do not fit each other panic.
    pub fn run<'a>(&self, op: impl Into<Operation<'a>>) -> Result<()> {
        let op = op.into();
        op.check();
        match self.stopwatch().filter(|s| s.is_on()) {
            Some(stopwatch) => stopwatch.time(op.name(), op.work(), || self.execute(op)),
            None => self.execute(op),
        }
    }
    /// `C = beta C + alpha A B`.
    pub fn product(&self, c: MatMut, beta: f32, alpha: f32, a: Operand, b: Operand) -> Result<()> {
        self.run(Matmul { c, beta, alpha, a, b })
    }
    /// `to = from`, converting between types.
    pub fn copy(&self, from: Mat, to: MatMut) -> Result<()> {
        self.run(Copy { from, to })
    }
    /// `x = value`.
    pub fn fill(&self, x: MatMut, value: f32) -> Result<()> {
        self.run(Fill { x, value })
    }
    /// `x *= alpha`.
    pub fn scale(&self, x: MatMut, alpha: f32) -> Result<()> {
        self.run(Scale { x, alpha })
    }
    /// `y += alpha x`.
    pub fn axpy(&self, alpha: f32, x: Mat, y: MatMut) -> Result<()> {
        self.run(Axpy { alpha, x, y })
    }
    /// The values of *f32* matrices, each row by row. Waits once, if there are any.
    pub fn download_all(&self, all: &[Mat]) -> Result<Vec<Vec<f32>>> {
        let sizes: Vec<usize> = all.iter().map(|m| m.rows * m.cols).collect();
        let mut joined = self.alloc(1, sizes.iter().sum(), DType::F32)?;
        let mut at = 0;
        for (from, size) in all.iter().zip(&sizes) {
            let to = joined.mat_mut().col_range(at..at + size);
            self.copy(*from, to.reshape(from.rows, from.cols))?;
            at += size;
        }
        let values = self.download(joined.mat())?;
        let mut rest = &values[..];
        let mut next = |size: &usize| {
            let (values, after) = rest.split_at(*size);
            rest = after;
            values.to_vec()
        };
        Ok(sizes.iter().map(&mut next).collect())
    }
    /// A tensor filled with zeros.
    pub fn zeros(&self, rows: usize, cols: usize, dtype: DType) -> Result<Tensor> {
        let mut tensor = self.alloc(rows, cols, dtype)?;
        self.fill(tensor.mat_mut(), 0.0)?;
        Ok(tensor)
    }
    /// A tensor with the given host values.
    pub fn tensor(&self, values: &[f32], rows: usize, cols: usize, dtype: DType) -> Result<Tensor> {
        let mut tensor = self.alloc(rows, cols, dtype)?;
        self.upload(values, tensor.mat_mut())?;
        Ok(tensor)
    }
    /// A copy of `from`, in `dtype`.
    pub fn duplicate(&self, from: Mat, dtype: DType) -> Result<Tensor> {
        let mut tensor = self.alloc(from.rows, from.cols, dtype)?;
        self.copy(from, tensor.mat_mut())?;
        Ok(tensor)
    }
}
