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

// The rows of a sequence.
struct Sequence { int q0, q_rows, k0, k_rows; };
__device__ __forceinline__ Sequence sequence_at(const AttentionArguments& a, int n) {
  int q0 = a.q_offsets[n], k0 = a.k_offsets[n];
  return Sequence{q0, (int)a.q_offsets[n + 1] - q0, k0, (int)a.k_offsets[n + 1] - k0};
}
__device__ __forceinline__ Sequence my_sequence(const AttentionArguments& a) { return sequence_at(a, blockIdx.z); }

// ---- the mask: who sees whom, by rows of the sequence. Ranges grow with their argument. ---------------------

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

// Whether some of the rows i .. i_end may see some of the keys .. key_end, and whether all exist and see all.
__device__ __forceinline__ bool some_see(const AttentionArguments& a, int i, int i_end, int key, int key_end) {
  return a.window == 0 || (key < i_end && i - key_end < a.window - 1);
}
__device__ __forceinline__ bool all_see(const AttentionArguments& a, const Sequence& s, int i, int i_end, int key, int key_end) {
  bool exist = i_end <= s.q_rows && key_end <= s.k_rows;
  return exist && (a.window == 0 || (key_end <= i + 1 && i_end - key <= a.window));
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

// ---- tensor-core tiles: DP is the head size rounded up to 64 or 128, beyond d everything is zero -----------
//
// A warp's tile of scores is p[M][N / 8][4]: 16 M rows and N columns, in the layout of mma's accumulators. Rows are queries and
// columns keys, or, where BY_KEY, the other way around. Scores are to the base 2, so that a weight is one ex2.

constexpr float LOG2E = 1.44269504f, LN2 = 0.69314718f;

// One value a row or a column of a tile, held by the lanes of a warp.
template <class T, int N> struct Spread {
  T mine[(N + 31) / 32];
  // Those of the first `count`; the others are zero.
  template <class Of> __device__ __forceinline__ Spread(int count, const Of& of) {
#pragma unroll
    for (int i = 0; i < (N + 31) / 32; i++) {
      int n = i * 32 + (int)threadIdx.x % 32;
      mine[i] = n < N && n < count ? of(n) : T(0);
    }
  }
  // To all lanes at once: the value of a lane's column r of the j-th 8 columns, and of its row of the i-th 8 rows.
  __device__ __forceinline__ T column(int j, int r) const {
    return __shfl_sync(~0u, mine[j / 4], j % 4 * 8 + (int)threadIdx.x % 4 * 2 + r);
  }
  __device__ __forceinline__ T row(int i) const { return __shfl_sync(~0u, mine[i / 4], i % 4 * 8 + (int)threadIdx.x % 32 / 4); }
};

// What a block keeps of the bias behind its tiles: by distance, of some heads; 4 heads (2 max_distance + 1) bytes, of which
// nothing is touched without a bias. To be read after a barrier.
struct TileBias {
  float* by_distance;
  int most;  // -1: no bias
  __device__ __forceinline__ TileBias(const AttentionArguments& a, void* shared, int head, int heads)
      : by_distance(static_cast<float*>(shared)), most(a.bias_table.data ? a.max_distance : -1) {
    int distances = 2 * most + 1;
    for (int i = threadIdx.x; i < heads * distances; i += blockDim.x) {
      by_distance[i] = LOG2E * to_float(a.bias_table.row<const bf16>(a.buckets[i % distances])[head + i / distances]);
    }
  }
  template <int N> __device__ __forceinline__ Spread<int, N> positions(const uint32_t* list, int first, int count) const {
    return Spread<int, N>(most < 0 ? 0 : count, [&](int n) { return (int)list[first + n]; });
  }
  // p = factor p + bias, of the n-th of the heads.
  template <bool BY_KEY, int M, int N>
  __device__ __forceinline__ void add(float (&p)[M][N][4], int n, const Spread<int, 16 * M>& rows, const Spread<int, 8 * N>& columns,
                                      float factor) const {
    const float* middle = by_distance + n * (2 * most + 1) + most;
    int row[2 * M];
#pragma unroll
    for (int i = 0; i < 2 * M; i++) row[i] = rows.row(i);
#pragma unroll
    for (int j = 0; j < N; j++) {
#pragma unroll
      for (int r = 0; r < 2; r++) {
        int column = columns.column(j, r);
#pragma unroll
        for (int i = 0; i < 2 * M; i++) {
          int distance = BY_KEY ? row[i] - column : column - row[i];
          distance = min(max(distance, -most), most);
          float& score = p[i / 2][j][i % 2 * 2 + r];
          score = factor * score + middle[distance];
        }
      }
    }
  }
};

// Rows of a head into a tile, by `threads` threads of which this is one.
template <int DP>
__device__ __forceinline__ void load_head(uint8_t* tile, int tile_rows, const Matrix& m, int64_t row0, int rows, int head, int d,
                                          int thread, int threads) {
  constexpr int PIECES = DP / 8;
  int piece = thread % PIECES, step = threads / PIECES;
  if (piece * 8 >= d) rows = 0;
  const bf16* from = m.row<const bf16>(row0 + thread / PIECES) + head * d + piece * 8;
#pragma unroll 1  // few rows a thread, and the registers hold sums
  for (int row = thread / PIECES; row < tile_rows; row += step, from += step * m.ld) {
    bool exists = row < rows;
    copy_async16(tile + swizzled<DP * 2>(row, piece), exists ? from : m.row<const bf16>(0), exists ? 16 : 0);
  }
}

// `cap` of a tile, and the derivative's factor to ds, if it is wanted; returns the factor to the base 2.
template <int M, int N> __device__ __forceinline__ float cap_tile(const AttentionArguments& a, float (&p)[M][N][4], float (*ds)[N][4]) {
  if (a.softcap == 0.0f) return LOG2E * a.scale;
#pragma unroll
  for (int i = 0; i < M * N * 4; i++) {
    float& capped = p[i / (4 * N)][i / 4 % N][i % 4];
    cap(a, capped);
    if (ds) ds[i / (4 * N)][i / 4 % N][i % 4] *= cap_slope(a, capped);
  }
  return LOG2E;
}

// p = factor p, and -inf where a row does not see a column.
template <bool BY_KEY, int M, int N>
__device__ __forceinline__ void mask_tile(const AttentionArguments& a, const Sequence& s, float (&p)[M][N][4], int row0, int col0,
                                          float factor) {
  int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < 2 * M; i++) {
    int row = row0 + i * 8 + lane / 4;
    int first = BY_KEY ? first_query(a, row) : first_key(a, row), end = BY_KEY ? end_query(a, s, row) : end_key(a, s, row);
    if (end < first || row >= (BY_KEY ? s.k_rows : s.q_rows)) end = first;
    unsigned offset = col0 + lane % 4 * 2 - first, count = end - first;  // one comparison for both ends
#pragma unroll
    for (int j = 0; j < N; j++) {
#pragma unroll
      for (int r = 0; r < 2; r++) {
        float& score = p[i / 2][j][i % 2 * 2 + r];
        score = offset + (j * 8 + r) < count ? factor * score : -INFINITY;
      }
    }
  }
}

