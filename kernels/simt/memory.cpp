// Device memory of the machine, and what happens when a kernel leaves it.
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include "worker.h"

namespace simt {

static size_t whole_pages(size_t bytes) { return (bytes + PAGE - 1) / PAGE * PAGE; }

// Memory between two pages that must not be touched; null when the system has none.
static uint8_t* try_map_guarded(size_t bytes) {
  size_t pages = whole_pages(bytes);
  void* mapped = mmap(nullptr, pages + 2 * PAGE, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED) return nullptr;
  uint8_t* first = static_cast<uint8_t*>(mapped);
  mprotect(first, PAGE, PROT_NONE);
  mprotect(first + PAGE + pages, PAGE, PROT_NONE);
  return first + PAGE;
}

uint8_t* map_guarded(size_t bytes) {
  uint8_t* memory = try_map_guarded(bytes);
  if (!memory) {
    fprintf(stderr, "SIMT machine: no memory for its stacks\n");
    abort();
  }
  return memory;
}

uint8_t* guard_first_page(uint8_t* page) {
  mprotect(page, PAGE, PROT_NONE);
  return page + PAGE;
}

static struct sigaction previous[2];

[[noreturn]] static void bad_access(uintptr_t address) {
  const Fibre& me = worker->current();
  if (address + PAGE >= reinterpret_cast<uintptr_t>(me.stack) && address < reinterpret_cast<uintptr_t>(me.stack)) {
    fail_at(worker->fault_code, "stack overflow: more than %zu bytes of local memory", STACK);
  }
  uintptr_t end = reinterpret_cast<uintptr_t>(block.shared) + block.shared_bytes;
  if (address >= end && address < end + PAGE) {
    fail_at(worker->fault_code, "shared memory out of bounds: byte %zu of %u", size_t(address - uintptr_t(block.shared)),
            block.shared_bytes);
  }
  const void* code = worker->fault_code;
  if (address == 0) fail_at(code, "misaligned vector access, or a null pointer");
  fail_at(code, "global memory out of bounds: address %p", reinterpret_cast<void*>(address));
}

// A fault on a fibre becomes a failed launch: the handler returns into bad_access, on a fresh stack,
// since what the fibre's stack holds is not needed any more. Other faults go to whom they went before.
static void on_fault(int signal_number, siginfo_t* info, void* raw) {
#if defined(__x86_64__) && defined(__linux__)
  if (worker && self) {
    ucontext_t* context = static_cast<ucontext_t*>(raw);
    worker->fault_code = reinterpret_cast<const void*>(context->uc_mcontext.gregs[REG_RIP] + 1);
    uintptr_t top = reinterpret_cast<uintptr_t>(worker->current().stack + STACK) & ~uintptr_t(63);
    context->uc_mcontext.gregs[REG_RSP] = top - 8;  // as after a call
    context->uc_mcontext.gregs[REG_RIP] = reinterpret_cast<greg_t>(&bad_access);
    context->uc_mcontext.gregs[REG_RDI] = reinterpret_cast<greg_t>(info->si_addr);
    return;
  }
#endif
  (void)info;
  (void)raw;
  sigaction(signal_number, &previous[signal_number == SIGBUS], nullptr);
}

void install_fault_handler() {
  static std::once_flag once;
  std::call_once(once, [] {
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &action, &previous[0]);
    sigaction(SIGBUS, &action, &previous[1]);
  });
}

void use_alternate_signal_stack() {
  static __thread uint8_t memory[16 * 1024];
  stack_t stack = {};
  stack.ss_sp = memory;
  stack.ss_size = sizeof memory;
  sigaltstack(&stack, nullptr);
}

// ---- device memory ----------------------------------------------------------------------------------

// Device memory is a part of the address space that is the machine's alone, with a shadow at a fixed distance.
// It is reserved once, given out from the bottom to the top, and used again only when the top is reached: so
// what was freed is out of bounds for a long time. Every allocation has pages of its own and ends with them.
class DeviceMemory {
 public:
  static DeviceMemory& instance() {
    static DeviceMemory* memory = new DeviceMemory;
    return *memory;
  }
  uint8_t* alloc(size_t bytes) {
    std::lock_guard<std::mutex> lock(mutex_);
    size_t rounded = (bytes + 15) & ~size_t(15), pages = whole_pages(rounded);
    size_t at = gap(cursor_, pages);
    if (at == NONE) at = gap(0, pages);
    if (at == NONE || mprotect(base + at, pages, PROT_READ | PROT_WRITE)) return nullptr;
    live_[at] = pages;
    cursor_ = at + pages + PAGE;
    uint8_t* memory = base + at + pages - rounded;
    memset(memory, 0xff, rounded);
    memset(shadow_of(uintptr_t(memory)), UNWRITTEN, bytes);
    return memory;
  }
  void free(uint8_t* address, size_t bytes) {
    std::lock_guard<std::mutex> lock(mutex_);
    size_t rounded = (bytes + 15) & ~size_t(15), pages = whole_pages(rounded);
    uint8_t* first = address + rounded - pages;
    // Fresh mappings, so that the system joins them with their neighbours again.
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
    mmap(first, pages, PROT_NONE, flags, -1, 0);
    mmap(shadow_of(uintptr_t(first)), pages, PROT_READ | PROT_WRITE, flags, -1, 0);
    live_.erase(first - base);
  }
  static uint8_t* base;
  static size_t bytes;

 private:
  static constexpr size_t NONE = ~size_t(0);
  DeviceMemory() {
    // As much as the system lets a process reserve.
    for (bytes = size_t(1) << 40; !base && bytes >> 30; bytes /= 2) {
      void* mapped = mmap(nullptr, 2 * bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (mapped == MAP_FAILED) continue;
      base = static_cast<uint8_t*>(mapped);
      if (mprotect(base + bytes, bytes, PROT_READ | PROT_WRITE)) {
        munmap(mapped, 2 * bytes);
        base = nullptr;
        continue;
      }
      break;
    }
    if (!base) {
      fprintf(stderr, "SIMT machine: no address space for device memory\n");
      abort();
    }
  }
  // The first place from `from` on for so many pages and a guard page before them.
  size_t gap(size_t from, size_t pages) const {
    size_t at = from + PAGE;
    for (auto i = live_.lower_bound(from); i != live_.end() && i->first < at + pages + PAGE; ++i) {
      at = i->first + i->second + PAGE;
    }
    return at + pages + PAGE <= bytes ? at : NONE;
  }
  std::mutex mutex_;
  std::map<size_t, size_t> live_;  // first byte, bytes
  size_t cursor_ = 0;
};
uint8_t* DeviceMemory::base = nullptr;
size_t DeviceMemory::bytes = 0;

bool is_device(uintptr_t address) { return address - uintptr_t(DeviceMemory::base) < DeviceMemory::bytes; }
uint8_t* shadow_of(uintptr_t address) { return reinterpret_cast<uint8_t*>(address + DeviceMemory::bytes); }

}  // namespace simt

// Device memory ends at a guard page to within 16 bytes, and starts out as NaNs. Null when there is none.
extern "C" void* gems_simt_alloc(size_t bytes) { return simt::DeviceMemory::instance().alloc(bytes); }

extern "C" void gems_simt_free(void* address, size_t bytes) {
  simt::DeviceMemory::instance().free(static_cast<uint8_t*>(address), bytes);
}

// Copies to device memory, which counts as written then.
extern "C" void gems_simt_upload(void* to, const void* from, size_t bytes) {
  memcpy(to, from, bytes);
  memset(simt::shadow_of(uintptr_t(to)), simt::WRITTEN, bytes);
}
