//! Final hidden states of a base model on text, kept in files, so that runs side by side take them once.

use crate::backend::{Backend, DType, Tensor};
use crate::error::{Error, Result};
use crate::files::write_aside;
use crate::model::{Model, Narrow};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// A directory of them. A file is a cache: what cannot be read is computed again.
#[derive(Debug, Clone)]
pub struct KeptStates {
    directory: PathBuf,
}

impl KeptStates {
    /// In `directory`, which is made when the first states are kept.
    pub fn new(directory: &Path) -> Self {
        Self { directory: directory.to_path_buf() }
    }

    /// What `compute` gives of `model`, which must be the base model, on `texts`; or what was kept of an earlier call for
    /// the same, bit for bit. `what` says which states are meant.
    ///
    /// # Errors
    /// Those of `compute`; the device; the file system.
    pub fn get(
        &self,
        model: &Model,
        (what, texts): (&str, &[Vec<u32>]),
        compute: impl FnOnce() -> Result<Vec<Tensor>>,
    ) -> Result<Vec<Tensor>> {
        let (be, mut hasher) = (&*model.backend, blake3::Hasher::new());
        let dtype = be.compute_dtype();
        let name = &be.info().name;
        hasher.update(format!("{} {dtype:?} {name} {what}", model.fingerprint).as_bytes());
        if model.architecture.narrow != Narrow::default() {
            hasher.update(format!("{:?}", model.architecture.narrow).as_bytes());
        }
        for text in texts {
            hasher.update(&(text.len() as u64).to_le_bytes()).update(bytemuck::cast_slice(text));
        }
        let path = self.directory.join(format!("{}.safetensors", hasher.finalize().to_hex()));
        if let Some(kept) = read(be, &path, dtype)? {
            return Ok(kept);
        }
        let states = compute()?;
        write(be, &path, &states)?;
        Ok(states)
    }
}

/// The tensors of a file; `None`: it is not there, or not whole.
fn read(be: &dyn Backend, path: &Path, dtype: DType) -> Result<Option<Vec<Tensor>>> {
    let Ok(bytes) = std::fs::read(path) else { return Ok(None) };
    let Ok(file) = SafeTensors::deserialize(&bytes) else { return Ok(None) };
    let mut all = Vec::new();
    for number in 0..file.len() {
        let Ok(view) = file.tensor(&number.to_string()) else { return Ok(None) };
        let (Dtype::F32, [rows, cols]) = (view.dtype(), view.shape()) else { return Ok(None) };
        let values = view.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b));
        all.push(be.tensor(&values.collect::<Vec<f32>>(), *rows, *cols, dtype)?);
    }
    Ok(Some(all))
}

/// As f32, which holds every value of both types.
fn write(be: &dyn Backend, path: &Path, states: &[Tensor]) -> Result<()> {
    let values = states.iter().map(|t| be.download(t.mat())).collect::<Result<Vec<_>>>()?;
    let failed = |e: safetensors::SafeTensorError| Error::data(e.to_string()).at(path.display());
    let mut views = HashMap::new();
    for (number, (state, values)) in states.iter().zip(&values).enumerate() {
        let shape = vec![state.rows(), state.cols()];
        let view = TensorView::new(Dtype::F32, shape, bytemuck::cast_slice(values)).map_err(failed)?;
        views.insert(number.to_string(), view);
    }
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(|e| Error::io("create", parent, e))?;
    }
    write_aside(path, |aside| safetensors::serialize_to_file(views, None, aside).map_err(failed))
}
