//! From a Hugging Face directory to a model on a device.

use super::layout::{DenseKind, Layout};
use super::names::Names;
use super::quantised::Stored;
use super::rotary::Longer;
use super::{Architecture, Checked, Family, Model, Narrow, Norms, Weights};
use crate::backend::{AdaptedLinear, Backend, DType, Tensor, Weight};
use crate::error::Result;
use crate::layers::Site;
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
    /// Which weights are bf16 in memory where layers compute in f32; rounded where they are stored otherwise.
    pub narrow: Narrow,
}

/// The types that layers, tables and all else are kept in.
fn dtypes(be: &dyn Backend, narrow: Narrow) -> [DType; 3] {
    let dtype = |narrow: bool| if narrow { DType::BF16 } else { be.compute_dtype() };
    [dtype(narrow.layers), dtype(narrow.tables), be.compute_dtype()]
}

impl Checked {
    /// What binds a knowledge basis to this model: see [`Model::fingerprint`].
    ///
    /// # Errors
    /// None of a checkpoint that is as it was checked.
    pub fn fingerprint(&self) -> Result<String> {
        let (architecture, std) = (&self.architecture, self.architecture.initializer_range);
        let source = Source { stored: Some((&self.weights, &self.names)), seed: 0, std, block: None };
        fingerprint(architecture, &Layout::new(architecture), &source)
    }
}

impl Model {
    /// Loads `dir` (config.json and safetensors) onto `backend`.
    ///
    /// # Errors
    /// What [`Checked::open`] refuses; a device that is full.
    pub fn load(dir: &Path, backend: Arc<dyn Backend>, options: &LoadOptions) -> Result<Self> {
        match options.random {
            Some(_) => Self::build(Architecture::read(dir)?, None, backend, options),
            None => Self::of_checked(Checked::open(dir)?, backend, options),
        }
    }

    /// Builds a model from its parts; without weights they are random.
    pub fn build(
        architecture: Architecture,
        weights: Option<Weights>,
        backend: Arc<dyn Backend>,
        options: &LoadOptions,
    ) -> Result<Self> {
        if let Some(weights) = weights {
            return Self::of_checked(Checked::new(architecture, weights)?, backend, options);
        }
        let source = Source {
            stored: None,
            seed: options.random.unwrap_or(0),
            std: architecture.initializer_range,
            block: None,
        };
        Self::from_source(architecture, &source, backend, options)
    }

    fn of_checked(checked: Checked, backend: Arc<dyn Backend>, options: &LoadOptions) -> Result<Self> {
        let Checked { architecture, weights, names } = checked;
        let std = architecture.initializer_range;
        let source = Source { stored: Some((&weights, &names)), seed: 0, std, block: None };
        Self::from_source(architecture, &source, backend, options)
    }

    /// A model for measurements: one block of random numbers, repeated, so that even a large model is ready in
    /// seconds. As good as random for every kernel's time, and for nothing else.
    pub fn synthetic(architecture: Architecture, backend: Arc<dyn Backend>, seed: u64) -> Result<Self> {
        let std = architecture.initializer_range;
        // A prime length: no two rows of a weight are alike.
        let mut block = random::normal(seed, Purpose::Init, 3, 0, 1_048_573);
        block.iter_mut().for_each(|v| *v *= std);
        let block = Some(backend.tensor(&block, 1, block.len(), DType::F32)?);
        let source = Source { stored: None, seed, std, block };
        Self::from_source(architecture, &source, backend, &LoadOptions::default())
    }

