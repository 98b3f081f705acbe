//! Which kernels the products of a model's layers take, and why: each product is done once on a device that computes
//! nothing, so that what is told is what would be launched.

mod table;

pub use table::{slow, text};

use crate::backend::cuda::{Cuda, DeviceSpec, MatmulShape};
use crate::backend::{
    AdaptedLinear, Backend, CrossEntropy, DType, DeviceInfo, Fold, HeadGradient, Linear, LinearInputGrad,
    Mat, PerSegment, Rounding, Tensor,
};
use crate::error::Result;
use crate::gems::{Method, MethodSettings, NullSpaceSettings, Optimizer};
use crate::model::{Architecture, Batch, Model, Packed};
use serde::Serialize;
use std::sync::Arc;

/// What is looked at.
pub struct PlannedProducts<'a> {
    /// The model, with the vocabulary it will have.
    pub architecture: &'a Architecture,
    /// The method. Null spaces are left out: between refreshes they launch no product of a layer.
    pub settings: &'a MethodSettings,
    /// Number of tasks.
    pub tasks: usize,
    /// First row of new item tokens.
    pub new_rows: Option<usize>,
    /// Rows of a pass.
    pub rows: PassRows,
    /// What layers compute in.
    pub dtype: DType,
}

/// Rows of a pass: tokens of each stack, and labels.
#[derive(Debug, Clone, Copy)]
pub struct PassRows {
    /// Of the encoder; 0 without one.
    pub encoder: usize,
    /// Of the decoder.
    pub decoder: usize,
    /// Labelled rows, which the head sees.
    pub labels: usize,
}

impl PassRows {
    /// Those of a batch.
    pub fn of(batch: &Batch) -> Self {
        let encoder = batch.encoder.as_ref().map_or(0, Packed::rows);
        Self { encoder, decoder: batch.decoder.rows(), labels: batch.labels.rows.len() }
    }
}

/// How one product of a layer is computed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LayerProduct {
    /// Kernels in the order of their launches.
    pub kernels: Vec<String>,
    /// Why these.
    pub why: String,
    /// Whether it is without tensor cores.
    pub slow: bool,
}

/// The products of layers of one shape.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LayerProducts {
    /// What the layers do: `q`, ..., `down`, or `head`.
    pub layers: Vec<&'static str>,
    /// How many there are.
    pub count: usize,
    /// T.
    pub rows: usize,
    /// M.
    pub outputs: usize,
    /// N.
    pub inputs: usize,
    /// R, 0 without a branch.
    pub rank: usize,
    /// `x Wᵀ`, with bias and branch.
    pub forward: LayerProduct,
    /// `dy W`, with the branch.
    pub input_gradient: LayerProduct,
    /// What goes into the weights: the fold of a layer, the gradient of the head's new rows.
    pub weights: Option<LayerProduct>,
}

impl LayerProducts {
    /// Each product with its name.
    pub fn products(&self) -> impl Iterator<Item = (&'static str, &LayerProduct)> {
        let weights = if self.layers == ["head"] { "new rows" } else { "fold" };
        let always = [("forward", &self.forward), ("input gradient", &self.input_gradient)];
        always.into_iter().chain(self.weights.as_ref().map(|w| (weights, w)))
    }

    /// Those of every shape of layer in a run on such a device; the head's at the end.
    ///
    /// # Errors
    /// Settings that do not fit the model.
    pub fn of(planned: &PlannedProducts, device: &DeviceInfo) -> Result<Vec<Self>> {
        let spec = DeviceSpec { dtype: planned.dtype, ..DeviceSpec::dry_run(device.clone()) };
        let be: Arc<dyn Backend> = Cuda::open(spec)?;
        let mut settings = planned.settings.clone();
        settings.null_space = NullSpaceSettings::off();
        let mut model = Model::outline(planned.architecture.clone(), Arc::clone(&be))?;
        Optimizer::for_model(settings.clone(), &mut model, planned.new_rows, planned.tasks, None, 0)?;

        let look = Look { be: be.as_ref() };
        let folds = matches!(settings.gems.method, Method::Gems | Method::Galore);
        let read_encoder = model.layout.read_encoder();
        let mut found: Vec<Self> = Vec::new();
        for (site, layer) in model.linears.iter_mut().enumerate() {
            let rows = if read_encoder[site] { planned.rows.encoder } else { planned.rows.decoder };
            let mut this = look.layer(layer, rows, folds)?;
            this.layers = vec![model.layout.sites[site].projection.name()];
            this.join(&mut found);
        }
        found.push(look.head(&model, planned)?);
        Ok(found)
    }

