// How a tile of C leaves the Hopper kernels: by way of shared memory, while the next tile is multiplied.
//
// Who multiplied leaves the sums, rounded to bf16, in a buffer and goes on; three warps of warpgroup 0, which have
// nothing else to do, copy them to C in whole rows. What C is to be added to, or the bias, they bring into the buffer first, while
// the tile is still being multiplied. mbarriers hand the buffer over: `ready` (it may be written, and holds what they brought; one for
// each of two warpgroups where these take tiles in turn, as nobody can wait for a phase who has not seen the one before), `filled`
// (it may be copied to C). The code of a tile's end is run once a tile and has to be fetched each time: it is as short as it can be.
#pragma once
#include "hopper.cuh"
#include "matmul.cuh"

// HOPPER_STAGED columns of a tile's rows, in bf16, and the mbarriers.
struct Staging {
  uint8_t* buffer;
  uint64_t *ready, *filled;
};

// Whether C leaves so: C = op(A) op(B) + (beta C or bias) in bf16, rounded to nearest, in rows aligned to 16 bytes.
template <class C> __device__ __forceinline__ bool is_staged(const MatmulArguments& a) {
  bool rows = sizeof(C) == sizeof(bf16) && aligned16(a.c.data) && a.c.ld % 8 == 0 && aligned16(a.bias.data);
  return rows && a.alpha == 1.0f && !a.stochastic && (a.beta == 0.0f || !a.bias.data);
}

// What is brought: C's rows, the bias in every row, or nothing.
__device__ __forceinline__ bool is_sum_of_two(const MatmulArguments& a) { return a.beta != 0.0f || a.bias.data; }

// Where a piece of 16 bytes lies: those of a row are permuted, so that eight rows at the same column lie in different banks.
__device__ __forceinline__ uint8_t* staged_piece(uint8_t* buffer, int row, int piece) {
  return buffer + row * (HOPPER_STAGED * 2) + (piece ^ (row & 7)) * 16;
}

// Leaves this warpgroup's sums of PARTS x 64 rows from `row0` on, and of the columns FROM and up.
template <int FROM, bool of_two, int PARTS, int n>
__device__ __forceinline__ void leave_sums(uint8_t* buffer, float factor, const float (&acc)[PARTS][n], int row0, int columns) {
  int lane = threadIdx.x % 32, row = row0 + threadIdx.x / 32 % 4 * 16 + lane / 4;
  uint8_t* pieces[8];  // of this thread's first row; all its rows have them in the same order
#pragma unroll
  for (int i = 0; i < 8; i++) pieces[i] = staged_piece(buffer, row, i) + lane % 4 * 4;
#pragma unroll
  for (int piece = 0; piece < HOPPER_STAGED / 8; piece++) {
    if (piece % 8 == 0 && FROM + piece * 8 >= columns) return;
#pragma unroll
    for (int at = 0; at < PARTS * 2; at++) {
      const float* sums = acc[at / 2] + (FROM / 8 + piece) * 4 + at % 2 * 2;
      float low = sums[0], high = sums[1];
      uint8_t* place = pieces[piece % 8] + piece / 8 * 128 + (at / 2 * 64 + at % 2 * 8) * (HOPPER_STAGED * 2);
      uint32_t* to = reinterpret_cast<uint32_t*>(place);
      if (of_two) low += factor * low_bf16(*to), high += factor * high_bf16(*to);
      *to = pack_bf16(low, high);
    }
  }
}

// The same of all `columns` of a tile, as often as the buffer is ready; each time the warps that write may have it. `round` is the
// parity of this warpgroup's uses of it.
template <int BN, int PARTS, int FROM = 0>
__device__ __forceinline__ void stage_tile(const MatmulArguments& a, const Staging& staging, const float (&acc)[PARTS][BN / 2], int row0,
                                           int columns, int turn, uint32_t& round) {
  mbarrier_wait(staging.ready + turn, round);
  round ^= 1;
  if (is_sum_of_two(a)) leave_sums<FROM, true>(staging.buffer, a.beta != 0.0f ? a.beta : 1.0f, acc, row0, columns);
  else leave_sums<FROM, false>(staging.buffer, 0.0f, acc, row0, columns);
  __syncwarp();
  if (threadIdx.x % 32 == 0) mbarrier_arrive(staging.filled);
  if constexpr (FROM + HOPPER_STAGED < BN) {
    if (FROM + HOPPER_STAGED < columns) stage_tile<BN, PARTS, FROM + HOPPER_STAGED>(a, staging, acc, row0, columns, turn, round);
  }
}

