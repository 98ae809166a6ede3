// Linear layers of up to sixteen rows: reading the weight once, at the speed of memory, is all that counts.
//
// A block takes a few rows of the weight. Its warps take a segment of k each and stream it through a ring of shared memory of their own, without
// barriers between warps, so that STAGES - 1 steps per warp are always on their way. The products are those of gemm.cuh, activations as the
// rows and the weight as the columns of mma.m16n8k16, over the same steps of k, and the segments are added in the same order: a row has the
// bits that it would have in a larger batch. grid = tiles of the weight's rows, one warp per segment (at most eight).
#include "gemm.cuh"

constexpr int GEMV_WARPS = 8, GEMV_STEP = 64, GEMV_UNITS = GEMV_STEP / 8;

// COLS rows of the weight, at most ROWS rows of activations.
template <int ROWS_, int COLS_, int STAGES_>
struct GemvTile {
    static constexpr int ROWS = ROWS_, COLS = COLS_, STAGES = STAGES_;
    static constexpr int STAGE = (ROWS + COLS) * GEMV_STEP;
    static constexpr int PITCH = COLS + 4;
    static_assert(ROWS * PITCH * 4 <= STAGE * 2, "the sums of a warp fit into one of its stages");
    static_assert((ROWS == 8 || ROWS == 16) && (COLS == 8 || COLS == 16), "one fragment of rows, one or two of columns");
};

// Copies 64 columns of `rows` rows into a tile; rows from `valid` on become zeros.
template <int ROWS>
__device__ __forceinline__ void load_rows(const bf16* from, int pitch, int valid, bool inside, bf16* tile) {
    const int lane = threadIdx.x % WARP, unit = lane % GEMV_UNITS;
#pragma unroll
    for (int i = 0; i < ROWS * GEMV_UNITS / WARP; i++) {
        const int row = lane / GEMV_UNITS + i * (WARP / GEMV_UNITS);
        const bool copied = inside && row < valid;
        cp_async16(&tile[tile_at<GEMV_STEP>(row, unit)], copied ? from + size_t(row) * pitch + unit * 8 : from, copied ? 16 : 0);
    }
}

template <class Tile>
__device__ __forceinline__ void multiply_step(const bf16* x, const bf16* w, float (&sum)[Tile::COLS / 8][4]) {
    const int lane = threadIdx.x % WARP;
#pragma unroll
    for (int step = 0; step < GEMV_STEP / 16; step++) {
        uint32_t a[4] = {0, 0, 0, 0}, b[2][2];
        if constexpr (Tile::ROWS == 16) {
            ldmatrix_x4(a, &x[tile_at<GEMV_STEP>(lane % 16, step * 2 + lane / 16)]);
        } else {
            uint32_t low[2];
            ldmatrix_x2(low, &x[tile_at<GEMV_STEP>(lane % 8, step * 2 + lane / 8 % 2)]);
            a[0] = low[0], a[2] = low[1];
        }
        if constexpr (Tile::COLS == 16) {
            uint32_t pair[4];
            ldmatrix_x4(pair, &w[tile_at<GEMV_STEP>(lane / 16 * 8 + lane % 8, step * 2 + lane / 8 % 2)]);
            b[0][0] = pair[0], b[0][1] = pair[1], b[1][0] = pair[2], b[1][1] = pair[3];
            mma_m16n8k16_bf16(sum[1], a, b[1]);
        } else {
            ldmatrix_x2(b[0], &w[tile_at<GEMV_STEP>(lane % 8, step * 2 + lane / 8 % 2)]);
        }
        mma_m16n8k16_bf16(sum[0], a, b[0]);
    }
}

