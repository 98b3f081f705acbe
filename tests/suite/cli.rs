//! The commands, as a user types them, on a tiny model.

use crate::bad_input::{change_weights, copied};
use crate::support::numbers;
use assert_cmd::Command;
use predicates::prelude::*;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

pub fn engine() -> Command {
    Command::cargo_bin("gems-engine").unwrap()
}

pub fn golden_model(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models").join(name)
}

/// A data directory of 12 items and two tasks, and general text.
pub fn world(dir: &Path) -> PathBuf {
    let data = dir.join("world");
    fs::create_dir_all(&data).unwrap();
    let lines = |rows: Vec<Value>| rows.iter().map(|r| format!("{r}\n")).collect::<String>();
    let words = ["red", "blue", "green", "oak"];
    let items =
        (0..12).map(|i| json!({"item": format!("i{i}"), "text": format!("{} desk {i}", words[i % 4])}));
    fs::write(data.join("items.jsonl"), lines(items.collect())).unwrap();
    let split = |n: usize, shift: usize| {
        let row = |k: usize| {
            let (a, b, c) = ((k * 5 + shift) % 12, (k * 7 + 1) % 12, (k * 3 + 2 * shift) % 12);
            let (history, target) = (json!([format!("i{a}"), format!("i{b}")]), json!([format!("i{c}")]));
            match k % 3 {
                0 => {
                    json!({"task": "search", "history": history, "query": format!("{} desk", words[c % 4]), "target": target})
                }
                _ => json!({"task": "rec", "history": history, "target": target}),
            }
        };
        lines((0..n).map(row).collect())
    };
    fs::write(data.join("train.jsonl"), split(60, 0)).unwrap();
    fs::write(data.join("valid.jsonl"), split(12, 1)).unwrap();
    fs::write(data.join("test.jsonl"), split(15, 2)).unwrap();
    let text: String =
        (0..60).map(|i| format!("the {} desk number {i} stands by a green kettle\n", words[i % 4])).collect();
    fs::write(data.join("general.txt"), text).unwrap();
    data
}

/// Settings of a short run.
pub const FAST: &[&str] = &[
    "--set",
    "gems.rank=4",
    "--set",
    "gems.refresh_every=5",
    "--set",
    "gems.refresh_window=2",
    "--set",
    "train.batch=8",
    "--set",
    "train.probe_batches=2",
    "--set",
    "train.validate_every=4",
    "--set",
    "train.warmup_steps=2",
    "--set",
    "data.item_token=<new_{}>",
];

pub fn train(model: &str, data: &Path, out: &Path, more: &[&str]) -> Command {
    let mut command = engine();
    command.args(["train", "--json", "--model"]).arg(golden_model(model)).arg("--data").arg(data);
    command.arg("--out").arg(out).args(FAST).args(more);
    command
}

fn result(output: &[u8]) -> Value {
    serde_json::from_str(String::from_utf8_lossy(output).lines().last().unwrap()).unwrap()
}

/// The values of a key in the metrics log of a run.
fn logged(out: &Path, key: &str) -> Vec<f64> {
    let log = fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    log.lines().filter_map(|l| serde_json::from_str::<Value>(l).unwrap().get(key)?.as_f64()).collect()
}

/// What a run of 7 steps computes: the loss of every step, then the logarithm of the perplexity, in nats a token like them.
pub fn losses(model: &Path, data: &Path, out: &Path, more: &[&str]) -> Vec<f64> {
    // The machine takes its time: little general text.
    let few = ["--steps", "7", "--set", "null_space.tokens=200", "--set", "rehearsal.texts=4"];
    let done = train(model.to_str().unwrap(), data, out, &[&few[..], more].concat()).assert().success();
    let perplexity = result(&done.get_output().stdout)["after"]["general"]["perplexity"].as_f64().unwrap();
    let losses = [logged(out, "loss"), vec![perplexity.ln()]].concat();
    assert!(losses.len() == 8 && losses.iter().all(|loss| loss.is_finite()), "{losses:?}");
    losses
}

