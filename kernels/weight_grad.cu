// The task gradient: for every group g of one launch, and every one of its blocks b of columns,
//
//   OUT[:, to_b .. to_b + n_b] (+)= scale_b Y[rows_g]^T X[rows_g, columns_b]
//
// and, where wanted, inner products of blocks of OUT's columns as they are afterwards:
//
//   products[q] = <OUT[:, a_q .. a_q + w_q], OUT[:, b_q .. b_q + w_q]>
//
// Y [T x M], X [T x any], OUT f32 [M x any]. In training Y is an output gradient dY, X = H = x A^T holds
// the coordinates of all subspaces, a group is a task's tokens, and its blocks are the shared subspace and the task's own: one
// launch gives every subspace's dB, its squared norm and the tasks' products. Blocks of one launch write disjoint columns. With
// `fresh` OUT is written, and zero where no block writes; without, added to.
//
// A tile's columns are gathered from its group's blocks, in units of eight, so that Y is read once for all of them. The
// tokens of a group are cut into `splits` runs of equal length, so that there are enough thread blocks for the whole GPU; with
// more than one, a block leaves its sums in `partial` f32 [tiles, splits, values of a tile], and the last block of a tile adds
// the runs in order. The last block of a row of tiles takes its rows' products, `sums` f64 [tiles of M x products], and the
// last of all adds those: deterministic, no float atomics. `tickets` u32 [tiles of M x column tiles + tiles of M + 1]
// are zero before and after.
//
// weight_grad_tc: bf16 on tensor cores; Y, X and column starts aligned to 16 bytes; GRAD_THREADS threads, GRAD_TILE_SHARED bytes
//   of shared memory, 64 x 64 tiles, of which 32 columns are multiplied where that is enough. weight_grad_plain_*: any types and
//   alignment, a block a group, 256 threads, 8.5 KiB, 64 x 64 tiles.
// Grid: x tiles of M, y (group, column tile), z splits.
// Bytes: Y once per group and column tile, X once per tile of M, OUT twice (once when fresh), and 8 splits M n of runs.
// Flops: 2 M sum_b rows_b n_b.
#include "matmul_tile.cuh"

struct GradGroup { int row0, rows, first, blocks; };  // blocks first .. first + blocks
struct GradBlock { int col0, cols, to; float scale; };
struct GradPair { int a, b, width; };

struct WeightGradArguments {
  Matrix y, x, out;
  float* partial;  // null without splits
  uint32_t* tickets;
  double* sums;
  float* products;  // null: none are wanted
  int splits, groups, blocks, pairs, fresh, uncovered;
  GradGroup group[GRAD_PARTS];
  GradBlock block[GRAD_PARTS];
  GradPair pair[GRAD_PAIRS];
};

// ---- which columns and which tokens are a thread block's ----------------------------------------------------

// Eight columns, or as many as are left of their block: where they are in X and in OUT.
struct Unit { int col, to, cols; float scale; };

__device__ __forceinline__ int units_of(int cols) { return (cols + CHUNK - 1) / CHUNK; }

__device__ __forceinline__ int units_of(const WeightGradArguments& a, const GradGroup& g) {
  int units = 0;
  for (int b = g.first; b < g.first + g.blocks; b++) units += units_of(a.block[b].cols);
  return units;
}

// A unit of a group; beyond its last one, no columns.
__device__ __forceinline__ Unit unit_of(const WeightGradArguments& a, const GradGroup& g, int unit) {
  for (int b = g.first; b < g.first + g.blocks; b++) {
    GradBlock block = a.block[b];
    int col = unit * CHUNK, cols = block.cols - col;
    if (cols > 0) return {block.col0 + col, block.to + col, cols < CHUNK ? cols : CHUNK, block.scale};
    unit -= units_of(block.cols);
  }
  return {0, 0, 0, 0.0f};
}

