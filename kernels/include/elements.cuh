// Element-wise kernels walk over the values of a tensor in chunks: eight values (16 bytes or 32) where rows are multiples of eight, else one.
#pragma once
#include "common.cuh"

constexpr int CHUNK = 8;

template <int W>
__device__ __forceinline__ void load(const Mat& m, size_t i, float (&v)[W]) {
    if constexpr (W == 8) {
        load8(m, i, v);
    } else {
        static_assert(W == 1);
        v[0] = load1(m, i);
    }
}

template <int W>
__device__ __forceinline__ void store(const Mat& m, size_t i, const float (&v)[W]) {
    if constexpr (W == 8) {
        store8(m, i, v);
    } else {
        static_assert(W == 1);
        store1(m, i, v[0]);
    }
}

// Calls `body(row, col)` for the first column of each chunk of [rows, cols]; `cols` is a multiple of W.
template <int W, class Body>
__device__ __forceinline__ void for_each_chunk(int rows, int cols, Body body) {
    const unsigned per_row = cols / W, count = rows * per_row;
    for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) {
        body(int(i / per_row), int(i % per_row) * W);
    }
}
