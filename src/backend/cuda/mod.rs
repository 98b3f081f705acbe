//! The kernel backend: launches the kernels in `kernels/` on a GPU or on the host SIMT machine.
//!
//! Everything above `Driver` is the same for both: memory, launch geometry, arguments, the choice between
//! tensor-core and plain kernels. So `cargo test` runs, on any CPU, what a GPU will run.

mod adam;
mod attention;
mod driver;
mod faulty;
mod gpu;
mod graph;
mod images;
mod launch;
pub mod library;
mod linear;
mod loss;
mod matmul;
mod matmul_many;
mod memory;
mod method;
mod null;
mod orthonormalize;
mod outer;
pub mod probe;
mod recorder;
mod replay;
mod rows;
pub mod simt;
pub mod staging;

use super::*;
use crate::error::{Error, Kind, Result};
use attention::BucketTables;
use driver::Driver;
use memory::Arena;
use recorder::Recorder;
use std::sync::{Arc, Mutex};

pub use faulty::Faults;
pub use gpu::{driver_present, explain};
pub use images::{architectures, choose};
pub use matmul::{MatmulKernel, MatmulShape};
pub use null::DeviceKind;
pub use replay::{Replayed, Replays};

/// The kernel backend on one device.
pub struct Cuda {
    driver: Arc<dyn Driver>,
    arena: Arena,
    recorder: Recorder,
    dtype: DType,
    buckets: Mutex<BucketTables>,
    tickets: Mutex<Option<DeviceBuffer>>,
}

/// Counters by which blocks of one launch follow each other.
const TICKETS: usize = 4096;

impl Cuda {
    /// GPU number `ordinal`, computing in bf16.
    ///
    /// # Errors
    /// No driver, no such GPU, a driver too old for the kernels, no kernels for its architecture.
    pub fn open_device(ordinal: usize) -> Result<Arc<dyn Backend>> {
        Self::open_device_in(ordinal, DType::BF16)
    }

    /// The same computing in `dtype`: f32 has no tensor-core kernels, and is for tests.
    ///
    /// # Errors
    /// As [`Cuda::open_device`].
    pub fn open_device_in(ordinal: usize, dtype: DType) -> Result<Arc<dyn Backend>> {
        let driver = Replayed::if_wanted(Arc::new(gpu::Gpu::open(ordinal)?))?;
        Ok(Arc::new(Self::over(driver, dtype)))
    }

    /// The host SIMT machine, computing in `dtype`.
    ///
    /// # Errors
    /// `GEMS_GRAPHS` says neither on nor off.
    pub fn open_simt(dtype: DType) -> Result<Arc<dyn Backend>> {
        let driver = Replayed::if_wanted(Arc::new(simt::Simt::open()))?;
        Ok(Arc::new(Self::over(driver, dtype)))
    }

    /// The host SIMT machine, its launches gathered into chains as CUDA graphs are on a GPU.
    pub fn open_simt_replayed(dtype: DType) -> (Arc<dyn Backend>, Arc<Replayed>) {
        Self::replayed(Arc::new(simt::Simt::open()), dtype)
    }

    /// A device that computes nothing, with chains: for how much of a step is as it was in the last one.
    pub fn open_null_replayed(dtype: DType) -> (Arc<dyn Backend>, Arc<Replayed>) {
        Self::replayed(Arc::new(null::Null::open(DeviceKind::of_image("sm_90a", 132))), dtype)
    }

    fn replayed(driver: Arc<dyn Driver>, dtype: DType) -> (Arc<dyn Backend>, Arc<Replayed>) {
        let replayed = Arc::new(Replayed::over(driver));
        (Arc::new(Self::over(replayed.clone(), dtype)), replayed)
    }

    /// The host SIMT machine with the kernels for sm_90a, in bf16.
    pub fn open_simt_hopper() -> Arc<dyn Backend> {
        Arc::new(Self::over(Arc::new(simt::Simt::open_hopper()), DType::BF16))
    }

    /// A device that computes nothing, spread out as an H100: for the launches of a step and what they cost the host.
    pub fn open_null(dtype: DType) -> Arc<dyn Backend> {
        Self::open_null_as(DeviceKind::of_image("sm_90a", 132), dtype)
    }

    /// The same, with chains if `GEMS_GRAPHS=on` asks for them.
    ///
    /// # Errors
    /// It says something else.
    pub fn open_null_as_asked(dtype: DType) -> Result<Arc<dyn Backend>> {
        let null = Arc::new(null::Null::open(DeviceKind::of_image("sm_90a", 132)));
        Ok(Arc::new(Self::over(Replayed::if_wanted(null)?, dtype)))
    }

