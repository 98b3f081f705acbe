//! mbarriers, and bulk tensor copies that count their bytes on them.

use super::block::SHARED_BASE;
use super::turn::Turn;
use crate::fault::{Kind, Result, Stop};
use crate::ptx::program::{Instruction, ProxySpace};
use crate::races::block::Asker;

/// What our tensor maps hold; made by `cuTensorMapEncodeTiled`. Of matrices of 16-bit values.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Map {
    /// [`MAP_MAGIC`].
    pub magic: u64,
    /// The first element.
    pub base: u64,
    /// Columns and rows.
    pub size: [u64; 2],
    /// Bytes from a row to the next.
    pub row_bytes: u64,
    /// Columns and rows of a box.
    pub tile: [u32; 2],
    /// 3: 128 bytes; 0: none.
    pub swizzle: u32,
    /// 2.
    pub element_bytes: u32,
}

/// What a tensor map begins with.
pub const MAP_MAGIC: u64 = 0x7474_6d61_7031_3238;

/// An mbarrier, whose 64 bits in shared memory are nobody else's business.
#[derive(Debug)]
pub(super) struct Mbarrier {
    pub count: u32,
    pub pending: u32,
    pub bytes: i64,
    pub phase: u32,
    /// A fence has told the copy engine of its initialisation.
    pub known_to_copies: bool,
}

/// A bulk copy that was asked for.
pub(super) struct Bulk {
    w: usize,
    lane: usize,
    pc: u32,
    to: u32,
    map: u64,
    x: i32,
    y: i32,
    mbarrier: u32,
    asker: Option<Asker>,
}

impl Turn<'_, '_> {
    /// Calls `f` for each lane with the mbarrier's address and the second operand.
    fn each_mbarrier(
        &mut self,
        i: &Instruction,
        mask: u32,
        mut f: impl FnMut(&mut Self, usize, u32, u32) -> Result<()>,
    ) -> Result<()> {
        let r = &self.block.warps[self.w].registers;
        let (at, b) = (r.word(i.a).map(|a| a.wrapping_add(i.imm as u32)), *r.word(i.b));
        for l in (0..32).filter(|l| mask >> l & 1 != 0) {
            self.shared(at[l], 8, 8).and_then(|_| f(self, l, at[l], b[l])).map_err(|e| e.lane(l))?;
        }
        Ok(())
    }

    fn mbarrier(&mut self, at: u32) -> Result<&mut Mbarrier> {
        let message = || {
            Stop::new(
                Kind::Mbarrier,
                format!("no mbarrier was initialised at shared byte {}", at.wrapping_sub(SHARED_BASE) as i32),
            )
        };
        self.block.mbarriers.get_mut(&at).ok_or_else(message)
    }

    /// `mbarrier.init`.
    pub fn mbarrier_init(&mut self, i: &Instruction, mask: u32) -> Result<()> {
        self.each_mbarrier(i, mask, |t, lane, at, count| {
            if count == 0 || count >= 1 << 20 {
                return Err(Stop::new(Kind::Mbarrier, format!("an mbarrier of {count} arrivals")));
            }
            t.watch_shared(lane, (at - SHARED_BASE) as usize, 8, true)?;
            t.block
                .mbarriers
                .insert(at, Mbarrier { count, pending: count, bytes: 0, phase: 0, known_to_copies: false });
            if let Some(c) = &mut t.block.clocks {
                c.mbarrier_init(at);
            }
            Ok(())
        })
    }

    /// `mbarrier.arrive`, with or without `.expect_tx`.
    pub fn mbarrier_arrive(&mut self, i: &Instruction, mask: u32) -> Result<()> {
        let expects = i.op == crate::ptx::program::Op::MbarrierExpect;
        self.each_mbarrier(i, mask, |t, lane, at, bytes| {
            t.uses_mbarrier(lane, at)?;
            let w = t.w;
            let m = t.mbarrier(at)?;
            if m.pending == 0 {
                return Err(Stop::new(Kind::Mbarrier, format!("more than {} arrivals in a phase", m.count)));
            }
            m.pending -= 1;
            m.bytes += if expects { i64::from(bytes) } else { 0 };
            if let Some(c) = &mut t.block.clocks {
                c.arrive(w, lane, at);
            }
            t.finish_phase(at)
        })
    }

