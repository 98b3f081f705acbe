//! What the tests of an operation and its benchmark share: operands of any size on any device, and the list of all
//! operations at the sizes of a model.

use super::*;
use gems_engine::backend::work::Work;
use gems_engine::backend::{Activation, Backend, DType, Indices, Mat, MatMut, Operation, Tensor};
use gems_engine::error::Result;
use half::bf16;

/// Who is handed an operation: to run it, or to count its work.
pub type Run<'r> = &'r mut (dyn FnMut(Operation<'_>) -> Result<()> + 'r);

type Call = Box<dyn Fn(Vec<MatMut>, Run) -> Result<()>>;

/// An operation (or a sequence of them) at a size, on no device yet.
pub struct Case {
    /// The operation and its size.
    pub name: String,
    prepare: Box<dyn Fn(&Inputs) -> Prepared>,
}

impl Case {
    pub fn new(name: impl Into<String>, prepare: impl Fn(&Inputs) -> Prepared + 'static) -> Self {
        Self { name: name.into(), prepare: Box::new(prepare) }
    }
    /// The same under another name.
    pub fn named(self, name: impl Into<String>) -> Self {
        Self { name: name.into(), ..self }
    }
    /// Its operands.
    pub fn on(&self, inputs: &Inputs) -> Prepared {
        (self.prepare)(inputs)
    }
}

/// The operands of a case, on a device.
pub struct Prepared {
    /// What the operation writes, by name.
    pub outputs: Vec<(&'static str, Padded)>,
    call: Call,
}

impl Prepared {
    /// `call` receives `outputs` in their order.
    pub fn new<const N: usize>(
        outputs: [(&'static str, Padded); N],
        call: impl Fn([MatMut; N], Run) -> Result<()> + 'static,
    ) -> Self {
        Self::many(outputs.into(), move |outputs, run| {
            call(outputs.try_into().ok().expect("as many as there are outputs"), run)
        })
    }
    /// The same for a number of outputs that is a matter of size.
    pub fn many(
        outputs: Vec<(&'static str, Padded)>,
        call: impl Fn(Vec<MatMut>, Run) -> Result<()> + 'static,
    ) -> Self {
        Self { outputs, call: Box::new(call) }
    }
    fn call(&mut self, run: Run) -> Result<()> {
        (self.call)(self.outputs.iter_mut().map(|(_, o)| o.mat_mut()).collect(), run)
    }
    /// Does it.
    pub fn run(&mut self, be: &dyn Backend) -> Result<()> {
        self.call(&mut |op| be.run(op))
    }
    /// Its floor.
    pub fn work(&mut self) -> Work {
        let mut work = Work::default();
        self.call(&mut |op| {
            work = work + op.work();
            Ok(())
        })
        .expect("nothing is run");
        work
    }
    /// Names of the operations it consists of.
    pub fn operations(&mut self) -> Vec<&'static str> {
        let mut names = Vec::new();
        self.call(&mut |op| {
            names.push(op.name());
            Ok(())
        })
        .expect("nothing is run");
        names
    }
}

/// A tensor inside a larger one: `pad` columns more, so that rows are not contiguous; starts as NaN.
pub struct Padded {
    tensor: Tensor,
    cols: usize,
}

impl Padded {
    pub fn new(be: &dyn Backend, data: &[f32], rows: usize, cols: usize, pad: usize, dtype: DType) -> Self {
        let mut tensor = be.alloc(rows, cols + pad, dtype).expect("memory");
        be.fill(tensor.mat_mut(), f32::NAN).expect("fill");
        // A large matrix repeats its numbers.
        let at_once = data.len() / cols.max(1);
        for from in (0..if at_once > 0 { rows } else { 0 }).step_by(at_once.max(1)) {
            let to = rows.min(from + at_once);
            let view = tensor.mat_mut().row_range(from..to).col_range(0..cols);
            be.upload(&data[..(to - from) * cols], view).expect("upload");
        }
        Self { tensor, cols }
    }
    pub fn mat(&self) -> Mat<'_> {
        self.tensor.mat().col_range(0..self.cols)
    }
    pub fn mat_mut(&mut self) -> MatMut<'_> {
        self.tensor.mat_mut().col_range(0..self.cols)
    }
    /// The values; fails if the padding was written.
    #[track_caller]
    pub fn read(&self, be: &dyn Backend) -> Vec<f32> {
        let all = self.tensor.mat();
        let padding = all.col_range(self.cols..all.cols);
        if padding.extent() > 0 {
            let left = be.download(padding).unwrap();
            assert!(left.iter().all(|v| v.is_nan()), "written outside the view");
        }
        be.download(self.mat()).unwrap()
    }
}

/// The numbers of an input: those that `exact` holds.
pub fn values(exact: DType, seed: u64, n: usize) -> Vec<f32> {
    let round = |v: f32| if exact == DType::BF16 { bf16::from_f32(v).to_f32() } else { v };
    numbers(seed, n).into_iter().map(round).collect()
}

/// Makes operands on a device. All devices get the same numbers.
pub struct Inputs<'a> {
    pub be: &'a dyn Backend,
    /// The type that holds all numbers exactly.
    pub exact: DType,
    /// Whether operands are views of larger matrices where the operation allows it.
    pub strided: bool,
    /// At most so many numbers of a matrix are distinct; more than it has columns.
    pub distinct: usize,
}

impl Inputs<'_> {
    /// In the device's compute type.
    pub fn compute(&self, seed: u64, rows: usize, cols: usize) -> Tensor {
        self.of(seed, rows, cols, self.be.compute_dtype())
    }
    pub fn f32(&self, seed: u64, rows: usize, cols: usize) -> Tensor {
        self.of(seed, rows, cols, DType::F32)
    }
    fn values(&self, seed: u64, n: usize) -> Vec<f32> {
        values(self.exact, seed, n.min(self.distinct))
    }
    fn of(&self, seed: u64, rows: usize, cols: usize, dtype: DType) -> Tensor {
        Padded::new(self.be, &self.values(seed, rows * cols), rows, cols, 0, dtype).tensor
    }
    /// Given values, in f32.
    pub fn given(&self, values: &[f32], rows: usize, cols: usize) -> Tensor {
        self.be.tensor(values, rows, cols, DType::F32).expect("memory")
    }
    pub fn indices(&self, values: impl IntoIterator<Item = u32>) -> Indices {
        self.be.indices(&values.into_iter().collect::<Vec<_>>()).expect("memory")
    }
    /// A view with `pad` more columns around it.
    pub fn view(&self, seed: u64, (rows, cols): (usize, usize), pad: usize, dtype: DType) -> Padded {
        let pad = if self.strided { pad } else { 0 };
        Padded::new(self.be, &self.values(seed, rows * cols), rows, cols, pad, dtype)
    }
    /// NaN in the compute type: an output that is written.
    pub fn unwritten(&self, rows: usize, cols: usize) -> Padded {
        self.nan((rows, cols), 0, self.be.compute_dtype())
    }
    pub fn unwritten_f32(&self, rows: usize, cols: usize) -> Padded {
        self.nan((rows, cols), 0, DType::F32)
    }
    pub fn nan(&self, (rows, cols): (usize, usize), pad: usize, dtype: DType) -> Padded {
        Padded::new(self.be, &[], rows, cols, if self.strided { pad } else { 0 }, dtype)
    }
    /// Numbers of the compute type: an output that is added to.
    pub fn added_to(&self, seed: u64, rows: usize, cols: usize) -> Padded {
        self.view(seed, (rows, cols), 0, self.be.compute_dtype())
    }
    pub fn added_to_f32(&self, seed: u64, rows: usize, cols: usize) -> Padded {
        self.view(seed, (rows, cols), 0, DType::F32)
    }
    /// Squares, in f32: second moments.
    pub fn squares(&self, seed: u64, rows: usize, cols: usize) -> Padded {
        let squares: Vec<f32> = self.values(seed, rows * cols).iter().map(|v| v * v).collect();
        Padded::new(self.be, &squares, rows, cols, 0, DType::F32)
    }
    /// `[n x k]` with orthonormal columns, in f32: the first columns of a reflection `I - 2 v vᵀ`.
    pub fn orthonormal_columns(&self, seed: u64, n: usize, k: usize) -> Tensor {
        let v = numbers(seed, n);
        let square: f64 = v.iter().map(|v| f64::from(*v).powi(2)).sum();
        let at = |i: usize, j: usize| {
            f64::from(u8::from(i == j)) - 2.0 * f64::from(v[i]) * f64::from(v[j]) / square
        };
        let values: Vec<f32> = (0..n * k).map(|e| at(e / k, e % k) as f32).collect();
        self.given(&values, n, k)
    }
}

