//! wgmma: products of a warpgroup's four warps, computed when they are waited for and not before.

use super::arithmetic::of_bf16;
use super::block::SHARED_BASE;
use super::bulk::swizzled;
use super::turn::{Event, Turn};
use crate::fault::{Kind, Result, Stop};
use crate::ptx::program::{Instruction, Op};
use crate::races::block::Asker;

/// A product that a warp has asked for.
pub(super) struct Product {
    /// Its accumulators in the program's lists, and how many they are.
    list: (u32, usize),
    /// Bit 0: A is transposed; bit 1: B.
    transposed: u32,
    a: u64,
    b: u64,
    group: u32,
    pc: u32,
    asker: Option<Asker>,
}

/// A matrix in shared memory, by its descriptor.
#[derive(Clone, Copy)]
struct Operand {
    start: u32,
    leading: u32,
    stride: u32,
    transposed: bool,
}

impl Operand {
    fn new(descriptor: u64, transposed: bool) -> Result<Self> {
        let bad = |what: &str| {
            Err(Stop::new(Kind::Descriptor, format!("matrix descriptor {descriptor:#x}: {what}")))
        };
        if descriptor >> 62 != 1 {
            return bad("not a swizzle of 128 bytes, which is all that is modelled");
        }
        if descriptor >> 49 & 7 != 0 {
            return bad("a base offset, which is not modelled");
        }
        if descriptor & !(3 << 62 | 7 << 49 | 0x3fff << 32 | 0x3fff << 16 | 0x3fff) != 0 {
            return bad("bits that mean nothing");
        }
        let field = |at: u32| ((descriptor >> at & 0x3fff) << 4) as u32;
        Ok(Self { start: field(0), leading: field(16), stride: field(32), transposed })
    }

    /// The address of a value of row (or column) `outer`: the canonical layouts of 16-bit values with a 128-byte swizzle.
    fn place(self, outer: u32, k: u32) -> u32 {
        let linear = if self.transposed {
            self.start + outer % 64 * 2 + outer / 64 * self.leading + k % 8 * 128 + k / 8 * self.stride
        } else {
            self.start + outer % 8 * 128 + outer / 8 * self.stride + k * 2
        };
        swizzled(linear)
    }
}

impl Turn<'_, '_> {
    /// `wgmma.mma_async`: notes the product.
    pub fn wgmma(&mut self, i: &Instruction, mask: u32) -> Result<()> {
        let r = &self.block.warps[self.w].registers;
        let (a, b) = (r.long(i.a), r.long(i.b));
        if mask != u32::MAX || !self.block.warps.len().is_multiple_of(4) {
            return Err(Stop::new(Kind::Divergence, "wgmma without all lanes of four warps"));
        }
        if self.worker.launch.program.unfenced.binary_search(&self.block.warps[self.w].pc).is_ok() {
            let message = "accumulators were touched since the last wgmma.fence, or there was none";
            return Err(Stop::new(Kind::Unfinished, message));
        }
        if a.iter().any(|x| *x != a[0]) || b.iter().any(|x| *x != b[0]) {
            return Err(Stop::new(Kind::Descriptor, "lanes with different descriptors"));
        }
        Operand::new(a[0], false)?;
        Operand::new(b[0], false)?;
        let (w, pc, group) = (self.w, self.warp().pc, self.warp().product_groups);
        let asker = self.block.clocks.as_mut().map(|c| c.ask(w, 0, pc));
        self.hold((i.d, i.accumulators()));
        self.warp().products.push(Product {
            list: (i.d, i.accumulators()),
            transposed: i.imm as u32,
            a: a[0],
            b: b[0],
            group,
            pc,
            asker,
        });
        Ok(())
    }

    /// Nobody is to touch the accumulators of a product under way.
    fn hold(&mut self, (list, count): (u32, usize)) {
        let p = self.worker.launch.program;
        let warp = &mut self.block.warps[self.w];
        warp.in_flight.resize(p.slots.div_ceil(64) as usize, 0);
        for slot in &p.lists[list as usize..][..count] {
            warp.in_flight[*slot as usize / 64] |= 1 << (slot % 64);
        }
    }

    /// That an instruction does not touch them; another product may.
    pub fn keeps_off(&mut self, pc: u32) -> Result<()> {
        let p = self.worker.launch.program;
        let flying = &self.block.warps[self.w].in_flight;
        let touches =
            |slot: &u32| flying.get(*slot as usize / 64).is_some_and(|bits| bits >> (slot % 64) & 1 != 0);
        if p.code[pc as usize].op != Op::Wgmma
            && p.touched.get(pc as usize).is_some_and(|t| t.iter().any(touches))
        {
            return Err(Stop::new(
                Kind::Unfinished,
                "accumulators are touched of a product that was not waited for",
            ));
        }
        Ok(())
    }

