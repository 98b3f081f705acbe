// The values of a weight in codes: y = round(scale (level(code) - zero)), in f32, then in y's type.
//
// y [rows x N], any ld: the rows from first_row on of a weight [M x N]. Element e = row N + col has code e: of 4 bits (two a byte,
// the first in the high half; level = book[code]), or of 8 (level = code - middle). Its scale, and its zero if there are any, are
// those of group e / run; or, with columns, of group row * groups + columns[col]. `rounded`: to which type first, as the library
// that wrote the codes does (half by adding and taking off 1/2 below its normal numbers).
// 256 threads, 8 elements each; grid: rows * ceil(N / 8) threads. 64 bytes of shared memory: the book, of which a warp's
// threads read different places. Codes of a thread by one load of 4 or 8 bytes where N is a multiple of 8.
// Bytes: codes, scales and zeros once, y once.
#include "common.cuh"

struct DequantizeArguments {
  Matrix y;
  const uint8_t* codes;
  const float* scales;
  const uint8_t* zeros;
  const uint32_t* columns;
  int first_row, bits, run, groups, rounded;
  float middle;
  float book[LEVELS];
};

__device__ __forceinline__ float as_half(float x) {
  float size = x < 0 ? -x : x;
  uint32_t bits = __float_as_uint(size);
  float normal = __uint_as_float((bits + 0xfffu + (bits >> 13 & 1u)) & ~0x1fffu);
  float small = (size + 0.5f) - 0.5f;
  float rounded = size < 6.103515625e-5f ? small : normal;
  return x < 0 ? -rounded : rounded;
}

__device__ __forceinline__ float rounded_to(int type, float x) {
  if (type == ROUNDED_F16) return as_half(x);
  return type == ROUNDED_BF16 ? to_float(from_float<bf16>(x)) : x;
}

// The codes of n elements from e on, which is a multiple of CHUNK where N is.
__device__ __forceinline__ void load_codes(const DequantizeArguments& a, int64_t e, int n, bool whole, uint32_t (&code)[CHUNK]) {
  if (whole) {
    uint32_t words[2];
    const uint32_t* from = reinterpret_cast<const uint32_t*>(a.codes + e * a.bits / 8);
    words[0] = from[0];
    words[1] = a.bits == 8 ? from[1] : 0;
#pragma unroll
    for (int i = 0; i < CHUNK; i++) {
      uint32_t two = words[0] >> (i / 2 * 8);
      uint32_t four_bits = (i % 2 == 0 ? two >> 4 : two) & 15u;
      code[i] = a.bits == 8 ? words[i / 4] >> (i % 4 * 8) & 255u : four_bits;
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < CHUNK; i++) {
    if (i >= n) continue;
    int64_t at = e + i;
    code[i] = a.bits == 8 ? a.codes[at] : (at % 2 == 0 ? a.codes[at / 2] >> 4 : a.codes[at / 2]) & 15u;
  }
}

template <class Y> __device__ __forceinline__ void dequantize(const DequantizeArguments& a) {
  GEMS_SHARED(shared);
  float* book = reinterpret_cast<float*>(shared);
  if (threadIdx.x < LEVELS) book[threadIdx.x] = a.book[threadIdx.x];
  __syncthreads();
  Chunk c = my_chunk(a.y.rows, a.y.cols);
  if (c.n == 0) return;
  int64_t row = a.first_row + c.row, e = row * a.y.cols + c.col;
  uint32_t code[CHUNK] = {};
  bool whole = a.y.cols % CHUNK == 0, one_group = whole && !a.columns && a.run % CHUNK == 0;
  load_codes(a, e, c.n, whole, code);
  float y[CHUNK];
  int64_t last = -1;
  float scale = 0, zero = 0;
#pragma unroll
  for (int i = 0; i < CHUNK; i++) {
    if (i >= c.n) continue;
    int64_t group = last;
    if (a.columns) group = row * a.groups + a.columns[c.col + i];
    else if (i == 0 || !one_group) group = (e + i) / a.run;
    if (group != last) {
      scale = a.scales[group];
      zero = a.zeros ? (float)a.zeros[group] : 0.0f;
      last = group;
    }
    float level = a.bits == 8 ? (float)code[i] - a.middle : book[code[i]];
    y[i] = rounded_to(a.rounded, scale * (level - zero));
  }
  store_chunk(a.y.row<Y>(c.row) + c.col, c.n, y);
}

GEMS_KERNEL(dequantize_f32, 256, DequantizeArguments, dequantize<float>)
GEMS_KERNEL(dequantize_bf16, 256, DequantizeArguments, dequantize<bf16>)

GEMS_FILE(dequantize)
