//! `doctor`, and which image and kernels are chosen.

use super::{engine, golden_model};
use gems_engine::backend::cuda::choose;
use predicates::prelude::*;
use serde_json::Value;

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
    // Nothing is promised of 8.7, an integrated GPU.
    assert_eq!(of(8, 7), "ptx_80");
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