/// A copy of a golden model whose weights are moved by about a rounding, up or down.
fn moved(model: &str, seed: u64, dir: &Path) -> PathBuf {
    let model = copied(model, &dir.join(format!("moved-{seed}")));
    change_weights(&model, |weights| {
        for (_, values) in weights.values_mut() {
            let by = numbers(seed, values.len());
            values.iter_mut().zip(by).for_each(|(x, by)| *x *= 1.0 + 0.5 * f32::EPSILON * by);
        }
    });
    model
}

/// The largest distance of `others` from `losses` up to each of these, as a share.
fn parted(losses: &[f64], others: &[Vec<f64>]) -> Vec<f64> {
    let mut most = 0.0;
    let at = |i: usize| others.iter().map(move |other| (other[i] - losses[i]).abs() / losses[i]);
    let up_to = |i| {
        most = at(i).fold(most, f64::max);
        most
    };
    (0..losses.len()).map(up_to).collect()
}

/// Trains on the SIMT machine as on the CPU. In f32 a loss may be off by four times what the CPU's own have been off by when
/// the weights that they start from are moved by a rounding: so much is the order of sums.
fn kernels_train(model: &str, precisions: &[&str], more: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let data = world(dir.path());
    let run = |name: &str, model: &Path, own: &[&str]| {
        losses(model, &data, &dir.path().join(name), &[more, own].concat())
    };
    let (golden, on_cpu) = (golden_model(model), ["--device", "cpu"]);
    let cpu = run("cpu", &golden, &on_cpu);
    let others = (0..6).map(|seed| run(&format!("cpu-{seed}"), &moved(model, seed, dir.path()), &on_cpu));
    let rounding = parted(&cpu, &others.collect::<Vec<_>>());
    for precision in precisions {
        let set = format!("precision={precision}");
        let simt = run(precision, &golden, &["--device", "simt", "--set", &set]);
        let far = parted(&cpu, std::slice::from_ref(&simt));
        for (i, (far, rounding)) in far.iter().zip(&rounding).enumerate() {
            let allowed = if *precision == "f32" { 2e-6 + 4.0 * rounding } else { 0.02 };
            let what = format!("{model} {precision}, loss {i}");
            assert!(*far <= allowed, "{what}: {far:.1e} > {allowed:.1e}, {cpu:?}, {simt:?}");
        }
    }
}

#[test]
fn the_kernels_train_as_the_cpu_does() {
    kernels_train("qwen2_bias", &["f32"], &[]);
}

#[test]
#[ignore = "slow: five minutes; `just test-all`"]
fn the_kernels_train_as_the_cpu_does_in_bf16_and_with_an_encoder() {
    kernels_train("qwen2_bias", &["bf16"], &[]);
    kernels_train("t5_v11", &["f32"], &["--set", "data.item_identity=text"]);
    // A decoder that answers in one token reads nothing but the token that it starts with: gradients of its first layer are of
    // rank one, and of self-attention's queries and keys there are none. What else their bases hold is rounding, and so are
    // Adam's steps along it. The losses do not see these until the pull at the refresh turns some of them elsewhere: then a
    // rounding is parts of ten thousand.
    kernels_train("t5_v11", &["f32", "bf16"], &[]);
}

