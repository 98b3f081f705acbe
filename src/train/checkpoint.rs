//! Checkpoints: named tensors and one JSON value, written so that a crash or a full disk never
//! leaves a broken one, and verified by checksum before anything of them is used.
//!
//! ```text
//! checkpoints/step-00000500/  weights.safetensors  optimizer.safetensors  state.json
//! ```
//! A tensor's file says what it is ([`StateKind`]). All files are read together, so it does not matter that
//! older builds filed LoRA's moments among the weights. `state.json` is written last and names the blake3 sum
//! of each file; the directory is written aside, flushed to disk and renamed. An older one is deleted only after that is safe.

use crate::error::{Error, Kind, Result};
use crate::files::{self, write_atomically};
use crate::gems::{Optimizer, StateKind, StateTensor};
use crate::model::Model;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// The content of `state.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    format: u32,
    step: u64,
    files: BTreeMap<String, String>,
    state: Value,
}

/// What comes first of a manifest of any version.
#[derive(Deserialize)]
struct Format {
    format: u32,
}

/// Counted up when an older program could not read what is written, or would misread it.
const FORMAT: u32 = 1;

/// A checkpoint read back.
pub struct Checkpoint {
    /// The last finished step.
    pub step: u64,
    /// Those of all files; a tensor's kind is that of the file it was in.
    pub tensors: Vec<StateTensor>,
    /// Everything that is not a tensor.
    pub state: Value,
}

impl Checkpoint {
    /// Puts the weights and the optimizer's state into a freshly loaded base model and its tuner.
    ///
    /// # Errors
    /// Another base model, other tasks, or other settings of the method.
    pub fn restore(&self, model: &mut Model, tuner: &mut Optimizer, tasks: &[String]) -> Result<()> {
        if self.state["fingerprint"] != json!(model.fingerprint) {
            return Err(Error::usage("this checkpoint belongs to another base model")
                .remedy("give the --model the run was started with"));
        }
        if self.state["tasks"] != json!(tasks) {
            return Err(Error::usage(format!("this checkpoint's tasks are {}", self.state["tasks"]))
                .remedy("resume with the data the run was started with"));
        }
        tuner.restore(model, &self.tensors, &self.state["tuner"])
    }
}

/// The file of tensors of a kind.
fn file_of(kind: StateKind) -> &'static str {
    match kind {
        StateKind::Weight => "weights.safetensors",
        StateKind::Optimizer => "optimizer.safetensors",
    }
}

/// The directory of step `step`'s checkpoint.
pub fn directory(root: &Path, step: u64) -> PathBuf {
    root.join(format!("step-{step:08}"))
}

/// Writes a checkpoint and returns its directory. Nothing that was there before is touched until the
/// new one is whole on the disk.
pub fn save(root: &Path, step: u64, tensors: &[StateTensor], state: Value) -> Result<PathBuf> {
    // Not those above it: a run whose directory was removed must not go on in half of one.
    files::create_last(root).map_err(|e| Error::io("create the checkpoint directory", root, e))?;
    files::check_room(root, tensors.iter().map(|t| 4 * t.values.len() as u64).sum::<u64>() + (1 << 20))?;
    let aside =
        files::directory_aside(root, files::ASIDE).map_err(|e| Error::io("write a checkpoint", root, e))?;
    let mut sums = BTreeMap::new();
    for kind in [StateKind::Weight, StateKind::Optimizer] {
        let path = aside.path().join(file_of(kind));
        write_tensors(&path, tensors.iter().filter(|t| t.kind == kind))?;
        sums.insert(file_of(kind).to_string(), checksum(&path)?);
    }
    let manifest = Manifest { format: FORMAT, step, files: sums, state };
    let text = serde_json::to_vec_pretty(&manifest).map_err(|e| Error::data(format!("state: {e}")))?;
    write_atomically(&aside.path().join("state.json"), &text)?;
    let target = directory(root, step);
    files::put_into_place(aside, &target, true).map_err(|e| Error::io("write the checkpoint", &target, e))?;
    Ok(target)
}

/// A hash of the tensors of every layer, by its name, in order.
pub fn hashes(tensors: &[StateTensor]) -> Vec<(String, String)> {
    let layer =
        |t: &StateTensor| t.name.rsplit_once('.').map_or(t.name.clone(), |(layer, _)| layer.to_string());
    let of_layer = |all: &[StateTensor]| {
        let mut hasher = blake3::Hasher::new();
        for t in all {
            hasher.update(bytemuck::cast_slice(&t.values));
        }
        (layer(&all[0]), hasher.finalize().to_hex()[..32].to_string())
    };
    tensors.chunk_by(|a, b| layer(a) == layer(b)).map(of_layer).collect()
}

fn write_tensors<'a>(path: &Path, tensors: impl Iterator<Item = &'a StateTensor>) -> Result<()> {
    let views = tensors
        .map(|t| {
            safetensors::tensor::TensorView::new(
                safetensors::Dtype::F32,
                vec![t.rows, t.cols],
                bytemuck::cast_slice(&t.values),
            )
            .map(|view| (t.name.as_str(), view))
            .map_err(|e| Error::data(format!("tensor {}: {e}", t.name)))
        })
        .collect::<Result<Vec<_>>>()?;
    safetensors::serialize_to_file(views, None, path).map_err(|e| match e {
        safetensors::SafeTensorError::IoError(e) => Error::io("write", path, e),
        e => Error::data(e.to_string()).at(path.display()),
    })?;
    files::permit(path).map_err(|e| Error::io("write", path, e))?;
    let file = File::open(path).map_err(|e| Error::io("read back", path, e))?;
    file.sync_all().map_err(|e| Error::io("write", path, e))
}

