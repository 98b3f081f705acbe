//! What `precision` means on the CPU: weights of half the size, and a run that knows of them.

use super::*;
use gems_engine::backend::cpu::tiles;
use serde_json::json;

const BF16: [&str; 4] = ["--device", "cpu", "--set", "precision=bf16"];

/// Megabytes of weights by the plan.
fn weights(model: &str, data: &Path, more: &[&str]) -> f64 {
    let out = data.join("nothing");
    let (plan, _) = told(&mut train(model, data, &out, &[more, &["--dry-run"]].concat()));
    plan["memory_mb"]["weights"].as_f64().unwrap()
}

#[test]
fn weights_of_half_the_size_train_on_and_are_exported() {
    let dir = tempfile::tempdir().unwrap();
    let data = world(dir.path());
    let f32_weights = weights("llama_tied", &data, &["--device", "cpu"]);
    let bf16_weights = weights("llama_tied", &data, &BF16);
    // Norms stay.
    assert!(bf16_weights < 0.55 * f32_weights, "{bf16_weights} of {f32_weights} MB");
    let run = dir.path().join("run");
    let folds = ["--steps", "9", "--set", "gems.refresh_every=3", "--set", "checkpoint.every=4"];
    let (whole, _) = told(&mut train("llama_tied", &data, &run, &[&BF16[..], &folds].concat()));
    let newest = run.join("checkpoints/step-00000009");
    let bytes = fs::read(newest.join("weights.safetensors")).unwrap();
    fs::remove_dir_all(&newest).unwrap();
    let (resumed, _) = told(engine().args(["train", "--json", "--resume", "--out"]).arg(&run));
    assert_eq!(whole["after"]["rec"], resumed["after"]["rec"]);
    assert!(bytes == fs::read(newest.join("weights.safetensors")).unwrap(), "it goes on to the same end");
    // What a fold left is bf16.
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let folded =
        tensors.iter().filter(|(name, _)| name.ends_with(".w")).flat_map(|(_, view)| view.data().to_vec());
    let folded: Vec<u8> = folded.collect();
    assert!(!folded.is_empty() && folded.chunks(4).all(|value| value[..2] == [0, 0]));
    for form in ["merged", "peft"] {
        let mut export = engine();
        export.args(["export", "--json", "--format", form, "--rank", "1.0", "--run"]).arg(&run);
        let (said, _) = told(export.arg("--out").arg(dir.path().join(form)));
        assert!(said["largest_logit_difference"].as_f64().unwrap() < 2e-3, "{said}");
    }
    // Items whose rows of the head do not follow each other.
    let among = dir.path().join("among");
    fs::write(&among, "i9\ni3\ni4\n").unwrap();
    let mut rank = engine();
    rank.args(["rank", "--json", "--history", "i1,i2", "--run"]).arg(&run).arg("--among").arg(&among);
    assert_eq!(told(&mut rank).0["items"].as_array().unwrap().len(), 3);
    let (found, _) = told(engine().args(["evaluate", "--json", "--run"]).arg(&run));
    assert_eq!(found["result"]["rec"]["ndcg@10"], whole["after"]["rec"]["ndcg@10"]);
}

/// A checkpoint in bf16 loses nothing by staying so, where no method writes to it.
#[test]
fn layers_that_lora_leaves_stay_as_they_are_stored() {
    let dir = tempfile::tempdir().unwrap();
    let (data, run) = trained(dir.path(), "2", &[]);
    let stored = dir.path().join("stored");
    let mut export = engine();
    export.args(["export", "--format", "merged", "--dtype", "bf16", "--run"]).arg(&run);
    export.arg("--out").arg(&stored).assert().success();
    let model = stored.to_str().unwrap();
    let lora = ["--device", "cpu", "--method", "lora", "--steps", "5"];
    let full = [&lora[..], &["--set", "precision=f32"]].concat();
    let (kept, whole) = (weights(model, &data, &lora), weights(model, &data, &full));
    assert!(kept < 0.9 * whole, "{kept} of {whole} MB");
    assert_eq!(weights(model, &data, &["--device", "cpu"]), whole, "gems folds into its weights");
    let losses = [("kept", &lora[..]), ("whole", &full)].map(|(name, flags)| {
        let out = dir.path().join(name);
        let (result, _) = told(&mut train(model, &data, &out, flags));
        (result["after"]["general"]["kl"].as_f64().unwrap(), result["after"]["rec"]["ndcg@10"].clone())
    });
    let [(a, _), (b, _)] = &losses;
    assert!((a - b).abs() < 1e-3 * b.abs() && losses[0].1 != json!(null), "{losses:?}");
}

/// Products of layers in bf16, on a processor that multiplies it by itself; elsewhere it is refused.
#[test]
fn layers_multiply_bf16_where_the_processor_does() {
    let dir = tempfile::tempdir().unwrap();
    let (data, run) = (world(dir.path()), dir.path().join("run"));
    let on = |device: &'static str| ["--device", device, "--set", "precision=mixed"];
    let refused = |device: &'static str, part: &str| {
        let failed = train("llama_tied", &data, &run, &on(device)).assert().failure().code(2);
        let said = String::from_utf8_lossy(&failed.get_output().stderr).into_owned();
        assert!(said.contains("precision") && said.contains(part), "{said}");
    };
    refused("simt", "use precision bf16 or auto");
    if !tiles::available() {
        return refused("cpu", "use precision auto or f32");
    }
    let model = golden_model("llama_tied");
    let of = |name: &str, flags: &[&str]| losses(&model, &data, &dir.path().join(name), flags);
    let (whole, rounded) = (of("whole", &["--device", "cpu"]), of("rounded", &on("cpu")));
    let far = whole.iter().zip(&rounded).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(far > 0.0 && far < 0.02, "{whole:?}, {rounded:?}");
    // It goes on to the same end.
    let flags = [&on("cpu")[..], &["--steps", "9", "--set", "checkpoint.every=4"]].concat();
    train("llama_tied", &data, &run, &flags).assert().success();
    let newest = run.join("checkpoints/step-00000009");
    let bytes = fs::read(newest.join("weights.safetensors")).unwrap();
    fs::remove_dir_all(&newest).unwrap();
    engine().args(["train", "--json", "--resume", "--out"]).arg(&run).assert().success();
    assert!(bytes == fs::read(newest.join("weights.safetensors")).unwrap());
}
