//! What every command that touches a model opens first: data, vocabulary, base model, method.

use super::identity::{semantic_ids, start_rows};
use super::needs::{Planned, PlannedKnowledge};
use super::options::{DeviceArgs, SettingsArgs};
use super::phases::Phases;
use super::protection::{Protected, spectra};
use super::ranks;
use crate::backend::{Backend, DeviceInfo};
use crate::config::{Config, Init, Layer, Precision};
use crate::data::{
    ChatTemplate, Dataset, Encoder, GeneralText, ItemIdentity, PromptSide, Prompts, SemanticIds, Vocabulary,
};
use crate::error::{Error, Kind, Result};
use crate::eval::KeptStates;
use crate::gems::{Knowledge, NullSpaceSettings, Optimizer, Protection};
use crate::model::{Architecture, Checked, LoadOptions, Model, Narrow, Weights, hub};
use crate::report::Progress;
use crate::run::{Purpose, Reads, Run, RunData, Sources, StepNorms, whole};
use crate::train::{KnowledgePass, KnowledgeProgress, Rehearsal, checkpoint, needs_basis, partial_path};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

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
    /// What changed since the run was made; of a run only.
    pub notes: Vec<String>,
    /// Whether the test records and the held-out text are those of the run's start.
    pub same_tests: bool,
    /// Where the base model's states on general text are kept for runs beside this one.
    pub states: Option<KeptStates>,
    /// What opening took.
    pub phases: Phases,
    codes: Option<SemanticIds>,
}

/// What the machine must have the memory for, before the model is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// Whatever comes shows.
    Any,
    /// A training run.
    Training,
    /// Learning the knowledge basis.
    Learning,
}

/// What a model is put together with.
struct Parts {
    phases: Phases,
    read: RunData,
    codes: Option<SemanticIds>,
    chat: Option<ChatTemplate>,
}

/// Settings from preset, file, `--set` and a command's own flags, in that order.
pub fn configuration(settings: &SettingsArgs, device: &DeviceArgs, flags: Vec<Layer>) -> Result<Config> {
    let mut layers = settings.layers()?;
    layers.extend(flags);
    layers.extend(device_layer(device));
    let mut config = Config::from_layers(layers)?;
    let model = hub::Cache::of_environment().locate(Path::new(&config.model.path));
    config.model.path = model.display().to_string();
    Ok(config)
}

/// Which weights are bf16 in memory where layers compute in f32, by `precision`: bf16 means all of them; auto those that
/// lose nothing by it, of layers whose weights are stored so and never written to.
fn narrow(config: &Config, base: &Path, device: &DeviceInfo) -> Result<Narrow> {
    if device.launches_kernels() {
        return Ok(Narrow::default());
    }
    Ok(match config.precision {
        Precision::F32 | Precision::Mixed => Narrow::default(),
        Precision::Bf16 => Narrow { layers: true, tables: true },
        Precision::Auto => {
            let frozen = config.model.init == Init::Pretrained && !config.tuner().writes_weights();
            Narrow { layers: frozen && Weights::open(base)?.are_bf16(), tables: false }
        }
    })
}

/// The setting that `--device` is.
pub fn device_layer(device: &DeviceArgs) -> Option<Layer> {
    let device = device.device.as_ref()?;
    Some(Layer::value("--device", "device", toml::Value::from(device.as_str())))
}

impl Session {
    /// Opens the base model and the data of a configuration.
    pub fn open(config: Config, device: &DeviceArgs) -> Result<Self> {
        Self::open_on(config, |config| super::device::open(config, device), Memory::Any)
    }

    /// The same, where the machine has the memory for what is to come.
    pub fn open_for(memory: Memory, config: Config, device: &DeviceArgs) -> Result<Self> {
        Self::open_on(config, |config| super::device::open(config, device), memory)
    }

