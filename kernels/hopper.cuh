// mbarriers, bulk tensor copies and wgmma: the PTX instructions of sm_90a, or the SIMT machine's.
#pragma once
#include "common.cuh"

// A tensor map in a kernel's arguments: cuTensorMapEncodeTiled's, or the machine's.
struct alignas(128) TensorMap { uint64_t opaque[16]; };

// An address in shared memory, in the 32 bits that descriptors are made of.
__device__ __forceinline__ uint32_t shared_address(const void* p) {
#ifdef GEMS_SIMT
  return (uint32_t)((const uint8_t*)p - simt::block.shared);
#else
  return (uint32_t)__cvta_generic_to_shared(p);
#endif
}

// The same place in shared memory, which the compiler keeps in a register from here on: it would find its address anew wherever
// it is used.
__device__ __forceinline__ uint8_t* held(uint8_t* p) {
#ifdef GEMS_SIMT
  return p;
#else
  uint32_t address = shared_address(p);
  asm volatile("" : "+r"(address));
  return static_cast<uint8_t*>(__cvta_shared_to_generic(address));
#endif
}

// Whether this is the one thread of its warp that the hardware picks; all 32 ask. What only that thread does, the compiler
// then knows to be one thread's: it needs no loop over the warp around instructions that take uniform registers.
__device__ __forceinline__ bool elect_one() {
#ifdef GEMS_SIMT
  return simt::elect_one();
#else
  uint32_t elected;
  asm volatile("{\n.reg .pred one;\nelect.sync _|one, 0xffffffff;\nselp.u32 %0, 1, 0, one;\n}" : "=r"(elected));
  return elected != 0;
#endif
}

// ---- mbarriers --------------------------------------------------------------------------------------

__device__ __forceinline__ void mbarrier_init(uint64_t* bar, int arrivals) {
#ifdef GEMS_SIMT
  simt::mbarrier_init(bar, arrivals);
#else
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(bar)), "r"(arrivals) : "memory");
#endif
}

// Makes initialised mbarriers known to the copy engine; a block barrier follows.
__device__ __forceinline__ void mbarrier_init_fence() {
#ifndef GEMS_SIMT
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}

__device__ __forceinline__ void mbarrier_arrive(uint64_t* bar) {
#ifdef GEMS_SIMT
  simt::mbarrier_arrive(bar, 0);
#else
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(bar)) : "memory");
#endif
}

// Arrives, and lets the phase last until copies have brought `bytes` more bytes.
__device__ __forceinline__ void mbarrier_arrive_expect(uint64_t* bar, uint32_t bytes) {
#ifdef GEMS_SIMT
  simt::mbarrier_arrive(bar, bytes);
#else
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(bar)), "r"(bytes) : "memory");
#endif
}

// Waits for the end of the phase of that parity (the first phase has parity 0).
__device__ __forceinline__ void mbarrier_wait(uint64_t* bar, uint32_t parity) {
#ifdef GEMS_SIMT
  simt::mbarrier_wait(bar, parity);
#else
  asm volatile(
      "{\n.reg .pred done;\n"
      "again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n}" ::"r"(shared_address(bar)), "r"(parity) : "memory");
#endif
}

// ---- bulk tensor copies -------------------------------------------------------------------------------

// Copies a box whose first element is (row, col) to shared memory (aligned to 1024 bytes, 128-byte swizzle); what
// lies outside the tensor becomes zero. Its bytes count on `bar`.
__device__ __forceinline__ void tensor_load(void* to, const TensorMap& map, uint64_t* bar, int col, int row) {
#ifdef GEMS_SIMT
  simt::tensor_load(to, &map, bar, col, row);
#else
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
          shared_address(to)),
      "l"(&map), "r"(shared_address(bar)), "r"(col), "r"(row) : "memory");
#endif
}

__device__ __forceinline__ void tensor_prefetch(const TensorMap& map) {
#ifdef GEMS_SIMT
  (void)map;
#else
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
#endif
}

// ---- flags between blocks --------------------------------------------------------------------------------

// Adds 1, after everything that this thread, and those that it synchronised with, wrote; also as seen by bulk copies.
__device__ __forceinline__ void flag_add(uint32_t* flag) {
#ifdef GEMS_SIMT
  simt::flag_add(flag);
#else
  asm volatile("fence.proxy.async.global;\nred.release.gpu.global.add.u32 [%0], 1;" ::"l"(flag) : "memory");
#endif
}

// Waits until the flag is at least `value`; what was written before may then be read, also by bulk copies.
__device__ __forceinline__ void flag_wait(const uint32_t* flag, uint32_t value) {
#ifdef GEMS_SIMT
  simt::flag_wait(flag, value);
#else
  uint32_t seen;
  do {
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(flag) : "memory");
  } while (seen < value);
  asm volatile("fence.proxy.async.global;" ::: "memory");
#endif
}

// ---- registers of a warpgroup -----------------------------------------------------------------------------

