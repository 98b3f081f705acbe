//! Event tables and the public data sets.

use super::{Short, fixtures, plain, prepare, row, rows, short, texts};
use arrow_array::builder::{Int64Builder, ListBuilder, StringBuilder, StructBuilder};
use arrow_array::{ArrayRef, RecordBatch};
use arrow_schema::{DataType, Field, Fields};
use gems_engine::prepare::{
    Amazon, Card, EventColumns, Events, KuaiSar, Leaks, Qilin, Settings, Source, SplitRule,
};
use serde_json::json;
use std::fs;
use std::path::Path;
use std::sync::Arc;

#[test]
fn events_in_shards_with_their_own_column_names() {
    let dir = tempfile::tempdir().unwrap();
    let mut columns = EventColumns::default();
    for role in ["user=uid", "item=sku", "timestamp=ts", "task=kind", "query=typed", "label=score"] {
        columns.set(role).unwrap();
    }
    let source =
        Source::Events(Box::new(Events { files: vec![fixtures("events")], columns, ..Events::default() }));
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
