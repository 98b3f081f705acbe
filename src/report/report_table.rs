//! A table as the pages show it.

/// A table of its own section.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ReportTable {
    /// Heading of the section.
    pub title: String,
    /// How to read it.
    pub caption: String,
    /// Names of the columns; the first one names the rows.
    pub header: Vec<String>,
    /// The cells, row by row.
    pub rows: Vec<Vec<String>>,
}
