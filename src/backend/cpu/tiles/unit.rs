//! What rounds into tiles and multiplies them: the processor's own, or where it has none, loops.

use super::{Sums, Tile, amx, portable};
use std::marker::PhantomData;

/// Whether this processor has tiles and the system lets the process use them.
pub fn available() -> bool {
    amx::available()
}

/// The calling thread's unit, made ready; at its end it is given back, so that a change of threads need not save it.
pub struct Unit {
    real: bool,
    here: PhantomData<*const ()>, // not on another thread
}

impl Unit {
    pub fn new() -> Self {
        let real = available();
        if real {
            amx::configure();
        }
        Self { real, here: PhantomData }
    }

    /// Rounds a row into a line of tiles that lie one behind the other, 32 depths each; zeros beyond its last.
    pub fn row(&self, values: &[f32], line: usize, to: &mut [Tile]) {
        if self.real {
            return amx::row(values, line, to);
        }
        portable::row(values, line, to);
    }

    /// Rounds two depths into a line of tiles, 16 rows each; zeros beyond the last.
    pub fn pair<'a>(&self, depths: [&[f32]; 2], line: usize, to: impl Iterator<Item = &'a mut Tile>) {
        if self.real {
            return amx::pair(depths, line, to);
        }
        portable::pair(depths, line, to);
    }

    /// Makes lines of rows those of pairs of depths, or the other way round.
    pub fn turn_over(&self, tile: &mut Tile) {
        if self.real {
            return amx::turn_over(tile);
        }
        portable::turn_over(tile);
    }

    /// `sums = a b` of two lines of tiles each, all of one length.
    pub fn multiply(&self, a: (&[Tile], &[Tile]), b: (&[Tile], &[Tile]), sums: &mut Sums) {
        if self.real {
            return amx::multiply(a, b, sums);
        }
        portable::multiply(a, b, sums);
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        if self.real {
            amx::release();
        }
    }
}
