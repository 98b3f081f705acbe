//! Copies and fills. To and from pinned memory they are done later; a copy to pageable memory waits, and one from there
//! may not be relied on either way, so its source must stay as it is.

use super::arguments::{In, Out};
use super::status::*;
use super::stream::Work;
use super::{Driver, bound};
use std::ffi::c_uint;

impl Driver {
    fn copied(&mut self) -> Answer {
        self.injected("copy").map_or(Ok(()), quietly)
    }

    fn upload(&mut self, (to, from, bytes): (u64, usize, usize), stream: usize, context: usize) -> Answer {
        self.stream(stream, context)?;
        if bytes == 0 {
            return Ok(());
        }
        self.usable(to, bytes, "a copy")?;
        self.copied()?;
        let from = self.snapshot(from, bytes)?;
        self.report.crossed[0] += bytes as u64;
        self.give_work(stream, context, Work::ToDevice { to, from })
    }

    fn download(
        &mut self,
        (to, from, bytes): (Out<u8>, u64, usize),
        stream: usize,
        context: usize,
    ) -> Answer {
        self.stream(stream, context)?;
        if bytes == 0 {
            return Ok(());
        }
        self.usable(from, bytes, "a copy")?;
        self.copied()?;
        if to.is_null() {
            return refuse(INVALID_VALUE, "the place for the result is null");
        }
        self.report.crossed[1] += bytes as u64;
        let pinned = self.is_pinned(to.address(), bytes);
        if pinned && !self.is_capturing(stream) {
            // Who reads it before the copy is done reads no numbers.
            (0..bytes).try_for_each(|i| to.put_at(i, 0xff))?;
        }
        self.give_work(stream, context, Work::ToHost { to: to.address(), from, bytes })?;
        if pinned || self.is_capturing(stream) { Ok(()) } else { self.finish(stream) }
    }

    fn within(&mut self, (to, from, bytes): (u64, u64, usize), stream: usize, context: usize) -> Answer {
        self.stream(stream, context)?;
        if bytes == 0 {
            return Ok(());
        }
        self.usable(to, bytes, "a copy")?;
        self.usable(from, bytes, "a copy")?;
        self.copied()?;
        self.give_work(stream, context, Work::Within { to, from, bytes })
    }

    fn set(&mut self, (to, value, count): (u64, &[u8], usize), stream: usize, context: usize) -> Answer {
        self.stream(stream, context)?;
        let bytes = count * value.len();
        if bytes == 0 {
            return Ok(());
        }
        if !to.is_multiple_of(value.len() as u64) {
            return refuse(INVALID_VALUE, format!("{to:#x} is not aligned to {} bytes", value.len()));
        }
        self.usable(to, bytes, "a fill")?;
        self.give_work(stream, context, Work::Set { to, value: value.to_vec(), bytes })
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyHtoDAsync_v2(to: u64, from: In<u8>, bytes: usize, stream: usize) -> Status {
    bound("cuMemcpyHtoDAsync_v2", |driver, context| {
        driver.upload((to, from.address(), bytes), stream, context)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyHtoD_v2(to: u64, from: In<u8>, bytes: usize) -> Status {
    bound("cuMemcpyHtoD_v2", |driver, context| {
        driver.upload((to, from.address(), bytes), 0, context)?;
        driver.finish(0)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoHAsync_v2(to: Out<u8>, from: u64, bytes: usize, stream: usize) -> Status {
    bound("cuMemcpyDtoHAsync_v2", |driver, context| driver.download((to, from, bytes), stream, context))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoH_v2(to: Out<u8>, from: u64, bytes: usize) -> Status {
    bound("cuMemcpyDtoH_v2", |driver, context| {
        driver.download((to, from, bytes), 0, context)?;
        driver.finish(0)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: usize) -> Status {
    bound("cuMemcpyDtoDAsync_v2", |driver, context| driver.within((to, from, bytes), stream, context))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoD_v2(to: u64, from: u64, bytes: usize) -> Status {
    bound("cuMemcpyDtoD_v2", |driver, context| driver.within((to, from, bytes), 0, context))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD8Async(to: u64, value: u8, count: usize, stream: usize) -> Status {
    bound("cuMemsetD8Async", |driver, context| driver.set((to, &[value], count), stream, context))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD8_v2(to: u64, value: u8, count: usize) -> Status {
    bound("cuMemsetD8_v2", |driver, context| driver.set((to, &[value], count), 0, context))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD32Async(to: u64, value: c_uint, count: usize, stream: usize) -> Status {
    bound("cuMemsetD32Async", |driver, context| {
        driver.set((to, &value.to_le_bytes(), count), stream, context)
    })
}