#[test]
fn train_evaluate_rank_and_export_on_every_family() {
    let dir = tempfile::tempdir().unwrap();
    let data = world(dir.path());
    for model in ["llama_tied", "qwen3_qknorm", "t5_v10"] {
        let out = dir.path().join(model);
        let more = ["--steps", "8", "--set", "train.best_metric=loss"];
        let done = train(model, &data, &out, &more).assert().success();
        let result = result(&done.get_output().stdout);
        for when in ["before", "after"] {
            for task in ["rec", "search"] {
                assert!(result[when][task]["ndcg@10"].is_number(), "{model} {when} {task}");
                assert!(result[when][task]["hit@10"].is_number());
            }
            for metric in ["perplexity", "kl", "item_mass"] {
                assert!(result[when]["general"][metric].is_number(), "{model} {when} {metric}");
            }
        }
        assert!(result["before"]["general"]["kl"].as_f64().unwrap() < 1e-6);
        for phase in ["reading the data", "loading the model", "first bases", "training", "validating"] {
            assert!(
                result["phases"][phase].as_f64().is_some_and(|s| s >= 0.0),
                "{model} {phase}: {}",
                result["phases"]
            );
        }
        let log = fs::read_to_string(out.join("metrics.jsonl")).unwrap();
        let steps: Vec<Value> = log.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        // A line a step, whatever else belongs to it, and one of the validation before the first.
        let numbers: Vec<u64> = steps.iter().map(|l| l["step"].as_u64().unwrap()).collect();
        assert_eq!(numbers, (0..=8).collect::<Vec<u64>>());
        let steps = &steps[1..];
        assert!(steps.iter().all(|l| l["loss"].is_number()));
        for loss in ["valid.loss", "valid.rec.loss", "valid.search.loss"] {
            assert!(steps[3][loss].as_f64().is_some_and(|v| v > 0.0), "{loss} in {}", steps[3]);
        }
        // 4 of the 12 validation records search, and all have as many labels.
        let loss = |name: &str| steps[3][name].as_f64().unwrap();
        let mean = (8.0 * loss("valid.rec.loss") + 4.0 * loss("valid.search.loss")) / 12.0;
        assert!((loss("valid.loss") - mean).abs() < 1e-6 * mean);
        let better = steps[7]["valid.loss"].as_f64() < steps[3]["valid.loss"].as_f64();
        assert_eq!(steps[7]["best"], better);
        assert!(steps[3].get("valid.rec.ndcg@10").is_some() && steps[0].get("energy.shared").is_some());
        let line = steps.iter().find(|l| l.get("cosine.search.rec").is_some()).unwrap();
        for key in [
            "step",
            "loss",
            "loss.rec",
            "lr",
            "update_norm",
            "gradient_norm",
            "gate.search",
            "tokens_per_second",
        ] {
            assert!(line.get(key).is_some(), "{key} in {line}");
        }
        assert!(steps.iter().any(|l| l.get("energy.shared").is_some() && l.get("room").is_some()));
        assert!(out.join("model/model.safetensors").is_file());
        let told = fs::read_to_string(out.join("log.txt")).unwrap();
        for text in
            ["train", "saved a checkpoint after step 8", "validated after step 4", "all steps are done"]
        {
            assert!(told.contains(text), "{text:?} in {told}");
        }

        let evaluated = engine()
            .args(["evaluate", "--json", "--run"])
            .arg(&out)
            .arg("--trec")
            .arg(out.join("trec"))
            .assert()
            .success();
        let again: Value = serde_json::from_slice(&evaluated.get_output().stdout).unwrap();
        assert_eq!(again["result"]["rec"], result["after"]["rec"], "{model}");
        assert!(out.join("trec/test.run").is_file() && out.join("trec/test.qrels").is_file());

        // The few requests are told of, and the line that a run prints as an example works.
        let few = engine().args(["evaluate", "--run"]).arg(&out).assert().success();
        few.stdout(
            predicate::str::contains("5 requests only").and(predicate::str::contains("items ever shown")),
        );
        let mut few = engine();
        few.args(["evaluate", "--set", "evaluate.records=2", "--run"]).arg(&out);
        few.assert().success().stdout(predicate::str::contains("items ever shown").not());
        let example = result["example"].as_str().unwrap();
        assert!(
            example.starts_with("gems-engine rank --run ") && example.contains(" --history=i"),
            "{example}"
        );
        let shown = std::process::Command::new("sh")
            .args(["-c", &example.replacen("gems-engine", env!("CARGO_BIN_EXE_gems-engine"), 1)])
            .output()
            .unwrap();
        assert!(shown.status.success(), "{example}: {}", String::from_utf8_lossy(&shown.stderr));
        for (asked, said) in [
            (["--history", "i1,j2"], "there is no item \"j2\""),
            (["--history", "i1,I1"], "did you mean \"i1\"?"),
            (["--task", "serch"], "did you mean \"search\"?"),
            (["--top", "0"], "--top"),
        ] {
            let mut command = engine();
            command.args(["rank", "--query", "red", "--run"]).arg(&out).args(asked);
            command.assert().code(2).stderr(predicate::str::contains(said));
        }

        let ranked = engine()
            .args(["rank", "--json", "--history", "i1,i2", "--query", "red desk", "--top", "3", "--run"])
            .arg(&out)
            .assert()
            .success();
        let ranked: Value = serde_json::from_slice(&ranked.get_output().stdout).unwrap();
        assert_eq!(ranked["items"].as_array().unwrap().len(), 3);

        for format in ["merged", "peft"] {
            let to = dir.path().join(format!("{model}-{format}"));
            let written = engine()
                .args(["export", "--json", "--rank", "1.0", "--format", format, "--out"])
                .arg(&to)
                .arg("--run")
                .arg(&out)
                .assert()
                .success();
            let written: Value = serde_json::from_slice(&written.get_output().stdout).unwrap();
            // What a stranger needs to ask it (benches/peers/check_cards.py runs the card's code).
            let about = fs::read_to_string(to.join("gems.json")).unwrap();
            let about: Value = serde_json::from_str(&about).unwrap();
            assert!(about["prompts"]["search"].as_str().unwrap().contains("{{ query }}"), "{about}");
            let card = fs::read_to_string(to.join("README.md")).unwrap();
            let loads = match (format, model.starts_with("t5")) {
                ("merged", false) => "AutoModelForCausalLM.from_pretrained",
                ("merged", true) => "AutoModelForSeq2SeqLM.from_pretrained",
                (_, false) => "AutoPeftModelForCausalLM.from_pretrained",
                (_, true) => "AutoPeftModelForSeq2SeqLM.from_pretrained",
            };
            assert!(card.contains(loads) && !card.contains("{%"), "{card}");
            assert!(
                written["largest_logit_difference"].as_f64().unwrap() < 1e-3,
                "{model} {format} {written}"
            );
        }
    }
}

