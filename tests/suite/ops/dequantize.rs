//! The values of a weight in codes.

use super::*;

/// (M, N), bits, group: 0 for a row each, `Err(count)` for groups of columns out of order; zeros; what values are rounded to.
#[derive(Clone, Copy)]
pub struct Coded {
    pub shape: (usize, usize),
    pub bits: usize,
    pub group: Result<usize, usize>,
    pub zeros: bool,
    pub rounded: Rounded,
}

impl Coded {
    const BOOK: [f32; 16] =
        [-1.0, -0.69, -0.53, -0.39, -0.28, -0.18, -0.09, 0.0, 0.08, 0.16, 0.25, 0.34, 0.44, 0.56, 0.72, 1.0];

    fn code(self, e: usize) -> u8 {
        (e * e + e / 3 + 7 * (e % 5)) as u8 & ((1u16 << self.bits) - 1) as u8
    }
    fn column(self, j: usize) -> usize {
        self.group.err().map_or(0, |count| (j * 5 + 1) % count)
    }
    fn group(self, e: usize) -> usize {
        let n = self.shape.1;
        match self.group {
            Ok(0) => e / n,
            Ok(run) => e / run,
            Err(count) => e / n * count + self.column(e % n),
        }
    }
    fn groups(self) -> usize {
        let (m, n) = self.shape;
        match self.group {
            Ok(0) => m,
            Ok(run) => (m * n).div_ceil(run),
            Err(count) => m * count,
        }
    }
    fn scale(self, group: usize) -> f32 {
        0.013 * (1 + group % 7) as f32 * if group.is_multiple_of(5) { 1e-5 } else { 1.0 }
    }
    fn zero(self, group: usize) -> u8 {
        if self.zeros { (group * 3) as u8 & ((1u16 << self.bits) - 1) as u8 } else { 0 }
    }

    pub fn on(self, be: &dyn Backend) -> Quantised {
        let (m, n) = self.shape;
        let bytes = |values: Vec<u8>| {
            let mut to = be.alloc_bytes(values.len()).expect("memory");
            be.upload_bytes(&values, &mut to).expect("upload");
            to
        };
        let mut codes = vec![0u8; (m * n * self.bits).div_ceil(8)];
        (0..m * n).for_each(|e| match self.bits {
            8 => codes[e] = self.code(e),
            _ => codes[e / 2] |= if e.is_multiple_of(2) { self.code(e) << 4 } else { self.code(e) },
        });
        let scales: Vec<f32> = (0..self.groups()).map(|g| self.scale(g)).collect();
        Quantised {
            shape: self.shape,
            levels: if self.bits == 4 { Levels::Book(Self::BOOK) } else { Levels::Byte(127.0) },
            codes: bytes(codes),
            scales: be.tensor(&scales, 1, scales.len(), DType::F32).expect("memory"),
            zeros: self.zeros.then(|| bytes((0..self.groups()).map(|g| self.zero(g)).collect())),
            groups: match self.group {
                Ok(0) => Groups::Runs(n),
                Ok(run) => Groups::Runs(run),
                Err(count) => {
                    let of: Vec<u32> = (0..n).map(|j| self.column(j) as u32).collect();
                    Groups::Columns { count, of: be.indices(&of).expect("memory") }
                }
            },
            rounded: self.rounded,
        }
    }

    /// In f64, rounded to f32, then as the weight says.
    fn formula(self, e: usize) -> f64 {
        let level = if self.bits == 4 {
            f64::from(Self::BOOK[usize::from(self.code(e))])
        } else {
            f64::from(self.code(e)) - 127.0
        };
        let group = self.group(e);
        let value = f64::from(self.scale(group)) * (level - f64::from(self.zero(group)));
        match self.rounded {
            Rounded::F32 => value,
            Rounded::F16 => half::f16::from_f32(value as f32).to_f64(),
            Rounded::Bf16 => half::bf16::from_f32(value as f32).to_f64(),
        }
    }
}

fn dequantize(of: Coded, rows: std::ops::Range<usize>, pad: usize) -> Case {
    let (m, n) = of.shape;
    Case::new(format!("dequantize {m}x{n}, {} bits", of.bits), move |on| {
        let (from, first_row) = (of.on(on.be), rows.start);
        let values = on.nan((rows.len(), n), pad, on.be.compute_dtype());
        Prepared::new([("values", values)], move |[to], run| {
            run(Dequantize { from: &from, first_row, to }.into())
        })
    })
}

