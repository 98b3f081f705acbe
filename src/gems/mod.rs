//! GEMS, Gradient Multi-Subspace Tuning (arXiv 2601.09496): the method, on a page.
//!
//! The gradient `G` of a weight is decomposed into one shared and one task-specific low-rank subspace a task: with the
//! orthonormal rows `A_s` of a subspace s and the gradient `G_s` of its tokens, the coordinates are `R_s = G_s A_sᵀ`,
//! taken without ever forming `G_s` (`Adapter::observe`). Adam in the subspaces gives `N_s`,
//! and the weight changes by `dW = -lr Σ_s gate_s N_s A_s`. The bases lie in the null space of the
//! protected directions K of general knowledge, so that `dW K = 0` (`knowledge`); they are renewed every few steps from
//! sketches of the gradient (`refresh`).
//!
//! What the base model knows is kept in other ways too, each of them a setting. Under the knowledge metric (`metric`) bases
//! are found in `P G S` and steps made in its coordinates, so that directions are used by what they cost on general
//! text. At every fold the pull draws W back towards the base model, by the same costs (`pull`). A rehearsal of general
//! text leaves a held gradient, which enters every step's Adam beside the tasks' until the next (`Adapter::hold`).
//!
//! | file | what |
//! | --- | --- |
//! | this one | a step and a refresh |
//! | `adapter`, `tuned` | what every way of tuning a layer offers, and how updates are applied; a layer's own way |
//! | `subspaces`, `lora`, `full`, `published` | the ways of tuning |
//! | `pairs`, `gram` | inner products of a layer's gradients; of a step's, and what else it reads back |
//! | `gates`, `adam`, `rows`, `master` | weights of the tasks' subspaces; Adam's constants; dense parameters; f32 weights |
//! | `knowledge` | what the base model knows, as second moments of general text; what of it is protected |
//! | `metric`, `pull`, `costs` | the knowledge metric; the pull; what changes of the layers cost, and step factors from it |
//! | `refresh` | windows of gradients, and new bases from them |
//! | `leaves` | a step's gradients in leaves, to be summed over machines |
//! | `build`, `state` | construction; checkpoints |
//! | `settings`, `method`, `linalg` | settings; what of them goes together; decompositions |

mod adam;
mod adapter;
mod build;
mod costs;
mod full;
mod gates;
mod gram;
mod knowledge;
mod leaves;
mod linalg;
mod lora;
mod master;
mod method;
mod metric;
mod pairs;
mod published;
mod pull;
mod refresh;
mod report;
mod rows;
mod settings;
mod state;
mod subspaces;
mod tuned;

pub use adam::{adamw, direction};
pub use adapter::Scales;
pub use gates::{GateGradients, GateNetwork, Gates, TaskSignals};
pub use gram::{Competition, LayerReport};
pub use knowledge::{
    Knowledge, Moment, Protection, Space, Spectrum, Sums, WHOLE, protected, sketch_rows, test_matrix,
};
pub use leaves::LeafLayout;
pub use linalg::{RowSpace, row_space, symmetric_eigen, transpose};
pub use master::NullSpace;
pub use method::MethodSettings;
pub use published::{PublishedMatrix, PublishedStep};
pub use report::{RefreshReport, StepInput, StepReport};
pub use rows::DenseRole;
pub use settings::{
    Bases, Criterion, Decay, Embeddings, GateKind, GateSettings, GemsSettings, Method, Moments, NullSide,
    NullSpaceSettings, OptimizerSettings, Project, Refresh, RehearsalSettings, Side, Surgery,
};
pub use state::{StateKind, StateTensor};

use crate::backend::{Backend, ColumnSums, Dots, Mat, MatMut, PerSegment, StepFactors, Tensor, trace};
use crate::error::Result;
use crate::layers::{Layers, LinearGradient, Tap, Want};
use adapter::{Pass, Step, apply};
use gram::{Reading, StepGram};
use rows::DenseParameter;
use std::ops::Range;
use std::sync::Arc;
use subspaces::Subspaces;
use tuned::Tuned;

/// The optimizer of a run: gradients in, layer by layer, while they are live; updates out.
pub struct Optimizer {
    settings: MethodSettings,
    backend: Arc<dyn Backend>,
    tasks: usize,
    /// One a linear layer that is tuned.
    adapters: Vec<Option<Tuned>>,
    /// The factor on each one's learning rate, from what a step in it costs (`costs`).
    step_factors: Vec<f64>,
    /// One a dense parameter that is trained.
    dense: Vec<Option<DenseParameter>>,
    gram: StepGram,
    gates: Gates,
    /// What item rows keep off, as columns.
    protected_rows: Option<Tensor>,
    /// Steps done, over all and for every task.
    step: u64,
    task_steps: Vec<u64>,
    observing: Observing,
    /// Tokens rehearsed in this step.
    rehearsed: usize,
    /// Whether the gradients were given out since they were observed.
    taken: bool,
    /// The pass at hand, and passes of this step so far.
    pass: Pass,
    passes: usize,
}

