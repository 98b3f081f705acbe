//! Every operation beside its floor ([`Operation::work`](gems_engine::backend::Operation::work)), with the operands of
//! the tests (`tests/suite/ops/`).
//!
//! `cargo bench --bench ops [FILTER]` times them with criterion at the sizes of a model of 60 M weights, on the device of
//! `GEMS_BENCH_DEVICE`, and ends in a table.
//!
//! With `--device` it times them itself, at the shapes of known models over token counts, also as a program of its own:
//! `ops --device cuda --shapes t5-base,qwen2.5-7b --tokens 2048,8192 --seconds 60 --only matmul --out FILE`.
//! The file gets a line of JSON as soon as a figure is there. What is fused is also timed as its separate operations.
//! With `GEMS_CUBLASLT=on`, plain products are cuBLASLt's.

#[path = "../tests/suite/ops/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the tests are left out")]
mod ops;
mod shapes;
#[path = "../tests/suite/support.rs"]
#[allow(unused_imports, reason = "the tests are left out")]
mod support;

use criterion::Criterion;
use gems_engine::backend::cpu::Cpu;
use gems_engine::backend::cuda::{Cuda, DeviceSpec};
use gems_engine::backend::work::{Peaks, Work};
use gems_engine::backend::{Backend, DType};
use gems_engine::error::Result;
use gems_engine::model::{Architecture, shapes as known};
use ops::cases::{self, Case, Inputs, Prepared, Sizes, Timed};
use ops::{elementwise, matmul::Product};
use rayon::prelude::*;
use serde_json::json;
use std::cell::RefCell;
use std::hint::black_box;
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The sizes of a model; of rank, sequences and labels as a run has them.
fn sizes(a: &Architecture, tokens: usize) -> Sizes {
    Sizes {
        tokens,
        sequence: 512,
        labels: tokens.min(1024),
        hidden: a.hidden,
        intermediate: a.intermediate,
        gated: a.gated,
        activation: a.activation,
        heads: a.heads,
        kv_heads: a.kv_heads,
        head_dim: a.head_dim,
        causal: !a.is_encoder_decoder(),
        vocabulary: a.vocabulary,
        rank: 64,
        layers: 48,
    }
}

fn inputs(be: &dyn Backend) -> Inputs<'_> {
    Inputs { be, exact: DType::F32, strided: false, distinct: 1 << 16 }
}

/// Seconds of a call, of `calls` that are waited for once.
fn round(be: &dyn Backend, prepared: &mut Prepared, calls: usize) -> Result<f64> {
    let from = Instant::now();
    (0..calls).try_for_each(|_| prepared.run(be))?;
    be.synchronize()?;
    Ok(from.elapsed().as_secs_f64() / calls as f64)
}

/// Median seconds of a call: rounds of as many calls as take 20 ms.
fn time(be: &dyn Backend, prepared: &mut Prepared) -> Result<f64> {
    round(be, prepared, 1)?;
    let calls = ((0.02 / round(be, prepared, 1)?.max(1e-7)) as usize).clamp(1, 2000);
    let mut rounds = (0..5).map(|_| round(be, prepared, calls)).collect::<Result<Vec<f64>>>()?;
    rounds.sort_by(f64::total_cmp);
    Ok(rounds[2])
}

/// What this device did best in this run: a copy that does not fit the caches, a large square product.
fn speeds(be: &dyn Backend) -> Result<Peaks> {
    let best = |case: Case| -> Result<(Work, f64)> {
        let mut prepared = case.on(&inputs(be));
        let rounds = (0..8).map(|_| round(be, &mut prepared, 1)).collect::<Result<Vec<f64>>>()?;
        Ok((prepared.work(), rounds.into_iter().fold(f64::INFINITY, f64::min)))
    };
    let (copy, copied) = best(elementwise::copy_and_back((16384, 1024), 0))?;
    let (product, multiplied) = best(Product::plain((1024, 1024, 1024), (false, true)).case("product"))?;
    Ok(Peaks {
        bytes_per_second: copy.bytes as f64 / copied,
        flops_per_second: product.flops as f64 / multiplied,
    })
}

fn tell(be: &dyn Backend, peaks: Option<&Peaks>) {
    let limits = peaks.map(|p| (p.bytes_per_second / 1e9, p.flops_per_second / 1e12));
    let limits = limits.map(|(gb, tflop)| format!("{gb:.1} GB/s, {tflop:.3} TFLOP/s"));
    println!("{}: {}", be.info().name, limits.unwrap_or_else(|| "no limits known: no floors".into()));
}

