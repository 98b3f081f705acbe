//! A world to test in: users, items and queries whose rules, and so whose best possible metrics, are known.
//!
//! Items stand in a ring of topics. Every item has three *successors* in the next topic for recommendation; for
//! search it has the same ones, or, for a share of the items (the *conflict*), three in the topic after that: then
//! the two tasks want different things after the same history. A request's item is one of the successors of the
//! user's last item with chances [`CHANCES`], or, with the chance of *noise*, any item. A query is the word of the
//! wanted item's kind; successors of an item are of different kinds, so a search without noise has one answer.
//! The last request of every user and task is for the test, the one before for validation.

use super::ids::Ids;
use super::intake::Watch;
use super::settings::Format;
use super::sheet::{Names, Output, Row, Sheet, batch};
use super::staging::Staging;
use super::target::Target;
use crate::error::{Error, Result};
use crate::eval::metrics::{self, Judged, Place};
use crate::files::write_atomically;
use crate::random::{Purpose, stream};
use arrow_array::{Int64Array, StringArray};
use rand::RngExt;
use rayon::prelude::*;
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;

/// Chances of an item's three successors.
pub const CHANCES: [f64; 3] = [0.7, 0.2, 0.1];
/// Kinds of items, each with a word of its own.
const KINDS: usize = 16;
const CUTOFFS: [usize; 4] = [1, 5, 10, 20];

/// A world.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct World {
    /// Users.
    pub users: u64,
    /// Items.
    pub items: usize,
    /// Events of every user.
    pub length: usize,
    /// Share of the items after which the two tasks want different things.
    pub conflict: f64,
    /// Chance of an event that follows no rule.
    pub noise: f64,
    /// Share of the test pairs that are put into the training rows of the other task, to test leak checks with.
    pub leak: f64,
    /// Of every random decision.
    pub seed: u64,
    /// The files that are written.
    pub format: Format,
    /// Write `events` (user, timestamp, item, task, query) instead of splits.
    pub events: bool,
}

/// The best possible metrics of a world's test, and what was written.
#[derive(Debug, Clone, Default, Serialize)]
pub struct WorldCard {
    /// Rows, by split (or `events`).
    pub rows: BTreeMap<&'static str, u64>,
    /// Test pairs.
    pub test_pairs: u64,
    /// Test pairs that were put into training on purpose.
    pub leaked: u64,
    /// Metrics by task of a ranking by the true chances, items of equal chance in random order.
    pub optimum: BTreeMap<&'static str, BTreeMap<String, f64>>,
}

const SPLITS: [&str; 3] = ["train", "valid", "test"];
const TASKS: [&str; 2] = ["rec", "search"];
const WORDS: [&str; KINDS] = [
    "red", "blue", "green", "yellow", "black", "white", "brown", "grey", "round", "square", "long", "short",
    "soft", "hard", "warm", "cold",
];
/// Users made at a time.
const BLOCK: u64 = 2048;

