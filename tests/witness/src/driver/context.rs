//! The library itself and contexts: the device's primary one and others; which one is current on a thread.

use super::arguments::Out;
use super::status::{self, *};
use super::{CURRENT, Driver, bound, call, plainly};
use std::ffi::{c_char, c_int, c_uint, c_void};

/// One context.
#[derive(Default)]
pub struct Context {
    /// Retains that were not released; the primary context only.
    users: u32,
    /// The error that every call answers with since something went wrong, and what that was.
    pub failed: Option<(Status, String)>,
}

impl Driver {
    fn open(&mut self) -> usize {
        let context = self.handle();
        self.contexts.insert(context, Context::default());
        context
    }

    /// Ends a context and everything in it.
    fn close(&mut self, context: usize) -> Answer {
        // What failed was said when it failed.
        self.finish_all(context).ok();
        self.say_leaks(context);
        self.say_statistics();
        let call = self.calls;
        let streams: Vec<usize> =
            self.streams.iter().filter(|s| s.1.context == context).map(|s| *s.0).collect();
        let events: Vec<usize> =
            self.events.iter().filter(|e| e.1.context == context).map(|e| *e.0).collect();
        for stream in streams {
            self.streams.remove(&stream);
            self.gone.insert(stream, ("stream", call));
        }
        for event in events {
            self.events.remove(&event);
            self.gone.insert(event, ("event", call));
        }
        let modules: Vec<usize> =
            self.modules.iter().filter(|m| m.1.context == context).map(|m| *m.0).collect();
        modules.into_iter().for_each(|module| self.forget_module(module));
        self.heap.close(context);
        self.contexts.remove(&context);
        self.gone.insert(context, ("context", call));
        Ok(())
    }

    /// Memory that the program took and never gave back.
    fn say_leaks(&mut self, context: usize) {
        let failed = self.contexts.get(&context).is_some_and(|c| c.failed.is_some());
        let left = self.heap.left(context);
        if failed || left.is_empty() {
            return;
        }
        let bytes: usize = left.iter().map(|(_, bytes, _)| bytes).sum();
        let some: Vec<String> =
            left.iter().take(5).map(|(at, n, call)| format!("{at:#x} ({n} bytes, call {call})")).collect();
        let text = format!("{} allocations, {bytes} bytes, were not freed: {}", left.len(), some.join(", "));
        self.report.say("fault", &format!("leak at the end of the context: {text}"));
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuInit(flags: c_uint) -> Status {
    plainly("cuInit", |driver| {
        if flags != 0 {
            return refuse(INVALID_VALUE, format!("flags {flags}, must be 0"));
        }
        driver.initialized = true;
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDriverGetVersion(version: Out<c_int>) -> Status {
    plainly("cuDriverGetVersion", |_| version.put(13000))
}

#[unsafe(no_mangle)]
extern "C" fn cuGetErrorName(error: Status, text: Out<*const c_char>) -> Status {
    plainly("cuGetErrorName", |_| match status::name(error) {
        Some(name) => text.put(name.as_ptr()),
        None => text.put(std::ptr::null()).and_then(|()| quietly(INVALID_VALUE)),
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuGetErrorString(error: Status, text: Out<*const c_char>) -> Status {
    plainly("cuGetErrorString", |_| match status::meaning(error) {
        Some(meaning) => text.put(meaning.as_ptr()),
        None => text.put(std::ptr::null()).and_then(|()| quietly(INVALID_VALUE)),
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxRetain(context: Out<usize>, device: c_int) -> Status {
    call("cuDevicePrimaryCtxRetain", |driver| {
        driver.the_device(device)?;
        let primary = match driver.primary {
            Some(primary) => primary,
            None => driver.open(),
        };
        driver.primary = Some(primary);
        driver.contexts.entry(primary).or_default().users += 1;
        context.put(primary)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxRelease_v2(device: c_int) -> Status {
    call("cuDevicePrimaryCtxRelease_v2", |driver| {
        driver.the_device(device)?;
        let Some(primary) = driver.primary else {
            return refuse(
                INVALID_CONTEXT,
                "the primary context is released more often than it was retained",
            );
        };
        let users = driver.contexts.get_mut(&primary).map_or(0, |c| {
            c.users -= 1;
            c.users
        });
        if users > 0 {
            return Ok(());
        }
        driver.primary = None;
        driver.close(primary)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxReset_v2(device: c_int) -> Status {
    call("cuDevicePrimaryCtxReset_v2", |driver| {
        driver.the_device(device)?;
        driver.primary.take().map_or(Ok(()), |primary| driver.close(primary))
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxCreate_v4(
    context: Out<usize>,
    parameters: *mut c_void,
    _flags: c_uint,
    device: c_int,
) -> Status {
    call("cuCtxCreate_v4", |driver| {
        driver.the_device(device)?;
        if !parameters.is_null() {
            return refuse(NOT_SUPPORTED, "execution affinity and graphics contexts are not known here");
        }
        let made = driver.open();
        CURRENT.set(made);
        context.put(made)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxDestroy_v2(context: usize) -> Status {
    call("cuCtxDestroy_v2", |driver| {
        if !driver.contexts.contains_key(&context) {
            return driver
                .unknown("context", context)
                .or_else(|r: Refusal| refuse(INVALID_CONTEXT, r.why.unwrap_or_default()));
        }
        if driver.primary == Some(context) {
            return refuse(INVALID_CONTEXT, "the primary context is released, not destroyed");
        }
        if CURRENT.get() == context {
            CURRENT.set(0);
        }
        driver.close(context)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxGetCurrent(context: Out<usize>) -> Status {
    call("cuCtxGetCurrent", |_| context.put(CURRENT.get()))
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSetCurrent(context: usize) -> Status {
    call("cuCtxSetCurrent", |driver| {
        if context != 0 && !driver.contexts.contains_key(&context) {
            return driver
                .unknown("context", context)
                .or_else(|r: Refusal| refuse(INVALID_CONTEXT, r.why.unwrap_or_default()));
        }
        CURRENT.set(context);
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxGetDevice(device: Out<c_int>) -> Status {
    bound("cuCtxGetDevice", |_, _| device.put(0))
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSynchronize() -> Status {
    bound("cuCtxSynchronize", |driver, context| {
        driver.waiting()?;
        driver.finish_all(context)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuProfilerStart() -> Status {
    bound("cuProfilerStart", |_, _| Ok(()))
}

#[unsafe(no_mangle)]
extern "C" fn cuProfilerStop() -> Status {
    bound("cuProfilerStop", |_, _| Ok(()))
}
