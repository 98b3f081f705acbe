//! Metrics a request, slices, significance and general knowledge, against libraries, textbooks and plain formulas.

use crate::model::load;
use crate::support::{Golden, assert_close, numbers};
use gems_engine::backend::{Backend, DType, cpu::Cpu};
use gems_engine::data::{Record, Split};
use gems_engine::eval::metrics::{self, Judged, Place};
use gems_engine::eval::slices::{self, Popularity};
use gems_engine::eval::{EvaluateSettings, Ranked, Rankings, Reference, drift, significance};
use gems_engine::model::{Inference, Model, Packed};
use serde_json::Value;

// ---- metrics ---------------------------------------------------------------------------------------

/// Every golden query with its judgements (grades of `qrels`), in the order of the run's keys.
fn judged(inputs: &Value, qrels: &str, gain: fn(f64) -> f64) -> Vec<(String, Judged)> {
    let runs = inputs["runs"].as_object().unwrap();
    let of_query = |(query, run): (&String, &Value)| {
        let grades = inputs[qrels][query].as_object().unwrap();
        let grade = |item: &String| grades.get(item).map(|g| gain(g.as_f64().unwrap()));
        let mut list: Vec<(&String, f64)> =
            run.as_object().unwrap().iter().map(|(i, s)| (i, s.as_f64().unwrap())).collect();
        list.sort_by(|a, b| b.1.total_cmp(&a.1));
        let found = list
            .iter()
            .enumerate()
            .filter_map(|(p, (item, _))| Some((Place::alone(p), grade(item)?)))
            .collect();
        (query.clone(), Judged::new(found, grades.keys().filter_map(grade).collect()))
    };
    runs.iter().map(of_query).collect()
}

fn value(judged: &Judged, metric: &str) -> f64 {
    let (name, k) = metric.split_once('@').unwrap();
    let k = k.parse().unwrap();
    match name {
        "hit" | "hit_rate" => judged.hit(k),
        "recall" => judged.recall(k),
        "precision" => judged.precision(k),
        "mrr" => judged.mrr(k),
        "map" => judged.map(k),
        "ndcg" | "ndcg_burges" => judged.ndcg(k),
        other => panic!("the golden file has a metric `{other}`"),
    }
}

#[test]
fn golden_metrics_of_ranx_and_pytrec_eval() {
    let golden = Golden::open();
    let (inputs, expected) = (golden.json("metrics/inputs.json"), golden.json("metrics/expected.json"));
    let atol = golden.tolerance("metrics/expected.json", "atol", 1e-6);
    let binary = judged(&inputs, "qrels", |g| g);
    let graded = judged(&inputs, "graded_qrels", |g| g);
    // Burges et al. (2005).
    let exponential = judged(&inputs, "graded_qrels", |g| g.exp2() - 1.0);
    let near = |what: &str, got: f64, want: &Value| {
        let want = want.as_f64().unwrap();
        assert!((got - want).abs() <= atol, "{what}: {got} instead of {want}");
    };
    let mean = |lists: &[(String, Judged)], metric: &str| {
        lists.iter().map(|(_, j)| value(j, metric)).sum::<f64>() / lists.len() as f64
    };
    for library in ["ranx", "pytrec_eval"] {
        for (metric, want) in expected[library]["mean"].as_object().unwrap() {
            near(&format!("{library} {metric}"), mean(&binary, metric), want);
        }
        for (metric, queries) in expected[library]["per_query"].as_object().unwrap() {
            for (query, judged) in &binary {
                near(&format!("{library} {metric} of {query}"), value(judged, metric), &queries[query]);
            }
        }
        for (metric, want) in expected["graded"][library].as_object().unwrap() {
            let lists = if metric.starts_with("ndcg_burges") { &exponential } else { &graded };
            near(&format!("graded {library} {metric}"), mean(lists, metric), want);
        }
    }
    for (metric, want) in expected["non_standard"]["hits_only"]["values"].as_object().unwrap() {
        let (name, k) = metric.split_once('@').unwrap();
        let k = k.parse().unwrap();
        let of = |j: &Judged| match name {
            "ndcg" => j.ndcg_hits_only(k),
            "map" => j.map_hits_only(k),
            _ => value(j, metric),
        };
        let got = binary.iter().map(|(_, j)| of(j)).sum::<f64>() / binary.len() as f64;
        near(&format!("hits only {metric}"), got, want);
    }
}

