//! Names of phases in the timelines of NVIDIA's tools, by NVTX 3.
//!
//! Since CUDA 13 NVTX is no library any more but a protocol (its headers `nvtxTypes.h` and `nvtxInit.h`): the tool that started
//! this process names a library of its own in `NVTX_INJECTION64_PATH`; that library's `InitializeInjectionNvtx2` is told where to
//! ask for tables of functions, and puts its own into those that it wants to hear. Without a tool nothing is loaded.

use libloading::Library;
use std::ffi::{CString, c_char, c_int, c_void};
use std::mem::transmute;
use std::ptr::null;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, Ordering};

/// Where the tool's library is.
const PATH: &str = "NVTX_INJECTION64_PATH";
/// Modules of functions, and the most that one of them has, each counted with a first one that does not exist.
const MODULES: usize = 7;
const FUNCTIONS: usize = 16;
/// Functions of each module: core, CUDA, OpenCL, CUDA runtime, core 2, synchronisation.
const SIZES: [usize; MODULES] = [0, 16, 9, 15, 7, 16, 7];
/// Of the core's, those that are called here.
const CORE: usize = 1;
const RANGE_PUSH: usize = 9;
const RANGE_POP: usize = 11;

/// What the tool has put in.
static SLOTS: [[AtomicPtr<c_void>; FUNCTIONS]; MODULES] =
    [const { [const { AtomicPtr::new(std::ptr::null_mut()) }; FUNCTIONS] }; MODULES];
/// The addresses of the slots, as the tool wants them.
static TABLES: OnceLock<[[usize; FUNCTIONS]; MODULES]> = OnceLock::new();
static LIBRARY: OnceLock<Option<Library>> = OnceLock::new();

type ExportTable = extern "C" fn(u32) -> *const c_void;

#[repr(C)]
struct Callbacks {
    bytes: usize,
    table: extern "C" fn(c_int, *mut *const c_void, *mut u32) -> c_int,
}

#[repr(C)]
struct Version {
    bytes: usize,
    version: u32,
    unused: u32,
    told: extern "C" fn(u32),
}

static CALLBACKS: Callbacks = Callbacks { bytes: size_of::<Callbacks>(), table: module_table };
static VERSION: Version = Version { bytes: size_of::<Version>(), version: 3, unused: 0, told: ignore };

extern "C" fn ignore(_version: u32) {}

extern "C" fn export_table(id: u32) -> *const c_void {
    match id {
        1 => (&raw const CALLBACKS).cast(),
        3 => (&raw const VERSION).cast(),
        _ => null(),
    }
}

extern "C" fn module_table(module: c_int, table: *mut *const c_void, size: *mut u32) -> c_int {
    let module = match usize::try_from(module) {
        Ok(module) if module < MODULES && SIZES[module] > 0 && !table.is_null() => module,
        _ => return 0,
    };
    let slot = |module: usize, id: usize| if id == 0 { 0 } else { SLOTS[module][id].as_ptr() as usize };
    let tables = TABLES.get_or_init(|| std::array::from_fn(|m| std::array::from_fn(|id| slot(m, id))));
    // SAFETY: the tool passes places for a table and, if it wants it, for its size.
    unsafe {
        table.write(tables[module].as_ptr().cast());
        if !size.is_null() {
            size.write(SIZES[module] as u32);
        }
    }
    1
}

/// Whether a tool listens; asked for the first time, its library is loaded.
pub fn listening() -> bool {
    let load = || -> Option<Library> {
        let path = std::env::var_os(PATH)?;
        // SAFETY: whoever started this process asks for this library to be loaded into it, as LD_PRELOAD does.
        let library = unsafe { Library::new(path) }.ok()?;
        // SAFETY: the function's type is that of NVTX's headers; the tables live as long as the process.
        let attached = unsafe {
            let attach =
                library.get::<extern "C" fn(ExportTable) -> c_int>(b"InitializeInjectionNvtx2\0").ok()?;
            attach(export_table) != 0
        };
        attached.then_some(library)
    };
    LIBRARY.get_or_init(load).is_some()
}

/// The tool's own function, if it has put one in.
fn function(id: usize) -> Option<*mut c_void> {
    let at = SLOTS[CORE][id].load(Ordering::Acquire);
    (listening() && !at.is_null()).then_some(at)
}

/// Begins a range on this thread.
pub fn push(name: &str) {
    let (Some(at), Ok(name)) = (function(RANGE_PUSH), CString::new(name)) else { return };
    // SAFETY: the tool put a function of this type into this slot; its library stays loaded.
    unsafe { transmute::<*mut c_void, extern "C" fn(*const c_char) -> c_int>(at)(name.as_ptr()) };
}

/// Ends the last range of this thread that has not ended.
pub fn pop() {
    let Some(at) = function(RANGE_POP) else { return };
    // SAFETY: as for `push`.
    unsafe { transmute::<*mut c_void, extern "C" fn() -> c_int>(at)() };
}
