//! Times as logs write them: counts, seconds to nanoseconds since 1970, dates.
//!
//! Inside they are nanoseconds (of a count: thousand millionths), so that fractions keep their order; they are
//! written in the log's own unit, or the finest that its fractions need.

use super::cell::{Cell, absent, wrong};
use super::unit::{SECOND, Unit};
use crate::data::fault::{Checked, Fault};
use crate::error::{Error, Result};

const WANTED: &str = "a number, or a date such as 2024-05-01 12:30:00";

/// Reads the times of a log.
#[derive(Debug, Default)]
pub(super) struct Clock {
    /// The unit of numbers, where the user says it.
    given: Option<Unit>,
    /// The unit of the numbers so far, and the first of them.
    numbers: Option<(Unit, i64)>,
    /// Whether there were dates.
    dated: bool,
    /// Nanoseconds of the unit in which times are written; 0: none was read yet.
    written: i64,
}

impl Clock {
    pub fn new(given: Option<Unit>) -> Self {
        Self { given, ..Self::default() }
    }

    /// A time in nanoseconds.
    pub fn read(&mut self, cell: &Cell, column: &str) -> Checked<i64> {
        match cell {
            _ if cell.is_no_value() => Err(absent(column)),
            Cell::Int(time) => self.number(*time, column),
            Cell::Float(x) => self.float(*x, cell, column),
            Cell::Time(time, unit) => self.typed(*time, *unit, column),
            Cell::Date(days) => self.date(Some(i64::from(*days) * 86_400), 0, column),
            Cell::Text(text) | Cell::Field(text) => self.text(text.trim(), cell, column),
            _ => Err(wrong(column, cell, WANTED)),
        }
    }

    fn text(&mut self, text: &str, cell: &Cell, column: &str) -> Checked<i64> {
        if let Ok(number) = text.parse::<i64>() {
            return self.number(number, column);
        }
        match date(text) {
            Dated::At(seconds, fraction) => self.date(Some(seconds), fraction, column),
            Dated::Never(what) => {
                let error = Error::data(format!("{}: {what}", cell.describe())).at(column);
                Err(Fault::new("impossible date", error.remedy("correct it, or --skip-bad-rows N")))
            }
            Dated::No => match text.parse::<f64>() {
                Ok(x) => self.float(x, cell, column),
                Err(_) => Err(wrong(column, cell, WANTED)),
            },
        }
    }

    fn number(&mut self, time: i64, column: &str) -> Checked<i64> {
        let unit = self.given.unwrap_or_else(|| Unit::of(time));
        self.counted(time, unit, column)?;
        self.keep(time.checked_mul(unit.nanoseconds()), unit.nanoseconds(), column)
    }

    /// A number with a fraction: of seconds and milliseconds the microseconds count, what is finer is rounding.
    fn float(&mut self, x: f64, cell: &Cell, column: &str) -> Checked<i64> {
        if !x.is_finite() || x.abs() >= 9e18 {
            return Err(wrong(column, cell, WANTED));
        }
        let whole = x.floor();
        let unit = self.given.unwrap_or_else(|| Unit::of(whole as i64));
        if whole == x || unit.nanoseconds() <= 1000 {
            return self.number(whole as i64, column);
        }
        self.counted(whole as i64, unit, column)?;
        let microseconds = (unit.nanoseconds() / 1000) as f64;
        let fraction = ((x - whole) * microseconds).round() as i64 * 1000;
        let time = (whole as i64).checked_mul(unit.nanoseconds()).and_then(|t| t.checked_add(fraction));
        self.keep(time, finest(fraction).min(unit.nanoseconds()), column)
    }

    /// A time whose unit the file says.
    fn typed(&mut self, time: i64, unit: Unit, column: &str) -> Checked<i64> {
        self.dated = true;
        self.keep(time.checked_mul(unit.nanoseconds()), unit.nanoseconds(), column)
    }

