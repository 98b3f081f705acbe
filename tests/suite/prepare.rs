//! `prepare`: sources in their public schemas, with every number computed by hand; bad input; sameness.

use arrow_array::builder::{Int64Builder, ListBuilder, StringBuilder, StructBuilder};
use arrow_array::{ArrayRef, RecordBatch};
use arrow_schema::{DataType, Field, Fields};
use assert_cmd::Command;
use gems_engine::data::{DataSettings, Dataset};
use gems_engine::error::{Kind, Result};
use gems_engine::prepare::{
    Amazon, Card, EventColumns, Events, Format, HistoryRule, KuaiSar, Leaks, Qilin, Settings, Source,
    SplitRule, Target, Watch, World, check, run, synth,
};
use serde_json::{Value, json};
use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

fn fixtures(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn target(out: &Path) -> Target {
    Target { out: out.into(), overwrite: false, general: None }
}

fn watched<T>(work: impl FnOnce(&mut Watch) -> T) -> T {
    let interrupted = AtomicBool::new(false);
    work(&mut Watch { tick: &mut |_, _, _| {}, interrupted: &interrupted })
}

/// Nothing is filtered, and no negatives.
fn plain() -> Settings {
    let mut settings = Settings::default();
    (settings.core.user, settings.core.item) = (1, 1);
    settings.negatives.set("none").unwrap();
    settings
}

fn prepare(source: &Source, settings: &Settings, out: &Path) -> Result<Card> {
    watched(|watch| run(source, settings, &target(out), watch))
}

fn events_of(files: Vec<PathBuf>) -> Events {
    Events { files, items: Vec::new(), columns: EventColumns::default() }
}

/// Writes events as JSONL and returns them as a source.
fn events(dir: &Path, rows: &[Value]) -> Source {
    let path = dir.join("events.jsonl");
    fs::write(&path, rows.iter().map(|r| format!("{r}\n")).collect::<String>()).unwrap();
    Source::Events(Box::new(events_of(vec![path])))
}

fn event(user: &str, time: i64, item: &str, query: Option<&str>) -> Value {
    json!({"user": user, "timestamp": time, "item": item, "query": query})
}

fn rows(dir: &Path, split: &str) -> Vec<Value> {
    let text = fs::read_to_string(dir.join(format!("{split}.jsonl"))).unwrap();
    text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

/// (task, history, query, targets) of every row.
type Short = (String, Vec<String>, String, Vec<String>);

fn short(dir: &Path, split: &str) -> Vec<Short> {
    let list = |v: &Value| v.as_array().unwrap().iter().map(|i| i.as_str().unwrap().to_string()).collect();
    let text = |v: &Value| v.as_str().unwrap_or_default().to_string();
    rows(dir, split)
        .iter()
        .map(|r| (text(&r["task"]), list(&r["history"]), text(&r["query"]), list(&r["target"])))
        .collect()
}

fn row(task: &str, history: &str, query: &str, targets: &str) -> Short {
    let list = |text: &str| text.split_whitespace().map(String::from).collect();
    (task.into(), list(history), query.into(), list(targets))
}

fn texts(dir: &Path) -> HashMap<String, Option<String>> {
    let of = |r: &Value| (r["item"].as_str().unwrap().to_string(), r["text"].as_str().map(String::from));
    rows(dir, "items").iter().map(of).collect()
}

// ---- the pipeline ----------------------------------------------------------------------------------

#[test]
fn the_k_core_is_taken_to_its_fixed_point() {
    let dir = tempfile::tempdir().unwrap();
    // w has one event, so d falls; then z has one, so c falls; then x and y have two each, and a and b stay.
    let log =
        [("a", "x"), ("a", "y"), ("b", "x"), ("b", "y"), ("c", "y"), ("c", "z"), ("d", "z"), ("d", "w")];
    let log: Vec<Value> =
        log.iter().enumerate().map(|(t, (user, item))| event(user, t as i64, item, Some("q"))).collect();
    let mut settings = plain();
    (settings.core.user, settings.core.item) = (2, 2);
    settings.split = SplitRule::Time { valid: 0.1, test: 0.1, valid_from: Some(2), test_from: Some(3) };
    let out = dir.path().join("out");
    let card = prepare(&events(dir.path(), &log), &settings, &out).unwrap();
    assert_eq!((card.core.users, card.core.users_left, card.core.items, card.core.items_left), (4, 2, 4, 2));
    assert_eq!(short(&out, "train"), [row("search", "", "q", "x"), row("search", "x", "q", "y")]);
    assert_eq!(short(&out, "valid"), [row("search", "", "q", "x")]);
    assert_eq!(short(&out, "test"), [row("search", "x", "q", "y")]);
    assert_eq!(texts(&out).into_keys().collect::<BTreeSet<_>>(), BTreeSet::from(["x".into(), "y".into()]));
    settings.core.user = 3;
    let error = prepare(&events(dir.path(), &log), &settings, &dir.path().join("none")).unwrap_err();
    assert!(error.to_string().contains("nothing is left"), "{error}");
}

/// One user who meets items again in another task.
fn crossing() -> Vec<Value> {
    let rec = |t, item| event("u", t, item, None);
    let search = |t, item, query| event("u", t, item, Some(query));
    vec![
        rec(1, "A"),
        rec(2, "B"),
        search(3, "A", "qa"),
        rec(4, "C"),
        search(5, "D", "qd"),
        search(6, "B", "qb"),
        rec(7, "D"),
    ]
}

#[test]
fn leave_one_out_with_and_without_pairs_across_tasks() {
    let dir = tempfile::tempdir().unwrap();
    let source = events(dir.path(), &crossing());
    let (honest, leaky) = (dir.path().join("honest"), dir.path().join("leaky"));
    let card = prepare(&source, &plain(), &honest).unwrap();
    // D and B are held out for the test, C for validation.
    assert_eq!(short(&honest, "train"), [row("search", "A", "qa", "A")]);
    assert_eq!(short(&honest, "valid"), [row("rec", "A A", "", "C")]);
    assert_eq!(
        short(&honest, "test"),
        [row("search", "A A C D", "qb", "B"), row("rec", "A B A C B", "", "D")]
    );
    let before = Leaks {
        pairs: 2,
        trained: 0,
        trained_elsewhere: 1,
        in_training_history: 1,
        in_own_history: 2,
        any: 2,
    };
    assert_eq!(card.written.leaks_before, before);
    assert_eq!(card.written.leaks, Leaks { pairs: 2, ..Leaks::default() });
    assert_eq!((card.leak_rate_before, card.leak_rate), (1.0, 0.0));
    // What is written is measured again, from the files.
    let found = check(&honest, &DataSettings::default(), None).unwrap();
    assert_eq!(found.leaks, Leaks { pairs: 2, ..Leaks::default() });

    let published = Settings { exclude_pairs: false, ..plain() };
    let card = prepare(&source, &published, &leaky).unwrap();
    assert_eq!(short(&leaky, "train"), [row("rec", "A", "", "B"), row("search", "A B", "qa", "A")]);
    assert_eq!(short(&leaky, "valid"), [row("rec", "A B A", "", "C"), row("search", "A B A C", "qd", "D")]);
    assert_eq!(
        short(&leaky, "test"),
        [row("search", "A B A C D", "qb", "B"), row("rec", "A B A C D B", "", "D")]
    );
    assert_eq!((card.written.leaks, card.leak_rate), (before, 1.0));
    assert_eq!(check(&leaky, &DataSettings::default(), None).unwrap().leaks, before);
}

#[test]
fn histories_of_one_task_of_all_and_cut() {
    let dir = tempfile::tempdir().unwrap();
    let source = events(dir.path(), &crossing());
    for (rule, rec, search) in [
        (HistoryRule::Own, "A B C", "A D"),
        (HistoryRule::SearchSeesAll, "A B C", "A B A C D"),
        (HistoryRule::All, "A B A C D B", "A B A C D"),
    ] {
        for most in [50, 2] {
            let out = dir.path().join(format!("{rule:?}{most}"));
            let settings = Settings { history: rule, max_history: most, exclude_pairs: false, ..plain() };
            prepare(&source, &settings, &out).unwrap();
            let last = |items: &str| {
                let all: Vec<&str> = items.split(' ').collect();
                all[all.len().saturating_sub(most)..].join(" ")
            };
            let want = [row("search", &last(search), "qb", "B"), row("rec", &last(rec), "", "D")];
            assert_eq!(short(&out, "test"), want, "{rule:?}, {most}");
        }
    }
}

#[test]
fn what_happens_at_one_instant_is_no_history_and_repeats_count_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut log =
        vec![event("u", 1, "A", Some("q")), event("u", 2, "B", Some("q")), event("u", 2, "C", Some("r"))];
    log.push(event("u", 2, "C", Some("r")));
    log.push(event("u", 3, "D", Some("q")));
    let out = dir.path().join("out");
    let card = prepare(&events(dir.path(), &log), &plain(), &out).unwrap();
    assert_eq!((card.events, card.repeated), (5, 1));
    assert_eq!(short(&out, "train"), [row("search", "", "q", "A"), row("search", "A", "q", "B")]);
    assert_eq!(short(&out, "valid"), [row("search", "A", "r", "C")]);
    assert_eq!(short(&out, "test"), [row("search", "A B C", "q", "D")]);
}

#[test]
fn a_split_by_time_takes_shares_of_all_requests() {
    let dir = tempfile::tempdir().unwrap();
    let log: Vec<Value> = (0..10).map(|t| event(&format!("u{t}"), t, &format!("i{t}"), Some("q"))).collect();
    let out = dir.path().join("out");
    let split = SplitRule::Time { valid: 0.2, test: 0.2, valid_from: None, test_from: None };
    let card = prepare(&events(dir.path(), &log), &Settings { split, ..plain() }, &out).unwrap();
    assert_eq!(card.bounds, Some((6, 8)));
    assert_eq!(["train", "valid", "test"].map(|s| card.written.of(s)), [6, 2, 2]);
}

// ---- sources ---------------------------------------------------------------------------------------

#[test]
fn events_in_shards_with_their_own_column_names() {
    let dir = tempfile::tempdir().unwrap();
    let mut columns = EventColumns::default();
    for role in ["user=uid", "item=sku", "timestamp=ts", "task=kind", "query=typed", "label=score"] {
        columns.set(role).unwrap();
    }
    let source =
        Source::Events(Box::new(Events { files: vec![fixtures("events")], items: Vec::new(), columns }));
    let mut settings = plain();
    // 2024-05-01 10:00:05 is 1714557605.
    let (valid_from, test_from) = (Some(1_714_557_605), Some(1_714_557_611));
    settings.split = SplitRule::Time { valid: 0.1, test: 0.1, valid_from, test_from };
    settings.negatives.set("rec=impressions:5").unwrap();
    let out = dir.path().join("out");
    prepare(&source, &settings, &out).unwrap();
    let one = |items: &[&str]| items.iter().map(|i| i.to_string()).collect::<Vec<_>>();
    let mut train = short(&out, "train");
    train.sort();
    let wanted = [
        ("rec".into(), one(&["z0"]), String::new(), one(&["a,1"])),
        ("search".into(), vec![], "q".into(), one(&["z0"])),
        ("search".into(), vec![], "q2".into(), one(&["c3"])),
    ];
    assert_eq!(train, wanted);
    let valid = [("search".into(), one(&["z0", "a,1"]), "two\nlines".into(), one(&["b \"2\""]))];
    assert_eq!(short(&out, "valid"), valid);
    let test = rows(&out, "test");
    assert_eq!(test[0]["negatives"], json!(["c3"]), "shown before d4 and not taken");
    assert_eq!((&test[0]["user"], &test[0]["timestamp"]), (&json!("ann"), &json!(1_714_557_611)));
    assert_eq!(test[0]["history"], json!(["z0", "a,1", "b \"2\""]));
}

#[test]
fn qilin_as_csv_of_numpy_literals() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let source = Source::Qilin(Qilin { dir: fixtures("qilin"), contents: false });
    let card = prepare(&source, &plain(), &out).unwrap();
    check_qilin(&card, &out);
    assert_eq!(card.read.dropped["request without a click"], 1);
    let texts = texts(&out);
    let text = |item: &str| texts[item].as_deref();
    assert_eq!(text("10"), Some("ten"));
    assert_eq!(text("11"), Some("eleven, with a comma"));
    assert_eq!(text("12"), Some("only a content"));
    assert_eq!(text("15"), Some("十五"));
    assert_eq!(text("18"), None);
    assert_eq!(texts.len(), 8, "13 was never clicked, 99 never shown");
}

