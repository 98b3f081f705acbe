// Gated feed-forward nonlinearity: y = act(gate) * up, or act(gate) without up; and its gradients
// dgate = act'(gate) dy up, dup = act(gate) dy.
//
// act: 0 silu x sigmoid(x), 1 relu, 2 gelu in its tanh approximation (`gelu_new`). All matrices [T x F] of
// one type, any ld (gate and up may be halves of one buffer). Arithmetic in f32.
// 256 threads, 8 elements each; grid: T * ceil(F / 8) threads; no shared memory.
// Bytes: forward 3 T F elements (2 without up), backward 5 (3).
#include "common.cuh"

struct ActivationArguments { Matrix gate, up, dy, y, dup; int kind, unused; };

// The function and its derivative at x.
__device__ __forceinline__ void evaluate(int kind, float x, float& value, float& slope) {
  if (kind == ACTIVATION_SILU) {
    float s = 1.0f / (1.0f + __expf(-x));
    value = x * s;
    slope = s * (1.0f + x * (1.0f - s));
  } else if (kind == ACTIVATION_RELU) {
    value = x > 0.0f ? x : 0.0f;
    slope = x > 0.0f ? 1.0f : 0.0f;
  } else {
    const float c = 0.7978845608f, cubic = 0.044715f;  // sqrt(2 / pi)
    float t = tanhf(c * (x + cubic * x * x * x));
    value = 0.5f * x * (1.0f + t);
    slope = 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * c * (1.0f + 3.0f * cubic * x * x);
  }
}

template <class T> __device__ __forceinline__ void activation(const ActivationArguments& a) {
  Chunk c = my_chunk(a.y.rows, a.y.cols);
  if (c.n == 0) return;
  float gate[CHUNK], up[CHUNK], value, slope;
  load_chunk(a.gate.row<const T>(c.row) + c.col, c.n, gate);
  if (a.up.data) load_chunk(a.up.row<const T>(c.row) + c.col, c.n, up);
#pragma unroll
  for (int i = 0; i < CHUNK; i++) {
    evaluate(a.kind, gate[i], value, slope);
    gate[i] = a.up.data ? value * up[i] : value;
  }
  store_chunk(a.y.row<T>(c.row) + c.col, c.n, gate);
}

GEMS_KERNEL(activation_f32, 256, ActivationArguments, activation<float>)
GEMS_KERNEL(activation_bf16, 256, ActivationArguments, activation<bf16>)

// y is dgate here.
template <class T> __device__ __forceinline__ void activation_backward(const ActivationArguments& a) {
  Chunk c = my_chunk(a.y.rows, a.y.cols);
  if (c.n == 0) return;
  float gate[CHUNK], up[CHUNK], dy[CHUNK], value, slope;
  load_chunk(a.gate.row<const T>(c.row) + c.col, c.n, gate);
  load_chunk(a.dy.row<const T>(c.row) + c.col, c.n, dy);
  if (a.up.data) load_chunk(a.up.row<const T>(c.row) + c.col, c.n, up);
#pragma unroll
  for (int i = 0; i < CHUNK; i++) {
    evaluate(a.kind, gate[i], value, slope);
    gate[i] = a.up.data ? slope * dy[i] * up[i] : slope * dy[i];
    dy[i] *= value;
  }
  store_chunk(a.y.row<T>(c.row) + c.col, c.n, gate);
  if (a.dup.data) store_chunk(a.dup.row<T>(c.row) + c.col, c.n, dy);
}

GEMS_KERNEL(activation_backward_f32, 256, ActivationArguments, activation_backward<float>)
GEMS_KERNEL(activation_backward_bf16, 256, ActivationArguments, activation_backward<bf16>)

GEMS_FILE(activation)
