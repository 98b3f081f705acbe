//! Opening windows and renewing bases, of all layers of a model at once: launched for all of them, then waited for.

pub mod search;
pub mod window;

use super::pull::{LastInputs, Through};
use super::subspaces::Subspaces;
use crate::backend::{AdaptedLinear, Backend, DType, Dots, Mat, MatmulMany, OrthonormalizeRows, Tensor};
use crate::error::Result;
use crate::layers::Layers;
use rayon::prelude::*;
use search::{Found, deflate, find};
use window::Sketch;

/// Elements in copies of full gradients at a time (64 MB), or those of one layer: exact windows end in groups of layers.
const COPIES: usize = 16 << 20;

/// Layers whose moments are carried at a time: as many products as a GPU does in one launch.
const CARRIED: usize = 48;

/// Opens the windows of probe round `round` (from 0). Waits once at most.
pub(super) fn open_probe(be: &dyn Backend, layers: Vec<&mut Subspaces>, round: u64) -> Result<()> {
    let sketched = |s: &&mut Subspaces| s.window.as_ref().is_some_and(|w| w.sketch == Sketch::Rows);
    let (sketched, others): (Vec<_>, Vec<_>) = layers.into_iter().partition(sketched);
    open_columns(be, sketched)?;
    open_rows(be, others, |_| round)
}

/// Opens the windows before a refresh. Waits once.
pub(super) fn open_windows(be: &dyn Backend, layers: Vec<&mut Subspaces>) -> Result<()> {
    open_rows(be, layers, |s| 1000 + s.refreshes())
}

/// From sketches to windows along their orthonormal rows.
fn open_columns(be: &dyn Backend, mut layers: Vec<&mut Subspaces>) -> Result<()> {
    layers.iter_mut().try_for_each(|s| s.whiten())?;
    deflate(be, layers.iter_mut().flat_map(|s| s.protected_sketches()))?;
    let sketches = layers.iter_mut().flat_map(|s| &mut s.window).flat_map(|w| &mut w.sums);
    be.run(OrthonormalizeRows { matrices: sketches.map(Tensor::mat_mut).collect() })?;
    layers.into_iter().try_for_each(Subspaces::open_columns)
}

/// Windows of sketches (of full gradients, where a layer is exact). `round` numbers the Gaussian probes.
fn open_rows(
    be: &dyn Backend,
    mut layers: Vec<&mut Subspaces>,
    round: impl Fn(&Subspaces) -> u64 + Sync,
) -> Result<()> {
    layers.iter_mut().try_for_each(|s| s.whiten())?;
    let sizes = lengths(be, &layers.iter().flat_map(|s| s.starts()).collect::<Vec<_>>())?;
    let mut sizes = &sizes[..];
    // Random numbers of a few layers at a time, made by all threads.
    for some in layers.chunks_mut(rayon::current_num_threads()) {
        let gaussians: Vec<_> = some.par_iter().map(|s| s.gaussians(round(s))).collect();
        for (s, gaussians) in some.iter_mut().zip(gaussians) {
            let (own, rest) = sizes.split_at(s.starts().len());
            sizes = rest;
            s.open_rows(own, &gaussians)?;
        }
    }
    Ok(())
}

/// Frobenius norms. Waits, if there are any.
fn lengths(be: &dyn Backend, all: &[Mat]) -> Result<Vec<f32>> {
    let mut squares = be.alloc(1, all.len(), DType::F32)?;
    be.run(Dots { pairs: all.iter().map(|m| (*m, *m)).collect(), out: squares.mat_mut() })?;
    Ok(be.download(squares.mat())?.into_iter().map(f32::sqrt).collect())
}

