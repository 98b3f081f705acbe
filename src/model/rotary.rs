//! Rotary frequencies, as `modeling_rope_utils.py` of transformers computes them.

use super::fields::Fields;
use crate::error::{Error, Result};
use std::borrow::Cow;
use std::f64::consts::PI;

/// How some layers rotate queries and keys.
#[derive(Debug, Clone, PartialEq)]
pub struct Rotary {
    /// Frequencies of the pairs that turn: half as many as values of a head that turn.
    pub inv_freq: Vec<f32>,
    /// Factor on what turns (yarn, longrope).
    pub factor: f32,
    /// What longer texts change.
    pub longer: Longer,
}

/// Frequencies of texts beyond the length that a model was made for. Every text has those of its own length, as
/// transformers gives them to it alone; in a padded batch there the longest text decides for all.
#[derive(Debug, Clone, PartialEq)]
pub enum Longer {
    /// The same.
    Same,
    /// Another list (longrope).
    Other {
        /// Texts of more tokens than this.
        beyond: usize,
        /// The list.
        inv_freq: Vec<f32>,
    },
    /// A base that grows with the length (dynamic).
    Growing {
        /// Texts of more tokens than this.
        beyond: usize,
        /// The base of shorter texts.
        theta: f64,
        /// Growth by length.
        factor: f64,
    },
}

impl Rotary {
    /// The frequencies of a text of `length` tokens.
    pub fn at(&self, length: usize) -> Cow<'_, [f32]> {
        match &self.longer {
            Longer::Other { beyond, inv_freq } if length > *beyond => Cow::Borrowed(inv_freq),
            Longer::Growing { beyond, theta, factor } if length > *beyond => {
                let turned = 2.0 * self.inv_freq.len() as f64;
                let growth = factor * length as f64 / *beyond as f64 - (factor - 1.0);
                let frequencies = powers(theta * growth.powf(turned / (turned - 2.0)), self.inv_freq.len());
                Cow::Owned(rounded(frequencies))
            }
            _ => Cow::Borrowed(&self.inv_freq),
        }
    }
}

/// `theta^(-2 j / turned)` of every pair.
fn powers(theta: f64, pairs: usize) -> Vec<f64> {
    (0..pairs).map(|j| theta.powf(-(j as f64) / pairs as f64)).collect()
}

fn rounded(frequencies: impl IntoIterator<Item = f64>) -> Vec<f32> {
    frequencies.into_iter().map(|v| v as f32).collect()
}

/// What the rotation of a model depends on besides its own section.
pub(super) struct Setting {
    /// Values of a head that turn.
    pub turned: usize,
    /// `max_position_embeddings`.
    pub positions: usize,
    /// The length that the model was made for, where the whole configuration says it (Phi-3).
    pub original: Option<usize>,
    /// The base, where the section does not say it.
    pub theta: f64,
    /// What other names the type longrope has in this family (Phi-3).
    pub longrope: &'static [&'static str],
}

/// The rotation that a section (`rope_parameters` or `rope_scaling`) describes.
pub(super) fn rotary(section: &Fields, setting: &Setting) -> Result<Rotary> {
    let theta = section.number_or("rope_theta", setting.theta)?;
    let name = if section.has("rope_type") { "rope_type" } else { "type" };
    let base = powers(theta, setting.turned / 2);
    let same = |inv_freq: Vec<f64>| Rotary { inv_freq: rounded(inv_freq), factor: 1.0, longer: Longer::Same };
    let positions = setting.positions;
    match section.text_or(name, "default")? {
        "default" => Ok(same(base)),
        kind if kind == "longrope" || setting.longrope.contains(&kind) => longrope(section, setting, &base),
        "linear" => {
            let factor = given(section, "factor")?;
            Ok(same(base.iter().map(|v| v / factor).collect()))
        }
        "dynamic" => {
            let longer = Longer::Growing { beyond: positions, theta, factor: given(section, "factor")? };
            Ok(Rotary { longer, ..same(base) })
        }
        "llama3" => llama3(section, &base).map(same),
        "yarn" => yarn(section, setting, theta, &base),
        _ => Err(section.bad(name, "default, linear, dynamic, yarn, longrope, llama3")),
    }
}

