//! [`crate::backend::Rope`].

use super::host;
use super::rows::each_row;
use crate::backend::Rope;
use std::sync::{Arc, Mutex, PoisonError};

/// Most tables of sines at once.
const TABLES: usize = 8;

/// `[sin, cos]` of every position and frequency, positions first.
type Turns = Arc<Vec<[f32; 2]>>;

/// Sines that were computed before: a run turns by the same angles in every layer, pass and step. One table for each set
/// of frequencies that a model has; of the latest few where these change with the length of a pass.
#[derive(Default)]
pub struct Sines(Mutex<Vec<(Vec<f32>, Turns)>>);

impl Sines {
    /// A table of `positions` positions at least.
    fn table(&self, frequencies: &[f32], positions: usize) -> Turns {
        let mut tables = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let at = tables.iter().position(|(known, _)| known == frequencies).unwrap_or_else(|| {
            if tables.len() == TABLES {
                tables.remove(0);
            }
            tables.push((frequencies.into(), Turns::default()));
            tables.len() - 1
        });
        let turns = &mut tables[at].1;
        let known = turns.len() / frequencies.len().max(1);
        if known < positions {
            let new = known..positions.next_power_of_two();
            let sines =
                |p: usize| frequencies.iter().map(move |f| <[f32; 2]>::from((p as f32 * f).sin_cos()));
            let more: Vec<[f32; 2]> = new.flat_map(sines).collect();
            *turns = Arc::new([turns.as_slice(), &more].concat());
        }
        turns.clone()
    }
}

pub fn rope(sines: &Sines, op: Rope) {
    let Rope { mut x, positions, inv_freq, heads, factor, inverse } = op;
    let (half, head_dim) = (inv_freq.cols, x.cols / heads);
    let most = positions.host.iter().max().map_or(0, |p| *p as usize + 1);
    let turns = sines.table(&host(inv_freq)[..half], most);
    let sign = if inverse { -1.0 } else { 1.0 };
    each_row!(&mut x, |i, row| {
        let turns = &turns[positions.host[i] as usize * half..][..half];
        for head in row.chunks_exact_mut(head_dim) {
            let (low, high) = head[..2 * half].split_at_mut(half);
            for ((a, b), [sin, cos]) in low.iter_mut().zip(high).zip(turns) {
                let (sin, cos) = (sign * sin * factor, cos * factor);
                (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
            }
        }
    });
}