/// Whose gradients the passes at hand bring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Observing {
    Nothing,
    /// The tasks'.
    Tasks,
    /// The rehearsal's.
    Rehearsal,
}

impl Optimizer {
    // ---- a step -----------------------------------------------------------------------------

    /// Starts a step. A window opens when a refresh is near.
    pub fn begin_step(&mut self) -> Result<()> {
        (self.observing, self.taken, self.passes, self.rehearsed) = (Observing::Tasks, false, 0, 0);
        let every = self.settings.gems.refresh_every;
        let window = self.settings.gems.refresh_window.min(every);
        if self.step % every == every - window {
            let _span = trace::span("window");
            let be = Arc::clone(&self.backend);
            // Before the first bases are found there is nothing to renew.
            let layers = self.subspaces().map(|(_, s)| s).filter(|s| s.refreshes() > 0);
            refresh::open_windows(&*be, layers.collect())?;
        }
        self.dense.iter_mut().flatten().for_each(DenseParameter::begin);
        self.backend.fill(self.gram.values.mat_mut(), 0.0)
    }

    /// Whether general text is to be rehearsed in this step, between [`Optimizer::begin_step`] and the step's own
    /// passes: every so many steps, and where the bases are new.
    pub fn rehearsal_is_due(&self) -> bool {
        let (every, gems) = (self.settings.rehearsal.every, &self.settings.gems);
        let renews = matches!(gems.method, Method::Gems | Method::Galore);
        let renewed = renews && self.step.is_multiple_of(gems.refresh_every);
        every > 0 && (self.step.is_multiple_of(every) || renewed)
    }

    /// From here on passes bring the gradient of the rehearsal: it is held, and enters every step's Adam beside the tasks'
    /// until the next rehearsal. It is in no window, inner product, gate or dense parameter.
    pub fn begin_rehearsal(&mut self) {
        (self.observing, self.passes) = (Observing::Rehearsal, 0);
    }

    /// Ends the rehearsal of `kl.rows` tokens with the divergence of each, *f32* `[tokens x 1]`.
    pub fn finish_rehearsal(&mut self, kl: Mat) -> Result<()> {
        (self.observing, self.passes, self.rehearsed) = (Observing::Tasks, 0, kl.rows);
        let be = Arc::clone(&self.backend);
        let (at, segments) = (self.gram.held.clone(), &[0..kl.rows]);
        if at.is_empty() {
            return Ok(());
        }
        let mut values = self.gram.values.mat_mut().col_range(at.clone());
        let out = values.reborrow().col_range(0..1);
        be.run(ColumnSums { dy: kl, sums: PerSegment { segments, out } })?;
        self.adapters.iter_mut().flatten().try_for_each(|a| a.finish_hold())?;
        let held: Vec<MatMut> = self.adapters.iter_mut().flatten().flat_map(|a| a.held()).collect();
        let pairs = held.iter().map(|h| (h.as_mat(), h.as_mat())).collect();
        be.run(Dots { pairs, out: values.col_range(1..at.len()) })
    }

    /// Starts a forward and backward pass, whose gradients come through [`Tap`]; `scales` are of the
    /// labels that its loss is the mean over.
    pub fn begin_pass(&mut self, scales: Scales) {
        self.pass = Pass { scales: scales.tasks, first: self.passes == 0 };
        self.passes += 1;
    }

    /// Adds a pass's losses: nll *f32* `[labels x 1]`, and the labels of every task.
    pub fn observe_losses(&mut self, nll: Mat, segments: &[Range<usize>]) -> Result<()> {
        let losses = self.gram.losses();
        let out = self.gram.values.mat_mut().col_range(losses).reshape(self.tasks, 1);
        self.backend.run(ColumnSums { dy: nll, sums: PerSegment { segments, out } })
    }

