//! What every command that touches a model opens first: data, vocabulary, base model, method.

use super::options::{DeviceArgs, SettingsArgs};
use crate::backend::Backend;
use crate::config::{Config, Init, Layer};
use crate::data::{
    Dataset, Encoder, GeneralText, ItemIdentity, PromptSide, Prompts, SemanticIds, Vocabulary,
    residual_kmeans,
};
use crate::error::{Error, Result};
use crate::gems::{KnowledgeBasis, Optimizer};
use crate::model::{Inference, LoadOptions, Model, Packed, passes};
use crate::train::{checkpoint, knowledge_basis, needs_basis};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// An opened run: the base model extended by item rows, and the data it is tuned on.
pub struct Session {
    pub config: Config,
    pub base: PathBuf,
    pub data: Dataset,
    pub vocabulary: Vocabulary,
    pub prompts: Prompts,
    pub general: GeneralText,
    pub model: Model,
    pub prompt_side: PromptSide,
    /// First row of new item tokens.
    pub new_rows: Option<usize>,
    /// Vocabulary rows of the base model that are its own.
    pub old_vocabulary: usize,
}

/// Settings from preset, file, `--set` and a command's own flags, in that order.
pub fn configuration(settings: &SettingsArgs, device: &DeviceArgs, flags: Vec<Layer>) -> Result<Config> {
    let mut layers = settings.layers()?;
    layers.extend(flags);
    if let Some(device) = &device.device {
        layers.push(Layer::value("--device", "device", toml::Value::from(device.as_str())));
    }
    Config::from_layers(layers)
}

/// The configuration of an earlier run, with flags over it.
pub fn run_configuration(run: &Path, settings: &SettingsArgs, device: &DeviceArgs) -> Result<Config> {
    let path = run.join("config.toml");
    if !path.is_file() {
        return Err(Error::usage("this is not a run directory: it has no config.toml")
            .at(run.display())
            .remedy("give the directory that `gems-engine train --out` wrote"));
    }
    let mut layers = vec![Layer::file(&path)?];
    layers.extend(settings.layers()?);
    if let Some(device) = &device.device {
        layers.push(Layer::value("--device", "device", toml::Value::from(device.as_str())));
    }
    Config::from_layers(layers)
}

impl Session {
    /// Opens the base model and the data of a configuration.
    pub fn open(config: Config, device: &DeviceArgs) -> Result<Self> {
        Self::open_on(config, |config| super::device::open(config, device))
    }

    /// The same on the device that `open` gives, once it is clear that it is needed.
    pub fn open_on(config: Config, open: impl FnOnce(&Config) -> Result<Arc<dyn Backend>>) -> Result<Self> {
        if config.model.path.is_empty() || config.data.path.is_empty() {
            return Err(Error::usage("a base model and a data directory are needed").remedy(
                "give --model DIR (a Hugging Face directory) and --data DIR (items.jsonl, train.jsonl, ...)",
            ));
        }
        let backend = open(&config)?;
        let base = PathBuf::from(&config.model.path);
        let data = Dataset::load(Path::new(&config.data.path), &config.data)?;
        let described = crate::model::Architecture::read(&base)?;
        let prompt_side = PromptSide::from(&described);
        let random = (config.model.init == Init::Random).then_some(config.seed);
        let semantic = match config.data.item_identity {
            ItemIdentity::Semantic => Some(semantic_ids(&config, &base, &data, prompt_side, &backend)?),
            _ => None,
        };
        let vocabulary = Vocabulary::new(&base, &data.items, &config.data, prompt_side, semantic.as_ref())?;
        let rows = vocabulary.rows_for(described.vocabulary)?;
        let options = LoadOptions { random, vocabulary: rows };
        let mut model = Model::load(&base, backend, &options)?;
        let items = vocabulary.item_rows();
        let new_rows = (!items.is_empty()).then_some(items.start as usize);
        let old_vocabulary = new_rows.unwrap_or(model.architecture.vocabulary);
        start_rows(&mut model, &vocabulary, &data, old_vocabulary)?;
        let general = GeneralText::load(&data.general, &config.data)?;
        let prompts = Prompts::new(&config.data, Some(&base))?;
        Ok(Self {
            config,
            base,
            data,
            vocabulary,
            prompts,
            general,
            model,
            prompt_side,
            new_rows,
            old_vocabulary,
        })
    }

    /// Opens a run with the weights of its best (or else latest) checkpoint.
    pub fn open_run(run: &Path, settings: &SettingsArgs, device: &DeviceArgs) -> Result<Self> {
        let mut session = Self::open(run_configuration(run, settings, device)?, device)?;
        let knowledge = session.stored_basis(run)?;
        let mut tuner = session.tuner(knowledge.as_ref())?;
        let best = run.join("best");
        let found = match best.exists() {
            true => checkpoint::load(&best)?,
            false => checkpoint::load_latest(&run.join("checkpoints"), |_| {})?,
        };
        found.restore(&mut session.model, &mut tuner, &session.data.tasks)?;
        Ok(session)
    }