// ---- by criterion -------------------------------------------------------------------------------

fn by_criterion() -> Result<()> {
    let be = shapes::device();
    let peaks = be.info().peaks.map_or_else(|| speeds(&*be), Ok)?;
    tell(&*be, Some(&peaks));
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("ops");
    group
        .sample_size(10)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(500));
    let mut table = Vec::new();
    let small = Sizes { sequence: 64, labels: 48, rank: 32, ..sizes(&shapes::SMALL.architecture(), 1024) };
    for Timed { case, .. } in cases::all(&small) {
        let least = RefCell::new(f64::INFINITY);
        let work = RefCell::new(Work::default());
        group.bench_function(&case.name, |b| {
            let mut prepared = case.on(&inputs(&*be));
            work.replace(prepared.work());
            b.iter_custom(|times| {
                let each = round(&*be, &mut prepared, times as usize).expect("it runs");
                least.replace_with(|l| l.min(each));
                Duration::from_secs_f64(each * times as f64)
            });
        });
        table.push((case.name, work.into_inner(), least.into_inner()));
    }
    group.finish();
    criterion.final_summary();
    println!("{:40}{:>10}{:>10}{:>10}{:>10}", "operation", "ms", "GB/s", "GFLOP/s", "of floor");
    for (name, work, t) in table.into_iter().filter(|row| row.2.is_finite()) {
        let (gb, gf) = (work.bytes as f64 / t / 1e9, work.flops as f64 / t / 1e9);
        println!("{name:40}{:10.3}{gb:10.1}{gf:10.1}{:9.0} %", t * 1e3, 100.0 * work.floor(&peaks) / t);
    }
    after_products(&*be)
}

/// Scalar work of all threads behind a product, beside the same with vector registers that were cleared before it. A GEMM
/// that leaves them dirty makes it several times slower on Intel's processors; on AMD's the ratio is always 1.
fn after_products(be: &dyn Backend) -> Result<()> {
    let scalar = || {
        let from = Instant::now();
        let part = |p: u32| (0..4000).map(|i| black_box(f64::from(i + p) * -1e-3).exp()).sum::<f64>();
        black_box((0..256u32).into_par_iter().map(part).sum::<f64>());
        from.elapsed().as_secs_f64()
    };
    let mut product = Product::plain((512, 512, 512), (false, true)).case("product").on(&inputs(be));
    let [mut behind, mut clean] = [f64::INFINITY; 2];
    for _ in 0..20 {
        product.run(be)?;
        behind = behind.min(scalar());
        rayon::broadcast(|_| clear_upper_halves());
        clean = clean.min(scalar());
    }
    println!("scalar work after products: {:.2} times that with cleared registers", behind / clean);
    Ok(())
}

fn clear_upper_halves() {
    #[cfg(target_arch = "x86_64")]
    if let Some(avx) = pulp::core_arch::x86::Avx::try_new() {
        avx._mm256_zeroupper();
    }
}

// ---- by itself, into a file ---------------------------------------------------------------------

struct Options {
    device: String,
    shapes: Vec<String>,
    tokens: Vec<usize>,
    seconds: f64,
    only: String,
    out: Option<String>,
}

fn argument(name: &str) -> Option<String> {
    let arguments: Vec<String> = std::env::args().collect();
    let at = arguments.iter().position(|a| a == name)?;
    arguments.get(at + 1).cloned()
}

impl Options {
    fn read(device: String) -> Self {
        let small = device == "cpu" || device == "simt";
        let list = |text: String| text.split(',').map(str::to_string).collect::<Vec<_>>();
        let every = if small { "t5-base".to_string() } else { known::NAMES.join(",") };
        let tokens = argument("--tokens").unwrap_or_else(|| if small { "512" } else { "2048,8192" }.into());
        Self {
            shapes: list(argument("--shapes").unwrap_or(every)),
            tokens: list(tokens).iter().map(|t| t.parse().expect("--tokens: whole numbers")).collect(),
            seconds: argument("--seconds").map_or(60.0, |s| s.parse().expect("--seconds: a number")),
            only: argument("--only").unwrap_or_default(),
            out: argument("--out"),
            device,
        }
    }
    fn open(&self) -> Result<Arc<dyn Backend>> {
        let spec = match self.device.as_str() {
            "null" => DeviceSpec::dry_run_of_h100(DType::BF16),
            "simt" => DeviceSpec::simt(DType::BF16).with_switches()?,
            "cuda" => DeviceSpec::gpu(0).with_switches()?,
            _ => return Cpu::open(None).map(|cpu| cpu as _),
        };
        Ok(Cuda::open(spec)?)
    }
}

