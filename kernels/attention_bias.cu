// Gradient of T5's relative position bias:
//
//   dbias[segment * buckets + b, h] += sum of dS[h, i, j] over the pairs of the segment with bucket(i, j) = b
//
// attention_bias_*: a block of 64 threads per head (y) and sequence (z). Every thread goes over its queries and
// all their keys and counts in a histogram of its own; the histograms are added in order into
// partial f32 [sequences * buckets x H]. Shared memory: 64 * buckets * 4 bytes; up to 512 buckets.
// attention_bias_sum adds the sequences of each segment, in order, to dbias f32 [segments * buckets x H].
// Deterministic. Flops: 4 d per pair (the scores and dP once more); trained in full fine-tuning only.
#include "attention.cuh"

struct AttentionBiasArguments { AttentionArguments attention; Matrix partial; };

template <class T> __device__ __forceinline__ float dot_pair(const T* x, const T* y, int d) {
  float sum = 0.0f;
  for (int c = 0; c < d; c++) sum += to_float(x[c]) * to_float(y[c]);
  return sum;
}

template <class T> __device__ __forceinline__ void bias_histogram(const AttentionBiasArguments& arguments) {
  GEMS_SHARED(shared);
  const AttentionArguments& a = arguments.attention;
  float* histogram = reinterpret_cast<float*>(shared);  // [bucket][thread]
  Sequence s = my_sequence(a);
  int d = a.head_dim, head = blockIdx.y, kv = head / (a.heads / a.kv_heads), buckets = a.bias_table.rows;
  for (int b = 0; b < buckets; b++) histogram[b * blockDim.x + threadIdx.x] = 0.0f;
  for (int local = threadIdx.x; local < s.q_rows; local += blockDim.x) {
    int i = s.q0 + local, end = s.k0 + end_key(a, s, local);
    float lse = a.lse.row<const float>(i)[head], delta = a.delta.row<const float>(i)[head];
    for (int key = s.k0 + first_key(a, local); key < end; key++) {
      float product = dot_pair(a.q.row<const T>(i) + head * d, a.k.row<const T>(key) + kv * d, d), scale = cap(a, product);
      float score = scale * product + bias_of<T>(a, head, i, key);
      float dp = dot_pair(a.dout.row<const T>(i) + head * d, a.v.row<const T>(key) + kv * d, d);
      histogram[bucket_of(a, i, key) * blockDim.x + threadIdx.x] += expf(score - lse) * (dp - delta);
    }
  }
  __syncthreads();
  for (int b = threadIdx.x; b < buckets; b += blockDim.x) {
    float sum = 0.0f;
    for (int t = 0; t < (int)blockDim.x; t++) sum += histogram[b * blockDim.x + t];
    arguments.partial.row<float>((int64_t)blockIdx.z * buckets + b)[head] = sum;
  }
}

GEMS_KERNEL(attention_bias_f32, BIAS_THREADS, AttentionBiasArguments, bias_histogram<float>)
GEMS_KERNEL(attention_bias_bf16, BIAS_THREADS, AttentionBiasArguments, bias_histogram<bf16>)

struct AttentionBiasSumArguments {
  Matrix partial, dbias;
  int buckets, unused;
  Segment segment[SEGMENTS];
};

__device__ __forceinline__ void bias_sum(const AttentionBiasSumArguments& a) {
  int at = blockIdx.x * blockDim.x + threadIdx.x, bucket = at / a.dbias.cols, head = at % a.dbias.cols;
  if (bucket >= a.buckets) return;
  float sum = 0.0f;
  for (int s = a.segment[blockIdx.y].first; s < a.segment[blockIdx.y].end; s++) {
    sum += a.partial.row<const float>((int64_t)s * a.buckets + bucket)[head];
  }
  a.dbias.row<float>((int64_t)blockIdx.y * a.buckets + bucket)[head] += sum;
}

GEMS_KERNEL(attention_bias_sum, 256, AttentionBiasSumArguments, bias_sum)
GEMS_FILE(attention_bias)