/// The sizes of a model, of a batch and of a method.
#[derive(Debug, Clone, PartialEq)]
pub struct Sizes {
    /// Of a batch; of one sequence; labelled ones.
    pub tokens: usize,
    pub sequence: usize,
    pub labels: usize,
    pub hidden: usize,
    pub intermediate: usize,
    pub gated: bool,
    pub activation: Activation,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Whether a row sees the rows before it only.
    pub causal: bool,
    pub vocabulary: usize,
    /// Of all subspaces together, a multiple of 4: one shared, of half the rank, and one for each of two tasks.
    pub rank: usize,
    /// Layers whose bases are renewed together.
    pub layers: usize,
}

impl Sizes {
    /// Widths of the linear layers, outputs x inputs: q, k where it is not q's, up, down.
    pub fn linear_layers(&self) -> Vec<(&'static str, usize, usize)> {
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let mut all = vec![("q", q, self.hidden)];
        all.extend((kv != q).then_some(("k", kv, self.hidden)));
        all.extend([("up", self.intermediate, self.hidden), ("down", self.hidden, self.intermediate)]);
        all
    }
}

/// A case, and the same by separate operations.
pub struct Timed {
    pub case: Case,
    pub unfused: Option<Case>,
}

impl From<Case> for Timed {
    fn from(case: Case) -> Self {
        Self { case, unfused: None }
    }
}

/// Every operation at the sizes of a model.
pub fn all(s: &Sizes) -> Vec<Timed> {
    let files = [
        matmul::at,
        linear::at,
        weight_grad::at,
        attention::at,
        cross_entropy::at,
        dequantize::at,
        divergence::at,
        rmsnorm::at,
        activation::at,
        rope::at,
        gather::at,
        column_sums::at,
        elementwise::at,
        dots::at,
        step_factors::at,
        adam::at,
        project::at,
        fold::at,
        shrink::at,
        orthonormalize::at,
    ];
    files.into_iter().flat_map(|at: fn(&Sizes) -> Vec<Timed>| at(s)).collect()
}
