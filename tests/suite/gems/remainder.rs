//! What is learned beside a weight in codes, which takes nothing.

use super::{SHAPES, World, knowledge, moments, small};
use crate::support::{assert_close, on_every_device};
use gems_engine::backend::*;
use gems_engine::gems::*;

/// The values of a weight in codes, f32.
pub fn values(be: &dyn Backend, from: &Quantised) -> Tensor {
    let mut w = be.alloc(from.shape.0, from.shape.1, DType::F32).unwrap();
    be.run(Dequantize { from, first_row: 0, to: w.mat_mut() }).unwrap();
    w
}

/// A weight in codes of 8 bits.
fn coded_of(be: &dyn Backend, shape: (usize, usize)) -> Quantised {
    let count = shape.0 * shape.1;
    let mut codes = be.alloc_bytes(count).unwrap();
    be.upload_bytes(&(0..count).map(|e| (e * 37 % 251) as u8).collect::<Vec<_>>(), &mut codes).unwrap();
    let scales = be.tensor(&vec![0.01; shape.0], 1, shape.0, DType::F32).unwrap();
    let (levels, groups) = (Levels::Byte(128.0), Groups::Runs(shape.1));
    Quantised { shape, levels, codes, scales, zeros: None, groups, rounded: Rounded::F32 }
}

/// The same as a layer's weight.
pub fn coded(be: &dyn Backend, shape: (usize, usize)) -> Weight {
    Weight::Quantised(coded_of(be, shape))
}

/// A world whose layers are in codes of 8 bits, and one with the same values that are whole.
fn both() -> (World, World) {
    let (mut coded, mut whole) = (World::new(), World::new());
    for (i, shape) in SHAPES.into_iter().enumerate() {
        let be = &coded.be;
        let made = coded_of(&**be, shape);
        whole
            .be
            .upload(&be.download(values(&**be, &made).mat()).unwrap(), whole.layers[i].weight.mat_mut())
            .unwrap();
        coded.layers[i].weight = Weight::Quantised(made);
    }
    (coded, whole)
}

type Change<'a> = &'a dyn Fn(&mut MethodSettings);

fn run(
    world: &mut World,
    settings: MethodSettings,
    known: &Knowledge,
    steps: u64,
) -> (Optimizer, Option<f64>) {
    let mut tuner = world.tuner(settings, Some(known));
    let reports = (0..steps).map(|step| world.step(&mut tuner, step, [9, 6]).refresh.and_then(|r| r.lost));
    let lost = reports.collect::<Vec<_>>().into_iter().flatten().last();
    (tuner, lost)
}

fn square(values: impl Iterator<Item = f32>) -> f64 {
    values.map(|v| f64::from(v).powi(2)).sum()
}

/// With room for all folds, the layer computes what one computes that takes them.
#[test]
fn a_remainder_with_room_is_a_fold() {
    on_every_device(|| {
        for (side, known) in [
            (NullSide::None, knowledge(NullSide::Input, 3)),
            (NullSide::Input, knowledge(NullSide::Input, 3)),
            (NullSide::Output, knowledge(NullSide::Output, 3)),
            (NullSide::Metric, moments(5)),
        ] {
            for method in [Method::Gems, Method::Galore] {
                let (mut coded, mut whole) = both();
                let start: Vec<Vec<f32>> = (0..2).map(|site| coded.effective(site)).collect();
                let mut settings = small(method);
                settings.null_space.side = side;
                settings.gems.remainder_rank = Some(64);
                let (_, lost) = run(&mut coded, settings.clone(), &known, 9);
                run(&mut whole, settings, &known, 9);
                assert!(
                    lost.is_some_and(|lost| lost < 1e-5),
                    "{side:?} {method:?}: {lost:?} of the energy lost"
                );
                for (site, start) in start.iter().enumerate() {
                    let (got, want) = (coded.effective(site), whole.effective(site));
                    let change = square(want.iter().zip(start).map(|(w, s)| w - s)).sqrt();
                    let apart = square(want.iter().zip(&got).map(|(w, g)| w - g)).sqrt();
                    assert!(
                        change > 0.01 && apart < 2e-3 * change,
                        "{side:?} {method:?}: {apart} of {change}"
                    );
                }
            }
        }
    });
}

