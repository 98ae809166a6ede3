// The block tile of all products on mma.sync: linear layers (gemm.cu) and convolutions as implicit products (conv.cu).
//
// A block multiplies BM rows of activations by BN rows of a packed weight. Both go through a ring of shared memory that
// cp.async fills STAGES - 1 steps ahead; ldmatrix reads it without bank conflicts (16-byte units are permuted within a row).
// The sums leave through shared memory, so that outputs, residuals and biases are read and written 16 bytes at a time.
//
// Order of summation. mma.m16n8k16 is applied to k ascending in steps of 16, from zero at the start of every segment of the weight, and the
// segments are added in ascending order. An element of a product depends on its row and its column alone, so an output has the same bits for
// every tile size and whichever block or warp a segment falls to: the batch may choose the kernel.
//
// What a caller brings:
// - a loader of activations: `bind(slot, row)` once per row, then, with ASYNC, `address(slot, k, bytes)`, where eight values from column k
//   are (bytes 16, or 0 for zeros), or else `fetch(slot, k) -> Raw` (global loads only) and `convert(raw, slot, k) -> uint4` (eight bf16);
// - an epilogue: `gated()`, `bias(col, v)`, `store(row, col, v)` for eight columns from `col`; it skips what lies outside.
#pragma once
#include "common.cuh"
#include "mma.cuh"

template <int BM_, int BN_, int BK_, int WARPS_M_, int WARPS_N_, int STAGES_>
struct GemmTile {
    static constexpr int BM = BM_, BN = BN_, BK = BK_, WARPS_M = WARPS_M_, WARPS_N = WARPS_N_, STAGES = STAGES_;
    static constexpr int THREADS = WARPS_M * WARPS_N * WARP;
    // 16 x 8 products of a warp.
    static constexpr int MI = BM / WARPS_M / 16, NI = BN / WARPS_N / 8;
    // 16-byte units of a row of a stage, and how many a thread copies.
    static constexpr int UNITS = BK / 8, A_SLOTS = BM * UNITS / THREADS, B_SLOTS = BN * UNITS / THREADS;
    static constexpr int ROWS_PER_SLOT = THREADS / UNITS;
    static constexpr int STAGE = (BM + BN) * BK;
    // Pitch of the f32 tile of sums: eight more values keep its rows in different banks.
    static constexpr int PITCH = BN + 8;
    static constexpr int RING_BYTES = STAGES * STAGE * 2, SUMS_BYTES = BM * PITCH * 4;
    static constexpr int SHARED_BYTES = RING_BYTES > SUMS_BYTES ? RING_BYTES : SUMS_BYTES;

    static_assert(BK == 32 || BK == 64, "the permutation of units is made for these");
    static_assert(A_SLOTS * THREADS == BM * UNITS && B_SLOTS * THREADS == BN * UNITS, "whole copies");
    static_assert(NI % 2 == 0 && STAGES >= 2, "pairs of column blocks; a stage to compute and one to fill");
};

// Where unit `unit` of row `row` is in a tile of rows of BK values.
template <int BK>
__device__ __forceinline__ int tile_at(int row, int unit) {
    const int permuted = BK == 64 ? unit ^ (row & 7) : unit ^ ((row >> 1) & 3);
    return row * BK + permuted * 8;
}

// Rows of a row-major bf16 matrix whose columns are a multiple of eight.
template <int SLOTS>
struct RowLoader {
    static constexpr bool ASYNC = true;
    Mat x;
    const bf16* rows[SLOTS];

    __device__ __forceinline__ explicit RowLoader(const Mat& x_) : x(x_) {}
    __device__ __forceinline__ void bind(int slot, int row) {
        rows[slot] = row < x.rows ? pointer<const bf16>(x.data) + size_t(row) * x.cols : nullptr;
    }
    __device__ __forceinline__ const void* address(int slot, int k, int& bytes) const {
        const bool valid = rows[slot] != nullptr && k < x.cols;
        bytes = valid ? 16 : 0;
        return valid ? rows[slot] + k : pointer<const bf16>(x.data);
    }
};

