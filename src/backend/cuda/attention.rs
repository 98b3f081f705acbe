//! Attention: `kernels/attention*.cu`.

use super::Cuda;
use super::driver::Shape;
use super::launch::{View, address, tag, view, view_mut};
use super::rows::{Segment, segments};
use crate::backend::cpu::relative_position_bucket;
use crate::backend::trace::{Work, bytes};
use crate::backend::{Attention, DType, Indices, Mask, Mat, MatMut, RelativeBias};
use crate::error::Result;
use bytemuck::{Pod, Zeroable};
use std::ops::Range;
use std::sync::Arc;

/// `struct AttentionArguments` of `kernels/attention.cuh`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct AttentionArguments {
    q: View,
    k: View,
    v: View,
    out: View,
    lse: View,
    dout: View,
    delta: View,
    dq: View,
    dk: View,
    dv: View,
    bias_table: View,
    q_offsets: u64,
    k_offsets: u64,
    listed_offsets: u64,
    listed_keys: u64,
    q_positions: u64,
    k_positions: u64,
    buckets: u64,
    heads: i32,
    kv_heads: i32,
    head_dim: i32,
    causal: i32,
    max_distance: i32,
    scale: f32,
}

/// `struct AttentionBiasArguments`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct AttentionBiasArguments {
    attention: AttentionArguments,
    partial: View,
}

