//! Prompt templates: a record's history and query as text.

use super::files;
use super::markup::Quotes;
use super::settings::{DataSettings, PromptPreset};
use super::tokens::content;
use super::vocabulary::Vocabulary;
use crate::error::{self, Error, Result};
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, UndefinedBehavior, Value, context};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

const PUBLISHED_REC: &str =
    "A user interacted with these items, oldest first: {{ history }}. Which item will the user click next?";
const PUBLISHED_SEARCH: &str = "{% if history %}A user interacted with these items, oldest first: {{ history }}. \
     {% endif %}The user now searches for: {{ query }}. Which item will the user click next?";
const PUBLISHED_TITLE_TO_ITEM: &str = "Which item is called: {{ query }}?";
const PUBLISHED_ITEM_TO_TITLE: &str = "What is this item called: {{ history }}?";
const CUE_REC: &str = "{{ history }} next{% if query %} {{ query }}{% endif %} :";
const CUE_SEARCH: &str = "{% if history %}{{ history }} {% endif %}find {{ query }} :";
const CUE_TITLE_TO_ITEM: &str = "item {{ query }} :";
const CUE_ITEM_TO_TITLE: &str = "title {{ history }} :";

const CHAT: &str = "chat";
/// What a template may cost, in its steps or in units of 64 bytes: far more than any needs. Checkpoints bring theirs.
const FUEL: u64 = 1_000_000;

/// The prompt of every task.
pub struct Prompts {
    environment: Environment<'static>,
    /// The templates as they were given.
    sources: BTreeMap<String, String>,
    /// The markup in the templates' sources.
    quotes: Quotes,
    needs: BTreeMap<String, Needs>,
    chat: Option<Chat>,
}

/// What a task's prompt cannot do without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Needs {
    /// Renders with a history alone.
    history_alone: bool,
    /// Renders with a query alone.
    query_alone: bool,
    /// Shows a query where there is one.
    shows_query: bool,
}

/// A checkpoint's chat template, and the special tokens it may print.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChatTemplate {
    /// The template, Jinja as transformers reads it.
    pub source: String,
    /// Its `bos_token`; empty where the checkpoint names none.
    pub bos: String,
    /// Its `eos_token`; empty where the checkpoint names none.
    pub eos: String,
}

/// A chat template that is ready to print.
struct Chat {
    environment: Environment<'static>,
    template: ChatTemplate,
}

impl Prompts {
    /// The templates of `settings`: the preset's, then the user's own. With `chat_template`, the
    /// checkpoint's template is read from `model_dir`. `vocabulary` says what is markup in a template's source;
    /// without one, the prompts only tell what their templates need.
    ///
    /// # Errors
    /// A template that does not parse, or that cannot be filled from a history and a query; a
    /// checkpoint without a chat template.
    pub fn new(
        settings: &DataSettings,
        model_dir: Option<&Path>,
        vocabulary: Option<&Vocabulary>,
    ) -> Result<Self> {
        let chat = model_dir.filter(|_| settings.chat_template).map(ChatTemplate::read).transpose()?;
        Self::with_chat(settings, chat, vocabulary)
    }

