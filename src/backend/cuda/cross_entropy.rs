//! The vocabulary projection and its cross entropy: `kernels/cross_entropy.cu` between two products.

use super::Cuda;
use super::abi::{CrossEntropyArguments, Launch, Matrix};
use super::kernels;
use super::launch::{address, view, view_mut};
use crate::backend::ops::chunk_end;
use crate::backend::work::Work;
use crate::backend::{CrossEntropy, DType, Mat, Matmul, Tensor};
use crate::error::Result;
use std::ops::Range;

impl Cuda {
    pub(super) fn cross_entropy(&self, mut op: CrossEntropy) -> Result<()> {
        let (x, head, labels) = (op.x, op.head, op.x.rows);
        let wants_gradient = op.dx.is_some() || op.head_gradient.is_some();
        let step = (self.info.max_logits / head.rows.max(1)).clamp(1, labels.max(1));
        let mut start = 0;
        while start < labels {
            let segments = op.head_gradient.as_ref().map(|h| h.grad.segments);
            let (end, segment) = chunk_end((start, step, labels), segments);
            let rows = start..end;
            let mut logits = self.padded(rows.len(), head.rows, DType::F32)?;
            let mut gradient = match x.dtype {
                DType::BF16 if wants_gradient => Some(self.padded(rows.len(), head.rows, DType::BF16)?),
                _ => None,
            };
            let part =
                self.loss_of_rows(&mut op, rows.clone(), &mut logits, gradient.as_mut(), wants_gradient)?;
            if let Some(dx) = &mut op.dx {
                let c = dx.reborrow().row_range(rows.clone());
                self.matmul(Matmul { c, beta: 0.0, alpha: 1.0, a: part.n(), b: head.n() })?;
            }
            if let (Some(h), Some(segment)) = (&mut op.head_gradient, segment) {
                let trained = head.rows - h.first_row;
                let c = h.grad.out.reborrow().row_range(segment * trained..(segment + 1) * trained);
                let (a, b) = (part.col_range(h.first_row..head.rows).t(), x.row_range(rows.clone()).n());
                self.matmul(Matmul { c, beta: 1.0, alpha: 1.0, a, b })?;
            }
            start = end;
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
        call: &mut CrossEntropy,
        rows: Range<usize>,
        logits: &'a mut Tensor,
        gradient: Option<&'a mut Tensor>,
        wants_gradient: bool,
    ) -> Result<Mat<'a>> {
        let (head, vocabulary) = (call.head, call.head.rows);
        let x = call.x.row_range(rows.clone());
        let c = logits.mat_mut().col_range(0..vocabulary);
        self.matmul(Matmul { c, beta: 0.0, alpha: call.logit_scale, a: x.n(), b: head.t() })?;
        if let Some(cap) = call.softcap {
            self.softcap(cap, &logits.mat_mut().col_range(0..vocabulary))?;
        }
        let dtype = gradient.as_ref().map_or(DType::F32, |g| g.dtype());
        let logits = logits.mat().col_range(0..vocabulary);
        let part = gradient.map_or(logits, |g| g.mat().col_range(0..vocabulary));
        let arguments = CrossEntropyArguments {
            logits: view(logits),
            gradient: if wants_gradient { view(part) } else { Matrix::NONE },
            weights: view(call.weights.row_range(rows.clone())),
            nll: view_mut(&call.nll.reborrow().row_range(rows.clone())),
            targets: address(call.targets) + 4 * rows.start as u64,
            logit_scale: call.logit_scale,
            softcap: call.softcap.unwrap_or(0.0),
        };
        let shape = Launch::line(rows.len(), 256).shared(256);
        // Logits read once; their gradient written (in place, or beside them).
        let elements = (rows.len() * vocabulary) as u64;
        let written = if wants_gradient { dtype.bytes() as u64 } else { 0 };
        let work = Work::new(elements * (4 + written), 6 * elements);
        self.launch(kernels::cross_entropy(dtype), shape, &arguments, work)?;
        Ok(part)
    }
}
