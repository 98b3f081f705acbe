//! What a run will need, before its weights are loaded, and whether the machine has it.

use super::ranks;
use crate::backend::cuda::{Cuda, DeviceSpec};
use crate::backend::{Backend, DeviceInfo};
use crate::config::{Config, Device};
use crate::data::{Dataset, Encoder, StepSize};
use crate::error::{Error, Kind, Result};
use crate::gems::{Knowledge, NullSpaceSettings};
use crate::model::{Architecture, Batch, Model};
use crate::train::{
    Averaging, Batches, KnowledgePass, MemoryPlan, PlannedRun, largest_knowledge, planned_peak,
};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

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
            leaves: match config.train.shards {
                0 | 1 => 0,
                shards => ranks::world().leaves(shards).len().max(1),
            },
            overlaps: ranks::world().wants_overlap(self.device),
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
        // What cannot be planned is refused where it is done, in better words.
        let Ok((_, plan)) = self.needs(None) else { return Ok(()) };
        let available = available().filter(|_| !self.device.launches_kernels());
        if self.config.device == Device::Auto {
            let there = available.map_or(String::new(), |there| format!(", {} are available", size(there)));
            let (name, needed) = (&self.device.name, size(plan.total()));
            super::say(&format!("device auto is {name}: the run is planned with {needed}{there}"));
        }
        let Some(available) = available.filter(|available| plan.total() > *available) else { return Ok(()) };
        let what = format!("the run needs more memory than the {} that are available here", size(available));
        Err(Error::new(Kind::Memory, what).at(&self.device.name).remedy(smaller(&plan, self.config)))
    }
}

/// Learning what a base model knows: from these texts, with so many rows of the vocabulary its own.
pub struct PlannedKnowledge<'a> {
    pub architecture: &'a Architecture,
    pub device: &'a DeviceInfo,
    pub settings: &'a NullSpaceSettings,
    pub chunks: &'a [Vec<u32>],
    pub vocabulary: usize,
}

impl PlannedKnowledge<'_> {
    /// The most memory that it holds at once, weights included, and that of the basis on the host.
    ///
    /// # Errors
    /// Settings that cannot be meant together.
    pub fn needs(&self) -> Result<(usize, usize)> {
        let counting: Arc<dyn Backend> = Cuda::open(DeviceSpec::counting(self.device))?;
        let outline = Model::outline(self.architecture.clone(), counting)?;
        let (settings, chunks, vocabulary) = (self.settings, self.chunks, self.vocabulary);
        let (model, seed, partial, interrupted) = (&outline, 0, None, &AtomicBool::new(false));
        let pass = KnowledgePass { model, settings, chunks, vocabulary, seed, partial, interrupted };
        Ok((planned_peak(&pass)?, largest_knowledge(&outline, settings).bytes()))
    }

    /// Fails where the machine has less memory than that.
    ///
    /// # Errors
    /// How much is needed, how much there is, and the settings that need less.
    pub fn fits(&self) -> Result<()> {
        let available = available().filter(|_| !self.device.launches_kernels());
        let (Some(available), Ok((pass, held))) = (available, self.needs()) else { return Ok(()) };
        if pass + held <= available {
            return Ok(());
        }
        let (there, pass, held) = (size(available), size(pass), size(held));
        let what = format!(
            "learning the knowledge basis needs more memory than the {there} that are available here"
        );
        Err(Error::new(Kind::Memory, what).at(&self.device.name).remedy(format!(
            "it is planned with {pass} at once and {held} for what it learns; it takes less with fewer \
             null_space.directions, and with null_space.gradient_tokens = 0 no backward pass"
        )))
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
