//! Which accesses are ordered, by PTX's memory consistency model (PTX ISA, chapter 8).
//!
//! An access races with an earlier one when they conflict, nothing orders them and they are not strong with each other. Order
//! comes from the program, from `bar.sync`, `bar.warp.sync` and mbarriers, and between blocks from a release (an operation or a
//! fence before a strong write) that an acquire (an operation or a fence after a strong read) has read from, each in a scope
//! that includes the other. Sequentially consistent fences (`__threadfence`) also order what other threads of the block
//! did before them, across barriers. What is ordered by the generic proxy alone is not yet seen by bulk copies and wgmma:
//! that takes `fence.proxy.async`, executed in their block.
//!
//! Not checked: a generic read before an asynchronous write, which nobody fences; strong operations of different sizes on the
//! same bytes. What a lane acquires counts for its whole warp.
#![warn(missing_docs)]

pub mod block;
pub mod cell;
pub mod clock;
pub mod global;
pub mod shared;
