//! BM25 (Robertson and Zaragoza, 2009) over the texts of items, with k1 = 1.2 and b = 0.75.

use std::collections::HashMap;

const K1: f64 = 1.2;
const B: f64 = 0.75;

/// Texts to be found by words.
pub(super) struct Bm25 {
    /// Of every word the items whose text has it, and its saturated frequency there.
    weights: HashMap<String, Vec<(u32, f64)>>,
    texts: usize,
}

impl Bm25 {
    /// `texts` by item; each item once.
    pub fn new<'t>(texts: impl Iterator<Item = (u32, &'t str)>) -> Self {
        let mut frequencies: HashMap<String, Vec<(u32, f64)>> = HashMap::new();
        let mut lengths: HashMap<u32, f64> = HashMap::new();
        for (item, text) in texts {
            let words = words(text);
            lengths.insert(item, words.len() as f64);
            for word in words {
                let of_word = frequencies.entry(word).or_default();
                match of_word.last_mut() {
                    Some((last, count)) if *last == item => *count += 1.0,
                    _ => of_word.push((item, 1.0)),
                }
            }
        }
        // In f64 a sum of whole numbers has no order.
        let mean = lengths.values().sum::<f64>() / lengths.len().max(1) as f64;
        for (item, frequency) in frequencies.values_mut().flatten() {
            *frequency *= (K1 + 1.0) / (*frequency + K1 * (1.0 - B + B * lengths[item] / mean));
        }
        Self { weights: frequencies, texts: lengths.len() }
    }

    /// Items that have a word of the query, with their scores, in no order.
    pub fn scores(&self, query: &str) -> HashMap<u32, f64> {
        let mut scores = HashMap::new();
        for found in words(query).iter().filter_map(|word| self.weights.get(word)) {
            let (all, with) = (self.texts as f64, found.len() as f64);
            let rarity = (1.0 + (all - with + 0.5) / (with + 0.5)).ln();
            for (item, weight) in found {
                *scores.entry(*item).or_default() += rarity * weight;
            }
        }
        scores
    }
}

/// Words in lower case; scripts without spaces by character and by pairs of characters.
fn words(text: &str) -> Vec<String> {
    let (mut words, mut word, mut before) = (Vec::new(), String::new(), None);
    for c in text.chars().flat_map(char::to_lowercase) {
        let dense = matches!(c, '\u{2e80}'..='\u{9fff}' | '\u{ac00}'..='\u{d7af}' | '\u{f900}'..='\u{faff}');
        if c.is_alphanumeric() && !dense {
            word.push(c);
        } else if !word.is_empty() {
            words.push(std::mem::take(&mut word));
        }
        if dense {
            words.push(c.to_string());
            if let Some(before) = before {
                words.push(format!("{before}{c}"));
            }
        }
        before = dense.then_some(c);
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}
