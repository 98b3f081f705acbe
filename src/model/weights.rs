//! safetensors in: one file or an index of shards, memory-mapped, checked before use.

use super::diagnosis;
use crate::error::{Error, Result};
use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

/// A tensor as it lies in a file.
struct Place {
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    start: usize,
    end: usize,
}

/// The tensors of a checkpoint by name.
pub struct Weights {
    files: Vec<Mmap>,
    tensors: BTreeMap<String, Place>,
    /// Where they came from, for messages.
    pub place: String,
}

impl Weights {
    /// Opens `model.safetensors`, or the shards that `model.safetensors.index.json` names.
    pub fn open(dir: &Path) -> Result<Self> {
        let single = dir.join("model.safetensors");
        let index = dir.join("model.safetensors.index.json");
        let paths = if single.exists() {
            vec![single]
        } else if index.exists() {
            shards(dir, &index)?
        } else {
            return Err(diagnosis::no_weights(dir));
        };
        let mut weights =
            Self { files: Vec::new(), tensors: BTreeMap::new(), place: dir.display().to_string() };
        for path in paths {
            weights.add(&path)?;
        }
        Ok(weights)
    }

    fn add(&mut self, path: &Path) -> Result<()> {
        diagnosis::no_pointer(path)?;
        let file = File::open(path).map_err(|e| Error::io("read the weights", path, e))?;
        // SAFETY: the map is read-only and private; should another process truncate the file while it is
        // mapped, the process is ended by the system, as for every program that maps its input.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io("map the weights", path, e))?;
        let broken = |e: safetensors::SafeTensorError| {
            Error::model(format!("not a whole safetensors file: {e}"))
                .at(path.display())
                .remedy("download or copy the file again")
        };
        let parsed = SafeTensors::deserialize(&map).map_err(broken)?;
        let base = map.as_ptr() as usize;
        for (name, view) in parsed.tensors() {
            let start = view.data().as_ptr() as usize - base;
            let place = Place {
                file: self.files.len(),
                dtype: view.dtype(),
                shape: view.shape().to_vec(),
                start,
                end: start + view.data().len(),
            };
            if self.tensors.insert(name.clone(), place).is_some() {
                return Err(Error::model(format!("tensor {name} is stored twice")).at(path.display()));
            }
        }
        self.files.push(map);
        Ok(())
    }

    /// Names of all stored tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }
    /// The shape of a tensor, if it is stored.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|p| p.shape.as_slice())
    }
    /// How a tensor's values are stored.
    pub fn dtype(&self, name: &str) -> Option<Dtype> {
        self.tensors.get(name).map(|p| p.dtype)
    }
    /// Whether every matrix is stored as bf16.
    pub fn are_bf16(&self) -> bool {
        self.tensors.values().filter(|t| t.shape.len() > 1).all(|t| t.dtype == Dtype::BF16)
    }
    /// Whether two stored tensors hold the same values.
    ///
    /// # Errors
    /// A tensor that cannot be read.
    pub fn same(&self, a: &str, b: &str) -> Result<bool> {
        if self.shape(a) != self.shape(b) {
            return Ok(false);
        }
        let bytes = self.dtype(a) == self.dtype(b) && self.bytes(a) == self.bytes(b);
        Ok(bytes || self.read(a)? == self.read(b)?)
    }
    /// The tensor's bytes as they lie in the file.
    pub fn bytes(&self, name: &str) -> Option<&[u8]> {
        self.tensors.get(name).map(|p| &self.files[p.file][p.start..p.end])
    }
    /// A tensor's values as f32.
    pub fn read(&self, name: &str) -> Result<Vec<f32>> {
        let place = self
            .tensors
            .get(name)
            .ok_or_else(|| Error::model(format!("tensor {name} is missing")).at(&self.place))?;
        let bytes = &self.files[place.file][place.start..place.end];
        let values: Vec<f32> = match place.dtype {
            Dtype::F32 => {
                bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
            }
            Dtype::BF16 => {
                bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
            }
            Dtype::F16 => bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            Dtype::F64 => bytes
                .chunks_exact(8)
                .map(|b| f64::from_le_bytes(std::array::from_fn(|i| b[i])) as f32)
                .collect(),
            other => {
                return Err(Error::model(format!("tensor {name} has type {other:?}"))
                    .at(&self.place)
                    .remedy("supported: F32, BF16, F16, F64 (dequantise the checkpoint first)"));
            }
        };
        if let Some(i) = values.iter().position(|v| !v.is_finite()) {
            return Err(Error::model(format!("tensor {name} holds {} at element {i}", values[i]))
                .at(&self.place)
                .remedy("the checkpoint is damaged; get it again"));
        }
        Ok(values)
    }
}

fn shards(dir: &Path, index: &Path) -> Result<Vec<PathBuf>> {
    let bad = |what: String| Error::model(what).at(index.display());
    diagnosis::no_pointer(index)?;
    let text =
        std::fs::read_to_string(index).map_err(|e| Error::io("read the index of weights", index, e))?;
    let json: serde_json::Value =
        serde_json::from_str(&text).map_err(|e| bad(format!("not valid JSON: {e}")))?;
    let map = json["weight_map"].as_object().ok_or_else(|| bad("no `weight_map`".into()))?;
    let mut names: Vec<&str> = Vec::new();
    for value in map.values() {
        let name = value.as_str().ok_or_else(|| bad(format!("`weight_map` holds {value}")))?;
        if name.contains(['/', '\\']) || name.starts_with('.') {
            return Err(bad(format!("`{name}` is not the name of a file in this directory")));
        }
        if !names.contains(&name) {
            names.push(name);
        }
    }
    if names.is_empty() {
        return Err(bad("the index lists no tensor, so there are no weights".into())
            .remedy("download the checkpoint again; the index is a file of some kilobytes"));
    }
    let absent: Vec<&str> = names.iter().copied().filter(|n| !dir.join(n).exists()).collect();
    if let Some(first) = absent.first() {
        let what =
            format!("{} of the {} files it lists are not here, such as {first}", absent.len(), names.len());
        return Err(bad(what).remedy(
            "download the missing files: `hf download NAME --local-dir DIR` goes on where it stopped",
        ));
    }
    names.sort_unstable();
    Ok(names.into_iter().map(|n| dir.join(n)).collect())
}
