//! Likelihoods along a trie, beam search and ranking against transformers, and against one forward pass a candidate.

use crate::support::{Golden, assert_close};
use gems_engine::backend::cpu::Cpu;
use gems_engine::data::{
    Catalogue, DataSettings, Dataset, Encoder, EndOfSequence, ItemIdentity, PromptPreset, PromptSide,
    Prompts, Record, Split, Vocabulary,
};
use gems_engine::eval::metrics::Place;
use gems_engine::eval::{
    Candidates, EvaluateSettings, ROOT, Ranked, Rankings, Request, Scorer, Trie, beam, judge, leading,
    rank_split, score,
};
use gems_engine::model::{Batch, Labels, LoadOptions, Model, Packed};
use proptest::prelude::*;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::PathBuf;

// ---- trie ------------------------------------------------------------------------------------------

proptest! {
    #[test]
    fn a_trie_holds_every_prefix_once(sequences in prop::collection::vec(prop::collection::vec(0u32..4, 0..5), 0..12)) {
        let trie = Trie::new(&sequences);
        let mut prefixes: Vec<&[u32]> = sequences.iter().flat_map(|s| (0..=s.len()).map(|n| &s[..n])).collect();
        prefixes.push(&[]);
        prefixes.sort();
        prefixes.dedup();
        let tokens = |node: u32| trie.path(node).iter().map(|n| trie.token(*n)).collect::<Vec<u32>>();
        let nodes: Vec<Vec<u32>> = (0..trie.len() as u32).map(tokens).collect();
        prop_assert_eq!(&nodes, &prefixes);
        prop_assert_eq!(trie.sequences(), sequences.len());
        for (number, sequence) in sequences.iter().enumerate() {
            let end = trie.end_of(number);
            prop_assert_eq!(&tokens(end), sequence);
            let first = sequences.iter().position(|s| s == sequence).unwrap() as u32;
            prop_assert_eq!(trie.sequence_at(end), Some(first));
        }
        prop_assert_eq!(trie.height() as usize, sequences.iter().map(|s| s.len().saturating_sub(1)).max().unwrap_or(0));
        prop_assert_eq!(trie.largest_token(), sequences.concat().into_iter().max());
        for node in 0..trie.len() as u32 {
            let children: Vec<u32> = trie.children(node).collect();
            let want: Vec<u32> = (1..trie.len() as u32).filter(|c| trie.parent(*c) == node).collect();
            prop_assert_eq!(&children, &want);
            prop_assert_eq!(trie.is_inner(node), !want.is_empty());
            prop_assert_eq!(trie.inner().contains(&node), trie.is_inner(node) );
            let below = |n: &u32| trie.path(*n).contains(&node) || node == ROOT;
            let inner: Vec<u32> = trie.inner().iter().copied().filter(below).collect();
            prop_assert_eq!(trie.inner_of(node), &inner[..]);
            prop_assert_eq!(trie.depth(node) as usize, trie.path(node).len());
        }
    }
}

// ---- likelihood --------------------------------------------------------------------------------------

pub fn model(golden: &Golden, name: &str, vocabulary: usize) -> Model {
    let options = LoadOptions { random: None, vocabulary, ..LoadOptions::default() };
    Model::load(&golden.dir.join("models").join(name), Cpu::open(None).unwrap(), &options).unwrap()
}

pub fn kind(model: &Model) -> PromptSide {
    match model.architecture.decoder_start {
        Some(decoder_start) if model.architecture.is_encoder_decoder() => {
            PromptSide::Encoder { decoder_start }
        }
        _ => PromptSide::Decoder,
    }
}

/// The log-likelihood of one sequence after a prompt, by a training forward pass of its own.
fn alone(model: &Model, prompt: &[u32], sequence: &[u32]) -> f32 {
    if sequence.is_empty() {
        return 0.0;
    }
    let (encoder, stem) = match kind(model) {
        PromptSide::Decoder => (None, prompt.to_vec()),
        PromptSide::Encoder { decoder_start } => {
            (Some(Packed::new(&[vec![prompt.to_vec()]])), vec![decoder_start])
        }
    };
    let first = stem.len() as u32 - 1;
    let input: Vec<u32> = stem.iter().chain(&sequence[..sequence.len() - 1]).copied().collect();
    let n = sequence.len();
    let labels = Labels {
        rows: (first..first + n as u32).collect(),
        targets: sequence.to_vec(),
        weights: vec![1.0; n],
        segments: std::iter::once(0..n).collect(),
    };
    let batch = Batch { encoder, decoder: Packed::new(&[vec![input]]), labels };
    let nll = model.forward(&batch, false, None).unwrap().nll(model.backend.as_ref()).unwrap();
    -nll.iter().map(|v| f64::from(*v)).sum::<f64>() as f32
}

