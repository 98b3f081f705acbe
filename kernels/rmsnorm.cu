// Root-mean-square norm with an optional residual, and its gradient.
//
// forward:  s = x + r;  inv = 1 / sqrt(mean(s^2) + eps);  y = w * (s * inv)
//   x, r, sum, y [rows x cols] of one type, w [1 x cols], inv f32 [rows x 1]. r and sum go together; the
//   norm is taken of s as it was rounded to its type, so that the gradient sees the same s.
// backward: dx (+)= inv * (w dy - s * inv^2 mean(s w dy))
//
// A row per warp (blockDim 32 x 8) up to 1024 columns, else a row per block (blockDim 256 x 1).
// Grid: x over rows / blockDim.y. Shared memory: 128 bytes. Any cols >= 1; 16-byte accesses where the row
// starts allow it. Bytes: forward x (and r) once, y (and sum) once, plus a second read of s from cache;
// backward s, dy twice, dx once (twice when it accumulates).
#include "common.cuh"

struct RmsnormArguments { Matrix x, residual, sum, w, y, inv_rms; float eps, unused; };

template <class T> __device__ __forceinline__ void rmsnorm(const RmsnormArguments& a) {
  GEMS_SHARED(shared);
  int64_t row = (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
  bool exists = row < a.x.rows;  // threads of missing rows still take part in warp-wide sums
  const Matrix& kept = a.residual.data ? a.sum : a.x;
  float square = 0.0f, v[CHUNK], r[CHUNK];
  for (int col = threadIdx.x * CHUNK; exists && col < a.x.cols; col += blockDim.x * CHUNK) {
    int n = a.x.cols - col < CHUNK ? a.x.cols - col : CHUNK;
    load_chunk(a.x.row<const T>(row) + col, n, v);
    if (a.residual.data) {
      load_chunk(a.residual.row<const T>(row) + col, n, r);
#pragma unroll
      for (int i = 0; i < CHUNK; i++) v[i] = to_float(from_float<T>(v[i] + r[i]));
      store_chunk(a.sum.row<T>(row) + col, n, v);
    }
#pragma unroll
    for (int i = 0; i < CHUNK; i++) square += v[i] * v[i];
  }
  square = row_sum(square, reinterpret_cast<float*>(shared));
  if (!exists) return;
  float inv = 1.0f / sqrtf(square / (float)a.x.cols + a.eps);
  if (threadIdx.x == 0) *a.inv_rms.row<float>(row) = inv;
  for (int col = threadIdx.x * CHUNK; col < a.x.cols; col += blockDim.x * CHUNK) {
    int n = a.x.cols - col < CHUNK ? a.x.cols - col : CHUNK;
    load_chunk(kept.row<const T>(row) + col, n, v);
    load_chunk(a.w.row<const T>(0) + col, n, r);
#pragma unroll
    for (int i = 0; i < CHUNK; i++) v[i] = r[i] * (v[i] * inv);
    store_chunk(a.y.row<T>(row) + col, n, v);
  }
}

GEMS_KERNEL(rmsnorm_f32, 256, RmsnormArguments, rmsnorm<float>)
GEMS_KERNEL(rmsnorm_bf16, 256, RmsnormArguments, rmsnorm<bf16>)

struct RmsnormBackwardArguments { Matrix s, w, inv_rms, dy, dx; int accumulate, unused; };

template <class T> __device__ __forceinline__ void rmsnorm_backward(const RmsnormBackwardArguments& a) {
  GEMS_SHARED(shared);
  int64_t row = (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
  bool exists = row < a.s.rows;
  float along = 0.0f, s[CHUNK], w[CHUNK], dy[CHUNK], dx[CHUNK];
  for (int col = threadIdx.x * CHUNK; exists && col < a.s.cols; col += blockDim.x * CHUNK) {
    int n = a.s.cols - col < CHUNK ? a.s.cols - col : CHUNK;
    load_chunk(a.s.row<const T>(row) + col, n, s);
    load_chunk(a.w.row<const T>(0) + col, n, w);
    load_chunk(a.dy.row<const T>(row) + col, n, dy);
#pragma unroll
    for (int i = 0; i < CHUNK; i++) along += s[i] * w[i] * dy[i];
  }
  along = row_sum(along, reinterpret_cast<float*>(shared));
  if (!exists) return;
  float inv = *a.inv_rms.row<const float>(row);
  float mean = along * inv * inv / (float)a.s.cols;
  for (int col = threadIdx.x * CHUNK; col < a.s.cols; col += blockDim.x * CHUNK) {
    int n = a.s.cols - col < CHUNK ? a.s.cols - col : CHUNK;
    load_chunk(a.s.row<const T>(row) + col, n, s);
    load_chunk(a.w.row<const T>(0) + col, n, w);
    load_chunk(a.dy.row<const T>(row) + col, n, dy);
    if (a.accumulate) load_chunk(a.dx.row<const T>(row) + col, n, dx);
#pragma unroll
    for (int i = 0; i < CHUNK; i++) {
      float value = inv * (w[i] * dy[i] - s[i] * mean);
      dx[i] = a.accumulate ? dx[i] + value : value;
    }
    store_chunk(a.dx.row<T>(row) + col, n, dx);
  }
}

GEMS_KERNEL(rmsnorm_backward_f32, 256, RmsnormBackwardArguments, rmsnorm_backward<float>)
GEMS_KERNEL(rmsnorm_backward_bf16, 256, RmsnormBackwardArguments, rmsnorm_backward<bf16>)

GEMS_FILE(rmsnorm)
