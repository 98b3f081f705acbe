//! Readers of untrusted bytes, for libFuzzer: `GEMS_FUZZ=TARGET`; scripts/fuzz.sh builds and runs them.
//!
//! One program for all, so that it links once. A reader may refuse; it may not panic, hang, or take more than its limits.
#![no_main]

use gems_engine::cli::ask::Ask;
use gems_engine::config::{Config, Layer};
use gems_engine::data::{
    Catalogue, ChatTemplate, DataSettings, Dataset, PromptSide, Prompts, Vocabulary, json_objects,
};
use gems_engine::gems::Knowledge;
use gems_engine::model::{Architecture, Weights};
use gems_engine::prepare::{EventColumns, Events, Settings, Source, Target, Watch, moment, run};
use gems_engine::race::Outcome;
use gems_engine::report::{self, MetricsLog};
use gems_engine::train::checkpoint;
use libfuzzer_sys::fuzz_target;
use serde_json::json;
use std::backtrace::Backtrace;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{LazyLock, Mutex, PoisonError};

static TARGET: LazyLock<String> = LazyLock::new(|| std::env::var("GEMS_FUZZ").unwrap_or_default());
/// One directory a process: a process does one thing at a time.
static PLACE: LazyLock<tempfile::TempDir> =
    LazyLock::new(|| tempfile::tempdir().unwrap_or_else(|e| panic!("no place to work: {e}")));

