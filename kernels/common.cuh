// What every kernel shares: matrices, element types, vector access, warp and block sums, how a kernel
// is declared. The same source is compiled by nvcc for GPUs and, with simt/cuda.h included first, by the
// host compiler for the SIMT machine; kernels use no inline assembly (tensor_core.cuh and hopper.cuh have it all), no
// static shared memory, no float atomics.
//
// A kernel takes one structure of arguments by value, called `*Arguments`; build.rs makes its twin in Rust, so it is
// written plainly, one type a declaration, and has no padding.
#pragma once

#ifdef GEMS_SIMT
#define GEMS_SHARED(name) uint8_t* const name = simt::block.shared
#define GEMS_KERNEL(name, threads, Arguments, ...)                                              \
  static void gems_run_##name(const void* a) { __VA_ARGS__(*static_cast<const Arguments*>(a)); } \
  static simt::Kernel gems_kernel_##name(#name, gems_run_##name, sizeof(Arguments), threads);
#define GEMS_KERNEL_BLOCKS(name, threads, blocks, Arguments, ...) GEMS_KERNEL(name, threads, Arguments, __VA_ARGS__)
#define GEMS_FILE(name) extern "C" void gems_simt_file_##name() {}
#else
#include <cuda_bf16.h>
#include <stdint.h>
#define GEMS_SHARED(name) extern __shared__ __align__(128) uint8_t name[]
#define GEMS_KERNEL(name, threads, Arguments, ...)                                                          \
  extern "C" __global__ void __launch_bounds__(threads) name(const __grid_constant__ Arguments arguments) { \
    __VA_ARGS__(arguments);                                                                                 \
  }
// With so many registers a thread at most that `blocks` blocks fit a multiprocessor.
#define GEMS_KERNEL_BLOCKS(name, threads, blocks, Arguments, ...)                    \
  extern "C" __global__ void __launch_bounds__(threads, blocks)                      \
      name(const __grid_constant__ Arguments arguments) {                            \
    __VA_ARGS__(arguments);                                                          \
  }
#define GEMS_FILE(name)
#endif

#include "limits.h"

typedef __nv_bfloat16 bf16;

// A row-major view; data is null for a matrix that an operation does without.
struct Matrix {
  void* data;
  int rows, cols;
  int64_t ld;
  template <class T> __device__ __forceinline__ T* row(int64_t i) const { return static_cast<T*>(data) + i * ld; }
};

// Rows first .. end.
struct Segment { int first, end; };

// ---- elements -------------------------------------------------------------------------------------

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return __bfloat162float(x); }
template <class T> __device__ __forceinline__ T from_float(float x);
template <> __device__ __forceinline__ float from_float<float>(float x) { return x; }
template <> __device__ __forceinline__ bf16 from_float<bf16>(float x) { return __float2bfloat16_rn(x); }

__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);  // one instruction for both
  return __bfloat16_as_ushort(pair.x) | (uint32_t)__bfloat16_as_ushort(pair.y) << 16;
}
__device__ __forceinline__ float low_bf16(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high_bf16(uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); }

// ---- eight elements at a time ---------------------------------------------------------------------

__device__ __forceinline__ bool aligned16(const void* p) { return ((uintptr_t)p & 15) == 0; }

// n <= CHUNK elements from p; the rest are zero.
__device__ __forceinline__ void load_chunk(const float* p, int n, float (&v)[CHUNK]) {
  if (n == CHUNK && aligned16(p)) {
    float4 a = reinterpret_cast<const float4*>(p)[0], b = reinterpret_cast<const float4*>(p)[1];
    v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
    return;
  }
#pragma unroll
  for (int i = 0; i < CHUNK; i++) v[i] = i < n ? p[i] : 0.0f;
}
__device__ __forceinline__ void load_chunk(const bf16* p, int n, float (&v)[CHUNK]) {
  if (n == CHUNK && aligned16(p)) {
    uint4 a = *reinterpret_cast<const uint4*>(p);
    v[0] = low_bf16(a.x), v[1] = high_bf16(a.x), v[2] = low_bf16(a.y), v[3] = high_bf16(a.y);
    v[4] = low_bf16(a.z), v[5] = high_bf16(a.z), v[6] = low_bf16(a.w), v[7] = high_bf16(a.w);
    return;
  }
#pragma unroll
  for (int i = 0; i < CHUNK; i++) v[i] = i < n ? to_float(p[i]) : 0.0f;
}
__device__ __forceinline__ void store_chunk(float* p, int n, const float (&v)[CHUNK]) {
  if (n == CHUNK && aligned16(p)) {
    reinterpret_cast<float4*>(p)[0] = float4{v[0], v[1], v[2], v[3]};
    reinterpret_cast<float4*>(p)[1] = float4{v[4], v[5], v[6], v[7]};
    return;
  }
#pragma unroll
  for (int i = 0; i < CHUNK; i++) {
    if (i < n) p[i] = v[i];
  }
}
__device__ __forceinline__ void store_chunk(bf16* p, int n, const float (&v)[CHUNK]) {
  if (n == CHUNK && aligned16(p)) {
    *reinterpret_cast<uint4*>(p) =
        uint4{pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7])};
    return;
  }
