//! Text is not markup: which tokens only a template may write, and texts encoded without them.
//!
//! Special tokens, item tokens and added tokens that look like tags are *markup*. In what users typed, in titles and
//! in general text they are ordinary characters, as with `split_special_tokens=True` in transformers; only the
//! template's own text, and the items that the engine itself puts into a prompt, become tokens.
//!
//! Markup is told apart before the template runs: private characters stand for it in the template's source and in
//! what the engine puts in. Of the rendered text, those characters alone become markup; whatever filters make of a
//! user's text is text.

use super::files::asked;
use crate::error::{Error, Result};
use serde::Deserialize;
use serde_json::{Value, json};
use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use tokenizers::models::ModelWrapper;
use tokenizers::{
    AddedToken, AddedVocabulary, Encoding, Model, NormalizerWrapper, OffsetReferential, OffsetType,
    PreTokenizerWrapper, Token, Tokenizer,
};

/// Beginning of the range of private characters that stand for what was put aside.
const ASIDE: u32 = 0xF_0000;
/// How many there are.
const ASIDES: usize = 0xFFFE;
/// Noncharacters that name a token which no text may spell; texts are rid of them.
const UNSPELLABLE: [char; 2] = ['\u{10FFFE}', '\u{10FFFF}'];

/// What a private character stands for.
#[derive(Debug, Clone, PartialEq)]
enum Aside {
    /// Characters of a text that are private ones themselves.
    Text(String),
    /// A finished prompt inside a chat.
    Prompt(String),
    /// Tokens: how they are written, their ids, and whether they eat the blanks before and after them.
    Markup { name: String, ids: Vec<u32>, eats: [bool; 2] },
}

/// What was put aside of a prompt while its templates run: private characters stand for it.
#[derive(Debug, Clone, Default)]
pub struct Quotes {
    aside: Vec<Aside>,
}

impl Quotes {
    fn put(&mut self, aside: Aside) -> Result<char> {
        let known = self.aside.iter().position(|kept| *kept == aside);
        let index = known.unwrap_or_else(|| {
            self.aside.push(aside);
            self.aside.len() - 1
        });
        let index = Some(index).filter(|i| *i < ASIDES);
        index.and_then(|i| char::from_u32(ASIDE + i as u32)).ok_or_else(|| {
            Error::data("a prompt with more than 65,000 different tokens in it").remedy("shorten the query")
        })
    }

    /// A text of a user's, a title or a template's source, for a template to work with: nothing in it can be
    /// mistaken for what was put aside.
    ///
    /// # Errors
    /// More different private characters than can be put aside.
    pub fn text(&mut self, text: &str) -> Result<String> {
        let quoted = |c: char| if is_aside(c) { self.put(Aside::Text(c.into())) } else { Ok(c) };
        text.chars().map(quoted).collect()
    }

    /// Tokens that the engine itself puts into a prompt; `name` is how they read.
    ///
    /// # Errors
    /// As [`text`](Self::text).
    pub fn tokens(&mut self, name: &str, ids: &[u32]) -> Result<String> {
        let aside = Aside::Markup { name: name.into(), ids: ids.into(), eats: [false; 2] };
        self.put(aside).map(String::from)
    }

    /// A rendered prompt that a chat template is to print without looking into it; blanks at its ends stay outside,
    /// where templates trim them.
    ///
    /// # Errors
    /// As [`text`](Self::text).
    pub fn prompt(&mut self, rendered: &str) -> Result<String> {
        let inner = rendered.trim();
        match rendered.split_once(inner) {
            Some((before, after)) if !inner.is_empty() => {
                let inner = self.put(Aside::Prompt(inner.into()))?;
                Ok(format!("{before}{inner}{after}"))
            }
            _ => Ok(rendered.into()),
        }
    }

    /// A rendered prompt as it reads: with everything put back.
    pub fn restore(&self, text: &str) -> String {
        let mut whole = String::with_capacity(text.len());
        self.each(text, &mut |part| match part {
            Part::Char(c) => whole.push(c),
            Part::Markup { name, .. } => whole.push_str(name),
        });
        whole
    }

    /// The characters and the markup of a rendered text, in order.
    fn each(&self, text: &str, take: &mut dyn FnMut(Part)) {
        for c in text.chars() {
            let aside = is_aside(c).then(|| self.aside.get((u32::from(c) - ASIDE) as usize)).flatten();
            match aside {
                None => take(Part::Char(c)),
                Some(Aside::Text(text)) => text.chars().for_each(|c| take(Part::Char(c))),
                Some(Aside::Prompt(text)) => self.each(text, take),
                Some(Aside::Markup { name, ids, eats }) => take(Part::Markup { name, ids, eats: *eats }),
            }
        }
    }
}

