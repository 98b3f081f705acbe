//! Second moments: against sums in f64, sketches against the moments that they are of, gradients against the expectation
//! over all tokens; their file; and that an interrupted pass goes on bit for bit.

use super::knowledge;
use crate::support::{backend, dry_run, numbers, on_every_device};
use gems_engine::backend::*;
use gems_engine::error::{Kind, Result};
use gems_engine::gems::*;
use gems_engine::layers::*;
use gems_engine::model::*;
use gems_engine::train::{KnowledgePass, KnowledgeProgress, largest_knowledge, planned_peak};
use proptest::prelude::*;
use serde_json::json;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

// ---- one moment ---------------------------------------------------------------------------------

/// `E[x xᵀ]` in f64.
fn second_moment(x: &[f32], dim: usize) -> Vec<f64> {
    let mut c = vec![0f64; dim * dim];
    let rows = x.len() / dim;
    for x in x.chunks(dim) {
        for i in 0..dim {
            for j in 0..dim {
                c[i * dim + j] += f64::from(x[i]) * f64::from(x[j]) / rows as f64;
            }
        }
    }
    c
}

/// `U diag(values) Uᵀ + rest (I - U Uᵀ)` in f64.
fn rebuilt(s: &Spectrum) -> Vec<f64> {
    let n = s.dim;
    let mut c: Vec<f64> = (0..n * n).map(|at| if at / n == at % n { s.rest } else { 0.0 }).collect();
    for (value, u) in s.values.iter().zip(s.directions.chunks(n)) {
        for i in 0..n {
            for j in 0..n {
                c[i * n + j] += (value - s.rest) * f64::from(u[i]) * f64::from(u[j]);
            }
        }
    }
    c
}

fn norm(values: impl IntoIterator<Item = f64>) -> f64 {
    values.into_iter().map(|v| v * v).sum::<f64>().sqrt()
}

/// |a - b| over |b|.
fn apart(a: &[f64], b: &[f64]) -> f64 {
    norm(a.iter().zip(b).map(|(a, b)| a - b)) / norm(b.iter().copied())
}

/// How far rows are from orthonormal: the largest entry of `A Aᵀ - I`.
fn askew(s: &Spectrum) -> f64 {
    let rows: Vec<&[f32]> = s.directions.chunks(s.dim).collect();
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let each = rows.iter().enumerate().flat_map(|(i, a)| {
        rows[..=i].iter().enumerate().map(move |(j, b)| (dot(a, b) - f64::from(i == j)).abs())
    });
    each.fold(0.0, f64::max)
}

/// The spectrum of vectors that come in uneven parts; by a sketch of so many directions, if given.
fn spectrum(x: &[f32], dim: usize, sketch: Option<usize>) -> Result<Spectrum> {
    let be = backend();
    let mut moment = match sketch {
        None => Moment::whole(&be, dim)?,
        Some(k) => Moment::sketched(&be, &test_matrix(&be, dim, sketch_rows(dim, k), 5)?)?,
    };
    let (rows, mut at) = (x.len() / dim, 0);
    for part in [1, 2, rows.saturating_sub(5), rows].map(|end| end.clamp(at, rows)) {
        let values = &x[at * dim..part.max(at) * dim];
        let some = be.tensor(values, values.len() / dim, dim, DType::F32)?;
        moment.add(some.mat())?;
        at = at.max(part);
    }
    Ok(Moment::spectra(&[("x", &moment)], sketch.unwrap_or(dim))?.remove(0))
}

