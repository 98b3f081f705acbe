// Checks of every access of a kernel: see check.h.
#include "check.h"
#include <dlfcn.h>
#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <map>
#include <mutex>
#include "worker.h"

namespace simt {

// ---- who, where -------------------------------------------------------------------------------------

constexpr unsigned NOBODY = ~0u;
constexpr uint32_t PENDING = ~0u;  // a write that is under way: nothing is ordered after it

static std::string name_of(unsigned actor) {
  if (actor >= COPY_ACTOR) return "a bulk copy";
  if (actor >= WARPGROUP_ACTOR) return "wgmma of warpgroup " + std::to_string(actor - WARPGROUP_ACTOR);
  unsigned x = block.size.x, y = block.size.y;
  return "thread (" + std::to_string(actor % x) + ", " + std::to_string(actor / x % y) + ", " +
         std::to_string(actor / (x * y)) + ")";
}

void fail_at(const void* code, const char* format, ...) {
  char text[512];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  worker->fault_code = code;
  worker->abandon(text);
}

// "file.cu:12" by the program's line tables and addr2line, where there are both; else nothing.
static std::string ask_addr2line(const void* code) {
  Dl_info info;
  if (!code || !dladdr(code, &info) || !info.dli_fbase) return {};
  char command[512], line[512];
  // The return address is one past the call.
  size_t offset = static_cast<const uint8_t*>(code) - static_cast<const uint8_t*>(info.dli_fbase) - 1;
  snprintf(command, sizeof command, "addr2line -i -s -e '%s' 0x%zx 2>/dev/null", info.dli_fname, offset);
  FILE* answer = popen(command, "r");
  if (!answer) return {};
  std::string innermost, kernel_file;
  while (fgets(line, sizeof line, answer)) {
    std::string place(line, strcspn(line, " \n"));
    if (place.find("??") != std::string::npos || place.find(".h:") != std::string::npos) continue;
    if (innermost.empty()) innermost = place;
    if (kernel_file.empty() && place.find(".cu:") != std::string::npos) kernel_file = place;
  }
  pclose(answer);
  if (innermost.empty()) return {};
  return innermost == kernel_file || kernel_file.empty() ? innermost : innermost + ", called at " + kernel_file;
}

std::string source_of(const void* code) {
  static std::mutex one;
  static std::map<const void*, std::string> answers;
  std::lock_guard<std::mutex> lock(one);
  auto known = answers.find(code);
  return known != answers.end() ? known->second : answers[code] = ask_addr2line(code);
}

// ---- shared memory: what is ordered --------------------------------------------------------------------

SharedChecker::SharedChecker(size_t bytes) : cells_((bytes + 1) / 2), group_times_(cells_.size() * READING_GROUPS), known_(size_t(MAX_THREADS) * ACTORS) {}

// Times never go back, so nothing of an earlier block needs to be cleared: it all lies before base_.
void SharedChecker::start_block(unsigned threads) {
  threads_ = threads;
  barrier();
  start_ = base_;
  beyond_warps_ = false;
}

void SharedChecker::forget() { std::fill(cells_.begin(), cells_.end(), Cell{}); }

void SharedChecker::barrier() { base_ = time_++; }

// The entries that can be in use: this block's threads, and whoever is no thread.
template <class Use> static void each_actor(unsigned threads, Use use) {
  for (unsigned i = 0; i < threads; i++) use(i);
  for (unsigned i = MAX_THREADS; i < ACTORS; i++) use(i);
}

void SharedChecker::release(unsigned thread, Times& into) {
  beyond_warps_ = true;
  const uint32_t* known = &known_[size_t(thread) * ACTORS];
  into.resize(ACTORS);
  uint32_t* all = into.data();
  each_actor(threads_, [&](unsigned i) { all[i] = all[i] > known[i] ? all[i] : known[i]; });
  all[thread] = time_++;
}

void SharedChecker::acquire(unsigned thread, const Times& from) {
  if (from.empty()) return;
  uint32_t* known = &known_[size_t(thread) * ACTORS];
  const uint32_t* all = from.data();
  each_actor(threads_, [&](unsigned i) { known[i] = known[i] > all[i] ? known[i] : all[i]; });
}

void SharedChecker::meet(unsigned first, uint32_t mask) {
  if (!beyond_warps_) {
    // Nobody knows more of another warp than the last block barrier told: only this warp's entries matter.
    uint32_t now = time_++;
    for (unsigned lane = 0; lane < 32; lane++) {
      if (!(mask >> lane & 1)) continue;
      uint32_t* known = &known_[size_t(first + lane) * ACTORS + first];
      for (unsigned other = 0; other < 32; other++) {
        if (mask >> other & 1) known[other] = now;
      }
    }
    return;
  }
  static thread_local Times joint;
  joint.assign(ACTORS, 0);
  for (unsigned lane = 0; lane < 32; lane++) {
    if (mask >> lane & 1) release(first + lane, joint);
  }
  for (unsigned lane = 0; lane < 32; lane++) {
    if (mask >> lane & 1) acquire(first + lane, joint);
  }
}

void SharedChecker::learn(unsigned thread, unsigned actor, uint32_t until) {
  beyond_warps_ = true;
  uint32_t& known = known_[size_t(thread) * ACTORS + actor];
  if (until > known) known = until;
}

// ---- shared memory: accesses -------------------------------------------------------------------------------

void SharedChecker::race(const char* what, unsigned offset, unsigned thread, unsigned other, const void* code) {
  fail_at(code, "race on byte %u of shared memory: %s by %s and by %s with no synchronisation between", offset, what,
          name_of(other).c_str(), name_of(thread).c_str());
}

static unsigned group_of(unsigned actor) {
  return actor < MAX_THREADS ? actor / 32 : MAX_WARPS + actor - WARPGROUP_ACTOR;
}

unsigned SharedChecker::unordered_reader(const Cell& cell, unsigned thread) const {
  for (int i = 0; i < 2; i++) {
    if (!before(cell.reader[i], cell.read_time[i], thread)) return cell.reader[i];
  }
  if (cell.group_time <= base_) return NOBODY;
  for (uint64_t groups = cell.groups; groups; groups &= groups - 1) {
    unsigned bit = __builtin_ctzll(groups);
    bool wgmma = bit >= MAX_WARPS;
    uint32_t when = group_times_[size_t(&cell - cells_.data()) * READING_GROUPS + bit];
    unsigned first = wgmma ? WARPGROUP_ACTOR + bit - MAX_WARPS : bit * 32, count = wgmma ? 1 : 32;
    for (unsigned i = first; i < first + count && (wgmma || i < threads_); i++) {
      if (!before(i, when, thread)) return i;
    }
  }
  return NOBODY;
}

void SharedChecker::read(unsigned offset, unsigned bytes, unsigned thread, unsigned as, const void* code) {
  for (unsigned at = offset / 2; at <= (offset + bytes - 1) / 2; at++) {
    Cell& cell = cells_[at];
    if (cell.read_time[0] == time_ && cell.reader[0] == as) continue;  // nothing happened since
    if (cell.write_time == PENDING) fail_at(code, "byte %u of shared memory is read before the copy into it was waited for", at * 2);
    if (cell.write_time <= start_) fail_at(code, "byte %u of shared memory is read, but nobody wrote it", at * 2);
    if (!before(cell.writer, cell.write_time, thread)) race("written", at * 2, thread, cell.writer, code);
    // Two readers are known exactly, the others by their warp, which read last when one of its threads did.
    int i = 0;
    while (i < 2 && cell.reader[i] != as && cell.read_time[i] > base_) i++;
    if (i < 2) {
      cell.reader[i] = as;
      cell.read_time[i] = time_;
    } else {
      cell.groups = uint64_t(1) << group_of(as) | (cell.group_time > base_ ? cell.groups : 0);
      cell.group_time = group_times_[size_t(at) * READING_GROUPS + group_of(as)] = time_;
    }
  }
}

void SharedChecker::check_write(Cell& cell, unsigned at, unsigned thread, const void* code) {
  if (cell.write_time == PENDING) fail_at(code, "byte %u of shared memory is written while a copy into it is under way", at * 2);
  if (!before(cell.writer, cell.write_time, thread)) race("written", at * 2, thread, cell.writer, code);
  unsigned reader = unordered_reader(cell, thread);
  if (reader != NOBODY) race("read", at * 2, thread, reader, code);
}

void SharedChecker::write(unsigned offset, unsigned bytes, unsigned thread, const void* code) {
  for (unsigned at = offset / 2; at <= (offset + bytes - 1) / 2; at++) {
    Cell& cell = cells_[at];
    check_write(cell, at, thread, code);
    cell = written(time_, thread);
  }
}

void SharedChecker::copy_started(unsigned offset, unsigned bytes, unsigned thread, unsigned as, const void* code) {
  for (unsigned at = offset / 2; at <= (offset + bytes - 1) / 2; at++) {
    Cell& cell = cells_[at];
    check_write(cell, at, thread, code);
    cell = written(PENDING, as);
  }
}

void SharedChecker::copy_arrived(unsigned offset, unsigned bytes, unsigned as) {
  for (unsigned at = offset / 2; at <= (offset + bytes - 1) / 2; at++) cells_[at] = written(time_, as);
}

// ---- device memory -----------------------------------------------------------------------------------------

// How far from the start of its allocation an address lies, and how large that is.
static void describe(uintptr_t address, char* text, size_t capacity) {
  const uint8_t* shadow = shadow_of(address);
  size_t below = 0, reach = 1 << 20;
  while (below < reach && is_device(address - below - 1) && shadow[-ptrdiff_t(below) - 1] == NOT_ALLOCATED) below++;
  if (below == reach || !is_device(address - below - 1)) {
    snprintf(text, capacity, "address %p", reinterpret_cast<void*>(address));
    return;
  }
  snprintf(text, capacity, "%zu bytes beyond the end of an allocation", below);
}

void device_access(uintptr_t address, unsigned bytes, bool write, const void* code) {
  uint8_t* shadow = shadow_of(address);
  for (unsigned i = 0; i < bytes; i++) {
    if (shadow[i] == WRITTEN) continue;
    if (shadow[i] == NOT_ALLOCATED) {
      char place[128];
      describe(address + i, place, sizeof place);
      fail_at(code, "global memory out of bounds: %s of %u bytes, %s", write ? "a write" : "a read", bytes, place);
    }
    if (!write) {
      size_t offset = 0;
      while (shadow[-ptrdiff_t(offset) - 1 + ptrdiff_t(i)] != NOT_ALLOCATED) offset++;
      fail_at(code, "byte %zu of an allocation in global memory is read, but nobody wrote it", offset);
    }
    shadow[i] = WRITTEN;
  }
}

// ---- every access --------------------------------------------------------------------------------------------

static inline void access(uintptr_t address, unsigned bytes, bool write, bool aligned, const void* code) {
  if (!self) return;  // not a kernel
  Worker& w = *worker;
  if (address - w.stacks < w.stacks_bytes) {
    w.check_registers(address, bytes, code);
    return;
  }
  uintptr_t offset = address - reinterpret_cast<uintptr_t>(block.shared);
  bool shared = offset < block.shared_bytes, device = is_device(address);
  if (aligned && (shared || device) && address % bytes) {
    fail_at(code, "misaligned access of %u bytes at address %p", bytes, reinterpret_cast<void*>(address));
  }
  if (shared) {
    if (offset + bytes > block.shared_bytes) fail_at(code, "shared memory out of bounds: byte %zu of %u", size_t(offset + bytes - 1), block.shared_bytes);
    if (write) w.shared.write(offset, bytes, self->linear, code);
    else w.shared.read(offset, bytes, self->linear, self->linear, code);
  } else if (device) {
    device_access(address, bytes, write, code);
  } else if (address - reinterpret_cast<uintptr_t>(w.shared_arena) < MAX_SHARED + 1024 + PAGE) {
    fail_at(code, "shared memory out of bounds: byte %td of %u", ptrdiff_t(offset), block.shared_bytes);
  } else if (write) {
    fail_at(code, "global memory out of bounds: a write to address %p", reinterpret_cast<void*>(address));
  }
}

void check_read(const void* address, unsigned bytes, unsigned thread) {
  uintptr_t a = reinterpret_cast<uintptr_t>(address), offset = a - reinterpret_cast<uintptr_t>(block.shared);
  if (offset < block.shared_bytes) worker->shared.read(offset, bytes, thread, thread, nullptr);
  else if (is_device(a)) device_access(a, bytes, false, nullptr);
}

void check_write(const void* address, unsigned bytes, unsigned thread) {
  uintptr_t a = reinterpret_cast<uintptr_t>(address), offset = a - reinterpret_cast<uintptr_t>(block.shared);
  if (offset < block.shared_bytes) worker->shared.write(offset, bytes, thread, nullptr);
  else if (is_device(a)) device_access(a, bytes, true, nullptr);
}

}  // namespace simt

