//! The transformer: architecture, weights, explicit forward and backward, over [`crate::backend`].
//!
//! Read in this order: `architecture` (what a model is), `families` (what each family's config.json says of it), `layout`
//! (blocks and numbered layers),
//! `forward`, `backward` (the same upwards), `infer`.

mod architecture;
mod backward;
mod batch;
mod checked;
mod diagnosis;
mod families;
mod fields;
mod forward;
pub mod hub;
mod infer;
mod layout;
mod load;
mod names;
mod nearest;
mod quantised;
mod rotary;
mod rows;
mod save;
pub mod shapes;
mod text;
mod weights;

pub use architecture::{Architecture, Family, Narrow, Norms, QueryKeyNorms, Relative, Sliding};
pub use batch::{Batch, Inference, Labels, Packed, Visible};
pub use checked::Checked;
pub(crate) use diagnosis::no_pointer;
pub use forward::{Keep, Observer};
pub use layout::{DenseKind, DenseSpec, Layout};
pub use load::LoadOptions;
pub use quantised::{Quantisation, Scheme};
pub use rotary::{Longer, Rotary};
pub use save::{StoredType, write_safetensors};
pub use text::{general_pass, passes};
pub use weights::Weights;

use crate::backend::{
    AdaptedLinear, Backend, CrossEntropy, DType, Gather, HeadGradient, Indices, Mat, MatMut, PerSegment,
    Tensor, trace,
};
use crate::error::Result;
use crate::layers::{Layers, Tap, Want};
use backward::{Backward, DenseSums};
use forward::{SavedStack, StackContext};
use rows::Rows;
use std::ops::Range;
use std::sync::Arc;

/// A model on a device.
pub struct Model {
    /// Where it computes.
    pub backend: Arc<dyn Backend>,
    /// Its shape and constants; `vocabulary` includes rows appended on loading.
    pub architecture: Architecture,
    /// Its layers and parameters by number.
    pub layout: Layout,
    /// The linear layers, numbered as `layout.sites`.
    pub linears: Vec<AdaptedLinear>,
    /// Dense parameters, numbered as `layout.dense`; `None` for biases, which their layer holds.
    dense: Vec<Option<Tensor>>,
    /// The dense parameter that is a site's bias.
    bias_of: Vec<Option<usize>>,
    /// Rotary frequencies, numbered as `layout.rotary`.
    rotary: Vec<Tensor>,
    /// Identifies the stored weights and configuration; binds a knowledge basis to its model.
    pub fingerprint: String,
}

/// Targets of a batch that are chosen on the way, see [`Model::forward_choosing`].
pub struct Choosing<'a> {
    /// Rows of the head that count: the softmax is over these.
    pub vocabulary: usize,
    /// Sees every linear layer of the forward pass.
    pub observer: &'a mut dyn Observer,
    /// Given the final hidden states of the labelled rows, `[labels x D]`, says what each is to predict.
    pub choose: &'a mut dyn FnMut(&Tensor) -> Result<Vec<u32>>,
}

/// A forward pass that a backward pass can follow.
pub struct Forward {
    /// The loss of every label.
    nll: Tensor,
    saved: Option<Saved>,
}

struct Saved {
    encoder: Option<(Rows, SavedStack, Tensor)>,
    decoder: Rows,
    decoder_saved: SavedStack,
    label_rows: Indices,
    label_segments: Vec<Range<usize>>,
    /// Gradient of the final norm's output on labelled rows.
    dx: Tensor,
    /// The head's gradient, computed with the loss.
    sums: DenseSums,
}

/// A forward pass up to the final hidden states of labelled rows.
struct Body {
    encoder: Option<(Rows, Option<SavedStack>, Tensor)>,
    decoder: Rows,
    decoder_saved: Option<SavedStack>,
    label_rows: Indices,
    /// `[labels x D]`.
    hidden: Tensor,
}

impl Body {
    /// With the gradient of the hidden states, what a backward pass needs, if that was kept.
    fn save(self, label_segments: &[Range<usize>], dx: Tensor, sums: DenseSums) -> Option<Saved> {
        let encoder = match self.encoder {
            Some((rows, saved, memory)) => Some((rows, saved?, memory)),
            None => None,
        };
        let (decoder, decoder_saved, label_rows) = (self.decoder, self.decoder_saved?, self.label_rows);
        let label_segments = label_segments.to_vec();
        Some(Saved { encoder, decoder, decoder_saved, label_rows, label_segments, dx, sums })
    }
}

impl Forward {
    /// Negative log-likelihood of every label, in the batch's order. Waits for the device.
    pub fn nll(&self, backend: &dyn Backend) -> Result<Vec<f32>> {
        backend.download(self.nll.mat())
    }
}