template <int registers> __device__ __forceinline__ void reg_alloc() {
#ifndef GEMS_SIMT
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(registers));
#endif
}
template <int registers> __device__ __forceinline__ void reg_dealloc() {
#ifndef GEMS_SIMT
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(registers));
#endif
}

// ---- wgmma --------------------------------------------------------------------------------------------------

// Before the first product, and whenever accumulators were touched by other instructions.
__device__ __forceinline__ void wgmma_fence() {
#ifndef GEMS_SIMT
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}
__device__ __forceinline__ void wgmma_commit() {
#ifdef GEMS_SIMT
  simt::wgmma_commit();
#else
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}
// Waits until at most `in_flight` committed groups are unfinished.
template <int in_flight> __device__ __forceinline__ void wgmma_wait() {
#ifdef GEMS_SIMT
  simt::wgmma_wait(in_flight);
#else
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(in_flight) : "memory");
#endif
}

// Keeps the compiler from moving what touches accumulators across this place: wgmma writes them until it was waited for,
// which their registers do not say.
template <int n> __device__ __forceinline__ void wgmma_hold(float (&c)[n]) {
#ifndef GEMS_SIMT
#pragma unroll
  for (int i = 0; i < n; i++) asm volatile("" : "+f"(c[i])::"memory");
#endif
}

// A tile for wgmma: chunks of 64 x 64 values, 8 KiB each, as a tensor_load of such a box leaves them. A chunk holds
// outputs x k, rows along k; or, transposed, k x outputs, rows along the outputs. The lower half of its descriptor: where it
// starts, and from 64 outputs to the next 64 (transposed only), in units of 16 bytes. What is added to it is added to the start.
template <bool transposed> __device__ __forceinline__ uint32_t wgmma_operand(const uint8_t* tile) {
  return (shared_address(tile) >> 4 & 0x3fff) | (transposed ? CHUNK_BYTES / 16 : 1) << 16;
}
// From there to the outputs at `k`, a multiple of 16.
template <bool transposed> __device__ __forceinline__ uint32_t wgmma_step(int k) { return transposed ? k * 8 : k / 8; }
// The whole of it; its upper half: from eight rows to the next eight, 128-byte swizzle.
__device__ __forceinline__ uint64_t wgmma_descriptor(uint32_t operand) {
  constexpr uint32_t upper = 1024 / 16 | 1u << 30;
  return (uint64_t)upper << 32 | operand;
}

// Accumulators as operands, and where an asm string names them.
#define GEMS_C8(x) "+f"(c[x]), "+f"(c[x + 1]), "+f"(c[x + 2]), "+f"(c[x + 3]), "+f"(c[x + 4]), "+f"(c[x + 5]), "+f"(c[x + 6]), "+f"(c[x + 7])
#define GEMS_C32(x) GEMS_C8(x), GEMS_C8(x + 8), GEMS_C8(x + 16), GEMS_C8(x + 24)
#define GEMS_NAMES_32 \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27," \
  "%28,%29,%30,%31"
#define GEMS_NAMES_64 GEMS_NAMES_32 \
  ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57," \
  "%58,%59,%60,%61,%62,%63"
#define GEMS_NAMES_128 GEMS_NAMES_64 \
  ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89," \
  "%90,%91,%92,%93,%94,%95,%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,%112," \
  "%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"
#define GEMS_WGMMA(columns, names, a, b, ta, tb, ...)                                                            \
  asm volatile("wgmma.mma_async.sync.aligned.m64n" columns "k16.f32.bf16.bf16 {" names "}, " a ", " b ", 1, 1, 1, " ta ", " tb ";" \
               : __VA_ARGS__ : "l"(da), "l"(db), "n"(int(A_TRANSPOSED)), "n"(int(B_TRANSPOSED)))

// c += a b of 64 x COLUMNS, 16 k. A thread holds rows 16 (warp % 4) + lane/4 and + 8; c[4 j + r] is column 8 j + 2 (lane%4)
// + r % 2 of row r / 2. One product of 256 columns reads A once, two of 128 columns twice.
template <int COLUMNS, bool A_TRANSPOSED, bool B_TRANSPOSED, int n>
__device__ __forceinline__ void wgmma(float (&c)[n], uint64_t da, uint64_t db) {
  static_assert((COLUMNS == 64 || COLUMNS == 128 || COLUMNS == 256) && n >= COLUMNS / 2, "no such product");
#ifdef GEMS_SIMT
  simt::wgmma(c, COLUMNS, da, db, A_TRANSPOSED, B_TRANSPOSED);
#else
  if constexpr (COLUMNS == 64) GEMS_WGMMA("64", GEMS_NAMES_32, "%32", "%33", "%34", "%35", GEMS_C32(0));
  if constexpr (COLUMNS == 128) GEMS_WGMMA("128", GEMS_NAMES_64, "%64", "%65", "%66", "%67", GEMS_C32(0), GEMS_C32(32));
  if constexpr (COLUMNS == 256) {
    GEMS_WGMMA("256", GEMS_NAMES_128, "%128", "%129", "%130", "%131", GEMS_C32(0), GEMS_C32(32), GEMS_C32(64), GEMS_C32(96));
  }
#endif
}
