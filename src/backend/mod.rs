//! The operations the model and the method need, as one trait, and what implements it.
//!
//! [`Backend`] is a closed list: if an operation is not on the transformer's or on GEMS's page, it
//! is not here. Two implementations: [`cpu`] (native f32, threads) and [`cuda`] (the kernels in
//! `kernels/`, launched on a GPU through the driver or on the host SIMT machine).
//!
//! Letters used in shapes: `T` tokens (rows of a packed batch), `D` hidden size, `H` heads, `d`
//! head size, `M x N` a weight (outputs x inputs), `R` rank of all subspaces together, `V`
//! vocabulary, `L` labelled rows, `S` task segments.
//!
//! Arithmetic: activations and weights are in [`Backend::compute_dtype`] (f32 on the CPU, bf16 on
//! a GPU); everything marked *f32* below is f32 on every backend. Sums are in fixed order: same
//! inputs, same device, same bits. Shapes are the caller's contract: a wrong one is a bug in this
//! crate and panics; only what the device or the machine can refuse is an `Err`.

pub mod cpu;
pub mod cuda;
mod method;
mod pool;
mod tensor;
pub mod timed;
pub mod trace;

pub use method::{AdamBlock, AdamUpdate, ColumnPair, Decision, GateRule, OuterPart, Quantity, factors};
pub use pool::{HostBuffer, HostPool, MemoryUse};
pub use tensor::{DType, DeviceBuffer, Indices, Mat, MatMut, Storage, Tensor};

use crate::error::Result;
use std::ops::Range;

/// Whether a matrix enters a product as it is or transposed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// As it is.
    N,
    /// Transposed.
    T,
}

/// The nonlinearity of a feed-forward block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// x * sigmoid(x) (Llama, Qwen).
    Silu,
    /// max(0, x) (T5 v1.0).
    Relu,
    /// The tanh approximation of GELU, `gelu_new` (T5 v1.1).
    GeluTanh,
}

/// A weight `W [M x N]` with an optional bias `[1 x M]` and an optional low-rank branch:
/// `y = x Wᵀ + bias + (x Aᵀ) Bᵀ` (DESIGN: bordered weights).
pub struct AdaptedLinear {
    /// `[M x N]`, compute dtype.
    pub weight: Tensor,
    /// `[1 x M]`, compute dtype.
    pub bias: Option<Tensor>,
    /// The low-rank branch, absent when the layer is not adapted or everything is folded into W.
    pub branch: Option<Branch>,
}

/// The low-rank branch of an [`AdaptedLinear`], in compute dtype.
pub struct Branch {
    /// `[R x N]`: the stacked bases of all subspaces (rows), or LoRA's A.
    pub a: Tensor,
    /// `[M x R]`: the accumulated coordinates, or LoRA's B times its scale.
    pub b: Tensor,
}

/// Which keys a query row sees in [`Backend::attention`].
#[derive(Clone, Copy)]
pub enum Mask<'a> {
    /// Row i of a sequence sees the rows 0..=i of the same sequence (queries and keys are the same rows).
    Causal,
    /// Every row sees all keys of its sequence (T5's encoder and its cross attention).
    Full,
    /// Query row i sees exactly the key rows `keys[offsets[i]..offsets[i + 1]]`: a trie whose nodes
    /// see the prompt and their ancestors. Forward only.
    Listed {
        /// `T + 1` offsets into `keys`.
        offsets: &'a Indices,
        /// Key row numbers.
        keys: &'a Indices,
    },
}

/// T5's relative position bias: `bias[h, i, j] = table[bucket(pos_k(j) - pos_q(i)), h]`.
#[derive(Clone, Copy)]
pub struct RelativeBias<'a> {
    /// `[buckets x H]`, compute dtype.
    pub table: Mat<'a>,
    /// Position of every query row within its sequence, `T_q` values.
    pub q_positions: &'a Indices,
    /// Position of every key row within its sequence, `T_k` values.
    pub k_positions: &'a Indices,
    /// Encoder (true) or decoder (false) buckets.
    pub bidirectional: bool,
    /// `relative_attention_max_distance`.
    pub max_distance: usize,
}

/// One attention call over packed sequences.
#[derive(Clone, Copy)]
pub struct Attention<'a> {
    /// `n + 1` offsets of the sequences' query rows.
    pub q_offsets: &'a Indices,
    /// `n + 1` offsets of the sequences' key rows.
    pub k_offsets: &'a Indices,
    /// Query heads H.
    pub heads: usize,
    /// Key and value heads; H is a multiple of it.
    pub kv_heads: usize,
    /// Size of one head, d.
    pub head_dim: usize,
    /// Factor on the scores before the softmax (`1/sqrt(d)`; 1 for T5).
    pub scale: f32,
    /// Which keys a row sees.
    pub mask: Mask<'a>,
    /// Bias added to the scores.
    pub bias: Option<RelativeBias<'a>>,
}

