//! Second moments of a whole model while text streams through it: added to, kept for later, turned into [`Knowledge`].

use super::file::{Checked, Reader, Stored, write};
use super::moment::{Moment, WHOLE, sketch_rows, test_matrix};
use super::{Knowledge, Spectrum};
use crate::backend::{Backend, Gather, Indices, Mat, Tensor};
use crate::error::Result;
use crate::gems::settings::{NullSide, NullSpaceSettings};
use crate::layers::Site;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, hash_map::Entry};
use std::path::Path;
use std::sync::Arc;

/// Moments that are decomposed at a time.
const TOGETHER: usize = 8;
const FORMAT: &str = "gems-engine knowledge sums 1";

/// How far a stream has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Streamed {
    /// Passes that are done.
    pub passes: usize,
    /// Tokens in them.
    pub tokens: usize,
    /// Those of them that went backward too.
    pub gradient_tokens: usize,
}

impl Streamed {
    /// Both.
    pub fn and(self, other: Self) -> Self {
        Self {
            passes: self.passes + other.passes,
            tokens: self.tokens + other.tokens,
            gradient_tokens: self.gradient_tokens + other.gradient_tokens,
        }
    }
}

/// The second moments of a model, being taken.
pub struct Sums {
    backend: Arc<dyn Backend>,
    names: Vec<String>,
    /// The moment of every site's input, and whether the site is the first that reads it.
    input_of_site: Vec<(usize, bool)>,
    inputs: Vec<Moment>,
    /// By site, or empty.
    outputs: Vec<Moment>,
    gradients: Vec<Moment>,
    hidden: Moment,
    /// What was streamed.
    pub streamed: Streamed,
}

#[derive(Serialize, Deserialize)]
struct Facts {
    format: String,
    checksum: String,
    of: String,
    streamed: Streamed,
    /// Vectors of every moment.
    rows: Vec<usize>,
}

impl Checked for Facts {
    fn checksum(&mut self) -> &mut String {
        &mut self.checksum
    }
}

impl Sums {
    /// Nothing yet, of layers `sites` and final hidden states of `hidden` numbers.
    ///
    /// # Errors
    /// The device.
    pub fn new(
        backend: &Arc<dyn Backend>,
        sites: &[Site],
        hidden: usize,
        settings: &NullSpaceSettings,
        seed: u64,
    ) -> Result<Self> {
        let mut omegas: HashMap<usize, Arc<Tensor>> = HashMap::new();
        let mut moment = |dim: usize| -> Result<Moment> {
            if dim <= WHOLE {
                return Moment::whole(backend, dim);
            }
            let omega = match omegas.entry(dim) {
                Entry::Occupied(made) => made.into_mut(),
                Entry::Vacant(place) => {
                    let rows = sketch_rows(dim, settings.directions);
                    place.insert(test_matrix(backend, dim, rows, seed)?)
                }
            };
            Moment::sketched(backend, omega)
        };
        let (mut numbers, mut inputs, mut input_of_site) = (BTreeMap::new(), Vec::new(), Vec::new());
        for site in sites {
            let known = numbers.get(&site.input_group).copied();
            let number = known.unwrap_or(inputs.len());
            if known.is_none() {
                numbers.insert(site.input_group, number);
                inputs.push(moment(site.inputs)?);
            }
            input_of_site.push((number, known.is_none()));
        }
        let mut of_outputs = |wanted: bool| -> Result<Vec<Moment>> {
            sites.iter().filter(|_| wanted).map(|s| moment(s.outputs)).collect()
        };
        Ok(Self {
            outputs: of_outputs(settings.side == NullSide::Output)?,
            gradients: of_outputs(settings.gradient_tokens > 0)?,
            hidden: moment(hidden)?,
            backend: Arc::clone(backend),
            names: sites.iter().map(|s| s.name.clone()).collect(),
            input_of_site,
            inputs,
            streamed: Streamed::default(),
        })
    }

    /// Adds what a layer reads and puts out, of `rows` only, where given.
    ///
    /// # Errors
    /// The device.
    pub fn forward(&mut self, site: usize, (x, y): (Mat, Mat), rows: Option<&Indices>) -> Result<()> {
        let be = Arc::clone(&self.backend);
        if let (number, true) = self.input_of_site[site] {
            add(&be, &mut self.inputs[number], x, rows)?;
        }
        self.outputs.get_mut(site).map_or(Ok(()), |moment| add(&be, moment, y, rows))
    }

