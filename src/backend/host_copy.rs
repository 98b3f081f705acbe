//! Matrices that wait on the host until they are needed.

use super::{Backend, DType, Mat, MatMut, Tensor};
use crate::error::Result;
use half::bf16;
use half::slice::HalfFloatSliceExt;

/// A matrix on the host, in the type that it had on the device.
pub struct HostCopy {
    rows: usize,
    cols: usize,
    values: Values,
}

enum Values {
    /// Of a device that computes nothing: there is nothing to keep, and of a large model it would be much.
    Nothing,
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
}

impl HostCopy {
    /// Copies a matrix. Waits.
    ///
    /// # Errors
    /// The device.
    pub fn of(backend: &dyn Backend, m: Mat) -> Result<Self> {
        let values = match (backend.info().computes, m.dtype) {
            (false, _) => Values::Nothing,
            (true, DType::F32) => Values::F32(backend.download(m)?),
            (true, DType::BF16) => Values::Bf16(backend.download_bf16(m)?),
        };
        Ok(Self { rows: m.rows, cols: m.cols, values })
    }

    /// (rows, columns).
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    /// The values, row by row.
    pub fn values(&self) -> Vec<f32> {
        match &self.values {
            Values::Nothing => vec![0.0; self.rows * self.cols],
            Values::F32(values) => values.clone(),
            Values::Bf16(values) => values.to_f32_vec(),
        }
    }

    /// Its values on the device again, rounded to the type of `to`.
    ///
    /// # Errors
    /// The device.
    pub fn upload(&self, backend: &dyn Backend, to: MatMut) -> Result<()> {
        match &self.values {
            Values::Nothing => Ok(()),
            Values::F32(values) => backend.upload(values, to),
            Values::Bf16(values) => backend.upload_bf16(values, to),
        }
    }

    /// A tensor of the device with these values.
    ///
    /// # Errors
    /// The device.
    pub fn tensor(&self, backend: &dyn Backend, dtype: DType) -> Result<Tensor> {
        let mut tensor = backend.alloc(self.rows, self.cols, dtype)?;
        self.upload(backend, tensor.mat_mut())?;
        Ok(tensor)
    }
}
