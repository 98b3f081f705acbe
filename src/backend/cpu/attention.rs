//! Attention over packed sequences, one sequence a task; a tile of rows' scores is all that is ever held.

use super::products::{block, block_mut, product};
use super::rows::{row, softmax};
use super::simd::{axpy, dot, exp, fast};
use super::{host, host_mut};
use crate::backend::{Attention, Indices, Mask, Mat, MatMut, RelativeBias};
use faer::MatRef;
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

/// Query rows worked on at once: their scores and keys stay in the cache.
const TILE: usize = 64;

/// One sequence of an attention call. Rows are counted from its first.
struct Sequence<'a> {
    spec: &'a Attention<'a>,
    q_rows: Range<usize>,
    k_rows: Range<usize>,
}

impl<'a> Sequence<'a> {
    fn new(spec: &'a Attention<'a>, s: usize) -> Self {
        let q_rows = sequence(&spec.q_offsets.host, s);
        Self { spec, q_rows, k_rows: sequence(&spec.k_offsets.host, s) }
    }
    fn tiles(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let count = self.q_rows.len();
        (0..count).step_by(TILE).map(move |start| start..(start + TILE).min(count))
    }
    /// Row i sees the first so many keys.
    fn seen(&self, i: usize) -> usize {
        if matches!(self.spec.mask, Mask::Causal) { i + 1 } else { self.k_rows.len() }
    }
    /// The head's columns of some rows of q, or of an output shaped like it.
    fn query(&self, (data, m): (&'a [f32], &Mat), rows: &Range<usize>, head: usize) -> MatRef<'a, f32> {
        let first = self.q_rows.start;
        block(data, m.ld, first + rows.start..first + rows.end, columns(head, self.spec.head_dim))
    }
    /// The columns that serve `head` of the first `n` rows of k or v.
    fn key(&self, (data, m): (&'a [f32], &Mat), n: usize, head: usize) -> MatRef<'a, f32> {
        let first = self.k_rows.start;
        block(data, m.ld, first..first + n, columns(self.kv_head(head), self.spec.head_dim))
    }
    fn kv_head(&self, head: usize) -> usize {
        head / (self.spec.heads / self.spec.kv_heads)
    }
    /// The buckets of a tile's rows and its first `n` keys; empty without a bias.
    fn buckets(&self, rows: &Range<usize>, n: usize) -> Vec<u32> {
        let Some(bias) = &self.spec.bias else { return Vec::new() };
        let (first, keys) = (self.q_rows.start, self.k_rows.start..self.k_rows.start + n);
        let of_row = |i: usize| keys.clone().map(move |j| relative_bucket(bias, first + i, j));
        rows.clone().flat_map(of_row).collect()
    }
    /// `scale * q kᵀ + bias` of a tile and head, for its first `n` keys.
    fn scores(&self, q: MatRef<f32>, k: MatRef<f32>, head: usize, buckets: &[u32], out: &mut [f32]) {
        let (rows, n) = (q.nrows(), k.nrows());
        product(block_mut(out, n, 0..rows, 0..n), false, self.spec.scale, q, k.transpose());
        if let Some(bias) = &self.spec.bias {
            let table = host(bias.table);
            for (score, bucket) in out.iter_mut().zip(buckets) {
                *score += table[*bucket as usize * bias.table.ld + head];
            }
        }
    }
}

/// The bucket of key row j as query row i sees it.
fn relative_bucket(bias: &RelativeBias, i: usize, j: usize) -> u32 {
    let relative = bias.k_positions.host[j] as i64 - bias.q_positions.host[i] as i64;
    bucket(relative, bias.bidirectional, bias.table.rows, bias.max_distance) as u32
}

fn columns(head: usize, d: usize) -> Range<usize> {
    head * d..(head + 1) * d
}

/// See [`crate::backend::Backend::attention`].
pub fn forward(spec: &Attention, q: Mat, k: Mat, v: Mat, mut out: MatMut, mut lse: MatMut) {
    if let Mask::Listed { offsets, keys } = spec.mask {
        return listed(spec, (offsets, keys), q, k, v, out, lse);
    }
    let (heads, d) = (spec.heads, spec.head_dim);
    let (qd, kd, vd) = (host(q), host(k), host(v));
    let outs = cut(&mut out, &spec.q_offsets.host);
    let lses = cut(&mut lse, &spec.q_offsets.host);
    outs.into_par_iter().zip(lses).enumerate().for_each(|(s, (out, lse))| {
        let sequence = Sequence::new(spec, s);
        let mut scores = Vec::new();
        for rows in sequence.tiles() {
            let n = sequence.seen(rows.end - 1);
            let buckets = sequence.buckets(&rows, n);
            scores.resize(rows.len() * n, 0.0);
            for head in 0..heads {
                let p = &mut scores[..rows.len() * n];
                let (query, key) = (sequence.query((qd, &q), &rows, head), sequence.key((kd, &k), n, head));
                sequence.scores(query, key, head, &buckets, p);
                fast(|| {
                    for (at, i) in rows.clone().enumerate() {
                        let (seen, hidden) = p[at * n..(at + 1) * n].split_at_mut(sequence.seen(i));
                        lse[i * heads + head] = softmax(seen);
                        hidden.fill(0.0);
                    }
                });
                let to = block_mut(out, heads * d, rows.clone(), columns(head, d));
                product(to, false, 1.0, block(p, n, 0..rows.len(), 0..n), sequence.key((vd, &v), n, head));
            }
        }
    });
}

/// Attention of rows that each see the keys they list: a trie's. Row by row, for lists are short.
fn listed(
    spec: &Attention,
    (offsets, keys): (&Indices, &Indices),
    q: Mat,
    k: Mat,
    v: Mat,
    mut out: MatMut,
    mut lse: MatMut,
) {
    let (heads, d) = (spec.heads, spec.head_dim);
    let group = heads / spec.kv_heads;
    let (qd, kd, vd) = (host(q), host(k), host(v));
    let (out_ld, lse_ld) = (out.ld, lse.ld);
    let rows = host_mut(&mut out).par_chunks_mut(out_ld).zip(host_mut(&mut lse).par_chunks_mut(lse_ld));
    rows.enumerate().for_each_init(Vec::new, |p: &mut Vec<f32>, (i, (out, lse))| {
        let seen = &keys.host[offsets.host[i] as usize..offsets.host[i + 1] as usize];
        fast(|| {
            for (head, lse) in lse.iter_mut().enumerate().take(heads) {
                let (own, shared) = (columns(head, d), columns(head / group, d));
                let query = &row(qd, &q, i)[own.clone()];
                let key = |j: &u32| &row(kd, &k, *j as usize)[shared.clone()];
                let bias = |j: &u32| {
                    spec.bias.map_or(0.0, |bias| {
                        let at = relative_bucket(&bias, i, *j as usize) as usize * bias.table.ld + head;
                        host(bias.table)[at]
                    })
                };
                p.clear();
                p.extend(seen.iter().map(|j| spec.scale * dot(query, key(j)) + bias(j)));
                *lse = softmax(p);
                let to = &mut out[own];
                to.fill(0.0);
                for (p, j) in p.iter().zip(seen) {
                    axpy(*p, &row(vd, &v, *j as usize)[shared.clone()], to);
                }
            }
        });
    });
}

/// See [`crate::backend::Backend::attention_backward`].
pub fn backward(
    spec: &Attention,
    (q, k, v): (Mat, Mat, Mat),
    (out, lse): (Mat, Mat),
    dout: Mat,
    (mut dq, mut dk, mut dv): (MatMut, MatMut, MatMut),
    dbias: Option<(&[Range<usize>], MatMut)>,
) {
    let (q_offsets, k_offsets) = (&spec.q_offsets.host, &spec.k_offsets.host);
    let table_len = spec.bias.map_or(0, |b| b.table.rows * spec.heads);
    let want_bias = dbias.is_some();
    let given = Given { q, k, v, out, lse, dout };
    let (dqs, dks, dvs) = (cut(&mut dq, q_offsets), cut(&mut dk, k_offsets), cut(&mut dv, k_offsets));
    let bias_sums: Vec<Vec<f32>> = dqs
        .into_par_iter()
        .zip(dks)
        .zip(dvs)
        .enumerate()
        .map(|(s, ((dq, dk), dv))| {
            let mut bias_sum = vec![0f32; if want_bias { table_len } else { 0 }];
            dk.fill(0.0);
            dv.fill(0.0);
            sequence_backward(&Sequence::new(spec, s), &given, (dq, dk, dv), &mut bias_sum);
            bias_sum
        })
        .collect();
    if let Some((segments, mut dbias)) = dbias {
        let (ld, heads) = (dbias.ld, spec.heads);
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

/// What the gradients are made of.
struct Given<'a> {
    q: Mat<'a>,
    k: Mat<'a>,
    v: Mat<'a>,
    out: Mat<'a>,
    lse: Mat<'a>,
    dout: Mat<'a>,
}

/// The gradients of one sequence: dq written, dk, dv and the bias's sums added to.
fn sequence_backward(
    sequence: &Sequence,
    given: &Given,
    (dq, dk, dv): (&mut [f32], &mut [f32], &mut [f32]),
    bias_sum: &mut [f32],
) {
    let Given { q, k, v, out, lse, dout } = given;
    let spec = sequence.spec;
    let (heads, d, kv_ld) = (spec.heads, spec.head_dim, spec.kv_heads * spec.head_dim);
    let (qd, kd, vd, od, dod, lsed) = (host(*q), host(*k), host(*v), host(*out), host(*dout), host(*lse));
    let (mut scores, mut gradients) = (Vec::new(), Vec::new());
    for rows in sequence.tiles() {
        let n = sequence.seen(rows.end - 1);
        let buckets = sequence.buckets(&rows, n);
        scores.resize(rows.len() * n, 0.0);
        gradients.resize(rows.len() * n, 0.0);
        for head in 0..heads {
            let shared = columns(sequence.kv_head(head), d);
            let (p, ds) = (&mut scores[..rows.len() * n], &mut gradients[..rows.len() * n]);
            let (query, key) = (sequence.query((qd, q), &rows, head), sequence.key((kd, k), n, head));
            let upstream = sequence.query((dod, dout), &rows, head);
            sequence.scores(query, key, head, &buckets, p);
            let value = sequence.key((vd, v), n, head);
            product(block_mut(ds, n, 0..rows.len(), 0..n), false, 1.0, upstream, value.transpose());
            fast(|| {
                for (at, i) in rows.clone().enumerate() {
                    let row_of = sequence.q_rows.start + i;
                    let own = columns(head, d);
                    let delta = dot(&row(dod, dout, row_of)[own.clone()], &row(od, out, row_of)[own]);
                    let log_sum = lsed[row_of * lse.ld + head];
                    let range = at * n..(at + 1) * n;
                    let (seen, hidden) = p[range.clone()].split_at_mut(sequence.seen(i));
                    let (ds, ds_hidden) = ds[range].split_at_mut(seen.len());
                    for (p, ds) in seen.iter_mut().zip(ds) {
                        *p = exp(*p - log_sum);
                        *ds = *p * (*ds - delta);
                    }
                    hidden.fill(0.0);
                    ds_hidden.fill(0.0);
                }
            });
            let all = |data| block(data, n, 0..rows.len(), 0..n);
            product(block_mut(dv, kv_ld, 0..n, shared.clone()), true, 1.0, all(p).transpose(), upstream);
            product(
                block_mut(dq, heads * d, rows.clone(), columns(head, d)),
                false,
                spec.scale,
                all(ds),
                key,
            );
            product(block_mut(dk, kv_ld, 0..n, shared), true, spec.scale, all(ds).transpose(), query);
            if !bias_sum.is_empty() {
                for (ds, bucket) in ds.iter().zip(&buckets) {
                    bias_sum[*bucket as usize * heads + head] += ds;
                }
            }
        }
    }
}
