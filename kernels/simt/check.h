// What the machine remembers of memory, so that a mistake is found where it is made.
//
// Kernels are compiled with the compiler's race instrumentation (-fsanitize=thread), which calls a function
// before every access; check.cpp answers those calls instead of the compiler's own library. Operations that
// the machine carries out itself (copies, ldmatrix, wgmma) report their accesses likewise.
//
// Shared memory: for every two bytes, who wrote last and who has read since, and when. Time goes on at every
// synchronisation. An access is ordered after another when a block barrier lies between, or when its thread
// knows, through __syncwarp, named barriers and mbarriers, that the other is over: vector clocks.
// Device memory: for every byte, whether it belongs to a live allocation and whether it was ever written.
//
// Not seen: races on device memory, and the order in which other blocks' writes become visible.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>
#include "machine.h"

namespace simt {

constexpr unsigned MAX_THREADS = 1024, MAX_WARPS = 32;

// Whoever accesses shared memory: threads, the tensor cores on behalf of a warpgroup, and copies that
// complete on an mbarrier, which are known by that mbarrier.
constexpr unsigned WARPGROUP_ACTOR = MAX_THREADS, GROUPS = MAX_WARPS / 4;
constexpr unsigned COPY_ACTOR = WARPGROUP_ACTOR + GROUPS, MBARRIERS = 64;
constexpr unsigned READING_GROUPS = MAX_WARPS + GROUPS;
constexpr unsigned ACTORS = COPY_ACTOR + MBARRIERS;

// For every actor, the time up to which its accesses are known to be over.
typedef std::vector<uint32_t> Times;

class SharedChecker {
 public:
  explicit SharedChecker(size_t bytes);
  void start_block(unsigned threads);
  // After a block that was given up: copies of its may be under way for ever.
  void forget();

  // Synchronisation. Everything before a block barrier is over after it.
  void barrier();
  // The threads first + lane of mask meet.
  void meet(unsigned first, uint32_t mask);
  // `thread` tells what it has done and knows; another learns it.
  void release(unsigned thread, Times& into);
  void acquire(unsigned thread, const Times& from);
  // An actor that is not a thread is done with what it has done until now.
  uint32_t finish() { return time_++; }
  void learn(unsigned thread, unsigned actor, uint32_t until);

  // Accesses, by offset. `as` acts with what `thread` knows.
  void read(unsigned offset, unsigned bytes, unsigned thread, unsigned as, const void* code);
  void write(unsigned offset, unsigned bytes, unsigned thread, const void* code);
  // A copy that `thread` started, and its arrival.
  void copy_started(unsigned offset, unsigned bytes, unsigned thread, unsigned as, const void* code);
  void copy_arrived(unsigned offset, unsigned bytes, unsigned as);

 private:
  struct Cell {
    uint32_t write_time, read_time[2], group_time;
    uint16_t writer, reader[2];
    uint64_t groups;  // who else read, the last at group_time. Bit w: threads of warp w; 32 + g: wgmma of warpgroup g
  };
  static Cell written(uint32_t when, unsigned by) { return Cell{when, {0, 0}, 0, uint16_t(by), {0, 0}, 0}; }
  bool before(unsigned actor, uint32_t when, unsigned thread) const {
    return when <= base_ || actor == thread || when <= known_[size_t(thread) * ACTORS + actor];
  }
  // A reader whose access is not ordered before what `thread` does now, or NOBODY.
  unsigned unordered_reader(const Cell& cell, unsigned thread) const;
  void check_write(Cell& cell, unsigned at, unsigned thread, const void* code);
  [[noreturn]] void race(const char* what, unsigned offset, unsigned thread, unsigned other, const void* code);

  std::vector<Cell> cells_;            // one for two bytes
  std::vector<uint32_t> group_times_;  // [cells x READING_GROUPS]: when each of a cell's groups read last
  std::vector<uint32_t> known_;  // [MAX_THREADS x ACTORS]
  uint32_t time_ = 2, base_ = 1, start_ = 1;
  unsigned threads_ = 0;
  bool beyond_warps_ = false;  // whether anything but barriers and __syncwarp ordered accesses of this block
};

// Device memory's shadow, a byte for a byte. Addresses of the machine's device memory are its alone.
enum : uint8_t { NOT_ALLOCATED = 0, UNWRITTEN = 1, WRITTEN = 2 };
bool is_device(uintptr_t address);
uint8_t* shadow_of(uintptr_t address);
void device_access(uintptr_t address, unsigned bytes, bool write, const void* code);

// An access of the machine on behalf of `thread`, of shared or device memory.
void check_read(const void* address, unsigned bytes, unsigned thread);
void check_write(const void* address, unsigned bytes, unsigned thread);

// Ends the launch; the message gets the source line of `code`, an address within a kernel, where it is known.
[[noreturn]] void fail_at(const void* code, const char* format, ...) __attribute__((format(printf, 2, 3)));
std::string source_of(const void* code);

}  // namespace simt