    fn date(&mut self, seconds: Option<i64>, fraction: i64, column: &str) -> Checked<i64> {
        if let Some((Unit::Count, example)) = self.numbers {
            return Err(mixed(format!("a date, but {example} before it looks like a count"), column));
        }
        if self.given == Some(Unit::Count) {
            return Err(mixed("a date, but --time-unit says that times are counts".into(), column));
        }
        self.dated = true;
        let time = seconds.and_then(|s| s.checked_mul(SECOND)).and_then(|t| t.checked_add(fraction));
        self.keep(time, finest(fraction), column)
    }

    /// Numbers of a log must all be of one unit.
    fn counted(&mut self, time: i64, unit: Unit, column: &str) -> Checked<()> {
        match self.numbers {
            None if self.dated && unit == Unit::Count => {
                Err(mixed(format!("{time} looks like a count, but there are dates before it"), column))
            }
            None => {
                self.numbers = Some((unit, time));
                Ok(())
            }
            Some((first, _)) if first == unit => Ok(()),
            Some((first, example)) => {
                let what = format!(
                    "{time} looks like {}, but {example} before it like {}",
                    unit.name(),
                    first.name()
                );
                Err(mixed(what, column))
            }
        }
    }

    fn keep(&mut self, time: Option<i64>, unit: i64, column: &str) -> Checked<i64> {
        self.written = if self.written == 0 { unit } else { self.written.min(unit) };
        time.ok_or_else(|| {
            let error = Error::data("a time outside of the years 1678 to 2262").at(column);
            Fault::new("impossible date", error.remedy("a missing time is no far day: leave such rows out"))
        })
    }

    /// Whether a time was a number.
    pub fn has_numbers(&self) -> bool {
        self.numbers.is_some()
    }

    /// Nanoseconds of the unit in which times are written.
    pub fn written(&self) -> i64 {
        self.written.max(1)
    }

    /// A time that the command line gives, as it is written.
    ///
    /// # Errors
    /// One that is of another kind than the log's.
    pub fn bound(&self, time: i64, flag: &str) -> Result<i64> {
        let unit = self.given.unwrap_or_else(|| Unit::of(time));
        let log = self.numbers.map_or(Unit::Seconds, |(unit, _)| unit);
        if (unit == Unit::Count) != (log == Unit::Count) {
            return Err(Error::usage(format!(
                "{time} looks like {}, the log's times like {}",
                unit.name(),
                log.name()
            ))
            .at(flag)
            .remedy("give a time as the log has them, or say with --time-unit what its numbers are"));
        }
        let written = self.written();
        // Rounded up: what is before the bound stays before it.
        let time = i128::from(time) * i128::from(unit.nanoseconds());
        let bound = (time + i128::from(written) - 1).div_euclid(i128::from(written));
        i64::try_from(bound).map_err(|_| Error::usage("outside of the years 1678 to 2262").at(flag))
    }
}

fn mixed(what: String, column: &str) -> Fault {
    let error = Error::data(what).at(column).remedy(
        "write all times in one unit, or say which it is with --time-unit; a missing time is no 0: leave such rows out",
    );
    Fault::new("mixed time units", error)
}

/// The coarsest unit in which a fraction of a second is whole.
fn finest(fraction: i64) -> i64 {
    [SECOND, 1_000_000, 1000].into_iter().find(|unit| fraction % unit == 0).unwrap_or(1)
}

/// A time as the command line gives it: a whole number as the log has them, or a date, as a number of `unit` (unset:
/// seconds).
///
/// # Errors
/// Neither of them.
pub fn moment(text: &str, unit: Option<Unit>) -> Result<i64> {
    let text = text.trim();
    let bad = |what: String| Err(Error::usage(what).remedy("a whole number, or a date such as 2024-05-01"));
    match (text.parse(), date(text)) {
        (Ok(time), _) => Ok(time),
        (_, Dated::At(seconds, 0)) => {
            let time = seconds.checked_mul(SECOND / unit.unwrap_or(Unit::Seconds).nanoseconds());
            time.map_or_else(|| bad(format!("`{text}` is too far away")), Ok)
        }
        (_, Dated::At(..)) => bad(format!("`{text}` is no whole second")),
        (_, Dated::Never(what)) => bad(format!("`{text}`: {what}")),
        (_, Dated::No) => bad(format!("`{text}` is no time")),
    }
}