/// The rows of a scatter, grouped by target: target `rows[g]` receives the sum of the source rows
/// `sources[offsets[g]..offsets[g + 1]]`, in that order. Built once a batch, so that the sum is
/// deterministic without atomics.
pub struct RowGroups {
    /// Distinct target rows, ascending.
    pub rows: Indices,
    /// `rows.len() + 1` offsets into `sources`.
    pub offsets: Indices,
    /// Source rows.
    pub sources: Indices,
}

/// What a trained head needs of [`Backend::cross_entropy`]: gradients of the rows
/// `first_row..` of the head, one block a segment of labelled rows.
pub struct HeadGradient<'a> {
    /// First trained row of the head.
    pub first_row: usize,
    /// Ranges of labelled rows, one a segment.
    pub segments: &'a [Range<usize>],
    /// f32 `[S * (V - first_row) x D]`: segment after segment, added to.
    pub out: MatMut<'a>,
}

/// How [`Backend::fold`] rounds to the weight's type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rounding {
    /// To the nearest, ties to even.
    Nearest,
    /// Stochastically, from a counter-based stream with this seed.
    Stochastic(u64),
}

/// The operations of the engine on one device. See the module for letters and arithmetic.
///
/// Every method that computes is asynchronous where the device is; [`Backend::download`] and
/// [`Backend::synchronize`] wait.
pub trait Backend: Send + Sync {
    // ---- the device -------------------------------------------------------------------------
    /// A name to print, such as `cpu (2 threads)`.
    fn name(&self) -> String;
    /// The type of weights and activations.
    fn compute_dtype(&self) -> DType;
    /// Memory of live tensors.
    fn memory(&self) -> MemoryUse;
    /// Forgets the peak so far.
    fn reset_peak_memory(&self);
    /// Waits for everything launched; an error that occurred meanwhile comes out here.
    fn synchronize(&self) -> Result<()>;
    /// From now on remembers what is launched. The CPU backend does so inside a [`timed::Timed`].
    fn record(&self) -> Result<()> {
        Ok(())
    }
    /// What was launched since [`Backend::record`], and ends that. Waits.
    fn recorded(&self) -> Result<Vec<trace::Record>> {
        Ok(Vec::new())
    }
    /// How often the host has waited for the device so far: [`Backend::download`] and
    /// [`Backend::synchronize`]. Always 0 where operations are done when they return.
    fn waits(&self) -> u64 {
        0
    }
    /// What the device can do at most, where it says so.
    fn peaks(&self) -> Option<trace::Peaks> {
        None
    }
    /// What decides which kernels run, where there are kernels.
    fn kind(&self) -> Option<cuda::DeviceKind> {
        None
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
    /// Host f32 values into `to`, rounding to its type. `values.len()` is rows * cols.
    fn upload(&self, values: &[f32], to: MatMut) -> Result<()>;
    /// The values of `from` as f32, row by row. Waits.
    fn download(&self, from: Mat) -> Result<Vec<f32>>;
    /// `to = from`, converting between types.
    fn copy(&self, from: Mat, to: MatMut) -> Result<()>;
    /// `x = value`.
    fn fill(&self, x: MatMut, value: f32) -> Result<()>;

    // ---- products ---------------------------------------------------------------------------
    /// `C = beta C + alpha op(A) op(B)`; `beta` 0 or 1, and C's old values (even NaN) do not
    /// matter for 0. Any mix of types, f32 accumulation.
    fn matmul(&self, c: MatMut, beta: f32, alpha: f32, a: Mat, op_a: Op, b: Mat, op_b: Op) -> Result<()>;
    /// Independent products `C = beta C + alpha A op(B)` of *f32* matrices (C, A, B), as
    /// [`Backend::matmul`]: small ones, of which a device does many at a time.
    fn matmul_many(&self, beta: f32, alpha: f32, op_b: Op, all: &mut [(MatMut, Mat, Mat)]) -> Result<()> {
        all.iter_mut().try_for_each(|(c, a, b)| self.matmul(c.reborrow(), beta, alpha, *a, Op::N, *b, op_b))
    }
    /// `y = x Wᵀ + bias (+ h Bᵀ, h = x Aᵀ)`: x `[T x N]`, y `[T x M]`, h `[T x R]` written when the
    /// layer has a branch (`h` is `Some` exactly then).
    fn linear(&self, layer: &AdaptedLinear, x: Mat, h: Option<MatMut>, y: MatMut) -> Result<()>;
    /// `dx (+)= dy W (+ z A, z = dy B)`: `z [T x R]` written when the layer has a branch.
    /// `accumulate` adds to dx.
    fn linear_input_gradient(
        &self,
        layer: &AdaptedLinear,
        dy: Mat,
        z: Option<MatMut>,
        dx: MatMut,
        accumulate: bool,
    ) -> Result<()>;
    /// The task gradient: for every part `out[:, to..] += scale * Y[rows]ᵀ X[rows, columns]`, all
    /// parts in one launch; out *f32* `[M x any]`. Parts write disjoint columns or follow each
    /// other in order.
    fn outer(&self, y: Mat, x: Mat, parts: &[OuterPart], out: MatMut) -> Result<()>;

    /// [`Backend::outer`], with what a step wants of it. `fresh`: out is written, and zero where no part writes, instead
    /// of added to. *f32* `products [1 x pairs]` receives the inner products of the pairs of blocks of out's
    /// columns as they are afterwards (f64 accumulation).
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
        task_gradient_in_steps(self, (y, x), parts, out, fresh, pairs, products)
    }

