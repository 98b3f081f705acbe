//! Events: points in a stream that the host or another stream waits for.

use super::arguments::Out;
use super::order::Mark;
use super::status::*;
use super::stream::Work;
use super::{Driver, bound};
use std::ffi::c_uint;
use std::sync::{Arc, Mutex};
use std::time::Instant;

type Moment = Arc<Mutex<Option<Instant>>>;

pub struct Event {
    pub context: usize,
    timing: bool,
    /// Where it was recorded last, and when that was reached.
    last: Option<(Mark, Moment)>,
}

const DISABLE_TIMING: c_uint = 2;
const INTERPROCESS: c_uint = 4;

impl Driver {
    fn event(&self, event: usize, context: usize) -> Answer<&Event> {
        match self.events.get(&event) {
            Some(found) if found.context == context => Ok(found),
            Some(_) => refuse(INVALID_HANDLE, format!("event {event:#x} is of another context")),
            None => self.unknown("event", event),
        }
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuEventCreate(event: Out<usize>, flags: c_uint) -> Status {
    bound("cuEventCreate", |driver, context| {
        if flags > 7 || flags & INTERPROCESS != 0 && flags & DISABLE_TIMING == 0 {
            return refuse(INVALID_VALUE, format!("flags {flags:#x}"));
        }
        let made = driver.handle();
        driver.events.insert(made, Event { context, timing: flags & DISABLE_TIMING == 0, last: None });
        event.put(made)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventDestroy_v2(event: usize) -> Status {
    bound("cuEventDestroy_v2", |driver, context| {
        driver.event(event, context)?;
        driver.events.remove(&event);
        driver.gone.insert(event, ("event", driver.calls));
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventRecord(event: usize, stream: usize) -> Status {
    bound("cuEventRecord", |driver, context| {
        driver.event(event, context)?;
        driver.stream(stream, context)?;
        driver.not_captured(stream, "cuEventRecord")?;
        let moment = Moment::default();
        driver.give_work(stream, context, Work::Record(Arc::clone(&moment)))?;
        let mark = driver.last(driver.key(stream));
        if let Some(event) = driver.events.get_mut(&event) {
            event.last = Some((mark, moment));
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamWaitEvent(stream: usize, event: usize, flags: c_uint) -> Status {
    bound("cuStreamWaitEvent", |driver, context| {
        if flags > 1 {
            return refuse(INVALID_VALUE, format!("flags {flags:#x}"));
        }
        driver.stream(stream, context)?;
        driver.not_captured(stream, "cuStreamWaitEvent")?;
        let mark = driver.event(event, context)?.last.as_ref().map(|(mark, _)| mark.clone());
        match mark {
            Some(mark) => driver.give_work(stream, context, Work::Wait(mark)),
            None => {
                let call = driver.calls;
                driver.report.note(&format!(
                    "cuStreamWaitEvent (call {call}): event {event:#x} was never recorded; nothing waits"
                ));
                Ok(())
            }
        }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventSynchronize(event: usize) -> Status {
    bound("cuEventSynchronize", |driver, context| {
        let mark = driver.event(event, context)?.last.as_ref().map(|(mark, _)| mark.clone());
        driver.waiting()?;
        if let Some(mark) = mark {
            driver.reach(&mark);
        }
        driver.healthy(context)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventQuery(event: usize) -> Status {
    bound("cuEventQuery", |driver, context| {
        let Some((mark, _)) = &driver.event(event, context)?.last else { return Ok(()) };
        let mark = mark.clone();
        // Time passes while somebody asks.
        driver.step(mark.stream);
        if !driver.is_done(&mark) {
            return quietly(NOT_READY);
        }
        driver.reach(&mark);
        driver.healthy(context)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventElapsedTime(milliseconds: Out<f32>, start: usize, end: usize) -> Status {
    bound("cuEventElapsedTime", |driver, context| {
        let mut moments = Vec::new();
        for handle in [start, end] {
            let event = driver.event(handle, context)?;
            if !event.timing {
                return refuse(INVALID_HANDLE, format!("event {handle:#x} was made without timing"));
            }
            let Some((mark, moment)) = &event.last else {
                return refuse(INVALID_HANDLE, format!("event {handle:#x} was never recorded"));
            };
            if !driver.is_done(mark) {
                return quietly(NOT_READY);
            }
            moments.push(moment.lock().unwrap_or_else(|p| p.into_inner()).unwrap_or_else(Instant::now));
        }
        let after = moments[1].saturating_duration_since(moments[0]).as_secs_f32();
        let before = moments[0].saturating_duration_since(moments[1]).as_secs_f32();
        milliseconds.put((after - before) * 1e3)
    })
}

/// The same as `cuEventElapsedTime` of CUDA 12.8 and later.
#[unsafe(no_mangle)]
extern "C" fn cuEventElapsedTime_v2(milliseconds: Out<f32>, start: usize, end: usize) -> Status {
    cuEventElapsedTime(milliseconds, start, end)
}
