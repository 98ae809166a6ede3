// What every kernel needs: loads and stores of any dtype, activations, epilogues, reductions over warps and blocks.
#pragma once

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
// Makes a kernel known to the emulator; nothing to do on a device.
#define KERNEL_EXPORT(name)
// Dynamic shared memory of the block, as `T* name`.
#define DYN_SHARED(T, name)                                                \
    extern __shared__ __align__(1024) unsigned char dynamic_shared_[];     \
    T* name = reinterpret_cast<T*>(dynamic_shared_)
#else
#include "emulator/cuda.h"
#endif
#include <stdint.h>

#include "abi.h"

typedef __nv_bfloat16 bf16;

constexpr unsigned FULL_WARP = 0xffffffffu;
constexpr int WARP = 32;

template <class T>
__device__ __forceinline__ T* pointer(uint64_t address) {
    return reinterpret_cast<T*>(address);
}

__device__ __forceinline__ const int* ids(uint64_t address) { return pointer<const int>(address); }

// ---- values of a Mat -------------------------------------------------------------------------------------------------

// The 16-bit types: their code in a Mat, and conversions. f16 saturates: an infinity would silence everything after it.
template <class T> struct Narrow;
template <> struct Narrow<bf16> {
    static constexpr int DTYPE = DTYPE_BF16;
    static __device__ __forceinline__ float widen(bf16 v) { return __bfloat162float(v); }
    static __device__ __forceinline__ bf16 round(float v) { return __float2bfloat16(v); }
};
template <> struct Narrow<__half> {
    static constexpr int DTYPE = DTYPE_F16;
    static __device__ __forceinline__ float widen(__half v) { return __half2float(v); }
    // Compared so that a NaN stays one.
    static __device__ __forceinline__ __half round(float v) { return __float2half(v > 65504.0f ? 65504.0f : v < -65504.0f ? -65504.0f : v); }
};

// Eight 16-bit values as they are loaded and stored.
template <class T>
union Packed8 {
    uint4 bits;
    T values[8];

    __device__ __forceinline__ void widen(float (&v)[8]) const {
#pragma unroll
        for (int j = 0; j < 8; j++) v[j] = Narrow<T>::widen(values[j]);
    }
    __device__ __forceinline__ void round(const float (&v)[8]) {
#pragma unroll
        for (int j = 0; j < 8; j++) values[j] = Narrow<T>::round(v[j]);
    }
};

// Value `i` of a buffer of the given dtype.
__device__ __forceinline__ float load1(uint64_t data, int dtype, size_t i) {
    if (dtype == DTYPE_BF16) return __bfloat162float(pointer<const bf16>(data)[i]);
    if (dtype == DTYPE_F16) return __half2float(pointer<const __half>(data)[i]);
    return pointer<const float>(data)[i];
}

__device__ __forceinline__ void store1(uint64_t data, int dtype, size_t i, float value) {
    if (dtype == DTYPE_BF16) {
        pointer<bf16>(data)[i] = Narrow<bf16>::round(value);
    } else if (dtype == DTYPE_F16) {
        pointer<__half>(data)[i] = Narrow<__half>::round(value);
    } else {
        pointer<float>(data)[i] = value;
    }
}

__device__ __forceinline__ float load1(const Mat& m, size_t i) { return load1(m.data, m.dtype, i); }
__device__ __forceinline__ void store1(const Mat& m, size_t i, float value) { store1(m.data, m.dtype, i, value); }

template <class T>
__device__ __forceinline__ void load8_narrow(const Mat& m, size_t i, float (&v)[8]) {
    Packed8<T> u;
    u.bits = *reinterpret_cast<const uint4*>(pointer<const T>(m.data) + i);
    u.widen(v);
}

template <class T>
__device__ __forceinline__ void store8_narrow(const Mat& m, size_t i, const float (&v)[8]) {
    Packed8<T> u;
    u.round(v);
    *reinterpret_cast<uint4*>(pointer<T>(m.data) + i) = u.bits;
}

// Eight values from `i`, which is a multiple of eight (16-byte accesses).
__device__ __forceinline__ void load8(const Mat& m, size_t i, float (&v)[8]) {
    if (m.dtype == DTYPE_BF16) {
        load8_narrow<bf16>(m, i, v);
    } else if (m.dtype == DTYPE_F16) {
        load8_narrow<__half>(m, i, v);
    } else {
        const float4* p = reinterpret_cast<const float4*>(pointer<const float>(m.data) + i);
        const float4 a = p[0], b = p[1];
        v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w;
        v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
    }
}

__device__ __forceinline__ void store8(const Mat& m, size_t i, const float (&v)[8]) {
    if (m.dtype == DTYPE_BF16) {
        store8_narrow<bf16>(m, i, v);
    } else if (m.dtype == DTYPE_F16) {
        store8_narrow<__half>(m, i, v);
    } else {
        float4* p = reinterpret_cast<float4*>(pointer<float>(m.data) + i);
        p[0] = make_float4(v[0], v[1], v[2], v[3]);
        p[1] = make_float4(v[4], v[5], v[6], v[7]);
    }
}

// ---- segments --------------------------------------------------------------------------------------------------------

// Index of the segment that row `row` belongs to: the last whose offset is not beyond it.
__device__ __forceinline__ int segment_of(const int* offsets, int segments, int row) {
    int low = 0, high = segments - 1;
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

// ---- reductions ------------------------------------------------------------------------------------------------------

__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
    for (int offset = WARP / 2; offset > 0; offset /= 2) v += __shfl_xor_sync(FULL_WARP, v, offset);
    return v;
}

