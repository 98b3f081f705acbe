// The task gradient: for every part p of one launch,
//
//   OUT[:, to_p .. to_p + n_p] (+)= scale_p Y[rows_p]^T X[rows_p, columns_p]
//
// and, where wanted, inner products of blocks of OUT's columns as they are afterwards:
//
//   products[q] = <OUT[:, a_q .. a_q + w_q], OUT[:, b_q .. b_q + w_q]>
//
// Y [T x M], X [T x any], OUT f32 [M x any]. In training Y is an output gradient dY, X = H = x A^T holds
// the coordinates of all subspaces, and the parts are (shared subspace, task's tokens), (task's subspace,
// task's tokens): one launch gives every subspace's dB, its squared norm and the tasks' products. Parts of one launch
// write disjoint columns. With `fresh` OUT is written, and zero where no part writes; without, added to.
//
// The tokens of a part are cut into `splits` runs of equal length, so that there are enough blocks for the whole GPU; with
// more than one, run s goes to row block s of `partial` f32 [splits * M x any], and the last block of a tile adds the
// runs in order. The last block of a row of tiles takes its rows' products, `sums` f64 [tiles of M x products], and the
// last of all adds those: deterministic, no float atomics. `tickets` u32 [tiles of M x column tiles + tiles of M + 1]
// are zero before and after.
//
// weight_grad_tc: bf16 on tensor cores; Y, X and column starts aligned to 16 bytes; 256 threads, 36 KiB shared
//   memory, 128 x 64 tiles. weight_grad_plain_*: any types and alignment, 256 threads, 8.5 KiB, 64 x 64 tiles.
// Grid: x tiles of M, y (part, column tile), z splits.
// Bytes: Y once per part and column tile, X once per tile of M, OUT twice (once when fresh), and 4 (splits + 1) M n of runs.
// Flops: 2 M sum_p rows_p n_p.
#include "matmul_tile.cuh"

struct GradBlock { int row0, rows, col0, cols, to; float scale; };
struct GradPair { int a, b, width; };

struct WeightGradArguments {
  Matrix y, x, out, partial;
  uint32_t* tickets;
  double* sums;
  float* products;  // null: none are wanted
  int splits, parts, pairs, fresh, uncovered, unused;
  GradBlock part[GRAD_PARTS];
  GradPair pair[GRAD_PAIRS];
};

// The rows of the part, and the first of its columns, that are this block's.
struct BlockTile { GradBlock part; int n0; };

__device__ __forceinline__ BlockTile block_tile(const WeightGradArguments& a) {
  int column_tile = blockIdx.y, p = 0;
  while (column_tile >= (a.part[p].cols + GRAD_TILE_N - 1) / GRAD_TILE_N) {
    column_tile -= (a.part[p].cols + GRAD_TILE_N - 1) / GRAD_TILE_N;
    p++;
  }
  BlockTile b = {a.part[p], column_tile * GRAD_TILE_N};
  // Runs are multiples of the tile depth, so that only the last one is ragged.
  int run = ((b.part.rows + a.splits - 1) / a.splits + TILE_K - 1) / TILE_K * TILE_K;
  int first = run * (int)blockIdx.z < b.part.rows ? run * (int)blockIdx.z : b.part.rows;
  b.part.row0 += first;
  b.part.rows = b.part.rows - first < run ? b.part.rows - first : run;
  return b;
}

__device__ __forceinline__ void store_value(const WeightGradArguments& a, const BlockTile& b, int row, int col, float value) {
  if (row >= a.y.cols || col >= b.part.cols) return;
  value *= b.part.scale;
  if (a.splits > 1) {
    a.partial.row<float>((int64_t)blockIdx.z * a.y.cols + row)[b.part.to + col] = value;
    return;
  }
  float* to = a.out.row<float>(row) + b.part.to + col;
  *to = a.fresh ? value : *to + value;
}

// Adds the runs of this block's tile in order.
__device__ __forceinline__ void add_runs(const WeightGradArguments& a, const BlockTile& b, int m0, int rows) {
  int width = b.part.cols - b.n0 < GRAD_TILE_N ? b.part.cols - b.n0 : GRAD_TILE_N;
  for (int i = threadIdx.x; i < rows * width; i += blockDim.x) {
    int row = m0 + i / width, col = b.part.to + b.n0 + i % width;
    float total = 0.0f;
    for (int s = 0; s < a.splits; s++) total += a.partial.row<float>((int64_t)s * a.y.cols + row)[col];
    float* to = a.out.row<float>(row) + col;
    *to = a.fresh ? total : *to + total;
  }
}

// Zeros in the columns that no part writes.
__device__ __forceinline__ void clear_rest(const WeightGradArguments& a, int m0, int rows) {
  for (int i = threadIdx.x; i < rows * a.out.cols; i += blockDim.x) {
    int col = i % a.out.cols;
    bool written = false;
    for (int p = 0; p < a.parts; p++) written |= col >= a.part[p].to && col < a.part[p].to + a.part[p].cols;
    if (!written) a.out.row<float>(m0 + i / a.out.cols)[col] = 0.0f;
  }
  __syncthreads();
}

