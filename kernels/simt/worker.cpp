// Scheduling the threads of a block: fibres, barriers, rendezvous, deadlock.
#include "worker.h"
#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <unistd.h>

#if defined(__x86_64__) && defined(__linux__) && !defined(SIMT_UCONTEXT)
asm(R"(
.text
.globl gems_simt_switch
.type gems_simt_switch,@function
gems_simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp,(%rdi)
  movq %rsi,%rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size gems_simt_switch,.-gems_simt_switch
)");
#endif

namespace simt {

__thread Thread* self = nullptr;
__thread Block block = {};
__thread Worker* worker = nullptr;

Worker::Worker(int index) : shared(MAX_SHARED + 1024), fibres(MAX_THREADS), index_(index) {
  shared_arena = map_guarded(MAX_SHARED + 1024);
  uint8_t* memory = map_guarded(stacks_bytes);
  stacks = reinterpret_cast<uintptr_t>(memory);
  for (unsigned i = 0; i < MAX_THREADS; i++) fibres[i].stack = guard_first_page(memory + i * STACK_SLOT);
}

uint64_t Worker::random() {  // xorshift
  random_state_ ^= random_state_ << 13;
  random_state_ ^= random_state_ >> 7;
  random_state_ ^= random_state_ << 17;
  return random_state_;
}

int Worker::choose_lane(uint32_t lanes) {
  switch (launch_->schedule) {
    case Schedule::forward: return __builtin_ctz(lanes);
    case Schedule::reversed: return 31 - __builtin_clz(lanes);
    case Schedule::random: break;
  }
  for (int skip = random() % __builtin_popcount(lanes); skip > 0; skip--) lanes &= lanes - 1;
  return __builtin_ctz(lanes);
}

int Worker::choose_warp(int preferred) {
  if (preferred >= 0 && ready_[preferred]) return preferred;
  for (unsigned i = 0; i < warps_; i++) {
    if (ready_[order_[i]]) return order_[i];
  }
  return -1;
}

// Lets a bulk copy arrive, if one is under way.
bool Worker::deliver() {
  size_t under_way = hopper.copies.size();
  if (!under_way) return false;
  bool last = launch_->schedule == Schedule::reversed;
  deliver_copy(hopper, launch_->schedule == Schedule::random ? random() % under_way : last ? under_way - 1 : 0);
  return true;
}

// Gives those that let others run another try.
bool Worker::resume() {
  if (aside_.empty()) return false;
  usleep(200);
  for (unsigned thread : aside_) wake(thread);
  aside_.clear();
  return true;
}

void Worker::let_others() {
  aside_.push_back(self->linear);
  wait("a flag of another block");
}

void Worker::wait(const char* name) {
  Fibre& me = current();
  me.waits_at = name;
  next(&me, me.warp);
}

// Gives the processor to a fibre that can run, the same warp's first; back to the worker if none is left.
void Worker::next(Fibre* from, int preferred_warp) {
  if (launch_->schedule == Schedule::random && random() % 8 == 0) deliver();
  int warp = choose_warp(preferred_warp);
  while (warp < 0 && (deliver() || resume())) warp = choose_warp(preferred_warp);
  if (warp < 0) {
    if (live_ != 0) abandon(deadlock().c_str());
    switch_context(from->context, main_);
    return;
  }
  int lane = choose_lane(ready_[warp]);
  ready_[warp] &= ~(1u << lane);
  Fibre* to = &fibres[warp * 32 + lane];
  if (to == from) return;
  self = to;
  switch_context(from ? from->context : main_, to->context);
}

std::string Worker::deadlock() const {
  std::string text = "deadlock: ";
  unsigned waiting = 0;
  for (unsigned i = 0; i < threads_; i++) {
    if (!fibres[i].waits_at) continue;
    if (waiting++ < 3) text += "thread " + std::to_string(i) + " waits at " + fibres[i].waits_at + ", ";
  }
  return text + std::to_string(waiting) + " of " + std::to_string(threads_) + " threads wait, the others returned";
}

void Worker::meet(uint32_t mask, WarpOperation operation, void* operands, const char* name) {
  Fibre& me = current();
  unsigned in_warp = std::min(32u, threads_ - me.warp * 32);
  if (mask == ~0u && in_warp < 32) mask = (1u << in_warp) - 1;
  if (!(mask >> me.lane & 1)) fail("%s: lane %u is not in its own mask %08x", name, me.lane, mask);
  Meeting* meeting = nullptr;
  for (Meeting& m : meetings_[me.warp]) {
    if (m.arrived && m.mask == mask) meeting = &m;
  }
  for (Meeting& m : meetings_[me.warp]) {
    if (!meeting && !m.arrived) {
      m.mask = mask;
      m.operation = operation;
      m.name = name;
      for (void*& operand : m.operands) operand = nullptr;
      meeting = &m;
    }
  }
  if (!meeting) fail("%s: the lanes of this warp wait at five different operations", name);
  if (meeting->operation != operation || meeting->name != name) {
    fail("divergent warp: lane %u is at %s, others at %s", me.lane, name, meeting->name);
  }
  meeting->operands[me.lane] = operands;
  meeting->arrived |= 1u << me.lane;
  if (meeting->arrived == mask) {
    if (operation) operation(meeting->operands, mask);
    if (!operation) shared.meet(me.warp * 32, mask);  // only __syncwarp orders memory
    meeting->arrived = 0;
    ready_[me.warp] |= mask & ~(1u << me.lane);
    return;
  }
  me.waits_at = name;
  next(&me, me.warp);
}

void Worker::wait_barrier() {
  Fibre& me = current();
  me.waits_at = "__syncthreads";
  blocked_[me.warp] |= 1u << me.lane;
  if (++at_barrier_ < threads_) {
    next(&me, me.warp);
    return;
  }
  at_barrier_ = 0;
  shared.barrier();
  for (unsigned i = 0; i < warps_; i++) {
    ready_[i] |= blocked_[i];
    blocked_[i] = 0;
  }
  if (launch_->schedule == Schedule::forward) {
    ready_[me.warp] &= ~(1u << me.lane);  // goes on at once
    return;
  }
  if (launch_->schedule == Schedule::random) {
    for (unsigned i = warps_ - 1; i > 0; i--) std::swap(order_[i], order_[random() % (i + 1)]);
  }
  next(&me, -1);
}

void Worker::abandon(const char* message) {
  if (!failed_) {
    char place[256] = "";
    const Fibre* me = static_cast<const Fibre*>(self);
    snprintf(place, sizeof place, " [kernel %s, block (%u, %u, %u), thread (%u, %u, %u)]", launch_->kernel->name,
             block.index.x, block.index.y, block.index.z, me->index.x, me->index.y, me->index.z);
    error = std::string(message) + place;
    failed_ = true;
  }
  Context dead;
  switch_context(dead, main_);
  __builtin_unreachable();
}

void Worker::entry() {
  Worker* w = worker;
  w->launch_->kernel->body(w->launch_->arguments);
  Fibre& me = w->current();
  if (!me.copies.empty()) fail("the thread returned with cp.async copies in flight");
  if (me.accumulators_bytes) fail("the thread returned with wgmma in flight");
  me.waits_at = nullptr;
  w->live_--;
  w->next(&me, me.warp);
  __builtin_unreachable();
}

void Worker::start(const Launch& launch) {
  threads_ = launch.block.x * launch.block.y * launch.block.z;
  warps_ = (threads_ + 31) / 32;
  live_ = threads_;
  at_barrier_ = 0;
  aside_.clear();
  hopper.start_block();
  failed_ = false;
  random_state_ = launch.seed * 0x9E3779B97F4A7C15ull + index_ + 1;
  shared.start_block(threads_);
  for (unsigned i = 0; i < warps_; i++) {
    unsigned lanes = std::min(32u, threads_ - i * 32);
    ready_[i] = lanes == 32 ? ~0u : (1u << lanes) - 1;
    blocked_[i] = 0;
    order_[i] = launch.schedule == Schedule::reversed ? warps_ - 1 - i : i;
    for (Meeting& m : meetings_[i]) m.arrived = 0;
  }
  for (unsigned i = 0; i < threads_; i++) {
    Fibre& f = fibres[i];
    f.index = {i % launch.block.x, i / launch.block.x % launch.block.y, i / (launch.block.x * launch.block.y)};
    f.lane = i % 32;
    f.warp = i / 32;
    f.linear = i;
    f.waits_at = "its start";
    f.copies.clear();
    f.groups.clear();
    f.accumulators_bytes = 0;
    // Stacks start at different offsets, or all of them would compete for the same cache sets.
    prepare(f.context, f.stack, f.stack + STACK - (i % 64) * 192, entry);
  }
}

bool Worker::run(const Launch& launch, size_t block_index) {
  launch_ = &launch;
  fault_code = nullptr;
  block.size = launch.block;
  block.grid = launch.grid;
  block.index = {unsigned(block_index % launch.grid.x), unsigned(block_index / launch.grid.x % launch.grid.y),
                 unsigned(block_index / (size_t(launch.grid.x) * launch.grid.y))};
  // The block's shared memory ends at the guard page, to within its alignment of 128 bytes.
  unsigned rounded = (launch.shared_bytes + 127) & ~127u;
  block.shared = shared_arena + MAX_SHARED + 1024 - rounded;
  block.shared_bytes = launch.shared_bytes;
  memset(block.shared, 0xff, rounded);
  start(launch);
  next(nullptr, -1);
  self = nullptr;
  if (!failed_) return true;
  shared.forget();
  std::string source = source_of(fault_code);
  if (!source.empty()) error += " at " + source;
  return false;
}

void rendezvous(uint32_t mask, WarpOperation operation, void* operands, const char* name) {
  worker->meet(mask, operation, operands, name);
}

void barrier() { worker->wait_barrier(); }

void fail(const char* format, ...) {
  char text[512];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  worker->abandon(text);
}

}  // namespace simt
