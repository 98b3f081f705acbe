//! Forward passes without gradients: hidden states of chosen rows, logits.

use super::forward::{Keep, Observer, StackContext};
use super::rows::Rows;
use super::{Inference, Model, Visible};
use crate::backend::{DType, Indices, Mat, Softcap, Tensor};
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
                let context = StackContext { rows: &rows, memory: None, visible: None, visible_near: None };
                let embedded = self.embed(&rows)?;
                let (memory, _) =
                    self.run_stack(stack, &context, embedded, None, Keep::Nothing, &mut observer)?;
                Some((rows, memory))
            }
            _ => None,
        };
        let rows = Rows::new(self, &request.decoder)?;
        let listed = |v: &Visible| -> Result<_> { Ok((be.indices(&v.offsets)?, be.indices(&v.keys)?)) };
        let visible = request.visible.as_ref().map(listed).transpose()?;
        let windowed = request.visible.as_ref().zip(self.architecture.sliding.as_ref());
        let near =
            windowed.map(|(v, s)| listed(&v.within(s.window, &request.decoder.positions))).transpose()?;
        let context = StackContext {
            rows: &rows,
            memory: encoder.as_ref().map(|(rows, memory)| (memory, rows)),
            visible: visible.as_ref().map(|(offsets, keys)| (offsets, keys)),
            visible_near: near.as_ref().map(|(offsets, keys)| (offsets, keys)),
        };
        let wanted = wanted.map(|rows| (rows, [].as_slice()));
        let stack = self.layout.decoder();
        let (hidden, _) =
            self.run_stack(stack, &context, self.embed(&rows)?, wanted, Keep::Nothing, &mut observer)?;
        Ok(hidden)
    }

    /// Logits of hidden states, *f32* `[rows x V]`.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        self.logits_of(hidden.mat(), self.parameter(self.head()))
    }

    /// The same over some rows of a head, which need not be the model's present one.
    pub fn logits_of(&self, hidden: Mat, head: Mat) -> Result<Tensor> {
        let be = &self.backend;
        let mut logits = be.alloc(hidden.rows, head.rows, DType::F32)?;
        be.product(logits.mat_mut(), 0.0, self.architecture.logit_scale, hidden.n(), head.t())?;
        if let Some(cap) = self.architecture.logit_softcap {
            be.run(Softcap { x: logits.mat_mut(), cap })?;
        }
        Ok(logits)
    }
}
