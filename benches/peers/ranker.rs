//! The engine as a contender of `evaluate.py`: ranks the test records of a data directory at every line it reads, and
//! answers with JSON. What `gems-engine evaluate` does with them, from records to rankings, without loading.

use clap::Parser;
use gems_engine::backend::cuda::{Cuda, DeviceSpec};
use gems_engine::backend::{Backend, cpu::Cpu};
use gems_engine::data::{DataSettings, Dataset, Encoder, PromptSide, Prompts, Vocabulary};
use gems_engine::eval::{Candidates, EvaluateSettings, Rankings, rank_split};
use gems_engine::model::{LoadOptions, Model};
use serde_json::{Value, json};
use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

#[derive(Parser)]
struct Args {
    /// A Hugging Face directory whose tokenizer has the items' tokens.
    #[arg(long)]
    model: PathBuf,
    #[arg(long)]
    data: PathBuf,
    /// Where prompts, candidates and scores of the first ranking go.
    #[arg(long)]
    scores: PathBuf,
    /// cpu or cuda.
    #[arg(long, default_value = "cpu")]
    device: String,
    #[arg(long, default_value_t = 2)]
    threads: usize,
}

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let args = Args::parse();
    let backend: Arc<dyn Backend> = match args.device.as_str() {
        "cuda" => Cuda::open(DeviceSpec::gpu(0).with_switches()?)?,
        _ => Cpu::open(Some(args.threads))?,
    };
    let settings = DataSettings::default();
    let world = Dataset::load(&args.data, &settings)?;
    let model = Model::load(&args.model, backend, &LoadOptions::default())?;
    let prompt_side = PromptSide::from(&model.architecture);
    let vocabulary = Vocabulary::new(&args.model, &world.items, &settings, prompt_side, None)?;
    let prompts = Prompts::new(&settings, None, Some(&vocabulary))?;
    let encoder = Encoder::new(&vocabulary, &prompts, &world.tasks, prompt_side, &settings);
    // Deep enough to hold every candidate with its score.
    let evaluate = EvaluateSettings {
        k: vec![10, 20, 1000],
        candidates: Candidates::Given,
        ..EvaluateSettings::default()
    };
    let rank = || rank_split(&model, &encoder, &world, &world.test, &evaluate, &mut |_, _| {});
    let mut kept = false;
    for line in std::io::stdin().lock().lines() {
        line?;
        let (start, before) = (Instant::now(), cpu_seconds()?);
        let rankings = rank()?;
        let (seconds, cpu) = (start.elapsed().as_secs_f64(), cpu_seconds()? - before);
        if !std::mem::replace(&mut kept, true) {
            std::fs::write(&args.scores, scores(&rankings, &world, &encoder)?.to_string())?;
        }
        println!("{}", json!({"queries": rankings.requests.len(), "seconds": seconds, "cpu": cpu}));
        std::io::stdout().flush()?;
    }
    Ok(())
}

/// A list of `{prompt, items: [[id, log-likelihood], ...]}`, best items first.
fn scores(rankings: &Rankings, world: &Dataset, encoder: &Encoder) -> Result<Value, Failure> {
    let of = |request: &gems_engine::eval::Ranked| -> Result<Value, Failure> {
        let prompt = encoder.prompt(&world.test.records[request.record])?;
        let items: Vec<Value> =
            request.top.iter().map(|(item, score)| json!([world.items.id(*item), score])).collect();
        Ok(json!({"prompt": prompt, "items": items}))
    };
    rankings.requests.iter().map(of).collect()
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
