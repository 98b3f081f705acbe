//! Attention over packed sequences, one sequence a task; a tile of rows' scores is all that is ever held.

use super::matmul::{block, block_mut};
use super::rows::{row, softmax};
use super::simd::{axpy, dot, exp, fast};
use super::{Products, host, host_mut};
use crate::backend::relative_bias::relative_position_bucket;
use crate::backend::{
    Attention, AttentionBackward, AttentionSpec, Indices, Mask, Mat, MatMut, PerSegment, RelativeBias,
};
use faer::MatRef;
use rayon::prelude::*;
use std::ops::Range;

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
    spec: &'a AttentionSpec<'a>,
    products: Products,
    q_rows: Range<usize>,
    k_rows: Range<usize>,
    distances: Option<Distances<'a>>,
}

impl<'a> Sequence<'a> {
    fn new(spec: &'a AttentionSpec<'a>, products: Products, s: usize) -> Self {
        let (q_rows, k_rows) = (sequence(&spec.q_offsets.host, s), sequence(&spec.k_offsets.host, s));
        let distances = spec.bias.map(|bias| Distances::new(bias, &q_rows, &k_rows));
        Self { spec, products, q_rows, k_rows, distances }
    }
    fn tiles(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let count = self.q_rows.len();
        (0..count).step_by(TILE).map(move |start| start..(start + TILE).min(count))
    }
    /// The keys that row i sees.
    fn seen(&self, i: usize) -> Range<usize> {
        self.spec.mask.range(i, self.k_rows.len())
    }
    /// The keys that some row of a tile sees.
    fn keys(&self, rows: &Range<usize>) -> Range<usize> {
        self.seen(rows.start).start..self.seen(rows.end - 1).end
    }
    /// The head's columns of some rows of q, or of an output shaped like it.
    fn query(&self, (data, m): (&'a [f32], &Mat), rows: &Range<usize>, head: usize) -> MatRef<'a, f32> {
        let first = self.q_rows.start;
        block(data, m.ld, first + rows.start..first + rows.end, columns(head, self.spec.head_dim))
    }
    /// The columns that serve `head` of some rows of k or v.
    fn key(&self, (data, m): (&'a [f32], &Mat), keys: &Range<usize>, head: usize) -> MatRef<'a, f32> {
        let first = self.k_rows.start;
        let columns = columns(self.kv_head(head), self.spec.head_dim);
        block(data, m.ld, first + keys.start..first + keys.end, columns)
    }
    fn kv_head(&self, head: usize) -> usize {
        head / (self.spec.heads / self.spec.kv_heads)
    }
    /// A head's biases by distance; none without a bias.
    fn biases(&self, head: usize) -> Vec<f32> {
        self.distances.as_ref().map_or(Vec::new(), |distances| distances.biases(head))
    }
    /// `cap(scale * q kᵀ) + bias` of a tile; `slopes` becomes the derivatives of the cap, if there is one.
    fn scores(
        &self,
        (q, k): (MatRef<f32>, MatRef<f32>),
        (rows, keys): (&Range<usize>, &Range<usize>),
        biases: &[f32],
        out: &mut [f32],
        slopes: &mut Vec<f32>,
    ) {
        let n = keys.len();
        let to = block_mut(out, n, 0..rows.len(), 0..n);
        self.products.product(to, false, self.spec.scale, q, k.transpose());
        slopes.clear();
        if let Some(cap) = self.spec.softcap {
            slopes.extend(out.iter_mut().map(|score| {
                let t = (*score / cap).tanh();
                *score = cap * t;
                1.0 - t * t
            }));
        }
        if let Some(distances) = &self.distances {
            for (i, scores) in rows.clone().zip(out.chunks_mut(n.max(1))) {
                for (columns, at) in distances.along(i, keys) {
                    add(&biases[at..at + columns.len()], &mut scores[columns]);
                }
            }
        }
    }
}

/// The distances of a sequence's keys from its queries: a bias depends on nothing else, so that a row of biases is a
/// piece of all of a head's, which are in the order of distances.
struct Distances<'a> {
    table: Mat<'a>,
    q_positions: &'a [u32],
    k_positions: &'a [u32],
    /// Keys at consecutive positions; all of them, of a sequence as it is packed.
    runs: Vec<Range<usize>>,
    /// The least distance, key minus query.
    least: i64,
    /// The buckets of all distances from the least on.
    buckets: Vec<usize>,
}

impl<'a> Distances<'a> {
    fn new(bias: RelativeBias<'a>, q_rows: &Range<usize>, k_rows: &Range<usize>) -> Self {
        let q_positions = &bias.q_positions.host[q_rows.clone()];
        let k_positions = &bias.k_positions.host[k_rows.clone()];
        let mut runs = Vec::new();
        for run in k_positions.chunk_by(|a, b| a + 1 == *b) {
            let start = runs.last().map_or(0, |last: &Range<usize>| last.end);
            runs.push(start..start + run.len());
        }
        let ends = |positions: &[u32]| {
            let (least, most) = (positions.iter().min(), positions.iter().max());
            (least.map_or(0, |p| i64::from(*p)), most.map_or(0, |p| i64::from(*p)))
        };
        let ((q_least, q_most), (k_least, k_most)) = (ends(q_positions), ends(k_positions));
        let least = k_least - q_most;
        let buckets = (least..=k_most - q_least).map(|distance| bucket(&bias, distance)).collect();
        Self { table: bias.table, q_positions, k_positions, runs, least, buckets }
    }
    /// A head's biases by distance.
    fn biases(&self, head: usize) -> Vec<f32> {
        let (table, ld) = (host(self.table), self.table.ld);
        self.buckets.iter().map(|bucket| table[bucket * ld + head]).collect()
    }
    /// Columns of a tile with these keys, and where the distances of its row `i` begin there.
    fn along(&self, i: usize, keys: &Range<usize>) -> impl Iterator<Item = (Range<usize>, usize)> {
        let query = i64::from(self.q_positions[i]);
        self.runs.iter().filter_map(move |run| {
            let (start, end) = (run.start.max(keys.start), run.end.min(keys.end));
            let at = (start < end).then(|| i64::from(self.k_positions[start]) - query - self.least)?;
            Some((start - keys.start..end - keys.start, at as usize))
        })
    }
}

/// The bucket of a distance, key minus query.
fn bucket(bias: &RelativeBias, distance: i64) -> usize {
    relative_position_bucket(distance, bias.bidirectional, bias.table.rows, bias.max_distance)
}

/// `to += values`.
fn add(values: &[f32], to: &mut [f32]) {
    fast!(|| axpy(1.0, values, to));
}

/// As many numbers, whatever they are: what a buffer has, or more.
fn numbers(buffer: &mut Vec<f32>, count: usize) -> &mut [f32] {
    if buffer.len() < count {
        buffer.resize(count, 0.0);
    }
    &mut buffer[..count]
}

/// The bucket of key row j as query row i sees it.
fn relative_bucket(bias: &RelativeBias, i: usize, j: usize) -> usize {
    bucket(bias, i64::from(bias.k_positions.host[j]) - i64::from(bias.q_positions.host[i]))
}

/// A tile's row of `keys`, cut into what is before the seen keys, those, and what is after them.
fn parts<'a>(row: &'a mut [f32], keys: &Range<usize>, seen: Range<usize>) -> [&'a mut [f32]; 3] {
    let (before, rest) = row.split_at_mut(seen.start - keys.start);
    let (seen, after) = rest.split_at_mut(seen.len());
    [before, seen, after]
}

fn columns(head: usize, d: usize) -> Range<usize> {
    head * d..(head + 1) * d
}

pub fn attention(products: Products, op: Attention) {
    if let Mask::Listed { offsets, keys } = op.spec.mask {
        return listed(op, (offsets, keys));
    }
    let Attention { spec, q, k, v, mut out, mut lse } = op;
    let (heads, d) = (spec.heads, spec.head_dim);
    let (qd, kd, vd) = (host(q), host(k), host(v));
    let outs = cut(&mut out, &spec.q_offsets.host);
    let lses = cut(&mut lse, &spec.q_offsets.host);
    outs.into_par_iter().zip(lses).enumerate().for_each(|(s, (out, lse))| {
        let sequence = Sequence::new(&spec, products, s);
        let (mut scores, mut slopes) = (Vec::new(), Vec::new());
        for head in 0..heads {
            let biases = sequence.biases(head);
            for rows in sequence.tiles() {
                let keys = sequence.keys(&rows);
                let n = keys.len();
                let p = numbers(&mut scores, rows.len() * n);
                let factors = (sequence.query((qd, &q), &rows, head), sequence.key((kd, &k), &keys, head));
                sequence.scores(factors, (&rows, &keys), &biases, p, &mut slopes);
                fast!(|| {
                    for (at, i) in rows.clone().enumerate() {
                        let [before, seen, after] =
                            parts(&mut p[at * n..(at + 1) * n], &keys, sequence.seen(i));
                        lse[i * heads + head] = softmax(seen);
                        before.fill(0.0);
                        after.fill(0.0);
                    }
                });
                let to = block_mut(out, heads * d, rows.clone(), columns(head, d));
                let value = sequence.key((vd, &v), &keys, head);
                products.product(to, false, 1.0, block(p, n, 0..rows.len(), 0..n), value);
            }
        }
    });
}

/// Attention of rows that each see the keys they list: a trie's. Row by row, for lists are short.
fn listed(op: Attention, (offsets, keys): (&Indices, &Indices)) {
    let Attention { spec, q, k, v, mut out, mut lse } = op;
    let (heads, d) = (spec.heads, spec.head_dim);
    let group = heads / spec.kv_heads;
    let (qd, kd, vd) = (host(q), host(k), host(v));
    let (out_ld, lse_ld) = (out.ld, lse.ld);
    let rows = host_mut(&mut out).par_chunks_mut(out_ld).zip(host_mut(&mut lse).par_chunks_mut(lse_ld));
    rows.enumerate().for_each_init(Vec::new, |p: &mut Vec<f32>, (i, (out, lse))| {
        let seen = &keys.host[offsets.host[i] as usize..offsets.host[i + 1] as usize];
        fast!(|| {
            for (head, lse) in lse.iter_mut().enumerate().take(heads) {
                let (own, shared) = (columns(head, d), columns(head / group, d));
                let query = &row(qd, &q, i)[own.clone()];
                let key = |j: &u32| &row(kd, &k, *j as usize)[shared.clone()];
                let bias = |j: &u32| {
                    spec.bias.map_or(0.0, |bias| {
                        let at = relative_bucket(&bias, i, *j as usize) * bias.table.ld + head;
                        host(bias.table)[at]
                    })
                };
                p.clear();
                let cap = |score: f32| spec.softcap.map_or(score, |cap| cap * (score / cap).tanh());
                p.extend(seen.iter().map(|j| cap(spec.scale * dot(query, key(j))) + bias(j)));
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

pub fn attention_backward(products: Products, op: AttentionBackward) {
    let AttentionBackward { spec, q, k, v, out, lse, dout, mut dq, mut dk, mut dv, dbias } = op;
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
            sequence_backward(&Sequence::new(&spec, products, s), &given, (dq, dk, dv), &mut bias_sum);
            bias_sum
        })
        .collect();
    if let Some(PerSegment { segments, out: mut dbias }) = dbias {
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
    let (mut scores, mut gradients, mut slopes) = (Vec::new(), Vec::new(), Vec::new());
    for head in 0..heads {
        let (shared, biases) = (columns(sequence.kv_head(head), d), sequence.biases(head));
        let mut by_distance = vec![0f32; if bias_sum.is_empty() { 0 } else { biases.len() }];
        for rows in sequence.tiles() {
            let keys = sequence.keys(&rows);
            let n = keys.len();
            let (p, ds) = (numbers(&mut scores, rows.len() * n), numbers(&mut gradients, rows.len() * n));
            let (query, key) = (sequence.query((qd, q), &rows, head), sequence.key((kd, k), &keys, head));
            let upstream = sequence.query((dod, dout), &rows, head);
            sequence.scores((query, key), (&rows, &keys), &biases, p, &mut slopes);
            let value = sequence.key((vd, v), &keys, head);
            let to = block_mut(ds, n, 0..rows.len(), 0..n);
            sequence.products.product(to, false, 1.0, upstream, value.transpose());
            fast!(|| {
                for (at, i) in rows.clone().enumerate() {
                    let row_of = sequence.q_rows.start + i;
                    let own = columns(head, d);
                    let delta = dot(&row(dod, dout, row_of)[own.clone()], &row(od, out, row_of)[own]);
                    let log_sum = lsed[row_of * lse.ld + head];
                    let range = at * n..(at + 1) * n;
                    let [before, seen, after] = parts(&mut p[range.clone()], &keys, sequence.seen(i));
                    let [ds_before, ds, ds_after] = parts(&mut ds[range], &keys, sequence.seen(i));
                    for (p, ds) in seen.iter_mut().zip(ds) {
                        *p = exp(*p - log_sum);
                        *ds = *p * (*ds - delta);
                    }
                    [before, after, ds_before, ds_after].into_iter().for_each(|hidden| hidden.fill(0.0));
                }
            });
            if let Some(distances) = sequence.distances.as_ref().filter(|_| !by_distance.is_empty()) {
                for (i, ds) in rows.clone().zip(ds.chunks(n.max(1))) {
                    for (columns, at) in distances.along(i, &keys) {
                        add(&ds[columns.clone()], &mut by_distance[at..at + columns.len()]);
                    }
                }
            }
            // Of the capped score; from here on of the score.
            ds.iter_mut().zip(&slopes).for_each(|(ds, slope)| *ds *= slope);
            let all = |data| block(data, n, 0..rows.len(), 0..n);
            let product = |c, add, alpha, a, b| sequence.products.product(c, add, alpha, a, b);
            let to = block_mut(dv, kv_ld, keys.clone(), shared.clone());
            product(to, true, 1.0, all(p).transpose(), upstream);
            let to = block_mut(dq, heads * d, rows.clone(), columns(head, d));
            product(to, false, spec.scale, all(ds), key);
            let to = block_mut(dk, kv_ld, keys, shared.clone());
            product(to, true, spec.scale, all(ds).transpose(), query);
        }
        let buckets = sequence.distances.iter().flat_map(|distances| &distances.buckets);
        for (sum, bucket) in by_distance.iter().zip(buckets) {
            bias_sum[bucket * heads + head] += sum;
        }
    }
}
