//! Which files are read, and which are named because they are not: shards, packed files, partitions, patterns.

use super::dialects::{columns, items as all_items, plain, prepare, rows};
use super::{gz, write};
use gems_engine::data::{DataSettings, Dataset};
use gems_engine::prepare::{Events, Settings, check};
use std::fs;
use std::path::{Path, PathBuf};

/// Searches of user `u` with one word, from time `from` on.
fn csv(from: i64, n: i64) -> String {
    let rows: String = (from..from + n).map(|t| format!("u,i{t},{t},q{t}\n")).collect();
    format!("user,item,timestamp,query\n{rows}")
}

fn json(from: i64, n: i64) -> String {
    let row =
        |t| format!("{{\"user\": \"u\", \"item\": \"i{t}\", \"timestamp\": {t}, \"query\": \"q{t}\"}}\n");
    (from..from + n).map(row).collect()
}

fn events<P: Into<PathBuf>>(paths: impl IntoIterator<Item = P>) -> Events {
    Events { files: paths.into_iter().map(Into::into).collect(), ..Events::default() }
}

/// The times of all events of a log.
fn times<P: Into<PathBuf>>(dir: &Path, paths: impl IntoIterator<Item = P>) -> Vec<i64> {
    let out = dir.join("out");
    prepare(events(paths), &plain(), &out).unwrap_or_else(|e| panic!("{e}"));
    rows(&out).iter().map(|r| r.time).collect()
}

fn error<P: Into<PathBuf>>(dir: &Path, paths: impl IntoIterator<Item = P>) -> String {
    prepare(events(paths), &plain(), &dir.join("out")).unwrap_err().to_string()
}

#[test]
fn every_shard_is_read_whatever_its_suffix_and_packing() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    write(&log.join("day1.csv"), csv(0, 2));
    write(&log.join("day2.CSV"), csv(2, 2));
    write(&log.join("day3.csv.gz"), gz(&csv(4, 2)));
    write(&log.join("day4.Csv.ZST"), zstd::encode_all(csv(6, 2).as_bytes(), 1).unwrap());
    // Packed without saying so, and not packed though it says so.
    write(&log.join("day5.jsonl"), gz(&json(8, 2)));
    write(&log.join("day6.jsonl.gz"), json(10, 2));
    write(&log.join("deep/er/day7.NDJSON"), json(12, 2));
    write(&log.join("part-00000"), csv(14, 2));
    // Told by their content: a list of objects, JSON in a text file.
    write(&log.join("day8.json"), format!("[{}]", json(16, 2).trim().replace('\n', ",\n ")));
    assert_eq!(times(dir.path(), [&log]), (0..18).collect::<Vec<_>>());
    write(&dir.path().join("lines.txt"), json(0, 4));
    assert_eq!(times(dir.path(), [dir.path().join("lines.txt")]), [0, 1, 2, 3]);
    // Empty shards count as none; what is hidden or Spark's own is nothing.
    for (name, contents) in [
        ("a.csv", ""),
        ("b.csv", "user,item,timestamp,query\n"),
        ("c.jsonl", " \n\n"),
        ("d.csv.gz", ""),
        ("_SUCCESS", "x"),
        (".a.csv.crc", "x"),
        ("_temporary/0/part-0.csv", "x"),
    ] {
        write(&log.join(name), contents);
    }
    write(&log.join("e.parquet"), empty_parquet());
    let card = prepare(events([&log]), &plain(), &dir.path().join("out")).unwrap();
    assert_eq!(card.read.rows, 18);
    let note = card.warnings.iter().find(|w| w.contains("without rows")).unwrap();
    assert!(
        ["a.csv", "b.csv", "c.jsonl", "d.csv.gz", "e.parquet"].iter().all(|n| note.contains(n)),
        "{note}"
    );
    let all: Vec<PathBuf> = ["a.csv", "b.csv", "c.jsonl", "e.parquet"].iter().map(|n| log.join(n)).collect();
    assert!(error(dir.path(), &all).contains("no rows in any of the 4 files"));
}

