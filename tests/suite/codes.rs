//! Every command on a base whose weights are in codes.

use crate::cli::{engine, golden_model, train, world};
use gems_engine::backend::cpu::Cpu;
use gems_engine::model::{LoadOptions, Model};
use serde_json::Value;
use std::path::Path;

const SHORT: &[&str] = &[
    "--device",
    "cpu",
    "--steps",
    "7",
    "--set",
    "gems.refresh_every=3",
    "--set",
    "gems.remainder_rank=3",
    "--set",
    "data.general_length=40",
    "--set",
    "data.templates.rec=\"{{ history }}:\"",
    "--set",
    "data.templates.search=\"{{ history }} {{ query }}:\"",
];

fn said(command: &mut assert_cmd::Command) -> Value {
    let done = command.assert().success();
    let text = String::from_utf8_lossy(&done.get_output().stdout).to_string();
    serde_json::from_str(text.lines().last().unwrap()).unwrap()
}

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn every_command_takes_a_base_in_codes() {
    let dir = tempfile::tempdir().unwrap();
    let data = world(dir.path());
    for model in ["quantised_nf4", "quantised_gptq_act"] {
        let (run, basis) = (dir.path().join(model), dir.path().join(format!("{model}.safetensors")));
        let mut learn = engine();
        learn
            .args(["basis", "--json", "--set", "gems.rank=4", "--set", "data.general_length=40", "--model"])
            .arg(golden_model(model));
        learn.arg("--data").arg(&data).arg("--out").arg(&basis).assert().success();
        let with = ["--basis", basis.to_str().unwrap()];
        let told = said(&mut train(model, &data, &run, &[SHORT, &with].concat()));
        assert!(
            told["after"]["rec"]["ndcg@10"].is_number()
                && told["after"]["general"]["kl"].as_f64().unwrap() > 0.0,
            "{told}"
        );
        let lost: Vec<f64> = lines(&run.join("metrics.jsonl"))
            .iter()
            .filter_map(|line| line["remainder_lost"].as_f64())
            .collect();
        assert!(!lost.is_empty() && lost.iter().all(|share| (0.0..1.0).contains(share)), "{lost:?}");
        said(engine().args(["evaluate", "--json", "--run"]).arg(&run));
        let asked = |query: &[&str]| {
            said(engine().args(["rank", "--json", "--top", "3", "--run"]).arg(&run).args(query))
        };
        assert_eq!(asked(&["--history", "i1,i2"])["items"].as_array().unwrap().len(), 3);
        for format in ["merged", "peft"] {
            let out = dir.path().join(format!("{model}-{format}"));
            let told = said(
                engine()
                    .args(["export", "--json", "--format", format, "--rank", "1.0", "--run"])
                    .arg(&run)
                    .arg("--out")
                    .arg(&out),
            );
            assert!(told["largest_logit_difference"].as_f64().unwrap() < 2e-4, "{told}");
            assert!(told["energy"].as_f64().unwrap() > 0.9999, "{told}");
        }
        // The merged one is an ordinary checkpoint.
        let merged = dir.path().join(format!("{model}-merged"));
        let again = Model::load(&merged, Cpu::open(None).unwrap(), &LoadOptions::default()).unwrap();
        assert!(again.linears.iter().all(|layer| layer.weight.quantised().is_none()));
        engine()
            .args(["doctor", "--model"])
            .arg(golden_model(model))
            .arg("--out")
            .arg(dir.path())
            .assert()
            .success();
        // And goes on, to the same end as one run of so many steps.
        let longer = [&["--resume", "--steps", "9"][..], &["--device", "cpu"]].concat();
        let resumed = said(engine().args(["train", "--json", "--out"]).arg(&run).args(&longer));
        assert!(resumed["after"]["rec"]["ndcg@10"].is_number());
    }
}

/// A step of a base in codes is profiled, and nothing of a weight is made anew for it but what a product reads.
#[test]
fn a_step_on_a_base_in_codes_is_profiled() {
    let dir = tempfile::tempdir().unwrap();
    let data = world(dir.path());
    let mut profile = engine();
    profile.args([
        "profile",
        "--json",
        "--steps",
        "1",
        "--warmup",
        "1",
        "--device",
        "cpu",
        "--set",
        "gems.rank=4",
    ]);
    profile.arg("--model").arg(golden_model("quantised_gptq")).arg("--data").arg(&data);
    let told = said(&mut profile).to_string();
    assert!(told.contains("\"linear\"") && told.contains("\"linear_input_grad\""), "{told}");
}

#[test]
fn methods_that_change_weights_are_refused_before_the_base_is_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (world(dir.path()), dir.path().join("run"));
    let done = train("quantised_nf4", &data, &out, &["--method", "full", "--device", "cpu"]).assert().code(2);
    let text = String::from_utf8_lossy(&done.get_output().stderr).to_string();
    for part in ["gems.method = \"full\"", "in codes", "bitsandbytes, 4 bits", "lora"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!out.exists());
}
