// The host SIMT machine: what kernels compiled for the CPU call, and how its parts share work.
//
// A block runs on one OS thread; each of its CUDA threads is a fibre with a stack of its own, which
// leaves the processor only where a GPU thread could wait: at a barrier or at a warp-wide operation.
// A warp-wide operation is a rendezvous: every lane leaves a pointer to its operands, the lane that
// comes last performs the whole operation on all of them. Blocks are spread over OS threads.
//
// The machine looks for mistakes that a GPU would hide: every access of a kernel is checked (check.h),
// asynchronous copies deliver as late as they may (poison until then), threads that wait for each other
// forever are named, and three schedules (forward, reversed, seeded random) show results that depend on order.
#pragma once
#include <cstddef>
#include <cstdint>

namespace simt {

struct Index3 { unsigned x = 1, y = 1, z = 1; };

// What a running kernel can ask about its thread and block.
struct Thread { Index3 index; unsigned lane, warp, linear; };
struct Block { Index3 index, size, grid; uint8_t* shared; unsigned shared_bytes; };

#define SIMT_TLS __attribute__((tls_model("initial-exec")))
extern __thread Thread* self SIMT_TLS;
extern __thread Block block SIMT_TLS;

// An operation of a whole warp on its lanes' operands; operands[lane] is null for lanes not in mask.
typedef void (*WarpOperation)(void** operands, uint32_t mask);

// Meets the other lanes of mask; the last to arrive runs the operation (may be null).
void rendezvous(uint32_t mask, WarpOperation operation, void* operands, const char* name);
// Waits for all threads of the block.
void barrier();
// Ends the launch with a message that names kernel, block and thread.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// Warp exchanges of 32-bit values.
enum class Shuffle { index, exclusive_or, up, down };
uint32_t shuffle(uint32_t mask, uint32_t value, int operand, int width, Shuffle kind);
uint32_t ballot(uint32_t mask, bool predicate);

// Asynchronous copies of `bytes` bytes, of which the last `bytes - valid` become zero.
void copy_async(void* to, const void* from, int bytes, int valid);
void copy_commit();
void copy_wait(int groups_in_flight);

// Tensor cores: ldmatrix (n matrices of 8x8 16-bit values) and a register tile of m16n8k16 products.
void ldmatrix(uint32_t* registers, const void* row, int n, bool transposed);
void mma_bf16(int m_tiles, int n_tiles, float* c, const uint32_t* a, const uint32_t* b);

// sm_90: one thread of a warp, mbarriers, bulk tensor copies with the 128-byte swizzle, products of a warpgroup.
bool elect_one();
void mbarrier_init(uint64_t* bar, unsigned count);
void mbarrier_arrive(uint64_t* bar, unsigned expected_bytes);
void mbarrier_wait(uint64_t* bar, unsigned parity);
void tensor_load(void* to, const void* map, uint64_t* bar, int col, int row);
void wgmma(float* accumulators, unsigned columns, uint64_t a, uint64_t b, bool a_transposed, bool b_transposed);
void wgmma_commit();
void wgmma_wait(int groups_in_flight);

// Counters in device memory, by which blocks follow or wait for each other.
uint32_t atomic_add(uint32_t* to, uint32_t value);
void fence();
void flag_add(uint32_t* flag);
void flag_wait(const uint32_t* flag, uint32_t value);

// A kernel known to the machine. Objects are static; they link themselves into a list.
struct Kernel {
  const char* name;
  void (*body)(const void* arguments);
  unsigned argument_bytes, max_threads;
  Kernel* next;
  Kernel(const char* name, void (*body)(const void*), unsigned argument_bytes, unsigned max_threads);
};

}  // namespace simt
