//! What is written: the same whatever the threads and formats, whole or not at all.

use super::{crossing, events, plain, prepare, target, watched, world, world_events};
use gems_engine::data::{DataSettings, Dataset};
use gems_engine::error::Kind;
use gems_engine::prepare::{Events, Format, Settings, Source, Target, Watch, World, run};
use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

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
