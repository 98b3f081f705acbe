//! Memory of the host: pinned memory, and what a copy under way reads and writes there.

use super::arguments::{In, Out, read_memory};
use super::status::*;
use super::stream::Work;
use super::{Driver, bound};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ffi::c_uint;

/// Pinned memory.
pub struct Pinned {
    pub bytes: usize,
    layout: Option<Layout>,
}

/// What the source of a copy held when the copy was asked for.
pub struct Snapshot {
    pub at: usize,
    pub bytes: Vec<u8>,
}

impl Snapshot {
    /// The place of the first byte that has changed since; the number of bytes where it cannot be read any more.
    fn changed(&self) -> Option<usize> {
        match read_memory(self.at, self.bytes.len()) {
            Some(now) => (0..now.len()).find(|i| now[*i] != self.bytes[*i]),
            None => Some(self.bytes.len()),
        }
    }
}

impl Driver {
    /// Whether these bytes lie in pinned memory.
    pub fn is_pinned(&self, at: usize, bytes: usize) -> bool {
        let before = self.pinned.range(..=at).next_back();
        before.is_some_and(|(start, p)| at + bytes <= start + p.bytes)
    }

    /// What a copy from the host is to read.
    pub fn snapshot(&self, at: usize, bytes: usize) -> Answer<Snapshot> {
        match read_memory(at, bytes) {
            Some(bytes) => Ok(Snapshot { at, bytes }),
            None => refuse(INVALID_VALUE, format!("the {bytes} bytes of the host at {at:#x} cannot be read")),
        }
    }

    /// Says so if the source of a copy is not what it was when the copy was asked for.
    pub fn check_source(&mut self, context: usize, source: &Snapshot, asked: &str) {
        let Some(place) = source.changed() else { return };
        let (at, bytes) = (source.at, source.bytes.len());
        let kind = if self.is_pinned(at, bytes) { "pinned" } else { "pageable" };
        let what = match place == bytes {
            true => "is gone".to_string(),
            false => format!("changed (first at byte {place})"),
        };
        let why = format!(
            "{asked}: the {kind} source at {at:#x}, {bytes} bytes, {what} before the copy was done; wait for it first"
        );
        self.fault(context, LAUNCH_FAILED, why);
    }

    /// The copies under way that read or write pinned memory.
    fn uses_of(&self, at: usize, bytes: usize) -> Option<String> {
        let touches = |from: usize, n: usize| from < at + bytes && at < from + n;
        let ops = self.streams.values().flat_map(|s| &s.queue);
        ops.filter(|op| match &op.work {
            Work::ToDevice { from, .. } => touches(from.at, from.bytes.len()),
            Work::ToHost { to, bytes, .. } => touches(*to, *bytes),
            _ => false,
        })
        .map(|op| format!("{} (call {})", op.name, op.call))
        .next()
    }

    fn forget_pinned(&mut self, context: usize, at: usize, allocated: bool) -> Answer {
        let Some(pinned) = self.pinned.get(&at).filter(|p| p.layout.is_some() == allocated) else {
            return refuse(INVALID_VALUE, format!("{at:#x} is not pinned memory, or was freed before"));
        };
        let (bytes, layout) = (pinned.bytes, pinned.layout);
        if let Some(user) = self.uses_of(at, bytes) {
            self.fault(
                context,
                LAUNCH_FAILED,
                format!("{}: pinned memory at {at:#x} is freed while {user} is under way", self.calling),
            );
        }
        self.finish_all(context).ok();
        self.pinned.remove(&at);
        if let Some(layout) = layout {
            // SAFETY: taken with this layout, and forgotten now.
            unsafe { dealloc(at as *mut u8, layout) };
        }
        Ok(())
    }
}

/// `CU_MEMHOSTALLOC_PORTABLE | DEVICEMAP | WRITECOMBINED`.
const HOST_FLAGS: c_uint = 7;

#[unsafe(no_mangle)]
extern "C" fn cuMemHostAlloc(address: Out<usize>, bytes: usize, flags: c_uint) -> Status {
    bound("cuMemHostAlloc", |driver, _| {
        if bytes == 0 || flags & !HOST_FLAGS != 0 {
            return refuse(INVALID_VALUE, format!("{bytes} bytes, flags {flags:#x}"));
        }
        let Ok(layout) = Layout::from_size_align(bytes, 4096) else { return quietly(OUT_OF_MEMORY) };
        // SAFETY: a size above zero.
        let at = unsafe { alloc_zeroed(layout) } as usize;
        if at == 0 {
            return quietly(OUT_OF_MEMORY);
        }
        driver.pinned.insert(at, Pinned { bytes, layout: Some(layout) });
        address.put(at)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemFreeHost(address: usize) -> Status {
    bound("cuMemFreeHost", |driver, context| driver.forget_pinned(context, address, true))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemHostRegister_v2(address: In<u8>, bytes: usize, _flags: c_uint) -> Status {
    bound("cuMemHostRegister_v2", |driver, _| {
        if bytes == 0 || read_memory(address.address(), 1).is_none() {
            return refuse(INVALID_VALUE, format!("{bytes} bytes at {:#x}", address.address()));
        }
        driver.pinned.insert(address.address(), Pinned { bytes, layout: None });
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemHostUnregister(address: usize) -> Status {
    bound("cuMemHostUnregister", |driver, context| driver.forget_pinned(context, address, false))
}
