//! Loads, stores, atomics, fences.

use super::{Decoder, Result, bits_of, unknown};
use crate::ptx::parse::Operand;
use crate::ptx::program::{Access, Atomic, Class, Op, Order, ProxySpace, Scope, Space};

fn scope(name: &str) -> Option<Scope> {
    Some(match name {
        "cta" => Scope::Block,
        "gpu" | "sys" => Scope::Device,
        _ => return None,
    })
}

/// Of `ld` and `st`: everything between the name and the type.
struct Suffixes {
    space: Option<Space>,
    count: usize,
    constant: bool,
    semantics: Option<&'static str>,
    scope: Option<Scope>,
}

fn suffixes(parts: &[&str], load: bool) -> Option<Suffixes> {
    let mut s = Suffixes { space: None, count: 1, constant: false, semantics: None, scope: None };
    for part in parts {
        match *part {
            "global" => s.space = Some(Space::Global),
            "shared" | "shared::cta" => s.space = Some(Space::Shared),
            "local" => s.space = Some(Space::Local),
            "param" if load => s.space = Some(Space::Parameter),
            "v2" => s.count = 2,
            "v4" => s.count = 4,
            "nc" if load => s.constant = true,
            "weak" => {}
            "volatile" => s.semantics = Some("volatile"),
            "relaxed" => s.semantics = Some("relaxed"),
            "acquire" if load => s.semantics = Some("acquire"),
            "release" if !load => s.semantics = Some("release"),
            // Where the value is cached changes nothing that the memory model promises.
            "ca" | "cg" | "cs" if load => {}
            "wb" | "cg" | "cs" if !load => {}
            other => s.scope = Some(scope(other)?),
        }
    }
    let scoped = matches!(s.semantics, Some("relaxed" | "acquire" | "release"));
    (scoped == s.scope.is_some()).then_some(s)
}

impl Suffixes {
    fn order(&self) -> Order {
        let scope = match self.semantics {
            None => Scope::Weak,
            Some("volatile") => Scope::Device,
            Some(_) => self.scope.unwrap_or(Scope::Device),
        };
        Order {
            scope,
            acquire: self.semantics == Some("acquire"),
            release: self.semantics == Some("release"),
        }
    }
}

impl Decoder<'_> {
    pub(super) fn load_store(&mut self, parts: &[&str], o: &[Operand]) -> Result<()> {
        let load = parts[0] == "ld";
        let [first, second] = o else { return unknown() };
        let kind = parts.last().copied().unwrap_or_default();
        let bits = bits_of(kind).filter(|b| *b >= 8).ok_or("no type")?;
        let Some(s) = suffixes(&parts[1..parts.len() - 1], load) else { return unknown() };
        let (address, data) = if load { (second, first) } else { (first, second) };
        let (a, wide, imm) = self.address(address)?;
        let data = match data {
            Operand::List(l) => l.clone(),
            one => vec![one.clone()],
        };
        if data.len() != s.count || s.count * bits as usize > 128 {
            return Err(format!("{} registers for {} values", data.len(), s.count));
        }
        // A register may be wider than what is loaded into it.
        let class_of = |d: &Self, r: &Operand| match r {
            Operand::Name(name) => d.register(name).map(|r| r.0),
            _ => None,
        };
        let long = class_of(self, &data[0]).map_or(bits == 64, |c| c == Class::Long);
        let mut registers = [0; 4];
        for (to, r) in registers.iter_mut().zip(&data) {
            *to = self.value(r, if long { Class::Long } else { Class::Word })?;
        }
        let (bytes, count, signed) = ((bits / 8) as u8, s.count as u8, kind.starts_with('s'));
        let (space, order, constant) = (s.space.unwrap_or(Space::Generic), s.order(), s.constant);
        self.program.accesses.push(Access {
            space,
            bytes,
            count,
            signed,
            long,
            wide,
            constant,
            order,
            registers,
        });
        let at = self.program.accesses.len() as u32 - 1;
        let i = self.emit(if load { Op::Load } else { Op::Store });
        (i.d, i.a, i.imm) = (at, a, imm);
        Ok(())
    }

    /// `atom` and `red` on 32 bits of global memory.
    pub(super) fn atomic(&mut self, parts: &[&str], o: &[Operand]) -> Result<()> {
        let reduction = parts[0] == "red";
        let mut order = Order { scope: Scope::Device, acquire: false, release: false };
        let mut rest = &parts[1..];
        let mut global = false;
        while let Some((part, tail)) = rest.split_first() {
            match *part {
                "relaxed" => {}
                "acquire" if !reduction => order.acquire = true,
                "release" => order.release = true,
                "acq_rel" if !reduction => (order.acquire, order.release) = (true, true),
                "global" => global = true,
                other => match scope(other) {
                    Some(s) => order.scope = s,
                    None => break,
                },
            }
            rest = tail;
        }
        let operation = match rest {
            ["add", "u32" | "s32"] => Atomic::Add,
            ["min", "s32"] => Atomic::MinS,
            ["max", "s32"] => Atomic::MaxS,
            ["min", "u32"] => Atomic::MinU,
            ["max", "u32"] => Atomic::MaxU,
            ["and", "b32"] => Atomic::And,
            ["or", "b32"] => Atomic::Or,
            ["xor", "b32"] => Atomic::Xor,
            ["exch", "b32"] if !reduction => Atomic::Exchange,
            ["cas", "b32"] if !reduction => Atomic::CompareAndSwap,
            _ => return unknown(),
        };
        let (to, operands) = if reduction { (None, o) } else { (o.first(), o.get(1..).unwrap_or_default()) };
        let values = if operation == Atomic::CompareAndSwap { 3 } else { 2 };
        if !global || operands.len() != values {
            return unknown();
        }
        let (a, wide, imm) = self.address(&operands[0])?;
        if !wide {
            return Err("an address of 32 bits".into());
        }
        let d = match to {
            Some(o) => self.value(o, Class::Word)?,
            None => self.take(Class::Word, 1),
        };
        let b = self.value(&operands[1], Class::Word)?;
        let c = operands.get(2).map_or(Ok(0), |o| self.value(o, Class::Word))?;
        let i = self.emit(Op::Atomic(operation, order));
        ([i.d, i.a, i.b, i.c], i.imm) = ([d, a, b, c], imm);
        Ok(())
    }

    pub(super) fn fence(&mut self, op: &str, o: &[Operand]) -> Result<()> {
        if !o.is_empty() {
            return unknown();
        }
        let op = match op {
            // Since sm_70 `membar` is another name of `fence.sc`.
            "membar.cta" | "fence.sc.cta" => Op::Fence(Scope::Block, true),
            "membar.gl" | "membar.sys" | "fence.sc.gpu" | "fence.sc.sys" => Op::Fence(Scope::Device, true),
            "fence.acq_rel.cta" => Op::Fence(Scope::Block, false),
            "fence.acq_rel.gpu" | "fence.acq_rel.sys" => Op::Fence(Scope::Device, false),
            "fence.proxy.async" => Op::ProxyFence(ProxySpace::Any),
            "fence.proxy.async.global" => Op::ProxyFence(ProxySpace::Global),
            "fence.proxy.async.shared::cta" => Op::ProxyFence(ProxySpace::Shared),
            "fence.mbarrier_init.release.cluster" => Op::MbarrierInitFence,
            _ => return unknown(),
        };
        self.emit(op);
        Ok(())
    }
}
