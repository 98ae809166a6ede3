// Attention of 16 query rows per warp over tiles of 64 keys, on tensor cores; and of one row per warp without them.
//
// Tiles begin at multiples of 64 of the key's own index, and a row passes over them in order. Keys that a row does not see weigh nothing,
// exactly. So its result depends neither on the rows beside it nor on where in a block it lies.
//
// Fragments are those of mma.sync m16n8k16: lane 4 g + t holds rows g and g + 8, columns 2 t and 2 t + 1 of every 8.
// Reference: Dao, "FlashAttention-2" (2023).
#pragma once
#include "common.cuh"
#include "mma.cuh"

constexpr int ATTENTION_WARPS = 4;
constexpr int ATTENTION_THREADS = ATTENTION_WARPS * WARP;
// Query rows of a warp's fragment.
constexpr int FRAGMENT_ROWS = 16;
// Keys of a tile.
constexpr int TILE = 64;
constexpr float LOG2_E = 1.4426950408889634f;

// Rows of a tile in shared memory are 16 bytes longer than a head, so that ldmatrix meets every bank once.
template <int DH>
constexpr int TILE_STRIDE = DH + 8;
template <int DH>
constexpr int TILE_VALUES = TILE * TILE_STRIDE<DH>;

__device__ __forceinline__ uint32_t pack2(float low, float high) {
    union {
        __nv_bfloat162 values;
        uint32_t bits;
    } u;
    u.values = __floats2bfloat162_rn(low, high);
    return u.bits;
}

// Values `i` and `i + 1`, `i` even.
__device__ __forceinline__ uint32_t load_pair(const Mat& m, size_t i) {
    if (m.dtype == DTYPE_BF16) return *reinterpret_cast<const uint32_t*>(pointer<const bf16>(m.data) + i);
    const float2 v = *reinterpret_cast<const float2*>(pointer<const float>(m.data) + i);
    return pack2(v.x, v.y);
}

__device__ __forceinline__ void store_pair(const Mat& m, size_t i, float a, float b) {
    if (m.dtype == DTYPE_BF16) {
        *reinterpret_cast<uint32_t*>(pointer<bf16>(m.data) + i) = pack2(a, b);
    } else {
        *reinterpret_cast<float2*>(pointer<float>(m.data) + i) = make_float2(a, b);
    }
}

// Queries of rows g and g + 8 as the left operand, zeros past `dh` and where a row is absent; `at` is where each one's head begins.
template <int DH>
__device__ __forceinline__ void load_queries(const Mat& m, const size_t (&at)[2], const bool (&there)[2], int dh,
                                             uint32_t (&q)[DH / 16][4]) {
    const int t = threadIdx.x % 4;
#pragma unroll
    for (int k = 0; k < DH / 16; k++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int row = i % 2, col = k * 16 + i / 2 * 8 + 2 * t;
            q[k][i] = there[row] && col < dh ? load_pair(m, at[row] + col) : 0;
        }
    }
}

// The same with a bias [1, H Dh] added before rounding; `bias_at` is where the head begins in it.
template <int DH>
__device__ __forceinline__ void load_biased_queries(const Mat& m, const Mat& bias, size_t bias_at, const size_t (&at)[2],
                                                    const bool (&there)[2], int dh, uint32_t (&q)[DH / 16][4]) {
    const int t = threadIdx.x % 4;
#pragma unroll
    for (int k = 0; k < DH / 16; k++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int row = i % 2, col = k * 16 + i / 2 * 8 + 2 * t;
            float a = 0.0f, b = 0.0f;
            if (there[row] && col < dh) {
                a = load1(m, at[row] + col) + load1(bias, bias_at + col);
                b = load1(m, at[row] + col + 1) + load1(bias, bias_at + col + 1);
            }
            q[k][i] = pack2(a, b);
        }
    }
}

// Products [16, 16] of queries and 16 rows of a tile, eight in `a` and eight in `b`.
template <int DH>
__device__ __forceinline__ void products16(const uint32_t (&q)[DH / 16][4], const bf16* rows, float (&a)[4], float (&b)[4]) {
    const int lane = threadIdx.x % WARP;
    const bf16* from = rows + ((lane & 7) + (lane >> 4) * 8) * TILE_STRIDE<DH> + ((lane >> 3) & 1) * 8;
#pragma unroll
    for (int k = 0; k < DH / 16; k++) {
        uint32_t r[4];
        ldmatrix_x4(r, from + k * 16);
        const uint32_t low[2] = {r[0], r[1]}, high[2] = {r[2], r[3]};
        mma_m16n8k16_bf16(a, q[k], low);
        mma_m16n8k16_bf16(b, q[k], high);
    }
}