#[test]
fn golden_first_target_only() {
    let golden = Golden::open();
    let (inputs, expected) = (golden.json("metrics/inputs.json"), golden.json("metrics/expected.json"));
    let lists: Vec<(Option<Place>, usize)> = judged(&inputs, "qrels", |g| g)
        .into_iter()
        .map(|(query, _)| {
            let first = inputs["target_lists"][&query][0].as_str().unwrap();
            let run = inputs["runs"][&query].as_object().unwrap();
            let own = run.get(first).map(|s| s.as_f64().unwrap());
            let ahead = |own: f64| run.values().filter(|s| s.as_f64().unwrap() > own).count();
            (own.map(ahead).map(Place::alone), inputs["qrels"][&query].as_object().unwrap().len())
        })
        .collect();
    let got = metrics::first_target_only(&lists, &[5, 10, 20]);
    for (metric, want) in expected["non_standard"]["first_target_only"]["values"].as_object().unwrap() {
        let value = got.iter().find(|(name, _)| *name == format!("published_first_{metric}")).unwrap().1;
        assert!((value - want.as_f64().unwrap()).abs() < 1e-6, "{metric}: {value} instead of {want}");
    }
}

#[test]
fn a_list_without_relevant_items_scores_zero() {
    for name in metrics::names(&[1, 10], true) {
        assert_eq!(metrics::named(&Judged::default(), &name), Some(0.0), "{name}");
    }
    assert!(metrics::first_target_only(&[], &[5]).iter().all(|(_, v)| *v == 0.0));
}

// ---- tables ---------------------------------------------------------------------------------------------

fn ranked(record: usize, task: u32, positions: &[usize], top: &[u32]) -> Ranked {
    let top = top.iter().map(|item| (*item, -1.0)).collect();
    let places = positions.iter().map(|p| Place::alone(*p)).collect();
    Ranked { record, task, top, places, is_cut: false, candidates: 9, sampled: Vec::new() }
}

fn split(records: &[(usize, &[u32])]) -> Split {
    let record = |(history, target): &(usize, &[u32])| Record {
        history: vec![0; *history].into(),
        target: (*target).into(),
        ..Record::default()
    };
    Split { name: "s".into(), records: records.iter().map(record).collect() }
}

#[test]
fn slices_count_what_belongs_to_them() {
    // Item 0: 4 of 8 training targets, the head; 1, 2: the tail; 3, 4: cold.
    let train = split(&[(0, &[0, 1]), (0, &[0, 2]), (0, &[0, 1]), (0, &[0, 2])]);
    let kinds = slices::popularity(5, &train);
    use Popularity::{Cold, Head, Tail};
    assert_eq!(kinds, [Head, Tail, Tail, Cold, Cold]);
    let test = split(&[(0, &[0, 3]), (4, &[1]), (20, &[4])]);
    let rankings = Rankings {
        requests: vec![
            ranked(0, 0, &[2, 0], &[3, 1, 0]),
            ranked(1, 0, &[1], &[0, 1]),
            ranked(2, 1, &[7], &[2, 3]),
        ],
    };
    let tasks = ["rec".to_string(), "search".to_string()];
    let settings = EvaluateSettings { k: vec![2], ..Default::default() };
    let slices = slices::by_slice(&rankings, &test, &tasks, &kinds, &settings);
    let get = |task: &str, slice: &str, metric: &str| {
        let slice = &slices[task][slice];
        (slice.requests, slice.metrics[metric])
    };
    assert_eq!(get("rec", "item:cold", "mrr@2"), (1, 1.0));
    assert_eq!(get("rec", "item:head", "hit@2"), (1, 0.0));
    assert_eq!(get("rec", "item:tail", "mrr@2"), (1, 0.5));
    assert_eq!(get("rec", "history:0", "recall@2"), (1, 0.5));
    assert_eq!(get("rec", "history:1-4", "hit@2"), (1, 1.0));
    assert_eq!(get("search", "history:20+", "hit@2"), (1, 0.0));
    assert_eq!(slices["search"].keys().collect::<Vec<_>>(), ["history:20+", "item:cold"]);

    let coverage = slices::coverage(&rankings, &tasks, 5, &[1, 2]);
    assert_eq!((coverage["rec"]["coverage@1"], coverage["rec"]["coverage@2"]), (0.4, 0.6));
    assert_eq!(coverage["search"]["coverage@2"], 0.4);

    let metrics = rankings.metrics(&tasks, &settings);
    assert_eq!(metrics["rec"]["mrr@2"], 0.75);
    assert_eq!(rankings.values(0, "mrr@2"), [1.0, 0.5]);
    assert!(rankings.values(0, "mrr").is_empty() && rankings.values(0, "nonsense@2").is_empty());
}

