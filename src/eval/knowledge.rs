//! What was forgotten: perplexity and divergence from the base model on general text.

use super::states::KeptStates;
use crate::backend::{Backend, DType, Dots, Mat, Tensor};
use crate::distributed::World;
use crate::error::Result;
use crate::model::{Inference, Model, Packed, general_pass, passes};
use rayon::prelude::*;
use serde::Serialize;

/// General knowledge of a model, over the old vocabulary.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct General {
    /// exp of the mean negative log-likelihood a token, renormalised over the old vocabulary.
    pub perplexity: f64,
    /// Mean KL(base || model) a token, both renormalised over the old vocabulary, in nats.
    pub kl: f64,
    /// Mean probability of tokens that the base model does not have.
    pub item_mass: f64,
    /// Tokens measured.
    pub tokens: usize,
}

/// KL(base || model) of every text, summed over its tokens, and how many these are: what tests over texts are made of.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct PerText {
    /// Nats, of all tokens of a text together.
    pub divergence: Vec<f64>,
    /// Tokens of the text that are predicted.
    pub tokens: Vec<usize>,
}

/// The base model's predictions on general text, kept as hidden states and head, so that they can be compared with
/// a model that has been tuned since.
pub struct Reference {
    chunks: Vec<Vec<u32>>,
    /// Of every group of texts that is compared here.
    hidden: Vec<Option<Tensor>>,
    head: Tensor,
    old: usize,
}

/// Where the final hidden states of a model that is measured come from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum States {
    /// It is the base model: those that were captured.
    Captured,
    /// A pass through it.
    Tuned,
}

/// Rows whose logits are held at a time.
const LOGIT_ROWS: usize = 256;

/// Rows of a pass that predict a token of their text, that token, and the text's number.
fn predictions(decoder: &Packed, chunks: &[Vec<u32>], encoder_decoder: bool) -> Vec<(u32, u32, usize)> {
    let mut all = Vec::new();
    for (text, (chunk, offset)) in chunks.iter().zip(&decoder.offsets).enumerate() {
        // A decoder-only row predicts the next token; an encoder-decoder's row i the i-th of the second half.
        let predicted = if encoder_decoder { &chunk[chunk.len() / 2..] } else { &chunk[1..] };
        all.extend(predicted.iter().enumerate().map(|(i, target)| (offset + i as u32, *target, text)));
    }
    all
}

impl Reference {
    /// Runs `chunks` (token ids of general text) through the base model, whose first `old` vocabulary rows are its
    /// own.
    pub fn capture(model: &Model, chunks: Vec<Vec<u32>>, old: usize) -> Result<Self> {
        Self::capture_over(&World::alone(), model, chunks, old, None)
    }

    /// The same by all ranks of `world`, each of which keeps what it will compare; with what earlier runs have `kept` of it.
    ///
    /// # Errors
    /// The device.
    pub fn capture_over(
        world: &World,
        model: &Model,
        chunks: Vec<Vec<u32>>,
        old: usize,
        kept: Option<&KeptStates>,
    ) -> Result<Self> {
        let head = model.parameter(model.head()).row_range(0..old);
        let head = model.backend.duplicate(head, head.dtype)?;
        let groups = passes(&chunks);
        let own = || (0..groups.len()).filter(|number| number % world.size() == world.rank());
        let compute =
            || own().map(|number| model.hidden(&predicting(model, groups[number], old).0)).collect();
        let what = format!("predictions below {old}, those of rank {} of {}", world.rank(), world.size());
        let found: Vec<Tensor> = match kept {
            Some(kept) => kept.get(model, (&what, &chunks), compute)?,
            None => compute()?,
        };
        let mut hidden: Vec<Option<Tensor>> = groups.iter().map(|_| None).collect();
        own().zip(found).for_each(|(number, states)| hidden[number] = Some(states));
        Ok(Self { chunks, hidden, head, old })
    }

    /// Compares a model with the base.
    pub fn measure(&self, model: &Model) -> Result<General> {
        self.measure_each(model).map(|(all, _)| all)
    }

    /// The same, and the divergence text by text.
    pub fn measure_each(&self, model: &Model) -> Result<(General, PerText)> {
        self.measure_each_over(&World::alone(), model)
    }

    /// The same by all ranks of the `world` that captured it, added up in the order of the texts.
    ///
    /// # Errors
    /// The device; ranks that do something else, or are silent.
    pub fn measure_each_over(&self, world: &World, model: &Model) -> Result<(General, PerText)> {
        self.measure_over(world, (model, States::Tuned), usize::MAX)
    }

    /// The same of the base model itself, which nothing was changed of but rows of new tokens: its states are those that were
    /// captured. Of the first passes only, which reach `most` tokens.
    ///
    /// # Errors
    /// As [`Self::measure_each_over`].
    pub fn base_over(&self, world: &World, model: &Model, most: usize) -> Result<(General, PerText)> {
        self.measure_over(world, (model, States::Captured), most)
    }

    /// The same of the first passes only, which reach `most` tokens: a look while training goes on.
    ///
    /// # Errors
    /// As [`Self::measure_each_over`].
    pub fn sample_over(&self, world: &World, model: &Model, most: usize) -> Result<General> {
        self.measure_over(world, (model, States::Tuned), most).map(|(all, _)| all)
    }

