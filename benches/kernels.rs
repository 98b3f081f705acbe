//! Every operation at the shapes of known models over token counts: time, GB/s, TFLOP/s, share of the floor, and
//! for the adapted linear the ratio to its unfused sequence.
//!
//! Runs on the CPU by default, and as a program of its own on a GPU:
//! `kernels --device cuda --shapes t5-base,qwen2.5-7b --tokens 2048,8192 --seconds 60 --only matmul --out FILE`.
//! The file gets a line of JSON as soon as a figure is there. With `GEMS_CUBLASLT=on`, plain products are cuBLASLt's.

use gems_engine::backend::cpu::Cpu;
use gems_engine::backend::cuda::Cuda;
use gems_engine::backend::timed::Timed;
use gems_engine::backend::trace::{Peaks, Work};
use gems_engine::backend::{
    AdamBlock, AdamUpdate, AdaptedLinear, Attention, Backend, Branch, ColumnPair, DType, Indices, Mask, Op,
    OuterPart, Rounding, Tensor,
};
use gems_engine::error::Result;
use gems_engine::model::{Architecture, shapes};
use gems_engine::random::{Purpose, normal};
use serde_json::json;
use std::cell::RefCell;
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Rank of all subspaces together, tokens of a sequence, labels of a batch at most.
const R: usize = 64;
const SEQUENCE: usize = 512;
const LABELS: usize = 1024;
/// Layers that are refreshed together.
const LAYERS: usize = 48;

struct Options {
    device: String,
    shapes: Vec<String>,
    tokens: Vec<usize>,
    seconds: f64,
    only: String,
    out: Option<String>,
}

impl Options {
    fn read() -> Self {
        let arguments: Vec<String> = std::env::args().collect();
        let value = |name: &str| {
            let at = arguments.iter().position(|a| a == name)?;
            arguments.get(at + 1).cloned()
        };
        let device = value("--device").unwrap_or_else(|| "cpu".into());
        let small = device == "cpu" || device == "simt";
        let list = |text: String| text.split(',').map(str::to_string).collect::<Vec<_>>();
        let every = if small { "t5-base".to_string() } else { shapes::NAMES.join(",") };
        let tokens = value("--tokens").unwrap_or_else(|| if small { "512" } else { "2048,8192" }.into());
        Self {
            shapes: list(value("--shapes").unwrap_or(every)),
            tokens: list(tokens).iter().map(|t| t.parse().expect("--tokens: whole numbers")).collect(),
            seconds: value("--seconds").map_or(60.0, |s| s.parse().expect("--seconds: a number")),
            only: value("--only").unwrap_or_default(),
            out: value("--out"),
            device,
        }
    }
    fn open(&self) -> Result<Arc<dyn Backend>> {
        match self.device.as_str() {
            "null" => Ok(Cuda::open_null(DType::BF16)),
            "simt" => Cuda::open_simt(DType::BF16),
            "cuda" => Cuda::open_device(0),
            _ => Ok(Cpu::open(None)?),
        }
    }
}

type Run<'a> = Box<dyn Fn(&dyn Backend) -> Result<()> + 'a>;

struct Case<'a> {
    name: String,
    run: Run<'a>,
    /// The same by separate products.
    unfused: Option<Run<'a>>,
}

fn case<'a>(name: impl Into<String>, run: impl Fn(&dyn Backend) -> Result<()> + 'a) -> Case<'a> {
    Case { name: name.into(), run: Box::new(run), unfused: None }
}

/// Inputs of all cases of a shape, made once.
struct Inputs<'a> {
    be: &'a dyn Backend,
    noise: Vec<f32>,
}

impl Inputs<'_> {
    fn of(&self, rows: usize, cols: usize, dtype: DType) -> Tensor {
        let mut tensor = self.be.alloc(rows, cols, dtype).expect("memory");
        for (row, at) in (0..rows).step_by(64).enumerate() {
            let rows = at..(at + 64).min(rows);
            let start = row * 977 % 4096;
            let values = &self.noise[start..start + rows.len() * cols];
            self.be.upload(values, tensor.mat_mut().row_range(rows)).expect("upload");
        }
        tensor
    }
    fn c(&self, rows: usize, cols: usize) -> Tensor {
        self.of(rows, cols, self.be.compute_dtype())
    }
    fn f(&self, rows: usize, cols: usize) -> Tensor {
        self.of(rows, cols, DType::F32)
    }
    fn out(&self, rows: usize, cols: usize, dtype: DType) -> RefCell<Tensor> {
        RefCell::new(self.be.alloc(rows, cols, dtype).expect("memory"))
    }
}

