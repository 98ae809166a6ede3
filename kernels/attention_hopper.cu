// Self-attention inside sequences on Hopper's warpgroup instructions: heads of 64, without relative positions. The rest is as in attention.cu.
//
// Tiles lie in shared memory as wgmma reads them: rows of 128 bytes whose 16-byte pieces are permuted by the row's number modulo 8.
// They come by cp.async rather than TMA, which would also read the rows of the sequence behind this one.
//
// Reference: Shah et al., "FlashAttention-3" (2024).
#include "attention.cuh"
#include "hopper.cuh"

constexpr int HOPPER_THREADS = 256;

// One block per 128 queries, head and sequence; a warpgroup takes 64 of them. Dynamic shared memory: two tiles of keys and two of values.
extern "C" __global__ void __launch_bounds__(HOPPER_THREADS, 2) attention_hopper_64(const __grid_constant__ AttentionParams p) {
    follow_predecessor();
#if SM90_BODY
    DYN_SHARED(bf16, shared);
    constexpr int DH = 64, PIECES = DH / 8, STEP = HOPPER_THREADS / PIECES, HOPPER_TILE = TILE * DH;
    constexpr int HOPPER_ROWS = HOPPER_THREADS / WARP * FRAGMENT_ROWS, WARPGROUP_ROWS = 4 * FRAGMENT_ROWS;
    Unit u;
    if (!find_unit(p, HOPPER_ROWS, u)) return;
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, d = p.heads * DH, head = u.head * DH;
    const int last = min(u.first + HOPPER_ROWS, u.end) - 1;
    const int end = visible_keys(last, u.rows, u.chunk), tiles = (end + TILE - 1) / TILE;
    const int group_first = u.first + warp / 4 * WARPGROUP_ROWS;
    const int group_end = group_first < u.end ? visible_keys(min(group_first + WARPGROUP_ROWS, u.end) - 1, u.rows, u.chunk) : 0;

    int row[2], visible[2];
    bool there[2];
    size_t at[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        row[h] = u.first + warp * FRAGMENT_ROWS + h * 8 + lane / 4;
        there[h] = row[h] < u.end;
        visible[h] = there[h] ? visible_keys(row[h], u.rows, u.chunk) : 0;
        at[h] = there[h] ? size_t(u.begin + row[h]) * p.qkv.cols + head : 0;
    }
    uint32_t q[DH / 16][4];
    load_queries<DH>(p.qkv, at, there, DH, q);

    const auto load = [&](int tile) {
        const int piece = threadIdx.x % PIECES;
        bf16* keys = shared + tile % 2 * 2 * HOPPER_TILE;
#pragma unroll
        for (int i = 0; i < TILE / STEP; i++) {
            const int key = i * STEP + threadIdx.x / PIECES, j = tile * TILE + key;
            const bool is = j < end;
            const bf16* from = pointer<const bf16>(p.qkv.data) + (is ? size_t(u.begin + j) * p.qkv.cols + d + head + piece * 8 : 0);
            bf16* to = keys + key * DH + (piece ^ key % 8) * 8;
            cp_async16(to, from, is ? 16 : 0);
            cp_async16(to + HOPPER_TILE, is ? from + d : from, is ? 16 : 0);
        }
    };
    float largest[2] = {-INFINITY, -INFINITY}, total[2] = {0.0f, 0.0f}, sums[DH / 2];
#pragma unroll
    for (int i = 0; i < DH / 2; i++) sums[i] = 0.0f;
    load(0);
    cp_async_commit();
    for (int tile = 0; tile < tiles; tile++) {
        if (tile + 1 < tiles) load(tile + 1);
        cp_async_commit();
        cp_async_wait<1>();
        fence_proxy_async();
        __syncthreads();
        if (tile * TILE < group_end) {
            const bf16* keys = shared + tile % 2 * 2 * HOPPER_TILE;
            float s[8][4];
            float(&scores)[32] = reinterpret_cast<float(&)[32]>(s);
            wgmma_fence();
#pragma unroll
            for (int k = 0; k < DH / 16; k++) wgmma_m64k16<TILE>(scores, q[k], wgmma_desc_k(keys + k * 16), k > 0);
            wgmma_commit();
            wgmma_wait<0>();
            wgmma_results(scores);
            float l[2], keep[2];
            tile_weights(s, {visible[0] - tile * TILE, visible[1] - tile * TILE}, p.scale * LOG2_E, largest, l, keep);
#pragma unroll
            for (int h = 0; h < 2; h++) total[h] = fmaf(total[h], keep[h], l[h]);
#pragma unroll
            for (int i = 0; i < DH / 2; i++) sums[i] *= keep[i / 2 % 2];
            uint32_t w[4][4];
            pack_weights(s, w);
            wgmma_fence();
#pragma unroll
            for (int k = 0; k < TILE / 16; k++) {
                wgmma_m64k16<DH, true>(sums, w[k], wgmma_desc_mn(keys + HOPPER_TILE + k * 16 * DH, HOPPER_TILE * 2), 1);
            }
            wgmma_commit();
            wgmma_wait<0>();
            wgmma_results(sums);
        }
        __syncthreads();
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const float inverse = 1.0f / quad_sum(total[h]);
        if (!there[h]) continue;
        const size_t to = size_t(u.out + row[h]) * p.out.cols + head + lane % 4 * 2;
#pragma unroll
        for (int n = 0; n < DH / 8; n++) {
            store_pair(p.out, to + n * 8, sums[4 * n + 2 * h] * inverse, sums[4 * n + 2 * h + 1] * inverse);
        }
    }
#endif
}
KERNEL_EXPORT(attention_hopper_64);
