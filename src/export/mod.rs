//! A tuned model for others to load: a merged Hugging Face directory, or a PEFT adapter.
//!
//! Whatever is written is read back and its logits are compared before it counts as written.

pub mod peft;
