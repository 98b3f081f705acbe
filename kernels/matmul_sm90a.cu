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
// takes the next tile of 128 x BN (BN = 128 or 256) when it is done with one, in the order of tile_of: bands of rows, in each
// of them the branch's columns first, so that A0 is in L2 when C's follow; a tile waits for tiles only that were taken before
// it, so blocks need not run at the same time. The branch's tiles have `branch_columns`, 64 where that is enough for R; the
// last ones of C multiply 64 or 128 columns where no more are left. Warpgroup 0 keeps the copy engine busy: one thread of it
// leaves a tile's number in one of two slots and fills a ring of stages of 64 k, four (BN = 256) or six (128). A stage has two
// mbarriers: `full` (its copies have arrived) and `empty` (who multiplies it is done with it). One group of products stays in
// flight while the next is issued. A tile of C whose S is not written yet waits for it after all of A0 B0, that is, practically
// never.
// Warpgroups 1 and 2: with BN = 256 each owns 64 rows of every tile. With BN = 128 they take tiles in turn, so that one
// multiplies while the other is at its tile's end. Whose turn it is an mbarrier tells, for the other one's stages have to be full
// before a wait for the next round of the same stage means anything.
// A tile of C in bf16 leaves by way of shared memory, and the other warps of warpgroup 0 write it (matmul_staged.cuh); the
// branch's tiles, f32 ones, those that are rounded at random and runs are written by who multiplied.
// `splits` > 1 (no branch, no second product) cuts K0 into as many runs, for products of few tiles: each run is a tile of its
// own, whose sums go to `partial`, and the warp that comes last with its rows adds the runs in order and writes C: the same
// bits whichever that is.
// Shared memory: HOPPER_SHARED_128 or _256. `tickets` u32 [1 + 2 ceil(M / 128) + warps of all tiles, with splits], zero before
// and after, count the tiles taken, the warps that have written their part of S, the tiles of C that have seen that, and the
// runs that are summed. `partial` f32 [tiles, 128 BN splits].
//
// Bytes: A0, B0, A1, B1, C once (C twice when beta != 0), S twice; A0 from L2 ceil(N / BN) times, B0 ceil(M / 128)
// times; with splits 8 splits M N more. Flops: 2 M (N (K0 + K1) + R K0).
#include "matmul_staged.cuh"

constexpr int HOPPER_K = 64, END = -1;

// The ring of a kernel with BN columns, and who works on a tile.
template <int BN> struct Pipeline {
  static constexpr bool IN_TURN = BN == 128;  // a warpgroup a tile, and not both
  static constexpr int STAGES = BN == 256 ? HOPPER_STAGES_256 : HOPPER_STAGES_128;
  static constexpr int STAGE_BYTES = BN == 256 ? HOPPER_STAGE_256 : HOPPER_STAGE_128;
  static constexpr int PARTS = IN_TURN ? 2 : 1;  // of 64 rows that a warpgroup has of a tile
  static constexpr int WARPS = IN_TURN ? 4 : HOPPER_WARPS;  // that multiply a tile
};

// Where a block keeps its ring: stages and their mbarriers; the numbers of two tiles, with mbarriers that say that one is
// told and that all warps that want it have read it; one a warpgroup that says that it is its turn; and where tiles leave.
struct RingMemory {
  uint8_t* tiles;
  uint64_t *full, *empty, *told, *taken, *turn;
  Staging staging;
  int* number;
};

struct HopperArguments {
  // Boxes have 64 columns. Rows: all of a tile's (128 of A, BN of B, branch_columns of the branch) where an operand lies along
  // k, else 64.
  TensorMap a0, b0, a1, b1, branch_b;
  MatmulArguments product, branch;  // branch: c is S, n is R (0: none)
  uint32_t* tickets;
  float* partial;      // null without splits
  int branch_columns;  // 64, 128 or 256; at most BN
  int splits;          // 1: none
  uint32_t unused[26];
};

