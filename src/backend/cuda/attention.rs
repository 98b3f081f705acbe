//! Attention: `kernels/attention*.cu`.

use super::Cuda;
use super::abi::{
    ATTENTION_DQ_KEYS_64, ATTENTION_DQ_KEYS_128, ATTENTION_KEYS_64, ATTENTION_KEYS_128, ATTENTION_QUERIES,
    ATTENTION_SCRATCH, ATTENTION_TEAM_64, ATTENTION_TEAM_128, ATTENTION_TEAMS_THREADS, ATTENTION_THREADS,
    ATTENTION_TILE, ATTENTION_WARPS, AttentionArguments, AttentionBiasArguments, AttentionBiasSumArguments,
    BIAS_DISTANCE, BIAS_THREADS, CHUNK, Launch, Matrix, SEGMENTS, segments,
};
use super::kernels::{self, Kernel};
use super::launch::{address, view, view_mut};
use crate::backend::relative_bias::relative_position_bucket;
use crate::backend::work::{Work, bytes, bytes_mut};
use crate::backend::{
    Attention, AttentionBackward, AttentionPass, AttentionSpec, DType, Indices, Mask, Mat, PerSegment,
    RelativeBias,
};
use crate::error::Result;
use bytemuck::Zeroable;
use std::sync::Arc;

/// The bucket of every clamped distance, on the device: one table a kind of bias.
pub(super) type BucketTables = std::collections::HashMap<(bool, usize, usize), Arc<Indices>>;

/// Sequences of one launch: a grid is at most 65535 blocks in z.
const SEQUENCES: usize = 32_768;

fn longest(offsets: &[u32]) -> usize {
    offsets.windows(2).map(|w| (w[1] - w[0]) as usize).max().unwrap_or(0)
}

impl Cuda {
    fn buckets(&self, bias: &RelativeBias) -> Result<Arc<Indices>> {
        let key = (bias.bidirectional, bias.table.rows, bias.max_distance);
        let mut tables = self.buckets.lock().unwrap_or_else(|p| p.into_inner());
        if let Some(table) = tables.get(&key) {
            return Ok(table.clone());
        }
        // Distances beyond max_distance all fall into the last bucket, so a clamped distance is enough.
        let most = bias.max_distance as i64;
        let of =
            |d| relative_position_bucket(d, bias.bidirectional, bias.table.rows, bias.max_distance) as u32;
        let list: Vec<u32> = (-most..=most).map(of).collect();
        let table = Arc::new(self.upload_indices(&list)?);
        tables.insert(key, table.clone());
        Ok(table)
    }

    fn attention_arguments(
        &self,
        spec: &AttentionSpec,
        (q, k, v): (Mat, Mat, Mat),
    ) -> Result<AttentionArguments> {
        let mut a = AttentionArguments {
            q: view(q),
            k: view(k),
            v: view(v),
            q_offsets: address(spec.q_offsets),
            k_offsets: address(spec.k_offsets),
            heads: spec.heads as i32,
            kv_heads: spec.kv_heads as i32,
            head_dim: spec.head_dim as i32,
            window: match spec.mask {
                Mask::Causal { window } => window.map_or(i32::MAX, |w| w.try_into().unwrap_or(i32::MAX)),
                Mask::Full | Mask::Listed { .. } => 0,
            },
            scale: spec.scale,
            softcap: spec.softcap.unwrap_or(0.0),
            inverse_softcap: spec.softcap.map_or(0.0, f32::recip),
            ..AttentionArguments::zeroed()
        };
        if let Mask::Listed { offsets, keys } = spec.mask {
            (a.listed_offsets, a.listed_keys) = (address(offsets), address(keys));
        }
        if let Some(bias) = &spec.bias {
            a.bias_table = view(bias.table);
            (a.q_positions, a.k_positions) = (address(bias.q_positions), address(bias.k_positions));
            a.buckets = address(&*self.buckets(bias)?);
            a.max_distance = bias.max_distance as i32;
        }
        Ok(a)
    }

    /// The head size that the tensor-core kernels round this call's up to, if they take it.
    fn tile_size(spec: &AttentionSpec, dtype: DType, matrices: &[Matrix]) -> Option<usize> {
        let aligned = matrices.iter().all(|m| m.aligned(dtype));
        let listed = matches!(spec.mask, Mask::Listed { .. });
        let near = tile_bias(spec, spec.heads / spec.kv_heads) <= 4 * (2 * BIAS_DISTANCE + 1);
        let fits = spec.head_dim.is_multiple_of(8) && spec.head_dim <= 128 && near;
        (dtype == DType::BF16 && aligned && fits && !listed).then_some(if spec.head_dim <= 64 {
            64
        } else {
            128
        })
    }