// The part of a product that lies in some rows, in every thread.
__device__ __forceinline__ double product_of_rows(const WeightGradArguments& a, const GradPair& pair, int m0, int rows, double* scratch) {
  double sum = 0.0;
  for (int i = threadIdx.x; i < rows * pair.width; i += blockDim.x) {
    const float* row = a.out.row<const float>(m0 + i / pair.width) + i % pair.width;
    sum += (double)row[pair.a] * (double)row[pair.b];
  }
  return row_sum(sum, scratch);
}

// What follows a block's tile: whoever comes last goes on.
__device__ __forceinline__ void finish_tile(const WeightGradArguments& a, const BlockTile& b, int m0, int tile_rows, uint8_t* shared) {
  uint32_t* flag = reinterpret_cast<uint32_t*>(shared);
  uint32_t* of_rows = a.tickets + gridDim.x * gridDim.y;
  int rows = a.y.cols - m0 < tile_rows ? a.y.cols - m0 : tile_rows;
  if (a.splits > 1) {
    if (!last_of(a.tickets + blockIdx.x * gridDim.y + blockIdx.y, a.splits, flag)) return;
    add_runs(a, b, m0, rows);
  }
  if (!a.products && !(a.fresh && a.uncovered)) return;
  if (!last_of(of_rows + blockIdx.x, gridDim.y, flag)) return;
  if (a.fresh && a.uncovered) clear_rest(a, m0, rows);
  if (!a.products) return;
  for (int q = 0; q < a.pairs; q++) {
    double sum = product_of_rows(a, a.pair[q], m0, rows, reinterpret_cast<double*>(shared + 64));
    if (threadIdx.x == 0) a.sums[(int64_t)blockIdx.x * a.pairs + q] = sum;
  }
  if (!last_of(of_rows + gridDim.x, gridDim.x, flag) || (int)threadIdx.x >= a.pairs) return;
  double total = 0.0;
  for (int tile = 0; tile < (int)gridDim.x; tile++) total += a.sums[(int64_t)tile * a.pairs + threadIdx.x];
  a.products[threadIdx.x] = (float)total;
}

__device__ __forceinline__ void multiply_part_tc(const WeightGradArguments& a) {
  GEMS_SHARED(shared);
  BlockTile b = block_tile(a);
  int m0 = blockIdx.x * TILE_M;
  float acc[4][2][4] = {};
  Operand y = {a.y.row<const bf16>(b.part.row0), a.y.ld, a.y.cols, b.part.rows};
  Operand x = {a.x.row<const bf16>(b.part.row0) + b.part.col0, a.x.ld, b.part.cols, b.part.rows};
  multiply_tile<GRAD_TILE_N, true, true>(acc, y, x, m0, b.n0, shared);
  each_of_tile<GRAD_TILE_N>(acc, m0, b.n0, [&](int row, int col, float value) { store_value(a, b, row, col, value); });
  finish_tile(a, b, m0, TILE_M, shared);
}

template <class Y, class X> __device__ __forceinline__ void multiply_part_plain(const WeightGradArguments& a) {
  GEMS_SHARED(shared);
  BlockTile b = block_tile(a);
  int m0 = blockIdx.x * PLAIN_TILE;
  float acc[4][4] = {};
  StridedOperand<Y> y = {a.y.row<const Y>(b.part.row0), 1, a.y.ld, a.y.cols, b.part.rows};
  StridedOperand<X> x = {a.x.row<const X>(b.part.row0) + b.part.col0, 1, a.x.ld, b.part.cols, b.part.rows};
  multiply_plain(acc, y, x, m0, b.n0, shared);
  each_of_plain(acc, m0, b.n0, [&](int row, int col, float value) { store_value(a, b, row, col, value); });
  finish_tile(a, b, m0, PLAIN_TILE, shared);
}

GEMS_KERNEL(weight_grad_tc, TILE_THREADS, WeightGradArguments, multiply_part_tc)
GEMS_KERNEL_BLOCKS(weight_grad_plain_f32_f32, PLAIN_THREADS, 2, WeightGradArguments, multiply_part_plain<float, float>)
GEMS_KERNEL_BLOCKS(weight_grad_plain_f32_bf16, PLAIN_THREADS, 2, WeightGradArguments, multiply_part_plain<float, bf16>)
GEMS_KERNEL_BLOCKS(weight_grad_plain_bf16_f32, PLAIN_THREADS, 2, WeightGradArguments, multiply_part_plain<bf16, float>)
GEMS_KERNEL_BLOCKS(weight_grad_plain_bf16_bf16, PLAIN_THREADS, 2, WeightGradArguments, multiply_part_plain<bf16, bf16>)

GEMS_FILE(weight_grad)
