//! `gems-engine config-schema`.

use crate::config::Config;
use crate::error::{Error, Result};
use clap::Args;
use serde_json::Value;
use std::io::{ErrorKind, Write};

/// Print the JSON schema of all settings, for editors; or a page that describes them.
///
/// Example: gems-engine config-schema > settings.schema.json
#[derive(Args)]
pub struct SchemaArgs {
    /// A page in Markdown instead: docs/settings.md.
    #[arg(long)]
    markdown: bool,
}

/// Runs the command.
pub fn print(args: &SchemaArgs) -> Result<()> {
    let schema = schemars::schema_for!(Config).to_value();
    let text = match args.markdown {
        true => page(&schema),
        false => serde_json::to_string_pretty(&schema).unwrap_or_default() + "\n",
    };
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(Error::io("write", "standard output", e)),
        _ => Ok(()),
    }
}

const HEAD: &str = "# Settings

Every setting, what it means, and what holds where nobody chooses. Settings come from a preset, a file (`--config`), `--set
KEY=VALUE` and flags, in this order; an unknown key is an error. This page is written by `gems-engine config-schema --markdown`;
without `--markdown` the same command prints a JSON schema, which editors use to complete a settings file.
";

/// A table a section.
fn page(schema: &Value) -> String {
    let (mut top, mut sections) = (Vec::new(), Vec::new());
    for (key, setting) in properties(schema) {
        match properties(resolved(schema, setting)).next() {
            Some(_) => sections.push((key, setting)),
            None => top.push((key, setting)),
        }
    }
    let mut text = HEAD.to_string();
    table(&mut text, schema, "", top.into_iter());
    for (key, setting) in sections {
        text += &format!("\n## {key}\n\n{}\n", described(schema, setting));
        table(&mut text, schema, &format!("{key}."), properties(resolved(schema, setting)));
    }
    text
}

fn table<'a>(
    text: &mut String,
    schema: &'a Value,
    prefix: &str,
    settings: impl Iterator<Item = (&'a String, &'a Value)>,
) {
    *text += "\n| setting | default | what |\n| --- | --- | --- |\n";
    rows(text, schema, prefix, settings);
}

fn rows<'a>(
    text: &mut String,
    schema: &'a Value,
    prefix: &str,
    settings: impl Iterator<Item = (&'a String, &'a Value)>,
) {
    for (key, setting) in settings {
        let inner = resolved(schema, setting);
        if properties(inner).next().is_some() {
            rows(text, schema, &format!("{prefix}{key}."), properties(inner));
            continue;
        }
        let default = setting.get("default").filter(|value| !value.is_null());
        let default = default.map_or(String::new(), |value| format!("`{value}`"));
        let mut what = described(schema, setting);
        let values = values(inner);
        if !values.is_empty() {
            what += &format!(" One of {}.", values.join(", "));
        }
        *text += &format!("| `{prefix}{key}` | {default} | {} |\n", what.replace('|', "\\|").trim());
    }
}

fn properties(schema: &Value) -> impl Iterator<Item = (&String, &Value)> {
    schema["properties"].as_object().into_iter().flatten()
}

/// What a reference leads to; of something optional, that.
fn resolved<'a>(schema: &'a Value, setting: &'a Value) -> &'a Value {
    let inner = setting["anyOf"].as_array().and_then(|all| all.iter().find(|s| s["type"] != "null"));
    let setting = inner.unwrap_or(setting);
    match setting["$ref"].as_str().and_then(|path| path.strip_prefix('#')) {
        Some(path) => schema.pointer(path).unwrap_or(setting),
        None => setting,
    }
}

/// A description in one line; where a setting has none, that of its type.
fn described(schema: &Value, setting: &Value) -> String {
    let own = setting["description"].as_str().or(resolved(schema, setting)["description"].as_str());
    own.unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The words that a setting may be, each with its meaning.
fn values(schema: &Value) -> Vec<String> {
    let word = |value: &Value| value.as_str().map(|word| format!("`{word}`"));
    let plain = schema["enum"].as_array().into_iter().flatten().filter_map(word);
    let told = schema["oneOf"].as_array().into_iter().flatten().flat_map(|one| {
        let meaning = one["description"]
            .as_str()
            .map(|d| d.trim_end_matches('.').split_whitespace().collect::<Vec<_>>());
        let meaning = meaning.map_or(String::new(), |m| format!(" ({})", m.join(" ")));
        let words = one["const"].as_str().map(|word| format!("`{word}`{meaning}"));
        words.into_iter().chain(one["enum"].as_array().into_iter().flatten().filter_map(word))
    });
    plain.chain(told).collect()
}