    /// The same on the device that `open` gives, once it is clear that it is needed.
    pub fn open_on(
        mut config: Config,
        open: impl FnOnce(&Config) -> Result<Arc<dyn Backend>>,
        memory: Memory,
    ) -> Result<Self> {
        if config.model.path.is_empty() || config.data.path.is_empty() {
            return Err(Error::usage("a base model and a data directory are needed").remedy(
                "give --model DIR (a Hugging Face directory) and --data DIR (items.jsonl, train.jsonl, ...)",
            ));
        }
        let backend = open(&config)?;
        ranks::world().follow(&config.distributed);
        let base = PathBuf::from(&config.model.path);
        let mut phases = Phases::default();
        let data =
            phases.time("reading the data", || Dataset::load(Path::new(&config.data.path), &config.data))?;
        let side = PromptSide::from(&Architecture::read(&base)?);
        let codes = match config.data.item_identity {
            ItemIdentity::Semantic => {
                let find = || semantic_ids(&config, &base, &data, side, &backend);
                Some(phases.time("semantic ids", find)?)
            }
            _ => None,
        };
        let general = GeneralText::load(&data.general, &config.data)?;
        let prompts = Prompts::new(&config.data, Some(&base), None)?;
        // Resolved: which tasks there are and what their prompts say does not depend on anything from here on.
        config.data.tasks = data.tasks.clone();
        config.data.templates = prompts.sources().clone();
        let read = RunData { data, general, notes: Vec::new(), same_tests: true };
        let chat = prompts.chat_template().cloned();
        Self::assemble(config, Parts { phases, read, codes, chat }, backend, memory)
    }

    /// Opens the base model of a run, with the run's own items, codes and prompts, under `config`.
    pub fn of_run(
        run: &Run,
        config: Config,
        (reads, memory): (Reads, Memory),
        device: &DeviceArgs,
    ) -> Result<Self> {
        let base = Path::new(&config.model.path);
        if !base.is_dir() {
            return Err(Error::usage("the base model of this run is not there any more")
                .at(base.display())
                .remedy("put it back, or say where it is with --set model.path=DIR"));
        }
        let mut phases = Phases::default();
        let read = phases.time("reading the data", || run.data(&config, reads))?;
        let backend = super::device::open(&config, device)?;
        ranks::world().follow(&config.distributed);
        let parts = Parts { phases, read, codes: run.codes.clone(), chat: run.chat.clone() };
        let session = Self::assemble(config, parts, backend, memory)?;
        let tokenizer = session.vocabulary.fingerprint();
        let found = run.sources.check_model(&session.model.fingerprint, &tokenizer);
        found.map_err(|e| e.at(session.base.display()))?;
        Ok(session)
    }

    /// The base model once more, for what needs no records.
    pub fn base_again(&self, device: &DeviceArgs) -> Result<Self> {
        let (items, tasks) = (self.data.items.clone(), self.data.tasks.clone());
        let data = Dataset { items, tasks, ..Dataset::default() };
        let read = RunData { data, ..RunData::default() };
        let (codes, chat) = (self.codes.clone(), self.prompts.chat_template().cloned());
        let parts = Parts { phases: Phases::default(), read, codes, chat };
        Self::assemble(self.config.clone(), parts, super::device::open(&self.config, device)?, Memory::Any)
    }

