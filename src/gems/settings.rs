//! Settings of the method: sections `[gems]`, `[null_space]` and `[optimizer]`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What is tuned, and how (section `[gems]`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct GemsSettings {
    /// The method.
    pub method: Method,
    /// Rank of the shared subspace (of LoRA's factors, of GaLore's subspace).
    pub rank: usize,
    /// Rank of each task's own subspace (default: half of `rank`, at least 1).
    pub task_rank: Option<usize>,
    /// Factor on the adapted layers' updates.
    pub scale: f64,
    /// Steps between two refreshes of the bases.
    pub refresh_every: u64,
    /// How bases are found.
    pub refresh: Refresh,
    /// Gradients of the last so many steps before a refresh are summed for it.
    pub refresh_window: u64,
    /// Extra random directions of a sketch.
    pub oversample: usize,
    /// Extra passes over the probe batches that sharpen the first sketch.
    pub power_iterations: u64,
    /// Whether task subspaces are kept orthogonal to the shared one and to each other.
    pub bases: Bases,
    /// Which side of a weight the bases are on.
    pub side: Side,
    /// What becomes of Adam's first moments when a basis changes.
    pub moments: Moments,
    /// Which layers are adapted: projections (q, k, v, o, gate, up, down) or parts of module names.
    pub targets: Vec<String>,
    /// Weights of the task subspaces' updates.
    pub gates: GateSettings,
    /// What is done about tasks whose gradients disagree.
    pub surgery: Surgery,
    /// LoRA's alpha (default: `rank`); its product is scaled by alpha / rank.
    pub lora_alpha: Option<f64>,
}

/// A tuning method. Every one runs with every null space and with every surgery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// One shared and one task-specific subspace per task.
    Gems,
    /// One shared subspace.
    Galore,
    /// Two trained factors per layer.
    Lora,
    /// Every weight.
    Full,
    /// Only new embedding rows and whatever else `[optimizer]` trains: the layers stay as they are.
    Rows,
}

/// How bases are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Refresh {
    /// Exact for layers of up to 65,536 weights, sketches above.
    Auto,
    /// Singular value decomposition of the summed gradient.
    Exact,
    /// Linear sketches of the gradient, warm-started from Adam's first moments.
    Sketch,
}

/// How subspaces relate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Bases {
    /// Task bases are deflated against the shared one and each other: all rows of A are orthonormal.
    Complementary,
    /// Each is the best for its own gradient; they may overlap (as published code does).
    Independent,
}

/// The side of the weight a basis is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// The input side for every shape.
    Right,
    /// The input side where outputs >= inputs, else the output side; gradients are formed in full, bases are
    /// renewed at steps 1, T, 2T, ... from that step's gradient (the published optimizer).
    Published,
}

/// What becomes of first moments at a refresh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Moments {
    /// `m <- m A_old A_newᵀ`.
    Rotate,
    /// Kept as they are (published).
    Keep,
    /// Set to zero, with the second moments.
    Reset,
}

/// Task-gradient surgery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Surgery {
    /// None.
    None,
    /// PCGrad: of two task gradients that disagree, each loses its part along the other
    /// (Yu et al. 2020; over all layers at once, in shared coordinates where there are some).
    Pcgrad,
}

/// Weights of the task subspaces' updates (section `[gems.gates]`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct GateSettings {
    /// The rule.
    pub kind: GateKind,
    /// The weight of every task under `fixed`.
    pub fixed: f64,
    /// Shares of loss, gradient norm and sample count under `heuristic` (published: 0.4, 0.4, 0.2).
    pub shares: [f64; 3],
    /// Learning rate of the `learned` gates.
    pub lr: f64,
    /// Softmax temperature of the `learned` gates.
    pub temperature: f64,
    /// Take norms of full gradients over all parameters (published) instead of subspace coordinates.
    pub full_norms: bool,
}

/// A gate rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum GateKind {
    /// The same constant for every task.
    Fixed,
    /// Shares of loss, gradient norm and count, normalised (published).
    Heuristic,
    /// In inverse proportion to the task's gradient norm.
    InverseNorm,
    /// A small softmax network on the shares, trained online by the hypergradient.
    Learned,
}