    fn measure_over(
        &self,
        world: &World,
        (model, states): (&Model, States),
        most: usize,
    ) -> Result<(General, PerText)> {
        let mut groups = passes(&self.chunks);
        let mut tokens = 0;
        groups.retain(|group| {
            let wanted = tokens < most;
            tokens += group.iter().map(Vec::len).sum::<usize>();
            wanted
        });
        let compared = world.in_turns(groups.len(), |number| match &self.hidden[number] {
            Some(base) => self.compare_group((model, states), groups[number], base),
            None => Ok(Vec::new()),
        })?;
        let (mut nll, mut kl, mut mass, mut tokens) = (0.0, 0.0, 0.0, 0usize);
        let mut texts =
            PerText { divergence: vec![0.0; self.chunks.len()], tokens: vec![0; self.chunks.len()] };
        let mut first = 0;
        for (group, compared) in groups.iter().zip(compared) {
            for (text, bits) in compared {
                let [row_nll, row_kl, row_mass] = bits.map(f64::from_bits);
                texts.divergence[first + text] += row_kl;
                texts.tokens[first + text] += 1;
                nll += row_nll;
                kl += row_kl;
                mass += row_mass;
                tokens += 1;
            }
            first += group.len();
        }
        let n = tokens.max(1) as f64;
        let all = General { perplexity: (nll / n).exp(), kl: (kl / n).max(0.0), item_mass: mass / n, tokens };
        Ok((all, texts))
    }

    /// Of every token of a group of texts its text, and what [`compare`] finds, as bits: a NaN has no other way between
    /// ranks.
    fn compare_group(
        &self,
        (model, states): (&Model, States),
        group: &[Vec<u32>],
        base: &Tensor,
    ) -> Result<Vec<(usize, [u64; 3])>> {
        let (be, head) = (&model.backend, model.parameter(model.head()));
        let (pass, targets, text_of) = predicting(model, group, self.old);
        let tuned = match states {
            States::Tuned => Some(model.hidden(&pass)?),
            States::Captured => None,
        };
        let hidden = tuned.as_ref().unwrap_or(base);
        let mut all = Vec::with_capacity(targets.len());
        for start in (0..targets.len()).step_by(LOGIT_ROWS) {
            let rows = start..(start + LOGIT_ROWS).min(targets.len());
            let logits = model.logits_of(hidden.mat().row_range(rows.clone()), head)?;
            let before = model.logits_of(base.mat().row_range(rows.clone()), self.head.mat())?;
            let (logits, before) = (be.download(logits.mat())?, be.download(before.mat())?);
            let pairs = logits.par_chunks_exact(head.rows).zip(before.par_chunks_exact(self.old));
            let each: Vec<[u64; 3]> = pairs
                .zip(&targets[rows.clone()])
                .map(|((now, before), target)| compare(now, before, *target as usize).map(f64::to_bits))
                .collect();
            all.extend(text_of[rows].iter().copied().zip(each));
        }
        Ok(all)
    }
}

/// Negative log-likelihood of `target`, KL(before || now), and the probability of what is new, of one token.
/// The first two over the tokens that both have.
fn compare(now: &[f32], before: &[f32], target: usize) -> [f64; 3] {
    let (old, new) = now.split_at(before.len());
    let most = |x: &[f32]| x.iter().copied().fold(f32::NEG_INFINITY, f32::max) as f64;
    let (top, top_before) = (most(now), most(before));
    let (mut sum, mut sum_before, mut difference) = (0.0, 0.0, 0.0);
    for (now, before) in old.iter().zip(before) {
        let (now, before) = (f64::from(*now) - top, f64::from(*before) - top_before);
        let weight = before.exp();
        sum += now.exp();
        sum_before += weight;
        difference += weight * (before - now);
    }
    let new: f64 = new.iter().map(|l| (f64::from(*l) - top).exp()).sum();
    let nll = sum.ln() - (f64::from(old[target]) - top);
    [nll, difference / sum_before - sum_before.ln() + sum.ln(), new / (sum + new)]
}

/// `Σ |dW x|²` over the rows of `x [T x N]`, with the change `dW [M x N]` of a layer's weight: how far its output on these
/// inputs has moved.
///
/// # Errors
/// The device.
pub fn drift(backend: &dyn Backend, change: Mat, x: Mat) -> Result<f64> {
    let mut moved = backend.alloc(x.rows, change.rows, DType::F32)?;
    backend.product(moved.mat_mut(), 0.0, 1.0, x.n(), change.t())?;
    let mut sum = backend.alloc(1, 1, DType::F32)?;
    backend.run(Dots { pairs: vec![(moved.mat(), moved.mat())], out: sum.mat_mut() })?;
    Ok(f64::from(backend.download(sum.mat())?[0]))
}

/// The pass whose final hidden states predict a token among the first `old`, those tokens, and the number of each one's text.
fn predicting(model: &Model, group: &[Vec<u32>], old: usize) -> (Inference, Vec<u32>, Vec<usize>) {
    let mut pass = general_pass(model, group);
    let mut all = predictions(&pass.decoder, group, pass.encoder.is_some());
    all.retain(|(_, target, _)| (*target as usize) < old);
    pass.rows = all.iter().map(|(row, ..)| *row).collect();
    let (targets, texts) = all.into_iter().map(|(_, target, text)| (target, text)).unzip();
    (pass, targets, texts)
}
