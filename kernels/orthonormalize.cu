// Orthonormal rows, in order, as Gram-Schmidt gives them: the small QR of a refresh.
//
//   row i <- row i - (its components along rows 0 .. i - 1), twice, then divided by its length
//
// a f32 [R x N], R <= N. A row that adds nothing (what is left is below 1e-6 of its length: the rounding of
// f32) becomes zero. kept u32 [1] receives the number of rows that were not. Classical Gram-Schmidt with
// one repetition is orthonormal to rounding ("twice is enough", Kahan and Parlett); lengths and components
// are summed in f64. One block of 1024 threads: rows depend on each other, and the matrix fits L2.
// Shared memory: 8 R + 8 N + 256 bytes (the components and the row at work, in f64); the launch refuses
// what a device cannot hold. Bytes: about 4 * 4 N R^2 / 2 through L2. Flops: 4 N R^2 in f64.
#include "common.cuh"

struct OrthonormalizeArguments { Matrix a; uint32_t* kept; };

__device__ __forceinline__ double length_of(const double* row, int n, double* scratch) {
  double sum = 0.0;
  for (int c = threadIdx.x; c < n; c += blockDim.x) sum += row[c] * row[c];
  return sqrt(row_sum(sum, scratch));
}

__device__ __forceinline__ void orthonormalize_rows(const OrthonormalizeArguments& o) {
  GEMS_SHARED(shared);
  double* scratch = reinterpret_cast<double*>(shared);
  double* along = scratch + 32;
  double* row = along + o.a.rows;
  int n = o.a.cols, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  uint32_t kept = 0;
  for (int i = 0; i < o.a.rows; i++) {
    for (int c = threadIdx.x; c < n; c += blockDim.x) row[c] = o.a.row<float>(i)[c];
    __syncthreads();
    double before = length_of(row, n, scratch);
    for (int pass = 0; pass < 2; pass++) {
      for (int j = warp; j < i; j += blockDim.x / 32) {
        double sum = 0.0;
        for (int c = lane; c < n; c += 32) sum += (double)o.a.row<float>(j)[c] * row[c];
        sum = warp_sum(sum);
        if (lane == 0) along[j] = sum;
      }
      __syncthreads();
      for (int c = threadIdx.x; c < n; c += blockDim.x) {
        double value = row[c];
        for (int j = 0; j < i; j++) value -= along[j] * (double)o.a.row<float>(j)[c];
        row[c] = value;
      }
      __syncthreads();
    }
    double after = length_of(row, n, scratch);
    bool adds = after > before * 1e-6 && after > 0.0;
    kept += adds;
    double scale = adds ? 1.0 / after : 0.0;
    for (int c = threadIdx.x; c < n; c += blockDim.x) o.a.row<float>(i)[c] = (float)(row[c] * scale);
    __syncthreads();
  }
  if (threadIdx.x == 0) *o.kept = kept;
}

GEMS_KERNEL(orthonormalize, 1024, OrthonormalizeArguments, orthonormalize_rows)
GEMS_FILE(orthonormalize)
