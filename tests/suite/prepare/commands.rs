//! The commands, and the way from logs to a tuned model.

use super::{crossing, events, plain, prepare, rows};
use assert_cmd::Command;
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;

fn engine() -> Command {
    Command::cargo_bin("gems-engine").unwrap()
}

fn output(command: &mut Command) -> Value {
    let done = command.assert().success();
    let text = String::from_utf8_lossy(&done.get_output().stdout).into_owned();
    serde_json::from_str(text.lines().last().unwrap()).unwrap()
}

#[test]
fn check_explains_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    prepare(&events(dir.path(), &crossing()), &plain(), &data).unwrap();
    for flags in [vec!["check"], vec!["--check"]] {
        let done = engine().arg("prepare").args(flags).arg(&data).assert().success();
        let text = String::from_utf8_lossy(&done.get_output().stdout).into_owned();
        assert!(text.contains("the directory can be used") && text.contains("no general text"), "{text}");
    }
    // A vocabulary of a few English words cannot write Chinese.
    let golden = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models/t5_v10");
    let foreign = dir.path().join("foreign");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("items.jsonl"), "{\"item\": \"A\"}\n{\"item\": \"B\"}\n").unwrap();
    let line =
        |query: &str| format!("{{\"task\": \"search\", \"query\": \"{query}\", \"target\": [\"A\"]}}\n");
    for split in ["train", "valid", "test"] {
        fs::write(foreign.join(format!("{split}.jsonl")), line("猫的玩具")).unwrap();
    }
    let found =
        output(engine().args(["prepare", "check", "--json"]).arg(&foreign).arg("--model").arg(golden));
    assert_eq!(found["lost_words"]["queries"], 1.0, "{found}");
    let mut train = fs::read_to_string(data.join("train.jsonl")).unwrap();
    train += "{\"task\": \"rec\", \"history\": [\"A\"], \"target\": [\"Z\"]}\n{oops}\n";
    fs::write(data.join("train.jsonl"), train).unwrap();
    fs::write(data.join("valid.jsonl"), "").unwrap();
    let done = engine().args(["prepare", "check"]).arg(&data).assert().code(1);
    let text = String::from_utf8_lossy(&done.get_output().stdout).into_owned();
    for part in ["unknown item", "train.jsonl line 2", "not JSON", "valid has no rows"] {
        assert!(text.contains(part), "no `{part}` in: {text}");
    }
}