fn checksum(path: &Path) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_mmap_rayon(path).map_err(|e| Error::io("read back", path, e))?;
    Ok(hasher.finalize().to_hex().to_string())
}

/// The newest whole checkpoint below `root`; broken ones are reported through `warn` and passed over.
///
/// # Errors
/// None that is whole; one of a newer version, which is not passed over: it would be deleted as if it were broken.
pub fn load_latest(root: &Path, mut warn: impl FnMut(&Error)) -> Result<Checkpoint> {
    for (_, path) in list(root)?.into_iter().rev() {
        match load(&path) {
            Ok(checkpoint) => return Ok(checkpoint),
            Err(error) if error.kind == Kind::Usage => return Err(error),
            Err(error) => warn(&error),
        }
    }
    Err(Error::usage("no whole checkpoint found")
        .at(root.display())
        .remedy("train it again, in another directory"))
}

/// The best checkpoint below `root`, as the newest whole one names it; that one itself where it names none.
///
/// # Errors
/// No whole checkpoint.
pub fn load_best(root: &Path) -> Result<Checkpoint> {
    let newest = load_latest(root, |_| {})?;
    let Some(step) = newest.state["best"]["step"].as_u64().filter(|step| *step != newest.step) else {
        return Ok(newest);
    };
    // One model's weights at a time.
    drop(newest);
    load(&directory(root, step))
}

/// The checkpoints below `root`, oldest first.
pub fn list(root: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let entries = match fs::read_dir(root) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::io("read the checkpoint directory", root, e)),
    };
    let mut found: Vec<(u64, PathBuf)> = entries
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let step = path.file_name()?.to_str()?.strip_prefix("step-")?.parse().ok()?;
            Some((step, path))
        })
        .collect();
    found.sort();
    Ok(found)
}

/// Reads and verifies one checkpoint.
pub fn load(path: &Path) -> Result<Checkpoint> {
    let broken = |what: String| {
        Error::data(what)
            .at(path.display())
            .remedy("this checkpoint is damaged; use an older one, or start again")
    };
    let state_path = path.join("state.json");
    let text = fs::read(&state_path).map_err(|e| Error::io("read the checkpoint", &state_path, e))?;
    let Format { format } = serde_json::from_slice(&text).map_err(|e| broken(format!("state.json: {e}")))?;
    if format > FORMAT {
        let what = format!(
            "this checkpoint was written by a newer version: its format is {format}, this reads {FORMAT}"
        );
        return Err(Error::usage(what).at(path.display()).remedy("go on with the version that wrote it"));
    }
    let manifest: Manifest = serde_json::from_slice(&text).map_err(|e| broken(format!("state.json: {e}")))?;
    let mut tensors = Vec::new();
    for (name, expected) in &manifest.files {
        let file = path.join(name);
        if name.contains(['/', '\\']) || checksum(&file)? != *expected {
            return Err(broken(format!("{name} does not match its checksum")));
        }
        let weights = name == file_of(StateKind::Weight);
        let kind = if weights { StateKind::Weight } else { StateKind::Optimizer };
        tensors.extend(read_tensors(&file, kind)?);
    }
    Ok(Checkpoint { step: manifest.step, tensors, state: manifest.state })
}

fn read_tensors(path: &Path, kind: StateKind) -> Result<Vec<StateTensor>> {
    let bytes = fs::read(path).map_err(|e| Error::io("read", path, e))?;
    let bad = |e: String| Error::data(e).at(path.display());
    let file = safetensors::SafeTensors::deserialize(&bytes).map_err(|e| bad(e.to_string()))?;
    file.tensors()
        .into_iter()
        .map(|(name, view)| match (view.dtype(), view.shape()) {
            (safetensors::Dtype::F32, &[rows, cols]) => {
                let values = view
                    .data()
                    .chunks_exact(4)
                    .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                    .collect();
                Ok(StateTensor { name, kind, rows, cols, values })
            }
            (dtype, shape) => {
                Err(bad(format!("tensor {name}: {dtype:?} {shape:?} instead of an f32 matrix")))
            }
        })
        .collect()
}

/// Deletes checkpoints of later steps than `step`: damaged ones, which were passed over and must not outlive good ones.
pub fn forget_after(root: &Path, step: u64) -> Result<()> {
    for (_, path) in list(root)?.into_iter().filter(|(later, _)| *later > step) {
        fs::remove_dir_all(&path).map_err(|e| Error::io("delete a damaged checkpoint", &path, e))?;
    }
    Ok(())
}

/// Deletes all but the newest `keep` checkpoints and those in `spare`.
pub fn prune(root: &Path, keep: usize, spare: &[u64]) -> Result<()> {
    let found = list(root)?;
    let old = found.len().saturating_sub(keep.max(1));
    for (step, path) in &found[..old] {
        if !spare.contains(step) {
            fs::remove_dir_all(path).map_err(|e| Error::io("delete an old checkpoint", path, e))?;
        }
    }
    // Gone for good: what was deleted must not come back beside what follows.
    match old {
        0 => Ok(()),
        _ => files::sync_directory(root).map_err(|e| Error::io("delete old checkpoints", root, e)),
    }
}
