//! How text is read, where the text itself does not say.

use crate::data::content;
use crate::error::{Error, Result};
use serde::Serialize;

/// What the user says of the text tables. What is not said is told by looking at them.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Reading {
    /// What stands between two fields: `,`, `;`, `|`, `::`, `tab`, `space` (any number of blanks), ..
    #[serde(skip_serializing_if = "Option::is_none")]
    pub separator: Option<String>,
    /// Whether the first line names the columns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub header: Option<bool>,
    /// Whether fields may stand in double quotes; unset: unless the separator is a tab.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quotes: Option<bool>,
    /// Whether a backslash takes the next character's meaning away.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub escapes: bool,
    /// The encoding of files that carry no mark of theirs; unset: UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encoding: Option<String>,
    /// Words that stand for no value, besides nothing and `\N`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<String>,
}

impl Reading {
    /// Checks what is said.
    ///
    /// # Errors
    /// A usage error that names the flag.
    pub fn validate(&self) -> Result<()> {
        self.encoding()?;
        if let Some(separator) = self.separator()? {
            let reserved = separator.iter().any(|b| b.is_ascii_alphanumeric() || b"\"\\\n\r.-_".contains(b));
            if separator.is_empty() || separator.len() > 8 || reserved {
                let shown = self.separator.as_deref().unwrap_or_default();
                return Err(Error::usage(format!("`{shown}` cannot separate fields"))
                    .at("--separator")
                    .remedy("such as , ; | :: tab space or \\x01"));
            }
            if separator == b" " && self.quotes == Some(true) {
                return Err(Error::usage("fields in quotes need a separator of their own, not blanks")
                    .at("--separator, --quotes"));
            }
        }
        if self.escapes && self.quotes == Some(false) {
            return Err(Error::usage("without quotes a backslash is a backslash")
                .at("--escapes, --quotes")
                .remedy("leave --escapes out"));
        }
        Ok(())
    }
    /// The flag of something that is said of delimited text alone, or else of the encoding of text.
    pub(in crate::prepare) fn flag(&self, delimited: bool) -> Option<&'static str> {
        let flags = [
            (delimited && self.separator.is_some(), "--separator"),
            (delimited && self.header.is_some(), "--header"),
            (delimited && self.quotes.is_some(), "--quotes"),
            (delimited && self.escapes, "--escapes"),
            (!delimited && self.encoding.is_some(), "--encoding"),
        ];
        flags.into_iter().find(|(said, _)| *said).map(|(_, flag)| flag)
    }
    /// The bytes of the separator.
    pub(super) fn separator(&self) -> Result<Option<Vec<u8>>> {
        let Some(text) = &self.separator else { return Ok(None) };
        Ok(Some(match text.to_ascii_lowercase().as_str() {
            "tab" | "\\t" => b"\t".to_vec(),
            "space" | "blank" => b" ".to_vec(),
            "comma" => b",".to_vec(),
            "semicolon" => b";".to_vec(),
            "pipe" => b"|".to_vec(),
            hex if hex.starts_with("\\x") => {
                let byte = u8::from_str_radix(&hex[2..], 16).ok().filter(u8::is_ascii);
                vec![byte.ok_or_else(|| {
                    Error::usage(format!("`{text}` is no byte")).at("--separator").remedy("such as \\x01")
                })?]
            }
            _ => text.as_bytes().to_vec(),
        }))
    }
    /// The encoding, if one is given.
    pub(super) fn encoding(&self) -> Result<Option<&'static encoding_rs::Encoding>> {
        self.encoding.as_deref().map(content::encoding).transpose()
    }
}
