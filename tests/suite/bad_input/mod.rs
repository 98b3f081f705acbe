//! What a user can get wrong, as a user meets it: the message says what, where and what to do, nothing is lost.

mod fuzz;
mod hostile;
#[cfg(unix)]
mod signals;

use crate::cli::{FAST, engine, golden_model, train, world};
use gems_engine::data::{DataSettings, Dataset, Sampler, StepSize};
use predicates::prelude::*;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Fails with `code` and says everything in `said`.
#[track_caller]
fn refused(mut command: assert_cmd::Command, code: i32, said: &[&str]) {
    let mut run = command.assert().code(code).stderr(predicate::str::contains("panicked").not());
    for part in said {
        run = run.stderr(predicate::str::contains(part.to_string()));
    }
}

/// A copy of a golden model that may be damaged.
pub fn copied(name: &str, dir: &Path) -> PathBuf {
    let to = dir.join(name);
    fs::create_dir_all(&to).unwrap();
    for entry in fs::read_dir(golden_model(name)).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
    to
}

pub type Stored = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// Rewrites a model's weights.
pub fn change_weights(model: &Path, change: impl FnOnce(&mut Stored)) {
    let path = model.join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let mut all: Stored = safetensors::SafeTensors::deserialize(&bytes)
        .unwrap()
        .tensors()
        .into_iter()
        .map(|(name, v)| {
            let values =
                v.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
            (name, (v.shape().to_vec(), values))
        })
        .collect();
    change(&mut all);
    let views = all.iter().map(|(name, (shape, values))| {
        (name, TensorView::new(Dtype::F32, shape.clone(), bytemuck::cast_slice(values)).unwrap())
    });
    fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
}

pub fn change_json(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut json: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    change(&mut json);
    fs::write(path, json.to_string()).unwrap();
}

#[test]
fn broken_checkpoints() {
    let dir = tempfile::tempdir().unwrap();
    let data = world(dir.path());
    let broken = |name: &str, damage: &dyn Fn(&Path), said: &[&str]| {
        let model = copied("llama_tied", &dir.path().join(name));
        damage(&model);
        let out = dir.path().join(format!("{name}-run"));
        let mut command = engine();
        command.args(["train", "--json", "--steps", "1", "--data"]).arg(&data).arg("--out").arg(&out);
        command.arg("--model").arg(&model);
        refused(command, 1, said);
        assert!(!out.join("checkpoints").exists(), "{name}");
    };
    let q = "model.layers.1.self_attn.q_proj.weight";
    let weights = |model: &Path| fs::read(model.join("model.safetensors")).unwrap();
    let write = |model: &Path, bytes: &[u8]| fs::write(model.join("model.safetensors"), bytes).unwrap();
    broken("missing", &|m| change_weights(m, |w| drop(w.remove(q))), &[&format!("{q} is missing"), "try:"]);
    broken(
        "extra",
        &|m| change_weights(m, |w| drop(w.insert("surplus".into(), (vec![1], vec![0.0])))),
        &["surplus is unknown"],
    );
    broken(
        "narrow",
        &|m| change_weights(m, |w| drop(w.insert(q.into(), (vec![2, 3], vec![0.0; 6])))),
        &[q, "[2, 3]"],
    );
    broken(
        "nan",
        &|m| change_weights(m, |w| w.get_mut(q).unwrap().1[5] = f32::NAN),
        &[q, "NaN", "element 5"],
    );
    broken(
        "truncated",
        &|m| write(m, &weights(m)[..weights(m).len() / 2]),
        &["not a whole safetensors file"],
    );
    broken("empty", &|m| write(m, &[]), &["safetensors"]);
    broken(
        "lying length",
        &|m| {
            let mut bytes = weights(m);
            bytes[..8].copy_from_slice(&(u64::MAX / 2).to_le_bytes());
            write(m, &bytes);
        },
        &["not a whole safetensors file"],
    );
    broken(
        "lying offsets",
        &|m| {
            let bytes = weights(m);
            let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            let header = std::str::from_utf8(&bytes[8..8 + length]).unwrap();
            let lying = header.replacen("\"data_offsets\":[0,", "\"data_offsets\":[4,", 1);
            assert_ne!(lying, header);
            let mut all = (lying.len() as u64).to_le_bytes().to_vec();
            all.extend(lying.bytes());
            all.extend(&bytes[8 + length..]);
            write(m, &all);
        },
        &["not a whole safetensors file"],
    );
    broken("no weights", &|m| fs::remove_file(m.join("model.safetensors")).unwrap(), &["no weights"]);
    broken(
        "architecture",
        &|m| change_json(&m.join("config.json"), |c| c["model_type"] = json!("mamba")),
        &["mamba", "the nearest is llama"],
    );
    broken(
        "layers",
        &|m| change_json(&m.join("config.json"), |c| c["num_hidden_layers"] = json!(16_000_000)),
        &["num_hidden_layers", "1 to 1024"],
    );
    broken(
        "config",
        &|m| fs::write(m.join("config.json"), "{\"model_type\": ").unwrap(),
        &["config.json", "JSON"],
    );
    broken(
        "tokenizer",
        &|m| fs::write(m.join("tokenizer.json"), "{\"version\": \"1.0\"}").unwrap(),
        &["tokenizer.json", "save_pretrained"],
    );
    broken(
        "vocabulary",
        &|m| {
            change_json(&m.join("tokenizer.json"), |t| {
                let id = 4000;
                let token = json!({"id": id, "content": "<far>", "single_word": false, "lstrip": false,
                    "rstrip": false, "normalized": false, "special": false});
                t["added_tokens"].as_array_mut().unwrap().push(token);
                t["model"]["vocab"]["<far>"] = json!(id);
            });
        },
        &["token ids up to 4000", "belongs to this checkpoint"],
    );
}