    /// Records to tokens.
    pub fn encoder(&self) -> Encoder<'_> {
        Encoder::new(&self.vocabulary, &self.prompts, &self.data.tasks, self.prompt_side, &self.config.data)
    }

    /// Token ids of general text.
    pub fn chunks(&self, documents: &[String], tokens: usize) -> Result<Vec<Vec<u32>>> {
        GeneralText::chunks(documents, &self.vocabulary, self.config.data.general_length, tokens)
    }

    /// Whether the configuration protects anything.
    pub fn needs_basis(&self) -> bool {
        needs_basis(&self.config.null_space, self.new_rows.is_some())
    }

    /// Learns the knowledge space from the calibration text.
    pub fn learn_basis(&self, progress: &mut dyn FnMut(usize, usize)) -> Result<KnowledgeBasis> {
        let chunks = self.chunks(&self.general.calibration, self.config.null_space.tokens)?;
        let tasks = self.data.tasks.len();
        knowledge_basis(&self.model, tasks, &self.config.tuner(), &chunks, self.config.seed, progress)
    }

    /// The basis a run directory keeps.
    pub fn stored_basis(&self, run: &Path) -> Result<Option<KnowledgeBasis>> {
        let path = run.join("basis.safetensors");
        if !path.is_file() {
            return Ok(None);
        }
        KnowledgeBasis::load(&path, &self.model.fingerprint).map(Some)
    }

    /// The method over this model.
    pub fn tuner(&mut self, knowledge: Option<&KnowledgeBasis>) -> Result<Optimizer> {
        let (settings, tasks, seed) = (self.config.tuner(), self.data.tasks.len(), self.config.seed);
        Optimizer::for_model(settings, &mut self.model, self.new_rows, tasks, knowledge, seed)
    }
}

/// New item rows start as the mean of their text's token rows.
fn start_rows(model: &mut Model, vocabulary: &Vocabulary, data: &Dataset, old: usize) -> Result<()> {
    let mut rows = Vec::new();
    let mut done = std::collections::HashSet::new();
    for item in 0..data.items.len() as u32 {
        let text = match data.items.text(item) {
            Some(text) => vocabulary.plain(&format!(" {text}"))?,
            None => Vec::new(),
        };
        let text: Vec<u32> = text.into_iter().filter(|t| (*t as usize) < old).collect();
        for token in vocabulary.item(item).iter().filter(|t| **t as usize >= vocabulary.base_size()) {
            if done.insert(*token) {
                rows.push((*token, text.clone()));
            }
        }
    }
    if rows.is_empty() { Ok(()) } else { model.initialise_rows(&rows, old) }
}

/// Semantic ids from the base model's mean final hidden state of every item's text.
fn semantic_ids(
    config: &Config,
    base: &Path,
    data: &Dataset,
    prompt_side: PromptSide,
    backend: &Arc<dyn Backend>,
) -> Result<SemanticIds> {
    let model = Model::load(base, Arc::clone(backend), &LoadOptions::default())?;
    let plain = crate::data::DataSettings { item_identity: ItemIdentity::Text, ..config.data.clone() };
    let vocabulary = Vocabulary::new(base, &data.items, &plain, prompt_side, None)?;
    let dim = model.architecture.hidden;
    let items: Vec<Vec<u32>> =
        (0..data.items.len() as u32).map(|item| vocabulary.item(item).to_vec()).collect();
    let mut embeddings = Vec::with_capacity(items.len() * dim);
    for group in passes(&items) {
        let (encoder, decoder) = match prompt_side {
            PromptSide::Decoder => (None, Packed::new(&[group.to_vec()])),
            PromptSide::Encoder { decoder_start } => {
                (Some(Packed::new(&[group.to_vec()])), Packed::new(&[vec![[decoder_start]; group.len()]]))
            }
        };
        let (rows, offsets) = ((0..decoder.rows() as u32).collect(), decoder.offsets.clone());
        let hidden = model.hidden(&Inference { encoder, decoder, visible: None, rows })?;
        let values = model.backend.download(hidden.mat())?;
        for of_item in offsets.windows(2) {
            let rows = &values[of_item[0] as usize * dim..of_item[1] as usize * dim];
            let count = (of_item[1] - of_item[0]) as f32;
            embeddings.extend((0..dim).map(|j| rows.iter().skip(j).step_by(dim).sum::<f32>() / count));
        }
    }
    let s = &config.data.semantic;
    residual_kmeans(&embeddings, dim, s.levels, s.codes, s.iterations, config.seed)
}
