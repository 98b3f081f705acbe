//! The GPU's side of the house as far as it can be seen without one: doctor, images, errors, launches,
//! profiles, scripts up to the device boundary.

mod doctor;
mod faults;
mod launches;
mod nvtx;
mod scripts;

use assert_cmd::Command;

fn engine() -> Command {
    Command::cargo_bin("gems-engine").unwrap()
}

fn golden_model(name: &str) -> String {
    format!("{}/tests/golden/models/{name}", env!("CARGO_MANIFEST_DIR"))
}
