// Gradients of attention on tensor cores: dq from blocks of queries, dk and dv from blocks of keys. Scores
// are computed again in both, so that every output has one owner: no atomics, deterministic.
//
// Types, masks, alignment and head sizes as in attention.cu; notation in attention.cuh. P and dS are rounded
// to bf16 before their products, as in the forward.
// attention_dq_tc_*: threads and grid as in attention.cu; keys come 32 (DP = 64) or 16 (DP = 128) at a time, the next ones while
//   these are used. Shared memory (2 threads + 4 keys) * DP * 2 bytes (48 or 80 KiB): q, dout, two tiles of k and v; and TileBias.
// attention_dkv_tc_*: 64 keys a block; grid x (sequence, kv head), y ceil(longest key run / 64), the first keys first: of causal
//   sequences the longest work. Threads are 1 to 4 (DP = 64) or 1 to 2 (DP = 128) teams of 64 or 128, a warp 32 or 16 keys. The
//   queries that may see the block's keys, of all heads of its group, are dealt out to the teams, 32 at a time, the next ones
//   arriving while these are used; at the end the teams' sums are added in order, in shared memory.
//   Shared memory: (128 + teams * 128) * DP * 2 bytes (80 or 96 KiB at most): k, v, and two tiles of q and dout a team; and
//   TileBias of all heads of the group.
// Flops: 14 H d (pairs), of which 4 are the second computation of the scores.
#include "attention.cuh"

template <int DP> __device__ __forceinline__ void attention_dq_tc(const AttentionArguments& a) {
  GEMS_SHARED(shared);
  constexpr int KEYS = DP == 64 ? ATTENTION_DQ_KEYS_64 : ATTENTION_DQ_KEYS_128, KEY_BYTES = KEYS * DP * 2, M = 2;
  int queries = blockDim.x, head = (int)blockIdx.x % a.heads, kv = head / (a.heads / a.kv_heads), d = a.head_dim;
  uint8_t *tile_q = shared, *tile_dout = shared + queries * DP * 2, *stages = tile_dout + queries * DP * 2;
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
  load_head<DP>(tile_dout, queries, a.dout, s.q0 + q_tile, s.q_rows - q_tile, head, d, threadIdx.x, queries);
  if (k_first < k_end) load_keys(k_first);
  copy_async_commit();
  TileBias bias(a, stages + 4 * KEY_BYTES, head, 1);
  auto positions = bias.positions<16 * M>(a.q_positions, s.q0 + row, s.q_rows - row);
  float lse[M][2] = {}, delta[M][2] = {}, scale[M][2];
#pragma unroll
  for (int i = 0; i < 2 * M; i++) {
    int r = row + i * 8 + lane / 4;
    scale[i / 2][i % 2] = a.scale;
    if (r >= s.q_rows) continue;
    lse[i / 2][i % 2] = base2(a.lse.row<const float>(s.q0 + r)[head]);
    delta[i / 2][i % 2] = a.delta.row<const float>(s.q0 + r)[head];
  }
  float dq[DP / 32][M][4][4] = {};
  for (int k = k_first; k < k_end; k += KEYS) {
    const uint8_t* tile_k = stages + k / KEYS % 2 * (2 * KEY_BYTES);
    copy_async_wait<0>();
    __syncthreads();  // these keys are here, and nobody reads those before
    if (k + KEYS < k_end) load_keys(k + KEYS);
    copy_async_commit();
    if (row >= s.q_rows || !some_see(a, row, row + 16 * M, k, k + KEYS)) continue;
    auto columns = bias.positions<KEYS>(a.k_positions, s.k0 + k, s.k_rows - k);
    float p[M][KEYS / 8][4] = {}, ds[M][KEYS / 8][4];
    multiply_heads<M, KEYS, DP>(p, tile_q, row - q_tile, tile_k);
#pragma unroll
    for (int i = 0; i < M * KEYS / 2; i++) ds[i / 4 % M][i / 4 / M][i % 4] = -delta[i / 4 % M][i % 4 / 2];
    multiply_heads<M, KEYS, DP>(ds, tile_dout, row - q_tile, tile_k + KEY_BYTES);
    float factor = cap_tile<M, KEYS / 8>(a, p, ds);
    factor = finish_scores<false>(a, s, bias, 0, positions, columns, p, row, k, factor);
#pragma unroll
    for (int i = 0; i < M * KEYS / 2; i++) {
      float score = p[i / 4 % M][i / 4 / M][i % 4];
      ds[i / 4 % M][i / 4 / M][i % 4] *= exp2_fast(factor * score - lse[i / 4 % M][i % 4 / 2]);
    }
    multiply_values<M, KEYS, DP>(dq, ds, tile_k);
  }
  copy_async_wait<0>();  // without keys, q and dout are still on their way
  __syncthreads();
  store_head<M, DP>(a.dq, dq, scale, tile_q, row - q_tile, s.q0 + row, s.q_rows - row, head, d);
}