#[test]
fn golden_from_logs_to_a_tuned_model_and_back_to_its_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let join = |name: &str| dir.path().join(name);
    let golden = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models/llama_tied");
    let world =
        ["prepare", "synth", "--users", "40", "--items", "60", "--length", "8", "--seed", "5", "--out"];
    let made = output(engine().args(world).arg(join("log")).args(["--events", "--json"]));
    assert_eq!(made["card"]["written"]["rows"]["events"], 320);
    let text = ["prepare", "sample", "--documents", "40", "--length", "12", "--json", "--model"];
    let made = output(engine().args(text).arg(&golden).arg("--out").arg(join("general.jsonl")));
    assert!(made["documents"].as_u64().unwrap() > 20, "{made}");
    let again = output(engine().args(text).arg(&golden).arg("--out").arg(join("again.jsonl")));
    assert_eq!(again["tokens"], made["tokens"]);
    assert_eq!(fs::read(join("general.jsonl")).unwrap(), fs::read(join("again.jsonl")).unwrap());
    let data = join("data");
    let prepare = ["--min-user", "1", "--min-item", "1", "--negatives", "uniform:10", "--json", "--items"];
    let made = output(
        engine()
            .args(["prepare", "events"])
            .arg(join("log/events.jsonl"))
            .args(prepare)
            .arg(join("log/items.jsonl"))
            .arg("--general")
            .arg(join("general.jsonl"))
            .arg("--out")
            .arg(&data),
    );
    assert_eq!(made["card"]["leak_rate"], 0.0);
    let run = |name: &str, seed: &str| {
        let set = [
            "gems.rank=4",
            "gems.refresh_every=4",
            "train.batch=8",
            "data.item_token=<new_{}>",
            "null_space.side=input",
            seed,
        ];
        let mut command = engine();
        command.args(["train", "--json", "--device", "cpu", "--steps", "6", "--model"]).arg(&golden);
        command.arg("--data").arg(&data).arg("--out").arg(join(name));
        command.args(set.iter().flat_map(|s| ["--set", *s]));
        output(&mut command)
    };
    run("a", "seed=1");
    run("b", "seed=2");
    let mut command = engine();
    command.args(["evaluate", "--json", "--device", "cpu", "--layers", "--published-metrics"]);
    let found = output(command.arg("--run").arg(join("a")).arg("--against").arg(join("b")));
    for task in ["rec", "search"] {
        assert!(found["result"][task]["published_ndcg@10"].is_number(), "{found}");
        assert!(found["coverage"][task]["coverage@10"].is_number());
        assert!(found["slices"][task]["history:5-19"]["requests"].is_number());
    }
    // The sampled ranking that comes with the full one is what ranking the stored negatives gives.
    let mut command = engine();
    command.args(["evaluate", "--json", "--device", "cpu", "--set", "evaluate.candidates=given", "--run"]);
    let given = output(command.arg(join("a")));
    for (task, metric) in [("rec", "ndcg@5"), ("rec", "hit@1"), ("search", "mrr@10"), ("search", "recall@5")]
    {
        let full = found["result"][task][format!("sampled_{metric}")].as_f64().unwrap();
        let given = given["result"][task][metric].as_f64().unwrap();
        assert!((full - given).abs() < 1e-9 && full > 0.0, "{task} {metric}: {full}, {given}");
    }
    let pairs = found["against"]["metrics"].as_array().unwrap();
    assert_eq!(pairs.len(), 8);
    for pair in pairs {
        let number = |key: &str| pair[key].as_f64().unwrap();
        assert!((number("ours") - number("theirs") - number("difference")).abs() < 1e-9);
        assert!(number("p_holm") >= number("p") && pair["pairs"] == 40);
        if pair["metric"] == "ndcg@10" {
            let mean = found["result"][pair["task"].as_str().unwrap()]["ndcg@10"].as_f64().unwrap();
            assert!((number("ours") - mean).abs() < 1e-9, "{mean} of {pair}");
        }
    }
    let layers = found["layers"].as_array().unwrap();
    assert!(!layers.is_empty());
    for layer in layers {
        assert!(layer["drift"].as_f64().unwrap() > 0.0 && layer["relative_drift"].as_f64().unwrap() < 1.0);
        // Input-side protection keeps the change out of the space, to rounding.
        assert!(layer["in_knowledge"].as_f64().unwrap() < 1e-6, "{layer}");
    }
    let requests = join("requests.jsonl");
    let first = rows(&data, "test").remove(0);
    let batch = [json!({"history": first["history"]}), json!({"history": ["i3"], "query": "red"})];
    fs::write(&requests, batch.iter().map(|r| format!("{r}\n")).collect::<String>()).unwrap();
    let mut command = engine();
    command
        .args(["rank", "--device", "cpu", "--top", "3", "--run"])
        .arg(join("a"))
        .arg("--batch")
        .arg(&requests);
    let done = command.assert().success();
    let answers = String::from_utf8_lossy(&done.get_output().stdout).into_owned();
    let answers: Vec<Value> = answers.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(answers.len(), 2);
    assert_eq!((&answers[0]["task"], &answers[1]["task"]), (&json!("rec"), &json!("search")));
    let single =
        ["rank", "--json", "--device", "cpu", "--history", "i3", "--query", "red", "--top", "3", "--run"];
    let alone = output(engine().args(single).arg(join("a")));
    for (one, other) in alone["items"].as_array().unwrap().iter().zip(answers[1]["items"].as_array().unwrap())
    {
        assert_eq!((&one["item"], &one["text"]), (&other["item"], &other["text"]));
        let likelihood = |v: &Value| v["log_likelihood"].as_f64().unwrap();
        // Other requests in the pass change the order of f32 sums.
        assert!((likelihood(one) - likelihood(other)).abs() < 1e-4);
    }
    for (row, said) in [
        ("{\"history\": [\"i3\"", "not valid JSON"),
        ("{\"history\": [\"nope\"]}", "nope"),
        ("{\"history\": [\"i3\"], \"querry\": \"red\"}", "querry: unknown field"),
        ("{\"history\": [\"i3\"], \"task\": \"reco\"}", "did you mean \"rec\"?"),
    ] {
        // The others are answered, in their places.
        fs::write(&requests, format!("{}\n{row}\n{}\n", batch[0], batch[1])).unwrap();
        let mut command = engine();
        command.args(["rank", "--device", "cpu", "--top", "3", "--run"]).arg(join("a"));
        let done = command.arg("--batch").arg(&requests).assert().code(1);
        let output = done.get_output();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.contains("requests.jsonl: 1 of 3 requests could not be answered"), "{text}");
        let lines: Vec<&[u8]> = output.stdout.trim_ascii().split(|b| *b == b'\n').collect();
        let found: Vec<Value> = lines.iter().map(|l| serde_json::from_slice(l).unwrap()).collect();
        assert_eq!((&found[0], &found[2], found.len()), (&answers[0], &answers[1], 3));
        let error = found[1]["error"].as_str().unwrap();
        assert!(error.contains("requests.jsonl line 2") && error.contains(said), "{error}");
    }
}

#[test]
fn a_made_up_world_fits_a_small_catalogue() {
    let dir = tempfile::tempdir().unwrap();
    let make = |items: &str| {
        let mut command = assert_cmd::Command::cargo_bin("gems-engine").unwrap();
        command.args(["prepare", "synth", "--users", "20", "--seed", "1", "--items", items, "--out"]);
        command.arg(dir.path().join(items)).assert()
    };
    // Three items in each of 2 * 6 + 2 topics are the least there can be.
    for items in ["42", "50", "78", "200"] {
        make(items).success();
    }
    make("41").code(2).stderr(predicates::str::contains("at least 42"));
}