    /// Adds a layer to those that it is like, or to the end.
    fn join(self, found: &mut Vec<Self>) {
        let layers = |l: &Self| Self { layers: Vec::new(), count: 0, ..l.clone() };
        match found.iter_mut().find(|l| layers(l) == layers(&self)) {
            Some(like) => {
                like.count += 1;
                if !like.layers.contains(&self.layers[0]) {
                    like.layers.push(self.layers[0]);
                }
            }
            None => found.push(self),
        }
    }
}

/// Does products to see what is launched.
struct Look<'a> {
    be: &'a dyn Backend,
}

type Named<'a> = (&'static str, Mat<'a>);

impl Look<'_> {
    fn layer(&self, layer: &mut AdaptedLinear, rows: usize, folds: bool) -> Result<LayerProducts> {
        let (be, dtype) = (self.be, self.be.compute_dtype());
        let (m, n) = layer.weight.shape();
        let rank = layer.branch.as_ref().map_or(0, |b| b.a.rows());
        let (x, dy) = (be.alloc(rows, n, dtype)?, be.alloc(rows, m, dtype)?);
        let (mut y, mut dx) = (be.alloc(rows, m, dtype)?, be.alloc(rows, n, dtype)?);
        let mut inner = be.alloc(rows, rank, dtype)?;

        be.record()?;
        let h = (rank > 0).then(|| inner.mat_mut());
        be.run(Linear { layer, x: x.mat(), h, y: y.mat_mut() })?;
        // The values of a weight in codes lie in memory of their own, as a whole weight's do.
        let values = layer.weight.quantised().map(|_| be.alloc(m, n, dtype)).transpose()?;
        let weight = values.as_ref().map_or_else(|| layer.weight.mat(), Tensor::mat);
        let mut operands = vec![("x", x.mat()), ("W", weight)];
        if let Some(branch) = &layer.branch {
            operands.extend([("A", branch.a.mat()), ("x Aᵀ", inner.mat()), ("B", branch.b.mat())]);
        }
        let forward = self.product((rows, m, n), (false, true), dtype, &operands)?;

        be.record()?;
        let z = (rank > 0).then(|| inner.mat_mut());
        be.run(LinearInputGrad { layer, dy: dy.mat(), z, dx: dx.mat_mut(), accumulate: true })?;
        let mut operands = vec![("dy", dy.mat()), ("W", weight)];
        if let Some(branch) = &layer.branch {
            operands.extend([("B", branch.b.mat()), ("dy B", inner.mat()), ("A", branch.a.mat())]);
        }
        let input_gradient = self.product((rows, n, m), (false, false), dtype, &operands)?;

        let weights = match &layer.branch {
            Some(branch) if folds && values.is_none() => {
                let b = be.alloc(m, rank, DType::F32)?;
                let rounding = Rounding::Stochastic(0);
                be.record()?;
                let (w, b, a) = (layer.weight.mat_mut(), b.mat(), branch.a.mat());
                be.run(Fold { w, keep: 1.0, scale: 1.0, b, a, rounding })?;
                Some(self.product((m, n, rank), (false, false), dtype, &[("A", branch.a.mat())])?)
            }
            _ => None,
        };
        let (layers, count) = (Vec::new(), 1);
        Ok(LayerProducts {
            layers,
            count,
            rows,
            outputs: m,
            inputs: n,
            rank,
            forward,
            input_gradient,
            weights,
        })
    }

    /// The head: logits, their gradient's way back, and the gradient of the new rows.
    fn head(&self, model: &Model, planned: &PlannedProducts) -> Result<LayerProducts> {
        let (be, dtype, rows) = (self.be, self.be.compute_dtype(), planned.rows.labels);
        let head = model.parameter(model.head());
        let (v, d) = head.shape();
        let (x, mut dx) = (be.alloc(rows, d, dtype)?, be.alloc(rows, d, dtype)?);
        let (weights, mut nll) = (be.alloc(rows, 1, DType::F32)?, be.alloc(rows, 1, DType::F32)?);
        let (targets, whole) = (be.indices(&vec![0; rows])?, [0..rows]);
        let first_row = planned.new_rows.filter(|first| *first < v);
        let mut out = be.alloc(v - first_row.unwrap_or(v), d, DType::F32)?;
        let mut run = |gradient: bool, rows_too: bool| -> Result<Vec<String>> {
            be.record()?;
            be.run(CrossEntropy {
                x: x.mat(),
                head,
                logit_scale: 1.0,
                softcap: None,
                targets: &targets,
                weights: weights.mat(),
                nll: nll.mat_mut(),
                dx: gradient.then(|| dx.mat_mut()),
                head_gradient: first_row.filter(|_| rows_too).map(|first_row| HeadGradient {
                    first_row,
                    grad: PerSegment { segments: &whole, out: out.mat_mut() },
                }),
            })?;
            self.launched()
        };
        // Of every chunk of rows: the logits, and what each further wish adds.
        let nth = |launched: Vec<String>, n: usize| launched.into_iter().skip(n).take(1).collect();
        let loss = nth(run(false, false)?, 0);
        let (gradient, of_rows) = (nth(run(true, false)?, 1), nth(run(true, true)?, 2));
        let operands = [("x", x.mat()), ("head", head)];
        let forward = self.explained(loss, (rows, v, d), (false, true), DType::F32, &operands);
        let operands = [("head", head)];
        let input_gradient = self.explained(gradient, (rows, d, v), (false, false), dtype, &operands);
        let weights = first_row.map(|first| {
            let size = (v - first, d, rows);
            let mut this = self.explained(of_rows, size, (true, false), DType::F32, &[("x", x.mat())]);
            if this.slow && dtype == DType::BF16 && !first.is_multiple_of(8) {
                this.why = format!("CUDA cores: the first new row, {first}, is not a multiple of 8");
            }
            this
        });
        Ok(LayerProducts {
            layers: vec!["head"],
            count: 1,
            rows,
            outputs: v,
            inputs: d,
            rank: 0,
            forward,
            input_gradient,
            weights,
        })
    }

    fn product(
        &self,
        size: (usize, usize, usize),
        transposed: (bool, bool),
        result: DType,
        operands: &[Named],
    ) -> Result<LayerProduct> {
        Ok(self.explained(self.launched()?, size, transposed, result, operands))
    }

    /// Kernels of products since recording began.
    fn launched(&self) -> Result<Vec<String>> {
        let product =
            |name: &String| ["matmul_", "linear_", "cublaslt_"].iter().any(|family| name.starts_with(family));
        Ok(self.be.recorded()?.into_iter().map(|r| r.name).filter(product).collect())
    }

    fn explained(
        &self,
        kernels: Vec<String>,
        size: (usize, usize, usize),
        transposed: (bool, bool),
        result: DType,
        operands: &[Named],
    ) -> LayerProduct {
        let slow = kernels.iter().any(|k| k.starts_with("matmul_plain"));
        let why = if slow {
            format!("CUDA cores: {}", unfit(self.be.compute_dtype(), operands))
        } else if kernels.iter().all(|k| k.starts_with("cublaslt_")) {
            "a plain product, and GEMS_CUBLASLT is on".into()
        } else {
            let shape = MatmulShape { size, transposed, tensor_cores: true, result, branch: 0 };
            let DeviceInfo { hopper, sms, .. } = *self.be.info();
            shape.kernel(hopper, sms).why.into()
        };
        LayerProduct { kernels, why, slow }
    }
}

/// What keeps operands from the tensor cores.
fn unfit(dtype: DType, operands: &[Named]) -> String {
    if dtype == DType::F32 {
        return "layers compute in f32".into();
    }
    let aligned = |m: &Mat| (m.ld * m.dtype.bytes()).is_multiple_of(16) || m.rows <= 1;
    let odd = operands.iter().filter(|(_, m)| !aligned(m)).map(|(name, m)| (m.ld, *name));
    let say = |(length, names): (usize, Vec<&str>)| {
        format!("rows of {} have {length} elements, not a multiple of 8", names.join(", "))
    };
    table::grouped(odd).into_iter().map(say).collect::<Vec<_>>().join("; ")
}
