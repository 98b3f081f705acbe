//! Linear layers that a checkpoint stores in codes: bitsandbytes, GPTQ, AWQ.
//!
//! What `quantization_config` says is a [`Quantisation`]; `bitsandbytes` and `words` (GPTQ and AWQ) read a layer's tensors
//! into one form, [`Packed`], which a device holds as [`Quantised`].

mod bitsandbytes;
mod settings;
mod words;

use super::Weights;
use crate::backend::{Backend, DType, Groups, Levels, Quantised, Rounded};
use crate::error::{Error, Result};
use crate::layers::Site;
use std::collections::BTreeSet;

/// How the linear layers of a checkpoint are stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quantisation {
    /// In which codes.
    pub scheme: Scheme,
    /// Modules that are stored whole.
    pub whole: BTreeSet<String>,
}

/// Codes, as the library that makes them stores them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// bitsandbytes, 4 bits: nf4 or fp4.
    FourBit,
    /// bitsandbytes, 8 bits: a scale a row.
    Int8,
    /// GPTQ.
    Gptq {
        /// 4 or 8.
        bits: usize,
        /// Inputs that share a scale; `None`: all of a row.
        group: Option<usize>,
        /// Whether stored zeros are one less than what they mean (the first version of the format).
        less_one: bool,
    },
    /// AWQ in the layout of its matrix-matrix kernels, 4 bits.
    Awq {
        /// Inputs that share a scale; `None`: all of a row.
        group: Option<usize>,
    },
}

/// A checkpoint's tensors, and under which name it stores one of the model's.
pub(super) struct Stored<'a> {
    pub weights: &'a Weights,
    pub name: &'a dyn Fn(&str) -> String,
}

impl Stored<'_> {
    fn has(&self, name: &str) -> bool {
        self.weights.shape(&(self.name)(name)).is_some()
    }
}

/// A stored tensor of a layer: its name behind the module's, its shape (`None`: any), and its types.
struct Part {
    name: &'static str,
    shape: Option<Vec<usize>>,
    types: &'static [safetensors::Dtype],
    optional: bool,
}

/// A weight in codes on the host; the fields are those of [`Quantised`].
struct Packed {
    shape: (usize, usize),
    levels: Levels,
    codes: Vec<u8>,
    scales: Vec<f32>,
    zeros: Option<Vec<u8>>,
    groups: Run,
    rounded: Rounded,
}

/// The groups of a [`Packed`].
enum Run {
    Elements(usize),
    Columns { count: usize, of: Vec<u32> },
}

impl Scheme {
    /// Its name, for people.
    pub fn name(self) -> String {
        match self {
            Self::FourBit => "bitsandbytes, 4 bits".into(),
            Self::Int8 => "bitsandbytes, 8 bits".into(),
            Self::Gptq { bits, .. } => format!("GPTQ, {bits} bits"),
            Self::Awq { .. } => "AWQ, 4 bits".into(),
        }
    }

    /// What a layer in codes stores instead of its weight.
    fn parts(self, (m, n): (usize, usize)) -> Vec<Part> {
        match self {
            Self::FourBit | Self::Int8 => bitsandbytes::parts(self == Self::FourBit, (m, n)),
            Self::Gptq { bits, group, .. } => words::gptq_parts(bits, group, (m, n)),
            Self::Awq { group } => words::awq_parts(group, (m, n)),
        }
    }

    /// The tensor by which a layer in codes is known.
    fn mark(self) -> &'static str {
        match self {
            Self::FourBit => "weight.absmax",
            Self::Int8 => "SCB",
            Self::Gptq { .. } | Self::Awq { .. } => "qweight",
        }
    }
}

impl Quantisation {
    /// The names that a module's tensors may have, its bias apart.
    pub(super) fn names(&self, module: &str) -> Vec<String> {
        self.scheme.parts((0, 0)).iter().map(|part| format!("{module}.{}", part.name)).collect()
    }

    /// Whether a layer is in codes.
    pub fn holds(&self, module: &str) -> bool {
        !self.whole.contains(module)
    }

    /// Finds which of the layers are stored whole, and what is wrong with those that are not, by name.
    pub(super) fn settle(&mut self, modules: &[(&str, (usize, usize))], stored: &Stored) -> Vec<String> {
        let mut problems = Vec::new();
        self.whole.clear();
        for (module, shape) in modules {
            if !stored.has(&format!("{module}.{}", self.scheme.mark())) {
                self.whole.insert((*module).to_string());
                continue;
            }
            let parts = self.scheme.parts(*shape);
            problems.extend(parts.iter().filter_map(|part| part.problem(module, stored)));
        }
        if self.whole.len() == modules.len() {
            problems
                .push(format!("quantization_config says {}, and no layer is stored so", self.scheme.name()));
        }
        problems
    }

    /// A layer's weight on a device.
    pub(super) fn load(&self, be: &dyn Backend, site: &Site, stored: &Stored) -> Result<Quantised> {
        self.read(&site.name, (site.outputs, site.inputs), stored)?.upload(be)
    }

    /// Reads a layer's weight without keeping it.
    ///
    /// # Errors
    /// What is wrong with it, by tensor and place.
    pub(super) fn check(&self, site: &Site, stored: &Stored) -> Result<()> {
        self.read(&site.name, (site.outputs, site.inputs), stored).map(drop)
    }

