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
#include "common.cuh"

struct CrossEntropyArguments { Matrix logits, gradient, weights, nll; const uint32_t* targets; float logit_scale, softcap; };

// sum exp(x - most) of what was seen; nothing: the largest is -inf, the sum 0.
struct Exponentials { float most, sum; };

// A sum is told anew when something larger comes, once for a chunk.
__device__ __forceinline__ void add_chunk(Exponentials& e, const float (&v)[CHUNK], int n) {
  float most = e.most;
#pragma unroll
  for (int i = 0; i < CHUNK; i++) most = i < n && v[i] > most ? v[i] : most;
  if (most > e.most) e.sum *= __expf(e.most - most), e.most = most;
  // Nothing but -inf so far: it adds nothing, and inf - inf is no number. NaN remains, whatever is the largest.
  float origin = most == -INFINITY ? 0.0f : most;
#pragma unroll
  for (int i = 0; i < CHUNK; i++) e.sum += i < n ? __expf(v[i] - origin) : 0.0f;
}

// Of the whole block, in every thread.
__device__ __forceinline__ Exponentials over_block(Exponentials mine, float* scratch) {
  float most = warp_max(mine.most);
  if (threadIdx.x % 32 == 0) scratch[32 + threadIdx.x / 32] = most;
  __syncthreads();
  for (int i = 0; i < (int)blockDim.x / 32; i++) most = scratch[32 + i] > most ? scratch[32 + i] : most;
  return Exponentials{most, row_sum(mine.sum == 0.0f ? 0.0f : mine.sum * __expf(mine.most - most), scratch)};
}

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
