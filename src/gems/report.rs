//! What a step is given and what it tells.

use super::gram::{Competition, LayerReport, Reading};
use super::refresh::search::Found;

/// What a finished step's batch was.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StepInput {
    /// Labels of every task.
    pub labels: Vec<usize>,
    /// Samples of every task.
    pub counts: Vec<f64>,
    /// Learning rate.
    pub lr: f64,
    /// Learning rate of table rows.
    pub lr_rows: f64,
    /// Scale the update of the adapted layers to this norm.
    pub target_norm: Option<f64>,
    /// Learning rate over that at the top of its schedule.
    pub schedule: f64,
    /// No step follows: do not refresh.
    pub last: bool,
}

/// What a step did.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StepReport {
    /// Whether loss and gradient were finite; when not, nothing was changed.
    pub finite: bool,
    /// Summed loss of every task's labels.
    pub losses: Vec<f64>,
    /// Norm of all gradients (of the adapted layers in their subspaces), before clipping.
    pub gradient_norm: f64,
    /// Factor from clipping.
    pub clip: f64,
    /// Norm of the change of the adapted layers.
    pub update_norm: f64,
    /// Gates.
    pub gates: Vec<f64>,
    /// Norms of the tasks' gradients, as the gates see them.
    pub task_norms: Vec<f64>,
    /// Tokens rehearsed in this step, and the mean divergence from the base model on them, in nats.
    pub rehearsed: Option<(usize, f64)>,
    /// How the tasks compete over all adapted layers together (in the shared subspace).
    pub competition: Competition,
    /// Every adapted layer by itself.
    pub layers: Vec<LayerReport>,
    /// Set when the bases were renewed after this step.
    pub refresh: Option<RefreshReport>,
}

/// What a refresh found, as means over layers weighted alike.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RefreshReport {
    /// Share of each subspace's gradient energy in its basis; shared first, then tasks.
    pub energy: Vec<f64>,
    /// Share of the gradient energy the null space leaves.
    pub room: f64,
    /// Share of the squared norm of what was learned that the remainders beside weights in codes could not keep: the mean
    /// over these layers.
    pub lost: Option<f64>,
    /// The same as `room` per adapted layer: (site, room).
    pub rooms: Vec<(usize, f64)>,
    /// Of every adapted layer the energy of each subspace; NaN where it had no gradient.
    pub energies: Vec<Vec<f64>>,
}

impl StepReport {
    /// What was applied; a refresh is to follow.
    pub(super) fn of(reading: Reading, rehearsed: usize) -> Self {
        Self {
            finite: true,
            gradient_norm: reading.sums.norm(reading.weights()),
            clip: reading.clip(),
            update_norm: reading.update_norm,
            gates: reading.gates().to_vec(),
            task_norms: reading.sums.task_norms(),
            rehearsed: (rehearsed > 0).then(|| (rehearsed, reading.rehearsed / rehearsed as f64)),
            competition: reading.sums.competition(),
            layers: reading.layers,
            losses: reading.losses,
            refresh: None,
        }
    }
}

impl RefreshReport {
    /// Means over the layers.
    pub(super) fn of(found: Vec<(usize, Found)>) -> Self {
        let subspaces = found.first().map_or(0, |(_, f)| f.energy.len());
        let mean = |values: Vec<f64>| values.iter().sum::<f64>() / values.len().max(1) as f64;
        let known = |s: usize| found.iter().map(|(_, f)| f.energy[s]).filter(|v| v.is_finite()).collect();
        let rooms: Vec<(usize, f64)> = found.iter().map(|(site, f)| (*site, f.room)).collect();
        Self {
            energy: (0..subspaces).map(|s| mean(known(s))).collect(),
            lost: None,
            room: mean(rooms.iter().map(|r| r.1).collect()),
            rooms,
            energies: found.into_iter().map(|(_, f)| f.energy).collect(),
        }
    }
}
