// Kernels with planted bugs: what the SIMT machine must find. Never compiled for a GPU.
#include "tensor_core.cuh"

struct PlantedArguments { float* data; int64_t n; };

// data holds n values; 4 more were allocated and never written.

// Half of the block waits at a barrier that the other half never reaches.
__device__ void planted_divergent_barrier(const PlantedArguments& a) {
  if (threadIdx.x < 17) __syncthreads();
  else a.data[0] = 1.0f;
}
GEMS_KERNEL(planted_divergent_barrier, 64, PlantedArguments, planted_divergent_barrier)

// Lanes of one warp are at different operations.
__device__ void planted_divergent_warp(const PlantedArguments& a) {
  if (threadIdx.x % 2) a.data[threadIdx.x] = __shfl_xor_sync(~0u, 1.0f, 1);
  else __syncwarp();
}
GEMS_KERNEL(planted_divergent_warp, 64, PlantedArguments, planted_divergent_warp)

__device__ void planted_global_overrun(const PlantedArguments& a) { a.data[a.n + 4 + threadIdx.x] = 1.0f; }
GEMS_KERNEL(planted_global_overrun, 64, PlantedArguments, planted_global_overrun)

__device__ void planted_shared_overrun(const PlantedArguments& a) {
  GEMS_SHARED(shared);
  reinterpret_cast<float*>(shared)[threadIdx.x + 64] = a.data[0];
}
GEMS_KERNEL(planted_shared_overrun, 64, PlantedArguments, planted_shared_overrun)

__device__ void planted_misaligned_copy(const PlantedArguments& a) {
  GEMS_SHARED(shared);
  if (threadIdx.x == 0) copy_async16(shared, a.data + 1, 16);
  copy_async_commit();
  copy_async_wait<0>();
}
GEMS_KERNEL(planted_misaligned_copy, 64, PlantedArguments, planted_misaligned_copy)

// Reads a copy before it was waited for.
__device__ void planted_missing_wait(const PlantedArguments& a) {
  GEMS_SHARED(shared);
  if (threadIdx.x < 16) copy_async16(shared + 16 * threadIdx.x, a.data + 4 * threadIdx.x, 16);
  copy_async_commit();
  __syncthreads();
  float seen = reinterpret_cast<float*>(shared)[threadIdx.x];
  copy_async_wait<0>();
  a.data[threadIdx.x] = seen;
}
GEMS_KERNEL(planted_missing_wait, 64, PlantedArguments, planted_missing_wait)

// Reads its own copy's bytes before the wait; others would meet no barrier either.
__device__ void planted_own_missing_wait(const PlantedArguments& a) {
  GEMS_SHARED(shared);
  if (threadIdx.x >= 16) return;
  copy_async16(shared + 16 * threadIdx.x, a.data + 4 * threadIdx.x, 16);
  copy_async_commit();
  a.data[threadIdx.x] = reinterpret_cast<float*>(shared)[4 * threadIdx.x];
  copy_async_wait<0>();
}
GEMS_KERNEL(planted_own_missing_wait, 64, PlantedArguments, planted_own_missing_wait)

// Waits for its copies, but does not tell the others.
__device__ void planted_wait_without_barrier(const PlantedArguments& a) {
  GEMS_SHARED(shared);
  if (threadIdx.x < 16) copy_async16(shared + 16 * threadIdx.x, a.data + 4 * threadIdx.x, 16);
  copy_async_commit();
  copy_async_wait<0>();
  a.data[threadIdx.x] = reinterpret_cast<float*>(shared)[threadIdx.x];
}
GEMS_KERNEL(planted_wait_without_barrier, 64, PlantedArguments, planted_wait_without_barrier)

