//! From a record to token ids.

use super::prompt::Prompts;
use super::record::Record;
use super::settings::{DataSettings, ItemIdentity};
use super::vocabulary::{PromptSide, Vocabulary};
use crate::error::{Error, Result};

/// One sequence to learn from.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Example {
    /// The task's number.
    pub task: u32,
    /// The encoder's input of an encoder-decoder model.
    pub encoder: Option<Vec<u32>>,
    /// Prompt and target of a decoder-only model; start token and target otherwise.
    pub tokens: Vec<u32>,
    /// Tokens from here on are to be predicted, each from those before it (at least 1).
    pub labels_from: usize,
    /// History items that did not fit, or were over the limit.
    pub dropped_items: u32,
    /// Whether the end of the query did not fit.
    pub cut_query: bool,
}

impl Example {
    /// Tokens to be predicted.
    pub fn labels(&self) -> usize {
        self.tokens.len() - self.labels_from
    }
    /// Rows in a packed batch, encoder and decoder together; the last token is only predicted.
    pub fn rows(&self) -> usize {
        self.encoder.as_ref().map_or(0, Vec::len) + self.tokens.len() - 1
    }
}

/// What was encoded, and what did not fit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Examples.
    pub examples: u64,
    /// Rows (tokens that enter the model).
    pub rows: u64,
    /// Tokens to be predicted.
    pub labels: u64,
    /// Examples whose history lost items.
    pub shortened: u64,
    /// Items lost.
    pub dropped_items: u64,
    /// Examples whose query lost its end.
    pub cut_queries: u64,
    /// Rows of the longest example.
    pub longest: u64,
}

impl Tally {
    /// Counts one more example.
    pub fn add(&mut self, example: &Example) {
        self.examples += 1;
        self.rows += example.rows() as u64;
        self.labels += example.labels() as u64;
        self.shortened += u64::from(example.dropped_items > 0);
        self.dropped_items += u64::from(example.dropped_items);
        self.cut_queries += u64::from(example.cut_query);
        self.longest = self.longest.max(example.rows() as u64);
    }
}

/// A prompt as it fits, and what it lost.
#[derive(Debug, Clone, PartialEq)]
struct Fitted {
    tokens: Vec<u32>,
    dropped_items: u32,
    cut_query: bool,
}

/// Turns records into token ids.
pub struct Encoder<'a> {
    vocabulary: &'a Vocabulary,
    prompts: &'a Prompts,
    tasks: &'a [String],
    prompt_side: PromptSide,
    max_length: usize,
    history_limit: usize,
    separator: String,
    about: About,
}

/// What lengths are reckoned from where nothing is encoded.
struct About {
    /// Tokens of the separator.
    between: usize,
    /// Tokens of every task's prompt, without what is put into it.
    prompts: Vec<usize>,
    /// Tokens and bytes of them all: of other text it is taken to be the same.
    texts: (usize, usize),
}

impl About {
    fn new(vocabulary: &Vocabulary, prompts: &Prompts, tasks: &[String], separator: &str) -> Self {
        let tokens = |text: &str| vocabulary.plain(text).map_or(text.len() / 4, |tokens| tokens.len());
        let texts: Vec<String> = tasks
            .iter()
            .map(|task| prompts.sources().get(task).map_or(String::new(), |s| plain(s)))
            .collect();
        let prompts: Vec<usize> = texts.iter().map(|text| tokens(text)).collect();
        let all = (prompts.iter().sum(), texts.iter().map(String::len).sum());
        Self { between: tokens(separator), prompts, texts: if all.0 == 0 { (1, 4) } else { all } }
    }
}

impl<'a> Encoder<'a> {
    /// An encoder for records whose tasks are numbered as in `tasks`.
    pub fn new(
        vocabulary: &'a Vocabulary,
        prompts: &'a Prompts,
        tasks: &'a [String],
        prompt_side: PromptSide,
        settings: &DataSettings,
    ) -> Self {
        let usual = if settings.item_identity == ItemIdentity::Text { ", " } else { " " };
        let separator = settings.item_separator.clone().unwrap_or_else(|| usual.into());
        Self {
            vocabulary,
            prompts,
            tasks,
            prompt_side,
            max_length: settings.max_length,
            history_limit: if settings.history_limit == 0 { usize::MAX } else { settings.history_limit },
            about: About::new(vocabulary, prompts, tasks, &separator),
            separator,
        }
    }

