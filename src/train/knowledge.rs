//! What a base model knows, learned from general text streamed through it.

use crate::backend::{Backend, DType, Indices, Mat, Tensor};
use crate::distributed::{Tree, World};
use crate::error::{Error, Kind, Result};
use crate::gems::{Knowledge, NullSide, NullSpaceSettings, Spectrum, Sums, WHOLE};
use crate::layers::{LinearGradient, Tap, Want};
use crate::model::{Batch, Choosing, Labels, Model, Observer, general_pass, passes};
use crate::random::{self, Purpose};
use rand::RngExt;
use rayon::prelude::*;
use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Rows whose logits are held at a time.
const LOGIT_ROWS: usize = 256;
/// Sums are saved when so much time has passed since they were last.
const SAVE_EVERY: Duration = Duration::from_secs(120);

/// General text on its way through a base model.
pub struct KnowledgePass<'a> {
    /// The base model.
    pub model: &'a Model,
    /// What is wanted.
    pub settings: &'a NullSpaceSettings,
    /// Token ids of general text.
    pub chunks: &'a [Vec<u32>],
    /// Rows of the vocabulary that are the base model's own: sampled tokens are of these.
    pub vocabulary: usize,
    /// Decides the sampled tokens and the sketches.
    pub seed: u64,
    /// Where sums are kept while they are taken, to go on from after an interruption.
    pub partial: Option<&'a Path>,
    /// Set from outside to stop.
    pub interrupted: &'a AtomicBool,
}

/// What is told on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KnowledgeProgress {
    /// Sums of an interrupted pass were found, of so many tokens.
    Resumed(usize),
    /// So many of so many tokens have gone through the model.
    Tokens(usize, usize),
    /// So many of so many second moments are decomposed.
    Moments(usize, usize),
}

/// The moments of a forward pass, and of the backward pass that follows it.
struct Taking<'a> {
    sums: &'a RefCell<Sums>,
    /// Rows to look at, of a decoder-only pass: the first position of a text sees nothing and is an outlier in
    /// most models (an attention sink), which would take the first direction for itself.
    rows: Option<&'a Indices>,
}

impl Observer for Taking<'_> {
    fn linear(&mut self, site: usize, x: Mat, y: Mat) -> Result<()> {
        self.sums.borrow_mut().forward(site, (x, y), self.rows)
    }
}

impl Tap for Taking<'_> {
    fn linear(&mut self, site: usize, gradient: &LinearGradient) -> Result<()> {
        self.sums.borrow_mut().backward(site, gradient.dy, self.rows)
    }
    fn wants(&self, _: usize) -> Want {
        Want::Nothing
    }
    fn dense(&mut self, _: usize, _: Mat) -> Result<()> {
        Ok(())
    }
}

