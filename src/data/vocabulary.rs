//! The checkpoint's tokenizer, extended by item tokens.

use super::record::Catalogue;
use super::semantic::SemanticIds;
use super::settings::{DataSettings, EndOfSequence, ItemIdentity};
use crate::error::{Error, Result};
use crate::files::write_atomically;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use tokenizers::{AddedToken, Tokenizer};

/// Largest tokenizer.json that is read, in bytes.
const MAX_TOKENIZER_BYTES: u64 = 1 << 30;
/// Files that belong to the tokenizer and are carried along unchanged.
const COMPANIONS: &[&str] = &["tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"];

/// How a model reads its input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// Prompt and target in one sequence.
    DecoderOnly,
    /// The prompt goes to the encoder; the decoder begins with this token.
    EncoderDecoder {
        /// `decoder_start_token_id`.
        decoder_start: u32,
    },
}

/// Token ids of texts and items.
pub struct Vocabulary {
    tokenizer: Tokenizer,
    source: PathBuf,
    base_size: usize,
    eos: Option<u32>,
    identity: ItemIdentity,
    /// What stands for each item inside a prompt.
    names: Vec<Box<str>>,
    /// The tokens of each item as a target, without the end of sequence.
    tokens: Vec<Box<[u32]>>,
    ends: bool,
}

impl Vocabulary {
    /// Reads `tokenizer.json` (and the names of special tokens) of `model_dir` and gives every item
    /// its tokens. `semantic` is needed for `item_identity = "semantic"` only.
    ///
    /// # Errors
    /// A tokenizer that cannot be read; items whose identity needs a text they do not have.
    pub fn new(
        model_dir: &Path,
        items: &Catalogue,
        settings: &DataSettings,
        architecture: Architecture,
        semantic: Option<&SemanticIds>,
    ) -> Result<Self> {
        let tokenizer = read_tokenizer(&model_dir.join("tokenizer.json"))?;
        let base_size = size_of(&tokenizer);
        let eos = end_of_sequence(model_dir, &tokenizer)?;
        let (identity, source) = (settings.item_identity, model_dir.to_path_buf());
        let (names, tokens) = (Vec::new(), Vec::new());
        let mut this = Self { tokenizer, source, base_size, eos, identity, names, tokens, ends: false };
        match identity {
            ItemIdentity::Atomic => this.name_atomically(items, &settings.item_token)?,
            ItemIdentity::Text => this.name_by_text(items, architecture)?,
            ItemIdentity::Semantic => this.name_by_codes(items, semantic)?,
        }
        this.ends = match settings.eos {
            EndOfSequence::Always => true,
            EndOfSequence::Never => false,
            EndOfSequence::Auto => this.tokens.iter().any(|t| t.len() > 1),
        };
        if this.ends && this.eos.is_none() {
            return Err(Error::model("the tokenizer names no end-of-sequence token")
                .at(model_dir.display())
                .remedy("set eos_token in tokenizer_config.json, or data.eos = \"never\""));
        }
        Ok(this)
    }

    fn name_atomically(&mut self, items: &Catalogue, pattern: &str) -> Result<()> {
        self.names = (0..items.len() as u32).map(|i| pattern.replace("{}", items.id(i)).into()).collect();
        self.add_tokens()?;
        self.tokens = self.names.iter().map(|name| Ok([self.token(name)?].into())).collect::<Result<_>>()?;
        Ok(())
    }

    fn name_by_codes(&mut self, items: &Catalogue, semantic: Option<&SemanticIds>) -> Result<()> {
        let codes = semantic.ok_or_else(|| {
            Error::usage("semantic ids need embeddings of the items").at("data.item_identity")
        })?;
        if codes.len() != items.len() {
            return Err(Error::model(format!("{} semantic ids for {} items", codes.len(), items.len()))
                .remedy("the ids were made for another catalogue: make them again"));
        }
        self.names = codes.token_names().into_iter().map(Into::into).collect();
        self.add_tokens()?;
        self.tokens = (0..items.len())
            .map(|i| codes.names(i).map(|name| self.token(&name)).collect::<Result<_>>())
            .collect::<Result<_>>()?;
        self.names = (0..items.len()).map(|i| codes.names(i).collect::<String>().into()).collect();
        Ok(())
    }

