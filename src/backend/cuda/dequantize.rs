//! The values of a weight in codes: `kernels/dequantize.cu`.

use super::Cuda;
use super::abi::{DequantizeArguments, LEVELS, ROUNDED_BF16, ROUNDED_F16, ROUNDED_F32};
use super::kernels;
use super::launch::{address, chunks, view, view_mut};
use crate::backend::{Bytes, Dequantize, Groups, Levels, Rounded, Storage};
use crate::error::Result;

fn place(bytes: Option<&Bytes>) -> u64 {
    match bytes.map(Bytes::storage) {
        Some(Storage::Device(buffer)) => buffer.address,
        Some(Storage::Host(_)) => unreachable!("host bytes reached the kernel backend"),
        None => 0,
    }
}

impl Cuda {
    pub(super) fn dequantize(&self, op: Dequantize) -> Result<()> {
        let work = op.work();
        let Dequantize { from, first_row, to } = op;
        if to.rows == 0 || to.cols == 0 {
            return Ok(());
        }
        let (book, middle) = match from.levels {
            Levels::Book(book) => (book, 0.0),
            Levels::Byte(middle) => ([0.0; LEVELS], middle),
        };
        let (run, groups, columns) = match &from.groups {
            Groups::Runs(run) => (*run, 0, 0),
            Groups::Columns { count, of } => (1, *count, address(of)),
        };
        let rounded = match from.rounded {
            Rounded::F32 => ROUNDED_F32,
            Rounded::F16 => ROUNDED_F16,
            Rounded::Bf16 => ROUNDED_BF16,
        };
        let arguments = DequantizeArguments {
            y: view_mut(&to),
            codes: place(Some(&from.codes)),
            scales: view(from.scales.mat()).data,
            zeros: place(from.zeros.as_ref()),
            columns,
            first_row: first_row as i32,
            bits: from.levels.bits() as i32,
            run: run as i32,
            groups: groups as i32,
            rounded: rounded as i32,
            middle,
            book,
        };
        self.launch(kernels::dequantize(to.dtype), chunks(&arguments.y).shared(4 * LEVELS), &arguments, work)
    }
}