impl World {
    fn validate(&self) -> Result<()> {
        let bad = |flag: &str, what: String, remedy: String| Err(Error::usage(what).at(flag).remedy(remedy));
        for (flag, share) in [("--conflict", self.conflict), ("--noise", self.noise), ("--leak", self.leak)] {
            if !(0.0..=1.0).contains(&share) {
                return bad(flag, format!("{share} is not a share"), "a number from 0 to 1".into());
            }
        }
        if !(1..=1 << 32).contains(&self.users) {
            return bad("--users", format!("{} users make no world", self.users), "1 to 4294967296".into());
        }
        if self.length < 6 {
            let what = format!("{} events leave no training rows", self.length);
            return bad(
                "--length",
                what,
                "6 or more: one to begin with, one to train on, two of each task held out".into(),
            );
        }
        let least = 3 * self.topics();
        if self.items < least || u32::try_from(self.items).is_err() {
            let what = format!("{} items do not make {} topics of three", self.items, self.topics());
            return bad("--items", what, format!("at least {least} for events of --length {}", self.length));
        }
        Ok(())
    }
    /// Events of every user where nobody asked: 12, or as many as `items` allow, but not below the least.
    pub fn usual_length(items: usize) -> usize {
        (items / 6).saturating_sub(1).clamp(6, 12)
    }
    /// Topics in the ring: a user who moves two on at a time does not come around.
    fn topics(&self) -> usize {
        2 * self.length + 2
    }
    /// The items of a topic.
    fn topic(&self, number: usize) -> std::ops::Range<usize> {
        let at = |t: usize| t * self.items / self.topics();
        let number = number % self.topics();
        at(number)..at(number + 1)
    }
    fn topic_of(&self, item: usize) -> usize {
        let near = item * self.topics() / self.items;
        (near..near + 2).find(|t| self.topic(*t).contains(&item)).unwrap_or(near)
    }
    fn kind(&self, item: usize) -> usize {
        (item - self.topic(self.topic_of(item)).start) % KINDS
    }
    /// The successors of an item for a task, the likeliest first.
    fn successors(&self, item: usize, search: bool) -> [usize; 3] {
        let mut random = stream(self.seed, Purpose::Data, 1 << 40, item as u64);
        let [rec, other] = [random.random::<u64>(), random.random()];
        let torn = random.random::<f64>() < self.conflict;
        let (ahead, drawn) = if search && torn { (2, other) } else { (1, rec) };
        let topic = self.topic(self.topic_of(item) + ahead);
        let first = topic.start + (drawn % (topic.len() as u64 - 2)) as usize;
        [first, first + 1, first + 2]
    }
    fn id(item: usize) -> String {
        format!("i{item}")
    }
    fn text(&self, item: usize) -> String {
        let (kind, topic) = (WORDS[self.kind(item)], self.topic_of(item));
        format!("{kind} {} {}", spell(topic, 2), spell(item, 3))
    }
}

/// A number as a word that can be spoken; different numbers, different words.
fn spell(number: usize, syllables: usize) -> String {
    const CONSONANTS: &[u8] = b"bdfgklmnprstvz";
    const VOWELS: &[u8] = b"aeiou";
    let (mut rest, mut word) = (number, String::new());
    for i in 0.. {
        if i >= syllables && rest == 0 {
            break;
        }
        word.push(CONSONANTS[rest % CONSONANTS.len()] as char);
        rest /= CONSONANTS.len();
        word.push(VOWELS[rest % VOWELS.len()] as char);
        rest /= VOWELS.len();
    }
    word
}

/// One event of a user.
#[derive(Debug, Clone, Copy)]
struct Step {
    item: usize,
    search: bool,
    time: i64,
    /// Where the best ranking has it: one of these positions, each as likely.
    best: (usize, usize),
}

impl World {
    /// All events of a user.
    fn walk(&self, user: u64) -> Vec<Step> {
        let mut random = stream(self.seed, Purpose::Data, 2 << 40, user);
        let mut time = 1_700_000_000 + random.random_range(0..30 * 86_400i64);
        let first = random.random_range(0..self.items);
        let mut steps = vec![Step { item: first, search: false, time, best: (0, self.items) }];
        // The last four are a validation and a test request of each task, in random order.
        let [valid, test] = [random.random::<bool>(), random.random()];
        while steps.len() < self.length {
            let search = match self.length - steps.len() {
                // Leave-one-out needs three requests of a task: two follow, and the first event is of the other.
                _ if steps.len() == 1 => true,
                4 => valid,
                3 => !valid,
                2 => test,
                1 => !test,
                _ => random.random(),
            };
            time += random.random_range(60..7200i64);
            let seen = |item: usize| steps.iter().any(|s| s.item == item);
            let successors = self.successors(steps[steps.len() - 1].item, search);
            let drawn = random.random::<f64>();
            let rank = if drawn < CHANCES[0] {
                0
            } else if drawn < CHANCES[0] + CHANCES[1] {
                1
            } else {
                2
            };
            let ruled = random.random::<f64>() >= self.noise && !seen(successors[rank]);
            let item = match ruled {
                true => successors[rank],
                false => loop {
                    let item = random.random_range(0..self.items);
                    if !seen(item) {
                        break item;
                    }
                },
            };
            let best = self.best(item, search, &successors, &steps);
            steps.push(Step { item, search, time, best });
        }
        steps
    }

