// Attention row by row on CUDA cores: f32, listed masks (a trie over a shared prompt), and head sizes or
// alignments that the tensor-core kernels refuse. Notation and arguments in attention.cuh.
//
// A warp owns one row of one head: 32 keys (or queries) at a time, first a lane per key for the scores, then
// a lane per column for the sums. Head size 1 to 256. Online softmax in f32; every output has one owner:
// deterministic.
// attention_rows_*, attention_dq_rows_*: 128 threads, grid x ceil(longest query run / 4), y heads, z sequences.
// attention_dkv_rows_*: grid x ceil(longest key run / 4), y kv heads, z sequences; not of a listed mask.
// Shared memory: 4 * (2 d + 96) * 4 bytes. attention_delta_*: 8 elements a thread, 256 threads.
// Bytes: k and v once per query row, from L1 and L2. Flops as the tensor-core kernels.
#include "attention.cuh"

constexpr int COLUMNS = 8;  // of a lane: head sizes up to 256

// One warp's shared memory.
struct RowScratch { float *first, *second, *p, *ds; int* index; };
__device__ __forceinline__ RowScratch row_scratch(uint8_t* shared, int d) {
  float* base = reinterpret_cast<float*>(shared) + (threadIdx.x / 32) * (2 * d + ATTENTION_SCRATCH);
  return RowScratch{base, base + d, base + 2 * d, base + 2 * d + 32, reinterpret_cast<int*>(base + 2 * d + 64)};
}

template <class T> __device__ __forceinline__ void load_row(float* to, const T* from, int d) {
  for (int c = threadIdx.x % 32; c < d; c += 32) to[c] = to_float(from[c]);
}
// Every lane has a row of its own: 16 bytes of it at a time.
template <class T> __device__ __forceinline__ float dot_row(const float* x, const T* y, int d) {
  float sum = 0.0f, v[CHUNK];
  for (int c = 0; c < d; c += CHUNK) {
    int n = d - c < CHUNK ? d - c : CHUNK;
    load_chunk(y + c, n, v);
    for (int i = 0; i < n; i++) sum += x[c + i] * v[i];
  }
  return sum;
}

// The keys that query row i (within the sequence) sees: number, and the n-th as a row of the batch.
struct Keys { const uint32_t* list; int first, count; };
__device__ __forceinline__ Keys keys_of(const AttentionArguments& a, const Sequence& s, int i) {
  if (a.listed_offsets) {
    uint32_t first = a.listed_offsets[s.q0 + i];
    return Keys{a.listed_keys + first, 0, (int)(a.listed_offsets[s.q0 + i + 1] - first)};
  }
  return Keys{nullptr, s.k0 + first_key(a, i), end_key(a, s, i) - first_key(a, i)};
}
__device__ __forceinline__ int key_at(const Keys& keys, int n) { return keys.list ? (int)keys.list[n] : keys.first + n; }

template <class T> __device__ __forceinline__ void attention_rows(const AttentionArguments& a) {
  GEMS_SHARED(shared);
  Sequence s = my_sequence(a);
  int d = a.head_dim, head = blockIdx.y, kv = head / (a.heads / a.kv_heads), lane = threadIdx.x % 32;
  int local = blockIdx.x * ATTENTION_WARPS + threadIdx.x / 32, i = s.q0 + local;
  if (local >= s.q_rows) return;
  RowScratch w = row_scratch(shared, d);
  load_row(w.first, a.q.row<const T>(i) + head * d, d);
  __syncwarp();
  Keys keys = keys_of(a, s, local);
  float most = -INFINITY, sum = 0.0f, o[COLUMNS] = {};
  for (int n = 0; n < keys.count; n += 32) {
    bool seen = n + lane < keys.count;
    int key = seen ? key_at(keys, n + lane) : 0;
    float score = -INFINITY;
    if (seen) {
      float product = dot_row(w.first, a.k.row<const T>(key) + kv * d, d), scale = cap(a, product);
      score = scale * product + bias_of<T>(a, head, i, key);
    }
    float largest = warp_max(score > most ? score : most);
    float origin = largest == -INFINITY ? 0.0f : largest;
    float shrink = expf(most - origin), p = expf(score - origin);
    most = largest;
    sum = sum * shrink + p;
    w.p[lane] = p;
    w.index[lane] = key;
    __syncwarp();
    int count = keys.count - n < 32 ? keys.count - n : 32;
    for (int c = 0; c < COLUMNS && lane + c * 32 < d; c++) {
      o[c] *= shrink;
      for (int j = 0; j < count; j++) o[c] += w.p[j] * to_float(a.v.row<const T>(w.index[j])[kv * d + lane + c * 32]);
    }
    __syncwarp();
  }
  sum = warp_sum(sum);
  float inverse = sum > 0.0f ? 1.0f / sum : 0.0f;
  if (lane == 0) a.lse.row<float>(i)[head] = sum > 0.0f ? most + logf(sum) : -INFINITY;
  for (int c = 0; c < COLUMNS && lane + c * 32 < d; c++) a.out.row<T>(i)[head * d + lane + c * 32] = from_float<T>(o[c] * inverse);
}

