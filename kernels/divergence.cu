// The divergence of predictions from earlier ones, row by row, with its gradient in place of the logits.
//
//   kl[i] = sum_j p_j (before[i, j] - logits[i, j]) + logsumexp(logits[i]) - logsumexp(before[i]),  p = softmax(before[i])
//   logits[i, j] <- factor (softmax(logits[i])[j] - p_j) (1 - (logits[i, j] / softcap)^2)
//
// The last factor is there when softcap is not 0: the gradient is that of what was capped.
// logits f32 [n x V], before f32 [n x V], kl f32 [n x 1]. The sum of differences in f64: predictions that have hardly moved
// leave little of it. A block of 256 threads a row; three passes: maxima, sums, gradient. Shared memory: 512 bytes. Any
// V >= 1. Bytes: both matrices three times (the last two from L2), the gradient once.
#include "common.cuh"

struct DivergenceArguments { Matrix logits, before, kl; float factor, softcap; };

// The largest of v over the block, in every thread; 8 values of scratch.
__device__ __forceinline__ float block_max(float v, float* scratch) {
  v = warp_max(v);
  __syncthreads();
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = v;
  __syncthreads();
  for (int i = 0; i < (int)blockDim.x / 32; i++) v = scratch[i] > v ? scratch[i] : v;
  return v;
}

__device__ __forceinline__ void find_divergence(const DivergenceArguments& a) {
  GEMS_SHARED(shared);
  float* scratch = reinterpret_cast<float*>(shared);
  int row = blockIdx.x, vocabulary = a.logits.cols;
  float* logits = a.logits.row<float>(row);
  const float* before = a.before.row<const float>(row);

  float most = -INFINITY, most_before = -INFINITY;
  for (int j = threadIdx.x; j < vocabulary; j += blockDim.x) {
    most = logits[j] > most ? logits[j] : most;
    most_before = before[j] > most_before ? before[j] : most_before;
  }
  most = block_max(most, scratch);
  most_before = block_max(most_before, scratch);

  float sum = 0.0f, sum_before = 0.0f;
  double difference = 0.0;
  for (int j = threadIdx.x; j < vocabulary; j += blockDim.x) {
    float weight = __expf(before[j] - most_before);
    sum += __expf(logits[j] - most);
    sum_before += weight;
    difference += (double)weight * (double)(before[j] - logits[j]);
  }
  sum = row_sum(sum, scratch);
  sum_before = row_sum(sum_before, scratch);
  difference = row_sum(difference, reinterpret_cast<double*>(shared));
  if (threadIdx.x == 0) {
    double moved = (double)most - (double)most_before + log((double)sum) - log((double)sum_before);
    *a.kl.row<float>(row) = (float)(difference / (double)sum_before + moved);
  }
  float inverse_cap = a.softcap > 0.0f ? 1.0f / a.softcap : 0.0f;
  for (int j = threadIdx.x; j < vocabulary; j += blockDim.x) {
    float now = __expf(logits[j] - most) / sum, then = __expf(before[j] - most_before) / sum_before;
    float t = logits[j] * inverse_cap;
    logits[j] = a.factor * (1.0f - t * t) * (now - then);
  }
}

GEMS_KERNEL(divergence, 256, DivergenceArguments, find_divergence)

GEMS_FILE(divergence)