    fn from_source(
        mut architecture: Architecture,
        source: &Source,
        backend: Arc<dyn Backend>,
        options: &LoadOptions,
    ) -> Result<Self> {
        if source.stored.is_none() {
            architecture.quantised = None;
        }
        let stored_vocabulary = architecture.vocabulary;
        let fingerprint = fingerprint(&architecture, &Layout::new(&architecture), source)?;
        architecture.vocabulary = stored_vocabulary.max(options.vocabulary);
        architecture.narrow = options.narrow;
        let layout = Layout::new(&architecture);

        let [of_layers, of_tables, dtype] = dtypes(&*backend, architecture.narrow);
        let mut dense = Vec::new();
        for (index, spec) in layout.dense.iter().enumerate() {
            if matches!(spec.kind, DenseKind::Bias(_)) {
                dense.push(None);
                continue;
            }
            let table = matches!(spec.kind, DenseKind::Embedding | DenseKind::Head);
            let dtype = if table { of_tables } else { dtype };
            if let Some(block) = source.block.as_ref().filter(|_| spec.kind != DenseKind::Norm) {
                dense.push(Some(repeated(&*backend, block, (spec.rows, spec.cols), dtype)?));
                continue;
            }
            let stored = if table { stored_vocabulary } else { spec.rows };
            let mut values = source.dense(index, &spec.name, spec.kind, stored * spec.cols)?;
            append_mean_rows(&mut values, stored, spec.rows, spec.cols);
            if spec.kind == DenseKind::Norm && source.stored.is_some() && architecture.norm_offset != 0.0 {
                values.iter_mut().for_each(|w| *w += architecture.norm_offset);
            }
            dense.push(Some(backend.tensor(&values, spec.rows, spec.cols, dtype)?));
        }
        let mut linears = Vec::new();
        for (index, site) in layout.sites.iter().enumerate() {
            let weight = source.weight((&*backend, of_layers), index, site, &architecture)?;
            let bias = match site.bias {
                true => {
                    let values = source.bias(&site.name, site.outputs)?;
                    Some(backend.tensor(&values, 1, site.outputs, dtype)?)
                }
                false => None,
            };
            linears.push(AdaptedLinear { weight, bias, branch: None });
        }
        // What uploads were staged in is of no use to a step.
        backend.trim();
        Self::of_parts(architecture, layout, backend, (dense, linears), fingerprint)
    }

