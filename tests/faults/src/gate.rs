//! The gate between a program and its file system: every call that touches files waits here, before the system does it,
//! for an answer.
//!
//! It is the system's own door (seccomp's user notification), below any library: what a program calls directly is seen
//! as well. Not seen is what goes on without a call: memory that is mapped from a file.

use std::ffi::{CString, OsStr};
use std::io::{Error, Result};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

/// Calls that change files, and calls that read them.
const WATCHED: [libc::c_long; 33] = [
    libc::SYS_open,
    libc::SYS_openat,
    libc::SYS_creat,
    libc::SYS_write,
    libc::SYS_pwrite64,
    libc::SYS_writev,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_ftruncate,
    libc::SYS_truncate,
    libc::SYS_fallocate,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_unlink,
    libc::SYS_unlinkat,
    libc::SYS_rmdir,
    libc::SYS_mkdir,
    libc::SYS_mkdirat,
    libc::SYS_link,
    libc::SYS_linkat,
    libc::SYS_symlink,
    libc::SYS_symlinkat,
    libc::SYS_chmod,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_copy_file_range,
    libc::SYS_sendfile,
    libc::SYS_read,
    libc::SYS_pread64,
    libc::SYS_getdents64,
];

/// Where the program keeps its end of the gate until it is fetched.
const PLACE: RawFd = 900;
const RECEIVE: libc::c_ulong = 0xc050_2100;
const SEND: libc::c_ulong = 0xc018_2101;

/// What a call does to files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    /// Opens a file that is there, or makes one.
    Open {
        /// Whether it may write.
        writes: bool,
        /// Whether it makes the file where there is none.
        creates: bool,
        /// Whether it empties it.
        empties: bool,
    },
    /// Writes so many bytes.
    Write(usize),
    /// Another length.
    Truncate,
    /// To the disk.
    Sync,
    /// Another name: this one.
    Rename(PathBuf),
    /// Both names exchange what they name.
    Exchange(PathBuf),
    /// The name goes.
    Remove,
    /// A directory.
    MakeDirectory,
    /// A symbolic link.
    MakeLink(PathBuf),
    /// Permissions.
    Permit,
    /// Reads.
    Read,
    /// Something that the model of a disk does not know.
    Other,
}

/// A call that waits.
#[derive(Debug, Clone)]
pub struct Call {
    id: u64,
    /// The thread that calls.
    pub thread: u32,
    /// What it does.
    pub act: Act,
    /// To which file or directory.
    pub path: PathBuf,
    fd: Option<RawFd>,
    arguments: [u64; 6],
}

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The system does it.
    Go,
    /// It fails.
    Fail(i32),
    /// It claims to have done so much.
    Done(i64),
}

/// A gate, seen from outside.
pub struct Gate {
    door: OwnedFd,
}

fn checked(result: libc::c_long) -> Result<libc::c_long> {
    if result < 0 { Err(Error::last_os_error()) } else { Ok(result) }
}

/// The filter's program: the watched calls wait, others pass.
fn program() -> Vec<libc::sock_filter> {
    let line = |code: u32, jt: usize, k: u32| libc::sock_filter { code: code as u16, jt: jt as u8, jf: 0, k };
    let mut lines = vec![line(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0)];
    for (i, call) in WATCHED.iter().enumerate() {
        lines.push(line(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, WATCHED.len() - i, *call as u32));
    }
    lines.push(line(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ALLOW));
    lines.push(line(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_USER_NOTIF));
    lines
}

/// Puts this process behind a gate, from here on. Allocates nothing: it runs between fork and exec.
fn close_behind(lines: &[libc::sock_filter]) -> Result<()> {
    let filter = libc::sock_fprog { len: lines.len() as u16, filter: lines.as_ptr().cast_mut() };
    let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
    // SAFETY: plain numbers.
    checked(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }.into())?;
    // SAFETY: the filter and its lines outlive the call, which copies them.
    let door = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &filter) };
    let door = checked(door)? as RawFd;
    // SAFETY: both are numbers of this process; nobody uses the second.
    checked(unsafe { libc::dup2(door, PLACE) }.into()).map(drop)
}

impl Gate {
    /// Whether this system lets a process put another behind a gate.
    ///
    /// # Errors
    /// It does not: an old kernel, or a container that forbids it.
    pub fn probe() -> Result<()> {
        let (mut child, gate) = Self::start(&mut Command::new("true"))?;
        drop(gate);
        let _ = child.kill();
        child.wait().map(drop)
    }

