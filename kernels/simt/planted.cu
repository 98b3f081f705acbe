// Kernels with planted bugs: what the SIMT machine must find. Never compiled for a GPU.
#include "tensor_core.cuh"

struct PlantedArguments { float* data; int64_t n; };

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

__device__ void planted_global_overrun(const PlantedArguments& a) { a.data[a.n + threadIdx.x] = 1.0f; }
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

// Reads a copy that was never waited for: NaN in the result.
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

// Reads a neighbour's value without a barrier: NaN or not, depending on the schedule.
__device__ void planted_missing_barrier(const PlantedArguments& a) {
  GEMS_SHARED(shared);
  float* values = reinterpret_cast<float*>(shared);
  values[threadIdx.x] = a.data[threadIdx.x];
  a.data[threadIdx.x] = values[(threadIdx.x + 63) % 64] + values[(threadIdx.x + 1) % 64];
}
GEMS_KERNEL(planted_missing_barrier, 64, PlantedArguments, planted_missing_barrier)

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
