//! How many threads compute does not show in what comes out, to the bit.

use super::*;
use serde_json::json;

/// The bytes of every tensor file of a run, and what it measured.
fn outcome(run: &Path) -> (BTreeMap<PathBuf, Vec<u8>>, [Value; 2]) {
    let tensor = |name: &Path| name.extension().is_some_and(|e| e == "safetensors");
    let within = |(name, bytes): (PathBuf, Vec<u8>)| (name.strip_prefix(run).unwrap().to_path_buf(), bytes);
    let tensors = contents(run).into_iter().filter(|(name, _)| tensor(name)).map(within);
    let result: Value = serde_json::from_str(&fs::read_to_string(run.join("result.json")).unwrap()).unwrap();
    let measured = ["before", "after"].map(|when| {
        let mut found = result[when].clone();
        if let Some(all) = found.as_object_mut() {
            all.retain(|name, _| !name.contains("seconds"));
        }
        found
    });
    (tensors.collect(), measured)
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let data = world(dir.path());
    // Batches whose products are shared out, and a window of full gradients.
    let large = ["--steps", "5", "--set", "train.batch=40", "--set", "checkpoint.every=3"];
    let metric =
        ["--set", "null_space.side=metric", "--set", "null_space.pull=0.2", "--set", "rehearsal.every=2"];
    let cases: [(&str, &str, &[&str]); 5] = [
        ("llama_tied", "gems", &["--set", "gems.refresh=exact"]),
        ("qwen3_qknorm", "gems", &metric),
        ("llama_tied", "gems", &["--set", "precision=bf16", "--set", "gems.refresh_every=2"]),
        ("t5_v11", "galore", &["--set", "null_space.side=output"]),
        ("qwen2_bias", "full", &["--set", "optimizer.norms=true", "--set", "optimizer.biases=true"]),
    ];
    for (number, (model, method, more)) in cases.into_iter().enumerate() {
        let outcomes = ["1", "2", "3"].map(|threads| {
            let out = dir.path().join(format!("{number}-{threads}"));
            let flags = [&["--method", method, "--threads", threads][..], &large, more].concat();
            train(model, &data, &out, &flags).assert().success();
            outcome(&out)
        });
        assert!(outcomes[0].0.len() >= 3 && outcomes[0].1[1] != json!(null), "{model}");
        for other in &outcomes[1..] {
            for (name, bytes) in &outcomes[0].0 {
                assert!(bytes == &other.0[name], "{model}, {method}: {} differs", name.display());
            }
            assert_eq!(outcomes[0].1, other.1, "{model}, {method}");
        }
    }
}

/// Layers that are large enough for a decomposition to be shared out.
#[test]
fn nor_does_it_in_the_demo() {
    let dir = tempfile::tempdir().unwrap();
    let short = ["null_space.tokens=600", "train.batch=8", "gems.refresh_every=2", "train.validate_every=0"];
    let silent = ["train.evaluate_before=false", "train.evaluate_after=false", "train.export=false"];
    let tensors = ["1", "3"].map(|threads| {
        let out = dir.path().join(threads);
        let mut command = engine();
        command.args(["train", "--json", "--steps", "2", "--threads", threads, "--out"]).arg(&out);
        short.iter().chain(&silent).for_each(|setting| {
            command.args(["--set", *setting]);
        });
        command.assert().success();
        [
            fs::read(out.join("basis.safetensors")).unwrap(),
            fs::read(out.join("checkpoints/step-00000002/weights.safetensors")).unwrap(),
        ]
    });
    assert!(tensors[0] == tensors[1]);
}
