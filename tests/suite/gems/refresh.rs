//! Bases: what they are, how good sketched ones are, and how often a refresh waits for the device.

use super::{SHAPES, World, bases_of, site, small};
use crate::support::{assert_close, dry_run, on_every_device};
use gems_engine::backend::*;
use gems_engine::gems::*;
use gems_engine::layers::*;
use std::sync::Arc;

#[test]
fn complementary_bases_are_orthonormal_and_independent_ones_are_so_each() {
    on_every_device(|| {
        for refresh in [Refresh::Exact, Refresh::Sketch] {
            for bases in [Bases::Complementary, Bases::Independent] {
                let mut settings = small(Method::Gems);
                settings.gems.bases = bases;
                settings.gems.refresh = refresh;
                let mut world = World::new();
                let mut tuner = world.tuner(settings, None);
                for step in 0..9 {
                    world.step(&mut tuner, step, [9, 6]);
                }
                for site in 0..2 {
                    let (a, r, n) = bases_of(&world, site);
                    let blocks: Vec<std::ops::Range<usize>> =
                        if bases == Bases::Complementary { vec![0..r] } else { vec![0..3, 3..5, 5..7] };
                    for block in blocks {
                        for i in block.clone() {
                            for j in block.clone() {
                                let dot: f32 = (0..n).map(|c| a[i * n + c] * a[j * n + c]).sum();
                                let want = if i == j { 1.0 } else { 0.0 };
                                assert!((dot - want).abs() < 1e-5, "{bases:?} {refresh:?} {i} {j}: {dot}");
                            }
                        }
                    }
                }
            }
        }
    });
}

#[test]
fn sketches_find_nearly_the_best_basis() {
    on_every_device(|| {
        // A gradient with a decaying spectrum, as real ones have: energies kept by sketch and by SVD side by side.
        let kept = |refresh: Refresh| -> Vec<f64> {
            let mut settings = small(Method::Gems);
            settings.gems.refresh = refresh;
            let mut world = World::new();
            let mut tuner = world.tuner(settings, None);
            let mut energies = Vec::new();
            for step in 0..8 {
                if let Some(refresh) = world.step(&mut tuner, step, [9, 6]).refresh {
                    energies.push(refresh.energy[0]);
                }
            }
            assert_eq!(energies.len(), 2);
            // Energies are told on the gradient itself: the sketch's bases on the exact sums.
            let (a, r, n) = bases_of(&world, 1);
            let mut sum = world.be.zeros(SHAPES[1].0, n, DType::F32).unwrap();
            for step in 6..8 {
                let (x, dy) = world.material(1, step, [9, 6]);
                let (dy, x, blocks) = (dy.mat(), x.mat(), &[GradBlock::whole(0..15, n)]);
                let (out, write, gram) = (sum.mat_mut(), Write::Add, None);
                world.be.run(WeightGrad { dy, x, blocks, out, write, gram }).unwrap();
            }
            let g = world.be.download(sum.mat()).unwrap();
            let (mut all, mut held) = (0.0, 0.0);
            for i in 0..SHAPES[1].0 {
                all += (0..n).map(|j| (g[i * n + j] as f64).powi(2)).sum::<f64>();
                for c in 0..3.min(r) {
                    held += (0..n).map(|j| g[i * n + j] as f64 * a[c * n + j] as f64).sum::<f64>().powi(2);
                }
            }
            vec![held / all]
        };
        let (exact, sketch) = (kept(Refresh::Exact)[0], kept(Refresh::Sketch)[0]);
        assert!(sketch <= exact + 1e-6 && sketch > 0.9 * exact, "exact {exact}, sketch {sketch}");
    });
}

#[test]
fn folding_changes_nothing_and_moments_rotate() {
    on_every_device(|| {
        let mut world = World::new();
        let mut tuner = world.tuner(small(Method::Gems), None);
        for step in 0..3 {
            world.step(&mut tuner, step, [9, 6]);
        }
        // Step 4 refreshes: with learning rate 0 only the fold and the new bases happen.
        let before: Vec<Vec<f32>> = (0..2).map(|s| world.effective(s)).collect();
        tuner.begin_step().unwrap();
        world.observe(&mut tuner, 3, [9, 6]);
        let input = StepInput { labels: vec![1; 2], counts: vec![1.0; 2], ..Default::default() };
        let report = tuner.step(&mut world, &input).unwrap();
        assert!(report.refresh.is_some());
        for (site, before) in before.iter().enumerate() {
            assert_close("fold", &world.effective(site), before, 1e-5, 1e-6);
            let b = &world.layers[site].branch.as_ref().unwrap().b;
            assert!(world.be.download(b.mat()).unwrap().iter().all(|v| *v == 0.0));
        }
    });
}

