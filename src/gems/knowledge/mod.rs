//! What a base model knows, as second moments of general text.
//!
//! Of every linear layer `y = W x`: `C = E[x xᵀ]` of its inputs, and `F = E[dy dyᵀ]` of the gradients of the log-likelihood of
//! sampled next tokens with respect to its outputs. A change `dW` moves what the layer puts out on general text by
//! `tr(dW C dWᵀ)` in the mean square, and the model's predictions by about `1/2 tr(F dW C dWᵀ)` (K-FAC: Martens and
//! Grosse, 2015).

mod file;
mod moment;
mod protect;
mod spectrum;
mod sums;

pub use moment::{Moment, WHOLE, sketch_rows, test_matrix};
pub use protect::{Protection, Space, protected};
pub use spectrum::Spectrum;
pub use sums::Sums;

use crate::error::{Error, Result};
use crate::layers::Site;

/// Second moments of a base model on general text.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Knowledge {
    /// The model they were taken from.
    pub fingerprint: String,
    /// Tokens of general text that went forward.
    pub tokens: usize,
    /// Those of them that went backward too.
    pub gradient_tokens: usize,
    /// `E[x xᵀ]`, one for all layers that read the same input.
    pub inputs: Vec<Spectrum>,
    /// Which of `inputs` a layer reads, by site.
    pub input_of_site: Vec<Option<usize>>,
    /// `E[y yᵀ]` of a layer's output, by site; only taken for `null_space.side = "output"`.
    pub outputs: Vec<Option<Spectrum>>,
    /// `F = E[dy dyᵀ]`, by site.
    pub gradients: Vec<Option<Spectrum>>,
    /// Of the final hidden state, which item rows are compared with.
    pub hidden: Option<Spectrum>,
}

impl Knowledge {
    /// Of a layer's input.
    pub fn input(&self, site: usize) -> Option<&Spectrum> {
        self.input_of_site.get(site).copied().flatten().and_then(|i| self.inputs.get(i))
    }

    /// Of a layer's output.
    pub fn output(&self, site: usize) -> Option<&Spectrum> {
        self.outputs.get(site).and_then(Option::as_ref)
    }

    /// Of the gradient of the log-likelihood with respect to a layer's output.
    pub fn gradient(&self, site: usize) -> Option<&Spectrum> {
        self.gradients.get(site).and_then(Option::as_ref)
    }

    /// Host memory of all spectra.
    pub fn bytes(&self) -> usize {
        let by_site = self.outputs.iter().chain(&self.gradients).flatten();
        self.inputs.iter().chain(by_site).chain(&self.hidden).map(Spectrum::bytes).sum()
    }

    /// Whether there is a spectrum of the right size, or none, for each of these layers.
    ///
    /// # Errors
    /// There is not: it was made for another model.
    pub fn fits(&self, sites: &[Site]) -> Result<()> {
        let of_sites = |n: usize| n == sites.len() || n == 0;
        let counts = [self.input_of_site.len(), self.outputs.len(), self.gradients.len()];
        let sizes = sites.iter().enumerate().map(|(i, site)| {
            [(self.input(i), site.inputs), (self.output(i), site.outputs), (self.gradient(i), site.outputs)]
        });
        let fit = |(spectrum, dim): &(Option<&Spectrum>, usize)| spectrum.is_none_or(|s| s.dim == *dim);
        if counts.into_iter().all(of_sites) && sizes.flatten().all(|s| fit(&s)) {
            return Ok(());
        }
        Err(Error::usage("the knowledge basis was made for another model: its layers have other sizes")
            .remedy("make one for this model with `gems-engine basis`"))
    }
}
