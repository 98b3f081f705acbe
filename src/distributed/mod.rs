//! One run in many processes: ranks that share out a step's examples, and what passes between them.
//!
//! Every rank holds the whole model and optimizer. A step is cut into `train.shards` leaves, contiguous leaves go to each
//! rank, and what the step's update depends on is summed over the leaves in the order of one fixed binary tree ([`Tree`]):
//! the sum does not depend on how many ranks there are. Existing engines move the bytes (a [`Communicator`]: MPI,
//! NCCL, or threads in tests); every addition is this program's own.
//!
//! Before anything is moved every rank says what it is about to do, in a small word that all gather ([`World`]). So ranks
//! that differ are named, and an error on one rank is everybody's error; nobody waits longer than a deadline.
//!
//! | file | what |
//! | --- | --- |
//! | `world` | what the rest of the program calls: sums, also of what is still computed, shared results, agreement, errors |
//! | `word`, `tree`, `told` | what a rank says before an operation; the order of additions; an error on its way |
//! | `communicator` | the seam to what moves bytes, and which memory it reaches |
//! | `threads`, `mpi`, `nccl` | ranks as threads of one process; as processes under an MPI library, or with a GPU each under NCCL, opened at run time |
//! | `nccl_beside_mpi` | processes under MPI with a GPU each: sums on GPUs through NCCL, everything else through MPI |
//! | `launcher`, `exit` | who started this process, from its environment; how it ends where a library does not |
//! | `settings` | section `[distributed]` |

mod communicator;
mod exit;
mod launcher;
mod mpi;
mod nccl;
mod nccl_beside_mpi;
mod settings;
mod threads;
mod told;
mod tree;
mod word;
mod world;

pub use communicator::{Communicator, Failure, Moved, OnWay, Parts, Passage};
pub use launcher::{Launcher, Means};
pub use mpi::{Mpi, found as found_mpi};
pub use nccl::{Nccl, found as found_nccl};
pub use nccl_beside_mpi::NcclBesideMpi;
pub use settings::DistributedSettings;
pub use threads::Threads;
pub use tree::{Tree, leaves_of};
pub use world::{Costs, Member, RunningSum, World};
