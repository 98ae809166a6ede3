// Emulated bodies of kernels/include/hopper.cuh: mbarriers, TMA tile copies, wgmma, register reallocation.
#pragma once
#include "emulator/mma.h"

#define SM90_BODY 1

// What the emulated cuTensorMapEncodeTiled writes into the opaque 128 bytes.
struct __align__(64) TensorMap {
    uint64_t base;
    uint64_t dim[3];
    uint64_t pitch[2];
    uint32_t box[3];
    uint32_t element_bytes, swizzle, rank;
    uint64_t reserved[7];
};
static_assert(sizeof(TensorMap) == 128);

extern "C" {
void emu_mbar_init(void* bar, int count);
void emu_mbar_arrive(void* bar, int transaction_bytes);
void emu_mbar_wait(void* bar, int parity);
void emu_tma_load(void* shared, const void* map, void* bar, int x, int y, int z);
void emu_tma_store(const void* map, const void* shared, int x, int y, int z);
void emu_tma_store_commit();
void emu_tma_store_wait(int groups_in_flight, int only_reads);
void emu_wgmma(float* d, const uint32_t* a_registers, uint64_t a, uint64_t b, int n, int b_mn_major, int accumulate);
void emu_wgmma_commit();
void emu_wgmma_wait(int groups_in_flight);
void emu_proxy_fence();
}

inline void mbar_init(uint64_t* bar, int count) { emu_mbar_init(bar, count); }
inline void mbar_fence_init() {}
inline void mbar_expect_tx(uint64_t* bar, int bytes) { emu_mbar_arrive(bar, bytes); }
inline void mbar_arrive(uint64_t* bar) { emu_mbar_arrive(bar, 0); }
inline void mbar_wait(uint64_t* bar, int parity) { emu_mbar_wait(bar, parity); }

inline void tma_prefetch_map(const TensorMap*) {}
inline void tma_load_2d(void* shared, const TensorMap* map, uint64_t* bar, int x, int y) {
    emu_tma_load(shared, map, bar, x, y, 0);
}
inline void tma_load_3d(void* shared, const TensorMap* map, uint64_t* bar, int x, int y, int z) {
    emu_tma_load(shared, map, bar, x, y, z);
}
inline void tma_store_2d(const TensorMap* map, const void* shared, int x, int y) { emu_tma_store(map, shared, x, y, 0); }
inline void tma_store_commit() { emu_tma_store_commit(); }
template <int N> inline void tma_store_wait() { emu_tma_store_wait(N, 0); }
template <int N> inline void tma_store_wait_read() { emu_tma_store_wait(N, 1); }
inline void fence_proxy_async() { emu_proxy_fence(); }

inline uint64_t wgmma_descriptor(const void* p, uint32_t leading_bytes, uint32_t stride_bytes) {
    const uint64_t address = smem_u32(p);
    return (address & 0x3ffff) >> 4 | (uint64_t)(leading_bytes >> 4) << 16 | (uint64_t)(stride_bytes >> 4) << 32 |
           1ull << 62;
}
inline uint64_t wgmma_desc_k(const void* p) { return wgmma_descriptor(p, 16, 1024); }
inline uint64_t wgmma_desc_mn(const void* p, uint32_t atom_stride_bytes) {
    return wgmma_descriptor(p, atom_stride_bytes, 1024);
}
inline void wgmma_fence() {}
inline void wgmma_commit() { emu_wgmma_commit(); }
template <int N> inline void wgmma_wait() { emu_wgmma_wait(N); }
template <int N> inline void wgmma_results(float (&)[N]) {}

template <int N, bool B_MN_MAJOR = false>
inline void wgmma_m64k16(float (&d)[N / 2], uint64_t a, uint64_t b, int accumulate) {
    emu_wgmma(d, nullptr, a, b, N, B_MN_MAJOR, accumulate);
}
template <int N, bool B_MN_MAJOR = false>
inline void wgmma_m64k16(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, int accumulate) {
    emu_wgmma(d, a, 0, b, N, B_MN_MAJOR, accumulate);
}
inline void stmatrix_x4(void* p, const uint32_t (&r)[4]) { emu::store_matrices(r, p, 4, 0); }
inline void stmatrix_x2(void* p, const uint32_t (&r)[2]) { emu::store_matrices(r, p, 2, 0); }

template <int N> inline void registers_dec() {}
template <int N> inline void registers_inc() {}
