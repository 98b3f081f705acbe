//! What a checkpoint keeps of the method, and how a resumed run gets it back bit for bit.

use super::Optimizer;
use crate::backend::{Backend, MatMut};
use crate::error::{Error, Result};
use crate::layers::Layers;
use serde_json::{Value, json};
use std::collections::HashMap;

/// What a tensor of a checkpoint is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StateKind {
    /// Part of the model.
    Weight,
    /// The optimizer's.
    Optimizer,
}

/// A tensor of a checkpoint, by name.
#[derive(Debug, Clone, PartialEq)]
pub struct StateTensor {
    /// Unique name.
    pub name: String,
    /// What it is.
    pub kind: StateKind,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Values, row by row.
    pub values: Vec<f32>,
}

/// Goes over the state tensors under a prefix, once, in either direction.
pub(super) struct State<'a, 'v> {
    backend: &'a dyn Backend,
    prefix: String,
    direction: &'a mut Direction<'v>,
}

enum Direction<'v> {
    Save(Vec<StateTensor>),
    Restore(HashMap<&'v str, &'v StateTensor>),
}

impl State<'_, '_> {
    /// Whether tensors are written to, not read.
    pub fn restores(&self) -> bool {
        matches!(*self.direction, Direction::Restore(_))
    }

    /// The shape of a tensor to be restored, if it is there.
    pub fn shape(&self, name: &str) -> Option<(usize, usize)> {
        let Direction::Restore(from) = &*self.direction else { return None };
        from.get(format!("{}.{name}", self.prefix).as_str()).map(|t| (t.rows, t.cols))
    }

    /// Saves a tensor, or fills it with what was saved.
    ///
    /// # Errors
    /// It was not saved, or has another shape now.
    pub fn tensor(&mut self, kind: StateKind, name: &str, tensor: MatMut) -> Result<()> {
        let name = format!("{}.{name}", self.prefix);
        let (rows, cols) = tensor.shape();
        match &mut *self.direction {
            Direction::Save(to) => {
                let values = self.backend.download(tensor.as_mat())?;
                to.push(StateTensor { name, kind, rows, cols, values });
                Ok(())
            }
            Direction::Restore(from) => {
                let bad = |what: &str| {
                    Error::usage(format!("the checkpoint's {name} {what}"))
                        .remedy("resume with the settings the run was started with")
                };
                let found = from.get(name.as_str()).ok_or_else(|| bad("is missing"))?;
                if (found.rows, found.cols) != (rows, cols) {
                    return Err(bad(&format!("is {}x{}, not {rows}x{cols}", found.rows, found.cols)));
                }
                self.backend.upload(&found.values, tensor)
            }
        }
    }
    /// A tensor of the model.
    pub fn weight(&mut self, name: &str, tensor: MatMut) -> Result<()> {
        self.tensor(StateKind::Weight, name, tensor)
    }
    /// A tensor of the optimizer.
    pub fn optimizer(&mut self, name: &str, tensor: MatMut) -> Result<()> {
        self.tensor(StateKind::Optimizer, name, tensor)
    }
}

impl Optimizer {
    /// Everything a resumed run needs: tensors, and counters with the gates' numbers.
    pub fn state(&mut self, layers: &mut dyn Layers) -> Result<(Vec<StateTensor>, Value)> {
        let windows = self.open_windows();
        let refreshes = self.subspaces().map(|(_, s)| s.refreshes()).last().unwrap_or(0);
        let mut saved = Direction::Save(Vec::new());
        self.visit(layers, &mut saved)?;
        let Direction::Save(tensors) = saved else { unreachable!("a visit keeps its direction") };
        let (network, last) = self.gates.state();
        let bits = |v: &[f64]| v.iter().map(|x| x.to_bits()).collect::<Vec<u64>>();
        let numbers = json!({
            "step": self.step,
            "task_steps": self.task_steps,
            "refreshes": refreshes,
            "windows": windows,
            "gate_network": bits(&network),
            "gate_features": last.as_deref().map(bits),
        });
        Ok((tensors, numbers))
    }

    /// Puts [`Optimizer::state`] back; the run then goes on bit for bit as it would have.
    pub fn restore(
        &mut self,
        layers: &mut dyn Layers,
        tensors: &[StateTensor],
        numbers: &Value,
    ) -> Result<()> {
        let bad = |what: &str| Error::usage(format!("the checkpoint's {what} does not fit this run"));
        let refreshes = numbers["refreshes"].as_u64().unwrap_or(0);
        for (site, s) in self.subspaces() {
            let seen = serde_json::from_value(numbers["windows"][site.to_string()].clone()).ok();
            s.resume(refreshes, seen);
        }
        let by_name = tensors.iter().map(|t| (t.name.as_str(), t)).collect();
        self.visit(layers, &mut Direction::Restore(by_name))?;
        self.step = numbers["step"].as_u64().ok_or_else(|| bad("step"))?;
        self.task_steps =
            serde_json::from_value(numbers["task_steps"].clone()).map_err(|_| bad("task counters"))?;
        if self.task_steps.len() != self.tasks {
            return Err(bad("number of tasks"));
        }
        let floats = |v: &Value| -> Option<Vec<f64>> {
            v.as_array()?.iter().map(|x| x.as_u64().map(f64::from_bits)).collect()
        };
        let network = floats(&numbers["gate_network"]).unwrap_or_default();
        if !self.gates.restore(&network, floats(&numbers["gate_features"])) {
            return Err(bad("gate network"));
        }
        Ok(())
    }

    /// Tasks seen by every open window, by site.
    fn open_windows(&mut self) -> Value {
        let open =
            self.subspaces().filter_map(|(site, s)| Some((site.to_string(), json!(s.window.as_ref()?.seen))));
        Value::Object(open.collect())
    }

    /// Goes over the state of every layer and every dense parameter.
    fn visit(&mut self, layers: &mut dyn Layers, direction: &mut Direction) -> Result<()> {
        let backend = &*self.backend.clone();
        for (site, adapter) in self.adapters.iter_mut().enumerate() {
            let Some(adapter) = adapter else { continue };
            let prefix = format!("site.{site}");
            adapter.state(layers.linear(site), &mut State { backend, prefix, direction })?;
        }
        for (i, p) in self.dense.iter_mut().enumerate() {
            let Some(p) = p else { continue };
            let prefix = format!("dense.{i}");
            p.state(layers.dense(i), &mut State { backend, prefix, direction })?;
        }
        Ok(())
    }
}
