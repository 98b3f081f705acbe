// Kernels with planted bugs: what the SIMT machine must find. Never compiled for a GPU.
#include "hopper.cuh"
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

// Thread 0 hands values to the others through an mbarrier: right, and with what can be forgotten.
template <bool FENCED, bool WAITS> __device__ void hand_over(const PlantedArguments& a) {
  GEMS_SHARED(shared);
  uint64_t* bar = reinterpret_cast<uint64_t*>(shared);
  float* values = reinterpret_cast<float*>(shared + 64);
  if (threadIdx.x == 0) mbarrier_init(bar, 1);
  if (FENCED) __syncthreads();
  if (threadIdx.x == 0) {
    for (int i = 0; i < 32; i++) values[i] = (float)i;
    mbarrier_arrive(bar);
  }
  if (WAITS) mbarrier_wait(bar, 0);
  a.data[threadIdx.x] = values[threadIdx.x % 32];
}
GEMS_KERNEL(planted_mbarrier, 64, PlantedArguments, hand_over<true, true>)
GEMS_KERNEL(planted_mbarrier_not_waited, 64, PlantedArguments, hand_over<true, false>)
GEMS_KERNEL(planted_mbarrier_not_told, 64, PlantedArguments, hand_over<false, true>)

__device__ void planted_mbarrier_twice(const PlantedArguments& a) {
  GEMS_SHARED(shared);
  uint64_t* bar = reinterpret_cast<uint64_t*>(shared);
  if (threadIdx.x == 0) mbarrier_init(bar, 1);
  __syncthreads();
  mbarrier_arrive_expect(bar, 16);
  mbarrier_wait(bar, 0);
  a.data[threadIdx.x] = 0.0f;
}
// Half of a warp asks for the one thread of it.
__device__ void planted_elect_of_half(const PlantedArguments& a) {
  if (threadIdx.x % 32 < 16 && elect_one()) a.data[threadIdx.x / 32] = 1.0f;
  __syncwarp();
}
GEMS_KERNEL(planted_elect_of_half, 64, PlantedArguments, planted_elect_of_half)

GEMS_KERNEL(planted_mbarrier_twice, 64, PlantedArguments, planted_mbarrier_twice)

// A ring of two stages between a copying thread and a warpgroup that multiplies, with what can be forgotten.
struct PlantedRingArguments { TensorMap map; float* data; int64_t n; uint64_t unused[14]; };
template <bool FULL, bool EMPTY, bool PRODUCTS> __device__ void ring(const PlantedRingArguments& a) {
  GEMS_SHARED(shared);
  uint64_t *full = reinterpret_cast<uint64_t*>(shared + 4 * CHUNK_BYTES), *empty = full + 2;
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2; i++) mbarrier_init(full + i, 1), mbarrier_init(empty + i, 1);
    mbarrier_init_fence();
  }
  __syncthreads();
  if (threadIdx.x == 128) {
    for (int step = 0; step < 4; step++) {
      int stage = step % 2;
      if (EMPTY) mbarrier_wait(empty + stage, (step / 2 & 1) ^ 1);
      mbarrier_arrive_expect(full + stage, 2 * CHUNK_BYTES);
      tensor_load(shared + stage * 2 * CHUNK_BYTES, a.map, full + stage, 0, 0);
      tensor_load(shared + stage * 2 * CHUNK_BYTES + CHUNK_BYTES, a.map, full + stage, 0, 0);
    }
  }
  if (threadIdx.x >= 128) return;
  float c[64] = {};
  for (int step = 0; step < 4; step++) {
    int stage = step % 2;
    if (FULL) mbarrier_wait(full + stage, step / 2 & 1);
    uint32_t tile = wgmma_operand<false>(shared + stage * 2 * CHUNK_BYTES);
    wgmma_fence();
    for (int k = 0; k < 64; k += 16) {
      uint64_t both = wgmma_descriptor(tile + wgmma_step<false>(k));
      wgmma<128, false, false>(c, both, both);
    }
    wgmma_commit();
    if (PRODUCTS) wgmma_wait<0>();
    if (threadIdx.x == 0) mbarrier_arrive(empty + stage);
  }
  float first = c[0];
  wgmma_wait<0>();
  a.data[threadIdx.x] = first;
}
GEMS_KERNEL(planted_ring, 256, PlantedRingArguments, ring<true, true, true>)
GEMS_KERNEL(planted_ring_not_arrived, 256, PlantedRingArguments, ring<false, true, true>)
GEMS_KERNEL(planted_ring_not_free, 256, PlantedRingArguments, ring<true, false, true>)
GEMS_KERNEL(planted_ring_not_multiplied, 256, PlantedRingArguments, ring<true, true, false>)

// Thread 0 hands numbers, one after the other in two slots, to the warps behind it, which tell when they have read one.
template <bool READ_FIRST> __device__ void hand_numbers(const PlantedRingArguments& a) {
  GEMS_SHARED(shared);
  uint64_t *full = reinterpret_cast<uint64_t*>(shared), *taken = full + 2;
  int* number = reinterpret_cast<int*>(taken + 2);
  int warps = (int)blockDim.x / 32 - 1, sum = 0;
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2; i++) mbarrier_init(full + i, 1), mbarrier_init(taken + i, warps);
    mbarrier_init_fence();
  }
  __syncthreads();
  for (int i = 0; i < 6; i++) {
    int slot = i % 2;
    if (threadIdx.x == 0) {
      mbarrier_wait(taken + slot, (i / 2 & 1) ^ 1);
      number[slot] = i;
      mbarrier_arrive(full + slot);
    } else if (threadIdx.x >= 32) {
      mbarrier_wait(full + slot, i / 2 & 1);
      if (READ_FIRST) sum += number[slot];
      __syncwarp();
      if (threadIdx.x % 32 == 0) mbarrier_arrive(taken + slot);
      if (!READ_FIRST) sum += number[slot];
    }
  }
  if (threadIdx.x >= 32) a.data[threadIdx.x] = (float)sum;
}
GEMS_KERNEL(planted_ring_of_numbers, 256, PlantedRingArguments, hand_numbers<true>)
GEMS_KERNEL(planted_ring_of_numbers_told_early, 256, PlantedRingArguments, hand_numbers<false>)

GEMS_FILE(planted)
