// Attention over packed sequences, forward, on tensor cores (flash attention: no score matrix in memory).
//
//   out = softmax(cap(scale q k^T) + bias) v within every sequence; lse = logsumexp of the scores
//
// bf16; causal, windowed or full mask; grouped heads; optional cap and T5 bias (attention.cuh). Head size d a
// multiple of 8 up to 128; q, k, v rows aligned to 16 bytes. A row that sees no key gives out 0, lse -inf.
// 32 to 128 threads (warps), one a query, so 32 queries a warp; grid: x (sequence, head), y ceil(longest query run / threads),
// the last queries first: of causal sequences the longest work. Blocks beyond a sequence's end return at once, warps skip
// keys that none of their queries sees. Keys come 64 (DP = 64) or 32 (DP = 128) at a time, the next ones while these are used.
// Shared memory: (threads + 4 keys) * DP * 2 bytes, DP = 64 or 128 (48 or 64 KiB), and TileBias: a tile of q, two of k and v.
// Bytes: q, out once, k and v once per block of queries (from L2). Flops: 4 H d (pairs of query and key).
#include "attention.cuh"

// What a warp knows of the rows of its tile: the largest score to the base 2, and this lane's part of the sum.
template <int M> struct Softmax {
  float most[M][2], sum[M][2];
  __device__ __forceinline__ Softmax() {
#pragma unroll
    for (int i = 0; i < 2 * M; i++) most[i / 2][i % 2] = -INFINITY, sum[i / 2][i % 2] = 0.0f;
  }
  // From scores to weights; what o holds of earlier tiles shrinks where a row has a new largest score.
  template <int N, int PARTS>
  __device__ __forceinline__ void weigh(float (&p)[M][N][4], float factor, float (&o)[PARTS][M][4][4]) {
    float shrink[M][2];
    bool shrinks = false;
#pragma unroll
    for (int i = 0; i < 2 * M; i++) {
      float largest = -INFINITY;
#pragma unroll
      for (int j = 0; j < 2 * N; j++) largest = fmaxf(largest, p[i / 2][j / 2][i % 2 * 2 + j % 2]);
      for (int bits = 1; bits < 4; bits *= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, bits));
      float &before = most[i / 2][i % 2], now = fmaxf(before, factor * largest);
      float origin = now == -INFINITY ? 0.0f : now;  // nothing seen yet: every p is 0
      shrink[i / 2][i % 2] = exp2_fast(before - origin);
      shrinks |= before < now;
      before = now;
      float total = 0.0f;
#pragma unroll
      for (int j = 0; j < 2 * N; j++) {
        float& value = p[i / 2][j / 2][i % 2 * 2 + j % 2];
        value = exp2_fast(factor * value - origin);
        total += value;
      }
      sum[i / 2][i % 2] = sum[i / 2][i % 2] * shrink[i / 2][i % 2] + total;
    }
    if (!__ballot_sync(~0u, shrinks)) return;
#pragma unroll
    for (int i = 0; i < PARTS * M * 16; i++) o[i / 16 / M][i / 16 % M][i / 4 % 4][i % 4] *= shrink[i / 16 % M][i % 4 / 2];
  }
};

template <int DP> __device__ __forceinline__ void attention_tc(const AttentionArguments& a) {
  GEMS_SHARED(shared);
  constexpr int KEYS = DP == 64 ? ATTENTION_KEYS_64 : ATTENTION_KEYS_128, KEY_BYTES = KEYS * DP * 2, M = 2;
  int queries = blockDim.x, head = (int)blockIdx.x % a.heads, kv = head / (a.heads / a.kv_heads), d = a.head_dim;
  uint8_t *tile_q = shared, *stages = shared + queries * DP * 2;
  Sequence s = sequence_at(a, blockIdx.x / a.heads);
  int q_tile = (int)(gridDim.y - 1 - blockIdx.y) * queries, q_end = min(q_tile + queries, s.q_rows);
  if (q_tile >= s.q_rows) return;
  int lane = threadIdx.x % 32, row = q_tile + (int)threadIdx.x / 32 * 32;  // this warp's first row
  int k_first = first_key(a, q_tile) / KEYS * KEYS, k_end = end_key(a, s, q_end - 1);

  auto load_keys = [&](int k) {
    uint8_t* tile = stages + k / KEYS % 2 * (2 * KEY_BYTES);
    load_head<DP>(tile, KEYS, a.k, s.k0 + k, s.k_rows - k, kv, d, threadIdx.x, queries);
    load_head<DP>(tile + KEY_BYTES, KEYS, a.v, s.k0 + k, s.k_rows - k, kv, d, threadIdx.x, queries);
  };
  load_head<DP>(tile_q, queries, a.q, s.q0 + q_tile, s.q_rows - q_tile, head, d, threadIdx.x, queries);
  if (k_first < k_end) load_keys(k_first);
  copy_async_commit();
  TileBias bias(a, stages + 4 * KEY_BYTES, head, 1);
  auto positions = bias.positions<16 * M>(a.q_positions, s.q0 + row, s.q_rows - row);
  float o[DP / 32][M][4][4] = {};
  Softmax<M> rows;
  for (int k = k_first; k < k_end; k += KEYS) {
    const uint8_t* tile_k = stages + k / KEYS % 2 * (2 * KEY_BYTES);
    copy_async_wait<0>();
    __syncthreads();  // these keys are here, and nobody reads those before
    if (k + KEYS < k_end) load_keys(k + KEYS);
    copy_async_commit();
    if (row >= s.q_rows || !some_see(a, row, row + 16 * M, k, k + KEYS)) continue;
    auto columns = bias.positions<KEYS>(a.k_positions, s.k0 + k, s.k_rows - k);
    float p[M][KEYS / 8][4] = {};
    multiply_heads<M, KEYS, DP>(p, tile_q, row - q_tile, tile_k);
    float factor = cap_tile<M, KEYS / 8>(a, p, nullptr);
    factor = finish_scores<false>(a, s, bias, 0, positions, columns, p, row, k, factor);
    rows.weigh(p, factor, o);
    multiply_values<M, KEYS, DP>(o, p, tile_k + KEY_BYTES);
  }
  copy_async_wait<0>();  // without keys, q is still on its way
  __syncthreads();
  float inverse[M][2];
#pragma unroll
  for (int i = 0; i < 2 * M; i++) {
    float sum = rows.sum[i / 2][i % 2];
    for (int bits = 1; bits < 4; bits *= 2) sum += __shfl_xor_sync(~0u, sum, bits);
    inverse[i / 2][i % 2] = sum > 0.0f ? 1.0f / sum : 0.0f;
    int r = row + i * 8 + lane / 4;
    float lse = sum > 0.0f ? LN2 * rows.most[i / 2][i % 2] + logf(sum) : -INFINITY;
    if (lane % 4 == 0 && r < s.q_rows) a.lse.row<float>(s.q0 + r)[head] = lse;
  }
  store_head<M, DP>(a.out, o, inverse, tile_q, row - q_tile, s.q0 + row, s.q_rows - row, head, d);
}

GEMS_KERNEL(attention_tc_64, ATTENTION_THREADS, AttentionArguments, attention_tc<64>)
GEMS_KERNEL(attention_tc_128, ATTENTION_THREADS, AttentionArguments, attention_tc<128>)

GEMS_FILE(attention)
