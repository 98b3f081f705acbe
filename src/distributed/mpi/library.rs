//! An MPI library, opened at run time: its names, its handles, the few functions that are used.

use super::super::launcher::Launcher;
use crate::error::{Error, Result};
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_LAZY};
use std::ffi::{CStr, c_char, c_int, c_void};

/// A communicator, a type or a request: a pointer, or an integer in its lower half.
pub type Handle = usize;

/// Files that may be an MPI library: the standard ABI's first, then Open MPI's, then those of MPICH and its kin.
const STANDARD: &[&str] = &["libmpi_abi.so.1", "libmpi_abi.so.0", "libmpi_abi.so"];
const OPEN_MPI: &[&str] = &["libmpi.so.40"];
const MPICH: &[&str] = &["libmpi.so.12", "libmpich.so.12"];

/// How a library names the communicator of all ranks, and the type of bytes.
struct Constants {
    world: Handle,
    byte: Handle,
}

type Initialize = unsafe extern "C" fn(*mut c_int, *mut c_void, c_int, *mut c_int) -> c_int;
type Number = unsafe extern "C" fn(Handle, *mut c_int) -> c_int;
type Version = unsafe extern "C" fn(*mut c_char, *mut c_int) -> c_int;
type Allgather = unsafe extern "C" fn(
    *const c_void,
    c_int,
    Handle,
    *mut c_void,
    c_int,
    Handle,
    Handle,
    *mut Handle,
) -> c_int;
type Alltoallv = unsafe extern "C" fn(
    *const c_void,
    *const c_int,
    *const c_int,
    Handle,
    *mut c_void,
    *const c_int,
    *const c_int,
    Handle,
    Handle,
    *mut Handle,
) -> c_int;
type Move = unsafe extern "C" fn(*mut c_void, c_int, Handle, c_int, c_int, Handle, *mut Handle) -> c_int;
type Test = unsafe extern "C" fn(*mut Handle, *mut c_int, *mut c_void) -> c_int;
type Probe = unsafe extern "C" fn(c_int, c_int, Handle, *mut c_int, *mut c_void) -> c_int;
type Finalize = unsafe extern "C" fn() -> c_int;
type Abort = unsafe extern "C" fn(Handle, c_int) -> c_int;

/// An open library. Its functions are those of the MPI standard; it is never closed.
pub struct Functions {
    pub world: Handle,
    pub byte: Handle,
    /// `Open MPI v4.1.4`.
    pub name: String,
    initialize: Initialize,
    rank: Number,
    size: Number,
    pub allgather: Allgather,
    pub alltoallv: Alltoallv,
    pub send: Move,
    pub test: Test,
    pub probe: Probe,
    pub finalize: Finalize,
    pub abort: Abort,
}

/// Candidates in the order in which they are tried under `launcher`.
fn candidates(launcher: Option<&Launcher>) -> Vec<String> {
    if let Ok(named) = std::env::var("GEMS_MPI") {
        return vec![named];
    }
    // What was started by MPICH's mpirun, or by Slurm for it (PMI and no PMIx), wants MPICH.
    let pmi = std::env::var_os("PMI_RANK").is_some() && std::env::var_os("PMIX_RANK").is_none();
    let mpich = launcher.is_some_and(|l| l.name != "Open MPI") && pmi;
    let order = if mpich { [STANDARD, MPICH, OPEN_MPI] } else { [STANDARD, OPEN_MPI, MPICH] };
    order.into_iter().flatten().map(|name| (*name).to_string()).collect()
}

impl Functions {
    /// Opens the first library there is.
    ///
    /// # Errors
    /// None is there; what is there lacks a function.
    pub fn open(launcher: Option<&Launcher>) -> Result<Self> {
        let names = candidates(launcher);
        let mut why = String::new();
        for name in &names {
            // SAFETY: loading runs the library's initialisers; it is an MPI library by its name, or by the user's word.
            // Global, since Open MPI's plugins look for its symbols among all that are loaded.
            match unsafe { Library::open(Some(name), RTLD_LAZY | RTLD_GLOBAL) } {
                Ok(library) => return Self::of(library).map_err(|e| e.at(name)),
                Err(error) => why = error.to_string(),
            }
        }
        Err(Error::usage(format!("no MPI library was found: {}; the last said: {why}", names.join(", ")))
            .remedy(
                "install Open MPI or MPICH (Debian: openmpi-bin or mpich), or name its library in GEMS_MPI",
            ))
    }

