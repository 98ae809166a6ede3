// Faults of ordering: barriers, warps, blocks, grids.
#include "mma.cuh"
#include "selftest.h"

// y[block] = sum of a row of n values. Bug 1: no barrier before the partial sums are read; 2: none before they are reused.
extern "C" __global__ void __launch_bounds__(128) selftest_row_sums(const __grid_constant__ SelfTest p) {
    __shared__ float partial[4];
    const float* x = pointer<const float>(p.x);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (int row = blockIdx.x * 2; row < int(blockIdx.x) * 2 + 2; ++row) {
        float sum = 0.0f;
        for (int i = threadIdx.x; i < p.n; i += 128) sum += x[row * p.n + i];
        for (int o = 16; o; o >>= 1) sum += __shfl_xor_sync(FULL_WARP, sum, o);
        if (lane == 0) partial[warp] = sum;
        if (p.bug != 1) __syncthreads();
        if (threadIdx.x == 0) pointer<float>(p.y)[row] = partial[0] + partial[1] + partial[2] + partial[3];
        if (p.bug != 2) __syncthreads();
    }
}
KERNEL_EXPORT(selftest_row_sums);

// Neighbours swap values through shared memory. Bug 1: without __syncwarp.
extern "C" __global__ void selftest_swap(const __grid_constant__ SelfTest p) {
    __shared__ float shared[32];
    shared[threadIdx.x] = pointer<const float>(p.x)[threadIdx.x];
    if (p.bug != 1) __syncwarp();
    pointer<float>(p.y)[threadIdx.x] = shared[threadIdx.x ^ 1];
}
KERNEL_EXPORT(selftest_swap);

// Bug 1: 40 threads wait at a barrier that the others never reach, being in a shuffle. 2: a shuffle names lanes that are gone.
// 3: half of a warp votes while the other half shuffles.
extern "C" __global__ void selftest_divergence(const __grid_constant__ SelfTest p) {
    float v = float(threadIdx.x);
    if (p.bug == 1) {
        if (threadIdx.x < 40)
            __syncthreads();
        else
            v = __shfl_xor_sync(FULL_WARP, v, 1);
    } else if (p.bug == 2) {
        if (threadIdx.x >= 48) return;
        __syncwarp(threadIdx.x < 32 ? FULL_WARP : 0xffffu);
        v = __shfl_xor_sync(FULL_WARP, v, 1);
    } else if (p.bug == 3) {
        if (threadIdx.x % 32 < 16)
            v += float(__ballot_sync(FULL_WARP, 1));
        else
            v = __shfl_xor_sync(FULL_WARP, v, 16);
    } else {
        const unsigned half = threadIdx.x % 32 < 16 ? 0xffffu : 0xffff0000u;
        v = __shfl_xor_sync(half, v, 1);
        __syncthreads();
    }
    pointer<float>(p.y)[threadIdx.x] = v;
}
KERNEL_EXPORT(selftest_divergence);

// Every block writes its own values. Bug 1: all the same ones; 2: each reads its neighbour's.
extern "C" __global__ void selftest_blocks(const __grid_constant__ SelfTest p) {
    float* y = pointer<float>(p.y);
    y[(p.bug == 1 ? 0 : blockIdx.x * 32) + threadIdx.x] = float(blockIdx.x);
    if (p.bug == 2) y[blockIdx.x * 32 + threadIdx.x] += y[(blockIdx.x + 1) % gridDim.x * 32 + threadIdx.x];
}
KERNEL_EXPORT(selftest_blocks);

// The last block to finish sums what all blocks wrote: y[0] = sum of x. z counts. Bug 1: without the fence.
extern "C" __global__ void selftest_last_block(const __grid_constant__ SelfTest p) {
    __shared__ int is_last;
    float* partial = pointer<float>(p.y) + 1;
    if (threadIdx.x == 0) {
        partial[blockIdx.x] = pointer<const float>(p.x)[blockIdx.x];
        if (p.bug != 1) __threadfence();
        is_last = atomicAdd(pointer<unsigned>(p.z), 1u) == gridDim.x - 1;
    }
    __syncthreads();
    if (!is_last || threadIdx.x) return;
    float sum = 0.0f;
    for (unsigned i = 0; i < gridDim.x; ++i) sum += partial[i];
    pointer<float>(p.y)[0] = sum;
}
KERNEL_EXPORT(selftest_last_block);

// A histogram with shared atomics. Bug 1: counters are read while others still add.
extern "C" __global__ void selftest_histogram(const __grid_constant__ SelfTest p) {
    __shared__ int count[32];
    if (threadIdx.x < 32) count[threadIdx.x] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < p.n; i += blockDim.x) atomicAdd(&count[i % 7], 1);
    if (p.bug != 1) __syncthreads();
    if (threadIdx.x < 7) pointer<float>(p.y)[threadIdx.x] = float(count[threadIdx.x]);
}
KERNEL_EXPORT(selftest_histogram);

// Warps 0 and 1 produce, 2 and 3 consume, ordered by named barriers. Bug 1: the consumers do not wait; 2: nor the producers.
extern "C" __global__ void __launch_bounds__(128) selftest_named_barriers(const __grid_constant__ SelfTest p) {
    __shared__ float shared[64];
    const int i = threadIdx.x % 64;
    const bool producer = threadIdx.x < 64;
    for (int round = 0; round < p.n; ++round) {
        if (producer) {
            if (round > 0 && p.bug != 2) named_barrier_sync(2, 128);
            shared[i] = float(round * 64 + i);
            named_barrier_arrive(1, 128);
        } else {
            if (p.bug != 1) named_barrier_sync(1, 128);
            pointer<float>(p.y)[round * 64 + i] = shared[63 - i];
            if (round + 1 < p.n && p.bug != 2) named_barrier_arrive(2, 128);
        }
    }
}
KERNEL_EXPORT(selftest_named_barriers);

// Doubles x in place after waiting for the launch before it. Bug 1: without the wait.
extern "C" __global__ void selftest_dependent(const __grid_constant__ SelfTest p) {
    if (p.bug != 1) pdl_wait();
    pointer<float>(p.x)[threadIdx.x] *= 2.0f;
    pdl_launch_dependents();
}
KERNEL_EXPORT(selftest_dependent);

// A grid-wide barrier of a cooperative launch: every block reads what its neighbour wrote before it. z counts.
extern "C" __global__ void selftest_grid_barrier(const __grid_constant__ SelfTest p) {
    float* y = pointer<float>(p.y);
    float* written = y + gridDim.x * 32;
    written[blockIdx.x * 32 + threadIdx.x] = float(blockIdx.x);
    __syncthreads();
    if (threadIdx.x == 0) {
        unsigned* count = pointer<unsigned>(p.z);
        __threadfence();
        atomicAdd(count, 1u);
        while (atomicAdd(count, 0u) < gridDim.x) __nanosleep(20);
        __threadfence();
    }
    __syncthreads();
    y[blockIdx.x * 32 + threadIdx.x] = written[(blockIdx.x + 1) % gridDim.x * 32 + threadIdx.x];
}
KERNEL_EXPORT(selftest_grid_barrier);