/// A linear layer's operations: plain product, adapted forward, adapted gradient, task gradient of two tasks, fold, Adam.
fn layer(i: &Inputs, name: &str, (m, n): (usize, usize), t: usize, measure: &mut dyn FnMut(Case)) {
    let dtype = i.be.compute_dtype();
    let branch = Some(Branch { a: i.c(R, n), b: i.c(m, R) });
    let layer = AdaptedLinear { weight: i.c(m, n), bias: None, branch };
    let (x, dy, h) = (i.c(t, n), i.c(t, m), i.c(t, R));
    let (y, dx, side) = (i.out(t, m, dtype), i.out(t, n, dtype), i.out(t, R, dtype));
    let shape = format!("{name} {t}x{n}->{m}");
    measure(case(format!("matmul forward {shape}"), |be| {
        let y = &mut *y.borrow_mut();
        be.matmul(y.mat_mut(), 0.0, 1.0, x.mat(), Op::N, layer.weight.mat(), Op::T)
    }));
    measure(case(format!("matmul gradient {shape}"), |be| {
        be.matmul(dx.borrow_mut().mat_mut(), 0.0, 1.0, dy.mat(), Op::N, layer.weight.mat(), Op::N)
    }));
    let branch = layer.branch.as_ref().expect("it was just made");
    let unfused = |be: &dyn Backend| {
        let (y, side) = (&mut *y.borrow_mut(), &mut *side.borrow_mut());
        be.matmul(y.mat_mut(), 0.0, 1.0, x.mat(), Op::N, layer.weight.mat(), Op::T)?;
        be.matmul(side.mat_mut(), 0.0, 1.0, x.mat(), Op::N, branch.a.mat(), Op::T)?;
        be.matmul(y.mat_mut(), 1.0, 1.0, side.mat(), Op::N, branch.b.mat(), Op::T)
    };
    let fused = case(format!("linear {shape}"), |be| {
        be.linear(&layer, x.mat(), Some(side.borrow_mut().mat_mut()), y.borrow_mut().mat_mut())
    });
    measure(Case { unfused: Some(Box::new(unfused)), ..fused });
    let unfused = |be: &dyn Backend| {
        let (dx, side) = (&mut *dx.borrow_mut(), &mut *side.borrow_mut());
        be.matmul(dx.mat_mut(), 0.0, 1.0, dy.mat(), Op::N, layer.weight.mat(), Op::N)?;
        be.matmul(side.mat_mut(), 0.0, 1.0, dy.mat(), Op::N, branch.b.mat(), Op::N)?;
        be.matmul(dx.mat_mut(), 1.0, 1.0, side.mat(), Op::N, branch.a.mat(), Op::N)
    };
    let fused = case(format!("linear gradient {shape}"), |be| {
        let (dx, side) = (&mut *dx.borrow_mut(), &mut *side.borrow_mut());
        be.linear_input_gradient(&layer, dy.mat(), Some(side.mat_mut()), dx.mat_mut(), false)
    });
    measure(Case { unfused: Some(Box::new(unfused)), ..fused });
    let (half, own) = (R / 2, R / 4);
    let parts: Vec<OuterPart> = (0..2)
        .flat_map(|task| {
            let rows = task * t / 2..(task + 1) * t / 2;
            let columns = half + task * own..half + (task + 1) * own;
            [
                OuterPart { rows: rows.clone(), columns: 0..half, to: task * half, scale: 1.0 },
                OuterPart { rows, columns, to: R + task * own, scale: 1.0 },
            ]
        })
        .collect();
    let coordinates = i.out(m, R + half, DType::F32);
    let block = |a: usize, b: usize, width: usize| ColumnPair { a, b, width };
    let pairs = [(0, 0, half), (0, half, half), (half, half, half), (R, R, own), (R + own, R + own, own)];
    let pairs = pairs.map(|(a, b, width)| block(a, b, width));
    let products = i.out(1, pairs.len(), DType::F32);
    measure(case(format!("task gradient {shape}"), |be| {
        let (mut out, mut products) = (coordinates.borrow_mut(), products.borrow_mut());
        be.task_gradient(dy.mat(), h.mat(), &parts, out.mat_mut(), true, &pairs, products.mat_mut())
    }));
    let (b, a) = (i.f(m, R), i.f(R, n));
    let folded = i.out(m, n, dtype);
    measure(case(format!("fold {name} {m}x{n}"), |be| {
        be.fold(folded.borrow_mut().mat_mut(), 1.0, 1e-3, b.mat(), a.mat(), Rounding::Stochastic(1))
    }));
    let (x, m1, v) = (i.out(m, R, DType::F32), RefCell::new(i.f(m, R)), RefCell::new(i.f(m, R)));
    let copy = i.out(m, R, dtype);
    let block = AdamBlock {
        columns: 0..R,
        from: 0,
        terms: 1,
        stride: 0,
        gate: None,
        beta1: 0.9,
        beta2: 0.999,
        step: 1e-4,
        sqrt_correction2: 1.0,
        eps: 1e-8,
        keep_before: 1.0,
        keep_after: 1.0,
        grad_scale: 1.0,
    };
    measure(case(format!("adam {name} {m}x{R}"), |be| {
        let (x, m1, v) = (&mut *x.borrow_mut(), &mut *m1.borrow_mut(), &mut *v.borrow_mut());
        let (copy, blocks) = (&mut *copy.borrow_mut(), vec![block.clone()]);
        let (x, m, v, copy) = (x.mat_mut(), m1.mat_mut(), v.mat_mut(), Some((copy.mat_mut(), 1.0)));
        be.adam(vec![AdamUpdate { x, g: b.mat(), m, v, blocks, copy, change: None }], None, None)
    }));
}

