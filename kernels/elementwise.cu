// y = alpha x + beta y, element by element, between any two types; y = value; y = softcap tanh(y / softcap) in f32;
// y = y + x with y in bf16, rounded at random; and x = high + low, an f32 matrix as the sum of two in bf16 (16 bits).
//
// x, y [rows x cols], any ld. y is not read when beta is 0; x and y may be the same memory. Copies,
// conversions (rounded to nearest even), axpy and scaling are this kernel. Arithmetic in f32.
// 256 threads, 8 elements each; grid: rows * ceil(cols / 8) threads; no shared memory. 16-byte accesses
// where the row starts allow it. Bytes: x and y once (y twice when beta != 0).
#include "matmul.cuh"

struct CombineArguments { Matrix x, y; float alpha, beta; };

template <class X, class Y> __device__ __forceinline__ void combine(const CombineArguments& a) {
  Chunk c = my_chunk(a.y.rows, a.y.cols);
  if (c.n == 0) return;
  float x[CHUNK], y[CHUNK];
  load_chunk(a.x.row<const X>(c.row) + c.col, c.n, x);
  if (a.beta != 0.0f) load_chunk(a.y.row<const Y>(c.row) + c.col, c.n, y);
#pragma unroll
  for (int i = 0; i < CHUNK; i++) y[i] = a.beta != 0.0f ? a.alpha * x[i] + a.beta * y[i] : a.alpha * x[i];
  store_chunk(a.y.row<Y>(c.row) + c.col, c.n, y);
}

GEMS_KERNEL(combine_f32_f32, 256, CombineArguments, combine<float, float>)
GEMS_KERNEL(combine_f32_bf16, 256, CombineArguments, combine<float, bf16>)
GEMS_KERNEL(combine_bf16_f32, 256, CombineArguments, combine<bf16, float>)
GEMS_KERNEL(combine_bf16_bf16, 256, CombineArguments, combine<bf16, bf16>)

struct FillArguments { Matrix y; float value, unused; };

template <class Y> __device__ __forceinline__ void fill(const FillArguments& a) {
  Chunk c = my_chunk(a.y.rows, a.y.cols);
  if (c.n == 0) return;
  float y[CHUNK];
#pragma unroll
  for (int i = 0; i < CHUNK; i++) y[i] = a.value;
  store_chunk(a.y.row<Y>(c.row) + c.col, c.n, y);
}

GEMS_KERNEL(fill_f32, 256, FillArguments, fill<float>)
GEMS_KERNEL(fill_bf16, 256, FillArguments, fill<bf16>)

struct SoftcapArguments { Matrix y; float softcap, inverse; };

__device__ __forceinline__ void cap_softly(const SoftcapArguments& a) {
  Chunk c = my_chunk(a.y.rows, a.y.cols);
  if (c.n == 0) return;
  float y[CHUNK];
  load_chunk(a.y.row<const float>(c.row) + c.col, c.n, y);
#pragma unroll
  for (int i = 0; i < CHUNK; i++) y[i] = a.softcap * tanhf(y[i] * a.inverse);
  store_chunk(a.y.row<float>(c.row) + c.col, c.n, y);
}

GEMS_KERNEL(softcap, 256, SoftcapArguments, cap_softly)

// Rounded as the epilogue of a product does it, with the same numbers.
struct AddRoundedArguments { Matrix x, y; uint64_t seed; };

__device__ __forceinline__ void add_at_random(const AddRoundedArguments& a) {
  Chunk c = my_chunk(a.y.rows, a.y.cols);
  if (c.n == 0) return;
  float x[CHUNK], y[CHUNK];
  load_chunk(a.x.row<const float>(c.row) + c.col, c.n, x);
  load_chunk(a.y.row<const bf16>(c.row) + c.col, c.n, y);
#pragma unroll
  for (int i = 0; i < CHUNK; i += 4) {
    uint64_t random = random64(a.seed, c.row, (c.col + i) / 4);
#pragma unroll
    for (int j = 0; j < 4; j++) y[i + j] = round_at_random(y[i + j] + x[i + j], (uint32_t)(random >> 16 * j) & 0xffffu);
  }
  store_chunk(a.y.row<bf16>(c.row) + c.col, c.n, y);
}

GEMS_KERNEL(add_rounded, 256, AddRoundedArguments, add_at_random)

struct SplitArguments { Matrix x, high, low; };

__device__ __forceinline__ void split_in_halves(const SplitArguments& a) {
  Chunk c = my_chunk(a.x.rows, a.x.cols);
  if (c.n == 0) return;
  float x[CHUNK], high[CHUNK];
  load_chunk(a.x.row<const float>(c.row) + c.col, c.n, x);
#pragma unroll
  for (int i = 0; i < CHUNK; i++) high[i] = to_float(from_float<bf16>(x[i])), x[i] -= high[i];
  store_chunk(a.high.row<bf16>(c.row) + c.col, c.n, high);
  store_chunk(a.low.row<bf16>(c.row) + c.col, c.n, x);
}

GEMS_KERNEL(split, 256, SplitArguments, split_in_halves)

GEMS_FILE(elementwise)
