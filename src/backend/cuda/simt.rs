//! The host SIMT machine (`kernels/simt/`) as a driver.

use super::driver::{Driver, Shape};
use super::images;
use crate::error::{Error, Result};
use std::ffi::{CStr, CString, c_char, c_void};

unsafe extern "C" {
    fn gems_simt_find(name: *const c_char) -> *const c_void;
    fn gems_simt_launch(
        kernel: *const c_void,
        grid: *const u32,
        block: *const u32,
        shared: u32,
        arguments: *const c_void,
        argument_bytes: u32,
        error: *mut c_char,
        capacity: usize,
    ) -> i32;
    fn gems_simt_alloc(bytes: usize) -> *mut c_void;
    fn gems_simt_free(address: *mut c_void, bytes: usize);
    fn gems_simt_upload(to: *mut c_void, from: *const c_void, bytes: usize);
    fn gems_simt_configure(threads: u32, schedule: i32, seed: u64);
}

/// In which order the machine runs threads that could all run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Schedule {
    /// First thread first.
    Forward,
    /// Last thread first.
    Reversed,
    /// At random, from a seed: the same order for the same seed on one OS thread.
    Random(u64),
}

/// Chooses the schedule of later launches, of the whole process, and their OS threads (0: one a core).
pub fn configure(threads: u32, schedule: Schedule) {
    let (kind, seed) = match schedule {
        Schedule::Forward => (0, 1),
        Schedule::Reversed => (1, 1),
        Schedule::Random(seed) => (2, seed),
    };
    // Sound: plain numbers, and the machine guards its settings.
    unsafe { gems_simt_configure(threads, kind, seed) }
}

/// How the machine calls itself.
pub const NAME: &str = "simt (host SIMT machine)";

/// The SIMT machine. Launches run to their end before they return.
pub struct Simt;

impl Simt {
    /// The machine, with all kernels known to it.
    pub fn open() -> Self {
        images::keep_simt_kernels();
        Self
    }
}

/// Runs the machine's own test kernel `planted_<bug>` (`kernels/simt/planted.cu`) on 64 threads over 64 ones
/// (and 4 values that nobody wrote); returns what it left in memory.
///
/// # Errors
/// What the machine says about the bug.
pub fn run_planted(bug: &str) -> Result<Vec<f32>> {
    let machine = Simt::open();
    let bytes = 64 * 4;
    let address = machine.alloc(bytes + 16)?.ok_or_else(|| Error::device("out of memory"))?;
    machine.upload(address, bytemuck::cast_slice(&[1f32; 64]))?;
    let arguments = [address, 64u64];
    let shape = Shape::line(1, 64).shared(bytes);
    let result = machine.launch(&format!("planted_{bug}"), shape, bytemuck::cast_slice(&arguments));
    let mut left = vec![0f32; 64];
    machine.download(address, bytemuck::cast_slice_mut(&mut left))?;
    machine.free(address, bytes + 16);
    result.map(|()| left)
}

impl Driver for Simt {
    fn name(&self) -> String {
        NAME.into()
    }
    fn alloc(&self, bytes: usize) -> Result<Option<u64>> {
        // Sound: the machine checks for failure and returns null.
        let address = unsafe { gems_simt_alloc(bytes) } as u64;
        Ok((address != 0).then_some(address))
    }
    fn free(&self, address: u64, bytes: usize) {
        // Sound: called once for what `alloc` gave, with its size.
        unsafe { gems_simt_free(address as *mut c_void, bytes) }
    }
    fn upload(&self, to: u64, bytes: &[u8]) -> Result<()> {
        // Sound: `to` is the machine's memory of at least this size, which no Rust reference covers.
        unsafe { gems_simt_upload(to as *mut c_void, bytes.as_ptr().cast(), bytes.len()) };
        Ok(())
    }
    fn download(&self, from: u64, bytes: &mut [u8]) -> Result<()> {
        // Sound: as in `upload`; launches are finished.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }
    fn launch(&self, kernel: &str, shape: Shape, arguments: &[u8]) -> Result<()> {
        let name = CString::new(kernel).map_err(|_| Error::device("a kernel name with a NUL"))?;
        let mut message = [0 as c_char; 1024];
        // Sound: the machine checks names and sizes; a kernel's own bad access becomes an error.
        let failed = unsafe {
            let found = gems_simt_find(name.as_ptr());
            if found.is_null() {
                return Err(Error::device(format!("there is no kernel `{kernel}`")));
            }
            gems_simt_launch(
                found,
                shape.grid.as_ptr(),
                shape.block.as_ptr(),
                shape.shared,
                arguments.as_ptr().cast(),
                arguments.len() as u32,
                message.as_mut_ptr(),
                message.len(),
            )
        };
        if failed == 0 {
            return Ok(());
        }
        // Sound: the machine ends its message with a NUL within the buffer.
        let text = unsafe { CStr::from_ptr(message.as_ptr()) };
        Err(Error::device(text.to_string_lossy()).at("SIMT machine"))
    }
    fn synchronize(&self) -> Result<()> {
        Ok(())
    }
    fn wide(&self) -> usize {
        4
    }
    fn max_shared(&self) -> usize {
        227 * 1024
    }
    fn recycles(&self) -> bool {
        false
    }
}
