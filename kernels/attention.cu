// Attention over packed sequences, forward, on tensor cores (flash attention: no score matrix in memory).
//
//   out = softmax(cap(scale q k^T) + bias) v within every sequence; lse = logsumexp of the scores
//
// bf16; causal, windowed or full mask; grouped heads; optional cap and T5 bias (attention.cuh). Head size d a
// multiple of 8 up to 128; q, k, v rows aligned to 16 bytes. A row that sees no key gives out 0, lse -inf.
// 128 threads; grid: x ceil(longest query run / 64), y heads, z sequences; blocks beyond a sequence's end
// return at once, long rows of a causal sequence start first. Shared memory: 3 * 64 * DP * 2 bytes, DP = 64
// or 128 (24 or 48 KiB), and TileBias: a tile of q, k and v; the next k arrives during the softmax, the next v during k.
// Bytes: q, out once, k and v once per 64 queries (from L2). Flops: 4 H d (pairs of query and key).
#include "attention.cuh"

template <int DP> __device__ __forceinline__ void attention_tc(const AttentionArguments& a) {
  GEMS_SHARED(shared);
  constexpr int TILE = ATTENTION_TILE, TILE_BYTES = TILE * DP * 2;
  uint8_t *tile_q = shared, *tile_k = shared + TILE_BYTES, *tile_v = shared + 2 * TILE_BYTES;
  Sequence s = my_sequence(a);
  int head = blockIdx.y, kv = head / (a.heads / a.kv_heads), d = a.head_dim;
  int q_tile = (int)(gridDim.x - 1 - blockIdx.x) * TILE;
  if (q_tile >= s.q_rows) return;
  int lane = threadIdx.x % 32, row = q_tile + (int)threadIdx.x / 32 * 16;  // this warp's first row
  int k_first = first_key(a, q_tile) / TILE * TILE, k_end = end_key(a, s, q_tile + TILE - 1);
  TileBias bias(a, shared + 3 * TILE_BYTES);

  load_head<TILE, DP>(tile_q, a.q, s.q0 + q_tile, s.q_rows - q_tile, head, d);
  if (k_end > 0) load_head<TILE, DP>(tile_k, a.k, s.k0 + k_first, s.k_rows - k_first, kv, d);
  copy_async_commit();
  bias.load_head(a, head);
  float o[DP / 64][8][4] = {}, most[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f};
  for (int k = k_first; k < k_end; k += TILE) {
    load_head<TILE, DP>(tile_v, a.v, s.k0 + k, s.k_rows - k, kv, d);
    copy_async_commit();
    bias.load_positions(a.k_positions, s.k0 + k, s.k_rows - k);
    copy_async_wait<1>();
    __syncthreads();  // q and k are here
    float p[1][8][4] = {};
    multiply_heads<TILE, DP>(p, tile_q, row - q_tile, tile_k);
    __syncthreads();  // k may be overwritten
    if (k + TILE < k_end) load_head<TILE, DP>(tile_k, a.k, s.k0 + k + TILE, s.k_rows - k - TILE, kv, d);
    copy_async_commit();
    float scale = cap_tile(a, p);
#pragma unroll
    for (int half = 0; half < 2; half++) {  // rows lane / 4 and lane / 4 + 8
      int i = row + lane / 4 + half * 8, position = i < s.q_rows ? bias.position(a.q_positions, s.q0 + i) : 0;
      float largest = most[half];
#pragma unroll
      for (int j = 0; j < 16; j++) {
        float& score = p[0][j / 2][half * 2 + j % 2];
        int local = j / 2 * 8 + lane % 4 * 2 + j % 2;
        bool seen = sees(a, s, i, k + local);
        score = seen ? scale * score : -INFINITY;
        if (bias.most >= 0 && seen) score += bias.at(bias.positions[local] - position);
        largest = score > largest ? score : largest;
      }
      for (int bits = 1; bits < 4; bits *= 2) {
        float other = __shfl_xor_sync(~0u, largest, bits);
        largest = other > largest ? other : largest;
      }
      float origin = largest == -INFINITY ? 0.0f : largest;  // nothing seen yet: every p is 0
      float shrink = __expf(most[half] - origin);
      most[half] = largest;
      sum[half] *= shrink;
#pragma unroll
      for (int j = 0; j < 16; j++) {
        float& value = p[0][j / 2][half * 2 + j % 2];
        value = __expf(value - origin);
        sum[half] += value;
      }
#pragma unroll
      for (int j = 0; j < DP / 8; j++) {
        o[j / 8][j % 8][half * 2] *= shrink;
        o[j / 8][j % 8][half * 2 + 1] *= shrink;
      }
    }
    copy_async_wait<1>();
    __syncthreads();  // v is here
    multiply_values<TILE, DP>(o, p, tile_v);
    __syncthreads();  // v may be overwritten
  }
  copy_async_wait<0>();
  float inverse[2];
#pragma unroll
  for (int half = 0; half < 2; half++) {
    for (int bits = 1; bits < 4; bits *= 2) sum[half] += __shfl_xor_sync(~0u, sum[half], bits);
    inverse[half] = sum[half] > 0.0f ? 1.0f / sum[half] : 0.0f;
    int i = row + lane / 4 + half * 8;
    if (lane % 4 == 0 && i < s.q_rows) a.lse.row<float>(s.q0 + i)[head] = sum[half] > 0.0f ? most[half] + logf(sum[half]) : -INFINITY;
  }
  store_head<DP>(a.out, o, s.q0, row, s.q_rows, head, d, inverse[0], inverse[1]);
}

GEMS_KERNEL(attention_tc_64, ATTENTION_THREADS, AttentionArguments, attention_tc<64>)
GEMS_KERNEL(attention_tc_128, ATTENTION_THREADS, AttentionArguments, attention_tc<128>)

GEMS_FILE(attention)
