//! Tests of `data`.

use crate::support::Golden;
use gems_engine::data::*;
use gems_engine::error::Error;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

fn write(dir: &Path, name: &str, rows: &[Value]) {
    let lines: Vec<String> = rows.iter().map(Value::to_string).collect();
    std::fs::write(dir.join(name), lines.join("\n") + "\n").unwrap();
}

fn cue() -> DataSettings {
    DataSettings { prompts: PromptPreset::Cue, ..DataSettings::default() }
}

/// A small directory with items 0..n (ids are numbers, titles are words).
fn directory(n: usize, train: &[Value]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let items: Vec<Value> = (0..n).map(|i| json!({"item": i, "text": format!("title {i}")})).collect();
    write(dir.path(), "items.jsonl", &items);
    write(dir.path(), "train.jsonl", train);
    dir
}

fn load_error(train: &[&str], settings: &DataSettings) -> String {
    let dir = directory(4, &[]);
    std::fs::write(dir.path().join("train.jsonl"), train.join("\n")).unwrap();
    Dataset::load(dir.path(), settings).unwrap_err().to_string()
}

// ---- reading ---------------------------------------------------------------------------------

#[test]
fn a_directory_is_read_as_it_is() {
    let dir = directory(
        4,
        &[
            json!({"task": "rec", "user": 7, "history": [0, "1"], "target": [2], "timestamp": 12.0}),
            json!({"task": "search", "history": [], "query": "tea", "target": ["3", 1], "negatives": [0]}),
            json!({"task": "prose", "text": "once upon a time"}),
        ],
    );
    write(dir.path(), "test-knowledge.jsonl", &[json!({"task": "search", "query": "q", "target": [0]})]);
    std::fs::write(dir.path().join("general.txt"), "one\ntwo\n").unwrap();
    let data = Dataset::load(dir.path(), &cue()).unwrap();
    assert_eq!(data.tasks, ["rec", "search", "prose"]);
    assert_eq!(data.items.len(), 4);
    assert_eq!(data.items.text(2), Some("title 2"));
    let expected = Record {
        task: 0,
        user: Some("7".into()),
        history: [0, 1].into(),
        target: [2].into(),
        timestamp: Some(12),
        ..Record::default()
    };
    assert_eq!(data.train.records[0], expected);
    assert_eq!(data.train.records[1].target.as_ref(), [3, 1]);
    assert_eq!(data.train.records[2].text.as_deref(), Some("once upon a time"));
    let names: Vec<&str> = data.tests().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["test", "knowledge"]);
    assert_eq!(data.general.len(), 1);
}

