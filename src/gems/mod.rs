//! The method: subspaces, null space, gates, refresh, optimizer, merge. No device code.
//!
//! [`Tuner`] takes a model's gradients layer by layer while they are live and gives updates back. Each
//! adapted layer is one `Engine`: [`subspaces`](GemsSettings) (GEMS and GaLore: frozen bases A,
//! trained coordinates B), `lora`, `full`, or `published` (the published optimizer, step for step).
//! `readout` is what a step tells, `update` what follows from it. `window` sums gradients, `search` finds new bases in them,
//! `refresh` has all layers do both together; `knowledge` is the null space; `resume` is what a checkpoint keeps.

mod adam;
mod dense;
mod engine;
mod full;
mod gates;
mod knowledge;
mod linalg;
mod lora;
mod products;
mod published;
mod readout;
mod refresh;
mod resume;
mod schedule;
mod search;
mod settings;
mod subspaces;
mod surgery;
mod tuner;
mod update;
mod window;

pub use adam::{adamw, clip_factor, direction};
pub use dense::{DenseParameter, DenseRole};
pub use engine::{Parameters, Scales, StateTensor, Tapped};
pub use gates::{GateGradients, GateNetwork, Gates, TaskSignals, heuristic};
pub use knowledge::{KnowledgeBasis, SecondMoment, Space, protected};
pub use linalg::{RowSpace, row_space, symmetric_eigen, transpose};
pub use published::{PublishedMatrix, PublishedStep};
pub use schedule::{Shape, factor};
pub use settings::{
    Bases, Criterion, Decay, Embeddings, GateKind, GateSettings, GemsSettings, Method, Moments, NullSide,
    NullSpaceSettings, OptimizerSettings, Project, Refresh, Side, Surgery,
};
pub use surgery::pcgrad_weights;
pub use tuner::{RefreshReport, SiteShape, StepInput, StepReport, Tuner, TunerSettings};
