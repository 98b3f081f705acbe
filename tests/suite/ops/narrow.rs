//! Weights that the CPU keeps in less than f32: every operation that reads or writes them, against f64 and against f32
//! weights of the same values; pieces and depths of a product are crossed.

use super::*;
use half::bf16;

fn rounded(seed: u64, n: usize) -> Vec<f32> {
    numbers(seed, n).into_iter().map(|v| bf16::from_f32(v).to_f32()).collect()
}

/// `c = beta c + a W`, or with Wᵀ, W being bf16 or f32 of the same values, on so many threads.
fn product(
    threads: usize,
    (m, k, n): (usize, usize, usize),
    transposed: bool,
    beta: f32,
    dtype: DType,
) -> Vec<f32> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    pool.install(|| {
        let be = Cpu::open(None).unwrap();
        let (rows, cols) = if transposed { (n, k) } else { (k, n) };
        // A view: a row more in front and three columns more behind.
        let mut store = be.alloc(rows + 1, cols + 3, dtype).unwrap();
        be.fill(store.mat_mut(), f32::NAN).unwrap();
        be.upload(&rounded(1, k * n), store.mat_mut().row_range(1..rows + 1).col_range(0..cols)).unwrap();
        let w = store.mat().row_range(1..rows + 1).col_range(0..cols);
        let a = be.tensor(&numbers(2, m * k), m, k, DType::F32).unwrap();
        let mut c = be.tensor(&numbers(3, m * n), m, n, DType::F32).unwrap();
        be.product(c.mat_mut(), beta, 0.5, a.mat().n(), if transposed { w.t() } else { w.n() }).unwrap();
        be.download(c.mat()).unwrap()
    })
}

#[test]
fn products_with_bf16_weights_on_any_number_of_threads() {
    for size in [(1, 1, 1), (5, 70, 33), (3, 1300, 700), (40, 64, 5000), (600, 520, 90), (2, 0, 3)] {
        for (transposed, beta) in [(false, 0.0), (false, 1.0), (true, 0.0), (true, 1.0)] {
            let got = product(1, size, transposed, beta, DType::BF16);
            for threads in [2, 3] {
                assert!(
                    got == product(threads, size, transposed, beta, DType::BF16),
                    "{size:?}, {threads} threads"
                );
            }
            let whole = product(1, size, transposed, beta, DType::F32);
            // Every element is one sum in both, unless it is over rows of the weight.
            assert!(!transposed || got == whole, "{size:?}");
            let ((m, k, n), w, a, c) =
                (size, rounded(1, size.1 * size.2), numbers(2, size.0 * size.1), numbers(3, size.0 * size.2));
            let at = |l: usize, j: usize| f64::from(if transposed { w[j * k + l] } else { w[l * n + j] });
            let sum = |i: usize, j: usize| (0..k).map(|l| f64::from(a[i * k + l]) * at(l, j)).sum::<f64>();
            let want: Vec<f32> =
                (0..m * n).map(|e| (0.5 * sum(e / n, e % n) + f64::from(beta * c[e])) as f32).collect();
            close(&format!("{size:?} transposed {transposed} beta {beta}"), DType::F32, &got, &want);
        }
    }
}

#[test]
fn tables_and_copies_of_bf16() {
    let be = Cpu::open(None).unwrap();
    let (rows, cols) = (7, 19);
    let values = rounded(4, rows * cols);
    let table = be.tensor(&values, rows, cols, DType::BF16).unwrap();
    assert_eq!(be.download(table.mat()).unwrap(), values);
    let wanted = be.indices(&[6, 0, 6, 3]).unwrap();
    let mut to = be.alloc(4, cols, DType::F32).unwrap();
    be.run(Gather { from: table.mat(), rows: &wanted, scale: 3.0, to: to.mat_mut() }).unwrap();
    let want: Vec<f32> =
        wanted.host.iter().flat_map(|r| &values[*r as usize * cols..][..cols]).map(|v| 3.0 * v).collect();
    assert_eq!(be.download(to.mat()).unwrap(), want);
    let mut rows = be.alloc(4, cols, DType::BF16).unwrap();
    be.run(Gather { from: table.mat(), rows: &wanted, scale: 1.0, to: rows.mat_mut() }).unwrap();
    assert_eq!(be.download(rows.mat()).unwrap(), want.iter().map(|v| v / 3.0).collect::<Vec<f32>>());
    // Rounded to the nearest, ties to even.
    let exact =
        be.tensor(&[1.0, 1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, -1e-40, 3e38], 1, 5, DType::F32).unwrap();
    let copy = be.duplicate(exact.mat(), DType::BF16).unwrap();
    assert_eq!(be.download(copy.mat()).unwrap()[..3], [1.0, 1.0, 1.015625]);
    let again = be.duplicate(copy.mat(), DType::F32).unwrap();
    assert_eq!(be.download(again.mat()).unwrap(), be.download(copy.mat()).unwrap());
    let twice = be.duplicate(copy.mat(), DType::BF16).unwrap();
    assert_eq!(be.download(twice.mat()).unwrap(), be.download(copy.mat()).unwrap());
    let mut y = be.tensor(&[10.0; 5], 1, 5, DType::F32).unwrap();
    be.axpy(-2.0, copy.mat(), y.mat_mut()).unwrap();
    assert_eq!(be.download(y.mat()).unwrap()[..3], [8.0, 8.0, 10.0 - 2.03125]);
    be.fill(y.mat_mut(), 0.5).unwrap();
    assert_eq!(be.download(y.mat()).unwrap(), [0.5; 5]);
}

/// `keep W + scale B A` rounded once, over more rows than one piece has.
#[test]
fn folds_into_bf16_are_rounded_once() {
    let be = Cpu::open(None).unwrap();
    for (m, n, r) in [(1, 1, 1), (70, 45, 6), (600, 1001, 2)] {
        let (w, b, a) = (rounded(1, m * n), numbers(2, m * r), numbers(3, r * n));
        let mut to = be.tensor(&w, m, n, DType::BF16).unwrap();
        let (b_of, a_of) =
            (be.tensor(&b, m, r, DType::F32).unwrap(), be.tensor(&a, r, n, DType::F32).unwrap());
        let (keep, scale, rounding) = (0.9, 0.1, Rounding::Nearest);
        be.run(Fold { w: to.mat_mut(), keep, scale, b: b_of.mat(), a: a_of.mat(), rounding }).unwrap();
        for (e, got) in be.download(to.mat()).unwrap().iter().enumerate() {
            let branch: f64 = (0..r).map(|k| f64::from(b[e / n * r + k]) * f64::from(a[k * n + e % n])).sum();
            let want = f64::from(0.9f32) * f64::from(w[e]) + f64::from(0.1f32) * branch;
            // Half a unit in the last place of bf16, and what f32 sums are off.
            let half = 2f64.powi(want.abs().log2().floor() as i32 - 8);
            assert!((f64::from(*got) - want).abs() <= half * 1.001 + 1e-6, "{m}x{n} {e}: {got}, {want}");
        }
    }
}