#[test]
fn t5_fields_outside_what_is_supported() {
    let dir = tempfile::tempdir().unwrap();
    let data = world(dir.path());
    for (i, (field, value, said)) in [
        ("feed_forward_proj", json!("gated-swish"), "relu, gated-gelu, gated-silu"),
        ("d_kv", json!(0), "whole number"),
        ("num_heads", json!("many"), "whole number"),
        ("relative_attention_num_buckets", json!(7), "even number"),
        ("layer_norm_epsilon", json!(-1.0), "positive number"),
        ("num_decoder_layers", json!(4096), "1 to 1024"),
    ]
    .into_iter()
    .enumerate()
    {
        let model = copied("t5_v10", &dir.path().join(i.to_string()));
        change_json(&model.join("config.json"), |c| c[field] = value);
        let mut command = engine();
        command.args(["basis", "--data"]).arg(&data).arg("--model").arg(&model);
        command.arg("--out").arg(dir.path().join("basis.safetensors"));
        refused(command, 1, &[field, said, "config.json"]);
    }
}

#[test]
fn broken_records_and_what_does_not_fit() {
    let dir = tempfile::tempdir().unwrap();
    let data = world(dir.path());
    let rows = fs::read_to_string(data.join("train.jsonl")).unwrap();
    let bad = |name: &str, row: Value, said: &[&str]| {
        fs::write(data.join("train.jsonl"), format!("{rows}{row}\n")).unwrap();
        refused(train("llama_tied", &data, &dir.path().join(name), &["--steps", "1"]), 1, said);
    };
    let line = "train.jsonl line 61";
    bad("task", json!({"task": "sell", "history": ["i1"], "target": ["i2"]}), &[line, "sell", "rec"]);
    bad("history", json!({"task": "rec", "history": [], "target": ["i2"]}), &[line, "history", "empty"]);
    bad("target", json!({"task": "rec", "history": ["i1"], "target": ["i99"]}), &[line, "target[0]", "i99"]);
    bad("none", json!({"task": "rec", "history": ["i1"], "target": []}), &[line, "target"]);
    bad(
        "field",
        json!({"task": "rec", "histroy": ["i1"], "target": ["i2"]}),
        &[line, "histroy", "`history`"],
    );

    // One of them may be tolerated, and is counted.
    let out = dir.path().join("tolerated");
    let more = ["--steps", "1", "--set", "data.skip_bad_rows=1"];
    train("llama_tied", &data, &out, &more).assert().success();
    assert!(fs::read_to_string(out.join("log.txt")).unwrap().contains("1 rows left out: misspelt field"));

    // A history longer than the context keeps its newest items, and is counted.
    let long: Vec<String> = (0..200).map(|i| format!("i{}", i % 12)).collect();
    let row = json!({"task": "rec", "history": long, "target": ["i2"]});
    fs::write(data.join("train.jsonl"), format!("{row}\n").repeat(8)).unwrap();
    let out = dir.path().join("long");
    let more = ["--steps", "2", "--set", "data.max_length=96", "--set", "data.history_limit=0"];
    train("llama_tied", &data, &out, &more).assert().success();
    let log = fs::read_to_string(out.join("log.txt")).unwrap();
    assert!(log.contains("16 of 16 examples had their oldest items left out"), "{log}");
    fs::write(data.join("train.jsonl"), &rows).unwrap();

    let fails = |name: &str, more: &[&str], said: &[&str]| {
        refused(train("llama_tied", &data, &dir.path().join(name), more), 2, said);
    };
    fails("rank", &["--set", "gems.rank=80"], &["gems.rank", "layers.0", "do not fit"]);
    fails(
        "directions",
        &["--set", "null_space.directions=0"],
        &["null_space.directions: 0 is out of range", "1024"],
    );
    // A basis serves any rank and energy; what they leave no room for is refused when it is used.
    let basis = dir.path().join("tight.safetensors");
    engine()
        .args(["basis", "--json", "--set", "gems.rank=1"])
        .args(["--set", "data.item_token=<new_{}>", "--data"])
        .arg(&data)
        .arg("--model")
        .arg(golden_model("llama_tied"))
        .arg("--out")
        .arg(&basis)
        .assert()
        .success();
    let tight = ["null_space.value=1.0", "null_space.room=1", "gems.rank=16"];
    let tight = tight.iter().flat_map(|set| ["--set", set]);
    let more: Vec<&str> = ["--basis", basis.to_str().unwrap()].into_iter().chain(tight).collect();
    fails("room", &more, &["protected", "null_space.value", "gems.rank"]);
    fs::write(&basis, &fs::read(&basis).unwrap()[..100]).unwrap();
    refused(train("llama_tied", &data, &dir.path().join("cut"), &more), 1, &["tight.safetensors"]);
}