/// A part of a rendered prompt.
enum Part<'a> {
    Char(char),
    Markup { name: &'a str, ids: &'a [u32], eats: [bool; 2] },
}

fn is_aside(c: char) -> bool {
    (ASIDE..ASIDE + ASIDES as u32).contains(&u32::from(c))
}

/// Whether an added token is markup: special, or written like a tag.
fn is_markup(token: &AddedToken) -> bool {
    let name = token.content.trim_matches([' ', '▁']);
    let tag = |open, close| name.len() > 2 && name.starts_with(open) && name.ends_with(close);
    token.special || tag('<', '>') || tag('[', ']')
}

/// Reads texts and prompts.
pub(super) struct Reader {
    /// Finds the tokens that a template writes.
    markup: AddedVocabulary,
    /// Reads texts: a tokenizer that cannot give markup.
    text: Tokenizer,
    /// The same for what stands after other text, where that makes a difference.
    inside: Option<Tokenizer>,
}

impl Reader {
    /// Of a tokenizer that has all tokens, of which those named in `items` are items'.
    ///
    /// # Errors
    /// The library fails.
    pub fn new(tokenizer: &Tokenizer, items: &HashSet<&str>) -> Result<Self> {
        let added = tokenizer.get_added_tokens_decoder();
        let mut tokens: Vec<(u32, AddedToken)> = added.into_iter().collect();
        tokens.sort_by_key(|(id, _)| *id);
        let marks = |t: &AddedToken| is_markup(t) || items.contains(t.content.as_str());
        let words = tokens.iter().any(|(_, t)| !marks(t));
        // Markup is found in the text as it is written: normalisation is for texts.
        let found = tokens.iter().map(|(_, t)| match marks(t) {
            true => t.clone().normalized(false),
            false => t.clone(),
        });
        let mut markup = AddedVocabulary::new();
        markup.add_tokens(found, tokenizer.get_model(), None::<&NormalizerWrapper>).map_err(failed)?;

        let mut known = AddedVocabulary::new();
        if words {
            // In the library, special tokens are those that can be passed over.
            let passed = tokens.iter().map(|(_, t)| t.clone().special(marks(t)));
            known.add_tokens(passed, tokenizer.get_model(), tokenizer.get_normalizer()).map_err(failed)?;
            known.set_encode_special_tokens(true);
        }
        let mut text = tokenizer.clone();
        let names = tokens.iter().filter(|(_, t)| marks(t)).map(|(id, t)| (t.content.as_str(), *id));
        if let Some(model) = without(tokenizer.get_model(), &names.collect::<Vec<_>>())? {
            text.with_model(model);
        }
        text.with_added_vocabulary(known);
        let inside = inside(&text)?;
        Ok(Self { markup, text, inside })
    }

    /// Token ids of a text: nothing in it is markup.
    ///
    /// # Errors
    /// The library fails.
    pub fn text(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        let encoding = asked(|| self.text.encode_fast(spelt(text).as_ref(), special)).map_err(failed)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Token ids of a rendered prompt: only what was put aside as markup is markup.
    ///
    /// # Errors
    /// The library fails.
    pub fn prompt(&self, rendered: &str, quotes: &Quotes, special: bool) -> Result<Vec<u32>> {
        let (mut tokens, mut text) = (Vec::new(), String::new());
        let (mut begun, mut trims, mut fault) = (false, false, None);
        quotes.each(rendered, &mut |part| match part {
            Part::Char(c) if !(trims && c.is_whitespace()) => {
                text.push(c);
                trims = false;
            }
            Part::Char(_) => {}
            Part::Markup { ids, eats: [before, after], .. } => {
                let piece = std::mem::take(&mut text);
                let piece = if before { piece.trim_end() } else { &piece };
                fault = self.piece(piece, begun, &mut tokens).err().or(fault.take());
                tokens.extend(ids.iter().map(|id| Token::new(*id, String::new(), (0, 0))));
                (begun, trims) = (true, after);
            }
        });
        self.piece(&text, begun, &mut tokens).map_err(|e| fault.take().unwrap_or(e))?;
        fault.map_or(Ok(()), Err)?;
        let encoding = Encoding::from_tokens(tokens, 0);
        let whole = asked(|| self.text.post_process(encoding, None, special)).map_err(failed)?;
        Ok(whole.get_ids().to_vec())
    }

    /// Adds the tokens of a text that stands alone, or `inside` a prompt after markup.
    fn piece(&self, text: &str, inside: bool, tokens: &mut Vec<Token>) -> Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        let reader = self.inside.as_ref().filter(|_| inside).unwrap_or(&self.text);
        let encoding = asked(|| reader.encode_fast(spelt(text).as_ref(), false)).map_err(failed)?;
        tokens.extend(encoding.get_ids().iter().map(|id| Token::new(*id, String::new(), (0, 0))));
        Ok(())
    }

