//! Under which names a checkpoint stores what a model is made of.
//!
//! transformers loads more than it writes: names without or with one more base prefix, heads stored beside the table
//! they are tied to, buffers of old versions. Those rules are these; anything else that does not fit is an error.

use super::diagnosis;
use super::layout::{DenseKind, Layout};
use super::quantised::Stored;
use super::{Architecture, Family, Weights};
use crate::error::{Error, Result};
use crate::layers::Site;
use safetensors::Dtype;
use std::collections::{BTreeMap, BTreeSet};

const HEAD: &str = "lm_head.weight";
/// T5 v1.0 checkpoints hold it, no model has it (`_keys_to_ignore_on_load_unexpected` in transformers).
const T5_LEFTOVER: &str = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight";

/// The stored name of every tensor of a model.
#[derive(Debug, Default)]
pub(super) struct Names(BTreeMap<String, String>);

impl Names {
    /// The name under which `weights` store the model's tensor `name`.
    pub fn of<'a>(&'a self, name: &'a str) -> &'a str {
        self.0.get(name).map_or(name, String::as_str)
    }

    /// Finds every tensor of the model; says whether its head is its embedding table in `architecture.tied`.
    ///
    /// # Errors
    /// Tensors that are missing, unknown, of another shape or of no float type, all by name; tables that
    /// should be one and differ.
    pub fn find(architecture: &mut Architecture, weights: &Weights) -> Result<Self> {
        let untied = Layout::new(&Architecture { tied: false, ..architecture.clone() });
        let mut expected = shapes(&untied);
        let mut codes = architecture.quantised.take();
        let in_codes = |site: &Site| codes.iter().flat_map(|c| c.names(&site.name)).collect::<Vec<_>>();
        let in_codes: Vec<String> = untied.sites.iter().flat_map(in_codes).collect();
        let table = untied.dense[Layout::EMBEDDING].name.clone();
        let copies: &[&str] = match architecture.family {
            family if family.is_t5() => &["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"],
            _ => &[],
        };
        let own: BTreeSet<&str> =
            expected.iter().map(|(n, _)| n.as_str()).chain(copies.iter().copied()).collect();
        let own: BTreeSet<&str> = own.into_iter().chain(in_codes.iter().map(String::as_str)).collect();
        let (mut names, mut problems, mut unknown) = (Self::default(), Vec::new(), Vec::new());
        for stored in weights.names() {
            let name = canonical(stored, architecture.family, &own);
            if !own.contains(name.as_str()) {
                if !harmless(&name) {
                    unknown.push(stored);
                }
            } else if let Some(before) = names.0.insert(name.clone(), stored.to_string()) {
                problems.push(format!("{name} is stored twice, as {before} and as {stored}"));
            }
        }
        names.one_table(&table, copies, weights)?;
        architecture.tied = names.tied(&table, architecture, weights)?;
        if architecture.tied {
            // The table may be stored as the head alone.
            if let (false, Some(head)) = (names.0.contains_key(&table), names.0.remove(HEAD)) {
                names.0.insert(table, head);
            }
            expected.retain(|(name, _)| name != HEAD);
        }
        if let Some(codes) = &mut codes {
            let modules: Vec<_> =
                untied.sites.iter().map(|s| (s.name.as_str(), (s.outputs, s.inputs))).collect();
            problems.extend(
                codes.settle(&modules, &Stored { weights, name: &|name| names.of(name).to_string() }),
            );
            let held = untied.sites.iter().filter(|s| codes.holds(&s.name));
            let held: BTreeSet<String> = held.map(|s| format!("{}.weight", s.name)).collect();
            expected.retain(|(name, _)| !held.contains(name));
        }
        architecture.quantised = codes;
        let mut odd = None;
        for (name, shape) in &expected {
            let Some(stored) = names.0.get(name) else {
                problems.push(format!("{name} is missing"));
                continue;
            };
            let got = weights.shape(stored).unwrap_or_default();
            if got != shape.as_slice() {
                problems.push(format!("{stored} is {got:?} instead of {shape:?}"));
            }
            let dtype = weights.dtype(stored);
            odd = odd.or(dtype.filter(|d| !matches!(d, Dtype::F32 | Dtype::BF16 | Dtype::F16 | Dtype::F64)));
        }
        if problems.is_empty() && unknown.is_empty() && odd.is_none() {
            return Ok(names);
        }
        Err(misfit(architecture, weights, problems, &unknown, odd))
    }