// Tokens row0 .. row0 + rows of a group, and its columns from `unit` on, of which `units` are multiplied.
struct BlockTile { GradGroup group; int row0, rows, unit, units; };

template <int depth> __device__ __forceinline__ BlockTile block_tile(const WeightGradArguments& a) {
  constexpr int UNITS = GRAD_TILE_N / CHUNK;
  int tile = blockIdx.y, g = 0, units;
  while (tile * UNITS >= (units = units_of(a, a.group[g]))) tile -= (units + UNITS - 1) / UNITS, g++;
  GradGroup group = a.group[g];
  int left = units - tile * UNITS;
  // Runs are multiples of a stage's depth, so that only the last one is ragged.
  int run = ((group.rows + a.splits - 1) / a.splits + depth - 1) / depth * depth;
  int first = run * (int)blockIdx.z < group.rows ? run * (int)blockIdx.z : group.rows;
  int rows = group.rows - first < run ? group.rows - first : run;
  return {group, group.row0 + first, rows, tile * UNITS, left < UNITS ? left : UNITS};
}

// ---- what follows a block's products --------------------------------------------------------------------------

// Adds the runs of a tile in order, in the block that comes last; the others are done.
template <int tile_rows, int n>
__device__ __forceinline__ bool add_runs(const WeightGradArguments& a, float (&acc)[n][4], uint32_t* flag) {
  if (a.splits == 1) return true;
  int tile = blockIdx.x * gridDim.y + blockIdx.y, stride = n * blockDim.x;
  float4* runs = reinterpret_cast<float4*>(a.partial + (int64_t)tile * a.splits * (tile_rows * GRAD_TILE_N)) + threadIdx.x;
#pragma unroll
  for (int i = 0; i < n; i++) runs[blockIdx.z * stride + i * blockDim.x] = float4{acc[i][0], acc[i][1], acc[i][2], acc[i][3]};
  if (!last_of(a.tickets + tile, a.splits, flag)) return false;
#pragma unroll
  for (int i = 0; i < n; i++) acc[i][0] = acc[i][1] = acc[i][2] = acc[i][3] = 0.0f;
#pragma unroll 4
  for (int s = 0; s < a.splits; s++) {
#pragma unroll
    for (int i = 0; i < n; i++) {
      float4 v = runs[s * stride + i * blockDim.x];
      acc[i][0] += v.x, acc[i][1] += v.y, acc[i][2] += v.z, acc[i][3] += v.w;
    }
  }
  return true;
}

__device__ __forceinline__ void store_value(const WeightGradArguments& a, float* to, float value) {
  *to = a.fresh ? value : *to + value;
}

// Zeros in the columns that no block writes.
__device__ __forceinline__ void clear_rest(const WeightGradArguments& a, int m0, int rows) {
  for (int i = threadIdx.x; i < rows * a.out.cols; i += blockDim.x) {
    int col = i % a.out.cols;
    bool written = false;
    for (int b = 0; b < a.blocks; b++) written |= col >= a.block[b].to && col < a.block[b].to + a.block[b].cols;
    if (!written) a.out.row<float>(m0 + i / a.out.cols)[col] = 0.0f;
  }
  __syncthreads();
}

// Copies rows of OUT from `out` on to shared memory, one behind the other, in pieces of type T.
template <class T> __device__ __forceinline__ void copy_rows(float* to, const float* out, const Matrix& m, int rows) {
  constexpr int SIZE = sizeof(T) / sizeof(float);
  int cols = m.cols / SIZE, row = threadIdx.x / cols, col = threadIdx.x % cols, rows_on = blockDim.x / cols, cols_on = blockDim.x % cols;
#pragma unroll 8
  for (int i = threadIdx.x; i < rows * cols; i += blockDim.x) {
    reinterpret_cast<T*>(to)[i] = *reinterpret_cast<const T*>(out + row * m.ld + col * SIZE);
    row += rows_on, col += cols_on;
    if (col >= cols) col -= cols, row++;
  }
}

