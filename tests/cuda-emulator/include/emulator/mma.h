// Emulated bodies of kernels/include/mma.cuh: matrix fragments, ldmatrix, cp.async, named barriers, programmatic launch.
#pragma once
#include "emulator/cuda.h"

extern "C" {
void emu_cp_async(void* shared, const void* global, int bytes, int source_bytes);
void emu_cp_async_commit();
void emu_cp_async_wait(int groups_in_flight);
void emu_pdl_wait();
}

namespace emu {
enum AccessKind { READ, WRITE, ATOMIC };
struct Mma {
    float* d;
    const uint32_t* a;
    const uint32_t* b;
};
void mma_m16n8k16_bf16(void** lanes, unsigned mask);
void mma_m16n8k16_f16(void** lanes, unsigned mask);
void mma_m16n8k8_tf32(void** lanes, unsigned mask);
struct LdMatrix {
    uint32_t* registers;
    const void* row;
    int matrices, transposed;
};
void ldmatrix(void** lanes, unsigned mask);
struct StMatrix {
    const uint32_t* registers;
    void* row;
    int matrices, transposed;
};
void stmatrix(void** lanes, unsigned mask);

inline void load_matrices(uint32_t* registers, const void* row, int matrices, int transposed) {
    if (self()->lane < 8u * (unsigned)matrices) emu_access(row, 16, READ);
    LdMatrix m{registers, row, matrices, transposed};
    emu_warp(LDMATRIX, 0xffffffffu, &m, ldmatrix);
}
inline void store_matrices(const uint32_t* registers, void* row, int matrices, int transposed) {
    if (self()->lane < 8u * (unsigned)matrices) emu_access(row, 16, WRITE);
    StMatrix m{registers, row, matrices, transposed};
    emu_warp(STMATRIX, 0xffffffffu, &m, stmatrix);
}
}  // namespace emu

inline uint32_t smem_u32(const void* p) { return (uint32_t)__cvta_generic_to_shared(p); }

inline void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    emu::Mma m{d, a, b};
    emu_warp(emu::MMA, 0xffffffffu, &m, emu::mma_m16n8k16_bf16);
}
inline void mma_m16n8k16_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    emu::Mma m{d, a, b};
    emu_warp(emu::MMA, 0xffffffffu, &m, emu::mma_m16n8k16_f16);
}
inline void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    emu::Mma m{d, a, b};
    emu_warp(emu::MMA, 0xffffffffu, &m, emu::mma_m16n8k8_tf32);
}
inline uint32_t to_tf32(float x) { return (__float_as_uint(x) + 0x1000u) & 0xffffe000u; }

inline void ldmatrix_x1(uint32_t& r, const void* p) { emu::load_matrices(&r, p, 1, 0); }
inline void ldmatrix_x2(uint32_t (&r)[2], const void* p) { emu::load_matrices(r, p, 2, 0); }
inline void ldmatrix_x4(uint32_t (&r)[4], const void* p) { emu::load_matrices(r, p, 4, 0); }
inline void ldmatrix_x1_trans(uint32_t& r, const void* p) { emu::load_matrices(&r, p, 1, 1); }
inline void ldmatrix_x2_trans(uint32_t (&r)[2], const void* p) { emu::load_matrices(r, p, 2, 1); }
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* p) { emu::load_matrices(r, p, 4, 1); }

inline void cp_async16(void* shared, const void* global, int source_bytes = 16) {
    emu_cp_async(shared, global, 16, source_bytes);
}
inline void cp_async8(void* shared, const void* global, int source_bytes = 8) {
    emu_cp_async(shared, global, 8, source_bytes);
}
inline void cp_async4(void* shared, const void* global, int source_bytes = 4) {
    emu_cp_async(shared, global, 4, source_bytes);
}
inline void cp_async_commit() { emu_cp_async_commit(); }
template <int N> inline void cp_async_wait() { emu_cp_async_wait(N); }

inline uint4 load_stream16(const void* global) { return *static_cast<const uint4*>(global); }
inline float fast_exp2(float x) { return exp2f(x); }

inline void named_barrier_sync(int id, int threads) { emu_barrier(id, threads, 1); }
inline void named_barrier_arrive(int id, int threads) { emu_barrier(id, threads, 0); }

// A launch is whole before its successor starts; the checks want the wait all the same.
inline void pdl_wait() { emu_pdl_wait(); }
inline void pdl_launch_dependents() {}
