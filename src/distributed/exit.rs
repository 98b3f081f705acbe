//! How a process ends whose library may not.

use std::ffi::c_int;
use std::time::Duration;

/// An orderly end may take so long.
pub(super) const ENDING: Duration = Duration::from_secs(3);

/// Ends this process without anything that a library has left to be done at an end.
pub(super) fn now(code: u8) -> ! {
    unsafe extern "C" {
        fn _exit(code: c_int) -> !;
    }
    // SAFETY: the system's own function, which takes any number.
    unsafe { _exit(code.into()) }
}

/// Ends the process with `code` if `work` takes longer than [`ENDING`]: a library that does not end must not keep it.
pub(super) fn unless_done(code: u8, work: impl FnOnce()) {
    let (sender, receiver) = std::sync::mpsc::channel::<()>();
    std::thread::spawn(move || {
        if receiver.recv_timeout(ENDING) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            now(code);
        }
    });
    work();
    let _ = sender.send(());
}
