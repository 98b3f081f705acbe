//! The native CPU backend: f32, threads, SIMD through the GEMM library.
