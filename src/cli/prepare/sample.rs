//! `gems-engine prepare sample`: general text that a model writes.

use super::args::SampleArgs;
use super::{say, watched};
use crate::cli::options::SettingsArgs;
use crate::cli::session::configuration;
use crate::data::{Catalogue, DataSettings, ItemIdentity, PromptSide, Vocabulary};
use crate::error::{Error, Result};
use crate::eval::{SampleSettings, sample_text};
use crate::files::write_atomically;
use crate::model::{LoadOptions, Model, hub};
use serde_json::json;

/// Lets a model write general text.
pub(super) fn sample(args: &SampleArgs) -> Result<()> {
    check(args)?;
    let config = configuration(&SettingsArgs::default(), &args.device, Vec::new())?;
    let dir = hub::Cache::of_environment().locate(&args.model);
    let model = Model::load(&dir, crate::cli::device::open(&config, &args.device)?, &LoadOptions::default())?;
    // A catalogue without items adds no tokens.
    let plain = DataSettings { item_identity: ItemIdentity::Text, ..DataSettings::default() };
    let (none, kind) = (Catalogue::default(), PromptSide::Decoder);
    let vocabulary = Vocabulary::new(&dir, &none, &plain, kind, None)?;
    let (begin, quiet) = (vocabulary.encode("")?, args.output.json);
    let settings = SampleSettings { documents: args.documents, length: args.length, seed: args.seed };
    let documents = watched(quiet, |watch| {
        let ends = (begin.as_slice(), vocabulary.eos());
        sample_text(&model, ends, vocabulary.base_size(), settings, &mut |done, all| {
            watch.at("writing text", done as u64, all as u64)
        })
    })?;
    let mut lines = String::new();
    for document in &documents {
        let text = vocabulary.decode(document, true)?;
        if !text.trim().is_empty() {
            lines += &format!("{}\n", json!({"text": text.trim()}));
        }
    }
    write_atomically(&args.out, lines.as_bytes())?;
    let tokens: usize = documents.iter().map(Vec::len).sum();
    let text = match quiet {
        true => json!({"out": args.out, "documents": lines.lines().count(), "tokens": tokens}).to_string(),
        false => format!("{}: {} documents, {tokens} tokens", args.out.display(), lines.lines().count()),
    };
    say(&format!("{text}\n"))
}

fn check(args: &SampleArgs) -> Result<()> {
    let bad = |flag: &str, what: String, remedy: &str| Err(Error::usage(what).at(flag).remedy(remedy));
    if !(1..=1 << 24).contains(&args.documents) {
        return bad("--documents", format!("{} documents are no text", args.documents), "1 to 16777216");
    }
    if !(2..=1 << 16).contains(&args.length) {
        return bad("--length", format!("{} tokens are no document", args.length), "2 to 65536");
    }
    if args.out.exists() && !args.overwrite {
        return bad(
            "--out",
            format!("{} is there already", args.out.display()),
            "another name, or --overwrite",
        );
    }
    Ok(())
}