#[test]
fn every_method_and_identity_trains() {
    let dir = tempfile::tempdir().unwrap();
    let data = world(dir.path());
    for method in ["galore", "lora", "full", "rows"] {
        let out = dir.path().join(method);
        train("llama_tied", &data, &out, &["--steps", "3", "--method", method]).assert().success();
    }
    for identity in ["text", "semantic"] {
        let out = dir.path().join(identity);
        let key = format!("data.item_identity={identity}");
        let more = [
            "--steps",
            "3",
            "--set",
            &key,
            "--set",
            "data.semantic.codes=4",
            "--set",
            "data.semantic.levels=2",
        ];
        train("llama_tied", &data, &out, &more).assert().success();
    }
    let out = dir.path().join("published");
    let more = ["--steps", "3", "--preset", "published"];
    train("t5_v10", &data, &out, &more).assert().success();
    let matched = dir.path().join("matched");
    let reference = dir.path().join("galore");
    let reference = reference.to_str().unwrap();
    train("llama_tied", &data, &matched, &["--steps", "3", "--match-step", reference]).assert().success();
    let norms = |run: &Path| -> Vec<f64> {
        let log = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
        log.lines()
            .filter_map(|l| serde_json::from_str::<Value>(l).unwrap()["update_norm"].as_f64())
            .collect()
    };
    for (a, b) in norms(&matched).iter().zip(norms(&dir.path().join("galore"))) {
        assert!((a - b).abs() < 1e-4 * b, "{a} not {b}");
    }

    let compare = |names: &[&str]| {
        let runs = names.iter().map(|n| dir.path().join(n));
        engine().args(["compare", "--json"]).args(runs).assert()
    };
    let done = compare(&["galore", "matched", "full"]).success();
    let compared = result(&done.get_output().stdout);
    assert_eq!(compared["runs"][0]["settings"]["optimizer"], Value::Null, "settings have dotted keys");
    assert_eq!(compared["runs"][1]["settings"]["optimizer.beta1"], 0.9);
    assert_eq!(compared["runs"][2]["settings"]["gems.method"], "full");
    for (run, name) in [(0, "galore"), (1, "matched"), (2, "full")] {
        let mean = norms(&dir.path().join(name)).iter().sum::<f64>() / 3.0;
        let told = compared["runs"][run]["training"]["mean_update_norm"].as_f64().unwrap();
        assert!((told - mean).abs() < 1e-9 * mean, "{name}: {told} not {mean}");
        assert!(compared["runs"][run]["rec"]["ndcg@10"].is_number());
    }
    // Only the run whose steps are of another length is warned of.
    let notes: Vec<&str> =
        compared["notes"].as_array().unwrap().iter().map(|n| n.as_str().unwrap()).collect();
    assert!(notes.len() == 1 && notes[0].starts_with("full: its steps are"), "{notes:?}");
    // Other data, another model, other batches, steps and measuring: all of it is said.
    let other = dir.path().join("elsewhere");
    fs::create_dir(&other).unwrap();
    let other = world(&other);
    let more =
        ["--steps", "2", "--set", "train.batch=6", "--set", "evaluate.records=3", "--set", "train.lr=0.002"];
    train("qwen2_bias", &other, &dir.path().join("far/galore"), &more).assert().success();
    fs::create_dir(dir.path().join("begun")).unwrap();
    fs::write(dir.path().join("begun/config.toml"), "").unwrap();
    let done = compare(&["galore", "far/galore", "begun"]).success();
    let compared = result(&done.get_output().stdout);
    let notes = compared["notes"].to_string();
    for said in [
        "begun: has not finished",
        "/galore was tuned and judged on other data",
        "far/galore began from another model",
        "far/galore was measured in another way",
        "(evaluate.records)",
        "far/galore has other batches",
        "far/galore took 2 steps",
    ] {
        assert!(notes.contains(said), "{said:?} in {notes}");
    }
    let runs = ["galore", "far/galore"].map(|n| dir.path().join(n));
    engine()
        .arg("compare")
        .args(runs)
        .assert()
        .success()
        .stdout(predicate::str::contains("train.lr").and(predicate::str::contains("evaluate --run")));
    compare(&["galore", "nowhere"]).code(1).stderr(predicate::str::contains("a run that has finished"));
}

