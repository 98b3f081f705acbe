// Gradients of attention on tensor cores: dq from blocks of queries, dk and dv from blocks of keys. Scores
// are computed again in both, so that every output has one owner: no atomics, deterministic.
//
// Types, masks, alignment and head sizes as in attention.cu; notation in attention.cuh. P and dS are rounded
// to bf16 before their products, as in the forward.
// attention_dq_tc_*: 128 threads, grid x ceil(longest query run / 64), y heads, z sequences;
//   shared memory 5 * 64 * DP * 2 bytes (40 or 80 KiB): q, dout, two tiles of k and one of v, and TileBias: the next k arrives while this
//   one is used, the next v from the moment that dP is there.
// attention_dkv_tc_*: 128 threads, grid x ceil(longest key run / 64), y kv heads, z sequences; every block goes
//   over the query heads of its group and over their queries, 64 (DP = 64) or 32 (DP = 128) at a time;
//   shared memory (2 * 64 + 2 * queries) * DP * 2 + 8 * queries bytes (32.5 or 48.3 KiB), and TileBias.
// Flops: 14 H d (pairs), of which 4 are the second computation of the scores.
#include "attention.cuh"

template <int DP> __device__ __forceinline__ void attention_dq_tc(const AttentionArguments& a) {
  GEMS_SHARED(shared);
  constexpr int TILE = ATTENTION_TILE, TILE_BYTES = TILE * DP * 2;
  uint8_t *tile_q = shared, *tile_dout = shared + TILE_BYTES, *tiles_k = shared + 2 * TILE_BYTES, *tile_v = shared + 4 * TILE_BYTES;
  Sequence s = my_sequence(a);
  int head = blockIdx.y, kv = head / (a.heads / a.kv_heads), d = a.head_dim;
  int q_tile = (int)(gridDim.x - 1 - blockIdx.x) * TILE;
  if (q_tile >= s.q_rows) return;
  int lane = threadIdx.x % 32, row = q_tile + (int)threadIdx.x / 32 * 16;
  int k_first = first_key(a, q_tile) / TILE * TILE, k_end = end_key(a, s, q_tile + TILE - 1);

  load_head<TILE, DP>(tile_q, a.q, s.q0 + q_tile, s.q_rows - q_tile, head, d);
  load_head<TILE, DP>(tile_dout, a.dout, s.q0 + q_tile, s.q_rows - q_tile, head, d);
  if (k_first < k_end) {
    load_head<TILE, DP>(tiles_k + k_first / TILE % 2 * TILE_BYTES, a.k, s.k0 + k_first, s.k_rows - k_first, kv, d);
    load_head<TILE, DP>(tile_v, a.v, s.k0 + k_first, s.k_rows - k_first, kv, d);
  }
  copy_async_commit();
  TileBias bias(a, shared + 5 * TILE_BYTES);
  bias.load_head(a, head);
  float lse[2] = {}, delta[2] = {};
  int position[2] = {};
#pragma unroll
  for (int half = 0; half < 2; half++) {
    int i = row + lane / 4 + half * 8;
    if (i < s.q_rows) {
      lse[half] = a.lse.row<const float>(s.q0 + i)[head];
      delta[half] = a.delta.row<const float>(s.q0 + i)[head];
      position[half] = bias.position(a.q_positions, s.q0 + i);
    }
  }
  float dq[DP / 64][8][4] = {};
  for (int k = k_first; k < k_end; k += TILE) {
    bool more = k + TILE < k_end;
    int odd = k / TILE % 2 * TILE_BYTES;
    const uint8_t* tile_k = tiles_k + odd;
    uint8_t* next_k = tiles_k + (TILE_BYTES - odd);
    copy_async_wait<0>();
    __syncthreads();  // k and v are here, and nobody reads the k before
    if (more) load_head<TILE, DP>(next_k, a.k, s.k0 + k + TILE, s.k_rows - k - TILE, kv, d);
    copy_async_commit();
    bias.load_positions(a.k_positions, s.k0 + k, s.k_rows - k);
    float p[1][8][4] = {}, dp[1][8][4] = {};
    multiply_heads<TILE, DP>(p, tile_q, row - q_tile, tile_k);
    multiply_heads<TILE, DP>(dp, tile_dout, row - q_tile, tile_v);
    __syncthreads();  // v may be overwritten
    if (more) load_head<TILE, DP>(tile_v, a.v, s.k0 + k + TILE, s.k_rows - k - TILE, kv, d);
    copy_async_commit();
    float scale = cap_tile(a, p);
#pragma unroll
    for (int j = 0; j < 8; j++) {
#pragma unroll
      for (int r = 0; r < 4; r++) {
        int i = row + lane / 4 + r / 2 * 8, local = j * 8 + lane % 4 * 2 + r % 2;
        bool seen = sees(a, s, i, k + local);
        float score = scale * p[0][j][r];
        if (bias.most >= 0 && seen) score += bias.at(bias.positions[local] - position[r / 2]);
        float slope = cap_slope(a, p[0][j][r]);
        p[0][j][r] = seen ? __expf(score - lse[r / 2]) * (dp[0][j][r] - delta[r / 2]) * slope : 0.0f;
      }
    }
    multiply_values<TILE, DP>(dq, p, tile_k);
  }
  copy_async_wait<0>();  // without keys, q and dout are still on their way
  store_head<DP>(a.dq, dq, s.q0, row, s.q_rows, head, d, a.scale, a.scale);
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1200  // the 168 registers with which three blocks fit are two too few here
GEMS_KERNEL_BLOCKS(attention_dq_tc_64, ATTENTION_THREADS, 2, AttentionArguments, attention_dq_tc<64>)
#else
GEMS_KERNEL(attention_dq_tc_64, ATTENTION_THREADS, AttentionArguments, attention_dq_tc<64>)
#endif
GEMS_KERNEL(attention_dq_tc_128, ATTENTION_THREADS, AttentionArguments, attention_dq_tc<128>)

template <int DP> __device__ __forceinline__ void attention_dkv_tc(const AttentionArguments& a) {
  GEMS_SHARED(shared);
  constexpr int TILE = ATTENTION_TILE, QUERIES = DP == 64 ? ATTENTION_QUERIES_64 : ATTENTION_QUERIES_128;
  constexpr int KEY_BYTES = TILE * DP * 2, QUERY_BYTES = QUERIES * DP * 2;
  uint8_t *tile_k = shared, *tile_v = shared + KEY_BYTES, *tile_q = shared + 2 * KEY_BYTES, *tile_dout = tile_q + QUERY_BYTES;
  float* lse = reinterpret_cast<float*>(tile_dout + QUERY_BYTES);
  float* delta = lse + QUERIES;
  TileBias bias(a, delta + QUERIES);
  Sequence s = my_sequence(a);
  int kv = blockIdx.y, group = a.heads / a.kv_heads, d = a.head_dim, k_tile = blockIdx.x * TILE;
  if (k_tile >= s.k_rows) return;
  int lane = threadIdx.x % 32, row = k_tile + (int)threadIdx.x / 32 * 16;  // this warp's first key
  int position[2];
  for (int half = 0; half < 2; half++) {
    int key = row + lane / 4 + half * 8;
    position[half] = key < s.k_rows ? bias.position(a.k_positions, s.k0 + key) : 0;
  }

  load_head<TILE, DP>(tile_k, a.k, s.k0 + k_tile, s.k_rows - k_tile, kv, d);
  load_head<TILE, DP>(tile_v, a.v, s.k0 + k_tile, s.k_rows - k_tile, kv, d);
  float dk[DP / 64][8][4] = {}, dv[DP / 64][8][4] = {};
  int q_end = end_query(a, s, k_tile + TILE - 1);
  for (int head = kv * group; head < (kv + 1) * group; head++) {
    bias.load_head(a, head);
    for (int q = first_query(a, k_tile) / QUERIES * QUERIES; q < q_end; q += QUERIES) {
      load_head<QUERIES, DP>(tile_q, a.q, s.q0 + q, s.q_rows - q, head, d);
      load_head<QUERIES, DP>(tile_dout, a.dout, s.q0 + q, s.q_rows - q, head, d);
      copy_async_commit();
      if ((int)threadIdx.x < QUERIES) {
        bool exists = q + (int)threadIdx.x < s.q_rows;
        lse[threadIdx.x] = exists ? a.lse.row<const float>(s.q0 + q + threadIdx.x)[head] : 0.0f;
        delta[threadIdx.x] = exists ? a.delta.row<const float>(s.q0 + q + threadIdx.x)[head] : 0.0f;
      }
      bias.load_positions(a.q_positions, s.q0 + q, s.q_rows - q < QUERIES ? s.q_rows - q : QUERIES);
      copy_async_wait<0>();
      __syncthreads();
      // Transposed scores: rows are keys, so that P^T and dS^T are left operands straight from registers.
      float p[1][QUERIES / 8][4] = {}, ds[1][QUERIES / 8][4] = {};
      multiply_heads<QUERIES, DP>(p, tile_k, row - k_tile, tile_q);
      multiply_heads<QUERIES, DP>(ds, tile_v, row - k_tile, tile_dout);
      float scale = cap_tile(a, p);
#pragma unroll
      for (int j = 0; j < QUERIES / 8; j++) {
#pragma unroll
        for (int r = 0; r < 4; r++) {
          int key = row + lane / 4 + r / 2 * 8, local = j * 8 + lane % 4 * 2 + r % 2, i = q + local;
          bool seen = sees(a, s, i, key);
          float score = scale * p[0][j][r];
          if (bias.most >= 0 && seen) score += bias.at(position[r / 2] - bias.positions[local]);
          float slope = cap_slope(a, p[0][j][r]);
          p[0][j][r] = seen ? __expf(score - lse[local]) : 0.0f;
          ds[0][j][r] = p[0][j][r] * (ds[0][j][r] - delta[local]) * slope;
        }
      }
      multiply_values<QUERIES, DP>(dv, p, tile_dout);
      multiply_values<QUERIES, DP>(dk, ds, tile_q);
      __syncthreads();
    }
  }
  copy_async_commit();
  copy_async_wait<0>();
  store_head<DP>(a.dk, dk, s.k0, row, s.k_rows, kv, d, a.scale, a.scale);
  store_head<DP>(a.dv, dv, s.k0, row, s.k_rows, kv, d, 1.0f, 1.0f);
}

GEMS_KERNEL(attention_dkv_tc_64, ATTENTION_THREADS, AttentionArguments, attention_dkv_tc<64>)
GEMS_KERNEL(attention_dkv_tc_128, ATTENTION_THREADS, AttentionArguments, attention_dkv_tc<128>)

GEMS_FILE(attention_backward)
