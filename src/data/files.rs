//! The files of a checkpoint that say something about its tokens, read and written.

use crate::error::{Error, Result};
use crate::files::write_atomically;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use tokenizers::{PreTokenizerWrapper, Tokenizer};

/// Largest file that is read, in bytes.
const MAX_BYTES: u64 = 1 << 30;
/// Files of tokenizer, chat and generation that are carried along as they are.
const COMPANIONS: &[&str] = &[
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "tokenizer.model.v3",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tiktoken.model",
    "tekken.json",
];
/// A folder of further chat templates.
const CHAT_TEMPLATES: &str = "additional_chat_templates";

/// What a checkpoint's files hold; a file that is not there is `null`.
pub(super) struct TokenizerFiles {
    /// The checkpoint's directory.
    pub dir: PathBuf,
    tokenizer: Vec<u8>,
    /// tokenizer_config.json
    pub config: Value,
    /// special_tokens_map.json
    pub special_map: Value,
    /// added_tokens.json
    pub added: Option<Map<String, Value>>,
    /// config.json
    pub model: Value,
    /// generation_config.json
    pub generation: Value,
}

/// What the library answers. It indexes by what the file says: a panic in it is an error about the file.
pub(super) fn asked<T>(call: impl FnOnce() -> tokenizers::Result<T>) -> tokenizers::Result<T> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|_| Err("its parts contradict each other".into()))
}

impl TokenizerFiles {
    /// Reads the files of `dir`.
    ///
    /// # Errors
    /// No tokenizer.json; a file that is too large, is a pointer, or is no JSON object.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join("tokenizer.json");
        let tokenizer = bytes(&path)?.ok_or_else(|| no_tokenizer(dir))?;
        let added = match object(dir, "added_tokens.json")? {
            Value::Object(map) => Some(map),
            _ => None,
        };
        Ok(Self {
            dir: dir.to_path_buf(),
            tokenizer,
            config: object(dir, "tokenizer_config.json")?,
            special_map: object(dir, "special_tokens_map.json")?,
            added,
            model: object(dir, "config.json")?,
            generation: object(dir, "generation_config.json")?,
        })
    }

    /// tokenizer.json as the library reads it, without cutting or padding.
    ///
    /// # Errors
    /// It is no tokenizer.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        let bad = |e: &dyn std::fmt::Display| {
            Error::model(format!("not a tokenizer: {e}"))
                .at(self.dir.join("tokenizer.json").display())
                .remedy("save it again with `tokenizer.save_pretrained`")
        };
        let mut tokenizer = asked(|| Tokenizer::from_bytes(&self.tokenizer)).map_err(|e| bad(&e))?;
        // What a checkpoint's tokenizer was last used with must not cut or pad our sequences.
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|e| bad(&e))?;
        // What the library looks up only when a text ends is looked up now.
        asked(|| tokenizer.encode_fast("a", true)).map_err(|e| bad(&e))?;
        Ok(tokenizer)
    }

    /// A part of tokenizer.json.
    ///
    /// # Errors
    /// The part is not as it must be.
    pub fn listed<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_slice(&self.tokenizer)
            .map_err(|e| Error::model(format!("not a tokenizer: {e}")).at("tokenizer.json"))
    }

    /// Adds to a hash what the files say of tokens: tokenizer.json byte for byte, the values of added_tokens.json,
    /// special_tokens_map.json and tokenizer_config.json, the last without its chat template.
    pub fn hash(&self, hasher: &mut blake3::Hasher) {
        hasher.update(blake3::hash(&self.tokenizer).as_bytes());
        let mut config = self.config.clone();
        if let Some(config) = config.as_object_mut() {
            config.remove("chat_template");
        }
        let mut all = json!([config, self.special_map, self.added]);
        all.sort_all_objects();
        hasher.update(all.to_string().as_bytes());
    }

    /// The class that transformers reads the tokenizer with, without `Fast`.
    pub fn class(&self) -> &str {
        let usual = match self.model["model_type"].as_str() {
            Some("llama" | "mistral" | "phi3") => "LlamaTokenizer",
            Some("gemma2" | "gemma3_text") => "GemmaTokenizer",
            Some("qwen2" | "qwen3") => "Qwen2Tokenizer",
            Some("t5" | "mt5" | "umt5") => "T5Tokenizer",
            _ => "",
        };
        let class = self.config["tokenizer_class"].as_str().or(self.model["tokenizer_class"].as_str());
        class.map_or(usual, |name| name.strip_suffix("Fast").unwrap_or(name))
    }

    /// Writes `tokenizer`, what tokenizer_config.json and added_tokens.json must say of it, and all companions.
    ///
    /// # Errors
    /// The file system.
    pub fn write(&self, tokenizer: &Tokenizer, dir: &Path) -> Result<()> {
        let text =
            tokenizer.to_string(true).map_err(|e| Error::model(format!("the tokenizer fails: {e}")))?;
        write_atomically(&dir.join("tokenizer.json"), text.as_bytes())?;
        let mut tokens: Vec<_> = tokenizer.get_added_tokens_decoder().into_iter().collect();
        tokens.sort_by_key(|(id, _)| *id);
        if self.config.is_object() {
            // The tokens as each of transformers' readers finds them: versions 4 and 5, fast and slow.
            let mut config = self.config.clone();
            let flags = tokens.iter().map(|(id, t)| {
                let flags = json!({"content": t.content, "lstrip": t.lstrip, "normalized": t.normalized,
                    "rstrip": t.rstrip, "single_word": t.single_word, "special": t.special});
                (id.to_string(), flags)
            });
            config["added_tokens_decoder"] = Value::Object(flags.collect());
            if leads_with_space(tokenizer)
                && config.get("add_prefix_space").is_none()
                && !self.builds_from_slow()
            {
                config["add_prefix_space"] = json!(true);
            }
            write_json(&dir.join("tokenizer_config.json"), &config)?;
        }
        if self.added.is_some() {
            let ids = tokens.iter().map(|(id, token)| (token.content.clone(), json!(id)));
            write_json(&dir.join("added_tokens.json"), &Value::Object(ids.collect()))?;
        }
        self.carry(dir)
    }

    /// Classes that transformers 4 builds from sentencepiece's file when `add_prefix_space` is given.
    fn builds_from_slow(&self) -> bool {
        ["LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer"].contains(&self.class())
    }

    fn carry(&self, dir: &Path) -> Result<()> {
        let copy = |from: &Path, to: &Path| -> Result<()> {
            match bytes(from)? {
                Some(contents) if from != to => write_atomically(to, &contents),
                _ => Ok(()),
            }
        };
        for name in COMPANIONS {
            copy(&self.dir.join(name), &dir.join(name))?;
        }
        let templates = self.dir.join(CHAT_TEMPLATES);
        for entry in std::fs::read_dir(&templates).into_iter().flatten().flatten() {
            let to = dir.join(CHAT_TEMPLATES);
            std::fs::create_dir_all(&to).map_err(|e| Error::io("create", &to, e))?;
            copy(&entry.path(), &to.join(entry.file_name()))?;
        }
        Ok(())
    }
}

