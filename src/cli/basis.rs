//! `gems-engine basis`.

use super::options::{DeviceArgs, OutputArgs, SettingsArgs};
use super::session::{Session, configuration};
use crate::config::Layer;
use crate::error::{Error, Result};
use crate::report::Progress;
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
    let session = Session::open(configuration(&args.settings, &args.device, flags)?, &args.device)?;
    let mut progress = Progress::new("knowledge basis, tokens", 0, args.output.json);
    let basis = session.learn_basis(&mut |done, all| progress.tick(done as u64, || format!("of {all}")));
    progress.finish();
    let basis = basis?;
    basis.save(&args.out)?;
    let sites = &session.model.layout.sites;
    let by_space = basis.sites_by_space();
    let mut rows = Vec::new();
    for (i, space) in basis.spaces.iter().enumerate() {
        let names: Vec<&str> =
            by_space.get(&i).into_iter().flatten().map(|s| sites[*s].projection.name()).collect();
        rows.push(
            json!({"layer": space.name, "serves": names, "dimensions": space.dim, "protected": space.kept(),
            "free": space.dim - space.kept(), "energy": space.energy}),
        );
    }
    let mut out = std::io::stdout();
    let written = if args.output.json {
        writeln!(
            out,
            "{}",
            json!({"basis": args.out.display().to_string(), "tokens": basis.tokens, "spaces": rows})
        )
    } else {
        let mut table = comfy_table::Table::new();
        table.load_style(comfy_table::presets::UTF8_FULL_CONDENSED);
        table.set_header(["layer", "dimensions", "protected", "free", "energy"]);
        for (space, row) in basis.spaces.iter().zip(&rows) {
            let cells = [&row["dimensions"], &row["protected"], &row["free"]].map(|v| v.to_string());
            table.add_row([
                space.name.clone(),
                cells[0].clone(),
                cells[1].clone(),
                cells[2].clone(),
                format!("{:.4}", space.energy),
            ]);
        }
        writeln!(out, "{table}\n{} ({} tokens of general text)", args.out.display(), basis.tokens)
    };
    written.map_err(|e| Error::io("write", "standard output", e))
}
