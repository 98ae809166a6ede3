// Two matrix products C[m][n] = A[m][k] B[n][k]^T, bf16 in and f32 out, that use every asynchronous primitive: one with
// cp.async, ldmatrix and mma (sm_80), one with TMA, mbarriers and wgmma (sm_90a). The emulator's own tests, never shipped.
#include "hopper.cuh"

struct SelfTestGemm {
    uint64_t a, b, c;
    int32_t m, n, k, bug;
};

// A tile of 64x64 by 4 warps, double buffered in steps of 32.
extern "C" __global__ void __launch_bounds__(128) selftest_gemm_mma(const __grid_constant__ SelfTestGemm p) {
    constexpr int TILE = 64, STEP = 32, PITCH = STEP + 8;
    DYN_SHARED(__nv_bfloat16, shared);
    __nv_bfloat16* tile_a = shared;
    __nv_bfloat16* tile_b = shared + 2 * TILE * PITCH;
    const auto* a = reinterpret_cast<const __nv_bfloat16*>(p.a);
    const auto* b = reinterpret_cast<const __nv_bfloat16*>(p.b);
    auto* c = reinterpret_cast<float*>(p.c);
    const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32, g = lane / 4, t = lane % 4;
    const int m0 = blockIdx.y * TILE, n0 = blockIdx.x * TILE;

    const auto load = [&](int buffer, int k0) {
        for (int i = thread; i < TILE * STEP / 8; i += 128) {
            const int row = i / 4, column = i % 4 * 8, mr = m0 + row, nr = n0 + row;
            const int at = (buffer * TILE + row) * PITCH + column;
            cp_async16(&tile_a[at], a + (size_t)(mr < p.m ? mr : 0) * p.k + k0 + column, mr < p.m ? 16 : 0);
            cp_async16(&tile_b[at], b + (size_t)(nr < p.n ? nr : 0) * p.k + k0 + column, nr < p.n ? 16 : 0);
        }
        cp_async_commit();
    };

    float sum[8][4] = {};
    load(0, 0);
    const int steps = p.k / STEP;
    for (int step = 0; step < steps; ++step) {
        if (step + 1 < steps) {
            load((step + 1) & 1, (step + 1) * STEP);
            if (p.bug == 1)
                cp_async_wait<2>();
            else
                cp_async_wait<1>();
        } else {
            cp_async_wait<0>();
        }
        __syncthreads();
        const __nv_bfloat16* now_a = tile_a + (step & 1) * TILE * PITCH;
        const __nv_bfloat16* now_b = tile_b + (step & 1) * TILE * PITCH;
        for (int k = 0; k < STEP; k += 16) {
            uint32_t fa[4];
            ldmatrix_x4(fa, &now_a[(warp * 16 + lane % 16) * PITCH + k + lane / 16 * 8]);
            for (int j = 0; j < 8; ++j) {
                uint32_t fb[2];
                ldmatrix_x2(fb, &now_b[(j * 8 + lane % 8) * PITCH + k + lane / 8 % 2 * 8]);
                mma_m16n8k16_bf16(sum[j], fa, fb);
            }
        }
        if (p.bug != 2) __syncthreads();
    }
    for (int j = 0; j < 8; ++j)
        for (int i = 0; i < 4; ++i) {
            const int row = m0 + warp * 16 + g + i / 2 * 8, column = n0 + j * 8 + t * 2 + i % 2;
            if (row < p.m && column < p.n) c[(size_t)row * p.n + column] = sum[j][i];
        }
}
KERNEL_EXPORT(selftest_gemm_mma);