fn check_qilin(card: &Card, out: &Path) {
    let train = [
        row("search", "11", "猫 玩具", "12"),
        row("search", "11 12", "cat, \"toy\"", "14 12"),
        row("rec", "11 12 14 12", "", "17"),
    ];
    assert_eq!(short(out, "train"), train);
    let valid = [row("rec", "11 12 14 12 17", "", "10"), row("search", "11 12 14 12 17 10", "dog", "15")];
    assert_eq!(short(out, "valid"), valid);
    let test = [
        row("rec", "11 12 14 12 17 10 15", "", "18"),
        row("search", "11 12 14 12 17 18 10 15 18", "bird", "16"),
    ];
    assert_eq!(short(out, "test"), test);
    let leaks = Leaks { pairs: 2, trained: 1, in_own_history: 1, any: 1, ..Leaks::default() };
    assert_eq!(card.written.leaks_before, leaks);
    assert_eq!(card.leak_rate, 0.0);
    assert_eq!(card.written.dropped["history item held out"], 3);
    assert_eq!(card.written.dropped["target held out for a later split"], 1);
    assert_eq!(card.written.dropped["history too short"], 1);
}

#[test]
fn qilin_as_published_and_with_its_own_test() {
    let dir = tempfile::tempdir().unwrap();
    let source = Source::Qilin(Qilin { dir: fixtures("qilin"), contents: false });
    let mut settings = Settings::default();
    source.publish(&mut settings);
    assert_eq!((settings.core.user, settings.core.item, settings.core.per_task), (3, 3, 3));
    // The fixture is too small for three of everything.
    (settings.core.item, settings.core.per_task) = (2, 2);
    let out = dir.path().join("published");
    let card = prepare(&source, &settings, &out).unwrap();
    let train = [
        row("rec", "10", "", "11"),
        row("search", "10 11", "猫 玩具", "12"),
        row("rec", "10 11", "", "17"),
        row("rec", "10 11", "", "18"),
    ];
    assert_eq!(short(&out, "train"), train);
    let valid =
        [row("search", "10 11 12", "cat, \"toy\"", "14"), row("search", "10 11 12", "cat, \"toy\"", "12")];
    assert_eq!(short(&out, "valid"), valid);
    assert_eq!(short(&out, "test"), [row("search", "", "dog", "15"), row("rec", "10", "", "18")]);
    assert_eq!(card.leak_rate, 0.5);
    // Of the eight items that are left the user took all but 13.
    assert!(rows(&out, "test").iter().all(|r| r["negatives"] == json!(["13"])));
    assert_eq!(card.written.short_of_negatives, 4);

    let given = dir.path().join("given");
    prepare(&source, &Settings { split: SplitRule::Given, ..plain() }, &given).unwrap();
    let test = [row("search", "11 12 14 12 17 18 10 15 18", "bird", "16")];
    assert_eq!(short(&given, "test"), test);
}

