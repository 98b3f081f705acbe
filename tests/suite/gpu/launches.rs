//! Launches, uploads and profiles.

use super::{engine, golden_model};
use crate::support::{dry_run, numbers, simt};
use gems_engine::backend::cuda::drivers::staging::Ring;
use gems_engine::backend::{DType, trace, work::Work};
use predicates::prelude::*;
use serde_json::Value;

#[test]
fn the_upload_ring_never_hands_out_what_the_device_may_still_read() {
    let half = 1 << 10;
    let mut ring = Ring::new(half);
    // What was handed out since each half was last waited for; a half may be written again only after a wait.
    let mut unread = [vec![], vec![]];
    let mut filled = [false; 2];
    for (i, random) in numbers(7, 5000).into_iter().enumerate() {
        let bytes = 1 + (random.abs() * 300.0) as usize % half;
        let place = ring.place(bytes);
        if let Some(half) = place.filled {
            filled[half] = true;
        }
        if let Some(half) = place.wait {
            assert!(filled[half], "step {i}: waiting for a half that nothing filled");
            unread[half].clear();
            filled[half] = false;
        }
        assert!(
            place.offset.is_multiple_of(16) && place.offset % half + bytes <= half,
            "{place:?} of {bytes}"
        );
        let now = place.offset / half;
        let range = place.offset..place.offset + bytes;
        let overlaps = |r: &std::ops::Range<usize>| r.start < range.end && range.start < r.end;
        assert!(!unread[now].iter().any(overlaps), "step {i}: {range:?} may still be read");
        unread[now].push(range);
    }
}

#[test]
fn launches_are_recorded_with_place_and_floor() {
    for (be, computes) in [(simt(DType::F32), true), (dry_run(DType::BF16), false)] {
        let dtype = be.compute_dtype();
        let (m, n, k) = (72, 40, 24);
        let a = be.tensor(&numbers(1, m * k), m, k, dtype).unwrap();
        let b = be.tensor(&numbers(2, k * n), k, n, dtype).unwrap();
        let mut c = be.alloc(m, n, dtype).unwrap();
        be.record().unwrap();
        trace::start(false);
        {
            let _outer = trace::span("forward");
            let _inner = trace::numbered("layer", 3);
            be.product(c.mat_mut(), 0.0, 1.0, a.mat().n(), b.mat().n()).unwrap();
        }
        be.fill(c.mat_mut(), 0.0).unwrap();
        let spans = trace::stop();
        let records = be.recorded().unwrap();
        let names: Vec<&str> = spans.iter().map(|s| s.name.as_str()).collect();
        assert_eq!(names, ["layer 3", "forward"]);
        assert_eq!(records.len(), 2);
        assert!(records[0].name.starts_with("matmul_"), "{}", records[0].name);
        assert_eq!((records[0].place.as_str(), records[1].place.as_str()), ("forward/layer 3", ""));
        // By hand: both operands read, the result written; a multiplication and an addition each.
        let e = dtype.bytes();
        let floor = Work::new(((m * k + k * n + m * n) * e) as u64, (2 * m * n * k) as u64);
        assert_eq!(records[0].work, Some(floor));
        assert_eq!(records[1].work, Some(Work::new((m * n * e) as u64, 0)));
        assert!(records.iter().all(|r| r.seconds.is_some() == computes && r.blocks > 0 && r.host >= 0.0));
        // Nothing is recorded afterwards.
        be.fill(c.mat_mut(), 0.0).unwrap();
        assert!(be.recorded().unwrap().is_empty());
    }
}

/// Runs `profile --json` and returns its object.
fn profile(args: &[&str]) -> Value {
    let said = engine()
        .args(["profile", "--json", "--steps", "1"])
        .args(args)
        .assert()
        .success()
        .get_output()
        .clone();
    serde_json::from_slice(&said.stdout).unwrap()
}