    /// A text of the template's own, with private characters for its markup.
    ///
    /// # Errors
    /// More different markup than can be put aside.
    pub fn mark(&self, text: &str, quotes: &mut Quotes) -> Result<String> {
        let pieces = self.markup.extract_and_normalize(None::<&NormalizerWrapper>, text);
        let tokens = self.markup.get_added_tokens_decoder();
        let mut marked = String::with_capacity(text.len());
        for (piece, _, found) in pieces.get_splits(OffsetReferential::Original, OffsetType::None) {
            let found = found.as_ref().and_then(|f| Some((f.first()?.id, tokens.get(&f.first()?.id)?)));
            let around = found.and_then(|(_, token)| piece.split_once(token.content.as_str()));
            match (found, around) {
                (Some((id, token)), Some((before, after))) => {
                    let eats = [token.lstrip, token.rstrip];
                    let aside = Aside::Markup { name: token.content.clone(), ids: vec![id], eats };
                    marked.push_str(before);
                    marked.push(quotes.put(aside)?);
                    marked.push_str(after);
                }
                _ => marked.push_str(piece),
            }
        }
        Ok(marked)
    }
}

fn failed(error: tokenizers::Error) -> Error {
    Error::model(format!("the tokenizer fails: {error}"))
}

fn spelt(text: &str) -> Cow<'_, str> {
    match text.contains(UNSPELLABLE) {
        true => Cow::Owned(text.replace(UNSPELLABLE, "")),
        false => Cow::Borrowed(text),
    }
}

/// The model without a way from ordinary text to any of the tokens `names`; none: there is no such way.
///
/// Vocabularies often hold special tokens as entries like any other, which a text that spells one would find.
fn without(model: &ModelWrapper, names: &[(&str, u32)]) -> Result<Option<ModelWrapper>> {
    let reached = |name: &str, id: u32| {
        model.token_to_id(name) == Some(id)
            && model.tokenize(name).is_ok_and(|tokens| tokens.iter().any(|token| token.id == id))
    };
    let hidden: HashMap<&str, String> = names
        .iter()
        .filter(|(name, id)| reached(name, *id))
        .map(|(name, id)| (*name, format!("{}{}{id}", UNSPELLABLE[0], UNSPELLABLE[1])))
        .collect();
    if hidden.is_empty() {
        return Ok(None);
    }
    let wrong = |e: serde_json::Error| Error::model(format!("the tokenizer fails: {e}"));
    let mut json = serde_json::to_value(model).map_err(wrong)?;
    let rename = |name: &Value| name.as_str().and_then(|n| hidden.get(n)).map(|n| json!(n));
    if let Some(new) = rename(&json["unk_token"]) {
        json["unk_token"] = new;
    }
    match &mut json["vocab"] {
        Value::Array(list) => list.iter_mut().for_each(|entry| {
            if let Some(new) = rename(&entry[0]) {
                entry[0] = new;
            }
        }),
        Value::Object(map) => {
            *map = std::mem::take(map)
                .into_iter()
                .map(|(name, id)| (hidden.get(name.as_str()).cloned().unwrap_or(name), id))
                .collect();
        }
        _ => {}
    }
    if let Some(merges) = json["merges"].as_array_mut() {
        merges.retain(|pair| {
            let part = |i: usize| pair[i].as_str().unwrap_or_default();
            ![part(0), part(1), &format!("{}{}", part(0), part(1))].iter().any(|n| hidden.contains_key(*n))
        });
    }
    ModelWrapper::deserialize(json).map(Some).map_err(wrong)
}

/// The tokenizer for what stands after other text: a space that only the first word gets is left out.
fn inside(text: &Tokenizer) -> Result<Option<Tokenizer>> {
    fn first_to_never(value: &mut Value) -> bool {
        match value {
            Value::Object(map) => map.iter_mut().fold(false, |changed, (key, value)| {
                let first = key == "prepend_scheme" && *value == "first";
                if first {
                    *value = json!("never");
                }
                changed | first | first_to_never(value)
            }),
            Value::Array(list) => {
                list.iter_mut().fold(false, |changed, value| changed | first_to_never(value))
            }
            _ => false,
        }
    }
    let wrong = |e: serde_json::Error| Error::model(format!("the tokenizer fails: {e}"));
    let Some(pre_tokenizer) = text.get_pre_tokenizer() else { return Ok(None) };
    let mut json = serde_json::to_value(pre_tokenizer).map_err(wrong)?;
    if !first_to_never(&mut json) {
        return Ok(None);
    }
    let mut inside = text.clone();
    inside.with_pre_tokenizer(Some(PreTokenizerWrapper::deserialize(json).map_err(wrong)?));
    Ok(Some(inside))
}
