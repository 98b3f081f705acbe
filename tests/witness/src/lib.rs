//! A second witness for GPU kernels: runs the compiler's own PTX on the CPU, behind the CUDA driver's functions.
//!
//! [`ptx`] reads the text and makes a compact program of an entry; [`machine`] executes it, a launch at a time, and checks
//! every access; [`races`] knows which accesses are ordered, by PTX's memory consistency model; [`driver`] is the driver
//! library's functions on top of that.
#![allow(non_snake_case)]

pub mod driver;
pub mod fault;
pub mod machine;
pub mod ptx;
pub mod races;

pub use ptx::{decode, parse};