// From capped products to scores: the bias, if there is one, and the mask, unless all rows see all columns. Returns the factor,
// not negative, that is still to be applied: a plain tile is left as it is.
template <bool BY_KEY, int M, int N>
__device__ __forceinline__ float finish_scores(const AttentionArguments& a, const Sequence& s, const TileBias& bias, int head,
                                               const Spread<int, 16 * M>& rows, const Spread<int, 8 * N>& columns, float (&p)[M][N][4],
                                               int row0, int col0, float factor) {
  bool whole = BY_KEY ? all_see(a, s, col0, col0 + 8 * N, row0, row0 + 16 * M) : all_see(a, s, row0, row0 + 16 * M, col0, col0 + 8 * N);
  if (bias.most >= 0) {
    bias.add<BY_KEY>(p, head, rows, columns, factor);
    factor = 1.0f;
  }
  if (whole && factor >= 0.0f) return factor;
  mask_tile<BY_KEY>(a, s, p, row0, col0, factor);
  return 1.0f;
}

// A row's lse to the base 2. A row that sees nothing has no weights, whatever is taken for its -inf.
__device__ __forceinline__ float base2(float lse) { return lse == -INFINITY ? 0.0f : LOG2E * lse; }

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1200  // the registers are a few too few here
constexpr int STEPS_AT_ONCE = 4;
#else
constexpr int STEPS_AT_ONCE = 8;
#endif

