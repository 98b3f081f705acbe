// Asynchronous copies, ldmatrix, mma.sync and ex2: the PTX instructions of sm_80, or the SIMT machine's.
#pragma once
#include "common.cuh"

// Copies 16 bytes from global to shared memory, of which only the first `valid` are read (0 to 16);
// the others become zero. Both addresses are aligned to 16 bytes.
__device__ __forceinline__ void copy_async16(void* shared, const void* global, int valid) {
#ifdef GEMS_SIMT
  simt::copy_async(shared, global, 16, valid);
#else
  uint32_t to = (uint32_t)__cvta_generic_to_shared(shared);
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(valid) : "memory");
#endif
}

__device__ __forceinline__ void copy_async_commit() {
#ifdef GEMS_SIMT
  simt::copy_commit();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most `in_flight` of this thread's groups are unfinished.
template <int in_flight> __device__ __forceinline__ void copy_async_wait() {
#ifdef GEMS_SIMT
  simt::copy_wait(in_flight);
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(in_flight) : "memory");
#endif
}

// Four 8x8 matrices of 16-bit values; lane 8i + j names row j of matrix i.
__device__ __forceinline__ void ldmatrix(uint32_t (&r)[4], const void* row) {
#ifdef GEMS_SIMT
  simt::ldmatrix(r, row, 4, false);
#else
  uint32_t from = (uint32_t)__cvta_generic_to_shared(row);
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(from) : "memory");
#endif
}
__device__ __forceinline__ void ldmatrix_transposed(uint32_t (&r)[4], const void* row) {
#ifdef GEMS_SIMT
  simt::ldmatrix(r, row, 4, true);
#else
  uint32_t from = (uint32_t)__cvta_generic_to_shared(row);
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(from) : "memory");
#endif
}

// c += a b for a register tile of M x N products m16n8k16. A lane holds, of c, rows lane/4 and lane/4 + 8
// and columns 2 (lane%4) and the next.
template <int M, int N>
__device__ __forceinline__ void mma(float (&c)[M][N][4], const uint32_t (&a)[M][4], const uint32_t (&b)[N][2]) {
#ifdef GEMS_SIMT
  simt::mma_bf16(M, N, &c[0][0][0], &a[0][0], &b[0][0]);
#else
#pragma unroll
  for (int i = 0; i < M; i++) {
#pragma unroll
    for (int j = 0; j < N; j++) {
      asm volatile(
          "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
          : "+f"(c[i][j][0]), "+f"(c[i][j][1]), "+f"(c[i][j][2]), "+f"(c[i][j][3])
          : "r"(a[i][0]), "r"(a[i][1]), "r"(a[i][2]), "r"(a[i][3]), "r"(b[j][0]), "r"(b[j][1]));
    }
  }
#endif
}

// 2^x in one instruction: what is below the normal numbers becomes zero.
__device__ __forceinline__ float exp2_fast(float x) {
#ifdef GEMS_SIMT
  return exp2f(x);
#else
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

// A tile of bf16 in shared memory: rows of `bytes` bytes (64, 128 or 256), whose 16-byte pieces are
// permuted so that eight rows at the same column lie in different banks.
template <int bytes> __device__ __forceinline__ int swizzled(int row, int piece) {
  int mixed = bytes == 64 ? piece ^ (row / 2 & 3) : piece ^ (row & 7);
  return row * bytes + mixed * 16;
}

// Where a lane's row is of four 8x8 matrices of such a tile, 16 rows from `row` and two pieces from `piece` on. They come in the
// order in which mma takes them, so that no register is moved: those below each other first, or those beside each other.
template <int bytes> __device__ __forceinline__ const uint8_t* below(const uint8_t* tile, int row, int piece) {
  int lane = threadIdx.x % 32;
  return tile + swizzled<bytes>(row + lane % 16, piece + lane / 16);
}
template <int bytes> __device__ __forceinline__ const uint8_t* beside(const uint8_t* tile, int row, int piece) {
  int lane = threadIdx.x % 32;
  return tile + swizzled<bytes>(row + lane / 16 * 8 + lane % 8, piece + lane / 8 % 2);
}

// Fragments from such a tile. `major` is the row of the first of 16 outputs (m or n), `k` the first of
// 16 summed elements: stored as [output][k], or, transposed, as [k][output].
template <int bytes> __device__ __forceinline__ void load_a(uint32_t (&a)[4], const uint8_t* tile, int major, int k) {
  ldmatrix(a, below<bytes>(tile, major, k / 8));
}
template <int bytes>
__device__ __forceinline__ void load_a_transposed(uint32_t (&a)[4], const uint8_t* tile, int major, int k) {
  ldmatrix_transposed(a, beside<bytes>(tile, k, major / 8));
}
// Two b fragments: outputs n .. n + 8 and n + 8 .. n + 16.
template <int bytes>
__device__ __forceinline__ void load_b(uint32_t (&b0)[2], uint32_t (&b1)[2], const uint8_t* tile, int n, int k) {
  uint32_t r[4];
  ldmatrix(r, beside<bytes>(tile, n, k / 8));
  b0[0] = r[0], b0[1] = r[1], b1[0] = r[2], b1[1] = r[3];
}
template <int bytes>
__device__ __forceinline__ void load_b_transposed(uint32_t (&b0)[2], uint32_t (&b1)[2], const uint8_t* tile, int n, int k) {
  uint32_t r[4];
  ldmatrix_transposed(r, below<bytes>(tile, k, n / 8));
  b0[0] = r[0], b0[1] = r[1], b1[0] = r[2], b1[1] = r[3];
}
