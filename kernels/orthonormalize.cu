// Orthonormal rows, in order, as Gram-Schmidt gives them: the small QR of a refresh, of many matrices at once.
//
//   row i <- row i - (its components along rows 0 .. i - 1), twice, then divided by its length
//
// a[b] f32 [R x N], R <= N, any ld; matrix b is block b's, each of its own size. A row that adds nothing (what is
// left is below 1e-6 of its length: the rounding of f32) becomes zero. Classical Gram-Schmidt with one repetition
// is orthonormal to rounding ("twice is enough", Kahan and Parlett); lengths and components are summed in f64.
// Rows are worked on P at a time, P <= 8 as many as shared memory holds in f64: against all rows before the panel
// together, so that a finished row is read from L2 (and converted) once a panel, then within the panel. Warps
// that have no row to themselves share one.
// Grid: matrices, at most 128; 256 or 1024 threads. Shared memory: doubles * 8 bytes, at least 8 (40 + N + max(R, 32)).
// Bytes: 8 R N, and about 8 N R^2 / P through L2. Flops: 4 N R^2 in f64.
#include "common.cuh"

struct OrthonormalizeArguments { int64_t doubles; Matrix a[ORTHONORMALIZE_MATRICES]; };

// Takes out of `count` rows what they have along `rows` rows `from`, twice. `along` holds count * max(rows, 32) values.
template <class T>
__device__ __forceinline__ void orthogonalize(double* row, int count, int n, const T* from, int64_t ld, int rows, double* along) {
  int warps = blockDim.x / 32, lane = threadIdx.x % 32, parts = rows < warps ? warps / (rows + !rows) : 1;
  for (int pass = 0; pass < 2 && rows > 0; pass++) {
    for (int unit = threadIdx.x / 32; unit < rows * parts; unit += warps) {
      const T* other = from + (unit / parts) * ld;
      double sum[PANEL] = {};
#pragma unroll 4
      for (int c = unit % parts * 32 + lane; c < n; c += parts * 32) {
        double value = other[c];
#pragma unroll
        for (int p = 0; p < PANEL; p++) {
          if (p < count) sum[p] += value * row[p * n + c];
        }
      }
#pragma unroll
      for (int p = 0; p < PANEL; p++) {
        if (p >= count) break;
        double total = warp_sum(sum[p]);
        if (lane == 0) along[unit * count + p] = total;
      }
    }
    __syncthreads();
    for (int c = threadIdx.x; c < n; c += blockDim.x) {
      double left[PANEL];
#pragma unroll
      for (int p = 0; p < PANEL; p++) left[p] = p < count ? row[p * n + c] : 0.0;
#pragma unroll 2
      for (int unit = 0; unit < rows * parts; unit += parts) {
        double value = from[(unit / parts) * ld + c];
#pragma unroll
        for (int p = 0; p < PANEL; p++) {
          if (p >= count) break;
          double sum = along[unit * count + p];
#pragma unroll 1
          for (int part = 1; part < parts; part++) sum += along[(unit + part) * count + p];
          left[p] -= sum * value;
        }
      }
#pragma unroll
      for (int p = 0; p < PANEL; p++) {
        if (p < count) row[p * n + c] = left[p];
      }
    }
    __syncthreads();
  }
}

__device__ __forceinline__ double length_of(const double* row, int n, double* scratch) {
  double sum = 0.0;
  for (int c = threadIdx.x; c < n; c += blockDim.x) sum += row[c] * row[c];
  return sqrt(row_sum(sum, scratch));
}

__device__ __forceinline__ void orthonormalize_rows(const OrthonormalizeArguments& o) {
  GEMS_SHARED(shared);
  const Matrix& a = o.a[blockIdx.x];
  int n = a.cols, fits = (int)((o.doubles - 32 - PANEL) / (n + (a.rows < 32 ? 32 : a.rows)));
  int most = fits < PANEL ? fits : PANEL;
  double *scratch = reinterpret_cast<double*>(shared), *before = scratch + 32;
  double *panel = before + PANEL, *along = panel + most * n;
  for (int first = 0; first < a.rows; first += most) {
    int count = a.rows - first < most ? a.rows - first : most;
    for (int p = 0; p < count; p++) {
      for (int c = threadIdx.x; c < n; c += blockDim.x) panel[p * n + c] = a.row<float>(first + p)[c];
      double length = length_of(panel + p * n, n, scratch);
      if (threadIdx.x == 0) before[p] = length;
    }
    __syncthreads();
    orthogonalize(panel, count, n, a.row<float>(0), a.ld, first, along);
    for (int p = 0; p < count; p++) {
      double* row = panel + p * n;
      orthogonalize(row, 1, n, panel, n, p, along);
      double after = length_of(row, n, scratch);
      double scale = after > before[p] * 1e-6 && after > 0.0 ? 1.0 / after : 0.0;
      for (int c = threadIdx.x; c < n; c += blockDim.x) {
        row[c] *= scale;
        a.row<float>(first + p)[c] = (float)row[c];
      }
      __syncthreads();
    }
  }
}

GEMS_KERNEL(orthonormalize, 1024, OrthonormalizeArguments, orthonormalize_rows)
GEMS_FILE(orthonormalize)
