//! Attention and its gradients against the definition in f64: on the CPU backend, and with the kernels on the
//! SIMT machine in f32 and bf16 (tensor-core and row kernels), over ragged packed sequences.

use super::cases::{self, Inputs, Prepared, Sizes, Timed};
use crate::support::{assert_close, kernel_devices, numbers};
use gems_engine::backend::cpu::Cpu;
use gems_engine::backend::*;
use half::bf16;
use std::sync::Arc;

/// Self-attention of a model's heads over sequences of one length, without a bias.
struct SelfAttention {
    sizes: Sizes,
    offsets: Indices,
    /// Queries, keys, values.
    of: [Tensor; 3],
}

impl SelfAttention {
    fn new(sizes: &Sizes, on: &Inputs) -> Self {
        let (t, q, kv) = (sizes.tokens, sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim);
        let offsets = on.indices((0..t).step_by(sizes.sequence).chain([t]).map(|o| o as u32));
        let of = [on.compute(1, t, q), on.compute(2, t, kv), on.compute(3, t, kv)];
        Self { sizes: sizes.clone(), offsets, of }
    }
    fn spec(&self) -> AttentionSpec<'_> {
        AttentionSpec {
            q_offsets: &self.offsets,
            k_offsets: &self.offsets,
            heads: self.sizes.heads,
            kv_heads: self.sizes.kv_heads,
            head_dim: self.sizes.head_dim,
            scale: (self.sizes.head_dim as f32).sqrt().recip(),
            mask: if self.sizes.causal { Mask::Causal { window: None } } else { Mask::Full },
            bias: None,
            softcap: None,
        }
    }
    fn forward<'a>(&'a self, out: MatMut<'a>, lse: MatMut<'a>) -> Attention<'a> {
        let [q, k, v] = self.of.each_ref().map(Tensor::mat);
        Attention { spec: self.spec(), q, k, v, out, lse }
    }
}

fn forward(s: &Sizes) -> cases::Case {
    let (sizes, t) = (s.clone(), s.tokens);
    cases::Case::new(format!("attention {t} tokens, {} heads of {}", s.heads, s.head_dim), move |on| {
        let this = SelfAttention::new(&sizes, on);
        let (out, lse) = (on.unwritten(t, this.of[0].cols()), on.unwritten_f32(t, sizes.heads));
        Prepared::new([("out", out), ("log-sum-exp", lse)], move |[out, lse], run| {
            run(this.forward(out, lse).into())
        })
    })
}

/// With what the device's own forward pass leaves.
fn backward(s: &Sizes) -> cases::Case {
    let (sizes, t) = (s.clone(), s.tokens);
    cases::Case::new(
        format!("attention gradient {t} tokens, {} heads of {}", s.heads, s.head_dim),
        move |on| {
            let this = SelfAttention::new(&sizes, on);
            let (q, kv) = (this.of[0].cols(), this.of[1].cols());
            let (mut out, mut lse) = (on.unwritten(t, q), on.unwritten_f32(t, sizes.heads));
            on.be.run(this.forward(out.mat_mut(), lse.mat_mut())).expect("the forward pass");
            let dout = on.compute(4, t, q);
            let gradients =
                [("dq", on.unwritten(t, q)), ("dk", on.unwritten(t, kv)), ("dv", on.unwritten(t, kv))];
            Prepared::new(gradients, move |[dq, dk, dv], run| {
                let ([q, k, v], spec) = (this.of.each_ref().map(Tensor::mat), this.spec());
                let (out, lse, dout, dbias) = (out.mat(), lse.mat(), dout.mat(), None);
                run(AttentionBackward { spec, q, k, v, out, lse, dout, dq, dk, dv, dbias }.into())
            })
        },
    )
}

