// Linear layers on Hopper's own instructions: TMA fills a ring of stages, wgmma multiplies out of it, blocks persist over tiles.
//
// A block is a producer warpgroup, of which one thread asks for tiles, and two consumer warpgroups that take turns: while one finishes its tile,
// the other has the tensor cores to itself. (Without the turns one would wait for a stage whose earlier use the other has not even seen: a
// barrier tells only this phase from the next.) With the short sums of this model a tile's epilogue is as long as its products. Every warp finishes
// its own rows, sixteen rows and columns at a time, without barriers. Tiles are 128 x 128, or 64 x 64 where large ones would leave
// multiprocessors idle.
//
// Sums go over k ascending in steps of 16 from zero, one wgmma each, in tiles of either size. All batches of a weight that is multiplied here are
// multiplied here, so nothing depends on wgmma adding up as mma.sync does. grid = min(tiles, multiprocessors).
// Reference: PTX ISA, "Asynchronous warpgroup level matrix multiply-accumulate"; CUTLASS's warp-specialised persistent kernels.
#include "gemm.cuh"
#include "hopper.cuh"

constexpr int HOPPER_STEP = 64, HOPPER_THREADS = 384, HOPPER_CONSUMER_WARPS = 8;
constexpr int HOPPER_CHUNK = 16, HOPPER_PITCH = HOPPER_CHUNK + 8;

template <int ROWS_, int COLS_, int STAGES_>
struct HopperTile {
    static constexpr int ROWS = ROWS_, COLS = COLS_, STAGES = STAGES_;
    // Rows of a wgmma are 64, its accumulators COLS / 2.
    static constexpr int HALVES = ROWS / 64, SUMS = COLS / 2;
    static constexpr int STAGE_BYTES = (ROWS + COLS) * HOPPER_STEP * 2;
    bf16 x[STAGES][ROWS * HOPPER_STEP];
    bf16 weight[STAGES][COLS * HOPPER_STEP];
    float sums[HOPPER_CONSUMER_WARPS][16 * HOPPER_PITCH];
    uint64_t full[STAGES], empty[STAGES];
    // Of the consumers: the other's products are done.
    uint64_t turn[2];
};

using HopperLarge = HopperTile<128, 128, 6>;
using HopperSmall = HopperTile<64, 64, 6>;
static_assert(sizeof(HopperLarge) == HOPPER_LARGE_SHARED && sizeof(HopperSmall) == HOPPER_SMALL_SHARED, "what the host asks for");

#if SM90_BODY
// Rows of a TMA box, of either operand.
constexpr int HOPPER_BOX = 64;

// Where a walk over the ring is: the parity turns when it comes around.
template <int STAGES>
struct RingPlace {
    int stage = 0, parity = 0;

    __device__ __forceinline__ void advance(int steps) {
        stage += steps;
        parity ^= stage / STAGES & 1;
        stage %= STAGES;
    }
};

// The tiles of a launch, column by column of one row of tiles, then the next.
struct HopperGrid {
    int columns, tiles, steps;

    template <class Tile>
    __device__ __forceinline__ static HopperGrid of(const GemmParams& p) {
        const int width = p.weight.gated ? p.out.cols * 2 : p.out.cols;
        const int columns = (width + Tile::COLS - 1) / Tile::COLS;
        return {columns, (p.out.rows + Tile::ROWS - 1) / Tile::ROWS * columns, p.weight.cols / HOPPER_STEP};
    }
};

// One thread: asks for all tiles of this block, as far ahead as the ring allows.
template <class Tile>
__device__ __forceinline__ void produce(const HopperGemmParams& p, Tile& s, const HopperGrid& grid) {
    const TensorMap* x = reinterpret_cast<const TensorMap*>(&p.x_map);
    const TensorMap* weight = reinterpret_cast<const TensorMap*>(&p.weight_map);
    tma_prefetch_map(x);
    tma_prefetch_map(weight);
    RingPlace<Tile::STAGES> at;
    for (int tile = blockIdx.x; tile < grid.tiles; tile += gridDim.x) {
        const int row0 = tile / grid.columns * Tile::ROWS, col0 = tile % grid.columns * Tile::COLS;
        for (int step = 0; step < grid.steps; step++, at.advance(1)) {
            uint64_t* full = &s.full[at.stage];
            mbar_wait(&s.empty[at.stage], at.parity ^ 1);
            mbar_expect_tx(full, Tile::STAGE_BYTES);
#pragma unroll
            for (int i = 0; i < Tile::ROWS; i += HOPPER_BOX) {
                tma_load_2d(&s.x[at.stage][i * HOPPER_STEP], x, full, step * HOPPER_STEP, row0 + i);
            }
#pragma unroll
            for (int i = 0; i < Tile::COLS; i += HOPPER_BOX) {
                tma_load_2d(&s.weight[at.stage][i * HOPPER_STEP], weight, full, step * HOPPER_STEP, col0 + i);
            }
        }
    }
}