// What one thread copies between C and the buffer: a piece of every STRIDE-th row. Whether the whole piece exists is asked of columns:
// ptxas 13.0 gets a comparison of a count that was clamped at both ends wrong.
struct StagedPieces {
  static constexpr int PIECES = HOPPER_STAGED / CHUNK, STRIDE = HOPPER_WRITERS * 32 / PIECES;
  static_assert(STRIDE * PIECES == HOPPER_WRITERS * 32, "a thread copies the same piece of all its rows");
  uint8_t* buffer;
  int first, piece, rows, exist;  // rows that exist, and elements from the piece's first one on
  bool whole;
  __device__ __forceinline__ StagedPieces(const MatmulArguments& a, uint8_t* buffer, int row0, int col0, int columns) : buffer(buffer) {
    int thread = threadIdx.x - 32, limit = a.n - col0 < columns ? a.n - col0 : columns;
    piece = thread % PIECES, first = thread / PIECES;
    rows = a.m - row0 < HOPPER_M ? a.m - row0 : HOPPER_M;
    exist = limit - piece * CHUNK, whole = piece * CHUNK + CHUNK <= limit;
  }
  // Fewer elements than a piece.
  __device__ __forceinline__ void copy_some(void* to, const void* from) const {
#pragma unroll 1
    for (int i = 0; i < exist; i++) static_cast<uint16_t*>(to)[i] = static_cast<const uint16_t*>(from)[i];
  }
  // From rows that are `ld` apart; what does not exist becomes zero, for whoever multiplied reads all of the tile.
  __device__ __forceinline__ void bring(const bf16* from, int64_t ld) const {
#pragma unroll 4
    for (int row = first; row < HOPPER_M; row += STRIDE) {
      uint8_t* to = staged_piece(buffer, row, piece);
      uint4 v = {};
      if (whole && row < rows) v = *reinterpret_cast<const uint4*>(from + row * ld);
      *reinterpret_cast<uint4*>(to) = v;
      if (!whole && row < rows) copy_some(to, from + row * ld);
    }
  }
  // Eight rows are on their way at a time.
  __device__ __forceinline__ void write(bf16* to, int64_t ld) const {
    constexpr int AT_ONCE = 8;
    int row = first;
    if (whole) {
      for (; row + (AT_ONCE - 1) * STRIDE < rows; row += AT_ONCE * STRIDE) {
        uint4 v[AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) v[i] = *reinterpret_cast<const uint4*>(staged_piece(buffer, row + i * STRIDE, piece));
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) *reinterpret_cast<uint4*>(to + (row + i * STRIDE) * ld) = v[i];
      }
#pragma unroll 4
      for (; row < rows; row += STRIDE) {
        *reinterpret_cast<uint4*>(to + row * ld) = *reinterpret_cast<const uint4*>(staged_piece(buffer, row, piece));
      }
    } else {
      for (; row < rows; row += STRIDE) copy_some(to + row * ld, staged_piece(buffer, row, piece));
    }
  }
};

// Copies a tile from the buffer to C as it is filled; before that, into the buffer what it is to be added to.
__device__ __forceinline__ void write_tile(const MatmulArguments& a, const Staging& staging, int row0, int col0, int columns, int turn,
                                           uint32_t& round) {
  for (int from = 0; from < columns; from += HOPPER_STAGED, round ^= 1) {
    StagedPieces mine(a, staging.buffer, row0, col0 + from, columns - from);
    int col = col0 + from + mine.piece * 8;
    bf16* c = a.c.row<bf16>(row0) + col;
    if (a.beta != 0.0f) mine.bring(c, a.c.ld);
    else if (a.bias.data) mine.bring(a.bias.row<const bf16>(0) + col, 0);
    __syncwarp();
    if (threadIdx.x % 32 == 0) mbarrier_arrive(staging.ready + turn);
    mbarrier_wait(staging.filled, round);
    mine.write(c, a.c.ld);
  }
}
