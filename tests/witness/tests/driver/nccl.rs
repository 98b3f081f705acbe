//! Messages between ranks: two communicators of one process, each with a stream, and what programs do wrong with them.

use super::*;
use std::path::PathBuf;

const IN_PROGRESS: i32 = 7;
const BYTE: i32 = 1;
const MANY: usize = 16;
const BYTES: usize = 4 * MANY;

#[derive(Clone, Copy)]
#[repr(C)]
struct Id([u8; 128]);

#[repr(C)]
struct Config {
    size: usize,
    magic: u32,
    version: u32,
    blocking: i32,
}

unsafe extern "C" {
    fn ncclCommInitRankConfig(made: *mut usize, size: i32, id: Id, rank: i32, config: *const Config) -> i32;
    fn ncclCommGetAsyncError(communicator: usize, state: *mut i32) -> i32;
    safe fn ncclAllGather(
        from: u64,
        to: u64,
        count: usize,
        kind: i32,
        communicator: usize,
        stream: usize,
    ) -> i32;
    safe fn ncclSend(at: u64, count: usize, kind: i32, peer: i32, communicator: usize, stream: usize) -> i32;
    safe fn ncclRecv(at: u64, count: usize, kind: i32, peer: i32, communicator: usize, stream: usize) -> i32;
    safe fn ncclGroupStart() -> i32;
    safe fn ncclGroupEnd() -> i32;
    safe fn ncclCommDestroy(communicator: usize) -> i32;
}

/// A rank: its communicator, its stream, memory that it sends (all its number) and memory for what comes.
struct Rank {
    communicator: usize,
    stream: usize,
    from: u64,
    to: u64,
}

fn state(communicator: usize) -> i32 {
    let mut state = -1;
    // SAFETY: a place for one code.
    assert_eq!(unsafe { ncclCommGetAsyncError(communicator, &mut state) }, 0, "{:?}", messages());
    state
}

fn begun(communicator: usize) {
    while state(communicator) == IN_PROGRESS {}
}

fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("witness-nccl-{}-{name}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    folder
}

fn two(name: &str) -> (Bench, Vec<Rank>) {
    let bench = Bench::new(Settings { nccl: Some(folder(name)), ..Settings::default() });
    let rank = |rank: i32| {
        let (mut communicator, mut id) = (0, [0; 128]);
        id[..4].copy_from_slice(b"here");
        let config = Config { size: size_of::<Config>(), magic: 0xcafe_beef, version: 21400, blocking: 0 };
        // SAFETY: places for a communicator and a configuration of the size it says.
        let code = unsafe { ncclCommInitRankConfig(&mut communicator, 2, Id(id), rank, &config) };
        assert_eq!(code, IN_PROGRESS, "{:?}", messages());
        let (stream, from, to) = (stream(), take(BYTES).unwrap(), take(2 * BYTES).unwrap());
        done(bench.fill(stream, from, rank as u32 + 1, MANY as u32));
        Rank { communicator, stream, from, to }
    };
    let first = rank(0);
    assert_eq!(state(first.communicator), IN_PROGRESS, "the other rank is not there yet");
    let both = vec![first, rank(1)];
    both.iter().for_each(|r| begun(r.communicator));
    (bench, both)
}

fn gather(rank: &Rank) -> i32 {
    ncclAllGather(rank.from, rank.to, BYTES, BYTE, rank.communicator, rank.stream)
}

/// Lets all streams go on until each has reached its event.
fn finish(ranks: &[Rank]) {
    let events: Vec<usize> = ranks.iter().map(|_| event(2)).collect();
    ranks.iter().zip(&events).for_each(|(r, e)| done(record(*e, r.stream)));
    let is_late = |e: &usize| event_query(*e) == NOT_READY;
    // All of them are asked, each time: who asks first must not wait for who is not asked.
    while events.iter().filter(|e| is_late(e)).count() > 0 {}
}

