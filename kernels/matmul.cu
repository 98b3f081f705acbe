// Matrix product with an optional second product, bias and rounding: every linear layer, W's fold and
// all small products of the method.
//
//   C = alpha (op(A0) op(B0) + op(A1) op(B1)) + beta C + bias
//
// op(A0) [M x K0], op(B0) [K0 x N], op(A1) [M x K1], op(B1) [K1 x N] (K1 = 0: no second product),
// C [M x N], bias [1 x N] in C's type or absent. C is not read when beta is 0. The second product is the
// low-rank branch of an adapted linear: y = x W^T + h B^T costs (K0 + K1) / K0 of the plain product and
// no pass over y of its own. Sums are f32, in an order that depends on the shapes only.
//
// matmul_tc_*: bf16 operands on tensor cores. A, B: base and rows aligned to 16 bytes (ld % 8 = 0), any
//   M, N, K. 256 threads, 48 KiB shared memory, one block per 128 x 128 tile of C, blockIdx.x over tiles
//   in bands of 8 tile rows so that neighbours share operands in L2.
// linear_tc_*: the same with the branch in the same launch: S = A0 op(P) (bf16, R columns) and then C with A1 = S, which is
//   y = x W^T + h B^T with h = x A^T forward, dx = dy W + z A with z = dy B backward. Blocks take tiles in the order in
//   which they begin, of every band S's (128 x 64) first; a tile of C waits for its rows of S after all of A0 B0. `tickets` u32
//   [1 + 2 ceil(M / 128)] are zero before and after. Flops: 2 M (N (K0 + R) + R K0). A0 is read by both, S twice.
// matmul_plain_*: any types and alignment on CUDA cores, 256 threads, 8.5 KiB, one block per 64 x 64 tile.
//   With `stochastic`, a bf16 C is rounded up with the probability of the distance to the value below:
//   unbiased, a pure function of (seed, row, column).
//
// Bytes moved: at least those of A, B and C once (C twice when beta != 0). Flops: 2 M N (K0 + K1).
#include "matmul.cuh"
#include "matmul_tile.cuh"

__device__ __forceinline__ Operand operand(const Matrix& m, int majors, int ks) {
  return Operand{static_cast<const bf16*>(m.data), m.ld, majors, ks};
}

template <class C, bool TA, bool TB> __device__ __forceinline__ void matmul_tc(const MatmulArguments& a) {
  GEMS_SHARED(shared);
  int tile_m, tile_n;
  tile_of(blockIdx.x, (a.m + TILE_M - 1) / TILE_M, (a.n + TILE_N - 1) / TILE_N, tile_m, tile_n);
  int m0 = tile_m * TILE_M, n0 = tile_n * TILE_N;
  float acc[4][4][4] = {};
  // A operand's own layout is [m][k]; B's is [n][k], which is the transposed op.
  multiply_tile<TILE_N, TA, !TB>(acc, operand(a.a0, a.m, a.k0), operand(a.b0, a.n, a.k0), m0, n0, shared);
  if (a.k1) multiply_tile<TILE_N, TA, !TB>(acc, operand(a.a1, a.m, a.k1), operand(a.b1, a.n, a.k1), m0, n0, shared);
  int warp = threadIdx.x / 32, row0 = m0 + warp / 4 * 64 + (int)threadIdx.x % 32 / 4, col0 = n0 + warp % 4 * 32;
#pragma unroll
  for (int i = 0; i < 4; i++) finish_quad<C>(a, row0 + i * 16, col0, acc[i][0]);
}

struct LinearArguments {
  MatmulArguments product, branch;  // branch: c is S
  uint32_t* tickets;
  uint64_t unused;
};

