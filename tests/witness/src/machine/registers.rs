//! A warp's registers: slots of 32 lanes, predicates of a bit a lane. A value of 64 bits has its lower half in one slot and
//! its upper half in the next.

use crate::ptx::program::{Instruction, NEGATED, Program};

/// A value of each lane.
pub type Lanes<T> = [T; 32];

#[repr(align(64))]
#[derive(Clone, Copy)]
struct Slot(Lanes<u32>);

/// The registers of one warp.
pub struct Registers {
    slots: Vec<Slot>,
    predicates: Vec<u32>,
}

impl Registers {
    /// With the program's constants; all else holds a pattern that is no plausible value.
    pub fn new(p: &Program) -> Self {
        let mut r = Self {
            slots: vec![Slot([0xdead_beef; 32]); p.slots as usize + 1],
            predicates: vec![0; p.predicates as usize + 1],
        };
        p.words.iter().for_each(|(slot, bits)| r.slots[*slot as usize].0 = [*bits; 32]);
        p.longs.iter().for_each(|(slot, bits)| r.put_long(*slot, &[*bits; 32], u32::MAX));
        r
    }

    /// 32 bits of each lane.
    #[inline]
    pub fn word(&self, slot: u32) -> &Lanes<u32> {
        &self.slots[slot as usize].0
    }

    /// 64 bits of each lane.
    #[inline]
    pub fn long(&self, slot: u32) -> Lanes<u64> {
        let (low, high) = (&self.slots[slot as usize].0, &self.slots[slot as usize + 1].0);
        std::array::from_fn(|l| u64::from(low[l]) | u64::from(high[l]) << 32)
    }

    /// Writes the lanes of a mask.
    #[inline]
    pub fn put(&mut self, slot: u32, values: &Lanes<u32>, mask: u32) {
        let to = &mut self.slots[slot as usize].0;
        if mask == u32::MAX {
            *to = *values;
        } else {
            for l in 0..32 {
                to[l] = if mask >> l & 1 != 0 { values[l] } else { to[l] };
            }
        }
    }

    /// The same of 64 bits.
    #[inline]
    pub fn put_long(&mut self, slot: u32, values: &Lanes<u64>, mask: u32) {
        self.put(slot, &values.map(|v| v as u32), mask);
        self.put(slot + 1, &values.map(|v| (v >> 32) as u32), mask);
    }

    /// Writes one lane.
    #[inline]
    pub fn put_lane(&mut self, slot: u32, lane: usize, value: u32) {
        self.slots[slot as usize].0[lane] = value;
    }

    /// A bit a lane.
    #[inline]
    pub fn predicate(&self, p: u32) -> u32 {
        self.predicates[p as usize]
    }

    /// Writes the lanes of a mask.
    #[inline]
    pub fn put_predicate(&mut self, p: u32, values: u32, mask: u32) {
        let to = &mut self.predicates[p as usize];
        *to = *to & !mask | values & mask;
    }

    /// The lanes of a mask that an instruction's guard lets execute it.
    #[inline]
    pub fn guarded(&self, i: &Instruction, mask: u32) -> u32 {
        if i.guard == 0 {
            return mask;
        }
        let p = self.predicate((i.guard & !NEGATED) - 1);
        mask & if i.guard & NEGATED != 0 { !p } else { p }
    }
}
