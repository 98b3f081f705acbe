//! Models by their name on the Hugging Face Hub, found in the local cache; nothing is downloaded.
//!
//! The cache's layout (huggingface_hub): `models--OWNER--NAME/refs/main` holds a commit, and
//! `models--OWNER--NAME/snapshots/COMMIT` the files of that commit.

use crate::error::Error;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The local Hub cache, as huggingface_hub finds it in the environment.
pub struct Cache {
    dir: PathBuf,
}

impl Cache {
    /// The cache of this process's environment: `HF_HUB_CACHE`, `HF_HOME/hub`, `XDG_CACHE_HOME/huggingface/hub`, or
    /// `~/.cache/huggingface/hub`.
    pub fn of_environment() -> Self {
        Self::of(|name| std::env::var_os(name))
    }

    /// The same in an environment given by `get`.
    pub fn of(get: impl Fn(&str) -> Option<OsString>) -> Self {
        let home = get("HOME").map(PathBuf::from).unwrap_or_default();
        let set = |name: &str| {
            let value = PathBuf::from(get(name).filter(|v| !v.is_empty())?);
            Some(value.strip_prefix("~").map_or_else(|_| value.clone(), |rest| home.join(rest)))
        };
        let direct = set("HF_HUB_CACHE").or_else(|| set("HUGGINGFACE_HUB_CACHE"));
        let usual = || {
            let all = set("XDG_CACHE_HOME").unwrap_or_else(|| home.join(".cache"));
            set("HF_HOME").unwrap_or_else(|| all.join("huggingface")).join("hub")
        };
        Self { dir: direct.unwrap_or_else(usual) }
    }

    /// The directory that `model` names: itself where there is such a file or directory, else its snapshot in the
    /// cache; otherwise itself.
    pub fn locate(&self, model: &Path) -> PathBuf {
        match model.exists() {
            true => model.to_path_buf(),
            false => self.snapshot(model).unwrap_or_else(|| model.to_path_buf()),
        }
    }

    /// The snapshot of `main`, or the only one there is.
    fn snapshot(&self, model: &Path) -> Option<PathBuf> {
        let folder = self.folder(name(model)?);
        let main = std::fs::read_to_string(folder.join("refs/main")).ok();
        let commit = main.map(|commit| commit.trim().to_string());
        // What stands in the file must be one name, not a way out of the cache.
        let commit = commit.filter(|c| !c.is_empty() && c.chars().all(|c| c.is_ascii_alphanumeric()));
        let found = commit.map(|commit| folder.join("snapshots").join(commit));
        let found = found.or_else(|| {
            let mut all = std::fs::read_dir(folder.join("snapshots")).ok()?.flatten();
            all.next().filter(|_| all.next().is_none()).map(|entry| entry.path())
        });
        found.filter(|snapshot| snapshot.join("config.json").is_file())
    }

    fn folder(&self, name: &str) -> PathBuf {
        self.dir.join(format!("models--{}", name.replace('/', "--")))
    }

    /// Why `model`, which is no directory, cannot be read, if it can be a name on the Hub.
    pub fn missing(&self, model: &Path) -> Option<Error> {
        let name = name(model)?;
        let folder = self.folder(name);
        let what = match folder.exists() {
            true => {
                format!("no such directory, and the cache has no whole snapshot of it ({})", folder.display())
            }
            false => {
                format!("no such directory, and not in the local Hugging Face cache ({})", self.dir.display())
            }
        };
        Some(Error::model(what).at(name).remedy(format!(
            "give a directory; a model of the Hub is fetched by `hf download {name}`, then its name is enough"
        )))
    }
}

/// A path that can be a name on the Hub: `NAME` or `OWNER/NAME`.
fn name(model: &Path) -> Option<&str> {
    let text = model.to_str()?;
    let part = |part: &str| {
        let word = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        !part.is_empty() && part.chars().all(word) && !part.starts_with(['.', '-']) && !part.contains("--")
    };
    (text.split('/').count() <= 2 && text.split('/').all(part)).then_some(text)
}