// Asks for step `k` of the weight's rows from `col0`.
template <class Tile>
__device__ __forceinline__ void load_weight(const PackedWeight& w, int col0, int k, bf16* stage) {
    const int first = threadIdx.x / Tile::UNITS, unit = threadIdx.x % Tile::UNITS;
    const bf16* data = pointer<const bf16>(w.data);
#pragma unroll
    for (int i = 0; i < Tile::B_SLOTS; i++) {
        const int row = first + i * Tile::ROWS_PER_SLOT;
        const bool valid = col0 + row < w.rows;
        const bf16* from = data + size_t(valid ? col0 + row : 0) * w.cols + k + unit * 8;
        cp_async16(&stage[tile_at<Tile::BK>(row, unit)], from, valid ? 16 : 0);
    }
}

// Asks for step `k` of the activations.
template <class Tile, class Loader>
__device__ __forceinline__ void load_activations(const Loader& a, int k, bf16* stage) {
    const int first = threadIdx.x / Tile::UNITS, unit = threadIdx.x % Tile::UNITS;
#pragma unroll
    for (int i = 0; i < Tile::A_SLOTS; i++) {
        int bytes;
        const void* from = a.address(i, k + unit * 8, bytes);
        cp_async16(&stage[tile_at<Tile::BK>(first + i * Tile::ROWS_PER_SLOT, unit)], from, bytes);
    }
}

// sum += the products of one stage.
template <class Tile>
__device__ __forceinline__ void multiply_stage(const bf16* a_tile, const bf16* b_tile,
                                               float (&sum)[Tile::MI][Tile::NI][4]) {
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int a_row = warp / Tile::WARPS_N * Tile::MI * 16 + lane % 16;
    const int b_row = warp % Tile::WARPS_N * Tile::NI * 8 + lane / 16 * 8 + lane % 8;
#pragma unroll
    for (int step = 0; step < Tile::BK / 16; step++) {
        uint32_t a[Tile::MI][4], b[Tile::NI][2];
#pragma unroll
        for (int i = 0; i < Tile::MI; i++) {
            ldmatrix_x4(a[i], &a_tile[tile_at<Tile::BK>(a_row + i * 16, step * 2 + lane / 16)]);
        }
#pragma unroll
        for (int j = 0; j < Tile::NI; j += 2) {
            uint32_t pair[4];
            ldmatrix_x4(pair, &b_tile[tile_at<Tile::BK>(b_row + j * 8, step * 2 + lane / 8 % 2)]);
            b[j][0] = pair[0], b[j][1] = pair[1], b[j + 1][0] = pair[2], b[j + 1][1] = pair[3];
        }
#pragma unroll
        for (int i = 0; i < Tile::MI; i++) {
#pragma unroll
            for (int j = 0; j < Tile::NI; j++) mma_m16n8k16_bf16(sum[i][j], a[i], b[j]);
        }
    }
}

// total += part; part = 0
template <int MI, int NI>
__device__ __forceinline__ void close_segment(float (&total)[MI][NI][4], float (&part)[MI][NI][4]) {
#pragma unroll
    for (int i = 0; i < MI; i++) {
#pragma unroll
        for (int j = 0; j < NI; j++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                total[i][j][e] += part[i][j][e];
                part[i][j][e] = 0.0f;
            }
        }
    }
}

// Activations on their way through registers: one slot's values for every slot.
template <class Tile, class Loader, bool ASYNC = Loader::ASYNC>
struct StagedActivations {
    __device__ __forceinline__ void fetch(const Loader& a, int k, bf16* stage) { load_activations<Tile>(a, k, stage); }
    __device__ __forceinline__ void put(const Loader&, int, bf16*) {}
};

template <class Tile, class Loader>
struct StagedActivations<Tile, Loader, false> {
    typename Loader::Raw raw[Tile::A_SLOTS];

    __device__ __forceinline__ void fetch(const Loader& a, int k, bf16*) {
#pragma unroll
        for (int i = 0; i < Tile::A_SLOTS; i++) raw[i] = a.fetch(i, k + threadIdx.x % Tile::UNITS * 8);
    }
    __device__ __forceinline__ void put(const Loader& a, int k, bf16* stage) {
        const int first = threadIdx.x / Tile::UNITS, unit = threadIdx.x % Tile::UNITS;
#pragma unroll
        for (int i = 0; i < Tile::A_SLOTS; i++) {
            *reinterpret_cast<uint4*>(&stage[tile_at<Tile::BK>(first + i * Tile::ROWS_PER_SLOT, unit)]) =
                a.convert(raw[i], i, k + unit * 8);
        }
    }
};