/// A user, what was typed, recent clicks, and results as (note, click, time).
type QilinRequest<'a> = (i64, Option<&'a str>, &'a [i64], &'a [(i64, i64, i64)]);

/// A table of requests as Qilin's Parquet has them.
fn qilin_parquet(path: &Path, results: &str, time: &str, requests: &[QilinRequest]) {
    let whole = |name: &str| Field::new(name, DataType::Int64, true);
    let fields = Fields::from(vec![whole("note_idx"), whole("click"), whole(time)]);
    let builders =
        || (0..3).map(|_| Box::new(Int64Builder::new()) as Box<dyn arrow_array::builder::ArrayBuilder>);
    let mut shown = ListBuilder::new(StructBuilder::new(fields, builders().collect()));
    let (mut user, mut query) = (Int64Builder::new(), StringBuilder::new());
    let mut history = ListBuilder::new(Int64Builder::new());
    for (of_user, typed, recent, entries) in requests {
        user.append_value(*of_user);
        query.append_option(*typed);
        recent.iter().for_each(|n| history.values().append_value(*n));
        history.append(true);
        for (note, click, at) in *entries {
            for (i, value) in [note, click, at].into_iter().enumerate() {
                shown.values().field_builder::<Int64Builder>(i).unwrap().append_value(*value);
            }
            shown.values().append(true);
        }
        shown.append(true);
    }
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("user_idx", Arc::new(user.finish())),
        ("query", Arc::new(query.finish())),
        ("recent_clicked_note_idxs", Arc::new(history.finish())),
        (results, Arc::new(shown.finish())),
    ];
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let file = fs::File::create(path).unwrap();
    let mut writer = parquet::arrow::ArrowWriter::try_new(file, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

#[test]
fn qilin_as_parquet_is_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (dir.path().join("qilin"), dir.path().join("out"));
    let (results, time) = ("search_result_details_with_idx", "search_timestamp");
    let train = data.join("search_train/search_train-00000-of-00001.parquet");
    let (a, b, c, d) = (1_700_000_000, 1_700_000_100, 1_700_000_200, 1_700_000_300);
    qilin_parquet(
        &train,
        results,
        time,
        &[
            (1, Some("猫 玩具"), &[10, 11], &[(12, 1, a), (13, 0, a)]),
            (1, Some("cat, \"toy\""), &[10, 11, 12], &[(14, 1, b), (12, 1, b), (15, 0, b)]),
            (1, Some("猫"), &[], &[(13, 0, c)]),
            (1, Some("dog"), &[], &[(15, 1, d)]),
        ],
    );
    let e = 1_700_000_900;
    let bird: &[(i64, i64, i64)] = &[(16, 1, e), (14, 0, e)];
    qilin_parquet(
        &data.join("search_test/0.parquet"),
        results,
        time,
        &[(1, Some("bird"), &[10, 11, 12], bird)],
    );
    let (a, b, c, d) = (1_699_999_000, 1_700_000_150, 1_700_000_250, 1_700_000_350);
    qilin_parquet(
        &data.join("recommendation_train/0.parquet"),
        "rec_result_details_with_idx",
        "request_timestamp",
        &[
            (1, None, &[10], &[(11, 1, a), (17, 0, a)]),
            (1, None, &[10, 11], &[(17, 1, b), (18, 1, b)]),
            (1, None, &[], &[(10, 1, c)]),
            (1, None, &[10], &[(18, 1, d), (13, 0, d)]),
        ],
    );
    let source = Source::Qilin(Qilin { dir: data, contents: false });
    let card = prepare(&source, &plain(), &out).unwrap();
    check_qilin(&card, &out);
}

