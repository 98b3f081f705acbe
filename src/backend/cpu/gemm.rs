//! A product on the calling thread, by faer's GEMM: what all others are made of.

use faer::linalg::matmul::matmul as gemm;
use faer::{Accum, MatMut, MatRef, Par};

/// `c (+)= alpha a b` on the calling thread.
pub fn product(c: MatMut<f32>, add: bool, alpha: f32, a: MatRef<f32>, b: MatRef<f32>) {
    gemm(c, if add { Accum::Add } else { Accum::Replace }, a, b, alpha, Par::Seq);
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
