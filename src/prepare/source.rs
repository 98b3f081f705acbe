//! Where logs come from.

use super::amazon::Amazon;
use super::events::Events;
use super::kuaisar::KuaiSar;
use super::qilin::Qilin;
use super::reader::Reader;
use super::settings::{HistoryRule, NegativeKind, Settings, SplitRule};
use crate::error::{Error, Result};
use serde::Serialize;

/// A source of logs, as it is distributed.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case", tag = "source")]
pub enum Source {
    /// A table of events of any kind.
    Events(Box<Events>),
    /// Qilin: Parquet as published, or CSV.
    Qilin(Qilin),
    /// KuaiSAR: CSV.
    #[serde(rename = "kuaisar")]
    KuaiSar(KuaiSar),
    /// Amazon reviews with product-search queries.
    Amazon(Amazon),
}

impl Source {
    /// Finds the files and looks whether they have what is read and named.
    pub(super) fn open<'s>(&'s self, settings: &Settings) -> Result<Box<dyn Reader + 's>> {
        self.check(settings)?;
        Ok(match self {
            Source::Events(source) => Box::new(source.open(settings)?),
            Source::Qilin(source) => Box::new(source.open()?),
            Source::KuaiSar(source) => Box::new(source.open()?),
            Source::Amazon(source) => Box::new(source.open()?),
        })
    }

    /// Refuses what this source cannot do.
    fn check(&self, settings: &Settings) -> Result<()> {
        let refuse = |flag: &str, what: &str, remedy: &str| Err(Error::usage(what).at(flag).remedy(remedy));
        let own_test = matches!(self, Source::Qilin(_) | Source::Amazon(_));
        if settings.split == SplitRule::Given && !own_test {
            let remedy = "leave-one-out, time or users; qilin and amazon have tests of their own";
            return refuse("--split given", "this source has no test of its own", remedy);
        }
        let histories = matches!(self, Source::Events(_) | Source::Qilin(_));
        if settings.history == HistoryRule::Log && !histories {
            return refuse("--history log", "this source gives no histories", "all or own");
        }
        let graded = matches!(self, Source::Events(_) | Source::Amazon(_));
        if settings.min_label.is_some() && !graded {
            return refuse("--min-label", "this source has clicks and no labels", "leave it out");
        }
        Ok(())
    }

    /// Changes settings to what published work did with this source.
    pub fn publish(&self, settings: &mut Settings) {
        settings.exclude_pairs = false;
        // The kinds are known, so this cannot fail.
        let _ = settings.negatives.set("uniform:99");
        debug_assert!(settings.negatives.wants(NegativeKind::Uniform));
        match self {
            Source::Qilin(_) => {
                settings.history = HistoryRule::Log;
                settings.expand_targets = true;
                (settings.core.user, settings.core.item, settings.core.per_task) = (3, 3, 3);
                settings.core.count_shown = true;
            }
            Source::Amazon(_) => {
                settings.history = HistoryRule::SearchSeesAll;
                (settings.min_history, settings.max_history, settings.train_sample) = (5, 20, 0.3);
            }
            Source::Events(_) | Source::KuaiSar(_) => {}
        }
    }
}
