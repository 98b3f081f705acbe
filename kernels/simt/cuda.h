// The part of CUDA C++ that the kernels use, for the host compiler. Included before every .cu file.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include "machine.h"

#define GEMS_SIMT 1
#define __device__
#define __host__
#define __global__
#define __forceinline__ inline __attribute__((always_inline))

#define threadIdx (simt::self->index)
#define blockIdx (simt::block.index)
#define blockDim (simt::block.size)
#define gridDim (simt::block.grid)

struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };

static inline void __syncthreads() { simt::barrier(); }
static inline void __syncwarp(uint32_t mask = ~0u) { simt::rendezvous(mask, nullptr, nullptr, "__syncwarp"); }

// Integer atomics and fences between blocks, which run on several OS threads.
static inline uint32_t atomicAdd(uint32_t* to, uint32_t value) { return simt::atomic_add(to, value); }
static inline void __threadfence() { simt::fence(); }

namespace simt {
template <class T>
static inline T shuffle_as(uint32_t mask, T value, int operand, int width, Shuffle kind) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles move 32 or 64 bits");
  uint32_t parts[sizeof(T) / 4];
  memcpy(parts, &value, sizeof(T));
  for (uint32_t& part : parts) part = shuffle(mask, part, operand, width, kind);
  memcpy(&value, parts, sizeof(T));
  return value;
}
}  // namespace simt
template <class T> static inline T __shfl_sync(uint32_t m, T v, int lane, int width = 32) {
  return simt::shuffle_as(m, v, lane, width, simt::Shuffle::index);
}
template <class T> static inline T __shfl_xor_sync(uint32_t m, T v, int bits, int width = 32) {
  return simt::shuffle_as(m, v, bits, width, simt::Shuffle::exclusive_or);
}
template <class T> static inline T __shfl_down_sync(uint32_t m, T v, int by, int width = 32) {
  return simt::shuffle_as(m, v, by, width, simt::Shuffle::down);
}
static inline uint32_t __ballot_sync(uint32_t m, int p) { return simt::ballot(m, p != 0); }

// Names that the C library declares too are mapped, never defined.
#define rsqrtf(x) (1.0f / sqrtf(x))
#define __expf(x) expf(x)
#define __logf(x) logf(x)

template <class T> static inline T min(T a, T b) { return a < b ? a : b; }
template <class T> static inline T max(T a, T b) { return a > b ? a : b; }
static inline unsigned __float_as_uint(float f) { unsigned u; memcpy(&u, &f, 4); return u; }
static inline float __uint_as_float(unsigned u) { float f; memcpy(&f, &u, 4); return f; }

// bfloat16: conversion rounds to nearest, ties to even; NaN stays NaN.
struct __nv_bfloat16 { uint16_t bits; };
struct alignas(4) __nv_bfloat162 { __nv_bfloat16 x, y; };
static inline float __bfloat162float(__nv_bfloat16 b) { return __uint_as_float((uint32_t)b.bits << 16); }
static inline __nv_bfloat16 __float2bfloat16_rn(float f) {
  uint32_t u = __float_as_uint(f);
  if ((u & 0x7fffffffu) > 0x7f800000u) return {0x7fff};
  return {(uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16)};
}
static inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {__float2bfloat16_rn(x), __float2bfloat16_rn(y)}; }
static inline __nv_bfloat16 __ushort_as_bfloat16(uint16_t bits) { return {bits}; }
static inline uint16_t __bfloat16_as_ushort(__nv_bfloat16 b) { return b.bits; }