impl KnowledgePass<'_> {
    /// Streams the text and decomposes what was summed.
    ///
    /// # Errors
    /// No text, or too short; moments of zeros or NaN, by the layer's name; a device that fails; an interruption, after
    /// what was summed is saved.
    pub fn learn(&self, progress: &mut dyn FnMut(KnowledgeProgress)) -> Result<Knowledge> {
        let total = self.total()?;
        let (mut sums, of) = (self.sums()?, self.identity());
        if let Some(path) = self.partial
            && sums.restore(path, &of)?
        {
            progress(KnowledgeProgress::Resumed(sums.streamed.tokens));
        }
        let groups = passes(self.chunks);
        let sums = RefCell::new(sums);
        let mut saved = Instant::now();
        while sums.borrow().streamed.passes < groups.len() {
            let number = sums.borrow().streamed.passes;
            let backward = self.goes_backward(sums.borrow().streamed.gradient_tokens, groups[number]);
            self.pass(&sums, groups[number], number, backward)?;
            progress(KnowledgeProgress::Tokens(sums.borrow().streamed.tokens, total));
            if saved.elapsed() > SAVE_EVERY || self.is_interrupted() {
                self.save(&sums.borrow(), &of)?;
                saved = Instant::now();
            }
            self.go_on()?;
        }
        let sums = sums.into_inner();
        // What took a moment is not saved, and not interrupted any more.
        let long = saved.elapsed() > SAVE_EVERY / 4;
        if long {
            self.save(&sums, &of)?;
        }
        let mut tick = |done, all| {
            progress(KnowledgeProgress::Moments(done, all));
            if long { self.go_on() } else { Ok(()) }
        };
        sums.finish(&self.model.fingerprint, self.settings.directions, &mut tick)
    }

    /// The same by all ranks: passes are cut into `shards` leaves, whose sums are added up in an order that depends on
    /// their number only. Nothing is kept of an interrupted pass. Every rank decomposes all moments.
    ///
    /// # Errors
    /// As [`KnowledgePass::learn`]; ranks that do something else, or are silent.
    pub fn learn_in_leaves(
        &self,
        (world, shards): (&World, usize),
        progress: &mut dyn FnMut(KnowledgeProgress),
    ) -> Result<Knowledge> {
        if shards == 1 {
            return self.learn(progress);
        }
        let (total, groups) = (self.total()?, passes(self.chunks));
        let backward = groups.iter().scan(0, |gone, group| {
            let backward = self.goes_backward(*gone, group);
            *gone += if backward { tokens(group) } else { 0 };
            Some(backward)
        });
        let (backward, sums): (Vec<bool>, _) = (backward.collect(), RefCell::new(self.sums()?));
        // Second moments of all layers, several times: more than a GPU has room for.
        let (host, mut trees) = (world.host()?, Vec::<Tree>::new());
        for leaf in world.leaves(shards) {
            for number in leaf * groups.len() / shards..(leaf + 1) * groups.len() / shards {
                self.pass(&sums, groups[number], number, backward[number])?;
                let done = sums.borrow().streamed.tokens * world.size();
                progress(KnowledgeProgress::Tokens(done.min(total), total));
                self.go_on()?;
            }
            let taken = sums.borrow_mut().take()?;
            trees.resize_with(taken.len(), || Tree::new(&host));
            for (tree, values) in trees.iter_mut().zip(taken) {
                tree.push(leaf, host.tensor(&values, 1, values.len(), DType::F32)?)?;
            }
        }
        let mut sums = sums.into_inner();
        // First what may be waited for long: some ranks have more text than others.
        let counted = world.share_values(sums.counted())?.into_iter().reduce(|(a, rows), (b, more)| {
            let rows = rows.iter().zip(more).map(|(a, b)| a + b).collect();
            (a.and(b), rows)
        });
        let (streamed, rows) = counted.unwrap_or_else(|| sums.counted());
        let summed = trees.into_iter().map(|tree| host.download(world.sum(shards, tree)?.mat()));
        let summed = summed.collect::<Result<Vec<_>>>()?;
        sums.put(&summed, (streamed, &rows))?;
        let mut tick = |done, all| {
            progress(KnowledgeProgress::Moments(done, all));
            Ok(())
        };
        sums.finish(&self.model.fingerprint, self.settings.directions, &mut tick)
    }

    /// Tokens of the text, of which there must be some.
    fn total(&self) -> Result<usize> {
        match tokens(self.chunks) {
            0 => Err(Error::data("there is no general text to learn the knowledge space from").remedy(
                "put a general.txt into the data directory (`prepare .. --general FILE` copies it there), let the model \
                 write one with `gems-engine prepare sample --model MODEL --out DATA/general.jsonl`, or protect nothing: \
                 null_space.side = \"none\" and null_space.item_rows = 0",
            )),
            total => Ok(total),
        }
    }

    /// Whether a group goes backward too, after `gone` tokens that did: as many whole passes as come nearest to what is
    /// wanted, and one at least.
    fn goes_backward(&self, gone: usize, group: &[Vec<u32>]) -> bool {
        let wanted = self.settings.gradient_tokens;
        gone + tokens(group) / 2 <= wanted || (gone == 0 && wanted > 0)
    }

    fn sums(&self) -> Result<Sums> {
        let (model, hidden) = (self.model, self.model.architecture.hidden);
        Sums::new(&model.backend, &model.layout.sites, hidden, self.settings, self.seed)
    }

    /// One group of texts: forward, and `backward` too.
    fn pass(&self, sums: &RefCell<Sums>, group: &[Vec<u32>], number: usize, backward: bool) -> Result<()> {
        let (model, be, tokens) = (self.model, &self.model.backend, tokens(group));
        let request = general_pass(model, group);
        let decoder_only = request.encoder.is_none();
        let positions = &request.decoder.positions;
        let first = |row: &u32| decoder_only && positions[*row as usize] == 0;
        let seen: Vec<u32> = (0..request.decoder.rows() as u32).filter(|row| !first(row)).collect();
        let rows = decoder_only.then(|| be.indices(&seen)).transpose()?;
        let mut taking = Taking { sums, rows: rows.as_ref() };
        if backward {
            // What a first position predicts reaches no other, and is left out with it.
            let count = request.rows.len();
            let (weights, segments) = (vec![1.0; count], vec![0..count]);
            let labels = Labels { rows: request.rows, targets: Vec::new(), weights, segments };
            let batch = Batch { encoder: request.encoder, decoder: request.decoder, labels };
            let mut choose = |states: &Tensor| {
                sums.borrow_mut().hidden(states.mat())?;
                self.sample(states, number as u64)
            };
            let (vocabulary, tap) = (self.vocabulary, Taking { sums, rows: rows.as_ref() });
            let choosing = Choosing { vocabulary, observer: &mut taking, choose: &mut choose };
            let forward = model.forward_choosing(&batch, &tap, choosing)?;
            model.backward(forward, &mut { tap })?;
        } else {
            let states = model.observe(&request, &mut taking)?;
            sums.borrow_mut().hidden(states.mat())?;
        }
        let streamed = &mut sums.borrow_mut().streamed;
        streamed.passes += 1;
        streamed.tokens += tokens;
        streamed.gradient_tokens += if backward { tokens } else { 0 };
        Ok(())
    }

    /// A token for every row of final hidden states, from the model's own distribution over its own vocabulary. What row
    /// i of a pass gets is decided by (seed, pass, i) and the distribution alone.
    fn sample(&self, states: &Tensor, pass: u64) -> Result<Vec<u32>> {
        let be = &self.model.backend;
        let head = self.model.parameter(self.model.head()).row_range(0..self.vocabulary);
        let mut tokens = Vec::with_capacity(states.rows());
        for start in (0..states.rows()).step_by(LOGIT_ROWS) {
            let rows = start..(start + LOGIT_ROWS).min(states.rows());
            let logits = self.model.logits_of(states.mat().row_range(rows.clone()), head)?;
            if !be.info().computes {
                tokens.resize(rows.end, 0);
                continue;
            }
            let logits = be.download(logits.mat())?;
            let drawn = logits.par_chunks_exact(head.rows).zip(rows).map(|(logits, row)| {
                let mut stream = random::stream(self.seed, Purpose::Text, 1 << 32 | pass, row as u64);
                draw(logits, stream.random())
            });
            tokens.extend(drawn.collect::<Result<Vec<u32>>>()?);
        }
        Ok(tokens)
    }

    /// What sums are of: they may only be taken up again by the same pass.
    fn identity(&self) -> String {
        let (mut hasher, s) = (blake3::Hasher::new(), self.settings);
        let facts = (s.side, s.directions, s.gradient_tokens, self.vocabulary, self.seed);
        let device = &self.model.backend.info().name;
        hasher.update(format!("{} {facts:?} {device}", self.model.fingerprint).as_bytes());
        for chunk in self.chunks {
            hasher.update(&(chunk.len() as u64).to_le_bytes()).update(bytemuck::cast_slice(chunk));
        }
        hasher.finalize().to_hex().to_string()
    }

    fn save(&self, sums: &Sums, of: &str) -> Result<()> {
        self.partial.map_or(Ok(()), |path| sums.save(path, of))
    }

    fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::SeqCst)
    }

    fn go_on(&self) -> Result<()> {
        if !self.is_interrupted() {
            return Ok(());
        }
        let error = Error::new(Kind::Interrupted, "stopped while the knowledge basis was being learned");
        Err(match self.partial {
            Some(path) => error
                .at(path.display())
                .remedy("give the same command again: it goes on from what is saved there"),
            None => error,
        })
    }
}

