//! The kernel backend: launches the kernels in `kernels/` on a GPU or on the host SIMT machine.
//!
//! Everything above `Driver` is the same for both: memory, launch geometry, arguments, the choice between
//! tensor-core and plain kernels. So `cargo test` runs, on any CPU, what a GPU will run.

pub mod abi;
mod activation;
mod adam;
mod attention;
mod column_sums;
mod cross_entropy;
mod dequantize;
mod divergence;
mod dots;
pub mod driver;
pub mod drivers;
mod elementwise;
mod errors;
mod fold;
mod gather;
mod images;
mod kernels;
mod launch;
mod linear;
mod matmul;
mod matmul_many;
mod memory;
mod orthonormalize;
pub mod probe;
mod project;
mod recorder;
mod rmsnorm;
mod rope;
mod shrink;
mod spec;
mod step_factors;
mod weight_grad;

use super::*;
use crate::error::{Error, Kind, Result};
use attention::BucketTables;
use driver::Driver;
#[cfg(feature = "simt")]
use drivers::Simt;
use drivers::{DryRun, Faulty, Gpu, GraphDriver};
use half::bf16;
use half::slice::HalfFloatSliceExt;
use half::vec::HalfBitsVecExt;
use memory::Arena;
use recorder::Recorder;
use std::sync::{Arc, Mutex};

pub use drivers::{Faults, Replays};
pub use errors::explain;
pub use images::{architectures, choose, compiler, driver_needed};
pub use matmul::{MatmulKernel, MatmulShape};
pub use probe::driver_present;
pub use spec::{DeviceSpec, DriverKind};

/// The kernel backend on one device.
pub struct Cuda {
    driver: Arc<dyn Driver>,
    info: DeviceInfo,
    graphs: Option<Arc<GraphDriver>>,
    arena: Arena,
    recorder: Recorder,
    buckets: Mutex<BucketTables>,
    /// The last one serves; a launch on its way may still name one before it.
    tickets: Mutex<Vec<DeviceBuffer>>,
}

/// Most numbers that an upload stages at a time (32 MiB), or those of one row.
const STAGED: usize = 8 << 20;

/// Counters by which blocks of one launch follow each other.
const TICKETS: usize = 4096;

impl Cuda {
    /// The device that `spec` describes.
    ///
    /// # Errors
    /// No driver, no such GPU, a driver too old for the kernels, no kernels for its architecture, no library.
    pub fn open(spec: DeviceSpec) -> Result<Arc<Self>> {
        let mut driver: Arc<dyn Driver> = match spec.driver {
            DriverKind::Gpu { ordinal, blas } => Arc::new(Gpu::open(ordinal, blas)?),
            #[cfg(feature = "simt")]
            DriverKind::Simt { hopper } => Arc::new(Simt::open(hopper)),
            #[cfg(not(feature = "simt"))]
            DriverKind::Simt { .. } => {
                return Err(Error::device("this program was built without the host SIMT machine").remedy(
                    "build it with `--features simt`, which needs a C++ compiler; or use --device cpu",
                ));
            }
            DriverKind::DryRun(like) => Arc::new(DryRun::open(like)),
        };
        let graphs = spec.graphs.then(|| Arc::new(GraphDriver::over(Arc::clone(&driver))));
        if let Some(graphs) = &graphs {
            driver = graphs.clone();
        }
        // Above the graphs, so that it sees every launch.
        if spec.faults != Faults::default() {
            driver = Arc::new(Faulty::over(driver, spec.faults));
        }
        let info = DeviceInfo { compute_dtype: spec.dtype, ..driver.info().clone() };
        Ok(Arc::new(Self {
            arena: Arena::new(Arc::clone(&driver)),
            recorder: Recorder::default(),
            driver,
            info,
            graphs,
            buckets: Mutex::default(),
            tickets: Mutex::default(),
        }))
    }

    /// What was replayed so far, where launches are gathered into graphs.
    pub fn replays(&self) -> Option<Replays> {
        self.graphs.as_ref().map(|graphs| graphs.counts())
    }

    fn new_tensor(&self, rows: usize, cols: usize, dtype: DType) -> Result<Tensor> {
        let buffer = self.arena.take(rows * cols * dtype.bytes())?;
        Ok(Tensor::new(Storage::Device(buffer), rows, cols, dtype))
    }