// The ring's position: which stage, and the parity of its current round.
struct RingPlace {
  int stage = 0;
  uint32_t round = 0;
  __device__ __forceinline__ void next(int stages) {
    if (++stage == stages) stage = 0, round ^= 1;
  }
  __device__ __forceinline__ void skip(int steps, int stages) {
    stage += steps;
    round ^= (uint32_t)(stage / stages) & 1;
    stage %= stages;
  }
};

// One tile of the launch: of S or of C, its place, its steps, and the columns that are multiplied, in chunks of 64. With
// splits, of C, and the steps from `first` on; all tiles' first runs come first, so that they share operands in L2.
template <int BN> struct Tile {
  bool of_branch;
  int m, n, first, steps0, steps, chunks, number, split;
  static __device__ __forceinline__ int columns_of_s(const HopperArguments& a) {
    return (a.branch.n + a.branch_columns - 1) / a.branch_columns;
  }
  static __device__ __forceinline__ int rows_of_tiles(const HopperArguments& a) {
    return (a.product.m + HOPPER_M - 1) / HOPPER_M;
  }
  static __device__ __forceinline__ int whole(const HopperArguments& a) {
    return rows_of_tiles(a) * (columns_of_s(a) + (a.product.n + BN - 1) / BN);
  }
  static __device__ __forceinline__ int count(const HopperArguments& a) { return whole(a) * a.splits; }
  __device__ __forceinline__ Tile(const HopperArguments& a, int index) : number(index), split(0) {
    int of_s = columns_of_s(a), column, all = (a.product.k0 + HOPPER_K - 1) / HOPPER_K, run = all;
    if (a.splits > 1) split = index / whole(a), number = index % whole(a), run = (all + a.splits - 1) / a.splits;
    tile_of(number, rows_of_tiles(a), of_s + (a.product.n + BN - 1) / BN, m, column);
    of_branch = column < of_s;
    n = of_branch ? column * a.branch_columns : (column - of_s) * BN;
    int left = of_branch ? a.branch_columns : a.product.n - n;
    chunks = left <= 64 ? 1 : left <= 128 ? 2 : BN / 64;
    first = split * run;
    steps0 = all - first < run ? all - first : run;
    steps = steps0 + (of_branch ? 0 : (a.product.k1 + HOPPER_K - 1) / HOPPER_K);
  }
};

// Copies `chunks` chunks of an operand, 64 outputs x 64 k each, from (major, k): in one box where it lies along k, else in a
// box a chunk.
template <bool transposed>
__device__ __forceinline__ void load_chunks(uint8_t* tile, int chunks, const TensorMap& map, uint64_t* full, int major, int k) {
  if (transposed) {
    for (int i = 0; i < chunks; i++) tensor_load(tile + i * CHUNK_BYTES, map, full, major + i * 64, k);
  } else {
    tensor_load(tile, map, full, k, major);
  }
}

// Waits for S's rows of a row of tiles; the last tile of that row to do so makes the counters zero again.
template <int BN> __device__ __forceinline__ void wait_for_branch(const HopperArguments& a, int tile_m) {
  uint32_t *written = a.tickets + 1 + tile_m, *read = written + Tile<BN>::rows_of_tiles(a);
  flag_wait(written, Pipeline<BN>::WARPS * Tile<BN>::columns_of_s(a));
  // A strong store, as the other blocks' loads are strong: nothing orders it after them.
  if (atomicAdd(read, 1u) + 1 == (uint32_t)(a.product.n + BN - 1) / BN) *(volatile uint32_t*)written = 0, *read = 0;
}

// Says which tile the next stages are of.
__device__ __forceinline__ void announce(const RingMemory& ring, RingPlace& slot, int index) {
  mbarrier_wait(ring.taken + slot.stage, slot.round ^ 1);
  ring.number[slot.stage] = index;
  mbarrier_arrive(ring.told + slot.stage);
  slot.next(2);
}

// The number of the next tile, in every thread of a warp.
__device__ __forceinline__ int next_tile(const RingMemory& ring, RingPlace& slot) {
  mbarrier_wait(ring.told + slot.stage, slot.round);
  int index = ring.number[slot.stage];
  __syncwarp();
  if (threadIdx.x % 32 == 0) mbarrier_arrive(ring.taken + slot.stage);
  slot.next(2);
  return index;
}

