//! The null space: a space taken out of rows or columns.

use super::*;

pub fn rows(m: usize, n: usize, k: usize) -> Case {
    Case::new(format!("project rows {m}x{n}, {k} out"), move |on| {
        let k = on.orthonormal_columns(1, n, k);
        Prepared::new([("x", on.added_to_f32(2, m, n))], move |[x], run| {
            run(ProjectRows { x, k: k.mat() }.into())
        })
    })
}

pub fn columns(m: usize, n: usize, k: usize) -> Case {
    Case::new(format!("project columns {m}x{n}, {k} out"), move |on| {
        let k = on.orthonormal_columns(1, m, k);
        Prepared::new([("x", on.added_to_f32(2, m, n))], move |[x], run| {
            run(ProjectColumns { x, k: k.mat() }.into())
        })
    })
}

pub fn at(s: &Sizes) -> Vec<Timed> {
    let (d, r, k) = (s.hidden, s.rank, s.hidden / 4);
    vec![rows(r, d, k).into(), columns(d, r, k).into()]
}

/// `x - (x K) Kᵀ` of an x with rows of n.
fn without(x: &[f64], k: &[f64], n: usize) -> Vec<f64> {
    let width = k.len() / n;
    let project = |row: &[f64]| {
        let along: Vec<f64> =
            (0..width).map(|j| row.iter().zip(0..).map(|(x, i)| x * k[i * width + j]).sum()).collect();
        let back = |i: usize| along.iter().zip(&k[i * width..]).map(|(a, k)| a * k).sum::<f64>();
        row.iter().zip(0..).map(|(x, i)| x - back(i)).collect::<Vec<f64>>()
    };
    x.chunks(n).flat_map(project).collect()
}

fn transposed(x: &[f64], cols: usize) -> Vec<f64> {
    (0..cols).flat_map(|c| x.iter().skip(c).step_by(cols).copied()).collect()
}

/// Spaces that leave less than there was, and a space of everything.
#[test]
fn projections_and_orthonormal_rows() {
    for (k, n) in [(1, 2), (5, 12), (12, 300)] {
        parity(orthonormalize::of_matrices(1, k, n));
        let cpu = Cpu::open(None).unwrap();
        let space = cpu.download(inputs(&*cpu, DType::F32).orthonormal_columns(1, n, k).mat()).unwrap();
        let space: Vec<f64> = space.into_iter().map(f64::from).collect();
        follows(&rows(9, n, k), &[without(&exactly(2, 9 * n), &space, n)]);
        let along = without(&transposed(&exactly(2, n * 4), 4), &space, n);
        follows(&columns(n, 4, k), &[transposed(&along, n)]);
        parity(rows(9, n, k));
        parity(columns(n, 4, k));
    }
    for be in backends() {
        for case in [rows(9, 1, 1), columns(1, 4, 1), rows(3, 7, 7), columns(7, 3, 7)] {
            let left = outputs(&*be, DType::F32, &case);
            assert!(left[0].1.iter().all(|v| v.abs() < 1e-5), "{}: {left:?}", case.name);
        }
    }
}
