//! Data, model and tokenizer that changed since a run was made.

use super::*;
use crate::bad_input::{change_json, change_weights, copied};
use serde_json::json;

const SEMANTIC: [&str; 6] = [
    "--set",
    "data.item_identity=semantic",
    "--set",
    "data.semantic.codes=4",
    "--set",
    "data.semantic.levels=2",
];
/// Of the rows of a file.
type Change<'a> = &'a dyn Fn(&mut Vec<String>);

const TEXT: [&str; 2] = ["--set", "data.item_identity=text"];

/// The ids of an exported tokenizer by item, whatever order they are listed in.
fn exported(run: &Path, to: &Path) -> BTreeMap<String, Value> {
    told(&mut command("export", run, &["--out", to.to_str().unwrap()]));
    let rows = lines(&to.join("items.jsonl"));
    let rows = rows.iter().map(|l| serde_json::from_str::<Value>(l).unwrap());
    rows.map(|row| (row["item"].as_str().unwrap().to_string(), row["ids"].clone())).collect()
}

#[test]
fn items_in_another_order_with_other_titles_or_gone_mean_what_they_meant() {
    for identity in [&[][..], &SEMANTIC, &TEXT] {
        let dir = tempfile::tempdir().unwrap();
        let (data, out) = trained(dir.path(), "8", identity);
        let items = data.join("items.jsonl");
        let before = evaluated(&out);
        assert!(before.1.is_empty(), "{}", before.1);
        let (ranked, _) = told(&mut command("rank", &out, &ASKED));
        let ids = exported(&out, &dir.path().join("exported"));
        assert_eq!(ranked["items"].as_array().unwrap().len(), 12);
        let changes: [(Change, &str); 3] = [
            (&|rows| rows.reverse(), "items are in another order"),
            (
                &|rows| rows.iter_mut().for_each(|row| *row = row.replace(" desk ", " bench ")),
                "12 items have other texts (i0, i1, i2, i3, i4, ..): the run keeps its own",
            ),
            // Records name it still.
            (&|rows| drop(rows.remove(2)), "1 item was removed (i2)"),
        ];
        for (number, (change, note)) in changes.into_iter().enumerate() {
            let kept = fs::read(&items).unwrap();
            rewrite(&items, change);
            let (result, said) = evaluated(&out);
            assert_eq!(result, before.0, "{identity:?}: {note}");
            assert!(said.contains(note), "{note:?} in {said}");
            let (again, said) = told(&mut command("rank", &out, &ASKED));
            assert!(again == ranked && said.contains(note), "{note:?}: {again} not {ranked}; {said}");
            let to = dir.path().join(format!("exported-{number}"));
            assert_eq!(exported(&out, &to), ids, "{note}");
            fs::write(&items, kept).unwrap();
        }
    }
}

#[test]
fn resuming_after_the_items_were_reordered_gives_the_same_weights() {
    let dir = tempfile::tempdir().unwrap();
    let every = ["--set", "checkpoint.every=4", "--set", "checkpoint.keep=9", "--set", "train.export=false"];
    let (data, out) = trained(dir.path(), "8", &every);
    let weights =
        |step: &str| fs::read(out.join("checkpoints").join(step).join("weights.safetensors")).unwrap();
    let whole = weights("step-00000008");
    fs::remove_dir_all(out.join("checkpoints/step-00000008")).unwrap();
    rewrite(&data.join("items.jsonl"), |rows| rows.rotate_left(5));
    let (_, said) = told(&mut resume(&out, &[]));
    assert!(said.contains("items are in another order"), "{said}");
    assert!(whole == weights("step-00000008"));
    let told = fs::read_to_string(out.join("log.txt")).unwrap();
    assert!(told.contains("items are in another order"), "{told}");
    let resumed = history(&out).into_iter().find(|e| e["event"] == "resumed").unwrap();
    assert!(resumed["notes"][0].as_str().unwrap().contains("another order"), "{resumed}");
}

