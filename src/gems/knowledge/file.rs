//! Knowledge as a file: safetensors, with its facts in the metadata, written tensor by tensor and checked when read.

use super::{Knowledge, Spectrum};
use crate::error::{Error, Result};
use crate::gems::settings::{NullSide, NullSpaceSettings};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors, View};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

const FORMAT: &str = "gems-engine knowledge 2";
/// How formats of earlier versions begin.
const EARLIER: &str = "gems-engine knowledge basis";
const REMEDY: &str = "make the basis again with `gems-engine basis`";

// ---- what is written ----------------------------------------------------------------------------

type Fetch<'a> = Box<dyn Fn() -> Result<Cow<'a, [u8]>> + 'a>;

/// A tensor of a file, fetched when it is needed.
pub(super) struct Stored<'a> {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    fetch: Fetch<'a>,
}

impl<'a> Stored<'a> {
    pub fn f32(name: String, shape: Vec<usize>, fetch: impl Fn() -> Result<Cow<'a, [u8]>> + 'a) -> Self {
        Self { name, dtype: Dtype::F32, shape, fetch: Box::new(fetch) }
    }
}

/// An entry on its way into the file; what goes wrong is told afterwards.
struct Lazy<'e, 'a>(&'e Stored<'a>, &'e RefCell<Option<Error>>);

impl View for Lazy<'_, '_> {
    fn dtype(&self) -> Dtype {
        self.0.dtype
    }
    fn shape(&self) -> &[usize] {
        &self.0.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        (self.0.fetch)().unwrap_or_else(|error| {
            self.1.borrow_mut().get_or_insert(error);
            Cow::Owned(vec![0; self.data_len()])
        })
    }
    fn data_len(&self) -> usize {
        self.0.shape.iter().product::<usize>() * self.0.dtype.bitsize() / 8
    }
}

/// Facts of a file with the checksum of everything in it.
pub(super) trait Checked: Serialize + DeserializeOwned {
    fn checksum(&mut self) -> &mut String;
}

/// What the checksum is of besides the tensors: the facts without it.
fn unchecked(facts: &mut impl Checked) -> Result<String> {
    facts.checksum().clear();
    serde_json::to_string(facts).map_err(|e| Error::model(e.to_string()))
}

/// Writes a file as a whole, one tensor in memory at a time.
pub(super) fn write(path: &Path, mut entries: Vec<Stored>, mut facts: impl Checked) -> Result<()> {
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    let mut hasher = blake3::Hasher::new();
    hasher.update(unchecked(&mut facts)?.as_bytes());
    for entry in &entries {
        hasher.update(entry.name.as_bytes()).update_rayon(&(entry.fetch)()?);
    }
    *facts.checksum() = hasher.finalize().to_hex().to_string();
    let facts = serde_json::to_string(&facts).map_err(|e| Error::model(e.to_string()))?;
    let metadata = HashMap::from([("gems".to_string(), facts)]);
    let failure = RefCell::new(None);
    crate::files::write_aside(path, |aside| {
        let views = entries.iter().map(|e| (e.name.clone(), Lazy(e, &failure)));
        safetensors::serialize_to_file(views, Some(metadata), aside).map_err(|e| match e {
            safetensors::SafeTensorError::IoError(e) => Error::io("write", path, e),
            e => Error::model(e.to_string()).at(path.display()),
        })?;
        failure.borrow_mut().take().map_or(Ok(()), Err)
    })
}

// ---- what is read -------------------------------------------------------------------------------

/// An open file, of which nothing is believed.
pub(super) struct Reader {
    path: PathBuf,
    map: Mmap,
}

impl Reader {
    pub fn open(path: &Path) -> Result<Self> {
        let failed = |e| Error::io("read the knowledge basis", path, e);
        let file = File::open(path).map_err(failed)?;
        // SAFETY: the map is read-only and private; should another process truncate the file while it is
        // mapped, the process is ended by the system, as for every program that maps its input.
        let map = unsafe { Mmap::map(&file) }.map_err(failed)?;
        Ok(Self { path: path.to_path_buf(), map })
    }

    fn bad(&self, what: impl Into<String>) -> Error {
        Error::model(what).at(self.path.display()).remedy(REMEDY)
    }

    /// The text of its metadata.
    fn metadata(&self) -> Result<String> {
        let (_, head) = SafeTensors::read_metadata(&self.map).map_err(|e| self.bad(e.to_string()))?;
        let text = head.metadata().as_ref().and_then(|m| m.get("gems")).cloned();
        text.ok_or_else(|| self.bad("not a knowledge basis"))
    }

    fn facts<F: DeserializeOwned>(&self) -> Result<F> {
        serde_json::from_str(&self.metadata()?).map_err(|e| self.bad(e.to_string()))
    }

    fn tensors(&self) -> Result<SafeTensors<'_>> {
        SafeTensors::deserialize(&self.map).map_err(|e| self.bad(e.to_string()))
    }

    /// The facts of a file in which everything is as it was written.
    pub fn whole<F: Checked>(&self) -> Result<F> {
        let mut facts: F = self.facts()?;
        let checksum = facts.checksum().clone();
        let mut hasher = blake3::Hasher::new();
        hasher.update(unchecked(&mut facts)?.as_bytes());
        let mut all = self.tensors()?.tensors();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        for (name, view) in &all {
            hasher.update(name.as_bytes()).update_rayon(view.data());
        }
        match hasher.finalize().to_hex().as_str() == checksum {
            true => Ok(facts),
            false => Err(self.bad("the file is damaged: its checksum is another")),
        }
    }

    fn bytes(&self, name: &str, dtype: Dtype) -> Result<(Vec<usize>, Vec<u8>)> {
        let tensors = self.tensors()?;
        let view = tensors.tensor(name).map_err(|e| self.bad(format!("{name}: {e}")))?;
        match view.dtype() == dtype {
            true => Ok((view.shape().to_vec(), view.data().to_vec())),
            false => Err(self.bad(format!("{name} is {:?}", view.dtype()))),
        }
    }

    pub fn f32s(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let (found, bytes) = self.bytes(name, Dtype::F32)?;
        if found != shape {
            return Err(self.bad(format!("{name} has shape {found:?}, not {shape:?}")));
        }
        Ok(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
    }

    fn f64s(&self, name: &str) -> Result<Vec<f64>> {
        let (shape, bytes) = self.bytes(name, Dtype::F64)?;
        match shape[..] {
            [_] => Ok(bytes.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect()),
            _ => Err(self.bad(format!("{name} has shape {shape:?}"))),
        }
    }

    /// A spectrum that is one.
    fn spectrum(&self, key: &str, head: &Head) -> Result<Spectrum> {
        let values = self.f64s(&format!("{key}.values"))?;
        let (k, dim, rest, samples) = (values.len(), head.dim, head.rest, head.samples);
        let ordered = values.windows(2).all(|w| w[0] >= w[1]) && values.iter().all(|v| (0.0..).contains(v));
        let finite = rest.is_finite() && values.iter().all(|v| v.is_finite());
        if k > dim || !ordered || !finite || rest < 0.0 || (k == dim && rest > 0.0) {
            return Err(self.bad(format!("{key} is no spectrum of {dim} dimensions")));
        }
        let directions = self.f32s(&format!("{key}.directions"), &[k, dim])?;
        let norm = |row: &[f32]| row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
        if !directions.chunks(dim.max(1)).all(|row| (norm(row) - 1.0).abs() < 1e-2) {
            return Err(self.bad(format!("{key} has directions that are not of length 1")));
        }
        Ok(Spectrum { name: head.name.clone(), dim, directions, values, rest, samples })
    }
}

// ---- knowledge ----------------------------------------------------------------------------------

#[derive(Serialize, Deserialize)]
struct Head {
    name: String,
    dim: usize,
    rest: f64,
    samples: usize,
}

impl Head {
    fn of(s: &Spectrum) -> Self {
        Self { name: s.name.clone(), dim: s.dim, rest: s.rest, samples: s.samples }
    }
}

#[derive(Serialize, Deserialize)]
struct Facts {
    format: String,
    fingerprint: String,
    checksum: String,
    tokens: usize,
    gradient_tokens: usize,
    input_of_site: Vec<Option<usize>>,
    inputs: Vec<Head>,
    outputs: Vec<Option<Head>>,
    gradients: Vec<Option<Head>>,
    hidden: Option<Head>,
}

impl Checked for Facts {
    fn checksum(&mut self) -> &mut String {
        &mut self.checksum
    }
}

fn entries(key: String, s: &Spectrum) -> [Stored<'_>; 2] {
    let directions = || Ok(Cow::Borrowed(bytemuck::cast_slice(&s.directions)));
    let fetch: Fetch = Box::new(|| Ok(Cow::Borrowed(bytemuck::cast_slice(&s.values))));
    let values = Stored { name: format!("{key}.values"), dtype: Dtype::F64, shape: vec![s.kept()], fetch };
    [Stored::f32(format!("{key}.directions"), vec![s.kept(), s.dim], directions), values]
}

impl Knowledge {
    /// Writes it as safetensors: of every spectrum `<key>.directions` *f32* `[k x n]` and `<key>.values` f64 `[k]`.
    ///
    /// # Errors
    /// The file system.
    pub fn save(&self, path: &Path) -> Result<()> {
        let several = |of: &'static str, all: &'_ [Option<Spectrum>]| -> Vec<(String, usize)> {
            all.iter()
                .enumerate()
                .filter(|(_, s)| s.is_some())
                .map(|(i, _)| (format!("{of}.{i}"), i))
                .collect()
        };
        let mut all = Vec::new();
        all.extend(self.inputs.iter().enumerate().flat_map(|(i, s)| entries(format!("input.{i}"), s)));
        for (of, spectra) in [("output", &self.outputs), ("gradient", &self.gradients)] {
            let there = several(of, spectra).into_iter();
            all.extend(there.filter_map(|(key, i)| Some(entries(key, spectra[i].as_ref()?))).flatten());
        }
        all.extend(self.hidden.iter().flat_map(|s| entries("hidden".into(), s)));
        let heads = |all: &[Option<Spectrum>]| all.iter().map(|s| s.as_ref().map(Head::of)).collect();
        let facts = Facts {
            format: FORMAT.into(),
            fingerprint: self.fingerprint.clone(),
            checksum: String::new(),
            tokens: self.tokens,
            gradient_tokens: self.gradient_tokens,
            input_of_site: self.input_of_site.clone(),
            inputs: self.inputs.iter().map(Head::of).collect(),
            outputs: heads(&self.outputs),
            gradients: heads(&self.gradients),
            hidden: self.hidden.as_ref().map(Head::of),
        };
        write(path, all, facts)
    }

    /// Reads what [`Knowledge::save`] wrote for the model with this fingerprint.
    ///
    /// # Errors
    /// A file that cannot be read, is not whole, of another format or for another model.
    pub fn load(path: &Path, fingerprint: &str) -> Result<Self> {
        Self::load_part(path, fingerprint, (true, true))
    }

    /// The same, without the moments of outputs and of gradients where settings do not use them: they are most of a file.
    ///
    /// # Errors
    /// As [`Knowledge::load`].
    pub fn load_for(path: &Path, fingerprint: &str, null: &NullSpaceSettings) -> Result<Self> {
        Self::load_part(path, fingerprint, (null.side == NullSide::Output, null.weighs_costs()))
    }

    fn load_part(path: &Path, fingerprint: &str, (outputs, gradients): (bool, bool)) -> Result<Self> {
        let reader = Reader::open(path)?;
        #[derive(Deserialize)]
        struct Format {
            format: String,
        }
        let Format { format } = reader.facts()?;
        if format.starts_with(EARLIER) {
            return Err(reader.bad("this basis was made by an earlier version, which kept other things"));
        }
        if format != FORMAT {
            return Err(reader.bad(format!("its format is {format:?}, not {FORMAT:?}")));
        }
        let facts: Facts = reader.whole()?;
        if facts.fingerprint != fingerprint {
            return Err(Error::usage("this basis was made for another model")
                .at(path.display())
                .remedy("make one for this model with `gems-engine basis`"));
        }
        if facts.input_of_site.iter().flatten().any(|i| *i >= facts.inputs.len()) {
            return Err(reader.bad("a layer names an input that is not there"));
        }
        let each = |of: &str, heads: &[Option<Head>], wanted: bool| -> Result<Vec<Option<Spectrum>>> {
            if !wanted {
                return Ok(Vec::new());
            }
            let one = |(i, head): (usize, &Option<Head>)| {
                head.as_ref().map(|h| reader.spectrum(&format!("{of}.{i}"), h)).transpose()
            };
            heads.iter().enumerate().map(one).collect()
        };
        let inputs = facts.inputs.iter().enumerate();
        Ok(Self {
            inputs: inputs.map(|(i, h)| reader.spectrum(&format!("input.{i}"), h)).collect::<Result<_>>()?,
            outputs: each("output", &facts.outputs, outputs)?,
            gradients: each("gradient", &facts.gradients, gradients)?,
            hidden: facts.hidden.as_ref().map(|h| reader.spectrum("hidden", h)).transpose()?,
            fingerprint: facts.fingerprint,
            tokens: facts.tokens,
            gradient_tokens: if gradients { facts.gradient_tokens } else { 0 },
            input_of_site: facts.input_of_site,
        })
    }
}