/// What goes row by row, at the model's width.
fn rows(i: &Inputs, a: &Architecture, t: usize, measure: &mut dyn FnMut(Case)) {
    let (dtype, d, f) = (i.be.compute_dtype(), a.hidden, a.intermediate);
    let (x, delta, w, dy) = (i.c(t, d), i.c(t, d), i.c(1, d), i.c(t, d));
    let (sum, y, dx) = (i.out(t, d, dtype), i.out(t, d, dtype), i.out(t, d, dtype));
    let inv_rms = i.out(t, 1, DType::F32);
    measure(case(format!("rmsnorm {t}x{d}"), |be| {
        let (sum, y, inv) = (&mut *sum.borrow_mut(), &mut *y.borrow_mut(), &mut *inv_rms.borrow_mut());
        let residual = Some((delta.mat(), sum.mat_mut()));
        be.rmsnorm(x.mat(), residual, w.mat(), 1e-6, y.mat_mut(), inv.mat_mut())
    }));
    let inv = i.f(t, 1);
    measure(case(format!("rmsnorm gradient {t}x{d}"), |be| {
        let dx = &mut *dx.borrow_mut();
        be.rmsnorm_backward(x.mat(), w.mat(), inv.mat(), dy.mat(), dx.mat_mut(), true, None)
    }));
    let (gate, up, dact) = (i.c(t, f), a.gated.then(|| i.c(t, f)), i.c(t, f));
    let (act, dgate, dup) = (i.out(t, f, dtype), i.out(t, f, dtype), i.out(t, f, dtype));
    measure(case(format!("activation {t}x{f}"), |be| {
        let up = up.as_ref().map(Tensor::mat);
        be.activation(a.activation, gate.mat(), up, act.borrow_mut().mat_mut())
    }));
    measure(case(format!("activation gradient {t}x{f}"), |be| {
        let (dgate, dup) = (&mut *dgate.borrow_mut(), &mut *dup.borrow_mut());
        let (up, dup) = (up.as_ref().map(Tensor::mat), up.as_ref().map(|_| dup.mat_mut()));
        be.activation_backward(a.activation, gate.mat(), up, dact.mat(), dgate.mat_mut(), dup)
    }));
}

/// A refresh's small work, of many layers at once: Gram matrices of sketches, orthonormal rows.
fn refresh(i: &Inputs, a: &Architecture, measure: &mut dyn FnMut(Case)) {
    for n in [a.hidden, a.intermediate] {
        let sketches: Vec<Tensor> = (0..LAYERS).map(|_| i.f(R, n)).collect();
        let grams: Vec<_> = (0..LAYERS).map(|_| i.out(R, R, DType::F32)).collect();
        let one_by_one = |be: &dyn Backend| {
            let mut pairs = grams.iter().zip(&sketches);
            pairs.try_for_each(|(gram, y)| {
                be.matmul(gram.borrow_mut().mat_mut(), 0.0, 1.0, y.mat(), Op::N, y.mat(), Op::T)
            })
        };
        let at_once = case(format!("{LAYERS} Gram matrices of {R}x{n}"), |be| {
            let mut grams: Vec<_> = grams.iter().map(RefCell::borrow_mut).collect();
            let products = grams.iter_mut().zip(&sketches).map(|(c, y)| (c.mat_mut(), y.mat(), y.mat()));
            be.matmul_many(0.0, 1.0, Op::T, &mut products.collect::<Vec<_>>())
        });
        measure(Case { unfused: Some(Box::new(one_by_one)), ..at_once });
        let bases: Vec<_> = (0..LAYERS).map(|_| RefCell::new(i.f(R, n))).collect();
        measure(case(format!("orthonormal rows of {LAYERS} {R}x{n}"), |be| {
            let mut bases: Vec<_> = bases.iter().map(RefCell::borrow_mut).collect();
            be.orthonormalize_rows(&mut bases.iter_mut().map(|b| b.mat_mut()).collect::<Vec<_>>())
        }));
    }
}