// sum = the products of the next tile on the ring. A stage goes back when the products of the next one are under way.
template <class Tile>
__device__ __forceinline__ void consume(Tile& s, RingPlace<Tile::STAGES>& at, int steps, float (&sum)[Tile::HALVES][Tile::SUMS]) {
    const bool speaks = threadIdx.x % WARP == 0;
    int previous = -1;
#pragma unroll 1
    for (int step = 0; step < steps; step++, at.advance(1)) {
        mbar_wait(&s.full[at.stage], at.parity);
        const bf16 *x = s.x[at.stage], *weight = s.weight[at.stage];
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < HOPPER_STEP; k += 16) {
#pragma unroll
            for (int half = 0; half < Tile::HALVES; half++) {
                wgmma_m64k16<Tile::COLS>(sum[half], wgmma_desc_k(x + half * 64 * HOPPER_STEP + k), wgmma_desc_k(weight + k),
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
template <int SUMS>
__device__ __forceinline__ void finish(const float (&sum)[SUMS], float* tile, int row0, int col0, const MatrixEpilogue& ep) {
    constexpr int CHUNKS = 2 * SUMS / HOPPER_CHUNK;
    const int lane = threadIdx.x % WARP;
    float* at = &tile[lane / 4 * HOPPER_PITCH + lane % 4 * 2];
#pragma unroll 1
    for (int chunk = 0; chunk < CHUNKS; chunk++) {
        // Registers have no index: of the chunks, the one whose turn it is.
#pragma unroll
        for (int c = 0; c < CHUNKS; c++) {
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

template <class Tile>
__device__ __forceinline__ void gemm_on_hopper(const HopperGemmParams& p, Tile& s) {
    const HopperGrid grid = HopperGrid::of<Tile>(p.gemm);
    if (threadIdx.x == 0) {
        for (int i = 0; i < Tile::STAGES; i++) {
            mbar_init(&s.full[i], 1);
            mbar_init(&s.empty[i], 4);
        }
        mbar_init(&s.turn[0], 4);
        mbar_init(&s.turn[1], 4);
        mbar_fence_init();
    }
    __syncthreads();
    const int warpgroup = threadIdx.x / 128;
    if (warpgroup == 0) {
        registers_dec<40>();
        if (threadIdx.x == 0) produce(p, s, grid);
        return;
    }
    registers_inc<232>();
    // This warpgroup's turn comes with every second tile of the block; the first may start at once.
    const int turn = warpgroup - 1, warp = threadIdx.x / WARP - 4;
    int parity = turn ^ 1;
    const MatrixEpilogue ep(p.gemm);
    RingPlace<Tile::STAGES> at;
    at.advance(turn * grid.steps);
    for (int tile = blockIdx.x + turn * gridDim.x; tile < grid.tiles; tile += 2 * gridDim.x, at.advance(grid.steps)) {
        const int row0 = tile / grid.columns * Tile::ROWS, col0 = tile % grid.columns * Tile::COLS;
        float sum[Tile::HALVES][Tile::SUMS];
        mbar_wait(&s.turn[turn], parity);
        parity ^= 1;
        consume(s, at, grid.steps, sum);
        if (threadIdx.x % WARP == 0) mbar_arrive(&s.turn[turn ^ 1]);
#pragma unroll
        for (int half = 0; half < Tile::HALVES; half++) {
            const int row = row0 + half * 64 + warp % 4 * 16;
            if (row < p.gemm.out.rows) finish(sum[half], s.sums[warp], row, col0, ep);
        }
    }
}
#endif

extern "C" __global__ void __launch_bounds__(HOPPER_THREADS, 1) gemm_hopper_large(const __grid_constant__ HopperGemmParams p) {
    follow_predecessor();
#if SM90_BODY
    DYN_SHARED(HopperLarge, shared);
    gemm_on_hopper(p, *shared);
#endif
}
KERNEL_EXPORT(gemm_hopper_large);

extern "C" __global__ void __launch_bounds__(HOPPER_THREADS, 1) gemm_hopper_small(const __grid_constant__ HopperGemmParams p) {
    follow_predecessor();
#if SM90_BODY
    DYN_SHARED(HopperSmall, shared);
    gemm_on_hopper(p, *shared);
#endif
}
KERNEL_EXPORT(gemm_hopper_small);