/// A world in which one record, of step 3, has a word that nothing else has, and a model in which that word alone makes
/// the first layer's attention scores overflow: its embedding is the only one with a component that q and k enlarge.
fn overflows_in_step_3(dir: &Path) -> (PathBuf, PathBuf) {
    let (data, model) = (world(dir), copied("llama_tied", dir));
    let loaded = Dataset::load(&data, &DataSettings::default()).unwrap();
    let (records, size) = (&loaded.train.records, StepSize::Whole(8));
    let third = Sampler::new(records, &loaded.tasks, &size, 0).unwrap().batch_at(2);
    let at = third.iter().map(|p| p.record as usize).find(|r| records[*r].query.is_some()).unwrap();
    let path = data.join("train.jsonl");
    let mut rows: Vec<Value> =
        fs::read_to_string(&path).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    rows[at]["query"] = json!("@ desk");
    fs::write(&path, rows.iter().map(|r| format!("{r}\n")).collect::<String>()).unwrap();

    let word =
        tokenizers::Tokenizer::from_file(model.join("tokenizer.json")).unwrap().token_to_id("@").unwrap();
    change_weights(&model, |weights| {
        let (width, component) = (64, 7);
        let table = &mut weights.get_mut("model.embed_tokens.weight").unwrap().1;
        for (token, row) in table.chunks_exact_mut(width).enumerate() {
            if token == word as usize {
                row.fill(0.0);
            }
            row[component] = f32::from(u8::from(token == word as usize));
        }
        for name in ["q", "k"] {
            let name = format!("model.layers.0.self_attn.{name}_proj.weight");
            weights.get_mut(&name).unwrap().1[component] = 1e19;
        }
    });
    (data, model)
}

