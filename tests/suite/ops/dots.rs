//! Inner products.

use super::*;

pub fn of_pairs(pairs: usize, m: usize, r: usize) -> Case {
    Case::new(format!("dots, {pairs} pairs of {m}x{r}"), move |on| {
        let (x, y) = (on.f32(1, m, r), on.f32(2, m, r));
        Prepared::new([("products", on.unwritten_f32(1, pairs))], move |[out], run| {
            let first = |i: usize| if i.is_multiple_of(2) { x.mat() } else { y.mat() };
            run(Dots { pairs: (0..pairs).map(|i| (first(i), y.mat())).collect(), out }.into())
        })
    })
}

pub fn at(s: &Sizes) -> Vec<Timed> {
    vec![of_pairs(70, s.intermediate, s.rank).into()]
}

#[test]
fn dots_by_their_formula() {
    for (m, r) in [(1, 1), (33, 7), (90, 64)] {
        let (x, y) = (exactly(1, m * r), exactly(2, m * r));
        let dot = |a: &[f64]| a.iter().zip(&y).map(|(a, b)| a * b).sum::<f64>();
        follows(&of_pairs(3, m, r), &[vec![dot(&x), dot(&y), dot(&x)]]);
    }
}
