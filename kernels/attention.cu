// Self-attention inside the sequences of a packed batch: full, causal or in chunks, with or without relative positions.
//
// The softmax runs online over tiles of 64 keys that begin at the sequence's first row, so a row's bytes are those of the keys that it sees.
// With relative positions the score of query i and key j also has (q_i + v) · p[center − i + j]. For 16 queries and 64 keys these are 79 distances:
// the product with a band of 80 positions is computed as a matrix, and read back askew.
//
// Reference: Dao, "FlashAttention-2" (2023); Dai et al., "Transformer-XL" (2019), as ESPnet's `RelPositionMultiHeadedAttention` writes it.
#include "attention.cuh"

// Columns of the band, and of its rows in shared memory: lanes that read askew meet a bank at most twice.
constexpr int BAND = TILE + FRAGMENT_ROWS;
constexpr int BAND_STRIDE = BAND + 4;
// Tiles of positions in shared memory: two in use, one on its way.
constexpr int POSITION_TILES = 3;

// The product of 16 biased queries with the positions of a tile of keys, [16, 80] in the warp's `band`.
// The block's window of 128 positions lies in two position tiles, `low` and `high`; the warp's band begins at row 48 − 16 w of it.
template <int DH>
__device__ __forceinline__ void position_band(const uint32_t (&q)[DH / 16][4], const bf16* low, const bf16* high, float* band) {
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
#pragma unroll
    for (int c = 0; c < BAND / 16; c++) {
        const int row = (ATTENTION_WARPS - 1 - warp + c) * 16;
        const bf16* rows = (row < TILE ? low + row * TILE_STRIDE<DH> : high + (row - TILE) * TILE_STRIDE<DH>);
        float a[2][4] = {};
        products16<DH>(q, rows, a[0], a[1]);
#pragma unroll
        for (int n = 0; n < 2; n++) {
            float* to = band + lane / 4 * BAND_STRIDE + c * 16 + n * 8 + lane % 4 * 2;
            *reinterpret_cast<float2*>(to) = make_float2(a[n][0], a[n][1]);
            *reinterpret_cast<float2*>(to + 8 * BAND_STRIDE) = make_float2(a[n][2], a[n][3]);
        }
    }
}

// Adds the band, read askew: the score of query r and key c has the band's column 15 + c − r.
__device__ __forceinline__ void add_band(const float* band, float (&s)[8][4]) {
    const int lane = threadIdx.x % WARP;
#pragma unroll
    for (int n = 0; n < 8; n++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const int r = lane / 4 + e / 2 * 8, c = n * 8 + lane % 4 * 2 + e % 2;
            s[n][e] += band[r * BAND_STRIDE + FRAGMENT_ROWS - 1 + c - r];
        }
    }
}

// One block per 64 queries, head and sequence. Dynamic shared memory: two tiles of keys and two of values; with positions, three tiles of them and f32
// bands [warps, 16, BAND_STRIDE].
template <int DH, bool RELATIVE>
__device__ __forceinline__ void attention(const AttentionParams& p, bf16* shared) {
    constexpr int PIECES = DH / 8, STEP = ATTENTION_THREADS / PIECES, ROWS = ATTENTION_WARPS * FRAGMENT_ROWS;
    Unit u;
    if (!find_unit(p, ROWS, u)) return;
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, dh = p.head_dim, d = p.heads * dh;
    const int head = u.head * dh, end = visible_keys(min(u.first + ROWS, u.end) - 1, u.rows, u.chunk);
    const int tiles = (end + TILE - 1) / TILE, warp_first = u.first + warp * FRAGMENT_ROWS;
    const int warp_end = warp_first < u.end ? visible_keys(min(warp_first + FRAGMENT_ROWS, u.end) - 1, u.rows, u.chunk) : 0;

    int visible[2];
    bool there[2];
    size_t at[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int row = warp_first + h * 8 + g;
        there[h] = row < u.end;
        visible[h] = there[h] ? visible_keys(row, u.rows, u.chunk) : 0;
        at[h] = there[h] ? size_t(u.begin + row) * p.qkv.cols + head : 0;
    }
    uint32_t q[DH / 16][4], q_position[RELATIVE ? DH / 16 : 1][4];
    if constexpr (RELATIVE) {
        load_biased_queries<DH>(p.qkv, p.content_bias, head, at, there, dh, q);
        load_biased_queries<DH>(p.qkv, p.position_bias, head, at, there, dh, q_position);
    } else {
        load_queries<DH>(p.qkv, at, there, dh, q);
    }

    const int piece = threadIdx.x % PIECES * 8, lane_row = threadIdx.x / PIECES;
    const bf16* keys_from = pointer<const bf16>(p.qkv.data) + size_t(u.begin) * p.qkv.cols + d + head + piece;
    const auto load = [&](int tile) {
        bf16* to = shared + tile % 2 * 2 * TILE_VALUES<DH> + lane_row * TILE_STRIDE<DH> + piece;
#pragma unroll
        for (int i = 0; i < TILE; i += STEP) {
            const int j = tile * TILE + i + lane_row;
            const bool is = j < end && piece < dh;
            const bf16* from = keys_from + (is ? j * p.qkv.cols : 0);
            cp_async16(to + i * TILE_STRIDE<DH>, from, is ? 16 : 0);
            cp_async16(to + TILE_VALUES<DH> + i * TILE_STRIDE<DH>, is ? from + d : from, is ? 16 : 0);
        }
    };
    // Tile n of positions: distances from 64 (n − 1) + 1 − (the block's first query) on. A tile of keys needs its own number and the next.
    bf16* position_tiles = shared + 4 * TILE_VALUES<DH>;
    const auto position_tile = [&](int n) { return position_tiles + n % POSITION_TILES * TILE_VALUES<DH>; };
    const auto load_positions = [&](int n) {
#pragma unroll
        for (int i = 0; i < TILE; i += STEP) {
            const int position = p.center + (n - 1) * TILE + 1 - u.first + i + lane_row;
            const bool is = position >= 0 && position < p.positions.rows && piece < dh;
            const bf16* from = pointer<const bf16>(p.positions.data) + (is ? size_t(position) * d + head + piece : 0);
            cp_async16(position_tile(n) + (i + lane_row) * TILE_STRIDE<DH> + piece, from, is ? 16 : 0);
        }
    };
    float* band = reinterpret_cast<float*>(position_tiles + POSITION_TILES * TILE_VALUES<DH>) + warp * FRAGMENT_ROWS * BAND_STRIDE;

    float largest[2] = {-INFINITY, -INFINITY}, total[2] = {0.0f, 0.0f}, sums[DH / 8][4] = {};
    load(0);
    if constexpr (RELATIVE) load_positions(0), load_positions(1);
    cp_async_commit();
    for (int tile = 0; tile < tiles; tile++) {
        if (tile + 1 < tiles) {
            load(tile + 1);
            if constexpr (RELATIVE) load_positions(tile + 2);
        }
        cp_async_commit();
        cp_async_wait<1>();
        __syncthreads();
        if (tile * TILE < warp_end) {
            const bf16* keys = shared + tile % 2 * 2 * TILE_VALUES<DH>;
            float s[8][4], l[2], keep[2];
            if constexpr (RELATIVE) {
                position_band<DH>(q_position, position_tile(tile), position_tile(tile + 1), band);
                __syncwarp();
            }
            tile_scores<DH>(q, keys, s);
            if constexpr (RELATIVE) add_band(band, s);
            tile_weights(s, {visible[0] - tile * TILE, visible[1] - tile * TILE}, p.scale * LOG2_E, largest, l, keep);
#pragma unroll
            for (int h = 0; h < 2; h++) total[h] = fmaf(total[h], keep[h], l[h]);
#pragma unroll
            for (int n = 0; n < DH / 8; n++) {
#pragma unroll
                for (int e = 0; e < 4; e++) sums[n][e] *= keep[e / 2];
            }
            uint32_t w[4][4];
            pack_weights(s, w);
            add_weighted<DH, DH / 8>(w, keys + TILE_VALUES<DH>, sums);
        }
        __syncthreads();
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const float inverse = 1.0f / quad_sum(total[h]);
        if (!there[h]) continue;
        const size_t to = size_t(u.out + warp_first + h * 8 + g) * p.out.cols + head;
#pragma unroll
        for (int n = 0; n < DH / 8; n++) {
            const int col = n * 8 + lane % 4 * 2;
            if (col < dh) store_pair(p.out, to + col, sums[n][2 * h] * inverse, sums[n][2 * h + 1] * inverse);
        }
    }
}

