//! The two decompositions the method needs, in f64 on the host, through faer.

use crate::error::{Error, Result};
use faer::{Mat, Par, Side};
use std::sync::Once;

/// Each decomposition on one thread, several side by side: what the library computes on several threads depends on
/// how many they are.
fn on_one_thread() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| faer::set_global_parallelism(Par::Seq));
}

/// Leading right singular vectors of a row-major `rows x cols` matrix.
pub struct RowSpace {
    /// `[<= count x cols]`, orthonormal rows, each with its entry of largest magnitude positive.
    pub vectors: Vec<f32>,
    /// All singular values, descending.
    pub values: Vec<f64>,
}

/// The leading `count` right singular vectors; fewer when the matrix has a smaller rank.
///
/// # Errors
/// When the matrix holds NaN or infinity, or the decomposition does not converge.
pub fn row_space(matrix: &[f32], rows: usize, cols: usize, count: usize) -> Result<RowSpace> {
    if let Some(v) = matrix.iter().find(|v| !v.is_finite()) {
        return Err(Error::numeric(format!("a gradient holds {v}")));
    }
    if matrix.iter().all(|v| *v == 0.0) {
        return Ok(RowSpace { vectors: Vec::new(), values: vec![0.0; rows.min(cols)] });
    }
    on_one_thread();
    // Through the smaller Gram matrix in f64: the entries are f32, so squaring loses nothing that was known.
    let g = Mat::<f64>::from_fn(rows, cols, |i, j| matrix[i * cols + j] as f64);
    let wide = cols > rows;
    let gram = if wide { &g * g.transpose() } else { g.transpose() * &g };
    let size = rows.min(cols);
    let failed = |e| Error::numeric(format!("the decomposition of a gradient did not converge: {e:?}"));
    let eigen = gram.self_adjoint_eigen(Side::Lower).map_err(failed)?;
    let values: Vec<f64> = (0..size).rev().map(|i| eigen.S()[i].max(0.0).sqrt()).collect();
    let known = values.iter().take(count).take_while(|v| **v > values[0] * 1e-7 && **v > 0.0).count();
    let mut vectors = Vec::with_capacity(known * cols);
    for (i, value) in values.iter().enumerate().take(known) {
        let u = eigen.U().col(size - 1 - i);
        let v = if wide { g.transpose() * u } else { u.to_owned() };
        let scale = if wide { 1.0 / value } else { 1.0 };
        let mut row: Vec<f32> = (0..cols).map(|j| (v[j] * scale) as f32).collect();
        let largest = row.iter().copied().fold(0f32, |a, b| if b.abs() > a.abs() { b } else { a });
        if largest < 0.0 {
            row.iter_mut().for_each(|x| *x = -*x);
        }
        vectors.extend(row);
    }
    Ok(RowSpace { vectors, values })
}

/// Eigenvalues (descending) of a symmetric `n x n` matrix and the eigenvectors as rows in the same order.
pub fn symmetric_eigen(matrix: &[f32], n: usize) -> Result<(Vec<f64>, Vec<f32>)> {
    if let Some(v) = matrix.iter().find(|v| !v.is_finite()) {
        return Err(Error::numeric(format!("a second moment holds {v}")));
    }
    let c = Mat::<f64>::from_fn(n, n, |i, j| 0.5 * (matrix[i * n + j] as f64 + matrix[j * n + i] as f64));
    let (values, u) = eigen(&c)?;
    let vectors = (0..n * n).map(|at| u[(at % n, at / n)] as f32).collect();
    Ok((values, vectors))
}

/// Eigenvalues (descending) of a symmetric matrix, of which the lower triangle is read, and its eigenvectors as columns.
fn eigen(c: &Mat<f64>) -> Result<(Vec<f64>, Mat<f64>)> {
    on_one_thread();
    let eigen = c.self_adjoint_eigen(Side::Lower).map_err(|e| {
        Error::numeric(format!("the eigendecomposition of a second moment did not converge: {e:?}"))
    })?;
    let n = c.nrows();
    let values: Vec<f64> = (0..n).rev().map(|i| eigen.S()[i]).collect();
    let u = eigen.U();
    Ok((values, Mat::from_fn(n, n, |i, j| u[(i, n - 1 - j)])))
}

/// The eigenvalues (descending) of `R B^-1 Rᵀ` and its eigenvectors as rows; B and R are row-major `q x q`, and B is symmetric
/// with eigenvalues of at least `least`: what is below it is rounding, and counts for it.
pub fn nystrom_eigen(r: &[f32], b: &[f32], q: usize, least: f64) -> Result<(Vec<f64>, Vec<f32>)> {
    if let Some(v) = r.iter().chain(b).find(|v| !v.is_finite()) {
        return Err(Error::numeric(format!("the sketch of a second moment holds {v}")));
    }
    let at = |m: &[f32], i: usize, j: usize| m[i * q + j] as f64;
    let (b_values, v) = eigen(&Mat::from_fn(q, q, |i, j| 0.5 * (at(b, i, j) + at(b, j, i))))?;
    let half = Mat::from_fn(q, q, |i, j| at(r, i, j)) * v;
    let scaled = Mat::from_fn(q, q, |i, j| half[(i, j)] / b_values[j].max(least).sqrt());
    let (values, u) = eigen(&(&scaled * scaled.transpose()))?;
    let vectors = (0..q * q).map(|at| u[(at % q, at / q)] as f32).collect();
    Ok((values, vectors))
}

/// The transpose of a row-major `rows x cols` matrix.
pub fn transpose(matrix: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    (0..rows * cols).map(|i| matrix[(i % rows) * cols + i / rows]).collect()
}
