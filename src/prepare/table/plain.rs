//! JSON objects as most logs have them: strings without escapes, numbers, no lists. They are read without what a parser of all
//! of JSON must be ready for; whatever is not so plain is left to one.

use crate::prepare::cell::Cell;
use std::borrow::Cow;

/// Hands the fields of an object to `each`, in order. None: it is no plain one, and what was handed over counts for nothing.
pub(super) fn fields<'t>(line: &'t str, mut each: impl FnMut(&'t str, Cell<'t>)) -> Option<()> {
    let mut rest = Rest(line);
    rest.mark(b'{')?;
    loop {
        let name = rest.string()?;
        rest.mark(b':')?;
        each(name, rest.value()?);
        if rest.mark(b',').is_none() {
            rest.mark(b'}')?;
            return rest.0.is_empty().then_some(());
        }
    }
}

/// What is left of a line, without blanks in front of it.
struct Rest<'t>(&'t str);

impl<'t> Rest<'t> {
    /// Takes so many bytes, and the blanks behind them.
    fn take(&mut self, bytes: usize) -> &'t str {
        let (taken, rest) = self.0.split_at(bytes);
        self.0 = match rest.as_bytes() {
            [b' ' | b'\t' | b'\r' | b'\n', ..] => rest.trim_start_matches([' ', '\t', '\r', '\n']),
            _ => rest,
        };
        taken
    }

    fn mark(&mut self, mark: u8) -> Option<()> {
        (self.0.as_bytes().first() == Some(&mark)).then(|| {
            self.take(1);
        })
    }

    fn string(&mut self) -> Option<&'t str> {
        let inside = self.0.strip_prefix('"')?.as_bytes();
        let end = inside.iter().position(|b| matches!(b, b'"' | b'\\' | 0..0x20))?;
        (inside[end] == b'"').then(|| &self.take(end + 2)[1..=end])
    }

    fn value(&mut self) -> Option<Cell<'t>> {
        match self.0.as_bytes().first()? {
            b'"' => self.string().map(|text| Cell::Text(Cow::Borrowed(text))),
            b'-' | b'0'..=b'9' => self.number(),
            _ => self.word(),
        }
    }

    fn number(&mut self) -> Option<Cell<'t>> {
        let digit = |b: &u8| b.is_ascii_digit();
        let end =
            self.0.bytes().position(|b| !matches!(b, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E'))?;
        let number = self.take(end);
        match number.as_bytes() {
            // No more than 18 digits: every such number is an i64.
            [b'1'..=b'9', rest @ ..] if rest.len() < 18 && rest.iter().all(digit) => {
                number.parse().ok().map(Cell::Int)
            }
            _ => serde_json::from_str(number).ok(),
        }
    }

    fn word(&mut self) -> Option<Cell<'t>> {
        let words = [("null", Cell::Missing), ("true", Cell::Bool(true)), ("false", Cell::Bool(false))];
        let (word, value) = words.into_iter().find(|(word, _)| self.0.starts_with(word))?;
        self.take(word.len());
        Some(value)
    }
}
