//! Searching a large trie best first against scoring all of it, which `ranking` holds to one pass a candidate.

use crate::ranking::{kind, model};
use crate::support::Golden;
use gems_engine::error::Kind;
use gems_engine::eval::{Request, Scorer, Trie, Wanted, judge};
use gems_engine::model::Model;

/// Sequences of one to four tokens, some the beginning of others, some twice: more nodes than are computed unasked.
fn sequences(vocabulary: u32, seed: u32) -> Vec<Vec<u32>> {
    let drawn = |i: u32, at: u32| {
        let mixed = (i * 4 + at + seed).wrapping_mul(2_654_435_761).rotate_left(13).wrapping_mul(40_503);
        (mixed >> 7) % vocabulary.min(40)
    };
    (0..3001).map(|i| (0..1 + i % 4).map(|at| drawn(i / 2 * 2 + i % 9 / 8, at)).collect()).collect()
}

/// The best and the known of one request, however it was computed, are those of all scores; what is not known is worse.
fn compare(what: &str, (depth, known): (usize, &[u32]), got: &[f32], all: &[f32]) -> usize {
    let close = |a: f32, b: f32| (a - b).abs() <= 1e-4 + 1e-5 * b.abs();
    let mut sorted = all.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    let last = if depth == 0 { f32::INFINITY } else { sorted[depth.min(all.len()) - 1] };
    for (number, (got, all)) in got.iter().zip(all).enumerate() {
        let must = known.contains(&(number as u32)) || *all > last + 1e-3;
        assert!(
            close(*got, *all) || (*got == f32::NEG_INFINITY && !must),
            "{what}, {number}: {got}, not {all}"
        );
    }
    let items: Vec<u32> = (0..all.len() as u32).collect();
    let (top, places) = judge(&items, got, known, (depth, 7));
    let (want, exact) = judge(&items, all, known, (depth, 7));
    for (a, b) in top.iter().zip(&want) {
        assert!(close(a.1, b.1), "{what}: {top:?}, not {want:?}");
    }
    assert_eq!(top.len(), want.len());
    // Rounding may exchange neighbours.
    let near = |a: usize, b: usize| a.abs_diff(b) <= 2;
    for (place, exact) in places.iter().zip(&exact) {
        let is_same = near(place.ahead, exact.ahead) || (place.ahead.min(exact.ahead) >= depth);
        assert!(is_same, "{what}: {place:?}, not {exact:?}");
    }
    got.iter().filter(|score| score.is_infinite()).count()
}

/// As if it had learned something: its likelihoods are far apart.
fn sure(mut model: Model) -> Model {
    model.architecture.logit_scale *= 30.0;
    model
}

#[test]
fn golden_the_best_are_those_of_all_scores() {
    let golden = Golden::open();
    for (number, name) in golden.folders("models").into_iter().enumerate() {
        for model in [model(&golden, &name, 0), sure(model(&golden, &name, 0))] {
            let vocabulary = model.architecture.vocabulary as u32;
            let tries: Vec<Trie> = [3, 900].map(|seed| Trie::new(&sequences(vocabulary, seed))).into();
            assert!(tries.iter().all(|trie| trie.inner().len() > 600));
            let prompts =
                [vec![3u32, 9, 12, 40 % vocabulary], (0..31).map(|i| i * 13 % vocabulary).collect()];
            let requests: Vec<Request> =
                prompts.iter().zip(&tries).map(|(prompt, trie)| Request { prompt, trie }).collect();
            let scorer = Scorer::new(&model, kind(&model), [70, 4096][number % 2]);
            let all = scorer.scores(&requests).unwrap();
            for (depth, known) in [(1, &[][..]), (20, &[5, 1500, 77, 9999]), (0, &[3]), (2000, &[]), (0, &[])]
            {
                let got = scorer.best(&requests, &[Wanted { depth, known }; 2]).unwrap();
                for (got, all) in got.iter().zip(&all) {
                    let unscored = compare(&format!("{name}, depth {depth}"), (depth, known), got, all);
                    let is_sure = model.architecture.logit_scale > 20.0;
                    assert!(
                        unscored > 1000 || depth > 20 || !is_sure,
                        "{name}: {unscored} unscored of depth {depth}"
                    );
                }
            }
        }
    }
}

#[test]
fn golden_what_diverged_is_refused_and_small_tries_are_scored_whole() {
    let golden = Golden::open();
    let model = model(&golden, &golden.folders("models")[0], 0);
    let (small, empty) = (Trie::new(&[vec![3], vec![4, 5], vec![]]), Trie::new(&[]));
    let requests = [&small, &empty].map(|trie| Request { prompt: &[1, 2], trie });
    let scorer = Scorer::new(&model, kind(&model), 64);
    let all = scorer.scores(&requests).unwrap();
    assert_eq!(scorer.best(&requests, &[Wanted { depth: 1, known: &[] }; 2]).unwrap(), all);
    let large = Trie::new(&sequences(model.architecture.vocabulary as u32, 1));
    let mut broken = model;
    broken.architecture.logit_scale = f32::NAN;
    let scorer = Scorer::new(&broken, kind(&broken), 4096);
    let wanted = [Wanted { depth: 3, known: &[] }];
    let error = scorer.best(&[Request { prompt: &[1], trie: &large }], &wanted).unwrap_err();
    assert_eq!(error.kind, Kind::Numeric);
    assert!(error.to_string().contains("not finite"), "{error}");
}
