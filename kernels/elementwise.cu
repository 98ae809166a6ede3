// Activations in place and y = a x + b y, values of any dtype, eight at a time where the shape allows 16-byte accesses.
#include "gemm.cuh"

constexpr int ELEMENTWISE_THREADS = 256;

extern "C" __global__ void __launch_bounds__(ELEMENTWISE_THREADS) activate_rows(const __grid_constant__ ActivateParams p) {
    follow_predecessor();
    const int cols = p.values.cols;
    const size_t count = size_t(p.values.rows) * cols, stride = size_t(gridDim.x) * blockDim.x;
    const size_t first = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (cols % 8 == 0) {
        for (size_t i = first * 8; i < count; i += stride * 8) {
            float v[8];
            load8(p.values, i, v);
            activate8(p.act, v, int(i % cols), cols);
            store8(p.values, i, v);
        }
    } else {
        for (size_t i = first; i < count; i += stride) {
            store1(p.values, i, activate(p.act, load1(p.values, i), int(i % cols)));
        }
    }
}
KERNEL_EXPORT(activate_rows);

extern "C" __global__ void __launch_bounds__(ELEMENTWISE_THREADS) axpby(const __grid_constant__ AxpbyParams p) {
    follow_predecessor();
    const size_t count = size_t(p.y.rows) * p.y.cols, whole = count / 8 * 8;
    const size_t stride = size_t(gridDim.x) * blockDim.x, first = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    for (size_t i = first * 8; i < whole; i += stride * 8) {
        float x[8], y[8];
        load8(p.x, i, x);
        load8(p.y, i, y);
#pragma unroll
        for (int j = 0; j < 8; j++) y[j] = fmaf(p.a, x[j], p.b * y[j]);
        store8(p.y, i, y);
    }
    if (const size_t i = whole + first; i < count) {
        store1(p.y, i, fmaf(p.a, load1(p.x, i), p.b * load1(p.y, i)));
    }
}
KERNEL_EXPORT(axpby);
