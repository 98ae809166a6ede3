// Faults of memory: bounds, alignment, initialisation, indices, shifts.
#include "common.cuh"
#include "selftest.h"

// y[i] = x[i] for i < n, one thread per value, through shared memory.
extern "C" __global__ void selftest_copy(const __grid_constant__ SelfTest p) {
    __shared__ float stage[64];
    const float* x = pointer<const float>(p.x);
    float* y = pointer<float>(p.y);
    const int i = blockIdx.x * 64 + threadIdx.x;
    const int from = p.bug == 1 ? i + 192 : min(i, p.n - 1);         // 1: reads past x, which has 256 values
    if (p.bug != 2 || threadIdx.x) stage[threadIdx.x] = x[from];     // 2: stage[0] is never written
    __syncthreads();
    if (i < p.n || p.bug == 3) y[i] = stage[threadIdx.x];            // 3: writes past y
}
KERNEL_EXPORT(selftest_copy);

// y[t] = sum of x[4t..4t+3] with 16-byte loads; bug 1 starts at x[1].
extern "C" __global__ void selftest_vectors(const __grid_constant__ SelfTest p) {
    const float* x = pointer<const float>(p.x) + (p.bug == 1 ? 1 : 0);
    const float4 v = reinterpret_cast<const float4*>(x)[threadIdx.x];
    pointer<float>(p.y)[threadIdx.x] = v.x + v.y + v.z + v.w;
}
KERNEL_EXPORT(selftest_vectors);

// Dynamic shared memory of n floats; bug 1 writes the float after them, bug 2 indexes past a local array, bug 3 shifts too far.
extern "C" __global__ void selftest_limits(const __grid_constant__ SelfTest p) {
    DYN_SHARED(float, shared);
    int local[4] = {1, 2, 3, 4};
    const int beyond = threadIdx.x == 31;
    shared[threadIdx.x + (p.bug == 1 && beyond)] = 1.0f;
    __syncthreads();
    const int index = p.bug == 2 && beyond ? p.n / 8 : int(threadIdx.x % 4);
    const int shift = p.bug == 3 && beyond ? p.n : 3;
    pointer<float>(p.y)[threadIdx.x] = shared[threadIdx.x] + float(local[index]) + float(1u << shift);
}
KERNEL_EXPORT(selftest_limits);