#[test]
fn every_bad_row_names_place_and_remedy() {
    // (the bad second line, what its message must contain)
    let cases: &[(&str, &[&str])] = &[
        (
            r#"{"task":"buy","history":[1],"target":[2]}"#,
            &["task", "unknown task `buy`", "rec, search", "template"],
        ),
        (r#"{"history":[1],"target":[2]}"#, &["task: missing"]),
        (r#"{"task":3,"history":[1],"target":[2]}"#, &["task: the number 3 instead of"]),
        (
            r#"{"task":"rec","history":[1,9],"target":[2]}"#,
            &["history[1]", "item `9` is not among the 4 items"],
        ),
        (r#"{"task":"rec","history":"1","target":[2]}"#, &["history: the string \"1\" instead of a list"]),
        (r#"{"task":"rec","history":[null],"target":[2]}"#, &["history[0]: null instead of an item"]),
        (r#"{"task":"rec","history":[1.5],"target":[2]}"#, &["history[0]: the number 1.5"]),
        (r#"{"task":"rec","history":[],"target":[2]}"#, &["history: empty, but the prompt of task `rec`"]),
        (
            r#"{"task":"search","history":[1],"target":[2]}"#,
            &["query: empty, but the prompt of task `search`"],
        ),
        (r#"{"task":"rec","history":[1],"target":[]}"#, &["target: missing or empty"]),
        (r#"{"task":"rec","history":[1],"target":[2,2]}"#, &["target", "listed twice"]),
        (r#"{"task":"rec","history":[1],"target":[2],"negatives":[2]}"#, &["negatives", "also a target"]),
        (
            r#"{"task":"rec","history":[1],"target":[2],"timestamp":"now"}"#,
            &["timestamp: the string \"now\""],
        ),
        (
            r#"{"task":"rec","history":[1],"target":[2],"timestamp":NaN}"#,
            &["not valid JSON", "JSON has no NaN"],
        ),
        (
            r#"{"task":"search","querry":"tea","target":[2]}"#,
            &["querry: unknown field", "did you mean `query`"],
        ),
        (r#"{"task":"search","query":["tea"],"target":[2]}"#, &["query: the list", "instead of a string"]),
        (r#"{"task":"rec","history":[1],"target":[2],"text":"x"}"#, &["history: a row with `text`"]),
        (r#"["rec"]"#, &["the list", "instead of an object"]),
        (r#"{"task":"rec""#, &["not valid JSON at column"]),
    ];
    let good = r#"{"task":"rec","history":[1],"target":[2]}"#;
    for (bad, wanted) in cases {
        let message = load_error(&[good, bad], &cue());
        assert!(message.contains("train.jsonl line 2"), "{bad}: {message}");
        assert!(message.contains("try: "), "{bad}: no remedy in {message}");
        for part in *wanted {
            assert!(message.contains(part), "{bad}: no {part:?} in {message}");
        }
    }
}

#[test]
fn bytes_that_are_not_utf8_and_endless_lines_are_named() {
    let dir = directory(2, &[]);
    let path = dir.path().join("train.jsonl");
    std::fs::write(&path, b"{\"task\":\"rec\",\"user\":\"\xff\"}\n").unwrap();
    let message = Dataset::load(dir.path(), &cue()).unwrap_err().to_string();
    assert!(message.contains("line 1") && message.contains("not UTF-8 from byte 23"), "{message}");
    let mut long = vec![b'x'; (16 << 20) + 5];
    long.extend(b"\n{\"task\":\"rec\",\"history\":[0],\"target\":[1]}\n");
    std::fs::write(&path, long).unwrap();
    let message = Dataset::load(dir.path(), &cue()).unwrap_err().to_string();
    assert!(message.contains("line 1: longer than 16777216 bytes"), "{message}");
    // The line after it is read all the same.
    let tolerant = DataSettings { skip_bad_rows: 1, ..cue() };
    let data = Dataset::load(dir.path(), &tolerant).unwrap();
    assert_eq!((data.train.records.len(), data.skipped["line too long"]), (1, 1));
}

#[test]
fn bad_rows_are_skipped_up_to_the_limit_and_counted_by_reason() {
    let rows = [
        r#"{"task":"rec","history":[1],"target":[2]}"#,
        r#"{"task":"rec","history":[8],"target":[2]}"#,
        r#"{"task":"rec","history":[1],"target":[7]}"#,
        r#"not json"#,
    ];
    let dir = directory(4, &[]);
    std::fs::write(dir.path().join("train.jsonl"), rows.join("\n")).unwrap();
    let skip = |n| DataSettings { skip_bad_rows: n, ..cue() };
    let data = Dataset::load(dir.path(), &skip(3)).unwrap();
    assert_eq!(data.train.records.len(), 1);
    let expected = BTreeMap::from([("unknown item".to_string(), 2), ("not JSON".to_string(), 1)]);
    assert_eq!(data.skipped, expected);
    let message = Dataset::load(dir.path(), &skip(2)).unwrap_err().to_string();
    assert!(message.contains("2 bad rows were left out") && message.contains("line 4"), "{message}");
}

#[test]
fn items_and_directories_that_cannot_be_used_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let error = |settings: &DataSettings| Dataset::load(dir.path(), settings).unwrap_err().to_string();
    assert!(error(&cue()).contains("no items.jsonl or items.parquet"));
    write(dir.path(), "items.jsonl", &[json!({"item": 1}), json!({"item": "1"})]);
    assert!(error(&cue()).contains("items.jsonl line 2: item: item `1` is listed twice"));
    write(dir.path(), "items.jsonl", &[json!({"item": "a\u{7}"})]);
    assert!(error(&cue()).contains("is not an item id"));
    write(dir.path(), "items.jsonl", &[json!({"item": "a", "text": 5})]);
    assert!(error(&cue()).contains("line 1: text: the number 5 instead of a string"));
    write(dir.path(), "items.jsonl", &[json!({"item": "a"})]);
    assert!(error(&cue()).contains("no records"));
    std::fs::write(dir.path().join("items.parquet"), b"PAR1 but not really PAR1").unwrap();
    assert!(error(&cue()).contains("both items.jsonl and items.parquet exist"));
    std::fs::remove_file(dir.path().join("items.jsonl")).unwrap();
    assert!(error(&cue()).contains("items.parquet: not a readable Parquet file"));
    let missing = dir.path().join("nowhere");
    assert!(Dataset::load(&missing, &cue()).unwrap_err().to_string().contains("nowhere"));
    let settings = DataSettings { tasks: vec!["rec".into()], ..cue() };
    let message = load_error(&[r#"{"task":"search","query":"q","target":[1]}"#], &settings);
    assert!(message.contains("add it to data.tasks"), "{message}");
}

#[test]
fn parquet_and_jsonl_give_the_same_records() {
    use arrow_array::builder::{Int64Builder, ListBuilder};
    use arrow_array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray};
    use std::sync::Arc;
    let lists = |rows: &[&[i64]]| -> ArrayRef {
        let mut builder = ListBuilder::new(Int64Builder::new());
        rows.iter().for_each(|row| builder.append_value(row.iter().map(|x| Some(*x))));
        Arc::new(builder.finish())
    };
    let save = |path: PathBuf, columns: Vec<(&str, ArrayRef)>| {
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        let file = std::fs::File::create(path).unwrap();
        let mut writer = parquet::arrow::ArrowWriter::try_new(file, batch.schema(), None).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
    };
    let a = directory(
        4,
        &[
            json!({"task": "rec", "user": "u", "history": [0, 1], "target": [2], "timestamp": 5}),
            json!({"task": "search", "history": [], "query": "tea", "target": [3, 1]}),
        ],
    );
    let b = tempfile::tempdir().unwrap();
    save(
        b.path().join("items.parquet"),
        vec![
            ("item", Arc::new(Int64Array::from(vec![0, 1, 2, 3]))),
            ("text", Arc::new(StringArray::from(vec!["title 0", "title 1", "title 2", "title 3"]))),
        ],
    );
    let train: Vec<(&str, ArrayRef)> = vec![
        ("task", Arc::new(StringArray::from(vec!["rec", "search"]))),
        ("user", Arc::new(StringArray::from(vec![Some("u"), None]))),
        ("history", lists(&[&[0, 1], &[]])),
        ("query", Arc::new(StringArray::from(vec![None, Some("tea")]))),
        ("target", lists(&[&[2], &[3, 1]])),
        ("timestamp", Arc::new(Float64Array::from(vec![Some(5.0), None]))),
    ];
    save(b.path().join("train.parquet"), train);
    let (a, c) = (Dataset::load(a.path(), &cue()).unwrap(), Dataset::load(b.path(), &cue()).unwrap());
    assert_eq!(a.train, c.train);
    assert_eq!(a.items.text(3), c.items.text(3));
    // A timestamp that is not a number is an error with its row, as in JSONL.
    let train: Vec<(&str, ArrayRef)> = vec![
        ("task", Arc::new(StringArray::from(vec!["rec", "rec"]))),
        ("history", lists(&[&[0], &[1]])),
        ("target", lists(&[&[2], &[3]])),
        ("timestamp", Arc::new(Float64Array::from(vec![1.0, f64::NAN]))),
    ];
    save(b.path().join("train.parquet"), train);
    let message = Dataset::load(b.path(), &cue()).unwrap_err().to_string();
    assert!(message.contains("train.parquet row 2: timestamp: the string \"NaN\""), "{message}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn damaged_parquet_is_an_error_and_never_a_panic(at in 0usize..1000, byte in any::<u8>(), cut in 0usize..1000) {
        use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray};
        use std::sync::Arc;
        let item: ArrayRef = Arc::new(Int64Array::from_iter_values(0..50));
        let text: ArrayRef = Arc::new(StringArray::from_iter_values((0..50).map(|i| format!("t{}", i % 7))));
        let batch = RecordBatch::try_from_iter(vec![("item", item), ("text", text)]).unwrap();
        let mut bytes = Vec::new();
        let mut writer = parquet::arrow::ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        let n = bytes.len();
        bytes[at * n / 1000] ^= byte;
        bytes.truncate(n - (cut * n / 1000) / 2);
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("items.parquet"), bytes).unwrap();
        write(dir.path(), "train.jsonl", &[json!({"task": "rec", "history": [1], "target": [2]})]);
        let _ = Dataset::load(dir.path(), &cue());
    }
}

#[test]
fn settings_that_cannot_work_are_refused() {
    let check = |change: fn(&mut DataSettings), part: &str| {
        let mut settings = DataSettings::default();
        change(&mut settings);
        let error = settings.validate().unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
        assert_eq!(error.exit_code(), 2);
    };
    check(|s| s.item_token = "<item>".into(), "data.item_token");
    check(|s| s.max_length = 3, "data.max_length");
    check(|s| s.general_held_out = f64::NAN, "data.general_held_out");
    check(|s| s.semantic.codes = 1, "data.semantic");
    check(|s| s.tasks = vec!["a".into(), "a".into()], "data.tasks");
    assert!(serde_json::from_value::<DataSettings>(json!({"promts": "cue"})).is_err());
}

// ---- prompts ---------------------------------------------------------------------------------

#[test]
fn presets_and_own_templates_render() {
    let names = ["<item_1>".to_string(), "<item_2>".to_string()];
    let prompts = Prompts::new(&cue(), None).unwrap();
    let render = |task, history: &[String], query| prompts.render(task, history, " ", query).unwrap();
    assert_eq!(render("rec", &names, None), "<item_1> <item_2> next :");
    assert_eq!(render("rec", &names, Some("red tea")), "<item_1> <item_2> next red tea :");
    assert_eq!(render("search", &names, Some("red tea")), "<item_1> <item_2> find red tea :");
    assert_eq!(render("search", &[], Some("<b>")), "find <b> :");
    assert_eq!(prompts.missing("rec", false, true), Some("history"));
    assert_eq!(prompts.missing("search", true, false), Some("query"));
    assert_eq!(prompts.missing("search", false, true), None);
    let mut own = DataSettings::default();
    own.templates.insert("cart".into(), "{% for item in items %}[{{ item }}]{% endfor %} {{ query }}".into());
    let prompts = Prompts::new(&own, None).unwrap();
    assert_eq!(prompts.render("cart", &names, " ", Some("q")).unwrap(), "[<item_1>][<item_2>] q");
    for (task, template, part) in [
        ("rec", "{{ history", "data.templates.rec: the template fails"),
        ("rec", "{{ histroy }}", "undefined"),
        ("rec", "hello", "neither history nor query"),
    ] {
        let mut bad = DataSettings::default();
        bad.templates.insert(task.into(), template.into());
        let error = Prompts::new(&bad, None).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(error.contains(part), "{template}: {error}");
    }
}

#[test]
fn the_checkpoints_chat_template_is_used_on_request() {
    let dir = tempfile::tempdir().unwrap();
    let template = "{{ bos_token }}{% for m in messages %}\n<|{{ m['role'] }}|>{{ m.content.strip() }}{{ eos_token }}\
        {% endfor %}\n{% if add_generation_prompt %}<|assistant|>{% endif %}";
    let config = json!({"chat_template": template, "bos_token": {"content": "<s>"}, "eos_token": "</s>"});
    write(dir.path(), "tokenizer_config.json", &[config]);
    let settings = DataSettings { chat_template: true, ..cue() };
    let prompts = Prompts::new(&settings, Some(dir.path())).unwrap();
    assert!(prompts.is_chat());
    // What Jinja2 makes of it with trim_blocks and lstrip_blocks, as transformers sets them.
    assert_eq!(
        prompts.render("rec", &["<item_1>".into()], " ", None).unwrap(),
        "<s><|user|><item_1> next :</s><|assistant|>"
    );
    write(dir.path(), "tokenizer_config.json", &[json!({"bos_token": "<s>"})]);
    let error = Prompts::new(&settings, Some(dir.path())).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(error.contains("no chat template"), "{error}");
}

// ---- tokens ----------------------------------------------------------------------------------

fn is_t5(golden: &Golden, model: &str) -> bool {
    golden.json(&format!("models/{model}/config.json"))["model_type"] == "t5"
}

fn architecture(golden: &Golden, model: &str) -> Architecture {
    let config = golden.json(&format!("models/{model}/config.json"));
    match is_t5(golden, model) {
        true => Architecture::EncoderDecoder {
            decoder_start: config["decoder_start_token_id"].as_u64().unwrap() as u32,
        },
        false => Architecture::DecoderOnly,
    }
}

fn catalogue(ids: &[String]) -> Catalogue {
    let mut items = Catalogue::default();
    ids.iter().for_each(|id| {
        items.add(id, Some(&format!("warm {id}"))).unwrap();
    });
    items
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
}

#[test]
fn golden_tokenization() {
    let golden = Golden::open();
    for model in golden.folders("models") {
        let path = format!("model_cases/{model}/tokenization.json");
        if !golden.has(&path) {
            continue;
        }
        let case = golden.json(&path);
        let dir = golden.dir.join("models").join(&model);
        let vocabulary = Vocabulary::new(
            &dir,
            &catalogue(&[]),
            &DataSettings::default(),
            architecture(&golden, &model),
            None,
        )
        .unwrap();
        assert_eq!(vocabulary.size() as u64, case["vocab_size_tokenizer"].as_u64().unwrap(), "{model}");
        let rows = case["vocab_size_model"].as_u64().unwrap() as usize;
        assert_eq!(vocabulary.rows_for(rows).unwrap(), rows, "{model}");
        for entry in case["cases"].as_array().unwrap() {
            let text = entry["text"].as_str().unwrap();
            let (whole, bare) = (ids(&entry["ids"]), ids(&entry["ids_no_special"]));
            assert_eq!(vocabulary.encode(text).unwrap(), whole, "{model}: {text:?}");
            assert_eq!(vocabulary.plain(text).unwrap(), bare, "{model}: {text:?}");
            for (key, skip) in [("decoded", false), ("decoded_skip_special", true)] {
                assert_eq!(vocabulary.decode(&bare, skip).unwrap(), entry[key], "{model}: {text:?}");
            }
        }
    }
}

/// The text of the reference batch, through catalogue, prompt and target, gives the reference batch.
#[test]
fn golden_encoding_and_packing_give_the_reference_batch() {
    let golden = Golden::open();
    let pattern =
        |text: &str| text.strip_prefix("<item_").and_then(|t| t.strip_suffix('>')).map(String::from);
    for model in golden.folders("model_cases") {
        let case = golden.json(&format!("model_cases/{model}/case.json"));
        let batch = golden.tensors(&format!("model_cases/{model}/batch.safetensors"));
        let (input, mask, labels) = (&batch["input_ids"], &batch["attention_mask"], &batch["labels"]);
        let rows = case["rows"].as_array().unwrap();
        let known: BTreeSet<String> = rows
            .iter()
            .flat_map(|r| [&r["prompt"], &r["target"]].map(|v| v.as_str().unwrap().to_string()))
            .flat_map(|text| text.split(' ').filter_map(pattern).collect::<Vec<_>>())
            .collect();
        let items = catalogue(&known.into_iter().collect::<Vec<_>>());
        let settings = DataSettings {
            eos: EndOfSequence::Always,
            templates: [("rec", "{{ query }}"), ("search", "{{ query }}")]
                .map(|(k, v)| (k.to_string(), v.to_string()))
                .into(),
            ..DataSettings::default()
        };
        let (tasks, kind) = (["rec".to_string(), "search".to_string()], architecture(&golden, &model));
        let dir = golden.dir.join("models").join(&model);
        let vocabulary = Vocabulary::new(&dir, &items, &settings, kind, None).unwrap();
        assert_eq!(vocabulary.size(), vocabulary.base_size(), "{model}: the tokenizer has these items");
        let prompts = Prompts::new(&settings, None).unwrap();
        let encoder = Encoder::new(&vocabulary, &prompts, &tasks, kind, &settings);
        let (mut examples, mut wanted) = (Vec::new(), Vec::new());
        for (i, row) in rows.iter().enumerate() {
            // Targets that are ordinary text are no items.
            let Some(item) = row["target"].as_str().and_then(pattern) else { continue };
            let record = Record {
                task: row["task"].as_u64().unwrap() as u32,
                query: row["prompt"].as_str().map(Into::into),
                target: [items.number(&item).unwrap()].into(),
                ..Record::default()
            };
            examples.push(encoder.encode(&record, 0).unwrap());
            let width = input.cols();
            let full: Vec<u32> = (0..width)
                .filter(|j| mask.values[i * width + j] > 0.0)
                .map(|j| input.values[i * width + j] as u32)
                .collect();
            let wide = labels.cols();
            let targets: Vec<u32> = (0..wide)
                .map(|j| labels.values[i * wide + j])
                .filter(|x| *x >= 0.0)
                .map(|x| x as u32)
                .collect();
            wanted.push((record.task, full, targets));
        }
        assert!(!examples.is_empty(), "{model}");
        for (example, (_, full, targets)) in examples.iter().zip(&wanted) {
            let input = example.encoder.as_ref().unwrap_or(&example.tokens);
            assert_eq!(input, full, "{model}");
            assert_eq!(example.tokens[example.labels_from..], targets[..], "{model}");
        }
        let batch = pack(&examples, 2, 0.5);
        wanted.sort_by_key(|(task, _, _)| *task);
        let targets: Vec<u32> = wanted.iter().flat_map(|(_, _, t)| t.clone()).collect();
        assert_eq!(batch.labels.targets, targets, "{model}");
        assert_eq!(batch.encoder.is_some(), is_t5(&golden, &model));
    }
}

fn some_model(golden: &Golden, t5: bool) -> PathBuf {
    let name = golden.folders("models").into_iter().find(|m| is_t5(golden, m) == t5).unwrap();
    golden.dir.join("models").join(name)
}

#[test]
fn golden_tokenizers_take_new_items_and_keep_them_when_saved() {
    let golden = Golden::open();
    for model in golden.folders("models") {
        let dir = golden.dir.join("models").join(&model);
        let kind = architecture(&golden, &model);
        let names = ["3", "new one", "B00<&>", "日本", "7"].map(String::from);
        let items = catalogue(&names);
        let settings = DataSettings { item_token: "<thing_{}>".into(), ..DataSettings::default() };
        let vocabulary = Vocabulary::new(&dir, &items, &settings, kind, None).unwrap();
        let base = vocabulary.base_size() as u32;
        assert_eq!(vocabulary.item_rows(), base..base + 5, "{model}: new ids follow the tokenizer's");
        assert_eq!(vocabulary.rows_for(base as usize).unwrap(), base as usize + 5);
        let error = vocabulary.rows_for(base as usize - 1).unwrap_err().to_string();
        assert!(error.contains("embedding rows"), "{error}");
        let text = "x<thing_new one> <thing_3>y";
        let tokens = vocabulary.plain(text).unwrap();
        assert!(tokens.contains(&(base + 1)) && tokens.contains(&base), "{model}: {tokens:?}");
        let out = tempfile::tempdir().unwrap();
        vocabulary.save(out.path(), &items).unwrap();
        let again = Vocabulary::new(out.path(), &items, &settings, kind, None).unwrap();
        assert_eq!(again.base_size(), vocabulary.size(), "{model}: nothing is added twice");
        assert_eq!(again.plain(text).unwrap(), tokens);
        assert_eq!(again.eos(), vocabulary.eos(), "{model}: the companions came along");
        let listed = std::fs::read_to_string(out.path().join("items.jsonl")).unwrap();
        let first: Value = serde_json::from_str(listed.lines().next().unwrap()).unwrap();
        assert_eq!(first, json!({"item": "3", "text": "warm 3", "tokens": "<thing_3>", "ids": [base]}));
    }
}

#[test]
fn golden_items_as_text_are_told_apart() {
    let golden = Golden::open();
    for t5 in [false, true] {
        let dir = some_model(&golden, t5);
        let kind =
            if t5 { Architecture::EncoderDecoder { decoder_start: 0 } } else { Architecture::DecoderOnly };
        let mut items = Catalogue::default();
        for (id, text) in [("a", "red watch"), ("b", "red  watch"), ("c", "red"), ("d", "red watch")] {
            items.add(id, Some(text)).unwrap();
        }
        let settings = DataSettings { item_identity: ItemIdentity::Text, ..DataSettings::default() };
        let vocabulary = Vocabulary::new(&dir, &items, &settings, kind, None).unwrap();
        let names: Vec<&str> = (0..4).map(|i| vocabulary.name(i)).collect();
        assert_eq!(names, ["red watch", "red watch #2", "red", "red watch #3"]);
        let distinct: BTreeSet<Vec<u32>> = (0..4).map(|i| vocabulary.target(i).collect()).collect();
        assert_eq!(distinct.len(), 4);
        assert!(vocabulary.ends_targets(), "an item may be the beginning of another");
        assert_eq!(vocabulary.size(), vocabulary.base_size());
        assert!(vocabulary.item_rows().is_empty());
        items.add("e", None).unwrap();
        let error = Vocabulary::new(&dir, &items, &settings, kind, None).err().unwrap().to_string();
        assert!(error.contains("item `e` has no text"), "{error}");
    }
}

#[test]
fn golden_semantic_ids_become_tokens() {
    let golden = Golden::open();
    let dir = some_model(&golden, false);
    let items = catalogue(&["a", "b", "c"].map(String::from));
    let codes = SemanticIds::new(2, vec![0, 1, 0, 2, 3, 1]).unwrap();
    let settings = DataSettings { item_identity: ItemIdentity::Semantic, ..DataSettings::default() };
    let vocabulary =
        Vocabulary::new(&dir, &items, &settings, Architecture::DecoderOnly, Some(&codes)).unwrap();
    let base = vocabulary.base_size() as u32;
    // Tokens by level and code: <code_0_0> <code_0_3> <code_1_1> <code_1_2>.
    assert_eq!(vocabulary.item(0), [base, base + 2]);
    assert_eq!(vocabulary.item(1), [base, base + 3]);
    assert_eq!(vocabulary.item(2), [base + 1, base + 2]);
    assert_eq!(vocabulary.name(2), "<code_0_3><code_1_1>");
    assert_eq!(vocabulary.plain(vocabulary.name(2)).unwrap(), vocabulary.item(2));
    assert!(SemanticIds::new(2, vec![0, 1, 0, 1]).is_err());
    let other = SemanticIds::new(1, vec![0, 1]).unwrap();
    let error =
        Vocabulary::new(&dir, &items, &settings, Architecture::DecoderOnly, Some(&other)).err().unwrap();
    assert!(error.to_string().contains("2 semantic ids for 3 items"));
}

#[test]
fn tokenizers_that_cannot_be_used_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let open = || -> Error {
        let settings = DataSettings::default();
        let items = catalogue(&[]);
        Vocabulary::new(dir.path(), &items, &settings, Architecture::DecoderOnly, None).err().unwrap()
    };
    assert!(open().to_string().contains("must hold a tokenizer.json"), "{}", open());
    std::fs::write(dir.path().join("tokenizer.json"), "{}").unwrap();
    assert!(open().to_string().contains("tokenizer.json: not a tokenizer"), "{}", open());
}

// ---- encoding --------------------------------------------------------------------------------

/// Everything an encoder needs, over one of the golden tokenizers.
struct Bench {
    items: Catalogue,
    vocabulary: Vocabulary,
    prompts: Prompts,
    tasks: Vec<String>,
    settings: DataSettings,
    kind: Architecture,
}

impl Bench {
    fn new(t5: bool, settings: DataSettings) -> Self {
        let kind =
            if t5 { Architecture::EncoderDecoder { decoder_start: 0 } } else { Architecture::DecoderOnly };
        let items = catalogue(&(0..40).map(|i| i.to_string()).collect::<Vec<_>>());
        let dir = some_model(&Golden::open(), t5);
        let vocabulary = Vocabulary::new(&dir, &items, &settings, kind, None).unwrap();
        let prompts = Prompts::new(&settings, None).unwrap();
        Self { items, vocabulary, prompts, tasks: vec!["rec".into(), "search".into()], settings, kind }
    }
    fn encoder(&self) -> Encoder<'_> {
        Encoder::new(&self.vocabulary, &self.prompts, &self.tasks, self.kind, &self.settings)
    }
    /// Items named in a prompt, in order.
    fn items_of(&self, tokens: &[u32]) -> Vec<u32> {
        let number = |t: &u32| (0..self.items.len() as u32).find(|i| self.vocabulary.item(*i) == [*t]);
        tokens.iter().filter_map(number).collect()
    }
}

fn record(task: u32, history: &[u32], query: Option<&str>, target: &[u32]) -> Record {
    Record {
        task,
        history: history.into(),
        query: query.map(Into::into),
        target: target.into(),
        ..Record::default()
    }
}

#[test]
fn golden_targets_follow_prompts_and_expand() {
    for t5 in [false, true] {
        let bench = Bench::new(t5, cue());
        let encoder = bench.encoder();
        let record = record(1, &[3, 4], Some("red watch"), &[7, 9]);
        assert_eq!(Encoder::examples(&record), 2);
        let prompt = encoder.prompt(&record).unwrap();
        for (nth, item) in [7, 9].into_iter().enumerate() {
            let example = encoder.encode(&record, nth).unwrap();
            assert_eq!(example.tokens[example.labels_from..], *bench.vocabulary.item(item));
            match &example.encoder {
                Some(input) => assert_eq!((input, &example.tokens[..1]), (&prompt, &[0][..])),
                None => assert_eq!(example.tokens[..example.labels_from], prompt),
            }
        }
        assert_eq!(bench.items_of(&prompt), [3, 4]);
    }
}

#[test]
fn golden_plain_text_is_learned_whole() {
    let text = Record { text: Some("warm steel watch".into()), ..Record::default() };
    let bench = Bench::new(false, cue());
    let example = bench.encoder().encode(&text, 0).unwrap();
    assert_eq!(example.tokens, bench.vocabulary.encode("warm steel watch").unwrap());
    assert_eq!(example.labels(), example.tokens.len() - 1);
    let bench = Bench::new(true, cue());
    let example = bench.encoder().encode(&text, 0).unwrap();
    let joined: Vec<u32> = example.encoder.iter().flatten().chain(&example.tokens[1..]).copied().collect();
    assert_eq!(joined, bench.vocabulary.encode("warm steel watch").unwrap());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn golden_truncation_keeps_the_query_and_the_newest_items(
        t5 in any::<bool>(),
        history in prop::collection::vec(0u32..40, 0..30),
        words in prop::collection::vec("[a-z]{1,6}", 1..30),
        max_length in 12usize..60,
        history_limit in 0usize..12,
    ) {
        let settings = DataSettings { max_length, history_limit, ..cue() };
        let bench = Bench::new(t5, settings);
        let query = words.join(" ");
        let record = record(1, &history, Some(&query), &[5]);
        let example = bench.encoder().encode(&record, 0).unwrap();
        let prompt = bench.encoder().prompt(&record).unwrap();
        let whole = example.encoder.as_ref().unwrap_or(&example.tokens);
        prop_assert!(whole.len() <= max_length);
        let kept = bench.items_of(&prompt);
        prop_assert!(history.ends_with(&kept), "{kept:?} is not the end of {history:?}");
        prop_assert_eq!(kept.len() + example.dropped_items as usize, history.len());
        let room = max_length - if t5 { 0 } else { 1 };
        // One more item would not have fit, or was over the limit.
        if example.dropped_items > 0 && !example.cut_query {
            let more = kept.len() + 1;
            let longer = DataSettings { max_length: 4096, history_limit: more, ..cue() };
            let bigger = Bench::new(t5, longer);
            let tokens = bigger.encoder().prompt(&record).unwrap();
            prop_assert!(tokens.len() > room || (history_limit > 0 && more > history_limit));
        }
        let text = bench.vocabulary.decode(&prompt, true).unwrap();
        if example.cut_query {
            prop_assert!(kept.is_empty(), "items are kept though the query is cut");
        } else {
            prop_assert!(text.replace(' ', "").contains(&query.replace(' ', "")), "{text:?} lost {query:?}");
        }
    }
}

#[test]
fn golden_a_prompt_that_never_fits_is_an_error() {
    let mut settings = DataSettings { max_length: 8, ..DataSettings::default() };
    settings.templates.insert("rec".into(), "{{ history }} one two three four five six seven eight".into());
    let bench = Bench::new(false, settings);
    let error = bench.encoder().encode(&record(0, &[1, 2], None, &[3]), 0).unwrap_err().to_string();
    assert!(error.contains("data.max_length") && error.contains("does not fit"), "{error}");
}

// ---- packing and sampling --------------------------------------------------------------------

fn example() -> impl Strategy<Value = Example> {
    let tokens = prop::collection::vec(0u32..1000, 2..12);
    let encoder = prop::option::of(prop::collection::vec(0u32..1000, 1..9));
    (0u32..3, tokens, encoder, any::<prop::sample::Index>()).prop_map(|(task, tokens, encoder, at)| {
        let labels_from = 1 + at.index(tokens.len() - 1);
        Example { task, encoder, tokens, labels_from, ..Example::default() }
    })
}

proptest! {
    #[test]
    fn packing_partitions_the_examples(mut examples in prop::collection::vec(example(), 1..20), limit in 0usize..60, t5 in any::<bool>()) {
        for e in &mut examples {
            if t5 { e.encoder.get_or_insert_with(|| vec![1]); } else { e.encoder = None }
        }
        let limit = if limit == 0 { 0 } else { limit.max(examples.iter().map(Example::rows).max().unwrap()) };
        let batches = micro_batches(&examples, 3, limit).unwrap();
        let mut seen: Vec<(u32, Vec<u32>, Option<Vec<u32>>)> = Vec::new();
        let mut weight = 0f64;
        for batch in &batches {
            let (decoder, labels) = (&batch.decoder, &batch.labels);
            let rows = decoder.rows() + batch.encoder.as_ref().map_or(0, |e| e.rows());
            prop_assert!(limit == 0 || rows <= limit);
            // Segments follow each other and cover everything.
            let mut at = 0;
            for segment in &decoder.segments {
                prop_assert_eq!(segment.start, at);
                at = segment.end;
            }
            prop_assert_eq!(at, decoder.rows());
            prop_assert_eq!(labels.segments.last().unwrap().end, labels.rows.len());
            prop_assert!(labels.rows.windows(2).all(|w| w[0] < w[1]));
            weight += labels.weights.iter().map(|w| *w as f64).sum::<f64>();
            for s in 0..decoder.sequences() {
                let range = decoder.offsets[s] as usize..decoder.offsets[s + 1] as usize;
                let task = decoder.segments.iter().position(|t| t.contains(&range.start)).unwrap();
                // The inputs, then the target of the last row: the whole example again.
                let mut tokens = decoder.tokens[range.clone()].to_vec();
                prop_assert_eq!(&decoder.positions[range.clone()], &(0..range.len() as u32).collect::<Vec<_>>()[..]);
                let mine: Vec<usize> = (0..labels.rows.len()).filter(|l| range.contains(&(labels.rows[*l] as usize))).collect();
                for &l in &mine {
                    prop_assert!(labels.segments[task].contains(&l));
                    let row = labels.rows[l] as usize;
                    if row + 1 < range.end { prop_assert_eq!(decoder.tokens[row + 1], labels.targets[l]); }
                }
                tokens.push(labels.targets[*mine.last().unwrap()]);
                let encoder = batch.encoder.as_ref().map(|e| {
                    e.tokens[e.offsets[s] as usize..e.offsets[s + 1] as usize].to_vec()
                });
                seen.push((task as u32, tokens, encoder));
            }
        }
        prop_assert!((weight - 1.0).abs() < 1e-5);
        let mut want: Vec<_> = examples.iter().map(|e| (e.task, e.tokens.clone(), e.encoder.clone())).collect();
        want.sort();
        seen.sort();
        prop_assert_eq!(seen, want);
    }

    #[test]
    fn the_sampler_covers_every_epoch_once_and_seeks(
        targets in prop::collection::vec((0u32..2, 1usize..4), 1..40),
        whole in any::<bool>(),
        a in 1usize..7,
        b in 1usize..5,
        seed in any::<u64>(),
    ) {
        let records: Vec<Record> = targets
            .iter()
            .map(|(task, n)| record(*task, &[0], None, &(1..=*n as u32).collect::<Vec<_>>()))
            .collect();
        let tasks = ["rec".to_string(), "search".to_string()];
        let both = (0..2).all(|t| records.iter().any(|r| r.task == t));
        prop_assume!(whole || both);
        let size = if whole {
            StepSize::Whole(a)
        } else {
            StepSize::PerTask([("rec".to_string(), a), ("search".to_string(), b)].into())
        };
        let new = || Sampler::new(&records, &tasks, &size, seed).unwrap();
        let sampler = new();
        let steps = 3 * sampler.steps_per_epoch() + 2;
        let order: Vec<Vec<Pick>> = (0..steps).map(|s| sampler.batch_at(s)).collect();
        // Asked backwards, of another sampler: the same.
        let other = new();
        for s in (0..steps).rev() {
            prop_assert_eq!(&other.batch_at(s), &order[s as usize]);
        }
        // Each task's (or the whole) stream, epoch by epoch, holds every example exactly once.
        let streams: Vec<Option<u32>> = if whole { vec![None] } else { vec![Some(0), Some(1)] };
        for task in streams {
            let mine = |p: &&Pick| task.is_none_or(|t| records[p.record as usize].task == t);
            let stream: Vec<Pick> = order.iter().flatten().filter(mine).copied().collect();
            let all: BTreeSet<Pick> = records.iter().enumerate()
                .filter(|(_, r)| task.is_none_or(|t| t == r.task))
                .flat_map(|(i, r)| (0..r.target.len()).map(move |t| Pick { record: i as u32, target: t as u32 }))
                .collect();
            prop_assert!(stream.len() >= all.len());
            for epoch in stream.chunks_exact(all.len()) {
                prop_assert_eq!(&epoch.iter().copied().collect::<BTreeSet<_>>(), &all);
            }
        }
        if !whole {
            for batch in &order {
                let rec = batch.iter().filter(|p| records[p.record as usize].task == 0).count();
                prop_assert_eq!((rec, batch.len()), (a, a + b));
            }
        }
    }
}

#[test]
fn the_longest_batch_can_be_asked_for_and_too_long_is_an_error() {
    let records: Vec<Record> =
        (1..=9).map(|n| record(u32::from(n > 6), &vec![0; n], Some("q"), &[1])).collect();
    let tasks = ["rec".to_string(), "search".to_string()];
    let size = StepSize::PerTask([("rec".to_string(), 2), ("search".to_string(), 4)].into());
    let sampler = Sampler::new(&records, &tasks, &size, 1).unwrap();
    let longest = sampler.longest(|p| records[p.record as usize].bulk());
    let lengths: Vec<usize> = longest.iter().map(|p| records[p.record as usize].history.len()).collect();
    assert_eq!(lengths, [6, 5, 9, 8, 7, 9], "three search records fill a step of four");
    let long = Example { tokens: vec![1; 20], labels_from: 19, ..Example::default() };
    let error = micro_batches(&[long], 1, 10).unwrap_err().to_string();
    assert!(error.contains("19 rows") && error.contains("micro_batch_tokens"), "{error}");
}

#[test]
fn impossible_steps_are_refused() {
    let records = [record(0, &[1], None, &[2])];
    let tasks = ["rec".to_string(), "search".to_string()];
    let error = |size: StepSize| Sampler::new(&records, &tasks, &size, 0).err().unwrap().to_string();
    assert!(error(StepSize::Whole(0)).contains("train.batch"));
    assert!(error(StepSize::PerTask([("buy".to_string(), 1)].into())).contains("unknown task `buy`"));
    assert!(error(StepSize::PerTask([("search".to_string(), 1)].into())).contains("no training records"));
    assert!(error(StepSize::PerTask([("rec".to_string(), 0)].into())).contains("without examples"));
}

#[test]
fn the_tally_counts_what_did_not_fit() {
    let mut tally = Tally::default();
    tally.add(&Example { tokens: vec![1; 5], labels_from: 4, dropped_items: 3, ..Example::default() });
    tally.add(&Example {
        tokens: vec![1; 3],
        labels_from: 1,
        encoder: Some(vec![1; 7]),
        cut_query: true,
        ..Example::default()
    });
    let want = Tally {
        examples: 2,
        rows: 13,
        labels: 3,
        shortened: 1,
        dropped_items: 3,
        cut_queries: 1,
        longest: 9,
    };
    assert_eq!(tally, want);
}

// ---- general text and semantic ids -----------------------------------------------------------

#[test]
fn general_text_is_split_disjointly_and_by_content() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("general.txt"), dir.path().join("general.jsonl"));
    let lines: Vec<String> = (0..400).map(|i| format!("document {}", i % 300)).collect();
    std::fs::write(&a, lines.join("\n")).unwrap();
    write(dir.path(), "general.jsonl", &[json!({"text": "document 5"}), json!({"text": " "})]);
    let settings = DataSettings { general_held_out: 0.3, ..DataSettings::default() };
    let text = GeneralText::load(&[a.clone(), b], &settings).unwrap();
    assert_eq!(text.calibration.len() + text.held_out.len(), 401);
    let held: BTreeSet<&String> = text.held_out.iter().collect();
    assert!(text.calibration.iter().all(|d| !held.contains(d)), "a duplicate straddles the split");
    let share = held.len() as f64 / 300.0;
    assert!((0.2..0.4).contains(&share), "{share}");
    let apart = dir.path().join("general-heldout.txt");
    std::fs::write(&apart, "document 1\nanother\n").unwrap();
    let text = GeneralText::load(&[a.clone(), apart], &settings).unwrap();
    assert_eq!(text.held_out, ["another"], "what was learned from is not measured with");
    std::fs::write(&a, b"fine\n\xff\n").unwrap();
    let error = GeneralText::load(&[a], &settings).unwrap_err().to_string();
    assert!(error.contains("general.txt line 2: not UTF-8"), "{error}");
}

#[test]
fn golden_general_text_is_cut_into_pieces() {
    let bench = Bench::new(false, cue());
    let documents = ["warm steel watch and a red leather rug".to_string(), String::new()];
    let whole = bench.vocabulary.encode(&documents[0]).unwrap();
    let pieces = GeneralText::chunks(&documents, &bench.vocabulary, 5, 0).unwrap();
    assert!(pieces.iter().all(|p| (2..=5).contains(&p.len())));
    let joined = pieces.concat();
    assert_eq!(joined, whole[..joined.len()]);
    assert!(whole.len() - joined.len() <= 1);
}

#[test]
fn residual_kmeans_finds_planted_clusters_and_tells_items_apart() {
    // Four far corners, each with two near positions, each of those twice: 16 items of 2 numbers.
    let mut embeddings = Vec::new();
    for corner in 0..4 {
        for near in 0..2 {
            for _ in 0..2 {
                embeddings.push(100.0 * (corner / 2) as f32 + near as f32);
                embeddings.push(100.0 * (corner % 2) as f32);
            }
        }
    }
    let ids = residual_kmeans(&embeddings, 2, 2, 4, 50, 3).unwrap();
    assert_eq!((ids.len(), ids.levels()), (16, 3), "equal embeddings need a third code");
    let distinct: BTreeSet<&[u32]> = (0..16).map(|i| ids.codes(i)).collect();
    assert_eq!(distinct.len(), 16);
    for i in 0..16 {
        for j in 0..16 {
            assert_eq!(
                i / 4 == j / 4,
                ids.codes(i)[0] == ids.codes(j)[0],
                "{i} {j}: first code is the corner"
            );
            assert_eq!(i / 2 == j / 2, ids.codes(i)[..2] == ids.codes(j)[..2], "{i} {j}");
        }
    }
    assert_eq!(ids, residual_kmeans(&embeddings, 2, 2, 4, 50, 3).unwrap());
    let error = residual_kmeans(&[1.0, f32::NAN], 1, 1, 2, 5, 0).unwrap_err().to_string();
    assert!(error.contains("item 1 has a component NaN"), "{error}");
    assert!(residual_kmeans(&[1.0, 2.0, 3.0], 2, 1, 2, 5, 0).is_err());
}

proptest! {
    #[test]
    fn semantic_ids_are_distinct(values in prop::collection::vec(-3i8..3, 3..60), levels in 1usize..4, codes in 1usize..9) {
        let n = values.len() / 3;
        let embeddings: Vec<f32> = values[..n * 3].iter().map(|v| *v as f32).collect();
        let ids = residual_kmeans(&embeddings, 3, levels, codes, 10, 7).unwrap();
        let distinct: BTreeSet<&[u32]> = (0..n).map(|i| ids.codes(i)).collect();
        prop_assert_eq!(distinct.len(), n);
    }
}
