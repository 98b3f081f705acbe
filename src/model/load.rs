//! From a Hugging Face directory to a model on a device.

use super::layout::{DenseKind, Layout};
use super::{Architecture, Family, Model, Weights};
use crate::backend::{AdaptedLinear, Backend, DType, Tensor};
use crate::error::{Error, Result};
use crate::random::{self, Purpose};
use std::path::Path;
use std::sync::Arc;

/// Choices on loading.
#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    /// Random weights (normal with the configuration's `initializer_range`, norms 1) from this seed,
    /// instead of the stored ones.
    pub random: Option<u64>,
    /// Append rows to the vocabulary until it has at least so many (never shrinks).
    pub vocabulary: usize,
}

impl Model {
    /// Loads `dir` (config.json and safetensors) onto `backend`.
    pub fn load(dir: &Path, backend: Arc<dyn Backend>, options: &LoadOptions) -> Result<Self> {
        let architecture = Architecture::read(dir)?;
        let weights = match options.random {
            Some(_) => None,
            None => Some(Weights::open(dir)?),
        };
        Self::build(architecture, weights.as_ref(), backend, options)
    }

    /// Builds a model from its parts; without weights they are random.
    pub fn build(
        mut architecture: Architecture,
        weights: Option<&Weights>,
        backend: Arc<dyn Backend>,
        options: &LoadOptions,
    ) -> Result<Self> {
        if let (Family::T5, Some(weights)) = (architecture.family, weights) {
            // transformers 5 writes `tie_word_embeddings: true` for every T5: the stored head decides.
            architecture.tied = !weights.has("lm_head.weight");
        }
        let layout = Layout::new(&architecture);
        if let Some(weights) = weights {
            check(&layout, weights)?;
        }
        let source = Source {
            weights,
            seed: options.random.unwrap_or(0),
            std: architecture.initializer_range,
            block: Vec::new(),
        };
        Self::from_source(architecture, layout, &source, backend, options.vocabulary)
    }

    /// A model for measurements: one block of random numbers, repeated, so that even a large model is ready in
    /// seconds. As good as random for every kernel's time, and for nothing else.
    pub fn synthetic(architecture: Architecture, backend: Arc<dyn Backend>, seed: u64) -> Result<Self> {
        let std = architecture.initializer_range;
        // A prime length: no two rows of a weight are alike.
        let mut block = random::normal(seed, Purpose::Init, 3, 0, 1_048_573);
        block.iter_mut().for_each(|v| *v *= std);
        let source = Source { weights: None, seed, std, block };
        let layout = Layout::new(&architecture);
        Self::from_source(architecture, layout, &source, backend, 0)
    }

    fn from_source(
        mut architecture: Architecture,
        layout: Layout,
        source: &Source,
        backend: Arc<dyn Backend>,
        vocabulary: usize,
    ) -> Result<Self> {
        let stored_vocabulary = architecture.vocabulary;
        let fingerprint = fingerprint(&architecture, &layout, source)?;
        architecture.vocabulary = stored_vocabulary.max(vocabulary);
        let layout = Layout::new(&architecture);

        let dtype = backend.compute_dtype();
        let mut dense = Vec::new();
        for (index, spec) in layout.dense.iter().enumerate() {
            if matches!(spec.kind, DenseKind::Bias(_)) {
                dense.push(None);
                continue;
            }
            let table = matches!(spec.kind, DenseKind::Embedding | DenseKind::Head);
            let stored = if table { stored_vocabulary } else { spec.rows };
            let mut values = source.dense(index, &spec.name, spec.kind, stored * spec.cols)?;
            append_mean_rows(&mut values, stored, spec.rows, spec.cols);
            dense.push(Some(backend.tensor(&values, spec.rows, spec.cols, dtype)?));
        }
        let mut linears = Vec::new();
        for (index, site) in layout.sites.iter().enumerate() {
            let values = source.linear(index, &site.name, site.outputs * site.inputs)?;
            let weight = backend.tensor(&values, site.outputs, site.inputs, dtype)?;
            let bias = match site.bias {
                true => {
                    let values = source.bias(&site.name, site.outputs)?;
                    Some(backend.tensor(&values, 1, site.outputs, dtype)?)
                }
                false => None,
            };
            linears.push(AdaptedLinear { weight, bias, branch: None });
        }
        Self::of_parts(architecture, layout, backend, (dense, linears), fingerprint)
    }

