//! Records, readers, prompts, tokenizer and item tokens, packing into task segments.