    /// `wgmma.wait_group`: as late as they may be, products are done. They are operations of four warps: done for all of
    /// them at once, and not before the last of them has asked.
    pub fn wgmma_wait(&mut self, i: &Instruction) -> Result<Option<Event>> {
        let w = self.w;
        let done = self.warp().product_groups.saturating_sub(i.imm as u32);
        let group = w / 4 * 4..w / 4 * 4 + 4;
        if !self.warp().products.is_empty()
            && group.clone().any(|o| self.block.warps[o].product_groups < done)
        {
            return Ok(Some(Event::Spun));
        }
        let (mut last, mut ended) = (0, Vec::new());
        for o in group.clone() {
            let Some(warp) = self.block.warps.get_mut(o) else { continue };
            let (now, later) =
                std::mem::take(&mut warp.products).into_iter().partition::<Vec<_>, _>(|p| p.group < done);
            warp.products = later;
            for p in &now {
                let time = self.product(o, p).inspect_err(|_| {
                    self.w = o;
                    self.block.warps[o].pc = p.pc;
                })?;
                last = last.max(time);
                ended.push(p.group);
            }
        }
        for o in group.start..group.end.min(self.block.warps.len()) {
            let warp = &mut self.block.warps[o];
            warp.product_times.extend(ended.iter().map(|group| (*group, last)));
            warp.in_flight.clear();
            let lists: Vec<(u32, usize)> = warp.products.iter().map(|p| p.list).collect();
            self.w = o;
            lists.into_iter().for_each(|list| self.hold(list));
        }
        self.w = w;
        let times = &mut self.warp().product_times;
        let known = times.iter().filter(|t| t.0 < done).map(|t| t.1).max();
        times.retain(|t| t.0 >= done);
        if let (Some(time), Some(c)) = (known, &mut self.block.clocks) {
            c.products_waited(w, time);
        }
        Ok(None)
    }

    /// One product of 16 of the 64 rows, those of warp `w`; when its reads were, by the block's clocks.
    fn product(&mut self, w: usize, p: &Product) -> Result<u32> {
        let (oa, ob) = (Operand::new(p.a, p.transposed & 1 != 0)?, Operand::new(p.b, p.transposed & 2 != 0)?);
        let first = (w as u32 % 4) * 16;
        let columns = p.list.1 * 2;
        let (mut a, mut b) = ([[0f32; 16]; 16], [[0f32; 256]; 16]);
        for k in 0..16 {
            for (m, row) in a.iter_mut().enumerate() {
                row[k] = self.operand(oa.place(first + m as u32, k as u32))?;
            }
            for (n, value) in b[k][..columns].iter_mut().enumerate() {
                *value = self.operand(ob.place(n as u32, k as u32))?;
            }
        }
        self.accumulate(w, p.list, &a, &b);
        let (Some(asker), Some(c)) = (&p.asker, &mut self.block.clocks) else { return Ok(0) };
        let of = |o: Operand, first: u32, count: u32| {
            (0..count)
                .flat_map(move |n| (0..16).map(move |k| ((o.place(first + n, k) - SHARED_BASE) as usize, 2)))
        };
        let ranges: Vec<(usize, usize)> = of(oa, first, 16).chain(of(ob, 0, columns as u32)).collect();
        match c.products_read(w, asker, &ranges) {
            Ok(time) => Ok(time),
            Err((at, conflict)) => Err(self.conflict("reads", format!("shared byte {at}"), &conflict)),
        }
    }

    fn operand(&self, at: u32) -> Result<f32> {
        let offset = at.wrapping_sub(SHARED_BASE) as usize;
        let Some(bytes) = self.block.shared.get(offset..offset + 2) else {
            return Err(Stop::new(
                Kind::Bounds,
                format!("wgmma reads shared byte {} of {}", offset as i32, self.block.shared.len()),
            ));
        };
        let value = of_bf16(u16::from_le_bytes([bytes[0], bytes[1]]));
        self.shared_is_written(offset, 2)?;
        Ok(value)
    }

    fn accumulate(
        &mut self,
        w: usize,
        (list, count): (u32, usize),
        a: &[[f32; 16]; 16],
        b: &[[f32; 256]; 16],
    ) {
        let list = &self.worker.launch.program.lists[list as usize..][..count];
        let r = &mut self.block.warps[w].registers;
        for (row, values) in a.iter().enumerate() {
            let (half, g) = (row / 8, row % 8);
            let place = |n: usize| (list[n / 8 * 4 + half * 2 + n % 2], g * 4 + n % 8 / 2);
            let mut sums = [0f32; 256];
            let sums = &mut sums[..count * 2];
            for (n, sum) in sums.iter_mut().enumerate() {
                let (slot, lane) = place(n);
                *sum = f32::from_bits(r.word(slot)[lane]);
            }
            for (x, column) in values.iter().zip(b) {
                sums.iter_mut().zip(column).for_each(|(sum, y)| *sum += x * y);
            }
            for (n, sum) in sums.iter().enumerate() {
                let (slot, lane) = place(n);
                r.put_lane(slot, lane, sum.to_bits());
            }
        }
    }
}
