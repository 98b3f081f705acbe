//! Rehearsal: general text read again while the model is tuned, so that its predictions stay those of the base model.
//!
//! The loss is the mean over tokens of KL(base || now), both over the base model's vocabulary (learning without forgetting: Li
//! and Hoiem, 2016). What the base model predicts follows from its final hidden states, which are taken before anything
//! is trained and kept on the host. Its gradient is held between two rehearsals ([`Optimizer::begin_rehearsal`]).

use crate::backend::{DType, Divergence, HostCopy, Mat, Tensor, trace};
use crate::error::{Error, Result};
use crate::eval::KeptStates;
use crate::gems::{Embeddings, MethodSettings, Optimizer, RehearsalSettings, Scales};
use crate::model::{Batch, Labels, Model, general_pass, passes};
use crate::random::{self, Purpose};

/// Text to rehearse, and what the base model made of it.
pub struct Rehearsal {
    settings: RehearsalSettings,
    seed: u64,
    /// Pieces of general text.
    texts: Vec<Vec<u32>>,
    /// The base model's final hidden states of every piece.
    before: Vec<HostCopy>,
    /// Vocabulary rows of the base model that are its own.
    old: usize,
    /// Its head, where that is trained.
    head: Option<Tensor>,
}

impl Rehearsal {
    /// Runs `texts` (token ids of calibration text) through `model`, which must still be the base model; the first `old`
    /// rows of its vocabulary are its own. `None`: the settings ask for no rehearsal.
    ///
    /// # Errors
    /// No text; the device.
    pub fn new(
        model: &Model,
        texts: Vec<Vec<u32>>,
        old: usize,
        settings: &MethodSettings,
        seed: u64,
    ) -> Result<Option<Self>> {
        Self::kept(model, texts, old, (settings, seed), None)
    }

    /// The same, with what others have kept of the base model's hidden states.
    ///
    /// # Errors
    /// As [`Rehearsal::new`]; the file system.
    pub fn kept(
        model: &Model,
        mut texts: Vec<Vec<u32>>,
        old: usize,
        (settings, seed): (&MethodSettings, u64),
        kept: Option<&KeptStates>,
    ) -> Result<Option<Self>> {
        if settings.rehearsal.every == 0 {
            return Ok(None);
        }
        // What holds item tokens the base model has never seen.
        texts.retain(|text| text.iter().all(|token| (*token as usize) < old));
        if texts.is_empty() {
            return Err(Error::data("there is no general text to rehearse")
                .remedy("add general.txt to the data directory, or set rehearsal.every = 0"));
        }
        let be = &model.backend;
        let mut before = Vec::with_capacity(texts.len());
        let compute =
            || passes(&texts).into_iter().map(|group| model.hidden(&general_pass(model, group))).collect();
        let states: Vec<Tensor> = match kept {
            Some(kept) => kept.get(model, ("hidden states", &texts), compute)?,
            None => compute()?,
        };
        for (group, hidden) in passes(&texts).into_iter().zip(&states) {
            let pass = general_pass(model, group);
            let ends = pass.decoder.offsets.windows(2);
            let of_texts = ends.map(|end| hidden.mat().row_range(end[0] as usize..end[1] as usize));
            before.extend(of_texts.map(|rows| HostCopy::of(&**be, rows)).collect::<Result<Vec<_>>>()?);
        }
        let head = match settings.optimizer.embeddings {
            Embeddings::All => {
                let head = model.parameter(model.head()).row_range(0..old);
                Some(be.duplicate(head, head.dtype)?)
            }
            Embeddings::New | Embeddings::None => None,
        };
        Ok(Some(Self { settings: settings.rehearsal.clone(), seed, texts, before, old, head }))
    }

    /// Tells whether two rehearsals are the same: of texts, of how many of them, and of their order.
    pub fn fingerprint(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        hasher.update(format!("{} {} {:?}", self.seed, self.old, self.settings).as_bytes());
        for text in &self.texts {
            hasher.update(&(text.len() as u64).to_le_bytes()).update(bytemuck::cast_slice(text));
        }
        hasher.finalize().to_hex().to_string()
    }

