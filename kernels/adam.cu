// Adam on the coordinates of a layer's subspaces, block of columns by block of columns:
//
//   g <- grad_scale g;  m <- beta1 m + (1 - beta1) g;  v <- beta2 v + (1 - beta2) g^2
//   x <- (keep_before x - step m / (sqrt(v) / sqrt_correction2 + eps)) keep_after
//
// x, g, m, v f32 [M x R]; change f32 (new x - old x, 0 outside all blocks) and copy (x in compute type) are
// optional. Gate, learning rate and bias corrections are in `step`. One pass: the update, the write-back and
// the bf16 copy that the forward uses. With `only_blocks` the columns outside the blocks are not touched.
// 256 threads, one element each; grid: M * R threads; no shared memory. Bytes: 4 * (x, m, v twice, g once).
#include "common.cuh"

constexpr int ADAM_BLOCKS = 32;
struct AdamBlock {
  int first, end;
  float beta1, beta2, step, sqrt_correction2, eps, keep_before, keep_after, grad_scale;
};
struct AdamArguments {
  Matrix x, g, m, v, copy, change;
  int blocks, only_blocks;
  AdamBlock block[ADAM_BLOCKS];
};

template <class T> __device__ __forceinline__ void adam(const AdamArguments& a) {
  int64_t index = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  int64_t row = index / a.x.cols;
  int col = (int)(index - row * a.x.cols), which = 0;
  if (row >= a.x.rows) return;
  while (which < a.blocks && !(col >= a.block[which].first && col < a.block[which].end)) which++;
  if (which == a.blocks && a.only_blocks) return;
  float old = a.x.row<float>(row)[col], x = old;
  if (which < a.blocks) {
    const AdamBlock& b = a.block[which];
    float g = a.g.row<const float>(row)[col] * b.grad_scale;
    float m = b.beta1 * a.m.row<float>(row)[col] + (1.0f - b.beta1) * g;
    float v = b.beta2 * a.v.row<float>(row)[col] + (1.0f - b.beta2) * g * g;
    x = (old * b.keep_before - b.step * (m / (sqrtf(v) * (1.0f / b.sqrt_correction2) + b.eps))) * b.keep_after;
    a.m.row<float>(row)[col] = m;
    a.v.row<float>(row)[col] = v;
    a.x.row<float>(row)[col] = x;
  }
  if (a.change.data) a.change.row<float>(row)[col] = x - old;
  if (a.copy.data) a.copy.row<T>(row)[col] = from_float<T>(x);
}

GEMS_KERNEL(adam_f32, 256, AdamArguments, adam<float>)
GEMS_KERNEL(adam_bf16, 256, AdamArguments, adam<bf16>)

GEMS_FILE(adam)
