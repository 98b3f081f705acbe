//! Taking and freeing device memory, at once and in stream order.

use super::arguments::Out;
use super::heap::{Allocation, Place};
use super::status::*;
use super::stream::Work;
use super::{Driver, bound};

impl Driver {
    fn take(&mut self, context: usize, bytes: usize) -> Answer<u64> {
        if bytes == 0 {
            return refuse(INVALID_VALUE, "an allocation of 0 bytes");
        }
        if let Some(status) = self.injected("allocation") {
            return quietly(status);
        }
        if bytes + self.local_memory > self.heap.free_bytes() {
            return quietly(OUT_OF_MEMORY);
        }
        self.heap.take(bytes, context, self.calls, true).map_or_else(|| quietly(OUT_OF_MEMORY), Ok)
    }

    /// Whether `at` is the first address of an allocation that is alive.
    fn allocated(&self, at: u64) -> Answer<Allocation> {
        match self.heap.find(at) {
            Place::Inside(start, a) if start == at => Ok(a),
            Place::Inside(start, a) => refuse(
                INVALID_VALUE,
                format!("{at:#x} lies {} bytes into an allocation (call {})", at - start, a.call),
            ),
            Place::Freed(_, a) => {
                let by = a.freed.unwrap_or_default();
                refuse(
                    INVALID_VALUE,
                    format!("double free of {at:#x} ({} bytes): call {by} freed it", a.bytes),
                )
            }
            Place::Outside(_) => refuse(INVALID_VALUE, format!("{at:#x} was never allocated")),
        }
    }

    /// Whether `bytes` bytes from `at` on may be used by work that is given now.
    pub fn usable(&self, at: u64, bytes: usize, what: &str) -> Answer {
        let end = at + bytes as u64;
        match self.heap.find(at) {
            Place::Inside(start, a) if end <= start + a.bytes as u64 => Ok(()),
            Place::Inside(start, a) => {
                let beyond = end - start - a.bytes as u64;
                let size = a.bytes;
                refuse(
                    INVALID_VALUE,
                    format!(
                        "{what} of {bytes} bytes at {at:#x} goes {beyond} bytes beyond the {size} bytes of call {}",
                        a.call
                    ),
                )
            }
            Place::Freed(_, a) => {
                let by = a.freed.unwrap_or_default();
                refuse(
                    INVALID_VALUE,
                    format!("{what} of {bytes} bytes at {at:#x} uses memory that call {by} freed"),
                )
            }
            Place::Outside(near) => {
                let near = near.map_or(String::new(), |(start, a)| {
                    format!(
                        ", {} bytes behind the end of the {} bytes of call {}",
                        at - start - a.bytes as u64,
                        a.bytes,
                        a.call
                    )
                });
                refuse(
                    INVALID_VALUE,
                    format!("{what} of {bytes} bytes at {at:#x}, which is no device memory{near}"),
                )
            }
        }
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuMemAlloc_v2(address: Out<u64>, bytes: usize) -> Status {
    bound("cuMemAlloc_v2", |driver, context| {
        driver.not_while_capturing("cuMemAlloc")?;
        let taken = driver.take(context, bytes)?;
        address.put(taken)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemFree_v2(address: u64) -> Status {
    bound("cuMemFree_v2", |driver, context| {
        driver.not_while_capturing("cuMemFree")?;
        driver.allocated(address)?;
        // It waits for everything that may use it.
        driver.finish_all(context)?;
        driver.heap.give(address, driver.calls, true);
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemAllocAsync(address: Out<u64>, bytes: usize, stream: usize) -> Status {
    bound("cuMemAllocAsync", |driver, context| {
        driver.stream(stream, context)?;
        driver.not_captured(stream, "cuMemAllocAsync")?;
        let taken = driver.take(context, bytes)?;
        driver.give_work(stream, context, Work::Taken(taken, bytes))?;
        address.put(taken)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemFreeAsync(address: u64, stream: usize) -> Status {
    bound("cuMemFreeAsync", |driver, context| {
        driver.stream(stream, context)?;
        driver.not_captured(stream, "cuMemFreeAsync")?;
        let bytes = driver.allocated(address)?.bytes;
        driver.give_work(stream, context, Work::Free(address, bytes))?;
        driver.heap.mark_freed(address, driver.calls);
        Ok(())
    })
}