#[test]
fn kuaisar_sessions_kinds_and_categories() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let source = Source::KuaiSar(KuaiSar { dir: fixtures("kuaisar") });
    let card = prepare(&source, &plain(), &out).unwrap();
    assert_eq!(short(&out, "train"), [row("search", "100", "31 7", "101")]);
    let valid = [row("search", "100 101", "8", "102 103"), row("rec", "100 101 102 103 103", "", "104")];
    assert_eq!(short(&out, "valid"), valid);
    let test = [
        row("rec", "100 101 102 103 103 104", "", "105"),
        row("search", "100 101 102 103 103 104 105", "9 9", "106"),
    ];
    assert_eq!(short(&out, "test"), test);
    assert_eq!((card.repeated, card.read.dropped["neither video nor image"]), (1, 1));
    let texts = texts(&out);
    let of = |item: &str| texts[item].clone();
    assert_eq!(of("100"), Some("Food, Cakes".into()));
    assert_eq!((of("101"), of("102"), of("104")), (Some("Food".into()), None, Some("Sports".into())));
}

#[test]
fn amazon_queries_take_the_time_of_the_review() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let source = Source::Amazon(Amazon { dir: fixtures("amazon") });
    let card = prepare(&source, &plain(), &out).unwrap();
    let of = |user: &str, split: &str| -> Vec<Short> {
        let mine: Vec<bool> = rows(&out, split).iter().map(|r| r["user"] == user).collect();
        let all = short(&out, split);
        all.into_iter().zip(mine).filter(|(_, mine)| *mine).map(|(row, _)| row).collect()
    };
    assert_eq!(of("U1", "train"), [row("search", "", "toys puzzles", "B1")]);
    assert_eq!(of("U1", "valid"), [row("search", "B1 B1", "toys kites", "B2")]);
    let test = [row("search", "B1 B1 B2 B2", "toys trains", "B3"), row("rec", "B1 B1 B2 B2 B3 B3", "", "B4")];
    assert_eq!(of("U1", "test"), test);
    assert_eq!(of("U2", "train"), [row("search", "", "toys puzzles", "B1")]);
    let valid = [row("search", "B1 B1", "toys trains", "B3"), row("rec", "B1 B1 B3 B3", "", "B4")];
    assert_eq!(of("U2", "valid"), valid);
    let test = [row("rec", "B1 B1 B3 B3", "", "B2"), row("search", "B1 B1 B3 B3", "toys kites", "B2")];
    assert_eq!(of("U2", "test"), test);
    assert_eq!(card.read.dropped["no event of the pair with a time"], 1, "B9 was never reviewed");
    let texts = texts(&out);
    let want = [("B1", "Puzzle 'Owl'"), ("B2", "Kites"), ("B3", "Train"), ("B4", "Owl's Nest")];
    want.iter().for_each(|(item, text)| assert_eq!(texts[*item].as_deref(), Some(*text)));
}

