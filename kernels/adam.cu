// Adam on many matrices in one launch, block of columns by block of columns:
//
//   g <- clip grad_scale (sum_k weight_k G[:, from + k stride + c] + held H[:, c])
//   m <- beta1 m + (1 - beta1) g;  v <- beta2 v + (1 - beta2) g^2
//   x <- (keep_before x - gate step m / (sqrt(v) / sqrt_correction2 + eps)) keep_after
//
// x, m, v f32 [M x R], G f32 [M x any], H f32 [M x R] or absent; change f32 (new x - old x, 0 outside all blocks) and copy (copy_scale x in compute
// type) are optional. clip, the tasks' weights and gates are factors f32 [1 + 2 tasks] that a former kernel worked out
// (step_factors.cu); without factors they are 1. A clip that is not a number leaves x, m, v and copy as they are.
// squares[l] receives the squared norm of matrix l's change, or adds it when `only_blocks`: blocks leave their parts in
// `sums` f64 [matrices x gridDim.x], the last of a matrix adds them in order. `tickets` u32 [matrices] are zero
// before and after. With `only_blocks` the columns outside the blocks are not touched.
//
// One pass: combining the tasks, the update, the write-back and the bf16 copy that the forward uses. 256 threads, four
// neighbouring columns each; grid: x of the largest matrix, y matrices. Shared memory: 512 bytes.
// Bytes: 4 * (x, m, v twice, g and H once), and the copy once.
#include "common.cuh"

struct AdamBlock {
  int first, end, from, terms, stride, gate;  // gate: its place among the factors, or -1
  float beta1, beta2, step, sqrt_correction2, eps, keep_before, keep_after, grad_scale, held;
};
struct AdamMatrix {
  Matrix x, g, m, v, copy, change;
  const float* held;
  int64_t held_ld;
  int first_block, end_block, only_blocks;
  float copy_scale;
};
struct AdamArguments {
  const float* factors;
  float* squares;
  double* sums;
  uint32_t* tickets;
  AdamMatrix matrix[ADAM_MATRICES];
  AdamBlock block[ADAM_BLOCKS];
};

__device__ __forceinline__ void load_quad(const float* p, int n, float (&v)[QUAD]) {
  if (n == QUAD && aligned16(p)) {
    float4 a = *reinterpret_cast<const float4*>(p);
    v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w;
    return;
  }
#pragma unroll
  for (int i = 0; i < QUAD; i++) v[i] = i < n ? p[i] : 0.0f;
}
__device__ __forceinline__ void store_quad(float* p, int n, const float (&v)[QUAD]) {
  if (n == QUAD && aligned16(p)) {
    *reinterpret_cast<float4*>(p) = float4{v[0], v[1], v[2], v[3]};
    return;
  }
#pragma unroll
  for (int i = 0; i < QUAD; i++) {
    if (i < n) p[i] = v[i];
  }
}
__device__ __forceinline__ void store_quad(bf16* p, int n, const float (&v)[QUAD]) {
  if (n == QUAD && ((uintptr_t)p & 7) == 0) {
    *reinterpret_cast<uint2*>(p) = uint2{pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3])};
    return;
  }
#pragma unroll
  for (int i = 0; i < QUAD; i++) {
    if (i < n) p[i] = from_float<bf16>(v[i]);
  }
}

// The gradient of column c of a block, in one row of G.
__device__ __forceinline__ float gradient_of(const AdamBlock& b, const float* g, const float* factors, int c) {
  g += b.from + c - b.first;
  if (b.terms == 1) return g[0];
  float sum = 0.0f;
  for (int k = 0; k < b.terms; k++) sum += (factors ? factors[1 + k] : 1.0f) * g[(int64_t)k * b.stride];
  return sum;
}

