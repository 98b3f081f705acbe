//! A user's events as requests: what was asked for, what was taken, what was merely shown.

use super::kcore::Alive;
use super::settings::{HistoryRule, SplitRule};
use super::spool::{Event, TEST, WANTED};
use hashbrown::HashMap;

/// One request of a user.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Request<'a> {
    pub task: u8,
    pub time: i64,
    pub query: &'a str,
    /// Items taken, once each.
    pub targets: Vec<u32>,
    /// Items shown and not taken.
    pub shown: Vec<u32>,
    /// The history that the log gives with it.
    pub logged: Vec<u32>,
    pub split: Part,
    given_test: bool,
}

/// Where a request goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    #[default]
    Train,
    Valid,
    Test,
}

/// An item that the user took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Taken {
    pub time: i64,
    pub task: u8,
    pub item: u32,
}

/// A user's requests and what the user took, both in the order of time.
pub(super) struct Past<'a> {
    pub requests: Vec<Request<'a>>,
    pub taken: Vec<Taken>,
}

impl<'a> Past<'a> {
    /// Reads a user's events, which are in the order of time.
    pub fn new(of_user: &[Event<'a>], alive: &Alive) -> Self {
        let most = of_user.len();
        let (mut requests, mut taken) = (Vec::<Request>::with_capacity(most), Vec::with_capacity(most));
        let mut open: HashMap<(u8, u64), usize> = HashMap::new();
        // Shown outside of any request: part of what led to the task's next event.
        let mut waiting: HashMap<u8, Vec<u32>> = HashMap::new();
        for event in of_user {
            let (head, lives) = (event.head, alive.item(event.head.item));
            let wanted = event.is(WANTED) && lives;
            let number = match head.request {
                0 if !wanted => {
                    if lives {
                        waiting.entry(head.task).or_default().push(head.item);
                    }
                    continue;
                }
                0 => requests.len(),
                request => *open.entry((head.task, request)).or_insert(requests.len()),
            };
            if number == requests.len() {
                requests.push(Request {
                    task: head.task,
                    time: head.time,
                    query: event.query(),
                    given_test: event.is(TEST),
                    ..Request::default()
                });
            }
            let request = &mut requests[number];
            // One event of a request carries it.
            request.logged.extend(event.history().filter(|i| alive.item(*i)));
            if wanted {
                taken.push(Taken { time: head.time, task: head.task, item: head.item });
                if !request.targets.contains(&head.item) {
                    request.targets.push(head.item);
                }
                if head.request == 0 && !waiting.is_empty() {
                    request.shown = waiting.remove(&head.task).unwrap_or_default();
                }
            } else if lives {
                request.shown.push(head.item);
            }
        }
        requests.retain(|r| !r.targets.is_empty());
        Self { requests, taken }
    }

    /// Decides where every request goes. `bounds` are the first times of validation and test, `drawn` gives a
    /// number from 0 to 1 of the user's own.
    pub fn split(&mut self, rule: SplitRule, tasks: usize, bounds: (i64, i64), drawn: impl FnOnce() -> f64) {
        match rule {
            SplitRule::Users { valid, test } => {
                let part = match drawn() {
                    x if x < test => Part::Test,
                    x if x < test + valid => Part::Valid,
                    _ => Part::Train,
                };
                self.requests.iter_mut().for_each(|request| request.split = part);
            }
            SplitRule::Time { .. } => {
                for request in &mut self.requests {
                    request.split = match request.time {
                        time if time >= bounds.1 => Part::Test,
                        time if time >= bounds.0 => Part::Valid,
                        _ => Part::Train,
                    };
                }
            }
            SplitRule::LeaveOneOut => {
                for task in 0..tasks as u8 {
                    let mut newest = self.requests.iter_mut().rev().filter(|r| r.task == task);
                    // Fewer than three could not be in all three places.
                    if let (Some(test), Some(valid), Some(_)) = (newest.next(), newest.next(), newest.next())
                    {
                        (valid.split, test.split) = (Part::Valid, Part::Test);
                    }
                }
            }
            SplitRule::Given => {
                for task in 0..tasks as u8 {
                    let of_task = self.requests.iter_mut().filter(|r| r.task == task);
                    let (mut test, mut rest): (Vec<_>, Vec<_>) = of_task.partition(|r| r.given_test);
                    test.iter_mut().for_each(|r| r.split = Part::Test);
                    if let [_, .., last] = &mut rest[..] {
                        last.split = Part::Valid;
                    }
                }
            }
        }
    }

    /// The newest `most` items of the history of `request`, oldest first, without those that `keep` refuses.
    /// What happened at the very instant of the request is no history of it: its order is unknown.
    pub fn history(
        &self,
        request: &Request,
        (rule, searches): (HistoryRule, bool),
        most: usize,
        keep: impl Fn(u32) -> bool,
    ) -> Vec<u32> {
        let mut items: Vec<u32> = Vec::new();
        if rule == HistoryRule::Log {
            items.extend(request.logged.iter().rev().filter(|i| keep(**i)).take(most));
        } else {
            let own = match rule {
                HistoryRule::All | HistoryRule::Log => false,
                HistoryRule::Own => true,
                HistoryRule::SearchSeesAll => !searches,
            };
            let before = self.taken.partition_point(|t| t.time < request.time);
            items.reserve_exact(before.min(most));
            let seen = self.taken[..before].iter().rev().filter(|t| !own || t.task == request.task);
            items.extend(seen.map(|t| t.item).filter(|i| keep(*i)).take(most));
        }
        items.reverse();
        items
    }
}
