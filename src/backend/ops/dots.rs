//! Inner products.

use super::is_f32;
use crate::backend::work::{Work, bytes};
use crate::backend::{Mat, MatMut};

/// `out[i] = <x_i, y_i>`, accumulated in f64.
pub struct Dots<'a> {
    /// Equally shaped *f32* matrices.
    pub pairs: Vec<(Mat<'a>, Mat<'a>)>,
    /// *f32* `[1 x pairs]`, written.
    pub out: MatMut<'a>,
}

impl Dots<'_> {
    pub(in crate::backend) fn check(&self) {
        let fits = |(x, y): &(Mat, Mat)| x.shape() == y.shape() && is_f32(*x) && is_f32(*y);
        assert!(self.pairs.iter().all(fits), "dots");
        assert!(self.out.cols >= self.pairs.len(), "dots: out");
    }
    pub(in crate::backend) fn work(&self) -> Work {
        let read = self.pairs.iter().map(|(x, y)| bytes(*x) + bytes(*y)).sum();
        Work::new(read, read / 4)
    }
}
