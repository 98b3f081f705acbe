//! What times that are numbers are counted in.

use serde::Serialize;

/// Nanoseconds of a second.
pub(super) const SECOND: i64 = 1_000_000_000;

/// What a time is counted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Unit {
    /// Something of the log's own.
    Count,
    /// Seconds since 1970.
    #[value(name = "s")]
    Seconds,
    /// Milliseconds since 1970.
    #[value(name = "ms")]
    Milliseconds,
    /// Microseconds since 1970.
    #[value(name = "us")]
    Microseconds,
    /// Nanoseconds since 1970.
    #[value(name = "ns")]
    Nanoseconds,
}

impl Unit {
    /// As the size of a time tells: years 1973 to 5138 in each unit; smaller numbers count something else.
    pub(super) fn of(time: i64) -> Self {
        match time.unsigned_abs() {
            0..100_000_000 => Unit::Count,
            100_000_000..100_000_000_000 => Unit::Seconds,
            100_000_000_000..100_000_000_000_000 => Unit::Milliseconds,
            100_000_000_000_000..100_000_000_000_000_000 => Unit::Microseconds,
            _ => Unit::Nanoseconds,
        }
    }
    pub(super) fn name(self) -> &'static str {
        match self {
            Unit::Count => "a count",
            Unit::Seconds => "seconds since 1970",
            Unit::Milliseconds => "milliseconds since 1970",
            Unit::Microseconds => "microseconds since 1970",
            Unit::Nanoseconds => "nanoseconds since 1970",
        }
    }
    /// Nanoseconds in it.
    pub(super) fn nanoseconds(self) -> i64 {
        match self {
            Unit::Count | Unit::Seconds => SECOND,
            Unit::Milliseconds => 1_000_000,
            Unit::Microseconds => 1000,
            Unit::Nanoseconds => 1,
        }
    }
}
