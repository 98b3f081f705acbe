//! Every operation on every device: one file a stem, as in `src/backend/ops/`. A file begins with the operation's cases,
//! which `benches/ops.rs` times; below stand the tests. Kernels are compared with an f64 formula or with the CPU
//! backend, in f32 and bf16. Outputs start as NaN, so what a kernel forgets to write shows.

mod activation;
mod adam;
mod attention;
pub mod cases;
mod column_sums;
mod cross_entropy;
mod dequantize;
mod divergence;
mod dots;
pub mod elementwise;
mod fold;
mod gather;
mod linear;
pub mod matmul;
mod narrow;
mod orthonormalize;
mod project;
mod rmsnorm;
mod rope;
mod shrink;
mod step_factors;
mod tiles;
mod weight_grad;

use crate::support::{assert_close, kernel_devices, numbers};
use cases::{Case, Inputs, Padded, Prepared, Sizes, Timed, values};
use gems_engine::backend::cpu::{Cpu, Products};
use gems_engine::backend::cuda::{Cuda, DeviceSpec, DriverKind};
use gems_engine::backend::*;
use std::sync::Arc;

const TYPES: [DType; 2] = [DType::F32, DType::BF16];

/// Relative to the largest value: f32 sums of a few hundred terms; one rounding of bf16 and a product of
/// rounded probabilities.
fn tolerance(dtype: DType) -> f64 {
    if dtype == DType::F32 { 1e-5 } else { 1.2e-2 }
}

#[track_caller]
fn close(what: &str, dtype: DType, got: &[f32], want: &[f32]) {
    let largest = want.iter().filter(|w| w.is_finite()).fold(0f64, |m, w| m.max(w.abs() as f64));
    assert_close(what, got, want, tolerance(dtype), tolerance(dtype) * largest);
}

/// The host SIMT machine with the kernels for sm_90a, in bf16.
fn hopper() -> Arc<dyn Backend> {
    let driver = DriverKind::Simt { hopper: true };
    Cuda::open(DeviceSpec { driver, ..DeviceSpec::simt(DType::BF16) }).unwrap()
}

/// Every backend in f32: the CPU, and the kernels on all their devices.
fn backends() -> Vec<Arc<dyn Backend>> {
    std::iter::once(Cpu::open(None).unwrap()).chain(kernel_devices(DType::F32)).collect()
}

fn inputs(be: &dyn Backend, exact: DType) -> Inputs<'_> {
    Inputs { be, exact, strided: true, distinct: usize::MAX }
}

/// What a case writes on a device.
#[track_caller]
fn outputs(be: &dyn Backend, exact: DType, case: &Case) -> Vec<(&'static str, Vec<f32>)> {
    let mut prepared = case.on(&inputs(be, exact));
    prepared.run(be).unwrap();
    prepared.outputs.iter().map(|(name, output)| (*name, output.read(be))).collect()
}

/// Compares what a case writes on a device in its compute type with the CPU in f32, from the same inputs.
#[track_caller]
fn parity_on(device: &dyn Backend, case: &Case) {
    let dtype = device.compute_dtype();
    let want = outputs(&*Cpu::open(None).unwrap(), dtype, case);
    for ((name, got), (_, want)) in outputs(device, dtype, case).iter().zip(&want) {
        close(&format!("{}: {name} ({}, {dtype:?})", case.name, device.info().name), dtype, got, want);
    }
}

/// The same on the SIMT machine (and a GPU, where there is one) in both types, and on the CPU with products in bf16.
#[track_caller]
fn parity(case: Case) {
    with_products_in_bf16(&case);
    for dtype in TYPES {
        for (d, device) in kernel_devices(dtype).into_iter().enumerate() {
            parity_on(&*device, &case);
            // The machine is this test's own, a GPU is shared by all tests.
            assert!(d > 0 || device.memory().live == 0, "{}: memory is left over", case.name);
        }
    }
}

/// Compares the CPU with products in bf16 with itself, of inputs that bf16 can hold.
#[track_caller]
fn with_products_in_bf16(case: &Case) {
    let [got, want] = [Products::Bf16, Products::F32]
        .map(|products| outputs(&*Cpu::open_with(None, products).unwrap(), DType::BF16, case));
    for ((name, got), (_, want)) in got.iter().zip(&want) {
        close(&format!("{}: {name} (products in bf16)", case.name), DType::BF16, got, want);
    }
}

/// Compares what a case writes on the CPU with the numbers of a formula, in the order of its outputs.
#[track_caller]
fn follows(case: &Case, formula: &[Vec<f64>]) {
    let got = outputs(&*Cpu::open(None).unwrap(), DType::F32, case);
    assert_eq!(got.len(), formula.len(), "{}", case.name);
    for ((name, got), want) in got.iter().zip(formula) {
        let want: Vec<f32> = want.iter().map(|v| *v as f32).collect();
        close(&format!("{}: {name} by its formula", case.name), DType::F32, got, &want);
    }
}

/// The numbers of an input in f64, for a formula.
fn exactly(seed: u64, n: usize) -> Vec<f64> {
    values(DType::F32, seed, n).into_iter().map(f64::from).collect()
}

/// A model of odd sizes: everything that the bench times is right, and it times every operation.
#[test]
fn every_operation_of_a_model() {
    let sizes = Sizes {
        tokens: 37,
        sequence: 16,
        labels: 9,
        hidden: 30,
        intermediate: 67,
        gated: true,
        activation: Activation::Silu,
        heads: 3,
        kv_heads: 1,
        head_dim: 10,
        causal: true,
        vocabulary: 101,
        rank: 8,
        layers: 3,
    };
    let mut seen: Vec<&str> = Vec::new();
    let cpu = Cpu::open(None).unwrap();
    for Timed { case, unfused } in cases::all(&sizes) {
        let mut prepared = case.on(&inputs(&*cpu, DType::F32));
        assert!(prepared.work().bytes > 0, "{}: no floor", case.name);
        seen.extend(prepared.operations());
        drop(prepared);
        parity(case);
        unfused.into_iter().for_each(parity);
    }
    let source = include_str!("../../../src/backend/ops/mod.rs");
    let (_, list) = source.split_once("\noperations! {").expect("the list of operations");
    for name in list.split('"').skip(1).step_by(2) {
        assert!(seen.contains(&name), "no case times {name}");
    }
}
