//! The host SIMT machine (`kernels/simt/`) as a driver.

use crate::backend::cuda::abi::{Launch, Matrix, TensorMap};
use crate::backend::cuda::driver::{Driver, Graph, Node};
use crate::backend::{DType, DeviceInfo};
use crate::error::{Error, Result};
use std::ffi::{CStr, CString, c_char, c_void};

include!(concat!(env!("OUT_DIR"), "/simt.rs"));

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
    fn gems_simt_tensor_map(
        map: *mut c_void,
        data: *const c_void,
        cols: u64,
        rows: u64,
        row_bytes: u64,
        box_cols: u32,
        box_rows: u32,
    ) -> i32;
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
    // SAFETY: plain numbers, and the machine guards its settings.
    unsafe { gems_simt_configure(threads, kind, seed) }
}

/// How the machine calls itself.
pub const NAME: &str = "simt (host SIMT machine)";

/// Most logits of the machine (16 MiB): those of the CPU backend, whose memory it shares.
const LOGITS: usize = 4 << 20;

/// The SIMT machine. Launches run to their end before they return.
pub struct Simt {
    info: DeviceInfo,
}

impl Simt {
    /// The machine with all kernels known to it; if `hopper`, with those for sm_90a in place of the general ones, where
    /// there are such.
    pub fn open(hopper: bool) -> Self {
        keep_kernels();
        let image = if hopper { "sm_90a" } else { "sm_80" };
        let info = DeviceInfo {
            name: NAME.into(),
            max_logits: LOGITS,
            max_shared: 227 * 1024,
            caches: false,
            ..DeviceInfo::of_image(image, 2)
        };
        Self { info }
    }
}

/// Runs the machine's own test kernel `planted_<bug>` (`kernels/simt/planted.cu`): `threads` threads over 256
/// ones, and 4 values that nobody wrote; those named `ring` also get a map of 64 x 64 ones in bf16. Returns what it
/// left in memory.
///
/// # Errors
/// What the machine says about the bug.
pub fn run_planted(bug: &str, threads: usize) -> Result<Vec<f32>> {
    let machine = Simt::open(false);
    let take = |bytes| machine.alloc(bytes)?.ok_or_else(|| Error::device("out of memory"));
    let (values, ones) = (take(256 * 4 + 16)?, take(64 * 64 * 2)?);
    machine.upload(values, bytemuck::cast_slice(&[1f32; 256]))?;
    machine.upload(ones, bytemuck::cast_slice(&[0x3f80u16; 64 * 64]))?;
    let map = machine.tensor_map(&Matrix { data: ones, rows: 64, cols: 64, ld: 64 }, 64)?;
    let plain = [values, 256];
    let ring = [&map.opaque[..], &plain, &[0; 14]].concat();
    let (arguments, shared) = if bug.starts_with("ring") { (&ring[..], 33_000) } else { (&plain[..], 256) };
    let launch = Launch::line(1, threads).shared(shared);
    let result = run(&format!("planted_{bug}"), launch, bytemuck::cast_slice(arguments));
    let mut left = vec![0f32; 256];
    machine.download(values, bytemuck::cast_slice_mut(&mut left))?;
    machine.free(values, 256 * 4 + 16);
    machine.free(ones, 64 * 64 * 2);
    result.map(|()| left)
}

/// Runs a kernel to its end.
fn run(kernel: &str, launch: Launch, arguments: &[u8]) -> Result<()> {
    let name = CString::new(kernel).map_err(|_| Error::device("a kernel name with a NUL"))?;
    let mut message = [0 as c_char; 1024];
    // SAFETY: the machine checks names and sizes; a kernel's own bad access becomes an error.
    let failed = unsafe {
        let found = gems_simt_find(name.as_ptr());
        if found.is_null() {
            return Err(Error::device(format!("there is no kernel `{kernel}`")));
        }
        gems_simt_launch(
            found,
            launch.grid.as_ptr(),
            launch.block.as_ptr(),
            launch.shared,
            arguments.as_ptr().cast(),
            arguments.len() as u32,
            message.as_mut_ptr(),
            message.len(),
        )
    };
    if failed == 0 {
        return Ok(());
    }
    // SAFETY: the machine ends its message with a NUL within the buffer.
    let text = unsafe { CStr::from_ptr(message.as_ptr()) };
    Err(Error::device(text.to_string_lossy()).at("SIMT machine"))
}

/// Launches as they were given: what an executable graph is on a GPU.
struct SimtGraph(Vec<(String, Launch, Vec<u8>)>);

fn copy(node: &Node) -> (String, Launch, Vec<u8>) {
    (node.kernel.to_string(), node.launch, node.arguments.to_vec())
}

impl Graph for SimtGraph {
    fn replace(&mut self, index: usize, node: &Node) -> Result<()> {
        assert_eq!(self.0[index].0, node.kernel, "a graph keeps its kernels");
        self.0[index] = copy(node);
        Ok(())
    }
    fn start(&self) -> Result<()> {
        self.0.iter().try_for_each(|(kernel, launch, arguments)| run(kernel, *launch, arguments))
    }
}

impl Driver for Simt {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }
    fn inner(&self) -> Option<&dyn Driver> {
        None
    }
    fn alloc(&self, bytes: usize) -> Result<Option<u64>> {
        // SAFETY: the machine checks for failure and returns null.
        let address = unsafe { gems_simt_alloc(bytes) } as u64;
        Ok((address != 0).then_some(address))
    }
    fn free(&self, address: u64, bytes: usize) {
        // SAFETY: called once for what `alloc` gave, with its size.
        unsafe { gems_simt_free(address as *mut c_void, bytes) }
    }
    fn upload(&self, to: u64, bytes: &[u8]) -> Result<()> {
        // SAFETY: `to` is the machine's memory of at least this size, which no Rust reference covers.
        unsafe { gems_simt_upload(to as *mut c_void, bytes.as_ptr().cast(), bytes.len()) };
        Ok(())
    }
    fn download(&self, from: u64, bytes: &mut [u8]) -> Result<()> {
        // SAFETY: as in `upload`; launches are finished.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }
    fn launch(&self, kernel: &str, launch: Launch, arguments: &[u8]) -> Result<()> {
        run(kernel, launch, arguments)
    }
    fn synchronize(&self) -> Result<()> {
        Ok(())
    }
    fn graph(&self, nodes: &[Node]) -> Result<Option<Box<dyn Graph>>> {
        Ok(Some(Box::new(SimtGraph(nodes.iter().map(copy).collect()))))
    }
    fn tensor_map(&self, matrix: &Matrix, box_rows: usize) -> Result<TensorMap> {
        let mut map = TensorMap { opaque: [0; 16] };
        let (cols, rows) = (matrix.cols as u64, matrix.rows as u64);
        let row = matrix.row_bytes(DType::BF16);
        // SAFETY: the map has the 128 bytes that are written.
        let refused = unsafe {
            let to = std::ptr::from_mut(&mut map).cast();
            gems_simt_tensor_map(to, matrix.data as *const c_void, cols, rows, row, 64, box_rows as u32)
        };
        match refused {
            0 => Ok(map),
            _ => Err(Error::device(format!("no tensor map of {rows} x {cols}, {row} bytes from row to row"))
                .at("SIMT machine")),
        }
    }
}