    /// Titles as they are; where two would be the same tokens, ` #2`, ` #3` tells them apart.
    fn name_by_text(&mut self, items: &Catalogue, architecture: Architecture) -> Result<()> {
        // Byte-level tokenizers of decoder-only models keep the blank before a word in its token.
        let lead = if architecture == Architecture::DecoderOnly { " " } else { "" };
        let mut taken: HashMap<Box<[u32]>, u32> = HashMap::new();
        let mut repeats: HashMap<String, u32> = HashMap::new();
        for number in 0..items.len() as u32 {
            let text = items.text(number).ok_or_else(|| {
                Error::data(format!("item `{}` has no text", items.id(number)))
                    .at("data.item_identity")
                    .remedy("give every item a text, or use item_identity = \"atomic\"")
            })?;
            let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
            let repeat = repeats.entry(text.clone()).or_insert(0);
            let (name, tokens) = loop {
                *repeat += 1;
                let name = if *repeat == 1 { text.clone() } else { format!("{text} #{repeat}") };
                let tokens: Box<[u32]> = self.plain(&format!("{lead}{name}"))?.into();
                if !tokens.is_empty() && !taken.contains_key(&tokens) {
                    break (name, tokens);
                }
                if *repeat as usize > items.len() + 1 {
                    return Err(Error::model("the tokenizer cannot tell this item's text from others")
                        .at(format!("item `{}`", items.id(number)))
                        .remedy("use item_identity = \"atomic\""));
                }
            };
            taken.insert(tokens.clone(), number);
            self.names.push(name.into());
            self.tokens.push(tokens);
        }
        Ok(())
    }

    fn add_tokens(&mut self) -> Result<()> {
        // An existing token of the same content is used as it is: adding it again would change how
        // the tokenizer matches it.
        let missing = self.names.iter().filter(|n| self.tokenizer.token_to_id(n).is_none());
        let new: Vec<AddedToken> =
            missing.map(|n| AddedToken::from(n.to_string(), false).normalized(false)).collect();
        self.tokenizer.add_tokens(new).map_err(|e| failed(e, &self.source))?;
        Ok(())
    }

    fn token(&self, name: &str) -> Result<u32> {
        self.tokenizer.token_to_id(name).ok_or_else(|| {
            Error::model(format!("the tokenizer did not take the token `{name}`")).at(self.source.display())
        })
    }