/// A file with these bytes.
fn file(name: &str, bytes: &[u8]) -> PathBuf {
    let path = PLACE.path().join(name);
    fs::write(&path, bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    path
}

fn weights(bytes: &[u8]) {
    file("model.safetensors", bytes);
    if let Ok(weights) = Weights::open(PLACE.path()) {
        let names: Vec<String> = weights.names().map(str::to_string).collect();
        names.iter().for_each(|name| drop(weights.read(name)));
    }
}

fn index(bytes: &[u8]) {
    file("model.safetensors.index.json", bytes);
    let _ = Weights::open(PLACE.path());
}

fn tokenizer(bytes: &[u8]) {
    file("tokenizer.json", bytes);
    let mut items = Catalogue::default();
    let _ = items.add("a", Some("red desk"));
    let settings = DataSettings { item_token: "<new_{}>".into(), ..DataSettings::default() };
    if let Ok(vocabulary) = Vocabulary::new(PLACE.path(), &items, &settings, PromptSide::Decoder, None) {
        let _ = vocabulary.plain("a red desk, ünd <new_0>");
    }
}

fn template(bytes: &[u8]) {
    file("chat_template.jinja", bytes);
    let settings = DataSettings { chat_template: true, ..DataSettings::default() };
    let read =
        ChatTemplate::read(PLACE.path()).and_then(|chat| Prompts::with_chat(&settings, Some(chat), None));
    if let Ok(prompts) = read {
        let _ = prompts.chat("a prompt".into());
    }
}

/// A log in a file of this kind.
fn log(name: &str, columns: &[&str], bytes: &[u8]) {
    let mut of = EventColumns::default();
    columns.iter().for_each(|column| drop(of.set(column)));
    let events = Events { files: vec![file(name, bytes)], columns: of, ..Events::default() };
    let mut settings = Settings { skip_bad_rows: 1000, ..Settings::default() };
    (settings.core.user, settings.core.item) = (1, 1);
    let _ = settings.negatives.set("none");
    let (interrupted, out) = (AtomicBool::new(false), PLACE.path().join("out"));
    let target = Target { out: out.clone(), overwrite: true, general: None };
    let mut watch = Watch { tick: &mut |_, _, _| {}, interrupted: &interrupted };
    let _ = run(&Source::Events(Box::new(events)), &settings, &target, &mut watch);
    let _ = fs::remove_dir_all(out);
}

/// The first two bytes say how many are of the manifest; the rest is of the tensors, whose sum is right.
fn checkpoint(bytes: &[u8]) {
    let Some((length, rest)) = bytes.split_first_chunk::<2>() else { return };
    let (state, tensors) = rest.split_at(usize::from(u16::from_le_bytes(*length)).min(rest.len()));
    let sum = blake3::hash(tensors).to_hex().to_string();
    let directory = PLACE.path().join("step-00000001");
    let _ = fs::create_dir(&directory);
    file("step-00000001/weights.safetensors", tensors);
    let manifest =
        json!({"format": 1, "step": 1, "files": {"weights.safetensors": sum}, "state": {}}).to_string();
    for text in [state, manifest.as_bytes()] {
        file("step-00000001/state.json", text);
        let _ = checkpoint::load(&directory);
    }
}

fn settings(bytes: &[u8]) {
    if let Ok(layer) = Layer::file(&file("config.toml", bytes)) {
        let _ = Config::from_layers(vec![layer]);
    }
}

fn rows(path: PathBuf) {
    if let Ok(rows) = json_objects(&path) {
        rows.for_each(drop);
    }
}

/// Records of training for a catalogue of two items.
fn records(bytes: &[u8]) {
    file("items.jsonl", b"{\"item\": \"a\", \"text\": \"red desk\"}\n{\"item\": \"b\"}\n");
    file("train.jsonl", bytes);
    let _ = Dataset::load(PLACE.path(), &DataSettings::default());
}

/// A body of `POST /rank`, which is also a line of `rank --batch`.
fn ask(bytes: &[u8]) {
    if let Ok(fields) = serde_json::from_slice(bytes) {
        let _ = Ask::from_json(&fields);
    }
}

fn metrics(bytes: &[u8]) {
    let path = file("metrics.jsonl", bytes);
    let _ = report::read_overview(&path);
    let _ = MetricsLog::open(&path, 3);
}

fn result(bytes: &[u8]) {
    file("result.json", bytes);
    let _ = Outcome::of_run(PLACE.path(), "ndcg@10");
}

fn read(bytes: &[u8]) {
    match TARGET.as_str() {
        "weights" => weights(bytes),
        "index" => index(bytes),
        "architecture" => {
            file("config.json", bytes);
            let _ = Architecture::read(PLACE.path());
        }
        "tokenizer" => tokenizer(bytes),
        "template" => template(bytes),
        "rows" => rows(file("rows.jsonl", bytes)),
        "gzip" => rows(file("rows.jsonl.gz", bytes)),
        "zstd" => rows(file("rows.jsonl.zst", bytes)),
        "records" => records(bytes),
        "ask" => ask(bytes),
        "metrics" => metrics(bytes),
        "result" => result(bytes),
        "csv" => log("log.csv", &[], bytes),
        "jsonl" => log("log.jsonl", &[], bytes),
        "literals" => log("log.json", &[], bytes),
        "parquet" => log("log.parquet", &["user=who", "item=uint64", "timestamp=timestamp[ns]"], bytes),
        "moment" => drop(std::str::from_utf8(bytes).map(|text| moment(text, None))),
        "basis" => drop(Knowledge::load(&file("basis.safetensors", bytes), "")),
        "checkpoint" => checkpoint(bytes),
        "settings" => settings(bytes),
        other => panic!("GEMS_FUZZ={other}: no such target; scripts/fuzz.sh lists them"),
    }
}

/// The last panic, and where it came from.
static LAST: Mutex<Option<(String, Backtrace)>> = Mutex::new(None);

// libFuzzer's hook ends the process at every panic. The engine catches those of the libraries that read tokenizers and
// Parquet; what counts is whether one comes out.
fuzz_target!(
    init: {
        // On this thread: handing an input to another one costs more than to read it.
        let alone = rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread().build_global();
        alone.unwrap_or_else(|e| panic!("no pool of one thread: {e}"));
        std::panic::set_hook(Box::new(|panic| {
            let told = (panic.to_string(), Backtrace::force_capture());
            *LAST.lock().unwrap_or_else(PoisonError::into_inner) = Some(told);
        }));
    },
    |bytes: &[u8]| {
        if std::panic::catch_unwind(|| read(bytes)).is_err() {
            if let Some((said, from)) = &*LAST.lock().unwrap_or_else(PoisonError::into_inner) {
                eprintln!("{said}\n{from}");
            }
            std::process::abort();
        }
    }
);
