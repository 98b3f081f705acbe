// Sums over the rows of segments: the gradients of biases and of norm weights.
//
//   out[s, c] += sum over rows i of segment s of  dy[i, c]                        (bias)
//                                            or  x[i, c] * inv_rms[i] * dy[i, c]  (norm weight)
//
// dy, x [T x C] of one type, inv_rms f32 [T x 1], out f32 [S x C]; x absent: the bias form.
// Block: 32 columns (x) by 8 rows in flight (y), which are added in order at the end: deterministic.
// Grid: x ceil(C / 32), y segments. Shared memory: 1 KiB. Bytes: dy (and x) once.
#include "common.cuh"

struct ColumnSumsArguments {
  Matrix dy, x, inv_rms, out;
  Segment segment[SEGMENTS];
};

template <class T> __device__ __forceinline__ void column_sums(const ColumnSumsArguments& a) {
  GEMS_SHARED(shared);
  float* partial = reinterpret_cast<float*>(shared);
  int col = blockIdx.x * 32 + threadIdx.x;
  Segment rows = a.segment[blockIdx.y];
  float sum = 0.0f;
  for (int64_t i = rows.first + (int)threadIdx.y; col < a.dy.cols && i < rows.end; i += blockDim.y) {
    float v = to_float(a.dy.row<const T>(i)[col]);
    if (a.x.data) v *= to_float(a.x.row<const T>(i)[col]) * *a.inv_rms.row<const float>(i);
    sum += v;
  }
  partial[threadIdx.y * 32 + threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || col >= a.dy.cols) return;
  float total = 0.0f;
  for (int y = 0; y < (int)blockDim.y; y++) total += partial[y * 32 + threadIdx.x];
  a.out.row<float>(blockIdx.y)[col] += total;
}

GEMS_KERNEL(column_sums_f32, 256, ColumnSumsArguments, column_sums<float>)
GEMS_KERNEL(column_sums_bf16, 256, ColumnSumsArguments, column_sums<bf16>)

GEMS_FILE(column_sums)