    /// The vocabulary in use.
    pub fn vocabulary(&self) -> &Vocabulary {
        self.vocabulary
    }
    /// What stands between two items of a history.
    pub fn separator(&self) -> &str {
        &self.separator
    }
    /// The architecture encoded for.
    pub fn prompt_side(&self) -> PromptSide {
        self.prompt_side
    }
    /// Examples a record makes: one a target; a plain text, or one that answers, is one.
    pub fn examples(record: &Record) -> usize {
        record.target.len().max(usize::from(record.text.is_some() || record.answer.is_some()))
    }

    /// Example number `nth` of `record`. A request with several targets is one example a target, all
    /// with the same prompt (as published); of a plain text every token but the first is to be
    /// predicted (an encoder reads its first half, the decoder predicts the second).
    ///
    /// # Errors
    /// A prompt that does not fit even without history and query.
    pub fn encode(&self, record: &Record, nth: usize) -> Result<Example> {
        if let Some(text) = &record.text {
            return self.encode_text(record.task, text);
        }
        let fitted = self.fit(record)?;
        let (dropped_items, cut_query) = (fitted.dropped_items, fitted.cut_query);
        let (encoder, mut tokens) = match self.prompt_side {
            PromptSide::Decoder => (None, fitted.tokens),
            PromptSide::Encoder { decoder_start } => (Some(fitted.tokens), vec![decoder_start]),
        };
        let labels_from = tokens.len();
        match &record.answer {
            Some(answer) => tokens.extend(self.answer(answer, self.max_length.saturating_sub(labels_from))?),
            None => tokens.extend(self.vocabulary.target(record.target[nth])),
        }
        Ok(Example { task: record.task, encoder, tokens, labels_from, dropped_items, cut_query })
    }

    /// How many labels [`encode`](Self::encode) gives an example; its prompt is encoded only where that decides it.
    ///
    /// # Errors
    /// As [`encode`](Self::encode), in that case.
    pub fn labels(&self, record: &Record, nth: usize) -> Result<usize> {
        match record.text.is_some() || record.answer.is_some() {
            true => Ok(self.encode(record, nth)?.labels()),
            false => Ok(self.vocabulary.target(record.target[nth]).count()),
        }
    }

    /// About how many rows [`encode`](Self::encode) gives an example. Nothing is encoded: items have their tokens already,
    /// and text is taken to have as many a byte as the prompts have.
    pub fn rows_about(&self, record: &Record, nth: usize) -> usize {
        let About { between, prompts, texts: (tokens, of_bytes) } = &self.about;
        let kept = record.history.len().min(self.history_limit);
        let shown = record.history[record.history.len() - kept..].iter();
        let items = shown.map(|item| self.vocabulary.item(*item).len() + between).sum::<usize>();
        let target = record.target.get(nth).map_or(0, |item| self.vocabulary.item(*item).len());
        let bytes = |text: &Option<Box<str>>| text.as_ref().map_or(0, |text| text.len());
        let texts = bytes(&record.query) + bytes(&record.text) + bytes(&record.answer);
        let rows = prompts[record.task as usize] + items + target + texts * tokens / of_bytes;
        rows.min(self.max_length)
    }

    /// The prompt of a request alone: the decoder's rows of a decoder-only model, the encoder's
    /// otherwise. The very tokens that [`encode`](Self::encode) puts before the target.
    ///
    /// # Errors
    /// A prompt that does not fit even without history and query.
    pub fn prompt(&self, record: &Record) -> Result<Vec<u32>> {
        Ok(self.fit(record)?.tokens)
    }

    /// Room for the prompt: an encoder has all of `max_length`; otherwise the longest target must
    /// fit behind it, so that prompts are the same whatever the target is.
    fn room(&self) -> usize {
        match self.prompt_side {
            PromptSide::Decoder => self.max_length.saturating_sub(self.vocabulary.longest_target()),
            PromptSide::Encoder { .. } => self.max_length,
        }
    }

