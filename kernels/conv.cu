// Convolutions over the rows of each segment, channels last, as products that read shifted rows; nothing is unfolded.
//
// conv_mma is the implicit product on tensor cores, of bf16 or (the vocoder's) f16 operands. A block makes BM rows of one segment by BN columns. For 32 channels at a time it keeps
// a tile of input rows, halo included, that all taps read at their own row; so the activation before the convolution is computed once per value
// and not once per tap. Weights pass through a ring of cp.async stages, one tap of one chunk of channels each.
//
// Order of summation: chunks of channels, taps, steps of 16 channels, all ascending, from zero, then the bias. It follows from the weight's shape alone:
// every tile size gives the same bits, so the batch may choose the tile.
//
// conv_f32 and conv_exact (sums in f64) are plain tiles; conv_grouped has a thread per value. Reference: src/cpu/reference/conv.rs.
#include "common.cuh"
#include "mma.cuh"

// What a block makes: rows `m` of one phase of one segment.
struct Part {
    int phase, start, rows, out_start, count, base;

    __device__ __forceinline__ Part(const ConvParams& p, int phase_) : phase(phase_) {
        const int *from = ids(p.offsets), *to = ids(p.out_offsets), s = blockIdx.z;
        start = from[s], rows = from[s + 1] - start;
        out_start = to[s] + phase, count = (to[s + 1] - out_start + p.phases - 1) / p.phases;
        base = (phase + p.shift) / p.phases - p.back;
    }
};

// The row of the segment that position `i` shows, negative where it is zero.
__device__ __forceinline__ int source_row(int i, int rows, int reflect) {
    if (unsigned(i) < unsigned(rows)) return i;
    const int mirrored = i < 0 ? -i : 2 * (rows - 1) - i;
    return reflect && unsigned(mirrored) < unsigned(rows) ? mirrored : -1;
}

// ---- tensor cores ----------------------------------------------------------------------------------------------------

constexpr int STAGES = 4;
// 16-byte units of a row of a chunk.
constexpr int UNITS = CONV_CHUNK / 8;

// A block's tile, and the 16-bit type of its operands.
template <class T_, int BM_, int BN_, int WARPS_M_, int WARPS_N_>
struct ConvTile {
    using T = T_;
    static constexpr int BM = BM_, BN = BN_, WARPS_M = WARPS_M_, WARPS_N = WARPS_N_;
    static constexpr int THREADS = WARPS_M * WARPS_N * WARP;
    // 16 x 8 products of a warp.
    static constexpr int MI = BM / WARPS_M / 16, NI = BN / WARPS_N / 8;
    // Pitch of a warp's tile of sums: eight more values keep its rows in different banks.
    static constexpr int PITCH = NI * 8 + 8;
    static_assert(BN * UNITS % THREADS == 0 && NI % 2 == 0, "whole copies, pairs of columns");
};

// Where unit `unit` of row `row` is in a tile; any eight neighbouring rows have one unit in different banks.
__device__ __forceinline__ int unit_at(int row, int unit) { return row * CONV_CHUNK + (unit ^ ((row >> 1) & 3)) * 8; }

// Alpha of eight channels, and what sine squared is multiplied by.
struct Snake {
    float alpha[8], inverse[8];

    __device__ __forceinline__ Snake(const ConvParams& p, int channel) {
#pragma unroll
        for (int j = 0; j < 8; j++) {
            const bool valid = p.pre.kind == ACT_SNAKE && channel + j < p.x.cols;
            alpha[j] = valid ? pointer<const float>(p.pre.alpha)[channel + j] : 0.0f;
            inverse[j] = 1.0f / (alpha[j] + 1e-9f);
        }
    }
};

// `sin² x` to 1e-6, which 16-bit values do not tell from the exact one: reduced to ±π/2, the special function unit does the rest.
__device__ __forceinline__ float sin_squared_unit(float x) {
    const float n = fmaf(x, 0.318309886f, 12582912.0f) - 12582912.0f;
    const float s = __sinf(less_half_turns(x, n));
    return s * s;
}