    /// T5's stacks may store the embedding table again; the copies must be what they are copies of.
    fn one_table(&mut self, table: &str, copies: &[&str], weights: &Weights) -> Result<()> {
        for copy in copies {
            let Some(stored) = self.0.remove(*copy) else { continue };
            let Some(first) = self.0.get(table) else {
                self.0.insert(table.into(), stored);
                continue;
            };
            if !weights.same(first, &stored)? {
                let what = format!("{stored} differs from {first}: the stacks have tables of their own");
                return Err(Error::model(what)
                    .at(&weights.place)
                    .remedy("only one table for both is supported"));
            }
        }
        Ok(())
    }

    /// Whether the head is the table: as configured, unless what is stored says that it cannot be.
    fn tied(&self, table: &str, architecture: &Architecture, weights: &Weights) -> Result<bool> {
        let (Some(table), Some(head)) = (self.0.get(table), self.0.get(HEAD)) else {
            return Ok(architecture.tied);
        };
        if !architecture.tied || weights.same(table, head)? {
            return Ok(architecture.tied);
        }
        // transformers 5 writes `tie_word_embeddings: true` for every T5, and whether it scales beside it (not for mT5,
        // which never scales there).
        let five = architecture.raw["scale_decoder_outputs"] == false || architecture.family == Family::Mt5;
        if architecture.family.is_t5() && five {
            return Ok(false);
        }
        let what = format!(
            "{head} differs from {table}, though tie_word_embeddings is true: transformers 4 ignores it, transformers 5 uses it"
        );
        let remedy =
            "set tie_word_embeddings to false in config.json to use the stored head, or remove the head";
        Err(Error::model(what).at(&weights.place).remedy(remedy))
    }
}

/// Names and shapes of all that a layout asks for.
fn shapes(layout: &Layout) -> Vec<(String, Vec<usize>)> {
    let dense = layout.dense.iter().map(|spec| {
        let vector = matches!(spec.kind, DenseKind::Norm | DenseKind::Bias(_));
        (spec.name.clone(), if vector { vec![spec.cols] } else { vec![spec.rows, spec.cols] })
    });
    let sites = layout.sites.iter().map(|s| (format!("{}.weight", s.name), vec![s.outputs, s.inputs]));
    dense.chain(sites).collect()
}

/// A stored name as the model's: one base prefix more or less is allowed, as in transformers.
fn canonical(stored: &str, family: Family, own: &BTreeSet<&str>) -> String {
    let prefix = if family.is_t5() { "transformer." } else { "model." };
    if let Some(inner) = stored.strip_prefix(prefix).filter(|inner| own.contains(inner)) {
        return inner.to_string();
    }
    let outer = format!("{prefix}{stored}");
    if own.contains(outer.as_str()) { outer } else { stored.to_string() }
}

/// Buffers that old versions stored, and what transformers ignores by name.
fn harmless(name: &str) -> bool {
    let buffers =
        [".rotary_emb.inv_freq", ".rotary_emb.cos_cached", ".rotary_emb.sin_cached", ".masked_bias"];
    let position_ids = name == "position_ids" || name.ends_with(".position_ids");
    name == T5_LEFTOVER || position_ids || buffers.iter().any(|b| name.ends_with(b) || name == &b[1..])
}

fn misfit(
    architecture: &Architecture,
    weights: &Weights,
    mut problems: Vec<String>,
    unknown: &[&str],
    odd: Option<Dtype>,
) -> Error {
    let headless = problems.len() == 1 && problems[0].starts_with(HEAD) && unknown.is_empty();
    let encoder_alone = architecture.family.is_t5() && !weights.names().any(|n| n.contains("decoder."));
    let found = match encoder_alone {
        true => Some((
            "an encoder alone (T5EncoderModel): there is no decoder".to_string(),
            "use the whole encoder-decoder model".to_string(),
        )),
        false => diagnosis::of_tensors(unknown, odd),
    };
    problems.extend(unknown.iter().map(|n| format!("{n} is unknown")));
    let shown = problems.iter().take(8).cloned().collect::<Vec<_>>().join("; ");
    let more = if problems.len() > 8 { format!("; and {} more", problems.len() - 8) } else { String::new() };
    match found {
        Some((what, remedy)) if problems.is_empty() => Error::model(what).remedy(remedy),
        Some((what, remedy)) => Error::model(format!("{what}: {shown}{more}")).remedy(remedy),
        None => Error::model(format!("the weights do not fit config.json: {shown}{more}")).remedy(match headless {
            true => "if the head is the embedding table, set tie_word_embeddings to true in config.json",
            false => {
                "check that config.json and the safetensors belong together and that the model type is supported"
            }
        }),
    }
    .at(&weights.place)
}
