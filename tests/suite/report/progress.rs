//! The progress line.

use super::line;
use gems_engine::report::{Line, Progress, training_message};
use serde_json::json;
use std::io::Write;
use std::sync::{Arc, Mutex};

#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn shown(total: u64, act: impl FnOnce(&mut Progress)) -> String {
    let sink = Sink::default();
    act(&mut Progress::to_writer("rank", total, Box::new(sink.clone())));
    String::from_utf8(sink.0.lock().unwrap().clone()).unwrap()
}

#[test]
fn fast_work_takes_one_plain_line() {
    let text = shown(1000, |progress| {
        for position in 1..=1000 {
            progress.tick(position, || format!("at {position}"));
        }
        progress.finish();
        progress.finish();
    });
    assert_eq!(text, "rank: 1000/1000 (100 %): at 1000\n");
}

#[test]
fn slow_work_says_how_far_it_is_and_how_long_it_takes() {
    let text = shown(4, |progress| {
        std::thread::sleep(std::time::Duration::from_millis(1050));
        progress.tick(1, String::new);
        progress.tick(2, String::new);
        progress.note("a word");
    });
    assert_eq!(text, "rank: 1/4 (25 %), 3 seconds left\na word\n");
}

#[test]
fn odd_totals_and_positions_do_no_harm() {
    let unknown = shown(0, |progress| {
        progress.tick(7, || "items".into());
        progress.finish();
    });
    assert_eq!(unknown, "rank: 7: items\n");
    let beyond = shown(5, |progress| {
        progress.tick(u64::MAX, String::new);
        progress.tick(3, String::new);
        progress.finish();
    });
    assert_eq!(beyond.lines().count(), 1);
    assert_eq!(shown(5, |progress| progress.finish()), "");
    let mut quiet = Progress::new("quiet", 3, true);
    quiet.tick(1, || panic!("a message nobody sees is not made"));
    quiet.note("nothing");
    quiet.finish();
}

#[test]
fn a_resumed_run_counts_its_time_from_where_it_began() {
    let sink = Sink::default();
    let mut progress = Progress::to_writer("train", 1000, Box::new(sink.clone())).starting_at(900);
    progress.finish();
    std::thread::sleep(std::time::Duration::from_millis(1050));
    progress.tick(950, String::new);
    // 50 steps took a second, so do the 50 left: not the 0.06 seconds that 950 steps a second give.
    let text = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
    assert_eq!(text, "train: 950/1000 (95 %), 1 second left\n");
}

#[test]
fn the_message_of_a_step_names_losses_gates_speed_and_memory() {
    let step = json!({
        "step": 3, "loss": 2.0, "loss.rec": 1.5, "loss.search": 2.5, "gate.rec": 0.25, "gate.search": null,
        "tokens_per_second": 12345.6, "memory_bytes": 1.5 * 1024.0 * 1024.0 * 1024.0,
    });
    let message = training_message(&line(step));
    assert_eq!(message, "loss rec 1.500 search 2.500 · gates rec 0.250 · 12,346 tok/s · 1.50 GiB");
    assert_eq!(training_message(&line(json!({"loss": 0.5}))), "loss 0.500");
    assert_eq!(training_message(&Line::new()), "");
}