/// One basis, whatever is asked of it afterwards: `basis`, `doctor` and `train` say what it holds and protects.
#[test]
fn a_basis_says_what_it_knows_and_protects() {
    let dir = tempfile::tempdir().unwrap();
    let (data, basis) = (world(dir.path()), dir.path().join("basis.safetensors"));
    let learn = |sets: &[&str]| -> Value {
        let mut command = engine();
        command.args(["basis", "--json", "--data"]).arg(&data).arg("--model").arg(golden_model("llama_tied"));
        command.arg("--out").arg(&basis).args(["--set", "data.item_token=<new_{}>"]);
        command.args(sets.iter().flat_map(|set| ["--set", set]));
        serde_json::from_slice(&command.assert().success().get_output().stdout).unwrap()
    };
    // By hand: where nobody chooses, no direction is protected by itself.
    let told = learn(&["gems.rank=4", "gems.targets=[\"q\", \"down\"]", "null_space.side=input"]);
    let bytes = fs::read(&basis).unwrap();
    let (layers, adapted) = (told["layers"].as_u64().unwrap(), told["adapted"].as_u64().unwrap());
    assert!(layers == 14 && adapted == 4 && told["unprotected"] == 0, "{told}");
    assert!(!dir.path().join("basis.safetensors.partial").exists());
    let spaces = told["spaces"].as_array().unwrap();
    assert_eq!(spaces.len(), 2 * 4 + 1, "four inputs a block, and the final hidden states");
    for space in spaces {
        let of = |name: &str| space[name].as_f64().unwrap();
        let adapted =
            space["serves"].as_array().unwrap().iter().any(|s| s != "o" && s != "gate" && s != "up");
        assert_eq!((of("kept"), of("kept_energy")), (of("dimensions"), 1.0), "{space}");
        assert_eq!(of("protected") > 0.0, adapted, "{space}");
        assert!(of("protected") + of("free") == of("dimensions"), "{space}");
        assert!((of("energy") + of("free_energy") - 1.0).abs() < 1e-12, "{space}");
    }
    // Rank, targets and energy are chosen later: they do not change the file.
    learn(&["gems.rank=8", "null_space.value=0.5", "null_space.criterion=ratio"]);
    assert!(bytes == fs::read(&basis).unwrap());
    let doctor = |model: &str| {
        let mut command = engine();
        command.args(["doctor", "--json", "--model"]).arg(golden_model(model)).arg("--basis").arg(&basis);
        let said = command.arg("--out").arg(dir.path()).assert().get_output().stdout.clone();
        serde_json::from_slice::<Value>(&said).unwrap()
    };
    assert_eq!(doctor("llama_tied")["knowledge"]["spaces"].as_array().unwrap().len(), spaces.len());
    let other = doctor("qwen2_bias");
    let check = other["checks"].as_array().unwrap().iter().find(|c| c["name"] == "knowledge").unwrap();
    assert!(
        check["status"] == "FAIL" && check["found"].as_str().unwrap().contains("another model"),
        "{check}"
    );
    let out = dir.path().join("run");
    train("llama_tied", &data, &out, &["--steps", "1", "--basis", basis.to_str().unwrap()])
        .assert()
        .success();
    assert!(fs::read(out.join("basis.safetensors")).unwrap() == bytes);
    let log = fs::read_to_string(out.join("log.txt")).unwrap();
    assert!(log.contains("layers.0.self_attn.q_proj") && log.contains("protected (energy)"), "{log}");
}