// The parts of the products that lie in some rows of OUT: a warp a pair.
__device__ __forceinline__ void products_of_rows(const WeightGradArguments& a, const float* out, int64_t ld, int rows) {
  int lane = threadIdx.x % 32;
  for (int q = threadIdx.x / 32; q < a.pairs; q += blockDim.x / 32) {
    GradPair pair = a.pair[q];
    double sum = 0.0;
    int width = max(pair.width, 1), end = pair.width > 0 ? rows : 0; // of no columns there is nothing to add
    int row = lane / width, col = lane % width, rows_on = 32 / width, cols_on = 32 % width;
#pragma unroll 8
    while (row < end) {
      const float* at = out + row * ld + col;
      sum += (double)at[pair.a] * (double)at[pair.b];
      row += rows_on, col += cols_on;
      if (col >= width) col -= width, row++;
    }
    sum = warp_sum(sum);
    if (lane == 0) a.sums[(int64_t)blockIdx.x * a.pairs + q] = sum;
  }
}

// What follows a tile that is written: whoever comes last goes on. `shared` has TILE_BYTES bytes that nobody uses.
template <int TILE_ROWS, int TILE_BYTES>
__device__ __forceinline__ void finish_tile(const WeightGradArguments& a, int m0, uint8_t* shared) {
  if (!a.products && !(a.fresh && a.uncovered)) return;
  uint32_t *of_rows = a.tickets + gridDim.x * gridDim.y, *flag = reinterpret_cast<uint32_t*>(shared);
  int rows = a.y.cols - m0 < TILE_ROWS ? a.y.cols - m0 : TILE_ROWS;
  if (!last_of(of_rows + blockIdx.x, gridDim.y, flag)) return;
  if (a.fresh && a.uncovered) clear_rest(a, m0, rows);
  if (!a.products) return;
  if (rows * a.out.cols * 4 <= TILE_BYTES - 16) {
    // Most elements are in several pairs, and all are asked for at once.
    float* near = reinterpret_cast<float*>(shared + 16);
    if (aligned16(a.out.data) && a.out.ld % 4 == 0 && a.out.cols % 4 == 0) copy_rows<float4>(near, a.out.row<const float>(m0), a.out, rows);
    else copy_rows<float>(near, a.out.row<const float>(m0), a.out, rows);
    __syncthreads();
    products_of_rows(a, near, a.out.cols, rows);
  } else {
    products_of_rows(a, a.out.row<const float>(m0), a.out.ld, rows);
  }
  if (!last_of(of_rows + gridDim.x, gridDim.x, flag) || (int)threadIdx.x >= a.pairs) return;
  double total = 0.0;
#pragma unroll 8
  for (int tile = 0; tile < (int)gridDim.x; tile++) total += a.sums[(int64_t)tile * a.pairs + threadIdx.x];
  a.products[threadIdx.x] = (float)total;
}

// ---- tensor cores: 64 x 8 UNITS of a tile, a warp 16 rows --------------------------------------------------------

// Rows of both tiles are 128 bytes, eight pieces of 16; a thread copies the same piece of every 16th row of a stage.
constexpr int GRAD_ROW = 128, GRAD_ROWS_ON = GRAD_THREADS / 8, GRAD_OPERAND = GRAD_TILE_K * GRAD_ROW;
static_assert(GRAD_TILE_M * 2 == GRAD_ROW && GRAD_TILE_N * 2 == GRAD_ROW, "both tiles have such rows");

