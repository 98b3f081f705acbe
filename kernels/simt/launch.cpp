// Launching a kernel: the list of kernels, the machine's OS threads, the C interface.
#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <mutex>
#include <thread>
#include "worker.h"

namespace simt {

static Kernel* kernels = nullptr;  // constant-initialised: kernels register before main

Kernel::Kernel(const char* name, void (*body)(const void*), unsigned argument_bytes, unsigned max_threads)
    : name(name), body(body), argument_bytes(argument_bytes), max_threads(max_threads), next(kernels) {
  kernels = this;
}

// OS threads that wait for launches and share out their blocks. Never destroyed: they end with the process.
class Machine {
 public:
  static Machine& instance() {
    static Machine* machine = new Machine;
    return *machine;
  }
  // Runs all blocks; returns the first failure's message, or nothing.
  std::string run(const Launch& launch) {
    std::lock_guard<std::mutex> one_launch(launching_);
    std::unique_lock<std::mutex> lock(mutex_);
    blocks_ = size_t(launch.grid.x) * launch.grid.y * launch.grid.z;
    next_ = 0;
    error_.clear();
    launch_ = &launch;
    busy_ = std::min<size_t>(wanted_, blocks_);
    for (size_t i = workers_; i < busy_; i++) std::thread([this, i] { serve(i); }).detach();
    workers_ = std::max(workers_, busy_);
    running_ = busy_;
    generation_++;
    start_.notify_all();
    done_.wait(lock, [this] { return running_ == 0; });
    return error_;
  }
  void use_threads(unsigned threads) {
    std::lock_guard<std::mutex> lock(mutex_);
    wanted_ = threads ? threads : std::max(1u, std::thread::hardware_concurrency());
  }

 private:
  void serve(size_t index) {
    use_alternate_signal_stack();
    Worker* w = new Worker(int(index));
    worker = w;
    size_t seen = 0;
    for (;;) {
      std::unique_lock<std::mutex> lock(mutex_);
      start_.wait(lock, [&] { return generation_ != seen; });
      seen = generation_;
      if (index >= busy_) continue;
      const Launch& launch = *launch_;
      lock.unlock();
      std::string failure = work(*w, launch);
      lock.lock();
      if (error_.empty()) error_ = failure;
      if (--running_ == 0) done_.notify_one();
    }
  }
  std::string work(Worker& w, const Launch& launch) {
    for (size_t i = next_++; i < blocks_; i = next_++) {
      size_t at = launch.schedule == Schedule::reversed ? blocks_ - 1 - i : i;
      if (!w.run(launch, at)) {
        next_ = blocks_;
        return w.error;
      }
    }
    return {};
  }

  std::mutex launching_, mutex_;
  std::condition_variable start_, done_;
  const Launch* launch_ = nullptr;
  size_t blocks_ = 0, generation_ = 0, workers_ = 0, busy_ = 0, running_ = 0;
  size_t wanted_ = std::max(1u, std::thread::hardware_concurrency());
  std::atomic<size_t> next_{0};
  std::string error_;
};

static std::atomic<int> schedule{0};
static std::atomic<uint64_t> schedule_seed{1};

static std::string check(const Kernel& k, Index3 grid, Index3 block, unsigned shared, unsigned bytes) {
  size_t threads = size_t(block.x) * block.y * block.z;
  std::string text;
  if (threads == 0 || threads > k.max_threads) {
    text = std::to_string(threads) + " threads a block, the kernel is for at most " + std::to_string(k.max_threads);
  } else if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > 65535 || grid.z > 65535) {
    text = "a grid that no GPU accepts";
  } else if (shared > MAX_SHARED) {
    text = std::to_string(shared) + " bytes of shared memory";
  } else if (bytes != k.argument_bytes) {
    text = std::to_string(bytes) + " bytes of arguments, the kernel takes " + std::to_string(k.argument_bytes);
  }
  return text.empty() ? text : text + " [kernel " + k.name + "]";
}

}  // namespace simt

extern "C" {

// The kernel of that name, or null.
const void* gems_simt_find(const char* name) {
  for (const simt::Kernel* k = simt::kernels; k; k = k->next) {
    if (strcmp(k->name, name) == 0) return k;
  }
  return nullptr;
}

// Runs a kernel to its end. Returns 0, or 1 with a message in `error` (at most `capacity` bytes).
int gems_simt_launch(const void* kernel, const unsigned* grid, const unsigned* block, unsigned shared_bytes,
                     const void* arguments, unsigned argument_bytes, char* error, size_t capacity) {
  const simt::Kernel& k = *static_cast<const simt::Kernel*>(kernel);
  simt::Launch launch = {&k, arguments, {grid[0], grid[1], grid[2]}, {block[0], block[1], block[2]}, shared_bytes,
                         simt::Schedule(simt::schedule.load()), simt::schedule_seed};
  std::string failure = simt::check(k, launch.grid, launch.block, shared_bytes, argument_bytes);
  if (failure.empty()) {
    simt::install_fault_handler();
    failure = simt::Machine::instance().run(launch);
  }
  if (failure.empty()) return 0;
  snprintf(error, capacity, "%s", failure.c_str());
  return 1;
}

// OS threads (0: one a core) and schedule (0 forward, 1 reversed, 2 random with a seed) of later launches.
void gems_simt_configure(unsigned threads, int schedule, uint64_t seed) {
  simt::Machine::instance().use_threads(threads);
  simt::schedule = schedule < 0 || schedule > 2 ? 0 : schedule;
  simt::schedule_seed = seed;
}
}