    /// Launches `kernel` over all sequences, in the shape that the longest runs of queries and of keys and the number of
    /// sequences ask for, if any.
    fn over_sequences(
        &self,
        kernel: Kernel<AttentionArguments>,
        spec: &AttentionSpec,
        shape: impl Fn(usize, usize, usize) -> Option<Launch>,
        a: &AttentionArguments,
        work: Work,
    ) -> Result<()> {
        let count = spec.q_offsets.len().saturating_sub(1);
        for start in (0..count).step_by(SEQUENCES) {
            let end = (start + SEQUENCES).min(count);
            let longest = |offsets: &Indices| longest(&offsets.host[start..=end]);
            let Some(shape) = shape(longest(spec.q_offsets), longest(spec.k_offsets), end - start) else {
                continue;
            };
            let shift = 4 * start as u64;
            let arguments =
                AttentionArguments { q_offsets: a.q_offsets + shift, k_offsets: a.k_offsets + shift, ..*a };
            let work = if start == 0 { work } else { Work::default() };
            self.launch(kernel, shape, &arguments, work)?;
        }
        Ok(())
    }

    pub(super) fn attention(&self, op: Attention) -> Result<()> {
        let work = op.work();
        let Attention { spec, q, k, v, out, lse } = op;
        let (spec, dtype) = (&spec, q.dtype);
        let a = self.attention_arguments(spec, (q, k, v))?;
        let a = AttentionArguments { out: view_mut(&out), lse: view_mut(&lse), ..a };
        let tiles = Self::tile_size(spec, dtype, &[a.q, a.k, a.v]);
        match tiles.and_then(|d| Some((d, kernels::attention_tc(d)?))) {
            Some((d, kernel)) => {
                let keys = if d == 64 { ATTENTION_KEYS_64 } else { ATTENTION_KEYS_128 };
                let shape = |q, _, sequences| query_blocks(spec, q, sequences, (d, 1, keys));
                self.over_sequences(kernel, spec, shape, &a, work)
            }
            None => {
                let shape = |q, _, sequences| row_blocks(spec, q, spec.heads, sequences);
                self.over_sequences(kernels::attention_rows(dtype), spec, shape, &a, work)
            }
        }
    }

    pub(super) fn attention_backward(&self, op: AttentionBackward) -> Result<()> {
        let AttentionBackward { spec, q, k, v, out, lse, dout, dq, dk, dv, dbias } = op;
        let (spec, dtype) = (&spec, q.dtype);
        let delta = self.scratch(out.rows, spec.heads)?;
        let a = AttentionArguments {
            out: view(out),
            lse: view(lse),
            dout: view(dout),
            delta: view(delta.mat()),
            dq: view_mut(&dq),
            dk: view_mut(&dk),
            dv: view_mut(&dv),
            ..self.attention_arguments(spec, (q, k, v))?
        };
        if out.rows > 0 {
            let lanes = spec.head_dim.div_ceil(CHUNK).next_power_of_two();
            let threads = out.rows * spec.heads * lanes;
            let work = Work::new(2 * bytes(out) + bytes(delta.mat()), 2 * (out.rows * out.cols) as u64);
            self.launch(kernels::attention_delta(dtype), Launch::cover(threads), &a, work)?;
        }
        let work_q = Work::attention(spec, dtype, AttentionPass::Dq);
        let work_k = Work::attention(spec, dtype, AttentionPass::Dkv);
        let tiles = Self::tile_size(spec, dtype, &[a.q, a.k, a.v, a.dout]);
        let tensor_cores = |d| Some((d, kernels::attention_dq_tc(d)?, kernels::attention_dkv_tc(d)?));
        match tiles.and_then(tensor_cores) {
            Some((d, dq, dkv)) => {
                let keys = if d == 64 { ATTENTION_DQ_KEYS_64 } else { ATTENTION_DQ_KEYS_128 };
                let over_q = |q, _, sequences| query_blocks(spec, q, sequences, (d, 2, keys));
                let over_k = |q, k, sequences| self.key_blocks(spec, (q, k), sequences, d);
                self.over_sequences(dq, spec, over_q, &a, work_q)?;
                self.over_sequences(dkv, spec, over_k, &a, work_k)?;
            }
            None => {
                let over_q = |q, _, sequences| row_blocks(spec, q, spec.heads, sequences);
                let over_k = |_, k, sequences| row_blocks(spec, k, spec.kv_heads, sequences);
                self.over_sequences(kernels::attention_dq_rows(dtype), spec, over_q, &a, work_q)?;
                self.over_sequences(kernels::attention_dkv_rows(dtype), spec, over_k, &a, work_k)?;
            }
        }
        match (dbias, &spec.bias) {
            (Some(dbias), Some(bias)) => self.bias_gradient(spec, bias, dtype, &a, dbias),
            _ => Ok(()),
        }
    }

