// Hopper primitives (sm_90a): mbarriers, TMA tile copies, warpgroup matrix multiply, register reallocation.
// Device bodies here, emulated ones in tests/cuda-emulator/include/emulator/hopper.h. Kernels guard their bodies with
// `#if SM90_BODY`, which is 1 only for the sm_90a image (and the emulator); every other image gets an empty kernel.
// Reference: PTX ISA, "Asynchronous warpgroup level matrix instructions", "mbarrier", "cp.async.bulk.tensor".
//
// Accumulator of m64nNk16 (thread 32 w + 4 g + t of the warpgroup): d[4 j + 2 h + i] = D[16 w + g + 8 h][8 j + 2 t + i].
#pragma once
#include "mma.cuh"

#ifndef __CUDACC__
#include "emulator/hopper.h"
#else
#include <cuda.h>

typedef CUtensorMap TensorMap;
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define SM90_BODY 1
#else
#define SM90_BODY 0
#endif

#if SM90_BODY
// ---- mbarriers: 8 bytes of shared memory that count arrivals and transferred bytes; a phase ends when both are complete ----
__device__ __forceinline__ void mbar_init(uint64_t* bar, int count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(smem_u32(bar)), "r"(count) : "memory");
}
// Makes initialised barriers known to the asynchronous proxy; follow with __syncthreads.
__device__ __forceinline__ void mbar_fence_init() { asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory"); }
// Arrives once and announces `bytes` that tma_load_* will deliver in this phase.
__device__ __forceinline__ void mbar_expect_tx(uint64_t* bar, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(smem_u32(bar)), "r"(bytes) : "memory");
}
__device__ __forceinline__ void mbar_arrive(uint64_t* bar) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(smem_u32(bar)) : "memory");
}
// Waits until the phase of this parity has completed (a fresh barrier passes a wait for parity 1).
__device__ __forceinline__ void mbar_wait(uint64_t* bar, int parity) {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done,[%0],%1;\n"
        "@done bra ready;\n"
        "bra again;\n"
        "ready:\n"
        "}\n" ::"r"(smem_u32(bar)),
        "r"(parity)
        : "memory");
}

// ---- TMA: one thread starts the copy of a box; coordinates are in elements, innermost first; outside of the tensor is zero ----
__device__ __forceinline__ void tma_prefetch_map(const TensorMap* map) {
    asm volatile("prefetch.tensormap [%0];\n" ::"l"((uint64_t)map) : "memory");
}
__device__ __forceinline__ void tma_load_2d(void* shared, const TensorMap* map, uint64_t* bar, int x, int y) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0],[%1,{%3,%4}],[%2];\n" ::"r"(
            smem_u32(shared)),
        "l"((uint64_t)map), "r"(smem_u32(bar)), "r"(x), "r"(y)
        : "memory");
}
__device__ __forceinline__ void tma_load_3d(void* shared, const TensorMap* map, uint64_t* bar, int x, int y, int z) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0],[%1,{%3,%4,%5}],[%2];\n" ::"r"(
            smem_u32(shared)),
        "l"((uint64_t)map), "r"(smem_u32(bar)), "r"(x), "r"(y), "r"(z)
        : "memory");
}
// Writes of ordinary stores become visible to TMA and wgmma: every writing thread, then a barrier, then the issuing thread.
__device__ __forceinline__ void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory"); }
__device__ __forceinline__ void tma_store_2d(const TensorMap* map, const void* shared, int x, int y) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0,{%2,%3}],[%1];\n" ::"l"((uint64_t)map),
                 "r"(smem_u32(shared)), "r"(x), "r"(y)
                 : "memory");
}
__device__ __forceinline__ void tma_store_commit() { asm volatile("cp.async.bulk.commit_group;\n" ::: "memory"); }
// At most N of this thread's store groups in flight; _read: only their reads of shared memory need be over.
template <int N> __device__ __forceinline__ void tma_store_wait() {
    asm volatile("cp.async.bulk.wait_group %0;\n" ::"n"(N) : "memory");
}
template <int N> __device__ __forceinline__ void tma_store_wait_read() {
    asm volatile("cp.async.bulk.wait_group.read %0;\n" ::"n"(N) : "memory");
}

// ---- wgmma: operands in shared memory are tiles of 128-byte rows with the 128-byte swizzle, at 1024-byte aligned addresses ----
__device__ __forceinline__ uint64_t wgmma_descriptor(const void* p, uint32_t leading_bytes, uint32_t stride_bytes) {
    const uint64_t address = smem_u32(p);
    return (address & 0x3ffff) >> 4 | (uint64_t)(leading_bytes >> 4) << 16 | (uint64_t)(stride_bytes >> 4) << 32 |
           1ull << 62;
}
// K-major operand, rows of 64 bf16 along k: step k by 16 with p + 32 bytes, rows by 8 with p + 1024 bytes.
__device__ __forceinline__ uint64_t wgmma_desc_k(const void* p) { return wgmma_descriptor(p, 16, 1024); }
// MN-major operand, rows of 64 bf16 along n: step k by 16 with p + 2048 bytes; atom_stride_bytes leads to the next 64 columns.
__device__ __forceinline__ uint64_t wgmma_desc_mn(const void* p, uint32_t atom_stride_bytes) {
    return wgmma_descriptor(p, atom_stride_bytes, 1024);
}
// Before the first wgmma of a batch and after registers of its operands were written.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory"); }
template <int N> __device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(N) : "memory");
}
// After the wait for them: the compiler must not use accumulators earlier.
template <int N> __device__ __forceinline__ void wgmma_results(float (&d)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i])::"memory");
}