pub fn at(s: &Sizes) -> Vec<Timed> {
    let one = |(name, m, n)| {
        let of = Coded { shape: (m, n), bits: 4, group: Ok(64), zeros: false, rounded: Rounded::Bf16 };
        dequantize(of, 0..m, 0).named(format!("dequantize {name} {m}x{n}")).into()
    };
    s.linear_layers().into_iter().map(one).collect()
}

#[test]
fn values_of_codes() {
    for shape @ (m, n) in [(1, 1), (3, 5), (7, 64), (13, 24), (5, 40), (9, 33)] {
        for (bits, group, zeros) in [
            (4, Ok(64), false),
            (4, Ok(8), true),
            (4, Err(3), true),
            (8, Ok(0), false),
            (8, Ok(7), true),
            (8, Err(2), false),
        ] {
            for rounded in [Rounded::F32, Rounded::F16, Rounded::Bf16] {
                let of = Coded { shape, bits, group, zeros, rounded };
                for (rows, pad) in [(0..m, 0), (m / 2..m, 3)] {
                    let want: Vec<f64> = (rows.start * n..rows.end * n).map(|e| of.formula(e)).collect();
                    // Every one: a small value beside large ones is not to be lost in a tolerance.
                    let got =
                        &outputs(&*Cpu::open(None).unwrap(), DType::F32, &dequantize(of, rows.clone(), pad))
                            [0]
                        .1;
                    for (e, (got, want)) in got.iter().zip(&want).enumerate() {
                        let ulps = if rounded == Rounded::F32 { 3e-7 } else { 0.0 };
                        assert!(
                            (f64::from(*got) - want).abs() <= ulps * want.abs(),
                            "{shape:?} {bits} {e}: {got} {want}"
                        );
                    }
                    for device in TYPES.into_iter().flat_map(kernel_devices) {
                        let there = &outputs(&*device, DType::F32, &dequantize(of, rows.clone(), pad))[0].1;
                        let same = |a: &f32, b: &f32| match device.compute_dtype() {
                            DType::F32 => a == b,
                            DType::BF16 => *a == half::bf16::from_f32(*b).to_f32(),
                        };
                        assert!(
                            there.iter().zip(got).all(|(a, b)| same(a, b)),
                            "{shape:?}, {bits} bits, {rounded:?}"
                        );
                    }
                }
            }
        }
    }
}

/// Layers in codes compute what layers with those values do, forward and back.
#[test]
fn a_linear_layer_in_codes() {
    for dtype in TYPES {
        for be in kernel_devices(dtype)
            .into_iter()
            .chain((dtype == DType::F32).then(|| Cpu::open(None).unwrap() as Arc<dyn Backend>))
        {
            for (t, m, n) in [(3, 5, 7), (17, 48, 40), (9, 64, 72)] {
                let of = Coded { shape: (m, n), bits: 4, group: Ok(8), zeros: true, rounded: Rounded::Bf16 };
                let mut whole = be.alloc(m, n, dtype).unwrap();
                be.run(Dequantize { from: &of.on(&*be), first_row: 0, to: whole.mat_mut() }).unwrap();
                let on = inputs(&*be, DType::BF16);
                let (x, dy) = (on.compute(1, t, n), on.compute(2, t, m));
                let both = [Weight::Quantised(of.on(&*be)), Weight::Whole(whole)].map(|weight| {
                    let branch = Some(Branch { a: on.compute(3, 4, n), b: on.compute(4, m, 4) });
                    let layer = &AdaptedLinear { weight, bias: Some(on.compute(5, 1, m)), branch };
                    let (mut y, mut dx) = (be.alloc(t, m, dtype).unwrap(), on.compute(6, t, n));
                    let (mut h, mut z) = (be.alloc(t, 4, dtype).unwrap(), be.alloc(t, 4, dtype).unwrap());
                    be.run(Linear { layer, x: x.mat(), h: Some(h.mat_mut()), y: y.mat_mut() }).unwrap();
                    let (z, accumulate) = (Some(z.mat_mut()), true);
                    be.run(LinearInputGrad { layer, dy: dy.mat(), z, dx: dx.mat_mut(), accumulate }).unwrap();
                    [y, dx].map(|m| be.download(m.mat()).unwrap())
                });
                close("y", dtype, &both[0][0], &both[1][0]);
                close("dx", dtype, &both[0][1], &both[1][1]);
            }
        }
    }
}