// Writes this thread's part of a 128 x 64 tile of S: two neighbouring columns at a time.
__device__ __forceinline__ void store_branch(const MatmulArguments& a, const float (&acc)[4][2][4], int m0, int n0) {
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int row0 = m0 + warp / 4 * 64 + lane / 4, col0 = n0 + warp % 4 * 16 + lane % 4 * 2;
#pragma unroll
  for (int i = 0; i < 16; i++) {
    int tile = i / 4, half = i / 2 % 2, j = i % 2, row = row0 + tile * 16 + half * 8, col = col0 + j * 8;
    if (row >= a.m || col >= a.n) continue;
    bf16* to = a.c.row<bf16>(row) + col;
    float low = acc[tile][j][half * 2], high = acc[tile][j][half * 2 + 1];
    if (col + 1 < a.n) *reinterpret_cast<uint32_t*>(to) = pack_bf16(low, high);
    else *to = from_float<bf16>(low);
  }
}

template <bool TB> __device__ __forceinline__ void linear_tc(const LinearArguments& a) {
  GEMS_SHARED(shared);
  const MatmulArguments &p = a.product, &s = a.branch;
  int tiles_m = (p.m + TILE_M - 1) / TILE_M, tiles_n = (p.n + TILE_N - 1) / TILE_N, tiles_s = (s.n + BRANCH_TILE_N - 1) / BRANCH_TILE_N;
  uint32_t *written = a.tickets + 1, *read = written + tiles_m;
  int place = place_in_order(a.tickets, reinterpret_cast<uint32_t*>(shared)), tile_m, tile_n;
  tile_of(place, tiles_m, tiles_s + tiles_n, tile_m, tile_n);  // in every band S's columns first
  if (tile_n < tiles_s) {
    float acc[4][2][4] = {};
    int m0 = tile_m * TILE_M, n0 = tile_n * BRANCH_TILE_N;
    multiply_tile<BRANCH_TILE_N, false, !TB>(acc, operand(s.a0, s.m, s.k0), operand(s.b0, s.n, s.k0), m0, n0, shared);
    store_branch(s, acc, m0, n0);
    tell_written(written + tile_m);
    return;
  }
  int m0 = tile_m * TILE_M, n0 = (tile_n - tiles_s) * TILE_N;
  float acc[4][4][4] = {};
  multiply_tile<TILE_N, false, !TB>(acc, operand(p.a0, p.m, p.k0), operand(p.b0, p.n, p.k0), m0, n0, shared);
  wait_until_written(written + tile_m, tiles_s, read + tile_m, tiles_n);
  multiply_tile<TILE_N, false, !TB>(acc, operand(p.a1, p.m, p.k1), operand(p.b1, p.n, p.k1), m0, n0, shared);
  int warp = threadIdx.x / 32, row0 = m0 + warp / 4 * 64 + (int)threadIdx.x % 32 / 4, col0 = n0 + warp % 4 * 32;
#pragma unroll
  for (int i = 0; i < 4; i++) finish_quad<bf16>(p, row0 + i * 16, col0, acc[i][0]);
}

// Two blocks share a multiprocessor; on sm_90a, where these serve rare orientations only, and on sm_120 that would spill.
#if defined(__CUDA_ARCH__) && (__CUDA_ARCH__ == 900 || __CUDA_ARCH__ >= 1200)
constexpr int TILE_BLOCKS = 1;
#else
constexpr int TILE_BLOCKS = 2;
#endif

GEMS_KERNEL_BLOCKS(matmul_tc_nn_f32, TILE_THREADS, TILE_BLOCKS, MatmulArguments, matmul_tc<float, false, false>)
GEMS_KERNEL_BLOCKS(matmul_tc_nt_f32, TILE_THREADS, TILE_BLOCKS, MatmulArguments, matmul_tc<float, false, true>)
GEMS_KERNEL_BLOCKS(matmul_tc_tn_f32, TILE_THREADS, TILE_BLOCKS, MatmulArguments, matmul_tc<float, true, false>)
GEMS_KERNEL_BLOCKS(matmul_tc_tt_f32, TILE_THREADS, TILE_BLOCKS, MatmulArguments, matmul_tc<float, true, true>)
GEMS_KERNEL_BLOCKS(matmul_tc_nn_bf16, TILE_THREADS, TILE_BLOCKS, MatmulArguments, matmul_tc<bf16, false, false>)
GEMS_KERNEL_BLOCKS(matmul_tc_nt_bf16, TILE_THREADS, TILE_BLOCKS, MatmulArguments, matmul_tc<bf16, false, true>)
GEMS_KERNEL_BLOCKS(matmul_tc_tn_bf16, TILE_THREADS, TILE_BLOCKS, MatmulArguments, matmul_tc<bf16, true, false>)
GEMS_KERNEL_BLOCKS(matmul_tc_tt_bf16, TILE_THREADS, TILE_BLOCKS, MatmulArguments, matmul_tc<bf16, true, true>)

