//! Metrics against ranx and pytrec_eval, exact ranking against transformers and against brute force.

use crate::model::load;
use crate::support::Golden;
use gems_engine::backend::cpu::Cpu;
use gems_engine::backend::{Backend, DType};
use gems_engine::data::{Catalogue, DataSettings, EndOfSequence, ItemIdentity, PromptSide, Vocabulary};
use gems_engine::distributed::World;
use gems_engine::eval::metrics::{Judged, Place, named, names};
use gems_engine::eval::{KeptStates, Reference, score};
use gems_engine::model::{Architecture, LoadOptions, Model};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

/// (judged list, first target's position) of every query, from judgements and scored documents.
fn judged(qrels: &Value, runs: &Value, gain: fn(f64) -> f64) -> Vec<Judged> {
    let queries = qrels.as_object().unwrap();
    let one = |(query, relevant): (&String, &Value)| {
        let relevant: BTreeMap<String, f64> = serde_json::from_value(relevant.clone()).unwrap();
        let run: BTreeMap<String, f64> = serde_json::from_value(runs[query].clone()).unwrap_or_default();
        let mut list: Vec<(&String, &f64)> = run.iter().collect();
        list.sort_by(|a, b| b.1.total_cmp(a.1));
        let found = list
            .iter()
            .enumerate()
            .filter_map(|(p, (d, _))| Some((Place::alone(p), gain(*relevant.get(*d)?))));
        Judged::new(found.collect(), relevant.values().map(|g| gain(*g)).collect())
    };
    queries.iter().map(one).collect()
}

fn check(what: &str, lists: &[Judged], metric: impl Fn(&Judged) -> f64, want: &Value) {
    let mean = lists.iter().map(metric).sum::<f64>() / lists.len() as f64;
    assert!((mean - want.as_f64().unwrap()).abs() < 1e-6, "{what}: {mean} not {want}");
}

#[test]
fn golden_metrics() {
    let golden = Golden::open();
    let (inputs, expected) = (golden.json("metrics/inputs.json"), golden.json("metrics/expected.json"));
    let lists = judged(&inputs["qrels"], &inputs["runs"], |g| g);
    let means = expected["ranx"]["mean"].as_object().unwrap();
    assert!(!means.is_empty());
    for (name, want) in means {
        let ours = name.replace("hit_rate", "hit");
        check(name, &lists, |j| named(j, &ours).unwrap(), want);
    }
    let graded = judged(&inputs["graded_qrels"], &inputs["runs"], |g| g);
    // Burges et al. (2005): gains 2^g - 1.
    let exponential = judged(&inputs["graded_qrels"], &inputs["runs"], |g| g.exp2() - 1.0);
    for (name, want) in expected["graded"]["ranx"].as_object().unwrap() {
        let (kind, k) = name.split_once('@').unwrap();
        let k: usize = k.parse().unwrap();
        check(name, if kind == "ndcg" { &graded } else { &exponential }, |j| j.ndcg(k), want);
    }
    for (name, want) in expected["non_standard"]["hits_only"]["values"].as_object().unwrap() {
        let (kind, k) = name.split_once('@').unwrap();
        let k: usize = k.parse().unwrap();
        let of = |j: &Judged| match kind {
            "hit" => j.hit(k),
            "ndcg" => j.ndcg_hits_only(k),
            "mrr" => j.mrr(k),
            _ => j.map_hits_only(k),
        };
        check(&format!("hits only {name}"), &lists, of, want);
    }
}

#[test]
fn metrics_of_odd_lists() {
    let empty = Judged::default();
    let all = names(&[1, 10], true);
    assert!(all.iter().all(|name| named(&empty, name) == Some(0.0)));
    let one = Judged::binary(&[Place::alone(0)], 1);
    assert!(names(&[1], true).iter().all(|name| named(&one, name) == Some(1.0)));
    assert_eq!(names(&[1], true), ["hit@1", "recall@1"], "the others are the same numbers");
    let beyond = Judged::binary(&[4, 2].map(Place::alone), 3);
    assert_eq!(beyond.hit(2), 0.0);
    assert_eq!(beyond.mrr(3), 1.0 / 3.0);
    assert_eq!(beyond.recall(5), 2.0 / 3.0);
}