    // ---- the transformer --------------------------------------------------------------------
    /// `y[i] = scale * table[ids[i]]`.
    fn embed(&self, table: Mat, ids: &Indices, scale: f32, y: MatMut) -> Result<()>;
    /// `to[i] = from[rows[i]]`.
    fn gather_rows(&self, from: Mat, rows: &Indices, to: MatMut) -> Result<()>;
    /// `to[rows[g] - first_row] += scale * sum of its source rows of from` for groups with
    /// `rows[g] >= first_row`; to is *f32* or compute dtype.
    fn scatter_add_rows(
        &self,
        from: Mat,
        groups: &RowGroups,
        scale: f32,
        first_row: usize,
        to: MatMut,
    ) -> Result<()>;
    /// Root-mean-square norm with an optional residual:
    /// `s = x + residual; y = w * s / sqrt(mean(s²) + eps)`; s is written to `sum` when there is a
    /// residual; `inv_rms` *f32* `[T x 1]` keeps `1 / sqrt(..)`. Rows may be heads (q/k norm): any
    /// contiguous `[rows x cols]` view. w is `[1 x cols]`.
    fn rmsnorm(
        &self,
        x: Mat,
        residual: Option<(Mat, MatMut)>,
        w: Mat,
        eps: f32,
        y: MatMut,
        inv_rms: MatMut,
    ) -> Result<()>;
    /// Gradient of [`Backend::rmsnorm`] at its normalised input `s`: `dx (+)= ..`; with `dw`, the
    /// weight's gradient of every segment of rows is added to row s of an *f32* `[S x cols]`.
    fn rmsnorm_backward(
        &self,
        s: Mat,
        w: Mat,
        inv_rms: Mat,
        dy: Mat,
        dx: MatMut,
        accumulate: bool,
        dw: Option<(&[Range<usize>], MatMut)>,
    ) -> Result<()>;
    /// Rotary embedding in place on `x [T x heads*d]`, half-split layout (`rotate_half`), angle of
    /// row i and pair j: `positions[i] * inv_freq[j]`; `inverse` rotates back (the gradient).
    /// `inv_freq` is *f32* `[1 x d/2]`; cos and sin are multiplied by `attention_factor` 1.
    fn rope(&self, x: MatMut, positions: &Indices, inv_freq: Mat, heads: usize, inverse: bool) -> Result<()>;
    /// `out = softmax(scale * q kᵀ + bias) v` within sequences; q, out `[T_q x H*d]`, k, v
    /// `[T_k x kv_heads*d]`; `lse` *f32* `[T_q x H]` keeps the log-sum-exp of the scores.
    fn attention(&self, spec: &Attention, q: Mat, k: Mat, v: Mat, out: MatMut, lse: MatMut) -> Result<()>;
    /// Gradients of [`Backend::attention`] (written, not added). `dbias` *f32* `[S * buckets x H]`
    /// is added to, one block of rows a segment of sequences.
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
    ) -> Result<()>;
    /// `y = act(gate) * up`, or `act(gate)` without `up`.
    fn activation(&self, kind: Activation, gate: Mat, up: Option<Mat>, y: MatMut) -> Result<()>;
    /// Gradients of [`Backend::activation`], written.
    fn activation_backward(
        &self,
        kind: Activation,
        gate: Mat,
        up: Option<Mat>,
        dy: Mat,
        dgate: MatMut,
        dup: Option<MatMut>,
    ) -> Result<()>;
    /// Cross entropy of `softmax(logit_scale * x headᵀ)` against `targets`, never holding all
    /// logits: x `[L x D]`, head `[V x D]`; `nll` *f32* `[L x 1]`; with `dx`, the gradient of
    /// `sum_i weights[i] nll[i]` with respect to x (written; weights *f32* `[L x 1]`), and with
    /// `head_gradient` that of the head's trained rows.
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
    ) -> Result<()>;
    /// `y += alpha x`; any types.
    fn axpy(&self, alpha: f32, x: Mat, y: MatMut) -> Result<()>;
    /// `x *= alpha`.
    fn scale(&self, x: MatMut, alpha: f32) -> Result<()>;
    /// Adds the column sums of every segment of rows of dy to row s of *f32* `out [S x M]` (bias gradient).
    fn column_sums(&self, dy: Mat, segments: &[Range<usize>], out: MatMut) -> Result<()>;

    // ---- the method -------------------------------------------------------------------------
    /// `out[i] = <x_i, y_i>` (f64 or compensated accumulation) for pairs of equally shaped *f32*
    /// matrices; out *f32* `[1 x pairs]`.
    fn dots(&self, pairs: &[(Mat, Mat)], out: MatMut) -> Result<()>;
    /// Adam, for every matrix of `updates` block of columns by block of columns. `factors` *f32* `[1 x n]` holds what is
    /// known of the step by then ([`factors`]): the clipping factor on all gradients (not a number: nothing is
    /// changed), weights, gates. *f32* `squares [1 x updates]` receives the squared norms of the changes.
    fn adam(&self, updates: Vec<AdamUpdate>, factors: Option<Mat>, squares: Option<MatMut>) -> Result<()>;
    /// Works out a step's factors ([`factors`]) from *f32* `products [1 x n]` and the tasks' summed `losses [1 x tasks]`
    /// where they are, so that nobody waits for them. False, and nothing done, on a backend that leaves it to the caller.
    fn decide(&self, _decision: &Decision, _products: Mat, _losses: Mat, _factors: MatMut) -> Result<bool> {
        Ok(false)
    }
    /// Removes a space from the rows of x: `x -= (x K) Kᵀ`, K `[N x k]` orthonormal columns, x `[. x N]`.
    fn project_rows(&self, x: MatMut, k: Mat) -> Result<()>;
    /// Removes a space from the columns of x: `x -= K (Kᵀ x)`, K `[M x k]`, x `[M x .]`.
    fn project_columns(&self, x: MatMut, k: Mat) -> Result<()>;
    /// `W = keep * W + scale * B A` in f32, rounded once to W's type; B *f32* `[M x R]`, A `[R x N]`.
    fn fold(&self, w: MatMut, keep: f32, scale: f32, b: Mat, a: Mat, rounding: Rounding) -> Result<()>;
    /// Orthonormalises the rows of each *f32* matrix `[R x N]` (R <= N) in order, as Gram-Schmidt
    /// would: row i afterwards spans what it added to the rows before it. Rows that add nothing (to
    /// rounding) become zero.
    fn orthonormalize_rows(&self, matrices: &mut [MatMut]) -> Result<()>;
}

