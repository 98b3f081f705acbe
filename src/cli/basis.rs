//! `gems-engine basis`.

use super::options::{DeviceArgs, OutputArgs, SettingsArgs};
use super::ranks;
use super::session::{Memory, Session, configuration};
use crate::config::Layer;
use crate::error::{Error, Result};
use crate::gems::NullSide;
use clap::Args;
use serde_json::json;
use std::io::Write;
use std::path::PathBuf;

/// Learn which directions of a model's layers carry general knowledge.
///
/// Example: gems-engine basis --model Qwen2.5-0.5B --data data --out basis.safetensors
#[derive(Args)]
pub struct BasisArgs {
    /// The base model: a Hugging Face directory.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// The data directory, with general.txt or general.jsonl.
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// The file to write.
    #[arg(long, value_name = "FILE", default_value = "basis.safetensors")]
    out: PathBuf,
    #[command(flatten)]
    settings: SettingsArgs,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// Runs the command.
pub fn run(args: &BasisArgs) -> Result<()> {
    let text = |p: &PathBuf| toml::Value::from(p.display().to_string());
    let flags = vec![
        Layer::value("--model", "model.path", text(&args.model)),
        Layer::value("--data", "data.path", text(&args.data)),
    ];
    let config = configuration(&args.settings, &args.device, flags)?;
    let mut session = Session::open_for(Memory::Learning, config, &args.device)?;
    ranks::settle_shards(&mut session.config)?;
    session.same_on_all_ranks()?;
    let texts = session.text_warnings()?;
    texts.iter().for_each(|warning| super::say(warning));
    let knowledge = session.learn_basis(&args.out, &session.config.null_space, args.output.json)?;
    if !ranks::world().is_first() {
        return Ok(());
    }
    let protected = session.protected(&knowledge)?;
    let null = &session.config.null_space;
    let warnings = protected.warnings(matches!(null.side, NullSide::Input | NullSide::Output));
    let mut out = std::io::stdout();
    let (tokens, backward) = (knowledge.tokens, knowledge.gradient_tokens);
    let written = match args.output.json {
        true => writeln!(
            out,
            "{}",
            json!({"basis": args.out.display().to_string(), "tokens": tokens, "gradient_tokens": backward,
                "layers": protected.layers, "adapted": protected.adapted, "unprotected": protected.unprotected,
                "spaces": protected.spaces, "warnings": warnings})
        ),
        false => writeln!(out, "{}", protected.table())
            .and_then(|()| warnings.iter().try_for_each(|w| writeln!(out, "warning: {w}")))
            .and_then(|()| {
                let file = args.out.display();
                writeln!(out, "{file} ({tokens} tokens of general text, {backward} of them backward too)")
            }),
    };
    written.map_err(|e| Error::io("write", "standard output", e))
}
