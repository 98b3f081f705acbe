//! The knowledge basis as a file: safetensors, with its facts in the metadata.

use super::nullspace::{KnowledgeBasis, Space};
use crate::error::{Error, Result};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::collections::HashMap;
use std::path::Path;

const FORMAT: &str = "gems-engine knowledge basis 1";

impl KnowledgeBasis {
    /// Writes the basis as safetensors with its facts in the metadata.
    pub fn save(&self, path: &Path) -> Result<()> {
        let bad = |e: safetensors::SafeTensorError| Error::model(e.to_string()).at(path.display());
        let mut buffers: Vec<(String, Vec<usize>, Vec<f32>)> = Vec::new();
        let spaces = self.spaces.iter().enumerate().map(|(i, s)| (format!("space.{i}"), s));
        for (key, space) in spaces.chain(self.final_hidden.iter().map(|s| ("final".to_string(), s))) {
            buffers.push((
                format!("{key}.directions"),
                vec![space.kept(), space.dim],
                space.directions.clone(),
            ));
            let spectrum = space.spectrum.iter().map(|v| *v as f32).collect();
            buffers.push((format!("{key}.spectrum"), vec![space.dim], spectrum));
        }
        let facts = serde_json::json!({
            "format": FORMAT, "fingerprint": self.fingerprint, "side": self.side, "rule": self.rule,
            "tokens": self.tokens, "of_site": self.of_site,
            "spaces": self.spaces.iter().map(|s| serde_json::json!({"name": s.name, "energy": s.energy})).collect::<Vec<_>>(),
            "final_energy": self.final_hidden.as_ref().map(|s| s.energy),
        });
        let metadata = HashMap::from([("gems".to_string(), facts.to_string())]);
        let views = buffers
            .iter()
            .map(|(name, shape, values)| {
                TensorView::new(Dtype::F32, shape.clone(), bytemuck::cast_slice(values))
                    .map(|v| (name.as_str(), v))
            })
            .collect::<std::result::Result<Vec<_>, _>>()
            .map_err(bad)?;
        let bytes = safetensors::serialize(views, Some(metadata)).map_err(bad)?;
        crate::files::write_atomically(path, &bytes)
    }

    /// Reads a basis and checks that it was made for the model with this fingerprint.
    pub fn load(path: &Path, fingerprint: &str) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|e| Error::io("read the knowledge basis", path, e))?;
        let bad = |what: String| {
            Error::model(what).at(path.display()).remedy("make the basis again with `gems-engine basis`")
        };
        let (_, head) = SafeTensors::read_metadata(&bytes).map_err(|e| bad(e.to_string()))?;
        let text = head
            .metadata()
            .as_ref()
            .and_then(|m| m.get("gems"))
            .ok_or_else(|| bad("not a knowledge basis".into()))?;
        let facts: serde_json::Value = serde_json::from_str(text).map_err(|e| bad(e.to_string()))?;
        if facts["format"] != FORMAT {
            return Err(bad(format!("its format is {}", facts["format"])));
        }
        if facts["fingerprint"] != fingerprint {
            return Err(Error::usage("this basis was made for another model")
                .at(path.display())
                .remedy("make one for this model with `gems-engine basis`"));
        }
        let file = SafeTensors::deserialize(&bytes).map_err(|e| bad(e.to_string()))?;
        let tensor = |name: &str| -> Result<(Vec<usize>, Vec<f32>)> {
            let view = file.tensor(name).map_err(|e| bad(format!("{name}: {e}")))?;
            if view.dtype() != Dtype::F32 {
                return Err(bad(format!("{name} is {:?}", view.dtype())));
            }
            let values =
                view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
            Ok((view.shape().to_vec(), values))
        };
        let space = |key: &str, name: String, energy: f64| -> Result<Space> {
            let (shape, directions) = tensor(&format!("{key}.directions"))?;
            let (_, spectrum) = tensor(&format!("{key}.spectrum"))?;
            match shape[..] {
                [k, dim] if k <= dim && spectrum.len() == dim => {
                    let spectrum = spectrum.iter().map(|v| *v as f64).collect();
                    Ok(Space { name, dim, directions, spectrum, energy })
                }
                _ => Err(bad(format!("{key} has shape {shape:?}"))),
            }
        };
        let listed = facts["spaces"].as_array().cloned().unwrap_or_default();
        let spaces = listed
            .iter()
            .enumerate()
            .map(|(i, s)| {
                let name = s["name"].as_str().unwrap_or_default().to_string();
                space(&format!("space.{i}"), name, s["energy"].as_f64().unwrap_or(0.0))
            })
            .collect::<Result<Vec<_>>>()?;
        let of_site: Vec<Option<usize>> =
            serde_json::from_value(facts["of_site"].clone()).map_err(|e| bad(format!("of_site: {e}")))?;
        if of_site.iter().flatten().any(|i| *i >= spaces.len()) {
            return Err(bad("a layer names a space that is not there".into()));
        }
        let final_hidden = match facts["final_energy"].as_f64() {
            Some(energy) => Some(space("final", "final".into(), energy)?),
            None => None,
        };
        Ok(Self {
            fingerprint: fingerprint.to_string(),
            side: serde_json::from_value(facts["side"].clone()).map_err(|e| bad(format!("side: {e}")))?,
            rule: facts["rule"].as_str().unwrap_or_default().to_string(),
            of_site,
            spaces,
            final_hidden,
            tokens: facts["tokens"].as_u64().unwrap_or(0) as usize,
        })
    }
}
