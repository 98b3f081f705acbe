//! How the fields of a delimited text are written.

/// How fields are written.
#[derive(Debug, Clone, Default)]
pub(super) struct Dialect {
    pub separator: Vec<u8>,
    /// Fields may stand in double quotes.
    pub quotes: bool,
    /// A backslash takes the next character's meaning away.
    pub escapes: bool,
    /// The first line names the columns.
    pub header: bool,
    /// A line before it says what separates fields, as Excel writes it: `sep=;`.
    pub announced: bool,
    /// The columns' names; their numbers from 1 on where there is no header.
    pub names: Vec<String>,
    /// Fields stand in double quotes that are characters here.
    pub keeps_quotes: bool,
    /// Wanted columns of ids whose integers were written as floats: 12.0.
    pub floats: Vec<usize>,
}

/// The separator that stands for any number of blanks.
pub(super) const BLANKS: &[u8] = b" ";

impl Dialect {
    /// The separator, for messages.
    pub fn shown(&self) -> String {
        match self.separator.as_slice() {
            b"\t" => "a tab".into(),
            BLANKS => "a blank".into(),
            other => format!("`{}`", other.escape_ascii()),
        }
    }
    /// What the text is.
    pub fn describe(&self) -> String {
        let usual = self.quotes == (self.separator != b"\t") && self.header && !self.escapes;
        let mut text = match self.separator.as_slice() {
            b"," if usual => "CSV".to_string(),
            b"\t" if usual => "TSV".to_string(),
            _ => format!("text separated by {}", self.shown()),
        };
        for (holds, what) in [
            (!self.header, ", no header"),
            (self.separator == b"\t" && self.quotes, ", quoted"),
            (self.separator != b"\t" && !self.quotes, ", quotes are characters"),
            (self.escapes, ", backslash escapes"),
            (!self.floats.is_empty(), ", ids written as floats"),
        ] {
            if holds {
                text += what;
            }
        }
        text
    }
}
