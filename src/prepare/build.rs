//! From a user's requests to the rows of the data directory.

use super::ids::Ids;
use super::kcore::Alive;
use super::leaks::{Held, Leaks};
use super::negatives::Sampler;
use super::requests::{Part, Past, Request};
use super::settings::Settings;
use super::sheet::{Names, Row, Sheet};
use super::spool::Event;
use crate::random::{Purpose, stream};
use rand::RngExt;
use serde::Serialize;
use std::borrow::Cow;
use std::collections::BTreeMap;

/// What is needed to turn any user's events into rows.
pub(super) struct Builder<'a> {
    pub settings: &'a Settings,
    pub names: &'a Names<'a>,
    pub users: &'a Ids,
    pub alive: &'a Alive,
    /// First times of validation and test.
    pub bounds: (i64, i64),
    /// Tasks whose requests have queries.
    pub searches: &'a [bool],
    pub sampler: Option<&'a Sampler>,
}

/// Rows of training, validation and test, and what became of the rest.
pub(super) struct Built {
    pub sheets: [Sheet; 3],
    pub report: BuildReport,
}

/// Counts of rows.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct BuildReport {
    /// Rows by split and task.
    pub rows: BTreeMap<&'static str, BTreeMap<String, u64>>,
    /// Requests and targets left out, by reason.
    pub dropped: BTreeMap<&'static str, u64>,
    /// Test pairs as the split leaves them.
    pub leaks_before: Leaks,
    /// Test pairs as they are written.
    pub leaks: Leaks,
    /// History items of all rows.
    pub history_items: u64,
    /// Negatives of all rows.
    pub negatives: u64,
    /// Rows with fewer negatives than were asked for.
    pub short_of_negatives: u64,
}

impl BuildReport {
    /// Adds other counts.
    pub(super) fn add(&mut self, other: &BuildReport) {
        for (split, tasks) in &other.rows {
            for (task, n) in tasks {
                *self.rows.entry(split).or_default().entry(task.clone()).or_default() += n;
            }
        }
        for (reason, n) in &other.dropped {
            self.drop(reason, *n);
        }
        self.leaks_before.add(&other.leaks_before);
        self.leaks.add(&other.leaks);
        self.history_items += other.history_items;
        self.negatives += other.negatives;
        self.short_of_negatives += other.short_of_negatives;
    }
    fn drop(&mut self, reason: &'static str, n: u64) {
        if n > 0 {
            *self.dropped.entry(reason).or_default() += n;
        }
    }
    /// Rows of a split.
    pub fn of(&self, split: &str) -> u64 {
        self.rows.get(split).map_or(0, |tasks| tasks.values().sum())
    }
}

/// Names of the splits, in the order of [`Part`].
pub(super) const SPLITS: [&str; 3] = ["train", "valid", "test"];

/// A request with its history, on its way to a row.
struct Draft<'p, 'a> {
    request: &'p Request<'a>,
    number: u64,
    history: Vec<u32>,
    targets: Cow<'p, [u32]>,
}

