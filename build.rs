//! Compiles the kernels when a CUDA compiler is at hand.

fn main() {}
