// Rotary positions and the paged cache of keys and values; grouped causal attention over it.
//
// The cache of a layer is [P, Hk, page_size, Dh], keys and values apart. A split is 256 positions, four tiles. What a row gets is defined once, for
// one new row and for many: each tile has its own softmax, tiles are merged in order within their split, splits in order after that. So positions
// computed together, in parts or one at a time give the same bytes.
//
// Reference: Su et al., "RoFormer" (2021), halves layout of Qwen2; Dao et al., "Flash-Decoding" (2023); Kwon et al., "PagedAttention" (2023).
#include "attention.cuh"

constexpr int SPLIT_TILES = ATTENTION_WARPS;
constexpr int SPLIT = SPLIT_TILES * TILE;
constexpr int ROPE_THREADS = 128;

// ---- rotation --------------------------------------------------------------------------------------------------------

// Sine and cosine of an f32 angle below 10^6, right to the last bit of f32: reduction to [−π/4, π/4] and Taylor series in f64.
__device__ __forceinline__ void exact_sincos(float angle, float& sine, float& cosine) {
    const double n = rint(double(angle) * 0.63661977236758134308);
    const double r = fma(-n, 6.123233995736766036e-17, fma(-n, 1.5707963267948965580, double(angle)));
    const double z = r * r;
    double s = -1.0 / 1307674368000.0;
    s = fma(s, z, 1.0 / 6227020800.0);
    s = fma(s, z, -1.0 / 39916800.0);
    s = fma(s, z, 1.0 / 362880.0);
    s = fma(s, z, -1.0 / 5040.0);
    s = fma(s, z, 1.0 / 120.0);
    s = fma(s, z, -1.0 / 6.0);
    s = fma(s * z, r, r);
    double c = 1.0 / 20922789888000.0;
    c = fma(c, z, -1.0 / 87178291200.0);
    c = fma(c, z, 1.0 / 479001600.0);
    c = fma(c, z, -1.0 / 3628800.0);
    c = fma(c, z, 1.0 / 40320.0);
    c = fma(c, z, -1.0 / 720.0);
    c = fma(c, z, 1.0 / 24.0);
    c = fma(c, z, -0.5);
    c = fma(c, z, 1.0);
    const int quadrant = int(n) & 3;
    const double a = quadrant & 1 ? c : s, b = quadrant & 1 ? s : c;
    sine = float(quadrant & 2 ? -a : a);
    cosine = float(quadrant == 1 || quadrant == 2 ? -b : b);
}

// Where position `slot` of a key head begins in the cache.
__device__ __forceinline__ size_t cache_row(int slot, int head, int kv_heads, int page_size) {
    const int page = slot / page_size;
    return (size_t(page) * kv_heads + head) * page_size + slot % page_size;
}

// One block per row. Dynamic shared memory: f32 cosines and sines [2, Dh / 2].
extern "C" __global__ void __launch_bounds__(ROPE_THREADS) rope_store_kv(const __grid_constant__ RopeParams p) {
    follow_predecessor();
    DYN_SHARED(float, cosines);
    const int row = blockIdx.x, dh = p.head_dim, half = dh / 2;
    float* sines = cosines + half;
    const float position = float(ids(p.positions)[row]);
    for (int i = threadIdx.x; i < half; i += ROPE_THREADS) {
        exact_sincos(position * pointer<const float>(p.frequencies)[i], sines[i], cosines[i]);
    }
    __syncthreads();
    const int heads = p.q.cols / dh, rotated = heads + p.kv_heads, slot = ids(p.slots)[row];
    const size_t from = size_t(row) * p.qkv.cols, to = size_t(row) * p.q.cols;
    const Mat values = {p.values, 0, 0, p.cache_dtype, 0};
    const auto cached = [&](int head) { return cache_row(slot, head, p.kv_heads, p.page_size) * dh; };
    if (half % 8 == 0) {
        const int pieces = half / 8;
        for (int i = threadIdx.x; i < rotated * pieces; i += ROPE_THREADS) {
            const int head = i / pieces, d = i % pieces * 8;
            float a[8], b[8], low[8], high[8];
            load8(p.qkv, from + head * dh + d, a);
            load8(p.qkv, from + head * dh + half + d, b);
#pragma unroll
            for (int j = 0; j < 8; j++) {
                low[j] = a[j] * cosines[d + j] - b[j] * sines[d + j];
                high[j] = b[j] * cosines[d + j] + a[j] * sines[d + j];
            }
            const bool query = head < heads;
            const Mat out = {query ? p.q.data : p.keys, 0, 0, query ? p.q.dtype : p.cache_dtype, 0};
            const size_t at = (query ? to + head * dh : cached(head - heads)) + d;
            store8(out, at, low);
            store8(out, at + half, high);
        }
        for (int i = threadIdx.x; i < p.kv_heads * 2 * pieces; i += ROPE_THREADS) {
            const int head = i / (2 * pieces), d = i % (2 * pieces) * 8;
            float v[8];
            load8(p.qkv, from + (rotated + head) * dh + d, v);
            store8(values, cached(head) + d, v);
        }
    } else {
        for (int i = threadIdx.x; i < rotated * half; i += ROPE_THREADS) {
            const int head = i / half, d = i % half;
            const float a = load1(p.qkv, from + head * dh + d), b = load1(p.qkv, from + head * dh + half + d);
            const bool query = head < heads;
            const Mat out = {query ? p.q.data : p.keys, 0, 0, query ? p.q.dtype : p.cache_dtype, 0};
            const size_t at = (query ? to + head * dh : cached(head - heads)) + d;
            store1(out, at, a * cosines[d] - b * sines[d]);
            store1(out, at + half, b * cosines[d] + a * sines[d]);
        }
        for (int i = threadIdx.x; i < p.kv_heads * dh; i += ROPE_THREADS) {
            store1(values, cached(i / dh) + i % dh, load1(p.qkv, from + rotated * dh + i));
        }
    }
}
KERNEL_EXPORT(rope_store_kv);

