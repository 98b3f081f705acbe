//! Pairs of user and item that are held out and yet known: how many there are.

use super::requests::Part;
use serde::Serialize;

/// Test pairs (user, target), and how many of them training gives away.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Leaks {
    /// Pairs of user and test target, by request.
    pub pairs: u64,
    /// Pairs that are a training target of the same task.
    pub trained: u64,
    /// Pairs that are a training target of another task.
    pub trained_elsewhere: u64,
    /// Pairs whose item stands in the history of one of the user's training rows.
    pub in_training_history: u64,
    /// Pairs whose item stands in the request's own history.
    pub in_own_history: u64,
    /// Pairs with any of these.
    pub any: u64,
}

impl Leaks {
    /// Share of the test pairs that are known in any way.
    pub fn rate(&self) -> f64 {
        if self.pairs == 0 { 0.0 } else { self.any as f64 / self.pairs as f64 }
    }
    /// Adds other counts.
    pub(super) fn add(&mut self, other: &Leaks) {
        self.pairs += other.pairs;
        self.trained += other.trained;
        self.trained_elsewhere += other.trained_elsewhere;
        self.in_training_history += other.in_training_history;
        self.in_own_history += other.in_own_history;
        self.any += other.any;
    }
}

/// A user's held-out items and what the user's rows say about them.
#[derive(Debug, Default)]
pub(super) struct Held {
    items: Vec<Item>,
    /// Bit i: an item whose number ends in i may be among them.
    some: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Item {
    number: u32,
    part: Part,
    /// Tasks that train it, a bit each.
    trained: u64,
    in_history: bool,
}

/// A task's bit; logs have no more than 64 tasks.
fn bit(task: u8) -> u64 {
    1 << (task % 64)
}

impl Held {
    /// Of held-out pairs (item, where); one that is in test and validation counts as in test.
    pub fn new(mut pairs: Vec<(u32, Part)>) -> Self {
        pairs.sort_unstable_by_key(|(item, part)| (*item, std::cmp::Reverse(*part)));
        pairs.dedup_by_key(|(item, _)| *item);
        let some = pairs.iter().fold(0, |bits, (item, _)| bits | 1u64 << (item % 64));
        let items =
            pairs.into_iter().map(|(number, part)| Item { number, part, ..Item::default() }).collect();
        Self { items, some }
    }
    fn find(&self, item: u32) -> Option<usize> {
        if self.some >> (item % 64) & 1 == 0 {
            return None;
        }
        self.items.binary_search_by_key(&item, |i| i.number).ok()
    }
    /// Where an item is held out (`Train`: nowhere).
    pub fn part(&self, item: u32) -> Part {
        self.find(item).map_or(Part::Train, |i| self.items[i].part)
    }
    /// Forgets what rows were seen.
    pub fn reset(&mut self) {
        self.items.iter_mut().for_each(|i| (i.trained, i.in_history) = (0, false));
    }
    /// Takes note of a training row.
    pub fn train(&mut self, task: u8, history: &[u32], targets: &[u32]) {
        for target in targets {
            if let Some(i) = self.find(*target) {
                self.items[i].trained |= bit(task);
            }
        }
        for item in history {
            if let Some(i) = self.find(*item) {
                self.items[i].in_history = true;
            }
        }
    }
    /// Counts a test row, after all training rows.
    pub fn test(&self, task: u8, history: &[u32], targets: &[u32], leaks: &mut Leaks) {
        for target in targets {
            let known = self.find(*target).map(|i| self.items[i]).unwrap_or_default();
            let own = known.trained & bit(task) != 0;
            let elsewhere = known.trained & !bit(task) != 0;
            let stands = history.contains(target);
            let ways = [own, elsewhere, known.in_history, stands];
            leaks.pairs += 1;
            let counts = [
                &mut leaks.trained,
                &mut leaks.trained_elsewhere,
                &mut leaks.in_training_history,
                &mut leaks.in_own_history,
            ];
            counts.into_iter().zip(ways).for_each(|(count, way)| *count += u64::from(way));
            leaks.any += u64::from(ways.contains(&true));
        }
    }
}