    /// Adds gradients of the log-likelihood with respect to a layer's outputs.
    ///
    /// # Errors
    /// The device.
    pub fn backward(&mut self, site: usize, dy: Mat, rows: Option<&Indices>) -> Result<()> {
        let be = Arc::clone(&self.backend);
        self.gradients.get_mut(site).map_or(Ok(()), |moment| add(&be, moment, dy, rows))
    }

    /// Adds final hidden states.
    ///
    /// # Errors
    /// The device.
    pub fn hidden(&mut self, states: Mat) -> Result<()> {
        self.hidden.add(states)
    }

    /// The spectra of all moments, at most `directions` of each that is sketched; `tick` is told how many of how many are
    /// done, and ends it with an error.
    ///
    /// # Errors
    /// A moment over no vector, or of zeros, NaN or infinity, by the layer's name; the device; `tick`.
    pub fn finish(
        self,
        fingerprint: &str,
        directions: usize,
        tick: &mut dyn FnMut(usize, usize) -> Result<()>,
    ) -> Result<Knowledge> {
        let all = self.inputs.len() + self.outputs.len() + self.gradients.len() + 1;
        let mut done = 0;
        let mut spectra = |moments: Vec<Moment>, names: &[String], of: &str| -> Result<Vec<Spectrum>> {
            let (mut moments, mut names, mut found) = (moments.into_iter(), names.iter(), Vec::new());
            loop {
                let some: Vec<Moment> = moments.by_ref().take(TOGETHER).collect();
                if some.is_empty() {
                    return Ok(found);
                }
                let named: Vec<(&str, &Moment)> = names.by_ref().map(String::as_str).zip(&some).collect();
                found.extend(Moment::spectra(&named, directions).map_err(|e| e.at(of))?);
                done += some.len();
                tick(done, all)?;
            }
        };
        let firsts = self.input_of_site.iter().zip(&self.names).filter(|((_, first), _)| *first);
        let firsts: Vec<String> = firsts.map(|(_, name)| name.clone()).collect();
        let inputs = spectra(self.inputs, &firsts, "the inputs of a layer")?;
        let outputs = spectra(self.outputs, &self.names, "the outputs of a layer")?;
        let gradients = spectra(self.gradients, &self.names, "the gradients of a layer's outputs")?;
        let hidden = spectra(vec![self.hidden], &["final".to_string()], "the final hidden states")?;
        Ok(Knowledge {
            fingerprint: fingerprint.to_string(),
            tokens: self.streamed.tokens,
            gradient_tokens: self.streamed.gradient_tokens,
            inputs,
            input_of_site: self.input_of_site.iter().map(|(number, _)| Some(*number)).collect(),
            outputs: outputs.into_iter().map(Some).collect(),
            gradients: gradients.into_iter().map(Some).collect(),
            hidden: hidden.into_iter().next(),
        })
    }

    fn moments(&self) -> Vec<&Moment> {
        let each = self.inputs.iter().chain(&self.outputs).chain(&self.gradients);
        each.chain([&self.hidden]).collect()
    }

    /// The sums of every moment, which are zero afterwards: what was streamed since they were taken last. Waits.
    ///
    /// # Errors
    /// The device.
    pub fn take(&mut self) -> Result<Vec<Vec<f32>>> {
        let be = Arc::clone(&self.backend);
        let take = |sum: &mut Tensor| {
            let values = be.download(sum.mat())?;
            be.fill(sum.mat_mut(), 0.0).map(|()| values)
        };
        self.tensors().into_iter().map(take).collect()
    }

    /// Puts sums of what several have streamed in the place of their own, with what all of them have counted: vectors of
    /// every moment, as [`Sums::counted`] gives them.
    ///
    /// # Errors
    /// The device.
    pub fn put(&mut self, sums: &[Vec<f32>], (streamed, rows): (Streamed, &[usize])) -> Result<()> {
        let be = Arc::clone(&self.backend);
        let mut tensors = self.tensors().into_iter().zip(sums);
        tensors.try_for_each(|(to, values)| be.upload(values, to.mat_mut()))?;
        self.each_moment().zip(rows).for_each(|(moment, rows)| moment.rows = *rows);
        self.streamed = streamed;
        Ok(())
    }