#[test]
fn a_whole_moment_is_decomposed_exactly() {
    on_every_device(|| {
        for (dim, rows) in [(1, 3), (7, 40), (17, 18), (31, 200)] {
            let x = numbers(dim as u64, rows * dim);
            let got = spectrum(&x, dim, None).unwrap();
            assert_eq!((got.dim, got.kept(), got.samples, got.rest), (dim, dim, rows, 0.0));
            assert!(got.values.windows(2).all(|w| w[0] >= w[1]), "not descending");
            assert!(askew(&got) < 1e-5);
            let (off, c) = (apart(&rebuilt(&got), &second_moment(&x, dim)), second_moment(&x, dim));
            assert!(off < 2e-6, "{dim}: {off}");
            let trace: f64 = (0..dim).map(|i| c[i * dim + i]).sum();
            assert!(
                (got.trace() / trace - 1.0).abs() < 1e-6
                    && (got.mean() * dim as f64 / trace - 1.0).abs() < 1e-6
            );
        }
    });
}

/// Vectors whose second moment has about these eigenvalues, in directions of their own.
fn planted(values: &[f64], rows: usize, seed: u64) -> Vec<f32> {
    let (be, dim) = (backend(), values.len());
    let mut u = be.tensor(&numbers(seed, dim * dim), dim, dim, DType::F32).unwrap();
    be.run(OrthonormalizeRows { matrices: vec![u.mat_mut()] }).unwrap();
    let mut g = numbers(seed + 1, rows * dim);
    g.iter_mut().enumerate().for_each(|(i, v)| *v *= values[i % dim].sqrt() as f32);
    let g = be.tensor(&g, rows, dim, DType::F32).unwrap();
    let mut x = be.alloc(rows, dim, DType::F32).unwrap();
    be.product(x.mat_mut(), 0.0, 1.0, g.mat().n(), u.mat().n()).unwrap();
    be.download(x.mat()).unwrap()
}

/// A sketch finds the leading eigenvectors and eigenvalues of a moment: with a spectrum that falls, and with one direction
/// that outweighs all others, as hidden states have.
#[test]
fn a_sketch_finds_the_leading_directions_of_the_whole() {
    on_every_device(|| {
        for (dim, rows, outlier, falls) in
            [(67, 300, 1.0, 0.6f64), (131, 400, 1.0, 0.6), (131, 400, 1000.0, 0.7)]
        {
            let value = |i: usize| if i == 0 { outlier } else { falls.powi(i as i32) + 1e-6 };
            let values: Vec<f64> = (0..dim).map(value).collect();
            let x = planted(&values, rows, dim as u64);
            let (whole, got) = (spectrum(&x, dim, None).unwrap(), spectrum(&x, dim, Some(16)).unwrap());
            assert_eq!((got.dim, got.kept(), got.samples), (dim, 16, rows));
            assert!(askew(&got) < 2e-5, "{}", askew(&got));
            assert!((got.trace() / whole.trace() - 1.0).abs() < 2e-6, "the trace is exact");
            for i in 0..7 {
                let ratio = got.values[i] / whole.values[i];
                assert!((0.97..1.0 + 1e-3).contains(&ratio), "{dim}, {outlier}: eigenvalue {i}: {ratio}");
                // What of direction i lies in the span of as many exact ones and two more.
                let u = &got.directions[i * dim..(i + 1) * dim];
                let inside: f64 = whole.directions[..(i + 3) * dim]
                    .chunks(dim)
                    .map(|v| u.iter().zip(v).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>().powi(2))
                    .sum();
                assert!(inside > 0.98, "{dim}, {outlier}: direction {i}: {inside}");
            }
            // What is missed of the leading ones is in the rest.
            let tail: f64 = whole.values[16..].iter().sum::<f64>() / (dim - 16) as f64;
            assert!(got.rest >= tail * 0.999, "{} for {tail}", got.rest);
        }
    });
}

#[test]
fn fewer_vectors_than_dimensions_leave_zeros_not_noise() {
    on_every_device(|| {
        let (dim, rows) = (83, 6);
        let x = numbers(4, rows * dim);
        let c = second_moment(&x, dim);
        let whole = spectrum(&x, dim, None).unwrap();
        assert!(
            whole.values[..rows].iter().all(|v| *v > 0.1) && whole.values[rows..].iter().all(|v| *v == 0.0)
        );
        let sketched = spectrum(&x, dim, Some(20)).unwrap();
        assert_eq!((sketched.kept(), sketched.rest), (rows, 0.0));
        for got in [whole, sketched] {
            let off = apart(&rebuilt(&got), &c);
            assert!(off < 2e-5, "{off}");
            assert_eq!(protected(&got, Criterion::Energy, 1.0, 0).min(rows), rows);
        }
    });
}

