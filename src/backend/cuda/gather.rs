//! Rows of a table, gathered and added back to: `kernels/gather.cu`.

use super::Cuda;
use super::abi::{CHUNK, GatherArguments, Launch, ScatterArguments};
use super::kernels;
use super::launch::{address, chunks, view, view_mut};
use crate::backend::{Gather, ScatterAdd};
use crate::error::Result;

impl Cuda {
    pub(super) fn gather(&self, op: Gather) -> Result<()> {
        let work = op.work();
        let Gather { from, rows, scale, to } = op;
        if to.rows == 0 || to.cols == 0 {
            return Ok(());
        }
        if from.dtype != to.dtype {
            let mut gathered = self.new_tensor(to.rows, to.cols, from.dtype)?;
            self.gather(Gather { from, rows, scale, to: gathered.mat_mut() })?;
            return self.combine(1.0, gathered.mat(), 0.0, &to);
        }
        let (table, y, ids) = (view(from), view_mut(&to), address(rows));
        let arguments = GatherArguments { table, y, ids, scale, unused: 0.0 };
        self.launch(kernels::gather(to.dtype), chunks(&arguments.y), &arguments, work)
    }

    pub(super) fn scatter_add(&self, op: ScatterAdd) -> Result<()> {
        let work = op.work();
        let ScatterAdd { from, groups, scale, first_row, to } = op;
        if groups.rows.is_empty() || to.cols == 0 {
            return Ok(());
        }
        let arguments = ScatterArguments {
            from: view(from),
            to: view_mut(&to),
            rows: address(&groups.rows),
            offsets: address(&groups.offsets),
            sources: address(&groups.sources),
            groups: groups.rows.len() as i32,
            first_row: first_row as i32,
            scale,
            unused: 0.0,
        };
        let shape = Launch::cover(to.cols.div_ceil(CHUNK)).grid_yz(groups.rows.len().min(65_535), 1);
        self.launch(kernels::scatter(from.dtype, to.dtype), shape, &arguments, work)
    }
}