/// `struct AttentionBiasSumArguments`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct AttentionBiasSumArguments {
    partial: View,
    dbias: View,
    buckets: i32,
    unused: i32,
    segment: [Segment; 64],
}

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
        let bucket =
            |d| relative_position_bucket(d, bias.bidirectional, bias.table.rows, bias.max_distance) as u32;
        let list: Vec<u32> = (-most..=most).map(bucket).collect();
        let table = Arc::new(self.upload_indices(&list)?);
        tables.insert(key, table.clone());
        Ok(table)
    }

    fn attention_arguments(
        &self,
        spec: &Attention,
        (q, k, v): (Mat, Mat, Mat),
    ) -> Result<AttentionArguments> {
        assert!(q.cols == spec.heads * spec.head_dim && k.cols == spec.kv_heads * spec.head_dim, "attention");
        assert!(k.shape() == v.shape() && q.dtype == k.dtype && q.dtype == v.dtype, "attention");
        assert!((1..=256).contains(&spec.head_dim), "attention: head size {}", spec.head_dim);
        let mut a = AttentionArguments {
            q: view(q),
            k: view(k),
            v: view(v),
            q_offsets: address(spec.q_offsets),
            k_offsets: address(spec.k_offsets),
            heads: spec.heads as i32,
            kv_heads: spec.kv_heads as i32,
            head_dim: spec.head_dim as i32,
            causal: i32::from(matches!(spec.mask, Mask::Causal)),
            scale: spec.scale,
            ..AttentionArguments::zeroed()
        };
        if let Mask::Listed { offsets, keys } = spec.mask {
            (a.listed_offsets, a.listed_keys) = (address(offsets), address(keys));
        }
        if let Some(bias) = &spec.bias {
            assert_eq!(bias.table.dtype, q.dtype, "attention bias");
            a.bias_table = view(bias.table);
            (a.q_positions, a.k_positions) = (address(bias.q_positions), address(bias.k_positions));
            a.buckets = address(&*self.buckets(bias)?);
            a.max_distance = bias.max_distance as i32;
        }
        Ok(a)
    }

    /// The size of a tensor-core kernel's tiles, if the tensor-core kernels take this call.
    fn tile_size(spec: &Attention, dtype: DType, matrices: &[View]) -> Option<usize> {
        let aligned = matrices.iter().all(|m| m.aligned(dtype));
        let listed = matches!(spec.mask, Mask::Listed { .. });
        let fits = spec.head_dim.is_multiple_of(8) && spec.head_dim <= 128;
        (dtype == DType::BF16 && aligned && fits && !listed).then_some(if spec.head_dim <= 64 {
            64
        } else {
            128
        })
    }

    /// Launches `kernel` over (tiles of the longest of `offsets`' runs, heads, sequences).
    fn over_sequences(
        &self,
        kernel: &str,
        (offsets, tile, heads): (&Indices, usize, usize),
        shared: usize,
        a: &AttentionArguments,
        work: Work,
    ) -> Result<()> {
        let count = offsets.len().saturating_sub(1);
        for start in (0..count).step_by(SEQUENCES) {
            let end = (start + SEQUENCES).min(count);
            let tiles = longest(&offsets.host[start..=end]).div_ceil(tile);
            if tiles == 0 {
                continue;
            }
            let shift = 4 * start as u64;
            let arguments =
                AttentionArguments { q_offsets: a.q_offsets + shift, k_offsets: a.k_offsets + shift, ..*a };
            let shape = Shape::line(tiles, 128).grid_yz(heads, end - start).shared(shared);
            let work = if start == 0 { work } else { Work::default() };
            self.launch(kernel, shape, &arguments, work)?;
        }
        Ok(())
    }

    /// See [`crate::backend::Backend::attention`].
    pub(super) fn attention(
        &self,
        spec: &Attention,
        qkv: (Mat, Mat, Mat),
        out: MatMut,
        lse: MatMut,
    ) -> Result<()> {
        let dtype = qkv.0.dtype;
        let a = self.attention_arguments(spec, qkv)?;
        let a = AttentionArguments { out: view_mut(&out), lse: view_mut(&lse), ..a };
        let work = Work::attention(spec, dtype, (2, 2, 2));
        match Self::tile_size(spec, dtype, &[a.q, a.k, a.v]) {
            Some(d) => {
                let over = (spec.q_offsets, 64, spec.heads);
                self.over_sequences(&format!("attention_tc_{d}"), over, 3 * 64 * d * 2, &a, work)
            }
            None => {
                let over = (spec.q_offsets, 4, spec.heads);
                let name = format!("attention_rows_{}", tag(dtype));
                self.over_sequences(&name, over, rows_shared(spec.head_dim), &a, work)
            }
        }
    }

    /// See [`crate::backend::Backend::attention_backward`].
    pub(super) fn attention_backward(
        &self,
        spec: &Attention,
        qkv: (Mat, Mat, Mat),
        (out, lse, dout): (Mat, Mat, Mat),
        (dq, dk, dv): (MatMut, MatMut, MatMut),
        dbias: Option<(&[Range<usize>], MatMut)>,
    ) -> Result<()> {
        assert!(
            !matches!(spec.mask, Mask::Listed { .. }),
            "attention_backward: listed masks are forward only"
        );
        let dtype = qkv.0.dtype;
        let delta = self.scratch(out.rows, spec.heads)?;
        let a = AttentionArguments {
            out: view(out),
            lse: view(lse),
            dout: view(dout),
            delta: view(delta.mat()),
            dq: view_mut(&dq),
            dk: view_mut(&dk),
            dv: view_mut(&dv),
            ..self.attention_arguments(spec, qkv)?
        };
        if out.rows > 0 {
            let threads = out.rows * spec.heads * 32;
            let work = Work::new(2 * bytes(out) + bytes(delta.mat()), 2 * (out.rows * out.cols) as u64);
            self.launch(&format!("attention_delta_{}", tag(dtype)), Shape::cover(threads), &a, work)?;
        }
        // Both compute scores and their gradients: three products for dq, four for dk and dv.
        let work_q = Work::attention(spec, dtype, (3, 2, 3));
        let work_k = Work::attention(spec, dtype, (2, 4, 4));
        match Self::tile_size(spec, dtype, &[a.q, a.k, a.v, a.dout]) {
            Some(d) => {
                let queries = if d == 64 { 64 } else { 32 };
                let (over_q, over_k) =
                    ((spec.q_offsets, 64, spec.heads), (spec.k_offsets, 64, spec.kv_heads));
                self.over_sequences(&format!("attention_dq_tc_{d}"), over_q, 4 * 64 * d * 2, &a, work_q)?;
                let shared = (2 * 64 + 2 * queries) * d * 2 + 8 * queries;
                self.over_sequences(&format!("attention_dkv_tc_{d}"), over_k, shared, &a, work_k)?;
            }
            None => {
                let (over_q, over_k) = ((spec.q_offsets, 4, spec.heads), (spec.k_offsets, 4, spec.kv_heads));
                let shared = rows_shared(spec.head_dim);
                self.over_sequences(
                    &format!("attention_dq_rows_{}", tag(dtype)),
                    over_q,
                    shared,
                    &a,
                    work_q,
                )?;
                self.over_sequences(
                    &format!("attention_dkv_rows_{}", tag(dtype)),
                    over_k,
                    shared,
                    &a,
                    work_k,
                )?;
            }
        }
        match (dbias, &spec.bias) {
            (Some((ranges, dbias)), Some(bias)) => self.bias_gradient(spec, bias, dtype, &a, ranges, dbias),
            _ => Ok(()),
        }
    }

    fn bias_gradient(
        &self,
        spec: &Attention,
        bias: &RelativeBias,
        dtype: DType,
        a: &AttentionArguments,
        ranges: &[Range<usize>],
        mut dbias: MatMut,
    ) -> Result<()> {
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
        let shape = Shape::line(1, 64).grid_yz(spec.heads, sequences).shared(64 * buckets * 4);
        // Scores and their gradients once more, of every pair.
        let pairs = Work::attention(spec, dtype, (2, 2, 2));
        let work = Work::new(pairs.bytes + bytes(partial.mat()), pairs.flops);
        self.launch(&format!("attention_bias_{}", tag(dtype)), shape, &arguments, work)?;
        for (i, ranges) in ranges.chunks(64).enumerate() {
            let first = i * 64 * buckets;
            let rows = dbias.reborrow().row_range(first..first + ranges.len() * buckets);
            let arguments = AttentionBiasSumArguments {
                partial: view(partial.mat()),
                dbias: view_mut(&rows),
                buckets: buckets as i32,
                unused: 0,
                segment: segments(ranges),
            };
            let shape = Shape::cover(buckets * spec.heads).grid_yz(ranges.len(), 1);
            let work = Work::new(bytes(partial.mat()) + 2 * bytes(rows.as_mat()), bytes(partial.mat()) / 4);
            self.launch("attention_bias_sum", shape, &arguments, work)?;
        }
        Ok(())
    }
}

/// Shared memory of the row kernels: four warps of 2 d + 96 values.
fn rows_shared(d: usize) -> usize {
    4 * (2 * d + 96) * 4
}
