//! Forward passes without gradients: hidden states of chosen rows, logits.

use super::forward::{Keep, Observer, Rows, Surroundings};
use super::{Inference, Model};
use crate::backend::{DType, Indices, Op, Tensor};
use crate::error::Result;

impl Model {
    /// The final hidden states (after the final norm) of the wanted rows, `[rows x D]`.
    pub fn hidden(&self, request: &Inference) -> Result<Tensor> {
        let rows = self.backend.indices(&request.rows)?;
        self.infer(request, Some(&rows), None)
    }

    /// The final hidden states of all rows; `observer` sees every linear layer on the way.
    pub fn observe(&self, request: &Inference, observer: &mut dyn Observer) -> Result<Tensor> {
        self.infer(request, None, Some(observer))
    }

    fn infer(
        &self,
        request: &Inference,
        wanted: Option<&Indices>,
        mut observer: Option<&mut dyn Observer>,
    ) -> Result<Tensor> {
        let be = &self.backend;
        let encoder = match (&self.layout.encoder, &request.encoder) {
            (Some(stack), Some(packed)) => {
                let rows = Rows::new(self, packed)?;
                let around = Surroundings { rows: &rows, memory: None, visible: None };
                let embedded = self.embed(&rows)?;
                let (memory, _) =
                    self.run_stack(stack, &around, embedded, None, Keep::Nothing, &mut observer)?;
                Some((rows, memory))
            }
            _ => None,
        };
        let rows = Rows::new(self, &request.decoder)?;
        let visible = match &request.visible {
            Some(v) => Some((be.indices(&v.offsets)?, be.indices(&v.keys)?)),
            None => None,
        };
        let around = Surroundings {
            rows: &rows,
            memory: encoder.as_ref().map(|(rows, memory)| (memory, rows)),
            visible: visible.as_ref().map(|(offsets, keys)| (offsets, keys)),
        };
        let wanted = wanted.map(|rows| (rows, [].as_slice()));
        let stack = self.layout.decoder();
        let (hidden, _) =
            self.run_stack(stack, &around, self.embed(&rows)?, wanted, Keep::Nothing, &mut observer)?;
        Ok(hidden)
    }

    /// Logits of hidden states, *f32* `[rows x V]`.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        let be = &self.backend;
        let head = self.parameter(self.head());
        let mut logits = be.alloc(hidden.rows(), head.rows, DType::F32)?;
        let scale = self.architecture.logit_scale;
        be.matmul(logits.mat_mut(), 0.0, scale, hidden.mat(), Op::N, head, Op::T)?;
        Ok(logits)
    }

    /// Logits of the given tokens only, *f32* `[rows x tokens]`.
    pub fn logits_of(&self, hidden: &Tensor, tokens: &[u32]) -> Result<Tensor> {
        let be = &self.backend;
        let rows = be.indices(tokens)?;
        let head = self.parameter(self.head());
        let mut chosen = be.alloc(tokens.len(), head.cols, head.dtype)?;
        be.gather_rows(head, &rows, chosen.mat_mut())?;
        let mut logits = be.alloc(hidden.rows(), tokens.len(), DType::F32)?;
        let scale = self.architecture.logit_scale;
        be.matmul(logits.mat_mut(), 0.0, scale, hidden.mat(), Op::N, chosen.mat(), Op::T)?;
        Ok(logits)
    }
}
