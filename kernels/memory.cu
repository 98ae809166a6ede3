// Copies between tensors of any dtype: rows moved, gathered, repeated, set side by side, interpolated, looked up.
#include "common.cuh"
#include "mma.cuh"

constexpr int COPY_THREADS = 256;

// One thread per value, rows in the grid's order.
extern "C" __global__ void __launch_bounds__(COPY_THREADS) copy_rows(const __grid_constant__ CopyRowsParams p) {
    follow_predecessor();
    const size_t count = size_t(p.rows) * p.src.cols;
    const size_t stride = size_t(gridDim.x) * blockDim.x;
    for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride) {
        const int row = int(i / p.src.cols), col = int(i % p.src.cols);
        const int from = p.ids ? ids(p.ids)[row] : p.src_row + row / p.repeat;
        const float v = load1(p.src, size_t(from) * p.src.cols + col);
        store1(p.dst, size_t(p.dst_row + row) * p.dst.cols + p.dst_col + col, v);
    }
}
KERNEL_EXPORT(copy_rows);

// `torch.nn.functional.interpolate(mode="linear", align_corners=False, size=T')` of each segment. One block per output row.
extern "C" __global__ void __launch_bounds__(COPY_THREADS) interpolate_rows(const __grid_constant__ InterpolateParams p) {
    follow_predecessor();
    const int row = blockIdx.x;
    const int *from = ids(p.offsets), *to = ids(p.out_offsets);
    const int s = segment_of(to, p.segments, row);
    const int rows = from[s + 1] - from[s], out_rows = to[s + 1] - to[s];
    const float scale = float(rows) / float(out_rows);
    const float position = fmaxf(fmaf(scale, float(row - to[s]) + 0.5f, -0.5f), 0.0f);
    const int low = min(int(position), rows - 1), high = min(low + 1, rows - 1);
    const float weight = position - float(low);
    for (int c = threadIdx.x; c < p.out.cols; c += blockDim.x) {
        const float a = load1(p.x, size_t(from[s] + low) * p.x.cols + c);
        const float b = load1(p.x, size_t(from[s] + high) * p.x.cols + c);
        store1(p.out, size_t(row) * p.out.cols + c, fmaf(1.0f - weight, a, weight * b));
    }
}
KERNEL_EXPORT(interpolate_rows);

// One block per row. An id out of its table's range gives NaNs, which no later step can hide.
extern "C" __global__ void __launch_bounds__(COPY_THREADS) embed(const __grid_constant__ EmbedParams p) {
    follow_predecessor();
    const int row = blockIdx.x;
    const int which = ids(p.which)[row];
    int id = ids(p.ids)[row];
    // `~id` is -1 - id.
    if (id < 0 && ~id < p.drawn_count) id = ids(p.drawn)[~id];
    const Mat& table = p.tables[which < p.table_count ? which : 0];
    const bool valid = which >= 0 && which < p.table_count && id >= 0 && id < table.rows;
    for (int c = threadIdx.x; c < p.out.cols; c += blockDim.x) {
        const float v = valid ? load1(table, size_t(id) * table.cols + c) : __int_as_float(0x7fc00000);
        store1(p.out, size_t(row) * p.out.cols + c, v);
    }
}
KERNEL_EXPORT(embed);