    /// Starts a program behind a gate. It stands still at its first call until [`Gate::next`] is asked.
    ///
    /// # Errors
    /// The system; a system that has no such gates.
    pub fn start(command: &mut Command) -> Result<(Child, Self)> {
        let lines = program();
        // SAFETY: `close_behind` only makes calls that may be made between fork and exec.
        unsafe { command.pre_exec(move || close_behind(&lines)) };
        let child = command.spawn()?;
        // SAFETY: plain numbers; the descriptors that come back are ours alone.
        let door = unsafe {
            let process = checked(libc::syscall(libc::SYS_pidfd_open, child.id(), 0))?;
            let process = OwnedFd::from_raw_fd(process as RawFd);
            let door = checked(libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), PLACE, 0))?;
            OwnedFd::from_raw_fd(door as RawFd)
        };
        Ok((child, Self { door }))
    }

    /// The next call, if one comes within `milliseconds`; `Err` once nobody is left behind the gate.
    ///
    /// # Errors
    /// The program has ended.
    pub fn next(&self, milliseconds: i32) -> Result<Option<Call>> {
        let mut poll = libc::pollfd { fd: self.door.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one structure, which outlives the call.
        let found = unsafe { libc::poll(&mut poll, 1, milliseconds) };
        if found == 0 || (found < 0 && Error::last_os_error().raw_os_error() == Some(libc::EINTR)) {
            return Ok(None);
        }
        if poll.revents & libc::POLLIN == 0 {
            return Err(Error::other("the program has ended"));
        }
        // SAFETY: a structure of numbers, for which zeros are asked for.
        let mut told: libc::seccomp_notif = unsafe { std::mem::zeroed() };
        // SAFETY: the structure is the one that this call fills.
        if unsafe { libc::ioctl(self.door.as_raw_fd(), RECEIVE, &mut told) } < 0 {
            // It was killed between poll and this.
            return Ok(None);
        }
        Ok(Some(Call::read(&told)))
    }

    /// Answers a call. One whose thread is gone needs no answer.
    pub fn answer(&self, call: &Call, answer: Answer) {
        let (val, error, flags) = match answer {
            Answer::Go => (0, 0, libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32),
            Answer::Fail(code) => (0, -code, 0),
            Answer::Done(value) => (value, 0, 0),
        };
        let mut told = libc::seccomp_notif_resp { id: call.id, val, error, flags };
        // SAFETY: the structure is the one that this call reads.
        unsafe { libc::ioctl(self.door.as_raw_fd(), SEND, &mut told) };
    }
}

impl Call {
    fn read(told: &libc::seccomp_notif) -> Self {
        let (a, thread) = (told.data.args, told.pid);
        let here = libc::AT_FDCWD as u32 as u64;
        let path = |at: u64, place: u64| resolve(thread, at as i32, &text(thread, place));
        let fd = |n: u64| {
            (std::fs::read_link(format!("/proc/{thread}/fd/{n}")).unwrap_or_default(), Some(n as RawFd))
        };
        let named = |path: PathBuf| (path, None);
        let opened = |flags: u64| {
            let has = |flag: i32| flags as i32 & flag != 0;
            Act::Open {
                writes: has(libc::O_WRONLY | libc::O_RDWR),
                creates: has(libc::O_CREAT),
                empties: has(libc::O_TRUNC),
            }
        };
        let (act, (path, fd)) = match libc::c_long::from(told.data.nr) {
            libc::SYS_open => (opened(a[1]), named(path(here, a[0]))),
            libc::SYS_openat => (opened(a[2]), named(path(a[0], a[1]))),
            libc::SYS_creat => {
                (opened((libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC) as u64), named(path(here, a[0])))
            }
            libc::SYS_write | libc::SYS_pwrite64 => (Act::Write(a[2] as usize), fd(a[0])),
            libc::SYS_writev | libc::SYS_pwritev | libc::SYS_pwritev2 => (Act::Write(0), fd(a[0])),
            libc::SYS_ftruncate | libc::SYS_fallocate => (Act::Truncate, fd(a[0])),
            libc::SYS_truncate => (Act::Truncate, named(path(here, a[0]))),
            libc::SYS_fsync | libc::SYS_fdatasync => (Act::Sync, fd(a[0])),
            libc::SYS_rename => (Act::Rename(path(here, a[1])), named(path(here, a[0]))),
            libc::SYS_renameat => (Act::Rename(path(a[2], a[3])), named(path(a[0], a[1]))),
            libc::SYS_renameat2 => {
                let to = path(a[2], a[3]);
                let exchange = a[4] as u32 & libc::RENAME_EXCHANGE != 0;
                (if exchange { Act::Exchange(to) } else { Act::Rename(to) }, named(path(a[0], a[1])))
            }
            libc::SYS_unlink | libc::SYS_rmdir => (Act::Remove, named(path(here, a[0]))),
            libc::SYS_unlinkat => (Act::Remove, named(path(a[0], a[1]))),
            libc::SYS_mkdir => (Act::MakeDirectory, named(path(here, a[0]))),
            libc::SYS_mkdirat => (Act::MakeDirectory, named(path(a[0], a[1]))),
            libc::SYS_symlink => (Act::MakeLink(text(thread, a[0])), named(path(here, a[1]))),
            libc::SYS_symlinkat => (Act::MakeLink(text(thread, a[0])), named(path(a[1], a[2]))),
            libc::SYS_chmod => (Act::Permit, named(path(here, a[0]))),
            libc::SYS_fchmodat => (Act::Permit, named(path(a[0], a[1]))),
            libc::SYS_fchmod => (Act::Permit, fd(a[0])),
            libc::SYS_read | libc::SYS_pread64 | libc::SYS_getdents64 => (Act::Read, fd(a[0])),
            libc::SYS_copy_file_range => (Act::Write(0), fd(a[2])),
            libc::SYS_sendfile => (Act::Write(0), fd(a[0])),
            _ => (Act::Other, named(path(here, a[0]))),
        };
        Self { id: told.id, thread, act, path, fd, arguments: a }
    }