    /// The templates of `settings`, inside this chat template if there is one.
    ///
    /// # Errors
    /// A template that does not parse, or that cannot be filled from a history and a query.
    pub fn with_chat(
        settings: &DataSettings,
        chat: Option<ChatTemplate>,
        vocabulary: Option<&Vocabulary>,
    ) -> Result<Self> {
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::SemiStrict);
        environment.set_fuel(Some(FUEL));
        let mut sources = BTreeMap::from(
            match settings.prompts {
                PromptPreset::Published => [
                    ("rec", PUBLISHED_REC),
                    ("search", PUBLISHED_SEARCH),
                    ("title-to-item", PUBLISHED_TITLE_TO_ITEM),
                    ("item-to-title", PUBLISHED_ITEM_TO_TITLE),
                ],
                PromptPreset::Cue => [
                    ("rec", CUE_REC),
                    ("search", CUE_SEARCH),
                    ("title-to-item", CUE_TITLE_TO_ITEM),
                    ("item-to-title", CUE_ITEM_TO_TITLE),
                ],
            }
            .map(|(task, text)| (task.to_string(), text.to_string())),
        );
        sources.extend(settings.templates.clone());
        let mut quotes = Quotes::default();
        for (task, source) in &sources {
            let mut source = source.clone();
            if let Some(vocabulary) = vocabulary {
                source = vocabulary.mark(&quotes.text(&source)?, &mut quotes)?;
            }
            let key = format!("data.templates.{task}");
            environment.add_template_owned(task.clone(), source).map_err(|e| fault(e).at(key))?;
        }
        let mut prompts = Self { environment, sources, quotes, needs: BTreeMap::new(), chat: None };
        let tasks: Vec<String> = prompts.environment.templates().map(|(name, _)| name.into()).collect();
        for task in tasks {
            let needs = prompts.probe(&task)?;
            prompts.needs.insert(task, needs);
        }
        prompts.chat = chat.map(Chat::new).transpose()?;
        Ok(prompts)
    }

    /// A misspelt variable would be as if it were never given: `{% if qeury %}`.
    fn check_variables(&self, task: &str) -> Result<()> {
        const VARIABLES: [&str; 3] = ["history", "items", "query"];
        let template = self.environment.get_template(task).map_err(fault)?;
        let known = |name: &str| {
            VARIABLES.contains(&name) || self.environment.globals().any(|(global, _)| global == name)
        };
        let mut unknown: Vec<String> = template.undeclared_variables(false).into_iter().collect();
        unknown.retain(|name| !known(name));
        let Some(name) = unknown.iter().min() else { return Ok(()) };
        let near = error::nearest(name, VARIABLES).map_or(String::new(), |n| format!("did you mean `{n}`? "));
        Err(Error::usage(format!("the prompt uses `{name}`, and there is no such variable"))
            .at(format!("data.templates.{task}"))
            .remedy(format!("{near}there are `history`, `items` and `query`")))
    }

    /// The template of every task, those of the preset too.
    pub fn sources(&self) -> &BTreeMap<String, String> {
        &self.sources
    }
    /// The chat template around them.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.chat.as_ref().map(|chat| &chat.template)
    }

    fn probe(&self, task: &str) -> Result<Needs> {
        self.check_variables(task)?;
        let (history, query) = (["\u{1}item".to_string()], Some("\u{1}query"));
        let works = |h: &[String], q| self.render(task, h, " ", q).is_ok_and(|text| !text.trim().is_empty());
        let both = self
            .render(task, &history, " ", query)
            .map_err(|e| e.remedy("use the variables `history`, `items` and `query`"))?;
        let shows_query = both.contains("\u{1}query");
        let needs =
            Needs { history_alone: works(&history, None), query_alone: works(&[], query), shows_query };
        if !both.contains('\u{1}') {
            return Err(Error::usage("the prompt shows neither history nor query")
                .at(format!("data.templates.{task}"))
                .remedy("write {{ history }} or {{ query }} where they belong"));
        }
        Ok(needs)
    }

    /// The tasks that have a prompt.
    pub fn tasks(&self) -> impl Iterator<Item = &str> {
        self.needs.keys().map(String::as_str)
    }
    /// Whether `task` has a prompt.
    pub fn knows(&self, task: &str) -> bool {
        self.needs.contains_key(task)
    }
    /// The field (`history` or `query`) without which a record of `task` cannot be asked.
    pub fn missing(&self, task: &str, has_history: bool, has_query: bool) -> Option<&'static str> {
        let needs = self.needs.get(task)?;
        match (has_history, has_query) {
            (true, true) => None,
            (true, false) => (!needs.history_alone).then_some("query"),
            (false, true) => (!needs.query_alone).then_some("history"),
            (false, false) => Some(if needs.history_alone { "history" } else { "query" }),
        }
    }
    /// Whether the prompt of `task` shows a query.
    pub fn shows_query(&self, task: &str) -> bool {
        self.needs.get(task).is_some_and(|needs| needs.shows_query)
    }
    /// Whether the text is already in the chat template, special tokens included.
    pub fn is_chat(&self) -> bool {
        self.chat.is_some()
    }

    /// What the templates' sources put aside: the beginning of every prompt's quotes.
    pub fn quotes(&self) -> Quotes {
        self.quotes.clone()
    }

    /// The prompt of a request, before a chat template. Titles and queries are quoted, items put aside.
    ///
    /// # Errors
    /// The template fails on this input.
    pub fn render(
        &self,
        task: &str,
        history: &[String],
        separator: &str,
        query: Option<&str>,
    ) -> Result<String> {
        let undefined = || Value::UNDEFINED;
        let has = !history.is_empty();
        let values = context! {
            history => if has { Value::from(history.join(separator)) } else { undefined() },
            items => if has { Value::from_iter(history.iter().map(String::as_str)) } else { undefined() },
            query => query.map_or_else(undefined, Value::from),
        };
        let template = self.environment.get_template(task);
        template.and_then(|t| t.render(values)).map_err(|e| fault(e).at(format!("data.templates.{task}")))
    }

    /// The checkpoint's chat around a prompt of [`Quotes::prompt`]; without a chat template the prompt as it is.
    ///
    /// # Errors
    /// The chat template fails.
    pub fn chat(&self, prompt: String) -> Result<String> {
        let Some(Chat { environment, template: ChatTemplate { bos, eos, .. } }) = &self.chat else {
            return Ok(prompt);
        };
        let values = context! {
            messages => vec![context! { role => "user", content => prompt }],
            add_generation_prompt => true,
            enable_thinking => false,
            bos_token => bos,
            eos_token => eos,
        };
        let template = environment.get_template(CHAT);
        template.and_then(|t| t.render(values)).map_err(|e| fault(e).at("the chat template"))
    }
}

