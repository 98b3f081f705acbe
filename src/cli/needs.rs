//! What a run will need, before its weights are loaded, and whether the machine has it.

use crate::backend::cuda::{Cuda, DeviceSpec};
use crate::backend::{Backend, DeviceInfo};
use crate::config::Config;
use crate::data::{Dataset, Encoder, StepSize};
use crate::error::{Error, Kind, Result};
use crate::gems::Knowledge;
use crate::model::{Architecture, Batch};
use crate::train::{Averaging, Batches, MemoryPlan, PlannedRun};
use std::path::Path;
use std::sync::Arc;

/// What a plan is made of.
pub struct Planned<'a> {
    pub config: &'a Config,
    pub data: &'a Dataset,
    pub encoder: Encoder<'a>,
    /// With the vocabulary that the model will have.
    pub architecture: &'a Architecture,
    /// First row of new item tokens.
    pub new_rows: Option<usize>,
    pub device: &'a DeviceInfo,
}

impl Planned<'_> {
    /// The passes of the largest step, and what they need.
    ///
    /// # Errors
    /// Settings that cannot be meant together.
    pub fn needs(&self, knowledge: Option<&Knowledge>) -> Result<(Vec<Batch>, MemoryPlan)> {
        let (config, data, labels) = (self.config, self.data, Averaging::Labels);
        let encoder = &self.encoder;
        let batches = Batches::new(encoder, &data.train, &data.tasks, &config.train, labels, config.seed)?;
        let batches = batches.longest()?.batches;
        let run = PlannedRun {
            architecture: self.architecture,
            settings: &config.tuner(),
            new_rows: self.new_rows,
            knowledge,
            batches: &batches,
            text_length: config.data.general_length,
            checkpointing: config.train.activation_checkpointing,
        };
        let counting: Arc<dyn Backend> = Cuda::open(DeviceSpec::counting(self.device))?;
        let mut memory = MemoryPlan::of(&run, &counting)?;
        if !self.device.launches_kernels() {
            memory.idle = 0;
        }
        Ok((batches, memory))
    }

    /// Fails where the machine has less memory than the run is planned with. What a GPU has shows when it is asked for it.
    ///
    /// # Errors
    /// How much is needed for what, how much there is, and the settings that need less.
    pub fn fits(&self) -> Result<()> {
        let available = available().filter(|_| !self.device.launches_kernels());
        // What cannot be planned is refused where it is done, in better words.
        let (Some(available), Ok((_, plan))) = (available, self.needs(None)) else { return Ok(()) };
        if plan.total() <= available {
            return Ok(());
        }
        let what = format!("the run needs more memory than the {} that are available here", size(available));
        Err(Error::new(Kind::Memory, what).at(&self.device.name).remedy(smaller(&plan, self.config)))
    }
}

/// The parts of a plan, and the settings that make them smaller.
pub fn smaller(plan: &MemoryPlan, config: &Config) -> String {
    let t = &config.train;
    let checkpointing =
        if t.activation_checkpointing { "" } else { ", train.activation_checkpointing = true" };
    format!(
        "the run is planned with weights {}, activations {}, workspace {}, method {}: {} in all; make it smaller \
         with train.micro_batch_tokens (now {}){checkpointing}, train.batch (now {}), gems.rank (now {}), or use \
         another device",
        size(plan.weights),
        size(plan.activations),
        size(plan.workspace),
        size(plan.method),
        size(plan.total()),
        t.micro_batch_tokens,
        StepSize::of(t).examples(),
        config.gems.rank,
    )
}

/// Bytes, to be read.
fn size(bytes: usize) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

/// Bytes of memory that this process may still take: what the system has available, or its control group if that is less.
/// `GEMS_MEMORY` (bytes) says it instead. `None`: unknown on this system.
pub fn available() -> Option<usize> {
    if let Some(said) = std::env::var("GEMS_MEMORY").ok().and_then(|text| text.parse().ok()) {
        return Some(said);
    }
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let system = line.split_whitespace().next()?.parse::<usize>().ok()? << 10;
    Some(group().map_or(system, |group| group.min(system)))
}

/// What the control group of this process leaves: of version 2 in the group that /proc names, or where a container mounts
/// its own; of version 1 at its usual place. Pages of files that are cached count as free.
fn group() -> Option<usize> {
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default().to_string();
    let second = ["memory.max", "memory.current", "inactive_file "];
    let first = ["memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "];
    let places = [
        (Path::new("/sys/fs/cgroup").join(own), second),
        (Path::new("/sys/fs/cgroup").to_path_buf(), second),
        (Path::new("/sys/fs/cgroup/memory").to_path_buf(), first),
    ];
    let left = |(place, [limit, usage, cached]): &(std::path::PathBuf, [&str; 3])| {
        let read = |name: &str| std::fs::read_to_string(place.join(name)).ok();
        let number = |name: &str| read(name)?.trim().parse::<usize>().ok();
        let statistics = read("memory.stat").unwrap_or_default();
        let cached = statistics.lines().find_map(|line| line.strip_prefix(cached)?.trim().parse().ok());
        Some(number(limit)?.saturating_sub(number(usage)?) + cached.unwrap_or(0))
    };
    places.iter().filter_map(left).min()
}
