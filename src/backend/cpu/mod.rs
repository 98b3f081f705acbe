//! The native CPU backend: f32 (weights may be bf16 in memory, products of layers in bf16), threads, SIMD through the GEMM library and auto-vectorised loops.
//!
//! This is the specification of every operation: written to be read, and as fast as that allows.

mod activation;
mod adam;
mod attention;
mod column_sums;
mod cross_entropy;
mod dequantize;
mod divergence;
mod dots;
mod elementwise;
mod fold;
mod gather;
mod gemm;
mod linear;
mod matmul;
mod narrow;
mod orthonormalize;
mod project;
mod rmsnorm;
mod rope;
mod rows;
mod shrink;
mod simd;
mod step_factors;
pub mod tiles;
mod weight_grad;

use super::*;
use crate::error::{Error, Kind, Result};
use half::bf16;
use std::sync::Arc;

/// What the products of layers round their operands to. Sums, and everything else, are f32.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Products {
    /// They do not.
    #[default]
    F32,
    /// To bf16: layers and their gradients, the head, attention, as on a GPU. Where the processor has no tiles
    /// ([`tiles::available`]) this is much slower than f32.
    Bf16,
}

/// The CPU backend.
pub struct Cpu {
    info: DeviceInfo,
    threads: usize,
    products: Products,
    pool: HostPool,
    sines: rope::Sines,
    stopwatch: Stopwatch,
}

impl Cpu {
    /// A backend on `threads` threads (all by default). The thread pool is the process's: the first
    /// backend decides.
    pub fn open(threads: Option<usize>) -> Result<Arc<dyn Backend>> {
        Self::open_with(threads, Products::F32)
    }

    /// The same, with products of layers as given.
    pub fn open_with(threads: Option<usize>, products: Products) -> Result<Arc<dyn Backend>> {
        if threads == Some(0) {
            return Err(Error::usage("0 threads").at("--threads").remedy("give at least 1"));
        }
        if let Some(threads) = threads {
            // A second call fails harmlessly: the pool exists already.
            let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
        }
        let (threads, pool) = (rayon::current_num_threads(), HostPool::default());
        let (sines, stopwatch) = (rope::Sines::default(), Stopwatch::default());
        Ok(Arc::new(Self { info: info(threads, products), threads, products, pool, sines, stopwatch }))
    }
}

impl Cpu {
    /// Fails where the machine has no memory for so many numbers more.
    fn has_room(&self, numbers: usize) -> Result<()> {
        if numbers < LARGE || self.pool.has_room(numbers) {
            return Ok(());
        }
        let what = format!("the machine has no {} MiB of memory left", (numbers * 4) >> 20);
        Err(Error::new(Kind::Memory, what).remedy("take a smaller model, or smaller batches"))
    }
}

fn info(threads: usize, products: Products) -> DeviceInfo {
    let more = match products {
        Products::F32 => "",
        Products::Bf16 => ", products in bf16",
    };
    DeviceInfo {
        name: format!("cpu ({threads} thread{}{more})", if threads == 1 { "" } else { "s" }),
        compute_dtype: DType::F32,
        max_logits: cross_entropy::LOGITS,
        max_widened: threads * narrow::PIECE,
        peaks: None,
        computes: true,
        sms: 0,
        max_shared: 0,
        hopper: false,
        blas: false,
        caches: true,
    }
}

/// From so many elements on (64 MB) the system is asked first whether it has them.
const LARGE: usize = 16 << 20;

/// The elements of an f32 view, from its first to its last row.
fn host(m: Mat<'_>) -> &[f32] {
    assert_eq!(m.dtype, DType::F32, "{F32}");
    &elements(m.storage)[m.offset..m.offset + m.extent()]
}

/// The elements of a bf16 view.
fn host_bf16(m: Mat<'_>) -> &[bf16] {
    assert_eq!(m.dtype, DType::BF16, "{BF16}");
    &bytemuck::cast_slice(elements(m.storage))[m.offset..m.offset + m.extent()]
}

/// The CPU computes in f32; weights alone may be bf16.
const F32: &str = "an operation of the CPU backend on what is not f32";
const BF16: &str = "an operation of the CPU backend on what is not bf16";

fn elements(storage: &Storage) -> &[f32] {
    match storage {
        Storage::Host(buffer) => buffer.as_slice(),
        Storage::Device(_) => unreachable!("a device tensor reached the CPU backend"),
    }
}

fn elements_mut(storage: &mut Storage) -> &mut [f32] {
    match storage {
        Storage::Host(buffer) => buffer.as_mut_slice(),
        Storage::Device(_) => unreachable!("a device tensor reached the CPU backend"),
    }
}

/// Bytes of a quantised weight.
fn host_bytes(bytes: &Bytes) -> &[u8] {
    &bytemuck::cast_slice(elements(bytes.storage()))[..bytes.len()]
}

/// The elements of an f32 view, to write.
fn host_mut<'a>(m: &'a mut MatMut<'_>) -> &'a mut [f32] {
    assert_eq!(m.dtype, DType::F32, "{F32}");
    let range = m.offset..m.offset + m.extent();
    &mut elements_mut(m.storage)[range]
}

/// The elements of a bf16 view, to write.
fn host_bf16_mut<'a>(m: &'a mut MatMut<'_>) -> &'a mut [bf16] {
    assert_eq!(m.dtype, DType::BF16, "{BF16}");
    let range = m.offset..m.offset + m.extent();
    &mut bytemuck::cast_slice_mut(elements_mut(m.storage))[range]
}

