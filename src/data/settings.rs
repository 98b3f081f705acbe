//! Settings of the data: section `[data]`.

use crate::error::{Error, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What is read, and how a record becomes tokens (section `[data]`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DataSettings {
    /// The data directory.
    pub path: String,
    /// The tasks, in order. Empty: those of the records, in the order they are first met.
    pub tasks: Vec<String>,
    /// The prompts to start from.
    pub prompts: PromptPreset,
    /// Prompts by task name (Jinja; variables `history`, `items`, `query`), over the preset's. A
    /// record without a query (history) leaves that variable undefined: `{% if query %}` tests it,
    /// and printing it makes it required.
    pub templates: BTreeMap<String, String>,
    /// Put the prompt into the checkpoint's own chat template, as the user's message.
    pub chat_template: bool,
    /// What stands for an item in prompts and targets.
    pub item_identity: ItemIdentity,
    /// The token of an item; `{}` is its id. A token that the tokenizer already has is used as it is.
    pub item_token: String,
    /// Text between two items of a history. Unset: a space, or `, ` between titles.
    pub item_separator: Option<String>,
    /// Semantic ids (`item_identity = "semantic"`).
    pub semantic: SemanticSettings,
    /// Most tokens of a sequence (prompt and target; the encoder's input of an encoder-decoder
    /// model). What is too long loses its oldest history items first, then the end of its query.
    #[schemars(range(min = 8))]
    pub max_length: usize,
    /// Most history items, the newest ones (0: as many as fit).
    pub history_limit: usize,
    /// Whether a target ends with the end-of-sequence token.
    pub eos: EndOfSequence,
    /// Rows that may be left out because something is wrong with them; they are counted by reason.
    pub skip_bad_rows: usize,
    /// Share of the general text kept apart to measure what was forgotten, when the data directory
    /// has no `general-heldout.txt` or `.jsonl`.
    #[schemars(range(min = 0), extend("exclusiveMaximum" = 1))]
    pub general_held_out: f64,
    /// Most tokens of one piece of general text.
    #[schemars(range(min = 2))]
    pub general_length: usize,
}

impl Default for DataSettings {
    fn default() -> Self {
        Self {
            path: String::new(),
            tasks: Vec::new(),
            prompts: PromptPreset::Published,
            templates: BTreeMap::new(),
            chat_template: false,
            item_identity: ItemIdentity::Atomic,
            item_token: "<item_{}>".into(),
            item_separator: None,
            semantic: SemanticSettings::default(),
            max_length: 512,
            history_limit: 50,
            eos: EndOfSequence::Auto,
            skip_bad_rows: 0,
            general_held_out: 0.25,
            general_length: 256,
        }
    }
}

impl DataSettings {
    /// Checks what types alone cannot say.
    ///
    /// # Errors
    /// A usage error that names the setting.
    pub fn validate(&self) -> Result<()> {
        let bad = |key: &str, what: String, remedy: &str| {
            Err(Error::usage(what).at(format!("data.{key}")).remedy(remedy))
        };
        if self.item_token.matches("{}").count() != 1 || self.item_token.trim() == "{}" {
            return bad(
                "item_token",
                format!("`{}` must contain `{{}}` once, and more than it", self.item_token),
                "`<item_{}>`",
            );
        }
        if self.max_length < 8 {
            return bad(
                "max_length",
                format!("{} leaves no room for a prompt", self.max_length),
                "at least 8",
            );
        }
        if !(0.0..1.0).contains(&self.general_held_out) {
            let what = format!("{} is not a share", self.general_held_out);
            return bad("general_held_out", what, "0 or more, less than 1");
        }
        if self.general_length < 2 {
            return bad("general_length", "a piece of text needs two tokens".into(), "256");
        }
        let (levels, codes) = (self.semantic.levels, self.semantic.codes);
        if levels == 0 || levels > 16 || !(2..=65536).contains(&codes) {
            let what = format!("{levels} levels of {codes} codes");
            return bad("semantic", what, "1 to 16 levels, 2 to 65536 codes");
        }
        for (i, task) in self.tasks.iter().enumerate() {
            if task.trim().is_empty() || self.tasks[..i].contains(task) {
                return bad("tasks", format!("`{task}` is empty or listed twice"), "name every task once");
            }
        }
        Ok(())
    }
}

/// Prompts that come with the engine, for the tasks `rec` and `search`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PromptPreset {
    /// Sentences in the manner of the published method.
    #[default]
    Published,
    /// Bare cue words: `<items> next words :` and `<items> find words :`; for small models.
    Cue,
}

/// What stands for an item in prompts and targets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ItemIdentity {
    /// One token of its own an item.
    #[default]
    Atomic,
    /// The item's text (its title), in ordinary tokens.
    Text,
    /// A few code tokens shared among items, from residual k-means over item embeddings.
    Semantic,
}

/// Shape of semantic ids.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SemanticSettings {
    /// Codes of an id (one more where two items would share an id).
    #[schemars(range(min = 1, max = 16))]
    pub levels: usize,
    /// Different codes of a level.
    #[schemars(range(min = 2, max = 65536))]
    pub codes: usize,
    /// Most k-means iterations a level.
    #[schemars(range(min = 1))]
    pub iterations: usize,
}

impl Default for SemanticSettings {
    fn default() -> Self {
        Self { levels: 3, codes: 256, iterations: 25 }
    }
}

/// Whether a target ends with the end-of-sequence token.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum EndOfSequence {
    /// Only where an item takes several tokens, so that no item is the beginning of another.
    #[default]
    Auto,
    /// Always (the published behaviour).
    Always,
    /// Never.
    Never,
}