// ---- one new row per sequence ------------------------------------------------------------------------------------------

// Row of the cache that holds position `position` of sequence b and a key head.
__device__ __forceinline__ int paged_row(const PagedParams& p, int b, int head, int position) {
    const int page = ids(p.block_table)[size_t(b) * p.max_pages + position / p.page_size];
    return (page * p.kv_heads + head) * p.page_size + position % p.page_size;
}

// Four sums of a row and their softmax so far; parts are added in order.
struct Merged {
    float largest = -INFINITY, total = 0.0f;
    float4 sums = {0.0f, 0.0f, 0.0f, 0.0f};

    __device__ __forceinline__ void add(float m, float l, const float4& v) {
        float keep, add;
        merge_weights(largest, m, keep, add);
        total = merge(total, keep, l, add);
        sums.x = merge(sums.x, keep, v.x, add);
        sums.y = merge(sums.y, keep, v.y, add);
        sums.z = merge(sums.z, keep, v.z, add);
        sums.w = merge(sums.w, keep, v.w, add);
    }

    __device__ __forceinline__ void store(const Mat& out, size_t i) const {
        const float inverse = 1.0f / total;
        store_pair(out, i, sums.x * inverse, sums.y * inverse);
        store_pair(out, i + 2, sums.z * inverse, sums.w * inverse);
    }
};

