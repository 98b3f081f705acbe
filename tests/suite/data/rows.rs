//! Rows of the data directory that `prepare` may write: texts that answer; general text drawn from a whole file.

use crate::cli::golden_model;
use gems_engine::data::*;
use serde_json::{Value, json};
use std::path::Path;

fn write(dir: &Path, name: &str, rows: &[Value]) {
    std::fs::write(dir.join(name), rows.iter().map(|r| format!("{r}\n")).collect::<String>()).unwrap();
}

fn load(rows: &[Value]) -> Result<Dataset, String> {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "items.jsonl", &[json!({"item": "a", "text": "warm scarf"}), json!({"item": "b"})]);
    write(dir.path(), "train.jsonl", rows);
    let settings = DataSettings { prompts: PromptPreset::Cue, ..DataSettings::default() };
    Dataset::load(dir.path(), &settings).map_err(|e| e.to_string())
}

#[test]
fn a_text_may_answer_a_request() {
    let data = load(&[
        json!({"task": "item-to-title", "history": ["a"], "answer": "warm scarf"}),
        json!({"task": "title-to-item", "query": "warm scarf", "target": ["a", "b"]}),
    ])
    .unwrap();
    assert_eq!(data.tasks, ["item-to-title", "title-to-item"]);
    assert_eq!(data.train.records[0].answer.as_deref(), Some("warm scarf"));
    assert_eq!(data.train.records.iter().map(Encoder::examples).collect::<Vec<_>>(), [1, 2]);
    for (row, said) in [
        (
            json!({"task": "item-to-title", "history": ["a"], "answer": "x", "target": ["a"]}),
            "target: a row with `answer`",
        ),
        (
            json!({"task": "item-to-title", "answer": "x"}),
            "history: empty, but the prompt of task `item-to-title`",
        ),
        (json!({"task": "item-to-title", "history": ["a"], "answer": " "}), "target: missing or empty"),
        (json!({"task": "item-to-title", "history": ["a"], "answer": ["x"]}), "answer: the list"),
        (json!({"task": "rec", "text": "x", "answer": "x"}), "answer: a row with `text`"),
        (json!({"task": "serach", "query": "x", "target": ["a"]}), "did you mean `search`?"),
        (json!({"task": "item-to-title", "history": ["a"], "anwser": "x"}), "did you mean `answer`?"),
    ] {
        let error = load(std::slice::from_ref(&row)).unwrap_err();
        assert!(error.contains("train.jsonl line 1") && error.contains(said), "{row}: {error}");
    }
}

#[test]
fn golden_an_answer_stands_behind_its_prompt_with_its_end() {
    let settings =
        DataSettings { prompts: PromptPreset::Cue, item_token: "<new_{}>".into(), ..DataSettings::default() };
    let data = load(&[json!({"task": "item-to-title", "history": ["a"], "answer": "warm scarf"})]).unwrap();
    let kind = PromptSide::Decoder;
    let vocabulary =
        Vocabulary::new(&golden_model("llama_tied"), &data.items, &settings, kind, None).unwrap();
    let prompts = Prompts::new(&settings, None, None).unwrap();
    let encoder = Encoder::new(&vocabulary, &prompts, &data.tasks, kind, &settings);
    let example = encoder.encode(&data.train.records[0], 0).unwrap();
    let prompt = encoder.prompt(&data.train.records[0]).unwrap();
    let mut want = prompt.clone();
    want.extend(vocabulary.plain(" warm scarf").unwrap());
    want.extend(vocabulary.eos());
    assert_eq!((example.tokens, example.labels_from), (want, prompt.len()));
    assert!(prompt.contains(&vocabulary.item(0)[0]), "the prompt shows the item");
    // A long answer is cut where the sequence ends.
    let short = DataSettings { max_length: prompt.len() + 1, ..settings.clone() };
    let encoder = Encoder::new(&vocabulary, &prompts, &data.tasks, kind, &short);
    let cut = encoder.encode(&data.train.records[0], 0).unwrap();
    assert!(cut.tokens.len() <= prompt.len() + 1 && cut.labels() >= 1);
}

#[test]
fn golden_general_text_is_drawn_from_the_whole_of_it() {
    let settings = DataSettings::default();
    let none = Catalogue::default();
    let plain = DataSettings { item_identity: ItemIdentity::Text, ..settings };
    let vocabulary =
        Vocabulary::new(&golden_model("llama_tied"), &none, &plain, PromptSide::Decoder, None).unwrap();
    let token = |word: &str| *vocabulary.plain(&format!(" {word}")).unwrap().last().unwrap();
    let words = ["warm", "steel", "red", "leather"];
    let count =
        |pieces: &[Vec<u32>], word: &str| pieces.iter().flatten().filter(|t| **t == token(word)).count();
    // Four quarters of a word each: as documents, and as a single line.
    let documents: Vec<String> = words.iter().flat_map(|w| vec![format!("{w} ").repeat(50); 500]).collect();
    let line = vec![words.iter().map(|w| format!("{w} ").repeat(25_000)).collect::<String>()];
    for (documents, most) in [(documents, 4000), (line, 8000)] {
        let pieces = GeneralText::chunks(&documents, &vocabulary, 16, most).unwrap();
        assert_eq!(pieces, GeneralText::chunks(&documents, &vocabulary, 16, most).unwrap());
        let total: usize = pieces.iter().map(Vec::len).sum();
        assert!((most..most + 200).contains(&total), "{total}");
        assert!(pieces.iter().all(|p| (2..=16).contains(&p.len())));
        for word in words {
            // A quarter each; windows are few, so give or take a half of it.
            let found = count(&pieces, word);
            assert!((total / 8..total / 2).contains(&found), "{word}: {found} of {total}");
        }
        // In the order of the text.
        let first = |word: &str| pieces.iter().position(|p| p.contains(&token(word))).unwrap();
        assert!(words.windows(2).all(|w| first(w[0]) <= first(w[1])));
    }
}
