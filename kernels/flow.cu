// What conditional flow matching adds to a transformer: time embedding, input of the estimator, guided Euler step.
#include "elements.cuh"
#include "mma.cuh"

constexpr int FLOW_THREADS = 256;

// Sinusoids of `scale · t`, out [B, dim]. Angles reach hundreds of turns: they are reduced in f64.
extern "C" __global__ void __launch_bounds__(FLOW_THREADS) time_embedding(const __grid_constant__ TimeEmbeddingParams p) {
    follow_predecessor();
    constexpr double INVERSE_PI = 0.31830988618379067154;
    const int half = p.out.cols / 2;
    for_each_chunk<1>(p.out.rows, half, [&](int row, int i) {
        const float frequency = float(exp(double(float(i) * -p.step)));
        const float angle = p.scale * load1(p.t, row) * frequency;
        const double half_turns = double(angle) * INVERSE_PI;
        float sine, cosine;
        sincospif(float(half_turns - 2.0 * rint(0.5 * half_turns)), &sine, &cosine);
        const size_t at = size_t(row) * p.out.cols + i;
        store1(p.out, at, sine);
        store1(p.out, at + half, cosine);
    });
}
KERNEL_EXPORT(time_embedding);

template <int W>
__device__ __forceinline__ void pack(const CfmPackParams& p) {
    const int rows = p.x.rows, cols = p.x.cols;
    for_each_chunk<W>(p.out.rows, p.out.cols, [&](int out_row, int out_col) {
        const int row = out_row % rows, part = out_col / cols, col = out_col % cols;
        const size_t at = size_t(row) * cols + col;
        float v[W] = {};
        if (part == 0) {
            load<W>(p.x, at, v);
        } else if (out_row < rows) {
            if (part == 1) load<W>(p.mu, at, v);
            if (part == 2) load<W>(p.spk, size_t(segment_of(ids(p.offsets), p.segments, row)) * cols + col, v);
            if (part == 3) load<W>(p.cond, at, v);
        }
        store<W>(p.out, size_t(out_row) * p.out.cols + out_col, v);
    });
}

// out [2N, 4C]: conditional rows [x, mu, spk, cond], then unconditional rows [x, 0, 0, 0].
extern "C" __global__ void __launch_bounds__(FLOW_THREADS) cfm_pack(const __grid_constant__ CfmPackParams p) {
    follow_predecessor();
    if (p.x.cols % CHUNK == 0) {
        pack<CHUNK>(p);
    } else {
        pack<1>(p);
    }
}
KERNEL_EXPORT(cfm_pack);

template <int W>
__device__ __forceinline__ void euler(const CfgEulerParams& p) {
    const size_t half = size_t(p.x.rows) * p.x.cols;
    for_each_chunk<W>(p.x.rows, p.x.cols, [&](int row, int col) {
        const float dt = load1(p.dt, segment_of(ids(p.offsets), p.segments, row));
        const size_t at = size_t(row) * p.x.cols + col;
        float x[W], conditional[W], unconditional[W];
        load<W>(p.x, at, x);
        load<W>(p.v, at, conditional);
        load<W>(p.v, half + at, unconditional);
#pragma unroll
        for (int j = 0; j < W; j++) {
            const float v = (1.0f + p.cfg_rate) * conditional[j] - p.cfg_rate * unconditional[j];
            x[j] += dt * v;
        }
        store<W>(p.x, at, x);
    });
}

// x += dt · ((1 + cfg) · v_cond − cfg · v_uncond)
extern "C" __global__ void __launch_bounds__(FLOW_THREADS) cfg_euler(const __grid_constant__ CfgEulerParams p) {
    follow_predecessor();
    if (p.x.cols % CHUNK == 0) {
        euler<CHUNK>(p);
    } else {
        euler<1>(p);
    }
}
KERNEL_EXPORT(cfg_euler);