// sum = the product of the rows from `row0` with the weight's rows from `col0`, over columns [k_begin, k_end), multiples of 64 that lie
// in one segment unless SEGMENTED. All threads of the block; `shared` is free again after a barrier.
template <class Tile, bool SEGMENTED, class Loader>
__device__ __forceinline__ void gemm_product(Loader& a, const PackedWeight& w, int row0, int col0, int k_begin, int k_end,
                                             bf16* shared, float (&sum)[Tile::MI][Tile::NI][4]) {
#pragma unroll
    for (int i = 0; i < Tile::A_SLOTS; i++) {
        a.bind(i, row0 + threadIdx.x / Tile::UNITS + i * Tile::ROWS_PER_SLOT);
    }
    float part[SEGMENTED ? Tile::MI : 1][SEGMENTED ? Tile::NI : 1][4] = {};
#pragma unroll
    for (int i = 0; i < Tile::MI; i++) {
#pragma unroll
        for (int j = 0; j < Tile::NI; j++) {
#pragma unroll
            for (int e = 0; e < 4; e++) sum[i][j][e] = 0.0f;
        }
    }
    const int steps = (k_end - k_begin) / Tile::BK, segment_steps = w.segment / Tile::BK;
    StagedActivations<Tile, Loader> staged;
#pragma unroll
    for (int s = 0; s < Tile::STAGES - 1; s++) {
        if (s < steps) {
            bf16* stage = shared + s * Tile::STAGE;
            const int k = k_begin + s * Tile::BK;
            load_weight<Tile>(w, col0, k, stage + Tile::BM * Tile::BK);
            staged.fetch(a, k, stage);
            staged.put(a, k, stage);
        }
        cp_async_commit();
    }
    int read = 0, write = Tile::STAGES - 1, until_close = segment_steps;
#pragma unroll 1
    for (int step = 0; step < steps; step++) {
        cp_async_wait<Tile::STAGES - 2>();
        // This step's stage has landed for all, and all are done with the one before it, which is filled next.
        __syncthreads();
        const bool more = step + Tile::STAGES - 1 < steps;
        const int k = k_begin + (step + Tile::STAGES - 1) * Tile::BK;
        bf16* next = shared + write * Tile::STAGE;
        if (more) {
            load_weight<Tile>(w, col0, k, next + Tile::BM * Tile::BK);
            staged.fetch(a, k, next);
        }
        cp_async_commit();
        const bf16* now = shared + read * Tile::STAGE;
        if constexpr (SEGMENTED) {
            multiply_stage<Tile>(now, now + Tile::BM * Tile::BK, part);
            if (--until_close == 0) {
                close_segment(sum, part);
                until_close = segment_steps;
            }
        } else {
            multiply_stage<Tile>(now, now + Tile::BM * Tile::BK, sum);
        }
        if (more) staged.put(a, k, next);
        read = read + 1 == Tile::STAGES ? 0 : read + 1;
        write = write + 1 == Tile::STAGES ? 0 : write + 1;
    }
    if constexpr (SEGMENTED) {
        if (until_close != segment_steps) close_segment(sum, part);
    }
    cp_async_wait<0>();
    __syncthreads();
}

// v = silu(v) up
__device__ __forceinline__ void gate(float (&v)[8], const float (&up)[8]) {
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = v[i] * sigmoid(v[i]) * up[i];
}

// Eight f32 of shared memory, 16-byte aligned.
__device__ __forceinline__ void load_sums(const float* from, float (&v)[8]) {
    const float4 low = reinterpret_cast<const float4*>(from)[0], high = reinterpret_cast<const float4*>(from)[1];
    v[0] = low.x, v[1] = low.y, v[2] = low.z, v[3] = low.w;
    v[4] = high.x, v[5] = high.y, v[6] = high.z, v[7] = high.w;
}