// ---- negatives -------------------------------------------------------------------------------------

fn world(users: u64, items: usize) -> World {
    World {
        users,
        items,
        length: 9,
        conflict: 0.5,
        noise: 0.1,
        leak: 0.0,
        seed: 3,
        format: Format::Jsonl,
        events: false,
    }
}

/// A world's events as a source.
fn world_events(dir: &Path, world: World) -> Source {
    let out = dir.join("events");
    watched(|watch| synth(&World { events: true, ..world }, &target(&out), watch)).unwrap();
    let extension = world.format.extension();
    let file = |name: &str| out.join(format!("{name}.{extension}"));
    Source::Events(Box::new(Events { items: vec![file("items")], ..events_of(vec![file("events")]) }))
}

#[test]
fn negatives_are_never_positives_and_as_many_as_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let source = world_events(dir.path(), world(60, 90));
    let mut taken: HashMap<String, BTreeSet<String>> = HashMap::new();
    for event in rows(&dir.path().join("events"), "events") {
        let text = |key: &str| event[key].as_str().unwrap().to_string();
        taken.entry(text("user")).or_default().insert(text("item"));
    }
    let all: BTreeSet<&String> = taken.values().flatten().collect();
    for kind in ["uniform:20", "popularity:20", "uniform:5,popularity:15", "bm25:4,uniform:16", "uniform:500"]
    {
        let mut settings = plain();
        settings.negatives.set(kind).unwrap();
        let out = dir.path().join(kind.replace([':', ','], "-"));
        prepare(&source, &settings, &out).unwrap();
        for row in rows(&out, "test").iter().chain(&rows(&out, "valid")) {
            let negatives: Vec<&str> =
                row["negatives"].as_array().unwrap().iter().map(|n| n.as_str().unwrap()).collect();
            let user = &taken[row["user"].as_str().unwrap()];
            assert!(negatives.iter().all(|n| !user.contains(*n)), "{kind}: {row}");
            assert_eq!(negatives.iter().collect::<BTreeSet<_>>().len(), negatives.len(), "{kind}: {row}");
            let want = if kind == "uniform:500" { all.len() - user.len() } else { 20 };
            assert_eq!(negatives.len(), want, "{kind}");
        }
        assert!(rows(&out, "train").iter().all(|r| r.get("negatives").is_none()));
    }
}

#[test]
fn bm25_negatives_answer_the_query_best() {
    let dir = tempfile::tempdir().unwrap();
    let search = |t, item, query| event("u", t, item, Some(query));
    let mut log = vec![search(1, "a", "x"), search(2, "b", "x"), search(3, "c", "warm red scarf")];
    log.extend(["d", "e", "f", "g"].iter().map(|item| event("v", 9, item, Some("x"))));
    let items = dir.path().join("items.csv");
    let texts = "item,text\na,x\nb,x\nc,red scarf\nd,a warm red scarf\ne,red shoe\nf,blue boat\ng,红色围巾\n";
    fs::write(&items, texts).unwrap();
    let Source::Events(table) = events(dir.path(), &log) else { unreachable!() };
    let source = Source::Events(Box::new(Events { items: vec![items], ..*table }));
    let mut settings = plain();
    settings.negatives.set("bm25:3").unwrap();
    let out = dir.path().join("out");
    prepare(&source, &settings, &out).unwrap();
    // d has all three words, e one of them; nothing else has any, and c is the target.
    assert_eq!(rows(&out, "test")[0]["negatives"], json!(["d", "e"]));
    let without = events(dir.path(), &log);
    let error = prepare(&without, &settings, &dir.path().join("none")).unwrap_err();
    assert!(error.to_string().contains("texts of the items"), "{error}");
}

// ---- sameness, interruption ------------------------------------------------------------------------