    fn fit(&self, record: &Record) -> Result<Fitted> {
        let room = self.room();
        let all = record.history.len();
        let limit = all.min(self.history_limit);
        let history = &record.history[all - limit..];
        let query = record.query.as_deref();
        let tokens = |kept: usize, query: Option<&str>| {
            let tokens = self.tokens(record.task, &history[limit - kept..], query)?;
            Ok::<_, Error>((tokens.len() <= room).then_some(tokens))
        };
        // What the prompt cannot do without stays: one item of a history when there is no query.
        let least = usize::from(!history.is_empty() && self.missing_without_history(record, query));
        let found = match tokens(limit, query)? {
            Some(whole) => Some((limit, whole)),
            None => largest(least, limit, |kept| tokens(kept, query))?,
        };
        if let Some((kept, tokens)) = found {
            return Ok(Fitted { tokens, dropped_items: (all - kept) as u32, cut_query: false });
        }
        let query = query.unwrap_or_default();
        let ends: Vec<usize> = query.char_indices().map(|(at, c)| at + c.len_utf8()).collect();
        let shortened = largest(1, ends.len(), |n| tokens(least, Some(&query[..ends[n - 1]])))?;
        let (_, tokens) = shortened.ok_or_else(|| {
            Error::usage(format!(
                "the prompt of task `{}` does not fit {room} tokens",
                self.task(record.task)
            ))
            .at("data.max_length")
            .remedy("raise data.max_length or shorten the prompt's template")
        })?;
        Ok(Fitted { tokens, dropped_items: (all - least) as u32, cut_query: true })
    }

    fn missing_without_history(&self, record: &Record, query: Option<&str>) -> bool {
        self.prompts.missing(self.task(record.task), false, query.is_some()).is_some()
    }

    fn task(&self, number: u32) -> &str {
        &self.tasks[number as usize]
    }

    fn tokens(&self, task: u32, history: &[u32], query: Option<&str>) -> Result<Vec<u32>> {
        let mut quotes = self.prompts.quotes();
        let query = query.map(|text| quotes.text(text)).transpose()?;
        let named = |item: &u32| {
            let name = self.vocabulary.name(*item);
            match self.vocabulary.identity() {
                ItemIdentity::Text => quotes.text(name),
                _ => quotes.tokens(name, self.vocabulary.item(*item)),
            }
        };
        let history: Vec<String> = history.iter().map(named).collect::<Result<_>>()?;
        let separator = self.vocabulary.mark(&self.separator, &mut quotes)?;
        let mut text = self.prompts.render(self.task(task), &history, &separator, query.as_deref())?;
        if self.prompts.is_chat() {
            // A chat template writes its own special tokens.
            text = self.prompts.chat(quotes.prompt(&text)?)?;
            text = self.vocabulary.mark(&text, &mut quotes)?;
        }
        let mut tokens = self.vocabulary.encode_prompt(&text, &quotes, !self.prompts.is_chat())?;
        let decoder = self.prompt_side == PromptSide::Decoder && !self.prompts.is_chat();
        if decoder && tokens.last() == self.vocabulary.eos().as_ref() {
            tokens.pop();
        }
        Ok(tokens)
    }

    /// The tokens of a text that answers, at most `room` of them, and the end of the sequence behind it.
    fn answer(&self, text: &str, room: usize) -> Result<Vec<u32>> {
        let mut tokens = self.vocabulary.plain(&format!(" {text}"))?;
        tokens.extend(self.vocabulary.eos());
        tokens.truncate(room.max(1));
        Ok(tokens)
    }

    fn encode_text(&self, task: u32, text: &str) -> Result<Example> {
        let mut tokens = self.vocabulary.encode(text)?;
        tokens.truncate(self.max_length);
        if tokens.len() < 2 {
            return Err(Error::data("a plain text of fewer than two tokens teaches nothing")
                .at("text")
                .remedy("remove the row"));
        }
        let (encoder, tokens) = match self.prompt_side {
            PromptSide::Decoder => (None, tokens),
            PromptSide::Encoder { decoder_start } => {
                let rest = tokens.split_off(tokens.len() / 2);
                (Some(tokens), std::iter::once(decoder_start).chain(rest).collect())
            }
        };
        Ok(Example { task, encoder, tokens, labels_from: 1, dropped_items: 0, cut_query: false })
    }
}

/// What of a template is not between braces.
fn plain(template: &str) -> String {
    template.split('{').filter_map(|part| part.rsplit('}').next()).collect()
}

/// The largest n in `least..=most` for which `attempt` succeeds, with its result; it fails for every
/// larger n. None: it fails for `least` too.
fn largest<T>(
    least: usize,
    most: usize,
    mut attempt: impl FnMut(usize) -> Result<Option<T>>,
) -> Result<Option<(usize, T)>> {
    let (mut low, mut high, mut best) = (least, most + 1, None);
    while low < high {
        let middle = low + (high - low) / 2;
        match attempt(middle)? {
            Some(value) => {
                best = Some((middle, value));
                low = middle + 1;
            }
            None => high = middle,
        }
    }
    Ok(best)
}
