//! The machine that runs PTX: every family of instructions against Rust's arithmetic, every check against a small program
//! that breaks its rule, the project's kernels against f64, and planted bugs.

mod arguments;
mod arithmetic;
mod cases;
mod conversions;
mod copies;
mod kernels;
mod memory;
mod order;
mod planted;
mod rig;
mod tensor_cores;
mod warps;