// scores [16, 64] of a tile of keys.
template <int DH>
__device__ __forceinline__ void tile_scores(const uint32_t (&q)[DH / 16][4], const bf16* keys, float (&s)[8][4]) {
#pragma unroll
    for (int n = 0; n < 8; n++) s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0.0f;
#pragma unroll
    for (int n = 0; n < 8; n += 2) products16<DH>(q, keys + n * 8 * TILE_STRIDE<DH>, s[n], s[n + 1]);
}

__device__ __forceinline__ float quad_max(float v) {
    v = fmaxf(v, __shfl_xor_sync(FULL_WARP, v, 1));
    return fmaxf(v, __shfl_xor_sync(FULL_WARP, v, 2));
}

__device__ __forceinline__ float quad_sum(float v) {
    v += __shfl_xor_sync(FULL_WARP, v, 1);
    return v + __shfl_xor_sync(FULL_WARP, v, 2);
}

// Largest scores are in units of log2, times the scale; −∞ before the first key.
// What is subtracted in exponents: 0 instead of −∞, so that nothing becomes NaN.
__device__ __forceinline__ float exponent_base(float largest) { return largest == -INFINITY ? 0.0f : largest; }

// Turns scores of which each row sees the first `visible` into weights 2^(scale · s − m), where `m` becomes the largest so far; `l` becomes this
// thread's part of their sum, `keep` what earlier weights are to be multiplied by. `scale` contains log2(e).
__device__ __forceinline__ void tile_weights(float (&s)[8][4], const int (&visible)[2], float scale, float (&m)[2], float (&l)[2],
                                             float (&keep)[2]) {
    const int t = threadIdx.x % 4;
    if (visible[0] < TILE || visible[1] < TILE) {
#pragma unroll
        for (int n = 0; n < 8; n++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                if (n * 8 + 2 * t + e % 2 >= visible[e / 2]) s[n][e] = -INFINITY;
            }
        }
    }
    float largest[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int n = 0; n < 8; n++) {
#pragma unroll
        for (int e = 0; e < 4; e++) largest[e / 2] = fmaxf(largest[e / 2], s[n][e]);
    }
    float base[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const float now = fmaxf(m[h], __fmul_rn(quad_max(largest[h]), scale));
        base[h] = exponent_base(now);
        keep[h] = fast_exp2(m[h] - base[h]);
        m[h] = now;
        l[h] = 0.0f;
    }
#pragma unroll
    for (int n = 0; n < 8; n++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
            s[n][e] = fast_exp2(fmaf(s[n][e], scale, -base[e / 2]));
            l[e / 2] += s[n][e];
        }
    }
}

// Weights as the left operand of the second product.
__device__ __forceinline__ void pack_weights(const float (&s)[8][4], uint32_t (&w)[4][4]) {
#pragma unroll
    for (int k = 0; k < 4; k++) {
        w[k][0] = pack2(s[2 * k][0], s[2 * k][1]);
        w[k][1] = pack2(s[2 * k][2], s[2 * k][3]);
        w[k][2] = pack2(s[2 * k + 1][0], s[2 * k + 1][1]);
        w[k][3] = pack2(s[2 * k + 1][2], s[2 * k + 1][3]);
    }
}

// acc [16, 8 N] += weights [16, 64] · values [64, 8 N], from the channel that `values` points to. N is even.
template <int DH, int N>
__device__ __forceinline__ void add_weighted(const uint32_t (&w)[4][4], const bf16* values, float (&acc)[N][4]) {
    const int lane = threadIdx.x % WARP;
    const bf16* from = values + (lane & 15) * TILE_STRIDE<DH> + (lane >> 4) * 8;
#pragma unroll
    for (int k = 0; k < 4; k++) {
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            uint32_t r[4];
            ldmatrix_x4_trans(r, from + k * 16 * TILE_STRIDE<DH> + n * 8);
            const uint32_t low[2] = {r[0], r[1]}, high[2] = {r[2], r[3]};
            mma_m16n8k16_bf16(acc[n], w[k], low);
            mma_m16n8k16_bf16(acc[n + 1], w[k], high);
        }
    }
}