// ---- significance ----------------------------------------------------------------------------------------

#[test]
fn darwins_maize_has_fishers_p_value() {
    // Darwin's 15 differences in eighths of an inch; Fisher (1935) counts 863 of 32768 arrangements on one side.
    let differences =
        [49.0, -67.0, 8.0, 16.0, 6.0, 23.0, 28.0, 41.0, 14.0, 29.0, 56.0, 24.0, 75.0, 60.0, -48.0];
    let p = significance::randomisation(&differences, 0, 0);
    assert_eq!(p, 2.0 * 863.0 / 32768.0);
}

#[test]
fn sampled_p_values_are_near_the_exact_ones_and_repeat() {
    // 16 pairs are exact; with sixteen zeros more they are sampled, and the p-value is the same.
    let few: Vec<f64> = numbers(3, 16).iter().map(|v| f64::from(*v) + 0.4).collect();
    let many: Vec<f64> = few.iter().copied().chain([0.0; 80]).collect();
    let (exact, sampled) =
        (significance::randomisation(&few, 0, 1), significance::randomisation(&many, 20_000, 1));
    let error = (exact * (1.0 - exact) / 20_000.0).sqrt();
    assert!((exact - sampled).abs() < 5.0 * error + 1e-4, "{exact} and {sampled}");
    assert_eq!(sampled, significance::randomisation(&many, 20_000, 1));
    assert_ne!(sampled, significance::randomisation(&many, 20_000, 2));
    assert_eq!(significance::randomisation(&[0.0; 40], 100, 1), 1.0);
    assert_eq!(significance::randomisation(&[], 100, 1), 1.0);
}

#[test]
fn bootstrap_intervals_are_those_of_the_normal_approximation() {
    let values: Vec<f64> = numbers(9, 400).iter().map(|v| f64::from(*v)).collect();
    let mean = values.iter().sum::<f64>() / 400.0;
    let deviation = (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / 400.0).sqrt() / 20.0;
    let (low, high) = significance::bootstrap(&values, 10_000, 0.95, 4);
    let tolerance = 0.06 * deviation;
    assert!((low - (mean - 1.96 * deviation)).abs() < tolerance, "{low}");
    assert!((high - (mean + 1.96 * deviation)).abs() < tolerance, "{high}");
    assert_eq!(significance::bootstrap(&[2.5; 9], 50, 0.9, 1), (2.5, 2.5));
    assert_eq!(significance::bootstrap(&[], 50, 0.9, 1), (0.0, 0.0));
    let first = [0.2, 0.4, 0.1, 0.9];
    let second = [0.3, 0.4, 0.5, 1.0];
    let compared = significance::compare(&first, &second, 500, 0.95, 7);
    assert!((compared.difference - 0.15).abs() < 1e-12 && compared.pairs == 4);
    // Signs of three differences that are not 0: two of eight patterns are as far out.
    assert_eq!(compared.p, 0.25);
    assert!(compared.interval.0 <= 0.15 && compared.interval.1 >= 0.15);
}

#[test]
fn holm_adjusts_as_rs_p_adjust() {
    // p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm") is 0.03 0.06 0.06 0.02
    let got = significance::holm(&[0.01, 0.04, 0.03, 0.005]);
    for (got, want) in got.iter().zip([0.03, 0.06, 0.06, 0.02]) {
        assert!((got - want).abs() < 1e-12, "{got} instead of {want}");
    }
    assert_eq!(significance::holm(&[0.9, 0.8]), [1.0, 1.0]);
    assert!(significance::holm(&[]).is_empty());
}

// ---- general knowledge -------------------------------------------------------------------------------------

