//! The engine as a contender of `compare.py`: reads "step" lines, does one step each, answers with JSON.

#[path = "../shapes.rs"]
mod shapes;

use clap::Parser;
use gems_engine::backend::cpu::{Cpu, Products};
use gems_engine::gems::Method;
use gems_engine::model::{LoadOptions, Model, Narrow, Packed};
use serde_json::{Value, json};
use shapes::{Training, labelled, method};
use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::time::Instant;

#[derive(Parser)]
struct Args {
    #[arg(long)]
    model: PathBuf,
    #[arg(long)]
    batch: PathBuf,
    #[arg(long)]
    method: String,
    #[arg(long, default_value_t = 16)]
    rank: usize,
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Weights stay bf16 in memory.
    #[arg(long)]
    bf16: bool,
    /// Products of layers in bf16.
    #[arg(long)]
    mixed: bool,
}

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let args = Args::parse();
    let products = if args.mixed { Products::Bf16 } else { Products::F32 };
    let backend = Cpu::open_with(Some(args.threads), products)?;
    let narrow = Narrow { layers: args.bf16, tables: args.bf16 };
    let model = Model::load(&args.model, backend, &LoadOptions { narrow, ..LoadOptions::default() })?;
    let batch = batch(&serde_json::from_str(&std::fs::read_to_string(&args.batch)?)?, &model)?;
    let kind = match args.method.as_str() {
        "gems" => Method::Gems,
        "lora" => Method::Lora,
        "galore" => Method::Galore,
        _ => Method::Full,
    };
    let mut training = Training::start(model, batch, method(kind, args.rank))?;
    for line in std::io::stdin().lock().lines() {
        line?;
        let (start, before) = (Instant::now(), cpu_seconds()?);
        let loss = training.step()?;
        let (seconds, cpu) = (start.elapsed().as_secs_f64(), cpu_seconds()? - before);
        let memory = training.model.backend.memory();
        println!("{}", json!({"loss": loss, "seconds": seconds, "cpu": cpu, "tensors": memory.peak}));
        std::io::stdout().flush()?;
    }
    Ok(())
}

/// The batch that the peers read, packed.
fn batch(json: &Value, model: &Model) -> Result<gems_engine::model::Batch, Failure> {
    let rows: Vec<Vec<u32>> = serde_json::from_value(json["input_ids"].clone())?;
    let labels: Vec<Vec<i64>> = serde_json::from_value(json["labels"].clone())?;
    let tasks: Vec<usize> = serde_json::from_value(json["tasks"].clone())?;
    let of = |t: usize, all: &[Vec<u32>]| -> Vec<Vec<u32>> {
        all.iter().zip(&tasks).filter(|(_, task)| **task == t).map(|(row, _)| row.clone()).collect()
    };
    let cut = |all: &[Vec<u32>]| all.iter().map(|s| s[..s.len() - 1].to_vec()).collect::<Vec<_>>();
    Ok(match model.architecture.decoder_start {
        Some(start) => {
            let whole: Vec<Vec<u32>> = labels
                .iter()
                .map(|row| std::iter::once(start).chain(row.iter().map(|t| *t as u32)).collect())
                .collect();
            let encoder = Packed::new(&[of(0, &rows), of(1, &rows)]);
            let decoder = Packed::new(&[cut(&of(0, &whole)), cut(&of(1, &whole))]);
            labelled(Some(encoder), decoder, &whole)
        }
        None => labelled(None, Packed::new(&[cut(&of(0, &rows)), cut(&of(1, &rows))]), &rows),
    })
}

/// Processor seconds of this process, all threads.
fn cpu_seconds() -> Result<f64, Failure> {
    let mut nanoseconds = 0.0;
    for thread in std::fs::read_dir("/proc/self/task")? {
        let text = std::fs::read_to_string(thread?.path().join("schedstat"))?;
        nanoseconds += text.split_whitespace().next().unwrap_or("0").parse::<f64>()?;
    }
    Ok(nanoseconds / 1e9)
}
