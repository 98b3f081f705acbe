//! Products that lack `wgmma.fence`: before the first product of a kernel, and between an instruction that touches accumulators
//! and the next product with them. Along any path of the program.

use super::program::{Op, Program};
use super::registers::{operands, stretches};
use std::collections::HashMap;

/// The products, as instructions, that need a fence and have none. Slots are still those of the virtual registers.
pub(super) fn unfenced(p: &mut Program) -> Vec<u32> {
    let mut index: HashMap<u32, usize> = HashMap::new();
    for i in p.code.iter().filter(|i| i.op == Op::Wgmma) {
        for slot in &p.lists[i.d as usize..][..i.accumulators()] {
            let next = index.len();
            index.entry(*slot).or_insert(next);
        }
    }
    let words = index.len().div_ceil(64);
    if words == 0 {
        return Vec::new();
    }
    // Accumulators that were touched since the last fence: all of them when the kernel begins.
    let touched: Vec<Vec<usize>> = (0..p.code.len()).map(|at| touched(p, at, &index)).collect();
    let stretches = stretches(p);
    let mut into = vec![vec![0u64; words]; stretches.len()];
    into[0].fill(u64::MAX);
    let mut found = Vec::new();
    let mut changed = true;
    while changed {
        (changed, found) = (false, Vec::new());
        for (b, s) in stretches.iter().enumerate() {
            let mut state = into[b].clone();
            for (at, touched) in touched.iter().enumerate().take(s.end).skip(s.start) {
                let has = |state: &[u64]| touched.iter().any(|r| state[r / 64] >> (r % 64) & 1 != 0);
                match p.code[at].op {
                    Op::WgmmaFence => state.fill(0),
                    Op::Wgmma if has(&state) => found.push(at as u32),
                    Op::Wgmma => {}
                    _ => touched.iter().for_each(|r| state[r / 64] |= 1 << (r % 64)),
                }
            }
            for next in &s.next {
                for (to, from) in into[*next].iter_mut().zip(&state) {
                    changed |= from & !*to != 0;
                    *to |= from;
                }
            }
        }
    }
    found
}

fn touched(p: &mut Program, at: usize, index: &HashMap<u32, usize>) -> Vec<usize> {
    let mut found = Vec::new();
    operands(p, at, &mut |slot, _, _| found.extend(index.get(slot)));
    found
}
