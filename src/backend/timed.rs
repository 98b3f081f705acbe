//! Any backend, with a clock: every operation waits for its end and is recorded with its floor.
//!
//! This is how the CPU backend is profiled. A kernel backend records its launches itself, without waiting.

use super::trace::{Peaks, Record, Work, bytes, bytes_or_none, place};
use super::*;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

#[derive(Default)]
struct State {
    began: Option<Instant>,
    records: Vec<Record>,
}

/// See the module.
pub struct Timed {
    inner: Arc<dyn Backend>,
    state: Mutex<State>,
}

impl Timed {
    /// `inner`, with a clock.
    pub fn over(inner: Arc<dyn Backend>) -> Self {
        Self { inner, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn time<T>(&self, name: &str, work: Work, f: impl FnOnce() -> Result<T>) -> Result<T> {
        let Some(began) = self.state().began else { return f() };
        let from = Instant::now();
        let done = f()?;
        self.inner.synchronize()?;
        let seconds = from.elapsed().as_secs_f64();
        let start = (from - began).as_secs_f64();
        let (name, place) = (name.to_string(), place());
        let seconds_of_device = Some(seconds);
        self.state().records.push(Record {
            name,
            place,
            start,
            at: Some(start),
            host: seconds,
            seconds: seconds_of_device,
            work: Some(work),
            blocks: 0,
        });
        Ok(done)
    }
}

/// The floor of a segmented product.
fn outer_work(y: Mat, x: Mat, parts: &[OuterPart]) -> Work {
    let one = |p: &OuterPart| {
        let shape = (y.cols, p.columns.len(), p.rows.len());
        Work::product(shape, y.dtype, x.dtype, DType::F32, true)
    };
    parts.iter().map(one).fold(Work::default(), |a, b| a + b)
}

/// The floor of a linear layer, either way: its products and its low-rank branch's.
fn linear_work(layer: &AdaptedLinear, from: Mat, to: Mat, adds: bool) -> Work {
    let (m, n, t) = (layer.weight.rows(), layer.weight.cols(), from.rows);
    let e = layer.weight.dtype();
    let base = Work::product((t, to.cols, from.cols), from.dtype, e, to.dtype, adds);
    let branch = layer.branch.as_ref().map_or(Work::default(), |b| {
        let r = b.a.rows();
        Work::new((r * (m + n + t) * e.bytes()) as u64, (2 * t * r * (m + n)) as u64)
    });
    base + branch
}

impl Backend for Timed {
    fn name(&self) -> String {
        self.inner.name()
    }
    fn compute_dtype(&self) -> DType {
        self.inner.compute_dtype()
    }
    fn memory(&self) -> MemoryUse {
        self.inner.memory()
    }
    fn reset_peak_memory(&self) {
        self.inner.reset_peak_memory();
    }
    fn synchronize(&self) -> Result<()> {
        self.inner.synchronize()
    }
    fn record(&self) -> Result<()> {
        *self.state() = State { began: Some(Instant::now()), records: Vec::new() };
        Ok(())
    }
    fn recorded(&self) -> Result<Vec<Record>> {
        Ok(std::mem::take(&mut *self.state()).records)
    }
    fn waits(&self) -> u64 {
        self.inner.waits()
    }
    fn peaks(&self) -> Option<Peaks> {
        self.inner.peaks()
    }
    fn kind(&self) -> Option<cuda::DeviceKind> {
        self.inner.kind()
    }

    fn alloc(&self, rows: usize, cols: usize, dtype: DType) -> Result<Tensor> {
        self.inner.alloc(rows, cols, dtype)
    }
    fn indices(&self, values: &[u32]) -> Result<Indices> {
        self.inner.indices(values)
    }
    fn upload(&self, values: &[f32], to: MatMut) -> Result<()> {
        self.time("upload", Work::new(bytes(to.as_mat()), 0), || self.inner.upload(values, to))
    }
    fn download(&self, from: Mat) -> Result<Vec<f32>> {
        self.time("download", Work::new(bytes(from), 0), || self.inner.download(from))
    }
    fn copy(&self, from: Mat, to: MatMut) -> Result<()> {
        let work = Work::new(bytes(from) + bytes(to.as_mat()), 0);
        self.time("copy", work, || self.inner.copy(from, to))
    }
    fn fill(&self, x: MatMut, value: f32) -> Result<()> {
        self.time("fill", Work::new(bytes(x.as_mat()), 0), || self.inner.fill(x, value))
    }

    fn matmul(&self, c: MatMut, beta: f32, alpha: f32, a: Mat, op_a: Op, b: Mat, op_b: Op) -> Result<()> {
        let k = if op_a == Op::N { a.cols } else { a.rows };
        let work = Work::product((c.rows, c.cols, k), a.dtype, b.dtype, c.dtype, beta != 0.0);
        self.time("matmul", work, || self.inner.matmul(c, beta, alpha, a, op_a, b, op_b))
    }
    fn matmul_many(&self, beta: f32, alpha: f32, op_b: Op, all: &mut [(MatMut, Mat, Mat)]) -> Result<()> {
        let one = |(c, a, _): &(MatMut, Mat, Mat)| {
            Work::product((c.rows, c.cols, a.cols), DType::F32, DType::F32, DType::F32, beta != 0.0)
        };
        let work = all.iter().map(one).fold(Work::default(), |a, b| a + b);
        self.time("matmul_many", work, || self.inner.matmul_many(beta, alpha, op_b, all))
    }
    fn linear(&self, layer: &AdaptedLinear, x: Mat, h: Option<MatMut>, y: MatMut) -> Result<()> {
        let work = linear_work(layer, x, y.as_mat(), false);
        self.time("linear", work, || self.inner.linear(layer, x, h, y))
    }
    fn linear_input_gradient(
        &self,
        layer: &AdaptedLinear,
        dy: Mat,
        z: Option<MatMut>,
        dx: MatMut,
        accumulate: bool,
    ) -> Result<()> {
        let work = linear_work(layer, dy, dx.as_mat(), accumulate);
        let f = || self.inner.linear_input_gradient(layer, dy, z, dx, accumulate);
        self.time("linear_input_gradient", work, f)
    }
    fn outer(&self, y: Mat, x: Mat, parts: &[OuterPart], out: MatMut) -> Result<()> {
        self.time("outer", outer_work(y, x, parts), || self.inner.outer(y, x, parts, out))
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
        let work = outer_work(y, x, parts);
        self.time("task_gradient", work, || {
            self.inner.task_gradient(y, x, parts, out, fresh, pairs, products)
        })
    }

    fn embed(&self, table: Mat, ids: &Indices, scale: f32, y: MatMut) -> Result<()> {
        let work = Work::new(2 * bytes(y.as_mat()), 0);
        self.time("embed", work, || self.inner.embed(table, ids, scale, y))
    }
    fn gather_rows(&self, from: Mat, rows: &Indices, to: MatMut) -> Result<()> {
        let work = Work::new(2 * bytes(to.as_mat()), 0);
        self.time("gather_rows", work, || self.inner.gather_rows(from, rows, to))
    }
    fn scatter_add_rows(
        &self,
        from: Mat,
        groups: &RowGroups,
        scale: f32,
        first_row: usize,
        to: MatMut,
    ) -> Result<()> {
        let elements = (groups.sources.len() * from.cols) as u64;
        let written = (groups.rows.len() * to.cols * to.dtype.bytes()) as u64;
        let work = Work::new(elements * from.dtype.bytes() as u64 + 2 * written, elements);
        let f = || self.inner.scatter_add_rows(from, groups, scale, first_row, to);
        self.time("scatter_add_rows", work, f)
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
        let streams = if residual.is_some() { 4 } else { 2 };
        let work = Work::new(streams * bytes(x), 4 * (x.rows * x.cols) as u64);
        self.time("rmsnorm", work, || self.inner.rmsnorm(x, residual, w, eps, y, inv_rms))
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
        let streams = if accumulate { 4 } else { 3 };
        let work = Work::new(streams * bytes(s), 8 * (s.rows * s.cols) as u64);
        let f = || self.inner.rmsnorm_backward(s, w, inv_rms, dy, dx, accumulate, dw);
        self.time("rmsnorm_backward", work, f)
    }
    fn rope(&self, x: MatMut, positions: &Indices, inv_freq: Mat, heads: usize, inverse: bool) -> Result<()> {
        let work = Work::new(2 * bytes(x.as_mat()), 3 * (x.rows * x.cols) as u64);
        self.time("rope", work, || self.inner.rope(x, positions, inv_freq, heads, inverse))
    }
    fn attention(&self, spec: &Attention, q: Mat, k: Mat, v: Mat, out: MatMut, lse: MatMut) -> Result<()> {
        let work = Work::attention(spec, q.dtype, (2, 2, 2));
        self.time("attention", work, || self.inner.attention(spec, q, k, v, out, lse))
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
        let work = Work::attention(spec, q.dtype, (4, 4, 5));
        let f = || self.inner.attention_backward(spec, q, k, v, out, lse, dout, dq, dk, dv, dbias);
        self.time("attention_backward", work, f)
    }
    fn activation(&self, kind: Activation, gate: Mat, up: Option<Mat>, y: MatMut) -> Result<()> {
        let work = Work::new(2 * bytes(gate) + bytes_or_none(up), 5 * (gate.rows * gate.cols) as u64);
        self.time("activation", work, || self.inner.activation(kind, gate, up, y))
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
        let work = Work::new(3 * bytes(gate) + 2 * bytes_or_none(up), 8 * (gate.rows * gate.cols) as u64);
        let f = || self.inner.activation_backward(kind, gate, up, dy, dgate, dup);
        self.time("activation_backward", work, f)
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
        let trained = head_gradient.as_ref().map_or(0, |h| head.rows - h.first_row);
        let rows = head.rows * if dx.is_some() { 2 } else { 1 } + trained;
        let flops = 2 * (x.rows * x.cols * rows) as u64 + 5 * (x.rows * head.rows) as u64;
        let gradient = (trained * x.cols * 8) as u64;
        let work = Work::new(2 * bytes(x) + bytes(head) + gradient, flops);
        let f = || self.inner.cross_entropy(x, head, logit_scale, targets, weights, nll, dx, head_gradient);
        self.time("cross_entropy", work, f)
    }
    fn axpy(&self, alpha: f32, x: Mat, y: MatMut) -> Result<()> {
        let work = Work::new(bytes(x) + 2 * bytes(y.as_mat()), 2 * (x.rows * x.cols) as u64);
        self.time("axpy", work, || self.inner.axpy(alpha, x, y))
    }
    fn scale(&self, x: MatMut, alpha: f32) -> Result<()> {
        let work = Work::new(2 * bytes(x.as_mat()), (x.rows * x.cols) as u64);
        self.time("scale", work, || self.inner.scale(x, alpha))
    }
    fn column_sums(&self, dy: Mat, segments: &[Range<usize>], out: MatMut) -> Result<()> {
        let work = Work::new(bytes(dy) + 2 * bytes(out.as_mat()), (dy.rows * dy.cols) as u64);
        self.time("column_sums", work, || self.inner.column_sums(dy, segments, out))
    }

    fn dots(&self, pairs: &[(Mat, Mat)], out: MatMut) -> Result<()> {
        let read: u64 = pairs.iter().map(|(x, y)| bytes(*x) + bytes(*y)).sum();
        self.time("dots", Work::new(read, read / 4), || self.inner.dots(pairs, out))
    }
    fn adam(&self, updates: Vec<AdamUpdate>, factors: Option<Mat>, squares: Option<MatMut>) -> Result<()> {
        let more = |m: Option<Mat>| m.map_or(0, bytes);
        let work = updates.iter().fold(Work::default(), |all, u| {
            let (copy, change) =
                (u.copy.as_ref().map(|c| c.0.as_mat()), u.change.as_ref().map(|c| c.as_mat()));
            let moved = 6 * bytes(u.x.as_mat()) + bytes(u.g) + more(copy) + more(change);
            all + Work::new(moved, 12 * (u.x.rows * u.x.cols) as u64)
        });
        self.time("adam", work, || self.inner.adam(updates, factors, squares))
    }
    fn decide(&self, d: &Decision, products: Mat, losses: Mat, factors: MatMut) -> Result<bool> {
        let work = Work::new(2 * bytes(products), products.cols as u64);
        self.time("decide", work, || self.inner.decide(d, products, losses, factors))
    }
    fn project_rows(&self, x: MatMut, k: Mat) -> Result<()> {
        let flops = 4 * (x.rows * x.cols * k.cols) as u64;
        let work = Work::new(2 * bytes(x.as_mat()) + bytes(k), flops);
        self.time("project_rows", work, || self.inner.project_rows(x, k))
    }
    fn project_columns(&self, x: MatMut, k: Mat) -> Result<()> {
        let flops = 4 * (x.rows * x.cols * k.cols) as u64;
        let work = Work::new(2 * bytes(x.as_mat()) + bytes(k), flops);
        self.time("project_columns", work, || self.inner.project_columns(x, k))
    }
    fn fold(&self, w: MatMut, keep: f32, scale: f32, b: Mat, a: Mat, rounding: Rounding) -> Result<()> {
        let work = Work::product((w.rows, w.cols, a.rows), b.dtype, a.dtype, w.dtype, true);
        self.time("fold", work, || self.inner.fold(w, keep, scale, b, a, rounding))
    }
    fn orthonormalize_rows(&self, matrices: &mut [MatMut]) -> Result<()> {
        let one = |a: &MatMut| Work::new(2 * bytes(a.as_mat()), 4 * (a.rows * a.rows * a.cols) as u64);
        let work = matrices.iter().map(one).fold(Work::default(), |a, b| a + b);
        self.time("orthonormalize_rows", work, || self.inner.orthonormalize_rows(matrices))
    }
}
