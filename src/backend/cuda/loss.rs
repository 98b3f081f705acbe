//! The vocabulary projection and its cross entropy: `kernels/cross_entropy.cu` between two products.

use super::Cuda;
use super::driver::Shape;
use super::launch::{View, address, tag, view, view_mut};
use crate::backend::trace::Work;
use crate::backend::{DType, HeadGradient, Indices, Mat, MatMut, Op, Tensor};
use crate::error::Result;
use bytemuck::{Pod, Zeroable};

/// Most logits held at once (64 MiB): enough rows for the products to be efficient.
const LOGITS: usize = 16 << 20;

/// `struct CrossEntropyArguments`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct CrossEntropyArguments {
    logits: View,
    gradient: View,
    weights: View,
    nll: View,
    targets: u64,
    logit_scale: f32,
    unused: f32,
}

/// One call of [`crate::backend::Backend::cross_entropy`].
pub(super) struct CrossEntropy<'a> {
    pub x: Mat<'a>,
    pub head: Mat<'a>,
    pub logit_scale: f32,
    pub targets: &'a Indices,
    pub weights: Mat<'a>,
}

impl Cuda {
    /// In f32, as many as the CPU backend holds: whoever counts memory with kernels that compute nothing counts for
    /// it too.
    fn most_logits(&self) -> usize {
        if self.dtype == DType::F32 { crate::backend::cpu::LOGITS } else { LOGITS }
    }

    /// See [`crate::backend::Backend::cross_entropy`].
    pub(super) fn cross_entropy(
        &self,
        call: CrossEntropy,
        mut nll: MatMut,
        mut dx: Option<MatMut>,
        mut head_gradient: Option<HeadGradient>,
    ) -> Result<()> {
        let CrossEntropy { x, head, .. } = call;
        assert!(call.targets.len() == x.rows && x.cols == head.cols && nll.rows == x.rows, "cross_entropy");
        let wants_gradient = dx.is_some() || head_gradient.is_some();
        let step = (self.most_logits() / head.rows.max(1)).clamp(1, x.rows.max(1));
        let mut start = 0;
        while start < x.rows {
            // Chunks end at segments of the head's gradient, so that each belongs to one of them.
            let segment =
                head_gradient.as_ref().and_then(|h| h.segments.iter().position(|s| s.contains(&start)));
            let limit = match (&head_gradient, segment) {
                (Some(h), Some(s)) => h.segments[s].end,
                (Some(h), None) => {
                    h.segments.iter().map(|s| s.start).filter(|s| *s > start).min().unwrap_or(x.rows)
                }
                (None, _) => x.rows,
            };
            let rows = start..(start + step).min(limit).min(x.rows);
            let mut logits = self.padded(rows.len(), head.rows, DType::F32)?;
            let mut gradient = match x.dtype {
                DType::BF16 if wants_gradient => Some(self.padded(rows.len(), head.rows, DType::BF16)?),
                _ => None,
            };
            let part = self.loss_of_rows(
                &call,
                rows.clone(),
                &mut logits,
                gradient.as_mut(),
                &mut nll,
                wants_gradient,
            )?;
            if let Some(dx) = &mut dx {
                self.matmul(dx.reborrow().row_range(rows.clone()), 0.0, 1.0, (part, Op::N), (head, Op::N))?;
            }
            if let (Some(h), Some(segment)) = (&mut head_gradient, segment) {
                let trained = head.rows - h.first_row;
                let to = h.out.reborrow().row_range(segment * trained..(segment + 1) * trained);
                let columns = part.col_range(h.first_row..head.rows);
                self.matmul(to, 1.0, 1.0, (columns, Op::T), (x.row_range(rows.clone()), Op::N))?;
            }
            start = rows.end;
        }
        Ok(())
    }

    /// Rows of a multiple of 8 columns, so that the products find them aligned.
    fn padded(&self, rows: usize, cols: usize, dtype: DType) -> Result<Tensor> {
        self.new_tensor(rows, cols.next_multiple_of(8), dtype)
    }

    /// Losses of some rows; returns their logits' gradients (an f32 gradient replaces the logits).
    fn loss_of_rows<'a>(
        &self,
        call: &CrossEntropy,
        rows: std::ops::Range<usize>,
        logits: &'a mut Tensor,
        gradient: Option<&'a mut Tensor>,
        nll: &mut MatMut,
        wants_gradient: bool,
    ) -> Result<Mat<'a>> {
        let (head, vocabulary) = (call.head, call.head.rows);
        let x = call.x.row_range(rows.clone());
        let target = logits.mat_mut().col_range(0..vocabulary);
        self.matmul(target, 0.0, call.logit_scale, (x, Op::N), (head, Op::T))?;
        let dtype = gradient.as_ref().map_or(DType::F32, |g| g.dtype());
        let logits = logits.mat().col_range(0..vocabulary);
        let part = gradient.map_or(logits, |g| g.mat().col_range(0..vocabulary));
        let arguments = CrossEntropyArguments {
            logits: view(logits),
            gradient: if wants_gradient { view(part) } else { View::NONE },
            weights: view(call.weights.row_range(rows.clone())),
            nll: view_mut(&nll.reborrow().row_range(rows.clone())),
            targets: address(call.targets) + 4 * rows.start as u64,
            logit_scale: call.logit_scale,
            unused: 0.0,
        };
        let shape = Shape::line(rows.len(), 256).shared(256);
        // Logits read once; their gradient written (in place, or beside them).
        let elements = (rows.len() * vocabulary) as u64;
        let written = if wants_gradient { dtype.bytes() as u64 } else { 0 };
        let work = Work::new(elements * (4 + written), 6 * elements);
        self.launch(&format!("cross_entropy_{}", tag(dtype)), shape, &arguments, work)?;
        Ok(part)
    }
}