#[test]
fn moments_of_nothing_zeros_and_nan_are_refused_by_name() {
    on_every_device(|| {
        for sketch in [None, Some(6)] {
            let fails = |x: Vec<f32>| spectrum(&x, 40, sketch).unwrap_err().to_string();
            assert!(fails(vec![]).contains("x: the general text is too short"));
            assert!(fails(vec![0.0; 40 * 50]).contains("x: it is zero on all of the general text"));
            let mut x = numbers(1, 40 * 50);
            x[77] = f32::NAN;
            let said = fails(x);
            assert!(said.contains("x: ") && said.contains("NaN"), "{said}");
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Of any vectors: the trace is the mean square, energies add up to it, and a cut by energy is the smallest that holds it,
    /// always leaving the room.
    #[test]
    fn spectra_hold_the_energy_of_their_vectors(
        dim in 1usize..24, rows in 1usize..40, sketch in 0usize..12, seed in 0u64..1000, value in 0f64..1.0, room in 0usize..6,
    ) {
        let x = numbers(seed, rows * dim);
        let s = spectrum(&x, dim, (sketch > 0).then_some(sketch)).unwrap();
        let square = x.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / rows as f64;
        prop_assert!((s.trace() / square - 1.0).abs() < 1e-4, "{} for {}", s.trace(), square);
        prop_assert!(s.kept() <= dim && askew(&s) < 1e-4 && s.values.windows(2).all(|w| w[0] >= w[1]));
        prop_assert!((0..s.kept()).all(|k| s.energy(k) <= s.energy(k + 1) && s.energy(k) <= 1.0 + 1e-9));
        let space = Space::cut(&s, (Criterion::Energy, value), room);
        prop_assert!(space.kept() <= s.kept() && space.kept() + room.min(dim) <= dim);
        if space.wanted == space.kept() && space.kept() + room < dim {
            prop_assert!(space.energy() >= value - 1e-9);
            prop_assert!(space.kept() == 0 || s.energy(space.kept() - 1) < value);
        }
    }
}

#[test]
fn protected_counts_follow_their_criteria() {
    let of = |values: &[f64], rest: f64, dim: usize| {
        let (values, directions) = (values.to_vec(), vec![0.0; values.len() * dim]);
        Spectrum { dim, directions, values, rest, ..Spectrum::default() }
    };
    let whole = of(&[8.0, 4.0, 2.0, 1.0, 1.0], 0.0, 5);
    for (criterion, value, room, want) in [
        (Criterion::Energy, 0.5, 0, 1),
        (Criterion::Energy, 0.51, 0, 2),
        (Criterion::Energy, 1.0, 0, 5),
        (Criterion::Energy, 1.0, 2, 3),
        (Criterion::Ratio, 0.2, 0, 3),
        (Criterion::Budget, 2.0, 0, 3),
        (Criterion::Absolute, 1.5, 0, 3),
        (Criterion::Absolute, 0.5, 0, 4),
    ] {
        assert_eq!(protected(&whole, criterion, value, room), want, "{criterion:?} {value} {room}");
    }
    assert_eq!(protected(&of(&[], 0.0, 0), Criterion::Energy, 0.9, 0), 0);
    // Of ten directions two are kept: what a rule asks for beyond them counts for their mean.
    let some = of(&[8.0, 4.0], 0.5, 10);
    for (criterion, value, want) in [
        (Criterion::Energy, 0.5, 1),
        (Criterion::Energy, 0.75, 2),
        (Criterion::Energy, 0.875, 6),
        (Criterion::Energy, 1.0, 10),
        (Criterion::Ratio, 0.2, 2),
        (Criterion::Ratio, 0.05, 10),
        (Criterion::Budget, 3.0, 7),
        (Criterion::Absolute, 1.0, 2),
        (Criterion::Absolute, 0.1, 9),
    ] {
        assert_eq!(protected(&some, criterion, value, 0), want, "{criterion:?} {value}");
        let space = Space::cut(&some, (criterion, value), 0);
        assert_eq!((space.kept(), space.wanted), (want.min(2), want));
    }
}

// ---- a model's ----------------------------------------------------------------------------------

fn architecture(family: &str, feed_forward: usize) -> Architecture {
    let json = match family {
        "t5" => {
            json!({"model_type": "t5", "vocab_size": 11, "d_model": 16, "d_kv": 8, "num_heads": 2, "d_ff": feed_forward,
            "num_layers": 2, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": false, "initializer_factor": 1.0})
        }
        family => json!({"model_type": family, "vocab_size": 11, "hidden_size": 16, "num_attention_heads": 2,
            "num_key_value_heads": 1, "intermediate_size": feed_forward, "num_hidden_layers": 2, "initializer_range": 0.4}),
    };
    Architecture::from_json(json, family).unwrap()
}

fn model(family: &str, feed_forward: usize) -> Model {
    let options = LoadOptions { random: Some(3), vocabulary: 14, ..LoadOptions::default() };
    Model::build(architecture(family, feed_forward), None, backend(), &options).unwrap()
}

/// Texts of uneven length.
fn texts(count: usize, longest: usize) -> Vec<Vec<u32>> {
    let text =
        |i: usize| (0..2 + i * 7 % (longest - 1)).map(|j| ((i * 5 + j * j * 3 + j) % 11) as u32).collect();
    (0..count).map(text).collect()
}

static NEVER: AtomicBool = AtomicBool::new(false);

fn pass<'a>(model: &'a Model, settings: &'a NullSpaceSettings, chunks: &'a [Vec<u32>]) -> KnowledgePass<'a> {
    KnowledgePass { model, settings, chunks, vocabulary: 11, seed: 9, partial: None, interrupted: &NEVER }
}

/// All inputs and outputs of every layer, row by row, first positions left out.
struct Seen {
    be: Arc<dyn Backend>,
    skip: Option<Vec<u32>>,
    rows: Vec<[Vec<f32>; 2]>,
}

impl Observer for Seen {
    fn linear(&mut self, site: usize, x: Mat, y: Mat) -> Result<()> {
        for (of, m) in [x, y].into_iter().enumerate() {
            let values = self.be.download(m)?;
            let kept = values.chunks(m.cols).enumerate();
            let kept = kept.filter(|(i, _)| self.skip.as_ref().is_none_or(|p| p[*i] > 0));
            self.rows[site][of].extend(kept.flat_map(|(_, row)| row));
        }
        Ok(())
    }
}

/// The same moments whether a pass goes forward only or backward too; of all layers, adapted or not; shared by layers that
/// read the same; and small ones decomposed as ever, bit for bit.
#[test]
fn inputs_and_outputs_are_those_of_the_forward_pass() {
    for family in ["llama", "t5"] {
        let (model, chunks) = (model(family, 24), texts(30, 9));
        let mut settings = NullSpaceSettings { side: NullSide::Output, ..NullSpaceSettings::default() };
        let learned = pass(&model, &settings, &chunks).learn(&mut |_| ()).unwrap();
        settings.gradient_tokens = 0;
        let forward = pass(&model, &settings, &chunks).learn(&mut |_| ()).unwrap();
        assert_eq!(
            (&learned.inputs, &learned.outputs, &learned.hidden),
            (&forward.inputs, &forward.outputs, &forward.hidden)
        );
        assert!(forward.gradients.is_empty() && forward.gradient_tokens == 0);
        let sites = &model.layout.sites;
        let request = general_pass(&model, &chunks);
        let skip = request.encoder.is_none().then(|| request.decoder.positions.clone());
        let mut seen =
            Seen { be: Arc::clone(&model.backend), skip, rows: vec![Default::default(); sites.len()] };
        let states = model.observe(&request, &mut seen).unwrap();
        for (i, site) in sites.iter().enumerate() {
            for (spectrum, x, dim) in [
                (learned.input(i).unwrap(), &seen.rows[i][0], site.inputs),
                (learned.output(i).unwrap(), &seen.rows[i][1], site.outputs),
            ] {
                let off = apart(&rebuilt(spectrum), &second_moment(x, dim));
                assert!(off < 1e-5 && spectrum.samples == x.len() / dim, "{family} {}: {off}", site.name);
            }
            for (j, other) in sites.iter().enumerate() {
                let same = learned.input_of_site[i] == learned.input_of_site[j];
                assert_eq!(same, site.input_group == other.input_group, "{} and {}", site.name, other.name);
            }
        }
        // One pass, one sum: what was decomposed before is what is decomposed now.
        let mut moment = Moment::whole(&model.backend, sites[0].inputs).unwrap();
        let x = &seen.rows[0][0];
        let x = model.backend.tensor(x, x.len() / 16, 16, DType::F32).unwrap();
        moment.add(x.mat()).unwrap();
        let (_, directions) = symmetric_eigen(&moment.mean().unwrap(), 16).unwrap();
        assert_eq!(learned.input(0).unwrap().directions, directions);
        let hidden = model.backend.download(states.mat()).unwrap();
        assert!(apart(&rebuilt(learned.hidden.as_ref().unwrap()), &second_moment(&hidden, 16)) < 1e-5);
    }
}

/// Collects the gradients of every layer's outputs.
struct Gradients(Arc<dyn Backend>, Vec<Vec<f32>>);

impl Tap for Gradients {
    fn linear(&mut self, site: usize, g: &LinearGradient) -> Result<()> {
        self.1[site] = self.0.download(g.dy)?;
        Ok(())
    }
    fn wants(&self, _: usize) -> Want {
        Want::Nothing
    }
    fn dense(&mut self, _: usize, _: Mat) -> Result<()> {
        Ok(())
    }
}

/// `F = E[dy dyᵀ]` of one text, exactly: over every token that every position could have drawn, by its probability over the
/// first `vocabulary` tokens. Draws are independent and the score has mean zero, so that positions add up.
fn expected(model: &Model, text: &[u32], vocabulary: usize) -> Vec<Vec<f64>> {
    let (be, sites, rows) = (&model.backend, &model.layout.sites, text.len());
    let request = general_pass(model, &[text.to_vec()]);
    let states = model.hidden(&request).unwrap();
    let logits = be.download(model.logits(&states).unwrap().mat()).unwrap();
    let mut f: Vec<Vec<f64>> = sites.iter().map(|s| vec![0.0; s.outputs * s.outputs]).collect();
    // The gradient of log p(token at row) over the old vocabulary, for each of them.
    for row in 1..rows {
        let logits: Vec<f64> =
            logits[row * 14..row * 14 + vocabulary].iter().map(|l| f64::from(*l)).collect();
        let sum: f64 = logits.iter().map(|l| l.exp()).sum();
        for (token, logit) in logits.iter().enumerate() {
            let mut tap = Gradients(Arc::clone(be), vec![Vec::new(); sites.len()]);
            let labels =
                Labels { rows: vec![row as u32], targets: vec![], weights: vec![1.0], segments: vec![0..1] };
            let batch = Batch { encoder: None, decoder: request.decoder.clone(), labels };
            let (mut nobody, mut choose) = (
                Seen { be: be.clone(), skip: None, rows: vec![Default::default(); sites.len()] },
                |_: &Tensor| Ok(vec![token as u32]),
            );
            let choosing = Choosing { vocabulary, observer: &mut nobody, choose: &mut choose };
            let forward = model.forward_choosing(&batch, &tap, choosing).unwrap();
            let nll = f64::from(forward.nll(be.as_ref()).unwrap()[0]);
            let p = logit.exp() / sum;
            assert!(
                (nll + p.ln()).abs() < 1e-4,
                "the softmax is over the old vocabulary: {nll}, {}",
                -p.ln()
            );
            model.backward(forward, &mut tap).unwrap();
            for (site, dy) in tap.1.iter().enumerate() {
                let m = sites[site].outputs;
                // In the last feed-forward block only the labelled row is computed.
                for dy in dy.chunks(m).skip(usize::from(dy.len() > m)) {
                    for i in 0..m {
                        for j in 0..m {
                            f[site][i * m + j] += p * f64::from(dy[i]) * f64::from(dy[j]) / (rows - 1) as f64;
                        }
                    }
                }
            }
        }
    }
    f
}

/// Sampled tokens give the expected outer product of gradients, the closer the more samples.
#[test]
fn gradients_of_sampled_tokens_approach_the_expectation() {
    let (model, text) = (model("llama", 8), vec![3u32, 7, 1, 10, 4]);
    let want = expected(&model, &text, 11);
    let settings = NullSpaceSettings { gradient_tokens: 1 << 20, ..NullSpaceSettings::default() };
    let off = |copies: usize| -> Vec<f64> {
        let chunks = vec![text.clone(); copies];
        let learned = pass(&model, &settings, &chunks).learn(&mut |_| ()).unwrap();
        assert_eq!(learned.gradient_tokens, 5 * copies);
        let of = |site: usize| apart(&rebuilt(learned.gradient(site).unwrap()), &want[site]);
        (0..want.len()).map(of).collect()
    };
    let (few, many) = (off(40), off(8000));
    for (site, (few, many)) in few.iter().zip(&many).enumerate() {
        assert!(*many < 0.05, "layer {site}: {many} of {few}");
    }
    assert!(many.iter().sum::<f64>() < 0.3 * few.iter().sum::<f64>(), "{many:?} {few:?}");
}

// ---- files and interruptions --------------------------------------------------------------------

#[test]
fn knowledge_is_saved_read_and_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("basis.safetensors");
    let written = Knowledge {
        outputs: vec![None, knowledge(NullSide::Output, 3).outputs[1].clone()],
        ..knowledge(NullSide::Input, 3)
    };
    written.save(&path).unwrap();
    assert_eq!(Knowledge::load(&path, "f").unwrap(), written);
    let fails = |fingerprint: &str| Knowledge::load(&path, fingerprint).unwrap_err();
    assert!(fails("another").to_string().contains("another model"));
    // Any byte that is another, and any end that is missing.
    let bytes = std::fs::read(&path).unwrap();
    let places = numbers(3, 400).into_iter().map(|v| (v.abs() * 1e6) as usize % bytes.len());
    for at in (0..bytes.len().min(2000)).step_by(9).chain(places) {
        for bit in [0, 6] {
            let mut bytes = bytes.clone();
            bytes[at] ^= 1 << bit;
            std::fs::write(&path, &bytes).unwrap();
            match Knowledge::load(&path, "f") {
                // White space in a header says the same.
                Ok(read) => assert_eq!(read, written, "byte {at}"),
                Err(error) => assert!(error.to_string().contains("basis.safetensors"), "{error}"),
            }
        }
        std::fs::write(&path, &bytes[..at]).unwrap();
        assert!(Knowledge::load(&path, "f").is_err(), "cut at {at}");
    }
    assert!(Knowledge::load(&dir.path().join("none"), "f").unwrap_err().kind == Kind::Io);
}

#[test]
fn an_earlier_format_is_refused_with_the_way_out() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("old.safetensors");
    let facts = json!({"format": "gems-engine knowledge basis 1", "fingerprint": "f"}).to_string();
    let header = json!({"__metadata__": {"gems": facts}}).to_string();
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
    std::fs::write(&path, bytes).unwrap();
    let said = Knowledge::load(&path, "f").unwrap_err().to_string();
    assert!(said.contains("earlier version") && said.contains("gems-engine basis"), "{said}");
}

#[test]
fn knowledge_of_layers_of_other_sizes_is_refused() {
    let mut world = super::World::new();
    let (be, shapes) = (Arc::clone(&world.be), world.shapes.clone());
    let mut settings = super::small(Method::Gems);
    settings.null_space.side = NullSide::Output;
    let mut make =
        |k: &Knowledge| Optimizer::new(settings.clone(), &shapes, &[], 2, Some(k), &mut world, &be, 7).err();
    let none = make(&knowledge(NullSide::Input, 3)).unwrap().to_string();
    assert!(none.contains("no second moments of outputs") && none.contains("side=output"), "{none}");
    let mut other = knowledge(NullSide::Output, 3);
    other.outputs.swap(0, 1);
    assert!(make(&other).unwrap().to_string().contains("other sizes"));
    assert!(make(&knowledge(NullSide::Output, 3)).is_none());
}

/// Runs a pass, interrupted when so many passes are done; how many tokens it went on from.
fn start(
    model: &Model,
    chunks: &[Vec<u32>],
    partial: &Path,
    stop: usize,
    seed: u64,
) -> (Result<Knowledge>, usize) {
    let interrupted = AtomicBool::new(false);
    let settings =
        NullSpaceSettings { directions: 20, gradient_tokens: 6000, ..NullSpaceSettings::default() };
    let pass = KnowledgePass {
        partial: Some(partial),
        interrupted: &interrupted,
        seed,
        ..pass(model, &settings, chunks)
    };
    let (mut done, mut from) = (0, 0);
    let learned = pass.learn(&mut |at| match at {
        KnowledgeProgress::Resumed(tokens) => from = tokens,
        KnowledgeProgress::Tokens(..) => {
            done += 1;
            interrupted.store(done == stop, Ordering::SeqCst);
        }
        KnowledgeProgress::Moments(..) => (),
    });
    (learned, from)
}

#[test]
fn an_interrupted_pass_goes_on_to_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    // The input of `down` is sketched.
    let (model, chunks) = (model("llama", 1100), texts(600, 60));
    let whole = start(&model, &chunks, &dir.path().join("whole"), 0, 9).0.unwrap();
    assert!(whole.inputs.iter().any(|s| s.dim == 1100 && s.kept() == 20));
    let partial = dir.path().join("partial");
    for (stop, at_least) in [(1, 0), (2, 4000)] {
        let (error, from) = start(&model, &chunks, &partial, stop, 9);
        assert_eq!(error.unwrap_err().kind, Kind::Interrupted);
        assert!(from >= at_least, "{from}");
    }
    let sums = std::fs::read(&partial).unwrap();
    let (again, from) = start(&model, &chunks, &partial, 0, 9);
    assert!(again.unwrap() == whole && from > 8000, "{from}");
    // What is of another pass, or damaged, is not taken up.
    std::fs::write(&partial, &sums).unwrap();
    let (other, from) = start(&model, &chunks, &partial, 0, 10);
    assert!(other.unwrap() != whole && from == 0);
    let mut damaged = sums.clone();
    damaged[sums.len() / 2] ^= 4;
    std::fs::write(&partial, &damaged).unwrap();
    let (again, from) = start(&model, &chunks, &partial, 0, 9);
    assert!(again.unwrap() == whole && from == 0);
}