impl<'a> Builder<'a> {
    pub fn new(
        settings: &'a Settings,
        (users, names): (&'a Ids, &'a Names<'a>),
        alive: &'a Alive,
        bounds: (i64, i64),
        searches: &'a [bool],
        sampler: Option<&'a Sampler>,
    ) -> Self {
        Self { settings, names, users, alive, bounds, searches, sampler }
    }

    /// The rows of all users of a part, on empty sheets.
    pub fn build(&self, all: &[Event], sheets: [Sheet; 3]) -> Built {
        let mut built = Built { sheets, report: BuildReport::default() };
        let mut counts = vec![[0u64; 3]; self.names.tasks.len()];
        for of_user in all.chunk_by(|a, b| a.head.user == b.head.user) {
            let user = of_user[0].head.user;
            if self.alive.users[user as usize] {
                self.user(user, of_user, &mut built, &mut counts);
            }
        }
        for (task, counts) in self.names.tasks.iter().zip(counts) {
            for (split, n) in SPLITS.iter().zip(counts).filter(|(_, n)| *n > 0) {
                *built.report.rows.entry(split).or_default().entry(task.clone()).or_default() += n;
            }
        }
        built
    }

    /// Targets of the training rows of all users of a part.
    pub fn train_targets(&self, all: &[Event]) -> Vec<u32> {
        let mut targets = Vec::new();
        for of_user in all.chunk_by(|a, b| a.head.user == b.head.user) {
            let user = of_user[0].head.user;
            if self.alive.users[user as usize] {
                let past = self.past(user, of_user);
                let drafts = self.drafts(user, &past, &mut BuildReport::default());
                let train = drafts.iter().filter(|d| d.request.split == Part::Train);
                train.for_each(|d| targets.extend_from_slice(&d.targets));
            }
        }
        targets
    }

    fn past<'e>(&self, user: u32, of_user: &[Event<'e>]) -> Past<'e> {
        let mut past = Past::new(of_user, self.alive);
        let drawn = || stream(self.settings.seed, Purpose::Data, u64::from(user), u64::MAX).random();
        past.split(self.settings.split, self.names.tasks.len(), self.bounds, drawn);
        past
    }

    fn user(&self, user: u32, of_user: &[Event], built: &mut Built, counts: &mut [[u64; 3]]) {
        let past = self.past(user, of_user);
        let drafts = self.drafts(user, &past, &mut built.report);
        let taken: Vec<u32> = past.taken.iter().map(|t| t.item).collect();
        for draft in &drafts {
            counts[draft.request.task as usize][draft.request.split as usize] += self.rows_of(draft);
            self.write(user, draft, &taken, built);
        }
    }

    /// Requests that become rows, without what is held out, and what training would have given away.
    fn drafts<'p, 'e>(&self, user: u32, past: &'p Past<'e>, report: &mut BuildReport) -> Vec<Draft<'p, 'e>> {
        let mut pairs = Vec::new();
        for request in past.requests.iter().filter(|r| r.split != Part::Train) {
            pairs.extend(request.targets.iter().map(|t| (*t, request.split)));
        }
        let mut held = Held::new(pairs);
        let mut drafts = self.candidates(user, past, report);
        measure(&mut held, &drafts, &mut report.leaks_before);
        if self.settings.exclude_pairs {
            drafts.retain_mut(|draft| self.exclude(draft, past, &held, report));
        }
        measure(&mut held, &drafts, &mut report.leaks);
        drafts
    }

    /// Requests that become rows, with the histories that the log gives them.
    fn candidates<'p, 'e>(
        &self,
        user: u32,
        past: &'p Past<'e>,
        report: &mut BuildReport,
    ) -> Vec<Draft<'p, 'e>> {
        let settings = self.settings;
        let last = past.requests.iter().rposition(|r| r.split == Part::Train);
        let mut drafts = Vec::with_capacity(past.requests.len());
        for (number, request) in past.requests.iter().enumerate() {
            let rule = (settings.history, self.searches[request.task as usize]);
            let history = past.history(request, rule, settings.max_history, |_| true);
            if !self.answerable(request, history.len()) {
                report.drop("history too short", 1);
                continue;
            }
            if settings.train_sample < 1.0 && request.split == Part::Train && Some(number) != last {
                let mut stream = stream(settings.seed, Purpose::Data, u64::from(user), number as u64);
                if stream.random::<f64>() >= settings.train_sample {
                    report.drop("not in the training sample", 1);
                    continue;
                }
            }
            let targets = Cow::Borrowed(&request.targets[..]);
            drafts.push(Draft { request, number: number as u64, history, targets });
        }
        drafts
    }

    /// A request with a query can be asked without a history, unless more than one item is demanded.
    fn answerable(&self, request: &Request, history: usize) -> bool {
        let least = match (request.query.is_empty(), self.settings.min_history) {
            (true, n) => n.max(1),
            (false, 0 | 1) => 0,
            (false, n) => n,
        };
        history >= least
    }

    /// Takes out of a row what is held out; `false`: nothing is left of it.
    fn exclude(&self, draft: &mut Draft, past: &Past, held: &Held, report: &mut BuildReport) -> bool {
        let (request, part) = (draft.request, draft.request.split);
        let later = |t: &u32| held.part(*t) > part;
        let held_out = draft.targets.iter().filter(|t| later(t)).count();
        if held_out > 0 {
            draft.targets.to_mut().retain(|t| !later(t));
            report.drop("target held out for a later split", held_out as u64);
        }
        if draft.targets.is_empty() {
            return false;
        }
        let own = &draft.targets;
        let allowed = |item: u32| match part {
            Part::Train => held.part(item) == Part::Train,
            Part::Valid => held.part(item) != Part::Test && !own.contains(&item),
            Part::Test => !own.contains(&item),
        };
        if !draft.history.iter().all(|i| allowed(*i)) {
            let rule = (self.settings.history, self.searches[request.task as usize]);
            let taken_out = draft.history.iter().filter(|i| !allowed(**i)).count();
            report.drop("history item held out", taken_out as u64);
            draft.history = past.history(request, rule, self.settings.max_history, allowed);
        }
        let left = self.answerable(request, draft.history.len());
        report.drop("history too short without held-out items", u64::from(!left));
        left
    }

    fn rows_of(&self, draft: &Draft) -> u64 {
        match self.settings.expand_targets && draft.request.split != Part::Test {
            true => draft.targets.len() as u64,
            false => 1,
        }
    }

    fn write(&self, user: u32, draft: &Draft, taken: &[u32], built: &mut Built) {
        let request = draft.request;
        let (mut negatives, mut asked) = (Vec::new(), 0);
        if let (Some(sampler), true) = (self.sampler, request.split != Part::Train) {
            let wanted = self.settings.negatives.of(&self.names.tasks[request.task as usize]);
            negatives = sampler.draw(wanted, request, taken, (user, draft.number));
            asked = wanted.iter().map(|(_, n)| n).sum();
        }
        let sheet = &mut built.sheets[request.split as usize];
        let one = draft.targets.len().max(1) / self.rows_of(draft).max(1) as usize;
        for targets in draft.targets.chunks(one.max(1)) {
            built.report.history_items += draft.history.len() as u64;
            built.report.negatives += negatives.len() as u64;
            built.report.short_of_negatives += u64::from(negatives.len() < asked);
            sheet.push(
                &Row {
                    task: &self.names.tasks[request.task as usize],
                    user: Some(self.users.name(user)),
                    history: &draft.history,
                    query: request.query,
                    targets,
                    negatives: &negatives,
                    time: Some(request.time),
                    ..Row::default()
                },
                self.names,
            );
        }
    }
}

fn measure(held: &mut Held, drafts: &[Draft], leaks: &mut Leaks) {
    held.reset();
    for draft in drafts.iter().filter(|d| d.request.split == Part::Train) {
        held.train(draft.request.task, &draft.history, &draft.targets);
    }
    for draft in drafts.iter().filter(|d| d.request.split == Part::Test) {
        held.test(draft.request.task, &draft.history, &draft.targets, leaks);
    }
}
