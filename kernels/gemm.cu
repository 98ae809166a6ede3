// Linear layers on mma.sync with bf16 operands: out[N, M] = epilogue(x[N, K] w[M, K]^T + bias), K a multiple of eight.
//
// Three ways through the segments of a long sum, of one and the same order (gemm.cuh): none, where the weight has one segment; one after the
// other in a block; or a block each, when there are too few tiles to fill the device. grid = (column tiles, row tiles, blocks per tile).
#include "gemm.cuh"

using Small = GemmTile<64, 64, 64, 2, 2, 4>;
using Large = GemmTile<128, 128, 32, 2, 4, 4>;

template <class Tile, bool SEGMENTED>
__device__ __forceinline__ void gemm(const GemmParams& p, bf16* shared) {
    const int row0 = blockIdx.y * Tile::BM, col0 = blockIdx.x * Tile::BN;
    RowLoader<Tile::A_SLOTS> x(p.x);
    float sum[Tile::MI][Tile::NI][4];
    gemm_product<Tile, SEGMENTED>(x, p.weight, row0, col0, 0, p.weight.cols, shared, sum);
    gemm_store<Tile>(sum, reinterpret_cast<float*>(shared), row0, col0, MatrixEpilogue(p));
}

extern "C" __global__ void __launch_bounds__(Small::THREADS) gemm_small(const __grid_constant__ GemmParams p) {
    follow_predecessor();
    DYN_SHARED(bf16, shared);
    gemm<Small, false>(p, shared);
}
KERNEL_EXPORT(gemm_small);

extern "C" __global__ void __launch_bounds__(Small::THREADS) gemm_small_segmented(const __grid_constant__ GemmParams p) {
    follow_predecessor();
    DYN_SHARED(bf16, shared);
    gemm<Small, true>(p, shared);
}
KERNEL_EXPORT(gemm_small_segmented);

extern "C" __global__ void __launch_bounds__(Large::THREADS, 2) gemm_large(const __grid_constant__ GemmParams p) {
    follow_predecessor();
    DYN_SHARED(bf16, shared);
    gemm<Large, false>(p, shared);
}
KERNEL_EXPORT(gemm_large);

extern "C" __global__ void __launch_bounds__(Large::THREADS, 1) gemm_large_segmented(const __grid_constant__ GemmParams p) {
    follow_predecessor();
    DYN_SHARED(bf16, shared);
    gemm<Large, true>(p, shared);
}
KERNEL_EXPORT(gemm_large_segmented);

// Block z of a tile computes segment z. The last of a tile's blocks to arrive adds all segments in ascending order.
extern "C" __global__ void __launch_bounds__(Small::THREADS) gemm_small_split(const __grid_constant__ GemmParams p) {
    follow_predecessor();
    using Tile = Small;
    DYN_SHARED(bf16, shared);
    const int row0 = blockIdx.y * Tile::BM, col0 = blockIdx.x * Tile::BN;
    const int segments = gridDim.z, segment = blockIdx.z, tile = blockIdx.y * gridDim.x + blockIdx.x;
    RowLoader<Tile::A_SLOTS> x(p.x);
    float sum[Tile::MI][Tile::NI][4];
    const int begin = segment * p.weight.segment, end = min(begin + p.weight.segment, p.weight.cols);
    gemm_product<Tile, false>(x, p.weight, row0, col0, begin, end, shared, sum);

    // Sums lie as the threads hold them: fragment by fragment, 16 bytes of every thread side by side.
    constexpr int FRAGMENTS = Tile::MI * Tile::NI;
    float4* partial = pointer<float4>(p.partial) + size_t(tile) * segments * FRAGMENTS * Tile::THREADS + threadIdx.x;
#pragma unroll
    for (int f = 0; f < FRAGMENTS; f++) {
        const float(&s)[4] = sum[f / Tile::NI][f % Tile::NI];
        partial[size_t(segment * FRAGMENTS + f) * Tile::THREADS] = make_float4(s[0], s[1], s[2], s[3]);
    }
    __threadfence();
    __syncthreads();
    bool last = false;
    if (threadIdx.x == 0) {
        int* counter = pointer<int>(p.counters) + tile;
        last = atomicAdd(counter, 1) == segments - 1;
        if (last) atomicExch(counter, 0);
        __threadfence();
    }
    if (!__syncthreads_or(last)) return;
#pragma unroll
    for (int f = 0; f < FRAGMENTS; f++) {
        float(&s)[4] = sum[f / Tile::NI][f % Tile::NI];
        s[0] = s[1] = s[2] = s[3] = 0.0f;
#pragma unroll 4
        for (int z = 0; z < segments; z++) {
            const float4 v = __ldcg(&partial[size_t(z * FRAGMENTS + f) * Tile::THREADS]);
            s[0] += v.x, s[1] += v.y, s[2] += v.z, s[3] += v.w;
        }
    }
    gemm_store<Tile>(sum, reinterpret_cast<float*>(shared), row0, col0, MatrixEpilogue(p));
}
KERNEL_EXPORT(gemm_small_split);
