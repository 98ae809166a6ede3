// Linear layers on Hopper's own instructions: TMA fills a ring of stages, wgmma multiplies out of it, blocks persist over tiles.
//
// A block is a producer warpgroup, of which one thread asks for tiles, and two consumer warpgroups that take turns: while one finishes its tile
// of 128 x 128, the other has the tensor cores to itself. With the short sums of this model a tile's epilogue is as long as its products. Every
// warp finishes its own rows, sixteen rows and columns at a time, without barriers.
//
// Sums go over k ascending in steps of 16 from zero, one wgmma each. All batches of a weight that is multiplied here are multiplied here, so
// nothing depends on wgmma adding up as mma.sync does. grid = min(tiles, multiprocessors).
// Reference: PTX ISA, "Asynchronous warpgroup level matrix multiply-accumulate"; CUTLASS's warp-specialised persistent kernels.
#include "gemm.cuh"
#include "hopper.cuh"

constexpr int HOPPER_ROWS = 128, HOPPER_COLS = 128, HOPPER_STEP = 64, HOPPER_STAGES = 6, HOPPER_THREADS = 384;
constexpr int HOPPER_CHUNK = 16, HOPPER_PITCH = HOPPER_CHUNK + 8;

struct HopperShared {
    bf16 x[HOPPER_STAGES][HOPPER_ROWS * HOPPER_STEP];
    bf16 weight[HOPPER_STAGES][HOPPER_COLS * HOPPER_STEP];
    float sums[8][16 * HOPPER_PITCH];
    uint64_t full[HOPPER_STAGES], empty[HOPPER_STAGES];
};
static_assert(sizeof(HopperShared) == HOPPER_GEMM_SHARED, "what the host asks for");

#if SM90_BODY
constexpr int HOPPER_HALVES = HOPPER_ROWS / 64;
constexpr int HOPPER_STAGE_BYTES = (HOPPER_ROWS + HOPPER_COLS) * HOPPER_STEP * 2;

// Where a walk over the ring is: the parity turns when it comes around.
struct RingPlace {
    int stage = 0, parity = 0;

    __device__ __forceinline__ void advance(int steps) {
        stage += steps;
        parity ^= stage / HOPPER_STAGES & 1;
        stage %= HOPPER_STAGES;
    }
};

// One thread: asks for all tiles of this block, as far ahead as the ring allows.
__device__ __forceinline__ void produce(const HopperGemmParams& p, HopperShared& s, int tiles, int column_tiles, int steps) {
    const TensorMap* x = reinterpret_cast<const TensorMap*>(&p.x_map);
    const TensorMap* weight = reinterpret_cast<const TensorMap*>(&p.weight_map);
    tma_prefetch_map(x);
    tma_prefetch_map(weight);
    RingPlace at;
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const int row0 = tile / column_tiles * HOPPER_ROWS, col0 = tile % column_tiles * HOPPER_COLS;
        for (int step = 0; step < steps; step++, at.advance(1)) {
            mbar_wait(&s.empty[at.stage], at.parity ^ 1);
            mbar_expect_tx(&s.full[at.stage], HOPPER_STAGE_BYTES);
            tma_load_2d(s.x[at.stage], x, &s.full[at.stage], step * HOPPER_STEP, row0);
            tma_load_2d(s.weight[at.stage], weight, &s.full[at.stage], step * HOPPER_STEP, col0);
        }
    }
}

// sum = the products of the next tile on the ring. A stage goes back when the products of the next one are under way.
__device__ __forceinline__ void consume(HopperShared& s, RingPlace& at, int steps, float (&sum)[HOPPER_HALVES][HOPPER_COLS / 2]) {
    const bool speaks = threadIdx.x % 128 == 0;
    int previous = -1;
#pragma unroll 1
    for (int step = 0; step < steps; step++, at.advance(1)) {
        mbar_wait(&s.full[at.stage], at.parity);
        const bf16 *x = s.x[at.stage], *weight = s.weight[at.stage];
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < HOPPER_STEP; k += 16) {
#pragma unroll
            for (int half = 0; half < HOPPER_HALVES; half++) {
                wgmma_m64k16<HOPPER_COLS>(sum[half], wgmma_desc_k(x + half * 64 * HOPPER_STEP + k), wgmma_desc_k(weight + k),
                                          step > 0 || k > 0);
            }
        }
        wgmma_commit();
        wgmma_wait<1>();
        if (speaks && previous >= 0) mbar_arrive(&s.empty[previous]);
        previous = at.stage;
    }
    wgmma_wait<0>();
    if (speaks) mbar_arrive(&s.empty[previous]);
}

