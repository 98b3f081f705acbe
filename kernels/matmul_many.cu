// Many independent products in one launch: the small ones that a refresh needs of every layer.
//
//   C[i] = alpha A[i] op(B[i]) + beta C[i]
//
// f32, any ld and alignment, each product of its own size: A [M x K], op(B) [K x N] (op: transposed or not, of all
// alike), C [M x N], not read when beta is 0. Where C is small and K long, a product alone would keep one
// multiprocessor busy: here each has its own. Sums in the order of matmul_plain_*.
// Grid: (tiles of the largest C, products), at most 48 products; 256 threads; a block per 64 x 64 tile, those beyond
// a product's own tiles end at once. Shared memory: 8.5 KiB. Bytes: A, B, C once (C twice when beta != 0). Flops:
// 2 M N K.
#include "matmul_tile.cuh"

struct MatmulManyArguments {
  Matrix a[MATMUL_MANY], b[MATMUL_MANY], c[MATMUL_MANY];
  float alpha, beta;
  int transpose_b, unused;
};

__device__ __forceinline__ void multiply_many(const MatmulManyArguments& p) {
  GEMS_SHARED(shared);
  const Matrix &a = p.a[blockIdx.y], &b = p.b[blockIdx.y], &c = p.c[blockIdx.y];
  int tiles_n = (c.cols + PLAIN_TILE - 1) / PLAIN_TILE;
  int m0 = (int)blockIdx.x / tiles_n * PLAIN_TILE, n0 = (int)blockIdx.x % tiles_n * PLAIN_TILE;
  if (m0 >= c.rows) return;
  StridedOperand<float> left = {static_cast<const float*>(a.data), a.ld, 1, c.rows, a.cols};
  StridedOperand<float> right = {static_cast<const float*>(b.data), p.transpose_b ? b.ld : 1, p.transpose_b ? 1 : b.ld,
                                 c.cols, a.cols};
  float acc[4][4] = {};
  multiply_plain(acc, left, right, m0, n0, shared);
  each_of_plain(acc, m0, n0, [&](int row, int col, float sum) {
    if (row >= c.rows || col >= c.cols) return;
    float* to = c.row<float>(row) + col;
    *to = p.beta != 0.0f ? p.alpha * sum + p.beta * *to : p.alpha * sum;
  });
}

GEMS_KERNEL_BLOCKS(matmul_many, PLAIN_THREADS, 2, MatmulManyArguments, multiply_many)
GEMS_FILE(matmul_many)
