//! A run's catalogue over any catalogue of today, and its settings under any setting of a later command.

use crate::cli::golden_model;
use gems_engine::config::{Config, Layer, known_keys};
use gems_engine::data::{Catalogue, DataSettings, Dataset, GeneralText, ItemIdentity, Record, Split};
use gems_engine::run::{Part, Purpose, Reads, Run, Sources, part};
use proptest::prelude::*;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// Writes a data directory of these items and of test records over them.
fn write(dir: &Path, items: &[(u8, u8)], records: &[(Vec<u8>, Vec<u8>)]) {
    let item = |(id, text): &(u8, u8)| json!({"item": format!("i{id}"), "text": format!("t{text}")});
    let ids = |ids: &[u8]| ids.iter().map(|i| format!("i{i}")).collect::<Vec<_>>();
    let record = |(history, target): &(Vec<u8>, Vec<u8>)| json!({"task": "rec", "history": ids(history), "target": ids(target)});
    let text = |rows: Vec<serde_json::Value>| rows.iter().map(|row| format!("{row}\n")).collect::<String>();
    fs::write(dir.join("items.jsonl"), text(items.iter().map(item).collect())).unwrap();
    fs::write(dir.join("test.jsonl"), text(records.iter().map(record).collect())).unwrap();
}

fn run(dir: &Path, identity: ItemIdentity) -> Run {
    let mut config = Config::default();
    config.data = DataSettings { path: dir.display().to_string(), item_identity: identity, ..config.data };
    config.model.path = golden_model("llama_tied").display().to_string();
    let data = Dataset::load(dir, &config.data).unwrap();
    config.data.tasks = data.tasks.clone();
    let sources = Sources::of("", "", &data, &GeneralText::default());
    let path = dir.to_path_buf();
    Run { path, config, items: data.items, codes: None, chat: None, norms: None, sources }
}

/// Task, history and targets by the names of things.
fn named(data: &Dataset, split: &Split) -> Vec<(Vec<String>, Vec<String>)> {
    let ids = |numbers: &[u32]| numbers.iter().map(|n| data.items.id(*n).to_string()).collect();
    split.records.iter().map(|r| (ids(&r.history), ids(&r.target))).collect()
}

fn items() -> impl Strategy<Value = Vec<(u8, u8)>> {
    prop::collection::btree_map(0u8..12, any::<u8>(), 1..12)
        .prop_map(|all| all.into_iter().collect::<Vec<_>>())
        .prop_shuffle()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Numbers stay, records mean the same items, and what the model does not know is in no record.
    #[test]
    fn records_keep_their_meaning_in_the_runs_numbers(
        then in items(), now in items(), picks in prop::collection::vec((prop::collection::vec(any::<u8>(), 1..4), prop::collection::btree_set(any::<u8>(), 1..3)), 1..8), by_text in any::<bool>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let first = [(vec![then[0].0], vec![then[0].0])];
        write(dir.path(), &then, &first);
        let identity = if by_text { ItemIdentity::Text } else { ItemIdentity::Atomic };
        let run = run(dir.path(), identity);
        // Records may name what is listed now and what was listed then.
        let ids: Vec<u8> = then.iter().chain(&now).map(|(id, _)| *id).collect::<BTreeSet<_>>().into_iter().collect();
        let choose = |n: &u8| ids[*n as usize % ids.len()];
        let picked: Vec<(Vec<u8>, Vec<u8>)> = picks.iter().map(|(history, target)| {
            let target: BTreeSet<u8> = target.iter().map(choose).collect();
            (history.iter().map(choose).collect(), target.into_iter().collect())
        }).collect();
        write(dir.path(), &now, &picked);
        let read = run.data(&run.config, Reads::Tests).unwrap();
        let data = &read.data;
        for number in 0..run.items.len() as u32 {
            prop_assert_eq!(data.items.id(number), run.items.id(number));
            prop_assert_eq!(data.items.text(number), run.items.text(number));
        }
        let known = |id: &u8| by_text || then.iter().any(|(then, _)| then == id);
        let names = |ids: &[u8]| ids.iter().filter(|id| known(id)).map(|id| format!("i{id}")).collect::<Vec<_>>();
        let want: Vec<_> = picked.iter().map(|(history, target)| (names(history), names(target)))
            .filter(|(history, target)| !history.is_empty() && !target.is_empty()).collect();
        prop_assert_eq!(named(data, &data.test), want);
        let added = now.iter().filter(|(id, _)| !then.iter().any(|(t, _)| t == id)).count();
        prop_assert_eq!(data.items.len(), run.items.len() + if by_text { added } else { 0 });
        // Everything that differs is said, and nothing else.
        let said = |part: &str| read.notes.iter().any(|note| note.contains(part));
        let common: Vec<u8> = now.iter().map(|(id, _)| *id).filter(|id| then.iter().any(|(t, _)| t == id)).collect();
        let mut in_order = common.clone();
        in_order.sort_by_key(|id| then.iter().position(|(t, _)| t == id));
        prop_assert_eq!(said("another order"), common != in_order);
        prop_assert_eq!(said("added (i"), added > 0);
        prop_assert_eq!(said("removed (i"), common.len() < then.len());
        let retitled = now.iter().any(|(id, text)| then.iter().any(|(t, old)| t == id && old != text));
        prop_assert_eq!(said("another text (i") || said("other texts (i"), retitled);
        let same = picked == first;
        prop_assert_eq!(read.same_tests, same);
    }
}

