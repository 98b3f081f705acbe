// What the attention kernels share: their arguments, sequences, masks and the relative position bias.
//
// Notation of one head: S = cap(scale q k^T) + bias, P = softmax(S), out = P v, lse = logsumexp(S) per row;
// delta = rowsum(dout * out), dP = dout v^T, dS = P * (dP - delta), dq = scale (dS * cap') k,
// dk = scale (dS * cap')^T q, dv = P^T dout. Query head h uses key and value head h / (heads / kv_heads).
// cap(x) = softcap tanh(x / softcap), or x where softcap is 0; cap' = 1 - (cap / softcap)^2.
#pragma once
#include "tensor_core.cuh"

struct AttentionArguments {
  Matrix q, k, v, out, lse;         // [T_q x H d], [T_k x kv d] twice, [T_q x H d], f32 [T_q x H]
  Matrix dout, delta, dq, dk, dv;   // backward only; delta f32 [T_q x H]
  Matrix bias_table;                // [buckets x H] in the compute type, or absent
  const uint32_t *q_offsets, *k_offsets;            // [sequences + 1]
  const uint32_t *listed_offsets, *listed_keys;     // keys of every query row, or null
  const uint32_t *q_positions, *k_positions;        // with a bias: positions within the sequences
  const uint32_t* buckets;                          // [2 max_distance + 1]: bucket of a clamped distance
  int heads, kv_heads, head_dim;
  int window;                                       // row i sees i - window + 1 .. i of its sequence; 0: all keys
  int max_distance;
  float scale, softcap, inverse_softcap;            // softcap 0: none
};

// The rows of sequence blockIdx.z.
struct Sequence { int q0, q_rows, k0, k_rows; };
__device__ __forceinline__ Sequence my_sequence(const AttentionArguments& a) {
  int q0 = a.q_offsets[blockIdx.z], k0 = a.k_offsets[blockIdx.z];
  return Sequence{q0, (int)a.q_offsets[blockIdx.z + 1] - q0, k0, (int)a.k_offsets[blockIdx.z + 1] - k0};
}

// ---- the mask: who sees whom, by rows of the sequence. Ranges grow with their argument. ---------------------

__device__ __forceinline__ bool sees(const AttentionArguments& a, const Sequence& s, int i, int key) {
  return i < s.q_rows && key < s.k_rows && (a.window == 0 || (key <= i && i - key < a.window));
}
// The keys that row i sees: first_key .. end_key.
__device__ __forceinline__ int first_key(const AttentionArguments& a, int i) {
  return a.window == 0 || i < a.window ? 0 : i - a.window + 1;
}
__device__ __forceinline__ int end_key(const AttentionArguments& a, const Sequence& s, int i) {
  return a.window != 0 && i + 1 < s.k_rows ? i + 1 : s.k_rows;
}
// The rows that see a key: first_query .. end_query.
__device__ __forceinline__ int first_query(const AttentionArguments& a, int key) { return a.window == 0 ? 0 : key; }
__device__ __forceinline__ int end_query(const AttentionArguments& a, const Sequence& s, int key) {
  return a.window != 0 && a.window < s.q_rows - key ? key + a.window : s.q_rows;
}

// ---- scores: scale q k^T, capped, and the bias --------------------------------------------------------------

// Caps a product of q and k, if scores are capped; returns the factor that is still to be applied to it.
__device__ __forceinline__ float cap(const AttentionArguments& a, float& product) {
  if (a.softcap == 0.0f) return a.scale;
  product = a.softcap * tanhf(a.scale * product * a.inverse_softcap);
  return 1.0f;
}
// The derivative of the cap, from what `cap` left.
__device__ __forceinline__ float cap_slope(const AttentionArguments& a, float capped) {
  float t = capped * a.inverse_softcap;
  return a.softcap == 0.0f ? 1.0f : 1.0f - t * t;
}

// The bucket of key row j seen from query row i (rows of the batch).
__device__ __forceinline__ int bucket_of(const AttentionArguments& a, int i, int j) {
  int distance = (int)a.k_positions[j] - (int)a.q_positions[i];
  distance = distance > a.max_distance ? a.max_distance : distance < -a.max_distance ? -a.max_distance : distance;
  return (int)a.buckets[distance + a.max_distance];
}
template <class T> __device__ __forceinline__ float bias_of(const AttentionArguments& a, int head, int i, int j) {
  return a.bias_table.data ? to_float(a.bias_table.row<const T>(bucket_of(a, i, j))[head]) : 0.0f;
}

