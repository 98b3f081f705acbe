//! What a race found: rates chosen on validation records, methods at equal quality, interference, and tests of all that.

use super::curve::{Beyond, Point, beyond, log_kl_at, log_ratio_or_bound, mean_log_ratio};
use super::field::{Field, Table};
use super::methods::{Method, PLAIN};
use crate::eval::significance::{holm, quantile, randomisation};
use serde::Serialize;

/// Tables that are drawn for intervals and for tests of divergence.
const DRAWS: usize = 4000;
/// Sign patterns of a test over requests.
const PATTERNS: usize = 10_000;
/// Share of drawn values in an interval.
const CONFIDENCE: f64 = 0.95;
/// No interval where more than this share of draws has no value.
const MISSING: f64 = 0.05;
/// The largest corrected p-value of a difference that is called one.
pub const SIGNIFICANT: f64 = 0.05;
/// Fewer seeds say nothing of the luck of training.
pub const ENOUGH_SEEDS: usize = 3;

/// A value, and the interval of the drawn ones.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Estimate {
    /// As measured.
    pub value: f64,
    /// Percentile interval; none where too many draws have no value.
    pub interval: Option<(f64, f64)>,
}

/// A test and its p-value after Holm's correction for all tests of the race.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Test {
    /// Two-sided.
    pub p: f64,
    /// Corrected.
    pub holm: f64,
}

/// How many times lower a method's divergence is than another's, at the quality of the plain rate.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Equal {
    /// So many times.
    Times(Estimate, Test),
    /// One of the curves does not have this quality.
    Beyond {
        /// Whether it is the other method that does not.
        other: bool,
        /// On which side of that curve the quality lies.
        side: Beyond,
    },
}

/// A method against another one.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Versus {
    /// The other one.
    pub other: String,
    /// Divergence at the reference quality: how many times lower.
    pub equal: Equal,
    /// The same as geometric mean over all qualities that both reach.
    pub range: Option<Estimate>,
    /// Seeds of which each alone has a value of the same sign.
    pub seeds_agree: usize,
}

/// A method at its chosen learning rate.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Finding {
    /// The method.
    pub method: String,
    /// Its entry in the field.
    pub entry: usize,
    /// The learning rate that was chosen.
    pub lr: f64,
    /// Whether that is the last or the first of several rates, so that the best may lie beyond.
    pub at_edge: bool,
    /// The ranking metric by task.
    pub tasks: Vec<Estimate>,
    /// Its mean over tasks.
    pub quality: Estimate,
    /// Divergence from the base model.
    pub kl: Estimate,
    /// Quality minus that of plain, both at their chosen rates.
    pub gain: Option<(Estimate, Test)>,
    /// Against plain, then against its controls, as far as they race.
    pub against: Vec<Versus>,
    /// Controls that do not race or have no result.
    pub missing: Vec<String>,
}

/// A task learned with the others, minus the same task learned alone.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Together {
    /// The method that learns all tasks.
    pub method: String,
    /// Its learning rate: the best for this task on the validation records, or that of the task alone.
    pub lr: f64,
    /// The difference of the ranking metric.
    pub difference: Estimate,
    /// Its test.
    pub test: Test,
}

/// What a task loses to the others.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Interference {
    /// The task.
    pub task: String,
    /// Its learning rate alone.
    pub lr: f64,
    /// The ranking metric alone.
    pub alone: Estimate,
    /// Plain at the same rate.
    pub same_rate: Option<Together>,
    /// Every method at the best of its rates.
    pub together: Vec<Together>,
}

/// Everything.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Findings {
    /// Plain first.
    pub methods: Vec<Finding>,
    /// Task by task; empty where none was learned alone.
    pub interference: Vec<Interference>,
    /// (quality, KL) of every entry, with intervals.
    pub points: Vec<Option<(Estimate, Estimate)>>,
    /// The ranking metric by task of every entry, with intervals.
    pub tasks: Vec<Option<Vec<Estimate>>>,
    /// Tests in Holm's family.
    pub tests: usize,
}

/// The smallest learning rate whose validation value is at least `1 - within` of the best of `entries`.
pub fn choose(
    field: &Field,
    entries: &[usize],
    valid: impl Fn(usize) -> Option<f64>,
    within: f64,
) -> Option<usize> {
    let whole = entries.iter().copied().filter(|e| field.entries[*e].is_whole());
    let scored: Vec<(usize, f64)> = whole.filter_map(|e| Some((e, valid(e)?))).collect();
    let best = scored.iter().map(|(_, v)| *v).fold(f64::NEG_INFINITY, f64::max);
    scored.into_iter().find(|(_, v)| *v >= (1.0 - within) * best).map(|(e, _)| e)
}

struct Judge<'a> {
    field: &'a Field,
    measured: Table,
    drawn: Vec<Table>,
    by_seed: Vec<Table>,
    within: f64,
}