// ---- sizes --------------------------------------------------------------------------------------

/// A layer's square is on no device: what a wide model's moments hold grows with its widths, not with their squares.
#[test]
fn wide_layers_are_never_squared() {
    let be = dry_run(DType::BF16);
    let json = json!({"model_type": "llama", "vocab_size": 500, "hidden_size": 2048, "num_attention_heads": 16,
        "num_key_value_heads": 4, "intermediate_size": 16384, "num_hidden_layers": 1});
    let model = Model::outline(Architecture::from_json(json, "llama").unwrap(), Arc::clone(&be)).unwrap();
    let settings = NullSpaceSettings::default();
    let chunks = vec![vec![1u32; 64]; 4];
    let before = be.memory().live;
    let pass = KnowledgePass { vocabulary: 500, ..pass(&model, &settings, &chunks) };
    let peak = planned_peak(&pass).unwrap() - before;
    // Sketches of 320 rows: of four inputs and five outputs wider than 1024; k and v are kept whole.
    let widths = 3 * 2048 + 16384 + 2 * 2048 + 2 * 16384 + 2048 + 2048;
    let floor = 320 * widths * 4;
    assert!(peak > floor && peak < 3 * floor, "{peak} of {floor}");
    assert!(peak < 16384 * 16384 * 4 / 4, "{peak}");
    let held = largest_knowledge(&model, &settings);
    assert!(held.inputs.iter().all(|s| s.kept() == 256) && held.gradient(1).unwrap().kept() == 512);
}