// The 8 accumulators of block I, as text and as operands.
#define WGMMA_TEXT_0 "%0,%1,%2,%3,%4,%5,%6,%7"
#define WGMMA_TEXT_1 "%8,%9,%10,%11,%12,%13,%14,%15"
#define WGMMA_TEXT_2 "%16,%17,%18,%19,%20,%21,%22,%23"
#define WGMMA_TEXT_3 "%24,%25,%26,%27,%28,%29,%30,%31"
#define WGMMA_TEXT_4 "%32,%33,%34,%35,%36,%37,%38,%39"
#define WGMMA_TEXT_5 "%40,%41,%42,%43,%44,%45,%46,%47"
#define WGMMA_TEXT_6 "%48,%49,%50,%51,%52,%53,%54,%55"
#define WGMMA_TEXT_7 "%56,%57,%58,%59,%60,%61,%62,%63"
#define WGMMA_TEXT_8 "%64,%65,%66,%67,%68,%69,%70,%71"
#define WGMMA_TEXT_9 "%72,%73,%74,%75,%76,%77,%78,%79"
#define WGMMA_TEXT_10 "%80,%81,%82,%83,%84,%85,%86,%87"
#define WGMMA_TEXT_11 "%88,%89,%90,%91,%92,%93,%94,%95"
#define WGMMA_TEXT_12 "%96,%97,%98,%99,%100,%101,%102,%103"
#define WGMMA_TEXT_13 "%104,%105,%106,%107,%108,%109,%110,%111"
#define WGMMA_TEXT_14 "%112,%113,%114,%115,%116,%117,%118,%119"
#define WGMMA_TEXT_15 "%120,%121,%122,%123,%124,%125,%126,%127"
#define WGMMA_OUT(I) \
    "+f"(d[8 * I]), "+f"(d[8 * I + 1]), "+f"(d[8 * I + 2]), "+f"(d[8 * I + 3]), "+f"(d[8 * I + 4]), "+f"(d[8 * I + 5]), \
        "+f"(d[8 * I + 6]), "+f"(d[8 * I + 7])
#define WGMMA_TEXT_N16 WGMMA_TEXT_0
#define WGMMA_OUT_N16 WGMMA_OUT(0)
#define WGMMA_TEXT_N32 WGMMA_TEXT_0 "," WGMMA_TEXT_1
#define WGMMA_OUT_N32 WGMMA_OUT(0), WGMMA_OUT(1)
#define WGMMA_TEXT_N64 WGMMA_TEXT_0 "," WGMMA_TEXT_1 "," WGMMA_TEXT_2 "," WGMMA_TEXT_3
#define WGMMA_OUT_N64 WGMMA_OUT(0), WGMMA_OUT(1), WGMMA_OUT(2), WGMMA_OUT(3)
#define WGMMA_TEXT_N96 WGMMA_TEXT_0 "," WGMMA_TEXT_1 "," WGMMA_TEXT_2 "," WGMMA_TEXT_3 "," WGMMA_TEXT_4 "," WGMMA_TEXT_5
#define WGMMA_OUT_N96 WGMMA_OUT(0), WGMMA_OUT(1), WGMMA_OUT(2), WGMMA_OUT(3), WGMMA_OUT(4), WGMMA_OUT(5)
#define WGMMA_TEXT_N128 WGMMA_TEXT_0 "," WGMMA_TEXT_1 "," WGMMA_TEXT_2 "," WGMMA_TEXT_3 "," WGMMA_TEXT_4 "," WGMMA_TEXT_5 "," WGMMA_TEXT_6 "," WGMMA_TEXT_7
#define WGMMA_OUT_N128 WGMMA_OUT(0), WGMMA_OUT(1), WGMMA_OUT(2), WGMMA_OUT(3), WGMMA_OUT(4), WGMMA_OUT(5), WGMMA_OUT(6), WGMMA_OUT(7)
#define WGMMA_TEXT_N192 WGMMA_TEXT_0 "," WGMMA_TEXT_1 "," WGMMA_TEXT_2 "," WGMMA_TEXT_3 "," WGMMA_TEXT_4 "," WGMMA_TEXT_5 "," WGMMA_TEXT_6 "," WGMMA_TEXT_7 "," WGMMA_TEXT_8 "," WGMMA_TEXT_9 "," WGMMA_TEXT_10 "," WGMMA_TEXT_11
#define WGMMA_OUT_N192 WGMMA_OUT(0), WGMMA_OUT(1), WGMMA_OUT(2), WGMMA_OUT(3), WGMMA_OUT(4), WGMMA_OUT(5), WGMMA_OUT(6), WGMMA_OUT(7), WGMMA_OUT(8), WGMMA_OUT(9), WGMMA_OUT(10), WGMMA_OUT(11)
#define WGMMA_TEXT_N256 WGMMA_TEXT_0 "," WGMMA_TEXT_1 "," WGMMA_TEXT_2 "," WGMMA_TEXT_3 "," WGMMA_TEXT_4 "," WGMMA_TEXT_5 "," WGMMA_TEXT_6 "," WGMMA_TEXT_7 "," WGMMA_TEXT_8 "," WGMMA_TEXT_9 "," WGMMA_TEXT_10 "," WGMMA_TEXT_11 "," WGMMA_TEXT_12 "," WGMMA_TEXT_13 "," WGMMA_TEXT_14 "," WGMMA_TEXT_15
#define WGMMA_OUT_N256 WGMMA_OUT(0), WGMMA_OUT(1), WGMMA_OUT(2), WGMMA_OUT(3), WGMMA_OUT(4), WGMMA_OUT(5), WGMMA_OUT(6), WGMMA_OUT(7), WGMMA_OUT(8), WGMMA_OUT(9), WGMMA_OUT(10), WGMMA_OUT(11), WGMMA_OUT(12), WGMMA_OUT(13), WGMMA_OUT(14), WGMMA_OUT(15)