/// [`Backend::task_gradient`] by other operations.
fn task_gradient_in_steps<B: Backend + ?Sized>(
    backend: &B,
    (y, x): (Mat, Mat),
    parts: &[OuterPart],
    mut out: MatMut,
    fresh: bool,
    pairs: &[ColumnPair],
    products: MatMut,
) -> Result<()> {
    if fresh {
        backend.fill(out.reborrow(), 0.0)?;
    }
    backend.outer(y, x, parts, out.reborrow())?;
    let block = |first: usize, width: usize| out.as_mat().col_range(first..first + width);
    let blocks: Vec<(Mat, Mat)> = pairs.iter().map(|p| (block(p.a, p.width), block(p.b, p.width))).collect();
    if blocks.is_empty() { Ok(()) } else { backend.dots(&blocks, products) }
}

impl RowGroups {
    /// Groups (target row, source row) pairs for a scatter on `backend`; sources keep their order.
    pub fn new(backend: &dyn Backend, pairs: impl IntoIterator<Item = (u32, u32)>) -> Result<Self> {
        let mut pairs: Vec<(u32, u32)> = pairs.into_iter().collect();
        pairs.sort_unstable();
        let (mut rows, mut offsets, mut sources) = (Vec::new(), vec![0u32], Vec::new());
        for (target, source) in pairs {
            if rows.last() != Some(&target) {
                rows.push(target);
                offsets.push(sources.len() as u32);
            }
            sources.push(source);
            if let Some(end) = offsets.last_mut() {
                *end = sources.len() as u32;
            }
        }
        Ok(Self {
            rows: backend.indices(&rows)?,
            offsets: backend.indices(&offsets)?,
            sources: backend.indices(&sources)?,
        })
    }
}

/// Conveniences written in terms of [`Backend`]'s operations.
impl dyn Backend + '_ {
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