// Finishes the warp's sixteen rows from `row0`.
__device__ __forceinline__ void finish(const float (&sum)[HOPPER_COLS / 2], float* tile, int row0, int col0,
                                       const MatrixEpilogue& ep) {
    const int lane = threadIdx.x % WARP;
    float* at = &tile[lane / 4 * HOPPER_PITCH + lane % 4 * 2];
#pragma unroll 1
    for (int chunk = 0; chunk < HOPPER_COLS / HOPPER_CHUNK; chunk++) {
        // Registers have no index: of the chunks, the one whose turn it is.
#pragma unroll
        for (int c = 0; c < HOPPER_COLS / HOPPER_CHUNK; c++) {
            if (c != chunk) continue;
#pragma unroll
            for (int j = 0; j < HOPPER_CHUNK / 8; j++) {
                const int d = (c * (HOPPER_CHUNK / 8) + j) * 4;
                *reinterpret_cast<float2*>(at + j * 8) = make_float2(sum[d], sum[d + 1]);
                *reinterpret_cast<float2*>(at + j * 8 + 8 * HOPPER_PITCH) = make_float2(sum[d + 2], sum[d + 3]);
            }
        }
        __syncwarp();
        store_tile<16, HOPPER_CHUNK, HOPPER_PITCH>(tile, row0, col0 + chunk * HOPPER_CHUNK, ep, lane, WARP);
        __syncwarp();
    }
}
#endif

extern "C" __global__ void __launch_bounds__(HOPPER_THREADS, 1) gemm_hopper(const __grid_constant__ HopperGemmParams p) {
#if SM90_BODY
    DYN_SHARED(HopperShared, shared);
    HopperShared& s = *shared;
    const int columns = p.gemm.weight.gated ? p.gemm.out.cols * 2 : p.gemm.out.cols;
    const int column_tiles = (columns + HOPPER_COLS - 1) / HOPPER_COLS;
    const int tiles = (p.gemm.out.rows + HOPPER_ROWS - 1) / HOPPER_ROWS * column_tiles;
    const int steps = p.gemm.weight.cols / HOPPER_STEP;
    if (threadIdx.x == 0) {
        for (int i = 0; i < HOPPER_STAGES; i++) {
            mbar_init(&s.full[i], 1);
            mbar_init(&s.empty[i], 1);
        }
        mbar_fence_init();
    }
    __syncthreads();
    const int warpgroup = threadIdx.x / 128;
    if (warpgroup == 0) {
        registers_dec<40>();
        if (threadIdx.x == 0) produce(p, s, tiles, column_tiles, steps);
    } else {
        registers_inc<232>();
        // This warpgroup's turn comes with every second tile of the block.
        const int turn = warpgroup - 1, warp = threadIdx.x / WARP - 4;
        const MatrixEpilogue ep(p.gemm);
        RingPlace at;
        at.advance(turn * steps);
        for (int tile = blockIdx.x + turn * gridDim.x; tile < tiles; tile += 2 * gridDim.x, at.advance(steps)) {
            const int row0 = tile / column_tiles * HOPPER_ROWS, col0 = tile % column_tiles * HOPPER_COLS;
            float sum[HOPPER_HALVES][HOPPER_COLS / 2];
            consume(s, at, steps, sum);
#pragma unroll
            for (int half = 0; half < HOPPER_HALVES; half++) {
                const int row = row0 + half * 64 + warp % 4 * 16;
                if (row < p.gemm.out.rows) finish(sum[half], s.sums[warp], row, col0, ep);
            }
        }
    }
#endif
}
KERNEL_EXPORT(gemm_hopper);
