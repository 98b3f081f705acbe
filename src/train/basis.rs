//! The space of general knowledge, learned from general text streamed through the base model.

use crate::backend::{Backend, Gather, Mat};
use crate::error::{Error, Result};
use crate::gems::{KnowledgeBasis, MethodSettings, NullSide, NullSpaceSettings, SecondMoment, Space};
use crate::model::{Model, Observer, general_pass, passes};
use std::collections::BTreeMap;
use std::sync::Arc;

struct Moments<'a> {
    backend: Arc<dyn Backend>,
    side: NullSide,
    /// Space of every site, and whether the site is the first of its space (the others see the same input).
    of_site: &'a [Option<(usize, bool)>],
    sums: Vec<SecondMoment>,
    /// Rows to look at, of a decoder-only pass: the first position of a text sees nothing and is an outlier in
    /// most models (an attention sink), which would take the first direction for itself.
    rows: Option<crate::backend::Indices>,
}

impl Moments<'_> {
    fn add(&mut self, space: usize, x: Mat) -> Result<()> {
        match &self.rows {
            Some(rows) if !rows.is_empty() => {
                let mut seen = self.backend.alloc(rows.len(), x.cols, x.dtype)?;
                self.backend.run(Gather { from: x, rows, scale: 1.0, to: seen.mat_mut() })?;
                self.sums[space].add(seen.mat())
            }
            Some(_) => Ok(()),
            None => self.sums[space].add(x),
        }
    }
}

impl Observer for Moments<'_> {
    fn linear(&mut self, site: usize, x: Mat, y: Mat) -> Result<()> {
        match self.of_site[site] {
            Some((space, true)) => self.add(space, if self.side == NullSide::Input { x } else { y }),
            _ => Ok(()),
        }
    }
}

