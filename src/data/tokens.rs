//! The tokens of a checkpoint: what all of its files together say about them.
//!
//! tokenizer.json numbers most tokens. `added_tokens.json`, the `added_tokens_decoder` of
//! tokenizer_config.json and the names of special tokens add some, and config.json uses ids. Libraries that read
//! only one of these files give new tokens ids that are taken; here the ids are the union, new tokens come after
//! the largest, and what contradicts itself is refused.

use super::files::TokenizerFiles;
use crate::error::{Error, Result};
use serde::Deserialize;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use tokenizers::models::ModelWrapper;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, AddedVocabulary, Model, PreTokenizerWrapper, Tokenizer};

/// A class of transformers that puts begin and end of sequence around a text by `add_bos_token` and `add_eos_token`,
/// whatever tokenizer.json says: its name, and for both ends the defaults of flag and token (transformers 4.57).
type EndsByClass = (&'static str, [(bool, &'static str); 2]);
const ENDS_BY_CLASS: &[EndsByClass] = &[
    ("LlamaTokenizer", [(true, "<s>"), (false, "</s>")]),
    ("CodeLlamaTokenizer", [(true, "<s>"), (false, "</s>")]),
    ("GemmaTokenizer", [(true, "<bos>"), (false, "<eos>")]),
    ("CohereTokenizer", [(true, "<BOS_TOKEN>"), (false, "<|END_OF_TURN_TOKEN|>")]),
    ("GPTNeoXTokenizer", [(false, "<|endoftext|>"), (false, "<|endoftext|>")]),
];
/// Fields of config.json and generation_config.json that hold ids of tokens.
const ID_FIELDS: &[&str] = &[
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "unk_token_id",
    "sep_token_id",
    "cls_token_id",
    "mask_token_id",
    "decoder_start_token_id",
];

/// An added token in a file: flags that are left out have the defaults of the tokenizers library.
#[derive(Debug, Clone, Deserialize)]
struct Flags {
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    normalized: Option<bool>,
    #[serde(default)]
    special: bool,
}

#[derive(Deserialize)]
struct Listed {
    id: u32,
    #[serde(flatten)]
    token: Flags,
}

/// The part of tokenizer.json that the tokenizers library reads without its ids.
#[derive(Deserialize)]
struct Head {
    #[serde(default)]
    added_tokens: Vec<Listed>,
}

impl Flags {
    fn token(&self) -> AddedToken {
        AddedToken::from(self.content.as_str(), self.special)
            .single_word(self.single_word)
            .lstrip(self.lstrip)
            .rstrip(self.rstrip)
            .normalized(self.normalized.unwrap_or(!self.special))
    }
}