    /// Whether the call would leave something on the disk otherwise than it was.
    pub fn changes(&self) -> bool {
        match &self.act {
            Act::Read => false,
            Act::Open { writes, creates, empties } => {
                (*writes && *creates && !self.path.exists()) || *empties
            }
            _ => true,
        }
    }

    /// Does a share of a write in the program's place; the number of bytes that were written.
    pub fn write_part(&self, share: f64) -> Option<i64> {
        let (Act::Write(length), Some(fd)) = (&self.act, self.fd) else { return None };
        let bytes = memory(self.thread, self.arguments[1], (*length as f64 * share) as usize)?;
        // SAFETY: plain numbers; the descriptors that come back are ours alone; the bytes outlive the call.
        unsafe {
            let process = checked(libc::syscall(libc::SYS_pidfd_open, leader(self.thread)?, 0)).ok()?;
            let process = OwnedFd::from_raw_fd(process as RawFd);
            let file = checked(libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), fd, 0)).ok()?;
            let file = OwnedFd::from_raw_fd(file as RawFd);
            Some(libc::write(file.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) as i64)
        }
    }
}

/// The process of a thread.
fn leader(thread: u32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{thread}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("Tgid:")?.trim().parse().ok())
}

/// Bytes of another process; as many as can be read.
fn memory(thread: u32, address: u64, length: usize) -> Option<Vec<u8>> {
    use std::os::unix::fs::FileExt;
    let mut bytes = vec![0; length];
    let read = std::fs::File::open(format!("/proc/{thread}/mem")).ok()?.read_at(&mut bytes, address).ok()?;
    bytes.truncate(read);
    Some(bytes)
}

/// A path in another process's memory.
fn text(thread: u32, address: u64) -> PathBuf {
    // A page at a time: the next one may not be there.
    let mut all = Vec::new();
    while all.len() < libc::PATH_MAX as usize {
        let from = address + all.len() as u64;
        let Some(part) = memory(thread, from, 4096 - (from % 4096) as usize).filter(|p| !p.is_empty()) else {
            break;
        };
        all.extend(part);
        if let Some(end) = all.iter().position(|b| *b == 0) {
            all.truncate(end);
            break;
        }
    }
    CString::new(all).map(|text| PathBuf::from(OsStr::from_bytes(text.as_bytes()))).unwrap_or_default()
}

/// The whole path of one that another process gave.
fn resolve(thread: u32, at: i32, path: &Path) -> PathBuf {
    let base = match at {
        libc::AT_FDCWD => format!("/proc/{thread}/cwd"),
        at => format!("/proc/{thread}/fd/{at}"),
    };
    let whole = std::fs::read_link(base).unwrap_or_default().join(path);
    // `a/.` and `a//b` mean a and a/b.
    whole.components().collect()
}