/// A vocabulary over candidate texts of a golden model; text identity.
fn candidates(golden: &Golden, model: &str, case: &Value, start: Option<u32>) -> (Vocabulary, PromptSide) {
    let mut items = Catalogue::default();
    for (i, c) in case["candidates"].as_array().unwrap().iter().enumerate() {
        items.add(&i.to_string(), c["text"].as_str()).unwrap();
    }
    let side = match start {
        Some(decoder_start) => PromptSide::Encoder { decoder_start },
        None => PromptSide::Decoder,
    };
    let settings =
        DataSettings { item_identity: ItemIdentity::Text, eos: EndOfSequence::Always, ..Default::default() };
    let dir = golden.dir.join("models").join(model);
    (Vocabulary::new(&dir, &items, &settings, side, None).unwrap(), side)
}

#[test]
fn golden_exact_likelihoods_over_the_trie() {
    let golden = Golden::open();
    let files = golden.files("beam/", ".json");
    assert!(!files.is_empty());
    for file in files {
        let case = golden.json(&file);
        let name = case["model"].as_str().unwrap();
        let model = load(&golden, name, "config.json");
        let start = case["decoder_start_token_id"].as_u64().map(|s| s as u32);
        let (vocabulary, side) = candidates(&golden, name, &case, start);
        // The recorded tokens decide which candidates ours tokenises alike (item tokens have no lead blank).
        let same: Vec<u32> = case["candidates"]
            .as_array()
            .unwrap()
            .iter()
            .enumerate()
            .filter(|(i, c)| {
                let want: Vec<u32> = serde_json::from_value(c["token_ids"].clone()).unwrap();
                vocabulary.target(*i as u32).collect::<Vec<_>>() == want
            })
            .map(|(i, _)| i as u32)
            .collect();
        assert!(
            same.len() > case["candidates"].as_array().unwrap().len() / 2,
            "{file}: {} alike",
            same.len()
        );
        let atol = golden.tolerance(&file, "score_atol", 2e-4) as f32;
        for (c, run) in case["cases"].as_array().unwrap().iter().enumerate() {
            let prompt: Vec<u32> = serde_json::from_value(run["input_ids"].clone()).unwrap();
            let scores = score(&model, &vocabulary, side, &prompt, &same).unwrap();
            for (item, got) in same.iter().zip(&scores) {
                let want = run["exact_log_likelihood"][*item as usize].as_f64().unwrap() as f32;
                assert!(
                    (got - want).abs() < atol.max(2e-5 * want.abs()),
                    "{file} case {c} item {item}: {got} not {want}"
                );
            }
            // One candidate alone scores as among the others.
            let alone = score(&model, &vocabulary, side, &prompt, &same[..1]).unwrap();
            assert!((alone[0] - scores[0]).abs() < 1e-4);
        }
    }
}

#[test]
fn a_model_has_forgotten_nothing_of_itself() {
    let golden = Golden::open();
    for name in golden.folders("models") {
        let model = load(&golden, &name, "config.json");
        let chunks: Vec<Vec<u32>> = vec![vec![3, 5, 7, 11, 13], vec![2, 4], vec![9, 9, 9, 8, 7, 6, 5, 4, 3]];
        let old = model.architecture.vocabulary - 10;
        let reference = Reference::capture(&model, chunks, old).unwrap();
        let (general, each) = reference.measure_each(&model).unwrap();
        let alone = World::alone();
        assert_eq!(
            reference.base_over(&alone, &model, usize::MAX).unwrap(),
            (general, each),
            "{name}: captured states"
        );
        let first = reference.base_over(&alone, &model, 1).unwrap().0;
        assert_eq!(first, reference.sample_over(&alone, &model, 1).unwrap(), "{name}: of the first pass");
        assert!(general.kl < 1e-9 && general.perplexity > 1.0, "{name}: {general:?}");
        assert!(general.item_mass > 0.0 && general.item_mass < 1.0, "{name}: {general:?}");
    }
}

