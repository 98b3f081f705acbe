//! What `prepare` is asked to do.

use crate::error::{Error, Result};
use serde::Serialize;
use std::collections::BTreeMap;
use std::str::FromStr;

/// How logs become a data directory. Written into its card as it is.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Settings {
    /// Of every random decision.
    pub seed: u64,
    /// What is kept of users and items.
    pub core: Core,
    /// Which requests are learned from, and which are held out.
    pub split: SplitRule,
    /// Take every pair of user and item that is held out for one task out of the training of all tasks.
    pub exclude_pairs: bool,
    /// What a request's history is.
    pub history: HistoryRule,
    /// Most history items of a row, the newest.
    pub max_history: usize,
    /// Fewest history items of a row of a task without queries.
    pub min_history: usize,
    /// Share of the training rows kept, drawn at random (a user's last one always stays).
    pub train_sample: f64,
    /// One row a target in training and validation, instead of one row a request.
    pub expand_targets: bool,
    /// Negatives of validation and test rows.
    pub negatives: Negatives,
    /// An event counts as wanted when its label is at least this; unset: more than 0.
    pub min_label: Option<f64>,
    /// Longest item text, in characters.
    pub text_chars: usize,
    /// Most items that may be left.
    pub max_items: usize,
    /// Rows that may be left out because something is wrong with them.
    pub skip_bad_rows: usize,
    /// The files that are written.
    pub format: Format,
}

/// The k-core: users and items with too few events are removed until none is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Core {
    /// Fewest wanted events of a user.
    pub user: u32,
    /// Fewest wanted events of an item.
    pub item: u32,
    /// Fewest requests of a user in every task.
    pub per_task: u32,
    /// Items that were merely shown, or stand in a logged history, count for `item` too (published).
    pub count_shown: bool,
}

/// Which requests are held out.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "rule")]
pub enum SplitRule {
    /// Of every user and task the last request is for the test, the one before for validation.
    LeaveOneOut,
    /// By time, for all users at once: the last share of all requests, or from a time on.
    Time {
        /// Share of requests for validation.
        valid: f64,
        /// Share of requests for the test.
        test: f64,
        /// First time of validation, instead of a share.
        valid_from: Option<i64>,
        /// First time of the test, instead of a share.
        test_from: Option<i64>,
    },
    /// The source's own test requests; the last training request of every user and task validates.
    Given,
}

/// What a request's history is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum HistoryRule {
    /// The user's earlier events of all tasks.
    All,
    /// The user's earlier events of the same task.
    Own,
    /// Recommendation sees its own task, search sees all (published for Amazon).
    SearchSeesAll,
    /// As the log gives it, where it does (Qilin's recent clicks).
    Log,
}

/// The files that are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// A JSON object a line.
    Jsonl,
    /// Parquet, zstd.
    Parquet,
}

impl Format {
    /// The extension of its files.
    pub fn extension(self) -> &'static str {
        match self {
            Format::Jsonl => "jsonl",
            Format::Parquet => "parquet",
        }
    }
}

/// Where negatives come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum NegativeKind {
    /// Any item, each as likely.
    Uniform,
    /// Any item, in proportion to its training targets.
    Popularity,
    /// Items whose text answers the query best.
    Bm25,
    /// Items that were shown with the request and not taken.
    Impressions,
}

/// Negatives by task; `""` stands for every task that is not named.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Negatives {
    by_task: BTreeMap<String, Vec<(NegativeKind, usize)>>,
}

impl Negatives {
    /// Kinds and numbers for `task`, in order.
    pub fn of(&self, task: &str) -> &[(NegativeKind, usize)] {
        self.by_task.get(task).or_else(|| self.by_task.get("")).map_or(&[], Vec::as_slice)
    }
    /// Whether any task wants this kind.
    pub fn wants(&self, kind: NegativeKind) -> bool {
        self.by_task.values().flatten().any(|(k, n)| *k == kind && *n > 0)
    }
    /// Adds `[TASK=]KIND:N[,KIND:N]` or `[TASK=]none`, in place of what the task had.
    ///
    /// # Errors
    /// Names what cannot be understood.
    pub fn set(&mut self, text: &str) -> Result<()> {
        let (task, list) = text.split_once('=').unwrap_or(("", text));
        let bad = |what: String| {
            Error::usage(what)
                .at("--negatives")
                .remedy("[TASK=]KIND:N[,KIND:N] with uniform, popularity, bm25 or impressions; or none")
        };
        let mut kinds = Vec::new();
        for part in list.split(',').filter(|p| *p != "none") {
            let (kind, count) = part.split_once(':').ok_or_else(|| bad(format!("`{part}` is not KIND:N")))?;
            let count = count.parse().map_err(|_| bad(format!("`{count}` is not a number of items")))?;
            kinds.push((kind.parse().map_err(|()| bad(format!("unknown kind `{kind}`")))?, count));
        }
        self.by_task.insert(task.trim().into(), kinds);
        Ok(())
    }
}

impl FromStr for NegativeKind {
    type Err = ();
    fn from_str(name: &str) -> std::result::Result<Self, ()> {
        Ok(match name.trim() {
            "uniform" => Self::Uniform,
            "popularity" => Self::Popularity,
            "bm25" => Self::Bm25,
            "impressions" => Self::Impressions,
            _ => return Err(()),
        })
    }
}

impl Default for Settings {
    fn default() -> Self {
        let mut negatives = Negatives::default();
        negatives.by_task.insert(String::new(), vec![(NegativeKind::Uniform, 99)]);
        Self {
            seed: 42,
            core: Core { user: 5, item: 5, per_task: 0, count_shown: false },
            split: SplitRule::LeaveOneOut,
            exclude_pairs: true,
            history: HistoryRule::All,
            max_history: 50,
            min_history: 1,
            train_sample: 1.0,
            expand_targets: false,
            negatives,
            min_label: None,
            text_chars: 200,
            max_items: 1 << 22,
            skip_bad_rows: 0,
            format: Format::Jsonl,
        }
    }
}

impl Settings {
    /// Checks what types alone cannot say.
    ///
    /// # Errors
    /// A usage error that names the flag.
    pub fn validate(&self) -> Result<()> {
        let share =
            |flag: &str, value: f64, least: f64| match value.is_finite() && value >= least && value <= 1.0 {
                true => Ok(()),
                false => Err(Error::usage(format!("{value} is not a share"))
                    .at(flag)
                    .remedy("a number from 0 to 1")),
            };
        share("--train-sample", self.train_sample, f64::MIN_POSITIVE)?;
        if let SplitRule::Time { valid, test, valid_from, test_from } = self.split {
            share("--valid-share", valid, 0.0)?;
            share("--test-share", test, 0.0)?;
            if valid + test >= 1.0 {
                return Err(Error::usage(format!("{valid} and {test} leave nothing to train on"))
                    .at("--valid-share, --test-share")
                    .remedy("together less than 1"));
            }
            if let (Some(v), Some(t)) = (valid_from, test_from)
                && v > t
            {
                return Err(Error::usage(format!("validation would begin at {v}, after the test ({t})"))
                    .at("--valid-from")
                    .remedy("a time not after --test-from"));
            }
        }
        if self.max_history == 0 {
            return Err(Error::usage("rows need room for a history").at("--max-history").remedy("1 or more"));
        }
        if self.core.user == 0 || self.core.item == 0 {
            return Err(Error::usage("0 events cannot be a minimum")
                .at("--min-user, --min-item")
                .remedy("1 keeps all"));
        }
        Ok(())
    }
}