/// So many layers of one shape on a device that counts and computes nothing.
struct Counted {
    be: Arc<dyn Backend>,
    layers: Vec<AdaptedLinear>,
    shapes: Vec<Site>,
}

impl Layers for Counted {
    fn linears(&mut self) -> &mut [AdaptedLinear] {
        &mut self.layers
    }
    fn dense(&mut self, _: usize) -> MatMut<'_> {
        unreachable!("no dense parameter is trained")
    }
}

impl Counted {
    fn new(layers: usize, (m, n): (usize, usize)) -> Self {
        let be = dry_run(DType::BF16);
        let layer = |_| AdaptedLinear {
            weight: be.alloc(m, n, DType::BF16).unwrap().into(),
            bias: None,
            branch: None,
        };
        let shape = |i| site(i, Projection::Q, (m, n));
        let layers: Vec<AdaptedLinear> = (0..layers).map(layer).collect();
        Self { shapes: (0..layers.len()).map(shape).collect(), be, layers }
    }

    fn observe(&self, tuner: &mut Optimizer) {
        let of = |cols| self.be.alloc(6, cols, DType::BF16).unwrap();
        tuner.begin_pass(Scales { tasks: vec![2.0, 2.0] });
        for (site, layer) in self.layers.iter().enumerate() {
            let (m, n) = layer.weight.shape();
            let rank = layer.branch.as_ref().map_or(0, |b| b.a.rows());
            let (x, dy, h, z) = (of(n), of(m), of(rank), of(rank));
            let (h, z) = (Some(h.mat()), Some(z.mat()));
            let gradient = LinearGradient { x: x.mat(), dy: dy.mat(), h, z, segments: &[0..3, 3..6] };
            tuner.linear(site, &gradient).unwrap();
        }
    }

    /// Second moments of every layer, with all directions known or half of them, of inputs and of output gradients.
    fn knowledge(&self, whole: (bool, bool)) -> Knowledge {
        let spectrum = |name: &str, dim: usize, whole: bool| {
            let k = if whole { dim } else { dim / 2 };
            let (directions, rest) = (vec![0.0; k * dim], if whole { 0.0 } else { 0.5 });
            Spectrum { name: name.into(), dim, directions, values: vec![1.0; k], rest, samples: 99 }
        };
        let each = |site: &Site| Some(spectrum(&site.name, site.outputs, whole.1));
        Knowledge {
            inputs: self.shapes.iter().map(|site| spectrum(&site.name, site.inputs, whole.0)).collect(),
            input_of_site: (0..self.shapes.len()).map(Some).collect(),
            gradients: self.shapes.iter().map(each).collect(),
            ..Default::default()
        }
    }

    /// Waits of each opening of a probe's window, of the first bases, of opening the window of a refresh, and of the
    /// refresh beside the step's own.
    fn waits(self, exact: bool) -> Vec<u64> {
        self.waits_with(exact, small(Method::Gems), None)
    }

    /// The same with these settings and second moments.
    fn waits_with(
        mut self,
        exact: bool,
        mut settings: MethodSettings,
        known: Option<&Knowledge>,
    ) -> Vec<u64> {
        settings.gems.refresh = if exact { Refresh::Exact } else { Refresh::Sketch };
        settings.gems.refresh_window = 1;
        let (be, shapes) = (Arc::clone(&self.be), self.shapes.clone());
        let mut tuner = Optimizer::new(settings, &shapes, &[], 2, known, &mut self, &be, 7).unwrap();
        let mut seen = be.waits();
        let mut since = || be.waits() - std::mem::replace(&mut seen, be.waits());
        let mut counts = Vec::new();
        for round in 0..tuner.probe_rounds() {
            tuner.begin_probe(round).unwrap();
            counts.push(since());
            self.observe(&mut tuner);
        }
        tuner.finish_probe(&mut self).unwrap();
        counts.push(since());
        let input = StepInput { labels: vec![1; 2], counts: vec![3.0; 2], ..Default::default() };
        let mut step = 0;
        for _ in 0..4 {
            tuner.begin_step().unwrap();
            counts.push(since());
            self.observe(&mut tuner);
            let report = tuner.step(&mut self, &input).unwrap();
            match report.refresh {
                None => {
                    step = since();
                    assert_eq!(step, 1, "an ordinary step waits once, at its end");
                }
                Some(_) => counts.push(since() - step),
            }
        }
        counts
    }
}