template <bool TA, bool TB, int BN>
__device__ __forceinline__ void produce(const HopperArguments& a, const RingMemory& ring) {
  constexpr int STAGES = Pipeline<BN>::STAGES, STAGE_BYTES = Pipeline<BN>::STAGE_BYTES;
  RingPlace at, slot;
  int count = Tile<BN>::count(a), index;
  while ((index = (int)atomicAdd(a.tickets, 1u)) < count) {
    Tile<BN> tile(a, index);
    // A box along k brings all that it holds, whatever is multiplied.
    int chunks = !TB || tile.of_branch ? tile.chunks : BN / 64;
    announce(ring, slot, index);
    for (int step = 0; step < tile.steps; step++, at.next(STAGES)) {
      bool second = step >= tile.steps0;
      int k = (second ? step - tile.steps0 : tile.first + step) * HOPPER_K;
      if (step == tile.steps0 && a.branch.n) wait_for_branch<BN>(a, tile.m);
      uint8_t* stage = ring.tiles + at.stage * STAGE_BYTES;
      uint64_t* arrived = ring.full + at.stage;
      mbarrier_wait(ring.empty + at.stage, at.round ^ 1);  // the first round finds every stage free
      mbarrier_arrive_expect(arrived, (HOPPER_M / 64 + chunks) * CHUNK_BYTES);
      const TensorMap& b = second ? a.b1 : tile.of_branch ? a.branch_b : a.b0;
      load_chunks<TA>(stage, HOPPER_M / 64, second ? a.a1 : a.a0, arrived, tile.m * HOPPER_M, k);
      load_chunks<!TB>(stage + HOPPER_M / 64 * CHUNK_BYTES, chunks, b, arrived, tile.n, k);
    }
  }
  announce(ring, slot, END);
  // Every block asked once too often.
  if (index + 1 == count + (int)gridDim.x) *a.tickets = 0;
}

// The products of one tile's COLUMNS.
template <bool TA, bool TB, int BN, int COLUMNS>
__device__ __forceinline__ void multiply_ring(float (&acc)[Pipeline<BN>::PARTS][BN / 2], int steps, RingPlace& at,
                                              const RingMemory& ring, uint32_t round) {
  constexpr int STAGES = Pipeline<BN>::STAGES, STAGE_BYTES = Pipeline<BN>::STAGE_BYTES, PARTS = Pipeline<BN>::PARTS;
  int part0 = Pipeline<BN>::IN_TURN ? 0 : threadIdx.x / 128 - 1, before = -1;
  bool elected = threadIdx.x % 128 == 0;
  uint32_t first_a = wgmma_operand<TA>(ring.tiles + part0 * CHUNK_BYTES);
  uint32_t first_b = wgmma_operand<!TB>(ring.tiles + HOPPER_M / 64 * CHUNK_BYTES);
#pragma unroll
  for (int part = 0; part < PARTS; part++) wgmma_hold(acc[part]);
  if (Pipeline<BN>::IN_TURN) mbarrier_wait(ring.turn + (threadIdx.x / 128 - 1), round);
  for (int step = 0; step < steps; step++, at.next(STAGES)) {
    uint32_t of_a = first_a + at.stage * (STAGE_BYTES / 16), of_b = first_b + at.stage * (STAGE_BYTES / 16);
    mbarrier_wait(ring.full + at.stage, at.round);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < HOPPER_K; k += 16) {
#pragma unroll
      for (int part = 0; part < PARTS; part++) {
        uint64_t rows = wgmma_descriptor(of_a + wgmma_step<TA>(k) + part * (CHUNK_BYTES / 16));
        wgmma<COLUMNS, TA, !TB>(acc[part], rows, wgmma_descriptor(of_b + wgmma_step<!TB>(k)));
      }
    }
    wgmma_commit();
    wgmma_wait<1>();  // the products of the stage before are done
    if (before >= 0 && elected) mbarrier_arrive(ring.empty + before);
    before = at.stage;
  }
  // All stages of this tile were full: the next one's may be waited for.
  if (Pipeline<BN>::IN_TURN && threadIdx.x % 32 == 0) mbarrier_arrive(ring.turn + (threadIdx.x < 256));
  wgmma_wait<0>();