/// Bytes that a device has given at the end of a step, caches included, beside those of the plan; counted by the null device.
#[test]
fn a_device_gives_what_was_planned() {
    for (shape, checkpointing) in [("qwen2.5-0.5b", "false"), ("llama-3.1-8b", "true")] {
        let checkpointing = format!("train.activation_checkpointing={checkpointing}");
        let run = ["--shape", shape, "--tokens", "8192", "--device", "null", "--warmup", "1", "--no-refresh"];
        let report = profile(&[&run[..], &["--set", "gems.rank=16", "--set", &checkpointing]].concat());
        let [taken, planned] =
            ["peak_memory_bytes", "predicted_memory_bytes"].map(|key| report[key].as_f64().unwrap());
        assert!((taken / planned - 1.0).abs() < 0.1, "{shape}: {taken} bytes taken, {planned} planned");
    }
}

#[test]
fn profile_of_every_device_has_times_floors_and_a_trace() {
    let dir = tempfile::tempdir().unwrap();
    let data = crate::cli::world(dir.path()).display().to_string();
    let trace = dir.path().join("trace.json").display().to_string();
    let model = golden_model("llama_tied");
    for device in ["cpu", "simt", "null"] {
        let sizes = [
            "--set",
            "gems.rank=4",
            "--set",
            "train.batch=4",
            "--set",
            "train.micro_batch_tokens=4096",
            "--set",
            "rehearsal.every=0",
        ];
        let run =
            ["--model", &model, "--data", &data, "--device", device, "--trace", &trace, "--warmup", "1"];
        let report = profile(&[&run[..], &sizes[..]].concat());
        assert!(report["device"].as_str().unwrap().starts_with(device), "{}", report["device"]);
        assert!(report["step_ms"].as_f64().unwrap() > 0.0 && report["launches"].as_f64().unwrap() > 50.0);
        assert!(report["peak_memory_bytes"].as_f64().unwrap() > 0.0);
        let phases = report["phases_ms"].as_object().unwrap();
        assert!(["forward", "backward", "optimizer"].iter().all(|p| phases.contains_key(*p)), "{phases:?}");
        let launched: Vec<&Value> =
            report["kernels"].as_array().unwrap().iter().map(|k| &k["name"]).collect();
        let products = report["products"].as_array().unwrap();
        assert_eq!(products.is_empty(), device == "cpu");
        for layer in products {
            // What was told is what the step launched; the fold waits for a refresh.
            for product in ["forward", "input_gradient"].map(|p| &layer[p]) {
                let kernels = product["kernels"].as_array().unwrap();
                assert!(!kernels.is_empty() && kernels.iter().all(|k| launched.contains(&k)), "{layer}");
                let why = if device == "simt" { "layers compute in f32" } else { "wgmma" };
                assert!(product["why"].as_str().unwrap().contains(why), "{device}: {product}");
            }
        }
        let kernels = report["kernels"].as_array().unwrap();
        for row in kernels {
            let name = row["name"].as_str().unwrap();
            assert!(row["gb"].as_f64().unwrap() > 0.0, "{name} has no floor");
            assert_eq!(row["ms"].is_null(), device == "null", "{name} on {device}");
            // Only the CPU's limits are measured here; a floor is never above what was measured there.
            assert_eq!(row["percent_of_floor"].is_null(), device != "cpu", "{name} on {device}");
        }
        let lost: Vec<f64> = kernels.iter().filter_map(|r| r["lost_ms"].as_f64()).collect();
        assert!(lost.is_sorted_by(|a, b| a >= b), "{lost:?}");
        let events: Value = serde_json::from_str(&std::fs::read_to_string(&trace).unwrap()).unwrap();
        let events = events["traceEvents"].as_array().unwrap();
        let named = |name: &str| events.iter().filter(|e| e["name"] == name && e["ph"] == "X").count();
        assert_eq!(named("step"), 1);
        assert_eq!((named("forward"), named("backward"), named("head")), (1, 1, 1));
        assert!(events.iter().filter(|e| e["ph"] == "X").all(|e| e["dur"].as_f64().unwrap() >= 0.0));
    }
}

