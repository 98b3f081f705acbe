//! The pointers that callers pass.

use super::status::{Answer, INVALID_VALUE, refuse};

/// Where a caller wants a value.
#[repr(transparent)]
pub struct Out<T>(*mut T);

/// Values that a caller gives.
#[repr(transparent)]
pub struct In<T>(*const T);

impl<T> Out<T> {
    /// Whether the caller wants none.
    pub fn is_null(&self) -> bool {
        self.0.is_null()
    }

    /// Its address.
    pub fn address(&self) -> usize {
        self.0 as usize
    }

    /// Writes the value.
    pub fn put(&self, value: T) -> Answer {
        self.put_at(0, value)
    }

    /// Writes one of a list.
    pub fn put_at(&self, index: usize, value: T) -> Answer {
        if self.0.is_null() {
            return refuse(INVALID_VALUE, "the place for the result is null");
        }
        // SAFETY: the caller of a driver function promises room for its results.
        unsafe { self.0.add(index).write_unaligned(value) };
        Ok(())
    }
}

impl<T: Copy> In<T> {
    /// Values at an address that a caller gave.
    pub fn at(address: usize) -> Self {
        Self(address as *const T)
    }

    /// Its address.
    pub fn address(&self) -> usize {
        self.0 as usize
    }

    /// The first `count` values; none where the caller has none.
    pub fn list(&self, count: usize) -> Vec<T> {
        if self.0.is_null() {
            return Vec::new();
        }
        // SAFETY: the caller of a driver function promises as many values as it says.
        (0..count).map(|i| unsafe { self.0.add(i).read_unaligned() }).collect()
    }

    /// The one value.
    pub fn get(&self) -> Answer<T> {
        self.list(1).pop().map_or_else(|| refuse(INVALID_VALUE, "an argument is null"), Ok)
    }
}

impl In<u8> {
    /// Text up to its NUL.
    pub fn text(&self) -> String {
        if self.0.is_null() {
            return String::new();
        }
        // SAFETY: the caller promises a NUL at the end.
        unsafe { std::ffi::CStr::from_ptr(self.0.cast()) }.to_string_lossy().into_owned()
    }
}

/// A copy of `bytes` bytes of this program's own memory; `None` where it cannot be read any more.
pub fn read_memory(at: usize, bytes: usize) -> Option<Vec<u8>> {
    let mut copy = vec![0u8; bytes];
    let local = libc::iovec { iov_base: copy.as_mut_ptr().cast(), iov_len: bytes };
    let remote = libc::iovec { iov_base: at as *mut _, iov_len: bytes };
    // SAFETY: the kernel checks the addresses of the other side and answers with an error; ours is `copy`.
    let read = unsafe { libc::process_vm_readv(libc::getpid(), &local, 1, &remote, 1, 0) };
    if read < 0 && std::io::Error::last_os_error().raw_os_error() != Some(libc::EFAULT) && bytes > 0 {
        // Where programs may not read like this (a sandbox), the caller's word has to do.
        // SAFETY: the caller promises that the bytes are there.
        unsafe { std::ptr::copy_nonoverlapping(at as *const u8, copy.as_mut_ptr(), bytes) };
        return Some(copy);
    }
    (read == bytes as isize).then_some(copy)
}