fn empty_parquet() -> Vec<u8> {
    let field = |name: &str| arrow_schema::Field::new(name, arrow_schema::DataType::Utf8, true);
    let schema = arrow_schema::Schema::new(vec![field("user"), field("item"), field("timestamp")]);
    let mut bytes = Vec::new();
    parquet::arrow::ArrowWriter::try_new(&mut bytes, schema.into(), None).unwrap().close().unwrap();
    bytes
}

#[test]
fn what_cannot_be_read_is_named_for_what_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let cases: [(&str, &[u8], &[&str]); 13] = [
        ("log.csv.bz2", b"BZh91AY&SY\x9a\x8f", &["bzip2", "bunzip2"]),
        ("log.csv.xz", b"\xfd7zXZ\0\0\x04", &["xz"]),
        ("log.csv.lz4", b"\x04\x22\x4d\x18rest", &["lz4"]),
        ("log.zip", b"PK\x03\x04\x14\0", &["ZIP archive"]),
        ("log.xls", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", &["Excel"]),
        ("log.feather", b"ARROW1\0\0", &["Arrow", ".parquet"]),
        ("log.avro", b"Obj\x01\x04", &["Avro"]),
        ("log.orc", b"ORC\x00\x01", &["ORC"]),
        ("log.pkl", b"\x80\x04\x95.\0", &["pickle"]),
        (
            "log.csv",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            &["large-file storage", "git lfs"],
        ),
        ("page.csv", b"\n<!DOCTYPE html><html>", &["web page"]),
        ("log.db", b"SQLite format 3\0", &["SQLite"]),
        ("mac.csv", b"user,item,timestamp\ru,a,1\r", &["CR alone"]),
    ];
    for (name, contents, said) in cases {
        let path = dir.path().join(name);
        write(&path, contents);
        let text = error(dir.path(), [path]);
        assert!(text.contains(name) && text.contains("try:"), "{text}");
        said.iter().for_each(|part| assert!(text.contains(part), "{name}: no `{part}` in {text}"));
    }
    write(&dir.path().join("tar.csv.gz"), gz(&format!("{:\0<257}ustar\x0000", "log.csv")));
    assert!(error(dir.path(), [dir.path().join("tar.csv.gz")]).contains("tar archive"));
    // In a directory, rows that cannot be read are an error and no silence; other files are named.
    let log = dir.path().join("log");
    write(&log.join("a.csv"), csv(0, 4));
    write(&log.join("b.csv.bz2"), b"BZh91AY&SY");
    assert!(error(dir.path(), [&log]).contains("b.csv.bz2: this is bzip2"));
    fs::remove_file(log.join("b.csv.bz2")).unwrap();
    write(&log.join("README.md"), "about");
    write(&log.join("users.dat"), "1::F");
    let card = prepare(events([&log]), &plain(), &dir.path().join("out")).unwrap();
    let note = card.warnings.iter().find(|w| w.contains("not read: ")).unwrap();
    assert!(note.contains("README.md") && note.contains("users.dat"), "{note}");
    fs::remove_file(log.join("a.csv")).unwrap();
    let text = error(dir.path(), [&log]);
    assert!(text.contains("no tables in this directory; there are: README.md, users.dat"), "{text}");
    write(&log.join("_delta_log/0.json"), "{}");
    assert!(error(dir.path(), [log]).contains("Delta Lake"));
}

#[test]
fn a_set_of_shards_must_be_whole() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    for n in [0, 1, 3] {
        write(&log.join(format!("part-0000{n}-of-00004.csv")), csv(10 * n, 2));
    }
    let text = error(dir.path(), [&log]);
    assert!(text.contains("only 3 of the 4 parts of `part` are here; number 2 is missing"), "{text}");
    write(&log.join("part-00002-of-00004.csv"), csv(20, 2));
    assert_eq!(times(dir.path(), [log]), [0, 1, 10, 11, 20, 21, 30, 31]);
}