// One block per split, 16 query heads of a key head, and sequence of one new row; one warp per tile. The block that comes last merges its row's splits.
// Dynamic shared memory: a tile of keys and one of values per warp.
template <int DH>
__device__ __forceinline__ void paged_decode(const PagedParams& p, bf16* shared) {
    __shared__ float stats[ATTENTION_WARPS][FRAGMENT_ROWS][2];
    __shared__ int last;
    const int split = blockIdx.x, b = blockIdx.z, kv_head = blockIdx.y % p.kv_heads;
    const int first_head = blockIdx.y / p.kv_heads * FRAGMENT_ROWS, row = ids(p.offsets)[b];
    const int context = ids(p.context)[b], dh = p.head_dim;
    if (ids(p.offsets)[b + 1] - row != 1 || split * SPLIT >= context) return;
    const int rows = min(FRAGMENT_ROWS, p.group - first_head);
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int first = split * SPLIT + warp * TILE, keys = min(TILE, context - first);
    constexpr int PIECES = DH / 8, STEP = WARP / PIECES, LOADS = TILE / STEP;
    bf16* key_tile = shared + warp * 2 * TILE_VALUES<DH>;
    bf16* value_tile = key_tile + TILE_VALUES<DH>;
    // Sums of the warp's tile [16, DH], where its keys were.
    const auto part = [&](int w) { return reinterpret_cast<float*>(shared + w * 2 * TILE_VALUES<DH>); };
    // A warp past the context has no keys, and goes along. Each lane looks up two positions and asks the others for those that it loads.
    int mine[2];
#pragma unroll
    for (int i = 0; i < 2; i++) mine[i] = paged_row(p, b, kv_head, min(first + lane + i * WARP, context - 1));
    const int piece = lane % PIECES * 8;
#pragma unroll
    for (int i = 0; i < LOADS; i++) {
        const int key = i * STEP + lane / PIECES;
        const bool there = key < keys && piece < dh;
        const size_t from = size_t(__shfl_sync(FULL_WARP, mine[i * STEP / WARP], key % WARP)) * dh + piece;
        bf16* to = key_tile + key * TILE_STRIDE<DH> + piece;
        cp_async16(to, pointer<const bf16>(p.keys) + (there ? from : 0), there ? 16 : 0);
        cp_async16(to + TILE_VALUES<DH>, pointer<const bf16>(p.values) + (there ? from : 0), there ? 16 : 0);
    }
    cp_async_commit();
    const int g = lane / 4;
    const size_t head = size_t(row) * p.q.cols + size_t(kv_head * p.group + first_head) * dh;
    uint32_t q[DH / 16][4];
    load_queries<DH>(p.q, {head + size_t(g) * dh, head + size_t(g + 8) * dh}, {g < rows, g + 8 < rows}, dh, q);
    float s[8][4], m[2] = {-INFINITY, -INFINITY}, l[2], keep[2];
    cp_async_wait<0>();
    __syncwarp();
    tile_scores<DH>(q, key_tile, s);
    tile_weights(s, {keys, keys}, p.scale * LOG2_E, m, l, keep);
#pragma unroll
    for (int h = 0; h < 2; h++) {
        l[h] = quad_sum(l[h]);
        if (lane % 4 == 0) stats[warp][g + 8 * h][0] = m[h], stats[warp][g + 8 * h][1] = l[h];
    }
    uint32_t w[4][4];
    pack_weights(s, w);
    __syncwarp();
#pragma unroll
    for (int n = 0; n < DH / 8; n += 4) {
        float acc[4][4] = {};
        add_weighted<DH, 4>(w, value_tile + n * 8, acc);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float* to = part(warp) + g * DH + (n + i) * 8 + lane % 4 * 2;
            *reinterpret_cast<float2*>(to) = make_float2(acc[i][0], acc[i][1]);
            *reinterpret_cast<float2*>(to + 8 * DH) = make_float2(acc[i][2], acc[i][3]);
        }
    }
    __syncthreads();
    const int tiles = min(SPLIT_TILES, (context - split * SPLIT + TILE - 1) / TILE), splits = (context + SPLIT - 1) / SPLIT;
    const int columns = dh / 4, heads = p.kv_heads * p.group;
    float4* partial_sums = pointer<float4>(p.partial_sums);
    float2* partial_stats = pointer<float2>(p.partial_stats);
    for (int i = threadIdx.x; i < rows * columns; i += ATTENTION_THREADS) {
        const int r = i / columns, column = i % columns, head = kv_head * p.group + first_head + r;
        Merged merged;
        for (int t = 0; t < tiles; t++) {
            merged.add(stats[t][r][0], stats[t][r][1], *reinterpret_cast<const float4*>(part(t) + r * DH + column * 4));
        }
        if (splits == 1) {
            Merged all;
            all.add(merged.largest, merged.total, merged.sums);
            all.store(p.out, size_t(row) * p.out.cols + size_t(head) * dh + column * 4);
        } else {
            const size_t at = (size_t(b) * heads + head) * p.max_splits + split;
            partial_sums[at * columns + column] = merged.sums;
            if (column == 0) partial_stats[at] = make_float2(merged.largest, merged.total);
        }
    }
    if (splits == 1) return;
    __threadfence();
    __syncthreads();
    int* arrived = pointer<int>(p.arrived) + size_t(b) * gridDim.y + blockIdx.y;
    if (threadIdx.x == 0) last = atomicAdd(arrived, 1) == splits - 1;
    __syncthreads();
    if (!last) return;
    __threadfence();
    for (int i = threadIdx.x; i < rows * columns; i += ATTENTION_THREADS) {
        const int r = i / columns, column = i % columns, head = kv_head * p.group + first_head + r;
        const size_t at = (size_t(b) * heads + head) * p.max_splits;
        Merged merged;
        for (int s = 0; s < splits; s++) {
            const float2 of = __ldcg(partial_stats + at + s);
            merged.add(of.x, of.y, __ldcg(partial_sums + (at + s) * columns + column));
        }
        merged.store(p.out, size_t(row) * p.out.cols + size_t(head) * dh + column * 4);
    }
    if (threadIdx.x == 0) *arrived = 0;
}

// ---- many new rows per sequence ----------------------------------------------------------------------------------------