    /// A device that computes nothing and launches what one of this kind would.
    pub fn open_null_as(kind: DeviceKind, dtype: DType) -> Arc<dyn Backend> {
        Arc::new(Self::over(Arc::new(null::Null::open(kind)), dtype))
    }

    /// The host SIMT machine with faults, for tests of how they are reported.
    pub fn open_faulty(dtype: DType, faults: Faults) -> Arc<dyn Backend> {
        let machine = Arc::new(simt::Simt::open());
        Arc::new(Self::over(Arc::new(faulty::Faulty::over(machine, faults)), dtype))
    }

    fn over(driver: Arc<dyn Driver>, dtype: DType) -> Self {
        let (arena, recorder) = (Arena::new(driver.clone()), Recorder::default());
        Self { arena, recorder, driver, dtype, buckets: Mutex::default(), tickets: Mutex::default() }
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
        if tickets.as_ref().is_none_or(|t| t.bytes < 4 * count) {
            let bytes = 4 * count.next_multiple_of(TICKETS);
            let full = || Error::new(Kind::Memory, "out of memory").at(self.driver.name());
            let address = self.driver.alloc(bytes)?.ok_or_else(full)?;
            self.driver.upload(address, &vec![0u8; bytes])?;
            let driver = self.driver.clone();
            let release = Arc::new(move |address, bytes| driver.free(address, bytes));
            *tickets = Some(DeviceBuffer { address, bytes, release });
        }
        Ok(tickets.as_ref().map_or(0, |t| t.address))
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
    fn name(&self) -> String {
        self.driver.name()
    }
    fn compute_dtype(&self) -> DType {
        self.dtype
    }
    fn memory(&self) -> MemoryUse {
        self.arena.usage()
    }
    fn reset_peak_memory(&self) {
        self.arena.reset_peak();
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
    fn peaks(&self) -> Option<trace::Peaks> {
        self.driver.peaks()
    }
    fn kind(&self) -> Option<DeviceKind> {
        Some(DeviceKind::of(self.driver.as_ref()))
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
    fn upload(&self, values: &[f32], to: MatMut) -> Result<()> {
        assert_eq!(values.len(), to.rows * to.cols, "upload");
        if values.is_empty() {
            return Ok(());
        }
        if to.dtype == DType::F32 && to.as_mat().is_contiguous() {
            return self.driver.upload(launch::view_mut(&to).data, bytemuck::cast_slice(values));
        }
        let staged = self.scratch(to.rows, to.cols)?;
        self.driver.upload(launch::view(staged.mat()).data, bytemuck::cast_slice(values))?;
        self.combine(1.0, staged.mat(), 0.0, &to)
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
    fn copy(&self, from: Mat, to: MatMut) -> Result<()> {
        self.combine(1.0, from, 0.0, &to)
    }
    fn fill(&self, x: MatMut, value: f32) -> Result<()> {
        Cuda::fill(self, &x, value)
    }

    fn matmul(&self, c: MatMut, beta: f32, alpha: f32, a: Mat, op_a: Op, b: Mat, op_b: Op) -> Result<()> {
        assert!(beta == 0.0 || beta == 1.0, "matmul: beta {beta}");
        Cuda::matmul(self, c, beta, alpha, (a, op_a), (b, op_b))
    }
    fn matmul_many(&self, beta: f32, alpha: f32, op_b: Op, all: &mut [(MatMut, Mat, Mat)]) -> Result<()> {
        assert!(beta == 0.0 || beta == 1.0, "matmul_many: beta {beta}");
        Cuda::matmul_many(self, beta, alpha, op_b, all)
    }
    fn linear(&self, layer: &AdaptedLinear, x: Mat, h: Option<MatMut>, y: MatMut) -> Result<()> {
        Cuda::linear(self, layer, x, h, y)
    }
    fn linear_input_gradient(
        &self,
        layer: &AdaptedLinear,
        dy: Mat,
        z: Option<MatMut>,
        dx: MatMut,
        accumulate: bool,
    ) -> Result<()> {
        Cuda::linear_input_gradient(self, layer, dy, z, dx, accumulate)
    }
    fn outer(&self, y: Mat, x: Mat, parts: &[OuterPart], out: MatMut) -> Result<()> {
        Cuda::outer(self, y, x, parts, out)
    }

    fn task_gradient(
        &self,
        y: Mat,
        x: Mat,
        parts: &[OuterPart],
        out: MatMut,
        fresh: bool,
        pairs: &[ColumnPair],
        products: MatMut,
    ) -> Result<()> {
        Cuda::task_gradient(self, (y, x), parts, out, fresh, pairs, products)
    }

    fn embed(&self, table: Mat, ids: &Indices, scale: f32, y: MatMut) -> Result<()> {
        self.gather(table, ids, scale, y)
    }
    fn gather_rows(&self, from: Mat, rows: &Indices, to: MatMut) -> Result<()> {
        self.gather(from, rows, 1.0, to)
    }
    fn scatter_add_rows(
        &self,
        from: Mat,
        groups: &RowGroups,
        scale: f32,
        first_row: usize,
        to: MatMut,
    ) -> Result<()> {
        self.scatter_add(from, groups, scale, first_row, to)
    }
    fn rmsnorm(
        &self,
        x: Mat,
        residual: Option<(Mat, MatMut)>,
        w: Mat,
        eps: f32,
        y: MatMut,
        inv_rms: MatMut,
    ) -> Result<()> {
        Cuda::rmsnorm(self, x, residual, w, eps, y, inv_rms)
    }
    fn rmsnorm_backward(
        &self,
        s: Mat,
        w: Mat,
        inv_rms: Mat,
        dy: Mat,
        dx: MatMut,
        accumulate: bool,
        dw: Option<(&[Range<usize>], MatMut)>,
    ) -> Result<()> {
        Cuda::rmsnorm_backward(self, s, w, inv_rms, dy, dx, accumulate, dw)
    }
    fn rope(&self, x: MatMut, positions: &Indices, inv_freq: Mat, heads: usize, inverse: bool) -> Result<()> {
        Cuda::rope(self, x, positions, inv_freq, heads, inverse)
    }
    fn attention(&self, spec: &Attention, q: Mat, k: Mat, v: Mat, out: MatMut, lse: MatMut) -> Result<()> {
        Cuda::attention(self, spec, (q, k, v), out, lse)
    }
    fn attention_backward(
        &self,
        spec: &Attention,
        q: Mat,
        k: Mat,
        v: Mat,
        out: Mat,
        lse: Mat,
        dout: Mat,
        dq: MatMut,
        dk: MatMut,
        dv: MatMut,
        dbias: Option<(&[Range<usize>], MatMut)>,
    ) -> Result<()> {
        Cuda::attention_backward(self, spec, (q, k, v), (out, lse, dout), (dq, dk, dv), dbias)
    }
    fn activation(&self, kind: Activation, gate: Mat, up: Option<Mat>, y: MatMut) -> Result<()> {
        Cuda::activation(self, kind, gate, up, y)
    }
    fn activation_backward(
        &self,
        kind: Activation,
        gate: Mat,
        up: Option<Mat>,
        dy: Mat,
        dgate: MatMut,
        dup: Option<MatMut>,
    ) -> Result<()> {
        Cuda::activation_backward(self, kind, gate, up, dy, dgate, dup)
    }
    fn cross_entropy(
        &self,
        x: Mat,
        head: Mat,
        logit_scale: f32,
        targets: &Indices,
        weights: Mat,
        nll: MatMut,
        dx: Option<MatMut>,
        head_gradient: Option<HeadGradient>,
    ) -> Result<()> {
        let call = loss::CrossEntropy { x, head, logit_scale, targets, weights };
        Cuda::cross_entropy(self, call, nll, dx, head_gradient)
    }
    fn axpy(&self, alpha: f32, x: Mat, y: MatMut) -> Result<()> {
        self.combine(alpha, x, 1.0, &y)
    }
    fn scale(&self, x: MatMut, alpha: f32) -> Result<()> {
        self.combine(alpha, x.as_mat(), 0.0, &x)
    }
    fn column_sums(&self, dy: Mat, segments: &[Range<usize>], out: MatMut) -> Result<()> {
        self.sum_columns(dy, None, segments, out)
    }

    fn dots(&self, pairs: &[(Mat, Mat)], out: MatMut) -> Result<()> {
        Cuda::dots(self, pairs, out)
    }
    fn adam(&self, updates: Vec<AdamUpdate>, factors: Option<Mat>, squares: Option<MatMut>) -> Result<()> {
        Cuda::adam(self, &updates, factors, squares)
    }
    fn decide(&self, decision: &Decision, products: Mat, losses: Mat, factors: MatMut) -> Result<bool> {
        Cuda::decide(self, decision, products, losses, factors)
    }
    fn project_rows(&self, x: MatMut, k: Mat) -> Result<()> {
        Cuda::project_rows(self, x, k)
    }
    fn project_columns(&self, x: MatMut, k: Mat) -> Result<()> {
        Cuda::project_columns(self, x, k)
    }
    fn fold(&self, w: MatMut, keep: f32, scale: f32, b: Mat, a: Mat, rounding: Rounding) -> Result<()> {
        Cuda::fold(self, w, keep, scale, (b, a), rounding)
    }
    fn orthonormalize_rows(&self, matrices: &mut [MatMut]) -> Result<()> {
        Cuda::orthonormalize_rows(self, matrices)
    }
}
