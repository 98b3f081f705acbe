// Moving rows: gather (embedding) and its transpose, the grouped scatter.
//
// gather_*:  y[i] = scale * table[ids[i]];  table [V x D], ids u32 [T], y [T x D], both of one type.
// scatter_*: to[rows[g] - first_row] += scale * sum of from[sources[j]], j = offsets[g] .. offsets[g+1],
//   in that order, for groups with rows[g] >= first_row; from [T x D], to [any x D] f32 or compute type.
//   Every target row belongs to one group, so nothing is added concurrently: deterministic.
//
// 256 threads, 8 elements each; gather: T * ceil(D / 8) threads; scatter: one grid row (y) per group in
// steps of gridDim.y. No shared memory. An id beyond the table is the caller's bug (the data layer checks).
// Bytes: gather 2 T D elements; scatter the sources once and the targets twice.
#include "common.cuh"

struct GatherArguments { Matrix table, y; const uint32_t* ids; float scale, unused; };

template <class T> __device__ __forceinline__ void gather(const GatherArguments& a) {
  Chunk c = my_chunk(a.y.rows, a.y.cols);
  if (c.n == 0) return;
  float v[CHUNK];
  load_chunk(a.table.row<const T>(a.ids[c.row]) + c.col, c.n, v);
#pragma unroll
  for (int i = 0; i < CHUNK; i++) v[i] *= a.scale;
  store_chunk(a.y.row<T>(c.row) + c.col, c.n, v);
}

GEMS_KERNEL(gather_f32, 256, GatherArguments, gather<float>)
GEMS_KERNEL(gather_bf16, 256, GatherArguments, gather<bf16>)

struct ScatterArguments {
  Matrix from, to;
  const uint32_t *rows, *offsets, *sources;
  int groups, first_row;
  float scale, unused;
};

template <class From, class To> __device__ __forceinline__ void scatter(const ScatterArguments& a) {
  int col = (int)(blockIdx.x * blockDim.x + threadIdx.x) * CHUNK;
  int n = a.to.cols - col < CHUNK ? a.to.cols - col : CHUNK;
  if (n <= 0) return;
  for (int g = blockIdx.y; g < a.groups; g += gridDim.y) {
    if (a.rows[g] < (uint32_t)a.first_row) continue;
    float sum[CHUNK] = {}, v[CHUNK];
    for (uint32_t j = a.offsets[g]; j < a.offsets[g + 1]; j++) {
      load_chunk(a.from.row<const From>(a.sources[j]) + col, n, v);
#pragma unroll
      for (int i = 0; i < CHUNK; i++) sum[i] += v[i];
    }
    To* to = a.to.row<To>(a.rows[g] - a.first_row) + col;
    load_chunk(to, n, v);
#pragma unroll
    for (int i = 0; i < CHUNK; i++) v[i] += a.scale * sum[i];
    store_chunk(to, n, v);
  }
}

GEMS_KERNEL(scatter_f32_f32, 256, ScatterArguments, scatter<float, float>)
GEMS_KERNEL(scatter_bf16_f32, 256, ScatterArguments, scatter<bf16, float>)
GEMS_KERNEL(scatter_bf16_bf16, 256, ScatterArguments, scatter<bf16, bf16>)
GEMS_KERNEL(scatter_f32_bf16, 256, ScatterArguments, scatter<float, bf16>)

GEMS_FILE(gather)