    /// An f32 matrix for the time of one operation.
    fn scratch(&self, rows: usize, cols: usize) -> Result<Tensor> {
        self.new_tensor(rows, cols, DType::F32)
    }

    /// `count` counters that are zero; whoever uses them leaves them so. Launches follow each other, so all share them.
    fn tickets(&self, count: usize) -> Result<u64> {
        let mut tickets = self.tickets.lock().unwrap_or_else(|p| p.into_inner());
        if tickets.last().is_none_or(|t| t.bytes < 4 * count) {
            let bytes = 4 * count.next_multiple_of(TICKETS);
            let full = || Error::new(Kind::Memory, "out of memory").at(&self.info.name);
            let address = self.driver.alloc(bytes)?.ok_or_else(full)?;
            self.driver.upload(address, &vec![0u8; bytes])?;
            let driver = self.driver.clone();
            let release = Arc::new(move |address, bytes| driver.free(address, bytes));
            tickets.push(DeviceBuffer { address, bytes, release });
        }
        Ok(tickets.last().map_or(0, |t| t.address))
    }

    fn upload_indices(&self, values: &[u32]) -> Result<Indices> {
        let device = if values.is_empty() { None } else { Some(self.arena.take(values.len() * 4)?) };
        if let Some(buffer) = &device {
            self.driver.upload(buffer.address, bytemuck::cast_slice(values))?;
        }
        Ok(Indices { host: values.to_vec(), device })
    }
}

