//! Clipping, surgery and gates of a step.

use super::*;
use crate::support::FactorCase;

/// Factors of tasks whose gradients are random vectors.
pub fn of_tasks(tasks: usize) -> Case {
    Case::new(format!("step factors of {tasks} tasks"), move |on| {
        let products = Defined::new(tasks).products();
        let entries = on.indices(products.iter().map(|p| p.0.number(tasks) as u32));
        let values: Vec<f32> = products.iter().map(|p| p.1 as f32).collect();
        let products = on.given(&values, 1, values.len());
        let counts: Vec<f32> = (0..tasks).map(|t| 1.0 + t as f32).collect();
        let losses = on.given(&counts, 1, tasks);
        let output = on.unwritten_f32(1, factors::count(tasks));
        Prepared::new([("factors", output)], move |[factors], run| {
            let op = StepFactors {
                products: products.mat(),
                entries: &entries,
                losses: losses.mat(),
                labels: &counts,
                counts: &counts,
                gates: GateRule::Shares([0.5, 0.25, 0.25]),
                pcgrad: true,
                clip_norm: 1.0,
                factors,
            };
            run(op.into())
        })
    })
}

pub fn at(_: &Sizes) -> Vec<Timed> {
    vec![of_tasks(2).into()]
}

/// Clipping, PCGrad and gates by their definitions, in f64 on gradients that are there as vectors.
struct Defined {
    tasks: usize,
    /// Gradients of two layers, of a dense parameter, and those that the gates see.
    vectors: Vec<Vec<f32>>,
}

impl Defined {
    fn new(tasks: usize) -> Self {
        Self { tasks, vectors: (0..4 * tasks).map(|i| numbers(i as u64, 4)).collect() }
    }
    fn dot(a: &[f64], b: &[f64]) -> f64 {
        a.iter().zip(b).map(|(a, b)| a * b).sum()
    }
    fn of(&self, kind: usize, task: usize) -> Vec<f64> {
        self.vectors[kind * self.tasks + task].iter().map(|v| f64::from(*v)).collect()
    }
    /// A task's whole gradient.
    fn gradient(&self, task: usize) -> Vec<f64> {
        (0..3).flat_map(|kind| self.of(kind, task)).collect()
    }
    fn products(&self) -> Vec<(GramEntry, f64)> {
        let mut all = vec![(GramEntry::Whole, 0.75), (GramEntry::Whole, 0.25)];
        for i in 0..self.tasks {
            let own = self.of(3, i);
            all.push((GramEntry::Own(i), Self::dot(&own, &own)));
            for j in i..self.tasks {
                let product = |kind| Self::dot(&self.of(kind, i), &self.of(kind, j));
                let kinds = [GramEntry::Layer(i, j), GramEntry::Layer(i, j), GramEntry::Dense(i, j)];
                all.extend(kinds.into_iter().enumerate().map(|(kind, entry)| (entry, product(kind))));
            }
        }
        all
    }
    /// The combined gradient: the sum, or PCGrad's (Yu et al. 2020, algorithm 1, tasks in order).
    fn combined(&self, pcgrad: bool) -> Vec<f64> {
        let all: Vec<Vec<f64>> = (0..self.tasks).map(|t| self.gradient(t)).collect();
        let mut sum = vec![0.0; all[0].len()];
        for i in 0..self.tasks {
            let mut own = all[i].clone();
            for other in all.iter().enumerate().filter(|(j, _)| pcgrad && *j != i).map(|(_, g)| g) {
                let along = Self::dot(&own, other).min(0.0) / Self::dot(other, other);
                own.iter_mut().zip(other).for_each(|(o, g)| *o -= along * g);
            }
            sum.iter_mut().zip(own).for_each(|(s, o)| *s += o);
        }
        sum
    }
}

#[test]
fn factors_of_a_step_on_every_device() {
    for be in [kernel_devices(DType::BF16), vec![Cpu::open(None).unwrap()]].concat() {
        for (tasks, pcgrad, clip_norm) in
            [(1, false, 0.0), (2, true, 1.0), (3, true, 0.5), (5, false, 100.0), (17, true, 1.0)]
        {
            let defined = Defined::new(tasks);
            let mean: Vec<f64> = (0..tasks).map(|t| 1.0 + t as f64).collect();
            let counts: Vec<f64> = (0..tasks).map(|t| t as f64).collect();
            let case = FactorCase {
                products: defined.products(),
                pcgrad,
                clip_norm,
                ..FactorCase::of(&mean, &counts)
            };
            let combined = defined.combined(pcgrad);
            let norm = (Defined::dot(&combined, &combined) + 1.0).sqrt();
            let clip = if clip_norm > 0.0 { (clip_norm / (norm + 1e-6)).min(1.0) } else { 1.0 };
            let norms: Vec<f64> =
                (0..tasks).map(|t| Defined::dot(&defined.of(3, t), &defined.of(3, t)).sqrt()).collect();
            let share = |values: &[f64], t: usize| match values.iter().sum::<f64>() {
                total if total > 0.0 => values[t] / total,
                _ => 1.0 / tasks as f64,
            };
            let inverse: Vec<f64> = norms.iter().map(|n| 1.0 / n).collect();
            let given: Vec<f32> = (0..tasks).map(|t| 0.25 + t as f32).collect();
            let weighted = |t| 0.5 * share(&mean, t) + 0.25 * share(&norms, t) + 0.25 * share(&counts, t);
            let all = |f: &dyn Fn(usize) -> f64| (0..tasks).map(f).collect::<Vec<f64>>();
            for (rule, want) in [
                (GateRule::Fixed(0.3), all(&|_| f64::from(0.3f32))),
                (GateRule::Shares([0.5, 0.25, 0.25]), all(&weighted)),
                (GateRule::InverseNorm, all(&|t| share(&inverse, t))),
                (GateRule::Given(&given), all(&|t| 0.25 + t as f64)),
            ] {
                let got = case.factors(&be, rule);
                let what = format!("{}: {tasks} tasks, {rule:?}", be.info().name);
                assert_close(&what, &got[..1], &[clip as f32], 1e-5, 1e-6);
                let gates: Vec<f32> = want.iter().map(|v| *v as f32).collect();
                assert_close(&what, &got[1 + tasks..], &gates, 1e-5, 1e-6);
                let of = |c: usize| {
                    (0..tasks).map(|t| f64::from(got[1 + t]) * defined.gradient(t)[c]).sum::<f64>()
                };
                let found: Vec<f32> = (0..combined.len()).map(|c| of(c) as f32).collect();
                let combined: Vec<f32> = combined.iter().map(|v| *v as f32).collect();
                assert_close(&what, &found, &combined, 1e-4, 1e-4);
            }
            let mut poisoned = case.clone();
            poisoned.products[3].1 = f64::INFINITY;
            assert!(poisoned.factors(&be, GateRule::InverseNorm)[0].is_nan());
            // What is held is in no factor, but must be finite.
            let (mut held, plain) = (case.clone(), case.factors(&be, GateRule::InverseNorm));
            held.products.push((GramEntry::Held, 3.0));
            assert_eq!(held.factors(&be, GateRule::InverseNorm), plain);
            held.products.push((GramEntry::Held, f64::NAN));
            assert!(held.factors(&be, GateRule::InverseNorm)[0].is_nan());
        }
    }
}
