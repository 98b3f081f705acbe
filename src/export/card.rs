//! What a tuned model must be asked with: `gems.json` for programs, `README.md` for people.

use crate::error::{Error, Result};
use crate::files::write_atomically;
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, context};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;

/// A model's card.
pub struct Card<'a> {
    /// What the model is called.
    pub name: &'a str,
    /// Whether it is a whole checkpoint; else an adapter.
    pub merged: bool,
    /// Whether an encoder reads the prompt.
    pub encoder_decoder: bool,
    /// The prompt of every task.
    pub prompts: BTreeMap<&'a str, &'a str>,
    /// Whether the prompt goes into the checkpoint's chat template.
    pub chat: bool,
    /// What stands between two items of a history.
    pub separator: &'a str,
    /// Most items of a history, the newest (0: all).
    pub history_limit: usize,
    /// The token that ends a target.
    pub end: Option<u32>,
    /// Number of items.
    pub items: usize,
    /// Whether every item is one token.
    pub single: bool,
    /// Whether the items have rows of their own in the table.
    pub rows: bool,
    /// A request that can be answered.
    pub example: Example,
}

/// A request.
#[derive(Debug, Clone, Default)]
pub struct Example {
    /// The task.
    pub task: String,
    /// Item ids, oldest first.
    pub history: Vec<String>,
    /// What was typed.
    pub query: Option<String>,
}

impl Card<'_> {
    /// Writes both files into `dir`.
    ///
    /// # Errors
    /// The file system.
    pub fn write(&self, dir: &Path) -> Result<()> {
        let about = json!({
            "gems_engine": env!("CARGO_PKG_VERSION"),
            "prompts": self.prompts,
            "chat_template": self.chat,
            "separator": self.separator,
            "history_limit": self.history_limit,
            "end": self.end,
        });
        let about = serde_json::to_vec_pretty(&about).map_err(|e| Error::model(e.to_string()))?;
        write_atomically(&dir.join("gems.json"), &about)?;
        write_atomically(&dir.join("README.md"), self.text()?.as_bytes())
    }

    fn text(&self) -> Result<String> {
        let values = context! {
            version => env!("CARGO_PKG_VERSION"),
            name => self.name.to_string(),
            merged => self.merged,
            encoder_decoder => self.encoder_decoder,
            tasks => self.prompts.keys().map(|task| task.to_string()).collect::<Vec<_>>(),
            chat => self.chat,
            items => self.items,
            single => self.single,
            rows => self.rows,
            task => json!(self.example.task).to_string(),
            history => json!(self.example.history).to_string(),
            query => self.example.query.as_ref().map_or("None".into(), |query| json!(query).to_string()),
        };
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().keep_trailing_newline(true).build();
        let written = syntax.and_then(|syntax| {
            environment.set_syntax(syntax);
            environment.render_str(include_str!("card.md"), values)
        });
        written.map_err(|e| Error::model(format!("the model's card: {e}")))
    }
}