    /// Rehearses the texts of step `step` (a function of it and the seed). Nothing here waits for the device.
    ///
    /// # Errors
    /// The device.
    pub fn run(&self, model: &Model, tuner: &mut Optimizer, step: u64, checkpointing: bool) -> Result<()> {
        let _span = trace::span("rehearsal");
        let order = random::permutation(self.seed, Purpose::Rehearsal, 0, step, self.texts.len());
        let chosen = &order[..order.len().min(self.settings.texts)];
        let be = &model.backend;
        let texts: Vec<Vec<u32>> = chosen.iter().map(|i| self.texts[*i as usize].clone()).collect();
        let tokens = chosen.iter().map(|i| self.before[*i as usize].shape().0).sum::<usize>();
        let factor = model.architecture.logit_scale / tokens as f32;
        tuner.begin_rehearsal();
        let (mut all, mut done, mut at) = (be.alloc(tokens, 1, DType::F32)?, 0, 0);
        for group in passes(&texts) {
            let pass = general_pass(model, group);
            let rows = pass.rows.len();
            let labels = Labels { rows: pass.rows, segments: vec![0..rows], ..Labels::default() };
            let batch = Batch { encoder: pass.encoder, decoder: pass.decoder, labels };
            let before = self.hidden_before(model, &chosen[at..at + group.len()])?;
            tuner.begin_pass(Scales::default());
            let loss = |now: &Tensor| self.divergence(model, now.mat(), before.mat(), factor);
            let forward = model.forward_with(&batch, checkpointing, loss)?;
            let kl = model.backward(forward, tuner)?;
            be.copy(kl.mat(), all.mat_mut().row_range(done..done + rows))?;
            (done, at) = (done + rows, at + group.len());
        }
        tuner.finish_rehearsal(all.mat())
    }

    /// The base model's final hidden states of some texts, one after the other.
    fn hidden_before(&self, model: &Model, chosen: &[u32]) -> Result<Tensor> {
        let be = &model.backend;
        let texts = chosen.iter().map(|i| &self.before[*i as usize]);
        let rows = texts.clone().map(|t| t.shape().0).sum();
        let values: Vec<f32> = texts.flat_map(HostCopy::values).collect();
        be.tensor(&values, rows, model.architecture.hidden, be.compute_dtype())
    }

    /// The divergence of every row's predictions, and its gradient at the final hidden states `now` times `factor`. The
    /// head is gone over a few rows at a time.
    fn divergence(&self, model: &Model, now: Mat, before: Mat, factor: f32) -> Result<(Tensor, Tensor)> {
        let (be, old) = (&model.backend, self.old);
        let head = model.parameter(model.head()).row_range(0..old);
        let head_before = self.head.as_ref().map_or(head, Tensor::mat);
        let softcap = model.architecture.logit_softcap;
        let mut kl = be.alloc(now.rows, 1, DType::F32)?;
        let mut dx = be.alloc(now.rows, now.cols, now.dtype)?;
        let step = (be.info().max_logits / old.max(1)).clamp(1, now.rows.max(1));
        for start in (0..now.rows).step_by(step) {
            let rows = start..(start + step).min(now.rows);
            let mut logits = model.logits_of(now.row_range(rows.clone()), head)?;
            let then = model.logits_of(before.row_range(rows.clone()), head_before)?;
            let to = kl.mat_mut().row_range(rows.clone());
            be.run(Divergence { logits: logits.mat_mut(), before: then.mat(), factor, softcap, kl: to })?;
            drop(then);
            // In compute type, in rows of a multiple of 8 columns, which tensor cores take.
            let narrow = match now.dtype {
                DType::F32 => None,
                dtype => {
                    let mut narrow = be.alloc(rows.len(), old.next_multiple_of(8), dtype)?;
                    be.copy(logits.mat(), narrow.mat_mut().col_range(0..old))?;
                    Some(narrow)
                }
            };
            let gradient = narrow.as_ref().unwrap_or(&logits).mat().col_range(0..old);
            be.product(dx.mat_mut().row_range(rows), 0.0, 1.0, gradient.n(), head.n())?;
        }
        Ok((kl, dx))
    }
}