// The activation before the convolution, of the eight channels from `channel`, which `at` holds.
template <class T>
__device__ __forceinline__ void activate_unit(const ConvParams& p, const Snake& snake, int channel, T* at) {
    if (p.pre.kind == ACT_SNAKE || p.pre.kind == ACT_LEAKY_RELU) {
        Packed8<T> u;
        u.bits = *reinterpret_cast<const uint4*>(at);
        float v[8];
        u.widen(v);
        if (p.pre.kind == ACT_SNAKE) {
#pragma unroll
            for (int j = 0; j < 8; j++) v[j] = fmaf(sin_squared_unit(snake.alpha[j] * v[j]), snake.inverse[j], v[j]);
        } else {
#pragma unroll
            for (int j = 0; j < 8; j++) v[j] = v[j] > 0.0f ? v[j] : p.pre.slope * v[j];
        }
        u.round(v);
        *reinterpret_cast<uint4*>(at) = u.bits;
    } else if (p.pre.kind != ACT_NONE) {
#pragma unroll 1
        for (int j = 0; j < 8 && channel + j < p.x.cols; j++) {
            at[j] = Narrow<T>::round(activate(p.pre, Narrow<T>::widen(at[j]), channel + j));
        }
    }
}

// Eight values of the input from `channel`, zeros past the last; of any dtype and alignment.
template <class T>
__device__ __forceinline__ uint4 gather_unit(const Mat& x, int row, int channel) {
    Packed8<T> u;
    float v[8];
    const size_t at = size_t(row) * x.cols + channel;
    if (x.cols % 8 == 0) {
        load8(x, at, v);
    } else {
#pragma unroll
        for (int j = 0; j < 8; j++) v[j] = channel + j < x.cols ? load1(x, at + j) : 0.0f;
    }
    u.round(v);
    return u.bits;
}

// The input tile of a block. A thread always has the same unit of its rows.
template <class Tile>
struct InputTile {
    using T = typename Tile::T;
    const ConvParams& p;
    const Part& part;
    const int m0, unit;
    // Rows that are a multiple of 16 bytes are copied asynchronously and activated where they land.
    const bool async;

    __device__ __forceinline__ InputTile(const ConvParams& p_, const Part& part_, int m0_)
        : p(p_), part(part_), m0(m0_), unit(threadIdx.x % UNITS), async(p_.x.dtype == Narrow<T>::DTYPE && p_.x.cols % 8 == 0) {}

    // Asks for the tile of a chunk of channels (and of one tap, where it does not serve all).
    __device__ __forceinline__ void fill(int chunk, int tap, T* tile) const {
        const int channel = chunk * CONV_CHUNK + unit * 8, step = p.windowed ? 1 : p.stride;
        const int first = m0 * p.stride + part.base + (p.windowed ? 0 : tap * p.dilation);
        const T* data = pointer<const T>(p.x.data);
        for (int r = threadIdx.x / UNITS; r < p.tile_rows; r += Tile::THREADS / UNITS) {
            const int row = source_row(first + r * step, part.rows, p.reflect);
            const bool valid = row >= 0 && channel < p.x.cols;
            T* to = &tile[unit_at(r, unit)];
            if (async) {
                const size_t at = valid ? size_t(part.start + row) * p.x.cols + channel : 0;
                cp_async16(to, data + at, valid ? 16 : 0);
            } else {
                const uint4 zeros = make_uint4(0, 0, 0, 0);
                *reinterpret_cast<uint4*>(to) = valid ? gather_unit<T>(p.x, part.start + row, channel) : zeros;
            }
        }
    }

