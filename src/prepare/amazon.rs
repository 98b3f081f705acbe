//! Amazon reviews (McAuley 2014, 5-core) with the product-search queries of Ai et al. (2017).
//!
//! A review is a recommendation event. A line of the qrels, `USER_QUERY 0 ASIN 1`, is a search event: QUERY is
//! the number of a line of `query_text.txt`; its time is that of the user's review of the item. The queries are
//! category names, not what anyone typed, and the pairs are those of the reviews: without exclusion most of
//! a search test is in the training of recommendation.

use super::cell::absent;
use super::inputs::{self, Input};
use super::intake::Intake;
use super::literal;
use super::log::{Entry, Log};
use super::notes;
use super::reader::{ItemTexts, Reader};
use super::settings::Settings;
use super::table::{self, Column, Reading, Table, each_line_of};
use crate::data::fault::{Checked, Fault};
use crate::data::rows;
use crate::error::{Error, Result};
use serde::Serialize;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// The files of one category.
#[derive(Debug, Clone, Serialize)]
pub struct Amazon {
    /// The directory that holds them.
    pub dir: PathBuf,
}

const COLUMNS: [&str; 4] = ["reviewerID", "asin", "unixReviewTime", "overall"];

impl Amazon {
    pub(super) fn open(&self) -> Result<Opened> {
        let remedy = "reviews_NAME_5.json.gz, and query_text.txt.gz with *.qrels of the product-search set";
        if !self.dir.exists() {
            return Err(inputs::missing(&self.dir, "", remedy));
        }
        let files = inputs::files_below(&self.dir)?;
        let named = |part: &str| -> Vec<PathBuf> {
            files.iter().filter(|f| name(f).contains(part)).cloned().collect()
        };
        let needed = |part: &str, what: &str| match named(part) {
            found if found.is_empty() => Err(inputs::missing(&self.dir, what, remedy)),
            found => Ok(found),
        };
        let reviews = needed("reviews_", "reviews_*.json")?;
        let (texts, qrels) = (needed("query_text", "query_text.txt")?, needed("qrels", "*.qrels")?);
        let columns = COLUMNS.map(|name| match name {
            "overall" => Column::optional(name),
            name => Column::required(name),
        });
        let reviews: Vec<Input> = reviews.iter().map(|path| Input::new(path)).collect();
        let reviews = table::open_all(&reviews, &columns, &Reading::default())?;
        let items = named("meta_");
        let read = [&texts, &qrels, &items].into_iter().flatten().map(PathBuf::as_path);
        let unread = inputs::others(&self.dir, read.chain(reviews.iter().map(Table::path)))?;
        Ok(Opened { columns, reviews, texts, qrels, items, unread })
    }
}

/// The files once they were looked at.
pub(super) struct Opened {
    columns: [Column; 4],
    reviews: Vec<Table>,
    texts: Vec<PathBuf>,
    qrels: Vec<PathBuf>,
    items: Vec<PathBuf>,
    unread: Vec<PathBuf>,
}

impl Reader for Opened {
    fn read(&mut self, log: &mut Log, intake: &mut Intake, settings: &Settings) -> Result<()> {
        intake.notes.extend(notes::not_read(&self.unread));
        let others = self.texts.iter().chain(&self.qrels).map(PathBuf::as_path);
        self.reviews.iter().map(Table::path).chain(others).for_each(|f| intake.expect(f));
        for table in &mut self.reviews {
            table.read(intake, &self.columns, &mut |row| {
                let [user, item, time, stars] = row else { return Ok(()) };
                let user = user.id(COLUMNS[0])?.ok_or_else(|| absent(COLUMNS[0]))?;
                let item = item.id(COLUMNS[1])?.ok_or_else(|| absent(COLUMNS[1]))?;
                let time = Some(log.clock.read(time, COLUMNS[2])?);
                let stars = stars.number(COLUMNS[3])?;
                let wanted = settings.min_label.is_none_or(|least| stars.is_some_and(|s| s >= least));
                let (user, item) =
                    (log.users.number(&user, COLUMNS[0])?, log.items.number(&item, COLUMNS[1])?);
                let task = log.task("rec")?;
                log.push(Entry { user, item, task, time, wanted, ..Entry::default() })
            })?;
        }
        let queries = read_queries(&self.texts)?;
        for file in &self.qrels {
            let test = name(file).contains("test");
            each_line_of(intake, file, &mut |line| add_judgement(log, line, &queries, test))?;
        }
        Ok(())
    }

    fn texts(&mut self, texts: &mut ItemTexts, intake: &mut Intake) -> Result<()> {
        for file in &self.items {
            each_line_of(intake, file, &mut |line| {
                // The 2014 files hold Python literals.
                let fields: Value =
                    serde_json::from_str(line).or_else(|_| literal::parse(line)).map_err(|what| {
                        let error = Error::data(what).remedy("a JSON object or a Python dictionary a line");
                        Fault::new("bad literal", error)
                    })?;
                let id = fields["asin"].as_str().ok_or_else(|| absent("asin"))?;
                let category = || fields["categories"].as_array()?.first()?.as_array()?.last()?.as_str();
                texts.set(id, fields["title"].as_str().or_else(category))
            })?;
        }
        Ok(())
    }
}

fn name(path: &Path) -> &str {
    path.file_name().and_then(|n| n.to_str()).unwrap_or_default()
}

/// The lines of the query texts; blank ones count, since queries are numbered by line.
fn read_queries(files: &[PathBuf]) -> Result<Vec<String>> {
    let (mut queries, mut line) = (Vec::new(), Vec::new());
    for path in files {
        let mut reader = rows::open_text(path)?;
        while rows::next_line(&mut *reader, &mut line, path)? {
            let place = || format!("{} line {}", path.display(), queries.len() + 1);
            let text = rows::utf8(&line).map_err(|f| f.error.at(place()))?;
            queries.push(text.split_whitespace().collect::<Vec<_>>().join(" "));
        }
    }
    Ok(queries)
}

fn add_judgement(log: &mut Log, line: &str, queries: &[String], test: bool) -> Checked<()> {
    let fault = |what: String, field: &str| {
        let error = Error::data(what).at(field).remedy("USER_QUERYLINE 0 ASIN 1");
        Fault::new("bad judgement", error)
    };
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [key, _, item, grade] = fields[..] else {
        return Err(fault(format!("{} fields instead of 4", fields.len()), "line"));
    };
    let (user, number) =
        key.rsplit_once('_').ok_or_else(|| fault(format!("`{key}` has no `_`"), "query id"))?;
    let query = number.parse().ok().and_then(|n: usize| queries.get(n)).filter(|q| !q.is_empty());
    let query = query.ok_or_else(|| {
        fault(format!("`{number}` is not a line of the {} query texts", queries.len()), "query id")
    })?;
    let grade: f64 = grade.parse().map_err(|_| fault(format!("`{grade}` is not a grade"), "grade"))?;
    let (user, item) = (log.users.number(user, "query id")?, log.items.number(item, "item")?);
    let task = log.task("search")?;
    log.push(Entry { user, item, task, wanted: grade > 0.0, test, query, ..Entry::default() })
}
