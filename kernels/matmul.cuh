// The matrix product's arguments and epilogue, which all its kernels share (formula in matmul.cu).
#pragma once
#include "common.cuh"

struct MatmulArguments {
  Matrix a0, b0, a1, b1, c, bias;
  int m, n, k0, k1;
  int transpose_a, transpose_b;
  float alpha, beta;
  int stochastic, unused;
  uint64_t seed;
};

// Tile (row, column) number `index`: bands of TILE_BAND tile rows, column by column within a band, so that blocks that
// run together share operands in L2.
__device__ __forceinline__ void tile_of(int index, int tiles_m, int tiles_n, int& tile_m, int& tile_n) {
  int band = index / (TILE_BAND * tiles_n), first = band * TILE_BAND, left = tiles_m - first;
  int height = left < TILE_BAND ? left : TILE_BAND, within = index - first * tiles_n;
  tile_m = first + within % height;
  tile_n = within / height;
}

// 64 random bits of (seed, row, column / 4), 16 for each of four columns: splitmix64.
__device__ __forceinline__ uint64_t random64(uint64_t seed, int row, int quad) {
  uint64_t z = seed + 0x9E3779B97F4A7C15ull * (((uint64_t)(uint32_t)row << 32 | (uint32_t)quad) + 1);
  z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ z >> 27) * 0x94D049BB133111EBull;
  return z ^ z >> 31;
}

// The bf16 value below or above, as the 16 random bits decide: the probability is the distance to the other.
__device__ __forceinline__ float round_at_random(float value, uint32_t random16) {
  uint32_t bits = __float_as_uint(value);
  bool finite = (bits & 0x7f800000u) != 0x7f800000u;
  return finite ? __uint_as_float((bits + random16) & 0xffff0000u) : value;
}

// Among the four lanes of a quad: lane i ends up with what was v[i] of each, v[j] being lane j's.
template <class T> __device__ __forceinline__ void transpose_quad(T (&v)[4]) {
  bool odd = threadIdx.x & 1, high = threadIdx.x & 2;
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    T other = __shfl_xor_sync(~0u, odd ? v[i] : v[i + 1], 1);
    if (odd) v[i] = other;
    else v[i + 1] = other;
  }
#pragma unroll
  for (int i = 0; i < 2; i++) {
    T other = __shfl_xor_sync(~0u, high ? v[i] : v[i + 2], 2);
    if (high) v[i] = other;
    else v[i + 2] = other;
  }
}

// What the sums of n <= CHUNK neighbouring columns are added to: C's row as it was, the bias.
template <class C> __device__ __forceinline__ void load_before(const MatmulArguments& a, int row, int col, int n, float (&before)[CHUNK]) {
  if (a.beta != 0.0f && row < a.m && n > 0) load_chunk(a.c.row<const C>(row) + col, n, before);
}
template <class C> __device__ __forceinline__ void load_bias(const MatmulArguments& a, int col, int n, float (&bias)[CHUNK]) {
  if (a.bias.data && n > 0) load_chunk(a.bias.row<const C>(0) + col, n, bias);
}

// Writes those sums; `col` is a multiple of 4.
template <class C>
__device__ __forceinline__ void finish_chunk(const MatmulArguments& a, int row, int col, int n, const float (&before)[CHUNK],
                                             const float (&bias)[CHUNK], float (&v)[CHUNK]) {
  if (row >= a.m || n <= 0) return;
#pragma unroll
  for (int i = 0; i < CHUNK; i++) {
    v[i] *= a.alpha;
    if (a.beta != 0.0f) v[i] += a.beta * before[i];
    if (a.bias.data) v[i] += bias[i];
  }
  if (a.stochastic) {
#pragma unroll
    for (int i = 0; i < CHUNK; i += 4) {
      uint64_t random = random64(a.seed, row, (col + i) / 4);
#pragma unroll
      for (int j = 0; j < 4; j++) v[i + j] = round_at_random(v[i + j], (uint32_t)(random >> 16 * j) & 0xffffu);
    }
  }
  store_chunk(a.c.row<C>(row) + col, n, v);
}

// Writes 32 columns of two rows, `row` and `row` + 8, of an accumulator in mma's layout: lane l of a quad holds
// columns 2 l and 2 l + 1 of four tiles of 8, c[tile * 4 + half * 2 ..]. The quad exchanges them, so that a lane
// writes 8 neighbours. What C was, both rows of it, is asked for before anything is written.
template <class C>
__device__ __forceinline__ void finish_quad(const MatmulArguments& a, int row, int col, const float* c) {
  int to_col = col + (int)threadIdx.x % 4 * 8, n = a.n - to_col < CHUNK ? a.n - to_col : CHUNK;
  float before[2][CHUNK] = {}, bias[CHUNK] = {};
#pragma unroll
  for (int half = 0; half < 2; half++) load_before<C>(a, row + half * 8, to_col, n, before[half]);
  load_bias<C>(a, to_col, n, bias);
#pragma unroll
  for (int half = 0; half < 2; half++) {
    float even[4], odd[4], v[CHUNK];
#pragma unroll
    for (int i = 0; i < 4; i++) even[i] = c[i * 4 + half * 2], odd[i] = c[i * 4 + half * 2 + 1];
    transpose_quad(even);
    transpose_quad(odd);
#pragma unroll
    for (int i = 0; i < 4; i++) v[2 * i] = even[i], v[2 * i + 1] = odd[i];
    finish_chunk<C>(a, row + half * 8, to_col, n, before[half], bias, v);
  }
}

// Whether C is nothing but the sums, in rows that are aligned to 16 bytes.
template <class C> __device__ __forceinline__ bool is_sum_alone(const MatmulArguments& a) {
  return a.alpha == 1.0f && a.beta == 0.0f && !a.bias.data && !a.stochastic && aligned16(a.c.data) && a.c.ld % (16 / sizeof(C)) == 0;
}

// finish_quad where that is so, of columns that all exist: pairs are packed before the quad exchanges them; f32 needs no
// exchange, a quad's 32 bytes are a sector.
template <class C>
__device__ __forceinline__ void finish_sum(const MatmulArguments& a, int row, int col, const float* c) {
#pragma unroll
  for (int half = 0; half < 2; half++) {
    int to_row = row + half * 8;
    C* to = a.c.row<C>(to_row) + col;
    if (sizeof(C) == 4) {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        float2 pair = {c[i * 4 + half * 2], c[i * 4 + half * 2 + 1]};
        if (to_row < a.m) *reinterpret_cast<float2*>(to + i * 8 + threadIdx.x % 4 * 2) = pair;
      }
    } else {
      uint32_t v[4];
#pragma unroll
      for (int i = 0; i < 4; i++) v[i] = pack_bf16(c[i * 4 + half * 2], c[i * 4 + half * 2 + 1]);
      transpose_quad(v);
      if (to_row < a.m) *reinterpret_cast<uint4*>(to + threadIdx.x % 4 * 8) = uint4{v[0], v[1], v[2], v[3]};
    }
  }
}