// What instrumented code calls.
#define GEMS_CHECKED(n)                                                                                        \
  void __tsan_read##n(void* p) { simt::access(uintptr_t(p), n, false, true, __builtin_return_address(0)); }     \
  void __tsan_write##n(void* p) { simt::access(uintptr_t(p), n, true, true, __builtin_return_address(0)); }     \
  void __tsan_unaligned_read##n(void* p) { simt::access(uintptr_t(p), n, false, false, __builtin_return_address(0)); } \
  void __tsan_unaligned_write##n(void* p) { simt::access(uintptr_t(p), n, true, false, __builtin_return_address(0)); }

extern "C" {
GEMS_CHECKED(1)
GEMS_CHECKED(2)
GEMS_CHECKED(4)
GEMS_CHECKED(8)
GEMS_CHECKED(16)
void __tsan_read_range(void* p, size_t n) { simt::access(uintptr_t(p), n, false, false, __builtin_return_address(0)); }
void __tsan_write_range(void* p, size_t n) { simt::access(uintptr_t(p), n, true, false, __builtin_return_address(0)); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
// Clang asks for these in place of the C library's.
void* __tsan_memcpy(void* to, const void* from, size_t n) {
  __tsan_read_range(const_cast<void*>(from), n);
  __tsan_write_range(to, n);
  return memcpy(to, from, n);
}
void* __tsan_memset(void* to, int value, size_t n) {
  __tsan_write_range(to, n);
  return memset(to, value, n);
}
}
