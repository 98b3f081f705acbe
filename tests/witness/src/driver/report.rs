//! What is said: refusals and faults at once, statistics when a context ends.

use super::Driver;
use super::settings::Settings;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;

/// What one kernel took.
#[derive(Default, Clone)]
pub struct Statistics {
    pub launches: u64,
    pub seconds: f64,
    pub warp_instructions: u64,
    pub lane_instructions: u64,
}

pub struct Report {
    log: Option<PathBuf>,
    pub messages: Vec<String>,
    /// Calls of each function.
    calls: BTreeMap<&'static str, u64>,
    pub kernels: BTreeMap<String, Statistics>,
    /// Bytes copied from the host to the device, and from it.
    pub crossed: [u64; 2],
}

impl Report {
    pub fn new(settings: &Settings) -> Self {
        Self {
            log: settings.log.clone(),
            messages: Vec::new(),
            calls: BTreeMap::new(),
            kernels: BTreeMap::new(),
            crossed: [0; 2],
        }
    }

    pub fn count(&mut self, function: &'static str) {
        *self.calls.entry(function).or_default() += 1;
    }

    /// A mistake: to the standard error output, and to the log.
    pub fn say(&mut self, kind: &str, what: &str) {
        let line = format!("witness: {kind}: {what}");
        eprintln!("{line}");
        if let Some(log) = &self.log {
            let opened = std::fs::OpenOptions::new().create(true).append(true).open(log);
            let written = opened.and_then(|mut file| writeln!(file, "{line}"));
            written.unwrap_or_else(|e| eprintln!("witness: {}: {e}", log.display()));
        }
        self.messages.push(line);
    }

    /// Something worth knowing that is no mistake.
    pub fn note(&mut self, what: &str) {
        let line = format!("witness: note: {what}");
        eprintln!("{line}");
        self.messages.push(line);
    }
}

impl Driver {
    /// Says what ran, if that was asked for.
    pub fn say_statistics(&self) {
        if !self.settings.report {
            return;
        }
        let mut total = Statistics::default();
        for (name, s) in &self.report.kernels {
            total.launches += s.launches;
            total.seconds += s.seconds;
            total.warp_instructions += s.warp_instructions;
            let rate = s.warp_instructions as f64 / s.seconds.max(1e-9) / 1e6;
            let lanes = s.lane_instructions as f64 / s.warp_instructions.max(1) as f64;
            eprintln!(
                "witness: {name:32} {:6} launches {:10.3} ms {:12} warp instructions {rate:6.1} M/s {lanes:5.1} lanes",
                s.launches,
                s.seconds * 1e3,
                s.warp_instructions
            );
        }
        let (launches, instructions) = (total.launches, total.warp_instructions as f64 / 1e9);
        eprintln!(
            "witness: {launches} launches, {:.3} s, {instructions:.3} G warp instructions",
            total.seconds
        );
        let [up, down] = self.report.crossed;
        eprintln!("witness: {up} bytes copied to the device, {down} from it");
        eprintln!("witness: at most {} MiB taken; calls: {:?}", self.heap.most() >> 20, self.report.calls);
    }
}