#[test]
fn items_added_later_are_ranked_where_they_have_a_meaning() {
    let new = |data: &Path| {
        rewrite(&data.join("items.jsonl"), |rows| {
            rows.insert(0, json!({"item": "new", "text": "a purple chair"}).to_string());
        });
        // One record wants it, one has it in its history, one has nothing else there.
        rewrite(&data.join("test.jsonl"), |rows| {
            rows[0] = json!({"task": "rec", "history": ["i1"], "target": ["new"]}).to_string();
            rows[1] = json!({"task": "rec", "history": ["i1", "new"], "target": ["i3"]}).to_string();
            rows[2] = json!({"task": "rec", "history": ["new"], "target": ["i3"]}).to_string();
        });
    };
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = trained(dir.path(), "4", &[]);
    new(&data);
    let (result, said) = told(&mut command("evaluate", &out, &[]));
    for part in [
        "1 item was added (new): this model has no tokens for them",
        "test: 15 records, but not the same",
        "test: 2 records are left out, 1 shortened",
    ] {
        assert!(said.contains(part) && result["changed"].to_string().contains(part), "{part:?} in {said}");
    }
    let (ranked, _) = told(&mut command("rank", &out, &ASKED));
    assert!(ranked["items"].as_array().unwrap().len() == 12 && !ranked.to_string().contains("new"));
    let asked = refused(&mut command("rank", &out, &["--history", "new"]));
    assert!(
        asked.contains("there is no item \"new\"") && asked.contains("1 item was added (new)"),
        "{asked}"
    );

    let dir = tempfile::tempdir().unwrap();
    let (data, out) = trained(dir.path(), "4", &TEXT);
    let (before, _) = told(&mut command("rank", &out, &ASKED));
    new(&data);
    rewrite(&data.join("items.jsonl"), |rows| rows.insert(0, json!({"item": "untitled"}).to_string()));
    let (result, said) = told(&mut command("evaluate", &out, &[]));
    assert!(
        said.contains("(untitled, new): they are ranked by their texts, if they have any")
            && !said.contains("left out"),
        "{said}"
    );
    assert!(result["result"]["rec"]["ndcg@10"].is_number());
    let (ranked, _) =
        told(&mut command("rank", &out, &["--history", "i1,new", "--query", "purple", "--top", "99"]));
    assert_eq!(ranked["items"].as_array().unwrap().len(), 13);
    // The others are as likely as they were.
    let (after, _) = told(&mut command("rank", &out, &[&ASKED[..4], &["--top", "13"]].concat()));
    let likely = |of: &Value| -> BTreeMap<String, String> {
        let rows = of["items"].as_array().unwrap().iter().filter(|row| row["item"] != "new");
        let name = |row: &Value| row["item"].as_str().unwrap().to_string();
        rows.map(|row| (name(row), format!("{:.4}", row["log_likelihood"].as_f64().unwrap()))).collect()
    };
    assert_eq!(likely(&before), likely(&after));
}

#[test]
fn rank_and_export_need_no_data() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = trained(dir.path(), "3", &[]);
    let (ranked, _) = told(&mut command("rank", &out, &ASKED));
    let moved = dir.path().join("elsewhere");
    fs::rename(&data, &moved).unwrap();
    let (again, said) = told(&mut command("rank", &out, &ASKED));
    assert!(again == ranked && said.contains("this command does without"), "{said}");
    exported(&out, &dir.path().join("exported"));
    let said = refused(&mut command("evaluate", &out, &[]));
    assert!(said.contains("is not there any more") && said.contains("data.path="), "{said}");
    let place = format!("data.path={}", moved.display());
    told(&mut command("evaluate", &out, &["--set", &place]));
}