#pragma unroll
  for (int part = 0; part < PARTS; part++) wgmma_hold(acc[part]);
  if (before >= 0 && elected) mbarrier_arrive(ring.empty + before);
}

// Leaves the sums of a run, and says whether this warp is the last to come with its rows of the tile: then they are those of
// all runs.
template <int PARTS, int n>
__device__ __forceinline__ bool add_runs(const HopperArguments& a, float (&acc)[PARTS][n], int64_t warp, int split, uint32_t* tickets) {
  int lane = threadIdx.x % 32;
  float* runs = a.partial + warp * a.splits * (PARTS * n * 32) + lane;
  float* own = runs + split * (PARTS * n * 32);
#pragma unroll
  for (int i = 0; i < PARTS * n; i++) own[i * 32] = acc[i / n][i % n];
  __threadfence();
  __syncwarp();
  uint32_t before = lane == 0 ? atomicAdd(tickets + warp, 1u) : 0;
  if (__shfl_sync(~0u, before, 0) + 1 != (uint32_t)a.splits) return false;
  __threadfence();
#pragma unroll
  for (int i = 0; i < PARTS * n; i++) acc[i / n][i % n] = 0.0f;
  for (int run = 0; run < a.splits; run++) {
#pragma unroll
    for (int i = 0; i < PARTS * n; i++) acc[i / n][i % n] += runs[(run * PARTS * n + i) * 32];
  }
  if (lane == 0) tickets[warp] = 0;
  return true;
}

// Writes 64 rows of a tile, 32 columns at a time.
template <class C, int BN>
__device__ __forceinline__ void finish_tile(const MatmulArguments& a, const float (&acc)[BN / 2], int row, int col0, int chunks) {
  bool sum_alone = is_sum_alone<C>(a);
#pragma unroll
  for (int col = 0; col < BN; col += 32) {
    if (col >= chunks * 64) return;
    if (sum_alone && col0 + col + 32 <= a.n) finish_sum<C>(a, row, col0 + col, acc + col / 2);
    else finish_quad<C>(a, row, col0 + col, acc + col / 2);
  }
}

// Writes this warpgroup's rows of a tile, of C or of S. A loop over one copy of the code, to which the sums are moved, is a third
// of the size and was slower on an H100.
template <class C, int BN>
__device__ __forceinline__ void finish_rows(const HopperArguments& a, const Tile<BN>& tile, const float (&acc)[Pipeline<BN>::PARTS][BN / 2]) {
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32 - 4, row0 = tile.m * HOPPER_M + warp % Pipeline<BN>::WARPS * 16 + lane / 4;
#pragma unroll
  for (int part = 0; part < Pipeline<BN>::PARTS; part++) {
    int row = row0 + part * 64;
    if (sizeof(C) == sizeof(bf16)) {  // one epilogue for both
      MatmulArguments of_tile = a.product;
      if (tile.of_branch) of_tile = a.branch;
      finish_tile<bf16, BN>(of_tile, acc[part], row, tile.n, tile.chunks);
    } else if (tile.of_branch) {
      finish_tile<bf16, BN>(a.branch, acc[part], row, tile.n, tile.chunks);
    } else {
      finish_tile<C, BN>(a.product, acc[part], row, tile.n, tile.chunks);
    }
  }
}

// Whether a tile leaves by way of shared memory. The branch's are written at once: others wait for them.
template <class C, int BN> __device__ __forceinline__ bool leaves_staged(const HopperArguments& a, const Tile<BN>& tile) {
  return !tile.of_branch && a.splits == 1 && is_staged<C>(a.product);
}

// The warps that write what was staged.
template <class C, int BN> __device__ __forceinline__ void write_tiles(const HopperArguments& a, const RingMemory& ring) {
  RingPlace slot;
  uint32_t use = 0;
  int turn = 0;
  for (int index; (index = next_tile(ring, slot)) != END; turn ^= Pipeline<BN>::IN_TURN) {
    Tile<BN> tile(a, index);
    if (leaves_staged<C>(a, tile)) write_tile(a.product, ring.staging, tile.m * HOPPER_M, tile.n, tile.chunks * 64, turn, use);
  }
}

