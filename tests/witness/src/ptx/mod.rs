//! PTX, from text to a program that the machine executes.
//!
//! [`parse`] knows the grammar that nvcc writes, [`decode`] the instructions, [`registers`] packs nvcc's thousands of
//! virtual registers into few. What none of them knows is an error that names the line.
#![warn(missing_docs)]

pub mod decode;
mod fences;
pub mod op;
pub mod parse;
pub mod program;
pub mod registers;
