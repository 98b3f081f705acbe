//! NCCL as programs see it, between processes of this machine that each have a witness: the same file answers to
//! `libnccl.so.2`. Messages are files in a folder of `WITNESS_NCCL`.
//!
//! As late as allowed: what a communicator was asked for is in the stream when `ncclCommGetAsyncError` has said so, and
//! not before; the stream goes on behind it when every message has come.

use super::arguments::{In, Out};
use super::order::Mark;
use super::status::*;
use super::stream::Work;
use super::{CURRENT, Driver, bound, plainly};
use std::ffi::{c_char, c_int};
use std::path::{Path, PathBuf};

/// `ncclResult_t`.
type Code = c_int;
const DONE: Code = 0;
const IN_PROGRESS: Code = 7;
/// The bytes of `ncclDataType_t`, by its number.
const WIDTHS: [usize; 10] = [1, 1, 4, 4, 8, 8, 2, 4, 8, 2];
const VERSION: c_int = 21400;

/// A rank of a communicator.
pub struct Communicator {
    context: usize,
    rank: usize,
    size: usize,
    folder: PathBuf,
    /// Operations so far.
    number: u64,
    /// What was asked for and is in no stream yet; whether somebody has asked how it stands.
    asked: Vec<(usize, Meeting)>,
    looked: bool,
}

/// Bytes at an address, for or from a rank.
struct Part {
    peer: usize,
    at: u64,
    bytes: usize,
}

/// An operation of all ranks.
pub struct Meeting {
    folder: PathBuf,
    rank: usize,
    number: u64,
    sends: Vec<Part>,
    receives: Vec<Part>,
    is_posted: bool,
}

impl Meeting {
    fn file(&self, from: usize, to: usize) -> PathBuf {
        self.folder.join(format!("{}.{from}.{to}", self.number))
    }
    fn has_come(&self) -> bool {
        self.receives.iter().all(|part| self.file(part.peer, self.rank).exists())
    }
}

/// A file that others see whole or not at all.
fn post(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let half = PathBuf::from(format!("{}.half", path.display()));
    std::fs::write(&half, bytes)?;
    std::fs::rename(half, path)
}

/// Operations between `ncclGroupStart` and its end.
#[derive(Default)]
pub struct Group {
    depth: usize,
    parts: Vec<(usize, usize, bool, Part)>,
}

impl Driver {
    fn communicator(&mut self, handle: usize) -> Answer<&mut Communicator> {
        match self.communicators.contains_key(&handle) {
            true => Ok(self.communicators.get_mut(&handle).expect("just found")),
            false => self.unknown("communicator", handle),
        }
    }

    /// Gives a communicator something to do, unless it is still being asked for something else.
    fn ask(&mut self, handle: usize, stream: usize, sends: Vec<Part>, receives: Vec<Part>) -> Answer {
        for part in sends.iter().chain(&receives) {
            self.usable(part.at, part.bytes, "a message")?;
        }
        self.stream(stream, CURRENT.get())?;
        let communicator = self.communicator(handle)?;
        if communicator.context != CURRENT.get() {
            return refuse(INVALID_CONTEXT, "the communicator is of another context");
        }
        if !communicator.asked.is_empty() {
            return refuse(
                ILLEGAL_STATE,
                "the communicator is still in progress; ask ncclCommGetAsyncError until it is not",
            );
        }
        if let Some(part) = sends.iter().chain(&receives).find(|p| p.peer >= communicator.size) {
            return refuse(INVALID_VALUE, format!("peer {} of {} ranks", part.peer, communicator.size));
        }
        communicator.number += 1;
        let (folder, rank, number) = (communicator.folder.clone(), communicator.rank, communicator.number);
        let meeting = Meeting { folder, rank, number, sends, receives, is_posted: false };
        communicator.asked.push((stream, meeting));
        communicator.looked = false;
        Ok(())
    }

    /// Does as much of a meeting as can be done; whether that is all.
    pub fn meet(&mut self, context: usize, mark: &Mark, meeting: &mut Meeting, what: &str) -> bool {
        if !meeting.is_posted {
            for part in &meeting.sends {
                self.uses(context, mark, (part.at, part.bytes), false, what);
                self.check_written(context, part.at, part.bytes, what);
                // SAFETY: checked to lie in live memory when it was asked for; memory lives until its free is done.
                let bytes = unsafe { std::slice::from_raw_parts(part.at as *const u8, part.bytes) };
                if let Err(error) = post(&meeting.file(meeting.rank, part.peer), bytes) {
                    self.fault(context, UNKNOWN, format!("{what}: {error}"));
                }
            }
            meeting.is_posted = true;
        }
        if self.healthy(context).is_err() {
            return true;
        }
        if !meeting.has_come() {
            std::thread::sleep(std::time::Duration::from_micros(200));
            return false;
        }
        for part in &meeting.receives {
            let file = meeting.file(part.peer, meeting.rank);
            let bytes = std::fs::read(&file).unwrap_or_default();
            let _ = std::fs::remove_file(file);
            if bytes.len() != part.bytes {
                let (peer, sent, awaited) = (part.peer, bytes.len(), part.bytes);
                let why = format!("{what}: rank {peer} sends {sent} bytes where {awaited} are awaited");
                self.fault(context, UNKNOWN, why);
                return true;
            }
            self.uses(context, mark, (part.at, part.bytes), true, what);
            // SAFETY: as above.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), part.at as *mut u8, bytes.len()) };
            self.written(part.at, bytes.len());
        }
        true
    }
}

