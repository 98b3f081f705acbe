//! Orthonormal rows.

use super::*;

/// Independent rows of several matrices.
pub fn of_matrices(count: usize, r: usize, n: usize) -> Case {
    Case::new(format!("orthonormal rows of {count} {r}x{n}"), move |on| {
        let outputs = (0..count as u64).map(|i| ("rows", on.view(i, (r, n), 3, DType::F32))).collect();
        Prepared::many(outputs, |matrices, run| run(OrthonormalizeRows { matrices }.into()))
    })
}

pub fn at(s: &Sizes) -> Vec<Timed> {
    [s.hidden, s.intermediate].map(|n| of_matrices(s.layers, s.rank, n).into()).into()
}

/// A matrix's rows, of which those numbered in `dependent` are sums of the rows before them (zero for row 0).
/// Every third row nearly is one: it leaves its predecessor by a ten-thousandth, which one pass of Gram-Schmidt does not
/// make orthogonal.
fn with_dependent_rows(seed: u64, (r, n): (usize, usize), dependent: &[usize]) -> Vec<f32> {
    let mut rows = numbers(seed, r * n);
    for i in (2..r).step_by(3).filter(|_| r < n) {
        for c in 0..n {
            rows[i * n + c] = rows[(i - 1) * n + c] + 1e-4 * rows[i * n + c];
        }
    }
    for &i in dependent {
        for c in 0..n {
            rows[i * n + c] = (0..i).map(|j| (1.0 - 0.3 * j as f32) * rows[j * n + c]).sum();
        }
    }
    rows
}

/// Orthonormal to rounding, each row in the span of the given rows up to its own and along it; dependent rows zero.
#[track_caller]
fn orthonormal(what: &str, (r, n): (usize, usize), given: &[f32], got: &[f32], dependent: &[usize]) {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let row = |m: &'_ [f32], i: usize| m[i * n..(i + 1) * n].to_vec();
    for i in 0..r {
        let (q, a) = (row(got, i), row(given, i));
        for j in 0..=i {
            let want = f64::from(i == j && !dependent.contains(&i));
            let along = dot(&q, &row(got, j));
            assert!((along - want).abs() < 1e-6, "{what}: rows {i} and {j}: {along}");
        }
        let mut left: Vec<f64> = a.iter().map(|v| f64::from(*v)).collect();
        for j in 0..=i {
            let along = dot(&row(got, j), &a);
            left.iter_mut().zip(row(got, j)).for_each(|(l, q)| *l -= along * f64::from(q));
        }
        let (size, rest) = (dot(&a, &a).sqrt(), left.iter().map(|v| v * v).sum::<f64>().sqrt());
        assert!(rest <= 2e-6 * size, "{what}: row {i} left its span: {rest} of {size}");
        assert!(dot(&q, &a) >= 0.0, "{what}: row {i} points the other way");
    }
}

/// Less than a panel of rows, a panel, one more, several; rows of one number, rows of which shared memory holds two, one
/// and none; more matrices than a launch takes, in one call.
#[test]
fn orthonormal_rows_of_many_matrices() {
    let mut cases: Vec<((usize, usize), Vec<usize>)> = vec![
        ((1, 1), vec![]),
        ((3, 1), vec![1, 2]),
        ((4, 50), vec![0, 2]),
        ((7, 7), vec![]),
        ((8, 40), vec![7]),
        ((9, 41), vec![8]),
        ((20, 70), vec![1, 8, 15, 16]),
        ((40, 1030), vec![]),
        ((3, 14_336), vec![1]),
        ((2, 20_000), vec![]),
        ((2, 30_000), vec![1]),
    ];
    cases.extend((0..130).map(|i| ((1 + i % 5, 5 + i % 7), if i % 5 == 3 { vec![2] } else { vec![] })));
    for be in backends() {
        let given: Vec<Vec<f32>> =
            cases.iter().zip(0..).map(|((size, rows), i)| with_dependent_rows(i, *size, rows)).collect();
        let mut held: Vec<Padded> = (cases.iter().zip(&given).enumerate())
            .map(|(i, (((r, n), _), values))| Padded::new(&*be, values, *r, *n, 1 + i % 3, DType::F32))
            .collect();
        let mut none = be.alloc(0, 5, DType::F32).unwrap();
        let mut matrices: Vec<MatMut> = held.iter_mut().map(Padded::mat_mut).collect();
        matrices.push(none.mat_mut());
        be.run(OrthonormalizeRows { matrices }).unwrap();
        for (i, (size, dependent)) in cases.iter().enumerate() {
            let what = format!("{}, matrix {i} {size:?}", be.info().name);
            orthonormal(&what, *size, &given[i], &held[i].read(&*be), dependent);
        }
    }
}