// What a thread copies of an operand: its piece of row threadIdx.x / 8, of which `bytes` exist.
struct Source {
  const bf16* data;
  int64_t ld;
  int bytes;
  // Rows from `row0` on of `rows`.
  __device__ __forceinline__ void copy(uint8_t* to, int row0, int rows) const {
    const bf16* from = data + row0 * ld;
    int64_t on = GRAD_ROWS_ON * ld;
    int exist = rows - row0 - (int)threadIdx.x / 8;  // of this thread's first row, and below it
    if (row0 + GRAD_TILE_K <= rows) {
#pragma unroll
      for (int i = 0; i < GRAD_TILE_K / GRAD_ROWS_ON; i++, from += on) copy_async16(to + i * (GRAD_ROWS_ON * GRAD_ROW), from, bytes);
      return;
    }
#pragma unroll 1
    for (int i = 0; i < GRAD_TILE_K / GRAD_ROWS_ON; i++, from += on) {
      bool exists = i * GRAD_ROWS_ON < exist;
      copy_async16(to + i * (GRAD_ROWS_ON * GRAD_ROW), exists ? from : data, exists ? bytes : 0);
    }
  }
};

// Where this thread's fragments lie in a stage: of its warp's 16 outputs, and of two units of X.
template <int UNITS> struct Fragments {
  int y, x[UNITS / 2];
  __device__ __forceinline__ Fragments() {
    int lane = threadIdx.x % 32;
    y = swizzled<GRAD_ROW>(lane / 16 * 8 + lane % 8, threadIdx.x / 32 * 2 + lane / 8 % 2);
#pragma unroll
    for (int j = 0; j < UNITS / 2; j++) x[j] = GRAD_OPERAND + swizzled<GRAD_ROW>(lane % 16, j * 2 + lane / 16);
  }
  __device__ __forceinline__ void multiply(float (&acc)[UNITS][4], const uint8_t* stage) const {
#pragma unroll
    for (int k = 0; k < GRAD_TILE_K; k += 16) {
      uint32_t fy[1][4], fx[UNITS][2];
      ldmatrix_transposed(fy[0], stage + y + k * GRAD_ROW);
#pragma unroll
      for (int j = 0; j < UNITS; j += 2) {
        uint32_t r[4];
        ldmatrix_transposed(r, stage + x[j / 2] + k * GRAD_ROW);
        fx[j][0] = r[0], fx[j][1] = r[1], fx[j + 1][0] = r[2], fx[j + 1][1] = r[3];
      }
      mma(*reinterpret_cast<float(*)[1][UNITS][4]>(&acc), fy, fx);
    }
  }
};

template <int UNITS>
__device__ __forceinline__ void multiply_units(const WeightGradArguments& a, const BlockTile& b, int m0, uint8_t* shared) {
  constexpr int STAGE_BYTES = 2 * GRAD_OPERAND;
  Unit* unit = reinterpret_cast<Unit*>(shared + GRAD_STAGES * STAGE_BYTES);
  int row = threadIdx.x / 8, piece = threadIdx.x % 8, col = m0 + piece * 8, left = a.y.cols - col;
  Unit mine = unit_of(a, b.group, b.unit + piece);
  if (row == 0) unit[piece] = mine;
  Source y = {a.y.row<const bf16>(b.row0 + row) + (left > 0 ? col : 0), a.y.ld, (left < 0 ? 0 : left < 8 ? left : 8) * 2};
  Source x = {a.x.row<const bf16>(b.row0 + row) + mine.col, a.x.ld, mine.cols * 2};
  uint8_t* place = shared + swizzled<GRAD_ROW>(row, piece);
  auto load = [&](int step) {
    uint8_t* to = place + step % GRAD_STAGES * STAGE_BYTES;
    y.copy(to, step * GRAD_TILE_K, b.rows);
    x.copy(to + GRAD_OPERAND, step * GRAD_TILE_K, b.rows);
  };
  Fragments<UNITS> fragments;
  float acc[UNITS][4] = {};
  int steps = (b.rows + GRAD_TILE_K - 1) / GRAD_TILE_K;
#pragma unroll
  for (int s = 0; s < GRAD_STAGES - 1; s++) {
    if (s < steps) load(s);
    copy_async_commit();
  }
  for (int step = 0; step < steps; step++) {
    copy_async_wait<GRAD_STAGES - 2>();
    __syncthreads();  // this stage is complete, and the stage before it is free
    if (step + GRAD_STAGES - 1 < steps) load(step + GRAD_STAGES - 1);
    copy_async_commit();
    fragments.multiply(acc, shared + step % GRAD_STAGES * STAGE_BYTES);
  }
  copy_async_wait<0>();
  __syncthreads();  // the flag lies where tiles were
  uint32_t* flag = reinterpret_cast<uint32_t*>(shared);
  if (!add_runs<GRAD_TILE_M>(a, acc, flag)) return;
  int lane = threadIdx.x % 32, first = m0 + threadIdx.x / 32 * 16 + lane / 4;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    float* out = a.out.row<float>(first + half * 8) + lane % 4 * 2;
#pragma unroll
    for (int j = 0; j < UNITS; j++) {
      int exist = first + half * 8 < a.y.cols ? unit[j].cols - lane % 4 * 2 : 0;
      if (exist > 0) store_value(a, out + unit[j].to, unit[j].scale * acc[j][half * 2]);
      if (exist > 1) store_value(a, out + unit[j].to + 1, unit[j].scale * acc[j][half * 2 + 1]);
    }
  }
  finish_tile<GRAD_TILE_M, GRAD_STAGES * STAGE_BYTES>(a, m0, shared);
}

