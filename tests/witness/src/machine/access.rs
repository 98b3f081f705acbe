//! Loads, stores and atomics: every address is checked before it is touched.

use super::block::SHARED_BASE;
use super::registers::{Lanes, Registers};
use super::turn::Turn;
use crate::fault::{Kind, Result, Stop};
use crate::ptx::program::{Access, Atomic, Instruction, Order, Scope, Space};
use crate::races::cell::{Conflict, Was};
use crate::races::global::{self, Does};
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

/// What a lane's local memory looks like as a generic address.
pub(super) const LOCAL_WINDOW: u64 = 1 << 62;

/// A checked place for each lane.
type Places = Lanes<*mut u8>;

fn lanes_of(mask: u32) -> impl Iterator<Item = usize> {
    (0..32).filter(move |l| mask >> l & 1 != 0)
}

fn addresses(r: &Registers, i: &Instruction, wide: bool) -> Lanes<u64> {
    if wide {
        r.long(i.a).map(|a| a.wrapping_add(i.imm as u64))
    } else {
        r.word(i.a).map(|a| u64::from(a.wrapping_add(i.imm as u32)))
    }
}

impl Turn<'_, '_> {
    /// Bytes of global memory that are in a live allocation and aligned.
    pub fn global(&mut self, at: u64, bytes: u64, align: u64) -> Result<*mut u8> {
        let end = at.saturating_add(bytes);
        if at < self.worker.cached.start() || end > self.worker.cached.end() {
            match self.worker.launch.memory.find(at).filter(|a| end <= a.end()) {
                Some(found) => self.worker.cached = found.clone(),
                None => return Err(self.stray(at, bytes)),
            }
        }
        if !at.is_multiple_of(align) {
            return Err(Stop::new(Kind::Misaligned, format!("global address {at:#x} for {bytes} bytes")));
        }
        Ok(at as *mut u8)
    }

    fn stray(&self, at: u64, bytes: u64) -> Stop {
        let near = match self.worker.launch.memory.before(at) {
            Some(a) if at < a.end() => format!(
                "it runs over the end of an allocation of {} bytes, from byte {}",
                a.end() - a.start(),
                at - a.start()
            ),
            Some(a) => format!(
                "{} bytes behind the end of an allocation of {} bytes",
                at - a.end(),
                a.end() - a.start()
            ),
            None => "before all allocations".into(),
        };
        Stop::new(
            Kind::Bounds,
            format!("{bytes} bytes at global address {at:#x} are in no live allocation: {near}"),
        )
    }

    /// Bytes of the block's shared memory: their offset.
    pub fn shared(&self, at: u32, bytes: u32, align: u32) -> Result<usize> {
        let offset = at.wrapping_sub(SHARED_BASE);
        let size = self.block.shared.len();
        if u64::from(offset) + u64::from(bytes) > size as u64 {
            return Err(Stop::new(
                Kind::Bounds,
                format!("{bytes} bytes at shared byte {} of {size}", offset as i32),
            ));
        }
        if !at.is_multiple_of(align) {
            return Err(Stop::new(
                Kind::Misaligned,
                format!("shared byte {offset}, address {at:#x}, for {bytes} bytes"),
            ));
        }
        Ok(offset as usize)
    }

    /// Shared memory that is read must have been written.
    pub fn shared_is_written(&self, offset: usize, bytes: usize) -> Result<()> {
        match self.block.shared_written.missing(offset, bytes).filter(|_| self.worker.options.unwritten) {
            Some(hole) => {
                Err(Stop::new(Kind::Unwritten, format!("reads shared byte {hole}, which nobody has written")))
            }
            None => Ok(()),
        }
    }

    /// Global memory that is read must have been written. The bytes are in the cached allocation.
    pub fn global_is_written(&self, at: u64, bytes: u64) -> Result<()> {
        let cached = &self.worker.cached;
        match cached.first_unwritten(at, bytes).filter(|_| self.worker.options.unwritten) {
            Some(hole) => {
                let message = format!(
                    "reads byte {} of an allocation of {} bytes, which nobody has written",
                    hole - cached.start(),
                    cached.end() - cached.start()
                );
                Err(Stop::new(Kind::Unwritten, message))
            }
            None => Ok(()),
        }
    }