pub fn at(s: &Sizes) -> Vec<Timed> {
    vec![forward(s).into(), backward(s).into()]
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Seen {
    Causal,
    /// The last so many rows.
    Window(usize),
    Full,
    Listed,
}

struct Case {
    seen: Seen,
    /// Rows of queries and of keys of every sequence.
    lengths: Vec<(usize, usize)>,
    heads: (usize, usize),
    d: usize,
    /// (buckets, bidirectional, max distance)
    bias: Option<(usize, bool, usize)>,
    softcap: Option<f64>,
    scale: f64,
}

/// The bucket of `transformers.models.t5.modeling_t5.T5Attention._relative_position_bucket`.
fn bucket(distance: i64, (buckets, bidirectional, max_distance): (usize, bool, usize)) -> usize {
    let (mut n, mut first) = (buckets as i64, 0);
    let mut distance = distance;
    if bidirectional {
        n /= 2;
        first = if distance > 0 { n } else { 0 };
        distance = distance.abs();
    } else {
        distance = -distance.min(0);
    }
    let exact = n / 2;
    if distance < exact {
        return (first + distance) as usize;
    }
    let ratio = (distance as f32 / exact as f32).ln() / (max_distance as f64 / exact as f64).ln() as f32;
    (first + (exact + (ratio * (n - exact) as f32) as i64).min(n - 1)) as usize
}

/// The position of a sequence's row: of a long one they are not all consecutive.
fn position(row: usize) -> u32 {
    (row + row / 40 * 3) as u32
}

/// Everything of one case, row-major f64: the inputs, and by the definition the outputs.
struct Reference {
    q: Vec<f64>,
    k: Vec<f64>,
    v: Vec<f64>,
    table: Vec<f64>,
    dout: Vec<f64>,
    listed: Vec<Vec<u32>>,
    out: Vec<f64>,
    lse: Vec<f64>,
    dq: Vec<f64>,
    dk: Vec<f64>,
    dv: Vec<f64>,
    dbias: Vec<f64>,
}

const SCALE: f64 = 0.3;

impl Case {
    fn rows(&self) -> (usize, usize) {
        self.lengths.iter().fold((0, 0), |(q, k), l| (q + l.0, k + l.1))
    }

    /// The keys that row `i` of a sequence of `keys` keys sees, as rows of the sequence.
    fn sees(&self, i: usize, keys: usize) -> Vec<usize> {
        match self.seen {
            Seen::Causal => (0..=i).collect(),
            Seen::Window(window) => (0..=i).filter(|j| i - j < window).collect(),
            Seen::Full => (0..keys).collect(),
            // A path through a tree: every third key, and the last.
            Seen::Listed => (0..keys).filter(|j| j % 3 == i % 3 || j + 1 == keys).collect(),
        }
    }

    fn reference(&self, rounded: bool) -> Reference {
        let ((tq, tk), (h, kv), d) = (self.rows(), self.heads, self.d);
        let exact = |v: f32| if rounded { bf16::from_f32(v).to_f64() } else { v as f64 };
        let values = |seed, n| numbers(seed, n).into_iter().map(exact).collect::<Vec<f64>>();
        let buckets = self.bias.map_or(0, |b| b.0);
        let r = Reference {
            q: values(1, tq * h * d),
            k: values(2, tk * kv * d),
            v: values(3, tk * kv * d),
            table: values(4, buckets * h),
            dout: values(5, tq * h * d),
            listed: Vec::new(),
            out: vec![0.0; tq * h * d],
            lse: vec![0.0; tq * h],
            dq: vec![0.0; tq * h * d],
            dk: vec![0.0; tk * kv * d],
            dv: vec![0.0; tk * kv * d],
            dbias: vec![0.0; 2 * buckets * h],
        };
        self.evaluate(r)
    }

    /// The outputs by the definition, from the inputs.
    fn evaluate(&self, mut r: Reference) -> Reference {
        let h = self.heads.0;
        let outputs = [&mut r.out, &mut r.lse, &mut r.dq, &mut r.dk, &mut r.dv, &mut r.dbias];
        outputs.into_iter().for_each(|o| o.fill(0.0));
        r.listed.clear();
        let (mut q0, mut k0) = (0, 0);
        for (s, &(nq, nk)) in self.lengths.iter().enumerate() {
            for i in 0..nq {
                let keys: Vec<usize> = self.sees(i, nk).iter().map(|j| k0 + j).collect();
                r.listed.push(keys.iter().map(|j| *j as u32).collect());
                for head in 0..h {
                    self.row(&mut r, (q0 + i, i), (&keys, k0), head, s.min(1));
                }
            }
            (q0, k0) = (q0 + nq, k0 + nk);
        }
        r
    }

    /// One query row of one head.
    fn row(
        &self,
        r: &mut Reference,
        (i, at): (usize, usize),
        (keys, k0): (&[usize], usize),
        head: usize,
        segment: usize,
    ) {
        let ((h, kv), d) = (self.heads, self.d);
        let (qi, group) = ((i * h + head) * d, head * kv / h);
        let kj = |j: usize| (j * kv + group) * d;
        let of = |b, j: usize| bucket(i64::from(position(j - k0)) - i64::from(position(at)), b) * h + head;
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let raw = |&j: &usize| self.scale * dot(&r.q[qi..qi + d], &r.k[kj(j)..kj(j) + d]);
        let capped = |s: f64| self.softcap.map_or(s, |cap| cap * (s / cap).tanh());
        // The derivative of tanh, said otherwise than in the kernels.
        let slope = |s: f64| self.softcap.map_or(1.0, |cap| (s / cap).cosh().powi(-2));
        let slopes: Vec<f64> = keys.iter().map(|j| slope(raw(j))).collect();
        let bias = |j: usize| self.bias.map_or(0.0, |b| r.table[of(b, j)]);
        let scores: Vec<f64> = keys.iter().map(|j| capped(raw(j)) + bias(*j)).collect();
        let most = scores.iter().fold(f64::NEG_INFINITY, |m, s| m.max(*s));
        let sum: f64 = scores.iter().map(|s| (s - most).exp()).sum();
        r.lse[i * h + head] = most + sum.ln();
        let p: Vec<f64> = scores.iter().map(|s| (s - most).exp() / sum).collect();
        let dp: Vec<f64> = keys.iter().map(|&j| dot(&r.dout[qi..qi + d], &r.v[kj(j)..kj(j) + d])).collect();
        let mean = dot(&p, &dp);
        for (((&j, p), dp), slope) in keys.iter().zip(&p).zip(&dp).zip(&slopes) {
            let ds = p * (dp - mean);
            let draw = ds * slope;
            for c in 0..d {
                r.out[qi + c] += p * r.v[kj(j) + c];
                r.dq[qi + c] += self.scale * draw * r.k[kj(j) + c];
                r.dk[kj(j) + c] += self.scale * draw * r.q[qi + c];
                r.dv[kj(j) + c] += p * r.dout[qi + c];
            }
            if let Some(b) = self.bias {
                let at = of(b, j);
                r.dbias[segment * b.0 * h + at] += ds;
            }
        }
    }

    fn check(&self, be: &dyn Backend) {
        let dtype = be.compute_dtype();
        let r = self.reference(dtype == DType::BF16);
        let ((tq, tk), (h, kv), d) = (self.rows(), self.heads, self.d);
        let tensor = |v: &[f64], rows, cols| {
            be.tensor(&v.iter().map(|v| *v as f32).collect::<Vec<_>>(), rows, cols, dtype).unwrap()
        };
        let (q, k, v) = (tensor(&r.q, tq, h * d), tensor(&r.k, tk, kv * d), tensor(&r.v, tk, kv * d));
        let dout = tensor(&r.dout, tq, h * d);
        let offsets = |of: fn(&(usize, usize)) -> usize| {
            let mut sum = vec![0u32];
            for l in &self.lengths {
                sum.push(sum[sum.len() - 1] + of(l) as u32);
            }
            be.indices(&sum).unwrap()
        };
        let positions = |of: fn(&(usize, usize)) -> usize| {
            be.indices(&self.lengths.iter().flat_map(|l| (0..of(l)).map(position)).collect::<Vec<_>>())
                .unwrap()
        };
        let (q_offsets, k_offsets) = (offsets(|l| l.0), offsets(|l| l.1));
        let (q_positions, k_positions) = (positions(|l| l.0), positions(|l| l.1));
        let mut sum = vec![0u32];
        r.listed.iter().for_each(|l| sum.push(sum[sum.len() - 1] + l.len() as u32));
        let (listed, keys) = (be.indices(&sum).unwrap(), be.indices(&r.listed.concat()).unwrap());
        let table = tensor(&r.table, self.bias.map_or(0, |b| b.0), h);
        let spec = AttentionSpec {
            q_offsets: &q_offsets,
            k_offsets: &k_offsets,
            heads: h,
            kv_heads: kv,
            head_dim: d,
            scale: self.scale as f32,
            softcap: self.softcap.map(|cap| cap as f32),
            mask: match self.seen {
                Seen::Causal => Mask::Causal { window: None },
                Seen::Window(window) => Mask::Causal { window: Some(window) },
                Seen::Full => Mask::Full,
                Seen::Listed => Mask::Listed { offsets: &listed, keys: &keys },
            },
            bias: self.bias.map(|(_, bidirectional, max_distance)| RelativeBias {
                table: table.mat(),
                q_positions: &q_positions,
                k_positions: &k_positions,
                bidirectional,
                max_distance,
            }),
        };
        let nan = |rows, cols, dtype| be.tensor(&vec![f32::NAN; rows * cols], rows, cols, dtype).unwrap();
        let (mut out, mut lse) = (nan(tq, h * d, dtype), nan(tq, h, DType::F32));
        let (q, k, v) = (q.mat(), k.mat(), v.mat());
        be.run(Attention { spec, q, k, v, out: out.mat_mut(), lse: lse.mat_mut() }).unwrap();
        let close = |what: &str, got: &Tensor, want: &[f64]| {
            // A row that sees only itself has no gradient of its query: what is left is the rounding of terms that cancel.
            let most = want.iter().fold(0.1, |m, v| f64::max(m, v.abs()));
            let tolerance = if dtype == DType::BF16 { 1.5e-2 } else { 2e-5 };
            let want: Vec<f32> = want.iter().map(|v| *v as f32).collect();
            let seen = (self.seen, self.softcap);
            let name = format!("{what}, {} d {d} {:?} {seen:?}", be.info().name, self.lengths);
            assert_close(&name, &be.download(got.mat()).unwrap(), &want, tolerance, tolerance * most);
        };
        close("out", &out, &r.out);
        close("lse", &lse, &r.lse);
        if self.seen == Seen::Listed {
            return;
        }
        let (mut dq, mut dk, mut dv) =
            (nan(tq, h * d, dtype), nan(tk, kv * d, dtype), nan(tk, kv * d, dtype));
        let mut dbias = be.zeros(2 * r.table.len() / h, h, DType::F32).unwrap();
        // The first sequence is one segment, all others the second.
        let ranges = [0..1, 1..self.lengths.len()];
        let dbias_out = PerSegment { segments: &ranges, out: dbias.mat_mut() };
        be.run(AttentionBackward {
            spec,
            q,
            k,
            v,
            out: out.mat(),
            lse: lse.mat(),
            dout: dout.mat(),
            dq: dq.mat_mut(),
            dk: dk.mat_mut(),
            dv: dv.mat_mut(),
            dbias: self.bias.is_some().then_some(dbias_out),
        })
        .unwrap();
        close("dq", &dq, &r.dq);
        close("dk", &dk, &r.dk);
        close("dv", &dv, &r.dv);
        if self.bias.is_some() {
            close("dbias", &dbias, &r.dbias);
        }
    }
}

fn backends() -> Vec<Arc<dyn Backend>> {
    let cpu: Arc<dyn Backend> = Cpu::open(Some(2)).unwrap();
    let kernels = [DType::F32, DType::BF16].into_iter().flat_map(kernel_devices);
    std::iter::once(cpu).chain(kernels).collect()
}

#[test]
fn causal_with_grouped_heads() {
    let shapes =
        [(1, (1, 1)), (5, (3, 1)), (8, (4, 2)), (24, (2, 2)), (64, (2, 1)), (72, (2, 1)), (128, (1, 1))];
    for (d, heads) in shapes {
        let lengths = [1, 7, 64, 65, 0, 130].iter().map(|n| (*n, *n)).collect();
        let case = Case { scale: SCALE, seen: Seen::Causal, lengths, heads, d, bias: None, softcap: None };
        backends().iter().for_each(|be| case.check(&**be));
    }
}

#[test]
fn full_and_cross_attention() {
    for (d, heads) in [(3, (2, 2)), (16, (2, 1)), (40, (1, 1)), (128, (1, 1))] {
        let lengths = vec![(5, 9), (1, 1), (66, 3), (2, 131), (0, 4)];
        let case = Case { scale: SCALE, seen: Seen::Full, lengths, heads, d, bias: None, softcap: None };
        backends().iter().for_each(|be| case.check(&**be));
    }
}

/// Tiles that are wholly seen, in part, not at all and not there; heads that share keys, dealt out to teams evenly and not.
#[test]
fn tiles_of_every_kind() {
    let lengths = vec![(200, 200), (1, 1), (33, 33)];
    for (seen, d, heads) in [
        (Seen::Causal, 64, (7, 1)),
        (Seen::Window(70), 64, (6, 2)),
        (Seen::Causal, 128, (3, 1)),
        (Seen::Window(70), 104, (2, 2)),
    ] {
        let (lengths, bias) = (lengths.clone(), None);
        let case = Case { seen, lengths, heads, d, bias, softcap: None, scale: SCALE };
        backends().iter().for_each(|be| case.check(&**be));
    }
    let lengths = vec![(97, 160), (160, 1), (1, 64), (64, 0), (0, 65), (31, 33)];
    for (d, heads, softcap) in [(64, (3, 1), None), (64, (2, 2), Some(2.0)), (128, (2, 1), None)] {
        let case =
            Case { seen: Seen::Full, lengths: lengths.clone(), heads, d, bias: None, softcap, scale: SCALE };
        backends().iter().for_each(|be| case.check(&**be));
    }
}

/// A block of keys keeps the biases of all heads that share them; whole tiles have one too.
#[test]
fn relative_bias_of_grouped_heads() {
    for (seen, d, heads, softcap) in [
        (Seen::Full, 64, (4, 2), None),
        (Seen::Causal, 128, (3, 1), None),
        (Seen::Full, 64, (2, 1), Some(2.0)),
    ] {
        let (lengths, bias) = (vec![(129, 129), (33, 33)], Some((8, seen == Seen::Full, 20)));
        let case = Case { seen, lengths, heads, d, bias, softcap, scale: SCALE };
        backends().iter().for_each(|be| case.check(&**be));
    }
}

/// A factor of a whole tile's scores may be applied after their largest was taken: not one below zero.
#[test]
fn scales_of_either_sign() {
    for (scale, seen, d) in [(-0.3, Seen::Full, 64), (0.0, Seen::Full, 64), (-0.3, Seen::Causal, 128)] {
        let lengths = vec![(160, 160), (5, 5)];
        let case = Case { seen, lengths, heads: (2, 1), d, bias: None, softcap: None, scale };
        backends().iter().for_each(|be| case.check(&**be));
    }
}

#[test]
fn relative_bias() {
    for (seen, bidirectional) in [(Seen::Full, true), (Seen::Causal, false)] {
        for (d, heads) in [(5, (2, 2)), (16, (3, 3))] {
            let lengths = vec![(70, 70), (33, 33)];
            let case = Case {
                scale: SCALE,
                seen,
                lengths,
                heads,
                d,
                bias: Some((8, bidirectional, 20)),
                softcap: None,
            };
            backends().iter().for_each(|be| case.check(&**be));
        }
    }
}

#[test]
fn listed_keys() {
    for (d, heads, softcap) in [(6, (2, 1), None), (64, (2, 2), None), (9, (2, 1), Some(1.5))] {
        let lengths = vec![(9, 40), (3, 1), (17, 100)];
        let case = Case { scale: SCALE, seen: Seen::Listed, lengths, heads, d, bias: None, softcap };
        backends().iter().for_each(|be| case.check(&**be));
    }
}

#[test]
fn windows_and_caps() {
    let cases = [
        (1, (1, 1), 1, None),
        (5, (3, 1), 3, Some(2.0)),
        (8, (4, 2), 1, Some(3.0)),
        (16, (2, 1), 7, None),
        (24, (2, 2), 65, Some(1.0)),
        (64, (2, 1), 64, Some(4.0)),
        (72, (2, 1), 33, None),
        (128, (2, 1), 5, Some(5.0)),
        (128, (1, 1), 200, Some(50.0)),
        (40, (2, 1), usize::MAX, Some(2.0)),
    ];
    for (d, heads, window, softcap) in cases {
        let lengths = [1, 7, 64, 65, 0, 130].iter().map(|n| (*n, *n)).collect();
        let case = Case { scale: SCALE, seen: Seen::Window(window), lengths, heads, d, bias: None, softcap };
        backends().iter().for_each(|be| case.check(&**be));
    }
}

#[test]
fn a_window_as_long_as_the_sequence_changes_no_bit() {
    let run = |be: &dyn Backend, mask: Mask| {
        let (t, d) = (70, 16);
        let of = |seed| be.tensor(&numbers(seed, t * d), t, d, be.compute_dtype()).unwrap();
        let (q, k, v, offsets) = (of(1), of(2), of(3), be.indices(&[0, t as u32]).unwrap());
        let (mut out, mut lse) = (of(4), be.alloc(t, 1, DType::F32).unwrap());
        be.run(Attention {
            spec: AttentionSpec {
                q_offsets: &offsets,
                k_offsets: &offsets,
                heads: 1,
                kv_heads: 1,
                head_dim: d,
                scale: 0.25,
                softcap: None,
                mask,
                bias: None,
            },
            q: q.mat(),
            k: k.mat(),
            v: v.mat(),
            out: out.mat_mut(),
            lse: lse.mat_mut(),
        })
        .unwrap();
        be.download(out.mat()).unwrap()
    };
    for be in backends() {
        let whole = run(&*be, Mask::Causal { window: None });
        assert_eq!(whole, run(&*be, Mask::Causal { window: Some(70) }), "{}", be.info().name);
        assert_ne!(whole, run(&*be, Mask::Causal { window: Some(69) }), "{}", be.info().name);
    }
}

#[test]
fn capped_with_a_relative_bias_and_across_sequences() {
    for (seen, d, heads, bias) in [
        (Seen::Window(21), 5, (2, 2), Some((8, false, 20))),
        (Seen::Window(40), 16, (3, 3), Some((8, false, 20))),
        (Seen::Full, 16, (2, 2), Some((8, true, 20))),
        (Seen::Full, 7, (2, 1), None),
    ] {
        let lengths = vec![(70, 70), (33, 33)];
        let case = Case { scale: SCALE, seen, lengths, heads, d, bias, softcap: Some(2.0) };
        backends().iter().for_each(|be| case.check(&**be));
    }
}

/// The formulas that the backends are held to, against differences of the forward pass.
#[test]
fn the_gradient_of_a_capped_window_by_finite_differences() {
    let (lengths, bias) = (vec![(5, 5), (3, 3)], Some((8, false, 20)));
    let case =
        Case { scale: SCALE, seen: Seen::Window(3), lengths, heads: (4, 2), d: 3, bias, softcap: Some(1.2) };
    let start = case.reference(false);
    type Input = fn(&mut Reference) -> &mut Vec<f64>;
    let inputs: [(Input, &Vec<f64>); 3] =
        [(|r| &mut r.q, &start.dq), (|r| &mut r.k, &start.dk), (|r| &mut r.v, &start.dv)];
    for (input, gradient) in inputs {
        for (i, want) in gradient.iter().enumerate() {
            let at = |step: f64| {
                let mut r = case.reference(false);
                input(&mut r)[i] += step;
                let r = case.evaluate(r);
                r.out.iter().zip(&r.dout).map(|(o, d)| o * d).sum::<f64>()
            };
            let got = (at(1e-5) - at(-1e-5)) / 2e-5;
            assert!((got - want).abs() < 1e-8, "element {i}: {got} by differences, {want} by the formula");
        }
    }
}