GEMS_KERNEL_BLOCKS(linear_tc_nn_bf16, TILE_THREADS, TILE_BLOCKS, LinearArguments, linear_tc<false>)
GEMS_KERNEL_BLOCKS(linear_tc_nt_bf16, TILE_THREADS, TILE_BLOCKS, LinearArguments, linear_tc<true>)

// ---- CUDA cores ------------------------------------------------------------------------------------

template <class T>
__device__ __forceinline__ StridedOperand<T> strided(const Matrix& m, bool k_is_column, int majors, int ks) {
  return StridedOperand<T>{static_cast<const T*>(m.data), k_is_column ? m.ld : 1, k_is_column ? 1 : m.ld, majors, ks};
}

template <class A, class B, class C> __device__ __forceinline__ void matmul_plain(const MatmulArguments& a) {
  GEMS_SHARED(shared);
  int tiles_n = (a.n + PLAIN_TILE - 1) / PLAIN_TILE;
  int m0 = (int)(blockIdx.x / tiles_n) * PLAIN_TILE, n0 = (int)(blockIdx.x % tiles_n) * PLAIN_TILE;
  float acc[4][4] = {};
  multiply_plain(acc, strided<A>(a.a0, !a.transpose_a, a.m, a.k0), strided<B>(a.b0, a.transpose_b, a.n, a.k0), m0, n0, shared);
  if (a.k1) {
    multiply_plain(acc, strided<A>(a.a1, !a.transpose_a, a.m, a.k1), strided<B>(a.b1, a.transpose_b, a.n, a.k1), m0, n0, shared);
  }
  int row = m0 + (int)threadIdx.x / 16 * 4, col = n0 + (int)threadIdx.x % 16 * 4;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    float v[CHUNK] = {acc[i][0], acc[i][1], acc[i][2], acc[i][3]}, before[CHUNK] = {}, bias[CHUNK] = {};
    int n = a.n - col < 4 ? a.n - col : 4;
    load_before<C>(a, row + i, col, n, before);
    load_bias<C>(a, col, n, bias);
    finish_chunk<C>(a, row + i, col, n, before, bias, v);
  }
}

GEMS_KERNEL_BLOCKS(matmul_plain_f32_f32_f32, PLAIN_THREADS, 2, MatmulArguments, matmul_plain<float, float, float>)
GEMS_KERNEL_BLOCKS(matmul_plain_f32_f32_bf16, PLAIN_THREADS, 2, MatmulArguments, matmul_plain<float, float, bf16>)
GEMS_KERNEL_BLOCKS(matmul_plain_f32_bf16_f32, PLAIN_THREADS, 2, MatmulArguments, matmul_plain<float, bf16, float>)
GEMS_KERNEL_BLOCKS(matmul_plain_f32_bf16_bf16, PLAIN_THREADS, 2, MatmulArguments, matmul_plain<float, bf16, bf16>)
GEMS_KERNEL_BLOCKS(matmul_plain_bf16_f32_f32, PLAIN_THREADS, 2, MatmulArguments, matmul_plain<bf16, float, float>)
GEMS_KERNEL_BLOCKS(matmul_plain_bf16_f32_bf16, PLAIN_THREADS, 2, MatmulArguments, matmul_plain<bf16, float, bf16>)
GEMS_KERNEL_BLOCKS(matmul_plain_bf16_bf16_f32, PLAIN_THREADS, 2, MatmulArguments, matmul_plain<bf16, bf16, float>)
GEMS_KERNEL_BLOCKS(matmul_plain_bf16_bf16_bf16, PLAIN_THREADS, 2, MatmulArguments, matmul_plain<bf16, bf16, bf16>)

GEMS_FILE(matmul)
