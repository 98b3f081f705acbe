//! TensorBoard events, read back by their definition.

use super::line;
use gems_engine::error::Kind;
use gems_engine::report::EventWriter;
use serde_json::json;

/// CRC-32C bit by bit, from its polynomial (reflected 0x82f63b78).
fn crc32c(data: &[u8]) -> u32 {
    !data.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |c, _| if c & 1 == 1 { c >> 1 ^ 0x82f6_3b78 } else { c >> 1 })
    })
}

fn masked(data: &[u8]) -> u32 {
    let crc = crc32c(data);
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// The records of a TFRecord file, every checksum checked.
fn records(mut file: &[u8]) -> Vec<Vec<u8>> {
    let mut records = Vec::new();
    while !file.is_empty() {
        let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
        assert_eq!(u32::from_le_bytes(file[8..12].try_into().unwrap()), masked(&file[..8]));
        let data = &file[12..12 + length];
        let crc = u32::from_le_bytes(file[12 + length..16 + length].try_into().unwrap());
        assert_eq!(crc, masked(data));
        records.push(data.to_vec());
        file = &file[16 + length..];
    }
    records
}

/// One field of a protobuf message: its number and its bytes (a varint as eight).
fn fields(mut data: &[u8]) -> Vec<(u64, Vec<u8>)> {
    fn varint(data: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..).step_by(7) {
            let byte = data[0];
            *data = &data[1..];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
        }
        value
    }
    let mut found = Vec::new();
    while !data.is_empty() {
        let key = varint(&mut data);
        let length = match key & 7 {
            0 => {
                found.push((key >> 3, varint(&mut data).to_le_bytes().to_vec()));
                continue;
            }
            1 => 8,
            2 => varint(&mut data) as usize,
            5 => 4,
            other => panic!("wire type {other}"),
        };
        found.push((key >> 3, data[..length].to_vec()));
        data = &data[length..];
    }
    found
}

fn get(message: &[u8], number: u64) -> Option<Vec<u8>> {
    fields(message).into_iter().find(|(n, _)| *n == number).map(|(_, bytes)| bytes)
}

fn step(event: &[u8]) -> u64 {
    u64::from_le_bytes(get(event, 2).unwrap().try_into().unwrap())
}

fn scalars(event: &[u8]) -> Vec<(String, f32)> {
    let values = fields(&get(event, 5).unwrap());
    let scalar = |value: Vec<u8>| {
        let number = f32::from_le_bytes(get(&value, 2).unwrap().try_into().unwrap());
        (String::from_utf8(get(&value, 1).unwrap()).unwrap(), number)
    };
    values.into_iter().map(|(_, value)| scalar(value)).collect()
}

#[test]
fn the_checksum_of_the_test_is_the_standard_one() {
    // RFC 3720, appendix B.4.
    assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
}

#[test]
fn events_decode_to_what_was_written() {
    let dir = tempfile::tempdir().unwrap();
    let mut events = EventWriter::open(&dir.path().join("tensorboard"), None).unwrap();
    let name = "task \u{1f50d}.".repeat(30);
    let first =
        json!({"step": 1, "loss": 2.5, "loss.a.b": -0.125, "best": true, "why": "text", name.clone(): 3});
    events.write(&line(first)).unwrap();
    events.write(&line(json!({"step": 3_000_000_000u64, "lr": null}))).unwrap();
    events.write(&line(json!({}))).unwrap();
    let records = records(&std::fs::read(events.path()).unwrap());
    assert_eq!(records.len(), 4);
    assert_eq!(get(&records[0], 3).unwrap(), b"brain.Event:2");
    let time = f64::from_le_bytes(get(&records[1], 1).unwrap().try_into().unwrap());
    assert!(time > 1.7e9 && time < 1e11, "seconds since 1970: {time}");
    assert_eq!(step(&records[1]), 1);
    let expected =
        [("loss".to_string(), 2.5), ("loss/a.b".to_string(), -0.125), (name.replacen('.', "/", 1), 3.0)];
    assert_eq!(scalars(&records[1]), expected);
    assert_eq!(step(&records[2]), 3_000_000_000);
    assert!(scalars(&records[2])[0].1.is_nan());
    assert!(scalars(&records[3]).is_empty());
}

/// A field of a message in a message ..
fn within(message: &[u8], path: &[u64]) -> Vec<u8> {
    path.iter().fold(message.to_vec(), |message, field| get(&message, *field).unwrap_or_default())
}

fn double(message: &[u8], number: u64) -> f64 {
    f64::from_le_bytes(get(message, number).unwrap().try_into().unwrap())
}

fn doubles(message: &[u8], number: u64) -> Vec<f64> {
    let packed = get(message, number).unwrap();
    packed.chunks(8).map(|v| f64::from_le_bytes(v.try_into().unwrap())).collect()
}