#[test]
fn the_same_bytes_whatever_the_threads_and_the_input_format() {
    let dir = tempfile::tempdir().unwrap();
    let source = world_events(dir.path(), world(300, 90));
    let mut settings = plain();
    settings.negatives.set("uniform:9,popularity:9").unwrap();
    settings.train_sample = 0.7;
    let write = |source: &Source, name: &str, threads: usize| -> Vec<Vec<u8>> {
        let out = dir.path().join(name);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| prepare(source, &settings, &out)).unwrap();
        ["items", "train", "valid", "test"].map(|s| fs::read(out.join(format!("{s}.jsonl"))).unwrap()).into()
    };
    let one = write(&source, "one", 1);
    assert!(one == write(&source, "three", 3));
    let other = tempfile::tempdir().unwrap();
    let columns = world_events(other.path(), World { format: Format::Parquet, ..world(300, 90) });
    assert!(one == write(&columns, "columns", 2));
    // The events once more, packed and in shards.
    let shards = dir.path().join("shards");
    fs::create_dir(&shards).unwrap();
    let text = fs::read(dir.path().join("events/events.jsonl")).unwrap();
    let middle = text[..text.len() / 2].iter().rposition(|b| *b == b'\n').unwrap() + 1;
    let gz = fs::File::create(shards.join("0.jsonl.gz")).unwrap();
    let mut gz = flate2::write::GzEncoder::new(gz, flate2::Compression::fast());
    gz.write_all(&text[..middle]).unwrap();
    gz.finish().unwrap();
    fs::write(shards.join("1.jsonl.zst"), zstd::encode_all(&text[middle..], 1).unwrap()).unwrap();
    let Source::Events(table) = &source else { unreachable!() };
    let packed = Source::Events(Box::new(Events { files: vec![shards], ..(**table).clone() }));
    assert!(one == write(&packed, "packed", 2));
}

#[test]
fn parquet_and_jsonl_hold_the_same_data() {
    let dir = tempfile::tempdir().unwrap();
    let source = world_events(dir.path(), world(40, 90));
    let mut settings = plain();
    settings.negatives.set("uniform:9").unwrap();
    let load = |format: Format| {
        let out = dir.path().join(format.extension());
        prepare(&source, &Settings { format, ..settings.clone() }, &out).unwrap();
        Dataset::load(&out, &DataSettings::default()).unwrap()
    };
    let (json, parquet) = (load(Format::Jsonl), load(Format::Parquet));
    assert_eq!((json.train, json.valid, json.test), (parquet.train, parquet.valid, parquet.test));
    assert_eq!(json.items.len(), parquet.items.len());
    let all = 0..json.items.len() as u32;
    assert!(all.clone().all(|i| json.items.id(i) == parquet.items.id(i) && json.items.text(i).is_some()));
    assert!(all.clone().all(|i| json.items.text(i) == parquet.items.text(i)));
}

#[test]
fn an_interrupted_run_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let source = world_events(dir.path(), world(600, 90));
    for stop in ["reading", "sorting", "k-core", "writing"] {
        let interrupted = AtomicBool::new(false);
        let mut tick = |stage: &'static str, _: u64, _: u64| {
            interrupted.fetch_or(stage == stop, Ordering::Relaxed);
        };
        let out = dir.path().join("out");
        let result =
            run(&source, &plain(), &target(&out), &mut Watch { tick: &mut tick, interrupted: &interrupted });
        let error = result.unwrap_err();
        assert_eq!((error.kind, error.exit_code()), (Kind::Interrupted, 130), "{stop}: {error}");
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["events"], "{stop}");
    }
}

#[test]
fn only_its_own_directories_are_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let source = events(dir.path(), &crossing());
    let out = dir.path().join("out");
    let replace = |out: &Path| {
        let target = Target { overwrite: true, ..target(out) };
        watched(|watch| run(&source, &plain(), &target, watch))
    };
    prepare(&source, &plain(), &out).unwrap();
    let error = prepare(&source, &plain(), &out).unwrap_err();
    assert!(error.to_string().contains("--overwrite"), "{error}");
    fs::write(out.join("old"), "").unwrap();
    replace(&out).unwrap();
    assert!(!out.join("old").exists() && out.join("card.json").exists());
    let mine = dir.path().join("mine");
    fs::create_dir(&mine).unwrap();
    fs::write(mine.join("thesis.tex"), "").unwrap();
    assert!(replace(&mine).unwrap_err().to_string().contains("choose another --out"));
    assert!(mine.join("thesis.tex").exists());
}

// ---- bad input -------------------------------------------------------------------------------------