    /// A model whose weights have no particular values: for what depends on shapes only.
    pub fn outline(architecture: Architecture, backend: Arc<dyn Backend>) -> Result<Self> {
        let layout = Layout::new(&architecture);
        let [of_layers, of_tables, dtype] = dtypes(&*backend, architecture.narrow);
        let alloc = |rows, cols, dtype| backend.alloc(rows, cols, dtype);
        let own = layout.dense.iter().map(|spec| match spec.kind {
            DenseKind::Bias(_) => Ok(None),
            DenseKind::Embedding | DenseKind::Head => alloc(spec.rows, spec.cols, of_tables).map(Some),
            _ => alloc(spec.rows, spec.cols, dtype).map(Some),
        });
        let dense = own.collect::<Result<_>>()?;
        let linear = layout.sites.iter().map(|site| {
            let bias = site.bias.then(|| alloc(1, site.outputs, dtype)).transpose()?;
            let weight = match architecture.codes_of(&site.name) {
                Some(codes) => Weight::Quantised(codes.outline(&*backend, (site.outputs, site.inputs))?),
                None => alloc(site.outputs, site.inputs, of_layers)?.into(),
            };
            Ok(AdaptedLinear { weight, bias, branch: None })
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
        let frequencies = layout.rotary.iter().map(|r| &r.inv_freq);
        let rotary = frequencies.map(|f| backend.tensor(f, 1, f.len(), DType::F32)).collect::<Result<_>>()?;
        Ok(Self { backend, architecture, layout, linears, dense, bias_of, rotary, fingerprint })
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

/// A matrix of the block's numbers, again and again: copied on the device, where even a large model's are there at once.
fn repeated(be: &dyn Backend, block: &Tensor, (rows, cols): (usize, usize), dtype: DType) -> Result<Tensor> {
    let (count, mut matrix) = (rows * cols, be.alloc(rows, cols, dtype)?);
    for from in (0..count).step_by(block.len()) {
        let some = block.len().min(count - from);
        let to = matrix.mat_mut().reshape(1, count).col_range(from..from + some);
        be.copy(block.mat().col_range(0..some), to)?;
    }
    Ok(matrix)
}

/// Where values come from: a checkpoint, or a random stream.
struct Source<'a> {
    stored: Option<(&'a Weights, &'a Names)>,
    seed: u64,
    std: f32,
    /// Numbers on the device to repeat instead of drawing new ones, if any.
    block: Option<Tensor>,
}

impl Source<'_> {
    fn normal(&self, kind: u64, index: usize, count: usize) -> Vec<f32> {
        let mut values = random::normal(self.seed, Purpose::Init, kind, index as u64, count);
        values.iter_mut().for_each(|v| *v *= self.std);
        values
    }
    fn dense(&self, index: usize, name: &str, kind: DenseKind, count: usize) -> Result<Vec<f32>> {
        match (self.stored, kind) {
            (Some((weights, names)), _) => weights.read(names.of(name)),
            (None, DenseKind::Norm) => Ok(vec![1.0; count]),
            (None, _) => Ok(self.normal(1, index, count)),
        }
    }
    fn linear(&self, index: usize, name: &str, count: usize) -> Result<Vec<f32>> {
        match self.stored {
            Some((weights, names)) => weights.read(names.of(&format!("{name}.weight"))),
            None => Ok(self.normal(2, index, count)),
        }
    }
    /// A layer's weight: in codes where it is stored so, or in a type.
    fn weight(
        &self,
        (be, dtype): (&dyn Backend, DType),
        index: usize,
        site: &Site,
        a: &Architecture,
    ) -> Result<Weight> {
        if let (Some((weights, names)), Some(codes)) = (self.stored, a.codes_of(&site.name)) {
            let stored = Stored { weights, name: &|name| names.of(name).to_string() };
            return codes.load(be, site, &stored).map(Weight::Quantised);
        }
        if let Some(block) = &self.block {
            return Ok(repeated(be, block, (site.outputs, site.inputs), dtype)?.into());
        }
        let values = self.linear(index, &site.name, site.outputs * site.inputs)?;
        Ok(be.tensor(&values, site.outputs, site.inputs, dtype)?.into())
    }
    fn bias(&self, name: &str, count: usize) -> Result<Vec<f32>> {
        match self.stored {
            Some((weights, names)) => weights.read(names.of(&format!("{name}.bias"))),
            None => Ok(vec![0.0; count]),
        }
    }
}

/// A hash of the configuration's essentials and of every stored weight's bytes.
fn fingerprint(a: &Architecture, layout: &Layout, source: &Source) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    let shape =
        (a.family, a.vocabulary, a.hidden, a.intermediate, a.layers, a.encoder_layers, a.heads, a.kv_heads);
    hasher
        .update(format!("{shape:?} {} {:?}", a.head_dim, a.rotary.as_ref().map(|r| &r.inv_freq)).as_bytes());
    // What the first families do not have, where a model has it: their fingerprints stay what they were.
    let beyond = (a.norms, a.norm_offset, a.embedding_scale, a.softcap, &a.sliding);
    if beyond != (Norms::Before, 0.0, 1.0, None, &None) {
        hasher.update(format!("{beyond:?}").as_bytes());
    }
    let turned = a.rotary.as_ref().map(|r| (r.factor, &r.longer)).filter(|t| *t != (1.0, &Longer::Same));
    let scales = (a.residual_scale, a.logit_softcap, turned);
    if scales != (1.0, None, None) {
        hasher.update(format!("{scales:?}").as_bytes());
    }
    // Given by the configuration, where the others' follow from the sizes.
    if matches!(a.family, Family::Granite | Family::Gemma2 | Family::Gemma3) {
        hasher.update(format!("{} {}", a.attention_scale, a.logit_scale).as_bytes());
    }
    match source.stored {
        None => {
            hasher.update(format!("random {} {}", source.seed, source.std).as_bytes());
        }
        Some((weights, stored)) => {
            let names = layout.dense.iter().map(|d| d.name.clone());
            for name in names.chain(layout.sites.iter().map(|s| format!("{}.weight", s.name))) {
                hasher.update(name.as_bytes());
                hasher.update_rayon(weights.bytes(stored.of(&name)).unwrap_or_default());
            }
            let coded = layout.sites.iter().filter_map(|s| Some((s, a.codes_of(&s.name)?)));
            for name in coded.flat_map(|(site, codes)| codes.names(&site.name)) {
                hasher.update_rayon(weights.bytes(stored.of(&name)).unwrap_or_default());
            }
        }
    }
    Ok(hasher.finalize().to_hex().as_str()[..32].to_string())
}