    // Activates the values that this thread asked for, once they are there.
    __device__ __forceinline__ void activate(int chunk, T* tile) const {
        if (p.pre.kind == ACT_NONE) return;
        const int channel = chunk * CONV_CHUNK + unit * 8;
        const Snake snake(p, channel);
        for (int r = threadIdx.x / UNITS; r < p.tile_rows; r += Tile::THREADS / UNITS) {
            activate_unit(p, snake, channel, &tile[unit_at(r, unit)]);
        }
    }
};

// Asks for the weights of one step.
template <class Tile>
__device__ __forceinline__ void load_weights(const ConvParams& p, const typename Tile::T* weights, int step, int col0,
                                             typename Tile::T* stage) {
    const typename Tile::T* from = weights + (size_t(step) * p.columns + col0) * CONV_CHUNK;
#pragma unroll
    for (int i = threadIdx.x; i < Tile::BN * UNITS; i += Tile::THREADS) {
        cp_async16(&stage[unit_at(i / UNITS, i % UNITS)], from + size_t(i) * 8);
    }
}

// sum += rows from `shift` of the input tile times the weights of one step.
template <class Tile>
__device__ __forceinline__ void multiply(const typename Tile::T* input, int shift, const typename Tile::T* weights,
                                         float (&sum)[Tile::MI][Tile::NI][4]) {
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int a_row = shift + warp / Tile::WARPS_N * Tile::MI * 16 + lane % 16;
    const int b_row = warp % Tile::WARPS_N * Tile::NI * 8 + lane / 16 * 8 + lane % 8;
#pragma unroll
    for (int k = 0; k < CONV_CHUNK / 16; k++) {
        uint32_t a[Tile::MI][4], b[Tile::NI][2];
#pragma unroll
        for (int i = 0; i < Tile::MI; i++) ldmatrix_x4(a[i], &input[unit_at(a_row + i * 16, k * 2 + lane / 16)]);
#pragma unroll
        for (int j = 0; j < Tile::NI; j += 2) {
            uint32_t pair[4];
            ldmatrix_x4(pair, &weights[unit_at(b_row + j * 8, k * 2 + lane / 8 % 2)]);
            b[j][0] = pair[0], b[j][1] = pair[1], b[j + 1][0] = pair[2], b[j + 1][1] = pair[3];
        }
#pragma unroll
        for (int i = 0; i < Tile::MI; i++) {
#pragma unroll
            for (int j = 0; j < Tile::NI; j++) mma_m16n8k16<typename Tile::T>(sum[i][j], a[i], b[j]);
        }
    }
}

// Stores eight sums of `row` from column `col`, which are in shared memory.
__device__ __forceinline__ void store_unit(const ConvParams& p, int row, int col, float* sums) {
    const float* bias = pointer<const float>(p.bias) + col;
    const EpilogueParams& ep = p.epilogue;
    if (p.out.cols % 8 || ep.kind == EPILOGUE_ACT) {
#pragma unroll 1
        for (int j = 0; j < 8 && col + j < p.out.cols; j++) store_product(ep, p.out, row, col + j, sums[j] + bias[j]);
        return;
    }
    if (col >= p.out.cols) return;
    const size_t at = size_t(row) * p.out.cols + col;
    const float scale = ep.kind == EPILOGUE_ACCUMULATE_SCALED ? ep.scale : 1.0f;
    float v[8], old[8];
    if (ep.kind == EPILOGUE_NONE) {
#pragma unroll
        for (int j = 0; j < 8; j++) old[j] = 0.0f;
    } else {
        load8(ep.kind == EPILOGUE_ADD ? ep.residual : p.out, at, old);
    }
    const float4 s0 = reinterpret_cast<const float4*>(sums)[0], s1 = reinterpret_cast<const float4*>(sums)[1];
    const float4 b0 = reinterpret_cast<const float4*>(bias)[0], b1 = reinterpret_cast<const float4*>(bias)[1];
    v[0] = s0.x + b0.x, v[1] = s0.y + b0.y, v[2] = s0.z + b0.z, v[3] = s0.w + b0.w;
    v[4] = s1.x + b1.x, v[5] = s1.y + b1.y, v[6] = s1.z + b1.z, v[7] = s1.w + b1.w;
#pragma unroll
    for (int j = 0; j < 8; j++) v[j] = fmaf(scale, v[j], old[j]);
    store8(p.out, at, v);
}