/// A number that has no default.
fn given(section: &Fields, name: &str) -> Result<f64> {
    match section.has(name) {
        true => section.number_or(name, 1.0),
        false => Err(section.bad(name, "a positive number")),
    }
}

fn llama3(section: &Fields, base: &[f64]) -> Result<Vec<f64>> {
    let factor = section.number_or("factor", 8.0)?;
    let low = section.number_or("low_freq_factor", 1.0)?;
    let high = section.number_or("high_freq_factor", 4.0)?;
    let old = section.size_or("original_max_position_embeddings", 8192)? as f64;
    let stretched = |v: f64| {
        let wavelength = 2.0 * PI / v;
        if wavelength < old / high {
            v
        } else if wavelength > old / low {
            v / factor
        } else {
            let smooth = (old / wavelength - low) / (high - low);
            (1.0 - smooth) * v / factor + smooth * v
        }
    };
    Ok(base.iter().map(|v| stretched(*v)).collect())
}

/// YaRN (Peng et al. 2023): high frequencies stay, low ones are divided, those between are blended.
fn yarn(section: &Fields, setting: &Setting, theta: f64, base: &[f64]) -> Result<Rotary> {
    let factor = given(section, "factor")?;
    let original = section.size_or("original_max_position_embeddings", setting.positions)? as f64;
    let grown = |mscale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
    let own = section.optional("attention_factor", None)?;
    let scales = (section.optional("mscale", None)?, section.optional("mscale_all_dim", None)?);
    let usual = if let (Some(one), Some(all)) = scales { grown(one) / grown(all) } else { grown(1.0) };

    let turned = setting.turned as f64;
    let dimension = |turns: f64| turned * (original / (turns * 2.0 * PI)).ln() / (2.0 * theta.ln());
    let mut low = dimension(section.number_or("beta_fast", 32.0)?);
    let mut high = dimension(section.number_or("beta_slow", 1.0)?);
    if section.flag_or("truncate", true)? {
        (low, high) = (low.floor(), high.ceil());
    }
    let (low, mut high) = (low.max(0.0), high.min(turned - 1.0));
    if low == high {
        high += 0.001;
    }
    let blended = base.iter().enumerate().map(|(j, v)| {
        let ramp = ((j as f64 - low) / (high - low)).clamp(0.0, 1.0);
        v / factor * ramp + v * (1.0 - ramp)
    });
    let factor = own.unwrap_or(usual) as f32;
    Ok(Rotary { inv_freq: rounded(blended), factor, longer: Longer::Same })
}

/// LongRoPE (Ding et al. 2024): a divisor of every frequency, others beyond the length that the model was made for.
fn longrope(section: &Fields, setting: &Setting, base: &[f64]) -> Result<Rotary> {
    let inside = section.size_or("original_max_position_embeddings", setting.positions)?;
    let original = setting.original.unwrap_or(inside);
    let ratio = setting.positions as f64 / original as f64;
    let attention = section.optional("attention_factor", None)?;
    let factor = section.number_or("factor", ratio)?;
    if attention.is_none() && factor != ratio {
        let what = format!("`factor` is {factor}, the lengths say {ratio}: transformers 4 and 5 differ");
        return Err(Error::model(what).at(&section.place).remedy(
            "supported: no `factor`, or max_position_embeddings / original_max_position_embeddings",
        ));
    }
    let usual = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / (original as f64).ln()).sqrt() };
    let divided = |name: &str| -> Result<Vec<f32>> {
        let divisors = section.numbers(name, base.len())?;
        Ok(rounded(base.iter().zip(divisors).map(|(v, by)| v / by)))
    };
    let longer = Longer::Other { beyond: original, inv_freq: divided("long_factor")? };
    Ok(Rotary { inv_freq: divided("short_factor")?, factor: attention.unwrap_or(usual) as f32, longer })
}
