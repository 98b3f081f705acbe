//! Products of layers whose operands the CPU rounds to bf16: against f64 sums of what the crate `half` rounds. On a processor
//! without tiles the same packing feeds a loop.

use super::*;
use half::bf16;

fn mixed() -> Arc<dyn Backend> {
    Cpu::open_with(None, Products::Bf16).unwrap()
}

/// Tokens, inputs, outputs.
type Size = (usize, usize, usize);

/// Crossed: lines of a tile, its depth, the depth that is summed at once (512), the rows beside it (960).
const SIZES: [Size; 7] = [
    (64, 64, 64),
    (65, 67, 70),
    (100, 600, 90),
    (970, 64, 65),
    (64, 1100, 97),
    (1000, 513, 64),
    (71, 128, 300),
];

fn layer(be: &dyn Backend, (_, n, m): Size, weight: &[f32]) -> AdaptedLinear {
    AdaptedLinear { weight: be.tensor(weight, m, n, DType::F32).unwrap().into(), bias: None, branch: None }
}

/// `x W^T`; its views are wider than they are.
fn forward(be: &dyn Backend, size: Size, x: &[f32], weight: &[f32]) -> Vec<f32> {
    let (t, n, m) = size;
    let layer = layer(be, size, weight);
    let (mut from, mut to) =
        (be.alloc(t, n + 3, DType::F32).unwrap(), be.alloc(t, m + 5, DType::F32).unwrap());
    be.upload(x, from.mat_mut().col_range(0..n)).unwrap();
    be.fill(to.mat_mut(), f32::NAN).unwrap();
    let y = to.mat_mut().col_range(0..m);
    be.execute(Linear { layer: &layer, x: from.mat().col_range(0..n), h: None, y }.into()).unwrap();
    be.download(to.mat().col_range(0..m)).unwrap()
}

/// `dx += dy W`.
fn input_grad(be: &dyn Backend, size: Size, dy: &[f32], weight: &[f32], dx: &[f32]) -> Vec<f32> {
    let (t, n, m) = size;
    let layer = layer(be, size, weight);
    let dy = be.tensor(dy, t, m, DType::F32).unwrap();
    let mut to = be.tensor(dx, t, n, DType::F32).unwrap();
    let op = LinearInputGrad { layer: &layer, dy: dy.mat(), z: None, dx: to.mat_mut(), accumulate: true };
    be.execute(op.into()).unwrap();
    be.download(to.mat()).unwrap()
}

fn nearest(value: f32) -> f64 {
    bf16::from_f32(value).to_f64()
}

#[test]
fn layers_in_bf16_and_their_input_gradients() {
    let be = mixed();
    for size in SIZES {
        let (t, n, m) = size;
        let (x, dy, w, dx) = (numbers(1, t * n), numbers(2, t * m), numbers(3, m * n), numbers(4, t * n));
        let sum = |depth: usize, a: &dyn Fn(usize) -> f32, b: &dyn Fn(usize) -> f32| {
            (0..depth).map(|k| nearest(a(k)) * nearest(b(k))).sum::<f64>()
        };
        let want: Vec<f32> =
            (0..t * m).map(|at| sum(n, &|k| x[at / m * n + k], &|k| w[at % m * n + k]) as f32).collect();
        close(&format!("{size:?}"), DType::F32, &forward(&*be, size, &x, &w), &want);
        let want: Vec<f32> = (0..t * n)
            .map(|at| (f64::from(dx[at]) + sum(m, &|k| dy[at / n * m + k], &|k| w[k * n + at % n])) as f32)
            .collect();
        close(&format!("{size:?}, gradient"), DType::F32, &input_grad(&*be, size, &dy, &w, &dx), &want);
    }
}

/// Threads share a product by its rows or columns, which changes none of its sums.
#[test]
fn layers_in_bf16_on_any_number_of_threads() {
    for size @ (t, n, m) in [(200, 90, 130), (130, 600, 70)] {
        let (x, w, dx) = (numbers(1, t * n), numbers(2, m * n), numbers(3, t * n));
        let on = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let be = mixed();
                let y = forward(&*be, size, &x, &w);
                let dx = input_grad(&*be, size, &y, &w, &dx);
                (y, dx)
            })
        };
        let one = on(1);
        (2..5).for_each(|threads| assert!(on(threads) == one, "{size:?} on {threads} threads"));
    }
}

/// One value of a row of ones: what it is rounded to. Ties go to the even one; NaN and infinities stay.
#[test]
fn values_are_rounded_to_the_nearest() {
    let (be, size @ (t, n, m)) = (mixed(), (64, 64, 64));
    let tie = |bits: u32| f32::from_bits(bits);
    let special = [1.0, tie(0x3f80_8000), tie(0x3f81_8000), tie(0x3f80_8001), tie(0x3f80_7fff), -0.0, 3.4e38]
        .into_iter()
        .chain([f32::MAX, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, tie(0x7f80_0001), tie(0xffff_ffff)]);
    for value in special {
        let mut x = vec![0.0; t * n];
        x[5 * n + 9] = value;
        let y = forward(&*be, size, &x, &vec![1.0; m * n]);
        let want = bf16::from_f32(value).to_f32();
        let same = |got: f32, want: f32| got == want || (got.is_nan() && want.is_nan());
        for (at, got) in y.into_iter().enumerate() {
            let want = if at / m == 5 { want } else { 0.0 };
            assert!(same(got, want), "{value} ({:#x}): {got} at {at}, {want} expected", value.to_bits());
        }
    }
}

/// The head's logits and their gradient are rounded, the losses near those of f32; what is small is not rounded at all.
#[test]
fn the_head_in_bf16() {
    for (labels, width, vocabulary, rounded) in [(70, 64, 131, true), (70, 15, 131, false)] {
        let run = |be: &dyn Backend| {
            let tensor = |seed: u64, rows: usize| {
                be.tensor(&numbers(seed, rows * width), rows, width, DType::F32).unwrap()
            };
            let (x, head, mut dx) = (tensor(1, labels), tensor(2, vocabulary), tensor(3, labels));
            let weights = be.tensor(&vec![1.0; labels], labels, 1, DType::F32).unwrap();
            let targets = be.indices(&(0..labels as u32).collect::<Vec<_>>()).unwrap();
            let mut nll = be.alloc(labels, 1, DType::F32).unwrap();
            let op = CrossEntropy {
                x: x.mat(),
                head: head.mat(),
                logit_scale: 1.0,
                softcap: None,
                targets: &targets,
                weights: weights.mat(),
                nll: nll.mat_mut(),
                dx: Some(dx.mat_mut()),
                head_gradient: None,
            };
            be.execute(op.into()).unwrap();
            (be.download(nll.mat()).unwrap(), be.download(dx.mat()).unwrap())
        };
        let (got, want) = (run(&*mixed()), run(&*Cpu::open(None).unwrap()));
        assert_eq!(got != want, rounded, "{width}");
        close("losses", DType::BF16, &got.0, &want.0);
        close("their gradient", DType::BF16, &got.1, &want.1);
    }
}