// Stores a warp's sums, 16 rows at a time by way of shared memory, so that rows are read and written 16 bytes at a time.
template <class Tile>
__device__ __forceinline__ void store_sums(const ConvParams& p, const Part& part, int m0, int col0, float* shared,
                                           const float (&sum)[Tile::MI][Tile::NI][4]) {
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    float* sums = shared + warp * 16 * Tile::PITCH;
    const int first = m0 + warp / Tile::WARPS_N * Tile::MI * 16, col = col0 + warp % Tile::WARPS_N * Tile::NI * 8;
#pragma unroll
    for (int i = 0; i < Tile::MI; i++) {
#pragma unroll
        for (int j = 0; j < Tile::NI; j++) {
            float* at = sums + lane / 4 * Tile::PITCH + j * 8 + lane % 4 * 2;
            *reinterpret_cast<float2*>(at) = make_float2(sum[i][j][0], sum[i][j][1]);
            *reinterpret_cast<float2*>(at + 8 * Tile::PITCH) = make_float2(sum[i][j][2], sum[i][j][3]);
        }
        __syncwarp();
#pragma unroll 1
        for (int u = lane; u < 16 * Tile::NI; u += WARP) {
            const int r = u / Tile::NI, unit = u % Tile::NI, m = first + i * 16 + r;
            if (m < part.count) store_unit(p, part.out_start + m * p.phases, col + unit * 8, sums + r * Tile::PITCH + unit * 8);
        }
        __syncwarp();
    }
}

template <class Tile>
__device__ __forceinline__ void conv_tile(const ConvParams& p) {
    using T = typename Tile::T;
    const int column_tiles = p.columns / Tile::BN;
    const Part part(p, blockIdx.y / column_tiles);
    const int m0 = blockIdx.x * Tile::BM, col0 = blockIdx.y % column_tiles * Tile::BN;
    if (m0 >= part.count) return;
    DYN_SHARED(T, shared);
    const int chunks = (p.x.cols + CONV_CHUNK - 1) / CONV_CHUNK, steps = chunks * p.taps;
    // Steps that read one input tile. There are two of them, if there is more than one to read.
    const int inner = p.windowed ? p.taps : 1, tile = p.tile_rows * CONV_CHUNK;
    T* ring = shared + tile * (steps > inner ? 2 : 1);
    const T* weights = pointer<const T>(p.weights) + size_t(part.phase) * steps * p.columns * CONV_CHUNK;
    const InputTile<Tile> input(p, part, m0);
    float sum[Tile::MI][Tile::NI][4] = {};
    input.fill(0, 0, shared);
    for (int s = 0; s < STAGES - 1; s++) {
        if (s < steps) load_weights<Tile>(p, weights, s, col0, ring + s * Tile::BN * CONV_CHUNK);
        cp_async_commit();
    }
    for (int step = 0, group = 0, tap = 0; step < steps; step++) {
        T* current = shared + (group & 1) * tile;
        if (tap == 0 && inner < STAGES - 1) {
            // The tile was asked for with the weights of a later step.
            cp_async_wait<0>();
        } else {
            cp_async_wait<STAGES - 2>();
        }
        if (tap == 0) input.activate(step / p.taps, current);
        __syncthreads();
        const int ahead = step + STAGES - 1;
        if (ahead < steps) load_weights<Tile>(p, weights, ahead, col0, ring + ahead % STAGES * Tile::BN * CONV_CHUNK);
        if (tap == 0 && step + inner < steps) {
            input.fill((step + inner) / p.taps, (step + inner) % p.taps, shared + (~group & 1) * tile);
        }
        cp_async_commit();
        multiply<Tile>(current, p.windowed ? tap * p.dilation : 0, ring + step % STAGES * Tile::BN * CONV_CHUNK, sum);
        if (++tap == inner) tap = 0, group++;
    }
    cp_async_wait<0>();
    __syncthreads();
    store_sums<Tile>(p, part, m0, col0, reinterpret_cast<float*>(shared), sum);
}

