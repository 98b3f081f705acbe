// The two inner loops of every matrix product: tensor cores for bf16, and fused multiply-add on CUDA
// cores for everything else (f32, mixed types, rows that are not aligned to 16 bytes).
#pragma once
#include "tensor_core.cuh"

// ---- tensor cores: 128 x BN tiles of c, 256 threads, three stages of 32 of the summed dimension -----------

// One operand: element (major, k) is data[major * ld + k], or, transposed, data[k * ld + major].
// `majors` outputs and `ks` summed elements exist; what lies beyond counts as zero.
struct Operand { const bf16* data; int64_t ld; int majors, ks; };

template <int MAJORS, bool transposed>
__device__ __forceinline__ void load_operand(uint8_t* tile, const Operand& o, int major0, int k0) {
  // Pieces of 16 bytes lie along k, or along the outputs when transposed.
  constexpr int PIECES = transposed ? MAJORS / 8 : TILE_K / 8;
  constexpr int ROWS = transposed ? TILE_K : MAJORS;
  int row0 = transposed ? k0 : major0, rows = transposed ? o.ks : o.majors;
  int col0 = transposed ? major0 : k0, cols = transposed ? o.majors : o.ks;
  static_assert(ROWS * PIECES % TILE_THREADS == 0, "every thread copies as much: a bound without threadIdx is unrolled");
#pragma unroll
  for (int i = 0; i < ROWS * PIECES / TILE_THREADS; i++) {
    int at = threadIdx.x + i * TILE_THREADS, row = at / PIECES, piece = at % PIECES;
    int valid = row0 + row < rows ? (cols - col0 - piece * 8) * 2 : 0;
    valid = valid < 0 ? 0 : valid > 16 ? 16 : valid;
    const bf16* from = valid ? o.data + (row0 + row) * o.ld + col0 + piece * 8 : o.data;
    copy_async16(tile + swizzled<PIECES * 16>(row, piece), from, valid);
  }
}

// acc += a(rows m0..) b(rows n0..)^T over all k. 8 warps as 2 x 4; a warp owns 64 x BN/4 of the tile.
template <int BN, bool A_TRANSPOSED, bool B_TRANSPOSED>
__device__ __forceinline__ void multiply_tile(float (&acc)[4][BN / 32][4], const Operand& a, const Operand& b, int m0,
                                              int n0, uint8_t* shared) {
  constexpr int A_BYTES = TILE_M * TILE_K * 2, STAGE_BYTES = A_BYTES + BN * TILE_K * 2;
  int warp = threadIdx.x / 32, warp_m = warp / 4 * 64, warp_n = warp % 4 * (BN / 4);
  int steps = (a.ks + TILE_K - 1) / TILE_K;
  __syncthreads();  // nobody reads a former product's tiles any more
#pragma unroll
  for (int s = 0; s < TILE_STAGES - 1; s++) {
    if (s < steps) {
      load_operand<TILE_M, A_TRANSPOSED>(shared + s * STAGE_BYTES, a, m0, s * TILE_K);
      load_operand<BN, B_TRANSPOSED>(shared + s * STAGE_BYTES + A_BYTES, b, n0, s * TILE_K);
    }
    copy_async_commit();
  }
  for (int step = 0; step < steps; step++) {
    copy_async_wait<TILE_STAGES - 2>();
    __syncthreads();  // this stage is complete, and the stage before it is free
    int ahead = step + TILE_STAGES - 1;
    if (ahead < steps) {
      uint8_t* stage = shared + ahead % TILE_STAGES * STAGE_BYTES;
      load_operand<TILE_M, A_TRANSPOSED>(stage, a, m0, ahead * TILE_K);
      load_operand<BN, B_TRANSPOSED>(stage + A_BYTES, b, n0, ahead * TILE_K);
    }
    copy_async_commit();
    const uint8_t* tile_a = shared + step % TILE_STAGES * STAGE_BYTES;
    const uint8_t* tile_b = tile_a + A_BYTES;
#pragma unroll
    for (int k = 0; k < TILE_K; k += 16) {
      uint32_t fa[4][4], fb[BN / 32][2];
#pragma unroll
      for (int i = 0; i < 4; i++) {
        if (A_TRANSPOSED) load_a_transposed<TILE_M * 2>(fa[i], tile_a, warp_m + i * 16, k);
        else load_a<TILE_K * 2>(fa[i], tile_a, warp_m + i * 16, k);
      }
#pragma unroll
      for (int j = 0; j < BN / 32; j += 2) {
        if (B_TRANSPOSED) load_b_transposed<BN * 2>(fb[j], fb[j + 1], tile_b, warp_n + j * 8, k);
        else load_b<TILE_K * 2>(fb[j], fb[j + 1], tile_b, warp_n + j * 8, k);
      }
      mma(acc, fa, fb);
    }
  }
  copy_async_wait<0>();
}

