// Softmax cross entropy of a block of logits, with its gradient.
//
//   nll[i] = logsumexp(logits[i]) - logits[i, target[i]]
//   gradient[i, j] = weight[i] * logit_scale * (softmax(logits[i])[j] - [j = target[i]]) * (1 - (logits[i, j] / softcap)^2)
//
// The last factor is there when softcap is not 0: the gradient is that of what was capped.
// logits f32 [n x V] (already multiplied by logit_scale), targets u32 [n], weights f32 [n x 1], nll f32
// [n x 1], gradient f32 or bf16 [n x V] or absent; an f32 gradient may be the logits' own memory.
// A block of 256 threads per row, eight neighbours of a thread at a time; two passes: maximum and sum together, then the
// gradient. Shared memory: 256 bytes. Any V >= 1. Bytes: logits twice (second time from L2), gradient once.
#include "softmax.cuh"

struct CrossEntropyArguments { Matrix logits, gradient, weights, nll; const uint32_t* targets; float logit_scale, softcap; };

template <class T> __device__ __forceinline__ void cross_entropy(const CrossEntropyArguments& a) {
  GEMS_SHARED(shared);
  int row = blockIdx.x, vocabulary = a.logits.cols, target = (int)a.targets[row], stride = blockDim.x * CHUNK;
  const float* logits = a.logits.row<const float>(row);
  float at_target = logits[target], v[CHUNK];
  Exponentials e = {-INFINITY, 0.0f};
  for (int j = threadIdx.x * CHUNK; j < vocabulary; j += stride) {
    int n = vocabulary - j < CHUNK ? vocabulary - j : CHUNK;
    load_chunk(logits + j, n, v);
    add_chunk(e, v, n);
  }
  e = over_block(e, reinterpret_cast<float*>(shared));
  if (threadIdx.x == 0) *a.nll.row<float>(row) = e.most + logf(e.sum) - at_target;
  if (!a.gradient.data) return;
  float factor = *a.weights.row<const float>(row) * a.logit_scale, inverse = 1.0f / e.sum;
  T* gradient = a.gradient.row<T>(row);
  float inverse_cap = a.softcap > 0.0f ? 1.0f / a.softcap : 0.0f;
  for (int j = threadIdx.x * CHUNK; j < vocabulary; j += stride) {
    int n = vocabulary - j < CHUNK ? vocabulary - j : CHUNK;
    load_chunk(logits + j, n, v);
#pragma unroll
    for (int i = 0; i < CHUNK; i++) {
      float t = v[i] * inverse_cap, p = __expf(v[i] - e.most) * inverse;
      v[i] = factor * (1.0f - t * t) * (p - (j + i == target ? 1.0f : 0.0f));
    }
    store_chunk(gradient + j, n, v);
  }
}

GEMS_KERNEL(cross_entropy_f32, 256, CrossEntropyArguments, cross_entropy<float>)
GEMS_KERNEL(cross_entropy_bf16, 256, CrossEntropyArguments, cross_entropy<bf16>)

GEMS_FILE(cross_entropy)