/// What a text says as a date.
pub(super) enum Dated {
    /// Seconds since 1970, nanoseconds behind them.
    At(i64, i64),
    /// A day or an hour that never was.
    Never(&'static str),
    No,
}

/// Reads `YYYY-MM-DD[ T]HH[:MM[:SS[.fraction]]][Z| UTC|+HH[[:]MM]]`, or a date alone; `/` does for `-`. Without
/// a zone it is UTC.
pub(super) fn date(text: &str) -> Dated {
    parts(text).unwrap_or(Dated::No)
}

fn parts(text: &str) -> Option<Dated> {
    let (day, rest) = text.split_at_checked(10)?;
    let mark = day.as_bytes()[4];
    if !matches!(mark, b'-' | b'/') {
        return None;
    }
    let mut numbers = day.split(mark as char).map(digits);
    let (year, month, day) = (numbers.next()??, numbers.next()??, numbers.next()??);
    let (clock, zone) = zone(rest.strip_prefix([' ', 'T', 't']).unwrap_or(rest).trim_end())?;
    if numbers.next().is_some() || !rest.is_empty() && clock.is_empty() {
        return None;
    }
    if clock.is_empty() {
        return Some(at(year, month, day, 0, 0));
    }
    let (clock, fraction) = clock.split_once(['.', ',']).unwrap_or((clock, ""));
    let fraction = nanoseconds(fraction)?;
    let mut numbers = clock.split(':').map(digits);
    let hour = numbers.next()??;
    let (minute, second) = (numbers.next().unwrap_or(Some(0))?, numbers.next().unwrap_or(Some(0))?);
    if numbers.next().is_some() {
        return None;
    }
    if hour > 23 || minute > 59 || second > 60 {
        return Some(Dated::Never("there is no such time of day"));
    }
    Some(at(year, month, day, hour * 3600 + minute * 60 + second - zone, fraction))
}

fn at(year: i64, month: i64, day: i64, seconds: i64, fraction: i64) -> Dated {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        4 | 6 | 9 | 11 => 30,
        2 => 28 + i64::from(leap),
        _ => return Dated::Never("there is no such month"),
    };
    if !(1..=days).contains(&day) {
        return Dated::Never("there is no such day");
    }
    // Days from civil (Howard Hinnant): a year begins in March, so that leap days come last.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * y + y.div_euclid(4) - y.div_euclid(100) + y.div_euclid(400) + (153 * m + 2) / 5 + day
        - 1
        - 719_468;
    Dated::At(days * 86_400 + seconds, fraction)
}

/// A time of day and the seconds by which its zone is ahead of UTC.
fn zone(text: &str) -> Option<(&str, i64)> {
    for name in ["Z", "z", "UTC", "GMT"] {
        if let Some(clock) = text.strip_suffix(name) {
            return Some((clock.trim_end(), 0));
        }
    }
    let Some(sign) = text.rfind(['+', '-']) else { return Some((text, 0)) };
    let (clock, offset) = (text[..sign].trim_end(), &text[sign + 1..]);
    let (hours, minutes) = match offset.len() {
        2 => (offset, "0"),
        4 => offset.split_at_checked(2)?,
        _ => offset.split_once(':')?,
    };
    let (hours, minutes) = (digits(hours)?, digits(minutes)?);
    if hours > 23 || minutes > 59 {
        return None;
    }
    let ahead = hours * 3600 + minutes * 60;
    Some((clock, if text.as_bytes()[sign] == b'-' { -ahead } else { ahead }))
}

/// A number of at most four digits.
fn digits(text: &str) -> Option<i64> {
    let sound = (1..=4).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    sound.then(|| text.parse().ok()).flatten()
}

/// Digits behind a second's point as nanoseconds; what is finer is left out.
fn nanoseconds(digits: &str) -> Option<i64> {
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let mut value = 0;
    for at in 0..9 {
        value = value * 10 + digits.as_bytes().get(at).map_or(0, |b| i64::from(b - b'0'));
    }
    Some(value)
}