GEMS_KERNEL(attention_dq_tc_64, ATTENTION_THREADS, AttentionArguments, attention_dq_tc<64>)
GEMS_KERNEL(attention_dq_tc_128, ATTENTION_THREADS, AttentionArguments, attention_dq_tc<128>)

// Adds the sums of all teams to the first one's, in order, through shared memory that nobody reads any more.
template <int COUNT> __device__ __forceinline__ void add_teams(float (&x)[COUNT], float (&y)[COUNT], float* shared, int threads) {
  int team = threadIdx.x / threads, thread = threadIdx.x % threads;
  for (int from = 1; from < (int)blockDim.x / threads; from++) {
    __syncthreads();
    if (team == from) {
#pragma unroll
      for (int i = 0; i < COUNT; i++) shared[i * threads + thread] = x[i], shared[(COUNT + i) * threads + thread] = y[i];
    }
    __syncthreads();
    if (team == 0) {
#pragma unroll
      for (int i = 0; i < COUNT; i++) x[i] += shared[i * threads + thread], y[i] += shared[(COUNT + i) * threads + thread];
    }
  }
  __syncthreads();
}

template <int DP> __device__ __forceinline__ void attention_dkv_tc(const AttentionArguments& a) {
  GEMS_SHARED(shared);
  constexpr int KEYS = ATTENTION_TILE, QUERIES = ATTENTION_QUERIES, TEAM = DP == 64 ? ATTENTION_TEAM_64 : ATTENTION_TEAM_128;
  constexpr int M = KEYS / 16 * 32 / TEAM, KEY_BYTES = KEYS * DP * 2, QUERY_BYTES = QUERIES * DP * 2;
  int teams = blockDim.x / TEAM, team = threadIdx.x / TEAM, thread = threadIdx.x % TEAM;
  uint8_t *tile_k = shared, *tile_v = shared + KEY_BYTES, *stages = shared + 2 * KEY_BYTES + team * 4 * QUERY_BYTES;
  Sequence s = sequence_at(a, blockIdx.x / a.kv_heads);
  int kv = (int)blockIdx.x % a.kv_heads, group = a.heads / a.kv_heads, d = a.head_dim, k_tile = blockIdx.y * KEYS;
  if (k_tile >= s.k_rows) return;
  int local = thread / 32 * 16 * M, row = k_tile + local;  // this warp's first key
  int q_first = first_query(a, k_tile) / QUERIES * QUERIES, q_end = end_query(a, s, min(k_tile + KEYS, s.k_rows) - 1);
  int tiles = q_first < q_end ? (q_end - q_first + QUERIES - 1) / QUERIES : 0, items = tiles * group;

  auto load_queries = [&](int item, uint8_t* tile) {
    int head = kv * group + item / tiles, q = q_first + item % tiles * QUERIES;
    load_head<DP>(tile, QUERIES, a.q, s.q0 + q, s.q_rows - q, head, d, thread, TEAM);
    load_head<DP>(tile + QUERY_BYTES, QUERIES, a.dout, s.q0 + q, s.q_rows - q, head, d, thread, TEAM);
  };
  load_head<DP>(tile_k, KEYS, a.k, s.k0 + k_tile, s.k_rows - k_tile, kv, d, threadIdx.x, blockDim.x);
  load_head<DP>(tile_v, KEYS, a.v, s.k0 + k_tile, s.k_rows - k_tile, kv, d, threadIdx.x, blockDim.x);
  if (team < items) load_queries(team, stages);
  copy_async_commit();
  TileBias bias(a, shared + 2 * KEY_BYTES + teams * 4 * QUERY_BYTES, kv * group, group);
  auto positions = bias.positions<16 * M>(a.k_positions, s.k0 + row, s.k_rows - row);
  float dk[DP / 32][M][4][4] = {}, dv[DP / 32][M][4][4] = {};
  int stage = 0;
  for (int first = 0; first < items; first += teams, stage ^= 1) {
    const uint8_t* tile_q = stages + stage * (2 * QUERY_BYTES);
    int item = first + team, n = item / tiles, q = q_first + item % tiles * QUERIES;
    copy_async_wait<0>();
    __syncthreads();  // these queries are here, and nobody reads those before
    if (item + teams < items) load_queries(item + teams, stages + (stage ^ 1) * (2 * QUERY_BYTES));
    copy_async_commit();
    if (item >= items || row >= s.k_rows || !some_see(a, q, q + QUERIES, row, row + 16 * M)) continue;
    int count = s.q_rows - q, head = kv * group + n;
    Spread<float, QUERIES> delta(count, [&](int i) { return a.delta.row<const float>(s.q0 + q + i)[head]; });
    auto columns = bias.positions<QUERIES>(a.q_positions, s.q0 + q, count);
    // Transposed scores: rows are keys, so that P^T and dS^T are left operands straight from registers.
    float p[M][QUERIES / 8][4] = {}, ds[M][QUERIES / 8][4];
    multiply_heads<M, QUERIES, DP>(p, tile_k, local, tile_q);
    Spread<float, QUERIES> lse(count, [&](int i) { return base2(a.lse.row<const float>(s.q0 + q + i)[head]); });
#pragma unroll
    for (int j = 0; j < QUERIES / 4; j++) {
      float mean = delta.column(j / 2, j % 2);
#pragma unroll
      for (int i = 0; i < 2 * M; i++) ds[i / 2][j / 2][i % 2 * 2 + j % 2] = -mean;
    }
    multiply_heads<M, QUERIES, DP>(ds, tile_v, local, tile_q + QUERY_BYTES);
    float factor = cap_tile<M, QUERIES / 8>(a, p, ds);
    factor = finish_scores<true>(a, s, bias, n, positions, columns, p, row, q, factor);
#pragma unroll
    for (int j = 0; j < QUERIES / 4; j++) {
      float origin = lse.column(j / 2, j % 2);
#pragma unroll
      for (int i = 0; i < 2 * M; i++) {
        float& value = p[i / 2][j / 2][i % 2 * 2 + j % 2];
        value = exp2_fast(factor * value - origin);
        ds[i / 2][j / 2][i % 2 * 2 + j % 2] *= value;
      }
    }
    multiply_values<M, QUERIES, DP>(dv, p, tile_q + QUERY_BYTES);
    multiply_values<M, QUERIES, DP>(dk, ds, tile_q);
  }
  copy_async_wait<0>();  // without queries, k and v are still on their way
  __syncthreads();
  add_teams(reinterpret_cast<float(&)[DP / 2 * M]>(dk), reinterpret_cast<float(&)[DP / 2 * M]>(dv), reinterpret_cast<float*>(shared), TEAM);
  if ((int)threadIdx.x >= TEAM) return;
  float scale[M][2], one[M][2];
#pragma unroll
  for (int i = 0; i < 2 * M; i++) scale[i / 2][i % 2] = a.scale, one[i / 2][i % 2] = 1.0f;
  store_head<M, DP>(a.dk, dk, scale, tile_k, local, s.k0 + row, s.k_rows - row, kv, d);
  store_head<M, DP>(a.dv, dv, one, tile_v, local, s.k0 + row, s.k_rows - row, kv, d);
}

GEMS_KERNEL(attention_dkv_tc_64, ATTENTION_TEAMS_THREADS, AttentionArguments, attention_dkv_tc<64>)
GEMS_KERNEL(attention_dkv_tc_128, ATTENTION_TEAMS_THREADS, AttentionArguments, attention_dkv_tc<128>)

GEMS_FILE(attention_backward)
