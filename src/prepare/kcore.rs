//! The k-core: the largest part of a log in which every user and every item has enough events.

use super::settings::Core;
use super::spool::{Event, PARTS, Spool, WANTED, all_events, events};
use crate::error::Result;
use serde::Serialize;
use std::collections::HashSet;

/// Who and what is left.
#[derive(Debug, Clone, Default)]
pub(super) struct Alive {
    pub users: Vec<bool>,
    /// Occurrences left of every item.
    counts: Vec<u32>,
    least: u32,
}

impl Alive {
    pub fn item(&self, number: u32) -> bool {
        self.counts[number as usize] >= self.least
    }
    /// The numbers of the items that are left.
    pub fn items(&self) -> Vec<u32> {
        (0..self.counts.len() as u32).filter(|i| self.item(*i)).collect()
    }
}

/// What the k-core took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct CoreReport {
    /// Passes over the log until nothing changed.
    pub passes: u32,
    /// Users before.
    pub users: u64,
    /// Users left.
    pub users_left: u64,
    /// Items before.
    pub items: u64,
    /// Items left.
    pub items_left: u64,
}

/// Removes users and items until all that are left have enough. The result does not depend on the order in
/// which they are removed.
///
/// # Errors
/// The file system; an interruption, which `tell` reports.
pub(super) fn core(
    spool: &Spool,
    (users, items, tasks): (usize, usize, usize),
    rule: Core,
    tell: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<(Alive, CoreReport)> {
    let mut alive = Alive { users: vec![false; users], counts: vec![0; items], least: rule.item };
    let counted = |e: &Event| rule.count_shown || e.is(WANTED);
    for part in 0..PARTS {
        tell(0)?;
        for event in events(&spool.load(part)?).filter(counted) {
            alive.users[event.head.user as usize] = true;
            occurrences(&event, rule).for_each(|item| alive.counts[item as usize] += 1);
        }
    }
    let mut report = CoreReport { users: users as u64, items: items as u64, ..CoreReport::default() };
    loop {
        report.passes += 1;
        let mut removed = false;
        for part in 0..PARTS {
            tell(u64::from(report.passes))?;
            let bytes = spool.load(part)?;
            let all = all_events(&bytes);
            for of_user in all.chunk_by(|a, b| a.head.user == b.head.user) {
                let user = of_user[0].head.user as usize;
                if alive.users[user] && !enough(of_user, &alive, rule, tasks) {
                    alive.users[user] = false;
                    removed = true;
                    let gone = of_user.iter().filter(|e| counted(e)).flat_map(|e| occurrences(e, rule));
                    gone.for_each(|item| alive.counts[item as usize] -= 1);
                }
            }
        }
        // Items fall with the users that are removed: a pass that removes no user changes nothing.
        if !removed {
            break;
        }
    }
    report.users_left = alive.users.iter().filter(|a| **a).count() as u64;
    report.items_left = alive.items().len() as u64;
    Ok((alive, report))
}

fn occurrences(event: &Event, rule: Core) -> impl Iterator<Item = u32> {
    std::iter::once(event.head.item).chain(event.history().filter(move |_| rule.count_shown))
}

/// Whether a user has enough events with items that are left.
fn enough(of_user: &[Event], alive: &Alive, rule: Core, tasks: usize) -> bool {
    let mut wanted = of_user.iter().filter(|e| e.is(WANTED) && alive.item(e.head.item));
    if rule.per_task == 0 {
        return wanted.nth(rule.user as usize - 1).is_some();
    }
    let (mut requests, mut seen, mut total) = (vec![0; tasks], HashSet::new(), 0);
    for event in wanted {
        total += 1;
        let head = event.head;
        if head.request == 0 || seen.insert((head.task, head.request)) {
            requests[head.task as usize] += 1;
        }
    }
    total >= rule.user && requests.iter().all(|n| *n >= rule.per_task)
}