template <class C, bool TA, bool TB, int BN>
__device__ __forceinline__ void consume(const HopperArguments& a, const RingMemory& ring) {
  constexpr int WARPS = Pipeline<BN>::WARPS;
  RingPlace at, slot;
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32 - 4, group = warp / 4, turn = 0;
  uint32_t round = 1 - group, use = 0;  // the first warpgroup's first turn is told by nobody
  for (int index; (index = next_tile(ring, slot)) != END; turn ^= 1) {
    Tile<BN> tile(a, index);
    if (Pipeline<BN>::IN_TURN && turn != group) {
      at.skip(tile.steps, Pipeline<BN>::STAGES);
      continue;
    }
    float acc[Pipeline<BN>::PARTS][BN / 2] = {};
    if (tile.chunks == 1) multiply_ring<TA, TB, BN, 64>(acc, tile.steps, at, ring, round);
    else if (tile.chunks == 2) multiply_ring<TA, TB, BN, 128>(acc, tile.steps, at, ring, round);
    else multiply_ring<TA, TB, BN, BN>(acc, tile.steps, at, ring, round);
    round ^= 1;
    if (a.splits > 1) {
      uint32_t* tickets = a.tickets + 1 + 2 * Tile<BN>::rows_of_tiles(a);
      if (!add_runs(a, acc, (int64_t)tile.number * WARPS + warp % WARPS, tile.split, tickets)) continue;
    }
    if (leaves_staged<C>(a, tile)) {
      int row0 = Pipeline<BN>::IN_TURN ? 0 : group * 64;
      stage_tile<BN>(a.product, ring.staging, acc, row0, tile.chunks * 64, Pipeline<BN>::IN_TURN ? group : 0, use);
      continue;
    }
    finish_rows<C, BN>(a, tile, acc);
    if (!tile.of_branch) continue;
    __syncwarp();
    if (lane == 0) flag_add(a.tickets + 1 + tile.m);
  }
}

template <class C, bool TA, bool TB, int BN> __device__ __forceinline__ void matmul_sm90a(const HopperArguments& a) {
  GEMS_SHARED(shared);
  constexpr int STAGES = Pipeline<BN>::STAGES;
  // The swizzle goes by address: tiles start at a multiple of 1024.
  uint8_t* tiles = held(shared + (-shared_address(shared) & 1023));
  uint8_t* buffer = tiles + STAGES * Pipeline<BN>::STAGE_BYTES;
  uint64_t* full = reinterpret_cast<uint64_t*>(buffer + HOPPER_STAGED_BYTES);
  uint64_t *empty = full + STAGES, *told = empty + STAGES, *taken = told + 2, *turn = taken + 2, *ready = turn + 2;
  RingMemory ring = {tiles, full, empty, told, taken, turn, {buffer, ready, ready + 2}, reinterpret_cast<int*>(ready + 3)};
  if (threadIdx.x == 0) {
    for (int i = 0; i < STAGES; i++) {
      mbarrier_init(full + i, 1);
      mbarrier_init(empty + i, Pipeline<BN>::IN_TURN ? 1 : 2);
    }
    for (int i = 0; i < 2; i++) {
      mbarrier_init(told + i, 1);
      mbarrier_init(taken + i, HOPPER_WARPS + HOPPER_WRITERS);
      mbarrier_init(turn + i, 4);  // the other warpgroup's warps
      mbarrier_init(ready + i, HOPPER_WRITERS);
    }
    mbarrier_init(ring.staging.filled, Pipeline<BN>::WARPS);
    mbarrier_init_fence();
    tensor_prefetch(a.a0);
    tensor_prefetch(a.b0);
  }
  __syncthreads();
  if (threadIdx.x < 128) {
    reg_dealloc<56>();
    if (threadIdx.x >= 32) write_tiles<C, BN>(a, ring);
    else if (elect_one()) produce<TA, TB, BN>(a, ring);
  } else {
    reg_alloc<224>();
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
