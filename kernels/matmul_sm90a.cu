// The adapted linear on Hopper, in one launch, by bulk tensor copies and wgmma: what matmul.cu computes, and its
// branch.
//
//   S = A0 op(P)                                                     (the branch; R = 0: there is none)
//   C = alpha (op(A0) op(B0) + op(A1) op(B1)) + beta C + bias        with A1 = S where there is a branch
//
// forward: S = h = x A^T, C = y = x W^T + h B^T + bias; gradient: S = z = dy B, C = dx = dy W + z A. bf16 operands,
// base and rows aligned to 16 bytes, any M, N >= 1, K0 >= 1, K1, R >= 0; C bf16 or f32, any alignment; sums in f32. The
// second product is further steps of the same loop: ceil(K1 / 64) of them. The branch's columns are further tiles of
// the same launch: they share the read of A0 with their neighbours, and run beside them instead of before them.
//
// Persistent: about as many blocks of 384 threads as there are multiprocessors, fewer if there are fewer tiles. A block
// takes the next tile of 128 x BN (BN = 128 or 256) when it is done with one: the branch's first, then C's in the order
// of tile_of; a tile waits for tiles only that were taken before it, so blocks need not run at the same time. Warpgroup
// 0 keeps the copy engine busy: one thread of it fills a ring of stages of 64 k, four (BN = 256) or six (128), and
// leaves the tile's number in one of two slots. Warpgroups 1 and 2 own 64 rows of the tile each. A stage has two
// mbarriers: `full` (its copies have arrived) and `empty` (both warpgroups are done with it). One group of products
// stays in flight while the next is issued. A tile of C whose S is not written yet waits for it after all of A0 B0,
// that is, practically never. Shared memory: HOPPER_SHARED_128 or _256. `tickets` u32 [1 + 2 ceil(M / 128)], zero
// before and after, count the tiles taken, the warps that have written their part of S, and the tiles of C that have
// seen that.
//
// Bytes: A0, B0, A1, B1, C once (C twice when beta != 0), S twice; A0 from L2 ceil(N / BN) times, B0 ceil(M / 128)
// times. Flops: 2 M (N (K0 + K1) + R K0). Arithmetic was checked on the SIMT machine; never run on a GPU.
#include "hopper.cuh"
#include "matmul.cuh"

constexpr int HOPPER_K = 64, WRITING_WARPS = 8, END = -1;

// The ring of a kernel with BN columns.
template <int BN> struct Pipeline {
  static constexpr int STAGES = BN == 256 ? HOPPER_STAGES_256 : HOPPER_STAGES_128;
  static constexpr int STAGE_BYTES = BN == 256 ? HOPPER_STAGE_256 : HOPPER_STAGE_128;
};

// Where a block keeps its ring: stages, their mbarriers, and the numbers of the tiles that fill them, with an mbarrier each
// that tells when all consuming warps have read it.
struct RingMemory {
  uint8_t* tiles;
  uint64_t *full, *empty, *taken;
  int* number;
};

struct HopperArguments {
  TensorMap a0, b0, a1, b1, branch_b;  // boxes of 64 x 64
  MatmulArguments product, branch;     // branch: c is S, n is R (0: none)
  uint32_t* tickets;
  uint32_t unused[30];
};

// The ring's position: which stage, and the parity of its current round.
struct RingPlace {
  int stage = 0;
  uint32_t round = 0;
  __device__ __forceinline__ void next(int stages) {
    if (++stage == stages) stage = 0, round ^= 1;
  }
};