#pragma unroll
  for (int i = 0; i < CHUNK; i++) {
    if (i < n) p[i] = from_float<bf16>(v[i]);
  }
}

// Eight elements, as they are.
__device__ __forceinline__ void store_pairs(bf16* p, const uint4& v) {
  if (aligned16(p)) {
    *reinterpret_cast<uint4*>(p) = v;
    return;
  }
  const uint32_t pairs[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int i = 0; i < CHUNK; i++) p[i] = __ushort_as_bfloat16((uint16_t)(pairs[i / 2] >> i % 2 * 16));
}

// The chunk of a matrix that is this thread's, for kernels that go over all elements with a grid of
// rows * ceil(cols / CHUNK) threads. n is 0 for the threads beyond the end.
struct Chunk { int row, col, n; };
__device__ __forceinline__ Chunk my_chunk(int rows, int cols) {
  int64_t index = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  int per_row = (cols + CHUNK - 1) / CHUNK;
  Chunk c = {(int)(index / per_row), (int)(index % per_row) * CHUNK, 0};
  if (c.row < rows) c.n = cols - c.col < CHUNK ? cols - c.col : CHUNK;
  return c;
}

// ---- sums and maxima ---------------------------------------------------------------------------------

template <class T> __device__ __forceinline__ T warp_sum(T v) {
#pragma unroll
  for (int bits = 16; bits > 0; bits /= 2) v += __shfl_xor_sync(~0u, v, bits);
  return v;
}
__device__ __forceinline__ float warp_max(float v) {
#pragma unroll
  for (int bits = 16; bits > 0; bits /= 2) {
    float other = __shfl_xor_sync(~0u, v, bits);
    v = other > v ? other : v;
  }
  return v;
}

// The sum over threadIdx.x, in every thread. A row is a warp (blockDim.x = 32, any blockDim.y), or the
// whole block (a multiple of 32, blockDim.y = 1), which needs 32 values of scratch.
template <class T> __device__ __forceinline__ T row_sum(T v, T* scratch) {
  v = warp_sum(v);
  if (blockDim.x == 32) return v;
  __syncthreads();
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = v;
  __syncthreads();
  T total = 0;
  for (int i = 0; i < (int)blockDim.x / 32; i++) total += scratch[i];
  return total;
}

// ---- blocks that follow each other ----------------------------------------------------------------------

// Whether this block is the last of `blocks` to come here; what the others wrote before, all its threads then see. Sums
// over blocks are taken by the last one in a fixed order: one launch, and the same bits whichever block that is. The
// ticket is zero before and after. `flag`: 4 bytes of shared memory that nobody uses.
__device__ __forceinline__ bool last_of(uint32_t* ticket, int blocks, uint32_t* flag) {
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    bool last = atomicAdd(ticket, 1u) + 1 == (uint32_t)blocks;
    if (last) *ticket = 0;
    *flag = last;
  }
  __syncthreads();
  bool last = *flag;
  __threadfence();
  __syncthreads();
  return last;
}

// This block's place in the order in which the launch's blocks begin, whatever order a device begins them in: a block
// that waits for one of a lower place cannot wait in vain. The ticket is zero before and after.
__device__ __forceinline__ int place_in_order(uint32_t* ticket, uint32_t* flag) {
  if (threadIdx.x == 0) {
    *flag = atomicAdd(ticket, 1u);
    if (*flag + 1 == gridDim.x) *ticket = 0;
  }
  __syncthreads();
  int place = (int)*flag;
  __syncthreads();
  return place;
}

// Tells that this block has written its part, and waits, in all threads, for `parts` blocks to have told so. The last of
// `readers` to wait makes both counters zero again.
__device__ __forceinline__ void tell_written(uint32_t* written) {
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) atomicAdd(written, 1u);
}
__device__ __forceinline__ void wait_until_written(uint32_t* written, int parts, uint32_t* read, int readers) {
  if (threadIdx.x == 0) {
#ifdef GEMS_SIMT
    simt::flag_wait(written, parts);
#else
    while (*(const volatile uint32_t*)written < (uint32_t)parts) {
    }
#endif
    // A strong store, as the other readers' loads are strong: nothing orders it after them.
    if (atomicAdd(read, 1u) + 1 == (uint32_t)readers) *(volatile uint32_t*)written = 0, *read = 0;
  }
  __threadfence();
  __syncthreads();
}
