//! Attention over packed sequences, one sequence a task; a row's scores are all that is ever held.

use super::rows::{row, softmax};
use super::simd::{axpy, dot, fast};
use super::{host, host_mut};
use crate::backend::{Attention, Mask, Mat, MatMut, RelativeBias};
use rayon::prelude::*;
use std::ops::Range;

/// T5's bucket of a relative position (key minus query), as `_relative_position_bucket` in transformers.
pub fn bucket(relative: i64, bidirectional: bool, buckets: usize, max_distance: usize) -> usize {
    let (mut base, mut buckets) = (0usize, buckets as i64);
    let distance = if bidirectional {
        buckets /= 2;
        if relative > 0 {
            base = buckets as usize;
        }
        relative.abs()
    } else {
        (-relative).max(0)
    };
    let exact = buckets / 2;
    if distance < exact {
        return base + distance as usize;
    }
    let ratio = (distance as f32 / exact as f32).ln() / (max_distance as f32 / exact as f32).ln();
    let large = exact + (ratio * (buckets - exact) as f32) as i64;
    base + large.min(buckets - 1) as usize
}

/// The rows of sequence `s` among `offsets`.
fn sequence(offsets: &[u32], s: usize) -> Range<usize> {
    offsets[s] as usize..offsets[s + 1] as usize
}

/// Which key rows query row `i` of a sequence sees.
enum Keys<'a> {
    Run(Range<usize>),
    List(&'a [u32]),
}

impl Keys<'_> {
    #[inline(always)]
    fn len(&self) -> usize {
        match self {
            Keys::Run(r) => r.len(),
            Keys::List(l) => l.len(),
        }
    }
    #[inline(always)]
    fn get(&self, j: usize) -> usize {
        match self {
            Keys::Run(r) => r.start + j,
            Keys::List(l) => l[j] as usize,
        }
    }
}

fn keys<'a>(spec: &Attention<'a>, q: &Range<usize>, k: &Range<usize>, i: usize) -> Keys<'a> {
    match spec.mask {
        Mask::Causal => Keys::Run(k.start..k.start + (i - q.start) + 1),
        Mask::Full => Keys::Run(k.clone()),
        Mask::Listed { offsets, keys } => {
            Keys::List(&keys.host[offsets.host[i] as usize..offsets.host[i + 1] as usize])
        }
    }
}

/// The bias of query row i for all key rows of `keys`, of every head: what the table says for the buckets.
struct Bias<'a> {
    table: &'a [f32],
    ld: usize,
    spec: RelativeBias<'a>,
}

impl<'a> Bias<'a> {
    fn new(spec: RelativeBias<'a>) -> Self {
        Self { table: host(spec.table), ld: spec.table.ld, spec }
    }
    #[inline(always)]
    fn bucket(&self, i: usize, j: usize) -> usize {
        let relative = self.spec.k_positions.host[j] as i64 - self.spec.q_positions.host[i] as i64;
        bucket(relative, self.spec.bidirectional, self.spec.table.rows, self.spec.max_distance)
    }
}

/// A mutable matrix cut into the rows of every sequence.
fn cut<'a>(m: &'a mut MatMut<'_>, offsets: &[u32]) -> Vec<&'a mut [f32]> {
    let ld = m.ld;
    assert_eq!(ld, m.cols, "attention writes contiguous rows");
    let mut rest = host_mut(m);
    let mut parts = Vec::with_capacity(offsets.len());
    for pair in offsets.windows(2) {
        let (head, tail) = rest.split_at_mut((pair[1] - pair[0]) as usize * ld);
        parts.push(head);
        rest = tail;
    }
    parts
}

/// The probabilities of one row and head, from scratch; returns the log-sum-exp.
#[inline(always)]
fn scores(
    spec: &Attention,
    query: &[f32],
    key_rows: &Keys,
    k: &Mat,
    k_data: &[f32],
    kv_head: usize,
    bias: Option<(&Bias, usize, usize)>,
    out: &mut Vec<f32>,
) -> f32 {
    let d = spec.head_dim;
    out.clear();
    for j in 0..key_rows.len() {
        let at = key_rows.get(j);
        let mut score = spec.scale * dot(query, &row(k_data, k, at)[kv_head * d..(kv_head + 1) * d]);
        if let Some((bias, i, head)) = bias {
            score += bias.table[bias.bucket(i, at) * bias.ld + head];
        }
        out.push(score);
    }
    softmax(out)
}