GEMS_KERNEL_BLOCKS(attention_rows_f32, ATTENTION_THREADS, 4, AttentionArguments, attention_rows<float>)
GEMS_KERNEL_BLOCKS(attention_rows_bf16, ATTENTION_THREADS, 4, AttentionArguments, attention_rows<bf16>)

// delta[i, h] = <dout, out> of row i, head h: a chunk a lane, of as many lanes as a head needs, 1 to 32.
template <class T> __device__ __forceinline__ void delta_rows(const AttentionArguments& a) {
  int lanes = 1;
  while (lanes * CHUNK < a.head_dim) lanes *= 2;
  int64_t thread = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, row = thread / lanes / a.heads;
  int head = (int)(thread / lanes % a.heads), col = (int)(thread % lanes) * CHUNK, n = a.head_dim - col;
  n = row >= a.out.rows || n < 0 ? 0 : n < CHUNK ? n : CHUNK;
  float sum = 0.0f, x[CHUNK], y[CHUNK];
  if (n > 0) {
    load_chunk(a.dout.row<const T>(row) + head * a.head_dim + col, n, x);
    load_chunk(a.out.row<const T>(row) + head * a.head_dim + col, n, y);
    for (int i = 0; i < CHUNK; i++) sum += x[i] * y[i];
  }
  for (int bits = lanes / 2; bits > 0; bits /= 2) sum += __shfl_xor_sync(~0u, sum, bits);
  if (n > 0 && col == 0) a.delta.row<float>(row)[head] = sum;
}

GEMS_KERNEL(attention_delta_f32, 256, AttentionArguments, delta_rows<float>)
GEMS_KERNEL(attention_delta_bf16, 256, AttentionArguments, delta_rows<bf16>)

template <class T> __device__ __forceinline__ void attention_dq_rows(const AttentionArguments& a) {
  GEMS_SHARED(shared);
  Sequence s = my_sequence(a);
  int d = a.head_dim, head = blockIdx.y, kv = head / (a.heads / a.kv_heads), lane = threadIdx.x % 32;
  int local = blockIdx.x * ATTENTION_WARPS + threadIdx.x / 32, i = s.q0 + local;
  if (local >= s.q_rows) return;
  RowScratch w = row_scratch(shared, d);
  load_row(w.first, a.q.row<const T>(i) + head * d, d);
  load_row(w.second, a.dout.row<const T>(i) + head * d, d);
  __syncwarp();
  Keys keys = keys_of(a, s, local);
  float lse = a.lse.row<const float>(i)[head], delta = a.delta.row<const float>(i)[head], dq[COLUMNS] = {};
  for (int n = 0; n < keys.count; n += 32) {
    bool seen = n + lane < keys.count;
    int key = seen ? key_at(keys, n + lane) : 0;
    float ds = 0.0f;
    if (seen) {
      float product = dot_row(w.first, a.k.row<const T>(key) + kv * d, d), scale = cap(a, product);
      float score = scale * product + bias_of<T>(a, head, i, key);
      ds = expf(score - lse) * (dot_row(w.second, a.v.row<const T>(key) + kv * d, d) - delta) * cap_slope(a, product);
    }
    w.ds[lane] = ds;
    w.index[lane] = key;
    __syncwarp();
    int count = keys.count - n < 32 ? keys.count - n : 32;
    for (int c = 0; c < COLUMNS && lane + c * 32 < d; c++) {
      for (int j = 0; j < count; j++) dq[c] += w.ds[j] * to_float(a.k.row<const T>(w.index[j])[kv * d + lane + c * 32]);
    }
    __syncwarp();
  }
  for (int c = 0; c < COLUMNS && lane + c * 32 < d; c++) a.dq.row<T>(i)[head * d + lane + c * 32] = from_float<T>(a.scale * dq[c]);
}

