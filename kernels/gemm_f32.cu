// Linear layers on plain f32 arithmetic, for f32 weights and activations and for rows that 16-byte copies cannot take: any dtypes, any K.
//
// A block computes 64 x 64 outputs, a thread 4 x 4. Every sum is one chain of fused multiply-adds over k ascending, whatever the batch.
// grid = (column tiles, row tiles).
#include "gemm.cuh"

constexpr int F32_TILE = 64, F32_STEP = 16, F32_THREADS = 256, F32_PITCH = F32_TILE + 4, F32_SUMS_PITCH = F32_TILE + 8;

// Four columns from `k` of a row, zeros outside.
__device__ __forceinline__ void load_four(const Mat& m, int row, int k, float (&v)[4]) {
    const bool inside = row < m.rows;
    const size_t at = size_t(inside ? row : 0) * m.cols + k;
    if (m.dtype == DTYPE_F32 && m.cols % 4 == 0) {
        const float4 four = inside && k < m.cols ? *reinterpret_cast<const float4*>(pointer<const float>(m.data) + at)
                                                 : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        v[0] = four.x, v[1] = four.y, v[2] = four.z, v[3] = four.w;
        return;
    }
#pragma unroll
    for (int i = 0; i < 4; i++) v[i] = inside && k + i < m.cols ? load1(m, at + i) : 0.0f;
}

extern "C" __global__ void __launch_bounds__(F32_THREADS) gemm_f32(const __grid_constant__ GemmParams p) {
    follow_predecessor();
    // The sums take the place of the operands when these are done with.
    __shared__ __align__(16) float shared[F32_TILE * F32_SUMS_PITCH];
    float* xs = shared;
    float* ws = shared + F32_STEP * F32_PITCH;
    const Mat weight = {p.weight.data, p.weight.rows, p.weight.cols, p.weight.dtype, 0};
    const int row0 = blockIdx.y * F32_TILE, col0 = blockIdx.x * F32_TILE;
    const int load_row = threadIdx.x / 4, load_k = threadIdx.x % 4 * 4;
    const int row = threadIdx.x / 16 * 4, col = threadIdx.x % 16 * 4;
    const int depth = p.x.cols;
    float sum[4][4] = {}, next_x[4], next_w[4];
    load_four(p.x, row0 + load_row, load_k, next_x);
    load_four(weight, col0 + load_row, load_k, next_w);
#pragma unroll 1
    for (int k = 0; k < depth; k += F32_STEP) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            xs[(load_k + i) * F32_PITCH + load_row] = next_x[i];
            ws[(load_k + i) * F32_PITCH + load_row] = next_w[i];
        }
        __syncthreads();
        if (k + F32_STEP < depth) {
            load_four(p.x, row0 + load_row, k + F32_STEP + load_k, next_x);
            load_four(weight, col0 + load_row, k + F32_STEP + load_k, next_w);
        }
#pragma unroll
        for (int s = 0; s < F32_STEP; s++) {
            const float4 x = *reinterpret_cast<const float4*>(&xs[s * F32_PITCH + row]);
            const float4 w = *reinterpret_cast<const float4*>(&ws[s * F32_PITCH + col]);
            const float xv[4] = {x.x, x.y, x.z, x.w}, wv[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
            for (int i = 0; i < 4; i++) {
#pragma unroll
                for (int j = 0; j < 4; j++) sum[i][j] = fmaf(xv[i], wv[j], sum[i][j]);
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        *reinterpret_cast<float4*>(&shared[(row + i) * F32_SUMS_PITCH + col]) =
            make_float4(sum[i][0], sum[i][1], sum[i][2], sum[i][3]);
    }
    __syncthreads();
    store_tile<F32_TILE, F32_TILE, F32_SUMS_PITCH>(shared, row0, col0, MatrixEpilogue(p), threadIdx.x, F32_THREADS);
}
KERNEL_EXPORT(gemm_f32);
