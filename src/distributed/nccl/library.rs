//! NCCL, opened at run time by its real names: its version and the few functions that are used.

use super::super::communicator::{Failure, Moved};
use crate::error::{Error, Result};
use libloading::os::unix::Library;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::PathBuf;

/// What is known of the library that would be opened here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Where it was found: a name in the loader's path, or a file.
    pub file: String,
    /// Such as `2.32.3`.
    pub version: String,
}

/// The oldest version whose communicators can be told not to block.
const OLDEST: c_int = 21400;

/// A communicator of the library.
pub type Handle = *mut c_void;

/// What all ranks of a communicator must have in common (`ncclUniqueId`).
#[derive(Clone, Copy, bytemuck::Zeroable, bytemuck::Pod)]
#[repr(C)]
pub struct UniqueId([c_char; 128]);

/// The first fields of `ncclConfig_t`, as version 2.14 has it: newer libraries take the rest as not given.
#[repr(C)]
pub struct Settings {
    size: usize,
    magic: u32,
    version: u32,
    blocking: c_int,
}

impl Settings {
    /// Calls return before they are done; the communicator is asked how it stands.
    pub fn not_blocking() -> Self {
        Self { size: size_of::<Self>(), magic: 0xcafe_beef, version: OLDEST as u32, blocking: 0 }
    }
}

/// `ncclResult_t`.
pub type Code = c_int;
/// A call that is under way.
pub const IN_PROGRESS: Code = 7;
/// `ncclUint8` and `ncclFloat32`.
pub const BYTE: c_int = 1;
pub const FLOAT: c_int = 7;

pub type Simple = unsafe extern "C" fn(Handle) -> Code;
type Plain = unsafe extern "C" fn() -> Code;
type Identify = unsafe extern "C" fn(*mut UniqueId) -> Code;
type Initialize = unsafe extern "C" fn(*mut Handle, c_int, UniqueId, c_int, *mut Settings) -> Code;
type Ask = unsafe extern "C" fn(Handle, *mut Code) -> Code;
type Allgather = unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, Handle, *mut c_void) -> Code;
type Move = unsafe extern "C" fn(*mut c_void, usize, c_int, c_int, Handle, *mut c_void) -> Code;
type Word = unsafe extern "C" fn(Code) -> *const c_char;
type LastWord = unsafe extern "C" fn(Handle) -> *const c_char;

/// An open library. Its functions are those of nccl.h; it is never closed, for it has threads of its own.
pub struct Functions {
    pub found: Found,
    pub identify: Identify,
    pub initialize: Initialize,
    pub ask: Ask,
    pub allgather: Allgather,
    pub send: Move,
    pub receive: Move,
    pub group_start: Plain,
    pub group_end: Plain,
    pub finalize: Simple,
    pub destroy: Simple,
    pub abort: Simple,
    word: Word,
    last_word: LastWord,
}

/// The library's names, then the folders of Python wheels.
fn candidates() -> Vec<String> {
    let mut all: Vec<String> = std::env::var("GEMS_NCCL").into_iter().collect();
    all.extend(["libnccl.so.2".to_string(), "libnccl.so".to_string()]);
    let bases = ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(std::env::var_os).map(PathBuf::from);
    let bases = bases.chain([PathBuf::from("/usr/local"), PathBuf::from("/usr")]);
    let patterns = bases.flat_map(|base| {
        ["site-packages", "dist-packages"].map(|folder| {
            base.join(format!("lib/python3*/{folder}/nvidia/nccl/lib/libnccl.so.2")).display().to_string()
        })
    });
    let files = patterns.filter_map(|pattern| glob::glob(&pattern).ok()).flatten().flatten();
    all.extend(files.map(|file| file.display().to_string()));
    all
}

