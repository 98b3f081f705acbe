//! Sums over rows: the gradient of a bias.

use super::*;

/// Two segments that miss the last row.
pub fn of_segments(t: usize, m: usize) -> Case {
    Case::new(format!("column sums {t}x{m}"), move |on| {
        let (dy, segments) = (on.compute(1, t, m), [0..t / 2, t / 2..t - t / 9]);
        Prepared::new([("sums", on.added_to_f32(2, 2, m))], move |[out], run| {
            run(ColumnSums { dy: dy.mat(), sums: PerSegment { segments: &segments, out } }.into())
        })
    })
}

pub fn at(s: &Sizes) -> Vec<Timed> {
    vec![of_segments(s.tokens, s.hidden).into()]
}

#[test]
fn column_sums_of_segments() {
    for (t, m) in [(1, 1), (9, 7), (13, 64), (3, 1025), (700, 33)] {
        let case = of_segments(t, m);
        let (dy, mut sums) = (exactly(1, t * m), exactly(2, 2 * m));
        for row in 0..t - t / 9 {
            let segment = usize::from(row >= t / 2);
            (0..m).for_each(|c| sums[segment * m + c] += dy[row * m + c]);
        }
        follows(&case, &[sums]);
        parity(case);
    }
}
