//! The instructions of one part of a warp, one after the other.

use super::access::LOCAL_WINDOW;
use super::arithmetic::{self, Windows};
use super::turn::{Event, Turn};
use crate::fault::{Kind, Result, Stop};
use crate::ptx::program::{Instruction, Op, Scope, Shuffle, Vote};

impl Turn<'_, '_> {
    /// Executes from the warp's `pc` for the lanes of `mask`, until something comes up. Other parts may be met at `limit`.
    pub fn execute(&mut self, mask: u32, limit: u32, several: bool, budget: &mut i64) -> Result<Event> {
        let p = self.worker.launch.program;
        let windows = Windows { parameters: self.block.parameters.address(), local: LOCAL_WINDOW };
        loop {
            let warp = &mut self.block.warps[self.w];
            let pc = warp.pc;
            if pc >= limit {
                return Ok(Event::Meet);
            }
            let Some(i) = p.code.get(pc as usize) else {
                return Err(Stop::new(Kind::Instruction, "past the end"));
            };
            *budget -= 1;
            let r = &mut warp.registers;
            let active = r.guarded(i, mask);
            if !warp.in_flight.is_empty() {
                self.keeps_off(pc)?;
            }
            let r = &mut self.block.warps[self.w].registers;
            match i.op {
                Op::Branch => {
                    let to = i.imm as u32;
                    let warp = &mut self.block.warps[self.w];
                    if active != 0 && active != mask {
                        warp.pc += 1;
                        return Ok(Event::Branched { to, lanes: active });
                    }
                    warp.pc = if active == 0 { pc + 1 } else { to };
                    if active != 0 && to <= pc && (several || *budget <= 0) {
                        return Ok(if *budget <= 0 { Event::Tired } else { Event::Meet });
                    }
                    continue;
                }
                Op::Exit if active != 0 => {
                    self.block.warps[self.w].pc += 1;
                    return Ok(Event::Exited(active));
                }
                _ if active == 0 => {}
                Op::Word(op) => arithmetic::word(op, i, r, active),
                Op::Long(op) => arithmetic::long(op, i, r, active),
                Op::Float(op) => arithmetic::float(op, i, r, active),
                Op::Double(op) => arithmetic::double(op, i, r, active),
                Op::Logic(op) => arithmetic::logic(op, i, r, active),
                Op::Compare(of, cmp) => arithmetic::set_predicate(of, cmp, i, r, active),
                Op::Convert(op) => arithmetic::convert(op, i, r, active, &windows),
                Op::Load => self.load(i, active)?,
                Op::Store => self.store(i, active)?,
                Op::Nothing => {}
                _ => {
                    if let Some(event) = self.special(i, active, mask)? {
                        return Ok(event);
                    }
                }
            }
            let warp = &mut self.block.warps[self.w];
            warp.pc = pc + 1;
            if std::mem::take(&mut warp.spins) {
                return Ok(Event::Spun);
            }
        }
    }

    /// What is more than arithmetic. An event leaves the warp where it is, or moves it on itself.
    fn special(&mut self, i: &Instruction, active: u32, mask: u32) -> Result<Option<Event>> {
        if i.op.is_aligned() {
            if active != mask {
                return Err(Stop::new(
                    Kind::Divergence,
                    "an .aligned instruction under a guard that lanes differ in",
                ));
            }
            if mask != self.warp().live() {
                return Ok(Some(Event::Aligned));
            }
        }
        match i.op {
            Op::Atomic(op, order) => self.atomic(i, active, op, order)?,
            Op::Shuffle(mode) => return self.shuffle(i, active, mode),
            Op::Vote(mode) => return self.vote(i, active, mode),
            Op::Elect => return self.elect(i, active),
            Op::Barrier => {
                self.warp().pc += 1;
                return Ok(Some(Event::Barrier));
            }
            Op::WarpBarrier => {
                let members = self.warp().registers.word(i.a)[active.trailing_zeros() as usize];
                if !self.together(members, active)? {
                    return Ok(Some(Event::Aligned));
                }
                let w = self.w;
                if let Some(c) = &mut self.block.clocks {
                    c.warp_barrier(w);
                }
            }
            Op::Fence(scope, consistent) => {
                if scope != Scope::Block {
                    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
                }
                let w = self.w;
                if let Some(c) = &mut self.block.clocks {
                    c.fence(w, active, scope, consistent);
                }
            }
            Op::ProxyFence(space) => self.proxy_fence(active, space),
            Op::MbarrierInitFence => self.block.mbarriers.values_mut().for_each(|m| m.known_to_copies = true),
            Op::LdMatrix { count, transposed } => self.ldmatrix(i, usize::from(count), transposed)?,
            Op::Mma => self.mma(i),
            Op::CopyAsync => self.copy_async(i, active)?,
            Op::CopyCommit => self.warp().copies.commit(),
            Op::CopyWait => self.copy_wait(i, active)?,
            Op::MbarrierInit => self.mbarrier_init(i, active)?,
            Op::MbarrierArrive | Op::MbarrierExpect => self.mbarrier_arrive(i, active)?,
            Op::MbarrierTryWait => self.mbarrier_try_wait(i, active)?,
            Op::TensorLoad => self.ask_tensor_load(i, active)?,
            Op::WgmmaFence => {}
            Op::Wgmma => self.wgmma(i, active)?,
            Op::WgmmaCommit => self.warp().product_groups += 1,
            Op::WgmmaWait => return self.wgmma_wait(i),
            _ => return Err(Stop::new(Kind::Instruction, format!("{:?} is not executed", i.op))),
        }
        Ok(None)
    }

