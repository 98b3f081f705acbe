// Matrix product with an optional second product on Hopper: what matmul.cu computes, by bulk tensor copies and wgmma.
//
//   C = alpha (op(A0) op(B0) + op(A1) op(B1)) + beta C + bias
//
// bf16 operands, base and rows aligned to 16 bytes, any M, N, K >= 1; C bf16 or f32, any alignment; sums in f32. The
// second product is further steps of the same loop: the low-rank branch costs ceil(K1 / 64) of them.
//
// Persistent: min(tiles, multiprocessors) blocks of 384 threads, one on a multiprocessor; a block goes over the
// tiles of 128 x BN (BN = 128 or 256) blockIdx.x, + gridDim.x, ... in the order of place_of. Warpgroup 0 keeps the
// copy engine busy: one thread of it fills a ring of stages of 64 k, four (BN = 256) or six (128). Warpgroups 1 and 2
// own 64 rows of the tile each and never touch the operands themselves. A stage has two mbarriers: `full` (its copies
// have arrived) and `empty` (both warpgroups are done with it). One group of products stays in flight while the next
// is issued.
// Shared memory: 1024 + STAGES (16 + BN / 8) KiB + mbarriers; Ring<BN>::SHARED_BYTES.
//
// Bytes and flops: as matmul.cu; operands from L2 (M / 128) and (N / BN) times. Arithmetic was checked on the SIMT
// machine only; no run on a GPU yet.
#include "hopper.cuh"
#include "matmul.cuh"

constexpr int HOPPER_THREADS = 384, HOPPER_M = 128, HOPPER_K = 64;

// The ring of a kernel with BN columns.
template <int BN> struct Ring {
  static constexpr int STAGES = BN == 256 ? 4 : 6, STAGE_BYTES = (HOPPER_M + BN) / 64 * CHUNK_BYTES;
  static constexpr int SHARED_BYTES = 1024 + STAGES * (STAGE_BYTES + 16);
};

struct HopperArguments {
  TensorMap a0, b0, a1, b1;  // boxes of 64 x 64
  MatmulArguments product;
};

// The ring's position: which stage, and the parity of its current round.
struct RingPlace {
  int stage = 0;
  uint32_t round = 0;
  __device__ __forceinline__ void next(int stages) {
    if (++stage == stages) stage = 0, round ^= 1;
  }
};

// Copies the chunks of one operand: OUTPUTS x 64 k from (major, k).
template <int OUTPUTS, bool transposed>
__device__ __forceinline__ void load_chunks(uint8_t* tile, const TensorMap& map, uint64_t* full, int major, int k) {
#pragma unroll
  for (int i = 0; i < OUTPUTS / 64; i++) {
    int along = major + i * 64;
    tensor_load(tile + i * CHUNK_BYTES, map, full, transposed ? along : k, transposed ? k : along);
  }
}

template <bool TA, bool TB, int BN>
__device__ __forceinline__ void produce(const HopperArguments& a, uint8_t* tiles, uint64_t* full, uint64_t* empty) {
  constexpr int STAGES = Ring<BN>::STAGES, STAGE_BYTES = Ring<BN>::STAGE_BYTES;
  const MatmulArguments& p = a.product;
  int tiles_m = (p.m + HOPPER_M - 1) / HOPPER_M, tiles_n = (p.n + BN - 1) / BN;
  int steps0 = (p.k0 + HOPPER_K - 1) / HOPPER_K, steps = steps0 + (p.k1 + HOPPER_K - 1) / HOPPER_K;
  RingPlace at;
  for (int tile = blockIdx.x; tile < tiles_m * tiles_n; tile += gridDim.x) {
    int tile_m, tile_n;
    place_of(tile, tiles_m, tiles_n, tile_m, tile_n);
    for (int step = 0; step < steps; step++, at.next(STAGES)) {
      bool second = step >= steps0;
      int k = (second ? step - steps0 : step) * HOPPER_K;
      uint8_t* stage = tiles + at.stage * STAGE_BYTES;
      mbarrier_wait(empty + at.stage, at.round ^ 1);  // the first round finds every stage free
      mbarrier_arrive_expect(full + at.stage, STAGE_BYTES);
      load_chunks<HOPPER_M, TA>(stage, second ? a.a1 : a.a0, full + at.stage, tile_m * HOPPER_M, k);
      load_chunks<BN, !TB>(stage + HOPPER_M / 64 * CHUNK_BYTES, second ? a.b1 : a.b0, full + at.stage, tile_n * BN, k);
    }
  }
}

