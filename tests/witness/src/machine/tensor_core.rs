//! `ldmatrix` and `mma.sync`, by the fragment layouts of the PTX ISA. Sums are f32, in the order of k: a tensor core's own
//! order and rounding are not documented.

use super::arithmetic::of_bf16;
use super::turn::Turn;
use crate::fault::Result;
use crate::ptx::program::Instruction;

impl Turn<'_, '_> {
    /// `ldmatrix`: lane 8 m + r names row r of matrix m.
    pub fn ldmatrix(&mut self, i: &Instruction, count: usize, transposed: bool) -> Result<()> {
        let at = self.warp().registers.word(i.a).map(|a| a.wrapping_add(i.imm as u32));
        let mut rows = [[0u16; 8]; 32];
        for l in 0..count * 8 {
            let offset = self.shared(at[l], 16, 16).map_err(|e| e.lane(l))?;
            self.watch_shared(l, offset, 16, false)?;
            let bytes = &self.block.shared[offset..offset + 16];
            rows[l] = std::array::from_fn(|c| u16::from_le_bytes([bytes[2 * c], bytes[2 * c + 1]]));
        }
        for n in 0..count {
            let to = self.worker.launch.program.lists[i.d as usize + n];
            let values = std::array::from_fn(|l| {
                let (g, c) = (l / 4, l % 4 * 2);
                let (x, y) = match transposed {
                    false => (rows[n * 8 + g][c], rows[n * 8 + g][c + 1]),
                    true => (rows[n * 8 + c][g], rows[n * 8 + c + 1][g]),
                };
                u32::from(x) | u32::from(y) << 16
            });
            self.warp().registers.put(to, &values, u32::MAX);
        }
        Ok(())
    }

    /// `mma.sync.m16n8k16` of bf16.
    pub fn mma(&mut self, i: &Instruction) {
        let list = &self.worker.launch.program.lists[i.d as usize..][..14];
        let (d, a, b, c) = (&list[..4], &list[4..8], &list[8..10], &list[10..14]);
        let r = &mut self.block.warps[self.w].registers;
        let (mut fa, mut fb, mut fc) = ([[0f32; 16]; 16], [[0f32; 8]; 16], [[0f32; 8]; 16]);
        for (n, slot) in a.iter().enumerate() {
            for (l, v) in r.word(*slot).iter().enumerate() {
                let (row, k) = (l / 4 + n % 2 * 8, l % 4 * 2 + n / 2 * 8);
                (fa[row][k], fa[row][k + 1]) = (of_bf16(*v as u16), of_bf16((v >> 16) as u16));
            }
        }
        for (n, slot) in b.iter().enumerate() {
            for (l, v) in r.word(*slot).iter().enumerate() {
                let k = l % 4 * 2 + n * 8;
                (fb[k][l / 4], fb[k + 1][l / 4]) = (of_bf16(*v as u16), of_bf16((v >> 16) as u16));
            }
        }
        for (n, slot) in c.iter().enumerate() {
            for (l, v) in r.word(*slot).iter().enumerate() {
                fc[l / 4 + n / 2 * 8][l % 4 * 2 + n % 2] = f32::from_bits(*v);
            }
        }
        for (row, sums) in fa.iter().zip(&mut fc) {
            for (x, column) in row.iter().zip(&fb) {
                sums.iter_mut().zip(column).for_each(|(sum, y)| *sum += x * y);
            }
        }
        for (n, slot) in d.iter().enumerate() {
            let values = std::array::from_fn(|l| fc[l / 4 + n / 2 * 8][l % 4 * 2 + n % 2].to_bits());
            r.put(*slot, &values, u32::MAX);
        }
    }
}