/// A bounded one keeps the leading singular directions of what was learned, tells what it lost, and stays in the null space.
#[test]
fn a_bounded_remainder_is_the_nearest_and_stays_off_what_is_protected() {
    on_every_device(|| {
        let known = knowledge(NullSide::Input, 5);
        let mut settings = small(Method::Gems);
        settings.null_space.side = NullSide::Input;
        settings.gems.remainder_rank = Some(2);
        let steps = settings.gems.refresh_every; // one fold, at the last of them
        let (mut coded, mut whole) = both();
        let start: Vec<Vec<f32>> = (0..2).map(|site| coded.effective(site)).collect();
        // Bases that are found in the first fold are not learned along any more.
        let (_, lost) = run(&mut coded, settings.clone(), &known, steps);
        run(&mut whole, settings.clone(), &known, steps);
        let mut shares = Vec::new();
        for (site, (m, n)) in SHAPES.into_iter().enumerate() {
            let change = |world: &World| -> Vec<f32> {
                world.effective(site).iter().zip(&start[site]).map(|(now, then)| now - then).collect()
            };
            let (got, want) = (change(&coded), change(&whole));
            let squares: Vec<f64> = row_space(&want, m, n, 2).unwrap().values.iter().map(|v| v * v).collect();
            let share = squares[2..].iter().sum::<f64>() / squares.iter().sum::<f64>();
            let apart = square(want.iter().zip(&got).map(|(w, g)| w - g)) / square(want.iter().copied());
            assert!(
                share > 1e-3 && (apart / share - 1.0).abs() < 1e-2,
                "{apart} is lost, the least is {share}"
            );
            shares.push(share);
        }
        let told = lost.unwrap();
        assert!((told / (shares[0] + shares[1]) * 2.0 - 1.0).abs() < 1e-2, "{told} told, lost {shares:?}");
        // Through more folds, which lose more.
        let (mut coded, _) = both();
        run(&mut coded, settings, &known, 9);
        for (site, start) in start.iter().enumerate() {
            let change: Vec<f32> =
                coded.effective(site).iter().zip(start).map(|(now, then)| now - then).collect();
            let leak = super::null_space::leak(&change, SHAPES[site], &known.inputs[site], NullSide::Input);
            let size = square(change.iter().copied()).sqrt();
            assert!(size > 0.01 && f64::from(leak) < 1e-5, "dW K is {leak}, dW {size}");
        }
    });
}

/// The pull draws the remainder towards nothing, by what it costs; without room for more it can only shrink.
#[test]
fn the_pull_shrinks_a_remainder() {
    on_every_device(|| {
        let known = moments(5);
        let sizes = [0.0, 2.0].map(|pull| {
            let mut settings = small(Method::Gems);
            settings.null_space.pull = pull;
            let (mut coded, _) = both();
            let start = coded.effective(0);
            run(&mut coded, settings.clone(), &known, settings.gems.refresh_every);
            square(coded.effective(0).iter().zip(&start).map(|(now, then)| now - then)).sqrt()
        });
        assert!(sizes[1] < 0.9 * sizes[0] && sizes[1] > 0.0, "{sizes:?}");
    });
}

#[test]
fn a_run_on_codes_resumes_where_it_was() {
    let known = moments(5);
    for method in [Method::Gems, Method::Lora] {
        let mut settings = small(method);
        (settings.null_space.pull, settings.gems.remainder_rank) = (0.5, Some(5));
        for stop in [3, 4, 6] {
            let (mut world, mut other) = (both().0, both().0);
            let (mut tuner, _) = run(&mut world, settings.clone(), &known, stop);
            let (tensors, numbers) = tuner.state(&mut world).unwrap();
            assert!(!tensors.iter().any(|t| t.name.ends_with(".w")), "a weight in codes needs no saving");
            let mut again = other.unprobed(settings.clone(), Some(&known)).unwrap();
            again.restore(&mut other, &tensors, &numbers).unwrap();
            assert_close("restored", &other.effective(0), &world.effective(0), 0.0, 0.0);
            for step in stop..9 {
                let reports = (world.step(&mut tuner, step, [9, 6]), other.step(&mut again, step, [9, 6]));
                assert_eq!(reports.0.update_norm, reports.1.update_norm, "{method:?} from {stop}");
            }
            assert_eq!(tuner.state(&mut world).unwrap(), again.state(&mut other).unwrap());
        }
    }
}

#[test]
fn methods_that_change_weights_are_refused_on_codes() {
    let published = |s: &mut MethodSettings| s.gems.side = Side::Published;
    let cases: [(Method, Change, &str); 2] = [
        (Method::Full, &|_| {}, "gems.method = \"full\""),
        (Method::Gems, &published, "gems.side = \"published\""),
    ];
    for (method, change, named) in cases {
        let mut settings = MethodSettings::plain();
        settings.gems.method = method;
        change(&mut settings);
        let error = both().0.unprobed(settings, None).err().expect("refused").to_string();
        assert!(error.contains(named) && error.contains("layer.0") && error.contains("lora"), "{error}");
    }
}
