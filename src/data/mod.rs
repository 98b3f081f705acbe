//! Records, readers, prompts, tokenizer and item tokens, packing into task segments.
//!
//! A *data directory* holds
//!
//! | file | a row |
//! |---|---|
//! | `items.{jsonl,parquet}` | `{item, text?}` |
//! | `{train,valid,test}.{jsonl,parquet}` | `{task, user?, history[], query?, target[] or answer, negatives[]?, timestamp?}`, or `{task, text}` |
//! | `test-NAME.{jsonl,parquet}` | the same: one more named evaluation set |
//! | `general.txt`, `general.jsonl` | general text: a document a line, or `{text}` |
//!
//! Each may be packed (`.gz`, `.zst`) or cut into parts (`train-00000-of-00010.parquet`, `train/`).
//!
//! [`Dataset::load`] reads and checks it, [`Encoder`] turns a record into token ids, [`Sampler`]
//! decides the order (a pure function of seed and position), and [`pack`] lays the examples of a
//! step end to end, ordered by task.

mod balance;
pub(crate) mod columnar;
pub(crate) mod content;
mod dataset;
mod encode;
pub(crate) mod fault;
pub(crate) mod filenames;
mod files;
mod general;
mod kmeans;
mod markup;
mod pack;
mod parquet_file;
mod parquet_pages;
mod prompt;
mod record;
pub(crate) mod rows;
mod sampler;
mod semantic;
mod settings;
mod tokens;
mod vocabulary;

pub use balance::balance;
pub use dataset::Dataset;
pub(crate) use dataset::check_names;
pub use encode::{Encoder, Example, Tally};
pub use general::GeneralText;
pub use markup::Quotes;
pub use pack::{micro_batches, micro_batches_of, pack};
pub use prompt::{ChatTemplate, Prompts};
pub use record::{Catalogue, Record, Split};
pub use rows::{json_objects, lines_of, read_json_objects};
pub use sampler::{Pick, Sampler, StepSize};
pub use semantic::{SemanticIds, residual_kmeans};
pub use settings::{DataSettings, EndOfSequence, ItemIdentity, PromptPreset, SemanticSettings};
pub use vocabulary::{PromptSide, Vocabulary};
