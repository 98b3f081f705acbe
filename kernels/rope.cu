// Rotary embedding in place, half-split layout (`rotate_half` of transformers):
//
//   (x_j, x_{j + r/2}) <- factor (x_j cos - x_{j+r/2} sin, x_{j+r/2} cos + x_j sin), angle = positions[i] inv_freq[j]
//
// x [T x heads d], inv_freq f32 [1 x r/2], positions u32 [T]. The first r of a head's d values turn, the others stay.
// sign -1 rotates back (the gradient). A thread owns pair j of all heads of one row, so an angle's sine and cosine are
// computed once. 256 threads; grid: T * r/2 threads; no shared memory; any even r up to d. Bytes: x twice.
#include "common.cuh"

struct RopeArguments { Matrix x, inv_freq; const uint32_t* positions; int heads, head_dim; float sign, factor; };

template <class T> __device__ __forceinline__ void rope(const RopeArguments& a) {
  int half = a.inv_freq.cols;
  int64_t index = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  int64_t row = index / half;
  int pair = (int)(index % half);
  if (row >= a.x.rows) return;
  float sine, cosine;
  sincosf((float)a.positions[row] * a.inv_freq.row<const float>(0)[pair], &sine, &cosine);
  sine *= a.sign * a.factor;
  cosine *= a.factor;
  T* x = a.x.row<T>(row) + pair;
  for (int head = 0; head < a.heads; head++, x += a.head_dim) {
    float low = to_float(x[0]), high = to_float(x[half]);
    x[0] = from_float<T>(low * cosine - high * sine);
    x[half] = from_float<T>(high * cosine + low * sine);
  }
}

GEMS_KERNEL(rope_f32, 256, RopeArguments, rope<float>)
GEMS_KERNEL(rope_bf16, 256, RopeArguments, rope<bf16>)

GEMS_FILE(rope)