    /// The error of a conflict, named.
    pub fn conflict(&self, what: &str, place: String, conflict: &Conflict) -> Stop {
        let p = self.worker.launch.program;
        let who = |e: &crate::races::cell::Event| {
            let grid = self.worker.launch.grid;
            let block = [e.block % grid[0], e.block / grid[0] % grid[1], e.block / grid[0] / grid[1]];
            let agent = self.block.clocks.as_ref().map_or(String::new(), |c| c.name(e));
            format!("{agent} of block {block:?} at {}", p.place(e.pc as usize))
        };
        let did = |was: &Was| match was {
            Was::Read => "read",
            Was::Written => "written",
        };
        match conflict {
            Conflict::Race(e, was) => Stop::new(
                Kind::Race,
                format!("{what} {place}, {} by {}: nothing orders them", did(was), who(e)),
            ),
            Conflict::Proxy(e) => {
                let text = format!(
                    "the asynchronous proxy {what} {place}, written by {}: no fence.proxy.async between them",
                    who(e)
                );
                Stop::new(Kind::ProxyFence, text)
            }
            Conflict::Constant(e, was) => Stop::new(
                Kind::Race,
                format!("{what} {place}, {} by {}: ld.nc is for memory that nobody writes", did(was), who(e)),
            ),
        }
    }

    /// A lane reads or writes shared memory: races, and whether it was written.
    pub fn watch_shared(&mut self, lane: usize, offset: usize, bytes: usize, write: bool) -> Result<()> {
        let (w, pc) = (self.w, self.block.warps[self.w].pc);
        if let Some(c) = &mut self.block.clocks {
            let found =
                if write { c.write(w, lane, offset, bytes, pc) } else { c.read(w, lane, offset, bytes, pc) };
            if let Err((at, conflict)) = found {
                return Err(self
                    .conflict(if write { "writes" } else { "reads" }, format!("shared byte {at}"), &conflict)
                    .lane(lane));
            }
        }
        if write {
            self.block.shared_written.mark(offset, bytes);
            return Ok(());
        }
        self.shared_is_written(offset, bytes).map_err(|e| e.lane(lane))
    }

    /// A lane accesses global memory: races, and whether it was written.
    pub fn watch_global(
        &mut self,
        lane: usize,
        at: u64,
        bytes: u64,
        does: Does,
        order: Order,
        constant: bool,
    ) -> Result<()> {
        let (w, pc) = (self.w, self.block.warps[self.w].pc);
        if let (Some(c), Some(races)) = (&mut self.block.clocks, &mut self.worker.races)
            && let Err((place, conflict)) =
                races.access(c, (w, lane, pc), at, bytes, global::Access { does, order, constant })
        {
            let what = if does == Does::Read { "reads" } else { "writes" };
            return Err(self.conflict(what, self.name_global(place), &conflict).lane(lane));
        }
        if does != Does::Write {
            self.global_is_written(at, bytes).map_err(|e| e.lane(lane))?;
        }
        if does != Does::Read {
            self.worker.cached.mark_written(at, bytes);
        }
        Ok(())
    }

    pub fn name_global(&self, at: u64) -> String {
        match self.worker.launch.memory.find(at) {
            Some(a) => format!("byte {} of an allocation of {} bytes", at - a.start(), a.end() - a.start()),
            None => format!("global address {at:#x}"),
        }
    }

