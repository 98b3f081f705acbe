//! Orthonormal rows of many matrices: `kernels/orthonormalize.cu`.

use super::Cuda;
use super::abi::{Launch, Matrix, ORTHONORMALIZE_MATRICES, OrthonormalizeArguments, PANEL};
use super::kernels;
use super::launch::view_mut;
use crate::backend::cpu::Cpu;
use crate::backend::work::{Work, bytes_mut};
use crate::backend::{Backend, DType, MatMut, OrthonormalizeRows};
use crate::error::Result;

/// Doubles of shared memory that a matrix can use: for a whole panel, or for as many rows as fit; `None` where not
/// even one does.
fn doubles(rows: usize, cols: usize, most: usize) -> Option<usize> {
    let (fixed, row) = (32 + PANEL, cols + rows.max(32));
    let fits = most.saturating_sub(fixed) / row;
    (fits > 0).then(|| fixed + row * fits.min(PANEL).min(rows))
}

impl Cuda {
    pub(super) fn orthonormalize_rows(&self, mut op: OrthonormalizeRows) -> Result<()> {
        let most = self.info.max_shared / 8;
        let (mut fitting, mut needed) = (Vec::new(), Vec::new());
        for a in op.matrices.iter_mut().filter(|a| a.rows > 0 && a.cols > 0) {
            match doubles(a.rows, a.cols, most) {
                Some(doubles) => {
                    needed.push(doubles);
                    fitting.push(&*a);
                }
                None => self.orthonormalize_on_the_host(a)?,
            }
        }
        for (some, needed) in
            fitting.chunks(ORTHONORMALIZE_MATRICES).zip(needed.chunks(ORTHONORMALIZE_MATRICES))
        {
            let mut a = [Matrix::NONE; ORTHONORMALIZE_MATRICES];
            a.iter_mut().zip(some).for_each(|(to, m)| *to = view_mut(m));
            let doubles = needed.iter().copied().max().unwrap_or(0);
            let longest = some.iter().map(|m| m.cols).max().unwrap_or(0);
            let moved = some.iter().map(|m| 2 * bytes_mut(m)).sum();
            let flops = some.iter().map(|m| 4 * (m.rows * m.rows * m.cols) as u64).sum();
            let shape =
                Launch::line(some.len(), if longest <= 1024 { 256 } else { 1024 }).shared(8 * doubles);
            let arguments = OrthonormalizeArguments { doubles: doubles as i64, a };
            self.launch(kernels::ORTHONORMALIZE, shape, &arguments, Work::new(moved, flops))?;
        }
        Ok(())
    }

    /// For rows too long for this device's shared memory: more than 29,000 elements on an H100, 12,600 where a block
    /// has 99 KB. They are too rare for a second kernel, so the CPU backend, which specifies the operation, does them.
    /// Waits.
    fn orthonormalize_on_the_host(&self, a: &mut MatMut) -> Result<()> {
        let cpu = Cpu::open(None)?;
        let mut host = cpu.tensor(&self.download(a.as_mat())?, a.rows, a.cols, DType::F32)?;
        cpu.run(OrthonormalizeRows { matrices: vec![host.mat_mut()] })?;
        self.upload(&cpu.download(host.mat())?, a.reborrow())
    }
}
