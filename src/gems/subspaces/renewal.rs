//! The renewal of a layer's bases: probes, windows, the fold of what was learned, and what new bases change.

use super::Subspaces;
use super::remainder::{Leading, TakingUp, own_columns_mut, own_rows, own_rows_mut};
use crate::backend::{AdaptedLinear, DType, Fold, Mat, MatMut, Rounding, Tensor};
use crate::error::Result;
use crate::gems::pull::{LastInputs, Through};
use crate::gems::refresh::search::Search;
use crate::gems::refresh::window::{GradientWindow, Sketch};
use crate::gems::settings::Moments;
use crate::random::{self, Purpose};
use std::sync::Arc;

/// A layer's bases before a refresh and the first moments in them, *f32*.
pub(in crate::gems) struct Carried {
    pub bases: Tensor,
    pub moments: Tensor,
}

impl Subspaces {
    /// Passes over the probe batches before the first step.
    pub fn probe_rounds(&self) -> u64 {
        if self.options.exact { 1 } else { 1 + 2 * self.options.power_iterations }
    }

    /// What probes start from: the coordinates of a columns pass; else the first moments, which are the gradient's
    /// coordinates, averaged: a power iteration for free. Nothing before the first bases.
    pub fn starts(&self) -> Vec<Mat<'_>> {
        match &self.window {
            _ if self.options.exact => Vec::new(),
            Some(w) if w.sketch == Sketch::Columns => w.sums.iter().map(Tensor::mat).collect(),
            _ if self.refreshes == 0 => Vec::new(),
            _ => (0..self.ranks.count()).map(|s| self.first.mat().col_range(self.ranks.columns(s))).collect(),
        }
    }

    /// Gaussian probes of every stream, `[M x any]` row by row. They stay among all others, so that energies can be told.
    pub fn gaussians(&self, round: u64) -> Vec<Vec<f32>> {
        let warm = !self.starts().is_empty();
        let columns = |s: usize| self.options.oversample + if warm { 0 } else { self.ranks.each[s] };
        let values = |s: usize| {
            let (stream, n) = (self.options.site << 8 | s as u64, self.m * columns(s));
            random::normal(self.options.seed, Purpose::Sketch, stream, round, n)
        };
        if self.options.exact { Vec::new() } else { (0..self.ranks.count()).map(values).collect() }
    }

    /// Opens a window of sketches (of full gradients for an exact layer), from `starts` of these lengths, scaled to
    /// unit columns on average, and Gaussian probes.
    pub fn open_rows(&mut self, lengths: &[f32], gaussians: &[Vec<f32>]) -> Result<()> {
        let be = &self.backend;
        if self.options.exact {
            self.window = Some(GradientWindow::exact(be, &self.ranks, self.m, self.n)?);
            return Ok(());
        }
        let starts = self.starts();
        let warm = |s: usize| starts.get(s).map_or(0, |start| start.cols);
        let widths: Vec<usize> =
            gaussians.iter().enumerate().map(|(s, g)| warm(s) + g.len() / self.m).collect();
        let mut probe = be.alloc(self.m, widths.iter().sum(), DType::F32)?;
        let mut at = 0;
        for (s, width) in widths.iter().enumerate() {
            let (first, end) = (at + warm(s), at + width);
            if let Some(start) = starts.get(s) {
                be.copy(*start, probe.mat_mut().col_range(at..first))?;
                if lengths[s] > 0.0 {
                    let factor = ((self.m * warm(s)) as f32).sqrt() / lengths[s];
                    be.scale(probe.mat_mut().col_range(at..first), factor)?;
                }
            }
            be.upload(&gaussians[s], probe.mat_mut().col_range(first..end))?;
            at = end;
        }
        // Of P G S, of which the window sums what is left of S: Ωᵀ P G.
        if let Some(metric) = &self.metric {
            probe = metric.outputs.columns(&**be, probe.mat())?;
        }
        self.window = Some(GradientWindow::rows(be, &self.ranks, (probe, widths), self.n)?);
        Ok(())
    }

    /// Under the metric: makes what a window of sketches summed a sketch of P G S, or that of coordinates its coordinates.
    pub fn whiten(&mut self) -> Result<()> {
        let (Some(metric), Some(window)) = (&self.metric, &mut self.window) else { return Ok(()) };
        for sum in &mut window.sums {
            *sum = match window.sketch {
                Sketch::Rows => metric.inputs.rows(&*self.backend, sum.mat())?,
                Sketch::Columns => metric.outputs.columns(&*self.backend, sum.mat())?,
                Sketch::Exact => continue,
            };
        }
        Ok(())
    }

    /// An open window's sketches with the protected directions that they are to be kept off.
    pub fn protected_sketches(&mut self) -> impl Iterator<Item = (&mut Tensor, Mat<'_>)> {
        let protected = self.protected_rows.as_ref().map(|k| k.mat());
        let sums = self.window.iter_mut().flat_map(|w| &mut w.sums);
        sums.filter_map(move |sum| Some((sum, protected?)))
    }

    /// From a window of sketches, whose rows are orthonormal by now, to one of coordinates along them.
    pub fn open_columns(&mut self) -> Result<()> {
        let Some(mut window) = self.window.take() else { return Ok(()) };
        // Coordinates of P G S along Q are those of P G along Q S.
        self.whiten_rows(&mut window.sums)?;
        self.window = Some(GradientWindow::columns(&self.backend, &self.ranks, &window.sums, self.m)?);
        Ok(())
    }

    /// `Q S`, under the metric.
    fn whiten_rows(&self, bases: &mut [Tensor]) -> Result<()> {
        let Some(metric) = &self.metric else { return Ok(()) };
        for q in bases {
            *q = metric.inputs.rows(&*self.backend, q.mat())?;
        }
        Ok(())
    }

    /// Ends the window: folds `B A` into W, which is then pulled towards the base model by the schedule's `strength`. New
    /// bases are then to be looked for, unless there was no gradient.
    pub fn fold(
        &mut self,
        layer: &mut AdaptedLinear,
        (strength, inputs): (f64, &mut LastInputs),
    ) -> Result<Option<Search>> {
        let Some(window) = self.window.take().filter(|w| w.has(0)) else { return Ok(None) };
        let Some(branch) = &mut layer.branch else { return Ok(None) };
        let be = &*self.backend;
        let total = self.ranks.total();
        if self.refreshes > 0 {
            // A remainder has taken up what was learned.
            if self.remainder.is_none() {
                let seed = self.options.seed ^ (self.options.site << 32) ^ self.refreshes;
                let rounding = match layer.weight.dtype() {
                    DType::F32 => Rounding::Nearest,
                    DType::BF16 => Rounding::Stochastic(seed),
                };
                let (w, b, a) = (layer.weight.mat_mut(), self.b.mat(), branch.a.mat());
                match &self.pull {
                    Some(pull) => pull.fold(be, w, Some((b, a)), (strength, inputs), rounding)?,
                    None => be.run(Fold { w, keep: 1.0, scale: 1.0, b, a, rounding })?,
                }
            }
            be.fill(self.b.mat_mut(), 0.0)?;
            be.fill(own_columns_mut(branch, total), 0.0)?;
        }
        // Orthonormal: under the metric Q, not A.
        let old = self.metric.as_ref().map_or(own_rows(branch, total), |metric| metric.q.mat());
        let old = (self.refreshes > 0).then_some(old);
        let sides = self.metric.as_ref().map(|m| (Arc::clone(&m.inputs), Arc::clone(&m.outputs)));
        let keeps_off = (self.protected_rows.clone(), sides);
        let rules = (self.complementary(), self.options.oversample);
        Search::new(be, window, &self.ranks, old, keeps_off, rules).map(Some)
    }

    /// Begins to take up what was learned beside a weight in codes, where there is something.
    pub fn begin_remainder(&self, layer: &AdaptedLinear) -> Result<Option<TakingUp>> {
        let learned = self.refreshes > 0 && self.window.as_ref().is_some_and(|w| w.has(0));
        match (&self.remainder, &layer.branch) {
            (Some(remainder), Some(branch)) if learned => {
                remainder.begin(&*self.backend, branch, self.b.mat()).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// Takes it up. What its pull needs to see then, if it has one.
    pub fn finish_remainder(
        &mut self,
        layer: &mut AdaptedLinear,
        kept: &Leading,
    ) -> Result<Option<[Tensor; 2]>> {
        let be = &*self.backend;
        let (Some(remainder), Some(branch)) = (&mut self.remainder, &mut layer.branch) else {
            return Ok(None);
        };
        remainder.finish(be, branch, self.b.mat(), kept)?;
        self.pull.as_ref().map(|pull| remainder.seen(be, branch, pull)).transpose()
    }

    /// The pull of a remainder that was just taken up.
    pub fn pull_remainder(&mut self, layer: &mut AdaptedLinear, seen: &Through, strength: f64) -> Result<()> {
        match (&mut self.remainder, &mut layer.branch, &self.pull) {
            (Some(remainder), Some(branch), Some(pull)) => {
                remainder.pulled(&*self.backend, branch, (pull, seen, strength))
            }
            _ => Ok(()),
        }
    }

    /// Takes the bases that were found, to which the moments were carried.
    pub fn adopt(&mut self, layer: &mut AdaptedLinear, new: &Tensor) -> Result<()> {
        let be = &Arc::clone(&self.backend);
        let Some(branch) = &mut layer.branch else { return Ok(()) };
        let total = self.ranks.total();
        if self.refreshes > 0 && self.options.moments == Moments::Reset {
            be.fill(self.first.mat_mut(), 0.0)?;
            be.fill(self.second.mat_mut(), 0.0)?;
        }
        match &mut self.metric {
            Some(metric) => {
                be.copy(new.mat(), metric.q.mat_mut())?;
                be.copy(metric.inputs.rows(&**be, new.mat())?.mat(), own_rows_mut(branch, total))?;
            }
            None => be.copy(new.mat(), own_rows_mut(branch, total))?,
        }
        self.measure_by(own_rows(branch, total))?;
        if let Some(learning) = &mut self.learning {
            be.fill(learning.last.mat_mut(), 0.0)?;
        }
        self.refreshes += 1;
        Ok(())
    }

    /// Finds how coordinates along the rows of A are measured.
    pub(super) fn measure_by(&mut self, a: Mat) -> Result<()> {
        if !self.complementary() || self.metric.is_some() {
            let mut overlap = self.backend.alloc(a.rows, a.rows, DType::F32)?;
            self.backend.product(overlap.mat_mut(), 0.0, 1.0, a.n(), a.t())?;
            self.overlap = Some(overlap);
        }
        Ok(())
    }

    /// What the first moments are carried to new bases from; `None`: they are not.
    pub fn carried(&self, layer: &AdaptedLinear) -> Result<Option<Carried>> {
        let Some(branch) = layer.branch.as_ref().filter(|_| self.refreshes > 0) else { return Ok(None) };
        if self.options.moments != Moments::Rotate {
            return Ok(None);
        }
        // Under the metric Q is orthonormal, A not.
        let bases = self.metric.as_ref().map_or(own_rows(branch, self.ranks.total()), |m| m.q.mat());
        let copy = |of: Mat| self.backend.duplicate(of, DType::F32);
        Ok(Some(Carried { bases: copy(bases)?, moments: copy(self.first.mat())? }))
    }

    /// The product (C, A, B) that carries the first moments of subspace s, if there is one. `turn`: `old newᵀ` of all
    /// subspaces at once, of which the blocks on the diagonal are wanted.
    pub fn carry<'a>(
        &'a mut self,
        s: usize,
        from: &'a Carried,
        turn: &'a Tensor,
    ) -> Option<(MatMut<'a>, Mat<'a>, Mat<'a>)> {
        let columns = (s < self.ranks.count()).then(|| self.ranks.columns(s))?;
        let turn = turn.mat().row_range(columns.clone()).col_range(columns.clone());
        let before = from.moments.mat().col_range(columns.clone());
        Some((self.first.mat_mut().col_range(columns), before, turn))
    }

    /// Share of the squared norm of what was learned that the last fold could not keep.
    pub fn lost(&self) -> Option<f64> {
        self.remainder.as_ref()?.lost
    }

    /// Number of refreshes so far; 0 before the first bases are found.
    pub fn refreshes(&self) -> u64 {
        self.refreshes
    }
}
