//! Which directions are protected: cut from spectra when they are used, by the settings of the run.

use super::{Knowledge, Spectrum};
use crate::backend::{Backend, DType, OrthonormalizeRows};
use crate::error::{Error, Result};
use crate::gems::settings::{Criterion, NullSide, NullSpaceSettings};
use crate::layers::Site;
use crate::random::{self, Purpose};
use std::borrow::Cow;

/// How many directions of a spectrum, leading ones first, a rule protects; at least `room` of its dimensions are left.
///
/// `Energy`: the fewest whose eigenvalues sum up to `value` of the trace (GPM, Saha et al. 2021). `Ratio`: those above
/// `value` times the largest. `Budget`: all but `value`. `Absolute`: those of at least `value`; when no
/// eigenvalue is below, all but the `max(1, n / 20)` smallest (the published rule).
///
/// It may be more than the spectrum keeps, each of whose other directions counts for the mean of them.
pub fn protected(spectrum: &Spectrum, criterion: Criterion, value: f64, room: usize) -> usize {
    let (values, rest, n, k) = (&spectrum.values, spectrum.rest, spectrum.dim, spectrum.kept());
    let above = |is: &dyn Fn(f64) -> bool| match k < n && is(rest) {
        true => n,
        false => values.iter().filter(|v| is(**v)).count(),
    };
    let count = match criterion {
        Criterion::Energy => {
            let wanted = value * spectrum.trace();
            let (mut sum, mut count) = (0.0, 0);
            while count < n && sum < wanted {
                sum += values.get(count).copied().unwrap_or(rest);
                // Beyond a spectrum that ends with nothing there is nothing to protect.
                if count >= k && rest <= 0.0 {
                    break;
                }
                count += 1;
            }
            count
        }
        Criterion::Ratio => above(&|v| v > value * values.first().copied().unwrap_or(0.0)),
        Criterion::Budget => n.saturating_sub(value.max(0.0) as usize),
        Criterion::Absolute => match above(&|v| v >= value) {
            all if all == n => n - (n / 20).max(1).min(n),
            above => above,
        },
    };
    count.min(n.saturating_sub(room))
}

/// The protected directions of one input (or output) that one or more layers share.
#[derive(Debug, Clone, PartialEq)]
pub struct Space<'a> {
    /// What it was cut from.
    pub spectrum: &'a Spectrum,
    /// Protected directions, `[k x n]` orthonormal rows.
    pub directions: Cow<'a, [f32]>,
    /// How many the rule asks for: more than k where the spectrum does not keep so many.
    pub wanted: usize,
}

impl<'a> Space<'a> {
    /// The leading directions of a spectrum.
    pub fn cut(spectrum: &'a Spectrum, (criterion, value): (Criterion, f64), room: usize) -> Self {
        let wanted = protected(spectrum, criterion, value, room);
        let k = wanted.min(spectrum.kept());
        Self { spectrum, directions: Cow::Borrowed(&spectrum.directions[..k * spectrum.dim]), wanted }
    }
    /// n.
    pub fn dim(&self) -> usize {
        self.spectrum.dim
    }
    /// Number of protected directions.
    pub fn kept(&self) -> usize {
        self.directions.len() / self.dim().max(1)
    }
    /// Share of the trace that so many leading directions hold.
    pub fn energy(&self) -> f64 {
        self.spectrum.energy(self.kept())
    }
    /// As many random orthonormal directions instead: the control.
    pub fn randomise(&mut self, backend: &dyn Backend, seed: u64, index: u64) -> Result<()> {
        let (k, n) = (self.kept(), self.dim());
        let values = random::normal(seed, Purpose::Init, 50, index, k * n);
        let mut a = backend.tensor(&values, k, n, DType::F32)?;
        backend.run(OrthonormalizeRows { matrices: vec![a.mat_mut()] })?;
        self.directions = Cow::Owned(backend.download(a.mat())?);
        Ok(())
    }
}

/// Everything that is protected under a run's settings.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Protection<'a> {
    /// The spaces.
    pub spaces: Vec<Space<'a>>,
    /// The space of every site; `None`: nothing of it is protected.
    pub of_site: Vec<Option<usize>>,
    /// The space of final hidden states that item rows keep off.
    pub item_rows: Option<Space<'a>>,
}

impl<'a> Protection<'a> {
    /// Cuts the spaces of the adapted layers; `rooms` says how many directions each adapted site must be left
    /// (`None`: it is not adapted). `seed` is that of the random control.
    ///
    /// # Errors
    /// Knowledge of another model, or without the side that is to be protected.
    pub fn of(
        knowledge: &'a Knowledge,
        settings: &NullSpaceSettings,
        sites: &[Site],
        rooms: &[Option<usize>],
        (backend, seed): (&dyn Backend, u64),
    ) -> Result<Self> {
        knowledge.fits(sites)?;
        let rule = (settings.criterion, settings.value);
        let mut this = Self { of_site: vec![None; sites.len()], ..Self::default() };
        let mut numbers: Vec<(usize, &Spectrum, usize)> = Vec::new();
        for (site, room) in rooms.iter().enumerate().filter_map(|(i, room)| Some((i, (*room)?))) {
            let found = match settings.side {
                NullSide::None | NullSide::Metric => None,
                NullSide::Input => {
                    knowledge.input_of_site.get(site).copied().flatten().zip(knowledge.input(site))
                }
                NullSide::Output if knowledge.outputs.is_empty() => {
                    return Err(Error::usage("this knowledge basis holds no second moments of outputs")
                        .remedy("make it again with `gems-engine basis --set null_space.side=output`"));
                }
                NullSide::Output => knowledge.output(site).map(|s| (site, s)),
            };
            let Some((key, spectrum)) = found else { continue };
            let known = numbers.iter().position(|(k, ..)| *k == key);
            let number = known.unwrap_or_else(|| {
                numbers.push((key, spectrum, 0));
                numbers.len() - 1
            });
            numbers[number].2 = numbers[number].2.max(room);
            this.of_site[site] = Some(number);
        }
        for (i, (_, spectrum, room)) in numbers.into_iter().enumerate() {
            let mut space = Space::cut(spectrum, rule, room);
            if settings.random {
                space.randomise(backend, seed, i as u64)?;
            }
            this.spaces.push(space);
        }
        let of_rows = knowledge.hidden.as_ref().filter(|_| settings.item_rows > 0.0);
        this.item_rows = of_rows.map(|s| Space::cut(s, (Criterion::Energy, settings.item_rows), 1));
        Ok(this)
    }

    /// The space that protects a site.
    pub fn space(&self, site: usize) -> Option<&Space<'a>> {
        self.of_site.get(site).copied().flatten().map(|i| &self.spaces[i])
    }
}
