//! Clipping, surgery and gates of a step: `kernels/step_factors.cu`.

use super::Cuda;
use super::abi::{FACTOR_TASKS, GATES_FIXED, GATES_INVERSE_NORM, GATES_SHARES, Launch, StepFactorsArguments};
use super::kernels;
use super::launch::{address, view, view_mut};
use crate::backend::cpu::Cpu;
use crate::backend::{Backend, DType, GateRule, Mat, StepFactors};
use crate::error::Result;

impl Cuda {
    pub(super) fn step_factors(&self, op: StepFactors) -> Result<()> {
        let (count, tasks) = (op.entries.len(), op.labels.len());
        if tasks > FACTOR_TASKS {
            return self.step_factors_on_the_host(op);
        }
        let work = op.work();
        let StepFactors { products, entries, losses, labels, counts, gates, pcgrad, clip_norm, factors } = op;
        let list = |values: &[f32]| {
            let mut all = [0.0; FACTOR_TASKS];
            all[..tasks].copy_from_slice(values);
            all
        };
        let (rule, fixed, share) = match gates {
            GateRule::Fixed(value) => (GATES_FIXED, value, [0.0; 3]),
            GateRule::Shares(shares) => (GATES_SHARES, 0.0, shares.map(|s| s as f32)),
            GateRule::InverseNorm => (GATES_INVERSE_NORM, 0.0, [0.0; 3]),
            // Written over the fixed ones below.
            GateRule::Given(_) => (GATES_FIXED, 1.0, [0.0; 3]),
        };
        let arguments = StepFactorsArguments {
            products: view(products).data,
            quantity: address(entries),
            losses: view(losses).data,
            factors: view_mut(&factors).data,
            count: count as i32,
            tasks: tasks as i32,
            rule: rule as i32,
            pcgrad: i32::from(pcgrad),
            clip_norm: clip_norm as f32,
            fixed,
            share,
            unused: 0.0,
            labels: list(labels),
            counts: list(counts),
        };
        let shape = Launch::line(1, 256).shared(8 * (4 * tasks * tasks + 7 * tasks + 2));
        self.launch(kernels::STEP_FACTORS, shape, &arguments, work)?;
        match gates {
            GateRule::Given(gates) => self.upload(gates, factors.col_range(1 + tasks..1 + 2 * tasks)),
            _ => Ok(()),
        }
    }

    /// For more tasks than the kernel holds: by the specification. Waits.
    fn step_factors_on_the_host(&self, op: StepFactors) -> Result<()> {
        let cpu = Cpu::open(None)?;
        let host = |m: Mat| cpu.tensor(&self.download(m)?, m.rows, m.cols, DType::F32);
        let (products, losses) = (host(op.products)?, host(op.losses)?);
        let mut factors = cpu.alloc(1, op.factors.cols, DType::F32)?;
        let (products, losses, to) = (products.mat(), losses.mat(), factors.mat_mut());
        cpu.run(StepFactors { products, losses, factors: to, ..op })?;
        self.upload(&cpu.download(factors.mat())?, op.factors)
    }
}