// What a block on tensor cores keeps of the bias behind its tiles: one head's, by distance, and the positions of a tile's
// columns; 4 (2 max_distance + 1 + ATTENTION_TILE) bytes, of which nothing is touched without a bias.
struct TileBias {
  float* by_distance;
  int *positions, most;
  __device__ __forceinline__ TileBias(const AttentionArguments& a, void* shared)
      : by_distance(static_cast<float*>(shared)), positions(static_cast<int*>(shared) + 2 * a.max_distance + 1),
        most(a.bias_table.data ? a.max_distance : -1) {}
  __device__ __forceinline__ void load_head(const AttentionArguments& a, int head) {
    for (int i = threadIdx.x; i <= 2 * most; i += ATTENTION_THREADS) {
      by_distance[i] = to_float(a.bias_table.row<const bf16>(a.buckets[i])[head]);
    }
  }
  // Of `rows` rows from `first` on.
  __device__ __forceinline__ void load_positions(const uint32_t* list, int first, int rows) {
    if (most >= 0 && (int)threadIdx.x < ATTENTION_TILE && (int)threadIdx.x < rows) positions[threadIdx.x] = list[first + threadIdx.x];
  }
  __device__ __forceinline__ int position(const uint32_t* list, int row) const { return most < 0 ? 0 : (int)list[row]; }
  __device__ __forceinline__ float at(int distance) const {
    return by_distance[(distance > most ? most : distance < -most ? -most : distance) + most];
  }
};

// ---- tensor-core tiles: DP is the head size rounded up to 64 or 128, beyond d everything is zero -----------

template <int ROWS, int DP>
__device__ __forceinline__ void load_head(uint8_t* tile, const Matrix& m, int64_t row0, int rows, int head, int d) {
  constexpr int PIECES = DP / 8;
#pragma unroll
  for (int i = threadIdx.x; i < ROWS * PIECES; i += ATTENTION_THREADS) {
    int row = i / PIECES, piece = i % PIECES;
    int valid = row < rows ? (d - piece * 8) * 2 : 0;
    valid = valid < 0 ? 0 : valid > 16 ? 16 : valid;
    const bf16* from = valid ? m.row<const bf16>(row0 + row) + head * d + piece * 8 : m.row<const bf16>(0);
    copy_async16(tile + swizzled<DP * 2>(row, piece), from, valid);
  }
}

// `cap` of a tile.
template <int N> __device__ __forceinline__ float cap_tile(const AttentionArguments& a, float (&s)[1][N][4]) {
  if (a.softcap == 0.0f) return a.scale;
#pragma unroll
  for (int j = 0; j < N; j++) {
#pragma unroll
    for (int r = 0; r < 4; r++) cap(a, s[0][j][r]);
  }
  return 1.0f;
}

// s = rows(first .. first + 16 of x) . rows(0 .. N of y), over DP elements.
template <int N, int DP>
__device__ __forceinline__ void multiply_heads(float (&s)[1][N / 8][4], const uint8_t* x, int first, const uint8_t* y) {
#pragma unroll
  for (int k = 0; k < DP; k += 16) {
    uint32_t fx[1][4], fy[N / 8][2];
    load_a<DP * 2>(fx[0], x, first, k);
#pragma unroll
    for (int j = 0; j < N / 8; j += 2) load_b<DP * 2>(fy[j], fy[j + 1], y, j * 8, k);
    mma(s, fx, fy);
  }
}

// o += p(16 x N) . y(N x DP), p taken from accumulator registers and rounded to bf16.
template <int N, int DP>
__device__ __forceinline__ void multiply_values(float (&o)[DP / 64][8][4], const float (&p)[1][N / 8][4], const uint8_t* y) {
#pragma unroll
  for (int k = 0; k < N; k += 16) {
    const float *low = p[0][k / 8], *high = p[0][k / 8 + 1];
    uint32_t fp[1][4] = {{pack_bf16(low[0], low[1]), pack_bf16(low[2], low[3]), pack_bf16(high[0], high[1]),
                          pack_bf16(high[2], high[3])}};
#pragma unroll
    for (int half = 0; half < DP / 64; half++) {
      uint32_t fy[8][2];
#pragma unroll
      for (int j = 0; j < 8; j += 2) load_b_transposed<DP * 2>(fy[j], fy[j + 1], y, half * 64 + j * 8, k);
      mma(reinterpret_cast<float(&)[1][8][4]>(o[half]), fp, fy);
    }
  }
}

// Writes the accumulator's rows (row0 + lane/4, + 8) that exist, times factor[0] and factor[1].
template <int DP>
__device__ __forceinline__ void store_head(const Matrix& m, const float (&o)[DP / 64][8][4], int64_t row0, int row, int rows,
                                           int head, int d, float factor0, float factor1) {
  int lane = threadIdx.x % 32;
#pragma unroll
  for (int r = 0; r < 4; r++) {
    int local = row + lane / 4 + r / 2 * 8;
    if (local >= rows) continue;
    bf16* to = m.row<bf16>(row0 + local) + head * d;
#pragma unroll
    for (int j = 0; j < DP / 8; j++) {
      int col = j * 8 + lane % 4 * 2 + r % 2;
      if (col < d) to[col] = from_float<bf16>(o[j / 8][j % 8][r] * (r < 2 ? factor0 : factor1));
    }
  }
}