    /// Checks every lane's access, and tells where it is.
    fn places(&mut self, i: &Instruction, x: &Access, mask: u32, write: bool) -> Result<Places> {
        let at = addresses(&self.block.warps[self.w].registers, i, x.wide);
        let bytes = u64::from(x.bytes) * u64::from(x.count);
        let mut places = [std::ptr::null_mut(); 32];
        for l in lanes_of(mask) {
            places[l] = match x.space {
                Space::Global => self.global_place(l, at[l], bytes, x, write),
                Space::Shared => self.shared_place(l, at[l] as u32, bytes as u32, write),
                Space::Parameter => self.parameter_place(at[l], bytes),
                Space::Local => self.local_place(l, at[l], bytes, write),
                Space::Generic if at[l] >= LOCAL_WINDOW => {
                    self.local_place(l, at[l] - LOCAL_WINDOW, bytes, write)
                }
                Space::Generic => self.global_place(l, at[l], bytes, x, write),
            }
            .map_err(|e| e.lane(l))?;
        }
        Ok(places)
    }

    fn global_place(&mut self, lane: usize, at: u64, bytes: u64, x: &Access, write: bool) -> Result<*mut u8> {
        let parameters = self.block.parameters.address();
        if x.space == Space::Generic
            && (parameters..parameters + self.worker.launch.parameters.len() as u64).contains(&at)
        {
            return self.parameter_place(at - parameters, bytes);
        }
        let place = self.global(at, bytes, bytes)?;
        self.watch_global(
            lane,
            at,
            bytes,
            if write { Does::Write } else { Does::Read },
            x.order,
            x.constant,
        )?;
        Ok(place)
    }

    fn shared_place(&mut self, lane: usize, at: u32, bytes: u32, write: bool) -> Result<*mut u8> {
        let offset = self.shared(at, bytes, bytes)?;
        self.watch_shared(lane, offset, bytes as usize, write)?;
        Ok(&raw mut self.block.shared[offset])
    }

    fn parameter_place(&self, at: u64, bytes: u64) -> Result<*mut u8> {
        if at.saturating_add(bytes) > self.worker.launch.parameters.len() as u64 || !at.is_multiple_of(bytes)
        {
            return Err(Stop::new(Kind::Bounds, format!("{bytes} bytes at byte {at} of the arguments")));
        }
        Ok((self.block.parameters.address() + at) as *mut u8)
    }

    fn local_place(&mut self, lane: usize, at: u64, bytes: u64, write: bool) -> Result<*mut u8> {
        let size = self.worker.launch.program.local_bytes as u64;
        if at.saturating_add(bytes) > size {
            return Err(Stop::new(
                Kind::Bounds,
                format!("{bytes} bytes at byte {at} of {size} of local memory"),
            ));
        }
        if !at.is_multiple_of(bytes) {
            return Err(Stop::new(Kind::Misaligned, format!("byte {at} of local memory for {bytes} bytes")));
        }
        let offset = (self.w as u64 * 32 + lane as u64) * size + at;
        if write {
            self.block.locals_written.mark(offset as usize, bytes as usize);
        } else if self.block.locals_written.missing(offset as usize, bytes as usize).is_some()
            && self.worker.options.unwritten
        {
            return Err(Stop::new(
                Kind::Unwritten,
                format!("reads byte {at} of local memory, which the thread has not written"),
            ));
        }
        Ok(&raw mut self.block.locals[offset as usize])
    }

    /// `ld`.
    pub fn load(&mut self, i: &Instruction, mask: u32) -> Result<()> {
        let x = self.worker.launch.program.accesses[i.d as usize];
        let places = self.places(i, &x, mask, false)?;
        let strong = x.order.scope != Scope::Weak;
        let warp = &mut self.block.warps[self.w];
        for l in lanes_of(mask) {
            for (n, slot) in x.registers[..x.count.into()].iter().enumerate() {
                // SAFETY: `places` has checked that `count` values of `bytes` bytes are there, and aligned.
                let value = unsafe { read(places[l].add(n * usize::from(x.bytes)), x.bytes, strong) };
                let value = if x.signed { extend(value, x.bytes) } else { value };
                warp.registers.put_lane(*slot, l, value as u32);
                if x.long {
                    warp.registers.put_lane(slot + 1, l, (value >> 32) as u32);
                }
            }
        }
        warp.spins |= strong;
        Ok(())
    }