#[test]
fn prompts_are_the_runs_own() {
    let dir = tempfile::tempdir().unwrap();
    let (data, model) = (world(dir.path()), copied("llama_tied", dir.path()));
    let config = model.join("tokenizer_config.json");
    if !config.is_file() {
        fs::write(&config, "{}").unwrap();
    }
    let chat = "{% for m in messages %}user: {{ m['content'] }} answer:{% endfor %}";
    change_json(&config, |c| c["chat_template"] = json!(chat));
    let out = dir.path().join("run");
    let mut start = engine();
    start.args(["train", "--json", "--steps", "3", "--set", "data.chat_template=true", "--out"]).arg(&out);
    start.arg("--data").arg(&data).arg("--model").arg(&model).args(FAST).assert().success();
    let (ranked, _) = told(&mut command("rank", &out, &ASKED));
    change_json(&config, |c| c["chat_template"] = json!("{{ messages[0]['content'] }} ?"));
    assert_eq!(told(&mut command("rank", &out, &ASKED)).0, ranked);
    // The preset's prompts, as they were when the run began.
    let kept: toml::Table = fs::read_to_string(out.join("config.toml")).unwrap().parse().unwrap();
    let templates = kept["data"]["templates"].as_table().unwrap();
    assert!(templates["rec"].as_str().unwrap().contains("oldest first: {{ history }}"));
    assert_eq!(kept["data"]["tasks"].as_array().unwrap().len(), 2);
    for change in ["data.prompts=cue", "data.templates.rec=\"{{ history }}\"", "data.item_token=<x_{}>"] {
        for name in ["evaluate", "rank", "export"] {
            let more = if name == "export" { &["--out", "nowhere"][..] } else { &[] };
            let more = [&["--set", change], more].concat();
            let said = refused(&mut command(name, &out, &more));
            assert!(said.contains("cannot change data.") && said.contains("leave it out"), "{said}");
        }
    }
}

#[test]
fn another_model_or_tokenizer_and_a_touched_catalogue_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (data, model) = (world(dir.path()), copied("llama_tied", dir.path()));
    let out = dir.path().join("run");
    let mut start = engine();
    start.args(["train", "--json", "--steps", "3", "--out"]).arg(&out).arg("--data").arg(&data);
    start.arg("--model").arg(&model).args(FAST).assert().success();
    let all = |said: &str| {
        for mut each in
            [command("evaluate", &out, &[]), command("rank", &out, &ASKED), resume(&out, &["--steps", "5"])]
        {
            let told = refused(&mut each);
            assert!(told.contains(said) && told.contains("try:"), "{said:?} in {told}");
        }
    };
    let kept = contents(&out);
    let tokenizer = model.join("tokenizer.json");
    let text = fs::read_to_string(&tokenizer).unwrap();
    change_json(&tokenizer, |t| t["added_tokens"][0]["lstrip"] = json!(true));
    all("the tokenizer is not the one");
    fs::write(&tokenizer, text).unwrap();
    let weights = fs::read(model.join("model.safetensors")).unwrap();
    change_weights(&model, |w| w.get_mut("model.norm.weight").unwrap().1[0] += 1.0);
    all("this is not the base model");
    fs::write(model.join("model.safetensors"), weights).unwrap();
    fs::rename(&model, dir.path().join("there")).unwrap();
    all("the base model of this run is not there any more");
    let there = format!("model.path={}", dir.path().join("there").display());
    told(&mut command("rank", &out, &[&ASKED[..], &["--set", &there]].concat()));
    fs::rename(dir.path().join("there"), &model).unwrap();
    // What lies around in the model's directory is not the model.
    fs::write(model.join("README.md"), "hello").unwrap();
    let catalogue = out.join("catalogue.jsonl");
    rewrite(&catalogue, |rows| rows.swap(0, 1));
    all("this file was changed");
    rewrite(&catalogue, |rows| rows.swap(0, 1));
    assert!(contents(&out) == kept);
    told(&mut command("rank", &out, &ASKED));
    fs::remove_file(&catalogue).unwrap();
    all("made by an older version");
}

#[test]
fn runs_of_differently_ordered_catalogues_are_compared_request_by_request() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = trained(dir.path(), "4", &[]);
    rewrite(&data.join("items.jsonl"), |rows| rows.reverse());
    let other = dir.path().join("other");
    train("llama_tied", &data, &other, &["--steps", "4"]).assert().success();
    let (result, _) = told(&mut command("evaluate", &out, &["--against", other.to_str().unwrap()]));
    assert!(!result["against"]["metrics"].as_array().unwrap().is_empty());
    rewrite(&data.join("items.jsonl"), |rows| rows.push(json!({"item": "new", "text": "x"}).to_string()));
    let third = dir.path().join("third");
    train("llama_tied", &data, &third, &["--steps", "2"]).assert().success();
    let said = refused(&mut command("evaluate", &out, &["--against", third.to_str().unwrap()]));
    assert!(said.contains("ranks other items"), "{said}");
}