#[test]
fn a_single_step_that_is_not_finite_is_skipped_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (data, model) = overflows_in_step_3(dir.path());
    // On the SIMT machine, as on a GPU, the device decides: the update is launched before anybody knows.
    for (method, device) in [("gems", "cpu"), ("full", "cpu"), ("gems", "simt")] {
        let out = dir.path().join(format!("{method}-{device}"));
        let settings = [
            "checkpoint.every=1",
            "checkpoint.keep=9",
            "optimizer.embeddings=none",
            "null_space.side=none",
            "null_space.item_rows=0.0",
            "train.validate_every=0",
            "train.evaluate_before=false",
            "train.evaluate_after=false",
            "train.export=false",
        ];
        let mut command = engine();
        command
            .args(["train", "--steps", "5", "--method", method, "--device", device, "--model"])
            .arg(&model);
        command.arg("--data").arg(&data).arg("--out").arg(&out).args(FAST);
        command.args(settings.iter().flat_map(|s| ["--set", s]));
        let said = "step 3: loss or gradient is not finite; step skipped";
        command.assert().success().stderr(predicate::str::contains(said));

        let log = fs::read_to_string(out.join("metrics.jsonl")).unwrap();
        let lines: Vec<Value> = log.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!(lines.len(), 5);
        for line in &lines {
            let bad = line["step"] == 3;
            assert_eq!(line["loss"].is_number(), !bad, "{line}");
            assert_eq!(line.get("skipped").cloned(), bad.then(|| json!(1)), "{line}");
        }
        let told = fs::read_to_string(out.join("log.txt")).unwrap();
        assert_eq!(told.matches("step skipped").count(), 1, "{told}");
        // After the step, weights and moments are those before it, to the bit; other steps change them.
        let of = |step: usize, file: &str| {
            fs::read(out.join(format!("checkpoints/step-{step:08}/{file}.safetensors"))).unwrap()
        };
        for file in ["weights", "optimizer"] {
            assert!(of(3, file) == of(2, file), "{method} on {device}: the skipped step changed {file}");
            assert!(
                of(2, file) != of(1, file) && of(4, file) != of(3, file),
                "{method} on {device}: {file} never changes"
            );
        }
    }
}

/// The engine under a limit on the size of files it writes (in KiB), as on a full disk.
fn limited(kib: u64, args: &[&str]) -> assert_cmd::Command {
    let program = assert_cmd::cargo::cargo_bin("gems-engine");
    let line = format!("trap '' XFSZ; ulimit -f {}; exec \"$0\" \"$@\"", kib * 2);
    let mut command = assert_cmd::Command::new("sh");
    command.arg("-c").arg(line).arg(program).args(args);
    command
}

fn strings(command: &assert_cmd::Command) -> Vec<String> {
    command.get_args().map(|a| a.to_string_lossy().into_owned()).collect()
}

#[test]
fn a_full_disk_leaves_the_last_checkpoint_and_no_half_export() {
    let dir = tempfile::tempdir().unwrap();
    let data = world(dir.path());
    let out = dir.path().join("run");
    let more = ["--steps", "4", "--set", "checkpoint.every=2", "--set", "train.export=false"];
    train("llama_tied", &data, &out, &more).assert().success();
    let checkpoints = |out: &Path| -> Vec<String> {
        let entries = fs::read_dir(out.join("checkpoints")).unwrap();
        let mut names: Vec<String> =
            entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    };
    let before = checkpoints(&out);
    let resume = ["train", "--json", "--resume", "--steps", "8", "--out", out.to_str().unwrap()];
    refused(limited(40, &resume), 1, &["cannot write", "checkpoints", "try:"]);
    assert_eq!(checkpoints(&out), before, "nothing half-written stays, nothing whole goes");
    engine().args(resume).assert().success();

    for (format, kib) in [("merged", 60), ("peft", 10)] {
        let to = dir.path().join(format);
        let args =
            ["export", "--format", format, "--run", out.to_str().unwrap(), "--out", to.to_str().unwrap()];
        refused(limited(kib, &args), 1, &["cannot write"]);
        assert!(!to.exists(), "{format}");
        engine().args(args).assert().success();
        assert!(to.join("tokenizer.json").is_file());
    }
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(!left.iter().any(|n| n.to_string_lossy().starts_with(".exporting")), "{left:?}");
}
