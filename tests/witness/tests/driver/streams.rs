//! Streams and events: what is done when, and in which orders.

use super::*;

#[test]
fn nothing_is_done_before_somebody_waits() {
    let bench = Bench::plain();
    let (memory, result) = (take(256).unwrap(), pinned(64));
    let (before, after) = (event(2), event(2));
    done(bench.fill(bench.stream, memory, 7, 64));
    done(record(before, bench.stream));
    done(to_host(result, memory, bench.stream));
    done(record(after, bench.stream));
    done(event_synchronize(before));
    assert_eq!(result[0], u32::MAX, "the copy was not waited for");
    // Asking takes time too, in which something is done.
    assert_eq!(event_query(after), NOT_READY);
    assert_eq!(event_query(after), SUCCESS);
    assert_eq!(result, [7; 64]);
    silent();
}

#[test]
fn an_event_orders_two_streams() {
    for seed in 0..20 {
        let bench = Bench::new(seeded(seed));
        let (memory, copy, other) = (take(256).unwrap(), take(256).unwrap(), stream());
        let filled = event(2);
        done(bench.fill(bench.stream, memory, 7, 64));
        done(record(filled, bench.stream));
        done(wait_event(other, filled, 0));
        done(bench.copy(other, copy, memory, 64));
        // Only the second stream is waited for: it pulls the first along.
        assert_eq!(read(copy, 64, other), [7; 64]);
        silent();
    }
}

#[test]
fn unrelated_streams_go_in_many_orders() {
    let mut orders = std::collections::BTreeSet::new();
    for seed in 0..30 {
        let bench = Bench::new(seeded(seed));
        let other = stream();
        let (a, b) = (take(256).unwrap(), take(256).unwrap());
        let (first, second) = (event(0), event(0));
        done(bench.fill(bench.stream, a, 1, 64));
        done(record(first, bench.stream));
        done(bench.fill(other, b, 2, 64));
        done(record(second, other));
        done(context_synchronize());
        orders.insert(elapsed(first, second).unwrap() > 0.0);
        silent();
    }
    assert_eq!(orders.len(), 2);
}

#[test]
fn the_host_orders_what_it_waits_for() {
    let bench = Bench::plain();
    let (memory, copy, other) = (take(256).unwrap(), take(256).unwrap(), stream());
    done(bench.fill(bench.stream, memory, 7, 64));
    done(synchronize(bench.stream));
    done(bench.copy(other, copy, memory, 64));
    assert_eq!(read(copy, 64, other), [7; 64]);
    // Two readers need no order.
    done(bench.copy(bench.stream, take(256).unwrap(), memory, 64));
    done(bench.copy(other, take(256).unwrap(), memory, 64));
    done(context_synchronize());
    silent();
}

#[test]
fn the_default_stream_waits_for_blocking_streams_only() {
    let bench = Bench::plain();
    let memory = take(256).unwrap();
    // `Bench` has a non-blocking stream: nothing orders it and the default stream.
    done(bench.fill(bench.stream, memory, 7, 64));
    done(bench.fill(0, memory, 8, 64));
    assert_eq!(context_synchronize(), LAUNCH_FAILED);
    said(&["missing synchronisation", "writes 256 bytes"]);
}

#[test]
fn times_of_events() {
    let bench = Bench::plain();
    let (from, to, untimed) = (event(0), event(0), event(2));
    done(record(from, bench.stream));
    done(bench.fill(bench.stream, take(4096).unwrap(), 7, 1024));
    done(record(to, bench.stream));
    done(record(untimed, bench.stream));
    assert_eq!(elapsed(from, to), Err(NOT_READY));
    done(synchronize(bench.stream));
    assert!(elapsed(from, to).unwrap() >= 0.0);
    assert_eq!(elapsed(from, untimed), Err(INVALID_HANDLE));
    said(&["cuEventElapsedTime", "made without timing"]);
    assert_eq!(elapsed(from, event(0)), Err(INVALID_HANDLE));
    said(&["was never recorded"]);
}

#[test]
fn a_stream_that_is_destroyed_still_does_its_work() {
    let bench = Bench::plain();
    let (memory, other) = (take(256).unwrap(), stream());
    done(bench.fill(other, memory, 7, 64));
    done(stream_destroy(other));
    refused(synchronize(other), INVALID_HANDLE, &["stream", "was destroyed in call"]);
    done(context_synchronize());
    assert_eq!(read(memory, 64, bench.stream), [7; 64]);
}
