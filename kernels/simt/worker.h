// One OS thread of the machine and the block it runs.
#pragma once
#include <string>
#include <vector>
#include "check.h"
#include "fibre.h"
#include "hopper.h"
#include "machine.h"

namespace simt {

constexpr unsigned MAX_SHARED = 227 * 1024;  // of a block on sm_90
constexpr size_t PAGE = 4096, STACK = 64 * 1024, STACK_SLOT = STACK + PAGE;

struct AsyncCopy { uint8_t* to; const uint8_t* from; int bytes, valid; };

struct Fibre : Thread {
  Context context;
  uint8_t* stack;                 // lowest usable address
  const char* waits_at;           // for the deadlock report; null once the thread has returned
  std::vector<AsyncCopy> copies;  // issued, not delivered
  std::vector<size_t> groups;     // number of copies at each commit
  uintptr_t accumulators = 0;     // of wgmmas that were not waited for
  size_t accumulators_bytes = 0;

  // More accumulators that must not be touched; they lie in one array.
  void hide(const void* memory, size_t bytes) {
    uintptr_t from = reinterpret_cast<uintptr_t>(memory), to = from + bytes;
    if (accumulators_bytes) {
      from = from < accumulators ? from : accumulators;
      to = to > accumulators + accumulators_bytes ? to : accumulators + accumulators_bytes;
    }
    accumulators = from;
    accumulators_bytes = to - from;
  }
};

// An operation that some lanes of a warp have reached.
struct Meeting {
  uint32_t mask = 0, arrived = 0;
  WarpOperation operation;
  const char* name;
  void* operands[32];
};

enum class Schedule { forward, reversed, random };

struct Launch {
  const Kernel* kernel;
  const void* arguments;
  Index3 grid, block;
  unsigned shared_bytes;
  Schedule schedule;
  uint64_t seed;
};

struct Worker {
  explicit Worker(int index);
  // Runs one block to its end; false when it failed, then `error` says why.
  bool run(const Launch& launch, size_t block_index);

  // For the operations in machine.h, called on a fibre of this worker.
  void meet(uint32_t mask, WarpOperation operation, void* operands, const char* name);
  void wait_barrier();
  // Leaves the processor until `wake`, called for this thread by another or by a copy that arrives.
  void wait(const char* name);
  // Leaves the processor until no other thread of the block can run, and for a moment.
  void let_others();
  void wake(unsigned thread) { ready_[thread / 32] |= 1u << thread % 32; }
  [[noreturn]] void abandon(const char* message);
  Fibre& current() { return *static_cast<Fibre*>(self); }

  // A fibre's own memory is read or written: accumulators of wgmma must not be, before their wait.
  void check_registers(uintptr_t address, unsigned bytes, const void* code) {
    const Fibre& me = current();
    if (me.accumulators_bytes && address + bytes > me.accumulators && address < me.accumulators + me.accumulators_bytes) {
      fail_at(code, "accumulators of wgmma are used before they were waited for");
    }
  }

  std::string error;
  const void* fault_code = nullptr;  // where in the kernel the failure was found, if it is known
  SharedChecker shared;
  Hopper hopper;
  uintptr_t stacks;
  size_t stacks_bytes = STACK_SLOT * MAX_THREADS;
  uint8_t* shared_arena;          // MAX_SHARED bytes between two guard pages
  std::vector<Fibre> fibres;

 private:
  void start(const Launch& launch);
  void next(Fibre* from, int preferred_warp);
  int choose_lane(uint32_t lanes);
  int choose_warp(int preferred);
  bool deliver();
  bool resume();
  uint64_t random();
  std::string deadlock() const;
  static void entry();

  const Launch* launch_ = nullptr;
  unsigned threads_ = 0, warps_ = 0, live_ = 0, at_barrier_ = 0;
  uint32_t ready_[MAX_WARPS], blocked_[MAX_WARPS];
  int order_[MAX_WARPS];
  Meeting meetings_[MAX_WARPS][4];  // lanes of a warp may be at different places
  std::vector<unsigned> aside_;     // threads that let others run
  Context main_;
  bool failed_ = false;
  uint64_t random_state_ = 1;
  int index_;
};

extern __thread Worker* worker SIMT_TLS;

// memory.cpp: a guarded region; the fault handler that turns a bad access into a failed launch.
uint8_t* map_guarded(size_t bytes);
uint8_t* guard_first_page(uint8_t* page);
void install_fault_handler();
void use_alternate_signal_stack();

}  // namespace simt
