//! safetensors out: tensor by tensor, so that no second copy of a model is ever in memory.

use super::{DenseKind, Model};
use crate::backend::{DType, Dequantize, Weight};
use crate::error::{Error, Result};
use half::bf16;
use safetensors::{Dtype, View};
use serde_json::{Value, json};
use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::path::Path;

/// How values are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum StoredType {
    /// 32-bit floats.
    F32,
    /// bfloat16, rounded to nearest once.
    Bf16,
}

/// A tensor that is fetched when it is written.
struct Lazy<'a> {
    name: String,
    shape: Vec<usize>,
    stored: StoredType,
    fetch: &'a dyn Fn(&str) -> Result<Vec<f32>>,
    failure: &'a RefCell<Option<Error>>,
}

impl View for Lazy<'_> {
    fn dtype(&self) -> Dtype {
        match self.stored {
            StoredType::F32 => Dtype::F32,
            StoredType::Bf16 => Dtype::BF16,
        }
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        let values = (self.fetch)(&self.name).unwrap_or_else(|error| {
            self.failure.borrow_mut().get_or_insert(error);
            vec![0.0; self.shape.iter().product()]
        });
        Cow::Owned(match self.stored {
            StoredType::F32 => bytemuck::cast_slice(&values).to_vec(),
            StoredType::Bf16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
        })
    }
    fn data_len(&self) -> usize {
        self.shape.iter().product::<usize>() * if self.stored == StoredType::F32 { 4 } else { 2 }
    }
}

/// Writes tensors, given by name and shape and fetched one by one, as `model.safetensors` in `dir`, or as
/// shards of at most `shard_bytes` with an index. Files are flushed to disk.
pub fn write_safetensors(
    dir: &Path,
    tensors: &[(String, Vec<usize>)],
    stored: StoredType,
    shard_bytes: usize,
    fetch: &dyn Fn(&str) -> Result<Vec<f32>>,
) -> Result<()> {
    let failure = RefCell::new(None);
    let lazy = |(name, shape): &(String, Vec<usize>)| {
        let view = Lazy { name: name.clone(), shape: shape.clone(), stored, fetch, failure: &failure };
        (name.clone(), view)
    };
    let mut shards: Vec<Vec<(String, Lazy)>> = vec![Vec::new()];
    let (mut filled, mut total) = (0, 0);
    for (name, view) in tensors.iter().map(lazy) {
        let bytes = view.data_len();
        if filled > 0 && filled + bytes > shard_bytes {
            shards.push(Vec::new());
            filled = 0;
        }
        filled += bytes;
        total += bytes;
        if let Some(shard) = shards.last_mut() {
            shard.push((name, view));
        }
    }
    let count = shards.len();
    let mut map = serde_json::Map::new();
    for (i, shard) in shards.into_iter().enumerate() {
        let file = match count {
            1 => "model.safetensors".to_string(),
            _ => format!("model-{:05}-of-{count:05}.safetensors", i + 1),
        };
        map.extend(shard.iter().map(|(name, _)| (name.clone(), Value::from(file.as_str()))));
        let path = dir.join(&file);
        let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
        safetensors::serialize_to_file(shard, Some(metadata), &path).map_err(|e| match e {
            safetensors::SafeTensorError::IoError(e) => Error::io("write", &path, e),
            e => Error::model(e.to_string()).at(path.display()),
        })?;
        let permitted = crate::files::permit(&path);
        let written = permitted.and_then(|()| File::open(&path)).and_then(|f| f.sync_all());
        written.map_err(|e| Error::io("write", &path, e))?;
        if let Some(error) = failure.borrow_mut().take() {
            return Err(error);
        }
    }
    if count > 1 {
        let index = json!({"metadata": {"total_size": total}, "weight_map": map});
        let text = serde_json::to_vec_pretty(&index).map_err(|e| Error::model(e.to_string()))?;
        crate::files::write_atomically(&dir.join("model.safetensors.index.json"), &text)?;
    }
    Ok(())
}

impl Model {
    /// Names and shapes of all stored tensors, as a Hugging Face checkpoint has them.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let dense = self.layout.dense.iter().map(|d| {
            let vector = matches!(d.kind, DenseKind::Norm | DenseKind::Bias(_));
            (d.name.clone(), if vector { vec![d.cols] } else { vec![d.rows, d.cols] })
        });
        let linears =
            self.layout.sites.iter().map(|s| (format!("{}.weight", s.name), vec![s.outputs, s.inputs]));
        dense.chain(linears).collect()
    }

    /// The values of a stored tensor: a layer's branch is added to its weight in f32, a norm's offset taken off.
    pub fn tensor(&self, name: &str) -> Result<Vec<f32>> {
        if let Some(index) = self.layout.dense.iter().position(|d| d.name == name) {
            let mut values = self.backend.download(self.parameter(index))?;
            if self.layout.dense[index].kind == DenseKind::Norm {
                values.iter_mut().for_each(|w| *w -= self.architecture.norm_offset);
            }
            return Ok(values);
        }
        let site =
            name.strip_suffix(".weight").and_then(|n| self.layout.sites.iter().position(|s| s.name == n));
        match site {
            Some(site) => self.merged(site),
            None => Err(Error::model(format!("no tensor {name}"))),
        }
    }

    /// `W + B A` of a site in f32, row by row.
    pub fn merged(&self, site: usize) -> Result<Vec<f32>> {
        let (be, layer) = (&self.backend, &self.linears[site]);
        let mut w = match &layer.weight {
            Weight::Whole(w) => be.duplicate(w.mat(), DType::F32)?,
            Weight::Quantised(from) => {
                let mut w = be.alloc(from.shape.0, from.shape.1, DType::F32)?;
                be.run(Dequantize { from, first_row: 0, to: w.mat_mut() })?;
                w
            }
        };
        if let Some(branch) = &layer.branch {
            be.product(w.mat_mut(), 1.0, 1.0, branch.b.mat().n(), branch.a.mat().n())?;
        }
        be.download(w.mat())
    }
}
