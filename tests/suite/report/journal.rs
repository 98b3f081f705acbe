//! `log.txt`.

use gems_engine::report::Journal;
use std::collections::BTreeSet;

#[test]
fn threads_that_tell_at_once_do_not_tear_each_others_lines() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log.txt");
    let journal = Journal::open(&path, "race", true).unwrap();
    let (threads, each) = (8, 500);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let journal = &journal;
            scope.spawn(move || (0..each).for_each(|i| journal.keep(&format!("cell {thread} line {i}"))));
        }
    });
    let text = std::fs::read_to_string(&path).unwrap();
    let told = text.lines().skip(1).map(|line| line.split_once(" s  ").expect(line));
    let (times, told): (Vec<&str>, BTreeSet<String>) =
        told.map(|(time, what)| (time, what.to_string())).unzip();
    assert!(times.iter().all(|time| time.trim().parse::<f64>().is_ok()), "{text}");
    let all = (0..threads).flat_map(|t| (0..each).map(move |i| format!("cell {t} line {i}")));
    assert_eq!(told, all.collect());
}