/// Judges a race. `within`: the share of the best validation value that a smaller learning rate may lack.
/// None where plain has no learning rate with all seeds.
pub fn findings(field: &Field, methods: &[Method], within: f64) -> Option<Findings> {
    let judge = Judge {
        field,
        measured: field.measured(),
        drawn: field.resampled(DRAWS, 0),
        by_seed: (0..field.seeds.len()).map(|s| field.of_seed(s)).collect(),
        within,
    };
    let plain = judge.chosen(PLAIN)?;
    let first = methods.iter().filter(|m| m.name == PLAIN);
    let order = first.chain(methods.iter().filter(|m| m.name != PLAIN));
    let methods: Vec<Finding> = order.filter_map(|m| judge.method(m, plain)).collect();
    let points = (0..field.entries.len())
        .map(|e| {
            Some((
                judge.estimate(&|t| Some(t.point(e)?.quality))?,
                judge.estimate(&|t| Some(t.point(e)?.kl))?,
            ))
        })
        .collect();
    let tasks = (0..field.entries.len()).map(|e| judge.by_task(e)).collect();
    let mut found = Findings { interference: judge.interference(&methods), methods, points, tasks, tests: 0 };
    found.correct();
    Some(found)
}

impl Judge<'_> {
    fn quality_on_valid(&self, entry: usize) -> Option<f64> {
        let each: Option<Vec<f64>> =
            self.field.tasks.iter().map(|t| self.field.entries[entry].valid(t)).collect();
        each.map(|each| each.iter().sum::<f64>() / each.len().max(1) as f64)
    }

    fn chosen(&self, method: &str) -> Option<usize> {
        let places = self.field.places(method, None);
        choose(self.field, &places, |e| self.quality_on_valid(e), self.within)
    }

    fn estimate(&self, of: &(dyn Fn(&Table) -> Option<f64> + Sync)) -> Option<Estimate> {
        of(&self.measured).map(|value| self.around(value, of))
    }

    /// A value and the interval of what `of` makes of the draws.
    fn around(&self, value: f64, of: &(dyn Fn(&Table) -> Option<f64> + Sync)) -> Estimate {
        let (drawn, missing) = self.draws(of);
        let tail = (1.0 - CONFIDENCE) / 2.0;
        let whole = missing as f64 <= MISSING * self.drawn.len() as f64 && !drawn.is_empty();
        Estimate { value, interval: whole.then(|| (quantile(&drawn, tail), quantile(&drawn, 1.0 - tail))) }
    }

    fn by_task(&self, entry: usize) -> Option<Vec<Estimate>> {
        (0..self.field.tasks.len()).map(|task| self.estimate(&|t| t.task(entry, task))).collect()
    }

    /// Values of all draws in ascending order, and how many draws have none.
    fn draws(&self, of: &(dyn Fn(&Table) -> Option<f64> + Sync)) -> (Vec<f64>, usize) {
        let mut drawn: Vec<f64> = self.drawn.iter().filter_map(of).collect();
        drawn.sort_unstable_by(f64::total_cmp);
        let missing = self.drawn.len() - drawn.len();
        (drawn, missing)
    }

    fn method(&self, method: &Method, plain: usize) -> Option<Finding> {
        let name = method.name.as_str();
        let (entry, places) = (self.chosen(name)?, self.field.places(name, None));
        let others: Vec<&str> =
            std::iter::once(PLAIN).chain(method.controls.iter().map(String::as_str)).collect();
        let others = if name == PLAIN { Vec::new() } else { others };
        let (racing, missing): (Vec<&str>, Vec<&str>) =
            others.into_iter().partition(|other| self.chosen(other).is_some());
        let gain = |t: &Table| Some(t.point(entry)?.quality - t.point(plain)?.quality);
        Some(Finding {
            method: name.into(),
            entry,
            lr: self.field.entries[entry].lr,
            at_edge: places.len() > 1 && (places[0] == entry || places[places.len() - 1] == entry),
            tasks: self.by_task(entry)?,
            quality: self.estimate(&|t| Some(t.point(entry)?.quality))?,
            kl: self.estimate(&|t| Some(t.point(entry)?.kl))?,
            gain: if name == PLAIN {
                None
            } else {
                self.estimate(&gain).zip(self.requests(plain, entry, None))
            },
            against: racing.iter().map(|other| self.versus(name, other, plain)).collect(),
            missing: missing.into_iter().map(String::from).collect(),
        })
    }

    fn versus(&self, method: &str, other: &str, plain: usize) -> Versus {
        let (ours, theirs) = (self.field.places(method, None), self.field.places(other, None));
        let quality = |t: &Table| Some(t.point(plain)?.quality);
        let equal = |t: &Table| {
            let q = quality(t)?;
            Some(log_kl_at(&t.curve(&theirs), q)? - log_kl_at(&t.curve(&ours), q)?)
        };
        // What is told is a value; what it is held against may be a bound.
        let bound = |t: &Table| log_ratio_or_bound(&t.curve(&theirs), &t.curve(&ours), quality(t)?);
        let range = |t: &Table| mean_log_ratio(&t.curve(&theirs), &t.curve(&ours));
        let exp = |e: Estimate| Estimate {
            value: e.value.exp(),
            interval: e.interval.map(|(low, high)| (low.exp(), high.exp())),
        };
        let value = equal(&self.measured);
        let agrees = |t: &&Table| bound(t).zip(value).is_some_and(|(a, b)| a * b > 0.0);
        let equal = match value {
            Some(value) => Equal::Times(exp(self.around(value, &bound)), self.two_sided(&bound)),
            None => {
                let side = |places: &[usize]| {
                    let curve: Vec<Point> = self.measured.curve(places);
                    quality(&self.measured).and_then(|q| beyond(&curve, q))
                };
                match side(&ours) {
                    Some(side) => Equal::Beyond { other: false, side },
                    None => Equal::Beyond { other: true, side: side(&theirs).unwrap_or(Beyond::NotReached) },
                }
            }
        };
        let seeds_agree = self.by_seed.iter().filter(agrees).count();
        Versus { other: other.into(), equal, range: self.estimate(&range).map(exp), seeds_agree }
    }

    /// Twice the smaller share of draws on either side of 0; a draw without a value counts on both.
    fn two_sided(&self, of: &(dyn Fn(&Table) -> Option<f64> + Sync)) -> Test {
        let (drawn, missing) = self.draws(of);
        let below = drawn.iter().filter(|v| **v <= 0.0).count() + missing;
        let above = drawn.iter().filter(|v| **v >= 0.0).count() + missing;
        let p = 2.0 * (1 + below.min(above)) as f64 / (1 + self.drawn.len()) as f64;
        Test { p: p.min(1.0), holm: 1.0 }
    }

    /// Randomisation test over requests of the mean over tasks (or of one task) of an entry minus another: the
    /// difference of a request is its mean over seeds.
    fn requests(&self, first: usize, second: usize, task: Option<usize>) -> Option<Test> {
        let tasks: Vec<usize> = task.map_or((0..self.field.tasks.len()).collect(), |t| vec![t]);
        let mut all = Vec::new();
        for task in &tasks {
            let differences = self.field.differences(first, second, *task)?;
            // Every task counts as much, however many requests it has.
            let weight = 1.0 / differences.len().max(1) as f64;
            all.extend(differences.into_iter().map(|d| weight * d));
        }
        Some(Test { p: randomisation(&all, PATTERNS, 0), holm: 1.0 })
    }

    fn interference(&self, methods: &[Finding]) -> Vec<Interference> {
        let tasks = self.field.tasks.iter().enumerate();
        tasks.filter_map(|(number, task)| self.interference_of(number, task, methods)).collect()
    }

    fn interference_of(&self, number: usize, task: &str, methods: &[Finding]) -> Option<Interference> {
        let best =
            |places: &[usize]| choose(self.field, places, |e| self.field.entries[e].valid(task), self.within);
        let alone = best(&self.field.places(PLAIN, Some(task)))?;
        let together = |entry: usize| {
            let of = |t: &Table| Some(t.task(entry, number)? - t.task(alone, number)?);
            let found = &self.field.entries[entry];
            Some(Together {
                method: found.method.clone(),
                lr: found.lr,
                difference: self.estimate(&of)?,
                test: self.requests(alone, entry, Some(number))?,
            })
        };
        let places = |method: &str| self.field.places(method, None);
        let lr = self.field.entries[alone].lr;
        let same = places(PLAIN).into_iter().find(|e| self.field.entries[*e].lr == lr);
        Some(Interference {
            task: task.into(),
            lr,
            alone: self.estimate(&|t| t.task(alone, number))?,
            same_rate: same.and_then(together),
            together: methods.iter().filter_map(|m| together(best(&places(&m.method))?)).collect(),
        })
    }
}

