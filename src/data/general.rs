//! General text: to learn the null space from, and to measure what was forgotten.

use super::dataset::Dataset;
use super::filenames;
use super::rows;
use super::settings::DataSettings;
use super::vocabulary::Vocabulary;
use crate::error::{Error, Kind, Result};
use crate::random::{Purpose, permutation};
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

/// Two disjoint sets of documents.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GeneralText {
    /// Documents to learn the null space from.
    pub calibration: Vec<String>,
    /// Documents to measure perplexity and divergence on; none of them is also in `calibration`.
    pub held_out: Vec<String>,
    /// Documents of `general-heldout` that were left out because they are in `calibration` too.
    pub repeated: usize,
}

impl GeneralText {
    /// Reads the files of [`Dataset::general`](super::Dataset::general): a document a line (`.txt`)
    /// or a row `{text}` (`.jsonl`, `.parquet`). Without a `general-heldout` file a share of the documents is
    /// held out, chosen by their contents: the same text is on the same side wherever it stands.
    ///
    /// # Errors
    /// A file that cannot be read, is not UTF-8, or whose rows have no text.
    pub fn load(files: &[PathBuf], settings: &DataSettings) -> Result<Self> {
        let (mut calibration, mut held_out) = (Vec::new(), Vec::new());
        let apart = |path: &&PathBuf| filenames::name(path).0 == "general-heldout";
        for path in files.iter().filter(apart) {
            held_out.extend(documents(path)?);
        }
        let given = !held_out.is_empty();
        for path in files.iter().filter(|p| !apart(p)) {
            for document in documents(path)? {
                if !given && is_held_out(&document, settings.general_held_out) {
                    held_out.push(document);
                } else {
                    calibration.push(document);
                }
            }
        }
        // Text to measure with that was also learned from would hide what was forgotten.
        let learned: HashSet<&str> = calibration.iter().map(String::as_str).collect();
        let before = held_out.len();
        held_out.retain(|d| !learned.contains(d.as_str()));
        let repeated = before - held_out.len();
        Ok(Self { calibration, held_out, repeated })
    }

    /// What the user should know of text that is not what it is taken for: nothing left to measure with, text that is the
    /// training data's own, text that the tokenizer does not keep.
    ///
    /// # Errors
    /// The tokenizer fails.
    pub fn warnings(&self, data: &Dataset, vocabulary: &Vocabulary) -> Result<Vec<String>> {
        let mut all = Vec::new();
        if self.calibration.is_empty() && self.held_out.is_empty() {
            return Ok(all);
        }
        if self.held_out.is_empty() {
            let why = match self.repeated {
                0 => String::new(),
                n => format!(" (all {n} documents of general-heldout are also in the text to learn from)"),
            };
            all.push(format!(
                "no general text is left to measure with{why}: what is forgotten will not be known; add other text as \
                 general-heldout.txt, or more text"
            ));
        }
        let documents = || self.calibration.iter().chain(&self.held_out).take(LOOKED_AT);
        let mut strange: HashSet<String> = documents().map(|text| plain(text)).collect();
        let count = strange.len();
        let titles = (0..data.items.len() as u32).filter_map(|item| data.items.text(item));
        let queries = data.train.records.iter().filter_map(|r| r.query.as_deref());
        titles.chain(queries).for_each(|text| {
            strange.remove(&plain(text));
        });
        if 2 * strange.len() < count {
            let known = count - strange.len();
            all.push(format!(
                "{known} of {count} different documents of general text are titles or queries of the data: these are then \
                 kept and measured, not general knowledge; give other text"
            ));
        }
        let lost = lost(documents(), vocabulary)?;
        if lost > MOST_LOST {
            all.push(format!(
                "the tokenizer does not keep {:.0} % of the characters of the general text, as of a language that it does \
                 not know: what it cannot read is neither protected nor measured; give text that the model can read",
                100.0 * lost
            ));
        }
        Ok(all)
    }

