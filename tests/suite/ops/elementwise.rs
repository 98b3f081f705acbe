//! Element by element, between any types.

use super::*;
use half::bf16;

type Shape = (usize, usize);

/// Of the compute type into f32, and back.
pub fn copy_and_back((rows, cols): Shape, pad: usize) -> Case {
    Case::new(format!("copy to f32 and back {rows}x{cols}"), move |on| {
        let (shape, dtype) = ((rows, cols), on.be.compute_dtype());
        let from = on.view(1, shape, pad, dtype);
        let outputs = [("copied", on.nan(shape, pad, DType::F32)), ("back", on.nan(shape, pad, dtype))];
        Prepared::new(outputs, move |[mut copied, back], run| {
            run(Copy { from: from.mat(), to: copied.reborrow() }.into())?;
            run(Copy { from: copied.as_mat(), to: back }.into())
        })
    })
}

pub fn fill((rows, cols): Shape, pad: usize) -> Case {
    Case::new(format!("fill {rows}x{cols}"), move |on| {
        let x = on.nan((rows, cols), pad, on.be.compute_dtype());
        Prepared::new([("x", x)], |[x], run| run(Fill { x, value: 3.0 }.into()))
    })
}

pub fn scale((rows, cols): Shape, pad: usize, alpha: f32) -> Case {
    Case::new(format!("scale {rows}x{cols}"), move |on| {
        let x = on.view(1, (rows, cols), pad, DType::F32);
        Prepared::new([("x", x)], move |[x], run| run(Scale { x, alpha }.into()))
    })
}

pub fn softcap((rows, cols): Shape, pad: usize, cap: f32) -> Case {
    Case::new(format!("softcap {rows}x{cols}"), move |on| {
        let x = on.view(1, (rows, cols), pad, DType::F32);
        Prepared::new([("x", x)], move |[x], run| run(Softcap { x, cap }.into()))
    })
}

/// Of the compute type into f32.
pub fn axpy((rows, cols): Shape, pad: usize) -> Case {
    Case::new(format!("axpy {rows}x{cols}"), move |on| {
        let x = on.view(1, (rows, cols), pad, on.be.compute_dtype());
        let y = on.view(2, (rows, cols), pad, DType::F32);
        Prepared::new([("y", y)], move |[y], run| run(Axpy { alpha: -1.5, x: x.mat(), y }.into()))
    })
}

/// Of f32 onto bf16, rounded at random.
pub fn add_rounded((rows, cols): Shape, pad: usize) -> Case {
    Case::new(format!("add_rounded {rows}x{cols}"), move |on| {
        let x = on.view(1, (rows, cols), pad, DType::F32);
        let y = on.view(2, (rows, cols), pad, DType::BF16);
        Prepared::new([("y", y)], move |[y], run| run(AddRounded { x: x.mat(), y, seed: 7 }.into()))
    })
}

pub fn at(s: &Sizes) -> Vec<Timed> {
    let shape = (s.tokens, s.hidden);
    // A factor of 1: a bench repeats it.
    [
        copy_and_back(shape, 0),
        fill(shape, 0),
        scale(shape, 0, 1.0),
        axpy(shape, 0),
        softcap(shape, 0, 30.0),
        add_rounded(shape, 0),
    ]
    .map(Timed::from)
    .into()
}

#[test]
fn elementwise() {
    for (rows, cols, pad) in [(1, 1, 0), (3, 8, 8), (5, 13, 3), (70, 257, 7)] {
        let (x, y) = (exactly(1, rows * cols), exactly(2, rows * cols));
        let (shape, all) = ((rows, cols), |f: &dyn Fn(usize) -> f64| (0..x.len()).map(f).collect::<Vec<_>>());
        for (case, formula) in [
            (copy_and_back(shape, pad), vec![x.clone(), x.clone()]),
            (fill(shape, pad), vec![all(&|_| 3.0)]),
            (scale(shape, pad, 0.75), vec![all(&|e| 0.75 * x[e])]),
            (softcap(shape, pad, 0.8), vec![all(&|e| f64::from(0.8f32) * (x[e] / f64::from(0.8f32)).tanh())]),
            (axpy(shape, pad), vec![all(&|e| y[e] - 1.5 * x[e])]),
        ] {
            follows(&case, &formula);
            parity(case);
        }
    }
}

/// A sum lies between its neighbours in bf16 and is rounded to one of them, everywhere to the same: that of a fold.
#[test]
fn sums_are_rounded_at_random_but_everywhere_alike() {
    for (rows, cols, pad) in [(1, 1, 0), (3, 8, 8), (5, 13, 3), (70, 257, 7)] {
        let case = add_rounded((rows, cols), pad);
        let devices: Vec<Arc<dyn Backend>> =
            kernel_devices(DType::BF16).into_iter().chain([Cpu::open(None).unwrap() as _]).collect();
        let of = |be: &Arc<dyn Backend>| outputs(&**be, DType::BF16, &case).remove(0).1;
        let all: Vec<Vec<f32>> = devices.iter().map(of).collect();
        assert!(all.windows(2).all(|pair| pair[0] == pair[1]), "{}", case.name);
        let (x, y) = (values(DType::BF16, 1, rows * cols), values(DType::BF16, 2, rows * cols));
        for (got, (x, y)) in all[0].iter().zip(x.iter().zip(&y)) {
            let below = f32::from_bits((x + y).to_bits() & 0xffff_0000);
            let above = f32::from_bits(below.to_bits() + 0x1_0000);
            assert!(*got == below || *got == above && x + y != below, "{x} + {y}: {got}");
        }
        for be in &devices {
            let (x, mut y) = (be.tensor(&x, rows, cols, DType::F32), be.tensor(&y, rows, cols, DType::BF16));
            let (x, y) = (x.unwrap(), y.as_mut().unwrap());
            let one: Vec<f32> = (0..cols * cols).map(|i| f32::from(i / cols == i % cols)).collect();
            let one = be.tensor(&one, cols, cols, be.compute_dtype()).unwrap();
            let rounding = Rounding::Stochastic(7);
            be.run(Fold { w: y.mat_mut(), keep: 1.0, scale: 1.0, b: x.mat(), a: one.mat(), rounding })
                .unwrap();
            assert_eq!(be.download(y.mat()).unwrap(), all[0], "{}", case.name);
        }
    }
}

#[test]
fn conversion_rounds_as_half_does() {
    kernel_devices(DType::BF16).iter().for_each(|be| conversion(&**be));
}

fn conversion(be: &dyn Backend) {
    let mut bits: Vec<u32> = (0..=u16::MAX as u32).map(|b| b << 16).collect();
    bits.extend((0..4096u32).map(|i| 0x3f80_0000 + i * 1021 + 0x7fff));
    let from: Vec<f32> = bits.into_iter().map(f32::from_bits).collect();
    let x = be.tensor(&from, 1, from.len(), DType::BF16).unwrap();
    for (got, f) in be.download(x.mat()).unwrap().iter().zip(&from) {
        let want = bf16::from_f32(*f).to_f32();
        assert!(
            got.to_bits() == want.to_bits() || (got.is_nan() && want.is_nan()),
            "{f:e}: {got:e}, {want:e}"
        );
    }
}