#[test]
fn resuming_gives_the_same_weights_as_going_on() {
    let dir = tempfile::tempdir().unwrap();
    let data = world(dir.path());
    let whole = dir.path().join("whole");
    let every = ["--steps", "9", "--set", "checkpoint.every=3", "--set", "checkpoint.keep=9"];
    train("llama_tied", &data, &whole, &every).assert().success();
    let part = dir.path().join("part");
    fs::create_dir_all(part.join("checkpoints")).unwrap();
    for entry in fs::read_dir(&whole).unwrap().map(Result::unwrap).filter(|e| e.path().is_file()) {
        fs::copy(entry.path(), part.join(entry.file_name())).unwrap();
    }
    for entry in fs::read_dir(whole.join("checkpoints")).unwrap() {
        let from = entry.unwrap().path();
        let name = from.file_name().unwrap().to_str().unwrap().to_string();
        if name.as_str() > "step-00000006" {
            continue;
        }
        fs::create_dir_all(part.join("checkpoints").join(&name)).unwrap();
        for entry in fs::read_dir(&from).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, part.join("checkpoints").join(&name).join(path.file_name().unwrap())).unwrap();
        }
    }
    engine().args(["train", "--json", "--resume", "--out"]).arg(&part).assert().success();
    for file in ["weights.safetensors", "optimizer.safetensors"] {
        let at = |run: &Path| fs::read(run.join("checkpoints/step-00000009").join(file)).unwrap();
        assert!(at(&whole) == at(&part), "{file} differs");
    }
    let losses = |run: &Path| -> Vec<(u64, String)> {
        let log = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
        let all = log.lines().map(|l| serde_json::from_str::<Value>(l).unwrap());
        all.filter(|l| l.get("loss").is_some())
            .map(|l| (l["step"].as_u64().unwrap(), l["loss"].to_string()))
            .collect()
    };
    assert_eq!(losses(&whole), losses(&part));
}