#[test]
fn lists_are_histograms_that_hold_every_finite_value() {
    let dir = tempfile::tempdir().unwrap();
    let mut events = EventWriter::open(dir.path(), None).unwrap();
    let ragged: Vec<f64> = (0..101).map(|i| (i as f64 * 0.37).sin() * 3.0).collect();
    for values in [json!([0.25]), json!([2.0, null, 2.0]), json!([-1.0, 0.1, 0.2, 0.3, 7.0]), json!(ragged)] {
        events.write(&line(json!({"step": 4, "layers.room": values}))).unwrap();
    }
    events.write(&line(json!({"step": 5, "layers.room": [], "layers.energy.rec": [null]}))).unwrap();
    let records = records(&std::fs::read(events.path()).unwrap());
    let wanted: [&[f64]; 4] = [&[0.25], &[2.0, 2.0], &[-1.0, 0.1, 0.2, 0.3, 7.0], &ragged];
    for (record, wanted) in records[1..5].iter().zip(wanted) {
        let value = within(record, &[5, 1]);
        assert_eq!(get(&value, 1).unwrap(), b"layers/room");
        let histogram = get(&value, 5).unwrap();
        let (least, most) =
            wanted.iter().fold((f64::MAX, f64::MIN), |(low, high), v| (low.min(*v), high.max(*v)));
        assert_eq!((double(&histogram, 1), double(&histogram, 2)), (least, most));
        assert_eq!(double(&histogram, 3), wanted.len() as f64);
        assert!((double(&histogram, 4) - wanted.iter().sum::<f64>()).abs() < 1e-9);
        let (limits, counts) = (doubles(&histogram, 6), doubles(&histogram, 7));
        assert_eq!(limits.len(), counts.len());
        assert_eq!(limits.last(), Some(&most));
        // A bar counts what is above the limit before it, up to its own.
        let mut below = f64::NEG_INFINITY;
        for (limit, count) in limits.iter().zip(&counts) {
            let inside = wanted.iter().filter(|v| **v > below && **v <= *limit).count();
            assert_eq!(*count, inside as f64, "to {limit}");
            below = *limit;
        }
    }
    assert!(get(&records[5], 5).is_none_or(|summary| summary.is_empty()));
}

#[test]
fn settings_are_hyperparameters_and_a_text() {
    let dir = tempfile::tempdir().unwrap();
    let mut events = EventWriter::open(dir.path(), None).unwrap();
    let settings = [
        ("train.lr".to_string(), json!(0.5)),
        ("train.export".into(), json!(true)),
        ("gems.method".into(), json!("gems")),
        ("train.tasks".into(), json!(["rec"])),
        ("data.templates.rec.prompt".into(), json!("a | *b* <item>")),
    ];
    events.settings(&settings, &["loss".into(), "valid.rec.ndcg@10".into()]).unwrap();
    events.finish().unwrap();
    let records = records(&std::fs::read(events.path()).unwrap());
    let values: Vec<Vec<u8>> = fields(&get(&records[1], 5).unwrap()).into_iter().map(|(_, v)| v).collect();
    let tags: Vec<Vec<u8>> = values.iter().map(|value| get(value, 1).unwrap()).collect();
    assert_eq!(
        tags,
        [&b"_hparams_/experiment"[..], b"_hparams_/session_start_info", b"settings/text_summary"]
    );
    assert!(values.iter().all(|value| u64::from_le_bytes(within(value, &[9, 4]).try_into().unwrap()) == 2));
    assert_eq!(within(&values[0], &[9, 1, 1]), b"hparams");
    // Experiment: names and types of settings, tags of metrics.
    let experiment = fields(&within(&values[0], &[9, 1, 2, 2]));
    let of = |number: u64| experiment.iter().filter(move |(n, _)| *n == number).map(|(_, m)| m.clone());
    let types: Vec<u8> = of(4).map(|m| get(&m, 4).unwrap()[0]).collect();
    assert_eq!(types, [3, 2, 1, 1, 1]);
    let metrics: Vec<Vec<u8>> = of(5).map(|m| within(&m, &[1, 2])).collect();
    assert_eq!(metrics, [&b"loss"[..], b"valid/rec.ndcg@10"]);
    // The session: a map from name to a value of its type.
    let start = fields(&within(&values[1], &[9, 1, 2, 3]));
    let entries: Vec<(Vec<u8>, Vec<u8>)> = start
        .iter()
        .filter(|(n, _)| *n == 1)
        .map(|(_, m)| (get(m, 1).unwrap(), get(m, 2).unwrap()))
        .collect();
    assert_eq!((&entries[0].0[..], double(&entries[0].1, 2)), (&b"train.lr"[..], 0.5));
    assert_eq!((&entries[1].0[..], get(&entries[1].1, 4).unwrap()[0]), (&b"train.export"[..], 1));
    assert_eq!(get(&entries[2].1, 3).unwrap(), b"gems");
    assert_eq!(get(&entries[3].1, 3).unwrap(), b"[\"rec\"]");
    let text = String::from_utf8(within(&values[2], &[8, 8])).unwrap();
    assert!(text.contains("| train.lr | 0.5 |"), "{text}");
    // A table of two columns, whatever a prompt says: as TensorBoard 2.21's own renderer shows it.
    let prompt = r#"| data.templates.rec.prompt | "a &#124; &#42;b&#42; &#60;item&#62;" |"#;
    assert!(text.contains(prompt), "{text}");
    let end = within(&records[2], &[5, 1]);
    assert_eq!(get(&end, 1).unwrap(), b"_hparams_/session_end_info");
    assert_eq!(within(&end, &[9, 1, 2, 4, 1])[0], 1);
}

#[test]
fn a_resumed_run_writes_a_later_file_that_takes_steps_back() {
    let dir = tempfile::tempdir().unwrap();
    let first = EventWriter::open(dir.path(), None).unwrap().path().to_path_buf();
    let second = EventWriter::open(dir.path(), Some(4)).unwrap().path().to_path_buf();
    assert!(first < second);
    let records = records(&std::fs::read(second).unwrap());
    assert_eq!(step(&records[1]), 5);
    let session = get(&records[1], 7).unwrap();
    assert_eq!(fields(&session), [(1, 1u64.to_le_bytes().to_vec())]);
}

#[test]
fn a_file_in_the_way_is_an_io_error() {
    let file = tempfile::NamedTempFile::new().unwrap();
    assert_eq!(EventWriter::open(file.path(), None).unwrap_err().kind, Kind::Io);
}