#define ATTENTION_KERNEL(NAME, DH, RELATIVE)                                                                                  \
    extern "C" __global__ void __launch_bounds__(ATTENTION_THREADS) NAME##_##DH(const __grid_constant__ AttentionParams p) { \
        follow_predecessor();                                                                                                 \
        DYN_SHARED(bf16, shared);                                                                                             \
        attention<DH, RELATIVE>(p, shared);                                                                                   \
    }                                                                                                                         \
    KERNEL_EXPORT(NAME##_##DH);

ATTENTION_KERNEL(attention, 32, false)
ATTENTION_KERNEL(attention, 64, false)
ATTENTION_KERNEL(attention, 128, false)
ATTENTION_KERNEL(attention_relative, 32, true)
ATTENTION_KERNEL(attention_relative, 64, true)
ATTENTION_KERNEL(attention_relative, 128, true)

// One block, a warp, per query and head, of any dtype and size. Dynamic shared memory: plain_values(Dh) f32.
extern "C" __global__ void __launch_bounds__(WARP) attention_plain(const __grid_constant__ AttentionParams p) {
    follow_predecessor();
    DYN_SHARED(float, q);
    const int lane = threadIdx.x, dh = p.head_dim, d = p.heads * dh;
    const int query = blockIdx.x / p.heads, head = blockIdx.x % p.heads * dh;
    const int b = sequence_of(ids(p.query_offsets), p.sequences, query);
    const int begin = ids(p.offsets)[b], end = ids(p.offsets)[b + 1], i = end - begin - (ids(p.query_offsets)[b + 1] - query);
    const bool relative = p.positions.data != 0;
    float *q_position = q + dh, *sums = q + 2 * dh;
    for (int c = lane; c < dh; c += WARP) {
        const float v = load1(p.qkv, size_t(begin + i) * p.qkv.cols + head + c);
        q[c] = relative ? v + load1(p.content_bias, head + c) : v;
        q_position[c] = relative ? v + load1(p.position_bias, head + c) : 0.0f;
    }
    __syncwarp();
    const auto score = [&](int j) {
        float s = plain_dot(q, p.qkv, size_t(begin + j) * p.qkv.cols + d + head, dh);
        if (relative) s += plain_dot(q_position, p.positions, size_t(p.center + j - i) * d + head, dh);
        return s * p.scale;
    };
    const auto value = [&](int j) { return size_t(begin + j) * p.qkv.cols + 2 * d + head; };
    const int count = visible_keys(i, end - begin, ids(p.chunks)[b]);
    const float inverse = plain_attention(count, dh, p.qkv, score, value, sums, sums + dh);
    for (int c = lane; c < dh; c += WARP) store1(p.out, size_t(query) * p.out.cols + head + c, sums[c] * inverse);
}
KERNEL_EXPORT(attention_plain);
