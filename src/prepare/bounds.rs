//! First times of validation and test, of a split by time.

use super::kcore::Alive;
use super::log::Log;
use super::settings::SplitRule;
use super::spool::{PARTS, UNTIMED, WANTED, events};
use crate::error::Result;

/// Where a split by time cuts a log.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Bounds {
    valid: i64,
    test: i64,
    /// First and last time of the log.
    log: (i64, i64),
}

/// Bins of the histogram that shares are taken from.
const BINS: usize = 1 << 16;

impl Bounds {
    /// # Errors
    /// The file system; a bound that is of another kind than the log's times.
    pub fn of(log: &Log, alive: &Alive, rule: SplitRule) -> Result<Self> {
        let SplitRule::Time { valid, test, valid_from, test_from } = rule else { return Ok(Self::default()) };
        let each = |act: &mut dyn FnMut(i64)| -> Result<()> {
            for part in 0..PARTS {
                let bytes = log.spool.load(part)?;
                let kept = events(&bytes).filter(|e| e.is(WANTED) && !e.is(UNTIMED));
                let kept = kept.filter(|e| alive.users[e.head.user as usize] && alive.item(e.head.item));
                kept.for_each(|e| act(e.head.time));
            }
            Ok(())
        };
        let (mut first, mut last, mut total) = (i64::MAX, i64::MIN, 0u64);
        each(&mut |t| (first, last, total) = (first.min(t), last.max(t), total + 1))?;
        let whole = Range { first, last, behind: 0 };
        let bins = whole.count(&each)?;
        // The earliest bound that leaves at most the share behind it; times of one bin stay together.
        let from = |share: f64| -> Result<i64> {
            let (most, mut range) = ((share * total as f64) as u64, whole);
            let Some(mut bin) = range.bin(&bins, most) else { return Ok(first) };
            // A bin that holds many events, since some times lie far away, is looked into.
            while bin.events > total / 1000 && bin.range.last > bin.range.first {
                range = bin.range;
                match range.bin(&range.count(&each)?, most) {
                    Some(inner) => bin = inner,
                    None => break,
                }
            }
            Ok(bin.range.last.saturating_add(1))
        };
        let given = |time: Option<i64>, flag| time.map(|time| log.clock.bound(time, flag)).transpose();
        let test_begins = given(test_from, "--test-from")?.map_or_else(|| from(test), Ok)?;
        let valid_begins = given(valid_from, "--valid-from")?.map_or_else(|| from(valid + test), Ok)?;
        Ok(Self { valid: valid_begins.min(test_begins), test: test_begins, log: (first, last) })
    }

    /// First times of validation and test.
    pub fn first(&self) -> (i64, i64) {
        (self.valid, self.test)
    }
    /// What to do when a split is empty.
    pub fn advice(&self) -> String {
        let Self { valid, test, log: (first, last) } = self;
        format!(
            "the log's times run from {first} to {last}, validation begins at {valid}, the test at {test}; give \
             --valid-from and --test-from, or other shares; a request without a query also needs an earlier event of \
             its user"
        )
    }
}

/// Hands the time of every event that is left over.
type Times<'t> = &'t dyn Fn(&mut dyn FnMut(i64)) -> Result<()>;

/// Times that are looked at, and the events behind them.
#[derive(Debug, Clone, Copy)]
struct Range {
    first: i64,
    last: i64,
    behind: u64,
}

/// A bin of a histogram.
struct Bin {
    range: Range,
    events: u64,
}

impl Range {
    fn span(&self) -> u128 {
        (i128::from(self.last) - i128::from(self.first)).max(0) as u128 + 1
    }
    /// The first offset of a bin.
    fn start(&self, bin: usize) -> u128 {
        (bin as u128 * self.span()).div_ceil(BINS as u128)
    }

    /// A histogram of the events in the range.
    fn count(&self, each: Times) -> Result<Vec<u64>> {
        let mut bins = vec![0u64; BINS];
        each(&mut |t| {
            if (self.first..=self.last).contains(&t) {
                let offset = (i128::from(t) - i128::from(self.first)) as u128;
                bins[(offset * BINS as u128 / self.span()) as usize] += 1;
            }
        })?;
        Ok(bins)
    }

    /// The latest bin that, with all behind it, holds more than `most` events.
    fn bin(&self, bins: &[u64], most: u64) -> Option<Bin> {
        let mut behind = self.behind;
        for (number, events) in bins.iter().enumerate().rev() {
            if behind + events > most {
                let at = |offset: u128| (i128::from(self.first) + offset as i128) as i64;
                let (first, last) = (at(self.start(number)), at(self.start(number + 1) - 1));
                return Some(Bin { range: Range { first, last, behind }, events: *events });
            }
            behind += events;
        }
        None
    }
}