/// Ends the windows: folds `B A` into the weights and renews the bases. What was found, by site; a layer whose window
/// saw no gradient stays as it is. `strength`: of the pull.
pub(super) fn renew<'a>(
    be: &dyn Backend,
    layers: impl Iterator<Item = (usize, &'a mut Subspaces)>,
    parameters: &mut dyn Layers,
    strength: f64,
) -> Result<Vec<(usize, Found)>> {
    let (mut found, mut left, mut searches, mut copies) = (Vec::new(), Vec::new(), Vec::new(), 0);
    let mut layers: Vec<_> = layers.collect();
    take_up_remainders(be, &mut layers, parameters, strength)?;
    let (mut layers, mut inputs) = (layers.into_iter().peekable(), LastInputs::default());
    while let Some((site, s)) = layers.next() {
        if let Some(search) = s.fold(parameters.linear(site), (strength, &mut inputs))? {
            copies += search.copies();
            searches.push(search);
            left.push((site, s));
        }
        if searches.is_empty() || copies < COPIES && layers.peek().is_some() {
            continue;
        }
        inputs = LastInputs::default();
        let bases = find(be, std::mem::take(&mut searches))?;
        for (some, bases) in left.chunks_mut(CARRIED).zip(bases.chunks(CARRIED)) {
            carry(be, some, parameters.linears(), bases)?;
        }
        for ((site, s), (a, what)) in left.drain(..).zip(bases) {
            s.adopt(parameters.linear(site), &a)?;
            found.push((site, what));
        }
        copies = 0;
    }
    Ok(found)
}

/// Lets the remainders beside weights in codes take up what was learned, and pulls them. Waits twice at most.
fn take_up_remainders(
    be: &dyn Backend,
    layers: &mut [(usize, &mut Subspaces)],
    parameters: &mut dyn Layers,
    strength: f64,
) -> Result<()> {
    let mut begun = Vec::new();
    for (site, s) in layers {
        if let Some(taking) = s.begin_remainder(parameters.linear(*site))? {
            begun.push((*site, s, taking));
        }
    }
    let grams =
        be.download_all(&begun.iter().flat_map(|(_, _, taking)| taking.grams()).collect::<Vec<_>>())?;
    let each = begun.iter().map(|(_, _, taking)| taking).zip(grams.chunks(2)).collect::<Vec<_>>();
    let kept = each.into_par_iter().map(|(taking, grams)| taking.solve(grams)).collect::<Result<Vec<_>>>()?;
    let mut pulled = Vec::new();
    for ((site, s, _), kept) in begun.into_iter().zip(&kept) {
        if let Some(seen) = s.finish_remainder(parameters.linear(site), kept)? {
            pulled.push((site, s, seen));
        }
    }
    let seen = be.download_all(
        &pulled.iter().flat_map(|(_, _, seen)| seen.each_ref().map(Tensor::mat)).collect::<Vec<_>>(),
    )?;
    let through =
        seen.par_chunks(2).zip(&pulled).map(|(values, (_, _, seen))| Through::of(values, seen[0].rows()));
    let through = through.collect::<Result<Vec<_>>>()?;
    for ((site, s, _), through) in pulled.into_iter().zip(&through) {
        s.pull_remainder(parameters.linear(site), through, strength)?;
    }
    Ok(())
}

/// Carries first moments to new bases.
fn carry(
    be: &dyn Backend,
    layers: &mut [(usize, &mut Subspaces)],
    linears: &[AdaptedLinear],
    bases: &[(Tensor, Found)],
) -> Result<()> {
    let mut moved = Vec::new();
    for ((site, s), (new, _)) in layers.iter_mut().zip(bases) {
        if let Some(from) = s.carried(&linears[*site])? {
            moved.push((s, from, be.alloc(new.rows(), new.rows(), DType::F32)?, new));
        }
    }
    let turns = moved.iter_mut().map(|(_, from, turn, new)| (turn.mat_mut(), from.bases.mat(), new.mat()));
    be.run(MatmulMany { beta: 0.0, alpha: 1.0, transpose_b: true, products: turns.collect() })?;
    for subspace in 0.. {
        let products = moved.iter_mut().filter_map(|(s, from, turn, _)| s.carry(subspace, from, turn));
        let products: Vec<_> = products.collect();
        if products.is_empty() {
            break;
        }
        be.run(MatmulMany { beta: 0.0, alpha: 1.0, transpose_b: false, products })?;
    }
    Ok(())
}
