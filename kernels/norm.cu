// Normalisation of rows [N, D], and one row added per sequence.
//
// A thread holds eight neighbouring values of its row, accessed 16 bytes at a time where D is a multiple of eight. Up to 256 columns a row
// belongs to a warp, beyond to a block: the number of threads, and with it the order of every sum, follows from D alone.
// Bytes moved: each operand once. Statistics are f32, the variance from centred values.
#include "elements.cuh"
#include "mma.cuh"

constexpr int MAX_THREADS = 1024;
constexpr int NARROW = WARP * CHUNK;
constexpr int ELEMENT_THREADS = 256;

// A thread's part of a row.
struct Part {
    int row, col;
    // Columns that exist: 0 to CHUNK.
    int count;
    bool narrow, whole;
    size_t first;

    __device__ __forceinline__ explicit Part(const Mat& m) {
        narrow = m.cols <= NARROW;
        const int per_row = narrow ? WARP : int(blockDim.x);
        row = (blockIdx.x * blockDim.x + threadIdx.x) / per_row;
        col = threadIdx.x % per_row * CHUNK;
        count = max(0, min(CHUNK, m.cols - col));
        whole = m.cols % CHUNK == 0;
        first = size_t(row) * m.cols + col;
    }

    // Values from `i`; zeros where no column is.
    __device__ __forceinline__ void load_at(const Mat& m, size_t i, float (&v)[CHUNK]) const {
        if (whole && count) {
            load8(m, i, v);
        } else {
#pragma unroll
            for (int j = 0; j < CHUNK; j++) v[j] = j < count ? load1(m, i + j) : 0.0f;
        }
    }

    __device__ __forceinline__ void store_at(const Mat& m, size_t i, const float (&v)[CHUNK]) const {
        if (whole && count) {
            store8(m, i, v);
        } else {
#pragma unroll
            for (int j = 0; j < CHUNK; j++)
                if (j < count) store1(m, i + j, v[j]);
        }
    }

    // Sum over the row, in all of its threads.
    __device__ __forceinline__ float sum(float v, float* scratch) const { return narrow ? warp_sum(v) : block_sum(v, scratch); }

    __device__ __forceinline__ float sum_of_squares(const float (&v)[CHUNK], float* scratch) const {
        float square = 0.0f;
#pragma unroll
        for (int j = 0; j < CHUNK; j++) square = fmaf(v[j], v[j], square);
        return sum(square, scratch);
    }
};

extern "C" __global__ void __launch_bounds__(MAX_THREADS) rms_norm(const __grid_constant__ RmsNormParams p) {
    follow_predecessor();
    __shared__ float scratch[WARP];
    const Part part(p.x);
    if (part.row >= p.x.rows) return;
    float v[CHUNK], w[CHUNK];
    part.load_at(p.x, part.first, v);
    part.load_at(p.w, part.col, w);
    if (p.residual.data) {
        float r[CHUNK];
        part.load_at(p.residual, part.first, r);
#pragma unroll
        for (int j = 0; j < CHUNK; j++) v[j] += r[j];
        part.store_at(p.residual, part.first, v);
    }
    const float scale = 1.0f / sqrtf(part.sum_of_squares(v, scratch) / float(p.x.cols) + p.eps);
#pragma unroll
    for (int j = 0; j < CHUNK; j++) v[j] = v[j] * scale * w[j];
    part.store_at(p.out, part.first, v);
}
KERNEL_EXPORT(rms_norm);

extern "C" __global__ void __launch_bounds__(MAX_THREADS) layer_norm(const __grid_constant__ LayerNormParams p) {
    follow_predecessor();
    __shared__ float scratch[WARP];
    const Part part(p.x);
    if (part.row >= p.x.rows) return;
    float v[CHUNK], w[CHUNK], b[CHUNK];
    part.load_at(p.x, part.first, v);
    part.load_at(p.w, part.col, w);
    part.load_at(p.b, part.col, b);
    float total = 0.0f;
#pragma unroll
    for (int j = 0; j < CHUNK; j++) total += v[j];
    const float mean = part.sum(total, scratch) / float(p.x.cols);
#pragma unroll
    for (int j = 0; j < CHUNK; j++) v[j] = j < part.count ? v[j] - mean : 0.0f;
    const float scale = 1.0f / sqrtf(part.sum_of_squares(v, scratch) / float(p.x.cols) + p.eps);
#pragma unroll
    for (int j = 0; j < CHUNK; j++) v[j] = activate(p.act, p.scale * fmaf(v[j] * scale, w[j], b[j]), part.col + j);
    part.store_at(p.out, part.first, v);
}
KERNEL_EXPORT(layer_norm);

extern "C" __global__ void __launch_bounds__(MAX_THREADS) l2_normalize(const __grid_constant__ L2NormalizeParams p) {
    follow_predecessor();
    __shared__ float scratch[WARP];
    const Part part(p.x);
    if (part.row >= p.x.rows) return;
    float v[CHUNK];
    part.load_at(p.x, part.first, v);
    const float scale = 1.0f / fmaxf(sqrtf(part.sum_of_squares(v, scratch)), p.eps);
#pragma unroll
    for (int j = 0; j < CHUNK; j++) v[j] *= scale;
    part.store_at(p.x, part.first, v);
}
KERNEL_EXPORT(l2_normalize);

template <int W>
__device__ __forceinline__ void add_rows(const AddSegmentRowsParams& p) {
    for_each_chunk<W>(p.x.rows, p.x.cols, [&](int row, int col) {
        const int s = segment_of(ids(p.offsets), p.segments, row);
        const size_t at = size_t(row) * p.x.cols + col;
        float x[W], v[W];
        load<W>(p.x, at, x);
        load<W>(p.v, size_t(s) * p.x.cols + col, v);
#pragma unroll
        for (int j = 0; j < W; j++) x[j] += v[j];
        store<W>(p.x, at, x);
    });
}

extern "C" __global__ void __launch_bounds__(ELEMENT_THREADS) add_segment_rows(const __grid_constant__ AddSegmentRowsParams p) {
    follow_predecessor();
    if (p.x.cols % CHUNK == 0) {
        add_rows<CHUNK>(p);
    } else {
        add_rows<1>(p);
    }
}
KERNEL_EXPORT(add_segment_rows);
