//! What a backend runs on.

use super::DType;
use super::work::Peaks;

/// A device as its users see it: those who choose kernels, count memory or print a name.
#[derive(Debug, Clone, PartialEq)]
pub struct DeviceInfo {
    /// A name to print, such as `cpu (2 threads)`.
    pub name: String,
    /// The type of weights and activations.
    pub compute_dtype: DType,
    /// Most logits that [`super::CrossEntropy`] holds at once.
    pub max_logits: usize,
    /// Most values of a weight that is kept in less than compute type which are there in that at once.
    pub max_widened: usize,
    /// What the device can do at most, where it says so.
    pub peaks: Option<Peaks>,
    /// Whether operations compute something, so that their times mean something.
    pub computes: bool,
    /// Multiprocessors; 0 for the CPU backend, which launches no kernels.
    pub sms: usize,
    /// Most shared memory of a block, in bytes.
    pub max_shared: usize,
    /// Whether the kernels for sm_90a run: bulk tensor copies, wgmma.
    pub hopper: bool,
    /// Whether plain products go to a library.
    pub blas: bool,
    /// Whether freed memory is kept for the next tensor; false where each allocation is watched.
    pub caches: bool,
}

/// Most logits of a GPU (64 MiB): enough rows for the products to be efficient.
const GPU_LOGITS: usize = 16 << 20;

impl DeviceInfo {
    /// A GPU that runs the image `architecture` (such as `sm_90a`) on so many multiprocessors, in bf16.
    pub fn of_image(architecture: &str, sms: usize) -> Self {
        let kib = match architecture {
            "sm_80" => 163,
            "sm_86" | "sm_89" | "sm_120" => 99,
            _ => 227,
        };
        Self {
            name: architecture.to_string(),
            compute_dtype: DType::BF16,
            max_logits: GPU_LOGITS,
            max_widened: usize::MAX,
            peaks: None,
            computes: true,
            sms,
            max_shared: kib * 1024,
            hopper: architecture == "sm_90a",
            blas: false,
            caches: true,
        }
    }

    /// Whether operations are kernels, launched on a GPU or on what stands for one.
    pub fn launches_kernels(&self) -> bool {
        self.sms > 0
    }
}