// One tile of the launch: of S or of C, its place, its steps, and how many of its columns' halves exist.
template <int BN> struct Tile {
  bool of_branch;
  int m, n, steps0, steps, parts;
  __device__ __forceinline__ Tile(const HopperArguments& a, int index) {
    int tiles_m = (a.product.m + HOPPER_M - 1) / HOPPER_M, of_s = tiles_m * ((a.branch.n + BN - 1) / BN);
    of_branch = index < of_s;
    int cols = of_branch ? a.branch.n : a.product.n;
    tile_of(of_branch ? index : index - of_s, tiles_m, (cols + BN - 1) / BN, m, n);
    steps0 = (a.product.k0 + HOPPER_K - 1) / HOPPER_K;
    steps = steps0 + (of_branch ? 0 : (a.product.k1 + HOPPER_K - 1) / HOPPER_K);
    parts = cols - n * BN > 128 ? BN / 128 : 1;
  }
  static __device__ __forceinline__ int count(const HopperArguments& a) {
    int columns = (a.product.n + BN - 1) / BN + (a.branch.n + BN - 1) / BN;
    return (a.product.m + HOPPER_M - 1) / HOPPER_M * columns;
  }
};

// Copies `chunks` chunks of an operand: 64 outputs x 64 k each, from (major, k).
template <bool transposed>
__device__ __forceinline__ void load_chunks(uint8_t* tile, int chunks, const TensorMap& map, uint64_t* full, int major, int k) {
  for (int i = 0; i < chunks; i++) {
    int along = major + i * 64;
    tensor_load(tile + i * CHUNK_BYTES, map, full, transposed ? along : k, transposed ? k : along);
  }
}

// Waits for S's rows of a row of tiles; the last tile of that row to do so makes the counters zero again.
template <int BN> __device__ __forceinline__ void wait_for_branch(const HopperArguments& a, int tile_m) {
  uint32_t *written = a.tickets + 1 + tile_m, *read = written + (a.product.m + HOPPER_M - 1) / HOPPER_M;
  flag_wait(written, WRITING_WARPS * ((a.branch.n + BN - 1) / BN));
  // A strong store, as the other blocks' loads are strong: nothing orders it after them.
  if (atomicAdd(read, 1u) + 1 == (uint32_t)(a.product.n + BN - 1) / BN) *(volatile uint32_t*)written = 0, *read = 0;
}

// Says which tile the next stages are of: known to whoever finds the first of them full.
__device__ __forceinline__ void announce(const RingMemory& ring, RingPlace& slot, int index) {
  mbarrier_wait(ring.taken + slot.stage, slot.round ^ 1);
  ring.number[slot.stage] = index;
  slot.next(2);
}

template <bool TA, bool TB, int BN>
__device__ __forceinline__ void produce(const HopperArguments& a, const RingMemory& ring) {
  constexpr int STAGES = Pipeline<BN>::STAGES, STAGE_BYTES = Pipeline<BN>::STAGE_BYTES;
  RingPlace at, slot;
  int count = Tile<BN>::count(a), index;
  while ((index = (int)atomicAdd(a.tickets, 1u)) < count) {
    Tile<BN> tile(a, index);
    announce(ring, slot, index);
    for (int step = 0; step < tile.steps; step++, at.next(STAGES)) {
      bool second = step >= tile.steps0;
      int k = (second ? step - tile.steps0 : step) * HOPPER_K;
      if (step == tile.steps0 && a.branch.n) wait_for_branch<BN>(a, tile.m);
      uint8_t* stage = ring.tiles + at.stage * STAGE_BYTES;
      uint64_t* arrived = ring.full + at.stage;
      mbarrier_wait(ring.empty + at.stage, at.round ^ 1);  // the first round finds every stage free
      mbarrier_arrive_expect(arrived, (HOPPER_M / 64 + tile.parts * 2) * CHUNK_BYTES);
      const TensorMap& b = second ? a.b1 : tile.of_branch ? a.branch_b : a.b0;
      load_chunks<TA>(stage, HOPPER_M / 64, second ? a.a1 : a.a0, arrived, tile.m * HOPPER_M, k);
      load_chunks<!TB>(stage + HOPPER_M / 64 * CHUNK_BYTES, tile.parts * 2, b, arrived, tile.n * BN, k);
    }
  }
  // A stage that brings no tile is the end; every block asked once too often.
  announce(ring, slot, END);
  mbarrier_wait(ring.empty + at.stage, at.round ^ 1);
  mbarrier_arrive(ring.full + at.stage);
  if (index + 1 == count + (int)gridDim.x) *a.tickets = 0;
}