#[test]
fn every_bad_row_names_its_place_and_a_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let good: String = crossing().iter().map(|r| format!("{r}\n")).collect();
    let late = r#""timestamp": 9"#;
    let cases: [(&str, String, &[&str]); 11] = [
        ("not JSON", "{\"user\": \"u\", oops}".into(), &["line 8", "column"]),
        (
            "not JSON",
            "{\"user\": \"u\", \"item\": \"A\", \"timestamp\": NaN}".into(),
            &["line 8", "JSON has no NaN"],
        ),
        ("not an object", "[1, 2]".into(), &["line 8", "`[1, 2]`"]),
        ("missing value", format!("{{\"item\": \"A\", {late}}}"), &["line 8", "user", "missing"]),
        ("missing value", "{\"user\": \"u\", \"item\": \"A\"}".into(), &["line 8", "timestamp", "missing"]),
        ("wrong type", format!("{{\"user\": [1], \"item\": \"A\", {late}}}"), &["line 8", "user", "[1]"]),
        (
            "wrong type",
            "{\"user\": \"u\", \"item\": \"A\", \"timestamp\": \"soon\"}".into(),
            &["timestamp", "\"soon\"", "2024-05-01"],
        ),
        (
            "wrong type",
            format!("{{\"user\": \"u\", \"item\": \"A\", \"label\": \"Infinity\", {late}}}"),
            &["label", "finite"],
        ),
        (
            "mixed time units",
            "{\"user\": \"u\", \"item\": \"A\", \"timestamp\": 1700000000000}".into(),
            &["timestamp", "milliseconds", "a count"],
        ),
        ("bad id", format!("{{\"user\": \"u\", \"item\": \"a\\u0007b\", {late}}}"), &["item", "control"]),
        ("line too long", format!("\"{}\"", "x".repeat(17 << 20)), &["line 8", "longer"]),
    ];
    let path = dir.path().join("events.jsonl");
    let source = Source::Events(Box::new(events_of(vec![path.clone()])));
    for (number, (reason, line, parts)) in cases.iter().enumerate() {
        fs::write(&path, format!("{good}{line}\n")).unwrap();
        let error = prepare(&source, &plain(), &dir.path().join("none")).unwrap_err();
        let text = error.to_string();
        assert_eq!(error.exit_code(), 1, "{text}");
        assert!(text.contains("events.jsonl") && text.contains("try:"), "{number}: {text}");
        parts.iter().for_each(|part| assert!(text.contains(part), "{number}: no `{part}` in: {text}"));
        let out = dir.path().join(format!("out-{number}"));
        let card = prepare(&source, &Settings { skip_bad_rows: 1, ..plain() }, &out).unwrap();
        assert_eq!((card.read.bad[*reason].rows, card.read.rows), (1, 8), "{number}");
        fs::write(&path, format!("{good}{line}\n{line}\n")).unwrap();
        let more = prepare(&source, &Settings { skip_bad_rows: 1, ..plain() }, &dir.path().join("none"));
        assert!(more.unwrap_err().to_string().contains("1 bad rows were left out"), "{number}");
    }
    fs::write(&path, [good.as_bytes(), b"{\"user\": \"\xff\"}\n"].concat()).unwrap();
    let error = prepare(&source, &plain(), &dir.path().join("none")).unwrap_err().to_string();
    assert!(error.contains("line 8") && error.contains("UTF-8"), "{error}");
}