/// Flops and bytes of a pass of 4096 tokens through 8B weights, forward only or backward too, with the moments of all layers.
fn counted(gradient_tokens: usize) -> (f64, f64, usize) {
    let be = dry_run(DType::BF16);
    let json = json!({"model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "num_attention_heads": 32,
        "num_key_value_heads": 8, "intermediate_size": 14336, "num_hidden_layers": 32});
    let model = Model::outline(Architecture::from_json(json, "llama").unwrap(), Arc::clone(&be)).unwrap();
    let settings = NullSpaceSettings { gradient_tokens, ..NullSpaceSettings::default() };
    let chunks = vec![vec![1u32; 256]; 16];
    be.record().unwrap();
    let peak =
        planned_peak(&KnowledgePass { vocabulary: 128256, ..pass(&model, &settings, &chunks) }).unwrap();
    let work = be.recorded().unwrap().into_iter().filter(|r| !r.name.starts_with("orthonormalize"));
    let (flops, bytes) = work.filter_map(|r| r.work).fold((0, 0), |(f, b), w| (f + w.flops, b + w.bytes));
    (flops as f64, bytes as f64, peak)
}

/// The moments of all layers of 8B weights cost less than a tenth of a forward pass, and those of gradients less than that of
/// the three passes they come from.
#[test]
fn moments_cost_a_small_part_of_the_passes_they_are_taken_in() {
    let (t, layers, q) = (4096.0, 32.0, 320.0);
    let weights = 4096.0 * (2.0 * 4096.0 + 2.0 * 1024.0 + 3.0 * 14336.0);
    let forward = 2.0 * t * layers * weights;
    let inputs = 4.0 * t * q * (layers * (3.0 * 4096.0 + 14336.0) + 4096.0);
    let gradients = t * layers * (4.0 * q * (3.0 * 4096.0 + 2.0 * 14336.0) + 2.0 * 2.0 * 1024.0 * 1024.0);
    let head = 2.0 * t * 4096.0 * 128256.0;
    let (flops, bytes, peak) = counted(0);
    println!("forward: {flops:.4e} flops, {bytes:.4e} bytes, peak {:.2} GB", peak as f64 / 1e9);
    // Attention and what is done element by element are not in the formula.
    assert!((1.0..1.05).contains(&(flops / (forward + inputs))), "{flops:e} of {:e}", forward + inputs);
    assert!(inputs < 0.1 * forward);
    let (flops, bytes, peak) = counted(1);
    println!("and backward: {flops:.4e} flops, {bytes:.4e} bytes, peak {:.2} GB", peak as f64 / 1e9);
    let want = 3.0 * forward + inputs + gradients + 3.0 * head;
    assert!((1.0..1.1).contains(&(flops / want)), "{flops:e} of {want:e}");
    assert!(gradients < 0.1 * 3.0 * forward);
    assert!(peak < 40 << 30, "{peak}");
}
