//! Interpolation by hand, randomisation against scipy, the bootstrap of crossed factors against numpy.

use super::{entry, field, outcome};
use gems_engine::eval::significance::{quantile, randomisation};
use gems_engine::race::{Beyond, Point, beyond, common_range, log_kl_at, log_ratio_or_bound, mean_log_ratio};

fn curve(points: &[(f64, f64)]) -> Vec<Point> {
    points.iter().map(|(quality, kl)| Point { quality: *quality, kl: *kl }).collect()
}

#[track_caller]
fn close(got: Option<f64>, want: f64) {
    let got = got.expect("a value");
    assert!((got - want).abs() < 1e-9, "{got} is not {want}");
}

#[test]
fn divergence_at_a_quality_is_interpolated_and_never_extrapolated() {
    let c = curve(&[(0.5, 0.1), (0.6, 0.2), (0.7, 0.8)]);
    // Halfway between two points lies the geometric mean: sqrt(.1 .2), sqrt(.2 .8); a fifth of the way .1^.8 .2^.2.
    close(log_kl_at(&c, 0.55), 0.02f64.ln() / 2.0);
    close(log_kl_at(&c, 0.65), 0.4f64.ln());
    close(log_kl_at(&c, 0.52), 0.8 * 0.1f64.ln() + 0.2 * 0.2f64.ln());
    close(log_kl_at(&c, 0.7), 0.8f64.ln());
    assert_eq!((log_kl_at(&c, 0.7001), beyond(&c, 0.7001)), (None, Some(Beyond::NotReached)));
    assert_eq!((log_kl_at(&c, 0.4999), beyond(&c, 0.4999)), (None, Some(Beyond::Surpassed)));
    assert_eq!(beyond(&c, 0.55), None);
    // A curve that turns back: the crossing of the smallest learning rates counts.
    let back = curve(&[(0.5, 0.1), (0.7, 0.4), (0.6, 9.0)]);
    close(log_kl_at(&back, 0.65), 0.75 * 0.4f64.ln() + 0.25 * 0.1f64.ln());
    // One learning rate is no curve; none, nor a divergence of nothing.
    assert_eq!(log_kl_at(&curve(&[(0.5, 0.1)]), 0.51), None);
    assert_eq!(log_kl_at(&[], 0.5), None);
    assert_eq!(log_kl_at(&curve(&[(0.5, 0.0), (0.6, 0.2)]), 0.55), None);
}

#[test]
fn a_curve_that_ranks_better_everywhere_gives_a_bound() {
    let low = curve(&[(0.5, 0.1), (0.7, 0.8)]);
    let high = curve(&[(0.65, 0.02), (0.8, 0.3)]);
    // Both have .65: sqrt-like weights 1/4 and 3/4 of the low one's logs.
    close(log_ratio_or_bound(&low, &high, 0.65), 0.25 * 0.1f64.ln() + 0.75 * 0.8f64.ln() - 0.02f64.ln());
    // At .6 the high one needs no more than .02, and the low one sqrt(.08).
    close(log_ratio_or_bound(&low, &high, 0.6), 0.08f64.ln() / 2.0 - 0.02f64.ln());
    close(log_ratio_or_bound(&high, &low, 0.6), 0.02f64.ln() - 0.08f64.ln() / 2.0);
    // A bound that is not ahead says nothing, nor does a curve that does not reach.
    let dear = curve(&[(0.65, 0.5), (0.8, 0.9)]);
    assert_eq!(log_ratio_or_bound(&low, &dear, 0.6), None);
    assert_eq!(log_ratio_or_bound(&high, &low, 0.75), None);
    assert_eq!(log_ratio_or_bound(&low, &high, 0.3), None);
}

