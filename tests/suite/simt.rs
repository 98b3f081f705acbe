//! The host SIMT machine: planted bugs are named, what is no bug is not, schedules are replayed. What the kernels compute
//! on it is in `ops/`.

use gems_engine::backend::cuda::drivers::simt::{Schedule, configure, run_planted};

/// Runs a planted bug under every schedule; the machine's words, or the values that were left.
fn planted(bug: &str) -> Vec<Result<Vec<f32>, String>> {
    static ONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(|p| p.into_inner());
    let schedules = [Schedule::Forward, Schedule::Reversed, Schedule::Random(3), Schedule::Random(4)];
    let found = schedules.map(|schedule| {
        configure(1, schedule);
        let threads = if bug.starts_with("ring") { 256 } else { 64 };
        run_planted(bug, threads).map_err(|e| e.to_string())
    });
    configure(0, Schedule::Forward);
    found.into()
}

#[test]
fn planted_bugs_are_named() {
    let bugs = [
        ("divergent_barrier", "deadlock", ""),
        ("divergent_warp", "divergent warp", ""),
        ("global_overrun", "global memory out of bounds: a write of 4 bytes", "planted.cu"),
        ("shared_overrun", "shared memory out of bounds", "planted.cu"),
        ("misaligned_copy", "cp.async: misaligned address", ""),
        ("misaligned", "misaligned access of 4 bytes", "planted.cu"),
        ("endless_stack", "stack overflow", "planted.cu"),
        ("missing_wait", "before the copy into it was waited for", "planted.cu"),
        ("own_missing_wait", "before the copy into it was waited for", "planted.cu"),
        ("wait_without_barrier", "", "planted.cu"),
        // Without words: a race, an unwritten value or an unfinished copy, whichever the schedule meets first.
        ("missing_barrier", "", "planted.cu"),
        ("early_overwrite", "race on byte", "planted.cu"),
        ("missing_syncwarp", "", "planted.cu"),
        ("syncwarp_too_weak", "", "planted.cu"),
        ("uninitialised", "is read, but nobody wrote it", "planted.cu"),
        ("elect_of_half", "divergent warp", ""),
        ("mbarrier_not_waited", "", "planted.cu"),
        ("mbarrier_not_told", "", ""),
        ("mbarrier_twice", "more than 1 arrivals in one phase", ""),
        ("ring_of_numbers_told_early", "race on byte", "planted.cu"),
        ("ring_not_arrived", "", ""),
        ("ring_not_free", "", ""),
        ("ring_not_multiplied", "", ""),
        ("unwritten", "of an allocation in global memory is read, but nobody wrote it", "planted.cu"),
    ];
    let lines = std::process::Command::new("addr2line").arg("--version").output().is_ok();
    for (bug, words, source) in bugs {
        for found in planted(bug) {
            let message = found.expect_err(bug);
            let kernel = format!("[kernel planted_{bug}, block (0, 0, 0), thread (");
            for word in [words, &kernel, if lines { source } else { "" }] {
                assert!(message.contains(word), "{bug}: {message} lacks {word}");
            }
            let known = ["race", "nobody wrote", "copy", "no mbarrier", "waited for", "arrivals"];
            assert!(!words.is_empty() || known.iter().any(|k| message.contains(k)), "{bug}: {message}");
        }
    }
}

#[test]
fn what_is_no_bug_is_not_reported() {
    for left in planted("nothing") {
        let want: Vec<f32> = (0..64).map(|i| ((63 - i) ^ 1) as f32).collect();
        assert_eq!(left.unwrap()[..64], want);
    }
    for left in planted("mbarrier") {
        let want: Vec<f32> = (0..64).map(|i| (i % 32) as f32).collect();
        assert_eq!(left.unwrap()[..64], want);
    }
    // Four products of 64 ones and 64 ones.
    for left in planted("ring") {
        assert_eq!(left.unwrap()[..128], [256.0; 128]);
    }
    // Read by seven warps at different times, each of which tells: nobody races.
    for left in planted("ring_of_numbers") {
        assert_eq!(left.unwrap()[32..256], [15.0; 224]);
    }
}

#[test]
fn a_random_schedule_is_replayed_from_its_seed() {
    let (first, again) = (planted("missing_barrier"), planted("missing_barrier"));
    assert_eq!(first, again);
    assert_ne!(first[2], first[3], "two seeds, one schedule");
}