/// Attention over sequences of 512 tokens, and the head with its loss.
fn attention_and_head(i: &Inputs, a: &Architecture, t: usize, measure: &mut dyn FnMut(Case)) {
    let dtype = i.be.compute_dtype();
    let (q_width, kv_width) = (a.heads * a.head_dim, a.kv_heads * a.head_dim);
    let offsets: Vec<u32> = (0..t).step_by(SEQUENCE).chain([t]).map(|o| o as u32).collect();
    let offsets: Indices = i.be.indices(&offsets).expect("memory");
    let spec = Attention {
        q_offsets: &offsets,
        k_offsets: &offsets,
        heads: a.heads,
        kv_heads: a.kv_heads,
        head_dim: a.head_dim,
        scale: a.attention_scale,
        mask: if a.is_encoder_decoder() { Mask::Full } else { Mask::Causal },
        bias: None,
    };
    let (q, k, v, dout) = (i.c(t, q_width), i.c(t, kv_width), i.c(t, kv_width), i.c(t, q_width));
    let (out, lse) = (i.out(t, q_width, dtype), i.out(t, a.heads, DType::F32));
    let shape = format!("{t} tokens, {} heads of {}", a.heads, a.head_dim);
    measure(case(format!("attention {shape}"), |be| {
        let (out, lse) = (&mut *out.borrow_mut(), &mut *lse.borrow_mut());
        be.attention(&spec, q.mat(), k.mat(), v.mat(), out.mat_mut(), lse.mat_mut())
    }));
    let gradients = [i.out(t, q_width, dtype), i.out(t, kv_width, dtype), i.out(t, kv_width, dtype)];
    measure(case(format!("attention gradient {shape}"), |be| {
        let [dq, dk, dv] = gradients.each_ref().map(RefCell::borrow_mut);
        let (mut dq, mut dk, mut dv, out, lse) = (dq, dk, dv, out.borrow(), lse.borrow());
        let (dq, dk, dv) = (dq.mat_mut(), dk.mat_mut(), dv.mat_mut());
        be.attention_backward(
            &spec,
            q.mat(),
            k.mat(),
            v.mat(),
            out.mat(),
            lse.mat(),
            dout.mat(),
            dq,
            dk,
            dv,
            None,
        )
    }));
    let labels = t.min(LABELS);
    let (x, head, weights) = (i.c(labels, a.hidden), i.c(a.vocabulary, a.hidden), i.f(labels, 1));
    let targets: Vec<u32> = (0..labels).map(|l| (l * 7919 % a.vocabulary) as u32).collect();
    let targets = i.be.indices(&targets).expect("memory");
    let (nll, dx) = (i.out(labels, 1, DType::F32), i.out(labels, a.hidden, dtype));
    measure(case(format!("head and loss {labels}x{}->{}", a.hidden, a.vocabulary), |be| {
        let (nll, dx) = (&mut *nll.borrow_mut(), &mut *dx.borrow_mut());
        let dx = Some(dx.mat_mut());
        be.cross_entropy(x.mat(), head.mat(), 1.0, &targets, weights.mat(), nll.mat_mut(), dx, None)
    }));
}

/// Median seconds of a call: rounds of as many calls as take 20 ms, waited for once a round.
fn time(be: &dyn Backend, run: &Run) -> Result<f64> {
    let round = |calls: usize| -> Result<f64> {
        let from = Instant::now();
        (0..calls).try_for_each(|_| run(be))?;
        be.synchronize()?;
        Ok(from.elapsed().as_secs_f64() / calls as f64)
    };
    round(1)?;
    let calls = ((0.02 / round(1)?.max(1e-7)) as usize).clamp(1, 2000);
    let mut rounds = (0..5).map(|_| round(calls)).collect::<Result<Vec<f64>>>()?;
    rounds.sort_by(f64::total_cmp);
    Ok(rounds[2])
}

