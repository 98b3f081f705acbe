//! `gems-engine profile`.

mod subject;
mod table;

use super::options::{DeviceArgs, OutputArgs, SettingsArgs};
use super::session::{Memory, Session, configuration};
use super::{demo, device, products};
use crate::backend::cuda::{Cuda, DeviceSpec};
use crate::backend::trace::{self, Ended, Record};
use crate::backend::work::{Peaks, Work};
use crate::backend::{AdaptedLinear, Backend, DType, Linear};
use crate::config::{Config, Layer};
use crate::error::{Error, Result};
use crate::gems::NullSide;
use clap::Args;
use serde_json::{Value, json};
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;
use subject::Subject;

/// Say where a training step's time goes: by kernel (on the CPU: by operation), phase and layer; and which kernels the
/// products of every kind of layer take, and why.
///
/// Without --model and --data it profiles the embedded demo; with --shape, random weights of a known model's
/// shape. Device `null` computes nothing and shows what a step costs the host.
///
/// Example: gems-engine profile --shape qwen2.5-0.5b --tokens 8192 --device cuda --trace step.json
#[derive(Args)]
pub struct ProfileArgs {
    /// The base model: a Hugging Face directory.
    #[arg(long, value_name = "DIR", requires = "data")]
    model: Option<PathBuf>,
    /// The data directory (see `prepare`).
    #[arg(long, value_name = "DIR", requires = "model")]
    data: Option<PathBuf>,
    /// Random weights of a shape: t5-base, qwen2.5-0.5b, qwen2.5-1.5b, qwen2.5-7b, llama-3.1-8b.
    #[arg(long, value_name = "NAME", conflicts_with = "model")]
    shape: Option<String>,
    /// Tokens of a step (with --shape).
    #[arg(long, value_name = "N", default_value_t = 8192)]
    tokens: usize,
    /// Tokens of a sequence (with --shape).
    #[arg(long, value_name = "N", default_value_t = 512)]
    length: usize,
    /// Steps before the measured ones.
    #[arg(long, value_name = "N", default_value_t = 2)]
    warmup: u64,
    /// Steps that are measured; as many again are recorded kernel by kernel.
    #[arg(long, value_name = "N", default_value_t = 3)]
    steps: u64,
    /// Do not measure a refresh of the bases.
    #[arg(long)]
    no_refresh: bool,
    /// Write a trace that Perfetto (ui.perfetto.dev) opens.
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    #[command(flatten)]
    settings: SettingsArgs,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// What was measured.
struct Measured {
    /// Seconds of each undisturbed step.
    steps: Vec<f64>,
    /// The step that refreshed the bases.
    refresh: Option<Refreshed>,
    /// Waits for the device in all undisturbed steps.
    waits: u64,
    /// Seconds spent before the first step: weights, first bases.
    start: f64,
    peak: usize,
    records: Vec<Record>,
    spans: Vec<Ended>,
}

/// A step that renewed the bases.
struct Refreshed {
    /// Its seconds, undisturbed.
    seconds: f64,
    /// Its waits for the device.
    waits: u64,
    /// What the renewal and the opening of its window launched.
    records: Vec<Record>,
}

/// Runs the command.
pub fn run(args: &ProfileArgs) -> Result<()> {
    if args.steps == 0 {
        return Err(Error::usage("no steps to measure").at("--steps").remedy("1 or more"));
    }
    let started = Instant::now();
    let mut subject = args.subject()?;
    let backend = Arc::clone(&subject.model.backend);
    backend.synchronize()?;
    let start = started.elapsed().as_secs_f64();
    let peaks = peaks(&backend)?;
    let measured = args.measure(&mut subject, &backend, start)?;
    if let Some(path) = &args.trace {
        let text = table::chrome(&measured.records, &measured.spans).to_string();
        crate::files::write_atomically(path, text.as_bytes())?;
    }
    let rows = table::rows(&measured.records, args.steps as usize, peaks.as_ref());
    let products = subject.products()?;
    let document = document(args, &subject, &measured, peaks.as_ref(), (&rows, &products))?;
    let out = &mut std::io::stdout();
    let written = match args.output.json {
        true => writeln!(out, "{document}"),
        false => {
            let mut parts = vec![summary(&document), table::text(&rows, 40)];
            parts.extend((!products.is_empty()).then(|| products::text(&products)));
            parts.push(args.tools());
            writeln!(out, "{}", parts.join("\n\n"))
        }
    };
    written.map_err(|e| Error::io("write", "standard output", e))
}

impl ProfileArgs {
    /// Steps from one renewal of the bases to the next: the first, at the end of the measured steps, is measured,
    /// the second recorded.
    fn cycle(&self) -> u64 {
        let before = self.warmup + self.steps;
        if self.no_refresh { before + self.steps + 1 } else { before + 1 }
    }