    /// Blocks of keys on tensor cores. With more teams a block is done sooner, so that the last blocks leave fewer
    /// multiprocessors idle; with fewer, more blocks work beside each other without waiting for one another.
    fn key_blocks(
        &self,
        spec: &AttentionSpec,
        (queries, keys): (usize, usize),
        sequences: usize,
        d: usize,
    ) -> Option<Launch> {
        let group = spec.heads / spec.kv_heads;
        let team = if d == 64 { ATTENTION_TEAM_64 } else { ATTENTION_TEAM_128 };
        let tiles = keys.div_ceil(ATTENTION_TILE);
        let blocks = tiles * spec.kv_heads * sequences;
        let shared =
            |teams| (2 * ATTENTION_TILE + 4 * ATTENTION_QUERIES * teams) * d * 2 + tile_bias(spec, group);
        let mut teams = ATTENTION_TEAMS_THREADS / team;
        let items = group * queries.div_ceil(ATTENTION_QUERIES);
        // All teams that run at once hold ATTENTION_TEAMS_THREADS threads a multiprocessor, by their registers.
        let rounds = |teams| blocks * teams * team / (self.info.sms * ATTENTION_TEAMS_THREADS);
        while teams > 1 && (items < teams || rounds(teams / 2) >= 4 || shared(teams) > self.info.max_shared) {
            teams /= 2;
        }
        let shape = Launch::line(sequences * spec.kv_heads, teams * team).shared(shared(teams));
        (keys > 0).then(|| shape.grid_yz(tiles, 1))
    }

    fn bias_gradient(
        &self,
        spec: &AttentionSpec,
        bias: &RelativeBias,
        dtype: DType,
        a: &AttentionArguments,
        dbias: PerSegment,
    ) -> Result<()> {
        let PerSegment { segments: ranges, out: mut dbias } = dbias;
        let (buckets, sequences) = (bias.table.rows, spec.q_offsets.len().saturating_sub(1));
        assert!(
            buckets <= 512 && sequences <= 65_535,
            "attention bias: {buckets} buckets, {sequences} sequences"
        );
        if sequences == 0 {
            return Ok(());
        }
        let partial = self.scratch(sequences * buckets, spec.heads)?;
        let arguments = AttentionBiasArguments { attention: *a, partial: view(partial.mat()) };
        let shape =
            Launch::line(1, BIAS_THREADS).grid_yz(spec.heads, sequences).shared(BIAS_THREADS * buckets * 4);
        // Scores and their gradients once more, of every pair.
        let pairs = Work::attention(spec, dtype, AttentionPass::Forward);
        let work = Work::new(pairs.bytes + bytes(partial.mat()), pairs.flops);
        self.launch(kernels::attention_bias(dtype), shape, &arguments, work)?;
        for (i, ranges) in ranges.chunks(SEGMENTS).enumerate() {
            let first = i * SEGMENTS * buckets;
            let rows = dbias.reborrow().row_range(first..first + ranges.len() * buckets);
            let arguments = AttentionBiasSumArguments {
                partial: view(partial.mat()),
                dbias: view_mut(&rows),
                buckets: buckets as i32,
                unused: 0,
                segment: segments(ranges),
            };
            let shape = Launch::cover(buckets * spec.heads).grid_yz(ranges.len(), 1);
            let work = Work::new(bytes(partial.mat()) + 2 * bytes_mut(&rows), bytes(partial.mat()) / 4);
            self.launch(kernels::ATTENTION_BIAS_SUM, shape, &arguments, work)?;
        }
        Ok(())
    }
}

/// What a block on tensor cores keeps of the bias of so many heads (`TileBias` of `kernels/attention.cuh`), bytes.
fn tile_bias(spec: &AttentionSpec, heads: usize) -> usize {
    spec.bias.as_ref().map_or(0, |bias| 4 * heads * (2 * bias.max_distance + 1))
}

/// Blocks of queries on tensor cores: no more warps than the longest run needs. A block holds `operands` tiles of its queries
/// and two of `keys` keys and values.
fn query_blocks(
    spec: &AttentionSpec,
    longest: usize,
    sequences: usize,
    (d, operands, keys): (usize, usize, usize),
) -> Option<Launch> {
    let threads = longest.next_multiple_of(32).min(ATTENTION_THREADS);
    let shared = (operands * threads + 4 * keys) * d * 2 + tile_bias(spec, 1);
    let blocks = Launch::line(sequences * spec.heads, threads).shared(shared);
    (longest > 0).then(|| blocks.grid_yz(longest.div_ceil(threads), 1))
}

/// Blocks of rows on CUDA cores.
fn row_blocks(spec: &AttentionSpec, longest: usize, heads: usize, sequences: usize) -> Option<Launch> {
    let blocks = Launch::line(longest.div_ceil(ATTENTION_WARPS), ATTENTION_THREADS).grid_yz(heads, sequences);
    (longest > 0).then(|| blocks.shared(rows_shared(spec.head_dim)))
}

/// Shared memory of the row kernels: what every warp keeps of its row.
fn rows_shared(d: usize) -> usize {
    ATTENTION_WARPS * (2 * d + ATTENTION_SCRATCH) * 4
}