    /// Whether all live members of an instruction's mask are here.
    fn together(&mut self, members: u32, active: u32) -> Result<bool> {
        if active & !members != 0 {
            let message = format!("lanes {active:#010x} execute what {members:#010x} are members of");
            return Err(
                Stop::new(Kind::Divergence, message).lane((active & !members).trailing_zeros() as usize)
            );
        }
        Ok(members & self.warp().live() == active)
    }

    fn shuffle(&mut self, i: &Instruction, active: u32, mode: Shuffle) -> Result<Option<Event>> {
        let list = &self.worker.launch.program.lists[i.imm as usize..][..2];
        let r = &self.block.warps[self.w].registers;
        let (a, b, c, members) = (*r.word(i.a), *r.word(i.b), *r.word(list[0]), *r.word(list[1]));
        if !self.together(members[active.trailing_zeros() as usize], active)? {
            return Ok(Some(Event::Aligned));
        }
        let (mut values, mut inside) = (a, 0u32);
        for lane in (0..32u32).filter(|l| active >> l & 1 != 0) {
            let l = lane as usize;
            let (by, clamp, segment) = (b[l] & 31, c[l] & 31, c[l] >> 8 & 31);
            let (last, first) = (lane & segment | clamp & !segment, lane & segment);
            let (from, ok) = match mode {
                Shuffle::Up => (lane.wrapping_sub(by), lane >= by + last),
                Shuffle::Down => (lane + by, lane + by <= last),
                Shuffle::Xor => (lane ^ by, lane ^ by <= last),
                Shuffle::Index => (first | by & !segment, first | by & !segment <= last),
            };
            let from = if ok { from } else { lane };
            if active >> from & 1 == 0 {
                return Err(Stop::new(
                    Kind::Divergence,
                    format!("lane {lane} reads lane {from}, which takes no part"),
                )
                .lane(l));
            }
            values[l] = a[from as usize];
            inside |= u32::from(ok) << lane;
        }
        let r = &mut self.warp().registers;
        r.put(i.d, &values, active);
        r.put_predicate(i.c, inside, active);
        Ok(None)
    }

    fn vote(&mut self, i: &Instruction, active: u32, mode: Vote) -> Result<Option<Event>> {
        let r = &self.block.warps[self.w].registers;
        let (a, members) = (r.predicate(i.a) & active, r.word(i.b)[active.trailing_zeros() as usize]);
        if !self.together(members, active)? {
            return Ok(Some(Event::Aligned));
        }
        let r = &mut self.warp().registers;
        match mode {
            Vote::All => r.put_predicate(i.d, u32::from(a != active).wrapping_sub(1), active),
            Vote::Any => r.put_predicate(i.d, u32::from(a == 0).wrapping_sub(1), active),
            Vote::Ballot => r.put(i.d, &[a; 32], active),
        }
        Ok(None)
    }
}

impl Turn<'_, '_> {
    /// `elect.sync`: the last lane, as which one it is nobody may count on.
    fn elect(&mut self, i: &Instruction, active: u32) -> Result<Option<Event>> {
        let members = self.warp().registers.word(i.a)[active.trailing_zeros() as usize];
        if !self.together(members, active)? {
            return Ok(Some(Event::Aligned));
        }
        self.warp().registers.put_predicate(i.d, 1 << active.ilog2(), active);
        Ok(None)
    }
}

impl Op {
    /// Whether all lanes of a warp must execute it together. PTX lets lanes commit and wait for copies apart; nvcc does not.
    fn is_aligned(self) -> bool {
        matches!(
            self,
            Op::Barrier
                | Op::LdMatrix { .. }
                | Op::Mma
                | Op::CopyCommit
                | Op::CopyWait
                | Op::WgmmaFence
                | Op::Wgmma
                | Op::WgmmaCommit
                | Op::WgmmaWait
        )
    }
}