    /// That an mbarrier was initialised is something that others must learn of.
    fn uses_mbarrier(&mut self, lane: usize, at: u32) -> Result<()> {
        self.mbarrier(at)?;
        let (w, pc) = (self.w, self.warp().pc);
        let offset = (at - SHARED_BASE) as usize;
        match self.block.clocks.as_mut().map(|c| c.read(w, lane, offset, 8, pc)) {
            Some(Err((_, conflict))) => {
                Err(self.conflict("uses", format!("the mbarrier at shared byte {offset}"), &conflict))
            }
            _ => Ok(()),
        }
    }

    fn finish_phase(&mut self, at: u32) -> Result<()> {
        let m = self.mbarrier(at)?;
        if m.bytes.abs() >= 1 << 20 {
            return Err(Stop::new(Kind::Mbarrier, format!("{} bytes expected by an mbarrier", m.bytes)));
        }
        if m.pending == 0 && m.bytes == 0 {
            m.phase ^= 1;
            m.pending = m.count;
            if let Some(c) = &mut self.block.clocks {
                c.phase_completed(at);
            }
        }
        Ok(())
    }

    /// `mbarrier.try_wait.parity`.
    pub fn mbarrier_try_wait(&mut self, i: &Instruction, mask: u32) -> Result<()> {
        let mut done = 0;
        self.each_mbarrier(i, mask, |t, lane, at, parity| {
            t.uses_mbarrier(lane, at)?;
            if t.mbarrier(at)?.phase != parity & 1 {
                done |= 1u32 << lane;
                let w = t.w;
                if let Some(c) = &mut t.block.clocks {
                    c.waited(w, at);
                }
            }
            Ok(())
        })?;
        let warp = self.warp();
        warp.registers.put_predicate(i.d, done, mask);
        warp.spins |= done != mask;
        Ok(())
    }

    /// `fence.proxy.async`.
    pub fn proxy_fence(&mut self, mask: u32, space: ProxySpace) {
        if space != ProxySpace::Global {
            self.block.mbarriers.values_mut().for_each(|m| m.known_to_copies = true);
        }
        let w = self.w;
        if let Some(c) = &mut self.block.clocks {
            c.proxy_fence(w, mask, space);
        }
    }

    /// `cp.async.bulk.tensor`: notes the copy, which arrives some time later.
    pub fn ask_tensor_load(&mut self, i: &Instruction, mask: u32) -> Result<()> {
        let list = &self.worker.launch.program.lists[i.d as usize..][..5];
        let r = &self.block.warps[self.w].registers;
        let (to, map, x, y, mbarrier) =
            (*r.word(list[0]), r.long(list[1]), *r.word(list[2]), *r.word(list[3]), *r.word(list[4]));
        let (w, pc) = (self.w, self.warp().pc);
        for l in (0..32).filter(|l| mask >> l & 1 != 0) {
            let known = self.mbarrier(mbarrier[l]).map_err(|e| e.lane(l))?.known_to_copies;
            if !known {
                let message = "a bulk copy counts on an mbarrier whose initialisation no fence (mbarrier_init or proxy.async) told of";
                return Err(Stop::new(Kind::ProxyFence, message).lane(l));
            }
            self.uses_mbarrier(l, mbarrier[l]).map_err(|e| e.lane(l))?;
            let asker = self.block.clocks.as_mut().map(|c| c.ask(w, l, pc));
            let (x, y) = (x[l] as i32, y[l] as i32);
            self.block.bulk.push(Bulk {
                w,
                lane: l,
                pc,
                to: to[l],
                map: map[l],
                x,
                y,
                mbarrier: mbarrier[l],
                asker,
            });
        }
        Ok(())
    }

    /// A bulk copy arrives.
    pub fn tensor_load(&mut self, bulk: &Bulk) -> Result<()> {
        self.w = bulk.w;
        let pc = std::mem::replace(&mut self.warp().pc, bulk.pc);
        self.copy_box(bulk).map_err(|e| e.lane(bulk.lane))?;
        self.warp().pc = pc;
        Ok(())
    }