/// See [`crate::backend::Backend::attention`].
pub fn forward(spec: &Attention, q: Mat, k: Mat, v: Mat, mut out: MatMut, mut lse: MatMut) {
    let (heads, d) = (spec.heads, spec.head_dim);
    let group = heads / spec.kv_heads;
    let (qd, kd, vd) = (host(q), host(k), host(v));
    let (q_offsets, k_offsets) = (&spec.q_offsets.host, &spec.k_offsets.host);
    let bias = spec.bias.map(Bias::new);
    let outs = cut(&mut out, q_offsets);
    let lses = cut(&mut lse, q_offsets);
    outs.into_par_iter().zip(lses).enumerate().for_each(|(s, (out, lse))| {
        let (q_rows, k_rows) = (sequence(q_offsets, s), sequence(k_offsets, s));
        let mut p = Vec::new();
        fast(|| {
            for i in q_rows.clone() {
                let local = i - q_rows.start;
                let seen = keys(spec, &q_rows, &k_rows, i);
                for head in 0..heads {
                    let kv = head / group;
                    let query = &row(qd, &q, i)[head * d..(head + 1) * d];
                    lse[local * heads + head] =
                        scores(spec, query, &seen, &k, kd, kv, bias.as_ref().map(|b| (b, i, head)), &mut p);
                    let o = &mut out[local * heads * d + head * d..][..d];
                    o.fill(0.0);
                    for (j, &p) in p.iter().enumerate() {
                        axpy(p, &row(vd, &v, seen.get(j))[kv * d..(kv + 1) * d], o);
                    }
                }
            }
        });
    });
}

/// See [`crate::backend::Backend::attention_backward`].
pub fn backward(
    spec: &Attention,
    (q, k, v): (Mat, Mat, Mat),
    out: Mat,
    dout: Mat,
    (mut dq, mut dk, mut dv): (MatMut, MatMut, MatMut),
    dbias: Option<(&[Range<usize>], MatMut)>,
) {
    let (heads, d, kv_heads) = (spec.heads, spec.head_dim, spec.kv_heads);
    let group = heads / kv_heads;
    let (qd, kd, vd, od, dod) = (host(q), host(k), host(v), host(out), host(dout));
    let (q_offsets, k_offsets) = (&spec.q_offsets.host, &spec.k_offsets.host);
    let bias = spec.bias.map(Bias::new);
    let table_len = spec.bias.map_or(0, |b| b.table.rows * heads);
    let want_bias = dbias.is_some();
    let (dqs, dks, dvs) = (cut(&mut dq, q_offsets), cut(&mut dk, k_offsets), cut(&mut dv, k_offsets));
    let bias_sums: Vec<Vec<f32>> = dqs
        .into_par_iter()
        .zip(dks)
        .zip(dvs)
        .enumerate()
        .map(|(s, ((dq, dk), dv))| {
            let (q_rows, k_rows) = (sequence(q_offsets, s), sequence(k_offsets, s));
            let mut bias_sum = vec![0f32; if want_bias { table_len } else { 0 }];
            let mut p = Vec::new();
            dk.fill(0.0);
            dv.fill(0.0);
            fast(|| {
                for i in q_rows.clone() {
                    let local = i - q_rows.start;
                    let seen = keys(spec, &q_rows, &k_rows, i);
                    for head in 0..heads {
                        let kv = head / group;
                        let columns = head * d..(head + 1) * d;
                        let query = &row(qd, &q, i)[columns.clone()];
                        let upstream = &row(dod, &dout, i)[columns.clone()];
                        let delta = dot(upstream, &row(od, &out, i)[columns.clone()]);
                        scores(spec, query, &seen, &k, kd, kv, bias.as_ref().map(|b| (b, i, head)), &mut p);
                        let dq = &mut dq[local * heads * d + head * d..][..d];
                        dq.fill(0.0);
                        for (j, &p) in p.iter().enumerate() {
                            let at = seen.get(j);
                            let to = ((at - k_rows.start) * kv_heads + kv) * d;
                            axpy(p, upstream, &mut dv[to..to + d]);
                            let ds = p * (dot(upstream, &row(vd, &v, at)[kv * d..(kv + 1) * d]) - delta);
                            axpy(spec.scale * ds, &row(kd, &k, at)[kv * d..(kv + 1) * d], dq);
                            axpy(spec.scale * ds, query, &mut dk[to..to + d]);
                            if let (true, Some(bias)) = (want_bias, &bias) {
                                bias_sum[bias.bucket(i, at) * heads + head] += ds;
                            }
                        }
                    }
                }
            });
            bias_sum
        })
        .collect();
    if let Some((segments, mut dbias)) = dbias {
        let ld = dbias.ld;
        let out = host_mut(&mut dbias);
        for (segment, sequences) in segments.iter().enumerate() {
            for sums in &bias_sums[sequences.clone()] {
                for (row, values) in sums.chunks(heads).enumerate() {
                    axpy(1.0, values, &mut out[(segment * table_len / heads + row) * ld..][..heads]);
                }
            }
        }
    }
}
