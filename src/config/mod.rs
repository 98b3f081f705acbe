//! The run's configuration: one typed structure, from presets, file and flags.

mod defaults;
mod layers;
mod values;

use layers::blame;
pub use layers::{Layer, known_keys, merge};

/// Settings that reproduce the published optimizer (section 2 of the paper's code), as a layer under the user's own.
const PUBLISHED: &str = include_str!("published.toml");

use crate::data::DataSettings;
use crate::distributed::DistributedSettings;
use crate::error::{Error, Result};
use crate::eval::EvaluateSettings;
use crate::gems::{GemsSettings, MethodSettings, NullSpaceSettings, OptimizerSettings, RehearsalSettings};
use crate::train::{CheckpointSettings, TrainSettings};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Every setting of a run. `gems-engine config-schema` prints this as a JSON schema.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Seed of everything random: data order, initial values, sketches.
    pub seed: u64,
    /// What to compute on: auto, cpu, cuda, cuda:N or simt.
    pub device: Device,
    /// What layers compute in on a GPU, and weights are kept in on the CPU, which computes in f32 unless this is mixed.
    pub precision: Precision,
    /// The base model.
    pub model: ModelSettings,
    /// Records, prompts, items.
    pub data: DataSettings,
    /// The method.
    pub gems: GemsSettings,
    /// What must not be forgotten.
    pub null_space: NullSpaceSettings,
    /// General text read again while tuning.
    pub rehearsal: RehearsalSettings,
    /// Adam, and what is trained beside the layers.
    pub optimizer: OptimizerSettings,
    /// Length, batch, learning rate, validation.
    pub train: TrainSettings,
    /// Ranking and metrics.
    pub evaluate: EvaluateSettings,
    /// Saving.
    pub checkpoint: CheckpointSettings,
    /// More than one process.
    pub distributed: DistributedSettings,
}

/// What to compute on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub enum Device {
    /// A GPU when there is one that works, otherwise the CPU.
    #[default]
    Auto,
    /// The native CPU backend.
    Cpu,
    /// GPU number n.
    Cuda(usize),
    /// The CUDA kernels on the host SIMT machine.
    Simt,
}

impl TryFrom<String> for Device {
    type Error = String;
    fn try_from(text: String) -> std::result::Result<Self, String> {
        match text.as_str() {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "simt" => Ok(Self::Simt),
            "cuda" => Ok(Self::Cuda(0)),
            other => other
                .strip_prefix("cuda:")
                .and_then(|n| n.parse().ok())
                .map(Self::Cuda)
                .ok_or_else(|| format!("unknown device `{other}`; one of auto, cpu, cuda, cuda:N, simt")),
        }
    }
}

impl From<Device> for String {
    fn from(device: Device) -> Self {
        match device {
            Device::Auto => "auto".into(),
            Device::Cpu => "cpu".into(),
            Device::Simt => "simt".into(),
            Device::Cuda(n) => format!("cuda:{n}"),
        }
    }
}

/// Type of weights of the base model and, on a GPU, of activations and their gradients. Sums, moments and the trained
/// matrices are f32 in any case.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// bf16 on a GPU; f32 on the CPU, but for layers of a bf16 checkpoint whose weights lora and rows leave as they are.
    #[default]
    Auto,
    /// Not on a GPU.
    F32,
    /// On the CPU half the memory: what is folded into weights, and items' rows, are rounded as on a GPU.
    Bf16,
    /// On a CPU that multiplies bf16 by itself (Intel's AMX): f32 weights, and bf16 in the products of layers, head and attention.
    Mixed,
}

/// The base model (section `[model]`).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ModelSettings {
    /// A Hugging Face directory: config.json, safetensors, tokenizer.json.
    pub path: String,
    /// Start from the stored weights, or from random ones of the same configuration.
    pub init: Init,
}

/// Where the weights come from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Init {
    /// The checkpoint's weights.
    #[default]
    Pretrained,
    /// Random weights (normal, `initializer_range`): for pretraining from scratch.
    Random,
}

impl Layer {
    /// A preset by name: `published`.
    pub fn preset(name: &str) -> Result<Self> {
        let text = match name {
            "published" => PUBLISHED,
            other => {
                let error = Error::usage(format!("there is no {other:?}")).at("--preset");
                return Err(error.meant(other, &["published"]));
            }
        };
        let table = text.parse().map_err(|e: toml::de::Error| Error::usage(e.to_string()).at(name))?;
        Ok(Self::table(format!("preset {name}"), table))
    }
}

impl Config {
    /// The JSON schema of all settings.
    pub fn schema() -> serde_json::Value {
        schemars::schema_for!(Config).to_value()
    }
    /// Merges layers over the defaults and checks them.
    pub fn from_layers(layers: Vec<Layer>) -> Result<Self> {
        let mut table = merge(&layers, &Self::schema())?;
        defaults::complete(&mut table);
        // What the schema does not know is left: the device's name.
        let config: Self = table.try_into().map_err(|e: toml::de::Error| {
            Error::usage(e.message().trim())
                .remedy("`gems-engine config-schema` prints every setting with its type")
        })?;
        config.validate().map_err(|error| blame(&layers, error))?;
        Ok(config)
    }
    fn validate(&self) -> Result<()> {
        self.tuner().validate()?;
        self.data.validate()?;
        self.train.validate()?;
        self.evaluate.validate()
    }
    /// What may be meant but is seldom wanted, for people.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        let (steps, rise) = (self.train.steps, self.train.warmup_steps);
        if steps > 0 && rise >= steps {
            notes.push(format!(
                "the learning rate never reaches train.lr: it rises over train.warmup_steps = {rise}, and the run has \
                 {steps} steps"
            ));
        }
        notes
    }
    /// The settings of the method.
    pub fn tuner(&self) -> MethodSettings {
        MethodSettings {
            gems: self.gems.clone(),
            null_space: self.null_space.clone(),
            rehearsal: self.rehearsal.clone(),
            optimizer: self.optimizer.clone(),
        }
    }
    /// Every setting by its dotted key, in the order of the schema.
    pub fn flat(&self) -> Map<String, Value> {
        fn add(prefix: &str, value: Value, all: &mut Map<String, Value>) {
            match value {
                Value::Object(map) => {
                    for (key, value) in map {
                        let key = if prefix.is_empty() { key } else { format!("{prefix}.{key}") };
                        add(&key, value, all);
                    }
                }
                other => drop(all.insert(prefix.into(), other)),
            }
        }
        let mut all = Map::new();
        add("", serde_json::to_value(self).unwrap_or_default(), &mut all);
        all
    }
    /// The resolved configuration as TOML.
    pub fn to_toml(&self) -> String {
        toml::to_string_pretty(self).unwrap_or_default()
    }
}
