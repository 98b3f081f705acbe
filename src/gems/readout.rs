//! What a step tells: inner products, losses and norms, on the device until they are read, once.

use super::dense::DenseParameter;
use super::products::StepProducts;
use super::tuner::Layer;
use crate::backend::{Backend, DType, Indices, Quantity, Tensor, factors};
use crate::error::Result;
use std::ops::Range;
use std::sync::Arc;

/// What a step tells besides its update: where it stands on the device, as one row of numbers, and what each of them is.
pub(super) struct Readout {
    /// What every inner product is of; those of a layer, or of a dense parameter, follow each other.
    pub quantities: Vec<Quantity>,
    pub numbers: Indices,
    pub sites: Vec<Range<usize>>,
    pub dense: Vec<Range<usize>>,
    /// `[1 x n]`: inner products, summed losses, squared norms of the changes.
    pub values: Tensor,
    /// `[1 x ..]`, see [`crate::backend::factors`].
    pub factors: Tensor,
}

/// A [`Readout`], read back.
pub(super) struct Readings {
    pub products: StepProducts,
    pub losses: Vec<f64>,
    pub update_norm: f64,
}

impl Readings {
    pub fn finite(&self) -> bool {
        self.products.finite() && self.losses.iter().all(|l| l.is_finite())
    }
}

impl Readout {
    pub fn new(
        be: &Arc<dyn Backend>,
        tasks: usize,
        layers: &[Option<Layer>],
        dense: &[Option<DenseParameter>],
    ) -> Result<Self> {
        let mut quantities = Vec::new();
        let mut place = |found: Option<Vec<Quantity>>| {
            let first = quantities.len();
            quantities.extend(found.unwrap_or_default());
            first..quantities.len()
        };
        let sites =
            layers.iter().map(|l| place(l.as_ref().map(|l| l.shared().products().quantities))).collect();
        let dense = dense.iter().map(|p| place(p.as_ref().map(|p| p.products().quantities))).collect();
        let numbers: Vec<u32> = quantities.iter().map(|q| q.number(tasks) as u32).collect();
        let count = quantities.len() + tasks + 2 * layers.len();
        Ok(Self {
            numbers: be.indices(&numbers)?,
            quantities,
            sites,
            dense,
            values: be.zeros(1, count, DType::F32)?,
            factors: be.zeros(1, factors::count(tasks), DType::F32)?,
        })
    }

    /// Where the tasks' losses stand.
    pub fn losses(&self, tasks: usize) -> Range<usize> {
        self.quantities.len()..self.quantities.len() + tasks
    }

    /// Waits for all of it.
    pub fn read(&self, be: &dyn Backend, tasks: usize) -> Result<Readings> {
        let values = be.download(self.values.mat())?;
        let losses = self.losses(tasks);
        let squares: f64 = values[losses.end..].iter().map(|v| *v as f64).sum();
        Ok(Readings {
            products: StepProducts::gather(tasks, &self.quantities, &values),
            losses: values[losses].iter().map(|v| *v as f64).collect(),
            update_norm: squares.max(0.0).sqrt(),
        })
    }
}
