//! The GPU's side of the house as far as it can be seen without one: doctor, images, errors, launches,
//! profiles, scripts up to the device boundary.

use crate::support::numbers;
use assert_cmd::Command;
use cudarc::driver::DriverError;
use cudarc::driver::sys::CUresult;
use gems_engine::backend::cuda::staging::Ring;
use gems_engine::backend::cuda::{Cuda, Faults, choose, explain};
use gems_engine::backend::trace::{self, Work};
use gems_engine::backend::{DType, Op};
use gems_engine::error::Kind;
use predicates::prelude::*;
use serde_json::Value;

fn engine() -> Command {
    Command::cargo_bin("gems-engine").unwrap()
}

fn golden_model(name: &str) -> String {
    format!("{}/tests/golden/models/{name}", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn doctor_reports_in_lines_and_in_json() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().display().to_string();
    engine()
        .args(["doctor", "--out", &out])
        .assert()
        .success()
        .stdout(predicate::str::contains("PASS  output").and(predicate::str::contains("--device auto")));
    let said = engine().args(["doctor", "--json", "--out", &out]).assert().success().get_output().clone();
    let report: Value = serde_json::from_slice(&said.stdout).unwrap();
    let architectures = report["architectures"].as_array().unwrap();
    let built = gems_engine::backend::cuda::architectures();
    assert_eq!(architectures.len(), built.iter().filter(|a| a.starts_with("sm_")).count());
    assert!(architectures.iter().all(|a| a.as_str().unwrap().starts_with("sm_")));
    for check in report["checks"].as_array().unwrap() {
        let status = check["status"].as_str().unwrap();
        assert!(["PASS", "WARN", "FAIL"].contains(&status), "{check}");
        assert!(status == "PASS" || !check["hint"].as_str().unwrap().is_empty(), "{check} without a hint");
    }
    assert!(report["device"]["auto"].is_string() && report["device"]["why"].is_string());
}

#[test]
fn a_switch_that_is_neither_on_nor_off_is_refused() {
    engine()
        .env("GEMS_GRAPHS", "maybe")
        .args(["profile", "--shape", "t5-base", "--tokens", "64", "--device", "null"])
        .assert()
        .code(2)
        .stderr(predicate::str::contains("GEMS_GRAPHS").and(predicate::str::contains("on or off")));
}

#[test]
fn doctor_looks_at_a_model_and_fails_on_a_broken_one() {
    engine()
        .args(["doctor", "--model", &golden_model("llama_tied")])
        .assert()
        .success()
        .stdout(predicate::str::contains("PASS  model"));
    let empty = tempfile::tempdir().unwrap();
    engine()
        .args(["doctor", "--model"])
        .arg(empty.path())
        .assert()
        .code(1)
        .stdout(predicate::str::contains("FAIL  model").and(predicate::str::contains("config.json")));
}

/// What `doctor` says of the products of a Llama of these sizes, by device: `(device, layers)`. The directory has no
/// weights, which is a failed check and nothing to the products.
fn products(hidden: usize, intermediate: usize) -> Vec<(String, Vec<Value>)> {
    let dir = tempfile::tempdir().unwrap();
    let config = serde_json::json!({"model_type": "llama", "hidden_size": hidden, "num_attention_heads": 2,
        "intermediate_size": intermediate, "num_hidden_layers": 3, "vocab_size": 1000});
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let mut command = engine();
    command.args(["doctor", "--json", "--model"]).arg(dir.path());
    let said = command.assert().code(1).get_output().clone();
    let report: Value = serde_json::from_slice(&said.stdout).unwrap();
    let of = |v: &Value| (v["device"].as_str().unwrap().to_string(), v["layers"].as_array().unwrap().clone());
    let found: Vec<_> = report["products"].as_array().unwrap().iter().map(of).collect();
    assert!(!found.is_empty(), "{report}");
    found
}

#[test]
fn doctor_shows_which_kernel_every_product_takes() {
    let kernels = |product: &Value| -> Vec<String> {
        product["kernels"].as_array().unwrap().iter().map(|k| k.as_str().unwrap().to_string()).collect()
    };
    for (device, layers) in &products(96, 264) {
        let names: Vec<Value> = layers.iter().map(|l| l["layers"].clone()).collect();
        assert_eq!(
            Value::from(names),
            serde_json::json!([["q", "k", "v", "o"], ["gate", "up"], ["down"], ["head"]])
        );
        assert_eq!(layers[0]["count"], 12);
        for layer in layers {
            for product in ["forward", "input_gradient", "weights"].map(|p| &layer[p]) {
                let (kernels, why) = (kernels(product), product["why"].as_str().unwrap());
                assert!(!kernels.is_empty() && product["slow"] == false, "{device}: {layer}");
                if device.contains("sm_90a") {
                    assert!(kernels.iter().all(|k| k.starts_with("matmul_sm90a_")), "{device}: {kernels:?}");
                    assert!(why.contains("wgmma"), "{device}: {why}");
                } else if device.contains("sm_80") {
                    assert!(kernels.iter().all(|k| k.contains("_tc_")), "{device}: {kernels:?}");
                    assert!(why.contains("mma.sync") && why.contains("no wgmma"), "{device}: {why}");
                }
            }
        }
    }
    // 100 is no multiple of 8: every product of a layer of that width runs without tensor cores, and says so.
    for (device, layers) in products(100, 264) {
        let q = &layers[0];
        for (product, why) in [
            ("forward", "CUDA cores: rows of x, W, A have 100 elements, not a multiple of 8"),
            ("input_gradient", "CUDA cores: rows of dy, W, A have 100 elements, not a multiple of 8"),
            ("weights", "CUDA cores: rows of A have 100 elements, not a multiple of 8"),
        ] {
            assert!(kernels(&q[product]).iter().any(|k| k.starts_with("matmul_plain_")), "{device}: {q}");
            assert_eq!((&q[product]["slow"], q[product]["why"].as_str()), (&Value::from(true), Some(why)));
        }
        // The down projection reads rows of 264, and writes rows of 100.
        assert_eq!((&layers[2]["layers"][0], &layers[2]["forward"]["slow"]), (&"down".into(), &false.into()));
        assert_eq!(layers[2]["input_gradient"]["slow"], true);
    }
    engine()
        .args(["doctor", "--model", &golden_model("llama_tied")])
        .assert()
        .success()
        .stdout(predicate::str::contains("products").and(predicate::str::contains("input gradient")));
}

#[test]
fn links_between_gpus_are_told_in_words() {
    use gems_engine::backend::cuda::probe::{Link, describe};
    let link = |gpus, peers, nvlink, path: &str| Link { gpus, peers, nvlink, path: Some(path.to_string()) };
    assert_eq!(describe(&[]), None);
    let all = [(0, 1), (0, 2), (1, 2)].map(|gpus| link(gpus, Some(true), Some(true), "NUMA nodes"));
    assert_eq!(describe(&all).unwrap(), "all reach each other over NVLink");
    let some = [
        link((0, 1), Some(true), Some(true), "one PCIe switch"),
        link((0, 2), Some(true), Some(false), "one PCIe switch"),
        link((1, 2), Some(false), Some(false), "NUMA nodes"),
        Link { gpus: (1, 3), peers: None, nvlink: None, path: None },
    ];
    assert_eq!(
        describe(&some).unwrap(),
        "0-1 over NVLink; 0-2 directly over one PCIe switch; 1-2 through host memory only (NUMA nodes); \
         1-3 in an unknown way"
    );
}

#[test]
fn the_image_is_the_newest_that_fits() {
    let built = ["ptx_80", "sm_100", "sm_80", "sm_86", "sm_89", "sm_90a"];
    let of = |major, minor| choose(&built, major, minor).unwrap();
    assert_eq!(of(8, 0), "sm_80");
    assert_eq!(of(8, 7), "sm_86");
    assert_eq!(of(8, 9), "sm_89");
    assert_eq!(of(9, 0), "sm_90a");
    // sm_103 is not older than sm_100; sm_120 has nothing of its own and takes PTX.
    assert_eq!(of(10, 3), "sm_100");
    assert_eq!(of(12, 0), "ptx_80");
    let error = choose(&["sm_90a"], 8, 0).unwrap_err();
    assert!(error.to_string().contains("compute capability 8.0") && error.to_string().contains("sm_90a"));
    assert!(error.to_string().contains("GEMS_CUDA_ARCHS"), "{error}");
    let error = choose(&[], 9, 0).unwrap_err();
    assert!(error.to_string().contains("without GPU kernels"), "{error}");
}

#[test]
fn driver_errors_say_what_to_do() {
    use CUresult as C;
    for (code, word) in [
        (C::CUDA_ERROR_UNSUPPORTED_PTX_VERSION, "update the driver"),
        (C::CUDA_ERROR_NO_BINARY_FOR_GPU, "GEMS_CUDA_ARCHS"),
        (C::CUDA_ERROR_NO_DEVICE, "nvidia-smi"),
        (C::CUDA_ERROR_DEVICE_UNAVAILABLE, "another process"),
        (C::CUDA_ERROR_ILLEGAL_ADDRESS, "--device simt"),
        (C::CUDA_ERROR_ECC_UNCORRECTABLE, "--resume"),
        (C::CUDA_ERROR_UNKNOWN, "the last checkpoint is good"),
        (C::CUDA_ERROR_LAUNCH_TIMEOUT, "the GPU is lost"),
    ] {
        let error = explain(DriverError(code));
        assert!(error.to_string().contains(word), "{code:?}: {error}");
        assert_eq!((error.kind, error.exit_code()), (Kind::Device, 1));
    }
}

#[test]
fn asking_for_a_gpu_that_is_not_there_is_an_error() {
    if gems_engine::backend::cuda::driver_present() {
        return;
    }
    let error = Cuda::open_device(0).err().unwrap();
    assert!(error.to_string().contains("no CUDA driver"), "{error}");
    let dir = tempfile::tempdir().unwrap();
    engine()
        .args(["train", "--device", "cuda", "--model", &golden_model("llama_tied"), "--data"])
        .arg(dir.path())
        .assert()
        .code(1)
        .stderr(predicate::str::contains("there is no CUDA driver on this machine"));
}

#[test]
fn a_full_device_says_what_is_in_use() {
    let be = Cuda::open_faulty(DType::F32, Faults { memory: Some(1 << 20), lost_at: None });
    let held = be.alloc(300, 512, DType::F32).unwrap();
    let error = be.alloc(300, 512, DType::F32).err().unwrap();
    assert_eq!((error.kind, error.exit_code()), (Kind::Memory, 1));
    assert!(error.to_string().contains("0.6 MiB more are needed, 0.6 MiB in use"), "{error}");
    drop(held);
    be.alloc(300, 512, DType::F32).unwrap();
}

#[test]
fn a_lost_device_stays_lost() {
    let be = Cuda::open_faulty(DType::F32, Faults { memory: None, lost_at: Some(2) });
    let mut x = be.zeros(4, 4, DType::F32).unwrap();
    be.fill(x.mat_mut(), 1.0).unwrap();
    let error = be.fill(x.mat_mut(), 2.0).unwrap_err();
    assert!(error.to_string().contains("launch of fill_f32: the GPU is lost"), "{error}");
    assert!(be.download(x.mat()).unwrap_err().to_string().contains("--resume"));
    assert!(be.synchronize().is_err());
}

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
    for (be, computes) in
        [(Cuda::open_simt(DType::F32).unwrap(), true), (Cuda::open_null(DType::BF16), false)]
    {
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
            be.matmul(c.mat_mut(), 0.0, 1.0, a.mat(), Op::N, b.mat(), Op::N).unwrap();
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

#[test]
fn profile_of_every_device_has_times_floors_and_a_trace() {
    let dir = tempfile::tempdir().unwrap();
    let data = crate::cli::world(dir.path()).display().to_string();
    let trace = dir.path().join("trace.json").display().to_string();
    let model = golden_model("llama_tied");
    for device in ["cpu", "simt", "null"] {
        let sizes =
            ["--set", "gems.rank=4", "--set", "train.batch=4", "--set", "train.micro_batch_tokens=4096"];
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
    let report = profile(&["--shape", "t5-base", "--tokens", "1024", "--length", "128", "--device", "null"]);
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

/// On the SIMT machine without evaluation, saving after every step.
const SIMT: &[&str] = &[
    "--device",
    "simt",
    "--steps",
    "3",
    "--set",
    "checkpoint.every=1",
    "--set",
    "train.evaluate_before=false",
    "--set",
    "train.evaluate_after=false",
    "--set",
    "train.validate_every=0",
    "--set",
    "train.export=false",
    "--set",
    "null_space.side=none",
    "--set",
    "null_space.item_rows=0.0",
];

#[test]
fn a_run_that_does_not_fit_prints_its_memory_plan() {
    let dir = tempfile::tempdir().unwrap();
    let data = crate::cli::world(dir.path());
    crate::cli::train("llama_tied", &data, &dir.path().join("run"), SIMT)
        .env("GEMS_SIMT_MEMORY", "1500000")
        .assert()
        .code(1)
        .stderr(
            predicate::str::contains("out of memory")
                .and(predicate::str::contains("the run is planned with weights"))
                .and(predicate::str::contains("train.micro_batch_tokens"))
                .and(predicate::str::contains("train.activation_checkpointing"))
                .and(predicate::str::contains("gems.rank (now 4)")),
        );
}

#[test]
fn a_gpu_lost_in_the_middle_leaves_a_checkpoint_that_resumes_to_the_same_end() {
    let dir = tempfile::tempdir().unwrap();
    let data = crate::cli::world(dir.path());
    let losses = |out: &std::path::Path| -> Vec<f64> {
        let log = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
        log.lines().filter_map(|l| serde_json::from_str::<Value>(l).unwrap().get("loss")?.as_f64()).collect()
    };
    let (whole, broken) = (dir.path().join("whole"), dir.path().join("broken"));
    crate::cli::train("llama_tied", &data, &whole, SIMT).assert().success();
    // Somewhere in the second or third step: between too early (nothing was saved) and too late (it ends well).
    let (mut early, mut late) = (1, 1 << 14);
    loop {
        let at = (early + late) / 2;
        assert!(late - early > 1, "no launch after the first checkpoint");
        let _ = std::fs::remove_dir_all(&broken);
        let mut run = crate::cli::train("llama_tied", &data, &broken, SIMT);
        let ended = run.env("GEMS_SIMT_LOST_AT", at.to_string()).output().unwrap();
        if ended.status.success() {
            late = at;
            continue;
        }
        let said = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(1), "{said}");
        assert!(said.contains("the GPU is lost") && said.contains("--resume"), "{said}");
        if std::fs::read_dir(broken.join("checkpoints")).is_ok_and(|mut found| found.next().is_some()) {
            break;
        }
        early = at;
    }
    engine().args(["train", "--resume", "--json", "--out"]).arg(&broken).assert().success();
    assert_eq!(losses(&broken), losses(&whole));
}

/// The library's view of a product, evaluated by plain column-major loops, against the row-major formula.
#[test]
fn a_column_major_library_gets_the_same_product() {
    use gems_engine::backend::cuda::library::PlainProduct;
    let (m, n, k) = (5, 7, 3);
    for (transpose_a, transpose_b) in [(false, false), (false, true), (true, false), (true, true)] {
        let (a_cols, b_cols) = (if transpose_a { m } else { k }, if transpose_b { k } else { n });
        let ld = [a_cols + 2, b_cols + 1, n + 4];
        let p = PlainProduct { m, n, k, transpose_a, transpose_b, ld, c: DType::F32 };
        let (a, b) = (numbers(1, 200), numbers(2, 200));
        let [first, second, result] = p.column_major();
        let element = |x: &[f32], o: &gems_engine::backend::cuda::library::Operand, i: usize, j: usize| {
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

/// A script of the GPU machine, run here as far as the device: its table, and what it says at the end.
fn script(name: &str, args: &[&str]) -> (String, String) {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let root = env!("CARGO_MANIFEST_DIR");
    let said = Command::new("bash")
        .arg(format!("{root}/scripts/{name}"))
        .arg("--out")
        .arg(&out)
        .args(args)
        .env("GEMS_ENGINE", assert_cmd::cargo::cargo_bin("gems-engine"))
        .env("GEMS_SUITE", std::env::current_exe().unwrap())
        .env("GEMS_KERNELS", "/no/bench/program")
        .output()
        .unwrap();
    let words = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(said.status.success(), "{words}{}", String::from_utf8_lossy(&said.stderr));
    (std::fs::read_to_string(out.join("table.tsv")).unwrap(), words)
}

#[test]
fn gpu_check_runs_up_to_the_device() {
    let (table, words) = script("gpu-check.sh", &["--device", "simt"]);
    for row in
        ["train on simt", "two runs, equal bits", "losses of simt and CPU", "a step of t5-base, null device"]
    {
        assert!(table.lines().any(|l| l.starts_with(&format!("{row}\tPASS"))), "{row}:\n{words}");
    }
    assert!(table.contains("compute-sanitizer\tSKIP"), "{words}");
    assert!(words.contains("no GPU was used") && words.contains("Not checked"), "{words}");
}

#[test]
fn gpu_bench_runs_up_to_the_device() {
    let (table, words) =
        script("gpu-bench.sh", &["--device", "null", "--shapes", "t5-base", "--tokens", "1024"]);
    assert!(
        table.lines().any(|l| l.starts_with("t5-base gems engine\tPASS") && l.contains("not measured")),
        "{words}"
    );
    assert!(table.contains("PyTorch peers\tSKIP") && table.contains("operations\tSKIP"), "{words}");
    assert!(words.contains("nothing was measured"), "{words}");
}