    /// A model whose weights have no particular values: for what depends on shapes only.
    pub fn outline(architecture: Architecture, backend: Arc<dyn Backend>) -> Result<Self> {
        let layout = Layout::new(&architecture);
        let alloc = |rows, cols| backend.alloc(rows, cols, backend.compute_dtype());
        let own = layout.dense.iter().map(|spec| match spec.kind {
            DenseKind::Bias(_) => Ok(None),
            _ => alloc(spec.rows, spec.cols).map(Some),
        });
        let dense = own.collect::<Result<_>>()?;
        let linear = layout.sites.iter().map(|site| {
            let bias = site.bias.then(|| alloc(1, site.outputs)).transpose()?;
            Ok(AdaptedLinear { weight: alloc(site.outputs, site.inputs)?, bias, branch: None })
        });
        let linears = linear.collect::<Result<_>>()?;
        Self::of_parts(architecture, layout, backend, (dense, linears), String::new())
    }

    fn of_parts(
        architecture: Architecture,
        layout: Layout,
        backend: Arc<dyn Backend>,
        (dense, linears): (Vec<Option<Tensor>>, Vec<AdaptedLinear>),
        fingerprint: String,
    ) -> Result<Self> {
        let mut bias_of = vec![None; layout.sites.len()];
        for (index, spec) in layout.dense.iter().enumerate() {
            if let DenseKind::Bias(site) = spec.kind {
                bias_of[site] = Some(index);
            }
        }
        let inv_freq: Option<Tensor> = match &architecture.inv_freq {
            Some(values) => Some(backend.tensor(values, 1, values.len(), DType::F32)?),
            None => None,
        };
        Ok(Self { backend, architecture, layout, linears, dense, bias_of, inv_freq, fingerprint })
    }

    /// Sets rows of the embedding table (and of an untied head) to the mean of other rows: how a new
    /// item's token starts, from the tokens of its text. An empty list means the mean of all `old` rows.
    pub fn initialise_rows(&mut self, rows: &[(u32, Vec<u32>)], old: usize) -> Result<()> {
        let tables: Vec<usize> = [Some(Layout::EMBEDDING), self.layout.head].into_iter().flatten().collect();
        for table in tables {
            let cols = self.layout.dense[table].cols;
            let values = self.backend.download(self.parameter(table))?;
            let mean = |of: &mut dyn Iterator<Item = usize>| {
                let (mut sum, mut n) = (vec![0f32; cols], 0usize);
                for row in of {
                    sum.iter_mut().zip(&values[row * cols..(row + 1) * cols]).for_each(|(s, v)| *s += v);
                    n += 1;
                }
                sum.iter_mut().for_each(|s| *s /= n.max(1) as f32);
                sum
            };
            let everything = mean(&mut (0..old.min(values.len() / cols)));
            for (row, of) in rows {
                let row = *row as usize;
                let start = if of.is_empty() {
                    everything.clone()
                } else {
                    mean(&mut of.iter().map(|t| *t as usize))
                };
                let backend = Arc::clone(&self.backend);
                backend.upload(&start, self.parameter_mut(table).row_range(row..row + 1))?;
            }
        }
        Ok(())
    }
}

/// New rows start as the mean of the stored ones.
fn append_mean_rows(values: &mut Vec<f32>, stored: usize, rows: usize, cols: usize) {
    if rows <= stored {
        return;
    }
    let mut mean = vec![0f64; cols];
    for row in values.chunks(cols) {
        mean.iter_mut().zip(row).for_each(|(m, v)| *m += *v as f64 / stored.max(1) as f64);
    }
    for _ in stored..rows {
        values.extend(mean.iter().map(|m| *m as f32));
    }
}

/// Other names under which checkpoints store a tensor.
fn aliases(name: &str) -> &'static [&'static str] {
    match name {
        "shared.weight" => &["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"],
        _ => &[],
    }
}

/// Where values come from: a checkpoint, or a random stream.
struct Source<'a> {
    weights: Option<&'a Weights>,
    seed: u64,
    std: f32,
    /// Numbers to repeat instead of drawing new ones, if any.
    block: Vec<f32>,
}

