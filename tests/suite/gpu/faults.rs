//! Devices that are missing, full or lost.

use super::{engine, golden_model};
use cudarc::driver::DriverError;
use cudarc::driver::sys::CUresult;
use gems_engine::backend::cuda::{Cuda, DeviceSpec, Faults, explain};
use gems_engine::backend::{Backend, DType};
use gems_engine::error::Kind;
use predicates::prelude::*;
use serde_json::Value;
use std::sync::Arc;

fn faulty(faults: Faults) -> Arc<dyn Backend> {
    Cuda::open(DeviceSpec { faults, ..DeviceSpec::simt(DType::F32) }).unwrap()
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
        (C::CUDA_ERROR_UNKNOWN, "last checkpoint is good"),
        (C::CUDA_ERROR_SYSTEM_NOT_READY, "fabricmanager"),
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
    let error = Cuda::open(DeviceSpec::gpu(0)).err().unwrap();
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
    let be = faulty(Faults { memory: Some(1 << 20), lost_at: None });
    let held = be.alloc(300, 512, DType::F32).unwrap();
    let error = be.alloc(300, 512, DType::F32).err().unwrap();
    assert_eq!((error.kind, error.exit_code()), (Kind::Memory, 1));
    assert!(error.to_string().contains("0.6 MiB more are needed, 0.6 MiB in use"), "{error}");
    drop(held);
    be.alloc(300, 512, DType::F32).unwrap();
}

#[test]
fn memory_that_was_given_back_is_waited_for_before_a_device_counts_as_full() {
    let faults = Faults { memory: Some(4 << 20), lost_at: None };
    let be = Cuda::open(DeviceSpec { faults, ..DeviceSpec::dry_run_of_h100(DType::F32) }).unwrap();
    // Too small to serve the next; with both there is no room until the first is given back and that has settled.
    drop(be.alloc(1, 700_000, DType::F32).unwrap());
    let held = be.alloc(1, 1_000_000, DType::F32).unwrap();
    assert_eq!(be.memory().taken, be.memory().live);
    assert!(be.alloc(1, 1_000_000, DType::F32).is_err());
    drop(held);
    be.alloc(1, 1_000_000, DType::F32).unwrap();
}

#[test]
fn what_is_taken_is_told_and_idle_memory_serves_tensors_of_at_least_half_its_size() {
    let be = Cuda::open(DeviceSpec::dry_run_of_h100(DType::F32)).unwrap();
    let alloc = |mib: usize| be.alloc(1, mib << 18, DType::F32).unwrap();
    let mib = |bytes: usize| bytes >> 20;
    drop(alloc(8));
    let five = alloc(5);
    assert_eq!((mib(be.memory().live), mib(be.memory().taken)), (8, 8), "5 of the 8 that lay idle");
    drop(five);
    let three = alloc(3);
    assert_eq!((mib(be.memory().live), mib(be.memory().taken)), (3, 11), "8 are too many for 3");
    be.trim();
    be.reset_peak_memory();
    assert_eq!((mib(be.memory().live), mib(be.memory().taken)), (3, 3));
    drop(three);
}

#[test]
fn a_lost_device_stays_lost() {
    let be = faulty(Faults { memory: None, lost_at: Some(2) });
    let mut x = be.zeros(4, 4, DType::F32).unwrap();
    be.fill(x.mat_mut(), 1.0).unwrap();
    let error = be.fill(x.mat_mut(), 2.0).unwrap_err();
    assert!(error.to_string().contains("launch of fill_f32: the GPU is lost"), "{error}");
    assert!(be.download(x.mat()).unwrap_err().to_string().contains("--resume"));
    assert!(be.synchronize().is_err());
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
    // Somewhere in the second or third step: later and later, until the first checkpoint is there.
    for tenths in 20.. {
        let _ = std::fs::remove_dir_all(&broken);
        let mut run = crate::cli::train("llama_tied", &data, &broken, SIMT);
        let at = 1.1f64.powi(tenths) * 30.0;
        let ended = run.env("GEMS_SIMT_LOST_AT", (at as u64).to_string()).output().unwrap();
        let said = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(1), "no launch after the first checkpoint: {said}");
        assert!(said.contains("the GPU is lost") && said.contains("--resume"), "{said}");
        if std::fs::read_dir(broken.join("checkpoints")).is_ok_and(|mut found| found.next().is_some()) {
            break;
        }
    }
    engine().args(["train", "--resume", "--json", "--out"]).arg(&broken).assert().success();
    assert_eq!(losses(&broken), losses(&whole));
}

/// Launches that wait to be started as a graph count too.
#[test]
fn a_device_is_lost_with_graphs_as_without() {
    let faults = Faults { memory: None, lost_at: Some(2) };
    let spec = DeviceSpec { faults, graphs: true, ..DeviceSpec::simt(DType::F32) };
    let be: Arc<dyn Backend> = Cuda::open(spec).unwrap();
    let mut x = be.zeros(4, 4, DType::F32).unwrap();
    be.fill(x.mat_mut(), 1.0).unwrap();
    let error = be.fill(x.mat_mut(), 2.0).unwrap_err();
    assert!(error.to_string().contains("launch of fill_f32: the GPU is lost"), "{error}");
}
