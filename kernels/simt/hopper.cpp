// See hopper.h. Layouts and phases by the PTX ISA: mbarrier, cp.async.bulk.tensor, "Asynchronous warpgroup level
// matrix instructions".
#include "hopper.h"
#include <algorithm>
#include "worker.h"

namespace simt {

void Hopper::start_block() {
  mbarriers.clear();
  mbarriers.reserve(MBARRIERS);  // those who wait hold pointers
  copies.clear();
  for (Warpgroup& g : warpgroups) {
    g.arrived = 0;
    g.products.clear();
    g.groups.clear();
  }
}

// The last lane: which one it is, nobody may count on.
bool elect_one() {
  rendezvous(~0u, nullptr, nullptr, "elect.sync");
  return self->linear % 32 == 31;
}

// ---- mbarriers ------------------------------------------------------------------------------------------

constexpr uint64_t MARK = 0xB0A0ull << 48;  // in the mbarrier's own eight bytes, with its number

static unsigned offset_in_shared(const void* p, const char* what) {
  size_t offset = static_cast<const uint8_t*>(p) - block.shared;
  if (offset >= block.shared_bytes) fail("%s: outside shared memory", what);
  return unsigned(offset);
}

static Mbarrier& find(uint64_t* bar, const char* what) {
  unsigned offset = offset_in_shared(bar, what);
  worker->shared.read(offset, 8, self->linear, self->linear, nullptr);
  if (*bar >> 48 != MARK >> 48) fail("%s: byte %u of shared memory is no mbarrier", what, offset);
  return worker->hopper.mbarriers[*bar & 0xffff];
}

static void complete_if_done(Mbarrier& m) {
  if (m.pending || m.bytes) return;
  m.pending = m.count;
  m.phase++;
  m.published = m.gathered;
  for (unsigned thread : m.waiting) worker->wake(thread);
  m.waiting.clear();
}

void mbarrier_init(uint64_t* bar, unsigned count) {
  std::vector<Mbarrier>& all = worker->hopper.mbarriers;
  unsigned offset = offset_in_shared(bar, "mbarrier.init");
  if (offset % 8) fail("mbarrier.init: misaligned");
  if (all.size() == MBARRIERS) fail("mbarrier.init: more than %u mbarriers", MBARRIERS);
  worker->shared.write(offset, 8, self->linear, nullptr);
  *bar = MARK | all.size();
  all.push_back(Mbarrier{offset, count, count, 0, 0, Times(ACTORS), {}, {}});
}

void mbarrier_arrive(uint64_t* bar, unsigned expected_bytes) {
  Mbarrier& m = find(bar, "mbarrier.arrive");
  if (m.pending == 0) fail("mbarrier.arrive: more than %u arrivals in one phase", m.count);
  worker->shared.release(self->linear, m.gathered);
  m.bytes += expected_bytes;
  m.pending--;
  complete_if_done(m);
}

void mbarrier_wait(uint64_t* bar, unsigned parity) {
  Mbarrier* m = &find(bar, "mbarrier.try_wait");
  while ((m->phase & 1) == parity) {
    m->waiting.push_back(self->linear);
    worker->wait("mbarrier.try_wait");
  }
  worker->shared.acquire(self->linear, m->published);
}

// ---- bulk tensor copies -------------------------------------------------------------------------------------

// The 128-byte swizzle: 16-byte pieces are permuted by the number of their 128-byte row.
static unsigned swizzle128(unsigned address) { return address ^ (address >> 7 & 7) << 4; }

// Calls use(row of the box, source, bytes that exist) for every row of the copy.
template <class Use> static void each_row(const TensorView& v, int col, int row, Use use) {
  for (unsigned r = 0; r < v.box_rows; r++) {
    int64_t at = row + int64_t(r), valid = std::min<int64_t>(int64_t(v.cols) - col, v.box_cols);
    if (at < 0 || at >= int64_t(v.rows) || valid < 0 || col < 0) valid = 0;
    use(r, v.data + at * int64_t(v.row_bytes) + col * 2, unsigned(valid * 2));
  }
}

void tensor_load(void* to, const void* map, uint64_t* bar, int col, int row) {
  TensorView view;
  memcpy(&view, map, sizeof view);  // the map may be gone when the copy is carried out
  unsigned offset = offset_in_shared(to, "bulk copy"), bytes = view.box_rows * 128;
  if (offset % 1024) fail("bulk copy: the destination of a 128-byte swizzle is not aligned to 1024 bytes");
  if (view.box_cols != 64) fail("bulk copy: rows of %u values, a swizzled row holds 64", view.box_cols);
  if (offset + bytes > block.shared_bytes) fail("bulk copy: outside shared memory");
  Mbarrier& m = find(bar, "bulk copy");
  each_row(view, col, row, [](unsigned, const uint8_t* from, unsigned valid) {
    if (valid) check_read(from, valid, self->linear);
  });
  unsigned number = unsigned(&m - worker->hopper.mbarriers.data());
  worker->shared.copy_started(offset, bytes, self->linear, COPY_ACTOR + number, nullptr);
  memset(to, 0xff, bytes);
  worker->hopper.copies.push_back({offset, number, view, col, row});
}

void deliver_copy(Hopper& h, size_t which) {
  BulkCopy c = h.copies[which];
  h.copies.erase(h.copies.begin() + which);
  each_row(c.view, c.col, c.row, [&](unsigned r, const uint8_t* from, unsigned valid) {
    for (unsigned piece = 0; piece < 8; piece++) {
      uint8_t* to = block.shared + swizzle128(c.offset + r * 128 + piece * 16);
      unsigned exists = std::min(16u, valid > piece * 16 ? valid - piece * 16 : 0);
      if (exists) memcpy(to, from + piece * 16, exists);
      memset(to + exists, 0, 16 - exists);
    }
  });
  unsigned bytes = c.view.box_rows * 128, actor = COPY_ACTOR + c.mbarrier;
  Mbarrier& m = h.mbarriers[c.mbarrier];
  worker->shared.copy_arrived(c.offset, bytes, actor);
  m.gathered[actor] = worker->shared.finish();
  m.bytes -= bytes;
  complete_if_done(m);
}

// ---- wgmma ------------------------------------------------------------------------------------------------------

typedef void (*GroupOperation)(Warpgroup& g, unsigned number);

// Meets the other threads of the warpgroup; the last to arrive runs the operation.
static void meet_group(GroupOperation operation, void* operands, const char* name) {
  unsigned number = self->warp / 4, first = number * 128;
  if (first + 128 > block.size.x * block.size.y * block.size.z) fail("%s: outside a full warpgroup", name);
  Warpgroup& g = worker->hopper.warpgroups[number];
  if (g.arrived && g.name != name) fail("divergent warpgroup: this thread is at %s, others at %s", name, g.name);
  g.name = name;
  g.operands[self->linear - first] = operands;
  if (++g.arrived < 128) {
    worker->wait(name);
    return;
  }
  g.arrived = 0;
  operation(g, number);
  for (unsigned i = first; i < first + 128; i++) {
    if (i != self->linear) worker->wake(i);
  }
}

// An operand by its descriptor: 128-byte swizzle, element (i, k) of 16 k. Rows of 64 values along k, eight rows in
// a group; or, transposed, rows of 64 values along i, one for each k.
struct Descriptor {
  unsigned start, leading, stride;
  bool transposed;
  Descriptor(uint64_t bits, bool transposed)
      : start(unsigned(bits & 0x3fff) << 4), leading(unsigned(bits >> 16 & 0x3fff) << 4),
        stride(unsigned(bits >> 32 & 0x3fff) << 4), transposed(transposed) {
    if (bits >> 62 != 1) fail("wgmma: the machine knows the 128-byte swizzle only");
    if (bits >> 49 & 7) fail("wgmma: a tile that does not start at a multiple of 1024 bytes");
  }
  unsigned address(unsigned i, unsigned k) const {
    unsigned plain = transposed ? start + i / 64 * leading + k / 8 * stride + k % 8 * 128 + i % 64 * 2
                                : start + i / 8 * stride + i % 8 * 128 + k * 2;
    return swizzle128(plain);
  }
  // Every 16 bytes that `rows` outputs consist of.
  void check(unsigned rows, unsigned group) const {
    for (unsigned i = 0; i < rows; i += transposed ? 8 : 1) {
      for (unsigned k = 0; k < 16; k += transposed ? 1 : 8) {
        unsigned at = address(i, k);
        if (at + 16 > block.shared_bytes) fail("wgmma: an operand outside shared memory");
        worker->shared.read(at, 16, self->linear, WARPGROUP_ACTOR + group, nullptr);
      }
    }
  }
  float value(unsigned i, unsigned k) const {
    uint16_t bits;
    memcpy(&bits, block.shared + address(i, k), 2);
    uint32_t wide = uint32_t(bits) << 16;
    float f;
    memcpy(&f, &wide, 4);
    return f;
  }
};

struct WgmmaOperands { float* accumulators; unsigned columns; uint64_t a, b; bool a_transposed, b_transposed; };

static void issue(Warpgroup& g, unsigned number) {
  auto at = [&](int i) { return static_cast<WgmmaOperands*>(g.operands[i]); };
  Wgmma product = {at(0)->columns, at(0)->a, at(0)->b, at(0)->a_transposed, at(0)->b_transposed, {}};
  for (int i = 0; i < 128; i++) {
    bool same = at(i)->columns == product.columns && at(i)->a == product.a && at(i)->b == product.b;
    if (!same) fail("wgmma: descriptors differ within the warpgroup");
    product.accumulators[i] = at(i)->accumulators;
    worker->fibres[number * 128 + i].hide(product.accumulators[i], product.columns / 2 * sizeof(float));
  }
  Descriptor(product.a, product.a_transposed).check(64, number);
  Descriptor(product.b, product.b_transposed).check(product.columns, number);
  g.products.push_back(product);
}

void wgmma(float* accumulators, unsigned columns, uint64_t a, uint64_t b, bool a_transposed, bool b_transposed) {
  WgmmaOperands o = {accumulators, columns, a, b, a_transposed, b_transposed};
  meet_group(issue, &o, "wgmma.mma_async");
}

void wgmma_commit() {
  meet_group([](Warpgroup& g, unsigned) { g.groups.push_back({g.products.size(), worker->shared.finish()}); }, nullptr,
             "wgmma.commit_group");
}

// acc[64][columns] += a[64][16] b[16][columns]; warp w has rows 16 w .., a lane as in mma.sync's m16n8 tiles.
static void multiply(const Wgmma& p) {
  Descriptor da(p.a, p.a_transposed), db(p.b, p.b_transposed);
  static thread_local float a[64][16], b[16][256], c[64][256];
  for (unsigned k = 0; k < 16; k++) {
    for (unsigned i = 0; i < 64; i++) a[i][k] = da.value(i, k);
    for (unsigned j = 0; j < p.columns; j++) b[k][j] = db.value(j, k);
  }
  for (unsigned i = 0; i < 64; i++) {
    for (unsigned j = 0; j < p.columns; j++) c[i][j] = 0.0f;
    for (unsigned k = 0; k < 16; k++) {
      for (unsigned j = 0; j < p.columns; j++) c[i][j] += a[i][k] * b[k][j];
    }
  }
  for (unsigned t = 0; t < 128; t++) {
    unsigned row = t / 32 * 16 + t % 32 / 4, col = t % 4 * 2;
    for (unsigned j = 0; j < p.columns / 8; j++) {
      for (unsigned r = 0; r < 4; r++) p.accumulators[t][j * 4 + r] += c[row + r / 2 * 8][j * 8 + col + r % 2];
    }
  }
}

static void finish_groups(Warpgroup& g, unsigned number) {
  int in_flight = *static_cast<int*>(g.operands[0]), finished = int(g.groups.size()) - in_flight;
  if (finished <= 0) return;
  CommitGroup last = g.groups[finished - 1];
  for (size_t i = 0; i < last.products; i++) multiply(g.products[i]);
  g.products.erase(g.products.begin(), g.products.begin() + last.products);
  g.groups.erase(g.groups.begin(), g.groups.begin() + finished);
  for (CommitGroup& group : g.groups) group.products -= last.products;
  for (unsigned i = number * 128; i < number * 128 + 128; i++) {
    worker->shared.learn(i, WARPGROUP_ACTOR + number, last.time);
    if (g.products.empty()) worker->fibres[i].accumulators_bytes = 0;
  }
}

void wgmma_wait(int groups_in_flight) { meet_group(finish_groups, &groups_in_flight, "wgmma.wait_group"); }

// ---- flags -----------------------------------------------------------------------------------------------------------

uint32_t atomic_add(uint32_t* to, uint32_t value) {
  device_access(uintptr_t(to), 4, false, nullptr);
  device_access(uintptr_t(to), 4, true, nullptr);
  return __atomic_fetch_add(to, value, __ATOMIC_SEQ_CST);
}

void fence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

void flag_add(uint32_t* flag) {
  device_access(uintptr_t(flag), 4, true, nullptr);
  __atomic_fetch_add(flag, 1, __ATOMIC_RELEASE);
}

// The other block must be running, on another OS thread, or be over.
void flag_wait(const uint32_t* flag, uint32_t value) {
  device_access(uintptr_t(flag), 4, false, nullptr);
  for (int tries = 0; __atomic_load_n(flag, __ATOMIC_ACQUIRE) < value; tries++) {
    if (tries == 20000) fail("a flag is waited for: %u of %u, and no other block of this launch is at work on it", *flag, value);
    worker->let_others();
  }
}

}  // namespace simt

// What cuTensorMapEncodeTiled is on a GPU: 16-bit values, 128-byte swizzle, zeros outside. `map` has 128 bytes. Not 0 where
// the driver would refuse (its documentation of globalAddress, globalDim, globalStrides, boxDim).
extern "C" int gems_simt_tensor_map(void* map, const void* data, uint64_t cols, uint64_t rows, uint64_t row_bytes,
                                    uint32_t box_cols, uint32_t box_rows) {
  auto dimension = [](uint64_t n) { return n >= 1 && n <= uint64_t(1) << 32; };
  bool aligned = reinterpret_cast<uint64_t>(data) % 16 == 0 && row_bytes % 16 == 0 && row_bytes < uint64_t(1) << 40;
  bool box = box_cols >= 1 && box_cols * 2 <= 128 && box_rows >= 1 && box_rows <= 256;
  if (!aligned || !box || !dimension(cols) || !dimension(rows)) return 1;
  simt::TensorView view = {static_cast<const uint8_t*>(data), cols, rows, row_bytes, box_cols, box_rows};
  static_assert(sizeof view <= 128, "a tensor map has 128 bytes");
  memset(map, 0, 128);
  memcpy(map, &view, sizeof view);
  return 0;
}