// Finishes a tile of sums in shared memory, [rows][pitch], whose first element is out[row0][col0] before gating. `thread` of `threads` take
// part; the tile is complete when this is called.
template <int ROWS, int COLS, int PITCH, class Epilogue>
__device__ __forceinline__ void store_tile(const float* tile, int row0, int col0, const Epilogue& ep, int thread, int threads) {
    const int width = ep.gated() ? 16 : 8, units = COLS / width;
#pragma unroll 1
    for (int i = thread; i < ROWS * units; i += threads) {
        const int row = i / units, col = i % units * width;
        float v[8];
        load_sums(&tile[row * PITCH + col], v);
        ep.bias(col0 + col, v);
        if (ep.gated()) {
            float up[8];
            load_sums(&tile[row * PITCH + col + 8], up);
            ep.bias(col0 + col + 8, up);
            gate(v, up);
            ep.store(row0 + row, (col0 + col) / 2, v);
        } else {
            ep.store(row0 + row, col0 + col, v);
        }
    }
}

// Brings the sums of a block into shared memory and finishes them.
template <class Tile, class Epilogue>
__device__ __forceinline__ void gemm_store(const float (&sum)[Tile::MI][Tile::NI][4], float* tile, int row0, int col0,
                                           const Epilogue& ep) {
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int row = warp / Tile::WARPS_N * Tile::MI * 16 + lane / 4;
    const int col = warp % Tile::WARPS_N * Tile::NI * 8 + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < Tile::MI; i++) {
#pragma unroll
        for (int j = 0; j < Tile::NI; j++) {
            float* at = &tile[(row + i * 16) * Tile::PITCH + col + j * 8];
            *reinterpret_cast<float2*>(at) = make_float2(sum[i][j][0], sum[i][j][1]);
            *reinterpret_cast<float2*>(at + 8 * Tile::PITCH) = make_float2(sum[i][j][2], sum[i][j][3]);
        }
    }
    __syncthreads();
    store_tile<Tile::BM, Tile::BN, Tile::PITCH>(tile, row0, col0, ep, threadIdx.x, Tile::THREADS);
}

// v = act(v) of channels col..col+7, those beyond `channels` undefined.
__device__ __forceinline__ void activate8(const ActParams& act, float (&v)[8], int col, int channels) {
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = activate(act, v[i], min(col + i, channels - 1));
}

// Stores the products of eight columns of `out` from `col`, a multiple of eight, as an epilogue other than SILU_MUL says.
__device__ __forceinline__ void store_products(const EpilogueParams& ep, const Mat& out, int row, int col, float (&v)[8]) {
    const size_t at = size_t(row) * out.cols + col;
    if (ep.kind == EPILOGUE_ACT) activate8(ep.act, v, col, out.cols);
    const bool whole = out.cols % 8 == 0;
    if (ep.kind >= EPILOGUE_ADD && ep.kind <= EPILOGUE_ACCUMULATE_SCALED) {
        Mat old = out;
        if (ep.kind == EPILOGUE_ADD) old.data = ep.residual.data, old.dtype = ep.residual.dtype;
        const float scale = ep.kind == EPILOGUE_ACCUMULATE_SCALED ? ep.scale : 1.0f;
        float r[8];
        if (whole) {
            load8(old, at, r);
        } else {
#pragma unroll
            for (int i = 0; i < 8; i++) r[i] = col + i < out.cols ? load1(old, at + i) : 0.0f;
        }
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] = fmaf(scale, v[i], r[i]);
    }
    if (whole) {
        store8(out, at, v);
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            if (col + i < out.cols) store1(out, at + i, v[i]);
        }
    }
}

// The epilogue of a linear layer: rows of the product are rows of `out`.
struct MatrixEpilogue {
    const Mat& out;
    const EpilogueParams& params;
    const PackedWeight& weight;

    __device__ __forceinline__ explicit MatrixEpilogue(const GemmParams& p)
        : out(p.out), params(p.epilogue), weight(p.weight) {}
    __device__ __forceinline__ bool gated() const { return params.kind == EPILOGUE_SILU_MUL; }
    // The biases are padded like the weight's rows; a tile may be wider.
    __device__ __forceinline__ void bias(int col, float (&v)[8]) const {
        if (col >= weight.rows) return;
        const float4* b = reinterpret_cast<const float4*>(pointer<const float>(weight.bias) + col);
        const float4 low = b[0], high = b[1];
        v[0] += low.x, v[1] += low.y, v[2] += low.z, v[3] += low.w;
        v[4] += high.x, v[5] += high.y, v[6] += high.z, v[7] += high.w;
    }
    __device__ __forceinline__ void store(int row, int col, float (&v)[8]) const {
        if (row < out.rows && col < out.cols) store_products(params, out, row, col, v);
    }
};