extern "C" __global__ void __launch_bounds__(256, 2) conv_mma_128x128(const __grid_constant__ ConvParams p) {
    follow_predecessor();
    conv_tile<ConvTile<bf16, 128, 128, 4, 2>>(p);
}
KERNEL_EXPORT(conv_mma_128x128);

extern "C" __global__ void __launch_bounds__(256, 2) conv_mma_128x64(const __grid_constant__ ConvParams p) {
    follow_predecessor();
    conv_tile<ConvTile<bf16, 128, 64, 4, 2>>(p);
}
KERNEL_EXPORT(conv_mma_128x64);

extern "C" __global__ void __launch_bounds__(128, 4) conv_mma_64x64(const __grid_constant__ ConvParams p) {
    follow_predecessor();
    conv_tile<ConvTile<bf16, 64, 64, 2, 2>>(p);
}
KERNEL_EXPORT(conv_mma_64x64);

extern "C" __global__ void __launch_bounds__(256, 2) conv_mma_128x128_f16(const __grid_constant__ ConvParams p) {
    follow_predecessor();
    conv_tile<ConvTile<__half, 128, 128, 4, 2>>(p);
}
KERNEL_EXPORT(conv_mma_128x128_f16);

extern "C" __global__ void __launch_bounds__(256, 2) conv_mma_128x64_f16(const __grid_constant__ ConvParams p) {
    follow_predecessor();
    conv_tile<ConvTile<__half, 128, 64, 4, 2>>(p);
}
KERNEL_EXPORT(conv_mma_128x64_f16);

extern "C" __global__ void __launch_bounds__(128, 4) conv_mma_64x64_f16(const __grid_constant__ ConvParams p) {
    follow_predecessor();
    conv_tile<ConvTile<__half, 64, 64, 2, 2>>(p);
}
KERNEL_EXPORT(conv_mma_64x64_f16);

// ---- plain tiles -----------------------------------------------------------------------------------------------------

// Values of the sum that a block holds at a time.
constexpr int DEPTH = 16;
// A thread's rows and columns.
constexpr int SIDE = 4;

