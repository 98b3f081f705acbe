//! A wall clock that jumps: a library that takes the place of `clock_gettime`, for `LD_PRELOAD`.
//!
//! `GEMS_FAULTS_CLOCK=SECONDS,SECONDS,..`: what the wall clock is off by, the next of them every seventh time that it is asked.
//! The monotonic clock, which cannot jump, is left alone.

use std::ffi::{CStr, c_int};
use std::sync::atomic::{AtomicUsize, Ordering};

static ASKED: AtomicUsize = AtomicUsize::new(0);

/// What the wall clock is off by, this time.
fn jump() -> i64 {
    // SAFETY: the name ends with a zero; nothing in the process changes its environment.
    let value = unsafe { libc::getenv(c"GEMS_FAULTS_CLOCK".as_ptr()) };
    if value.is_null() {
        return 0;
    }
    // SAFETY: a string of the environment ends with a zero, and stays.
    let text = unsafe { CStr::from_ptr(value) }.to_str().unwrap_or("");
    let turn = ASKED.fetch_add(1, Ordering::Relaxed) / 7 % text.split(',').count().max(1);
    text.split(',').nth(turn).and_then(|seconds| seconds.parse().ok()).unwrap_or(0)
}

/// As in the C library, but for jumps of the wall clock.
///
/// # Safety
/// `time` points to a place for a time, as the C library asks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: libc::clockid_t, time: *mut libc::timespec) -> c_int {
    // SAFETY: the caller's pointer goes to the system as it is.
    let result = unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) } as c_int;
    if result == 0 && clock == libc::CLOCK_REALTIME {
        // SAFETY: the system has just written there.
        unsafe { (*time).tv_sec += jump() };
    }
    result
}