impl Findings {
    fn tests_mut(&mut self) -> Vec<&mut Test> {
        let mut all = Vec::new();
        for finding in &mut self.methods {
            all.extend(finding.gain.iter_mut().map(|(_, test)| test));
            for versus in &mut finding.against {
                if let Equal::Times(_, test) = &mut versus.equal {
                    all.push(test);
                }
            }
        }
        for task in &mut self.interference {
            let pairs = task.same_rate.iter_mut().chain(&mut task.together);
            all.extend(pairs.map(|t| &mut t.test));
        }
        all
    }

    /// All tests are one family.
    fn correct(&mut self) {
        let mut tests = self.tests_mut();
        let p: Vec<f64> = tests.iter().map(|t| t.p).collect();
        tests.iter_mut().zip(holm(&p)).for_each(|(test, p)| test.holm = p);
        self.tests = p.len();
    }
}

impl Versus {
    /// Whether a lower divergence than the other's is more than luck, as far as `seeds` runs can say.
    pub fn is_better(&self, seeds: usize) -> bool {
        match self.equal {
            Equal::Times(times, test) => {
                times.value > 1.0
                    && test.holm < SIGNIFICANT
                    && self.seeds_agree == seeds
                    && seeds >= ENOUGH_SEEDS
            }
            Equal::Beyond { .. } => false,
        }
    }
}
