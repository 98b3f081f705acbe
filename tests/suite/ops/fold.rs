//! A low-rank branch folded into its weight.

use super::*;

const KEEP: f32 = 0.9;
const SCALE: f32 = 0.1;

pub fn of_branch((m, n): (usize, usize), r: usize, rounding: Rounding) -> Case {
    Case::new(format!("fold {m}x{n}"), move |on| {
        let (b, a) = (on.f32(2, m, r), on.compute(3, r, n));
        let w = on.view(1, (m, n), 3, on.be.compute_dtype());
        Prepared::new([("w", w)], move |[w], run| {
            run(Fold { w, keep: KEEP, scale: SCALE, b: b.mat(), a: a.mat(), rounding }.into())
        })
    })
}

pub fn at(s: &Sizes) -> Vec<Timed> {
    let one = |(name, m, n)| {
        let case = of_branch((m, n), s.rank, Rounding::Stochastic(1));
        case.named(format!("fold {name} {m}x{n}")).into()
    };
    s.linear_layers().into_iter().map(one).collect()
}

#[test]
fn fold_to_the_nearest_and_at_random() {
    for (m, n, r) in [(1, 1, 1), (70, 45, 6)] {
        let (w, b, a) = (exactly(1, m * n), exactly(2, m * r), exactly(3, r * n));
        let branch = |e: usize| (0..r).map(|k| b[e / n * r + k] * a[k * n + e % n]).sum::<f64>();
        let want = (0..m * n).map(|e| f64::from(KEEP) * w[e] + f64::from(SCALE) * branch(e)).collect();
        follows(&of_branch((m, n), r, Rounding::Nearest), &[want]);
        parity(of_branch((m, n), r, Rounding::Nearest));
    }
    let devices =
        kernel_devices(DType::BF16).into_iter().chain([Cpu::open(None).unwrap() as Arc<dyn Backend>]);
    let folded: Vec<Vec<f32>> = devices.map(|be| fold_at_random(&*be)).collect();
    // At random, but everywhere alike.
    assert!(folded.windows(2).all(|pair| pair[0] == pair[1]));
}

/// 1 + 2^-10 lies an eighth of the way from 1 to the next bf16: that share of 200 x 200 is rounded up.
fn fold_at_random(be: &dyn Backend) -> Vec<f32> {
    let ones = |rows, cols, dtype| be.tensor(&vec![1.0; rows * cols], rows, cols, dtype).unwrap();
    let mut w = ones(200, 200, DType::BF16);
    let (b, a) = (ones(200, 1, DType::F32), ones(1, 200, DType::F32));
    let (keep, scale, rounding) = (1.0, 2f32.powi(-10), Rounding::Stochastic(7));
    be.run(Fold { w: w.mat_mut(), keep, scale, b: b.mat(), a: a.mat(), rounding }).unwrap();
    let after = be.download(w.mat()).unwrap();
    assert!(after.iter().all(|v| *v == 1.0 || *v == 1.0078125));
    let up = after.iter().filter(|v| **v > 1.0).count() as f64 / 40_000.0;
    assert!((up - 0.125).abs() < 0.01, "{up} rounded up"); // six standard deviations
    after
}
