// The divergence of predictions from earlier ones, row by row, with its gradient in place of the logits.
//
//   kl[i] = sum_j p_j (before[i, j] - logits[i, j]) + logsumexp(logits[i]) - logsumexp(before[i]),  p = softmax(before[i])
//   logits[i, j] <- factor (softmax(logits[i])[j] - p_j) (1 - (logits[i, j] / softcap)^2)
//
// The last factor is there when softcap is not 0: the gradient is that of what was capped.
// logits f32 [n x V], before f32 [n x V], kl f32 [n x 1]. The sum of differences in f64: predictions that have hardly moved
// leave little of it. A block of 512 threads a row, eight neighbours of a thread at a time; two passes: sums, with the maxima
// found on the way, then the gradient. Shared memory: 512 bytes. Any V >= 1. Bytes: both matrices twice, the gradient once.
#include "softmax.cuh"

struct DivergenceArguments { Matrix logits, before, kl; float factor, softcap; };

// Of the earlier predictions: their exponentials, and sum exp(b - most) (b - x).
struct Weighted { Exponentials all; double difference; };

__device__ __forceinline__ void add_chunk(Weighted& w, const float (&b)[CHUNK], const float (&x)[CHUNK], int n) {
  float most = w.all.most;
#pragma unroll
  for (int i = 0; i < CHUNK; i++) most = i < n && b[i] > most ? b[i] : most;
  if (most > w.all.most) {
    float shrink = __expf(w.all.most - most);
    w.all.most = most, w.all.sum *= shrink, w.difference *= (double)shrink;
  }
#pragma unroll
  for (int i = 0; i < CHUNK; i++) {
    float weight = i < n ? __expf(b[i] - most) : 0.0f;
    w.all.sum += weight;
    if (i < n) w.difference += (double)weight * (double)(b[i] - x[i]);
  }
}

__device__ __forceinline__ void find_divergence(const DivergenceArguments& a) {
  GEMS_SHARED(shared);
  float *scratch = reinterpret_cast<float*>(shared), x[CHUNK], b[CHUNK];
  int row = blockIdx.x, vocabulary = a.logits.cols, first = threadIdx.x * CHUNK, stride = blockDim.x * CHUNK;
  float* logits = a.logits.row<float>(row);
  const float* before = a.before.row<const float>(row);

  Exponentials now = {-INFINITY, 0.0f};
  Weighted then = {{-INFINITY, 0.0f}, 0.0};
  for (int j = first; j < vocabulary; j += stride) {
    int n = vocabulary - j < CHUNK ? vocabulary - j : CHUNK;
    load_chunk(logits + j, n, x);
    load_chunk(before + j, n, b);
    add_chunk(now, x, n);
    add_chunk(then, b, x, n);
  }
  float mine = then.all.most;
  now = over_block(now, scratch);
  then.all = over_block(then.all, scratch);
  // A thread that has seen nothing has nothing to add.
  then.difference *= mine == -INFINITY ? 0.0 : (double)__expf(mine - then.all.most);
  double difference = row_sum(then.difference, reinterpret_cast<double*>(shared));
  if (threadIdx.x == 0) {
    double moved = (double)now.most - (double)then.all.most + log((double)now.sum) - log((double)then.all.sum);
    *a.kl.row<float>(row) = (float)(difference / (double)then.all.sum + moved);
  }
  float inverse_cap = a.softcap > 0.0f ? 1.0f / a.softcap : 0.0f, of_now = 1.0f / now.sum, of_then = 1.0f / then.all.sum;
  for (int j = first; j < vocabulary; j += stride) {
    int n = vocabulary - j < CHUNK ? vocabulary - j : CHUNK;
    load_chunk(logits + j, n, x);
    load_chunk(before + j, n, b);
#pragma unroll
    for (int i = 0; i < CHUNK; i++) {
      float t = x[i] * inverse_cap;
      x[i] = a.factor * (1.0f - t * t) * (__expf(x[i] - now.most) * of_now - __expf(b[i] - then.all.most) * of_then);
    }
    store_chunk(logits + j, n, x);
  }
}

GEMS_KERNEL(divergence, 512, DivergenceArguments, find_divergence)

GEMS_FILE(divergence)