/// Tries with a wide root, wide and narrow nodes, chains, a prefix of another sequence, an empty sequence.
fn candidate_sets(vocabulary: u32) -> Vec<Vec<Vec<u32>>> {
    let token = |i: u32| (i * 37 + 11) % vocabulary;
    let wide = (0..40).map(|i| vec![token(i), token(i / 3)]).collect();
    let deep = (0..45).map(|i| vec![5, token(i), token(i % 2), 1][..1 + (i as usize % 4)].to_vec()).collect();
    let run = (20..60).map(|t| vec![t]).collect();
    vec![wide, deep, run, vec![vec![7]], vec![vec![]], vec![], vec![vec![3, 4, 5, 6, 7, 8], vec![3, 4, 5]]]
}

#[test]
fn golden_models_score_candidates_as_one_pass_each() {
    let golden = Golden::open();
    for name in golden.folders("models") {
        let model = model(&golden, &name, 0);
        let vocabulary = model.architecture.vocabulary as u32;
        let prompts =
            [vec![3u32, 9, 12, 40], vec![8], (0..23).map(|i| (i * 13) % vocabulary).collect::<Vec<_>>()];
        let sets = candidate_sets(vocabulary);
        let tries: Vec<Trie> = sets.iter().map(|s| Trie::new(s)).collect();
        let mut requests = Vec::new();
        let mut want = Vec::new();
        for prompt in &prompts {
            for (set, trie) in sets.iter().zip(&tries) {
                requests.push(Request { prompt, trie });
                want.push(set.iter().map(|s| alone(&model, prompt, s)).collect::<Vec<f32>>());
            }
        }
        // 1: a row a pass; 9: prompts cut from their tries; 100000: everything in one pass.
        for batch_tokens in [1, 9, 64, 100_000] {
            let scorer = Scorer::new(&model, kind(&model), batch_tokens);
            for (i, (got, want)) in scorer.scores(&requests).unwrap().iter().zip(&want).enumerate() {
                assert_close(&format!("{name}, {batch_tokens} tokens, request {i}"), got, want, 1e-5, 1e-4);
            }
        }
    }
}

#[test]
fn golden_unusable_requests_are_errors() {
    let golden = Golden::open();
    let model = model(&golden, &golden.folders("models")[0], 0);
    let scorer = Scorer::new(&model, kind(&model), 64);
    let rows = model.architecture.vocabulary as u32;
    let error = |prompt: &[u32], token: u32| {
        let trie = Trie::new(&[vec![token]]);
        scorer.scores(&[Request { prompt, trie: &trie }]).unwrap_err().to_string()
    };
    assert!(error(&[1], rows).contains(&format!("token {rows}")));
    assert!(error(&[rows + 5], 1).contains("embedding rows"));
    assert!(error(&[], 1).contains("empty prompt"));
}

// ---- beam search ---------------------------------------------------------------------------------------

fn tokens(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
}

fn floats(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect()
}