#[test]
fn the_mean_over_the_common_range_is_that_of_straight_lines() {
    // log KL = 10 q on [.4, .8], and 4 q on [.5, .9]: over [.5, .8] the mean of 6 q is 6 x .65.
    let line =
        |slope: f64, from: f64, to: f64| curve(&[(from, (slope * from).exp()), (to, (slope * to).exp())]);
    let (a, b) = (line(10.0, 0.4, 0.8), line(4.0, 0.5, 0.9));
    assert_eq!(common_range(&a, &b), Some((0.5, 0.8)));
    close(mean_log_ratio(&a, &b), 3.9);
    close(mean_log_ratio(&b, &a), -3.9);
    assert_eq!(mean_log_ratio(&a, &line(4.0, 0.8, 0.9)), None);
}

#[test]
fn requests_are_tested_with_every_task_counting_as_much() {
    // scipy 1.17: permutation_test over [.30, -.10, .25, .40] / 4 and [.05, .20, -.15] / 3, 'samples', all patterns,
    // statistic the sum: p = 0.15625.
    let weighted = |values: &[f64]| values.iter().map(|v| v / values.len() as f64).collect::<Vec<_>>();
    let all = [weighted(&[0.30, -0.10, 0.25, 0.40]), weighted(&[0.05, 0.20, -0.15])].concat();
    assert_eq!(randomisation(&all, 0, 0), 0.15625);
    // The differences of a field are those, in the mean over seeds: one seed has twice of each, the other none.
    let with = |d: f64| {
        outcome(
            &[0.3, -0.1, 0.25, 0.4].map(|v| 0.5 + d * v),
            &[0.05, 0.2, -0.15].map(|v| 0.5 + d * v),
            &[0.1],
        )
    };
    let entries = vec![
        entry("plain", None, 1.0, vec![with(0.0), with(0.0)]),
        entry("other", None, 1.0, vec![with(2.0), with(0.0)]),
    ];
    let f = field(2, entries);
    for (task, want) in [(0, &[0.3, -0.1, 0.25, 0.4][..]), (1, &[0.05, 0.2, -0.15])] {
        let got = f.differences(0, 1, task).unwrap();
        assert!(
            got.len() == want.len() && got.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-12),
            "{got:?}"
        );
    }
}

#[test]
fn seeds_and_requests_are_drawn_each_by_itself() {
    let value = |s: usize, i: usize| {
        let (s, i) = (s as f64, i as f64);
        0.5 + 0.05 * (1.7 * s).sin() + 0.3 * (0.9 * i).cos() + 0.1 * (3.0 * s + 2.0 * i).sin()
    };
    let run = |s: usize| {
        let values: Vec<f64> = (0..40).map(|i| value(s, i)).collect();
        // Both tasks and the texts alike: each is drawn by itself.
        outcome(&values, &values, &values)
    };
    let f = field(7, vec![entry("plain", None, 1.0, (0..7).map(run).collect())]);
    let measured = f.measured();
    assert!((measured.task(0, 0).unwrap() - 0.49962368064519597).abs() < 1e-12);
    assert!((measured.point(0).unwrap().kl - 0.49962368064519597).abs() < 1e-12);
    // numpy 2.4, 200,000 draws: rows and columns of y[s, i] by default_rng(0).integers, percentiles 2.5 and 97.5.
    let want = (0.42844877, 0.57109993);
    let drawn = f.resampled(8000, 1);
    let interval = |of: &dyn Fn(usize) -> f64| {
        let mut all: Vec<f64> = (0..drawn.len()).map(of).collect();
        all.sort_by(f64::total_cmp);
        (quantile(&all, 0.025), quantile(&all, 0.975))
    };
    for (low, high) in [
        interval(&|d| drawn[d].task(0, 0).unwrap()),
        interval(&|d| drawn[d].task(0, 1).unwrap()),
        interval(&|d| drawn[d].point(0).unwrap().kl),
    ] {
        // Of 8000 draws the standard error of such a percentile is .001.
        assert!((low - want.0).abs() < 0.004 && (high - want.1).abs() < 0.004, "{low} {high}");
    }
    // The tasks' requests are not drawn alike: their mean is narrower than each.
    let (low, high) = interval(&|d| drawn[d].point(0).unwrap().quality);
    assert!(high - low < 0.85 * (want.1 - want.0), "{low} {high}");
}