    fn config(&self, mut layers: Vec<Layer>) -> Result<Config> {
        layers.extend(self.settings.layers()?);
        let text = |p: &PathBuf| toml::Value::from(p.display().to_string());
        if let (Some(model), Some(data)) = (&self.model, &self.data) {
            layers.push(Layer::value("--model", "model.path", text(model)));
            layers.push(Layer::value("--data", "data.path", text(data)));
        }
        let every = toml::Value::from(self.cycle() as i64);
        layers.push(Layer::value("profile", "gems.refresh_every", every));
        layers.push(Layer::value("profile", "gems.refresh_window", toml::Value::from(1)));
        let device = DeviceArgs { device: self.device.device.clone().filter(|d| d != "null"), threads: None };
        let mut config = configuration(&SettingsArgs::default(), &device, layers)?;
        // No directions to protect were learned: a null space costs nothing between refreshes.
        if config.null_space.side != NullSide::Metric {
            config.null_space.side = NullSide::None;
        }
        config.null_space.item_rows = 0.0;
        Ok(config)
    }

    fn backend(&self, config: &Config) -> Result<Arc<dyn Backend>> {
        if self.device.device.as_deref() == Some("null") {
            return Ok(Cuda::open(DeviceSpec::dry_run_of_h100(DType::BF16).with_switches()?)?);
        }
        let opened = device::open(config, &self.device)?;
        // Kernel backends record their own launches; the CPU's operations get a clock.
        Ok(opened)
    }

    fn subject(&self) -> Result<Subject> {
        if let Some(shape) = &self.shape {
            let config = self.config(Vec::new())?;
            let backend = self.backend(&config)?;
            return Subject::of_shape(shape, (self.tokens, self.length), config, backend);
        }
        let open = |config: &Config| self.backend(config);
        if self.model.is_some() {
            return Subject::of_session(Session::open_on(self.config(Vec::new())?, open, Memory::Any)?);
        }
        let dir = tempfile::tempdir().map_err(|e| Error::io("make", std::env::temp_dir(), e))?;
        demo::unpack(dir.path())?;
        let config = self.config(demo::settings(dir.path())?)?;
        Subject::of_session(Session::open_on(config, open, Memory::Any)?)
    }

    fn measure(&self, subject: &mut Subject, backend: &Arc<dyn Backend>, start: f64) -> Result<Measured> {
        let mut timed = || -> Result<f64> {
            let from = Instant::now();
            subject.step()?;
            Ok(from.elapsed().as_secs_f64())
        };
        for _ in 0..self.warmup {
            timed()?;
        }
        let waits = backend.waits();
        backend.reset_peak_memory();
        trace::start(true);
        backend.profiler(true)?;
        let steps = (0..self.steps).map(|_| timed()).collect::<Result<Vec<f64>>>()?;
        backend.profiler(false)?;
        trace::stop();
        let (waits, peak) = (backend.waits() - waits, backend.memory().taken);
        let refresh = if self.no_refresh { None } else { Some((backend.waits(), timed()?, backend.waits())) };
        trace::start(false);
        backend.record()?;
        (0..self.steps).try_for_each(|_| timed().map(drop))?;
        let records = backend.recorded()?;
        let spans = trace::stop();
        let refresh = match refresh {
            Some((from, seconds, to)) => {
                (0..self.warmup).try_for_each(|_| timed().map(drop))?;
                trace::start(false);
                backend.record()?;
                timed()?;
                let mut records = backend.recorded()?;
                trace::stop();
                records.retain(|r| r.place.split('/').any(|p| p == "refresh" || p == "window"));
                Some(Refreshed { seconds, waits: to - from, records })
            }
            None => None,
        };
        Ok(Measured { steps, refresh, waits, start, peak, records, spans })
    }

