//! Settings of the method: sections `[gems]`, `[null_space]`, `[rehearsal]` and `[optimizer]`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What is tuned, and how (section `[gems]`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct GemsSettings {
    /// The method.
    pub method: Method,
    /// Rank of the shared subspace (of LoRA's factors, of GaLore's subspace).
    #[schemars(range(min = 1))]
    pub rank: usize,
    /// Rank of each task's own subspace (default: half of `rank`, at least 1).
    #[schemars(range(min = 1))]
    pub task_rank: Option<usize>,
    /// Factor on the adapted layers' updates.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub scale: f64,
    /// Steps between two refreshes of the bases.
    #[schemars(range(min = 1))]
    pub refresh_every: u64,
    /// How bases are found.
    pub refresh: Refresh,
    /// Gradients of the last so many steps before a refresh are summed for it.
    #[schemars(range(min = 1))]
    pub refresh_window: u64,
    /// Extra random directions of a sketch.
    #[schemars(range(max = 4096))]
    pub oversample: usize,
    /// Extra passes over the probe batches that sharpen the first sketch.
    #[schemars(range(max = 100))]
    pub power_iterations: u64,
    /// Whether task subspaces are kept orthogonal to the shared one and to each other.
    pub bases: Bases,
    /// Which side of a weight the bases are on.
    pub side: Side,
    /// What becomes of Adam's first moments when a basis changes.
    pub moments: Moments,
    /// Which layers are adapted: projections (q, k, v, o, gate, up, down) or parts of module names.
    #[schemars(length(min = 1))]
    pub targets: Vec<String>,
    /// Directions of what is learned that are kept at a refresh where a weight is stored in codes, and cannot take it
    /// [default: as many as the layer's subspaces have].
    #[schemars(range(min = 1))]
    pub remainder_rank: Option<usize>,
    /// Weights of the task subspaces' updates.
    pub gates: GateSettings,
    /// What is done about tasks whose gradients disagree.
    pub surgery: Surgery,
    /// LoRA's alpha (default: `rank`); its product is scaled by alpha / rank.
    #[schemars(extend("exclusiveMinimum" = 0))]
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
    #[schemars(range(min = 0))]
    pub fixed: f64,
    /// Shares of loss, gradient norm and sample count under `heuristic` (published: 0.4, 0.4, 0.2).
    #[schemars(inner(range(min = 0)))]
    pub shares: [f64; 3],
    /// Learning rate of the `learned` gates.
    #[schemars(range(min = 0))]
    pub lr: f64,
    /// Softmax temperature of the `learned` gates.
    #[schemars(extend("exclusiveMinimum" = 0))]
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

/// What the updates must leave alone (section `[null_space]`). Where one of `side`, `project`, `criterion`, `value`, `room`
/// and `random` is given, a null space is chosen by hand: `side` is then `input` unless given, and `step_factors`, `pull` and
/// `rehearsal.every` are off unless given.
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
    #[schemars(range(min = 0))]
    pub value: f64,
    /// Directions that are always left free in a layer [default: as many as its subspaces have].
    pub room: Option<usize>,
    /// Protect random directions instead, as many per layer: the control that any claim needs.
    pub random: bool,
    /// Added to second moments, in units of their mean eigenvalue, under `side = "metric"`: the larger, the more the
    /// metric is like none.
    #[schemars(range(max = 1000000), extend("exclusiveMinimum" = 0))]
    pub damping: f64,
    /// Scale every layer's learning rate by what a step in it costs on general text, to the power -1/2, over the
    /// geometric mean of the layers. With every method.
    pub step_factors: bool,
    /// At every fold (under LoRA and full tuning every `gems.refresh_every` steps) draw what was learned back towards
    /// the base model, by what it costs on general text: a typical direction of the median layer keeps 1 / (1 + pull) at
    /// the top of the schedule (0: off).
    #[schemars(range(min = 0, max = 1000000))]
    pub pull: f64,
    /// Also keep the change of item rows off the dominant final hidden states of general text: this share of
    /// their energy (0: off).
    #[schemars(range(min = 0, max = 1))]
    pub item_rows: f64,
    /// Tokens of general text over which second moments are taken.
    #[schemars(range(min = 1))]
    pub tokens: usize,
    /// Those of them over which moments of gradients are taken too, by backward passes: to the nearest pass of 4096.
    /// 0: none.
    pub gradient_tokens: usize,
    /// Most directions that are kept of a second moment of more than 1024 dimensions; smaller ones are kept whole.
    #[schemars(range(min = 1, max = 1024))]
    pub directions: usize,
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
    /// No projection: steps are spent by what their direction costs on general text, on the input side and the output
    /// side (the knowledge metric).
    Metric,
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

/// General text read again while the model is tuned (section `[rehearsal]`): its predictions are held to those of the
/// base model, by the gradient of `weight` times the mean KL(base || now) a token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RehearsalSettings {
    /// Steps from one to the next; the gradient is held between them (0: off).
    pub every: u64,
    /// Pieces of text at a time.
    #[schemars(range(min = 1))]
    pub texts: usize,
    /// Factor on the divergence, beside the mean loss of a label.
    #[schemars(range(max = 1000000), extend("exclusiveMinimum" = 0))]
    pub weight: f64,
    /// Tokens of calibration text that pieces are drawn from; the base model's final hidden state of each is kept on
    /// the host.
    #[schemars(range(min = 2))]
    pub tokens: usize,
}

/// The optimizer (section `[optimizer]`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OptimizerSettings {
    /// Decay of the first moment.
    #[schemars(range(min = 0), extend("exclusiveMaximum" = 1))]
    pub beta1: f64,
    /// Decay of the second moment.
    #[schemars(range(min = 0), extend("exclusiveMaximum" = 1))]
    pub beta2: f64,
    /// Added to the denominator of the adapted layers' updates.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub eps: f64,
    /// Added before the bias correction instead of after (published).
    pub eps_before_correction: bool,
    /// Weight decay.
    #[schemars(range(min = 0))]
    pub weight_decay: f64,
    /// What decays: the change from the base model, or the weights themselves (published).
    pub decay: Decay,
    /// Largest norm of all gradients together (0: no clipping).
    #[schemars(range(min = 0))]
    pub clip_norm: f64,
    /// Learning rate of embedding and head rows at the top of the schedule (default: `train.lr`).
    #[schemars(range(min = 0))]
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
            remainder_rank: None,
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
            side: NullSide::None,
            project: Project::Update,
            criterion: Criterion::Energy,
            value: 0.95,
            room: None,
            random: false,
            damping: 0.1,
            step_factors: true,
            pull: 0.25,
            item_rows: 0.9,
            tokens: 65536,
            gradient_tokens: 16384,
            directions: 256,
        }
    }
}

impl NullSpaceSettings {
    /// Nothing is protected, weighed or pulled back.
    pub fn off() -> Self {
        Self { step_factors: false, pull: 0.0, item_rows: 0.0, ..Self::default() }
    }
}

impl RehearsalSettings {
    /// Nothing is rehearsed.
    pub fn off() -> Self {
        Self { every: 0, ..Self::default() }
    }
}

impl Default for RehearsalSettings {
    fn default() -> Self {
        Self { every: 10, texts: 8, weight: 1.0, tokens: 32768 }
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
