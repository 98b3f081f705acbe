//! Task-gradient surgery from inner products alone.

/// PCGrad's weights: with `gram[i][j] = <g_i, g_j>`, the combined gradient is `Σ_t weights[t] g_t`
/// (Yu et al. 2020, algorithm 1, tasks in order). Each task's gradient loses its part along every other
/// original gradient it disagrees with; all steps are linear in the g's, so the Gram matrix is enough.
pub fn pcgrad_weights(gram: &[Vec<f64>]) -> Vec<f64> {
    let tasks = gram.len();
    let mut weights = vec![0.0; tasks];
    for i in 0..tasks {
        let mut c = vec![0.0; tasks];
        c[i] = 1.0;
        for j in (0..tasks).filter(|j| *j != i) {
            let along: f64 = (0..tasks).map(|k| c[k] * gram[k][j]).sum();
            if along < 0.0 && gram[j][j] > 0.0 {
                c[j] -= along / gram[j][j];
            }
        }
        weights.iter_mut().zip(c).for_each(|(w, c)| *w += c);
    }
    weights
}
