//! gems-engine fine-tunes one language model for search and recommendation together.
//!
//! The method is GEMS, Gradient Multi-Subspace Tuning (arXiv 2601.09496): every layer's gradient is
//! decomposed into one shared and one task-specific low-rank subspace per task, and the updates are
//! kept out of the space in which the layer's general knowledge lives.
//!
//! Data flows one way, and so do the arrows between the modules below (each uses only those above it):
//!
//! ```text
//! records ─> prompts ─> packed batch ─> forward / backward ─> coordinates per subspace ─> null space
//!   data/                 data/            model/                gems/                      gems/
//!        ─> Adam ─> B ─> (refresh) ─> W ─> evaluate, export
//!          gems/          gems/            eval/    train/
//! ```
#![doc(html_no_source)]

pub mod error;
pub mod files;
pub mod random;

pub mod backend;
pub mod layers;

pub mod distributed;

pub mod gems;
pub mod model;

pub mod data;
pub mod eval;
pub mod export;
pub mod prepare;
pub mod report;
pub mod train;

pub mod config;
pub mod run;

pub mod race;

pub mod cli;