    fn of(library: Library) -> Result<Self> {
        let constants = constants(&library);
        // SAFETY: the types are those of the MPI standard's C functions; handles are passed as they are returned: a
        // pointer, or an int that fills the lower half of a register.
        let mut functions = unsafe {
            Self {
                world: constants.world,
                byte: constants.byte,
                name: version(symbol(&library, "MPI_Get_library_version")?),
                initialize: symbol(&library, "MPI_Init_thread")?,
                rank: symbol(&library, "MPI_Comm_rank")?,
                size: symbol(&library, "MPI_Comm_size")?,
                allgather: symbol(&library, "MPI_Iallgather")?,
                alltoallv: symbol(&library, "MPI_Ialltoallv")?,
                send: symbol(&library, "MPI_Isend")?,
                test: symbol(&library, "MPI_Test")?,
                probe: symbol(&library, "MPI_Iprobe")?,
                finalize: symbol(&library, "MPI_Finalize")?,
                abort: symbol(&library, "MPI_Abort")?,
            }
        };
        functions.name = functions.name.trim().to_string();
        // Its plugins stay in use until the process ends.
        std::mem::forget(library);
        Ok(functions)
    }

    /// Starts MPI; this rank, and how many the library knows of.
    pub fn initialize(&self) -> Result<(usize, usize)> {
        const FUNNELED: c_int = 1;
        let (mut level, mut rank, mut size) = (0, 0, 0);
        // SAFETY: the standard allows null arguments; the others are places for one int each.
        let codes = unsafe {
            [
                (self.initialize)(std::ptr::null_mut(), std::ptr::null_mut(), FUNNELED, &mut level),
                (self.rank)(self.world, &mut rank),
                (self.size)(self.world, &mut size),
            ]
        };
        match codes.iter().all(|code| *code == 0) && rank >= 0 && size > rank {
            true => Ok((rank as usize, size as usize)),
            false => Err(Error::usage(format!("{} does not start: codes {codes:?}", self.name))
                .remedy("start this program with the mpirun of the same library")),
        }
    }
}

/// Open MPI's handles are addresses of symbols, MPICH's and the standard's are numbers.
fn constants(library: &Library) -> Constants {
    // SAFETY: only the addresses of these symbols are taken.
    let address =
        |name: &[u8]| unsafe { library.get::<*mut c_void>(name) }.ok().map(|s| s.into_raw() as Handle);
    if let (Some(world), Some(byte)) = (address(b"ompi_mpi_comm_world"), address(b"ompi_mpi_byte")) {
        return Constants { world, byte };
    }
    // Both give their own number for a type of the standard; only the standard's library has this function.
    match address(b"MPI_Abi_get_version") {
        Some(_) if address(b"MPIR_Err_create_code").is_none() => Constants { world: 0x101, byte: 0x247 },
        _ => Constants { world: 0x4400_0000, byte: 0x4c00_010d },
    }
}

/// # Safety
/// `T` is the type of the function of that name.
unsafe fn symbol<T: Copy>(library: &Library, name: &str) -> Result<T> {
    // SAFETY: as the caller says.
    match unsafe { library.get::<T>(name.as_bytes()) } {
        Ok(found) => Ok(*found),
        Err(_) => Err(Error::usage(format!("this library has no {name}"))
            .remedy("install an MPI library of version 3.1 or newer, or name another one in GEMS_MPI")),
    }
}

/// The first line of what a library says of itself; that may be asked before it is started.
fn version(ask: Version) -> String {
    let (mut text, mut length) = (vec![0 as c_char; 8193], 0);
    // SAFETY: the standard's longest text fits, and ends with a zero.
    let said = unsafe {
        ask(text.as_mut_ptr(), &mut length);
        CStr::from_ptr(text.as_ptr()).to_string_lossy().into_owned()
    };
    let first = said.lines().next().unwrap_or_default().split(',').next().unwrap_or_default();
    first.replace(" Version:", " ").split_whitespace().collect::<Vec<_>>().join(" ")
}
