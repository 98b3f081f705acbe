//! Bytes made to do harm: nested, swollen, endless, or leading elsewhere.

use super::refused;
use crate::cli::{golden_model, train, world};
use gems_engine::data::{ChatTemplate, DataSettings, Prompts, json_objects};
use gems_engine::model::{Architecture, Weights};
use gems_engine::train::checkpoint;
use serde_json::json;
use std::fs;
use std::path::Path;

/// JSON that is nothing but brackets: a parser that calls itself for each has no stack left.
#[test]
fn deeply_nested_json_is_refused_wherever_json_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let deep = format!("{{\"format\": {}", "[".repeat(200_000));
    fs::write(at("config.json"), &deep).unwrap();
    assert!(Architecture::read(dir.path()).is_err());
    fs::write(at("model.safetensors.index.json"), &deep).unwrap();
    assert!(Weights::open(dir.path()).is_err());
    fs::write(at("rows.jsonl"), &deep).unwrap();
    assert!(json_objects(&at("rows.jsonl")).unwrap().next().unwrap().is_err());
    fs::write(at("state.json"), &deep).unwrap();
    assert!(checkpoint::load(dir.path()).is_err());
    fs::remove_file(at("model.safetensors.index.json")).unwrap();
    let header = [&(deep.len() as u64).to_le_bytes()[..], deep.as_bytes()].concat();
    fs::write(at("model.safetensors"), header).unwrap();
    assert!(Weights::open(dir.path()).is_err());
}

/// Templates come with checkpoints. What one may cost bounds its time and its memory.
#[test]
fn a_template_that_never_ends_or_grows_without_bound_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let settings = DataSettings { chat_template: true, ..DataSettings::default() };
    for (template, said) in [
        ("{% for a in range(99999) %}{% for b in range(99999) %}{{ a * b }}{% endfor %}{% endfor %}", "fuel"),
        ("{{ \"x\" * 4000000000 }}", "fuel"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
    ] {
        fs::write(dir.path().join("chat_template.jinja"), template).unwrap();
        let chat = ChatTemplate::read(dir.path()).unwrap();
        let prompts = Prompts::with_chat(&settings, Some(chat), None);
        let error = prompts.and_then(|p| p.chat("hello".into())).unwrap_err().to_string();
        assert!(error.contains(said), "{template}: {error}");
    }
}

#[test]
fn no_name_in_a_file_leads_out_of_its_directory() {
    let dir = tempfile::tempdir().unwrap();
    let outside = dir.path().join("secret.safetensors");
    fs::copy(golden_model("llama_tied").join("model.safetensors"), &outside).unwrap();
    let model = dir.path().join("model");
    fs::create_dir(&model).unwrap();
    for name in ["../secret.safetensors", outside.to_str().unwrap(), "..\\secret.safetensors", "..", "./x"] {
        fs::write(model.join("model.safetensors.index.json"), json!({"weight_map": {"a": name}}).to_string())
            .unwrap();
        let error = Weights::open(&model).err().unwrap().to_string();
        assert!(error.contains("not the name of a file in this directory"), "{name}: {error}");
    }
    let step = dir.path().join("step-00000001");
    fs::create_dir(&step).unwrap();
    let sum = blake3::hash(&fs::read(&outside).unwrap()).to_hex().to_string();
    for name in ["../secret.safetensors", outside.to_str().unwrap()] {
        let manifest = json!({"format": 1, "step": 1, "files": {name: sum}, "state": {}});
        fs::write(step.join("state.json"), manifest.to_string()).unwrap();
        assert!(checkpoint::load(&step).is_err(), "{name}");
    }
}

/// Ids are data: no file is ever named by one.
#[test]
fn item_ids_that_look_like_paths_are_only_ids() {
    let dir = tempfile::tempdir().unwrap();
    let data = world(dir.path());
    for file in ["items", "train", "valid", "test"] {
        let path = data.join(format!("{file}.jsonl"));
        let text = fs::read_to_string(&path).unwrap().replace("\"i3\"", "\"../../../escaped\"");
        fs::write(path, text).unwrap();
    }
    let out = dir.path().join("a/b/c/run");
    train("llama_tied", &data, &out, &["--steps", "1"]).assert().success();
    let named = |at: &Path| fs::read_dir(at).unwrap().flatten().any(|e| e.file_name() == "escaped");
    assert!(!out.ancestors().take(5).any(named));
}

/// A few hundred bytes that unpack to gigabytes end where the first row is too long or the rows are no rows, without holding them.
#[test]
fn a_swollen_log_is_refused_in_little_memory() {
    use std::io::Write;
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log.jsonl.gz");
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    for _ in 0..256 {
        packed.write_all(&vec![b'['; 1 << 20]).unwrap();
    }
    fs::write(&log, packed.finish().unwrap()).unwrap();
    let mut prepare = crate::cli::engine();
    prepare.args(["prepare", "events", "--json", "--out"]).arg(dir.path().join("out")).arg(&log);
    refused(prepare, 1, &["log.jsonl.gz"]);
}

/// A few kilobytes of Parquet that say one long id over and over: 256 MiB, once decoded. It ends by itself, in a bounded memory.
#[cfg(target_os = "linux")]
#[test]
fn a_swollen_parquet_file_ends_in_a_bounded_memory() {
    use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray};
    use std::sync::Arc;
    let dir = tempfile::tempdir().unwrap();
    let (log, long, rows) = (dir.path().join("log.parquet"), "x".repeat(1 << 20), 256);
    let id: ArrayRef = Arc::new(StringArray::from_iter_values(std::iter::repeat_n(&long, rows)));
    let time: ArrayRef = Arc::new(Int64Array::from_iter_values(0..rows as i64));
    let columns = [("user", Arc::clone(&id)), ("item", id), ("timestamp", time)];
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let zstd = parquet::basic::Compression::ZSTD(parquet::basic::ZstdLevel::default());
    let properties = parquet::file::properties::WriterProperties::builder()
        .set_compression(zstd)
        .set_dictionary_page_size_limit(1 << 22)
        .set_statistics_enabled(parquet::file::properties::EnabledStatistics::None)
        .build();
    let file = fs::File::create(&log).unwrap();
    let mut writer = parquet::arrow::ArrowWriter::try_new(file, batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    assert!(fs::metadata(&log).unwrap().len() < 64 << 10);
    let engine = crate::cli::engine();
    let mut limited = assert_cmd::Command::new("sh");
    limited.args(["-c", "ulimit -v 3000000; exec \"$0\" \"$@\""]).arg(engine.get_program());
    limited.args(["prepare", "events", "--json", "--out"]).arg(dir.path().join("out")).arg(&log);
    refused(limited, 1, &["\"error\""]);
}