// Columns col .. col + n of a row; the squared norm of their change.
template <class T>
__device__ __forceinline__ double adam_quad(const AdamArguments& a, const AdamMatrix& l, int row, int col, int n) {
  float x[QUAD], m[QUAD], v[QUAD], change[QUAD] = {};
  const float* g = l.g.row<const float>(row);
  load_quad(l.x.row<const float>(row) + col, n, x);
  load_quad(l.m.row<const float>(row) + col, n, m);
  load_quad(l.v.row<const float>(row) + col, n, v);
  double square = 0.0;
  int which = l.first_block;
  bool touched = !l.only_blocks;
#pragma unroll
  for (int i = 0; i < QUAD; i++) {
    int c = col + i;
    while (which < l.end_block && c >= a.block[which].end) which++;
    if (i >= n || which == l.end_block || c < a.block[which].first) continue;
    const AdamBlock& b = a.block[which];
    float scale = b.grad_scale * (a.factors ? a.factors[0] : 1.0f), step = b.step * (b.gate >= 0 ? a.factors[b.gate] : 1.0f);
    float sum = gradient_of(b, g, a.factors, c), old = x[i];
    if (l.held) sum += b.held * l.held[row * l.held_ld + c];
    float gradient = sum * scale;
    m[i] = b.beta1 * m[i] + (1.0f - b.beta1) * gradient;
    v[i] = b.beta2 * v[i] + (1.0f - b.beta2) * gradient * gradient;
    x[i] = (old * b.keep_before - step * (m[i] / (sqrtf(v[i]) * (1.0f / b.sqrt_correction2) + b.eps))) * b.keep_after;
    change[i] = x[i] - old;
    square += (double)change[i] * change[i];
    touched = true;
  }
  if (!touched) return 0.0;
  store_quad(l.x.row<float>(row) + col, n, x);
  store_quad(l.m.row<float>(row) + col, n, m);
  store_quad(l.v.row<float>(row) + col, n, v);
  if (l.change.data) store_quad(l.change.row<float>(row) + col, n, change);
  if (l.copy.data) {
#pragma unroll
    for (int i = 0; i < QUAD; i++) x[i] *= l.copy_scale;
    store_quad(l.copy.row<T>(row) + col, n, x);
  }
  return square;
}

template <class T> __device__ __forceinline__ void adam(const AdamArguments& a) {
  GEMS_SHARED(shared);
  const AdamMatrix& l = a.matrix[blockIdx.y];
  unsigned quads = (unsigned)(l.x.cols + QUAD - 1) / QUAD, all = quads * (unsigned)l.x.rows;
  int blocks = (int)((all + blockDim.x - 1) / blockDim.x);
  if ((int)blockIdx.x >= blocks) return;
  unsigned index = blockIdx.x * blockDim.x + threadIdx.x;
  int row = (int)(index / quads), col = (int)(index % quads) * QUAD, n = l.x.cols - col < QUAD ? l.x.cols - col : QUAD;
  bool skip = a.factors && !(a.factors[0] == a.factors[0]);
  double square = 0.0;
  if (index < all && !skip) square = adam_quad<T>(a, l, row, col, n);
  if (index < all && skip && l.change.data) {
    float zero[QUAD] = {};
    store_quad(l.change.row<float>(row) + col, n, zero);
  }
  if (!a.squares) return;
  double* scratch = reinterpret_cast<double*>(shared);
  square = row_sum(square, scratch);
  double* sums = a.sums + (int64_t)blockIdx.y * gridDim.x;
  if (threadIdx.x == 0) sums[blockIdx.x] = square;
  if (!last_of(a.tickets + blockIdx.y, blocks, reinterpret_cast<uint32_t*>(shared + 256))) return;
  double total = 0.0;
  for (int i = threadIdx.x; i < blocks; i += blockDim.x) total += sums[i];
  total = row_sum(total, scratch);
  if (threadIdx.x == 0) a.squares[blockIdx.y] = (l.only_blocks ? a.squares[blockIdx.y] : 0.0f) + (float)total;
}

GEMS_KERNEL(adam_f32, 256, AdamArguments, adam<float>)
GEMS_KERNEL(adam_bf16, 256, AdamArguments, adam<bf16>)

GEMS_FILE(adam)