    /// Where a ranking by the true chances has `item`: first the successors, then everything else that fits the
    /// query, then what the user already had.
    fn best(&self, item: usize, search: bool, successors: &[usize; 3], past: &[Step]) -> (usize, usize) {
        let fits = |other: usize| !search || self.kind(other) == self.kind(item);
        let new = |other: usize| past.iter().all(|s| s.item != other);
        let open: Vec<usize> = successors.iter().copied().filter(|s| fits(*s) && new(*s)).collect();
        if let Some(rank) = open.iter().position(|s| *s == item) {
            return (rank, rank + 1);
        }
        let all = if search { self.of_kind(self.kind(item)) } else { self.items };
        let had = past.iter().filter(|s| fits(s.item)).count();
        (open.len(), all - had)
    }

    fn of_kind(&self, kind: usize) -> usize {
        let of_topic = |t: usize| (self.topic(t).len() + KINDS - 1 - kind) / KINDS;
        (0..self.topics()).map(of_topic).sum()
    }
}

/// What a block of users comes to.
struct Block {
    sheets: Vec<Sheet>,
    rows: [u64; 3],
    pairs: u64,
    leaked: u64,
    /// Sums of metrics by task, and requests.
    sums: [BTreeMap<String, f64>; 2],
}

/// Makes a world's data directory, user by user.
///
/// # Errors
/// A world that cannot be; the file system; an interruption. Then there is no directory.
pub fn synth(world: &World, target: &Target, watch: &mut Watch) -> Result<Value> {
    world.validate()?;
    target.check_general()?;
    let staging = Staging::begin(&target.out, target.overwrite)?;
    let mut items = Ids::default();
    for item in 0..world.items {
        items.number(&World::id(item), "item").map_err(|f| f.error)?;
    }
    let tasks = TASKS.map(String::from);
    let names = Names::new(&items, &tasks);
    let stems: &[&'static str] = if world.events { &["events"] } else { &SPLITS };
    let mut outputs = stems
        .iter()
        .map(|stem| Output::create(staging.path(), stem, world.format))
        .collect::<Result<Vec<_>>>()?;
    let (mut card, mut sums) = (WorldCard::default(), [BTreeMap::new(), BTreeMap::new()]);
    let step = BLOCK * rayon::current_num_threads().max(1) as u64;
    for first in (0..world.users).step_by(step as usize) {
        watch.at("writing", first, world.users)?;
        let starts: Vec<u64> = (first..world.users.min(first + step)).step_by(BLOCK as usize).collect();
        let make = |start: &u64| block(world, &names, *start..world.users.min(start + BLOCK));
        for block in starts.par_iter().map(make).collect::<Vec<Result<Block>>>() {
            let mut block = block?;
            outputs.iter_mut().zip(&mut block.sheets).try_for_each(|(o, s)| o.append(s))?;
            stems.iter().zip(block.rows).for_each(|(stem, n)| *card.rows.entry(stem).or_default() += n);
            card.test_pairs += block.pairs;
            card.leaked += block.leaked;
            for (all, some) in sums.iter_mut().zip(block.sums) {
                some.into_iter().for_each(|(name, sum)| *all.entry(name).or_insert(0.0) += sum);
            }
        }
    }
    outputs.into_iter().try_for_each(Output::finish)?;
    for (task, sums) in TASKS.iter().zip(sums) {
        let mean = |(name, sum)| (name, sum / world.users as f64);
        card.optimum.insert(task, sums.into_iter().map(mean).collect());
    }
    let mut output = Output::create(staging.path(), "items", world.format)?;
    for chunk in (0..world.items).collect::<Vec<_>>().chunks(1 << 14) {
        let rows: Vec<(String, String)> = chunk.iter().map(|i| (World::id(*i), world.text(*i))).collect();
        let rows: Vec<(&str, Option<&str>)> =
            rows.iter().map(|(i, t)| (i.as_str(), Some(t.as_str()))).collect();
        output.append(&mut Sheet::items(&rows, world.format)?)?;
    }
    output.finish()?;
    target.copy_general(staging.path())?;
    let card = json!({"engine": env!("CARGO_PKG_VERSION"), "source": {"source": "synth"}, "settings": world,
        "written": card});
    write_atomically(&staging.path().join("card.json"), format!("{card:#}").as_bytes())?;
    staging.commit()?;
    Ok(card)
}

fn block(world: &World, names: &Names, users: std::ops::Range<u64>) -> Result<Block> {
    let count = if world.events { 1 } else { 3 };
    let sheets = (0..count).map(|_| Sheet::new(world.format)).collect();
    let mut block = Block { sheets, rows: [0; 3], pairs: 0, leaked: 0, sums: Default::default() };
    let mut table = EventTable::default();
    for user in users {
        let steps = world.walk(user);
        for step in &steps[world.length - 2..] {
            optimum(step, &mut block.sums[usize::from(step.search)]);
            block.pairs += 1;
        }
        match world.events {
            true => {
                block.rows[0] += steps.len() as u64;
                table.rows.extend(steps.iter().map(|step| (user, *step)));
            }
            false => write_rows(world, names, user, &steps, &mut block),
        }
    }
    if world.events {
        block.sheets = vec![table.finish(world)?];
    }
    Ok(block)
}

/// Adds the expected metrics of the best ranking of a request.
fn optimum(step: &Step, sums: &mut BTreeMap<String, f64>) {
    let (first, end) = step.best;
    let most = CUTOFFS[CUTOFFS.len() - 1];
    for position in first..end.min(first.max(most)) {
        let judged = Judged::binary(&[Place::alone(position)], 1);
        for name in metrics::names(&CUTOFFS, false) {
            let value = metrics::named(&judged, &name).unwrap_or(0.0);
            *sums.entry(name).or_insert(0.0) += value / (end - first) as f64;
        }
    }
}

fn write_rows(world: &World, names: &Names, user: u64, steps: &[Step], block: &mut Block) {
    let id = format!("u{user}");
    let items: Vec<u32> = steps.iter().map(|s| s.item as u32).collect();
    let mut push = |split: usize, history: &[u32], step: &Step, search: bool| {
        let row = Row {
            task: TASKS[usize::from(search)],
            user: Some(&id),
            history,
            query: if search { WORDS[world.kind(step.item)] } else { "" },
            targets: &[step.item as u32],
            time: Some(step.time),
            ..Row::default()
        };
        block.rows[split] += 1;
        block.sheets[split].push(&row, names);
    };
    for (k, step) in steps.iter().enumerate().skip(1) {
        let split = match steps.len() - k {
            1 | 2 => 2,
            3 | 4 => 1,
            _ => 0,
        };
        push(split, &items[k.saturating_sub(MAX_HISTORY)..k], step, step.search);
    }
    let mut random = stream(world.seed, Purpose::Data, 3 << 40, user);
    for step in &steps[steps.len() - 2..] {
        if random.random::<f64>() < world.leak {
            push(0, &items[..1], &Step { time: steps[1].time, ..*step }, !step.search);
            block.leaked += 1;
        }
    }
}

/// Most history items of a row.
const MAX_HISTORY: usize = 50;

/// Events of users, as a table.
#[derive(Default)]
struct EventTable {
    rows: Vec<(u64, Step)>,
}

impl EventTable {
    fn finish(&self, world: &World) -> Result<Sheet> {
        let task = |step: &Step| TASKS[usize::from(step.search)];
        let query = |step: &Step| step.search.then(|| WORDS[world.kind(step.item)]);
        if world.format == Format::Jsonl {
            let mut out = Vec::new();
            for (user, step) in &self.rows {
                let (time, item, task) = (step.time, step.item, task(step));
                // Writing to memory cannot fail; nothing here needs escaping.
                let _ =
                    write!(out, r#"{{"user":"u{user}","timestamp":{time},"item":"i{item}","task":"{task}""#);
                if let Some(query) = query(step) {
                    let _ = write!(out, r#","query":"{query}""#);
                }
                out.extend_from_slice(b"}\n");
            }
            return Ok(Sheet::Json(out));
        }
        let rows = || self.rows.iter();
        batch(vec![
            ("user", Arc::new(StringArray::from_iter_values(rows().map(|r| format!("u{}", r.0))))),
            ("timestamp", Arc::new(Int64Array::from_iter_values(rows().map(|r| r.1.time)))),
            ("item", Arc::new(StringArray::from_iter_values(rows().map(|r| World::id(r.1.item))))),
            ("task", Arc::new(StringArray::from_iter_values(rows().map(|r| task(&r.1))))),
            ("query", Arc::new(StringArray::from_iter(rows().map(|r| query(&r.1))))),
        ])
        .map(Sheet::Batch)
    }
}
