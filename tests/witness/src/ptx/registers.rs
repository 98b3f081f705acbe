//! nvcc's virtual registers are thousands, of which few are alive at a time: gives them few slots, by a linear scan over
//! their lives.

use super::program::{Class, Op, Program};
use std::collections::HashMap;

/// Calls `f(slot, class, written)` once for every word and long that an instruction reads or writes; an accumulator of
/// wgmma, which is both, counts as read.
pub fn operands(p: &mut Program, at: usize, f: &mut dyn FnMut(&mut u32, Class, bool)) {
    let i = &mut p.code[at];
    if let Op::Load | Op::Store = i.op {
        let x = &mut p.accesses[i.d as usize];
        f(&mut i.a, if x.wide { Class::Long } else { Class::Word }, false);
        for r in &mut x.registers[..x.count as usize] {
            f(r, if x.long { Class::Long } else { Class::Word }, i.op == Op::Load);
        }
        return;
    }
    let [d, a, b, c] = i.op.classes();
    let c_is_written =
        matches!(i.op, Op::Convert(super::program::Convert::Unpack16 | super::program::Convert::UnpackLong));
    let mut one = |slot: &mut u32, class: Class, written: bool| {
        if matches!(class, Class::Word | Class::Long) {
            f(slot, class, written);
        }
    };
    one(&mut i.a, a, false);
    one(&mut i.b, b, false);
    one(&mut i.c, c, c_is_written);
    let word = Class::Word;
    let list = |from: usize, count: usize| from..from + count;
    match i.op {
        Op::CopyAsync => one(&mut i.d, word, false),
        Op::WarpBarrier => one(&mut i.a, word, false),
        Op::Shuffle(_) => {
            p.lists[list(i.imm as usize, 2)].iter_mut().for_each(|r| one(r, word, false));
            one(&mut i.d, word, true);
        }
        Op::LdMatrix { count, .. } => {
            p.lists[list(i.d as usize, count.into())].iter_mut().for_each(|r| one(r, word, true))
        }
        Op::Mma => {
            p.lists[list(i.d as usize + 4, 10)].iter_mut().for_each(|r| one(r, word, false));
            p.lists[list(i.d as usize, 4)].iter_mut().for_each(|r| one(r, word, true));
        }
        Op::TensorLoad => {
            for (n, r) in p.lists[list(i.d as usize, 5)].iter_mut().enumerate() {
                one(r, if n == 1 { Class::Long } else { word }, false);
            }
        }
        Op::Wgmma => {
            p.lists[list(i.d as usize, i.accumulators())].iter_mut().for_each(|r| one(r, word, false))
        }
        _ => one(&mut i.d, d, true),
    }
}

/// A stretch of instructions without jumps into or out of it, and those that may follow.
pub(super) struct Stretch {
    pub start: usize,
    pub end: usize,
    pub next: Vec<usize>,
}

/// The stretches of a program.
pub(super) fn stretches(p: &Program) -> Vec<Stretch> {
    let n = p.code.len();
    let mut leads = vec![false; n + 1];
    leads[0] = true;
    for (at, i) in p.code.iter().enumerate() {
        if i.op == Op::Branch {
            leads[i.imm as usize] = true;
        }
        if matches!(i.op, Op::Branch | Op::Exit) {
            leads[at + 1] = true;
        }
    }
    let starts: Vec<usize> = (0..n).filter(|i| leads[*i]).collect();
    let of = |at: usize| starts.partition_point(|s| *s <= at) - 1;
    let stretch = |(b, start): (usize, &usize)| {
        let end = starts.get(b + 1).copied().unwrap_or(n);
        let last = p.code[end - 1];
        let mut next = Vec::new();
        if last.op == Op::Branch {
            next.push(of(last.imm as usize));
        }
        if (!matches!(last.op, Op::Branch | Op::Exit) || last.guard != 0) && end < n {
            next.push(b + 1);
        }
        Stretch { start: *start, end, next }
    };
    starts.iter().enumerate().map(stretch).collect()
}

/// The registers of a program, numbered as they occur, and where they are read and written.
struct Uses {
    slots: Vec<u32>,
    classes: Vec<Class>,
    /// Of each instruction: register, whether its old value is gone.
    events: Vec<Vec<(usize, bool)>>,
}

impl Uses {
    fn of(p: &mut Program, fixed: &HashMap<u32, Class>) -> Self {
        let mut index = HashMap::new();
        let mut uses =
            Self { slots: Vec::new(), classes: Vec::new(), events: Vec::with_capacity(p.code.len()) };
        for at in 0..p.code.len() {
            let guarded = p.code[at].guard != 0;
            let mut here = Vec::new();
            operands(p, at, &mut |slot, class, written| {
                if fixed.contains_key(slot) {
                    return;
                }
                let r = *index.entry(*slot).or_insert_with(|| {
                    uses.slots.push(*slot);
                    uses.classes.push(class);
                    uses.slots.len() - 1
                });
                // What a guard may keep from being written must survive.
                here.push((r, written && !guarded));
            });
            uses.events.push(here);
        }
        uses
    }
}

