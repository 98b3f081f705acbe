//! What rounds into tiles and multiplies them: the processor's own, or where it has none, loops.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use super::amx;
use super::{Order, Sums, Tile, portable};
use faer::MatRef;
use std::marker::PhantomData;

/// Whether this processor has tiles and the system lets the process use them.
pub fn available() -> bool {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    return amx::available();
    #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
    false
}

/// The calling thread's unit, made ready; at its end it is given back, so that a change of threads need not save it.
pub struct Unit {
    real: bool,
    here: PhantomData<*const ()>, // not on another thread
}

impl Unit {
    pub fn new() -> Self {
        let real = available();
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        if real {
            amx::configure();
        }
        Self { real, here: PhantomData }
    }

    /// Rounds up to 16 rows of up to 32 depths, of which rows or depths lie in one piece; zeros beyond.
    pub fn pack(&self, part: MatRef<f32>, order: Order, to: &mut Tile) {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        if self.real && amx::pack(part, order, to) {
            return;
        }
        portable::pack(part, order, to);
    }

    /// `sums = a b` of two lines of tiles each, all of one length.
    pub fn multiply(&self, a: (&[Tile], &[Tile]), b: (&[Tile], &[Tile]), sums: &mut Sums) {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        if self.real {
            return amx::multiply(a, b, sums);
        }
        portable::multiply(a, b, sums);
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        if self.real {
            amx::release();
        }
    }
}