// Adds the largest score `m` of further keys to the largest so far: sums are to become `sum · keep + further · add`.
__device__ __forceinline__ void merge_weights(float& largest, float m, float& keep, float& add) {
    const float now = fmaxf(largest, m), base = exponent_base(now);
    keep = fast_exp2(largest - base);
    add = fast_exp2(m - base);
    largest = now;
}

__device__ __forceinline__ float merge(float sum, float keep, float further, float add) {
    return fmaf(further, add, __fmul_rn(sum, keep));
}

// ---- inside sequences --------------------------------------------------------------------------------------------------

// Keys that row i of `rows` sees, with a mask of chunks of n rows.
__device__ __forceinline__ int visible_keys(int i, int rows, int n) { return min((i / n + 1) * n, rows); }

// A block's part of a sequence.
struct Unit {
    int head, begin, rows, chunk;
    // First query of the block, and one past the sequence's last.
    int first, end;
    // Row of the output that the first row of the sequence would have.
    int out;
};

// False when there is nothing to do for this block of `block_rows` queries.
__device__ __forceinline__ bool find_unit(const AttentionParams& p, int block_rows, Unit& u) {
    const int b = blockIdx.z;
    u.head = blockIdx.y;
    u.begin = ids(p.offsets)[b];
    u.rows = ids(p.offsets)[b + 1] - u.begin;
    u.chunk = ids(p.chunks)[b];
    const int wanted = ids(p.query_offsets)[b + 1] - ids(p.query_offsets)[b];
    // The last rows may see most: they start first.
    const int first = (gridDim.x - 1 - blockIdx.x) * block_rows;
    u.first = u.rows - wanted + first;
    u.end = u.rows;
    u.out = ids(p.query_offsets)[b] - (u.rows - wanted);
    return first < wanted;
}

// ---- one row per warp, any dtype, any head -------------------------------------------------------------------------------

// Shared f32 values of a warp: queries with either bias, sums, weights of 32 keys.
__device__ __forceinline__ int plain_values(int dh) { return 3 * dh + WARP; }

// Σ a[d] · m[at + d]
__device__ __forceinline__ float plain_dot(const float* a, const Mat& m, size_t at, int dh) {
    float sum = 0.0f;
    if (dh % 8 == 0) {
        for (int d = 0; d < dh; d += 8) {
            float v[8];
            load8(m, at + d, v);
#pragma unroll
            for (int i = 0; i < 8; i++) sum = fmaf(a[d + i], v[i], sum);
        }
    } else {
        for (int d = 0; d < dh; d++) sum = fmaf(a[d], load1(m, at + d), sum);
    }
    return sum;
}

// One query over the first `count` keys. `score(j)` is its scaled score of key j, `value(j)` where the value of key j begins in `values`.
// `sums [dh]` and `weights [32]` are the warp's; afterwards channel d of the result is sums[d] of the lane d % 32. Returns one over the sum of weights.
template <class Score, class Value>
__device__ __forceinline__ float plain_attention(int count, int dh, const Mat& values, Score score, Value value, float* sums,
                                                 float* weights) {
    const int lane = threadIdx.x % WARP;
    for (int d = lane; d < dh; d += WARP) sums[d] = 0.0f;
    float largest = -INFINITY, total = 0.0f;
    for (int first = 0; first < count; first += WARP) {
        const int keys = min(WARP, count - first);
        const float of = score(first + min(lane, keys - 1)), s = lane < keys ? of : -INFINITY;
        const float now = fmaxf(largest, warp_max(s));
        const float keep = expf(largest - now);
        const float weight = expf(s - now);
        largest = now;
        total = fmaf(total, keep, warp_sum(weight));
        weights[lane] = weight;
        __syncwarp();
        for (int d = lane; d < dh; d += WARP) {
            float sum = sums[d] * keep;
            for (int j = 0; j < keys; j++) sum = fmaf(weights[j], load1(values, value(first + j) + d), sum);
            sums[d] = sum;
        }
        __syncwarp();
    }
    return 1.0f / total;
}

// Index of the sequence that row `row` belongs to.
__device__ __forceinline__ int sequence_of(const int* offsets, int sequences, int row) {
    int low = 0, high = sequences - 1;
    while (low < high) {
        const int middle = (low + high + 1) / 2;
        if (offsets[middle] <= row) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    return low;
}
