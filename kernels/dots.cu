// Inner products of pairs of f32 matrices, accumulated in f64: norms, Gram matrices, hypergradients.
//
//   out[p] = sum over i, j of x_p[i, j] y_p[i, j]
//
// dots: grid (blocks, pairs), 256 threads; block b sums elements b 256 + t, + blocks 256, ... into
// partial f64 [pairs x blocks]; dots_sum: one warp per pair adds the partials in order. Deterministic for
// a given number of blocks, which depends on the shapes only. Shared memory: 256 bytes. Bytes: x, y once.
#include "common.cuh"

struct DotsArguments {
  double* partial;
  float* out;
  int pairs, blocks;
  Matrix x[DOTS_PAIRS], y[DOTS_PAIRS];
};

__device__ __forceinline__ void dots_blocks(const DotsArguments& a) {
  GEMS_SHARED(shared);
  const Matrix &x = a.x[blockIdx.y], &y = a.y[blockIdx.y];
  int64_t elements = (int64_t)x.rows * x.cols;
  double sum = 0.0;
  for (int64_t at = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; at < elements; at += (int64_t)gridDim.x * blockDim.x) {
    int64_t row = at / x.cols, col = at - row * x.cols;
    sum += (double)x.row<const float>(row)[col] * (double)y.row<const float>(row)[col];
  }
  sum = row_sum(sum, reinterpret_cast<double*>(shared));
  if (threadIdx.x == 0) a.partial[(int64_t)blockIdx.y * a.blocks + blockIdx.x] = sum;
}
GEMS_KERNEL(dots, 256, DotsArguments, dots_blocks)

__device__ __forceinline__ void dots_total(const DotsArguments& a) {
  double sum = 0.0;
  for (int b = threadIdx.x; b < a.blocks; b += 32) sum += a.partial[(int64_t)blockIdx.x * a.blocks + b];
  sum = warp_sum(sum);
  if (threadIdx.x == 0) a.out[blockIdx.x] = (float)sum;
}
GEMS_KERNEL(dots_sum, 32, DotsArguments, dots_total)

GEMS_FILE(dots)