#[test]
fn patterns_and_partitions() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let part = |kind: &str, day: &str, rows: &str| {
        write(&log.join(format!("task={kind}/dt={day}/part.csv")), format!("user,item,typed\n{rows}"));
    };
    part("buy", "2024-05-01", "u,a,x\n");
    part("buy", "2024-05-02", "u,b,x\n");
    part("buy", "__HIVE_DEFAULT_PARTITION__", "u,z,x\n");
    part("look%2Fup", "2024-05-03 10%3A00", "u,c,x\n");
    part("buy", "2024-05-04", "u,d,x\n");
    let partitioned =
        |path: &Path| Events { columns: columns(&["timestamp=dt", "query=typed"]), ..events([path]) };
    let out = dir.path().join("out");
    let text = prepare(partitioned(&log), &plain(), &out).unwrap_err().to_string();
    assert!(text.contains("__HIVE_DEFAULT_PARTITION__") && text.contains("dt: missing"), "{text}");
    fs::remove_dir_all(log.join("task=buy/dt=__HIVE_DEFAULT_PARTITION__")).unwrap();
    let card = prepare(partitioned(&log), &plain(), &out).unwrap();
    // 2024-05-01 is 1714521600; a search row names its task.
    let found: Vec<(i64, String)> =
        rows(&out).into_iter().map(|r| (r.time - 1_714_521_600, r.item)).collect();
    let want = [(0, "a"), (86_400, "b"), (208_800, "c"), (259_200, "d")];
    let own: Vec<(i64, &str)> = found.iter().map(|(t, i)| (*t, i.as_str())).collect();
    assert!(own.iter().all(|f| want.contains(f)) && card.core.items == 4, "{found:?}");
    let tasks: Vec<&String> = card.written.rows.values().flat_map(|t| t.keys()).collect();
    assert!(
        tasks.iter().any(|t| *t == "buy") && card.warnings.iter().any(|w| w.contains("look/up")),
        "{tasks:?}"
    );
    assert!(
        card.warnings.iter().any(|w| w == "dt is read from the directories' names"),
        "{:?}",
        card.warnings
    );
    // Quoted patterns, in which partitions count too.
    let pattern = log.join("task=buy/*/part.csv");
    let card = prepare(partitioned(&pattern), &plain(), &out).unwrap();
    assert_eq!((card.read.rows, rows(&out).len()), (3, 3));
    let text = error(dir.path(), [log.join("*.tsv")]);
    assert!(text.contains("no file matches") && text.contains("*.tsv"), "{text}");
    // One file counts once, however often it is named.
    write(&dir.path().join("once.csv"), csv(0, 4));
    let once = dir.path().join("once.csv");
    let card = prepare(events([&once, &dir.path().join("on*.csv"), &once]), &plain(), &out).unwrap();
    assert_eq!(card.read.rows, 4);
}

#[test]
fn rows_without_times_keep_the_order_of_counted_files() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    for n in [10, 9, 2, 1, 100] {
        write(&log.join(format!("day-{n}.csv")), format!("user,item\nu,i{n}a\nu,i{n}b\n"));
    }
    let want = ["i1a", "i1b", "i2a", "i2b", "i9a", "i9b", "i10a", "i10b", "i100a", "i100b"];
    let out = dir.path().join("out");
    for path in [log.clone(), log.join("*.csv")] {
        let card = prepare(Events { row_order: true, ..events([path]) }, &plain(), &out).unwrap();
        assert_eq!(all_items(&out), want);
        let said = "the order of the rows, of files day-1.csv, day-2.csv, day-9.csv, day-10.csv, day-100.csv";
        assert!(card.warnings.iter().any(|w| w.contains(said)), "{:?}", card.warnings);
    }
}

#[test]
fn a_column_that_only_some_files_have_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    write(&log.join("a.csv"), "user,item,timestamp,rating\nu,a,1,5\nu,b,2,1\nu,c,3,5\n");
    write(&log.join("b.csv"), "user,item,timestamp\nu,d,4\nu,e,5\n");
    let labelled = Events { columns: columns(&["label=rating"]), ..events([log]) };
    let card =
        prepare(labelled, &Settings { min_label: Some(4.0), ..plain() }, &dir.path().join("out")).unwrap();
    let said = "files without a column `rating`: their rows count as wanted: ";
    let note = card.warnings.iter().find(|w| w.starts_with(said)).unwrap();
    assert!(note.ends_with("b.csv") && !note.contains("a.csv"), "{note}");
}

