// Sums of exponentials in one pass over a row, whose largest value is found on the way.
#pragma once
#include "common.cuh"

// sum exp(x - most) of what was seen; nothing: the largest is -inf, the sum 0.
struct Exponentials { float most, sum; };

// A sum is told anew when something larger comes, once for a chunk.
__device__ __forceinline__ void add_chunk(Exponentials& e, const float (&v)[CHUNK], int n) {
  float most = e.most;
#pragma unroll
  for (int i = 0; i < CHUNK; i++) most = i < n && v[i] > most ? v[i] : most;
  if (most > e.most) e.sum *= __expf(e.most - most), e.most = most;
  // Nothing but -inf so far: it adds nothing, and inf - inf is no number. NaN remains, whatever is the largest.
  float origin = most == -INFINITY ? 0.0f : most;
#pragma unroll
  for (int i = 0; i < CHUNK; i++) e.sum += i < n ? __expf(v[i] - origin) : 0.0f;
}

// Of the whole block, in every thread.
__device__ __forceinline__ Exponentials over_block(Exponentials mine, float* scratch) {
  float most = warp_max(mine.most);
  if (threadIdx.x % 32 == 0) scratch[32 + threadIdx.x / 32] = most;
  __syncthreads();
  for (int i = 0; i < (int)blockDim.x / 32; i++) most = scratch[32 + i] > most ? scratch[32 + i] : most;
  return Exponentials{most, row_sum(mine.sum == 0.0f ? 0.0f : mine.sum * __expf(mine.most - most), scratch)};
}