// A warp's 16 rows on their way through the keys.
template <int DH>
struct PagedRows {
    float largest[2], total[2], sums[DH / 8][4];

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int h = 0; h < 2; h++) largest[h] = -INFINITY, total[h] = 0.0f;
#pragma unroll
        for (int n = 0; n < DH / 8; n++) sums[n][0] = sums[n][1] = sums[n][2] = sums[n][3] = 0.0f;
    }

    // Adds a tile of which the rows see the first `visible` keys.
    __device__ __forceinline__ void add_tile(const uint32_t (&q)[DH / 16][4], const bf16* keys, const bf16* values,
                                             const int (&visible)[2], float scale) {
        float s[8][4], m[2] = {-INFINITY, -INFINITY}, l[2], keep[2], add[2];
        tile_scores<DH>(q, keys, s);
        tile_weights(s, visible, scale, m, l, keep);
#pragma unroll
        for (int h = 0; h < 2; h++) {
            merge_weights(largest[h], m[h], keep[h], add[h]);
            total[h] = merge(total[h], keep[h], quad_sum(l[h]), add[h]);
        }
        uint32_t w[4][4];
        pack_weights(s, w);
#pragma unroll
        for (int n = 0; n < DH / 8; n += 4) {
            float acc[4][4] = {};
            add_weighted<DH, 4>(w, values + n * 8, acc);
#pragma unroll
            for (int i = 0; i < 4; i++) {
#pragma unroll
                for (int e = 0; e < 4; e++) sums[n + i][e] = merge(sums[n + i][e], keep[e / 2], acc[i][e], add[e / 2]);
            }
        }
    }

    // Adds what comes before: the merged splits so far, of which `before` holds the sums [DH / 8, 32 lanes].
    __device__ __forceinline__ void join(const float (&m)[2], const float (&l)[2], const float4* before) {
        float keep[2], add[2];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float so_far = m[h];
            merge_weights(so_far, largest[h], keep[h], add[h]);
            largest[h] = so_far;
            total[h] = merge(l[h], keep[h], total[h], add[h]);
        }
#pragma unroll
        for (int n = 0; n < DH / 8; n++) {
            const float4 v = before[n * WARP];
            sums[n][0] = merge(v.x, keep[0], sums[n][0], add[0]);
            sums[n][1] = merge(v.y, keep[0], sums[n][1], add[0]);
            sums[n][2] = merge(v.z, keep[1], sums[n][2], add[1]);
            sums[n][3] = merge(v.w, keep[1], sums[n][3], add[1]);
        }
    }
};