#[test]
fn golden_beam_search_and_exact_ranking() {
    let golden = Golden::open();
    let files = golden.files("beam/", ".json");
    assert!(!files.is_empty());
    let mut compared = 0;
    for file in files {
        let case = golden.json(&file);
        let model = model(&golden, case["model"].as_str().unwrap(), 0);
        let atol = golden.tolerance(&file, "score_atol", 2e-4);
        let sequences: Vec<Vec<u32>> =
            case["candidates"].as_array().unwrap().iter().map(|c| tokens(&c["token_ids"])).collect();
        let all: Vec<u32> = (0..sequences.len() as u32).collect();
        let trie = Trie::new(&sequences);
        let scorer = Scorer::new(&model, kind(&model), 128);
        for (number, request) in case["cases"].as_array().unwrap().iter().enumerate() {
            let what = format!("{file}, case {number}");
            let prompt = tokens(&request["input_ids"]);
            let query = Request { prompt: &prompt, trie: &trie };
            let scores = scorer.scores(&[query]).unwrap().remove(0);
            assert_close(&what, &scores, &floats(&request["exact_log_likelihood"]), 0.0, atol);
            let ranked: Vec<u32> =
                leading(&all, &scores, all.len(), 0).into_iter().map(|(item, _)| item).collect();
            assert_eq!(ranked, tokens(&request["ranking_by_sum"]), "{what}: exact ranking");
            let means: Vec<f32> = scores.iter().zip(&sequences).map(|(s, t)| s / t.len() as f32).collect();
            let by_mean: Vec<u32> =
                leading(&all, &means, all.len(), 0).into_iter().map(|(item, _)| item).collect();
            assert_eq!(by_mean, tokens(&request["ranking_by_mean"]), "{what}: ranking by mean");
            for run in request["beam_runs"].as_array().unwrap() {
                let settings = beam::BeamSettings {
                    beams: run["num_beams"].as_u64().unwrap() as usize,
                    length_penalty: run["length_penalty"].as_f64().unwrap(),
                    early_stopping: run["early_stopping"].as_bool().unwrap(),
                };
                let found = beam::search(&scorer, &query, settings).unwrap();
                for (candidate, got) in &found {
                    let length = sequences[*candidate as usize].len() as f64;
                    let exact = f64::from(scores[*candidate as usize]) / length.powf(settings.length_penalty);
                    assert!(
                        (f64::from(*got) - exact).abs() <= atol,
                        "{what} {settings:?}: {got}, not {exact}"
                    );
                }
                if run["comparable"].as_bool().unwrap() {
                    let items: Vec<u32> = found.iter().map(|(item, _)| *item).collect();
                    assert_eq!(items, tokens(&run["candidates"]), "{what} {settings:?}");
                    let got: Vec<f32> = found.iter().map(|(_, score)| *score).collect();
                    assert_close(&what, &got, &floats(&run["scores"]), 0.0, atol);
                    compared += 1;
                }
            }
        }
    }
    assert!(compared > 0, "no beam run could be compared");
}

#[test]
fn golden_a_beam_as_wide_as_the_trie_finds_the_exact_ranking() {
    let golden = Golden::open();
    let model = model(&golden, &golden.folders("models")[0], 0);
    // Ends that none is the beginning of another, as with an end-of-sequence token.
    let sequences: Vec<Vec<u32>> = (0..30).map(|i| vec![10 + i % 7, 30 + i, 1]).collect();
    let trie = Trie::new(&sequences);
    let scorer = Scorer::new(&model, kind(&model), 64);
    let request = Request { prompt: &[4, 9, 2], trie: &trie };
    let settings = beam::BeamSettings { beams: 60, length_penalty: 0.0, early_stopping: false };
    let all: Vec<u32> = (0..30).collect();
    let exact = leading(&all, &scorer.scores(&[request]).unwrap()[0], all.len(), 0);
    let found = beam::search(&scorer, &request, settings).unwrap();
    assert_eq!(found.iter().map(|f| f.0).collect::<Vec<_>>(), exact.iter().map(|e| e.0).collect::<Vec<_>>());
    let empty = Trie::new(&[]);
    let nothing = beam::search(&scorer, &Request { prompt: &[4], trie: &empty }, settings).unwrap();
    assert!(nothing.is_empty() && !trie.is_empty() && empty.is_empty() && empty.len() == ROOT as usize + 1);
}

// ---- ranking -------------------------------------------------------------------------------------------

proptest! {
    #[test]
    fn judging_equals_sorting(
        levels in prop_oneof![prop::collection::vec(0u8..5, 0..40), prop::collection::vec(0u8..200, 900..1200)],
        depth in 0usize..80,
        (marks, request) in (any::<u64>(), any::<u64>()),
    ) {
        // Few levels: many ties.
        let scores: Vec<f32> = levels.iter().map(|l| -f32::from(*l)).collect();
        let candidates: Vec<u32> = (0..scores.len() as u32).map(|i| i * 3 + 1).collect();
        let targets: Vec<u32> =
            candidates.iter().rev().enumerate().filter(|(i, _)| marks >> (i % 64) & 1 == 1).map(|(_, c)| *c).collect();
        let sorted = leading(&candidates, &scores, candidates.len(), request);
        prop_assert_eq!(sorted.iter().map(|s| s.0).collect::<BTreeSet<_>>().len(), candidates.len());
        prop_assert!(sorted.windows(2).all(|w| w[0].1 >= w[1].1));
        let (top, places) = judge(&candidates, &scores, &targets, (depth, request));
        prop_assert_eq!(&top[..], &sorted[..depth.min(sorted.len())]);
        let of = |t: &u32| scores[candidates.iter().position(|c| c == t).unwrap()];
        let count = |test: &dyn Fn(&f32) -> bool| scores.iter().filter(|s| test(s)).count();
        let place = |t: &u32| Place { ahead: count(&|s| *s > of(t)), tied: count(&|s| *s == of(t)) };
        prop_assert_eq!(places, targets.iter().map(place).collect::<Vec<_>>());
    }
}