/// Added tokens by id, and which file named each first.
#[derive(Default)]
struct Union {
    tokens: BTreeMap<u32, (AddedToken, &'static str)>,
    ids: HashMap<String, u32>,
}

impl Union {
    /// One more token; a later file's flags win, another id or content is a contradiction.
    fn take(&mut self, id: u32, token: AddedToken, file: &'static str, model: &ModelWrapper) -> Result<()> {
        let clash = |what: String, other: &str| {
            let remedy = "save the tokenizer again with `tokenizer.save_pretrained`, or correct the file that is wrong";
            let place = if other == file { file.to_string() } else { format!("{other} and {file}") };
            Err(Error::model(what).at(place).remedy(remedy))
        };
        let content = token.content.clone();
        let in_model = model.token_to_id(&content).map(|id| (id, TOKENIZER));
        let in_files = self.ids.get(&content).map(|id| (*id, self.tokens[id].1));
        if let Some((other, source)) = in_files.or(in_model).filter(|(other, _)| *other != id) {
            return clash(format!("the token `{content}` has the ids {other} and {id}"), source);
        }
        let in_model = model.id_to_token(id).map(|name| (name, TOKENIZER));
        let in_files = self.tokens.get(&id).map(|(token, file)| (token.content.clone(), *file));
        if let Some((other, source)) = in_files.or(in_model).filter(|(other, _)| *other != content) {
            return clash(format!("the id {id} is both `{other}` and `{content}`"), source);
        }
        self.ids.insert(content, id);
        let first = self.tokens.get(&id).map_or(file, |(_, first)| first);
        self.tokens.insert(id, (token, first));
        Ok(())
    }
}

const TOKENIZER: &str = "tokenizer.json";

/// A checkpoint's tokenizer with the ids that all its files agree on.
pub(super) struct BaseTokens {
    /// The tokenizer; new tokens added to it get ids from `size` on.
    pub tokenizer: Tokenizer,
    /// One more than the largest id in use.
    pub size: usize,
}

impl BaseTokens {
    /// Reads the tokens of a checkpoint.
    ///
    /// # Errors
    /// A file that cannot be read; files that contradict each other, by name.
    pub fn read(files: &TokenizerFiles) -> Result<Self> {
        let mut tokenizer = files.tokenizer()?;
        let named = special_names(files);
        let union = union(files, tokenizer.get_model(), &named).map_err(|e| e.at(files.dir.display()))?;
        let top = fill_holes(&mut tokenizer, &union)?;
        let used = union.tokens.keys().map(|id| *id as usize + 1).max().unwrap_or(0);
        let size = top.max(used).max(reserved(files) as usize);
        lay_out(&mut tokenizer, &union, top, size)?;
        // Special tokens that no file numbers come next, as in transformers.
        let absent = named.iter().filter(|name| tokenizer.token_to_id(name).is_none());
        let absent: Vec<AddedToken> = absent.map(|n| AddedToken::from(n.as_str(), true)).collect();
        tokenizer.add_tokens(absent).map_err(failed)?;
        mark_ends(&mut tokenizer, files)?;
        lead_with_space(&mut tokenizer, files);
        Ok(Self { tokenizer, size })
    }
}

fn failed(error: tokenizers::Error) -> Error {
    Error::model(format!("the tokenizer fails: {error}"))
}

/// Names of special tokens, in the order in which transformers adds those that are missing.
fn special_names(files: &TokenizerFiles) -> Vec<String> {
    let single = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
    let lists = ["additional_special_tokens", "extra_special_tokens"];
    let mut names: Vec<String> = Vec::new();
    let mut add = |name: Option<&str>| {
        if let Some(name) = name.filter(|n| !n.is_empty() && !names.iter().any(|known| known == n)) {
            names.push(name.into());
        }
    };
    for source in [&files.config, &files.special_map] {
        single.iter().for_each(|key| add(content(&source[*key])));
        for value in lists.iter().map(|key| &source[*key]) {
            match value {
                Value::Array(list) => list.iter().for_each(|v| add(content(v))),
                Value::Object(map) => map.values().for_each(|v| add(content(v))),
                _ => {}
            }
        }
    }
    names
}

/// The content of a token that is written as a string or with its flags.
pub(super) fn content(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value["content"].as_str())
}

fn union(files: &TokenizerFiles, model: &ModelWrapper, named: &[String]) -> Result<Union> {
    let mut union = Union::default();
    let special = |token: AddedToken| match named.contains(&token.content) {
        true => token.special(true),
        false => token,
    };
    for (name, id) in files.added.iter().flat_map(|map| map.iter()) {
        let id = id.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| {
            Error::model(format!("`{name}` has the id {id}"))
                .at("added_tokens.json")
                .remedy("ids are whole numbers")
        })?;
        let token = special(AddedToken::from(name.as_str(), named.contains(name)));
        union.take(id, token, "added_tokens.json", model)?;
    }
    for listed in files.listed::<Head>()?.added_tokens {
        union.take(listed.id, special(listed.token.token()), TOKENIZER, model)?;
    }
    for (key, value) in files.config["added_tokens_decoder"].as_object().into_iter().flatten() {
        let place = "tokenizer_config.json";
        let bad = |what: String| {
            Error::model(what).at(format!("{place}: added_tokens_decoder")).remedy("save the tokenizer again")
        };
        let id: u32 = key.parse().map_err(|_| bad(format!("`{key}` is no id")))?;
        let flags = Flags::deserialize(value).map_err(|e| bad(format!("{key}: {e}")))?;
        union.take(id, special(flags.token()), place, model)?;
    }
    Ok(union)
}

/// One more than the largest id that config.json and generation_config.json use among the model's rows.
fn reserved(files: &TokenizerFiles) -> u32 {
    let rows = files.model["vocab_size"].as_u64().unwrap_or(0);
    let fields = [&files.model, &files.generation].into_iter().flat_map(|f| ID_FIELDS.iter().map(|k| &f[*k]));
    let ids = fields.flat_map(|value| match value {
        Value::Array(list) => list.iter().filter_map(Value::as_u64).collect(),
        value => value.as_u64().into_iter().collect::<Vec<_>>(),
    });
    ids.filter(|id| *id < rows).max().map_or(0, |id| id as u32 + 1)
}

/// Stands where no token has an id, so that the next one's is the one meant.
fn filler(id: u32) -> String {
    format!("<|reserved_token_{id}|>")
}

