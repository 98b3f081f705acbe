//! Tokenizers and item tokens against the reference's.

use super::{architecture, catalogue, is_t5, some_model};
use crate::support::{Golden, own_text};
use gems_engine::data::*;
use gems_engine::error::Error;
use serde_json::{Value, json};
use std::collections::BTreeSet;

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
            let prompt = |special| own_text(&vocabulary, text, special);
            assert_eq!(prompt(true), whole, "{model}: {text:?}");
            assert_eq!(prompt(false), bare, "{model}: {text:?}");
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
        // The reference's prompts name items, so they are templates here; the query only chooses among them.
        let named = |task: u64| {
            let rows = rows.iter().enumerate().filter(|(_, r)| r["task"] == task);
            let cases: String = rows
                .map(|(i, r)| format!("{{% elif query == '{i}' %}}{}", r["prompt"].as_str().unwrap()))
                .collect();
            format!("{{% if query == 'x' %}}{{{{ query }}}}{cases}{{% else %}}{{{{ query }}}}{{% endif %}}")
        };
        let settings = DataSettings {
            eos: EndOfSequence::Always,
            templates: [("rec".to_string(), named(0)), ("search".to_string(), named(1))].into(),
            ..DataSettings::default()
        };
        let (tasks, kind) = (["rec".to_string(), "search".to_string()], architecture(&golden, &model));
        let dir = golden.dir.join("models").join(&model);
        let vocabulary = Vocabulary::new(&dir, &items, &settings, kind, None).unwrap();
        assert_eq!(vocabulary.size(), vocabulary.base_size(), "{model}: the tokenizer has these items");
        let prompts = Prompts::new(&settings, None, Some(&vocabulary)).unwrap();
        let encoder = Encoder::new(&vocabulary, &prompts, &tasks, kind, &settings);
        let (mut examples, mut wanted) = (Vec::new(), Vec::new());
        for (i, row) in rows.iter().enumerate() {
            // Targets that are ordinary text are no items.
            let Some(item) = row["target"].as_str().and_then(pattern) else { continue };
            let record = Record {
                task: row["task"].as_u64().unwrap() as u32,
                query: Some(i.to_string().into()),
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
        let prompt = |v: &Vocabulary| own_text(v, text, false);
        let tokens = prompt(&vocabulary);
        assert!(tokens.contains(&(base + 1)) && tokens.contains(&base), "{model}: {tokens:?}");
        let out = tempfile::tempdir().unwrap();
        vocabulary.save(out.path(), &items).unwrap();
        let again = Vocabulary::new(out.path(), &items, &settings, kind, None).unwrap();
        assert_eq!(again.base_size(), vocabulary.size(), "{model}: nothing is added twice");
        assert_eq!(prompt(&again), tokens);
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
        let kind = if t5 { PromptSide::Encoder { decoder_start: 0 } } else { PromptSide::Decoder };
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
    let vocabulary = Vocabulary::new(&dir, &items, &settings, PromptSide::Decoder, Some(&codes)).unwrap();
    let base = vocabulary.base_size() as u32;
    // Tokens by level and code: <code_0_0> <code_0_3> <code_1_1> <code_1_2>.
    assert_eq!(vocabulary.item(0), [base, base + 2]);
    assert_eq!(vocabulary.item(1), [base, base + 3]);
    assert_eq!(vocabulary.item(2), [base + 1, base + 2]);
    assert_eq!(vocabulary.name(2), "<code_0_3><code_1_1>");
    let named = own_text(&vocabulary, vocabulary.name(2), false);
    assert_eq!(named, vocabulary.item(2));
    assert!(SemanticIds::new(2, vec![0, 1, 0, 1]).is_err());
    let other = SemanticIds::new(1, vec![0, 1]).unwrap();
    let error = Vocabulary::new(&dir, &items, &settings, PromptSide::Decoder, Some(&other)).err().unwrap();
    assert!(error.to_string().contains("2 semantic ids for 3 items"));
}

#[test]
fn tokenizers_that_cannot_be_used_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let open = || -> Error {
        let settings = DataSettings::default();
        let items = catalogue(&[]);
        Vocabulary::new(dir.path(), &items, &settings, PromptSide::Decoder, None).err().unwrap()
    };
    assert!(open().to_string().contains("must hold a tokenizer.json"), "{}", open());
    std::fs::write(dir.path().join("tokenizer.json"), "{}").unwrap();
    assert!(open().to_string().contains("tokenizer.json: not a tokenizer"), "{}", open());
}
