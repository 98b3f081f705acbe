//! Which kernels a model's layers take on the GPUs here, or else on those that there are kernels for.

use super::{Check, pass, warn};
use crate::backend::cuda::architectures;
use crate::backend::cuda::probe::Facts;
use crate::backend::{DType, DeviceInfo};
use crate::cli::products::{self, LayerProducts, PassRows, PlannedProducts};
use crate::config::Config;
use crate::model::{Architecture, Layout};
use serde::Serialize;
use std::path::Path;

/// Tokens of the pass that is looked at, labels among them, and new item rows.
const TOKENS: usize = 8192;
const LABELS: usize = 64;
const ITEMS: usize = 1024;
/// Two tasks: search and recommendation.
const TASKS: usize = 2;

/// The products of a model's layers on devices that are alike.
#[derive(Serialize)]
pub struct OnDevice {
    device: String,
    /// Whether there is such a device, or at least kernels for it.
    there: &'static str,
    rank: usize,
    tokens: usize,
    /// By shape of layer.
    pub layers: Vec<LayerProducts>,
}

impl OnDevice {
    /// What the table below it is of.
    pub fn title(&self) -> String {
        let Self { device, there, rank, tokens, .. } = self;
        format!(
            "Products of the layers on {device} ({there}); {TASKS} tasks, gems.rank {rank}, {tokens} tokens:"
        )
    }
}

/// The products of a model's layers; nothing when it cannot be read, which another check says.
pub fn of(model: &Path, facts: &Facts) -> Vec<OnDevice> {
    let Ok(mut architecture) = Architecture::read(model) else { return Vec::new() };
    let narrowest = Layout::new(&architecture).sites.iter().map(|s| s.inputs).min().unwrap_or(1);
    let mut settings = Config::default().tuner();
    // Shared and tasks' directions together are twice the rank; multiples of 8 where there is room, of both.
    let room = narrowest / 2;
    settings.gems.rank = settings.gems.rank.min(if room < 16 { room.max(1) } else { room / 16 * 16 });
    let new_rows = Some(architecture.vocabulary);
    architecture.vocabulary += ITEMS;
    let rows = match architecture.is_encoder_decoder() {
        true => PassRows { encoder: TOKENS, decoder: LABELS, labels: LABELS },
        false => PassRows { encoder: 0, decoder: TOKENS, labels: LABELS },
    };
    let planned = PlannedProducts {
        architecture: &architecture,
        settings: &settings,
        tasks: TASKS,
        new_rows,
        rows,
        dtype: DType::BF16,
    };
    let mut found: Vec<OnDevice> = Vec::new();
    let (devices, there) = devices(facts);
    for (device, info) in devices {
        let Ok(layers) = LayerProducts::of(&planned, &info) else { continue };
        match found.iter_mut().find(|f| f.layers == layers) {
            Some(like) => like.device = format!("{}, {device}", like.device),
            None => found.push(OnDevice { device, there, rank: settings.gems.rank, tokens: TOKENS, layers }),
        }
    }
    found
}

/// The GPUs here; without any, one of each architecture that is built in, or that could be. And which of these it is.
fn devices(facts: &Facts) -> (Vec<(String, DeviceInfo)>, &'static str) {
    // Where nobody says: an H100's, an A100's.
    let usual = |image: &str| if image == "sm_90a" { 132 } else { 108 };
    let here = facts.gpus.iter().filter_map(|gpu| {
        let image = gpu.image.as_deref()?;
        let multiprocessors = gpu.multiprocessors.map_or(usual(image), |n| n as usize);
        Some((format!("cuda:{} {}", gpu.index, gpu.name), DeviceInfo::of_image(image, multiprocessors)))
    });
    let here: Vec<_> = here.collect();
    if !here.is_empty() {
        return (here, "here");
    }
    let built = architectures();
    let (images, there) = match built.is_empty() {
        true => (vec!["sm_80", "sm_90a"], "kernels not built in"),
        false => (built, "built in, no such GPU is here"),
    };
    let of = |image: &str| (image.to_string(), DeviceInfo::of_image(image, usual(image)));
    (images.into_iter().map(of).collect(), there)
}

/// Whether all of them run on tensor cores.
pub fn check(on: &OnDevice) -> Check {
    match products::slow(&on.layers) {
        None => pass("products", format!("all on tensor cores on {} ({})", on.device, on.there)),
        Some(slow) => warn(
            "products",
            format!("without tensor cores on {} ({}): {slow}", on.device, on.there),
            "tensor cores need rows of a multiple of 8 elements: choose ranks that are; widths belong to the model",
        ),
    }
}
