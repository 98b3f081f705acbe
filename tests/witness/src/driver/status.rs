//! What driver functions answer: the codes of `CUresult`, and why something was refused.

use std::ffi::{CStr, c_uint};

/// `CUresult`.
pub type Status = c_uint;

macro_rules! statuses {
    ($($name:ident = $code:literal, $text:literal;)*) => {
        // Some are only asked for by name (cuGetErrorName, WITNESS_FAIL).
        $(#[allow(dead_code)]
        pub const $name: Status = $code;)*

        /// Name and meaning of a code, both ended by a NUL.
        fn words(status: Status) -> Option<(&'static str, &'static str)> {
            match status {
                $($code => Some((concat!("CUDA_ERROR_", stringify!($name), "\0"), concat!($text, "\0"))),)*
                _ => None,
            }
        }
        const ALL: &[Status] = &[$($code),*];
    };
}

pub const SUCCESS: Status = 0;
statuses! {
    INVALID_VALUE = 1, "invalid argument";
    OUT_OF_MEMORY = 2, "out of memory";
    NOT_INITIALIZED = 3, "initialization error";
    NO_DEVICE = 100, "no CUDA-capable device is detected";
    INVALID_DEVICE = 101, "invalid device ordinal";
    INVALID_IMAGE = 200, "device kernel image is invalid";
    INVALID_CONTEXT = 201, "invalid device context";
    NO_BINARY_FOR_GPU = 209, "no kernel image is available for execution on the device";
    ECC_UNCORRECTABLE = 214, "uncorrectable ECC error encountered";
    INVALID_PTX = 218, "a PTX JIT compilation failed";
    INVALID_HANDLE = 400, "invalid resource handle";
    NOT_FOUND = 500, "named symbol not found";
    NOT_READY = 600, "device not ready";
    ILLEGAL_ADDRESS = 700, "an illegal memory access was encountered";
    LAUNCH_OUT_OF_RESOURCES = 701, "too many resources requested for launch";
    LAUNCH_TIMEOUT = 702, "the launch timed out and was terminated";
    MISALIGNED_ADDRESS = 716, "misaligned address";
    LAUNCH_FAILED = 719, "unspecified launch failure";
    NOT_SUPPORTED = 801, "operation not supported";
    STREAM_CAPTURE_UNSUPPORTED = 900, "operation not permitted when stream is capturing";
    STREAM_CAPTURE_INVALIDATED = 901, "operation failed due to a previous error during capture";
    ILLEGAL_STATE = 401, "the operation cannot be performed in the present state";
    STREAM_CAPTURE_UNMATCHED = 903, "the stream is not capturing";
    STREAM_CAPTURE_IMPLICIT = 906, "operation would make the legacy stream depend on a capturing blocking stream";
    UNKNOWN = 999, "unknown error";
}

fn text(with_nul: &'static str) -> &'static CStr {
    CStr::from_bytes_with_nul(with_nul.as_bytes()).unwrap_or(c"")
}

/// Such as `CUDA_ERROR_INVALID_VALUE`.
pub fn name(status: Status) -> Option<&'static CStr> {
    if status == SUCCESS { Some(c"CUDA_SUCCESS") } else { words(status).map(|w| text(w.0)) }
}

/// Such as `invalid argument`.
pub fn meaning(status: Status) -> Option<&'static CStr> {
    if status == SUCCESS { Some(c"no error") } else { words(status).map(|w| text(w.1)) }
}

/// The code that a word names: a number, or a name with or without `CUDA_ERROR_`.
pub fn parse(word: &str) -> Option<Status> {
    let called = |s: &&Status| {
        name(**s).is_some_and(|n| {
            n.to_string_lossy().trim_start_matches("CUDA_ERROR_") == word.trim_start_matches("CUDA_ERROR_")
        })
    };
    word.parse().ok().or_else(|| ALL.iter().find(called).copied())
}

/// Why a call was not done.
#[derive(Debug)]
pub struct Refusal {
    pub status: Status,
    /// What was wrong, with the caller's values; `None` where a program has to expect it.
    pub why: Option<String>,
}

/// What a call comes to.
pub type Answer<T = ()> = Result<T, Refusal>;

/// A refusal that is a mistake of the caller's.
pub fn refuse<T>(status: Status, why: impl Into<String>) -> Answer<T> {
    Err(Refusal { status, why: Some(why.into()) })
}

/// An answer that is no mistake: not ready, out of memory.
pub fn quietly<T>(status: Status) -> Answer<T> {
    Err(Refusal { status, why: None })
}