// Reads a neighbour's value without a barrier.
__device__ void planted_missing_barrier(const PlantedArguments& a) {
  GEMS_SHARED(shared);
  float* values = reinterpret_cast<float*>(shared);
  values[threadIdx.x] = a.data[threadIdx.x];
  a.data[threadIdx.x] = values[(threadIdx.x + 63) % 64] + values[(threadIdx.x + 1) % 64];
}
GEMS_KERNEL(planted_missing_barrier, 64, PlantedArguments, planted_missing_barrier)

// The barrier before the values are replaced is missing.
__device__ void planted_early_overwrite(const PlantedArguments& a) {
  GEMS_SHARED(shared);
  float* values = reinterpret_cast<float*>(shared);
  values[threadIdx.x] = a.data[threadIdx.x];
  __syncthreads();
  float left = values[(threadIdx.x + 63) % 64];
  values[threadIdx.x] = left;
}
GEMS_KERNEL(planted_early_overwrite, 64, PlantedArguments, planted_early_overwrite)

// Lanes exchange values through shared memory; a shuffle between does not order memory.
__device__ void planted_missing_syncwarp(const PlantedArguments& a) {
  GEMS_SHARED(shared);
  float* values = reinterpret_cast<float*>(shared);
  values[threadIdx.x] = a.data[threadIdx.x];
  float sum = __shfl_xor_sync(~0u, 1.0f, 1);
  a.data[threadIdx.x] = sum + values[threadIdx.x ^ 1];
}
GEMS_KERNEL(planted_missing_syncwarp, 64, PlantedArguments, planted_missing_syncwarp)

// Synchronises within warps where warps depend on each other.
__device__ void planted_syncwarp_too_weak(const PlantedArguments& a) {
  GEMS_SHARED(shared);
  float* values = reinterpret_cast<float*>(shared);
  values[threadIdx.x] = a.data[threadIdx.x];
  __syncwarp();
  a.data[threadIdx.x] = values[threadIdx.x ^ 1] + values[threadIdx.x ^ 32];
}
GEMS_KERNEL(planted_syncwarp_too_weak, 64, PlantedArguments, planted_syncwarp_too_weak)

// Two values of two bytes each share a word: no race.
__device__ void planted_nothing(const PlantedArguments& a) {
  GEMS_SHARED(shared);
  bf16* values = reinterpret_cast<bf16*>(shared);
  values[threadIdx.x] = from_float<bf16>((float)threadIdx.x);
  __syncwarp();
  float other = to_float(values[threadIdx.x ^ 1]);
  __syncthreads();
  values[63 - threadIdx.x] = from_float<bf16>(other);
  __syncthreads();
  a.data[threadIdx.x] = to_float(values[threadIdx.x]);
}
GEMS_KERNEL(planted_nothing, 64, PlantedArguments, planted_nothing)

__device__ void planted_unwritten(const PlantedArguments& a) { a.data[0] = a.data[a.n + threadIdx.x % 4]; }
GEMS_KERNEL(planted_unwritten, 64, PlantedArguments, planted_unwritten)

__device__ void planted_misaligned(const PlantedArguments& a) {
  if (threadIdx.x == 5) *reinterpret_cast<float*>(reinterpret_cast<uint8_t*>(a.data) + 2) = 1.0f;
}
GEMS_KERNEL(planted_misaligned, 64, PlantedArguments, planted_misaligned)

// Reads shared memory that nobody wrote.
__device__ void planted_uninitialised(const PlantedArguments& a) {
  GEMS_SHARED(shared);
  a.data[threadIdx.x] = reinterpret_cast<float*>(shared)[threadIdx.x];
}
GEMS_KERNEL(planted_uninitialised, 64, PlantedArguments, planted_uninitialised)

__device__ void planted_endless_stack(const PlantedArguments& a) {
  volatile float local[32 * 1024];
  for (int i = 32 * 1024 - 1; i >= 0; i--) local[i] = a.data[0];
}
GEMS_KERNEL(planted_endless_stack, 64, PlantedArguments, planted_endless_stack)

GEMS_FILE(planted)
