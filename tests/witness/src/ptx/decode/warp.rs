//! What a warp, a block or a warpgroup does together, and what goes on beside it: barriers, shuffles, tensor cores, copies.

use super::{Decoder, Result, integer, unknown};
use crate::ptx::parse::Operand;
use crate::ptx::program::{Class, Op, Shuffle, Vote};

const TENSOR_LOAD: &str = "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes";

impl Decoder<'_> {
    pub(super) fn warp_wide(&mut self, op: &str, parts: &[&str], o: &[Operand]) -> Result<()> {
        match (op, o) {
            ("bra" | "bra.uni", [Operand::Name(label)]) => {
                let at = self.program.code.len();
                self.innermost()?.jumps.push((at, label.clone()));
                self.emit(Op::Branch);
            }
            ("ret" | "exit", []) => drop(self.emit(Op::Exit)),
            ("bar.sync" | "barrier.sync.aligned", [Operand::Int(0)]) => drop(self.emit(Op::Barrier)),
            ("bar.warp.sync", [members]) => {
                let a = self.value(members, Class::Word)?;
                self.emit(Op::WarpBarrier).a = a;
            }
            (
                "prefetch.tensormap" | "setmaxnreg.inc.sync.aligned.u32" | "setmaxnreg.dec.sync.aligned.u32",
                [_],
            ) => {
                self.emit(Op::Nothing);
            }
            ("elect.sync", [Operand::Pair(leader, elected), members]) if matches!(&**leader, Operand::Name(n) if n == "_") =>
            {
                let (d, a) = (self.value(elected, Class::Predicate)?, self.value(members, Class::Word)?);
                let i = self.emit(Op::Elect);
                (i.d, i.a) = (d, a);
            }
            _ if parts[0] == "shfl" => return self.shuffle(op, o),
            _ if parts[0] == "vote" => return self.vote(op, o),
            _ if parts[0] == "ldmatrix" => return self.ldmatrix(parts, o),
            ("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", [d, a, b, c]) => {
                let mut list = Vec::new();
                for (part, count) in [(d, 4), (a, 4), (b, 2), (c, 4)] {
                    let slots = self.words(part)?;
                    if slots.len() != count {
                        return unknown();
                    }
                    list.extend(slots);
                }
                let d = self.list(&list);
                self.emit(Op::Mma).d = d;
            }
            _ => return unknown(),
        }
        Ok(())
    }

    fn shuffle(&mut self, op: &str, o: &[Operand]) -> Result<()> {
        let mode = match op {
            "shfl.sync.bfly.b32" => Shuffle::Xor,
            "shfl.sync.up.b32" => Shuffle::Up,
            "shfl.sync.down.b32" => Shuffle::Down,
            "shfl.sync.idx.b32" => Shuffle::Index,
            _ => return unknown(),
        };
        let [to, a, b, clamp, members] = o else { return unknown() };
        let (d, c) = match to {
            Operand::Pair(d, p) => (self.value(d, Class::Word)?, self.value(p, Class::Predicate)?),
            d => (self.value(d, Class::Word)?, self.take(Class::Predicate, 1)),
        };
        let (a, b) = (self.value(a, Class::Word)?, self.value(b, Class::Word)?);
        let list = [self.value(clamp, Class::Word)?, self.value(members, Class::Word)?];
        let list = self.list(&list);
        let i = self.emit(Op::Shuffle(mode));
        ([i.d, i.a, i.b, i.c], i.imm) = ([d, a, b, c], list.into());
        Ok(())
    }

    fn vote(&mut self, op: &str, o: &[Operand]) -> Result<()> {
        let mode = match op {
            "vote.sync.all.pred" => Vote::All,
            "vote.sync.any.pred" => Vote::Any,
            "vote.sync.ballot.b32" => Vote::Ballot,
            _ => return unknown(),
        };
        self.plain(Op::Vote(mode), 0, o)
    }

    fn ldmatrix(&mut self, parts: &[&str], o: &[Operand]) -> Result<()> {
        let (count, transposed) = match parts {
            ["ldmatrix", "sync", "aligned", "m8n8", x, rest @ ..] => {
                let transposed = match rest {
                    ["trans", "shared" | "shared::cta", "b16"] => true,
                    ["shared" | "shared::cta", "b16"] => false,
                    _ => return unknown(),
                };
                match *x {
                    "x1" => (1, transposed),
                    "x2" => (2, transposed),
                    "x4" => (4, transposed),
                    _ => return unknown(),
                }
            }
            _ => return unknown(),
        };
        let [to, address] = o else { return unknown() };
        let list = self.words(to)?;
        if list.len() != count {
            return unknown();
        }
        let (a, imm) = self.shared_address(address)?;
        let d = self.list(&list);
        let i = self.emit(Op::LdMatrix { count: count as u8, transposed });
        (i.d, i.a, i.imm) = (d, a, imm);
        Ok(())
    }

    pub(super) fn copy(&mut self, op: &str, o: &[Operand]) -> Result<()> {
        match (op, o) {
            ("cp.async.commit_group", []) => drop(self.emit(Op::CopyCommit)),
            ("cp.async.wait_group", [n]) => {
                let n = integer(Some(n))?;
                self.emit(Op::CopyWait).imm = n;
            }
            (
                "cp.async.cg.shared.global" | "cp.async.cg.shared::cta.global",
                [to, from, Operand::Int(16), valid],
            ) => {
                let ((d, 0), (a, true, imm)) = (self.shared_address(to)?, self.address(from)?) else {
                    return unknown();
                };
                let b = self.value(valid, Class::Word)?;
                let i = self.emit(Op::CopyAsync);
                (i.d, i.a, i.b, i.imm) = (d, a, b, imm);
            }
            (TENSOR_LOAD, [to, Operand::Tensor(map, at), bar]) if at.len() == 2 => {
                let ((to, 0), (bar, 0)) = (self.shared_address(to)?, self.shared_address(bar)?) else {
                    return unknown();
                };
                let map = self.value(map, Class::Long)?;
                let (x, y) = (self.value(&at[0], Class::Word)?, self.value(&at[1], Class::Word)?);
                let d = self.list(&[to, map, x, y, bar]);
                self.emit(Op::TensorLoad).d = d;
            }
            _ => return unknown(),
        }
        Ok(())
    }

    pub(super) fn mbarrier(&mut self, op: &str, o: &[Operand]) -> Result<()> {
        let (op, address, value) = match (op, o) {
            ("mbarrier.init.shared::cta.b64" | "mbarrier.init.shared.b64", [at, count]) => {
                (Op::MbarrierInit, at, Some(count))
            }
            // The state that it returns is not modelled: `_`.
            ("mbarrier.arrive.shared::cta.b64", [Operand::Name(state), at]) if state == "_" => {
                (Op::MbarrierArrive, at, None)
            }
            ("mbarrier.arrive.expect_tx.shared::cta.b64", [Operand::Name(state), at, bytes])
                if state == "_" =>
            {
                (Op::MbarrierExpect, at, Some(bytes))
            }
            ("mbarrier.try_wait.parity.shared::cta.b64", [_, at, parity]) => {
                (Op::MbarrierTryWait, at, Some(parity))
            }
            _ => return unknown(),
        };
        let d = if op == Op::MbarrierTryWait { self.value(&o[0], Class::Predicate)? } else { 0 };
        let (a, imm) = self.shared_address(address)?;
        let b = value.map_or(Ok(0), |v| self.value(v, Class::Word))?;
        let i = self.emit(op);
        (i.d, i.a, i.b, i.imm) = (d, a, b, imm);
        Ok(())
    }

    pub(super) fn wgmma(&mut self, op: &str, o: &[Operand]) -> Result<()> {
        match (op, o) {
            ("wgmma.fence.sync.aligned", []) => drop(self.emit(Op::WgmmaFence)),
            ("wgmma.commit_group.sync.aligned", []) => drop(self.emit(Op::WgmmaCommit)),
            ("wgmma.wait_group.sync.aligned", [n]) => {
                let n = integer(Some(n))?;
                self.emit(Op::WgmmaWait).imm = n;
            }
            (_, [c, a, b, Operand::Int(1), Operand::Int(1), Operand::Int(1), ta, tb]) => {
                let columns: i64 = match op {
                    "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16" => 64,
                    "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16" => 128,
                    "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16" => 256,
                    _ => return unknown(),
                };
                let list = self.words(c)?;
                if list.len() as i64 * 2 != columns {
                    return unknown();
                }
                let (a, b) = (self.value(a, Class::Long)?, self.value(b, Class::Long)?);
                let (ta, tb) = (integer(Some(ta))?, integer(Some(tb))?);
                if !(0..=1).contains(&ta) || !(0..=1).contains(&tb) {
                    return unknown();
                }
                let d = self.list(&list);
                let i = self.emit(Op::Wgmma);
                (i.d, i.a, i.b, i.imm) = (d, a, b, ta | tb << 1 | columns << 2);
            }
            _ => return unknown(),
        }
        Ok(())
    }
}