impl Model {
    /// A dense parameter (a bias is read from its layer).
    pub fn parameter(&self, index: usize) -> Mat<'_> {
        match (&self.dense[index], self.layout.dense[index].kind) {
            (Some(tensor), _) => tensor.mat(),
            (None, DenseKind::Bias(site)) => match &self.linears[site].bias {
                Some(bias) => bias.mat(),
                None => unreachable!("a bias in the layout is in its layer"),
            },
            (None, _) => unreachable!("only biases live in their layer"),
        }
    }
    /// A dense parameter, to write.
    pub fn parameter_mut(&mut self, index: usize) -> MatMut<'_> {
        match (&mut self.dense[index], self.layout.dense[index].kind) {
            (Some(tensor), _) => tensor.mat_mut(),
            (None, DenseKind::Bias(site)) => match &mut self.linears[site].bias {
                Some(bias) => bias.mat_mut(),
                None => unreachable!("a bias in the layout is in its layer"),
            },
            (None, _) => unreachable!("only biases live in their layer"),
        }
    }
    /// The number of the dense parameter that projects onto the vocabulary: the head, or the tied table.
    pub fn head(&self) -> usize {
        self.layout.head.unwrap_or(Layout::EMBEDDING)
    }

    fn embed(&self, rows: &Rows) -> Result<Tensor> {
        let be = &self.backend;
        let mut x = be.alloc(rows.count(), self.architecture.hidden, be.compute_dtype())?;
        let (from, scale) = (self.parameter(Layout::EMBEDDING), self.architecture.embedding_scale);
        be.run(Gather { from, rows: &rows.tokens, scale, to: x.mat_mut() })?;
        Ok(x)
    }

    /// Runs the stacks.
    fn body(&self, batch: &Batch, keep: Keep, mut observer: Option<&mut dyn Observer>) -> Result<Body> {
        let encoder = match (&self.layout.encoder, &batch.encoder) {
            (Some(stack), Some(packed)) => {
                let rows = Rows::new(self, packed)?;
                let context = StackContext { rows: &rows, memory: None, visible: None, visible_near: None };
                let (memory, saved) =
                    self.run_stack(stack, &context, self.embed(&rows)?, None, keep, &mut observer)?;
                Some((rows, saved, memory))
            }
            _ => None,
        };
        let rows = Rows::new(self, &batch.decoder)?;
        let label_rows = self.backend.indices(&batch.labels.rows)?;
        let memory = encoder.as_ref().map(|(rows, _, memory)| (memory, rows));
        let context = StackContext { rows: &rows, memory, visible: None, visible_near: None };
        let wanted = Some((&label_rows, batch.labels.segments.as_slice()));
        let (hidden, decoder_saved) =
            self.run_stack(self.layout.decoder(), &context, self.embed(&rows)?, wanted, keep, &mut observer)?;
        Ok(Body { encoder, decoder: rows, decoder_saved, label_rows, hidden })
    }

    /// Runs a batch: the negative log-likelihood of every label and, with a `tap` (whose wishes decide
    /// what is computed), everything a backward pass needs. `checkpointing` keeps block inputs only.
    pub fn forward(&self, batch: &Batch, checkpointing: bool, tap: Option<&dyn Tap>) -> Result<Forward> {
        let _span = trace::span("forward");
        let body = self.body(batch, Keep::of(checkpointing, tap.is_some()), None)?;
        let (labels, vocabulary) = (&batch.labels, self.parameter(self.head()).rows);
        let (nll, head) = self.loss(labels, &labels.targets, &body.hidden, vocabulary, tap)?;
        Ok(Forward { nll, saved: head.and_then(|(dx, sums)| body.save(&labels.segments, dx, sums)) })
    }

    /// The same, always ready for a backward pass, with targets that are only chosen when the final hidden states are
    /// known: those of `batch` are not looked at. Activations are computed again in the backward pass.
    pub fn forward_choosing(&self, batch: &Batch, tap: &dyn Tap, choosing: Choosing) -> Result<Forward> {
        let _span = trace::span("forward");
        let Choosing { vocabulary, observer, choose } = choosing;
        let body = self.body(batch, Keep::of(true, true), Some(observer))?;
        let (labels, targets) = (&batch.labels, choose(&body.hidden)?);
        let (nll, head) = self.loss(labels, &targets, &body.hidden, vocabulary, Some(tap))?;
        Ok(Forward { nll, saved: head.and_then(|(dx, sums)| body.save(&labels.segments, dx, sums)) })
    }

    /// The same with a `loss` of its own, which has nothing to say of the head: of the final hidden states `[labels x D]`
    /// of the batch's labelled rows it gives its value of each, *f32* `[labels x 1]`, and its gradient, `[labels x D]`.
    pub fn forward_with(
        &self,
        batch: &Batch,
        checkpointing: bool,
        loss: impl FnOnce(&Tensor) -> Result<(Tensor, Tensor)>,
    ) -> Result<Forward> {
        let _span = trace::span("forward");
        let body = self.body(batch, Keep::of(checkpointing, true), None)?;
        let _span = trace::span("head");
        let (nll, dx) = loss(&body.hidden)?;
        Ok(Forward { nll, saved: body.save(&batch.labels.segments, dx, DenseSums::default()) })
    }

    /// The loss of labelled hidden states `x` over the first `vocabulary` rows of the head; with a tap, the gradient of x,
    /// and the head's own where it is wanted.
    fn loss(
        &self,
        labels: &Labels,
        targets: &[u32],
        x: &Tensor,
        vocabulary: usize,
        tap: Option<&dyn Tap>,
    ) -> Result<(Tensor, Option<(Tensor, DenseSums)>)> {
        let _span = trace::span("head");
        let (be, count) = (&self.backend, labels.rows.len());
        let targets = be.indices(targets)?;
        let weights = be.tensor(&labels.weights, count, 1, DType::F32)?;
        let mut nll = be.alloc(count, 1, DType::F32)?;
        let loss = CrossEntropy {
            x: x.mat(),
            head: self.parameter(self.head()).row_range(0..vocabulary),
            logit_scale: self.architecture.logit_scale,
            softcap: self.architecture.logit_softcap,
            targets: &targets,
            weights: weights.mat(),
            nll: nll.mat_mut(),
            dx: None,
            head_gradient: None,
        };
        let Some(tap) = tap else {
            be.run(loss)?;
            return Ok((nll, None));
        };
        let mut dx = be.alloc(count, self.architecture.hidden, x.dtype())?;
        let mut sums = DenseSums::default();
        let whole = [0..count];
        let head_gradient =
            sums.wanted(self, tap, self.head(), labels.segments.len())?.map(|(sum, first_row, per_task)| {
                let segments: &[Range<usize>] = if per_task { &labels.segments } else { &whole };
                HeadGradient { first_row, grad: PerSegment { segments, out: sum.mat_mut() } }
            });
        be.run(CrossEntropy { dx: Some(dx.mat_mut()), head_gradient, ..loss })?;
        Ok((nll, Some((dx, sums))))
    }

    /// The backward pass of `forward` (which must have been run with a tap that wanted the same); gives back
    /// the losses, `[labels x 1]`.
    pub fn backward(&self, forward: Forward, tap: &mut dyn Tap) -> Result<Tensor> {
        let Forward { nll, saved } = forward;
        let Some(saved) = saved else { return Ok(nll) };
        let _span = trace::span("backward");
        let Saved { encoder, decoder, decoder_saved, label_rows, label_segments, dx, sums } = saved;
        let mut pass = Backward { model: self, tap, sums };
        let mut memory_gradient = match &encoder {
            Some((_, _, memory)) => Some(self.backend.zeros(memory.rows(), memory.cols(), memory.dtype())?),
            None => None,
        };
        let memory = encoder.as_ref().map(|(rows, _, memory)| (memory, rows));
        let context = StackContext { rows: &decoder, memory, visible: None, visible_near: None };
        let wanted = Some((&label_rows, label_segments.as_slice()));
        let stack = self.layout.decoder();
        let need = self.input_wanted(&*pass.tap, stack);
        let g = pass.stack(stack, &context, decoder_saved, wanted, dx, (need, memory_gradient.as_mut()))?;
        if let Some(g) = g {
            pass.embedding(&decoder, &g)?;
        }
        if let (Some((rows, saved, _)), Some(stack), Some(g)) =
            (encoder, &self.layout.encoder, memory_gradient)
        {
            let context = StackContext { rows: &rows, memory: None, visible: None, visible_near: None };
            let need = self.input_wanted(&*pass.tap, stack);
            if let Some(g) = pass.stack(stack, &context, saved, None, g, (need, None))? {
                pass.embedding(&rows, &g)?;
            }
        }
        let Backward { tap, sums, .. } = pass;
        for (index, sum) in sums.0 {
            tap.dense(index, sum.mat())?;
        }
        Ok(nll)
    }

    /// Whether anybody wants the gradient of a stack's embedded input, or of its first norm.
    fn input_wanted(&self, tap: &dyn Tap, stack: &layout::Stack) -> bool {
        let first = stack.blocks.first().and_then(|block| block.before);
        tap.wants(Layout::EMBEDDING) != Want::Nothing || first.is_some_and(|n| tap.wants(n) != Want::Nothing)
    }
}

impl Layers for Model {
    fn linears(&mut self) -> &mut [AdaptedLinear] {
        &mut self.linears
    }
    fn dense(&mut self, index: usize) -> MatMut<'_> {
        self.parameter_mut(index)
    }
}
