//! Orthonormal rows of many matrices: `kernels/orthonormalize.cu`.

use super::Cuda;
use super::driver::Shape;
use super::launch::{View, view_mut};
use crate::backend::cpu::Cpu;
use crate::backend::trace::{Work, bytes};
use crate::backend::{Backend, DType, MatMut};
use crate::error::Result;
use bytemuck::{Pod, Zeroable};

/// Matrices of a launch: about one a multiprocessor of a large GPU, and their views fit a launch's 4 KB.
const MATRICES: usize = 128;
/// Rows that are worked on together, at most.
const PANEL: usize = 8;

/// `struct OrthonormalizeArguments`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct OrthonormalizeArguments {
    doubles: i64,
    a: [View; MATRICES],
}

/// Doubles of shared memory that a matrix can use: for a whole panel, or for as many rows as fit; `None` where not
/// even one does.
fn doubles(rows: usize, cols: usize, most: usize) -> Option<usize> {
    let (fixed, row) = (32 + PANEL, cols + rows.max(32));
    let fits = most.saturating_sub(fixed) / row;
    (fits > 0).then(|| fixed + row * fits.min(PANEL).min(rows))
}

impl Cuda {
    /// See [`Backend::orthonormalize_rows`].
    pub(super) fn orthonormalize_rows(&self, matrices: &mut [MatMut]) -> Result<()> {
        assert!(matrices.iter().all(|a| a.dtype == DType::F32), "orthonormalize_rows");
        let most = self.driver.max_shared() / 8;
        let (mut fitting, mut needed) = (Vec::new(), Vec::new());
        for a in matrices.iter_mut().filter(|a| a.rows > 0 && a.cols > 0) {
            match doubles(a.rows, a.cols, most) {
                Some(doubles) => {
                    needed.push(doubles);
                    fitting.push(&*a);
                }
                None => self.orthonormalize_on_the_host(a)?,
            }
        }
        for (some, needed) in fitting.chunks(MATRICES).zip(needed.chunks(MATRICES)) {
            let mut a = [View::NONE; MATRICES];
            a.iter_mut().zip(some).for_each(|(to, m)| *to = view_mut(m));
            let doubles = needed.iter().copied().max().unwrap_or(0);
            let longest = some.iter().map(|m| m.cols).max().unwrap_or(0);
            let moved = some.iter().map(|m| 2 * bytes(m.as_mat())).sum();
            let flops = some.iter().map(|m| 4 * (m.rows * m.rows * m.cols) as u64).sum();
            let shape = Shape::line(some.len(), if longest <= 1024 { 256 } else { 1024 }).shared(8 * doubles);
            let arguments = OrthonormalizeArguments { doubles: doubles as i64, a };
            self.launch("orthonormalize", shape, &arguments, Work::new(moved, flops))?;
        }
        Ok(())
    }

    /// For rows too long for this device's shared memory. Waits.
    fn orthonormalize_on_the_host(&self, a: &mut MatMut) -> Result<()> {
        let cpu = Cpu::open(None)?;
        let mut host = cpu.tensor(&self.download(a.as_mat())?, a.rows, a.cols, DType::F32)?;
        cpu.orthonormalize_rows(&mut [host.mat_mut()])?;
        self.upload(&cpu.download(host.mat())?, a.reborrow())
    }
}
