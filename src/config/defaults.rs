//! Defaults that follow from other settings: how a tuned model is kept near its base model.
//!
//! Nobody who gives general text and nothing else has to choose: the defaults of `[null_space]` and `[rehearsal]` are in
//! force. Whoever gives one of the settings of a null space chooses by hand, and what he does not name is off. So is
//! what has no meaning with the method: the published optimizer has the null space of inputs where nothing else is given,
//! and item rows alone have no layer to keep.

use crate::gems::NullSpaceSettings;
use toml::{Table, Value};

/// Settings of `[null_space]` that are about a projection (or the metric in its place).
const BY_HAND: [&str; 6] = ["side", "project", "criterion", "value", "room", "random"];

/// Completes what is given by what follows from it.
pub(super) fn complete(given: &mut Table) {
    let section = |name: &str| given.get(name).and_then(Value::as_table);
    let is = |section: Option<&Table>, key: &str, value: &str| {
        section.and_then(|s| s.get(key)).and_then(Value::as_str) == Some(value)
    };
    let by_hand = section("null_space").is_some_and(|s| BY_HAND.iter().any(|key| s.contains_key(*key)));
    let rows = is(section("gems"), "method", "rows");
    let published = is(section("gems"), "side", "published");
    if !(by_hand || rows || published) {
        return;
    }
    let side = if rows && !by_hand { "none" } else { "input" };
    let off = NullSpaceSettings::off();
    put(given, "null_space", "side", side.into());
    put(given, "null_space", "step_factors", off.step_factors.into());
    put(given, "null_space", "pull", off.pull.into());
    put(given, "rehearsal", "every", 0.into());
}

/// Sets what is not set.
fn put(given: &mut Table, section: &str, key: &str, value: Value) {
    let section = given.entry(section).or_insert_with(|| Value::Table(Table::new()));
    if let Value::Table(section) = section {
        section.entry(key).or_insert(value);
    }
}