/// Streams `chunks` (token ids of general text) through the base model and returns the spaces that its adapted
/// layers must leave alone. Room for the subspaces of `settings` is always kept.
///
/// # Errors
/// No text, or a device that fails. `progress` is told (tokens done, tokens in all).
pub fn knowledge_basis(
    model: &Model,
    tasks: usize,
    settings: &MethodSettings,
    chunks: &[Vec<u32>],
    seed: u64,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<KnowledgeBasis> {
    let (null, sites) = (&settings.null_space, &model.layout.sites);
    let adapted = settings.adapted(sites)?;
    let (of_site, firsts) = spaces_of(model, null.side, &adapted);
    let dim =
        |site: usize| if null.side == NullSide::Input { sites[site].inputs } else { sites[site].outputs };
    let sums =
        firsts.iter().map(|s| SecondMoment::new(&model.backend, dim(*s))).collect::<Result<Vec<_>>>()?;
    let mut hidden = SecondMoment::new(&model.backend, model.architecture.hidden)?;
    let (backend, side) = (Arc::clone(&model.backend), null.side);
    let mut moments = Moments { backend, side, of_site: &of_site, sums, rows: None };
    let (total, mut done) = (chunks.iter().map(Vec::len).sum::<usize>(), 0);
    if total == 0 {
        return Err(Error::data("there is no general text to learn the knowledge space from")
            .remedy("add general.txt to the data directory, or set null_space.side = \"none\" and null_space.item_rows = 0"));
    }
    for group in passes(chunks) {
        let pass = general_pass(model, group);
        if pass.encoder.is_none() {
            let seen: Vec<u32> =
                (0..pass.decoder.rows() as u32).filter(|i| pass.decoder.positions[*i as usize] > 0).collect();
            moments.rows = Some(model.backend.indices(&seen)?);
        }
        let states = model.observe(&pass, &mut moments)?;
        hidden.add(states.mat())?;
        done += group.iter().map(Vec::len).sum::<usize>();
        progress(done, total);
    }
    let mut spaces = Vec::new();
    for (i, sum) in moments.sums.iter().enumerate() {
        let of = (0..sites.len()).filter(|s| of_site[*s].is_some_and(|(space, _)| space == i));
        let needs = of.map(|s| settings.ranks(&sites[s], tasks).iter().sum::<usize>()).max().unwrap_or(0);
        let site = firsts[i];
        let rule = (null.criterion, null.value);
        let mut space = Space::new(&sites[site].name, &sum.mean()?, dim(site), rule, needs)?;
        if null.random {
            space.randomise(&*model.backend, seed, i as u64)?;
        }
        spaces.push(space);
    }
    let final_hidden = match null.item_rows > 0.0 {
        true => {
            let rule = (crate::gems::Criterion::Energy, null.item_rows);
            Some(Space::new("final", &hidden.mean()?, model.architecture.hidden, rule, 1)?)
        }
        false => None,
    };
    Ok(KnowledgeBasis {
        fingerprint: model.fingerprint.clone(),
        side: null.side,
        rule: rule_text(null),
        of_site: of_site.iter().map(|s| s.map(|(space, _)| space)).collect(),
        spaces,
        final_hidden,
        tokens: total,
    })
}

/// A basis that protects as much as any basis for these settings can (its directions are zeros): for the size of
/// one that is not learned yet.
pub fn largest_basis(model: &Model, tasks: usize, settings: &MethodSettings) -> Result<KnowledgeBasis> {
    let (null, sites) = (&settings.null_space, &model.layout.sites);
    let (of_site, firsts) = spaces_of(model, null.side, &settings.adapted(sites)?);
    let space = |name: &str, dim: usize, room: usize| {
        let directions = vec![0.0; dim.saturating_sub(room) * dim];
        Space { name: name.to_string(), dim, directions, spectrum: Vec::new(), energy: 0.0 }
    };
    let of_first = |first: &usize| {
        let site = &sites[*first];
        let dim = if null.side == NullSide::Input { site.inputs } else { site.outputs };
        space(&site.name, dim, settings.ranks(site, tasks).iter().sum())
    };
    let hidden = model.architecture.hidden;
    Ok(KnowledgeBasis {
        fingerprint: model.fingerprint.clone(),
        side: null.side,
        rule: rule_text(null),
        of_site: of_site.iter().map(|s| s.map(|(space, _)| space)).collect(),
        spaces: firsts.iter().map(of_first).collect(),
        final_hidden: (null.item_rows > 0.0).then(|| space("final", hidden, 1)),
        tokens: 0,
    })
}

/// Every adapted site's space, and the first site of every space.
fn spaces_of(model: &Model, side: NullSide, adapted: &[bool]) -> (Vec<Option<(usize, bool)>>, Vec<usize>) {
    let mut numbers: BTreeMap<usize, usize> = BTreeMap::new();
    let mut firsts = Vec::new();
    let of_site = model
        .layout
        .sites
        .iter()
        .enumerate()
        .map(|(i, site)| {
            let key = match side {
                NullSide::None => return None,
                NullSide::Input => site.input_group,
                NullSide::Output => i,
            };
            if !adapted[i] {
                return None;
            }
            let known = numbers.get(&key).copied();
            let space = known.unwrap_or(firsts.len());
            if known.is_none() {
                numbers.insert(key, space);
                firsts.push(i);
            }
            Some((space, known.is_none()))
        })
        .collect();
    (of_site, firsts)
}

/// The rule in words, kept in the basis file.
pub fn rule_text(null: &NullSpaceSettings) -> String {
    let criterion = serde_json::to_value(null.criterion).ok().and_then(|v| v.as_str().map(String::from));
    let random = if null.random { ", random directions" } else { "" };
    format!("{} {}{random}, item rows {}", criterion.unwrap_or_default(), null.value, null.item_rows)
}

/// Whether the settings need a basis at all.
pub fn needs_basis(null: &NullSpaceSettings, trains_rows: bool) -> bool {
    null.side != NullSide::None || (null.item_rows > 0.0 && trains_rows)
}