// One block per 64 rows (positions times query heads of the group), key head, and sequence of several new rows.
// Dynamic shared memory: two tiles of keys and two of values, then f32 sums of earlier splits [warps, DH / 8, 32, 4].
template <int DH>
__device__ __forceinline__ void paged_prefill(const PagedParams& p, bf16* shared) {
    constexpr int ROWS = ATTENTION_WARPS * FRAGMENT_ROWS, PIECES = DH / 8, STEP = ATTENTION_THREADS / PIECES;
    const int kv_head = blockIdx.y, b = blockIdx.z, dh = p.head_dim, begin = ids(p.offsets)[b];
    const int fresh = ids(p.offsets)[b + 1] - begin, count = fresh * p.group;
    // The last rows see most: they start first.
    const int first = (gridDim.x - 1 - blockIdx.x) * ROWS;
    if (fresh <= 1 || first >= count) return;
    const int past = ids(p.context)[b] - fresh;
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4;
    const auto seen = [&](int r) { return past + r / p.group + 1; };
    const int end = seen(min(first + ROWS, count) - 1), tiles = (end + TILE - 1) / TILE;
    const int warp_first = first + warp * FRAGMENT_ROWS;
    const int warp_end = warp_first < count ? seen(min(warp_first + FRAGMENT_ROWS, count) - 1) : 0;
    bool there[2];
    size_t at[2];
    int visible[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int r = warp_first + g + 8 * h;
        there[h] = r < count;
        visible[h] = there[h] ? seen(r) : 0;
        at[h] = there[h] ? size_t(begin + r / p.group) * p.q.cols + size_t(kv_head * p.group + r % p.group) * dh : 0;
    }
    uint32_t q[DH / 16][4];
    load_queries<DH>(p.q, at, there, dh, q);

    const auto load = [&](int tile) {
        bf16* keys = shared + tile % 2 * 2 * TILE_VALUES<DH>;
        bf16* values = keys + TILE_VALUES<DH>;
        const int piece = threadIdx.x % PIECES * 8;
        // Not all at once: lookups take registers.
#pragma unroll 2
        for (int i = 0; i < TILE / STEP; i++) {
            const int key = i * STEP + threadIdx.x / PIECES, position = tile * TILE + key;
            const bool is = position < end && piece < dh;
            const size_t from = is ? size_t(paged_row(p, b, kv_head, position)) * dh + piece : 0;
            cp_async16(keys + key * TILE_STRIDE<DH> + piece, pointer<const bf16>(p.keys) + from, is ? 16 : 0);
            cp_async16(values + key * TILE_STRIDE<DH> + piece, pointer<const bf16>(p.values) + from, is ? 16 : 0);
        }
    };
    float4* before = reinterpret_cast<float4*>(shared + 4 * TILE_VALUES<DH>) + warp * (DH / 8) * WARP + lane;
    float m[2], l[2];
    PagedRows<DH> rows;
    rows.clear();
    load(0);
    cp_async_commit();
    for (int tile = 0; tile < tiles; tile++) {
        if (tile + 1 < tiles) load(tile + 1);
        cp_async_commit();
        cp_async_wait<1>();
        __syncthreads();
        if (tile * TILE < warp_end) {
            const bf16* keys = shared + tile % 2 * 2 * TILE_VALUES<DH>;
            rows.add_tile(q, keys, keys + TILE_VALUES<DH>, {visible[0] - tile * TILE, visible[1] - tile * TILE}, p.scale * LOG2_E);
        }
        if (tile % SPLIT_TILES == SPLIT_TILES - 1 || tile == tiles - 1) {
            if (tile >= SPLIT_TILES) rows.join(m, l, before);
            if (tile < tiles - 1) {
#pragma unroll
                for (int h = 0; h < 2; h++) m[h] = rows.largest[h], l[h] = rows.total[h];
#pragma unroll
                for (int n = 0; n < DH / 8; n++) {
                    before[n * WARP] = make_float4(rows.sums[n][0], rows.sums[n][1], rows.sums[n][2], rows.sums[n][3]);
                }
                rows.clear();
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        if (!there[h]) continue;
        const float inverse = 1.0f / rows.total[h];
#pragma unroll
        for (int n = 0; n < DH / 8; n++) {
            const int col = n * 8 + lane % 4 * 2;
            if (col < dh) store_pair(p.out, at[h] + col, rows.sums[n][2 * h] * inverse, rows.sums[n][2 * h + 1] * inverse);
        }
    }
}

#define PAGED_KERNEL(NAME, DH)                                                                                             \
    extern "C" __global__ void __launch_bounds__(ATTENTION_THREADS) NAME##_##DH(const __grid_constant__ PagedParams p) { \
        follow_predecessor();                                                                                             \
        DYN_SHARED(bf16, shared);                                                                                         \
        NAME<DH>(p, shared);                                                                                              \
    }                                                                                                                     \
    KERNEL_EXPORT(NAME##_##DH);

PAGED_KERNEL(paged_decode, 32)
PAGED_KERNEL(paged_decode, 64)
PAGED_KERNEL(paged_decode, 128)
PAGED_KERNEL(paged_prefill, 32)
PAGED_KERNEL(paged_prefill, 64)
PAGED_KERNEL(paged_prefill, 128)

// ---- any cache, any head -----------------------------------------------------------------------------------------------

// One block, a warp, per new row and query head. Dynamic shared memory: plain_values(Dh) f32.
extern "C" __global__ void __launch_bounds__(WARP) paged_plain(const __grid_constant__ PagedParams p) {
    follow_predecessor();
    DYN_SHARED(float, q);
    const int lane = threadIdx.x, dh = p.head_dim, heads = p.kv_heads * p.group;
    const int row = blockIdx.x / heads, head = blockIdx.x % heads, kv_head = head / p.group;
    const int b = sequence_of(ids(p.offsets), p.sequences, row);
    const size_t at = size_t(row) * p.q.cols + size_t(head) * dh;
    for (int d = lane; d < dh; d += WARP) q[d] = load1(p.q, at + d);
    __syncwarp();
    const Mat keys = {p.keys, 0, 0, p.cache_dtype, 0}, values = {p.values, 0, 0, p.cache_dtype, 0};
    const auto from = [&](int j) { return size_t(paged_row(p, b, kv_head, j)) * dh; };
    const auto score = [&](int j) { return plain_dot(q, keys, from(j), dh) * p.scale; };
    float* sums = q + 2 * dh;
    const float inverse = plain_attention(ids(p.positions)[row] + 1, dh, values, score, from, sums, sums + dh);
    for (int d = lane; d < dh; d += WARP) store1(p.out, at + d, sums[d] * inverse);
}
KERNEL_EXPORT(paged_plain);
