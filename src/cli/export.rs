//! `gems-engine export`.

use super::card;
use super::measure::probe;
use super::options::{DeviceArgs, OutputArgs, SettingsArgs};
use super::session::Session;
use crate::backend::Branch;
use crate::error::{Error, Result};
use crate::export::peft::{AdapterHead, Delta, RankRule, SiteDelta, factor, write};
use crate::export::{logit_difference, write_merged};
use crate::model::{DenseKind, Model, StoredType};
use crate::run::Reads;
use clap::{Args, ValueEnum};
use serde_json::json;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Write a run's model for others to load.
///
/// Example: gems-engine export --run runs/first --format peft --out adapter
#[derive(Args)]
pub struct ExportArgs {
    /// The run directory.
    #[arg(long, value_name = "DIR")]
    run: PathBuf,
    /// What to write.
    #[arg(long, value_enum, default_value_t = Format::Merged)]
    format: Format,
    /// The directory to write.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// How values of a merged model are stored.
    #[arg(long, value_enum, default_value_t = StoredType::F32)]
    dtype: StoredType,
    /// Size of an adapter whose change is not low-rank: a rank, or a share of the energy.
    #[arg(long, value_name = "RANK|SHARE", default_value = "0.999")]
    rank: RankRule,
    #[command(flatten)]
    settings: SettingsArgs,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// What to write.
#[derive(Clone, Copy, ValueEnum)]
enum Format {
    /// A Hugging Face directory.
    Merged,
    /// A PEFT adapter.
    Peft,
}

/// Runs the command.
pub fn run(args: &ExportArgs) -> Result<()> {
    let mut session = Session::open_run(&args.run, &args.settings, &args.device, Reads::Items)?;
    session.restore_best(&args.run)?;
    let (worst, energy) = match args.format {
        Format::Merged => {
            let beside = |dir: &Path| card::write(&session, &args.run, true, dir);
            (
                write_merged(
                    &session.model,
                    &session.base,
                    &args.out,
                    args.dtype,
                    &beside,
                    &probe(&session)?,
                )?,
                1.0,
            )
        }
        Format::Peft => peft(&session, args)?,
    };
    let text = match args.output.json {
        true => json!({"out": args.out.display().to_string(), "largest_logit_difference": worst, "energy": energy}).to_string(),
        false => format!(
            "{}: largest logit difference {worst:.1e}, share of the change's energy kept {energy:.6}",
            args.out.display()
        ),
    };
    writeln!(std::io::stdout(), "{text}").map_err(|e| Error::io("write", "standard output", e))
}

/// The modules that use a table. PEFT gives each that it saves a copy of its own, so a tied table is saved for
/// every one of them.
fn table_modules(model: &Model, kind: DenseKind) -> Vec<&'static str> {
    let t5 = model.architecture.is_encoder_decoder();
    let mut modules = match (kind, t5) {
        (DenseKind::Head, _) => return vec!["lm_head"],
        (_, true) => vec!["shared", "encoder.embed_tokens", "decoder.embed_tokens"],
        (_, false) => vec!["model.embed_tokens"],
    };
    if model.architecture.tied {
        modules.push("lm_head");
    }
    modules
}

/// Writes the adapter, rebuilds the model from the base and the factors, and compares.
fn peft(session: &Session, args: &ExportArgs) -> Result<(f32, f64)> {
    let mut base = session.base_again(&args.device)?;
    let tuned = &session.model;
    let be = &tuned.backend;
    let (mut factors, mut least) = (Vec::new(), 1f64);
    for (i, site) in tuned.layout.sites.iter().enumerate() {
        if tuned.linears[i].weight.quantised().is_some() {
            // All that was learned is in the branch.
            let Some(Branch { a, b }) = &tuned.linears[i].branch else { continue };
            let (rank, b, a) = (a.rows(), be.download(b.mat())?, be.download(a.mat())?);
            let made = factor(
                SiteDelta { name: site.name.clone(), delta: Delta::Factors { b, a, rank } },
                args.rank,
            )?;
            factors.push(made);
            continue;
        }
        let before = base.model.merged(i)?;
        let change: Vec<f32> = tuned.merged(i)?.iter().zip(&before).map(|(a, b)| a - b).collect();
        if change.iter().all(|v| *v == 0.0) {
            continue;
        }
        let unfolded = be.download(tuned.linears[i].weight.mat())? == before;
        let delta = match &tuned.linears[i].branch {
            Some(branch) if unfolded => Delta::Factors {
                b: be.download(branch.b.mat())?,
                a: be.download(branch.a.mat())?,
                rank: branch.a.rows(),
            },
            _ => Delta::Dense { values: change, rows: site.outputs, cols: site.inputs },
        };
        let made = factor(SiteDelta { name: site.name.clone(), delta }, args.rank)?;
        least = least.min(made.energy);
        factors.push(made);
    }
    let mut modules = Vec::new();
    for (i, spec) in tuned.layout.dense.iter().enumerate() {
        let values = be.download(tuned.parameter(i))?;
        if matches!(spec.kind, DenseKind::Embedding | DenseKind::Head)
            && values != be.download(base.model.parameter(i))?
        {
            be.upload(&values, base.model.parameter_mut(i))?;
            for name in table_modules(tuned, spec.kind) {
                modules.push((name.to_string(), spec.rows, spec.cols, values.clone()));
            }
        }
    }
    for f in &factors {
        let Some(i) = tuned.layout.sites.iter().position(|s| s.name == f.name) else { continue };
        let a = be.tensor(&f.a, f.rank, f.cols, be.compute_dtype())?;
        let b = be.tensor(&f.b, f.rows, f.rank, be.compute_dtype())?;
        base.model.linears[i].branch = Some(Branch { a, b });
    }
    let worst = logit_difference(tuned, &base.model, &probe(session)?)?;
    let task_type = if tuned.architecture.is_encoder_decoder() { "SEQ_2_SEQ_LM" } else { "CAUSAL_LM" };
    let path = session.base.display().to_string();
    crate::files::write_directory(&args.out, |dir| {
        write(dir, &AdapterHead { base: &path, task_type, modules }, &factors)?;
        card::write(session, &args.run, false, dir)
    })?;
    Ok((worst, least))
}