    /// One more than the largest token id, item tokens included.
    pub fn size(&self) -> usize {
        size_of(&self.tokenizer)
    }
    /// One more than the largest token id before item tokens were added.
    pub fn base_size(&self) -> usize {
        self.base_size
    }
    /// Rows that a model with `rows` embedding rows needs: never fewer than it has.
    ///
    /// # Errors
    /// The model has fewer rows than its own tokenizer has tokens.
    pub fn rows_for(&self, rows: usize) -> Result<usize> {
        if self.base_size > rows {
            return Err(Error::model(format!(
                "the tokenizer has token ids up to {}, the model only {rows} embedding rows",
                self.base_size - 1
            ))
            .at(self.source.display())
            .remedy("use the tokenizer.json that belongs to this checkpoint"));
        }
        Ok(rows.max(self.size()))
    }
    /// The end-of-sequence token.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }
    /// Whether a target ends with the end-of-sequence token.
    pub fn ends_targets(&self) -> bool {
        self.ends
    }
    /// How items are represented.
    pub fn identity(&self) -> ItemIdentity {
        self.identity
    }
    /// Number of items.
    pub fn items(&self) -> usize {
        self.tokens.len()
    }
    /// The tokens of item `number`, without the end of sequence. No two items have the same.
    pub fn item(&self, number: u32) -> &[u32] {
        &self.tokens[number as usize]
    }
    /// What stands for item `number` inside a prompt.
    pub fn name(&self, number: u32) -> &str {
        &self.names[number as usize]
    }
    /// Tokens of item `number` as a target: its tokens, and the end of sequence where it is used.
    pub fn target(&self, number: u32) -> impl Iterator<Item = u32> + '_ {
        self.item(number).iter().copied().chain(self.eos.filter(|_| self.ends))
    }
    /// Most tokens of any item as a target.
    pub fn longest_target(&self) -> usize {
        self.tokens.iter().map(|t| t.len()).max().unwrap_or(0) + usize::from(self.ends)
    }
    /// The smallest range of token ids that covers all item tokens; empty when items are texts.
    pub fn item_rows(&self) -> Range<u32> {
        if self.identity == ItemIdentity::Text {
            return 0..0;
        }
        let ids = || self.tokens.iter().flat_map(|t| t.iter().copied());
        ids().min().unwrap_or(0)..ids().max().map_or(0, |m| m + 1)
    }
    /// Tokens of a text with the special tokens the tokenizer puts around a sequence.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.ids(text, true)
    }
    /// Tokens of a text alone.
    pub fn plain(&self, text: &str) -> Result<Vec<u32>> {
        self.ids(text, false)
    }
    /// The text of token ids.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.tokenizer.decode(ids, skip_special).map_err(|e| failed(e, &self.source))
    }

    fn ids(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        let encoding = self.tokenizer.encode_fast(text, special).map_err(|e| failed(e, &self.source))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Writes `tokenizer.json`, its companions, and `items.jsonl` ({item, text, tokens, ids}, in
    /// catalogue order) into `dir`.
    ///
    /// # Errors
    /// The file system.
    pub fn save(&self, dir: &Path, items: &Catalogue) -> Result<()> {
        let text = self.tokenizer.to_string(true).map_err(|e| failed(e, &self.source))?;
        write_atomically(&dir.join("tokenizer.json"), text.as_bytes())?;
        for name in COMPANIONS {
            let (from, to) = (self.source.join(name), dir.join(name));
            if from.is_file() && from != to {
                let contents = std::fs::read(&from).map_err(|e| Error::io("read", &from, e))?;
                write_atomically(&to, &contents)?;
            }
        }
        let mut lines = String::new();
        for number in 0..items.len() as u32 {
            let row = json!({"item": items.id(number), "text": items.text(number),
                "tokens": self.name(number), "ids": self.item(number)});
            lines.push_str(&row.to_string());
            lines.push('\n');
        }
        write_atomically(&dir.join("items.jsonl"), lines.as_bytes())
    }
}

fn failed(error: tokenizers::Error, place: &Path) -> Error {
    Error::model(format!("the tokenizer fails: {error}")).at(place.display())
}

fn size_of(tokenizer: &Tokenizer) -> usize {
    // Ids may have gaps; what counts is the largest one.
    let added = tokenizer.get_added_tokens_decoder().keys().max().map_or(0, |m| *m as usize + 1);
    added.max(tokenizer.get_vocab_size(false))
}

fn read_tokenizer(path: &Path) -> Result<Tokenizer> {
    let bytes = std::fs::metadata(path)
        .map_err(|e| {
            Error::io("read", path, e)
                .remedy("the model directory must hold a tokenizer.json (a \"fast\" tokenizer)")
        })?
        .len();
    if bytes > MAX_TOKENIZER_BYTES {
        return Err(Error::model(format!("{bytes} bytes are too many for a tokenizer")).at(path.display()));
    }
    let contents = std::fs::read(path).map_err(|e| Error::io("read", path, e))?;
    let mut tokenizer = Tokenizer::from_bytes(contents).map_err(|e| {
        Error::model(format!("not a tokenizer: {e}"))
            .at(path.display())
            .remedy("save it again with `tokenizer.save_pretrained`")
    })?;
    // What a checkpoint's tokenizer was last used with must not cut or pad our sequences.
    tokenizer.with_padding(None);
    tokenizer.with_truncation(None).map_err(|e| failed(e, path))?;
    Ok(tokenizer)
}

/// The end-of-sequence token: named by tokenizer_config.json, else by id in config.json.
fn end_of_sequence(dir: &Path, tokenizer: &Tokenizer) -> Result<Option<u32>> {
    let read = |name: &str| -> Result<Value> {
        let path = dir.join(name);
        match std::fs::read_to_string(&path) {
            Ok(text) => serde_json::from_str(&text)
                .map_err(|e| Error::model(format!("not valid JSON: {e}")).at(path.display())),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Value::Null),
            Err(e) => Err(Error::io("read", &path, e)),
        }
    };
    let named = match &read("tokenizer_config.json")?["eos_token"] {
        Value::String(token) => Some(token.clone()),
        object => object["content"].as_str().map(Into::into),
    };
    if let Some(id) = named.and_then(|token| tokenizer.token_to_id(&token)) {
        return Ok(Some(id));
    }
    let id = match &read("config.json")?["eos_token_id"] {
        Value::Array(ids) => ids.first().and_then(Value::as_u64),
        id => id.as_u64(),
    };
    Ok(id.and_then(|id| u32::try_from(id).ok()).filter(|id| (*id as usize) < size_of(tokenizer)))
}