// s += rows(first .. first + 16 M of x) . rows(0 .. N of y), over DP elements.
template <int M, int N, int DP>
__device__ __forceinline__ void multiply_heads(float (&s)[M][N / 8][4], const uint8_t* x, int first, const uint8_t* y) {
#pragma unroll STEPS_AT_ONCE
  for (int k = 0; k < DP; k += 16) {
    uint32_t fx[M][4], fy[N / 8][2];
#pragma unroll
    for (int i = 0; i < M; i++) load_a<DP * 2>(fx[i], x, first + i * 16, k);
#pragma unroll
    for (int j = 0; j < N / 8; j += 2) load_b<DP * 2>(fy[j], fy[j + 1], y, j * 8, k);
    mma(s, fx, fy);
  }
}

// o += p(16 M x N) . y(N x DP), p taken from accumulator registers and rounded to bf16.
template <int M, int N, int DP>
__device__ __forceinline__ void multiply_values(float (&o)[DP / 32][M][4][4], const float (&p)[M][N / 8][4], const uint8_t* y) {
#pragma unroll
  for (int k = 0; k < N; k += 16) {
    uint32_t fp[M][4];
#pragma unroll
    for (int i = 0; i < M; i++) {
      const float *low = p[i][k / 8], *high = p[i][k / 8 + 1];
      fp[i][0] = pack_bf16(low[0], low[1]), fp[i][1] = pack_bf16(low[2], low[3]);
      fp[i][2] = pack_bf16(high[0], high[1]), fp[i][3] = pack_bf16(high[2], high[3]);
    }
#pragma unroll
    for (int part = 0; part < DP / 32; part++) {
      uint32_t fy[4][2];
#pragma unroll
      for (int j = 0; j < 4; j += 2) load_b_transposed<DP * 2>(fy[j], fy[j + 1], y, part * 32 + j * 8, k);
      mma(o[part], fp, fy);
    }
  }
}

// Writes a warp's rows from row0 on, of which `rows` exist, times their factors: rounded into rows first .. of a tile that no
// other warp touches any more, and from there 16 bytes a lane.
template <int M, int DP>
__device__ __forceinline__ void store_head(const Matrix& m, const float (&o)[DP / 32][M][4][4], const float (&factor)[M][2],
                                           uint8_t* tile, int first, int64_t row0, int rows, int head, int d) {
  constexpr int PIECES = DP / 8;
  int lane = threadIdx.x % 32;
  __syncwarp();
#pragma unroll
  for (int i = 0; i < 2 * M; i++) {
#pragma unroll
    for (int j = 0; j < PIECES; j++) {
      const float* pair = o[j / 4][i / 2][j % 4] + i % 2 * 2;
      float by = factor[i / 2][i % 2];
      uint8_t* to = tile + swizzled<DP * 2>(first + i * 8 + lane / 4, j) + lane % 4 * 4;
      *reinterpret_cast<uint32_t*>(to) = pack_bf16(pair[0] * by, pair[1] * by);
    }
  }
  __syncwarp();
#pragma unroll 4
  for (int i = lane; i < M * 16 * PIECES; i += 32) {
    int row = i / PIECES, piece = i % PIECES;
    if (row >= rows || piece * 8 >= d) continue;
    uint4 v = *reinterpret_cast<const uint4*>(tile + swizzled<DP * 2>(first + row, piece));
    store_pairs(m.row<bf16>(row0 + row) + head * d + piece * 8, v);
  }
}