    /// How far the stream has come, and the vectors of every moment.
    pub fn counted(&self) -> (Streamed, Vec<usize>) {
        (self.streamed, self.moments().iter().map(|m| m.rows).collect())
    }

    fn each_moment(&mut self) -> impl Iterator<Item = &mut Moment> {
        let moments = self.inputs.iter_mut().chain(&mut self.outputs).chain(&mut self.gradients);
        moments.chain([&mut self.hidden])
    }

    /// Everything that is added to.
    fn tensors(&mut self) -> Vec<&mut Tensor> {
        let mut all = Vec::new();
        for moment in self.each_moment() {
            all.push(&mut moment.sum);
            all.extend(moment.sketch.iter_mut().map(|sketch| &mut sketch.squares));
        }
        all
    }

    /// Writes the sums so that [`Sums::restore`] goes on from them, bit for bit. `of` says what they are sums of.
    ///
    /// # Errors
    /// The device; the file system.
    pub fn save(&self, path: &Path, of: &str) -> Result<()> {
        let be = &self.backend;
        let fetch = |t: &Tensor| Ok(Cow::Owned(bytemuck::cast_slice(&be.download(t.mat())?).to_vec()));
        let mut entries = Vec::new();
        for (i, moment) in self.moments().into_iter().enumerate() {
            let squares = moment.sketch.as_ref().map(|s| (format!("{i}.squares"), &s.squares));
            for (name, tensor) in [(format!("{i}.sum"), &moment.sum)].into_iter().chain(squares) {
                let (rows, cols) = tensor.shape();
                entries.push(Stored::f32(name, vec![rows, cols], move || fetch(tensor)));
            }
        }
        let rows = self.moments().iter().map(|m| m.rows).collect();
        let (format, of, streamed) = (FORMAT.to_string(), of.to_string(), self.streamed);
        write(path, entries, Facts { format, checksum: String::new(), of, streamed, rows })
    }

    /// Goes on from sums that were saved; `false`: there are none, or not of this. In that case nothing has changed.
    ///
    /// # Errors
    /// The device.
    pub fn restore(&mut self, path: &Path, of: &str) -> Result<bool> {
        let Ok(facts) = Reader::open(path).and_then(|r| Ok((r.whole::<Facts>()?, r))) else {
            return Ok(false);
        };
        let (facts, reader) = facts;
        if facts.format != FORMAT || facts.of != of || facts.rows.len() != self.moments().len() {
            return Ok(false);
        }
        let mut values = Vec::new();
        for (i, moment) in self.moments().into_iter().enumerate() {
            let read = |name: &str, t: &Tensor| reader.f32s(&format!("{i}.{name}"), &[t.rows(), t.cols()]);
            let squares = moment.sketch.as_ref().map(|s| read("squares", &s.squares)).transpose();
            match (read("sum", &moment.sum), squares) {
                (Ok(sum), Ok(squares)) => values.push((sum, squares)),
                _ => return Ok(false),
            }
        }
        let be = Arc::clone(&self.backend);
        let moments = self.each_moment().zip(values).zip(&facts.rows);
        for ((moment, (sum, squares)), rows) in moments {
            moment.rows = *rows;
            be.upload(&sum, moment.sum.mat_mut())?;
            if let (Some(sketch), Some(squares)) = (&mut moment.sketch, squares) {
                be.upload(&squares, sketch.squares.mat_mut())?;
            }
        }
        self.streamed = facts.streamed;
        Ok(true)
    }
}

/// Adds vectors, of `rows` only, where given.
fn add(be: &Arc<dyn Backend>, moment: &mut Moment, x: Mat, rows: Option<&Indices>) -> Result<()> {
    match rows {
        Some(rows) if rows.is_empty() => Ok(()),
        Some(rows) => {
            let mut seen = be.alloc(rows.len(), x.cols, x.dtype)?;
            be.run(Gather { from: x, rows, scale: 1.0, to: seen.mat_mut() })?;
            moment.add(seen.mat())
        }
        None => moment.add(x),
    }
}