__device__ __forceinline__ void multiply_group_tc(const WeightGradArguments& a) {
  GEMS_SHARED(shared);
  BlockTile b = block_tile<GRAD_TILE_K>(a);
  if (b.units <= 4) multiply_units<4>(a, b, blockIdx.x * GRAD_TILE_M, shared);
  else multiply_units<8>(a, b, blockIdx.x * GRAD_TILE_M, shared);
}

// ---- CUDA cores ------------------------------------------------------------------------------------------------------

template <class Y, class X> __device__ __forceinline__ void multiply_group_plain(const WeightGradArguments& a) {
  GEMS_SHARED(shared);
  BlockTile b = block_tile<PLAIN_K>(a);
  GradBlock block = a.block[b.group.first];  // its only one
  int m0 = blockIdx.x * PLAIN_TILE, n0 = b.unit * CHUNK;
  float acc[4][4] = {};
  StridedOperand<Y> y = {a.y.row<const Y>(b.row0), 1, a.y.ld, a.y.cols, b.rows};
  StridedOperand<X> x = {a.x.row<const X>(b.row0) + block.col0, 1, a.x.ld, block.cols, b.rows};
  multiply_plain(acc, y, x, m0, n0, shared);
  __syncthreads();  // the flag lies where tiles were
  uint32_t* flag = reinterpret_cast<uint32_t*>(shared);
  if (!add_runs<PLAIN_TILE>(a, acc, flag)) return;
  each_of_plain(acc, m0, n0, [&](int row, int col, float value) {
    if (row < a.y.cols && col < block.cols) store_value(a, a.out.row<float>(row) + block.to + col, block.scale * value);
  });
  finish_tile<PLAIN_TILE, PLAIN_SHARED>(a, m0, shared);
}

GEMS_KERNEL(weight_grad_tc, GRAD_THREADS, WeightGradArguments, multiply_group_tc)
GEMS_KERNEL_BLOCKS(weight_grad_plain_f32_f32, PLAIN_THREADS, 2, WeightGradArguments, multiply_group_plain<float, float>)
GEMS_KERNEL_BLOCKS(weight_grad_plain_f32_bf16, PLAIN_THREADS, 2, WeightGradArguments, multiply_group_plain<float, bf16>)
GEMS_KERNEL_BLOCKS(weight_grad_plain_bf16_f32, PLAIN_THREADS, 2, WeightGradArguments, multiply_group_plain<bf16, float>)
GEMS_KERNEL_BLOCKS(weight_grad_plain_bf16_bf16, PLAIN_THREADS, 2, WeightGradArguments, multiply_group_plain<bf16, bf16>)

GEMS_FILE(weight_grad)