/// The demo is what is run when nothing is named, and not what lies in a directory of that name.
#[test]
fn data_of_ones_own_in_a_directory_called_demo_is_not_the_demo() {
    let dir = tempfile::tempdir().unwrap();
    let short = [
        "--steps",
        "1",
        "--device",
        "cpu",
        "--set",
        "train.evaluate_before=false",
        "--set",
        "train.evaluate_after=false",
        "--set",
        "train.export=false",
        "--set",
        "train.validate_every=0",
        "--set",
        "null_space.side=none",
        "--set",
        "null_space.item_rows=0.0",
    ];
    let legend = "what is bought next";
    fs::create_dir(dir.path().join("demo")).unwrap();
    fs::rename(world(dir.path()), dir.path().join("demo/data")).unwrap();
    let mut command = engine();
    command.current_dir(dir.path()).args(["train", "--data", "demo/data", "--model"]);
    let own = command.arg(golden_model("llama_tied")).args(FAST).args(short).assert().success();
    own.stdout(predicate::str::contains(legend).not());
    assert!(dir.path().join("runs/data/metrics.jsonl").is_file());
    assert!(!dir.path().join("runs/demo").exists());

    let demo = engine().current_dir(dir.path()).arg("train").args(short).assert().success();
    demo.stdout(predicate::str::contains(legend)).stderr(predicate::str::contains("the embedded demo"));
    assert!(dir.path().join("runs/demo/demo/data/train.jsonl").is_file());
    let mut command = engine();
    command.current_dir(dir.path()).args(["train", "--resume", "--steps", "2", "--out", "runs/demo"]);
    let resumed = command.assert().success();
    resumed.stdout(predicate::str::contains(legend)).stderr(predicate::str::contains("embedded demo").not());
}

#[test]
fn what_cannot_work_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let data = world(dir.path());
    let out = dir.path().join("run");
    let fails = |more: &[&str], code: i32, message: &str| {
        let run = dir.path().join(format!("fails-{}", message.len() + more.len()));
        train("llama_tied", &data, &run, more)
            .assert()
            .code(code)
            .stderr(predicate::str::contains(message.to_string()));
    };
    fails(&["--set", "gems.rnak=3"], 2, "gems.rank");
    fails(&["--set", "gems.rank=0"], 2, "gems.rank: 0 is out of range");
    fails(&["--set", "gems.rank=60"], 2, "gems.rank");
    fails(&["--method", "magic"], 2, "magic");
    fails(&["--device", "cuda:x"], 2, "cuda:x");
    fails(&["--set", "train.best_metric=fame"], 2, "one of hit@1");
    fails(&["--set", "train.best_metric=rec.ndcg@7"], 2, "rec.ndcg@7");
    train("llama_tied", &dir.path().join("nowhere"), &out, &[])
        .assert()
        .failure()
        .stderr(predicate::str::contains("nowhere"));
    engine().args(["train", "--resume", "--out"]).arg(dir.path().join("none")).assert().code(2);
    engine()
        .args(["rank", "--run"])
        .arg(dir.path())
        .assert()
        .code(2)
        .stderr(predicate::str::contains("config.toml"));

    let basis = dir.path().join("basis.safetensors");
    engine()
        .args(["basis", "--json", "--data"])
        .arg(&data)
        .arg("--model")
        .arg(golden_model("qwen2_bias"))
        .arg("--out")
        .arg(&basis)
        .args(["--set", "gems.rank=4", "--set", "data.item_token=<new_{}>"])
        .assert()
        .success();
    fails(&["--basis", basis.to_str().unwrap()], 2, "another model");

    train("llama_tied", &data, &out, &["--dry-run"])
        .assert()
        .success()
        .stdout(predicate::str::contains("memory_mb"));
    assert!(!out.exists());
    train("llama_tied", &data, &out, &["--steps", "1"]).assert().success();
    train("llama_tied", &data, &out, &["--steps", "1"])
        .assert()
        .code(2)
        .stderr(predicate::str::contains("already holds a run"));
}

