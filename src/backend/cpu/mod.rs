//! The native CPU backend: f32, threads, SIMD through the GEMM library and auto-vectorised loops.
//!
//! This is the specification of every operation: written to be read, and as fast as that allows.

mod attention;
mod loss;
mod method;
mod products;
mod rows;
mod simd;

use super::*;
use crate::error::{Error, Kind, Result};
use rayon::prelude::*;
use std::sync::Arc;

pub(in crate::backend) use loss::LOGITS;

pub use attention::bucket as relative_position_bucket;

/// The CPU backend.
pub struct Cpu {
    threads: usize,
    pool: HostPool,
}

impl Cpu {
    /// A backend on `threads` threads (all by default). The thread pool is the process's: the first
    /// backend decides.
    pub fn open(threads: Option<usize>) -> Result<Arc<dyn Backend>> {
        if threads == Some(0) {
            return Err(Error::usage("0 threads").at("--threads").remedy("give at least 1"));
        }
        if let Some(threads) = threads {
            // A second call fails harmlessly: the pool exists already.
            let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
        }
        Ok(Arc::new(Self { threads: rayon::current_num_threads(), pool: HostPool::default() }))
    }
}

/// From so many elements on (64 MB) the system is asked first whether it has them.
const LARGE: usize = 16 << 20;

/// The elements of a view, from its first to its last row.
fn host(m: Mat<'_>) -> &[f32] {
    match m.storage {
        Storage::Host(buffer) => &buffer.as_slice()[m.offset..m.offset + m.extent()],
        Storage::Device(_) => unreachable!("a device tensor reached the CPU backend"),
    }
}

/// The elements of a view, to write.
fn host_mut<'a>(m: &'a mut MatMut<'_>) -> &'a mut [f32] {
    let range = m.offset..m.offset + m.extent();
    match m.storage {
        Storage::Host(buffer) => &mut buffer.as_mut_slice()[range],
        Storage::Device(_) => unreachable!("a device tensor reached the CPU backend"),
    }
}

fn fill(m: &mut MatMut, value: f32) {
    rows::each_row(m, |_, row| row.fill(value));
}

fn copy(from: Mat, mut to: MatMut) {
    assert_eq!(from.shape(), to.shape(), "copy");
    let data = host(from);
    rows::each_row(&mut to, |i, out| out.copy_from_slice(rows::row(data, &from, i)));
}