#[test]
fn a_path_that_leads_nowhere_names_its_neighbours() {
    let dir = tempfile::tempdir().unwrap();
    write(&dir.path().join("events.csv"), csv(0, 4));
    for (name, near) in [("event.csv", true), ("Events.CSV", true), ("evnets.csv", true), ("nowhere", false)]
    {
        let text = error(dir.path(), [dir.path().join(name)]);
        assert!(text.contains("there is no such file"), "{text}");
        assert_eq!(text.contains("did you mean") && text.contains("events.csv"), near, "{text}");
    }
}

#[test]
fn a_directory_that_prepare_wrote_and_one_of_recbole_are_logs_with_items() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    write(&log.join("events.jsonl"), json(0, 4));
    write(&log.join("items.jsonl"), "{\"item\": \"i1\", \"text\": \"one\"}\n");
    write(&log.join("card.json"), "{\n  \"engine\": \"0\"\n}");
    let card = prepare(events([log]), &plain(), &dir.path().join("out")).unwrap();
    assert_eq!((card.items, card.items_with_text), (4, 1));
    let recbole = dir.path().join("ml");
    write(
        &recbole.join("ml.inter"),
        "user_id:token\titem_id:token\ttimestamp:float\nu\t1\t1\nu\t2\t2\nu\t3\t3\nu\t4\t4\n",
    );
    write(&recbole.join("ml.item"), "item_id:token\tmovie_title:token_seq\n1\tToy \"Story\"\n2\tHeat\n");
    write(&recbole.join("ml.user"), "user_id:token\tage:token\nu\t3\n");
    let mut named = columns(&[]);
    named.set_item("text=movie_title").unwrap();
    let card =
        prepare(Events { columns: named, ..events([&recbole]) }, &plain(), &dir.path().join("out")).unwrap();
    assert_eq!((card.items, card.items_with_text), (4, 2));
    assert!(
        card.warnings.iter().any(|w| w.contains("not read") && w.contains("ml.user")),
        "{:?}",
        card.warnings
    );
    let text = error(dir.path(), [recbole]);
    assert!(text.contains("ml.item: no column `text`; there are: item_id, movie_title"), "{text}");
    assert!(text.contains("--item-columns"), "{text}");
}

// ---- data directories ------------------------------------------------------------------------------

const ROW: &str = "{\"task\": \"search\", \"query\": \"q\", \"target\": [\"a\"]}\n";

fn items(dir: &Path) {
    write(&dir.join("items.jsonl"), "{\"item\": \"a\"}\n");
}

fn sizes(dir: &Path) -> (usize, usize, usize, Vec<String>) {
    let data = Dataset::load(dir, &DataSettings::default()).unwrap_or_else(|e| panic!("{e}"));
    let extra = data.extra.iter().map(|s| format!("{} {}", s.name, s.records.len())).collect();
    (data.train.records.len(), data.valid.records.len(), data.test.records.len(), extra)
}