/// What NCCL answers where a driver function would answer so.
fn code(status: Status) -> Code {
    match status {
        SUCCESS => DONE,
        INVALID_VALUE => 4,
        ILLEGAL_STATE => 5,
        _ => 1,
    }
}

/// An operation that is under way when the call returns.
fn begin(name: &'static str, body: impl FnOnce(&mut Driver) -> Answer) -> Code {
    match code(bound(name, |driver, _| body(driver))) {
        DONE => IN_PROGRESS,
        refused => refused,
    }
}

fn width(kind: c_int) -> Answer<usize> {
    let known = usize::try_from(kind).ok().and_then(|kind| WIDTHS.get(kind));
    known.copied().map_or_else(|| refuse(INVALID_VALUE, format!("data type {kind}")), Ok)
}

#[unsafe(no_mangle)]
extern "C" fn ncclGetVersion(version: Out<c_int>) -> Code {
    code(plainly("ncclGetVersion", |_| version.put(VERSION)))
}

#[unsafe(no_mangle)]
extern "C" fn ncclGetErrorString(code: Code) -> *const c_char {
    let text = match code {
        DONE => c"no error",
        1 => c"unhandled cuda error (the witness has said why)",
        4 => c"invalid argument (the witness has said why)",
        5 => c"invalid usage (the witness has said why)",
        IN_PROGRESS => c"NCCL operation in progress",
        _ => c"unknown result code",
    };
    text.as_ptr()
}

#[unsafe(no_mangle)]
extern "C" fn ncclGetLastError(_communicator: usize) -> *const c_char {
    c"".as_ptr()
}

/// `ncclUniqueId`, 128 bytes.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct UniqueId([u8; 128]);

#[unsafe(no_mangle)]
extern "C" fn ncclGetUniqueId(id: Out<UniqueId>) -> Code {
    code(plainly("ncclGetUniqueId", |_| {
        let place =
            std::env::var("NCCL_COMM_ID").unwrap_or_else(|_| format!("process {}", std::process::id()));
        let mut bytes = [0; 128];
        let length = place.len().min(127);
        bytes[..length].copy_from_slice(&place.as_bytes()[..length]);
        id.put(UniqueId(bytes))
    }))
}

/// The first fields of `ncclConfig_t`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Config {
    size: usize,
    magic: u32,
    version: u32,
    blocking: c_int,
}

#[unsafe(no_mangle)]
extern "C" fn ncclCommInitRankConfig(
    made: Out<usize>,
    size: c_int,
    id: UniqueId,
    rank: c_int,
    config: In<Config>,
) -> Code {
    begin("ncclCommInitRankConfig", |driver| {
        let Config { size: bytes, magic, blocking, .. } = config.get()?;
        if bytes < size_of::<Config>() || magic != 0xcafe_beef {
            return refuse(INVALID_VALUE, format!("a configuration of {bytes} bytes, magic {magic:#x}"));
        }
        if blocking != 0 {
            return refuse(NOT_SUPPORTED, "communicators that block are not known here");
        }
        if rank < 0 || rank >= size {
            return refuse(INVALID_VALUE, format!("rank {rank} of {size}"));
        }
        let Some(folder) = driver.settings.nccl.clone() else {
            return refuse(NOT_SUPPORTED, "WITNESS_NCCL names no folder where ranks meet");
        };
        let name: String = String::from_utf8_lossy(&id.0)
            .trim_end_matches('\0')
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
            .collect();
        let folder = folder.join(name);
        let here = folder.join(format!("here.{rank}"));
        if let Err(error) = std::fs::create_dir_all(&folder).and_then(|()| post(&here, b"")) {
            return refuse(UNKNOWN, format!("{}: {error}", folder.display()));
        }
        let handle = driver.handle();
        let (rank, size) = (rank as usize, size as usize);
        driver.communicators.insert(
            handle,
            Communicator {
                context: CURRENT.get(),
                rank,
                size,
                folder,
                number: 0,
                asked: Vec::new(),
                looked: true,
            },
        );
        made.put(handle)
    })
}