impl ChatTemplate {
    /// The template of the checkpoint in `dir`.
    ///
    /// # Errors
    /// A checkpoint without one.
    pub fn read(dir: &Path) -> Result<Self> {
        let config = files::object(dir, "tokenizer_config.json")?;
        let map = files::object(dir, "special_tokens_map.json")?;
        let source = std::fs::read_to_string(dir.join("chat_template.jinja"))
            .ok()
            .or_else(|| named_template(&config["chat_template"]));
        let source = source.ok_or_else(|| {
            Error::model("the checkpoint has no chat template")
                .at(dir.display())
                .remedy("set data.chat_template = false, or use an instruction-tuned checkpoint")
        })?;
        let token = |key: &str| content(&config[key]).or(content(&map[key])).unwrap_or_default().to_string();
        Ok(Self { source, bos: token("bos_token"), eos: token("eos_token") })
    }
}

impl Chat {
    fn new(template: ChatTemplate) -> Result<Self> {
        let mut environment = Environment::new();
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        // As transformers sets its own environment.
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(fault)?);
        environment.add_function("raise_exception", |what: String| -> std::result::Result<String, _> {
            Err(minijinja::Error::new(minijinja::ErrorKind::InvalidOperation, what))
        });
        // A date in the prompt would make today's prompts differ from tomorrow's.
        environment.add_function("strftime_now", |_: String| "1 January 2026".to_string());
        environment
            .add_template_owned(CHAT, template.source.clone())
            .map_err(|e| fault(e).at("the model's chat template"))?;
        Ok(Self { environment, template })
    }
}

/// `chat_template` is one template, or a list of named ones.
fn named_template(value: &serde_json::Value) -> Option<String> {
    match value {
        serde_json::Value::String(text) => Some(text.clone()),
        serde_json::Value::Array(list) => list
            .iter()
            .find(|entry| entry["name"] == "default")
            .or(list.first())
            .and_then(|entry| entry["template"].as_str())
            .map(Into::into),
        _ => None,
    }
}

fn fault(error: minijinja::Error) -> Error {
    let line = error.line().map(|n| format!(" (line {n})")).unwrap_or_default();
    let detail = error.detail().map(|d| format!(": {d}")).unwrap_or_default();
    Error::usage(format!("the template fails: {}{detail}{line}", error.kind()))
}