// sum = the products of this warp's segment.
template <class Tile>
__device__ __forceinline__ void stream_segment(const GemmParams& p, int col0, int segment, bf16* ring,
                                               float (&sum)[Tile::COLS / 8][4]) {
    const PackedWeight& weight = p.weight;
    const int begin = segment * weight.segment, steps = (min(begin + weight.segment, weight.cols) - begin) / GEMV_STEP;
    const bf16* w = pointer<const bf16>(weight.data) + size_t(col0) * weight.cols + begin;
    const bf16* x = pointer<const bf16>(p.x.data) + begin;
    const int unit = threadIdx.x % GEMV_UNITS;
    const auto load_weights = [&](int step, bf16* stage) {
        load_rows<Tile::COLS>(w + step * GEMV_STEP, weight.cols, Tile::COLS, true, stage + Tile::ROWS * GEMV_STEP);
    };
    const auto load_inputs = [&](int step, bf16* stage) {
        const int k = step * GEMV_STEP;
        // The weight's columns are padded, the activations' are not.
        const bool inside = begin + k + unit * 8 < p.x.cols;
        load_rows<Tile::ROWS>(inside ? x + k : pointer<const bf16>(p.x.data), p.x.cols, p.x.rows, inside, stage);
    };
    // Nobody writes weights: their way from memory begins while the kernel before this one ends.
    pdl_launch_dependents();
#pragma unroll
    for (int s = 0; s < Tile::STAGES - 1; s++) {
        if (s < steps) load_weights(s, ring + s * Tile::STAGE);
    }
    pdl_wait();
#pragma unroll
    for (int s = 0; s < Tile::STAGES - 1; s++) {
        if (s < steps) load_inputs(s, ring + s * Tile::STAGE);
        cp_async_commit();
    }
    int read = 0, write = Tile::STAGES - 1;
#pragma unroll 1
    for (int step = 0; step < steps; step++) {
        cp_async_wait<Tile::STAGES - 2>();
        __syncwarp();
        if (step + Tile::STAGES - 1 < steps) {
            load_weights(step + Tile::STAGES - 1, ring + write * Tile::STAGE);
            load_inputs(step + Tile::STAGES - 1, ring + write * Tile::STAGE);
        }
        cp_async_commit();
        const bf16* stage = ring + read * Tile::STAGE;
        multiply_step<Tile>(stage, stage + Tile::ROWS * GEMV_STEP, sum);
        read = read + 1 == Tile::STAGES ? 0 : read + 1;
        write = write + 1 == Tile::STAGES ? 0 : write + 1;
    }
    cp_async_wait<0>();
}

template <class Tile>
__device__ __forceinline__ void gemv(const GemmParams& p, bf16* rings) {
    constexpr int ROWS = Tile::ROWS, COLS = Tile::COLS, PITCH = Tile::PITCH;
    const int col0 = blockIdx.x * COLS, segments = blockDim.x / WARP;
    const int warp = threadIdx.x / WARP, g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
    // Short segments need fewer stages, so that more blocks fit on a multiprocessor.
    const int stages = min(Tile::STAGES, p.weight.segment / GEMV_STEP);
    float sum[COLS / 8][4] = {};
    stream_segment<Tile>(p, col0, warp, rings + warp * stages * Tile::STAGE, sum);
    // All rings are done with: their room is the sums'.
    __syncthreads();
    float* parts = reinterpret_cast<float*>(rings);
    float* own = &parts[(warp * ROWS + g) * PITCH + t * 2];
#pragma unroll
    for (int j = 0; j < COLS / 8; j++) {
        *reinterpret_cast<float2*>(own + j * 8) = make_float2(sum[j][0], sum[j][1]);
        if constexpr (ROWS == 16) {
            *reinterpret_cast<float2*>(own + 8 * PITCH + j * 8) = make_float2(sum[j][2], sum[j][3]);
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < ROWS * COLS; i += blockDim.x) {
        float* at = &parts[i / COLS * PITCH + i % COLS];
        float total = 0.0f;
        for (int s = 0; s < segments; s++) total += at[s * ROWS * PITCH];
        *at = total;
    }
    __syncthreads();
    store_tile<ROWS, COLS, PITCH>(parts, 0, col0, MatrixEpilogue(p), threadIdx.x, blockDim.x);
}

// gemv_ROWSxCOLS
#define GEMV_KERNEL(ROWS, COLS, STAGES)                                                                 \
    extern "C" __global__ void __launch_bounds__(GEMV_WARPS* WARP, 5)                                   \
        gemv_##ROWS##x##COLS(const __grid_constant__ GemmParams p) {                                    \
        DYN_SHARED(bf16, rings);                                                                        \
        gemv<GemvTile<ROWS, COLS, STAGES>>(p, rings);                                                   \
    }                                                                                                   \
    KERNEL_EXPORT(gemv_##ROWS##x##COLS)

GEMV_KERNEL(8, 8, 5);
GEMV_KERNEL(8, 16, 4);
GEMV_KERNEL(16, 8, 4);
GEMV_KERNEL(16, 16, 3);