    /// Command lines for NVIDIA's tools: the measured steps alone, with names.
    fn tools(&self) -> String {
        let mut command: Vec<String> = std::env::args().collect();
        command[0] = "gems-engine".into();
        let command = command.join(" ");
        format!(
            "With NVIDIA's tools on a GPU (phases and layers are NVTX ranges; only the measured steps are looked at):\n\
             nsys profile -t cuda,nvtx --capture-range=cudaProfilerApi --capture-range-end=stop -o step {command}\n\
             ncu --profile-from-start off --set full --launch-count 20 -k regex:matmul -o kernels {command}"
        )
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The device's limits: its own word for a GPU, measured for the CPU, none for what is no real device.
fn peaks(backend: &Arc<dyn Backend>) -> Result<Option<Peaks>> {
    let info = backend.info();
    if info.peaks.is_some() || info.launches_kernels() {
        return Ok(info.peaks);
    }
    let best = |runs: usize, f: &mut dyn FnMut() -> Result<()>| -> Result<f64> {
        let mut least = f64::INFINITY;
        for _ in 0..runs {
            let from = Instant::now();
            f()?;
            least = least.min(from.elapsed().as_secs_f64());
        }
        Ok(least)
    };
    let n = 1 << 12;
    let from = backend.zeros(n, n, DType::F32)?;
    let mut to = backend.zeros(n, n, DType::F32)?;
    let copy = best(5, &mut || backend.copy(from.mat(), to.mat_mut()))?;
    let m = 1 << 10;
    let square = || backend.tensor(&vec![0.5; m * m], m, m, DType::F32);
    let (x, mut y) = (square()?, backend.zeros(m, m, DType::F32)?);
    // A layer: its products may be faster than others.
    let layer = AdaptedLinear { weight: square()?.into(), bias: None, branch: None };
    let mut product =
        || backend.execute(Linear { layer: &layer, x: x.mat(), h: None, y: y.mat_mut() }.into());
    let product = best(5, &mut product)?;
    Ok(Some(Peaks {
        bytes_per_second: (2 * 4 * n * n) as f64 / copy,
        flops_per_second: (2 * m * m * m) as f64 / product,
    }))
}

fn document(
    args: &ProfileArgs,
    subject: &Subject,
    m: &Measured,
    peaks: Option<&Peaks>,
    (rows, products): (&[table::Row], &[products::LayerProducts]),
) -> Result<Value> {
    let step = median(&m.steps);
    let launches = m.records.len() as f64 / args.steps as f64;
    let host: f64 = m.records.iter().map(|r| r.host).sum::<f64>() / args.steps as f64;
    let device: Option<f64> = m.records.iter().map(|r| r.seconds).sum::<Option<f64>>();
    let plan = subject.plan()?;
    let waits = m.waits as f64 / args.steps as f64;
    let refresh = m.refresh.as_ref().map(|r| {
        let work = r.records.iter().filter_map(|r| r.work).fold(Work::default(), |a, b| a + b);
        json!({
            "launches": r.records.len(),
            "waits": r.waits as f64 - waits,
            "gb": work.bytes as f64 / 1e9,
            "gflop": work.flops as f64 / 1e9,
            "kernels": table::rows(&r.records, 1, peaks),
        })
    });
    Ok(json!({
        "device": subject.model.backend.info().name,
        "what": args.shape.clone().or(args.model.as_ref().map(|m| m.display().to_string())),
        "tokens": subject.tokens(),
        "step_ms": step * 1e3,
        "steps_ms": m.steps.iter().map(|s| s * 1e3).collect::<Vec<_>>(),
        "tokens_per_s": subject.tokens() as f64 / step,
        "refresh_ms": m.refresh.as_ref().map(|r| (r.seconds - step) * 1e3),
        "refresh": refresh,
        "start_s": m.start,
        "launches": launches,
        "waits": waits,
        "launching_ms": host * 1e3,
        "device_ms": device.map(|d| d / args.steps as f64 * 1e3),
        "phases_ms": table::phases(&m.records, args.steps as usize),
        "peak_memory_bytes": m.peak,
        "predicted_memory_bytes": plan.total(),
        "peaks": peaks.map(|p| json!({"gb_per_s": p.bytes_per_second / 1e9, "tflop_per_s": p.flops_per_second / 1e12})),
        "kernels": rows,
        "products": products,
    }))
}

fn summary(d: &Value) -> String {
    let number =
        |key: &str, digits: usize| d[key].as_f64().map_or("-".to_string(), |v| format!("{v:.digits$}"));
    let mib =
        |key: &str| d[key].as_f64().map_or("-".to_string(), |v| format!("{:.1}", v / f64::from(1 << 20)));
    let phases =
        d["phases_ms"].as_object().filter(|_| !d["device_ms"].is_null()).map_or(String::new(), |phases| {
            let one = |(name, ms): (&String, &Value)| format!("{name} {:.3}", ms.as_f64().unwrap_or(0.0));
            format!(" ({})", phases.iter().map(one).collect::<Vec<_>>().join(", "))
        });
    let refresh = match &d["refresh"] {
        Value::Null => String::new(),
        r => format!(" ({} launches, {} waits)", r["launches"], r["waits"].as_f64().unwrap_or(0.0)),
    };
    let limits = match &d["peaks"] {
        Value::Null => "not known for this device: no floors".to_string(),
        p => format!(
            "{:.1} GB/s, {:.3} TFLOP/s",
            p["gb_per_s"].as_f64().unwrap_or(0.0),
            p["tflop_per_s"].as_f64().unwrap_or(0.0)
        ),
    };
    format!(
        "device       {}\nstep         {} ms for {} tokens ({} tokens/s)\nrefresh      {} ms more{refresh}\n\
         launches     {} a step, the host spends {} ms on launching them and waits {} times\ndevice time  {} ms a step{phases}\n\
         peak memory  {} MiB (a run with its refreshes is planned with {} MiB)\nlimits       {limits}",
        d["device"].as_str().unwrap_or("?"),
        number("step_ms", 3),
        d["tokens"],
        number("tokens_per_s", 0),
        number("refresh_ms", 3),
        number("launches", 0),
        number("launching_ms", 3),
        number("waits", 0),
        number("device_ms", 3),
        mib("peak_memory_bytes"),
        mib("predicted_memory_bytes"),
    )
}
