// The task gradient: for every part p of one launch,
//
//   OUT[:, to_p .. to_p + n_p] += scale_p Y[rows_p]^T X[rows_p, columns_p]
//
// Y [T x M], X [T x any], OUT f32 [M x any]. In training Y is an output gradient dY, X = H = x A^T holds
// the coordinates of all subspaces, and the parts are (shared subspace, all tokens), (task's subspace,
// task's tokens): one launch gives every subspace's dB. Parts of one launch write disjoint columns.
//
// The tokens of a part are cut into `splits` runs of equal length, so that there are enough blocks for
// the whole GPU; with more than one, run s goes to row block s of `partial` f32 [splits * M x any], and
// outer_sum adds the runs to OUT in order: deterministic, no atomics.
//
// outer_tc: bf16 on tensor cores; Y, X and column starts aligned to 16 bytes; 256 threads, 36 KiB shared
//   memory, 128 x 64 tiles. outer_plain_*: any types and alignment, 256 threads, 8.5 KiB, 64 x 64 tiles.
// Grid: x tiles of M, y (part, column tile), z splits.
// Bytes: Y once per part and column tile, X once per tile of M, OUT twice. Flops: 2 M sum_p rows_p n_p.
#include "matmul_tile.cuh"

constexpr int OUTER_PARTS = 32;

struct OuterPart { int row0, rows, col0, cols, to; float scale; };

struct OuterArguments {
  Matrix y, x, out;    // out: OUT, or partial when splits > 1
  int splits, parts;
  OuterPart part[OUTER_PARTS];
};

// The part, first column and rows that are this block's.
struct OuterBlock { OuterPart part; int n0; Matrix out; bool add; };

__device__ __forceinline__ OuterBlock outer_block(const OuterArguments& a, int tile_n) {
  int column_tile = blockIdx.y, p = 0;
  while (column_tile >= (a.part[p].cols + tile_n - 1) / tile_n) {
    column_tile -= (a.part[p].cols + tile_n - 1) / tile_n;
    p++;
  }
  OuterBlock b = {a.part[p], column_tile * tile_n, a.out, a.splits == 1};
  // Runs are multiples of the tile depth, so that only the last one is ragged.
  int run = ((b.part.rows + a.splits - 1) / a.splits + TILE_K - 1) / TILE_K * TILE_K;
  int first = run * (int)blockIdx.z < b.part.rows ? run * (int)blockIdx.z : b.part.rows;
  b.part.row0 += first;
  b.part.rows = b.part.rows - first < run ? b.part.rows - first : run;
  if (!b.add) b.out.data = b.out.row<float>((int64_t)blockIdx.z * a.y.cols);
  return b;
}

__device__ __forceinline__ void outer_store(const OuterArguments& a, const OuterBlock& b, int row, int col, float value) {
  if (row >= a.y.cols || col >= b.part.cols) return;
  float* to = b.out.row<float>(row) + b.part.to + col;
  value *= b.part.scale;
  *to = b.add ? *to + value : value;
}

__device__ __forceinline__ void multiply_part_tc(const OuterArguments& a) {
  GEMS_SHARED(shared);
  OuterBlock b = outer_block(a, 64);
  int m0 = blockIdx.x * TILE_M;
  float acc[4][2][4] = {};
  Operand y = {a.y.row<const bf16>(b.part.row0), a.y.ld, a.y.cols, b.part.rows};
  Operand x = {a.x.row<const bf16>(b.part.row0) + b.part.col0, a.x.ld, b.part.cols, b.part.rows};
  multiply_tile<64, true, true>(acc, y, x, m0, b.n0, shared);
  each_of_tile<64>(acc, m0, b.n0, [&](int row, int col, float value) { outer_store(a, b, row, col, value); });
}

template <class Y, class X> __device__ __forceinline__ void multiply_part_plain(const OuterArguments& a) {
  GEMS_SHARED(shared);
  OuterBlock b = outer_block(a, PLAIN_TILE);
  int m0 = blockIdx.x * PLAIN_TILE;
  float acc[4][4] = {};
  StridedOperand<Y> y = {a.y.row<const Y>(b.part.row0), 1, a.y.ld, a.y.cols, b.part.rows};
  StridedOperand<X> x = {a.x.row<const X>(b.part.row0) + b.part.col0, 1, a.x.ld, b.part.cols, b.part.rows};
  multiply_plain(acc, y, x, m0, b.n0, shared);
  each_of_plain(acc, m0, b.n0, [&](int row, int col, float value) { outer_store(a, b, row, col, value); });
}

GEMS_KERNEL(outer_tc, TILE_THREADS, OuterArguments, multiply_part_tc)
GEMS_KERNEL(outer_plain_f32_f32, PLAIN_THREADS, OuterArguments, multiply_part_plain<float, float>)
GEMS_KERNEL(outer_plain_f32_bf16, PLAIN_THREADS, OuterArguments, multiply_part_plain<float, bf16>)
GEMS_KERNEL(outer_plain_bf16_f32, PLAIN_THREADS, OuterArguments, multiply_part_plain<bf16, float>)
GEMS_KERNEL(outer_plain_bf16_bf16, PLAIN_THREADS, OuterArguments, multiply_part_plain<bf16, bf16>)

// out[i, c] += sum over s of partial[s * rows + i, c] for the columns c of every part.
struct OuterSumArguments {
  Matrix partial, out;
  int splits, parts;
  OuterPart part[OUTER_PARTS];
};

__device__ __forceinline__ void sum_runs(const OuterSumArguments& a) {
  int64_t index = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  int row = (int)(index / a.out.cols), col = (int)(index % a.out.cols);
  if (row >= a.out.rows) return;
  bool written = false;
  for (int p = 0; p < a.parts; p++) written |= col >= a.part[p].to && col < a.part[p].to + a.part[p].cols;
  if (!written) return;
  float total = 0.0f;
  for (int s = 0; s < a.splits; s++) total += a.partial.row<float>((int64_t)s * a.out.rows + row)[col];
  a.out.row<float>(row)[col] += total;
}

GEMS_KERNEL(outer_sum, 256, OuterSumArguments, sum_runs)
GEMS_FILE(outer)