GEMS_KERNEL_BLOCKS(attention_dq_rows_f32, ATTENTION_THREADS, 4, AttentionArguments, attention_dq_rows<float>)
GEMS_KERNEL_BLOCKS(attention_dq_rows_bf16, ATTENTION_THREADS, 4, AttentionArguments, attention_dq_rows<bf16>)

template <class T> __device__ __forceinline__ void attention_dkv_rows(const AttentionArguments& a) {
  GEMS_SHARED(shared);
  Sequence s = my_sequence(a);
  int d = a.head_dim, kv = blockIdx.y, group = a.heads / a.kv_heads, lane = threadIdx.x % 32;
  int local = blockIdx.x * ATTENTION_WARPS + threadIdx.x / 32, key = s.k0 + local;
  if (local >= s.k_rows) return;
  RowScratch w = row_scratch(shared, d);
  load_row(w.first, a.k.row<const T>(key) + kv * d, d);
  load_row(w.second, a.v.row<const T>(key) + kv * d, d);
  __syncwarp();
  float dk[COLUMNS] = {}, dv[COLUMNS] = {};
  int end = end_query(a, s, local);
  for (int head = kv * group; head < (kv + 1) * group; head++) {
    for (int n = first_query(a, local); n < end; n += 32) {
      float p = 0.0f, ds = 0.0f;
      if (n + lane < end) {
        int i = s.q0 + n + lane;
        float product = dot_row(w.first, a.q.row<const T>(i) + head * d, d), scale = cap(a, product);
        float score = scale * product + bias_of<T>(a, head, i, key);
        p = expf(score - a.lse.row<const float>(i)[head]);
        ds = p * (dot_row(w.second, a.dout.row<const T>(i) + head * d, d) - a.delta.row<const float>(i)[head]);
        ds *= cap_slope(a, product);
      }
      w.p[lane] = p;
      w.ds[lane] = ds;
      __syncwarp();
      int count = end - n < 32 ? end - n : 32;
      for (int c = 0; c < COLUMNS && lane + c * 32 < d; c++) {
        int col = head * d + lane + c * 32;
        for (int j = 0; j < count; j++) {
          dk[c] += w.ds[j] * to_float(a.q.row<const T>(s.q0 + n + j)[col]);
          dv[c] += w.p[j] * to_float(a.dout.row<const T>(s.q0 + n + j)[col]);
        }
      }
      __syncwarp();
    }
  }
  for (int c = 0; c < COLUMNS && lane + c * 32 < d; c++) {
    a.dk.row<T>(key)[kv * d + lane + c * 32] = from_float<T>(a.scale * dk[c]);
    a.dv.row<T>(key)[kv * d + lane + c * 32] = from_float<T>(dv[c]);
  }
}

GEMS_KERNEL_BLOCKS(attention_dkv_rows_f32, ATTENTION_THREADS, 4, AttentionArguments, attention_dkv_rows<float>)
GEMS_KERNEL_BLOCKS(attention_dkv_rows_bf16, ATTENTION_THREADS, 4, AttentionArguments, attention_dkv_rows<bf16>)

GEMS_FILE(attention_rows)