#[test]
fn files_that_are_no_tables_say_so() {
    let dir = tempfile::tempdir().unwrap();
    let none = dir.path().join("none");
    let fails = |name: &str, contents: &[u8], parts: &[&str]| {
        let path = dir.path().join(name);
        fs::write(&path, contents).unwrap();
        let error = prepare(&Source::Events(Box::new(events_of(vec![path]))), &plain(), &none)
            .unwrap_err()
            .to_string();
        parts.iter().for_each(|part| assert!(error.contains(part), "{name}: no `{part}` in: {error}"));
    };
    fails("a.csv", b"who,item,timestamp\nu,A,1\n", &["no column `user`", "who, item", "--columns"]);
    fails("b.csv", b"user,item,timestamp\nu,A\n", &["line 2", "2 fields instead of 3", "quotes"]);
    fails("c.csv", b"user,item,timestamp\nu,\xe9t\xe9,1\n", &["line 2", "item", "UTF-8"]);
    let open = [b"user,item,timestamp\nu,\"A,1\n".to_vec(), b"u,A,1\n".repeat(3 << 20)].concat();
    fails("open.csv", &open, &["open.csv", "a quote is left open"]);
    fails("d.xlsx", b"PK", &["d.xlsx", ".parquet"]);
    fails("e.parquet", b"not parquet", &["e.parquet", "Parquet"]);
    fails("f.jsonl.gz", b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03cut", &["f.jsonl.gz"]);
    fails("g.jsonl", b"", &["nothing is left"]);
    let missing = Source::Qilin(Qilin { dir: dir.path().into(), contents: false });
    assert!(prepare(&missing, &plain(), &none).unwrap_err().to_string().contains("search_train"));
}

#[test]
fn bad_literals_repeated_items_and_catalogues_that_are_too_big() {
    let dir = tempfile::tempdir().unwrap();
    let none = dir.path().join("none");
    let head = "user_idx,query,recent_clicked_note_idxs,search_result_details_with_idx\n";
    let qilin = |cells: &str| {
        fs::write(dir.path().join("search_train.csv"), format!("{head}{cells}\n")).unwrap();
        let source = Source::Qilin(Qilin { dir: dir.path().into(), contents: false });
        prepare(&source, &plain(), &none).unwrap_err().to_string()
    };
    let results = "\"[{'note_idx': 1, 'click': 1, 'search_timestamp': 5}]\"";
    for (cells, parts) in [
        (format!("1,q,[1 ... 9],{results}"), ["recent_clicked_note_idxs", "abbreviated"]),
        (format!("1,q,[1 inf],{results}"), ["`inf` is no measurement", "character 4"]),
        (format!("1,q,[nan],{results}"), ["recent_clicked_note_idxs[0]", "null instead of the number"]),
        ("1,q,[],\"[{'note_idx': 1, 'click': 1}\"".into(), ["search_result_details_with_idx", "cut off"]),
        ("1,q,[],\"[{'note_idx': 1, 'click': 1}]\"".into(), ["search_timestamp", "missing"]),
        (
            "1,q,[],\"[{'note_idx': 1, 'click': 'yes', 'search_timestamp': 5}]\"".into(),
            ["[0].click", "0 or 1"],
        ),
    ] {
        let error = qilin(&cells);
        assert!(error.contains("line 2") && error.contains("try:"), "{error}");
        parts.iter().for_each(|part| assert!(error.contains(part), "no `{part}` in: {error}"));
    }
    let items = dir.path().join("items.jsonl");
    fs::write(&items, "{\"item\": \"A\", \"text\": \"a\"}\n{\"item\": \"A\", \"text\": \"b\"}\n").unwrap();
    let Source::Events(table) = events(dir.path(), &crossing()) else { unreachable!() };
    let twice = Source::Events(Box::new(Events { items: vec![items], ..*table }));
    let error = prepare(&twice, &plain(), &none).unwrap_err().to_string();
    assert!(error.contains("items.jsonl line 2") && error.contains("`A` is listed twice"), "{error}");
    let error =
        prepare(&events(dir.path(), &crossing()), &Settings { max_items: 3, ..plain() }, &none).unwrap_err();
    assert!(error.to_string().contains("4 items are more than 3"), "{error}");
    let two = [event("u", 1, "A", None), event("u", 2, "B", None)];
    let error = prepare(&events(dir.path(), &two), &plain(), &none).unwrap_err().to_string();
    assert!(error.contains("no valid rows are left") && error.contains("history too short"), "{error}");
}

// ---- a world to test in ----------------------------------------------------------------------------

#[test]
fn a_world_is_what_preparing_its_events_gives() {
    let dir = tempfile::tempdir().unwrap();
    let direct = dir.path().join("direct");
    watched(|watch| synth(&world(200, 120), &target(&direct), watch)).unwrap();
    let out = dir.path().join("out");
    let card = prepare(&world_events(dir.path(), world(200, 120)), &plain(), &out).unwrap();
    assert_eq!(card.written.leaks_before.any, 0);
    for split in ["items", "train", "valid", "test"] {
        let sorted = |dir: &Path| {
            let mut lines: Vec<String> = rows(dir, split).iter().map(Value::to_string).collect();
            lines.sort();
            lines
        };
        assert!(sorted(&direct) == sorted(&out), "{split}");
    }
}

#[test]
fn the_best_possible_metrics_of_a_world_without_noise() {
    let dir = tempfile::tempdir().unwrap();
    for (name, conflict) in [("torn", 1.0), ("one", 0.0)] {
        let world = World { noise: 0.0, conflict, ..world(4000, 600) };
        let card = watched(|watch| synth(&world, &target(&dir.path().join(name)), watch)).unwrap();
        let best = |task: &str, metric: &str| card["written"]["optimum"][task][metric].as_f64().unwrap();
        // Three successors with chances 0.7, 0.2 and 0.1; a query tells them apart. Four standard errors.
        let error = |p: f64| 4.0 * (p * (1.0 - p) / 4000.0).sqrt();
        assert!((best("rec", "hit@1") - 0.7).abs() < error(0.7));
        let ndcg = 0.7 + 0.2 / 3f64.log2() + 0.1 / 4f64.log2();
        assert!((best("rec", "ndcg@10") - ndcg).abs() < error(0.7) / 2.0);
        assert_eq!(
            (best("rec", "hit@5"), best("search", "hit@1"), best("search", "mrr@20")),
            (1.0, 1.0, 1.0)
        );
    }
    // With the conflict the tasks never want the same after the same item; without it they always may.
    let pairs = |name: &str| {
        let mut next: HashMap<String, [BTreeSet<String>; 2]> = HashMap::new();
        for (task, history, _, target) in short(&dir.path().join(name), "train") {
            let last = history.last().unwrap().clone();
            next.entry(last).or_default()[usize::from(task == "search")].insert(target[0].clone());
        }
        next.into_values().filter(|[rec, search]| !rec.is_disjoint(search)).count()
    };
    assert_eq!(pairs("torn"), 0);
    assert!(pairs("one") > 300);
}

#[test]
fn planted_leaks_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("world");
    let card = watched(|watch| synth(&World { leak: 0.3, ..world(500, 200) }, &target(&out), watch)).unwrap();
    let planted = card["written"]["leaked"].as_u64().unwrap();
    assert!((200..400).contains(&planted), "{planted} of 1000");
    let found = check(&out, &DataSettings::default(), None).unwrap();
    assert_eq!((found.leaks.pairs, found.leaks.any, found.leaks.trained_elsewhere), (1000, planted, planted));
    assert!(found.problems.is_empty());
    let small = World { items: 20, ..world(5, 20) };
    let error = watched(|watch| synth(&small, &target(&dir.path().join("x")), watch)).unwrap_err();
    assert!(error.to_string().contains("--items") && error.exit_code() == 2, "{error}");
}

// ---- the commands ----------------------------------------------------------------------------------

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
        let set = ["gems.rank=4", "gems.refresh_every=4", "train.batch=8", "data.item_token=<new_{}>", seed];
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
    fs::write(&requests, "{\"history\": [\"nope\"]}\n").unwrap();
    let mut command = engine();
    command.args(["rank", "--device", "cpu", "--run"]).arg(join("a")).arg("--batch").arg(&requests);
    let failed = command.assert().failure();
    let text = String::from_utf8_lossy(&failed.get_output().stderr).into_owned();
    assert!(text.contains("requests.jsonl line 1") && text.contains("nope"), "{text}");
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
