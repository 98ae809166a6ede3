// The language: CUDA's keywords, vector types, thread identity and barriers, and the runtime calls behind them.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define CUDA_EMULATOR 1
#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline __attribute__((always_inline))
#ifndef EMU_RUNTIME /* libstdc++ uses this name itself */
#define __noinline__ __attribute__((noinline))
#endif
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)
#define __grid_constant__
#define __restrict__ __restrict
// One block at a time runs on an OS thread, so a block's shared memory is that thread's.
#define __shared__ static thread_local
#define DYN_SHARED(T, name) T* name = reinterpret_cast<T*>(emu::self()->block->dynamic_shared)

#define EMU_VECTOR(T, N)                                                                          \
    struct __align__(sizeof(T) * 2) N##2 { T x, y; };                                             \
    struct N##3 { T x, y, z; };                                                                   \
    struct __align__(sizeof(T) * 4 > 16 ? 16 : sizeof(T) * 4) N##4 { T x, y, z, w; };             \
    inline N##2 make_##N##2(T a, T b) { return {a, b}; }                                          \
    inline N##3 make_##N##3(T a, T b, T c) { return {a, b, c}; }                                  \
    inline N##4 make_##N##4(T a, T b, T c, T d) { return {a, b, c, d}; }
EMU_VECTOR(float, float)
EMU_VECTOR(double, double)
EMU_VECTOR(int, int)
EMU_VECTOR(unsigned, uint)
EMU_VECTOR(short, short)
EMU_VECTOR(unsigned short, ushort)
EMU_VECTOR(signed char, char)
EMU_VECTOR(unsigned char, uchar)
EMU_VECTOR(long long, longlong)
EMU_VECTOR(unsigned long long, ulonglong)
#undef EMU_VECTOR

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};

namespace emu {
// What all threads of the running block share.
struct BlockState {
    uint3 block_index;
    dim3 block_dim, grid_dim;
    unsigned char* dynamic_shared;
};
struct Thread {
    uint3 thread_index;
    unsigned linear, lane, warp;
    BlockState* block;
};
}  // namespace emu

// The running thread lives in a register that nothing else uses (-ffixed-r15): the runtime changes it when it changes fibers.
register emu::Thread* emu_running __asm__("r15");
namespace emu {
inline Thread* self() { return emu_running; }
}  // namespace emu
#define threadIdx (emu::self()->thread_index)
#define blockIdx (emu::self()->block->block_index)
#define blockDim (emu::self()->block->block_dim)
#define gridDim (emu::self()->block->grid_dim)
static constexpr int warpSize = 32;

extern "C" {
void emu_syncthreads();
int emu_syncthreads_reduce(int predicate, int op);
void emu_barrier(int id, int threads, int wait);
void emu_warp(int kind, unsigned mask, void* lane, void (*whole)(void** lanes, unsigned mask));
void emu_yield();
void emu_fence();
void emu_access(const void* p, unsigned bytes, int kind);
unsigned emu_activemask();
long long emu_clock();
void emu_trap();
typedef void (*EmuInvoke)(void** args);
typedef void* (*EmuSharedProbe)();
void emu_register(const char* name, EmuInvoke invoke, int parameters, const unsigned* sizes, EmuSharedProbe shared);
}
inline void __syncthreads() { emu_syncthreads(); }
inline int __syncthreads_count(int predicate) { return emu_syncthreads_reduce(predicate, 0); }
inline int __syncthreads_and(int predicate) { return emu_syncthreads_reduce(predicate, 1); }
inline int __syncthreads_or(int predicate) { return emu_syncthreads_reduce(predicate, 2); }
inline void __threadfence() { emu_fence(); }
inline void __threadfence_block() { emu_fence(); }
inline void __threadfence_system() { emu_fence(); }
inline void __nanosleep(unsigned) { emu_yield(); }
inline long long clock64() { return emu_clock(); }
inline void __trap() { emu_trap(); }
inline size_t __cvta_generic_to_shared(const void* p) { return (size_t)((const unsigned char*)p - emu::self()->block->dynamic_shared); }
