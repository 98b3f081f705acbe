//! The divergence of predictions from earlier ones: `kernels/divergence.cu`.

use super::Cuda;
use super::abi::{DivergenceArguments, Launch};
use super::kernels;
use super::launch::{view, view_mut};
use crate::backend::Divergence;
use crate::error::Result;

impl Cuda {
    pub(super) fn divergence(&self, op: Divergence) -> Result<()> {
        let work = op.work();
        if op.before.rows == 0 || op.before.cols == 0 {
            return self.fill(&op.kl, 0.0);
        }
        let arguments = DivergenceArguments {
            logits: view_mut(&op.logits),
            before: view(op.before),
            kl: view_mut(&op.kl),
            factor: op.factor,
            softcap: op.softcap.unwrap_or(0.0),
        };
        self.launch(kernels::DIVERGENCE, Launch::line(op.before.rows, 512).shared(512), &arguments, work)
    }
}
