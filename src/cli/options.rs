//! Options that several commands share.

use crate::config::Layer;
use crate::error::Result;
use clap::Args;
use std::path::PathBuf;

/// Where settings come from: preset < file < `--set` < flags.
#[derive(Args, Debug, Default)]
pub struct SettingsArgs {
    /// Settings from a TOML file (`gems-engine config-schema` prints all there are).
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// One setting, such as `--set gems.rank=16`. May be repeated; wins over the file.
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

impl SettingsArgs {
    /// The layers of the file and of every `--set`, in that order.
    pub fn layers(&self) -> Result<Vec<Layer>> {
        let mut layers = Vec::new();
        if let Some(path) = &self.config {
            layers.push(Layer::file(path)?);
        }
        for assignment in &self.set {
            layers.push(Layer::assignment(assignment)?);
        }
        Ok(layers)
    }
}

/// What the computation runs on.
#[derive(Args, Debug, Default)]
pub struct DeviceArgs {
    /// auto, cpu, cuda, cuda:N, or simt (the CUDA kernels on the host's SIMT machine).
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<String>,
    /// Threads of the CPU backend [default: all].
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
}

/// How results are printed.
#[derive(Args, Debug, Default)]
pub struct OutputArgs {
    /// For machines: JSON on stdout, the last line is the result; everything else goes to stderr, the last line of which is {error}
    /// when the command fails.
    #[arg(long)]
    pub json: bool,
}