#[unsafe(no_mangle)]
extern "C" fn ncclCommGetAsyncError(handle: usize, state: Out<Code>) -> Code {
    code(bound("ncclCommGetAsyncError", |driver, context| {
        let communicator = driver.communicator(handle)?;
        let folder = communicator.folder.clone();
        let all_here = (0..communicator.size).all(|rank| folder.join(format!("here.{rank}")).exists());
        if !all_here || !std::mem::replace(&mut communicator.looked, true) {
            return state.put(IN_PROGRESS);
        }
        for (stream, meeting) in std::mem::take(&mut communicator.asked) {
            driver.give_work(stream, context, Work::Meet(Box::new(meeting)))?;
        }
        state.put(DONE)
    }))
}

#[unsafe(no_mangle)]
extern "C" fn ncclAllGather(
    from: u64,
    to: u64,
    count: usize,
    kind: c_int,
    handle: usize,
    stream: usize,
) -> Code {
    begin("ncclAllGather", |driver| {
        let bytes = count * width(kind)?;
        let size = driver.communicator(handle)?.size;
        let sends = (0..size).map(|peer| Part { peer, at: from, bytes }).collect();
        let receives = (0..size).map(|peer| Part { peer, at: to + (peer * bytes) as u64, bytes }).collect();
        driver.ask(handle, stream, sends, receives)
    })
}

fn part(
    name: &'static str,
    is_sent: bool,
    at: u64,
    bytes: (usize, c_int),
    peer: c_int,
    to: (usize, usize),
) -> Code {
    begin(name, |driver| {
        let part = Part { peer: peer.max(0) as usize, at, bytes: bytes.0 * width(bytes.1)? };
        let (handle, stream) = to;
        if driver.group.depth == 0 {
            let (sends, receives) = if is_sent { (vec![part], vec![]) } else { (vec![], vec![part]) };
            return driver.ask(handle, stream, sends, receives);
        }
        driver.communicator(handle)?;
        driver.group.parts.push((handle, stream, is_sent, part));
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn ncclSend(
    at: u64,
    count: usize,
    kind: c_int,
    peer: c_int,
    handle: usize,
    stream: usize,
) -> Code {
    part("ncclSend", true, at, (count, kind), peer, (handle, stream))
}

#[unsafe(no_mangle)]
extern "C" fn ncclRecv(
    at: u64,
    count: usize,
    kind: c_int,
    peer: c_int,
    handle: usize,
    stream: usize,
) -> Code {
    part("ncclRecv", false, at, (count, kind), peer, (handle, stream))
}

#[unsafe(no_mangle)]
extern "C" fn ncclGroupStart() -> Code {
    code(plainly("ncclGroupStart", |driver| {
        driver.group.depth += 1;
        Ok(())
    }))
}

#[unsafe(no_mangle)]
extern "C" fn ncclGroupEnd() -> Code {
    begin("ncclGroupEnd", |driver| {
        let Some(depth) = driver.group.depth.checked_sub(1) else {
            return refuse(ILLEGAL_STATE, "no group was started");
        };
        driver.group.depth = depth;
        if depth > 0 {
            return Ok(());
        }
        let parts = std::mem::take(&mut driver.group.parts);
        let Some((handle, stream, ..)) = parts.first() else { return Ok(()) };
        let (handle, stream) = (*handle, *stream);
        if parts.iter().any(|p| (p.0, p.1) != (handle, stream)) {
            return refuse(NOT_SUPPORTED, "a group of several communicators or streams is not known here");
        }
        let (sends, receives): (Vec<_>, Vec<_>) = parts.into_iter().partition(|p| p.2);
        let plain = |parts: Vec<(usize, usize, bool, Part)>| parts.into_iter().map(|p| p.3).collect();
        driver.ask(handle, stream, plain(sends), plain(receives))
    })
}

/// Ends a communicator. What streams still have of it is given up.
fn end(name: &'static str, handle: usize) -> Code {
    code(plainly(name, |driver| {
        let folder = driver.communicator(handle)?.folder.clone();
        for stream in driver.streams.values_mut() {
            stream.queue.retain(|op| !matches!(&op.work, Work::Meet(m) if m.folder == folder));
        }
        driver.communicators.remove(&handle);
        driver.gone.insert(handle, ("communicator", driver.calls));
        // A program that ranks run ends with this, and its context with the process.
        driver.say_statistics();
        Ok(())
    }))
}

#[unsafe(no_mangle)]
extern "C" fn ncclCommFinalize(handle: usize) -> Code {
    code(plainly("ncclCommFinalize", |driver| driver.communicator(handle).map(drop)))
}

#[unsafe(no_mangle)]
extern "C" fn ncclCommDestroy(handle: usize) -> Code {
    end("ncclCommDestroy", handle)
}

#[unsafe(no_mangle)]
extern "C" fn ncclCommAbort(handle: usize) -> Code {
    end("ncclCommAbort", handle)
}
