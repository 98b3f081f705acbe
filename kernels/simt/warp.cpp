// Warp-wide operations and asynchronous copies.
#include "worker.h"

namespace simt {

// ---- exchanges --------------------------------------------------------------------------------

struct ShuffleOperands { uint32_t value, result; int operand, width; Shuffle kind; };

static int shuffle_source(const ShuffleOperands& o, int lane) {
  int first = lane & ~(o.width - 1), end = first + o.width, source = lane;
  switch (o.kind) {
    case Shuffle::index: source = first + (o.operand & (o.width - 1)); break;
    case Shuffle::exclusive_or: source = lane ^ o.operand; break;
    case Shuffle::up: source = lane - o.operand; break;
    case Shuffle::down: source = lane + o.operand; break;
  }
  return source < first || source >= end ? lane : source;
}

static void run_shuffle(void** operands, uint32_t mask) {
  for (int lane = 0; lane < 32; lane++) {
    if (!(mask >> lane & 1)) continue;
    ShuffleOperands& o = *static_cast<ShuffleOperands*>(operands[lane]);
    int source = shuffle_source(o, lane);
    if (!(mask >> source & 1)) fail("shuffle: lane %d reads lane %d, which takes no part", lane, source);
    o.result = static_cast<ShuffleOperands*>(operands[source])->value;
  }
}

uint32_t shuffle(uint32_t mask, uint32_t value, int operand, int width, Shuffle kind) {
  ShuffleOperands o = {value, 0, operand, width, kind};
  rendezvous(mask, run_shuffle, &o, "a shuffle");
  return o.result;
}

struct BallotOperands { bool predicate; uint32_t result; };

static void run_ballot(void** operands, uint32_t mask) {
  uint32_t votes = 0;
  for (int lane = 0; lane < 32; lane++) {
    if (mask >> lane & 1) votes |= uint32_t(static_cast<BallotOperands*>(operands[lane])->predicate) << lane;
  }
  for (int lane = 0; lane < 32; lane++) {
    if (mask >> lane & 1) static_cast<BallotOperands*>(operands[lane])->result = votes;
  }
}

uint32_t ballot(uint32_t mask, bool predicate) {
  BallotOperands o = {predicate, 0};
  rendezvous(mask, run_ballot, &o, "a ballot");
  return o.result;
}

// ---- asynchronous copies: poison at issue, data at the wait --------------------------------------

void copy_async(void* to, const void* from, int bytes, int valid) {
  uintptr_t address = reinterpret_cast<uintptr_t>(to);
  uintptr_t shared = reinterpret_cast<uintptr_t>(block.shared);
  if (address < shared || address + bytes > shared + block.shared_bytes) {
    fail("cp.async writes outside shared memory: byte %ld of %u", long(address - shared), block.shared_bytes);
  }
  if (address % bytes || (valid && reinterpret_cast<uintptr_t>(from) % bytes)) fail("cp.async: misaligned address");
  Fibre& me = worker->current();
  unsigned offset = unsigned(static_cast<uint8_t*>(to) - block.shared);
  if (offset + bytes > block.shared_bytes) fail("cp.async: outside shared memory");
  if (valid) check_read(from, valid, me.linear);
  worker->shared.copy_started(offset, bytes, me.linear, me.linear, nullptr);
  memset(to, 0xff, bytes);
  me.copies.push_back({static_cast<uint8_t*>(to), static_cast<const uint8_t*>(from), bytes, valid});
}

void copy_commit() {
  Fibre& me = worker->current();
  me.groups.push_back(me.copies.size());
}

void copy_wait(int groups_in_flight) {
  Fibre& me = worker->current();
  int finished = int(me.groups.size()) - groups_in_flight;
  if (finished <= 0) return;
  size_t copies = me.groups[finished - 1];
  for (size_t i = 0; i < copies; i++) {
    const AsyncCopy& c = me.copies[i];
    if (c.valid) memcpy(c.to, c.from, c.valid);
    memset(c.to + c.valid, 0, c.bytes - c.valid);
    worker->shared.copy_arrived(unsigned(c.to - block.shared), c.bytes, me.linear);
  }
  me.copies.erase(me.copies.begin(), me.copies.begin() + copies);
  me.groups.erase(me.groups.begin(), me.groups.begin() + finished);
  for (size_t& group : me.groups) group -= copies;
}

// ---- tensor cores: the fragment layouts of the PTX ISA, "Warp-level matrix instructions" -------------

struct LdmatrixOperands { uint32_t* registers; const uint8_t* row; int n; bool transposed; };

static void run_ldmatrix(void** operands, uint32_t) {
  auto at = [&](int lane) { return static_cast<LdmatrixOperands*>(operands[lane]); };
  for (int matrix = 0; matrix < at(0)->n; matrix++) {
    const uint8_t* rows[8];
    for (int i = 0; i < 8; i++) {
      rows[i] = at(matrix * 8 + i)->row;
      uintptr_t address = reinterpret_cast<uintptr_t>(rows[i]), shared = reinterpret_cast<uintptr_t>(block.shared);
      if (address % 16) fail("ldmatrix: the row of lane %d is not aligned to 16 bytes", matrix * 8 + i);
      if (address < shared || address + 16 > shared + block.shared_bytes) {
        fail("ldmatrix: the row of lane %d is outside shared memory", matrix * 8 + i);
      }
      check_read(rows[i], 16, self->warp * 32 + matrix * 8 + i);
    }
    for (int lane = 0; lane < 32; lane++) {
      uint32_t value;
      if (at(0)->transposed) {
        uint16_t pair[2];
        for (int i = 0; i < 2; i++) memcpy(&pair[i], rows[lane % 4 * 2 + i] + lane / 4 * 2, 2);
        value = pair[0] | uint32_t(pair[1]) << 16;
      } else {
        memcpy(&value, rows[lane / 4] + lane % 4 * 4, 4);
      }
      at(lane)->registers[matrix] = value;
    }
  }
}

void ldmatrix(uint32_t* registers, const void* row, int n, bool transposed) {
  LdmatrixOperands o = {registers, static_cast<const uint8_t*>(row), n, transposed};
  rendezvous(~0u, run_ldmatrix, &o, n == 4 ? "ldmatrix.x4" : "ldmatrix.x2");
}

struct MmaOperands { float* c; const uint32_t *a, *b; int m_tiles, n_tiles; };

static float bf16_value(uint32_t pair, int half) {
  uint32_t bits = half ? pair & 0xffff0000u : pair << 16;
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

// One m16n8k16 product per tile: c[16][8] += a[16][16] b[16][8], each lane holding its fragments.
static void run_mma(void** operands, uint32_t) {
  typedef float Row __attribute__((vector_size(32)));
  auto at = [&](int lane) { return static_cast<MmaOperands*>(operands[lane]); };
  int m_tiles = at(0)->m_tiles, n_tiles = at(0)->n_tiles;
  alignas(32) float b[16][32 * 8];
  for (int lane = 0; lane < 32; lane++) {
    int column = lane / 4, k = lane % 4 * 2;
    for (int j = 0; j < n_tiles; j++) {
      for (int r = 0; r < 4; r++) b[k + r / 2 * 8 + r % 2][j * 8 + column] = bf16_value(at(lane)->b[2 * j + r / 2], r % 2);
    }
  }
  for (int i = 0; i < m_tiles; i++) {
    float a[16][16];
    for (int lane = 0; lane < 32; lane++) {
      const uint32_t* fragment = at(lane)->a + 4 * i;
      int row = lane / 4, k = lane % 4 * 2;
      for (int r = 0; r < 8; r++) a[row + r / 2 % 2 * 8][k + r / 4 * 8 + r % 2] = bf16_value(fragment[r / 2], r % 2);
    }
    for (int j = 0; j < n_tiles; j++) {
      Row product[16];
      for (int row = 0; row < 16; row++) {
        Row sum = {};
        for (int k = 0; k < 16; k++) sum += a[row][k] * *reinterpret_cast<const Row*>(&b[k][j * 8]);
        product[row] = sum;
      }
      for (int lane = 0; lane < 32; lane++) {
        float* c = at(lane)->c + (i * n_tiles + j) * 4;
        for (int r = 0; r < 4; r++) c[r] += product[lane / 4 + r / 2 * 8][lane % 4 * 2 + r % 2];
      }
    }
  }
}

void mma_bf16(int m_tiles, int n_tiles, float* c, const uint32_t* a, const uint32_t* b) {
  if (n_tiles > 32) fail("mma: a register tile of more than 32 columns of tiles");
  MmaOperands o = {c, a, b, m_tiles, n_tiles};
  rendezvous(~0u, run_mma, &o, "mma.sync");
}

}  // namespace simt