    fn read(&self, module: &str, shape: (usize, usize), stored: &Stored) -> Result<Packed> {
        let tensors = Tensors { module, shape, weights: stored.weights, stored };
        let packed = match self.scheme {
            Scheme::FourBit => bitsandbytes::four_bit(&tensors)?,
            Scheme::Int8 => bitsandbytes::int8(&tensors)?,
            Scheme::Gptq { bits, group, less_one } => words::gptq(&tensors, bits, group, less_one)?,
            Scheme::Awq { group } => words::awq(&tensors, group)?,
        };
        packed.within_half(&tensors)
    }

    /// A weight of this shape in such codes, of no particular values.
    pub(super) fn outline(&self, be: &dyn Backend, shape: (usize, usize)) -> Result<Quantised> {
        let (m, n) = shape;
        let (levels, zeros, run) = match self.scheme {
            Scheme::FourBit => (Levels::Book([0.0; 16]), false, 64),
            Scheme::Int8 => (Levels::Byte(128.0), false, n),
            Scheme::Gptq { bits: 8, group, .. } => (Levels::Byte(0.0), true, group.unwrap_or(n)),
            Scheme::Gptq { group, .. } | Scheme::Awq { group } => {
                (Levels::Book([0.0; 16]), true, group.unwrap_or(n))
            }
        };
        let groups = (m * n).div_ceil(run);
        Ok(Quantised {
            shape,
            codes: be.alloc_bytes((m * n * levels.bits()).div_ceil(8))?,
            levels,
            scales: be.alloc(1, groups, DType::F32)?,
            zeros: zeros.then(|| be.alloc_bytes(groups)).transpose()?,
            groups: Groups::Runs(run),
            rounded: Rounded::F32,
        })
    }
}

impl Part {
    /// What is wrong with it as it is stored.
    fn problem(&self, module: &str, stored: &Stored) -> Option<String> {
        let name = format!("{module}.{}", self.name);
        let (weights, stored) = (stored.weights, (stored.name)(&name));
        let (Some(shape), Some(dtype)) = (weights.shape(&stored), weights.dtype(&stored)) else {
            return (!self.optional).then(|| format!("{name} is missing"));
        };
        if let Some(wanted) = self.shape.as_deref().filter(|wanted| *wanted != shape) {
            return Some(format!("{stored} is {shape:?} instead of {wanted:?}"));
        }
        let known = self.types.is_empty() || self.types.contains(&dtype);
        (!known).then(|| format!("{stored} has type {dtype:?} instead of {:?}", self.types[0]))
    }
}

/// The stored tensors of one layer.
struct Tensors<'a> {
    module: &'a str,
    /// (M, N).
    shape: (usize, usize),
    weights: &'a Weights,
    stored: &'a Stored<'a>,
}

impl Tensors<'_> {
    fn name(&self, part: &str) -> String {
        (self.stored.name)(&format!("{}.{part}", self.module))
    }
    fn has(&self, part: &str) -> bool {
        self.weights.shape(&self.name(part)).is_some()
    }
    fn bytes(&self, part: &str) -> Result<&[u8]> {
        let name = self.name(part);
        self.weights.bytes(&name).ok_or_else(|| self.bad(part, "is missing", "get the checkpoint again"))
    }
    fn floats(&self, part: &str, count: usize) -> Result<Vec<f32>> {
        let values = self.weights.read(&self.name(part))?;
        match values.len() == count {
            true => Ok(values),
            false => Err(self.bad(part, &format!("has {} values instead of {count}", values.len()), DAMAGED)),
        }
    }
    fn words(&self, part: &str) -> Result<Vec<u32>> {
        let word = |b: &[u8]| u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        Ok(self.bytes(part)?.chunks_exact(4).map(word).collect())
    }
    fn bad(&self, part: &str, what: &str, remedy: &str) -> Error {
        Error::model(format!("tensor {} {what}", self.name(part))).at(&self.weights.place).remedy(remedy)
    }
}

const DAMAGED: &str = "the checkpoint is damaged, or its configuration is another one's; get it again";

impl Packed {
    /// Fails where a value would not be finite in the type that it is rounded to.
    fn within_half(self, tensors: &Tensors) -> Result<Self> {
        let level = match self.levels {
            Levels::Book(book) => book.iter().fold(0f32, |most, level| most.max(level.abs())),
            Levels::Byte(_) => 255.0,
        };
        let scale = self.scales.iter().fold(0f32, |most, scale| most.max(scale.abs()));
        let most = f64::from(scale) * f64::from(level);
        let largest = if self.rounded == Rounded::F16 { 65504.0 } else { f64::from(f32::MAX) };
        match most <= largest {
            true => Ok(self),
            false => Err(Error::model(format!(
                "{}: scales up to {scale} give values up to {most:e}",
                tensors.module
            ))
            .at(&tensors.weights.place)
            .remedy(DAMAGED)),
        }
    }

    fn upload(self, be: &dyn Backend) -> Result<Quantised> {
        let bytes = |values: &[u8]| {
            let mut to = be.alloc_bytes(values.len())?;
            be.upload_bytes(values, &mut to)?;
            Ok::<_, Error>(to)
        };
        Ok(Quantised {
            shape: self.shape,
            levels: self.levels,
            codes: bytes(&self.codes)?,
            scales: be.tensor(&self.scales, 1, self.scales.len(), DType::F32)?,
            zeros: self.zeros.as_deref().map(bytes).transpose()?,
            groups: match self.groups {
                Run::Elements(run) => Groups::Runs(run),
                Run::Columns { count, of } => Groups::Columns { count, of: be.indices(&of)? },
            },
            rounded: self.rounded,
        })
    }
}