#[test]
fn a_data_directory_may_be_packed_cut_into_parts_and_named_as_on_the_hub() {
    let dir = tempfile::tempdir().unwrap();
    let packed = dir.path().join("packed");
    write(&packed.join("items.JSONL.gz"), gz("{\"item\": \"a\"}\n"));
    write(&packed.join("train.jsonl.zst"), zstd::encode_all(ROW.repeat(3).as_bytes(), 1).unwrap());
    write(&packed.join("validation.ndjson"), ROW);
    write(&packed.join("test.jsonl.gz"), gz(ROW));
    write(&packed.join("test-cold.jsonl.gz"), gz(ROW));
    write(&packed.join("general.txt.gz"), gz("a text\n"));
    assert_eq!(sizes(&packed), (3, 1, 1, vec!["cold 1".into()]));
    let hub = dir.path().join("hub");
    items(&hub);
    for n in 0..3 {
        write(&hub.join(format!("data/train-0000{n}-of-00003.jsonl")), ROW);
        write(&hub.join(format!("data/test-0000{n}-of-00003-1fd2a2c0e8c5d8a3.jsonl")), ROW);
    }
    write(&hub.join("data/validation-00000-of-00001.jsonl"), ROW);
    assert_eq!(sizes(&hub), (3, 1, 3, vec![]));
    let parts = dir.path().join("parts");
    items(&parts);
    write(&parts.join("train/part-0.jsonl"), ROW);
    write(&parts.join("train/part-1.jsonl"), ROW);
    write(&parts.join("train/_SUCCESS"), "");
    assert_eq!(sizes(&parts), (2, 0, 0, vec![]));
    fs::remove_file(hub.join("data/train-00001-of-00003.jsonl")).unwrap();
    let error = Dataset::load(&hub, &DataSettings::default()).unwrap_err().to_string();
    assert!(error.contains("number 1 is missing"), "{error}");
    write(&packed.join("train.jsonl"), ROW);
    let error = Dataset::load(&packed, &DataSettings::default()).unwrap_err().to_string();
    assert!(error.contains("both train.jsonl and train.jsonl.zst exist"), "{error}");
    let error = Dataset::load(&dir.path().join("pakced"), &DataSettings::default()).unwrap_err().to_string();
    assert!(error.contains("did you mean") && error.contains("packed"), "{error}");
}

#[test]
fn what_lies_in_a_data_directory_is_read_or_named() {
    let dir = tempfile::tempdir().unwrap();
    items(dir.path());
    for split in ["train", "valid", "test"] {
        write(&dir.path().join(format!("{split}.jsonl")), ROW);
    }
    let found = check(dir.path(), &DataSettings::default(), None).unwrap();
    assert!(found.notes.iter().all(|n| !n.contains("not read")), "{:?}", found.notes);
    for name in ["trian.jsonl", "test.csv", "notes/x.txt", "card.json", ".hidden"] {
        write(&dir.path().join(name), "x");
    }
    let found = check(dir.path(), &DataSettings::default(), None).unwrap();
    let note = found.notes.iter().find(|n| n.contains("not read")).unwrap();
    assert!(["trian.jsonl", "test.csv", "notes"].iter().all(|n| note.contains(n)), "{note}");
    assert!(!note.contains("card.json") && !note.contains("hidden"), "{note}");
    assert!(found.problems.is_empty(), "{:?}", found.problems);
}

#[test]
fn parquet_columns_that_nobody_asked_for_do_not_matter() {
    use arrow_array::{ArrayRef, BinaryArray, Float64Array, RecordBatch, StringArray};
    use std::sync::Arc;
    let dir = tempfile::tempdir().unwrap();
    let image: ArrayRef = Arc::new(BinaryArray::from_vec(vec![b"\xff\xd8", b"\xff\xd8"]));
    let score: ArrayRef = Arc::new(Float64Array::from(vec![f64::NAN, f64::INFINITY]));
    let item: ArrayRef = Arc::new(StringArray::from(vec!["a", "007"]));
    let batch =
        RecordBatch::try_from_iter(vec![("item", item), ("image", image), ("score", score.clone())]).unwrap();
    let save = |name: &str, batch: &RecordBatch| {
        let file = fs::File::create(dir.path().join(name)).unwrap();
        let mut writer = parquet::arrow::ArrowWriter::try_new(file, batch.schema(), None).unwrap();
        writer.write(batch).unwrap();
        writer.close().unwrap();
    };
    save("items.parquet", &batch);
    write(&dir.path().join("train.jsonl"), ROW);
    let data = Dataset::load(dir.path(), &DataSettings::default()).unwrap();
    assert_eq!((data.items.id(0), data.items.id(1)), ("a", "007"));
    save("items.parquet", &RecordBatch::try_from_iter(vec![("item", score)]).unwrap());
    let error = Dataset::load(dir.path(), &DataSettings::default()).unwrap_err().to_string();
    assert!(error.contains("items.parquet row 1: item: NaN instead of a value"), "{error}");
}
