// Device memory of the machine, and what happens when a kernel leaves it.
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <cstdio>
#include <cstdlib>
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
    fail("stack overflow: more than %zu bytes of local memory", STACK);
  }
  uintptr_t end = reinterpret_cast<uintptr_t>(block.shared) + block.shared_bytes;
  if (address >= end && address < end + PAGE) {
    fail("shared memory out of bounds: byte %zu of %u", size_t(address - uintptr_t(block.shared)), block.shared_bytes);
  }
  if (address == 0) fail("misaligned vector access, or a null pointer");
  fail("global memory out of bounds: address %p", reinterpret_cast<void*>(address));
}

// A fault on a fibre becomes a failed launch: the handler returns into bad_access, on a fresh stack,
// since what the fibre's stack holds is not needed any more. Other faults go to whom they went before.
static void on_fault(int signal_number, siginfo_t* info, void* raw) {
#if defined(__x86_64__) && defined(__linux__)
  if (worker && self) {
    ucontext_t* context = static_cast<ucontext_t*>(raw);
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

}  // namespace simt

// Device memory ends at a guard page to within 16 bytes, and starts out as NaNs. Null when there is none.
extern "C" void* gems_simt_alloc(size_t bytes) {
  size_t rounded = (bytes + 15) & ~size_t(15);
  uint8_t* memory = simt::try_map_guarded(rounded);
  if (!memory) return nullptr;
  memory += simt::whole_pages(rounded) - rounded;
  memset(memory, 0xff, rounded);
  return memory;
}

extern "C" void gems_simt_free(void* address, size_t bytes) {
  size_t rounded = (bytes + 15) & ~size_t(15);
  size_t pages = simt::whole_pages(rounded);
  munmap(static_cast<uint8_t*>(address) + rounded - pages - simt::PAGE, pages + 2 * simt::PAGE);
}