/// Opens the first library there is and asks it for its version.
fn open() -> Result<(Library, Found)> {
    for file in candidates() {
        // SAFETY: loading runs the library's initialisers; it is NCCL by its name, or by the user's word.
        let Ok(library) = (unsafe { Library::new(&file) }) else { continue };
        // SAFETY: the function's type is that of nccl.h.
        let ask = unsafe { library.get::<unsafe extern "C" fn(*mut c_int) -> c_int>(b"ncclGetVersion") };
        let mut number = 0;
        // SAFETY: a place for one int.
        let answered = ask.is_ok_and(|ask| unsafe { ask(&mut number) } == 0);
        let version = format!("{}.{}.{}", number / 10000, number / 100 % 100, number % 100);
        return match answered && number >= OLDEST {
            true => Ok((library, Found { file, version })),
            false => Err(Error::device(format!("NCCL {version} is too old")).at(file).remedy(REMEDY)),
        };
    }
    Err(Error::device("NCCL was not found (libnccl.so.2)").remedy(REMEDY))
}

/// The library that would be opened here.
///
/// # Errors
/// None is there, or it is too old.
pub fn found() -> Result<Found> {
    let (library, found) = open()?;
    std::mem::forget(library);
    Ok(found)
}

const REMEDY: &str =
    "pip install nvidia-nccl-cu13, and run in that environment or name the library in GEMS_NCCL";

impl Functions {
    /// Opens the first library there is.
    ///
    /// # Errors
    /// None is there; it is too old, or lacks a function.
    pub fn open() -> Result<Self> {
        let (library, found) = open()?;
        // SAFETY: the types are those of nccl.h.
        let functions = unsafe {
            Self {
                identify: symbol(&library, "ncclGetUniqueId")?,
                initialize: symbol(&library, "ncclCommInitRankConfig")?,
                ask: symbol(&library, "ncclCommGetAsyncError")?,
                allgather: symbol(&library, "ncclAllGather")?,
                send: symbol(&library, "ncclSend")?,
                receive: symbol(&library, "ncclRecv")?,
                group_start: symbol(&library, "ncclGroupStart")?,
                group_end: symbol(&library, "ncclGroupEnd")?,
                finalize: symbol(&library, "ncclCommFinalize")?,
                destroy: symbol(&library, "ncclCommDestroy")?,
                abort: symbol(&library, "ncclCommAbort")?,
                word: symbol(&library, "ncclGetErrorString")?,
                last_word: symbol(&library, "ncclGetLastError")?,
                found,
            }
        };
        std::mem::forget(library);
        Ok(functions)
    }

    /// What all ranks of one communicator give to it.
    pub fn unique_id(&self) -> Moved<UniqueId> {
        let mut id = UniqueId([0; 128]);
        // SAFETY: a place for an id.
        self.check(unsafe { (self.identify)(&mut id) }, std::ptr::null_mut())?;
        Ok(id)
    }

    /// Refuses a code that is neither a success nor a promise of one.
    pub fn check(&self, code: Code, communicator: Handle) -> Moved<()> {
        if code == 0 || code == IN_PROGRESS {
            return Ok(());
        }
        // SAFETY: both give text that stays, or none, for any code; a null communicator is allowed.
        let texts = unsafe { [(self.word)(code), (self.last_word)(communicator)] };
        let [what, last] = texts.map(|text| match text.is_null() {
            true => String::new(),
            // SAFETY: it ends with a NUL.
            false => unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned(),
        });
        let last = last.lines().last().unwrap_or_default().trim().to_string();
        Err(Failure::Library(if last.is_empty() { what } else { format!("{what}: {last}") }))
    }

    /// Whether everything that the communicator was asked for has been begun.
    pub fn is_ready(&self, communicator: Handle) -> Moved<bool> {
        let mut state = 0;
        // SAFETY: a communicator that was made and not yet ended; a place for one code.
        self.check(unsafe { (self.ask)(communicator, &mut state) }, communicator)?;
        self.check(state, communicator).map(|()| state == 0)
    }
}

/// # Safety
/// `T` is the type of the function of that name.
unsafe fn symbol<T: Copy>(library: &Library, name: &str) -> Result<T> {
    // SAFETY: as the caller says.
    match unsafe { library.get::<T>(name.as_bytes()) } {
        Ok(found) => Ok(*found),
        Err(_) => Err(Error::device(format!("this NCCL has no {name}")).remedy(REMEDY)),
    }
}