impl Backend for Cuda {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }
    fn memory(&self) -> MemoryUse {
        self.arena.usage()
    }
    fn reset_peak_memory(&self) {
        self.arena.reset_peak();
    }
    fn trim(&self) {
        self.arena.trim();
    }
    fn synchronize(&self) -> Result<()> {
        self.recorder.wait();
        self.driver.synchronize()
    }
    fn record(&self) -> Result<()> {
        self.recorder.start();
        Ok(())
    }
    fn recorded(&self) -> Result<Vec<trace::Record>> {
        self.recorder.finish(self.driver.as_ref())
    }
    fn waits(&self) -> u64 {
        self.recorder.waits()
    }
    fn event(&self) -> Result<driver::Event> {
        self.driver.event()
    }
    fn come_after(&self, event: &driver::Event) -> Result<()> {
        self.driver.come_after(event)
    }
    fn profiler(&self, on: bool) -> Result<()> {
        self.driver.profiler(on)
    }

    fn alloc(&self, rows: usize, cols: usize, dtype: DType) -> Result<Tensor> {
        self.new_tensor(rows, cols, dtype)
    }
    fn indices(&self, values: &[u32]) -> Result<Indices> {
        self.upload_indices(values)
    }
    fn alloc_bytes(&self, len: usize) -> Result<Bytes> {
        Ok(Bytes::new(Storage::Device(self.arena.take(len)?), len))
    }
    fn upload_bytes(&self, values: &[u8], to: &mut Bytes) -> Result<()> {
        assert_eq!(values.len(), to.len(), "upload_bytes");
        match to.storage() {
            Storage::Device(buffer) if !values.is_empty() => self.driver.upload(buffer.address, values),
            _ => Ok(()),
        }
    }
    fn upload(&self, values: &[f32], to: MatMut) -> Result<()> {
        assert_eq!(values.len(), to.rows * to.cols, "upload");
        if values.is_empty() {
            return Ok(());
        }
        if to.dtype == DType::F32 && to.as_mat().is_contiguous() {
            return self.driver.upload(launch::view_mut(&to).data, bytemuck::cast_slice(values));
        }
        // A few rows at a time: what is staged in f32 is twice a matrix in bf16.
        let (rows, cols) = to.shape();
        let some = (STAGED / cols).clamp(1, rows);
        let mut staged = self.scratch(some, cols)?;
        let mut to = to;
        for first in (0..rows).step_by(some) {
            let end = (first + some).min(rows);
            let part = staged.mat_mut().row_range(0..end - first);
            let values = &values[first * cols..end * cols];
            self.driver.upload(launch::view_mut(&part).data, bytemuck::cast_slice(values))?;
            self.combine(1.0, part.as_mat(), 0.0, &to.reborrow().row_range(first..end))?;
        }
        Ok(())
    }
    fn upload_bf16(&self, values: &[bf16], to: MatMut) -> Result<()> {
        assert_eq!(values.len(), to.rows * to.cols, "upload");
        match to.dtype {
            _ if values.is_empty() => Ok(()),
            DType::BF16 if to.as_mat().is_contiguous() => {
                self.driver.upload(launch::view_mut(&to).data, bytemuck::cast_slice(values))
            }
            _ => self.upload(&values.to_f32_vec(), to),
        }
    }
    fn download_bf16(&self, from: Mat) -> Result<Vec<bf16>> {
        if from.dtype != DType::BF16 || !from.is_contiguous() || from.rows * from.cols == 0 {
            return Ok(self.download(from)?.into_iter().map(bf16::from_f32).collect());
        }
        self.recorder.wait();
        let mut values: Vec<bf16> = vec![0u16; from.rows * from.cols].reinterpret_into();
        self.driver.download(launch::view(from).data, bytemuck::cast_slice_mut(&mut values))?;
        Ok(values)
    }
    fn download(&self, from: Mat) -> Result<Vec<f32>> {
        let mut values = vec![0f32; from.rows * from.cols];
        if values.is_empty() {
            return Ok(values);
        }
        self.recorder.wait();
        if from.dtype == DType::F32 && from.is_contiguous() {
            self.driver.download(launch::view(from).data, bytemuck::cast_slice_mut(&mut values))?;
            return Ok(values);
        }
        let mut staged = self.scratch(from.rows, from.cols)?;
        self.combine(1.0, from, 0.0, &staged.mat_mut())?;
        self.driver.download(launch::view(staged.mat()).data, bytemuck::cast_slice_mut(&mut values))?;
        Ok(values)
    }

    fn execute(&self, op: Operation) -> Result<()> {
        match op {
            Operation::Copy(op) => self.combine(1.0, op.from, 0.0, &op.to),
            Operation::Fill(op) => self.fill(&op.x, op.value),
            Operation::Scale(op) => self.combine(op.alpha, op.x.as_mat(), 0.0, &op.x),
            Operation::Axpy(op) => self.combine(op.alpha, op.x, 1.0, &op.y),
            Operation::Softcap(op) => self.softcap(op.cap, &op.x),
            Operation::AddRounded(op) => self.add_rounded(op),
            Operation::Gather(op) => self.gather(op),
            Operation::ScatterAdd(op) => self.scatter_add(op),
            Operation::Matmul(op) => self.matmul(op),
            Operation::MatmulSplit(op) => self.matmul_split(op),
            Operation::MatmulMany(op) => self.matmul_many(op),
            Operation::Linear(op) => self.linear(op),
            Operation::LinearInputGrad(op) => self.linear_input_grad(op),
            Operation::WeightGrad(op) => self.weight_grad(op),
            Operation::ColumnSums(op) => self.column_sums(op),
            Operation::Rmsnorm(op) => self.rmsnorm(op),
            Operation::RmsnormBackward(op) => self.rmsnorm_backward(op),
            Operation::Rope(op) => self.rope(op),
            Operation::Attention(op) => self.attention(op),
            Operation::AttentionBackward(op) => self.attention_backward(op),
            Operation::Activate(op) => self.activate(op),
            Operation::ActivateBackward(op) => self.activate_backward(op),
            Operation::CrossEntropy(op) => self.cross_entropy(op),
            Operation::Dequantize(op) => self.dequantize(op),
            Operation::Divergence(op) => self.divergence(op),
            Operation::Dots(op) => self.dots(op),
            Operation::StepFactors(op) => self.step_factors(op),
            Operation::Adam(op) => self.adam(op),
            Operation::ProjectRows(op) => self.project_rows(op),
            Operation::ProjectColumns(op) => self.project_columns(op),
            Operation::Fold(op) => self.fold(op),
            Operation::Shrink(op) => self.shrink(op),
            Operation::OrthonormalizeRows(op) => self.orthonormalize_rows(op),
        }
    }
}