    /// Documents as token sequences of at most `length` tokens, until `max_tokens` are reached (0:
    /// all). A document longer than `length` becomes several pieces; pieces of one token are dropped.
    ///
    /// Where there is more text than that, windows of a few pieces are drawn from all over it, the
    /// same ones every time, and stay in the order of the text.
    ///
    /// # Errors
    /// The tokenizer fails.
    pub fn chunks(
        documents: &[String],
        vocabulary: &Vocabulary,
        length: usize,
        max_tokens: usize,
    ) -> Result<Vec<Vec<u32>>> {
        let length = length.max(2);
        let pieces = |text: &str| -> Result<Vec<Vec<u32>>> {
            let tokens = vocabulary.encode(text)?;
            Ok(tokens.chunks(length).filter(|p| p.len() > 1).map(<[u32]>::to_vec).collect())
        };
        // No token is shorter than a byte.
        if max_tokens == 0 || documents.iter().map(|d| d.len() + 1).sum::<usize>() <= max_tokens {
            return Ok(documents.iter().map(|d| pieces(d)).collect::<Result<Vec<_>>>()?.concat());
        }
        let windows: Vec<&str> = documents.iter().flat_map(|d| windows(d, WINDOW * length)).collect();
        let (mut drawn, mut total) = (Vec::new(), 0);
        for number in permutation(0, Purpose::Text, 0, 0, windows.len()) {
            if total >= max_tokens {
                break;
            }
            let pieces = pieces(windows[number as usize])?;
            total += pieces.iter().map(Vec::len).sum::<usize>();
            drawn.push((number, pieces));
        }
        drawn.sort_unstable_by_key(|(number, _)| *number);
        Ok(drawn.into_iter().flat_map(|(_, pieces)| pieces).collect())
    }
}

/// Most characters of a text that may be lost on their way through a tokenizer: it may strip accents.
const MOST_LOST: f64 = 0.25;
/// Documents that are looked at, and characters of each.
const LOOKED_AT: usize = 1000;
const CHARACTERS: usize = 200;

/// A text as it is compared.
fn plain(text: &str) -> String {
    text.split_whitespace().map(str::to_lowercase).collect::<Vec<_>>().join(" ")
}

/// The share of the letters and digits of texts that tokens do not give back; upper and lower case count alike.
fn lost<'a>(documents: impl Iterator<Item = &'a String>, vocabulary: &Vocabulary) -> Result<f64> {
    let (mut all, mut lost) = (0usize, 0usize);
    let counts = |text: &str| {
        let mut counts: HashMap<char, usize> = HashMap::new();
        let letters = text.chars().flat_map(char::to_lowercase).filter(|c| c.is_alphanumeric());
        letters.for_each(|c| *counts.entry(c).or_default() += 1);
        counts
    };
    for document in documents {
        let text: String = document.chars().take(CHARACTERS).collect();
        let (before, after) = (counts(&text), counts(&vocabulary.decode(&vocabulary.encode(&text)?, true)?));
        all += before.values().sum::<usize>();
        let missing = |(c, n): (&char, &usize)| n.saturating_sub(after.get(c).copied().unwrap_or(0));
        lost += before.iter().map(missing).sum::<usize>();
    }
    Ok(lost as f64 / all.max(1) as f64)
}

/// Bytes of a window for every token of a piece.
const WINDOW: usize = 8;

/// A text in windows of at most `most` bytes that end between words where there are any.
fn windows(text: &str, most: usize) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let mut end = rest.len().min(most.max(4));
        while !rest.is_char_boundary(end) {
            end -= 1;
        }
        let blank = rest[..end].rfind(char::is_whitespace).filter(|at| end < rest.len() && *at > 0);
        let (window, tail) = rest.split_at(blank.unwrap_or(end));
        rest = tail;
        (!window.is_empty()).then_some(window)
    })
}

/// A pure function of the document, so that a duplicate never straddles the split.
fn is_held_out(document: &str, share: f64) -> bool {
    let hash = blake3::hash(document.as_bytes());
    let head = u64::from_le_bytes(std::array::from_fn(|i| hash.as_bytes()[i]));
    (head as f64) < share * u64::MAX as f64
}

fn documents(path: &Path) -> Result<Vec<String>> {
    if filenames::name(path).1 == "txt" { lines(path) } else { json_documents(path) }
}

fn lines(path: &Path) -> Result<Vec<String>> {
    let mut reader = rows::open_text(path)?;
    let (mut line, mut documents, mut number) = (Vec::new(), Vec::new(), 0);
    loop {
        number += 1;
        let place = || format!("{} line {number}", path.display());
        let more = rows::next_line(&mut *reader, &mut line, path)
            .map_err(|e| if e.kind == Kind::Data { e.at(place()) } else { e })?;
        if !more {
            return Ok(documents);
        }
        let text = std::str::from_utf8(&line).map_err(|e| {
            Error::data("not UTF-8").at(place()).remedy(rows::not_utf8(&line, e.valid_up_to()))
        })?;
        if !text.trim().is_empty() {
            documents.push(text.trim().to_string());
        }
    }
}

fn json_documents(path: &Path) -> Result<Vec<String>> {
    let mut documents = Vec::new();
    for row in rows::open(path, Some(&["text"]))? {
        let row = row?;
        let text = row.fields.get("text").and_then(|t| t.as_str()).ok_or_else(|| {
            Error::data("missing, or not a string")
                .at("text")
                .at(format!("{} line {}", path.display(), row.number))
                .remedy("write {\"text\": \"..\"} a line")
        })?;
        if !text.trim().is_empty() {
            documents.push(text.trim().to_string());
        }
    }
    Ok(documents)
}
