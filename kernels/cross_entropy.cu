// Softmax cross entropy of a block of logits, with its gradient.
//
//   nll[i] = logsumexp(logits[i]) - logits[i, target[i]]
//   gradient[i, j] = weight[i] * logit_scale * (softmax(logits[i])[j] - [j = target[i]])
//
// logits f32 [n x V] (already multiplied by logit_scale), targets u32 [n], weights f32 [n x 1], nll f32
// [n x 1], gradient f32 or bf16 [n x V] or absent; an f32 gradient may be the logits' own memory.
// A block of 256 threads per row; two passes: running maximum and sum of each thread, then the gradient.
// Shared memory: 256 bytes. Any V >= 1. Bytes: logits twice (second time from L2), gradient once.
#include "common.cuh"

struct CrossEntropyArguments { Matrix logits, gradient, weights, nll; const uint32_t* targets; float logit_scale, unused; };

template <class T> __device__ __forceinline__ void cross_entropy(const CrossEntropyArguments& a) {
  GEMS_SHARED(shared);
  float* scratch = reinterpret_cast<float*>(shared);
  int row = blockIdx.x, vocabulary = a.logits.cols, target = (int)a.targets[row];
  const float* logits = a.logits.row<const float>(row);
  float at_target = logits[target];

  float most = -INFINITY;
  for (int j = threadIdx.x; j < vocabulary; j += blockDim.x) most = logits[j] > most ? logits[j] : most;
  most = warp_max(most);
  if (threadIdx.x % 32 == 0) scratch[32 + threadIdx.x / 32] = most;
  __syncthreads();
  for (int i = 0; i < (int)blockDim.x / 32; i++) most = scratch[32 + i] > most ? scratch[32 + i] : most;

  float sum = 0.0f;
  for (int j = threadIdx.x; j < vocabulary; j += blockDim.x) sum += __expf(logits[j] - most);
  sum = row_sum(sum, scratch);
  if (threadIdx.x == 0) *a.nll.row<float>(row) = most + logf(sum) - at_target;
  if (!a.gradient.data) return;
  float factor = *a.weights.row<const float>(row) * a.logit_scale;
  T* gradient = a.gradient.row<T>(row);
  for (int j = threadIdx.x; j < vocabulary; j += blockDim.x) {
    float p = __expf(logits[j] - most) / sum;
    gradient[j] = from_float<T>(factor * (j == target ? p - 1.0f : p));
  }
}

GEMS_KERNEL(cross_entropy_f32, 256, CrossEntropyArguments, cross_entropy<float>)
GEMS_KERNEL(cross_entropy_bf16, 256, CrossEntropyArguments, cross_entropy<bf16>)

GEMS_FILE(cross_entropy)