__device__ __forceinline__ float warp_max(float v) {
#pragma unroll
    for (int offset = WARP / 2; offset > 0; offset /= 2) v = fmaxf(v, __shfl_xor_sync(FULL_WARP, v, offset));
    return v;
}

// Sum over a block of whole warps, in all threads. `scratch` holds one value per warp and may be used again at once.
__device__ __forceinline__ float block_sum(float v, float* scratch) {
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, warps = blockDim.x / WARP;
    v = warp_sum(v);
    if (lane == 0) scratch[warp] = v;
    __syncthreads();
    v = warp_sum(lane < warps ? scratch[lane] : 0.0f);
    __syncthreads();
    return v;
}

// ---- sine and cosine -------------------------------------------------------------------------------------------------
// The library's reduction of large arguments keeps a table in local memory; these have none. Coefficients as src/cpu/math.rs.

// `sin x` for `|x|` up to π/2 and a little more.
__device__ __forceinline__ float sin_reduced(float x) {
    const float s = x * x;
    float p = fmaf(-2.5052108e-8f, s, 2.7557319e-6f);
    p = fmaf(p, s, -1.984127e-4f);
    p = fmaf(p, s, 8.3333333e-3f);
    p = fmaf(p, s, -1.6666667e-1f);
    return fmaf(p * s, x, x);
}

// `cos x` for `|x|` up to π/2 and a little more.
__device__ __forceinline__ float cos_reduced(float x) {
    const float s = x * x;
    float p = fmaf(2.0876757e-9f, s, -2.7557319e-7f);
    p = fmaf(p, s, 2.4801587e-5f);
    p = fmaf(p, s, -1.3888889e-3f);
    p = fmaf(p, s, 4.1666667e-2f);
    p = fmaf(p, s, -0.5f);
    return fmaf(p, s, 1.0f);
}

// `x − nπ`: π in three parts (Cody and Waite). The first difference is exact.
__device__ __forceinline__ float less_half_turns(float x, float n) {
    const float r = fmaf(-n, 3.14159274f, x);
    return fmaf(-n, -3.43024902e-15f, fmaf(-n, -8.74227766e-8f, r));
}

// `sin² x` for `|x|` up to a million.
__device__ __forceinline__ float sin_squared(float x) {
    // Adding 1.5 · 2²³ rounds to an integer.
    const float n = fmaf(x, 0.318309886f, 12582912.0f) - 12582912.0f;
    const float s = sin_reduced(less_half_turns(x, n));
    return s * s;
}

// `r` in about ±π/2 and whether `n` is odd in `x = nπ + r`, for `|x|` up to a hundred million. The second step repairs what the
// first lost to the rounding of `x / π`.
__device__ __forceinline__ float half_turns(float x, bool& odd) {
    const float n = rintf(x * 0.318309886f);
    const float r = less_half_turns(x, n);
    const float m = rintf(r * 0.318309886f);
    odd = (int(n) + int(m)) & 1;
    return less_half_turns(r, m);
}

// `sin x` for `|x|` up to a hundred million.
__device__ __forceinline__ float sine(float x) {
    bool odd;
    const float s = sin_reduced(half_turns(x, odd));
    return odd ? -s : s;
}

// `cos x`, likewise.
__device__ __forceinline__ float cosine(float x) {
    bool odd;
    const float c = cos_reduced(half_turns(x, odd));
    return odd ? -c : c;
}

// ---- element-wise functions ------------------------------------------------------------------------------------------

// `softplus` as torch: linear above 20.
__device__ __forceinline__ float softplus(float x) { return x > 20.0f ? x : log1pf(expf(x)); }

__device__ __forceinline__ float sigmoid(float x) { return __fdividef(1.0f, 1.0f + expf(-x)); }

// `act(x)` of channel `channel`.
__device__ __forceinline__ float activate(const ActParams& act, float x, int channel) {
    switch (act.kind) {
        case ACT_RELU: return fmaxf(x, 0.0f);
        case ACT_GELU: return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
        case ACT_GELU_TANH: return 0.5f * x * (1.0f + tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x)));
        case ACT_SILU: return x * sigmoid(x);
        case ACT_MISH: return x * tanhf(softplus(x));
        case ACT_ELU: return x > 0.0f ? x : expm1f(x);
        case ACT_TANH: return tanhf(x);
        case ACT_SIGMOID: return sigmoid(x);
        case ACT_ABS: return fabsf(x);
        case ACT_LEAKY_RELU: return x > 0.0f ? x : act.slope * x;
        case ACT_SNAKE: {
            const float alpha = pointer<const float>(act.alpha)[channel];
            return x + __fdividef(sin_squared(alpha * x), alpha + 1e-9f);
        }
        default: return x;
    }
}

// Stores the product `y` of `out[row, col]` as the epilogue says. EPILOGUE_SILU_MUL is the caller's: it needs two products.
__device__ __forceinline__ void store_product(const EpilogueParams& ep, const Mat& out, int row, int col, float y) {
    const size_t i = size_t(row) * out.cols + col;
    switch (ep.kind) {
        case EPILOGUE_ACT: y = activate(ep.act, y, col); break;
        case EPILOGUE_ADD: y += load1(ep.residual, i); break;
        case EPILOGUE_ACCUMULATE: y += load1(out, i); break;
        case EPILOGUE_ACCUMULATE_SCALED: y = fmaf(ep.scale, y, load1(out, i)); break;
        default: break;
    }
    store1(out, i, y);
}