    /// One step on the gradients that were observed (GEMS, algorithm 1). Nothing changes when a loss or a gradient is
    /// not finite. Waits for the device once, at its end; once more, before the update, where that depends on the host:
    /// learned gates, a norm to meet, the published optimizer.
    ///
    /// # Errors
    /// What the device refuses, and decompositions that do not converge.
    pub fn step(&mut self, layers: &mut dyn Layers, input: &StepInput) -> Result<StepReport> {
        let _span = trace::span("optimizer");
        self.observing = Observing::Nothing;
        let be = Arc::clone(&self.backend);
        self.dense.iter_mut().flatten().try_for_each(DenseParameter::finish)?;
        // <G_i, G_j> of every pair of tasks, over all layers.
        self.gram.finish(&*be, &self.adapters, &self.dense, self.taken)?;
        // Clipping, surgery and gates follow from them, on the device.
        let learned = match self.gates.learns() {
            true => self.learned_gates(input)?,
            false => None,
        };
        self.find_factors(learned.as_deref(), input)?;
        if self.depends_on_the_host(input) {
            let reading = self.gram.read(&*be)?;
            if !reading.finite() {
                return self.skip(reading);
            }
        }
        // N_s = Adam(R_s); dB_s = -lr gate_s N_s; off the null space; B_s += dB_s. Rows, norms and biases likewise.
        self.update(layers, learned.as_deref(), input)?;
        let reading = self.gram.read(&*be)?;
        if !reading.finite() {
            return self.skip(reading);
        }
        (self.step, self.task_steps) = self.next_steps(input);
        // W += Σ_s B_s A_s; A_s = leading rows of G_s, off the protected directions and the other subspaces.
        // W is pulled towards the base model there, by what it costs.
        let refresh = match self.refresh_is_due(input) {
            true => self.refresh(layers, input.schedule)?,
            false => None,
        };
        Ok(StepReport { refresh, ..StepReport::of(reading, self.rehearsed) })
    }

    /// Folds what was learned into the weights, which are pulled towards the base model by the schedule's `strength`, and
    /// finds new bases in the gradients of the window. `None`: there are no bases.
    fn refresh(&mut self, layers: &mut dyn Layers, strength: f64) -> Result<Option<RefreshReport>> {
        let _span = trace::span("refresh");
        let be = Arc::clone(&self.backend);
        for (site, adapter) in self.adapters.iter_mut().enumerate() {
            adapter.iter_mut().try_for_each(|a| a.pull(layers.linear(site), strength))?;
        }
        if self.subspaces().next().is_none() {
            return Ok(None);
        }
        let mut report = RefreshReport::of(refresh::renew(&*be, self.subspaces(), layers, strength)?);
        let lost: Vec<f64> = self.subspaces().filter_map(|(_, s)| s.lost()).collect();
        report.lost = (!lost.is_empty()).then(|| lost.iter().sum::<f64>() / lost.len() as f64);
        // What a search took, no step needs.
        be.trim();
        Ok(Some(report))
    }

    /// Gates learned from the effect of the last ones; `None` when the step will be skipped. Waits.
    fn learned_gates(&mut self, input: &StepInput) -> Result<Option<Vec<f32>>> {
        let reading = self.gram.read(&*self.backend)?;
        if !reading.finite() {
            return Ok(None);
        }
        let mean = |(sum, labels): (&f64, &usize)| if *labels > 0 { sum / *labels as f64 } else { 0.0 };
        let signals = TaskSignals {
            losses: reading.losses.iter().zip(&input.labels).map(mean).collect(),
            norms: reading.sums.task_norms(),
            counts: input.counts.clone(),
        };
        Ok(self.gates.learn(&signals, &reading.sums.effect))
    }

    /// Has the device work out clipping, the tasks' weights and the gates.
    fn find_factors(&mut self, learned: Option<&[f32]>, input: &StepInput) -> Result<()> {
        let labels: Vec<f32> = input.labels.iter().map(|n| *n as f32).collect();
        let counts: Vec<f32> = input.counts.iter().map(|n| *n as f32).collect();
        let values = self.gram.values.mat();
        self.backend.run(StepFactors {
            products: values.col_range(self.gram.products()),
            entries: &self.gram.numbers,
            losses: values.col_range(self.gram.losses()),
            labels: &labels,
            counts: &counts,
            gates: self.gates.rule(learned),
            pcgrad: self.settings.gems.surgery == Surgery::Pcgrad,
            clip_norm: self.settings.optimizer.clip_norm,
            factors: self.gram.factors.mat_mut(),
        })
    }

    /// Whether the host must know that the step is sound before anything is changed.
    fn depends_on_the_host(&self, input: &StepInput) -> bool {
        let g = &self.settings.gems;
        let published = g.method == Method::Gems && g.side == Side::Published;
        self.gates.learns() || input.target_norm.is_some() || published
    }

