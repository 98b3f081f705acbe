//! Plain products through cuBLASLt: optional, looked for at start, its plans kept by shape.
//!
//! Where it is asked for, every plain bf16 product goes there (no second pair, no bias, no stochastic rounding), so
//! that it can be measured against the engine's own kernels.

use crate::backend::DType;
use crate::backend::cuda::driver::PlainProduct;
use crate::backend::cuda::errors::{explain, refused};
use crate::error::{Error, Result};
use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys;
use cudarc::driver::{self, sys::CUstream};
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::Mutex;

/// Bytes that the library may use beside the matrices.
const WORKSPACE: usize = 32 << 20;

/// What tells the library how operands, addend and result are aligned.
const ALIGNMENTS: [sys::cublasLtMatmulPreferenceAttributes_t; 4] = [
    sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
    sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
    sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
    sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
];

/// The largest power of two, at most 256, that an address is a multiple of.
fn alignment(address: u64) -> u32 {
    1 << address.trailing_zeros().min(8)
}

/// A matrix as a column-major library sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operand {
    /// Rows as stored.
    pub rows: usize,
    /// Columns as stored.
    pub cols: usize,
    /// Elements from one column to the next.
    pub ld: usize,
    /// Whether it enters the product transposed.
    pub transposed: bool,
}

impl PlainProduct {
    /// The same product column-major, `Cᵀ = op(B)ᵀ op(A)ᵀ`: first operand (B), second (A), result.
    pub fn column_major(&self) -> [Operand; 3] {
        let Self { m, n, k, ld, .. } = *self;
        let (b_rows, b_cols) = if self.transpose_b { (k, n) } else { (n, k) };
        let (a_rows, a_cols) = if self.transpose_a { (m, k) } else { (k, m) };
        [
            Operand { rows: b_rows, cols: b_cols, ld: ld[1], transposed: self.transpose_b },
            Operand { rows: a_rows, cols: a_cols, ld: ld[0], transposed: self.transpose_a },
            Operand { rows: n, cols: m, ld: ld[2], transposed: false },
        ]
    }
}

/// What the library needs for one kind of call.
struct Plan {
    product: sys::cublasLtMatmulDesc_t,
    layouts: [sys::cublasLtMatrixLayout_t; 3],
    algorithm: sys::cublasLtMatmulHeuristicResult_t,
}

/// A kind of call: the product, and bytes that the addresses of operands and result are multiples of.
type Kind = (PlainProduct, [u32; 3]);

/// The library on one device.
pub struct Library {
    handle: sys::cublasLtHandle_t,
    workspace: u64,
    /// By kind of call and alignment of the matrices; `None` for those that the library does not do.
    plans: Mutex<HashMap<Kind, Option<Plan>>>,
}
// SAFETY: the handle and the plans are used under the mutex only; the workspace by one stream only.
unsafe impl Send for Library {}
// SAFETY: as for `Send`.
unsafe impl Sync for Library {}

impl Library {
    /// The library; the device's context is current.
    ///
    /// # Errors
    /// It is not there, or does not start.
    pub fn open() -> Result<Self> {
        // SAFETY: tries to open a library by its fixed names; without it the binding would panic.
        if !unsafe { sys::is_culib_present() } {
            return Err(Error::device("GEMS_CUBLASLT is on, but the library is not found").remedy(
                "`gems-engine doctor` prints the names that are looked for; or unset GEMS_CUBLASLT",
            ));
        }
        let handle = result::create_handle().map_err(refused)?;
        // SAFETY: kept until the library is dropped.
        let workspace = unsafe { driver::result::malloc_sync(WORKSPACE) }.map_err(explain)?;
        Ok(Self { handle, workspace, plans: Mutex::default() })
    }

    /// Starts a product on `stream`; false when the library has nothing for it.
    ///
    /// # Safety
    /// The addresses are device matrices as `p` describes them.
    pub unsafe fn product(
        &self,
        p: &PlainProduct,
        (alpha, beta): (f32, f32),
        [a, b, c]: [u64; 3],
        stream: CUstream,
    ) -> Result<bool> {
        let mut plans = self.plans.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let aligned = [b, a, c].map(alignment);
        let plan = plans.entry((*p, aligned)).or_insert_with(|| self.plan(p, aligned).ok());
        let Some(plan) = plan else { return Ok(false) };
        let (alpha, beta): (*const f32, *const f32) = (&alpha, &beta);
        // SAFETY: plan and matrices belong together by the caller's word; factors are read before this returns.
        unsafe {
            result::matmul(
                self.handle,
                plan.product,
                alpha.cast(),
                beta.cast(),
                b as *const c_void,
                plan.layouts[0],
                a as *const c_void,
                plan.layouts[1],
                c as *const c_void,
                plan.layouts[2],
                c as *mut c_void,
                plan.layouts[2],
                &plan.algorithm.algo,
                self.workspace as *mut c_void,
                WORKSPACE,
                stream.cast(),
            )
        }
        .map_err(refused)?;
        Ok(true)
    }

    /// `aligned`: bytes that the addresses of both operands and of the result are multiples of.
    fn plan(&self, p: &PlainProduct, aligned: [u32; 3]) -> std::result::Result<Plan, CublasError> {
        let real = |dtype| match dtype {
            DType::F32 => sys::cudaDataType::CUDA_R_32F,
            DType::BF16 => sys::cudaDataType::CUDA_R_16BF,
        };
        let operands = p.column_major();
        let types = [real(DType::BF16), real(DType::BF16), real(p.c)];
        let layout = |i: usize| {
            let o: &Operand = &operands[i];
            result::create_matrix_layout(types[i], o.rows as u64, o.cols as u64, o.ld as i64)
        };
        let layouts = [layout(0)?, layout(1)?, layout(2)?];
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let product = result::create_matmul_desc(compute, real(DType::F32))?;
        let preference = result::create_matmul_pref()?;
        let attributes = [
            sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA,
            sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSB,
        ];
        // SAFETY: attributes have the types and sizes that the library documents for them.
        unsafe {
            for (attribute, operand) in attributes.into_iter().zip(&operands) {
                let operation = i32::from(operand.transposed);
                let value: *const i32 = &operation;
                result::set_matmul_desc_attribute(product, attribute, value.cast(), 4)?;
            }
            let most: *const usize = &WORKSPACE;
            let attribute =
                sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
            result::set_matmul_pref_attribute(preference, attribute, most.cast(), 8)?;
            // Otherwise the library takes for granted 256 bytes, as of whole allocations.
            for (attribute, operand) in ALIGNMENTS.into_iter().zip([0, 1, 2, 2]) {
                let bytes: *const u32 = &aligned[operand];
                result::set_matmul_pref_attribute(preference, attribute, bytes.cast(), 4)?;
            }
            let [first, second, c] = layouts;
            let found =
                result::get_matmul_algo_heuristic(self.handle, product, first, second, c, c, preference);
            let _ = result::destroy_matmul_pref(preference);
            Ok(Plan { product, layouts, algorithm: found? })
        }
    }
}

impl Drop for Library {
    fn drop(&mut self) {
        let plans = std::mem::take(&mut *self.plans.lock().unwrap_or_else(|p| p.into_inner()));
        // SAFETY: each is destroyed once; a failure means that the device is lost.
        unsafe {
            for plan in plans.into_values().flatten() {
                let _ = result::destroy_matmul_desc(plan.product);
                for layout in plan.layouts {
                    let _ = result::destroy_matrix_layout(layout);
                }
            }
            let _ = driver::result::free_sync(self.workspace);
            let _ = result::destroy_handle(self.handle);
        }
    }
}