impl Backend for Cpu {
    fn name(&self) -> String {
        format!("cpu ({} thread{})", self.threads, if self.threads == 1 { "" } else { "s" })
    }
    fn compute_dtype(&self) -> DType {
        DType::F32
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

    fn alloc(&self, rows: usize, cols: usize, dtype: DType) -> Result<Tensor> {
        assert_eq!(dtype, DType::F32, "the CPU backend computes in f32");
        if rows * cols >= LARGE && !self.pool.has_room(rows * cols) {
            let what = format!("the machine has no {} MiB of memory left", (rows * cols * 4) >> 20);
            return Err(Error::new(Kind::Memory, what).remedy("take a smaller model, or smaller batches"));
        }
        let mut tensor = Tensor::new(Storage::Host(self.pool.take(rows * cols)), rows, cols, dtype);
        if cfg!(debug_assertions) {
            // Reading what nobody wrote shows.
            fill(&mut tensor.mat_mut(), f32::NAN);
        }
        Ok(tensor)
    }
    fn indices(&self, values: &[u32]) -> Result<Indices> {
        Ok(Indices { host: values.to_vec(), device: None })
    }
    fn upload(&self, values: &[f32], mut to: MatMut) -> Result<()> {
        let cols = to.cols;
        assert_eq!(values.len(), to.rows * cols, "upload");
        rows::each_row(&mut to, |i, out| out.copy_from_slice(&values[i * cols..(i + 1) * cols]));
        Ok(())
    }
    fn download(&self, from: Mat) -> Result<Vec<f32>> {
        let data = host(from);
        Ok((0..from.rows).flat_map(|i| rows::row(data, &from, i).iter().copied()).collect())
    }
    fn copy(&self, from: Mat, to: MatMut) -> Result<()> {
        copy(from, to);
        Ok(())
    }
    fn fill(&self, mut x: MatMut, value: f32) -> Result<()> {
        fill(&mut x, value);
        Ok(())
    }

    fn matmul(&self, c: MatMut, beta: f32, alpha: f32, a: Mat, op_a: Op, b: Mat, op_b: Op) -> Result<()> {
        products::matmul(self.threads, c, beta, alpha, a, op_a, b, op_b);
        Ok(())
    }
    fn linear(&self, layer: &AdaptedLinear, x: Mat, h: Option<MatMut>, mut y: MatMut) -> Result<()> {
        products::matmul(self.threads, y.reborrow(), 0.0, 1.0, x, Op::N, layer.weight.mat(), Op::T);
        if let Some(bias) = &layer.bias {
            let values = host(bias.mat());
            rows::each_row(&mut y, |_, out| simd::axpy(1.0, values, out));
        }
        match (&layer.branch, h) {
            (Some(branch), Some(mut h)) => {
                products::matmul(self.threads, h.reborrow(), 0.0, 1.0, x, Op::N, branch.a.mat(), Op::T);
                products::matmul(self.threads, y, 1.0, 1.0, h.as_mat(), Op::N, branch.b.mat(), Op::T);
            }
            (None, None) => {}
            _ => panic!("linear: h goes with a branch"),
        }
        Ok(())
    }
    fn linear_input_gradient(
        &self,
        layer: &AdaptedLinear,
        dy: Mat,
        z: Option<MatMut>,
        mut dx: MatMut,
        accumulate: bool,
    ) -> Result<()> {
        let beta = if accumulate { 1.0 } else { 0.0 };
        products::matmul(self.threads, dx.reborrow(), beta, 1.0, dy, Op::N, layer.weight.mat(), Op::N);
        match (&layer.branch, z) {
            (Some(branch), Some(mut z)) => {
                products::matmul(self.threads, z.reborrow(), 0.0, 1.0, dy, Op::N, branch.b.mat(), Op::N);
                products::matmul(self.threads, dx, 1.0, 1.0, z.as_mat(), Op::N, branch.a.mat(), Op::N);
            }
            (None, None) => {}
            _ => panic!("linear_input_gradient: z goes with a branch"),
        }
        Ok(())
    }
    fn outer(&self, y: Mat, x: Mat, parts: &[OuterPart], out: MatMut) -> Result<()> {
        products::outer(self.threads, y, x, parts, out);
        Ok(())
    }

    fn embed(&self, table: Mat, ids: &Indices, scale: f32, y: MatMut) -> Result<()> {
        rows::gather(table, &ids.host, scale, y);
        Ok(())
    }
    fn gather_rows(&self, from: Mat, rows: &Indices, to: MatMut) -> Result<()> {
        self::rows::gather(from, &rows.host, 1.0, to);
        Ok(())
    }
    fn scatter_add_rows(
        &self,
        from: Mat,
        groups: &RowGroups,
        scale: f32,
        first_row: usize,
        to: MatMut,
    ) -> Result<()> {
        rows::scatter_add(from, groups, scale, first_row, to);
        Ok(())
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
        rows::rmsnorm(x, residual, w, eps, y, inv_rms);
        Ok(())
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
        rows::rmsnorm_backward(s, w, inv_rms, dy, dx, accumulate, dw);
        Ok(())
    }
    fn rope(&self, x: MatMut, positions: &Indices, inv_freq: Mat, heads: usize, inverse: bool) -> Result<()> {
        rows::rope(x, positions, inv_freq, heads, inverse);
        Ok(())
    }
    fn attention(&self, spec: &Attention, q: Mat, k: Mat, v: Mat, out: MatMut, lse: MatMut) -> Result<()> {
        attention::forward(spec, q, k, v, out, lse);
        Ok(())
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
        attention::backward(spec, (q, k, v), (out, lse), dout, (dq, dk, dv), dbias);
        Ok(())
    }
    fn activation(&self, kind: Activation, gate: Mat, up: Option<Mat>, y: MatMut) -> Result<()> {
        rows::activation(kind, gate, up, y);
        Ok(())
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
        rows::activation_backward(kind, gate, up, dy, dgate, dup);
        Ok(())
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
        let pool = &self.pool;
        loss::cross_entropy(
            self.threads,
            pool,
            x,
            head,
            logit_scale,
            targets,
            weights,
            nll,
            dx,
            head_gradient,
        );
        Ok(())
    }
    fn axpy(&self, alpha: f32, x: Mat, y: MatMut) -> Result<()> {
        method::axpy(alpha, x, y);
        Ok(())
    }
    fn scale(&self, x: MatMut, alpha: f32) -> Result<()> {
        method::scale(x, alpha);
        Ok(())
    }
    fn column_sums(&self, dy: Mat, segments: &[Range<usize>], out: MatMut) -> Result<()> {
        rows::column_sums(dy, segments, out);
        Ok(())
    }

    fn dots(&self, pairs: &[(Mat, Mat)], out: MatMut) -> Result<()> {
        method::dots(pairs, out);
        Ok(())
    }
    fn adam(&self, updates: Vec<AdamUpdate>, factors: Option<Mat>, squares: Option<MatMut>) -> Result<()> {
        method::adam(updates, factors, squares);
        Ok(())
    }
    fn project_rows(&self, x: MatMut, k: Mat) -> Result<()> {
        method::project_rows(self.threads, &self.pool, x, k);
        Ok(())
    }
    fn project_columns(&self, x: MatMut, k: Mat) -> Result<()> {
        method::project_columns(self.threads, &self.pool, x, k);
        Ok(())
    }
    fn fold(&self, mut w: MatMut, keep: f32, scale: f32, b: Mat, a: Mat, _rounding: Rounding) -> Result<()> {
        if keep != 1.0 {
            method::scale(w.reborrow(), keep);
        }
        products::matmul(self.threads, w, 1.0, scale, b, Op::N, a, Op::N);
        Ok(())
    }
    fn orthonormalize_rows(&self, matrices: &mut [MatMut]) -> Result<()> {
        matrices.par_iter_mut().for_each(method::orthonormalize_rows);
        Ok(())
    }
}
