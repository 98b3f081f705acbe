//! The checkpoint's tokenizer, extended by item tokens.

use super::files::TokenizerFiles;
use super::markup::{Quotes, Reader};
use super::record::Catalogue;
use super::semantic::SemanticIds;
use super::settings::{DataSettings, EndOfSequence, ItemIdentity};
use super::tokens::{BaseTokens, content};
use crate::error::{Error, Result};
use crate::files::write_atomically;
use crate::model::Architecture;
use rayon::prelude::*;
use serde_json::{Value, json};
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::Path;
use tokenizers::{AddedToken, Tokenizer};

/// Which side of a model reads the prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PromptSide {
    /// The decoder, all there is: prompt and target in one sequence.
    Decoder,
    /// The encoder; the decoder begins with this token.
    Encoder {
        /// `decoder_start_token_id`.
        decoder_start: u32,
    },
}

impl From<&Architecture> for PromptSide {
    fn from(model: &Architecture) -> Self {
        match model.is_encoder_decoder() {
            true => PromptSide::Encoder { decoder_start: model.decoder_start.unwrap_or(0) },
            false => PromptSide::Decoder,
        }
    }
}

/// Token ids of texts and items.
pub struct Vocabulary {
    tokenizer: Tokenizer,
    reader: Reader,
    files: TokenizerFiles,
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
    /// Reads the tokens of `model_dir` from all files that name some, and gives every item its tokens.
    /// `semantic` is needed for `item_identity = "semantic"` only.
    ///
    /// # Errors
    /// A tokenizer that cannot be read, or whose files contradict each other; items whose identity needs a text
    /// they do not have.
    pub fn new(
        model_dir: &Path,
        items: &Catalogue,
        settings: &DataSettings,
        prompt_side: PromptSide,
        semantic: Option<&SemanticIds>,
    ) -> Result<Self> {
        let files = TokenizerFiles::read(model_dir)?;
        let BaseTokens { mut tokenizer, size: base_size } = BaseTokens::read(&files)?;
        let eos = end_of_sequence(&files, &tokenizer, base_size);
        let identity = settings.item_identity;
        let names = match identity {
            ItemIdentity::Atomic => {
                (0..items.len() as u32).map(|i| settings.item_token.replace("{}", items.id(i))).collect()
            }
            ItemIdentity::Text => Vec::new(),
            ItemIdentity::Semantic => code_names(items, semantic)?,
        };
        add_tokens(&mut tokenizer, &names)?;
        let reader = Reader::new(&tokenizer, &names.iter().map(String::as_str).collect())?;
        let (tokens, ends) = (Vec::new(), false);
        let mut this =
            Self { tokenizer, reader, files, base_size, eos, identity, names: vec![], tokens, ends };
        match (identity, semantic) {
            (ItemIdentity::Text, _) => this.name_by_text(items, prompt_side)?,
            (ItemIdentity::Semantic, Some(codes)) => this.name_by_codes(codes)?,
            _ => {
                this.tokens =
                    names.iter().map(|name| Ok([this.token(name)?].into())).collect::<Result<_>>()?;
                this.names = names.into_iter().map(Into::into).collect();
            }
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

    /// Identifies what the checkpoint's files say of tokens: other texts or other ids, another fingerprint. Chat
    /// templates, layout of JSON and the order of its keys do not count.
    pub fn fingerprint(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        self.files.hash(&mut hasher);
        hasher.update(format!("{} {:?}", self.base_size, self.eos).as_bytes());
        hasher.finalize().to_hex().as_str()[..32].to_string()
    }

    fn name_by_codes(&mut self, codes: &SemanticIds) -> Result<()> {
        self.tokens = (0..codes.len())
            .map(|i| codes.names(i).map(|name| self.token(&name)).collect::<Result<_>>())
            .collect::<Result<_>>()?;
        self.names = (0..codes.len()).map(|i| codes.names(i).collect::<String>().into()).collect();
        Ok(())
    }

    /// Titles as they are; where two would be the same tokens, ` #2`, ` #3` tells them apart.
    fn name_by_text(&mut self, items: &Catalogue, prompt_side: PromptSide) -> Result<()> {
        // Byte-level tokenizers of decoder-only models keep the blank before a word in its token.
        let lead = if prompt_side == PromptSide::Decoder { " " } else { "" };
        let mut taken: HashMap<Box<[u32]>, u32> = HashMap::new();
        let mut repeats: HashMap<String, u32> = HashMap::new();
        for (number, (text, tokens)) in (0..).zip(self.titles(items, lead)?) {
            let mut first = Some(tokens);
            let repeat = repeats.entry(text.clone()).or_insert(0);
            let (name, tokens) = loop {
                *repeat += 1;
                let name = if *repeat == 1 { text.clone() } else { format!("{text} #{repeat}") };
                let tokens: Box<[u32]> = match first.take() {
                    Some(tokens) if *repeat == 1 => tokens.into(),
                    _ => self.plain(&format!("{lead}{name}"))?.into(),
                };
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

    /// The text of every item with single blanks, and its tokens behind `lead`.
    fn titles(&self, items: &Catalogue, lead: &str) -> Result<Vec<(String, Vec<u32>)>> {
        let all = 0..items.len() as u32;
        if let Some(number) = all.clone().find(|number| items.text(*number).is_none()) {
            return Err(Error::data(format!("item `{}` has no text", items.id(number)))
                .at("data.item_identity")
                .remedy("give every item a text, or use item_identity = \"atomic\""));
        }
        let read = |number: u32| {
            let words = items.text(number).unwrap_or_default().split_whitespace();
            let text = words.collect::<Vec<_>>().join(" ");
            let tokens = self.plain(&format!("{lead}{text}"))?;
            Ok((text, tokens))
        };
        all.into_par_iter().map(read).collect()
    }

    fn token(&self, name: &str) -> Result<u32> {
        self.tokenizer.token_to_id(name).ok_or_else(|| {
            Error::model(format!("the tokenizer did not take the token `{name}`"))
                .at(self.files.dir.display())
        })
    }

    /// One more than the largest token id, item tokens included.
    pub fn size(&self) -> usize {
        let added = self.tokenizer.get_added_tokens_decoder().keys().max().map_or(0, |id| *id as usize + 1);
        added.max(self.base_size)
    }
    /// One more than the largest id that any file of the checkpoint uses.
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
            .at(self.files.dir.display())
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
    /// Tokens of a text with the special tokens the tokenizer puts around a sequence. Nothing in the text itself is
    /// markup: `</s>` is four characters.
    ///
    /// # Errors
    /// The tokenizer fails.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.reader.text(text, true)
    }
    /// Tokens of a text alone.
    ///
    /// # Errors
    /// The tokenizer fails.
    pub fn plain(&self, text: &str) -> Result<Vec<u32>> {
        self.reader.text(text, false)
    }
    /// A template's own text with its markup put aside: special tokens, item tokens, and what is written like a tag.
    ///
    /// # Errors
    /// More different markup than can be put aside.
    pub fn mark(&self, text: &str, quotes: &mut Quotes) -> Result<String> {
        self.reader.mark(text, quotes)
    }
    /// Tokens of a rendered prompt: what `quotes` put aside as markup is markup, and nothing else. `special` puts around
    /// it what the tokenizer puts around a sequence.
    ///
    /// # Errors
    /// The tokenizer fails.
    pub fn encode_prompt(&self, rendered: &str, quotes: &Quotes, special: bool) -> Result<Vec<u32>> {
        self.reader.prompt(rendered, quotes, special)
    }
    /// The text of token ids.
    ///
    /// # Errors
    /// The tokenizer fails.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.tokenizer.decode(ids, skip_special).map_err(failed)
    }

    /// Writes the tokenizer with its new tokens, all that belongs to it, to chat and to generation in the base
    /// model's directory, and `items.jsonl` ({item, text, tokens, ids}, in catalogue order) into `dir`.
    ///
    /// # Errors
    /// The file system.
    pub fn save(&self, dir: &Path, items: &Catalogue) -> Result<()> {
        self.files.write(&self.tokenizer, dir)?;
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

fn failed(error: tokenizers::Error) -> Error {
    Error::model(format!("the tokenizer fails: {error}"))
}

/// The names of all code tokens.
fn code_names(items: &Catalogue, semantic: Option<&SemanticIds>) -> Result<Vec<String>> {
    let codes = semantic
        .ok_or_else(|| Error::usage("semantic ids need embeddings of the items").at("data.item_identity"))?;
    match codes.len() == items.len() {
        true => Ok(codes.token_names()),
        false => Err(Error::model(format!("{} semantic ids for {} items", codes.len(), items.len()))
            .remedy("the ids were made for another catalogue: make them again")),
    }
}

/// New tokens after all others. A token that was added before is used as it is.
fn add_tokens(tokenizer: &mut Tokenizer, names: &[String]) -> Result<()> {
    let known = tokenizer.get_added_tokens_decoder();
    let known: HashSet<&str> = known.values().map(|token| token.content.as_str()).collect();
    let missing = names.iter().filter(|name| !known.contains(name.as_str()));
    let new: Vec<AddedToken> =
        missing.map(|name| AddedToken::from(name.as_str(), false).normalized(false)).collect();
    tokenizer.add_tokens(new).map_err(failed)?;
    Ok(())
}

/// The end-of-sequence token: by name in the tokenizer's files, else by id in config.json.
fn end_of_sequence(files: &TokenizerFiles, tokenizer: &Tokenizer, size: usize) -> Option<u32> {
    let named = [&files.config, &files.special_map].into_iter().find_map(|f| content(&f["eos_token"]));
    if let Some(id) = named.and_then(|token| tokenizer.token_to_id(token)) {
        return Some(id);
    }
    let ids = [&files.model, &files.generation].into_iter().find_map(|f| match &f["eos_token_id"] {
        Value::Array(ids) => ids.first().and_then(Value::as_u64),
        id => id.as_u64(),
    });
    ids.and_then(|id| u32::try_from(id).ok()).filter(|id| (*id as usize) < size)
}