/// Whether the first word of a text gets a space before it, by the pre-tokenizer alone.
fn leads_with_space(tokenizer: &Tokenizer) -> bool {
    matches!(tokenizer.get_pre_tokenizer(), Some(PreTokenizerWrapper::ByteLevel(b)) if b.add_prefix_space)
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    let text =
        serde_json::to_vec_pretty(value).map_err(|e| Error::model(e.to_string()).at(path.display()))?;
    write_atomically(path, &text)
}

/// The contents of a regular file, or none where there is no file.
fn bytes(path: &Path) -> Result<Option<Vec<u8>>> {
    let length = match std::fs::metadata(path) {
        Ok(found) if !found.is_file() => return Ok(None),
        Ok(found) => found.len(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io("read", path, e)),
    };
    if length > MAX_BYTES {
        let what = format!("{length} bytes are too many for a file about tokens");
        return Err(Error::model(what).at(path.display()));
    }
    let contents = std::fs::read(path).map_err(|e| Error::io("read", path, e))?;
    crate::model::no_pointer(path)?;
    Ok(Some(contents))
}

/// A file that holds a JSON object, or `null` where there is none.
pub(super) fn object(dir: &Path, name: &str) -> Result<Value> {
    let path = dir.join(name);
    let Some(contents) = bytes(&path)? else { return Ok(Value::Null) };
    let value: Value = serde_json::from_slice(&contents)
        .map_err(|e| Error::model(format!("not valid JSON: {e}")).at(path.display()))?;
    match value.is_object() {
        true => Ok(value),
        false => Err(Error::model("not a JSON object").at(path.display()).remedy("save the tokenizer again")),
    }
}

/// The error of a directory without tokenizer.json: what it has instead.
fn no_tokenizer(dir: &Path) -> Error {
    let slow =
        ["tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "tiktoken.model", "tekken.json"];
    let found = slow.iter().find(|name| dir.join(name).is_file());
    let what = match found {
        Some(name) => format!("no tokenizer.json: only a slow tokenizer's {name}"),
        None => "no tokenizer.json".to_string(),
    };
    Error::model(what).at(dir.display()).remedy(
        "the model directory must hold a tokenizer.json (a \"fast\" tokenizer): \
         `AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)` writes it",
    )
}