// A SIZE x SIZE tile of sums of type T, which may be wider than the f32 of the operands: taps, then channels, ascending, from the bias.
template <class T, int SIZE>
__device__ __forceinline__ void conv_plain(const ConvParams& p) {
    constexpr int THREADS = SIZE / SIDE * (SIZE / SIDE);
    __shared__ __align__(16) T a[DEPTH][SIZE], b[DEPTH][SIZE];
    __shared__ float sums[SIZE][SIZE + 1];
    const int column_tiles = p.columns / SIZE;
    const Part part(p, blockIdx.y / column_tiles);
    const int m0 = blockIdx.x * SIZE, col0 = blockIdx.y % column_tiles * SIZE;
    if (m0 >= part.count) return;
    const int channels = p.x.cols, depth = p.taps * channels;
    const float* weights = pointer<const float>(p.weights) + size_t(part.phase) * depth * p.columns;
    const int row = threadIdx.x / (SIZE / SIDE) * SIDE, col = threadIdx.x % (SIZE / SIDE) * SIDE;
    T sum[SIDE][SIDE];
#pragma unroll
    for (int i = 0; i < SIDE; i++) {
#pragma unroll
        for (int j = 0; j < SIDE; j++) sum[i][j] = T(pointer<const float>(p.bias)[col0 + col + j]);
    }
    for (int k0 = 0; k0 < depth; k0 += DEPTH) {
        const int k = k0 + threadIdx.x % DEPTH, tap = k / channels, channel = k % channels;
        for (int i = threadIdx.x / DEPTH; i < SIZE; i += THREADS / DEPTH) {
            const int from = source_row((m0 + i) * p.stride + tap * p.dilation + part.base, part.rows, p.reflect);
            const bool valid = k < depth && from >= 0;
            const float v = valid ? load1(p.x, size_t(part.start + from) * channels + channel) : 0.0f;
            a[threadIdx.x % DEPTH][i] = T(activate(p.pre, v, channel));
        }
        for (int i = threadIdx.x; i < DEPTH * SIZE; i += THREADS) {
            const int depth_row = k0 + i / SIZE;
            b[i / SIZE][i % SIZE] = T(depth_row < depth ? weights[size_t(depth_row) * p.columns + col0 + i % SIZE] : 0.0f);
        }
        __syncthreads();
#pragma unroll
        for (int d = 0; d < DEPTH; d++) {
            T x[SIDE], w[SIDE];
#pragma unroll
            for (int i = 0; i < SIDE; i++) x[i] = a[d][row + i], w[i] = b[d][col + i];
#pragma unroll
            for (int i = 0; i < SIDE; i++) {
#pragma unroll
                for (int j = 0; j < SIDE; j++) sum[i][j] = fma(x[i], w[j], sum[i][j]);
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < SIDE; i++) {
#pragma unroll
        for (int j = 0; j < SIDE; j++) sums[row + i][col + j] = float(sum[i][j]);
    }
    __syncthreads();
#pragma unroll 1
    for (int i = threadIdx.x; i < SIZE * SIZE; i += THREADS) {
        const int m = m0 + i / SIZE, o = col0 + i % SIZE;
        if (m >= part.count || o >= p.out.cols) continue;
        store_product(p.epilogue, p.out, part.out_start + m * p.phases, o, sums[i / SIZE][i % SIZE]);
    }
}

extern "C" __global__ void __launch_bounds__(256) conv_f32(const __grid_constant__ ConvParams p) {
    follow_predecessor();
    conv_plain<float, 64>(p);
}
KERNEL_EXPORT(conv_f32);

extern "C" __global__ void __launch_bounds__(64) conv_exact(const __grid_constant__ ConvParams p) {
    follow_predecessor();
    conv_plain<double, 32>(p);
}
KERNEL_EXPORT(conv_exact);

// ---- groups ----------------------------------------------------------------------------------------------------------

constexpr int GROUPED_THREADS = 256;

// One thread per value: taps, then the group's channels, ascending, from the bias. Blocks: values of the longest segment, 1, segments.
extern "C" __global__ void __launch_bounds__(GROUPED_THREADS) conv_grouped(const __grid_constant__ ConvParams p) {
    follow_predecessor();
    const Part part(p, 0);
    const int i = blockIdx.x * GROUPED_THREADS + threadIdx.x, m = i / p.out.cols, o = i % p.out.cols;
    if (m >= part.count) return;
    const int channels = p.x.cols / p.groups, first = o / (p.out.cols / p.groups) * channels;
    const float* weights = pointer<const float>(p.weights) + o;
    float sum = pointer<const float>(p.bias)[o];
    for (int tap = 0; tap < p.taps; tap++) {
        const int row = source_row(m * p.stride + tap * p.dilation + part.base, part.rows, p.reflect);
        if (row < 0) continue;
        for (int c = 0; c < channels; c++) {
            const float v = load1(p.x, size_t(part.start + row) * p.x.cols + first + c);
            const float w = weights[size_t(tap * channels + c) * p.columns];
            sum = fmaf(activate(p.pre, v, first + c), w, sum);
        }
    }
    store_product(p.epilogue, p.out, part.out_start + m, o, sum);
}
KERNEL_EXPORT(conv_grouped);
