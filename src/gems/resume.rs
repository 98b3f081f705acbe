//! What a checkpoint keeps of the method, and how a resumed run gets it back bit for bit.

use super::engine::{Parameters, StateReader, StateTensor, StateWriter};
use super::tuner::{Layer, Tuner};
use crate::error::{Error, Result};
use serde_json::{Value, json};
use std::collections::HashMap;

impl Tuner {
    /// Everything a resumed run needs: tensors, and counters with the gates' numbers.
    pub fn state(&self, parameters: &mut dyn Parameters) -> Result<(Vec<StateTensor>, Value)> {
        let mut tensors = Vec::new();
        let mut windows = serde_json::Map::new();
        let mut refreshes = 0;
        for (site, layer) in self.layers.iter().enumerate() {
            let Some(layer) = layer else { continue };
            let mut out =
                StateWriter { backend: &self.backend, prefix: format!("site.{site}"), tensors: &mut tensors };
            layer.shared().state(parameters.linear(site), &mut out)?;
            if let Layer::Subspaces(s) = layer {
                out.put("w", parameters.linear(site).weight.mat())?;
                refreshes = s.refreshes();
                if let Some(window) = &s.window {
                    windows.insert(site.to_string(), json!(window.seen));
                }
            }
        }
        for (i, p) in self.dense.iter().enumerate() {
            let Some(p) = p else { continue };
            p.state(&mut StateWriter {
                backend: &self.backend,
                prefix: format!("dense.{i}"),
                tensors: &mut tensors,
            })?;
        }
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

    /// Puts [`Tuner::state`] back; the run then goes on bit for bit as it would have.
    pub fn restore(
        &mut self,
        parameters: &mut dyn Parameters,
        tensors: &[StateTensor],
        numbers: &Value,
    ) -> Result<()> {
        let by_name: HashMap<&str, &StateTensor> = tensors.iter().map(|t| (t.name.as_str(), t)).collect();
        let bad = |what: &str| Error::usage(format!("the checkpoint's {what} does not fit this run"));
        let refreshes = numbers["refreshes"].as_u64().unwrap_or(0);
        for (site, layer) in self.layers.iter_mut().enumerate() {
            let Some(layer) = layer else { continue };
            let mut from =
                StateReader { backend: &self.backend, prefix: format!("site.{site}"), tensors: &by_name };
            layer.engine().restore(parameters.linear(site), &mut from)?;
            if let Layer::Subspaces(s) = layer {
                from.get("w", parameters.linear(site).weight.mat_mut())?;
                let seen = serde_json::from_value(numbers["windows"][site.to_string()].clone()).ok();
                s.resume(refreshes, seen, &from)?;
            }
        }
        for (i, p) in self.dense.iter_mut().enumerate() {
            let Some(p) = p else { continue };
            let mut from =
                StateReader { backend: &self.backend, prefix: format!("dense.{i}"), tensors: &by_name };
            p.restore(parameters.dense(i), &mut from)?;
        }
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
}