#[test]
fn a_part_is_what_its_records_say() {
    let items = |order: [&str; 3]| {
        let mut items = Catalogue::default();
        order.iter().for_each(|id| assert!(items.add(id, None).is_ok()));
        items
    };
    let record = |items: &Catalogue, history: &[&str], target: &str| Record {
        history: history.iter().map(|id| items.number(id).unwrap()).collect(),
        target: [items.number(target).unwrap()].into(),
        ..Record::default()
    };
    let of = |order, rows: &[(&[&str], &str)], task: &str| -> Part {
        let items = items(order);
        let records = rows.iter().map(|(history, target)| record(&items, history, target)).collect();
        part(&Split { name: "x".into(), records }, &items, &[task.into()])
    };
    let rows: [(&[&str], &str); 2] = [(&["a", "b"], "c"), (&["c"], "a")];
    let one = of(["a", "b", "c"], &rows, "rec");
    assert_eq!(one.count, 2);
    assert_eq!(one, of(["c", "a", "b"], &rows, "rec"), "numbers do not count");
    assert_ne!(one, of(["a", "b", "c"], &rows, "search"));
    assert_ne!(one, of(["a", "b", "c"], &[rows[1], rows[0]], "rec"), "order does");
    assert_ne!(one, of(["a", "b", "c"], &[(&["b", "a"], "c"), rows[1]], "rec"));
    assert_ne!(one, of(["a", "b", "c"], &[(&["a"], "b"), rows[1]], "rec"));
}

/// A value of a setting that is not the one it has.
fn other(value: &toml::Value) -> toml::Value {
    match value {
        toml::Value::String(text) => match text.as_str() {
            "auto" => "cpu".into(),
            "" | "ndcg@10" => "loss".into(),
            other => format!("{other}x").into(),
        },
        toml::Value::Integer(n) => (n + 1).into(),
        toml::Value::Float(x) => (x * 0.5 + 0.125).into(),
        toml::Value::Boolean(b) => (!b).into(),
        toml::Value::Array(list) => list.iter().take(1).cloned().collect::<Vec<_>>().into(),
        other => other.clone(),
    }
}

/// The settings that docs/runs.md lists in the column of `who`.
fn documented(who: &str) -> BTreeSet<String> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/runs.md")).unwrap();
    let mut rows =
        text.lines().skip_while(|l| !l.starts_with("| setting |")).take_while(|l| l.starts_with('|'));
    let cells = |row: &str| row.split('|').map(|c| c.trim().to_string()).collect::<Vec<_>>();
    let column = cells(rows.next().unwrap()).iter().position(|c| c == who).unwrap();
    let rows = rows.skip(1).map(cells).filter(|row| row[column] == "yes");
    rows.flat_map(|row| {
        row[1].split(',').map(|key| key.trim().trim_matches('`').to_string()).collect::<Vec<_>>()
    })
    .collect()
}

#[test]
fn exactly_what_is_documented_may_be_changed() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &[(0, 0), (1, 1)], &[(vec![0], vec![1])]);
    let run = run(dir.path(), ItemIdentity::Atomic);
    let table = toml::Table::try_from(&run.config).unwrap();
    let (mut tried, mut counts) = (0, BTreeMap::new());
    for (purpose, who) in [(Purpose::Resume, "resume"), (Purpose::Read, "evaluate, rank, export")] {
        let listed = documented(who);
        let on_list = |key: &str| {
            listed.iter().any(|l| l == key || l.strip_suffix('*').is_some_and(|s| key.starts_with(s)))
        };
        for key in known_keys(&Config::schema()) {
            let mut parts = key.split('.');
            let first = table.get(parts.next().unwrap());
            let Some(value) = parts.try_fold(first, |v, part| Some(v?.get(part))).flatten() else { continue };
            if value.is_table() {
                continue;
            }
            let changed = other(value);
            let given = vec![Layer::value("--set", &key, changed.clone())];
            match run.settings(given, purpose) {
                Ok((_, changes)) if &changed == value => assert!(changes.is_empty(), "{key}"),
                Ok((_, changes)) => {
                    assert!(on_list(&key), "{who} may change {key}, which is not documented");
                    assert!(changes.len() == 1 && changes[0].key == key, "{key}: {changes:?}");
                    *counts.entry(who).or_insert(0) += 1;
                }
                Err(error) => {
                    let own = error.to_string().contains("cannot change");
                    assert!(
                        !(own && on_list(&key)),
                        "{who} may not change {key}, which is documented: {error}"
                    );
                }
            }
            tried += 1;
        }
    }
    assert!(tried > 100 && counts.values().all(|n| *n > 8), "{tried} tried, accepted {counts:?}");
}