impl Backend for Cpu {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }
    fn memory(&self) -> MemoryUse {
        self.pool.usage()
    }
    fn reset_peak_memory(&self) {
        self.pool.reset_peak();
    }
    fn synchronize(&self) -> Result<()> {
        Ok(())
    }
    fn record(&self) -> Result<()> {
        self.stopwatch.start();
        Ok(())
    }
    fn recorded(&self) -> Result<Vec<trace::Record>> {
        Ok(self.stopwatch.stop())
    }
    fn stopwatch(&self) -> Option<&Stopwatch> {
        Some(&self.stopwatch)
    }

    fn alloc(&self, rows: usize, cols: usize, dtype: DType) -> Result<Tensor> {
        let numbers = (rows * cols * dtype.bytes()).div_ceil(4);
        self.has_room(numbers)?;
        let mut tensor = Tensor::new(Storage::Host(self.pool.take(numbers)), rows, cols, dtype);
        if cfg!(debug_assertions) {
            // Reading what nobody wrote shows.
            elementwise::fill(Fill { x: tensor.mat_mut(), value: f32::NAN });
        }
        Ok(tensor)
    }
    fn indices(&self, values: &[u32]) -> Result<Indices> {
        Ok(Indices { host: values.to_vec(), device: None })
    }
    fn alloc_bytes(&self, len: usize) -> Result<Bytes> {
        let numbers = len.div_ceil(4);
        self.has_room(numbers)?;
        Ok(Bytes::new(Storage::Host(self.pool.take(numbers)), len))
    }
    fn upload_bytes(&self, values: &[u8], to: &mut Bytes) -> Result<()> {
        bytemuck::cast_slice_mut(elements_mut(to.storage_mut()))[..values.len()].copy_from_slice(values);
        Ok(())
    }
    fn upload(&self, values: &[f32], mut to: MatMut) -> Result<()> {
        let cols = to.cols;
        assert_eq!(values.len(), to.rows * cols, "upload");
        let row = |i: usize| &values[i * cols..(i + 1) * cols];
        match to.dtype {
            DType::F32 => rows::each_row!(&mut to, |i, out| out.copy_from_slice(row(i))),
            DType::BF16 => rows::each_row_bf16!(&mut to, |i, out| {
                out.iter_mut().zip(row(i)).for_each(|(to, value)| *to = bf16::from_f32(*value));
            }),
        }
        Ok(())
    }
    fn download(&self, from: Mat) -> Result<Vec<f32>> {
        let rows = 0..if from.cols == 0 { 0 } else { from.rows };
        Ok(match from.dtype {
            DType::F32 => {
                let data = host(from);
                rows.flat_map(|i| rows::row(data, &from, i).iter().copied()).collect()
            }
            DType::BF16 => {
                let data = host_bf16(from);
                rows.flat_map(|i| rows::row(data, &from, i).iter().map(|v| v.to_f32())).collect()
            }
        })
    }

    fn execute(&self, op: Operation) -> Result<()> {
        let (threads, products, pool) = (self.threads, self.products, &self.pool);
        match op {
            Operation::Copy(op) => elementwise::copy(op),
            Operation::Fill(op) => elementwise::fill(op),
            Operation::Scale(op) => elementwise::scale(op),
            Operation::Axpy(op) => elementwise::axpy(op),
            Operation::Softcap(op) => elementwise::softcap(op),
            Operation::AddRounded(op) => fold::add_rounded(op),
            Operation::Gather(op) => gather::gather(op),
            Operation::ScatterAdd(op) => gather::scatter_add(op),
            Operation::Matmul(op) => matmul::matmul(threads, pool, op),
            Operation::MatmulSplit(op) => matmul::matmul(threads, pool, op.0),
            Operation::MatmulMany(op) => matmul::matmul_many(threads, pool, op),
            Operation::Linear(op) => linear::linear(threads, products, pool, op),
            Operation::LinearInputGrad(op) => linear::linear_input_grad(threads, products, pool, op),
            Operation::WeightGrad(op) => weight_grad::weight_grad(threads, products, pool, op),
            Operation::ColumnSums(op) => column_sums::column_sums(op),
            Operation::Rmsnorm(op) => rmsnorm::rmsnorm(op),
            Operation::RmsnormBackward(op) => rmsnorm::rmsnorm_backward(op),
            Operation::Rope(op) => rope::rope(&self.sines, op),
            Operation::Attention(op) => attention::attention(products, op),
            Operation::AttentionBackward(op) => attention::attention_backward(products, op),
            Operation::Activate(op) => activation::activate(op),
            Operation::ActivateBackward(op) => activation::activate_backward(op),
            Operation::CrossEntropy(op) => cross_entropy::cross_entropy(threads, products, pool, op),
            Operation::Dequantize(op) => dequantize::dequantize(op),
            Operation::Divergence(op) => divergence::divergence(op),
            Operation::Dots(op) => dots::dots(op),
            Operation::StepFactors(op) => step_factors::step_factors(op),
            Operation::Adam(op) => adam::adam(op),
            Operation::ProjectRows(op) => project::project_rows(threads, pool, op),
            Operation::ProjectColumns(op) => project::project_columns(threads, pool, op),
            Operation::Fold(op) => fold::fold(threads, pool, op),
            Operation::Shrink(op) => shrink::shrink(op),
            Operation::OrthonormalizeRows(op) => orthonormalize::orthonormalize_rows(op),
        }
        Ok(())
    }
}