    /// Where the machine has the memory for what is to come.
    fn assemble(config: Config, parts: Parts, backend: Arc<dyn Backend>, memory: Memory) -> Result<Self> {
        let Parts { mut phases, read: RunData { data, general, notes, same_tests }, codes, chat } = parts;
        let base = PathBuf::from(&config.model.path);
        let mut described = Architecture::read(&base)?;
        if config.model.init == Init::Random {
            described.quantised = None;
        }
        if let Some(codes) = &described.quantised {
            config.tuner().leaves_weights(&format!("{} ({})", base.display(), codes.scheme.name()))?;
        }
        let prompt_side = PromptSide::from(&described);
        let extend = || Vocabulary::new(&base, &data.items, &config.data, prompt_side, codes.as_ref());
        let vocabulary = phases.time("tokens of the items", extend)?;
        let rows = vocabulary.rows_for(described.vocabulary)?;
        let random = (config.model.init == Init::Random).then_some(config.seed);
        described.narrow = narrow(&config, &base, backend.info())?;
        let options = LoadOptions { random, vocabulary: rows, narrow: described.narrow };
        let items = vocabulary.item_rows();
        let new_rows = (!items.is_empty()).then_some(items.start as usize);
        let prompts = Prompts::with_chat(&config.data, chat, Some(&vocabulary))?;
        if memory != Memory::Any {
            // Which layers are whole beside others in codes only the weights tell.
            let (coded, narrow) = (described.quantised.is_some(), described.narrow);
            let described = if coded { Checked::open(&base)?.architecture } else { described };
            let rows = rows.max(described.vocabulary);
            let architecture = &Architecture { vocabulary: rows, narrow, ..described };
            let device = backend.info();
            if memory == Memory::Training {
                let encoder = Encoder::new(&vocabulary, &prompts, &data.tasks, prompt_side, &config.data);
                let (config, data) = (&config, &data);
                Planned { config, data, encoder, architecture, new_rows, device }.fits()?;
            } else {
                let (settings, length) = (&config.null_space, config.data.general_length);
                let chunks =
                    &GeneralText::chunks(&general.calibration, &vocabulary, length, settings.tokens)?;
                let vocabulary = new_rows.unwrap_or(architecture.vocabulary);
                PlannedKnowledge { architecture, device, settings, chunks, vocabulary }.fits()?;
            }
        }
        let mut model = phases.time("loading the model", || Model::load(&base, backend, &options))?;
        config.tuner().fits(&model.layout.sites, data.tasks.len())?;
        let old_vocabulary = new_rows.unwrap_or(model.architecture.vocabulary);
        let start = || start_rows(&mut model, &vocabulary, &data, old_vocabulary);
        phases.time("rows of the items", start)?;
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
            notes,
            same_tests,
            states: None,
            phases,
            codes,
        })
    }

    /// Opens the base model of the run in `path` to read the run, and says what changed since it was made.
    pub fn open_run(path: &Path, settings: &SettingsArgs, device: &DeviceArgs, reads: Reads) -> Result<Self> {
        let run = Run::open(path)?;
        let mut layers = settings.layers()?;
        layers.extend(device_layer(device));
        let (config, _) = run.settings(layers, Purpose::Read)?;
        let session =
            Self::of_run(&run, config, (reads, Memory::Any), device).map_err(|e| e.at(path.display()))?;
        session.notes.iter().for_each(|note| super::say(note));
        Ok(session)
    }

    /// Puts the weights of a run's best (or else latest) checkpoint into its base model.
    pub fn restore_best(&mut self, run: &Path) -> Result<()> {
        let knowledge = self.stored_basis(run)?;
        let mut tuner = self.tuner(knowledge.as_ref())?;
        let found = checkpoint::load_best(&run.join("checkpoints"))?;
        found.restore(&mut self.model, &mut tuner, &self.data.tasks)
    }

    /// What a run that begins in `path` keeps of all this.
    pub fn kept(&self, path: &Path, norms: Option<StepNorms>) -> Run {
        let tokenizer = self.vocabulary.fingerprint();
        Run {
            path: whole(path),
            config: self.config.clone(),
            items: self.data.items.clone(),
            codes: self.codes.clone(),
            chat: self.prompts.chat_template().cloned(),
            norms,
            sources: Sources::of(&self.model.fingerprint, &tokenizer, &self.data, &self.general),
        }
    }

    /// Refuses ranks that do not run the same: the program to the byte, settings, model, data, and what sums depend on.
    ///
    /// # Errors
    /// What differs, with both values and both ranks.
    pub fn same_on_all_ranks(&self) -> Result<()> {
        let world = ranks::world();
        if world.is_alone() {
            return Ok(());
        }
        let short = |bytes: &[u8]| blake3::hash(bytes).to_hex()[..16].to_string();
        let program = std::env::current_exe().ok().and_then(|path| std::fs::read(path).ok());
        let mut config = self.config.clone();
        (config.model.path, config.data.path, config.train.match_step) = Default::default();
        config.device = Default::default();
        let settings: Vec<String> =
            config.flat().iter().map(|(key, value)| format!("{key} = {value}")).collect();
        let (info, run) = (self.model.backend.info(), self.kept(Path::new(""), None));
        let device = match info.launches_kernels() {
            true => info.name.clone(),
            false => format!("cpu, {}", ranks::vector_units().join(", ")),
        };
        let sources = serde_json::to_vec(&run.sources).unwrap_or_default();
        world.same("the program (a hash of its file)", &short(&program.unwrap_or_default()))?;
        world.same("train.shards", &config.train.shards.to_string())?;
        world.same("the base model (its fingerprint)", &self.model.fingerprint)?;
        world.same("the data (a hash of records, texts and tokens)", &short(&sources))?;
        world.same("the settings", &settings.join("\n"))?;
        world.same("the device", &device)
    }

    /// Records to tokens.
    pub fn encoder(&self) -> Encoder<'_> {
        Encoder::new(&self.vocabulary, &self.prompts, &self.data.tasks, self.prompt_side, &self.config.data)
    }

    /// What a plan of training is made of.
    pub fn planned(&self) -> Planned<'_> {
        let (architecture, device) = (&self.model.architecture, self.model.backend.info());
        let (config, data, encoder, new_rows) = (&self.config, &self.data, self.encoder(), self.new_rows);
        Planned { config, data, encoder, architecture, new_rows, device }
    }

    /// Token ids of general text.
    pub fn chunks(&self, documents: &[String], tokens: usize) -> Result<Vec<Vec<u32>>> {
        GeneralText::chunks(documents, &self.vocabulary, self.config.data.general_length, tokens)
    }

    /// What the user should know of the general text.
    ///
    /// # Errors
    /// The tokenizer fails.
    pub fn text_warnings(&self) -> Result<Vec<String>> {
        let found = self.general.warnings(&self.data, &self.vocabulary)?;
        Ok(found.into_iter().map(|warning| format!("warning: {warning}")).collect())
    }

    /// Whether the configuration protects anything.
    pub fn needs_basis(&self) -> bool {
        needs_basis(&self.config.null_space, self.new_rows.is_some())
    }

    /// Settings of the pass that learns what this run needs: without gradients where nothing asks for them.
    pub fn needed_basis(&self) -> NullSpaceSettings {
        let null = &self.config.null_space;
        let gradient_tokens = if null.weighs_costs() { null.gradient_tokens } else { 0 };
        NullSpaceSettings { gradient_tokens, ..null.clone() }
    }

    /// Learns what the base model knows from the calibration text, into `path`; an earlier start of the same that was
    /// interrupted is gone on with.
    pub fn learn_basis(&self, path: &Path, settings: &NullSpaceSettings, quiet: bool) -> Result<Knowledge> {
        let chunks = self.chunks(&self.general.calibration, settings.tokens)?;
        let interrupted = super::catch_interrupts()?;
        let partial = partial_path(path);
        let pass = self.knowledge_pass(settings, &chunks, interrupted);
        let pass = KnowledgePass { partial: Some(&partial), ..pass };
        let total: usize = chunks.iter().map(Vec::len).sum();
        let (world, shards) = (ranks::world(), self.config.train.shards.max(1));
        let quiet = quiet || !world.is_first();
        let mut progress = Progress::new("knowledge basis, tokens", total as u64, quiet);
        let learned = pass.learn_in_leaves((world, shards), &mut |at| match at {
            KnowledgeProgress::Resumed(tokens) => {
                progress.note(&format!("going on from {} ({tokens} tokens)", partial.display()));
            }
            KnowledgeProgress::Tokens(done, _) => progress.tick(done as u64, String::new),
            KnowledgeProgress::Moments(done, all) => {
                progress.tick(total as u64, || format!("{done} of {all} second moments decomposed"));
            }
        });
        progress.finish();
        let learned = learned.map_err(|error| match error.kind {
            Kind::Memory => error.remedy(
                "learning the knowledge basis takes less memory with fewer null_space.directions, and with \
                 null_space.gradient_tokens = 0 no backward pass; `train --dry-run` counts it",
            ),
            _ => error,
        })?;
        world.by_first(|| {
            learned.save(path)?;
            let _ = std::fs::remove_file(&partial);
            Ok(())
        })?;
        Ok(learned)
    }

    /// General text on its way through the base model.
    pub fn knowledge_pass<'a>(
        &'a self,
        settings: &'a NullSpaceSettings,
        chunks: &'a [Vec<u32>],
        interrupted: &'a AtomicBool,
    ) -> KnowledgePass<'a> {
        KnowledgePass {
            model: &self.model,
            settings,
            chunks,
            vocabulary: self.old_vocabulary,
            seed: self.config.seed,
            partial: None,
            interrupted,
        }
    }

    /// What is protected under the present settings.
    pub fn protection<'a>(&self, knowledge: &'a Knowledge) -> Result<Protection<'a>> {
        let (settings, sites) = (self.config.tuner(), &self.model.layout.sites);
        let rooms = settings.rooms(sites, self.data.tasks.len())?;
        let device = (&*self.model.backend, self.config.seed);
        Protection::of(knowledge, &settings.null_space, sites, &rooms, device)
    }

    /// The same, layer by layer, to be told.
    pub fn protected(&self, knowledge: &Knowledge) -> Result<Protected> {
        let (sites, protection) = (&self.model.layout.sites, self.protection(knowledge)?);
        let rooms = self.config.tuner().rooms(sites, self.data.tasks.len())?;
        Ok(Protected::of(knowledge, &protection, sites, &rooms))
    }

    /// What general text uses, to be drawn.
    pub fn spectra(&self, knowledge: &Knowledge) -> Result<Vec<Value>> {
        Ok(spectra(knowledge, &self.protection(knowledge)?, &self.model.layout.sites))
    }

    /// Names of the adapted layers, in order.
    pub fn adapted(&self) -> Result<Vec<&str>> {
        let sites = &self.model.layout.sites;
        let adapted = self.config.tuner().adapted(sites)?;
        Ok(sites
            .iter()
            .zip(adapted)
            .filter(|(_, adapted)| *adapted)
            .map(|(site, _)| site.name.as_str())
            .collect())
    }

    /// What is rehearsed while the model is tuned; to be asked for while it is still the base model.
    pub fn rehearsal(&self) -> Result<Option<Rehearsal>> {
        let settings = self.config.tuner();
        let tokens = if settings.rehearsal.every > 0 { settings.rehearsal.tokens } else { return Ok(None) };
        let texts = self.chunks(&self.general.calibration, tokens)?;
        let (settings, kept) = ((&settings, self.config.seed), self.states.as_ref());
        Rehearsal::kept(&self.model, texts, self.old_vocabulary, settings, kept)
    }

    /// Of the basis in a file, what a run under this configuration uses.
    pub fn basis_for_run(&self, path: &Path) -> Result<Knowledge> {
        Knowledge::load_for(path, &self.model.fingerprint, &self.config.null_space)
    }

    /// The basis a run directory keeps.
    pub fn stored_basis(&self, run: &Path) -> Result<Option<Knowledge>> {
        let path = run.join("basis.safetensors");
        if !path.is_file() {
            return Ok(None);
        }
        self.basis_for_run(&path).map(Some)
    }

    /// The method over this model.
    pub fn tuner(&mut self, knowledge: Option<&Knowledge>) -> Result<Optimizer> {
        let (settings, tasks, seed) = (self.config.tuner(), self.data.tasks.len(), self.config.seed);
        Optimizer::for_model(settings, &mut self.model, self.new_rows, tasks, knowledge, seed)
    }
}
