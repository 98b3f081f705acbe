//! `metrics.jsonl`.

use super::line;
use gems_engine::error::Kind;
use gems_engine::report::{Line, MetricsLog, read};
use serde_json::json;
use std::io::Write;

fn steps(lines: &[Line]) -> Vec<u64> {
    lines.iter().map(|l| l["step"].as_u64().unwrap()).collect()
}

#[test]
fn lines_come_back_as_written_and_nan_as_null() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("metrics.jsonl");
    assert!(read(&path).unwrap().is_empty());
    let mut log = MetricsLog::open(&path, 0).unwrap();
    let first = line(json!({"step": 1, "loss": 0.1 + 0.2, "loss.<b>": f64::NAN, "lr": f64::INFINITY}));
    log.write(&first).unwrap();
    log.write(&line(json!({"step": 2, "loss": 1e-300}))).unwrap();
    log.sync().unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    let expected = "{\"step\":1,\"loss\":0.30000000000000004,\"loss.<b>\":null,\"lr\":null}\n\
                    {\"step\":2,\"loss\":1e-300}\n";
    assert_eq!(text, expected);
    assert_eq!(read(&path).unwrap()[0], first);
}

#[test]
fn a_resumed_log_equals_the_uninterrupted_one() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, resumed) = (dir.path().join("whole"), dir.path().join("resumed"));
    let write = |log: &mut MetricsLog, steps: std::ops::RangeInclusive<u64>| {
        for step in steps {
            log.write(&line(json!({"step": step, "loss": 1.0 / step as f64}))).unwrap();
            if step % 2 == 0 {
                log.write(&line(json!({"step": step, "valid.rec.ndcg@10": 0.5}))).unwrap();
            }
        }
    };
    write(&mut MetricsLog::open(&whole, 0).unwrap(), 1..=6);
    write(&mut MetricsLog::open(&resumed, 0).unwrap(), 1..=5);
    std::fs::OpenOptions::new().append(true).open(&resumed).unwrap().write_all(b"{\"step\":6,\"lo").unwrap();
    // The checkpoint is that of step 4.
    write(&mut MetricsLog::open(&resumed, 4).unwrap(), 5..=6);
    assert_eq!(std::fs::read(&whole).unwrap(), std::fs::read(&resumed).unwrap());
    write(&mut MetricsLog::open(&resumed, 3).unwrap(), 4..=6);
    assert_eq!(std::fs::read(&whole).unwrap(), std::fs::read(&resumed).unwrap());
}

/// Killed before its first checkpoint a run begins anew, with its validation before the first step.
#[test]
fn a_log_that_begins_anew_keeps_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("metrics.jsonl");
    for _ in 0..2 {
        let mut log = MetricsLog::open(&path, 0).unwrap();
        log.write(&line(json!({"step": 0, "valid.rec.ndcg@10": 0.5}))).unwrap();
        log.write(&line(json!({"step": 1, "loss": 1.0}))).unwrap();
    }
    assert_eq!(steps(&read(&path).unwrap()), [0, 1]);
}

#[test]
fn torn_last_lines_are_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("metrics.jsonl");
    let tails: [&[u8]; 6] =
        [b"{\"step\":", b"\0\0\0\0", b"\xff\xfe", b"{\"step\":2}", b"[1]\n", b"{\"a\":1\n\n \n"];
    for tail in tails {
        std::fs::write(&path, [b"{\"step\":1}\n".as_slice(), tail].concat()).unwrap();
        let whole = serde_json::from_slice::<Line>(tail).is_ok();
        let expected: &[u64] = if whole { &[1, 2] } else { &[1] };
        assert_eq!(steps(&read(&path).unwrap()), expected, "{tail:?}");
        // What is appended is a line of its own, whatever was there before.
        let mut log = MetricsLog::open(&path, 9).unwrap();
        log.write(&line(json!({"step": 9}))).unwrap();
        let found = steps(&read(&path).unwrap());
        assert_eq!(found, [expected, &[9]].concat(), "{tail:?}");
    }
}

#[test]
fn a_broken_line_in_the_middle_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("metrics.jsonl");
    std::fs::write(&path, "{\"step\":1}\n\nnonsense\n{\"step\":2}\n").unwrap();
    for error in [read(&path).unwrap_err(), MetricsLog::open(&path, 2).unwrap_err()] {
        assert_eq!(error.kind, Kind::Data);
        assert!(error.to_string().contains("metrics.jsonl, line 3"), "{error}");
    }
    assert!(std::fs::read_to_string(&path).unwrap().contains("nonsense"), "nothing is thrown away");
}

/// The log is flushed before each checkpoint; a loss of power can have made anything of what came later.
#[test]
fn what_no_checkpoint_vouches_for_may_be_broken() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("metrics.jsonl");
    for (keep, expected) in [(0, &[][..]), (1, &[1]), (2, &[1, 2])] {
        std::fs::write(&path, "{\"step\":1}\n{\"step\":2}\n{\"st\0\0\0\n{\"step\":4}\n").unwrap();
        MetricsLog::open(&path, keep).unwrap();
        assert_eq!(steps(&read(&path).unwrap()), expected, "after step {keep}");
    }
    std::fs::write(&path, "{\"step\":1}\n{\"st\0\0\0\n{\"step\":3}\n").unwrap();
    assert!(MetricsLog::open(&path, 3).is_err(), "step 2 was flushed");
}

#[test]
fn an_unwritable_place_is_an_io_error() {
    let dir = tempfile::tempdir().unwrap();
    let error = MetricsLog::open(&dir.path().join("none/metrics.jsonl"), 0).unwrap_err();
    assert_eq!(error.kind, Kind::Io);
    assert!(read(dir.path()).is_err(), "a directory is no log");
}