template <class C, bool TA, bool TB, int BN>
__device__ __forceinline__ void consume(const HopperArguments& a, const uint8_t* tiles, uint64_t* full, uint64_t* empty) {
  constexpr int STAGES = Ring<BN>::STAGES, STAGE_BYTES = Ring<BN>::STAGE_BYTES, PARTS = BN / 128;
  const MatmulArguments& p = a.product;
  int tiles_m = (p.m + HOPPER_M - 1) / HOPPER_M, tiles_n = (p.n + BN - 1) / BN;
  int steps = (p.k0 + HOPPER_K - 1) / HOPPER_K + (p.k1 + HOPPER_K - 1) / HOPPER_K;
  int group = threadIdx.x / 128 - 1;
  bool speaks = threadIdx.x % 128 == 0;
  RingPlace at;
  for (int tile = blockIdx.x; tile < tiles_m * tiles_n; tile += gridDim.x) {
    int tile_m, tile_n, before = -1;
    place_of(tile, tiles_m, tiles_n, tile_m, tile_n);
    float acc[PARTS][64] = {};
    for (int step = 0; step < steps; step++, at.next(STAGES)) {
      const uint8_t* tile_a = tiles + at.stage * STAGE_BYTES + group * CHUNK_BYTES;
      const uint8_t* tile_b = tiles + at.stage * STAGE_BYTES + HOPPER_M / 64 * CHUNK_BYTES;
      mbarrier_wait(full + at.stage, at.round);
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < HOPPER_K; k += 16) {
#pragma unroll
        for (int part = 0; part < PARTS; part++) {
          wgmma_64x128<TA, !TB>(acc[part], wgmma_descriptor<TA>(tile_a, k),
                                wgmma_descriptor<!TB>(tile_b + part * 2 * CHUNK_BYTES, k));
        }
      }
      wgmma_commit();
      wgmma_wait<1>();  // the products of the stage before are done
      if (before >= 0 && speaks) mbarrier_arrive(empty + before);
      before = at.stage;
    }
    wgmma_wait<0>();
    if (before >= 0 && speaks) mbarrier_arrive(empty + before);
    int row = tile_m * HOPPER_M + group * 64 + (int)threadIdx.x % 128 / 32 * 16 + (int)threadIdx.x % 32 / 4;
#pragma unroll
    for (int col = 0; col < BN; col += 32) finish_quad<C>(p, row, tile_n * BN + col, &acc[col / 128][col % 128 / 2]);
  }
}

template <class C, bool TA, bool TB, int BN> __device__ __forceinline__ void matmul_sm90a(const HopperArguments& a) {
  GEMS_SHARED(shared);
  constexpr int STAGES = Ring<BN>::STAGES;
  // The swizzle goes by address: tiles start at a multiple of 1024.
  uint8_t* tiles = shared + (-shared_address(shared) & 1023);
  uint64_t* full = reinterpret_cast<uint64_t*>(tiles + STAGES * Ring<BN>::STAGE_BYTES);
  uint64_t* empty = full + STAGES;
  if (threadIdx.x == 0) {
    for (int i = 0; i < STAGES; i++) {
      mbarrier_init(full + i, 1);
      mbarrier_init(empty + i, 2);
    }
    mbarrier_init_fence();
    tensor_prefetch(a.a0);
    tensor_prefetch(a.b0);
  }
  __syncthreads();
  if (threadIdx.x < 128) {
    give_registers<40>();
    if (threadIdx.x == 0) produce<TA, TB, BN>(a, tiles, full, empty);
  } else {
    take_registers<232>();
    consume<C, TA, TB, BN>(a, tiles, full, empty);
  }
}

GEMS_KERNEL(matmul_sm90a_nn_bf16_128, HOPPER_THREADS, HopperArguments, matmul_sm90a<bf16, false, false, 128>)
GEMS_KERNEL(matmul_sm90a_nn_bf16_256, HOPPER_THREADS, HopperArguments, matmul_sm90a<bf16, false, false, 256>)
GEMS_KERNEL(matmul_sm90a_nn_f32_128, HOPPER_THREADS, HopperArguments, matmul_sm90a<float, false, false, 128>)
GEMS_KERNEL(matmul_sm90a_nn_f32_256, HOPPER_THREADS, HopperArguments, matmul_sm90a<float, false, false, 256>)
GEMS_KERNEL(matmul_sm90a_nt_bf16_128, HOPPER_THREADS, HopperArguments, matmul_sm90a<bf16, false, true, 128>)
GEMS_KERNEL(matmul_sm90a_nt_bf16_256, HOPPER_THREADS, HopperArguments, matmul_sm90a<bf16, false, true, 256>)
GEMS_KERNEL(matmul_sm90a_nt_f32_128, HOPPER_THREADS, HopperArguments, matmul_sm90a<float, false, true, 128>)
GEMS_KERNEL(matmul_sm90a_nt_f32_256, HOPPER_THREADS, HopperArguments, matmul_sm90a<float, false, true, 256>)
GEMS_KERNEL(matmul_sm90a_tn_f32_128, HOPPER_THREADS, HopperArguments, matmul_sm90a<float, true, false, 128>)
GEMS_KERNEL(matmul_sm90a_tn_f32_256, HOPPER_THREADS, HopperArguments, matmul_sm90a<float, true, false, 256>)

GEMS_FILE(matmul_sm90a)