/// All logits of one text alone, `[predicted tokens][vocabulary]`, with the tokens they predict.
fn logits(model: &Model, text: &[u32]) -> Vec<(Vec<f32>, usize)> {
    let (encoder, input, predicted) = match model.architecture.decoder_start {
        Some(start) if model.architecture.is_encoder_decoder() => {
            let (first, second) = text.split_at(text.len() / 2);
            let input: Vec<u32> = std::iter::once(start).chain(second[..second.len() - 1].to_vec()).collect();
            (Some(Packed::new(&[vec![first]])), input, second)
        }
        _ => (None, text[..text.len() - 1].to_vec(), &text[1..]),
    };
    let rows = (0..input.len() as u32).collect();
    let request = Inference { encoder, decoder: Packed::new(&[vec![input]]), visible: None, rows };
    let logits = model.logits(&model.hidden(&request).unwrap()).unwrap();
    let values = model.backend.download(logits.mat()).unwrap();
    let rows = values.chunks(logits.cols()).map(<[f32]>::to_vec);
    rows.zip(predicted.iter().map(|t| *t as usize)).collect()
}

fn softmax(logits: &[f32]) -> Vec<f64> {
    let total: f64 = logits.iter().map(|l| f64::from(*l).exp()).sum();
    logits.iter().map(|l| f64::from(*l).exp() / total).collect()
}

#[test]
fn golden_models_forget_what_the_formulas_say() {
    let golden = Golden::open();
    for name in golden.folders("models") {
        let mut model = load(&golden, &name, "config.json");
        if model.linears.iter().any(|linear| linear.weight.quantised().is_some()) {
            continue; // weights in codes cannot be changed
        }
        let old = model.architecture.vocabulary - 10;
        let odd = vec![4, old as u32 + 2, 6]; // one token is not the base's: nothing to compare
        let texts: Vec<Vec<u32>> = vec![vec![3, 5, 7, 11, 13], vec![2, 4], vec![9; 300], odd];
        let before: Vec<_> = texts.iter().flat_map(|t| logits(&model, t)).collect();
        let reference = Reference::capture(&model, texts.clone(), old).unwrap();
        for linear in &mut model.linears {
            let (rows, cols) = linear.weight.shape();
            let noise =
                model.backend.tensor(&numbers(rows as u64, rows * cols), rows, cols, DType::F32).unwrap();
            model.backend.axpy(0.02, noise.mat(), linear.weight.mat_mut()).unwrap();
        }
        let (mut nll, mut kl, mut mass, mut tokens) = (0.0, 0.0, 0.0, 0);
        let after = texts.iter().flat_map(|t| logits(&model, t));
        for ((before, target), (after, _)) in before.into_iter().zip(after).filter(|((_, t), _)| *t < old) {
            let (p, q) = (softmax(&before[..old]), softmax(&after[..old]));
            nll -= q[target].ln();
            kl += p.iter().zip(&q).map(|(p, q)| p * (p / q).ln()).sum::<f64>();
            mass += softmax(&after)[old..].iter().sum::<f64>();
            tokens += 1;
        }
        let n = f64::from(tokens);
        let general = reference.measure(&model).unwrap();
        assert_eq!(general.tokens as i32, tokens, "{name}");
        let got = [general.perplexity.ln() as f32, general.kl as f32, general.item_mass as f32];
        assert!(got[1] > 1e-4, "{name}: the noise changes nothing");
        assert_close(&name, &got, &[(nll / n) as f32, (kl / n) as f32, (mass / n) as f32], 1e-4, 1e-6);
    }
}

#[test]
fn drift_is_the_sum_of_squares_of_what_outputs_moved() {
    let (samples, inputs, outputs) = (7, 5, 3);
    let (x, change) = (numbers(1, samples * inputs), numbers(2, outputs * inputs));
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let moved = x.chunks(inputs).flat_map(|x| change.chunks(inputs).map(move |w| dot(w, x).powi(2)));
    let want = moved.sum::<f64>();
    let cpu: std::sync::Arc<dyn Backend> = Cpu::open(None).unwrap();
    let change = cpu.tensor(&change, outputs, inputs, DType::F32).unwrap();
    let x = cpu.tensor(&x, samples, inputs, DType::F32).unwrap();
    let got = drift(cpu.as_ref(), change.mat(), x.mat()).unwrap();
    assert!((got - want).abs() < 1e-5 * want, "{got} instead of {want}");
}