/// What the updates must leave alone (section `[null_space]`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NullSpaceSettings {
    /// The side on which general knowledge is protected.
    pub side: NullSide,
    /// What is projected, on the output side or without bases: the gradient (published), the update, or both.
    /// On the input side, bases are projected once at each refresh and nothing else is needed.
    pub project: Project,
    /// How many directions are protected per layer.
    pub criterion: Criterion,
    /// The criterion's constant: share of the energy, ratio to the largest eigenvalue, number of free
    /// directions, or the absolute threshold.
    pub value: f64,
    /// Protect random directions instead, as many per layer: the control that any claim needs.
    pub random: bool,
    /// Also keep the change of item rows off the dominant final hidden states of general text: this share of
    /// their energy (0: off).
    pub item_rows: f64,
    /// Tokens of general text over which second moments are taken.
    pub tokens: usize,
}

/// A side of a weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum NullSide {
    /// No null space.
    None,
    /// Layer inputs: then `dW x = 0` for protected x, whatever the optimizer does.
    Input,
    /// Layer outputs (published).
    Output,
}

/// What is projected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Project {
    /// The update, after Adam: nothing leaks.
    Update,
    /// The gradient, before Adam (published): Adam, being elementwise, leaves the null space again.
    Gradient,
    /// Both.
    Both,
}

/// How the number of protected directions is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Criterion {
    /// The fewest that hold this share of the energy (trace).
    Energy,
    /// Those with an eigenvalue above this share of the largest.
    Ratio,
    /// All but this many.
    Budget,
    /// Those with an eigenvalue of at least this; if none is below, all but the smallest 5 % (published: 0.02).
    Absolute,
}

/// The optimizer (section `[optimizer]`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OptimizerSettings {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the denominator of the adapted layers' updates.
    pub eps: f64,
    /// Added before the bias correction instead of after (published).
    pub eps_before_correction: bool,
    /// Weight decay.
    pub weight_decay: f64,
    /// What decays: the change from the base model, or the weights themselves (published).
    pub decay: Decay,
    /// Largest norm of all gradients together (0: no clipping).
    pub clip_norm: f64,
    /// Learning rate of embedding and head rows at the top of the schedule (default: `train.lr`).
    pub lr_rows: Option<f64>,
    /// Which rows of embedding and head are trained.
    pub embeddings: Embeddings,
    /// Train the norms' weights.
    pub norms: bool,
    /// Train biases and relative position biases.
    pub biases: bool,
}

/// What weight decay pulls towards zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Decay {
    /// The change of the adapted layers since the last fold: towards the base model.
    Delta,
    /// All trained weights, after the step (published).
    Weights,
}

/// Which rows of embedding and head are trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Embeddings {
    /// Those of new item tokens.
    New,
    /// All of them.
    All,
    /// None.
    None,
}

impl Default for GemsSettings {
    fn default() -> Self {
        Self {
            method: Method::Gems,
            rank: 64,
            task_rank: None,
            scale: 1.0,
            refresh_every: 200,
            refresh: Refresh::Auto,
            refresh_window: 8,
            oversample: 8,
            power_iterations: 1,
            bases: Bases::Complementary,
            side: Side::Right,
            moments: Moments::Rotate,
            targets: ["q", "k", "v", "o", "gate", "up", "down"].map(String::from).to_vec(),
            gates: GateSettings::default(),
            surgery: Surgery::None,
            lora_alpha: None,
        }
    }
}

impl Default for GateSettings {
    fn default() -> Self {
        Self {
            kind: GateKind::Fixed,
            fixed: 0.5,
            shares: [0.4, 0.4, 0.2],
            lr: 0.05,
            temperature: 1.0,
            full_norms: false,
        }
    }
}

impl Default for NullSpaceSettings {
    fn default() -> Self {
        Self {
            side: NullSide::Input,
            project: Project::Update,
            criterion: Criterion::Energy,
            value: 0.95,
            random: false,
            item_rows: 0.9,
            tokens: 65536,
        }
    }
}

impl Default for OptimizerSettings {
    fn default() -> Self {
        Self {
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            eps_before_correction: false,
            weight_decay: 0.0,
            decay: Decay::Delta,
            clip_norm: 0.0,
            lr_rows: None,
            embeddings: Embeddings::New,
            norms: false,
            biases: false,
        }
    }
}
