//! A product on the calling thread, by faer's GEMM: what all others are made of.

use faer::linalg::matmul::matmul as gemm;
use faer::reborrow::ReborrowMut;
use faer::{Accum, MatMut, MatRef, Par};

/// Rows of the memory behind a transposed a that are summed over at a time.
const RUN: usize = 64;

/// `c (+)= alpha a b` on the calling thread.
///
/// The library goes down the columns of a transposed a once for every few of its rows, as deep as it can. The lines that
/// it touches lie a whole row of memory apart, often a power of two, and displace each other in the cache before their
/// other elements are needed: [`RUN`] of them do not.
pub fn product(mut c: MatMut<f32>, add: bool, alpha: f32, a: MatRef<f32>, b: MatRef<f32>) {
    let depth = a.ncols();
    let run = if a.row_stride() == 1 { RUN } else { depth.max(1) };
    // Of no depth there is one product all the same: c may have to be cleared.
    for from in (0..depth.max(1)).step_by(run) {
        let count = run.min(depth - from);
        let accum = if add || from > 0 { Accum::Add } else { Accum::Replace };
        gemm(c.rb_mut(), accum, a.subcols(from, count), b.subrows(from, count), alpha, Par::Seq);
    }
    clear_upper_halves();
}

/// The GEMM library leaves the upper halves of the vector registers in use. On Intel's processors every scalar
/// floating-point instruction of the thread is many times slower from then on, until somebody clears them: here, where
/// products end, on the thread that computed them (`cargo bench --bench ops -- after` shows what it is worth).
fn clear_upper_halves() {
    #[cfg(target_arch = "x86_64")]
    if let Some(avx) = pulp::core_arch::x86::Avx::try_new() {
        avx._mm256_zeroupper();
    }
}