/// First bases from sketches: no wait for the first probes and for the orthonormal rows of sketches, one for scaling
/// coordinates; a refresh one a subspace (3) for its small eigenproblems and one for energies; its window one. However
/// many layers there are, and as few where gradients are decomposed as they are.
#[test]
fn a_refresh_waits_as_often_for_many_layers_as_for_one() {
    for layers in [1, 3, 10] {
        let sketched = [0, 0, 1, 4, 0, 0, 0, 1, 4];
        assert_eq!(Counted::new(layers, (40, 70)).waits(false), sketched, "{layers} layers");
        assert_eq!(
            Counted::new(layers, (40, 70)).waits(true),
            [0, 4, 0, 0, 0, 0, 4],
            "{layers} exact layers"
        );
        assert_eq!(Counted::new(layers, (70, 90)).waits(true), [0, 4, 0, 0, 0, 0, 4], "{layers} larger ones");
    }
}

/// The pull and the metric, of moments that are known whole and in part, wait for nothing of their own.
#[test]
fn the_pull_and_the_metric_wait_for_no_layer() {
    for side in [NullSide::None, NullSide::Metric] {
        for whole in [(true, true), (true, false), (false, true), (false, false)] {
            let mut settings = small(Method::Gems);
            (settings.null_space.side, settings.null_space.pull) = (side, 0.5);
            for layers in [1, 3, 10] {
                for (exact, want) in
                    [(false, &[0, 0, 1, 4, 0, 0, 0, 1, 4][..]), (true, &[0, 4, 0, 0, 0, 0, 4])]
                {
                    let counted = Counted::new(layers, (40, 70));
                    let known = counted.knowledge(whole);
                    let waits = counted.waits_with(exact, settings.clone(), Some(&known));
                    assert_eq!(waits, want, "{side:?}, {whole:?}, {layers} layers, exact: {exact}");
                }
            }
        }
    }
}

/// Remainders beside weights in codes wait twice for all layers, once without a pull.
#[test]
fn remainders_wait_for_all_layers_together() {
    for (pull, more) in [(0.0, 1), (0.5, 2)] {
        let mut settings = small(Method::Gems);
        settings.null_space.pull = pull;
        for layers in [1, 3, 10] {
            let mut counted = Counted::new(layers, (40, 70));
            let known = counted.knowledge((false, true));
            counted
                .layers
                .iter_mut()
                .for_each(|layer| layer.weight = super::remainder::coded(&*counted.be, (40, 70)));
            let waits = counted.waits_with(false, settings.clone(), Some(&known));
            assert_eq!(waits, [0, 0, 1, 4, 0, 0, 0, 1, 4 + more], "pull {pull}, {layers} layers");
        }
    }
}

/// A window that is as long as the time between refreshes is open in the very first step, also in one that only measures
/// what the largest step takes, before there are bases.
#[test]
fn a_window_may_be_open_all_the_time() {
    for refresh in [Refresh::Sketch, Refresh::Exact] {
        let mut settings = small(Method::Gems);
        (settings.gems.refresh, settings.gems.refresh_every, settings.gems.refresh_window) = (refresh, 2, 2);
        let mut world = World::new();
        let be = Arc::clone(&world.be);
        let shapes = world.shapes.clone();
        let mut tuner =
            Optimizer::new(settings.clone(), &shapes, &[None], 2, None, &mut world, &be, 7).unwrap();
        tuner.begin_step().unwrap();
        world.observe(&mut tuner, 900, [9, 6]);
        for round in 0..tuner.probe_rounds() {
            tuner.begin_probe(round).unwrap();
            world.observe(&mut tuner, 500, [9, 6]);
        }
        tuner.finish_probe(&mut world).unwrap();
        for step in 0..4 {
            assert!(world.step(&mut tuner, step, [9, 6]).finite, "{refresh:?}");
        }
    }
}