// D[64][N] (+)= A[64][16] B[16][N]; `accumulate` 0 starts from zero. A from shared memory (K-major) or from registers (the
// fragment of mma_m16n8k16_bf16 for the warp's 16 rows), B K-major or, with B_MN_MAJOR, N-major.
template <int N> struct Wgmma;
#define WGMMA_FORM(N, A0, A1, A2, A3, A4, A5, A6)                                                                       \
    template <> struct Wgmma<N> {                                                                                       \
        template <int T>                                                                                                \
        __device__ __forceinline__ static void shared(float (&d)[N / 2], uint64_t a, uint64_t b, int accumulate) {      \
            asm volatile(                                                                                               \
                "{\n.reg .pred p;\nsetp.ne.b32 p, %" #A2 ", 0;\n"                                                       \
                "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" WGMMA_TEXT_N##N "}, %" #A0 ", %" #A1         \
                ", p, 1, 1, 0, %" #A3 ";\n}\n"                                                                          \
                : WGMMA_OUT_N##N                                                                                        \
                : "l"(a), "l"(b), "r"(accumulate), "n"(T));                                                             \
        }                                                                                                               \
        template <int T>                                                                                                \
        __device__ __forceinline__ static void registers(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b,         \
                                                         int accumulate) {                                              \
            asm volatile(                                                                                               \
                "{\n.reg .pred p;\nsetp.ne.b32 p, %" #A5 ", 0;\n"                                                       \
                "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" WGMMA_TEXT_N##N "}, {%" #A0 ", %" #A1        \
                ", %" #A2 ", %" #A3 "}, %" #A4 ", p, 1, 1, %" #A6 ";\n}\n"                                              \
                : WGMMA_OUT_N##N                                                                                        \
                : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(T));                         \
        }                                                                                                               \
    };
WGMMA_FORM(16, 8, 9, 10, 11, 12, 13, 14)
WGMMA_FORM(32, 16, 17, 18, 19, 20, 21, 22)
WGMMA_FORM(64, 32, 33, 34, 35, 36, 37, 38)
WGMMA_FORM(96, 48, 49, 50, 51, 52, 53, 54)
WGMMA_FORM(128, 64, 65, 66, 67, 68, 69, 70)
WGMMA_FORM(192, 96, 97, 98, 99, 100, 101, 102)
WGMMA_FORM(256, 128, 129, 130, 131, 132, 133, 134)
#undef WGMMA_FORM

template <int N, bool B_MN_MAJOR = false>
__device__ __forceinline__ void wgmma_m64k16(float (&d)[N / 2], uint64_t a, uint64_t b, int accumulate) {
    Wgmma<N>::template shared<B_MN_MAJOR>(d, a, b, accumulate);
}
template <int N, bool B_MN_MAJOR = false>
__device__ __forceinline__ void wgmma_m64k16(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, int accumulate) {
    Wgmma<N>::template registers<B_MN_MAJOR>(d, a, b, accumulate);
}

// Stores 8x8 matrices of 16-bit elements: the inverse of ldmatrix.
__device__ __forceinline__ void stmatrix_x4(void* p, const uint32_t (&r)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0],{%1,%2,%3,%4};\n" ::"r"(smem_u32(p)), "r"(r[0]), "r"(r[1]),
                 "r"(r[2]), "r"(r[3])
                 : "memory");
}
__device__ __forceinline__ void stmatrix_x2(void* p, const uint32_t (&r)[2]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x2.shared.b16 [%0],{%1,%2};\n" ::"r"(smem_u32(p)), "r"(r[0]), "r"(r[1])
                 : "memory");
}

// Gives registers of this warpgroup back, or takes them: producers give, consumers take.
template <int N> __device__ __forceinline__ void registers_dec() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(N));
}
template <int N> __device__ __forceinline__ void registers_inc() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(N));
}
#endif
#endif