// The products of one tile: acc of PARTS x 128 columns.
template <bool TA, bool TB, int BN, int PARTS>
__device__ __forceinline__ void multiply_ring(float (&acc)[BN / 128][64], int steps, RingPlace& at, const RingMemory& ring) {
  constexpr int STAGES = Pipeline<BN>::STAGES, STAGE_BYTES = Pipeline<BN>::STAGE_BYTES;
  int group = threadIdx.x / 128 - 1, before = -1;
  bool elected = threadIdx.x % 128 == 0;
  wgmma_hold(acc);
  for (int step = 0; step < steps; step++, at.next(STAGES)) {
    const uint8_t* tile_a = ring.tiles + at.stage * STAGE_BYTES + group * CHUNK_BYTES;
    const uint8_t* tile_b = ring.tiles + at.stage * STAGE_BYTES + HOPPER_M / 64 * CHUNK_BYTES;
    mbarrier_wait(ring.full + at.stage, at.round);
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
    if (before >= 0 && elected) mbarrier_arrive(ring.empty + before);
    before = at.stage;
  }
  wgmma_wait<0>();
  wgmma_hold(acc);
  if (before >= 0 && elected) mbarrier_arrive(ring.empty + before);
}

template <class C, bool TA, bool TB, int BN>
__device__ __forceinline__ void consume(const HopperArguments& a, const RingMemory& ring) {
  RingPlace at, slot;
  int lane = threadIdx.x % 32, row0 = ((int)threadIdx.x / 32 - 4) * 16 + lane / 4;
  for (;;) {
    mbarrier_wait(ring.full + at.stage, at.round);
    int index = ring.number[slot.stage];
    __syncwarp();
    if (lane == 0) mbarrier_arrive(ring.taken + slot.stage);
    slot.next(2);
    if (index == END) return;
    Tile<BN> tile(a, index);
    float acc[BN / 128][64] = {};
    if (tile.parts == 1) multiply_ring<TA, TB, BN, 1>(acc, tile.steps, at, ring);
    else multiply_ring<TA, TB, BN, BN / 128>(acc, tile.steps, at, ring);
    int row = tile.m * HOPPER_M + row0;
    if (tile.of_branch) {
#pragma unroll
      for (int col = 0; col < BN; col += 32) finish_quad<bf16>(a.branch, row, tile.n * BN + col, &acc[col / 128][col % 128 / 2]);
      __syncwarp();
      if (lane == 0) flag_add(a.tickets + 1 + tile.m);
    } else {
#pragma unroll
      for (int col = 0; col < BN; col += 32) finish_quad<C>(a.product, row, tile.n * BN + col, &acc[col / 128][col % 128 / 2]);
    }
  }
}

template <class C, bool TA, bool TB, int BN> __device__ __forceinline__ void matmul_sm90a(const HopperArguments& a) {
  GEMS_SHARED(shared);
  constexpr int STAGES = Pipeline<BN>::STAGES;
  // The swizzle goes by address: tiles start at a multiple of 1024.
  uint8_t* tiles = shared + (-shared_address(shared) & 1023);
  uint64_t* full = reinterpret_cast<uint64_t*>(tiles + STAGES * Pipeline<BN>::STAGE_BYTES);
  uint64_t* empty = full + STAGES;
  uint64_t* taken = empty + STAGES;
  RingMemory ring = {tiles, full, empty, taken, reinterpret_cast<int*>(taken + 2)};
  if (threadIdx.x == 0) {
    for (int i = 0; i < STAGES; i++) {
      mbarrier_init(full + i, 1);
      mbarrier_init(empty + i, 2);
    }
    for (int i = 0; i < 2; i++) mbarrier_init(taken + i, WRITING_WARPS);
    mbarrier_init_fence();
    tensor_prefetch(a.a0);
    tensor_prefetch(a.b0);
  }
  __syncthreads();
  if (threadIdx.x < 128) {
    reg_dealloc<40>();
    if (threadIdx.x == 0) produce<TA, TB, BN>(a, ring);
  } else {
    reg_alloc<232>();
    consume<C, TA, TB, BN>(a, ring);
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