    /// `st`.
    pub fn store(&mut self, i: &Instruction, mask: u32) -> Result<()> {
        let x = self.worker.launch.program.accesses[i.d as usize];
        if x.space == Space::Parameter {
            return Err(Stop::new(Kind::Instruction, "a store to the arguments"));
        }
        let places = self.places(i, &x, mask, true)?;
        let strong = x.order.scope != Scope::Weak;
        let r = &self.block.warps[self.w].registers;
        for (n, slot) in x.registers[..x.count.into()].iter().enumerate() {
            let values = if x.long { r.long(*slot) } else { r.word(*slot).map(u64::from) };
            for l in lanes_of(mask) {
                // SAFETY: as in `load`.
                unsafe { write(places[l].add(n * usize::from(x.bytes)), x.bytes, values[l], strong) };
            }
        }
        Ok(())
    }

    /// `atom` and `red`.
    pub fn atomic(&mut self, i: &Instruction, mask: u32, op: Atomic, order: Order) -> Result<()> {
        let r = &self.block.warps[self.w].registers;
        let (at, b, c) = (addresses(r, i, true), *r.word(i.b), *r.word(i.c));
        for l in lanes_of(mask) {
            let place = self.global(at[l], 4, 4).map_err(|e| e.lane(l))?;
            self.watch_global(l, at[l], 4, Does::Update, order, false)?;
            // SAFETY: just checked: four bytes, aligned.
            let place = unsafe { AtomicU32::from_ptr(place.cast()) };
            let next = |old: u32| match op {
                Atomic::Add => old.wrapping_add(b[l]),
                Atomic::MinS => (old as i32).min(b[l] as i32) as u32,
                Atomic::MaxS => (old as i32).max(b[l] as i32) as u32,
                Atomic::MinU => old.min(b[l]),
                Atomic::MaxU => old.max(b[l]),
                Atomic::And => old & b[l],
                Atomic::Or => old | b[l],
                Atomic::Xor => old ^ b[l],
                Atomic::Exchange => b[l],
                Atomic::CompareAndSwap if old == b[l] => c[l],
                Atomic::CompareAndSwap => old,
            };
            let old = place
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |old| Some(next(old)))
                .unwrap_or_default();
            self.warp().registers.put_lane(i.d, l, old);
        }
        Ok(())
    }
}

fn extend(value: u64, bytes: u8) -> u64 {
    let by = 64 - u32::from(bytes) * 8;
    ((value << by) as i64 >> by) as u64
}

/// Reads a value. Blocks on other threads may write it at the same time, as on a device.
///
/// # Safety
/// `at` is readable for `bytes` bytes and aligned to them.
unsafe fn read(at: *const u8, bytes: u8, strong: bool) -> u64 {
    let order = if strong { Ordering::SeqCst } else { Ordering::Relaxed };
    let at = at.cast_mut();
    // SAFETY: the caller's promise.
    unsafe {
        match bytes {
            1 => AtomicU8::from_ptr(at).load(order).into(),
            2 => AtomicU16::from_ptr(at.cast()).load(order).into(),
            4 => AtomicU32::from_ptr(at.cast()).load(order).into(),
            _ => AtomicU64::from_ptr(at.cast()).load(order),
        }
    }
}

/// Writes a value.
///
/// # Safety
/// `at` is writable for `bytes` bytes and aligned to them.
unsafe fn write(at: *mut u8, bytes: u8, value: u64, strong: bool) {
    let order = if strong { Ordering::SeqCst } else { Ordering::Relaxed };
    // SAFETY: the caller's promise.
    unsafe {
        match bytes {
            1 => AtomicU8::from_ptr(at).store(value as u8, order),
            2 => AtomicU16::from_ptr(at.cast()).store(value as u16, order),
            4 => AtomicU32::from_ptr(at.cast()).store(value as u32, order),
            _ => AtomicU64::from_ptr(at.cast()).store(value, order),
        }
    }
}