#[test]
fn the_divergence_of_every_text_is_that_of_the_text_alone() {
    let golden = Golden::open();
    for name in ["llama_tied", "t5_v11"] {
        let model = load(&golden, name, "config.json");
        let folder = golden.dir.join("models").join(name);
        let random = LoadOptions { random: Some(5), ..LoadOptions::default() };
        let other = Model::load(&folder, std::sync::Arc::clone(&model.backend), &random).unwrap();
        let old = model.architecture.vocabulary - 10;
        // More than one pass of 4096 rows, texts of odd lengths, one of nothing but tokens that the base does not have.
        let text =
            |k: u32| (0..97 + 13 * k).map(|i| (i * (2 * k + 3) + k) % old as u32).collect::<Vec<u32>>();
        let mut chunks: Vec<Vec<u32>> = (0..24).map(text).collect();
        chunks.push(vec![old as u32; 4]);
        let reference = Reference::capture(&model, chunks.clone(), old).unwrap();
        let (all, each) = reference.measure_each(&other).unwrap();
        assert_eq!((each.divergence.len(), each.tokens[24], each.divergence[24]), (25, 0, 0.0));
        let (sum, tokens) = (each.divergence.iter().sum::<f64>(), each.tokens.iter().sum::<usize>());
        assert!(tokens == all.tokens && (sum / tokens as f64 - all.kl).abs() < 1e-9 * all.kl && all.kl > 0.0);
        for k in [0, 11, 23] {
            let alone =
                Reference::capture(&model, vec![chunks[k].clone()], old).unwrap().measure(&other).unwrap();
            let got = each.divergence[k] / each.tokens[k] as f64;
            assert_eq!(alone.tokens, each.tokens[k], "{name}: text {k}");
            assert!((got - alone.kl).abs() < 1e-4 * alone.kl, "{name}: text {k}: {got} and {}", alone.kl);
        }
    }
}

#[test]
fn states_of_the_base_model_are_taken_once_and_come_back_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let kept = KeptStates::new(&dir.path().join("states"));
    let be: Arc<dyn Backend> = Cpu::open(None).unwrap();
    let json = json!({"model_type": "llama", "vocab_size": 20, "hidden_size": 8, "num_attention_heads": 2,
        "intermediate_size": 12, "num_hidden_layers": 1});
    let model =
        Model::synthetic(Architecture::from_json(json, "llama").unwrap(), Arc::clone(&be), 3).unwrap();
    let texts = vec![vec![1u32, 2, 3], vec![4, 5]];
    let values = [vec![0.1f32, -3.5e-9, 7.0, 1.0 / 3.0], vec![2.5]];
    let computed = std::cell::Cell::new(0);
    let get = |what: &str, texts: &[Vec<u32>]| {
        let compute = || {
            computed.set(computed.get() + 1);
            Ok(vec![be.tensor(&values[0], 2, 2, DType::F32)?, be.tensor(&values[1], 1, 1, DType::F32)?])
        };
        let found = kept.get(&model, (what, texts), compute).unwrap();
        found.iter().map(|t| (t.shape(), be.download(t.mat()).unwrap())).collect::<Vec<_>>()
    };
    let want = [((2, 2), values[0].clone()), ((1, 1), values[1].clone())];
    for (what, texts, times) in [
        ("a", texts.clone(), 1),
        ("a", texts.clone(), 1),
        ("b", texts.clone(), 2),
        ("a", vec![vec![1, 2], vec![3, 4, 5]], 3),
        ("a", texts.clone(), 3),
    ] {
        assert_eq!(get(what, &texts), want);
        assert_eq!(computed.get(), times, "{what} {texts:?}");
    }
    // What is not whole is computed again.
    for file in std::fs::read_dir(dir.path().join("states")).unwrap().flatten() {
        let bytes = std::fs::read(file.path()).unwrap();
        std::fs::write(file.path(), &bytes[..bytes.len() - 3]).unwrap();
    }
    assert_eq!((get("a", &texts).len(), computed.get()), (2, 4));
}
