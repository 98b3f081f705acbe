//! A tuned model for others to load: a merged Hugging Face directory, or a PEFT adapter.
//!
//! Whatever is written is read back and its logits are compared before it counts as written.

mod card;
mod merged;
pub mod peft;

pub use card::{Card, Example};
pub use merged::{logit_difference, write_merged};