struct Bench {
    be: Arc<dyn Backend>,
    peaks: Option<Peaks>,
    until: Instant,
    only: String,
    computes: bool,
    out: Option<std::fs::File>,
    left_out: usize,
}

impl Bench {
    fn measure(&mut self, shape: &str, timed: &Timed) {
        if !timed.case.name.contains(&self.only) {
            return;
        }
        if Instant::now() > self.until {
            self.left_out += 1;
            return;
        }
        if let Err(error) = self.try_measure(shape, timed) {
            println!("{shape:<13} {:<44} failed: {error}", timed.case.name);
        }
    }

    fn time(&self, case: &Case) -> Result<(Work, f64)> {
        let mut prepared = case.on(&inputs(&*self.be));
        Ok((prepared.work(), time(&*self.be, &mut prepared)?))
    }

    fn try_measure(&mut self, shape: &str, timed: &Timed) -> Result<()> {
        let (name, (work, seconds)) = (&timed.case.name, self.time(&timed.case)?);
        let unfused = timed.unfused.as_ref().map(|case| self.time(case)).transpose()?;
        let ratio = unfused.map(|(_, unfused)| unfused / seconds);
        // A device that computes nothing has no rates, only the host's time.
        let rate = |amount: u64, unit: f64| self.computes.then_some(amount as f64 / seconds / unit);
        let (gb, tflop) = (rate(work.bytes, 1e9), rate(work.flops, 1e12));
        let floor = self.peaks.as_ref().map(|p| 100.0 * work.floor(p) / seconds);
        let text = |v: Option<f64>, unit: &str| v.map_or("-".into(), |v| format!("{v:.2}{unit}"));
        println!(
            "{shape:<13} {name:<44} {:>10.1} µs {:>9} GB/s {:>9} TFLOP/s {:>9} of floor, unfused {:>7}",
            seconds * 1e6,
            text(gb, ""),
            text(tflop, ""),
            text(floor, " %"),
            text(ratio, "x"),
        );
        let line = json!({
            "shape": shape, "case": name, "us": seconds * 1e6, "gb_per_s": gb, "tflop_per_s": tflop,
            "percent_of_floor": floor, "unfused_ratio": ratio, "bytes": work.bytes, "flops": work.flops,
            "device": self.be.info().name,
        });
        if let Some(file) = &mut self.out {
            writeln!(file, "{line}").expect("the output file can be written");
        }
        Ok(())
    }
}

fn by_itself(options: &Options) -> Result<()> {
    let be = options.open()?;
    let open = |path: &String| std::fs::File::options().create(true).append(true).open(path);
    let peaks = if options.device == "cpu" { Some(speeds(&*be)?) } else { be.info().peaks };
    tell(&*be, peaks.as_ref());
    let mut bench = Bench {
        be,
        peaks,
        until: Instant::now() + Duration::from_secs_f64(options.seconds),
        only: options.only.clone(),
        computes: options.device != "null",
        out: options.out.as_ref().map(|path| open(path).unwrap_or_else(|e| panic!("{path}: {e}"))),
        left_out: 0,
    };
    for name in &options.shapes {
        let architecture = known::architecture(name)?;
        let mut seen = Vec::new();
        for &tokens in &options.tokens {
            // What does not depend on tokens is measured once.
            let all = cases::all(&sizes(&architecture, tokens)).into_iter();
            for timed in all.filter(|t| !seen.contains(&t.case.name)).collect::<Vec<_>>() {
                bench.measure(name, &timed);
                seen.push(timed.case.name);
            }
        }
    }
    if bench.left_out > 0 {
        println!("{} cases left out: {} s are over (--seconds)", bench.left_out, options.seconds);
    }
    Ok(())
}

fn main() {
    let done = match argument("--device") {
        Some(device) => by_itself(&Options::read(device)),
        None => by_criterion(),
    };
    if let Err(error) = done {
        eprintln!("error: {error}");
        std::process::exit(error.exit_code().into());
    }
}