/// First and last instruction of each register's life.
fn lives(uses: &Uses, stretches: &[Stretch]) -> Vec<(usize, usize)> {
    let words = uses.slots.len().div_ceil(64);
    let mut used = vec![0u64; words * stretches.len()];
    let mut defined = used.clone();
    for (b, s) in stretches.iter().enumerate() {
        for (r, gone) in uses.events[s.start..s.end].iter().flatten() {
            let (word, bit) = (b * words + r / 64, 1u64 << (r % 64));
            if *gone {
                defined[word] |= bit;
            } else if defined[word] & bit == 0 {
                used[word] |= bit;
            }
        }
    }
    let (mut live_in, mut live_out) = (used.clone(), vec![0u64; words * stretches.len()]);
    let mut changed = true;
    while changed {
        changed = false;
        for (b, s) in stretches.iter().enumerate().rev() {
            for k in 0..words {
                let at = b * words + k;
                live_out[at] = s.next.iter().fold(0, |m, n| m | live_in[n * words + k]);
                let into = used[at] | live_out[at] & !defined[at];
                changed |= into != live_in[at];
                live_in[at] = into;
            }
        }
    }
    let mut lives = vec![(usize::MAX, 0usize); uses.slots.len()];
    let mut alive = |r: usize, at: usize| lives[r] = (lives[r].0.min(at), lives[r].1.max(at));
    for (b, s) in stretches.iter().enumerate() {
        for r in 0..uses.slots.len() {
            let (word, bit) = (b * words + r / 64, 1u64 << (r % 64));
            if live_in[word] & bit != 0 {
                alive(r, s.start);
            }
            if live_out[word] & bit != 0 {
                alive(r, s.end - 1);
            }
        }
        for at in s.start..s.end {
            uses.events[at].iter().for_each(|(r, _)| alive(*r, at));
        }
    }
    lives
}

/// Slots that are free for the next register.
#[derive(Default)]
struct Free {
    words: Vec<u32>,
    longs: Vec<u32>,
    slots: u32,
}

impl Free {
    fn take(&mut self, class: Class) -> u32 {
        let found = if class == Class::Long { self.longs.pop() } else { self.words.pop() };
        found.unwrap_or_else(|| {
            self.slots += 2;
            if class != Class::Long {
                self.words.push(self.slots - 1);
            }
            self.slots - 2
        })
    }

    fn give(&mut self, class: Class, slot: u32) {
        if class == Class::Long { &mut self.longs } else { &mut self.words }.push(slot);
    }
}

/// Renumbers the slots of a program.
pub fn allocate(p: &mut Program) {
    p.unfenced = super::fences::unfenced(p);
    // Constants and special registers stay alive.
    let mut fixed: HashMap<u32, Class> = HashMap::new();
    fixed.extend(p.words.iter().map(|(s, _)| (*s, Class::Word)));
    fixed.extend(p.longs.iter().map(|(s, _)| (*s, Class::Long)));
    fixed.extend(
        p.specials
            .iter()
            .map(|(name, s)| (*s, if name.ends_with(":long") { Class::Long } else { Class::Word })),
    );
    let uses = Uses::of(p, &fixed);
    let lives = lives(&uses, &stretches(p));

    let mut free = Free::default();
    let mut ordered: Vec<(u32, Class)> = fixed.into_iter().collect();
    ordered.sort_unstable_by_key(|f| f.0);
    let mut to: HashMap<u32, u32> =
        ordered.into_iter().map(|(slot, class)| (slot, free.take(class))).collect();
    let mut begins: Vec<usize> = (0..lives.len()).collect();
    let mut ends = begins.clone();
    begins.sort_by_key(|r| lives[*r].0);
    ends.sort_by_key(|r| lives[*r].1);
    let mut ended = ends.into_iter().peekable();
    for r in begins {
        // What ends where another begins keeps its slot until after.
        while let Some(e) = ended.next_if(|e| lives[*e].1 < lives[r].0) {
            free.give(uses.classes[e], to[&uses.slots[e]]);
        }
        to.insert(uses.slots[r], free.take(uses.classes[r]));
    }

    for at in 0..p.code.len() {
        operands(p, at, &mut |slot, _, _| *slot = to[slot]);
    }
    p.words.iter_mut().for_each(|(s, _)| *s = to[s]);
    p.longs.iter_mut().for_each(|(s, _)| *s = to[s]);
    p.specials.iter_mut().for_each(|(_, s)| *s = to[s]);
    p.slots = free.slots;
    if p.code.iter().any(|i| i.op == Op::Wgmma) {
        p.touched = (0..p.code.len()).map(|at| touched(p, at)).collect();
    }
}

fn touched(p: &mut Program, at: usize) -> Box<[u32]> {
    let mut slots = Vec::new();
    operands(p, at, &mut |slot, class, _| {
        slots.extend(*slot..*slot + if class == Class::Long { 2 } else { 1 })
    });
    slots.into()
}