    fn copy_box(&mut self, bulk: &Bulk) -> Result<()> {
        let m = self.map(bulk.map)?;
        let bytes = m.tile[0] * m.tile[1] * m.element_bytes;
        let to = self.shared(bulk.to, bytes, 128)?;
        if m.swizzle == 3 && m.tile[0] * m.element_bytes != 128 {
            return Err(Stop::new(
                Kind::Descriptor,
                format!("a swizzle of 128 bytes and rows of {} bytes", m.tile[0] * m.element_bytes),
            ));
        }
        for r in 0..m.tile[1] {
            self.copy_row(bulk, &m, r)?;
        }
        if let (Some(asker), Some(c)) = (&bulk.asker, &mut self.block.clocks)
            && let Err((at, conflict)) = c.bulk_written(asker, to, bytes as usize, bulk.mbarrier)
        {
            return Err(self.conflict("writes", format!("shared byte {at}"), &conflict));
        }
        self.block.shared_written.mark(to, bytes as usize);
        self.mbarrier(bulk.mbarrier)?.bytes -= i64::from(bytes);
        self.finish_phase(bulk.mbarrier)
    }

    fn map(&mut self, at: u64) -> Result<Map> {
        let parameters = self.block.parameters.address();
        let size = self.worker.launch.parameters.len() as u64;
        if !at.is_multiple_of(64) {
            return Err(Stop::new(Kind::Descriptor, format!("a tensor map at {at:#x}")));
        }
        if !(parameters..=(parameters + size).saturating_sub(128)).contains(&at) {
            self.global(at, 128, 64)?;
        }
        // SAFETY: in the arguments, or in a live allocation, and aligned; a map is plain numbers.
        let m = unsafe { *(at as *const Map) };
        if m.magic != MAP_MAGIC || m.element_bytes != 2 || ![0, 3].contains(&m.swizzle) || m.tile[0] % 8 != 0
        {
            return Err(Stop::new(Kind::Descriptor, format!("no tensor map of 16-bit values at {at:#x}")));
        }
        Ok(m)
    }

    /// A row of a box: what lies outside of the matrix is zero.
    fn copy_row(&mut self, bulk: &Bulk, m: &Map, r: u32) -> Result<()> {
        let row = i64::from(bulk.y) + i64::from(r);
        let (first, end) =
            (i64::from(bulk.x).max(0), (i64::from(bulk.x) + i64::from(m.tile[0])).min(m.size[0] as i64));
        let mut values = vec![0u16; m.tile[0] as usize];
        if (0..m.size[1] as i64).contains(&row) && first < end {
            let at = m.base + row as u64 * m.row_bytes + first as u64 * 2;
            let count = (end - first) as usize;
            let from = self.global(at, count as u64 * 2, 2)?;
            self.global_is_written(at, count as u64 * 2)?;
            if let (Some(asker), Some(c), Some(races)) =
                (&bulk.asker, &self.block.clocks, &mut self.worker.races)
                && let Err((place, conflict)) =
                    races.read_by(&c.bulk_reader(asker, bulk.mbarrier), at, count as u64 * 2)
            {
                return Err(self.conflict("reads", self.name_global(place), &conflict));
            }
            let skip = (first - i64::from(bulk.x)) as usize;
            // SAFETY: `global` has found the bytes in a live allocation.
            unsafe { std::ptr::copy_nonoverlapping(from.cast::<u16>(), values[skip..].as_mut_ptr(), count) };
        }
        // A row is a whole number of 16-byte pieces, which stay together.
        for (c, piece) in values.chunks(8).enumerate() {
            let linear = bulk.to + r * m.tile[0] * 2 + c as u32 * 16;
            let offset = ((if m.swizzle == 3 { swizzled(linear) } else { linear }) - SHARED_BASE) as usize;
            let Some(to) = self.block.shared.get_mut(offset..offset + piece.len() * 2) else {
                return Err(Stop::new(Kind::Bounds, format!("a bulk copy to shared byte {offset}")));
            };
            to.chunks_exact_mut(2)
                .zip(piece)
                .for_each(|(to, value)| to.copy_from_slice(&value.to_le_bytes()));
        }
        Ok(())
    }
}

/// The 128-byte swizzle, which goes by address: 16-byte pieces are exchanged within eight rows of 128 bytes.
pub(super) fn swizzled(at: u32) -> u32 {
    at ^ (at >> 3 & 0x70)
}