/// What a step must compute at least, by hand: every linear layer forward and its input gradient (4 flops a
/// weight and token; the first layer's inputs need none), with its low-rank branch and the coordinates.
#[test]
fn a_known_shape_on_the_null_device_launches_what_the_arithmetic_needs() {
    let tokens = 1024;
    let run = ["--shape", "t5-base", "--tokens", "1024", "--length", "128", "--device", "null"];
    let report = profile(&[&run[..], &["--set", "rehearsal.every=0"]].concat());
    assert_eq!(report["what"], "t5-base");
    let encoder = 12 * (4 * 768 * 768 + 2 * 768 * 3072);
    // The decoder's cross attention projects the encoder's rows too.
    let cross = 12 * 2 * 768 * 768;
    let flops = 4.0 * (encoder + cross) as f64 * tokens as f64;
    let kernels = report["kernels"].as_array().unwrap();
    let all: f64 = kernels.iter().map(|r| r["gflop"].as_f64().unwrap()).sum::<f64>() * 1e9;
    // The decoder sees 4 tokens a sequence, the head 3 labels of each; branches and coordinates of all
    // ranks come on top.
    assert!(all > flops && all < 1.6 * flops, "{all:e} flops, {flops:e} by hand");
    assert!(report["launching_ms"].as_f64().unwrap() < report["step_ms"].as_f64().unwrap());
    engine()
        .args(["profile", "--shape", "gpt-5"])
        .assert()
        .code(2)
        .stderr(predicate::str::contains("llama-3.1-8b"));
    engine()
        .args([
            "profile", "--shape", "t5-base", "--device", "null", "--steps", "1", "--tokens", "64",
            "--length", "64",
        ])
        .assert()
        .code(2)
        .stderr(predicate::str::contains("--tokens, --length"));
}

/// The library's view of a product, evaluated by plain column-major loops, against the row-major formula.
#[test]
fn a_column_major_library_gets_the_same_product() {
    use gems_engine::backend::cuda::driver::PlainProduct;
    let (m, n, k) = (5, 7, 3);
    for (transpose_a, transpose_b) in [(false, false), (false, true), (true, false), (true, true)] {
        let (a_cols, b_cols) = (if transpose_a { m } else { k }, if transpose_b { k } else { n });
        let ld = [a_cols + 2, b_cols + 1, n + 4];
        let p = PlainProduct { m, n, k, transpose_a, transpose_b, ld, c: DType::F32 };
        let (a, b) = (numbers(1, 200), numbers(2, 200));
        let [first, second, result] = p.column_major();
        let element =
            |x: &[f32], o: &gems_engine::backend::cuda::drivers::cublaslt::Operand, i: usize, j: usize| {
                let (i, j) = if o.transposed { (j, i) } else { (i, j) };
                assert!(i < o.rows && j < o.cols, "outside the stored matrix");
                x[i + j * o.ld]
            };
        let mut c = vec![0f32; 200];
        for i in 0..result.rows {
            for j in 0..result.cols {
                c[i + j * result.ld] =
                    (0..k).map(|l| element(&b, &first, i, l) * element(&a, &second, l, j)).sum();
            }
        }
        for i in 0..m {
            for j in 0..n {
                let term = |l: usize| {
                    let x = if transpose_a { a[l * ld[0] + i] } else { a[i * ld[0] + l] };
                    x * if transpose_b { b[j * ld[1] + l] } else { b[l * ld[1] + j] }
                };
                let want: f32 = (0..k).map(term).sum();
                assert!((c[i * ld[2] + j] - want).abs() < 1e-5, "{transpose_a} {transpose_b} at {i}, {j}");
            }
        }
    }
}