/// Gives every hole among the model's ids a token, since the library numbers new tokens by their count; returns
/// one more than the model's largest id.
fn fill_holes(tokenizer: &mut Tokenizer, union: &Union) -> Result<usize> {
    let model = tokenizer.get_model();
    if matches!(model, ModelWrapper::Unigram(_)) {
        return Ok(model.get_vocab_size());
    }
    let taken: HashMap<u32, String> = model.get_vocab().into_iter().map(|(name, id)| (id, name)).collect();
    let top = taken.keys().max().map_or(0, |id| id + 1);
    if top as usize > 1 << 24 {
        return Err(Error::model(format!("the largest token id is {}", top - 1)).at(TOKENIZER));
    }
    if taken.len() == top as usize && model.get_vocab_size() == top as usize {
        return Ok(top as usize);
    }
    let mut json = serde_json::to_value(model).map_err(|e| Error::model(e.to_string()).at(TOKENIZER))?;
    for id in (0..top).filter(|id| !taken.contains_key(id)) {
        let name = union.tokens.get(&id).map_or_else(|| filler(id), |(token, _)| token.content.clone());
        json["vocab"][&name] = id.into();
    }
    let model = ModelWrapper::deserialize(json).map_err(|e| Error::model(e.to_string()).at(TOKENIZER))?;
    tokenizer.with_model(model);
    Ok(top as usize)
}

/// Adds the union's tokens so that each has its id, and the next new one the id `size`.
fn lay_out(tokenizer: &mut Tokenizer, union: &Union, top: usize, size: usize) -> Result<()> {
    if size > 1 << 24 {
        return Err(Error::model(format!("the largest token id is {}", size - 1)).at(TOKENIZER));
    }
    let mut plan: BTreeMap<u32, AddedToken> =
        union.tokens.iter().map(|(id, (token, _))| (*id, token.clone())).collect();
    for id in top as u32..size as u32 {
        plan.entry(id).or_insert_with(|| AddedToken::from(filler(id), true));
    }
    let now = tokenizer.get_added_tokens_decoder();
    if now.len() == plan.len() && now.iter().all(|(id, token)| plan.get(id) == Some(token)) {
        return Ok(());
    }
    let mut added = AddedVocabulary::new();
    added
        .add_tokens(plan.values().cloned(), tokenizer.get_model(), tokenizer.get_normalizer())
        .map_err(failed)?;
    tokenizer.with_added_vocabulary(added);
    match plan.iter().find(|(id, token)| tokenizer.token_to_id(&token.content) != Some(**id)) {
        None => Ok(()),
        Some((id, token)) => {
            Err(Error::model(format!("the token `{}` cannot have its id {id}", token.content)).at(TOKENIZER))
        }
    }
}

/// Puts begin and end of sequence around texts where the tokenizer's class decides it, not tokenizer.json.
fn mark_ends(tokenizer: &mut Tokenizer, files: &TokenizerFiles) -> Result<()> {
    let Some((_, defaults)) = ENDS_BY_CLASS.iter().find(|(class, _)| *class == files.class()) else {
        return Ok(());
    };
    let end = |flag: &str, name: &str, (default, usual): (bool, &'static str)| -> Option<(String, u32)> {
        let wanted = files.config[flag].as_bool().unwrap_or(default);
        let named = [&files.config, &files.special_map].into_iter().find_map(|f| f.get(name));
        let token = named.map_or(Some(usual), content).filter(|_| wanted)?;
        Some((token.to_string(), tokenizer.token_to_id(token)?))
    };
    let begin = end("add_bos_token", "bos_token", defaults[0]);
    let end = end("add_eos_token", "eos_token", defaults[1]);
    let wanted: Vec<u32> = begin.iter().chain(&end).map(|(_, id)| *id).collect();
    if tokenizer.encode_fast("", true).map_err(failed)?.get_ids() == wanted {
        return Ok(());
    }
    let piece = |token: &Option<(String, u32)>, side: u8| {
        token.as_ref().map(|(name, _)| format!("{name}:{side}")).into_iter().collect::<Vec<_>>()
    };
    let single = [piece(&begin, 0), vec!["$A:0".into()], piece(&end, 0)].concat();
    let second = [piece(&begin, 1), vec!["$B:1".into()], piece(&end, 1)].concat();
    let template = TemplateProcessing::builder()
        .try_single(single.clone())
        .and_then(|b| b.try_pair([single, second].concat()))
        .map_err(|e| Error::model(e.to_string()))?
        .special_tokens(begin.into_iter().chain(end).collect::<Vec<_>>())
        .build()
        .map_err(|e| Error::model(e.to_string()))?;
    tokenizer.with_post_processor(Some(template));
    Ok(())
}

/// `add_prefix_space` of tokenizer_config.json wins over tokenizer.json's, as in transformers 4.
fn lead_with_space(tokenizer: &mut Tokenizer, files: &TokenizerFiles) {
    let given = files.config["add_prefix_space"].as_bool();
    if let (Some(given), Some(PreTokenizerWrapper::ByteLevel(bytes))) = (given, tokenizer.get_pre_tokenizer())
    {
        let changed = bytes.add_prefix_space(given);
        tokenizer.with_pre_tokenizer(Some(changed));
    }
}
