//! A run's directory, and what it keeps of what it was made of.
//!
//! A run owns its settings, its items (their order, their texts, their codes), its prompts and the step norms that it
//! matches, so that what its tokens mean never depends on files that may have changed since. Of what it does not
//! copy, the base model and the records, it keeps fingerprints ([`Sources`]). Later commands read the run
//! ([`Run::open`]), lay its catalogue over the data of today ([`Run::data`]), say what differs, and refuse what would
//! lose its meaning. Files are written whole, and by a resume only once everything is known to fit.
//!
//! ```text
//! config.toml          settings in force; paths whole, or from the run where they lead into it
//! catalogue.jsonl      {item, text, codes?} in the order of the item tokens
//! chat_template.json   the base model's chat template, where prompts are put into it
//! match-step.json      update norms of the run whose steps are matched
//! sources.json         fingerprints: base model, tokenizer, catalogue, records, general text
//! history.jsonl        started, resumed (with what was changed), interrupted, ended
//! ```

mod catalogue;
mod data;
mod directory;
mod history;
mod norms;
mod settings;
mod sources;

pub use data::{Reads, RunData};
pub use directory::RunDirectory;
pub use history::{End, append, end, events};
pub use norms::StepNorms;
pub use settings::{Change, Purpose, whole};
pub use sources::{Part, Sources, part};

use crate::config::{Config, Layer};
use crate::data::{Catalogue, ChatTemplate, SemanticIds};
use crate::error::{Error, Result};
use crate::files::write_atomically;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};

const CONFIG: &str = "config.toml";
const CHAT: &str = "chat_template.json";
const NORMS: &str = "match-step.json";
const SOURCES: &str = "sources.json";

/// What a run keeps of what it was made of.
#[derive(Debug, Clone)]
pub struct Run {
    /// The run's directory, whole.
    pub path: PathBuf,
    /// The settings in force. Paths are whole.
    pub config: Config,
    /// The items, numbered as their tokens.
    pub items: Catalogue,
    /// The items' codes, of a run with semantic ids.
    pub codes: Option<SemanticIds>,
    /// The chat template around the prompts, where one is used.
    pub chat: Option<ChatTemplate>,
    /// The step norms that this run matches.
    pub norms: Option<StepNorms>,
    /// Fingerprints of everything else.
    pub sources: Sources,
}

impl Run {
    /// Reads what the run in `path` keeps.
    ///
    /// # Errors
    /// Not a run; a run of an older version, which keeps no catalogue; a file that was changed or cannot be read.
    pub fn open(path: &Path) -> Result<Self> {
        if !path.join(CONFIG).is_file() {
            return Err(Error::usage("this is not a run directory: it has no config.toml")
                .at(path.display())
                .remedy("give the directory that `gems-engine train --out` wrote"));
        }
        let sources: Option<Sources> = read_json(&path.join(SOURCES))?;
        let (Some(sources), true) = (sources, path.join(catalogue::FILE).is_file()) else {
            return Err(Error::usage(
                "this run was made by an older version: it keeps no catalogue and no fingerprints of its own, so \
                 what its item tokens mean cannot be known",
            )
            .at(path.display())
            .remedy("use it with the version that made it, go on from its model/ with --model, or train again"));
        };
        sources.check_format().map_err(|e| e.at(path.join(SOURCES).display()))?;
        let path = whole(path);
        let (items, codes) = catalogue::read(&path, &sources.catalogue)?;
        let (noted, home) = (history::settings(&path)?, history::directory(&path)?);
        Ok(Self {
            config: settings::read(&path, noted.as_deref(), home.as_deref())?,
            chat: read_json(&path.join(CHAT))?,
            norms: read_json(&path.join(NORMS))?,
            path,
            items,
            codes,
            sources,
        })
    }

    /// Writes everything into the directory of a run that begins; config.toml comes last.
    ///
    /// # Errors
    /// The file system.
    pub fn begin(&mut self) -> Result<()> {
        // What a start that came to nothing left behind.
        for name in ["basis.safetensors", "before.json", settings::STAGED] {
            write_json::<()>(&self.path.join(name), None)?;
        }
        self.sources.catalogue = catalogue::write(&self.path, &self.items, self.codes.as_ref())?;
        write_json(&self.path.join(CHAT), self.chat.as_ref())?;
        write_json(&self.path.join(NORMS), self.norms.as_ref())?;
        write_json(&self.path.join(SOURCES), Some(&self.sources))?;
        history::begin(&self.path)?;
        settings::write(&self.path, &self.config)
    }

    /// The settings in force with `layers` over them, and what these change.
    ///
    /// # Errors
    /// Settings that cannot be used; changes that `purpose` may not make, by name.
    pub fn settings(&self, layers: Vec<Layer>, purpose: Purpose) -> Result<(Config, Vec<Change>)> {
        settings::over(self, layers, purpose)
    }

    /// Puts the settings of a resumption in force and notes what it changes.
    ///
    /// # Errors
    /// The file system.
    pub fn resume(&mut self, config: &Config, changes: &[Change], step: u64, notes: &[String]) -> Result<()> {
        let settle = || settings::settle(&self.path, history::settings(&self.path)?.as_deref());
        settle()?;
        // The event puts the settings in force: a crash leaves both or neither.
        let staged = (!changes.is_empty()).then(|| settings::stage(&self.path, config)).transpose()?;
        history::resumed(&self.path, step, staged.as_deref().map(|hash| (changes, hash)), notes)?;
        settle()?;
        self.config = config.clone();
        Ok(())
    }
}

/// Reads a JSON file; nothing where there is none.
fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io("read", path, e)),
    };
    let value = serde_json::from_slice(&text);
    value.map(Some).map_err(|e| {
        Error::data(format!("not what was written here: {e}"))
            .at(path.display())
            .remedy("put the file back as it was")
    })
}

/// Writes a JSON file, or sees to it that there is none.
fn write_json<T: Serialize>(path: &Path, value: Option<&T>) -> Result<()> {
    let Some(value) = value else {
        return match std::fs::remove_file(path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("replace", path, e)),
            _ => Ok(()),
        };
    };
    let text = serde_json::to_vec_pretty(value).map_err(|e| Error::data(e.to_string()).at(path.display()))?;
    write_atomically(path, &text)
}
