//! Golden files, verbose closeness, and deterministic inputs. Used by every room.
#![allow(dead_code)]

use gems_engine::backend::cuda::{Cuda, DeviceSpec};
use gems_engine::backend::{Backend, DType, GateRule, GramEntry, StepFactors, cpu::Cpu, factors};
use gems_engine::data::{Quotes, Vocabulary};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

/// The reference data: `$GEMS_GOLDEN_DIR`, or `tests/golden` of the repository. Cases, shapes and
/// tolerances are found in its manifest, so other data of the same format works too.
pub struct Golden {
    /// Where it is.
    pub dir: PathBuf,
    manifest: Value,
}

/// A tensor of a golden file, as f32 (integers are converted), with its shape.
#[derive(Debug, Clone)]
pub struct Reference {
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

impl Reference {
    pub fn rows(&self) -> usize {
        if self.shape.len() < 2 { 1 } else { self.shape[..self.shape.len() - 1].iter().product() }
    }
    pub fn cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }
}

impl Golden {
    pub fn open() -> Self {
        let dir = std::env::var_os("GEMS_GOLDEN_DIR")
            .map(PathBuf::from)
            .unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden"));
        let text = std::fs::read_to_string(dir.join("manifest.json"))
            .unwrap_or_else(|e| panic!("{}/manifest.json: {e}", dir.display()));
        Self { dir, manifest: serde_json::from_str(&text).unwrap() }
    }
    /// Paths in the manifest that start with `prefix` and end with `suffix`.
    pub fn files(&self, prefix: &str, suffix: &str) -> Vec<String> {
        let files = self.manifest["files"].as_object().unwrap();
        files.keys().filter(|k| k.starts_with(prefix) && k.ends_with(suffix)).cloned().collect()
    }
    /// Names of the folders directly below `prefix/`, from the manifest.
    pub fn folders(&self, prefix: &str) -> Vec<String> {
        let head = format!("{prefix}/");
        let mut names: Vec<String> = self
            .files(&head, "")
            .iter()
            .filter_map(|p| p[head.len()..].split_once('/').map(|(name, _)| name.to_string()))
            .collect();
        names.sort();
        names.dedup();
        names
    }
    /// The manifest's entry of a file.
    pub fn entry(&self, path: &str) -> &Value {
        &self.manifest["files"][path]
    }
    /// A number below `tolerance` of a file's entry (dots separate levels), or `default` if it names none.
    pub fn tolerance(&self, path: &str, key: &str, default: f64) -> f64 {
        let mut value = &self.entry(path)["tolerance"];
        for part in key.split('.') {
            value = &value[part];
        }
        value.as_f64().unwrap_or(default)
    }
    pub fn has(&self, path: &str) -> bool {
        self.manifest["files"].get(path).is_some()
    }
    pub fn json(&self, path: &str) -> Value {
        let text = std::fs::read_to_string(self.dir.join(path)).unwrap_or_else(|e| panic!("{path}: {e}"));
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{path}: {e}"))
    }
    pub fn tensors(&self, path: &str) -> BTreeMap<String, Reference> {
        let bytes = std::fs::read(self.dir.join(path)).unwrap_or_else(|e| panic!("{path}: {e}"));
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap_or_else(|e| panic!("{path}: {e}"));
        file.tensors()
            .into_iter()
            .map(|(name, view)| {
                let data = view.data();
                let values = match view.dtype() {
                    safetensors::Dtype::F32 => {
                        data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
                    }
                    safetensors::Dtype::F64 => data
                        .chunks_exact(8)
                        .map(|b| f64::from_le_bytes(b.try_into().unwrap()) as f32)
                        .collect(),
                    safetensors::Dtype::I64 => data
                        .chunks_exact(8)
                        .map(|b| i64::from_le_bytes(b.try_into().unwrap()) as f32)
                        .collect(),
                    other => panic!("{path}: {name}: dtype {other:?}"),
                };
                (name, Reference { shape: view.shape().to_vec(), values })
            })
            .collect()
    }
}

/// Asserts `|got - want| <= atol + rtol * |want|` everywhere; a failure names how many elements, the
/// worst one, and NaN or infinities apart.
#[track_caller]
pub fn assert_close(what: &str, got: &[f32], want: &[f32], rtol: f64, atol: f64) {
    assert_within(what, got, want, |i| atol + rtol * (want[i] as f64).abs());
}

/// The same with a tolerance for each element.
#[track_caller]
pub fn assert_within(what: &str, got: &[f32], want: &[f32], tolerance: impl Fn(usize) -> f64) {
    assert_eq!(got.len(), want.len(), "{what}: {} values instead of {}", got.len(), want.len());
    let (mut bad, mut worst, mut at, mut strange) = (0usize, 0f64, 0usize, 0usize);
    for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
        if g == w {
            continue;
        }
        if !g.is_finite() || !w.is_finite() {
            strange += 1;
            at = i;
            continue;
        }
        let used = (g as f64 - w as f64).abs() / tolerance(i);
        if used > 1.0 {
            bad += 1;
        }
        if used > worst {
            (worst, at) = (used, i);
        }
    }
    assert!(
        bad == 0 && strange == 0,
        "{what}: {bad} of {} values differ, {strange} not finite; worst at {at}: got {}, want {} ({worst:.2} x the tolerance {:e})",
        want.len(),
        got[at],
        want[at],
        tolerance(at)
    );
}

