// x[a, b] *= e(a, b): what the pull keeps of a change along eigenvectors a of F and b of C.
//
// With g(f, c) = 1 / (1 + tau f c), which is 0 on a side that has no such directions, along the known directions of both sides
//   e(a, b) = g(f_a, c_b) - g(f_rest, c_b) - g(f_a, c_rest) + g(f_rest, c_rest);
// where a side's directions are not the known ones (its matrix is null) it enters with its rest alone: g(f_a, c_rest) -
// g(f_rest, c_rest), g(f_rest, c_b) - g(f_rest, c_rest), g(f_rest, c_rest). A rest below 0: there are no other directions.
//
// x [rows x cols] f32, any ld; f [1 x rows], c [1 x cols] f32, not negative. e in f64. 256 threads, 8 elements each; grid:
// rows * ceil(cols / 8) threads; no shared memory. Bytes: x twice.
#include "common.cuh"

struct ShrinkArguments { Matrix x, f, c; float tau, f_rest, c_rest, unused; };

__device__ __forceinline__ double kept(double tau, double f, double c) {
  return f < 0.0 || c < 0.0 ? 0.0 : 1.0 / (1.0 + tau * f * c);
}

__device__ __forceinline__ void shrink_by_factors(const ShrinkArguments& a) {
  Chunk at = my_chunk(a.x.rows, a.x.cols);
  if (at.n == 0) return;
  float x[CHUNK], c[CHUNK];
  load_chunk(a.x.row<const float>(at.row) + at.col, at.n, x);
  if (a.c.data) load_chunk(a.c.row<const float>(0) + at.col, at.n, c);
  double f = a.f.data ? a.f.row<const float>(0)[at.row] : a.f_rest;
#pragma unroll
  for (int i = 0; i < CHUNK; i++) {
    double of_c = a.c.data ? c[i] : a.c_rest;
    double factor = kept(a.tau, f, of_c);
    if (a.f.data) factor -= kept(a.tau, a.f_rest, of_c);
    if (a.c.data) factor -= kept(a.tau, f, a.c_rest);
    if (a.f.data && a.c.data) factor += kept(a.tau, a.f_rest, a.c_rest);
    x[i] = (float)(x[i] * factor);
  }
  store_chunk(a.x.row<float>(at.row) + at.col, at.n, x);
}

GEMS_KERNEL(shrink, 256, ShrinkArguments, shrink_by_factors)

GEMS_FILE(shrink)