/// A data set, tokens and prompts over a golden model.
struct World {
    dir: PathBuf,
    data: Dataset,
    settings: DataSettings,
    prompts: Prompts,
    vocabulary: Vocabulary,
    kind: PromptSide,
}

const ITEMS: u32 = 25;

impl World {
    fn new(golden: &Golden, name: &str, settings: DataSettings) -> Self {
        let dir = golden.dir.join("models").join(name);
        let kind = kind(&model(golden, name, 0));
        let mut items = Catalogue::default();
        for i in 0..ITEMS {
            let text = format!("{} {} kettle", ["red", "blue", "old"][i as usize % 3], i / 4);
            items.add(&i.to_string(), Some(&text)).unwrap();
        }
        let record = |task, history: &[u32], query: Option<&str>, target: &[u32], negatives: &[u32]| Record {
            task,
            history: history.into(),
            query: query.map(Into::into),
            target: target.into(),
            negatives: negatives.into(),
            ..Record::default()
        };
        let text = Record { text: Some("a warm day".into()), ..Record::default() };
        let records = vec![
            text,
            record(0, &[3, 4, 5, 6, 7], None, &[8], &[1, 2, 9, 12, 20]),
            record(1, &[], Some("red watch"), &[7, 0], &[3, 4]),
            record(0, &[1], None, &[24], &[]),
            record(1, &[2, 2], Some("b"), &[11], &[10, 9, 8, 7, 6, 5, 4]),
            record(0, &[9, 8], None, &[2, 3, 1], &[0]),
        ];
        let test = Split { name: "test".into(), records };
        let tasks = vec!["rec".into(), "search".into()];
        let data = Dataset { items, tasks, test, ..Dataset::default() };
        let vocabulary = Vocabulary::new(&dir, &data.items, &settings, kind, None).unwrap();
        let prompts = Prompts::new(&settings, None, Some(&vocabulary)).unwrap();
        Self { dir, data, settings, prompts, vocabulary, kind }
    }
    fn model(&self) -> Model {
        let vocabulary = self.vocabulary.size();
        let options = LoadOptions { random: None, vocabulary, ..LoadOptions::default() };
        Model::load(&self.dir, Cpu::open(None).unwrap(), &options).unwrap()
    }
    fn encoder(&self) -> Encoder<'_> {
        Encoder::new(&self.vocabulary, &self.prompts, &self.data.tasks, self.kind, &self.settings)
    }
}

fn identities() -> Vec<DataSettings> {
    let settings = |item_identity, eos| DataSettings {
        item_identity,
        eos,
        prompts: PromptPreset::Cue,
        ..DataSettings::default()
    };
    vec![
        settings(ItemIdentity::Atomic, EndOfSequence::Auto),
        settings(ItemIdentity::Atomic, EndOfSequence::Always),
        settings(ItemIdentity::Text, EndOfSequence::Auto),
    ]
}

/// One model of each kind, of those whose tokenizer has many items.
fn both(golden: &Golden) -> Vec<String> {
    let mut models = golden.folders("models");
    models.retain(|name| golden.has(&format!("beam/{name}.json")));
    let t5 =
        |name: &&String| golden.json(&format!("models/{name}/config.json"))["is_encoder_decoder"] == true;
    models.iter().find(|m| !t5(m)).into_iter().chain(models.iter().find(t5)).cloned().collect()
}