// Calls use(row, col, value) for every element of the tile that this thread holds.
template <int BN, class Use>
__device__ __forceinline__ void each_of_tile(const float (&acc)[4][BN / 32][4], int m0, int n0, Use use) {
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int row0 = m0 + warp / 4 * 64 + lane / 4, col0 = n0 + warp % 4 * (BN / 4) + lane % 4 * 2;
#pragma unroll
  for (int i = 0; i < 4; i++) {
#pragma unroll
    for (int j = 0; j < BN / 32; j++) {
#pragma unroll
      for (int r = 0; r < 4; r++) use(row0 + i * 16 + r / 2 * 8, col0 + j * 8 + r % 2, acc[i][j][r]);
    }
  }
}

// ---- CUDA cores: 64 x 64 tiles of c, 256 threads with 4 x 4 each, any types, strides and alignment ---------

// Element (major, k) is data[major * major_stride + k * k_stride].
template <class T> struct StridedOperand { const T* data; int64_t major_stride, k_stride; int majors, ks; };

template <class T>
__device__ __forceinline__ void load_plain(float* tile, const StridedOperand<T>& o, int major0, int k0) {
#pragma unroll
  for (int i = 0; i < PLAIN_TILE * PLAIN_K / PLAIN_THREADS; i++) {
    // Neighbouring threads read neighbouring elements.
    int at = threadIdx.x + i * PLAIN_THREADS;
    int major = o.k_stride == 1 ? at / PLAIN_K : at % PLAIN_TILE, k = o.k_stride == 1 ? at % PLAIN_K : at / PLAIN_TILE;
    bool exists = major0 + major < o.majors && k0 + k < o.ks;
    tile[k * PLAIN_LD + major] =
        exists ? to_float(o.data[(major0 + major) * o.major_stride + (k0 + k) * o.k_stride]) : 0.0f;
  }
}

template <class A, class B>
__device__ __forceinline__ void multiply_plain(float (&acc)[4][4], const StridedOperand<A>& a, const StridedOperand<B>& b,
                                               int m0, int n0, uint8_t* shared) {
  float* tile_a = reinterpret_cast<float*>(shared);
  float* tile_b = tile_a + PLAIN_K * PLAIN_LD;
  int row = threadIdx.x / 16 * 4, col = threadIdx.x % 16 * 4;
  for (int k0 = 0; k0 < a.ks; k0 += PLAIN_K) {
    __syncthreads();
    load_plain(tile_a, a, m0, k0);
    load_plain(tile_b, b, n0, k0);
    __syncthreads();
#pragma unroll
    for (int k = 0; k < PLAIN_K; k++) {
      float4 x = *reinterpret_cast<const float4*>(tile_a + k * PLAIN_LD + row);
      float4 y = *reinterpret_cast<const float4*>(tile_b + k * PLAIN_LD + col);
      float fx[4] = {x.x, x.y, x.z, x.w}, fy[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
      for (int i = 0; i < 4; i++) {
#pragma unroll
        for (int j = 0; j < 4; j++) acc[i][j] += fx[i] * fy[j];
      }
    }
  }
}

template <class Use>
__device__ __forceinline__ void each_of_plain(const float (&acc)[4][4], int m0, int n0, Use use) {
  int row = m0 + threadIdx.x / 16 * 4, col = n0 + threadIdx.x % 16 * 4;
#pragma unroll
  for (int i = 0; i < 4; i++) {
#pragma unroll
    for (int j = 0; j < 4; j++) use(row + i, col + j, acc[i][j]);
  }
}
