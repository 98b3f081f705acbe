//! What `prepare` is asked to do.

use super::unit::Unit;
use crate::error::{self, Error, Result};
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
    /// Tasks that teach what the items are called, as rows of training.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub align: Vec<Align>,
    /// Negatives of validation and test rows.
    pub negatives: Negatives,
    /// An event counts as wanted when its label is at least this; unset: more than 0.
    pub min_label: Option<f64>,
    /// What times that are numbers are counted in; unset: as their size tells.
    pub time_unit: Option<Unit>,
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
    /// By user: the requests of a share of the users, drawn at random, are for validation, of another for the test.
    Users {
        /// Share of users for validation.
        valid: f64,
        /// Share of users for the test.
        test: f64,
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

/// What is learned about the items' texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Align {
    /// An item's text is asked, the item is the answer.
    TitleToItem,
    /// An item is asked, its text is the answer.
    ItemToTitle,
}

impl Align {
    /// The task's name in the data.
    pub fn task(self) -> &'static str {
        match self {
            Align::TitleToItem => "title-to-item",
            Align::ItemToTitle => "item-to-title",
        }
    }
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
    /// The tasks that are named.
    pub fn tasks(&self) -> impl Iterator<Item = &str> {
        self.by_task.keys().map(String::as_str).filter(|t| !t.is_empty())
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
        let mut kinds: Vec<(NegativeKind, usize)> = Vec::new();
        for part in list.split(',').filter(|_| list.trim() != "none") {
            let (kind, count) = part.split_once(':').ok_or_else(|| bad(format!("`{part}` is not KIND:N")))?;
            let number = count.trim().parse().ok().filter(|n| (1..=MOST_NEGATIVES).contains(n));
            let number = number.ok_or_else(|| {
                bad(format!("`{count}` is not a number of items from 1 to {MOST_NEGATIVES}"))
            })?;
            let kind: NegativeKind = kind.parse().map_err(|()| {
                let near = error::nearest(kind, ["uniform", "popularity", "bm25", "impressions"]);
                let near = near.map_or(String::new(), |n| format!("; did you mean `{n}`?"));
                bad(format!("unknown kind `{}`{near}", kind.trim()))
            })?;
            if kinds.iter().any(|(k, _)| *k == kind) {
                return Err(bad(format!("`{part}` names a kind twice")));
            }
            kinds.push((kind, number));
        }
        self.by_task.insert(task.trim().into(), kinds);
        Ok(())
    }
}

/// Most negatives of a kind that a row may have.
const MOST_NEGATIVES: usize = 1 << 20;

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
            align: Vec::new(),
            negatives,
            min_label: None,
            time_unit: None,
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
        let bad = |flag: &str, what: String, remedy: &str| Err(Error::usage(what).at(flag).remedy(remedy));
        if !(self.train_sample > 0.0 && self.train_sample <= 1.0) {
            let what = format!("{} is not a share", self.train_sample);
            return bad("--train-sample", what, "more than 0, at most 1");
        }
        if let SplitRule::Time { valid, test, .. } | SplitRule::Users { valid, test } = self.split {
            for (flag, share) in [("--valid-share", valid), ("--test-share", test)] {
                if !(0.0..1.0).contains(&share) {
                    return bad(flag, format!("{share} is not a share"), "0 or more, less than 1");
                }
            }
            if valid + test >= 1.0 {
                let what = format!("{valid} and {test} leave nothing to train on");
                return bad("--valid-share, --test-share", what, "together less than 1");
            }
        }
        if let SplitRule::Time { valid_from: Some(v), test_from: Some(t), .. } = self.split
            && v > t
        {
            let what = format!("validation would begin at {v}, after the test ({t})");
            return bad("--valid-from", what, "a time not after --test-from");
        }
        if let Some(label) = self.min_label.filter(|l| !l.is_finite()) {
            return bad("--min-label", format!("{label} is no label"), "a finite number");
        }
        if self.max_history == 0 {
            return bad("--max-history", "rows need room for a history".into(), "1 or more");
        }
        if self.min_history > self.max_history {
            let what = format!("{} items are asked for and {} kept", self.min_history, self.max_history);
            return bad("--min-history, --max-history", what, "a minimum not above the maximum");
        }
        if self.core.user == 0 || self.core.item == 0 {
            return bad("--min-user, --min-item", "0 events cannot be a minimum".into(), "1 keeps all");
        }
        if self.max_items == 0 || u32::try_from(self.max_items).is_err() {
            return bad(
                "--max-items",
                format!("{} is no size of a catalogue", self.max_items),
                "1 to 4294967295",
            );
        }
        if self.align.iter().enumerate().any(|(at, task)| self.align[..at].contains(task)) {
            return bad("--align", "a task is named twice".into(), "title-to-item,item-to-title");
        }
        if self.text_chars == 0 {
            return bad("--text-chars", "texts of 0 characters say nothing".into(), "1 or more");
        }
        Ok(())
    }
}