#[test]
fn machines_get_a_line_a_step_the_result_last_and_errors_as_json() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (world(dir.path()), dir.path().join("run"));
    let done = train("llama_tied", &data, &out, &["--steps", "5"]).assert().success();
    let text = String::from_utf8_lossy(&done.get_output().stdout).into_owned();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let log = fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    let kept: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(kept.len(), 6, "five steps, and the validation before them");
    assert_eq!(lines[..6], kept[..], "the lines of the log, as they are written");
    assert!(lines.len() == 7 && lines[6].get("after").is_some(), "{text}");

    for (args, what) in [
        (vec!["train", "--json", "--out", out.to_str().unwrap()], "already holds a run"),
        (vec!["rank", "--json", "--run", "nowhere"], "not a run directory"),
        (vec!["rank", "--json"], "--run"),
    ] {
        let failed = engine().args(&args).assert().code(2);
        let said = String::from_utf8_lossy(&failed.get_output().stderr).into_owned();
        let said: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
        let error = said["error"]["what"].as_str().unwrap();
        assert!(error.contains(what) && said["exit_code"] == 2, "{args:?}: {said}");
    }
}

#[test]
fn a_gradient_that_is_not_finite_stops_the_run_with_its_batch() {
    let dir = tempfile::tempdir().unwrap();
    let data = world(dir.path());
    let out = dir.path().join("run");
    let wild = [
        "--steps",
        "40",
        "--method",
        "full",
        "--set",
        "train.lr=1e30",
        "--set",
        "train.max_bad_steps=3",
        "--set",
        "train.validate_every=0",
        "--set",
        "null_space.side=none",
    ];
    train("llama_tied", &data, &out, &wild).assert().code(1).stderr(predicate::str::contains("not finite"));
    assert!(
        fs::read_dir(&out).unwrap().any(|e| e
            .unwrap()
            .file_name()
            .to_string_lossy()
            .starts_with("bad-batch"))
    );
}

#[test]
fn a_model_that_knows_nothing_of_its_items_is_worth_chance() {
    // Items without texts begin alike, so every score ties; the targets come first in the catalogue.
    let dir = tempfile::tempdir().unwrap();
    let data = world(dir.path());
    let lines = |rows: Vec<Value>| rows.iter().map(|r| format!("{r}\n")).collect::<String>();
    fs::write(data.join("items.jsonl"), lines((0..12).map(|i| json!({"item": format!("i{i}")})).collect()))
        .unwrap();
    let row = |k: usize| json!({"task": "rec", "history": [format!("i{}", k + 3)], "target": [format!("i{}", k % 2)]});
    for split in ["train", "valid", "test"] {
        fs::write(data.join(format!("{split}.jsonl")), lines((0..6).map(row).collect())).unwrap();
    }
    let places = |k: usize| (0..k).map(|i| 1.0 / ((i + 2) as f64).log2()).sum::<f64>() / 12.0;
    for model in ["llama_tied", "llama_untied_rope3", "t5_v11"] {
        let out = dir.path().join(model);
        let more = ["--steps", "0", "--set", "train.export=false", "--set", "evaluate.k=[1, 5, 10]"];
        let done = train(model, &data, &out, &more).assert().success();
        let result = result(&done.get_output().stdout);
        for (metric, want) in [
            ("hit@1", 1.0 / 12.0),
            ("hit@5", 5.0 / 12.0),
            ("recall@10", 10.0 / 12.0),
            ("ndcg@5", places(5)),
            ("ndcg@10", places(10)),
        ] {
            let got = result["before"]["rec"][metric].as_f64().unwrap();
            assert!((got - want).abs() < 1e-9, "{model} {metric}: {got}, by chance {want}");
        }
        assert!(result["before"]["rec"].get("ndcg@1").is_none());
        let mut told = engine();
        told.args(["evaluate", "--run"])
            .arg(&out)
            .assert()
            .success()
            .stdout(predicate::str::contains("6 requests only"));
    }
}
