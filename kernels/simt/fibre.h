// A fibre: a stack, and a way to switch between it and others on the same OS thread.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__) && defined(__linux__) && !defined(SIMT_UCONTEXT)

// Saves the callee-saved registers and the stack pointer, loads another's: 9 ns for a switch and its
// bookkeeping, against 260 ns of swapcontext (which makes two system calls).
extern "C" void gems_simt_switch(void** save, void* load);

namespace simt {
struct Context { void* stack_pointer = nullptr; };
static inline void prepare(Context& context, uint8_t* /*low*/, uint8_t* top, void (*entry)()) {
  void** stack = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(top) & ~uintptr_t(63));
  *--stack = nullptr;                                // keeps the ABI's alignment at entry
  *--stack = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; i++) *--stack = nullptr;    // rbp rbx r12 r13 r14 r15
  context.stack_pointer = stack;
}
static inline void switch_context(Context& from, Context& to) {
  gems_simt_switch(&from.stack_pointer, to.stack_pointer);
}
}  // namespace simt

#else
#include <ucontext.h>

namespace simt {
struct Context { ucontext_t state; };
static inline void prepare(Context& context, uint8_t* low, uint8_t* top, void (*entry)()) {
  getcontext(&context.state);
  context.state.uc_stack.ss_sp = low;
  context.state.uc_stack.ss_size = top - low;
  context.state.uc_link = nullptr;
  makecontext(&context.state, entry, 0);
}
static inline void switch_context(Context& from, Context& to) { swapcontext(&from.state, &to.state); }
}  // namespace simt
#endif