    /// The step's update of everything that is trained.
    fn update(&mut self, layers: &mut dyn Layers, learned: Option<&[f32]>, input: &StepInput) -> Result<()> {
        let g = &self.settings.gems;
        let scale = if matches!(g.method, Method::Gems | Method::Galore) { g.scale } else { 1.0 };
        let (t, t_tasks) = self.next_steps(input);
        let active: Vec<bool> = input.counts.iter().map(|c| *c > 0.0).collect();
        // In a task's own stream what is held is as large as there the task's gradient is.
        let weight = self.settings.rehearsal.weight as f32;
        let held: Vec<f32> = Scales::of(&input.labels).tasks.iter().map(|scale| weight * scale).collect();
        let squares = self.gram.squares();
        let step = Step {
            optimizer: &self.settings.optimizer,
            rate: input.lr * scale,
            lr: input.lr,
            factors: self.gram.factors.mat(),
            gates: learned,
            active: &active,
            held: (weight, &held),
            t,
            t_tasks: &t_tasks,
            measured_first: input.target_norm.is_some(),
        };
        let tuned = self.adapters.iter_mut().zip(layers.linears()).zip(&self.step_factors).enumerate();
        let updates = tuned.filter_map(|(site, ((a, linear), factor))| {
            let step = Step { rate: step.rate * factor, lr: step.lr * factor, ..step };
            Some(a.as_mut()?.update(linear, &step).map(|update| (site, update)))
        });
        let updates = updates.collect::<Result<Vec<_>>>()?;
        let squares = self.gram.values.mat_mut().col_range(squares);
        self.gram.changed = apply(&*self.backend, updates, step.factors, squares, input.target_norm)?;
        for (i, p) in self.dense.iter_mut().enumerate() {
            let Some(p) = p else { continue };
            let lr = if matches!(p.role, DenseRole::Rows { .. }) { input.lr_rows } else { input.lr };
            p.step(layers.dense(i), lr, &step, self.protected_rows.as_ref())?;
        }
        Ok(())
    }

    /// A step that changed nothing.
    fn skip(&mut self, reading: Reading) -> Result<StepReport> {
        for (_, s) in self.subspaces() {
            if let Some(window) = &mut s.window {
                window.clear()?;
            }
        }
        Ok(StepReport { gradient_norm: f64::NAN, losses: reading.losses, ..StepReport::default() })
    }

    /// The number of this step, over all and for every task.
    fn next_steps(&self, input: &StepInput) -> (u64, Vec<u64>) {
        let tasks = self.task_steps.iter().zip(&input.counts);
        (self.step + 1, tasks.map(|(steps, samples)| steps + u64::from(*samples > 0.0)).collect())
    }

    fn refresh_is_due(&self, input: &StepInput) -> bool {
        self.step.is_multiple_of(self.settings.gems.refresh_every) && !input.last
    }

    // ---- the first bases --------------------------------------------------------------------

    /// Number of tasks.
    pub fn tasks(&self) -> usize {
        self.tasks
    }

    /// Steps done.
    pub fn steps(&self) -> u64 {
        self.step
    }

    /// Passes over the probe batches that must come before the first step: for each round
    /// [`Optimizer::begin_probe`], gradients of all probe batches, and at the end [`Optimizer::finish_probe`].
    pub fn probe_rounds(&mut self) -> u64 {
        if self.step > 0 {
            return 0;
        }
        self.subspaces().filter(|(_, s)| s.refreshes() == 0).map(|(_, s)| s.probe_rounds()).max().unwrap_or(0)
    }

    /// Starts probe round `round` (from 0).
    pub fn begin_probe(&mut self, round: u64) -> Result<()> {
        (self.observing, self.passes) = (Observing::Tasks, 0);
        let be = Arc::clone(&self.backend);
        let layers = self.subspaces().map(|(_, s)| s).filter(|s| round < s.probe_rounds()).collect();
        refresh::open_probe(&*be, layers, round)
    }

    /// Finds the first bases.
    pub fn finish_probe(&mut self, layers: &mut dyn Layers) -> Result<RefreshReport> {
        self.observing = Observing::Nothing;
        Ok(self.refresh(layers, 0.0)?.unwrap_or_default())
    }

    /// The layers whose bases are renewed.
    fn subspaces(&mut self) -> impl Iterator<Item = (usize, &mut Subspaces)> {
        let adapters = self.adapters.iter_mut().enumerate();
        adapters.filter_map(|(site, a)| Some((site, a.as_mut()?.subspaces()?)))
    }
}

impl Tap for Optimizer {
    fn linear(&mut self, site: usize, g: &LinearGradient) -> Result<()> {
        let Some(Some(adapter)) = self.adapters.get_mut(site) else { return Ok(()) };
        match self.observing {
            Observing::Nothing => Ok(()),
            Observing::Rehearsal => adapter.hold(g, &self.pass),
            Observing::Tasks => {
                let products = self.gram.values.mat_mut().col_range(self.gram.sites[site].clone());
                adapter.observe(g, &self.pass, products)
            }
        }
    }

    fn wants(&self, index: usize) -> Want {
        match self.dense.get(index) {
            _ if self.observing == Observing::Rehearsal => Want::Nothing,
            Some(Some(p)) => Want::Rows { first_row: p.role.first_row(), per_task: p.apart() },
            _ => Want::Nothing,
        }
    }

    fn dense(&mut self, index: usize, blocks: Mat) -> Result<()> {
        match self.dense.get_mut(index) {
            Some(Some(p)) => p.observe(blocks, &self.pass),
            _ => Ok(()),
        }
    }
}
