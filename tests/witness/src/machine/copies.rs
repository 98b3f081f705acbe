//! `cp.async`: 16 bytes a lane from global to shared memory, there when they were waited for and not before.

use super::turn::Turn;
use crate::fault::{Kind, Result, Stop};
use crate::ptx::program::{Instruction, Order};
use crate::races::global::Does;

/// A copy of one lane.
#[derive(Clone, Copy)]
struct Copy16 {
    lane: usize,
    to: usize,
    from: u64,
    valid: u32,
    group: u32,
}

/// A warp's copies that are under way.
#[derive(Default)]
pub(super) struct Copies {
    pending: Vec<Copy16>,
    groups: u32,
}

impl Copies {
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    pub fn commit(&mut self) {
        self.groups += 1;
    }
}

impl Turn<'_, '_> {
    /// `cp.async`.
    pub fn copy_async(&mut self, i: &Instruction, mask: u32) -> Result<()> {
        let r = &self.block.warps[self.w].registers;
        let (to, from, valid) = (*r.word(i.d), r.long(i.a), *r.word(i.b));
        for lane in (0..32).filter(|l| mask >> l & 1 != 0) {
            let from = from[lane].wrapping_add(i.imm as u64);
            self.copy_of_lane(lane, to[lane], from, valid[lane]).map_err(|e| e.lane(lane))?;
        }
        Ok(())
    }

    fn copy_of_lane(&mut self, lane: usize, to: u32, from: u64, valid: u32) -> Result<()> {
        if valid > 16 {
            return Err(Stop::new(Kind::Instruction, format!("cp.async of {valid} bytes")));
        }
        if !from.is_multiple_of(16) {
            return Err(Stop::new(Kind::Misaligned, format!("cp.async from global address {from:#x}")));
        }
        let to = self.shared(to, 16, 16)?;
        if valid > 0 {
            self.global(from, valid.into(), 1)?;
            self.watch_global(lane, from, valid.into(), Does::Read, Order::WEAK, false)?;
        }
        let (w, pc, group) = (self.w, self.warp().pc, self.warp().copies.groups);
        if let Some(c) = &mut self.block.clocks
            && let Err((at, conflict)) = c.copy_asked(w, lane, to, pc, group)
        {
            return Err(self.conflict("writes (cp.async)", format!("shared byte {at}"), &conflict));
        }
        self.warp().copies.pending.push(Copy16 { lane, to, from, valid, group });
        Ok(())
    }

    /// `cp.async.wait_group`: as late as it may be, what was copied is there.
    pub fn copy_wait(&mut self, i: &Instruction, _mask: u32) -> Result<()> {
        let copies = &mut self.warp().copies;
        let done = copies.groups.saturating_sub(i.imm as u32);
        let (now, later) =
            std::mem::take(&mut copies.pending).into_iter().partition::<Vec<_>, _>(|c| c.group < done);
        copies.pending = later;
        for c in now {
            let mut piece = [0u8; 16];
            if c.valid > 0 {
                let from = self.global(c.from, c.valid.into(), 1).map_err(|e| e.lane(c.lane))?;
                // SAFETY: `global` has found the bytes in a live allocation.
                unsafe { std::ptr::copy_nonoverlapping(from, piece.as_mut_ptr(), c.valid as usize) };
            }
            self.block.shared[c.to..c.to + 16].copy_from_slice(&piece);
            self.block.shared_written.mark(c.to, 16);
        }
        let w = self.w;
        if let Some(c) = &mut self.block.clocks {
            c.copies_waited(w, done);
        }
        Ok(())
    }
}