/// Deterministic, distinct, roughly standard normal numbers.
pub fn numbers(seed: u64, n: usize) -> Vec<f32> {
    gems_engine::random::normal(seed, gems_engine::random::Purpose::Data, 77, 0, n)
}

thread_local! {
    static DEVICE: std::cell::Cell<&'static str> = const { std::cell::Cell::new("cpu") };
}

/// The GPU computing in `dtype`, opened once a process; `None` without one, unless GEMS_REQUIRE_CUDA=1 makes
/// that a failure.
pub fn gpu(dtype: DType) -> Option<Arc<dyn Backend>> {
    type Opened = (DType, Option<Arc<dyn Backend>>);
    static OPENED: Mutex<Vec<Opened>> = Mutex::new(Vec::new());
    let mut opened = OPENED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if let Some((_, gpu)) = opened.iter().find(|(d, _)| *d == dtype) {
        return gpu.clone();
    }
    let required = std::env::var("GEMS_REQUIRE_CUDA").is_ok_and(|v| v == "1");
    let gpu = match Cuda::open(DeviceSpec { dtype, ..DeviceSpec::gpu(0) }) {
        Ok(gpu) => Some(gpu as Arc<dyn Backend>),
        Err(error) if required => panic!("GEMS_REQUIRE_CUDA=1, but {error}"),
        Err(_) => None,
    };
    opened.push((dtype, gpu.clone()));
    gpu
}

/// The host SIMT machine.
pub fn simt(dtype: DType) -> Arc<dyn Backend> {
    Cuda::open(DeviceSpec::simt(dtype)).unwrap()
}

/// A device that computes nothing, spread out as an H100.
pub fn dry_run(dtype: DType) -> Arc<dyn Backend> {
    Cuda::open(DeviceSpec::dry_run_of_h100(dtype)).unwrap()
}

/// The kernels in `dtype` on every device that runs them: the SIMT machine, and a GPU if there is one.
pub fn kernel_devices(dtype: DType) -> Vec<Arc<dyn Backend>> {
    std::iter::once(simt(dtype)).chain(gpu(dtype)).collect()
}

/// The backend a test computes on, in f32: the CPU, unless it runs [`on_every_device`].
pub fn backend() -> Arc<dyn Backend> {
    match DEVICE.get() {
        "simt" => simt(DType::F32),
        "cuda" => gpu(DType::F32).unwrap(),
        _ => Cpu::open(None).unwrap(),
    }
}

/// Runs a test on the CPU backend, then with the kernels on the SIMT machine and, where there is one, on a GPU.
pub fn on_every_device(test: impl Fn()) {
    for device in ["cpu", "simt", "cuda"] {
        if device == "cuda" && gpu(DType::F32).is_none() {
            continue;
        }
        DEVICE.set(device);
        println!("on {device}:");
        test();
    }
    DEVICE.set("cpu");
}

/// A step's losses and inner products, of which clipping, surgery and gates are to be worked out.
#[derive(Clone)]
pub struct FactorCase {
    pub products: Vec<(GramEntry, f64)>,
    pub losses: Vec<f64>,
    pub labels: Vec<f32>,
    pub counts: Vec<f32>,
    pub pcgrad: bool,
    pub clip_norm: f64,
}

impl FactorCase {
    /// Mean losses and samples of every task, and nothing else.
    pub fn of(losses: &[f64], counts: &[f64]) -> Self {
        let (labels, counts) = (vec![1.0; losses.len()], counts.iter().map(|c| *c as f32).collect());
        let (products, pcgrad, clip_norm) = (Vec::new(), false, 0.0);
        Self { products, losses: losses.to_vec(), labels, counts, pcgrad, clip_norm }
    }

    /// What a device makes of it: the clipping factor, the tasks' weights, their gates.
    pub fn factors(&self, be: &Arc<dyn Backend>, gates: GateRule) -> Vec<f32> {
        let tasks = self.losses.len();
        let row = |values: Vec<f32>| be.tensor(&values, 1, values.len(), DType::F32).unwrap();
        let products = row(self.products.iter().map(|p| p.1 as f32).collect());
        let losses = row(self.losses.iter().map(|l| *l as f32).collect());
        let numbers: Vec<u32> = self.products.iter().map(|p| p.0.number(tasks) as u32).collect();
        let mut out = be.alloc(1, factors::count(tasks), DType::F32).unwrap();
        be.run(StepFactors {
            products: products.mat(),
            entries: &be.indices(&numbers).unwrap(),
            losses: losses.mat(),
            labels: &self.labels,
            counts: &self.counts,
            gates,
            pcgrad: self.pcgrad,
            clip_norm: self.clip_norm,
            factors: out.mat_mut(),
        })
        .unwrap();
        be.download(out.mat()).unwrap()
    }
}

/// Token ids of what a template says itself.
pub fn own_text(vocabulary: &Vocabulary, text: &str, special: bool) -> Vec<u32> {
    let mut quotes = Quotes::default();
    let marked = vocabulary.mark(text, &mut quotes).unwrap();
    vocabulary.encode_prompt(&marked, &quotes, special).unwrap()
}
