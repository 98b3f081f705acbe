//! A second moment by its leading eigenvectors.

/// The second moment `C = E[x xᵀ]` of a vector as it is kept: leading eigenvectors and eigenvalues, and the mean of the rest,
/// `C ~ U diag(values) Uᵀ + rest (I - U Uᵀ)`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Spectrum {
    /// Its name: that of the first layer that has it, or `final` for the final hidden state.
    pub name: String,
    /// n.
    pub dim: usize,
    /// Uᵀ, `[k x n]`: orthonormal rows, in the order of `values`.
    pub directions: Vec<f32>,
    /// k eigenvalues, descending, none negative.
    pub values: Vec<f64>,
    /// Mean eigenvalue of the n - k other directions; 0 when there are none.
    pub rest: f64,
    /// Vectors that the mean was taken over; no more eigenvalues than that are above zero.
    pub samples: usize,
}

impl Spectrum {
    /// k: directions that are kept.
    pub fn kept(&self) -> usize {
        self.values.len()
    }

    /// Host memory of its directions and eigenvalues.
    pub fn bytes(&self) -> usize {
        4 * self.directions.len() + 8 * self.values.len()
    }

    /// `tr C`: the sum of all n eigenvalues.
    pub fn trace(&self) -> f64 {
        self.values.iter().sum::<f64>() + self.rest * (self.dim - self.kept().min(self.dim)) as f64
    }

    /// `tr C / n`: the mean eigenvalue.
    pub fn mean(&self) -> f64 {
        self.trace() / self.dim.max(1) as f64
    }

    /// Share of the trace in the leading `k` directions; 0 of a moment that is zero.
    pub fn energy(&self, k: usize) -> f64 {
        let (held, trace) = (self.values.iter().take(k).fold(0.0, |sum, v| sum + v), self.trace());
        if trace > 0.0 { held / trace } else { 0.0 }
    }
}