impl Source<'_> {
    fn stored(&self, weights: &Weights, name: &str) -> Result<Vec<f32>> {
        let found = std::iter::once(name).chain(aliases(name).iter().copied()).find(|n| weights.has(n));
        weights.read(found.unwrap_or(name))
    }
    fn normal(&self, kind: u64, index: usize, count: usize) -> Vec<f32> {
        if !self.block.is_empty() {
            let mut values = Vec::with_capacity(count);
            while values.len() < count {
                values.extend_from_slice(&self.block[..self.block.len().min(count - values.len())]);
            }
            return values;
        }
        let mut values = random::normal(self.seed, Purpose::Init, kind, index as u64, count);
        values.iter_mut().for_each(|v| *v *= self.std);
        values
    }
    fn dense(&self, index: usize, name: &str, kind: DenseKind, count: usize) -> Result<Vec<f32>> {
        match (self.weights, kind) {
            (Some(weights), _) => self.stored(weights, name),
            (None, DenseKind::Norm) => Ok(vec![1.0; count]),
            (None, _) => Ok(self.normal(1, index, count)),
        }
    }
    fn linear(&self, index: usize, name: &str, count: usize) -> Result<Vec<f32>> {
        match self.weights {
            Some(weights) => self.stored(weights, &format!("{name}.weight")),
            None => Ok(self.normal(2, index, count)),
        }
    }
    fn bias(&self, name: &str, count: usize) -> Result<Vec<f32>> {
        match self.weights {
            Some(weights) => self.stored(weights, &format!("{name}.bias")),
            None => Ok(vec![0.0; count]),
        }
    }
}

/// Every tensor the layout asks for must be there in its shape, and nothing unknown beside it.
fn check(layout: &Layout, weights: &Weights) -> Result<()> {
    let mut expected: Vec<(String, Vec<usize>)> = Vec::new();
    for spec in &layout.dense {
        let vector = matches!(spec.kind, DenseKind::Norm | DenseKind::Bias(_));
        expected.push((spec.name.clone(), if vector { vec![spec.cols] } else { vec![spec.rows, spec.cols] }));
    }
    for site in &layout.sites {
        expected.push((format!("{}.weight", site.name), vec![site.outputs, site.inputs]));
    }
    let (mut problems, mut known) = (Vec::new(), std::collections::HashSet::new());
    for (name, shape) in &expected {
        let found =
            std::iter::once(name.as_str()).chain(aliases(name).iter().copied()).find(|n| weights.has(n));
        known.extend(std::iter::once(name.as_str()).chain(aliases(name).iter().copied()));
        match found.and_then(|n| weights.shape(n)) {
            None => problems.push(format!("{name} is missing")),
            Some(got) if got != shape.as_slice() => {
                problems.push(format!("{name} is {got:?} instead of {shape:?}"));
            }
            Some(_) => {}
        }
    }
    // A tied head stored beside the table, and buffers of old versions, do no harm.
    let harmless =
        |n: &str| n == "lm_head.weight" || n.ends_with("rotary_emb.inv_freq") || n.ends_with("masked_bias");
    problems.extend(
        weights.names().filter(|n| !known.contains(n) && !harmless(n)).map(|n| format!("{n} is unknown")),
    );
    if problems.is_empty() {
        return Ok(());
    }
    let shown = problems.iter().take(8).cloned().collect::<Vec<_>>().join("; ");
    let more = if problems.len() > 8 { format!("; and {} more", problems.len() - 8) } else { String::new() };
    Err(Error::model(format!("the weights do not fit config.json: {shown}{more}")).at(&weights.place).remedy(
        "check that config.json and the safetensors belong together and that the model type is supported",
    ))
}

/// A hash of the configuration's essentials and of every stored weight's bytes.
fn fingerprint(a: &Architecture, layout: &Layout, source: &Source) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    let shape =
        (a.family, a.vocabulary, a.hidden, a.intermediate, a.layers, a.encoder_layers, a.heads, a.kv_heads);
    hasher.update(format!("{shape:?} {} {:?}", a.head_dim, a.inv_freq).as_bytes());
    match source.weights {
        None => {
            hasher.update(format!("random {} {}", source.seed, source.std).as_bytes());
        }
        Some(weights) => {
            let names = layout.dense.iter().map(|d| d.name.clone());
            for name in names.chain(layout.sites.iter().map(|s| format!("{}.weight", s.name))) {
                let found = std::iter::once(name.as_str())
                    .chain(aliases(&name).iter().copied())
                    .find(|n| weights.has(n));
                hasher.update(name.as_bytes());
                hasher.update_rayon(found.and_then(|n| weights.bytes(n)).unwrap_or_default());
            }
        }
    }
    Ok(hasher.finalize().to_hex().as_str()[..32].to_string())
}