#[test]
fn what_ranks_gather_and_send_to_each_other() {
    let (_bench, ranks) = two("gather");
    for rank in &ranks {
        assert_eq!(gather(rank), IN_PROGRESS);
        begun(rank.communicator);
    }
    finish(&ranks);
    for rank in &ranks {
        assert_eq!(read(rank.to, 2 * MANY, rank.stream), [[1; MANY], [2; MANY]].concat());
    }
    for (own, rank) in ranks.iter().enumerate() {
        assert_eq!(ncclGroupStart(), 0);
        let other = 1 - own as i32;
        ncclSend(rank.from, BYTES, BYTE, other, rank.communicator, rank.stream);
        ncclRecv(rank.to, BYTES, BYTE, other, rank.communicator, rank.stream);
        assert_eq!(ncclGroupEnd(), IN_PROGRESS);
        begun(rank.communicator);
    }
    finish(&ranks);
    assert_eq!(read(ranks[0].to, MANY, ranks[0].stream), [2; MANY]);
    assert_eq!(read(ranks[1].to, MANY, ranks[1].stream), [1; MANY]);
    ranks.iter().for_each(|rank| assert_eq!(ncclCommDestroy(rank.communicator), 0));
    silent();
}

#[test]
fn an_operation_before_the_last_one_has_begun() {
    let (_bench, ranks) = two("early");
    assert_eq!(gather(&ranks[0]), IN_PROGRESS);
    assert_eq!(gather(&ranks[0]), 5);
    said(&["refused", "ncclAllGather", "still in progress; ask ncclCommGetAsyncError"]);
}

#[test]
fn a_result_that_is_read_before_the_operation_has_begun() {
    let (_bench, ranks) = two("unasked");
    assert_eq!(gather(&ranks[0]), IN_PROGRESS);
    let result = pinned(2 * MANY);
    done(to_host(result, ranks[0].to, ranks[0].stream));
    assert_eq!(synchronize(ranks[0].stream), LAUNCH_FAILED);
    said(&["fault", "byte 0 of the 128 bytes", "was never written"]);
}

#[test]
fn ranks_that_send_more_than_is_awaited() {
    let (_bench, ranks) = two("sizes");
    ncclSend(ranks[0].from, BYTES, BYTE, 1, ranks[0].communicator, ranks[0].stream);
    ncclRecv(ranks[1].to, BYTES / 2, BYTE, 0, ranks[1].communicator, ranks[1].stream);
    ranks.iter().for_each(|rank| begun(rank.communicator));
    done(synchronize(ranks[0].stream));
    assert_ne!(synchronize(ranks[1].stream), SUCCESS);
    said(&["fault", "ncclCommGetAsyncError", "rank 0 sends 64 bytes where 32 are awaited"]);
}

#[test]
fn memory_of_a_message_that_another_stream_writes_meanwhile() {
    let (bench, ranks) = two("memory");
    let other = stream();
    for rank in &ranks {
        gather(rank);
        begun(rank.communicator);
    }
    done(bench.fill(other, ranks[0].from, 7, MANY as u32));
    let status = synchronize(other);
    let events: Vec<usize> = ranks.iter().map(|_| event(2)).collect();
    for (rank, event) in ranks.iter().zip(&events) {
        let _ = record(*event, rank.stream);
    }
    for event in events.iter().cycle().take(200) {
        let _ = event_query(*event);
    }
    assert!(status == SUCCESS || status == LAUNCH_FAILED);
    said(&["fault", "missing synchronisation"]);
}

#[test]
fn messages_beyond_their_memory() {
    let (_bench, ranks) = two("bounds");
    let code = ncclAllGather(ranks[0].to, ranks[0].from, BYTES, BYTE, ranks[0].communicator, ranks[0].stream);
    assert_eq!(code, 4);
    said(&["refused", "a message of 64 bytes", "no device memory"]);
}