/// The floor of a call, from one that is counted.
fn work(be: &Arc<dyn Backend>, run: &Run) -> Result<Work> {
    let counted = Timed::over(Arc::clone(be));
    counted.record()?;
    run(&counted)?;
    Ok(counted.recorded()?.iter().filter_map(|r| r.work).fold(Work::default(), |a, b| a + b))
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
    fn measure(&mut self, shape: &str, case: &Case) {
        if !case.name.contains(&self.only) {
            return;
        }
        if Instant::now() > self.until {
            self.left_out += 1;
            return;
        }
        if let Err(error) = self.try_measure(shape, case) {
            println!("{shape:<13} {:<44} failed: {error}", case.name);
        }
    }

    fn try_measure(&mut self, shape: &str, case: &Case) -> Result<()> {
        let work = work(&self.be, &case.run)?;
        let seconds = time(&*self.be, &case.run)?;
        let unfused = case.unfused.as_ref().map(|run| time(&*self.be, run)).transpose()?;
        // A device that computes nothing has no rates, only the host's time.
        let rate = |amount: u64, unit: f64| self.computes.then_some(amount as f64 / seconds / unit);
        let (gb, tflop) = (rate(work.bytes, 1e9), rate(work.flops, 1e12));
        let floor = self.peaks.as_ref().map(|p| 100.0 * work.floor(p) / seconds);
        let text = |v: Option<f64>, unit: &str| v.map_or("-".into(), |v| format!("{v:.2}{unit}"));
        println!(
            "{shape:<13} {:<44} {:>10.1} µs {:>9} GB/s {:>9} TFLOP/s {:>9} of floor, unfused {:>7}",
            case.name,
            seconds * 1e6,
            text(gb, ""),
            text(tflop, ""),
            text(floor, " %"),
            text(unfused.map(|u| u / seconds), "x"),
        );
        let line = json!({
            "shape": shape, "case": case.name, "us": seconds * 1e6, "gb_per_s": gb, "tflop_per_s": tflop,
            "percent_of_floor": floor, "unfused_ratio": unfused.map(|u| u / seconds), "bytes": work.bytes,
            "flops": work.flops, "device": self.be.name(),
        });
        if let Some(file) = &mut self.out {
            writeln!(file, "{line}").expect("the output file can be written");
        }
        Ok(())
    }
}

fn main() {
    let options = Options::read();
    let be = options.open().unwrap_or_else(|error| {
        eprintln!("error: {error}");
        std::process::exit(error.exit_code().into());
    });
    let open = |path: &String| std::fs::File::options().create(true).append(true).open(path);
    let out = options.out.as_ref().map(|path| open(path).unwrap_or_else(|e| panic!("{path}: {e}")));
    let until = Instant::now() + Duration::from_secs_f64(options.seconds);
    let peaks = be.peaks();
    println!(
        "{}: {}",
        be.name(),
        peaks.map_or("no limits known: no floors".into(), |p| {
            format!("{:.0} GB/s, {:.1} TFLOP/s", p.bytes_per_second / 1e9, p.flops_per_second / 1e12)
        })
    );
    let computes = options.device != "null";
    let mut bench =
        Bench { computes, be: Arc::clone(&be), peaks, until, only: options.only.clone(), out, left_out: 0 };
    for name in &options.shapes {
        let a = shapes::architecture(name).unwrap_or_else(|error| panic!("{error}"));
        let widest = a.intermediate.max(a.hidden).max(a.vocabulary.min(1 << 15));
        let noise = normal(1, Purpose::Data, 0, 0, 64 * widest + 4096);
        let inputs = Inputs { be: &*be, noise };
        for &t in &options.tokens {
            let mut measure = |case: Case| bench.measure(name, &case);
            let (q, kv) = (a.heads * a.head_dim, a.kv_heads * a.head_dim);
            layer(&inputs, "q", (q, a.hidden), t, &mut measure);
            if kv != q {
                layer(&inputs, "k", (kv, a.hidden), t, &mut measure);
            }
            layer(&inputs, "up", (a.intermediate, a.hidden), t, &mut measure);
            layer(&inputs, "down", (a.hidden, a.intermediate), t, &mut measure);
            rows(&inputs, &a, t, &mut measure);
            attention_and_head(&inputs, &a, t, &mut measure);
        }
        refresh(&inputs, &a, &mut |case: Case| bench.measure(name, &case));
    }
    if bench.left_out > 0 {
        println!("{} cases left out: {} s are over (--seconds)", bench.left_out, options.seconds);
    }
}
