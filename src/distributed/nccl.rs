//! NCCL, opened at run time by its real names: what it is, and whether it would work here.

use crate::error::{Error, Result};
use libloading::os::unix::Library;
use std::ffi::c_int;
use std::path::PathBuf;

/// What is known of the library that would be opened here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nccl {
    /// Where it was found: a name in the loader's path, or a file.
    pub file: String,
    /// Such as `2.32.3`.
    pub version: String,
}

/// The oldest version whose communicators can be told not to block.
const OLDEST: c_int = 21400;

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
///
/// # Errors
/// None is there, or it is too old.
pub fn found() -> Result<Nccl> {
    for file in candidates() {
        // SAFETY: loading runs the library's initialisers; it is NCCL by its name, or by the user's word.
        let Ok(library) = (unsafe { Library::new(&file) }) else { continue };
        // SAFETY: the function's type is that of nccl.h.
        let ask = unsafe { library.get::<unsafe extern "C" fn(*mut c_int) -> c_int>(b"ncclGetVersion") };
        let mut number = 0;
        // SAFETY: a place for one int.
        let answered = ask.is_ok_and(|ask| unsafe { ask(&mut number) } == 0);
        // It may have started threads: it stays.
        std::mem::forget(library);
        let version = format!("{}.{}.{}", number / 10000, number / 100 % 100, number % 100);
        return match answered && number >= OLDEST {
            true => Ok(Nccl { file, version }),
            false => Err(Error::device(format!("NCCL {version} is too old")).at(file).remedy(REMEDY)),
        };
    }
    Err(Error::device("NCCL was not found (libnccl.so.2)").remedy(REMEDY))
}

const REMEDY: &str =
    "pip install nvidia-nccl-cu13, and run in that environment or name the library in GEMS_NCCL";