fn tokens(texts: &[Vec<u32>]) -> usize {
    texts.iter().map(Vec::len).sum()
}

/// The token at `u` (in [0, 1)) of the distribution softmax(`logits`).
fn draw(logits: &[f32], u: f64) -> Result<u32> {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f32> = logits.iter().map(|l| (l - most).exp()).collect();
    let sum: f64 = weights.iter().map(|w| f64::from(*w)).sum();
    if !sum.is_finite() {
        return Err(Error::numeric("the model's predictions on general text are not finite")
            .remedy("look at its weights: `gems-engine doctor --model DIR`"));
    }
    let (mut left, mut last) = (u * sum, 0);
    for (token, weight) in weights.iter().enumerate() {
        last = if *weight > 0.0 { token } else { last };
        left -= f64::from(*weight);
        if left < 0.0 {
            return Ok(token as u32);
        }
    }
    Ok(last as u32)
}

/// Where the sums of a basis are kept while it is learned.
pub fn partial_path(basis: &Path) -> PathBuf {
    let mut name = basis.as_os_str().to_owned();
    name.push(".partial");
    name.into()
}

/// Knowledge of a model whose spectra are flat, so that any rule protects as much as it can; its directions are zeros. For
/// the size of what is not learned yet.
pub fn largest_knowledge(model: &Model, null: &NullSpaceSettings) -> Knowledge {
    let sites = &model.layout.sites;
    let spectrum = |name: &str, dim: usize| {
        let k = if dim <= WHOLE { dim } else { null.directions.min(dim) };
        let rest = if k < dim { 1.0 } else { 0.0 };
        let (name, values, samples) = (name.to_string(), vec![1.0; k], dim);
        Spectrum { name, dim, directions: vec![0.0; k * dim], values, rest, samples }
    };
    let mut groups: Vec<usize> = Vec::new();
    let (mut inputs, mut input_of_site) = (Vec::new(), Vec::new());
    for site in sites {
        let known = groups.iter().position(|g| *g == site.input_group);
        input_of_site.push(Some(known.unwrap_or(groups.len())));
        if known.is_none() {
            groups.push(site.input_group);
            inputs.push(spectrum(&site.name, site.inputs));
        }
    }
    let of_outputs = |wanted: bool| {
        let wanted = sites.iter().filter(|_| wanted);
        wanted.map(|s| Some(spectrum(&s.name, s.outputs))).collect()
    };
    Knowledge {
        fingerprint: model.fingerprint.clone(),
        tokens: 0,
        gradient_tokens: 0,
        inputs,
        input_of_site,
        outputs: of_outputs(null.side == NullSide::Output),
        gradients: of_outputs(null.gradient_tokens > 0),
        hidden: Some(spectrum("final", model.architecture.hidden)),
    }
}

/// Whether the settings need a basis at all.
pub fn needs_basis(null: &NullSpaceSettings, trains_rows: bool) -> bool {
    null.side != NullSide::None || null.weighs_costs() || (null.item_rows > 0.0 && trains_rows)
}

/// Runs the largest passes of `learn` on a backend that computes nothing; returns the most memory that is live at once.
///
/// # Errors
/// The device.
pub fn planned_peak(pass: &KnowledgePass) -> Result<usize> {
    let be: &Arc<dyn Backend> = &pass.model.backend;
    let sums = RefCell::new(pass.sums()?);
    if let Some(largest) =
        passes(pass.chunks).into_iter().max_by_key(|g| g.iter().map(Vec::len).sum::<usize>())
    {
        pass.pass(&sums, largest, 0, pass.goes_backward(0, largest))?;
    }
    Ok(be.memory().peak)
}
