//! `gems-engine config-schema`.

use crate::error::Result;

/// Prints the JSON schema of all settings.
pub fn print() -> Result<()> {
    let schema = schemars::schema_for!(crate::config::Config);
    println!("{}", serde_json::to_string_pretty(&schema).unwrap_or_default());
    Ok(())
}
