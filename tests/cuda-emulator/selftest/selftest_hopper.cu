// The Hopper product of gemm.cu's kind, and TMA tiles read by ordinary loads.
#include "hopper.cuh"
#include "selftest.h"

// C[m][n] (f32) = A[m][k] B[n][k]^T: a producer warp and two consumer warpgroups around a ring of 3 stages of 64.
// Bug 1: the consumers do not wait for a stage; 2: the producer does not wait for it to be free; 3: a stage is given back before
// the products have read it.
constexpr int RING = 3, TILE_M = 128, TILE_K = 64;

template <int TILE_N> struct HopperStages {
    __nv_bfloat16 a[RING][TILE_M * TILE_K];
    __nv_bfloat16 b[RING][TILE_N * TILE_K];
    uint64_t full[RING], empty[RING];
};

template <int TILE_N>
__device__ __forceinline__ void hopper_product(const TensorMap& map_a, const TensorMap& map_b, float* c, int m, int n, int k, int bug) {
#if SM90_BODY
    DYN_SHARED(unsigned char, raw);
    auto& s = *reinterpret_cast<HopperStages<TILE_N>*>(raw);
    const int group = threadIdx.x / 128, steps = k / TILE_K;
    if (threadIdx.x == 0) {
        for (int i = 0; i < RING; ++i) {
            mbar_init(&s.full[i], 1);
            mbar_init(&s.empty[i], 2);
        }
        mbar_fence_init();
    }
    __syncthreads();
    if (group == 0) {
        registers_dec<40>();
        if (threadIdx.x == 0)
            for (int step = 0; step < steps; ++step) {
                const int stage = step % RING;
                if (bug != 2) mbar_wait(&s.empty[stage], (step / RING & 1) ^ 1);
                mbar_expect_tx(&s.full[stage], (TILE_M + TILE_N) * TILE_K * 2);
                tma_load_2d(s.a[stage], &map_a, &s.full[stage], step * TILE_K, blockIdx.y * TILE_M);
                tma_load_2d(s.b[stage], &map_b, &s.full[stage], step * TILE_K, blockIdx.x * TILE_N);
            }
    } else {
        registers_inc<232>();
        float d[TILE_N / 2];
        const int half = group - 1;
        for (int step = 0; step < steps; ++step) {
            const int stage = step % RING;
            if (bug != 1) mbar_wait(&s.full[stage], step / RING & 1);
            wgmma_fence();
            for (int kk = 0; kk < TILE_K; kk += 16)
                wgmma_m64k16<TILE_N>(d, wgmma_desc_k(&s.a[stage][half * 64 * TILE_K + kk]), wgmma_desc_k(&s.b[stage][kk]), step + kk > 0);
            wgmma_commit();
            if (bug == 3 && threadIdx.x % 128 == 0) mbar_arrive(&s.empty[stage]);
            wgmma_wait<0>();
            if (bug != 3 && threadIdx.x % 128 == 0) mbar_arrive(&s.empty[stage]);
        }
        const int t = threadIdx.x % 128, row = blockIdx.y * TILE_M + half * 64 + t / 32 * 16 + t % 32 / 4;
        for (int j = 0; j < TILE_N / 8; ++j)
            for (int i = 0; i < 4; ++i) {
                const int r = row + i / 2 * 8, column = blockIdx.x * TILE_N + j * 8 + t % 4 * 2 + i % 2;
                if (r < m && column < n) c[(size_t)r * n + column] = d[j * 4 + i];
            }
    }
#endif
}

struct HopperProduct {
    TensorMap a, b;
    uint64_t c;
    int32_t m, n, k, bug;
};
extern "C" __global__ void __launch_bounds__(384, 1) selftest_gemm_wgmma64(const __grid_constant__ HopperProduct p) {
    hopper_product<64>(p.a, p.b, pointer<float>(p.c), p.m, p.n, p.k, p.bug);
}
KERNEL_EXPORT(selftest_gemm_wgmma64);
extern "C" __global__ void __launch_bounds__(384, 1) selftest_gemm_wgmma256(const __grid_constant__ HopperProduct p) {
    hopper_product<256>(p.a, p.b, pointer<float>(p.c), p.m, p.n, p.k, p.bug);
}
KERNEL_EXPORT(selftest_gemm_wgmma256);

// O[64][128] = P[64][64] V[64][128] as in attention: P from registers, V as it lies in memory (128 columns, two swizzled tiles of
// 64), written by ordinary stores. Bug 1: without the proxy fence.
extern "C" __global__ void __launch_bounds__(128) selftest_wgmma_registers(const __grid_constant__ SelfTest p) {
#if SM90_BODY
    DYN_SHARED(unsigned char, raw);
    const auto* v = pointer<const __nv_bfloat16>(p.y);
    for (int i = threadIdx.x; i < 64 * 128; i += 128) {
        const int row = i / 128, column = i % 128;
        uint32_t at = (uint32_t)(column / 64 * 8192 + row * 128 + column % 64 * 2);
        at ^= (at >> 7 & 7) << 4;
        *reinterpret_cast<__nv_bfloat16*>(raw + at) = v[i];
    }
    if (p.bug != 1) fence_proxy_async();
    __syncthreads();
    const int t = threadIdx.x, row = t / 32 * 16 + t % 32 / 4;
    const auto* probabilities = pointer<const __nv_bfloat16>(p.x);
    float d[64];
    uint32_t a[4][4];
    for (int kk = 0; kk < 4; ++kk)
        for (int i = 0; i < 4; ++i) {
            const int r = row + (i & 1) * 8, k = kk * 16 + t % 4 * 2 + (i >> 1) * 8;
            a[kk][i] = *reinterpret_cast<const uint32_t*>(&probabilities[r * 64 + k]);
        }
    wgmma_fence();
    for (int kk = 0; kk < 4; ++kk) wgmma_m64k16<128, true>(d, a[kk], wgmma_desc_mn(raw + kk * 2048, 8192), kk > 0);
    wgmma_commit();
    wgmma_wait<0>();
    for (int j = 0; j < 16; ++j)
        for (int i = 0; i < 4; ++i)
            pointer<float>(p.z)[(row + i / 2 * 8) * 128 + j * 8 + t % 4 * 2 + i % 2] = d[j * 4 + i];
#endif
}
KERNEL_EXPORT(selftest_wgmma_registers);

struct TileCopy {
    TensorMap from, to;
    int32_t bug;
};
// A tile of 8x64 floats in, incremented by ordinary code, and out. Bug 1: without waiting for it; 2: no proxy fence before it leaves.
extern "C" __global__ void __launch_bounds__(64) selftest_tile(const __grid_constant__ TileCopy p) {
#if SM90_BODY
    DYN_SHARED(unsigned char, raw);
    auto* tile = reinterpret_cast<float*>(raw);
    auto* bar = reinterpret_cast<uint64_t*>(raw + 8 * 64 * 4);
    if (threadIdx.x == 0) {
        mbar_init(bar, 1);
        mbar_fence_init();
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        mbar_expect_tx(bar, 8 * 64 * 4);
        tma_load_2d(tile, &p.from, bar, blockIdx.x * 64, 0);
    }
    if (p.bug != 1) mbar_wait(bar, 0);
    for (int r = 0; r < 8; ++r) tile[r * 64 + threadIdx.x] += 1.0f;
    if (p.bug != 2) fence_proxy_async();
    __syncthreads();
    if (threadIdx.x == 0) {
        tma_store_2d(&p.to, tile, blockIdx.x * 64, 0);
        tma_store_commit();
        tma_store_wait<0>();
    }
#endif
}
KERNEL_EXPORT(selftest_tile);
