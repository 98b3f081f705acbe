// The asynchronous machinery of sm_90: mbarriers, bulk tensor copies, wgmma.
//
// Everything happens as late as it may: a copy arrives when no thread can go on without it (or at any moment,
// under the random schedule), products of wgmma are worked out when they are waited for.
#pragma once
#include <cstdint>
#include <vector>
#include "check.h"

namespace simt {

struct Mbarrier {
  unsigned offset, count, pending;  // arrivals still missing in this phase
  int64_t bytes;                    // of copies still missing in this phase
  uint32_t phase;                   // phases completed
  Times gathered, published;        // what those who arrived knew: so far, and at the last completion
  std::vector<unsigned> waiting;    // threads
};

// A two-dimensional tensor of 16-bit values as a bulk copy sees it; what a CUtensorMap is on a GPU.
struct TensorView {
  const uint8_t* data;
  uint64_t cols, rows, row_bytes;
  uint32_t box_cols, box_rows;
};

struct BulkCopy { unsigned offset, mbarrier; TensorView view; int col, row; };

struct Wgmma { unsigned columns; uint64_t a, b; bool a_transposed, b_transposed; float* accumulators[128]; };
struct CommitGroup { size_t products; uint32_t time; };  // products issued before it; when

struct Warpgroup {
  const char* name = nullptr;  // of the operation that some threads have reached
  unsigned arrived = 0;
  void* operands[128];
  std::vector<Wgmma> products;
  std::vector<CommitGroup> groups;
};

struct Hopper {
  std::vector<Mbarrier> mbarriers;
  std::vector<BulkCopy> copies;
  Warpgroup warpgroups[GROUPS];
  void start_block();
};

// Carries out one of the copies that are under way.
void deliver_copy(Hopper& h, size_t which);

}  // namespace simt