#[test]
fn golden_splits_are_ranked_as_one_pass_a_candidate_ranks_them() {
    let golden = Golden::open();
    for name in both(&golden) {
        for settings in identities() {
            let mut world = World::new(&golden, &name, settings);
            let model = world.model();
            for rule in [Candidates::Full, Candidates::Given] {
                let mut ranked = vec![1, 2, 3, 4, 5];
                if rule == Candidates::Given {
                    // A record without negatives is refused by name.
                    let settings = EvaluateSettings { candidates: rule, ..Default::default() };
                    let data = &world.data;
                    let refused =
                        rank_split(&model, &world.encoder(), data, &data.test, &settings, &mut |_, _| ());
                    let message = refused.unwrap_err().to_string();
                    assert!(
                        message.contains("1 of 5 records have no negatives, the first of task `rec`"),
                        "{message}"
                    );
                    world.data.test.records.remove(3);
                    ranked.pop();
                }
                let encoder = world.encoder();
                let rank = |batch_tokens| {
                    let settings = EvaluateSettings {
                        candidates: rule,
                        batch_tokens,
                        k: vec![1, 3],
                        ..Default::default()
                    };
                    let mut calls = Vec::new();
                    let mut progress = |done, all| calls.push((done, all));
                    let split = &world.data.test;
                    let got =
                        rank_split(&model, &encoder, &world.data, split, &settings, &mut progress).unwrap();
                    assert_eq!(calls.last(), Some(&(ranked.len(), ranked.len())));
                    got
                };
                let got = rank(4096);
                assert_eq!(got.requests.iter().map(|r| r.record).collect::<Vec<_>>(), ranked);
                for ranked in &got.requests {
                    check_request(&world, &model, ranked, rule);
                }
                let same = |a: &Rankings, b: &Rankings| {
                    a.requests.iter().zip(&b.requests).all(|(a, b)| a.places == b.places)
                };
                assert!(same(&got, &rank(1)) && same(&got, &rank(50)), "{name}: batches change the ranking");
            }
        }
    }
}

/// Positions, list and scores of one request, from a forward pass a candidate.
fn check_request(world: &World, model: &Model, ranked: &Ranked, rule: Candidates) {
    let record = &world.data.test.records[ranked.record];
    let mut candidates: Vec<u32> = (0..ITEMS).collect();
    if rule == Candidates::Given && !record.negatives.is_empty() {
        candidates.retain(|c| record.negatives.contains(c) || record.target.contains(c));
    }
    let prompt = world.encoder().prompt(record).unwrap();
    let target = |c: &u32| world.vocabulary.target(*c).collect::<Vec<u32>>();
    let scores: Vec<f32> = candidates.iter().map(|c| alone(model, &prompt, &target(c))).collect();
    let sorted = leading(&candidates, &scores, candidates.len(), 0);
    let place = |t: &u32| Place::alone(sorted.iter().position(|(item, _)| item == t).unwrap());
    assert_eq!(ranked.places, record.target.iter().map(place).collect::<Vec<_>>());
    assert_eq!(ranked.candidates, candidates.len());
    let best: Vec<f32> = sorted.iter().take(3).map(|s| s.1).collect();
    let got: Vec<f32> = ranked.top.iter().map(|s| s.1).collect();
    assert_close("scores of the list", &got, &best, 1e-5, 1e-4);
    let direct = score(model, &world.vocabulary, world.kind, &prompt, &candidates).unwrap();
    assert_close("scores", &direct, &scores, 1e-5, 1e-4);
}

#[test]
fn golden_limits_count_ranked_records_of_each_task_and_single_candidates_come_first() {
    let golden = Golden::open();
    let mut world = World::new(&golden, &both(&golden)[0], identities().remove(0));
    // The plain text at the front is of task 0 and must not use up its limit.
    let settings = EvaluateSettings { records: 1, candidates: Candidates::Given, ..Default::default() };
    let (model, mut nothing) = (world.model(), |_, _| ());
    let run = |world: &World, nothing: &mut dyn FnMut(usize, usize)| {
        rank_split(&model, &world.encoder(), &world.data, &world.data.test, &settings, nothing).unwrap()
    };
    let records: Vec<usize> = run(&world, &mut nothing).requests.iter().map(|r| r.record).collect();
    assert_eq!(records, [1, 2]);
    // A candidate list of the target alone.
    let test = &mut world.data.test.records;
    test.truncate(2);
    test[1].negatives = test[1].target.clone();
    let ranked = run(&world, &mut nothing).requests.remove(0);
    assert_eq!((ranked.places, ranked.candidates, ranked.top.len()), (vec![Place::alone(0)], 1, 1));
    world.data.test.records.clear();
    assert!(run(&world, &mut nothing).requests.is_empty());
}
