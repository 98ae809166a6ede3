// Log-probabilities, and repetition-aware sampling wholly on the device. One block per row of logits [B, V].
//
// What is drawn is said in src/cpu/reference/sample.rs. The k most probable ids are found exactly, in the order (probability falling,
// id rising) that a 64-bit key gives: of the threads' largest keys, the k-th largest bounds all candidates from below, and at most
// k · ⌈V / threads⌉ keys are not below it; each of those counts how many are larger, which is its place.
// Sums that a draw is compared with are f64, in a fixed order.
#include "common.cuh"
#include "mma.cuh"
#include "philox.cuh"

constexpr int SAMPLE_THREADS = 256;
constexpr int SAMPLE_WARPS = SAMPLE_THREADS / WARP;

// A uniform in [0, 1) with 53 random bits.
__device__ __forceinline__ double uniform_f64(unsigned high, unsigned low) {
    return double((uint64_t(high) << 32 | low) >> 11) * (1.0 / 9007199254740992.0);
}

struct Sum {
    template <class T>
    __device__ __forceinline__ T operator()(T a, T b) const { return a + b; }
};

struct Max {
    template <class T>
    __device__ __forceinline__ T operator()(T a, T b) const { return b > a ? b : a; }
};

// Reduction over the block, in all threads. `scratch` may be used again at once.
template <class T, class Op>
__device__ __forceinline__ T block_reduce(T v, T* scratch, Op op) {
#pragma unroll
    for (int offset = WARP / 2; offset > 0; offset /= 2) v = op(v, __shfl_xor_sync(FULL_WARP, v, offset));
    if (threadIdx.x % WARP == 0) scratch[threadIdx.x / WARP] = v;
    __syncthreads();
    v = scratch[threadIdx.x % SAMPLE_WARPS];
#pragma unroll
    for (int offset = SAMPLE_WARPS / 2; offset > 0; offset /= 2) v = op(v, __shfl_xor_sync(FULL_WARP, v, offset));
    __syncthreads();
    return v;
}

extern "C" __global__ void __launch_bounds__(SAMPLE_THREADS) log_softmax(const __grid_constant__ LogSoftmaxParams p) {
    follow_predecessor();
    __shared__ float maxima[SAMPLE_WARPS];
    __shared__ double sums[SAMPLE_WARPS];
    const int cols = p.x.cols;
    const size_t first = size_t(blockIdx.x) * cols;
    float largest = -INFINITY;
    for (int i = threadIdx.x; i < cols; i += SAMPLE_THREADS) largest = fmaxf(largest, load1(p.x, first + i));
    largest = block_reduce(largest, maxima, Max());
    double sum = 0.0;
    for (int i = threadIdx.x; i < cols; i += SAMPLE_THREADS) sum += double(expf(load1(p.x, first + i) - largest));
    sum = block_reduce(sum, sums, Sum());
    const double shift = double(largest) + log(sum);
    for (int i = threadIdx.x; i < cols; i += SAMPLE_THREADS) store1(p.out, first + i, float(double(load1(p.x, first + i)) - shift));
}
KERNEL_EXPORT(log_softmax);

// What the threads of a block share while they draw one token.
struct Shared {
    float maxima[SAMPLE_WARPS];
    double sums[SAMPLE_WARPS];
    uint64_t largest[SAMPLE_THREADS];
    uint64_t threshold;
    int candidates;
    int token, kept, redraw;
    int found, last;
};

// The parts of a workspace: candidates' keys, the chosen ones in order, probabilities of all ids.
struct Workspace {
    uint64_t *keys, *chosen;
    float* probabilities;
};

// Orders ids by probability, the lower id first among equals. Never 0.
__device__ __forceinline__ uint64_t key_of(float probability, int id) {
    return uint64_t(__float_as_uint(probability)) << 32 | unsigned(~id);
}

__device__ __forceinline__ float probability_of(uint64_t key) { return __uint_as_float(unsigned(key >> 32)); }
__device__ __forceinline__ int id_of(uint64_t key) { return int(~unsigned(key)); }

// `p = softmax(logits)` with two ids left out (-1: none).
__device__ __forceinline__ void softmax(const Mat& logits, int forbidden, int repeated, float* p, Shared& s) {
    const int cols = logits.cols;
    const size_t first = size_t(blockIdx.x) * cols;
    float largest = -INFINITY;
    for (int i = threadIdx.x; i < cols; i += SAMPLE_THREADS) {
        const float x = i == forbidden || i == repeated ? -INFINITY : load1(logits, first + i);
        largest = fmaxf(largest, x);
        p[i] = x;
    }
    largest = block_reduce(largest, s.maxima, Max());
    double sum = 0.0;
    for (int i = threadIdx.x; i < cols; i += SAMPLE_THREADS) {
        const float e = expf(p[i] - largest);
        sum += double(e);
        p[i] = e;
    }
    const float total = float(block_reduce(sum, s.sums, Sum()));
    for (int i = threadIdx.x; i < cols; i += SAMPLE_THREADS) p[i] /= total;
    __syncthreads();
}

// How many of `keys` are larger.
__device__ __forceinline__ int rank_of(uint64_t key, const uint64_t* keys, int count) {
    int rank = 0;
#pragma unroll 8
    for (int j = 0; j < count; j++) rank += keys[j] > key;
    return rank;
}

// The `k` most probable of `cols` ids, in order, in `w.chosen`. `k` is neither more than `cols` nor than there is room for.
__device__ __forceinline__ void most_probable(const Workspace& w, int cols, int k, Shared& s) {
    uint64_t largest = 0;
    for (int i = threadIdx.x; i < cols; i += SAMPLE_THREADS) largest = max(largest, key_of(w.probabilities[i], i));
    s.largest[threadIdx.x] = largest;
    if (threadIdx.x == 0) s.candidates = 0, s.threshold = 0;
    __syncthreads();
    // Beyond as many as there are threads, every id is a candidate.
    if (k <= SAMPLE_THREADS && largest && rank_of(largest, s.largest, SAMPLE_THREADS) == k - 1) s.threshold = largest;
    __syncthreads();
    for (int i = threadIdx.x; i < cols; i += SAMPLE_THREADS) {
        const uint64_t key = key_of(w.probabilities[i], i);
        if (key >= s.threshold) w.keys[atomicAdd(&s.candidates, 1)] = key;
    }
    __syncthreads();
    const int count = s.candidates;
    for (int i = threadIdx.x; i < count; i += SAMPLE_THREADS) {
        const int rank = rank_of(w.keys[i], w.keys, count);
        if (rank < k) w.chosen[rank] = w.keys[i];
    }
    __syncthreads();
}

// Draws from the shortest run of the `k` most probable ids that reaches `top_p`. One thread.
__device__ __forceinline__ void draw_nucleus(const uint64_t* chosen, int k, float top_p, double u, Shared& s) {
    int kept = 0;
    float reached = 0.0f;
    double total = 0.0;
    while (kept < k && reached < top_p) {
        const float p = probability_of(chosen[kept++]);
        reached += p;
        total += double(p);
    }
    int drawn = 0;
    double cumulative = 0.0;
    for (int i = 0; i < kept; i++) {
        const float p = probability_of(chosen[i]);
        if (p > 0.0f) drawn = i;
        cumulative += double(p);
        if (cumulative / total > u) {
            drawn = i;
            break;
        }
    }
    s.token = k > 0 ? id_of(chosen[drawn]) : 0;
    s.kept = kept;
}

// Sum of the values of all threads before this one.
__device__ __forceinline__ double exclusive_sum(double v, double* scratch) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    double sum = v;
#pragma unroll
    for (int offset = 1; offset < WARP; offset *= 2) {
        const double below = __shfl_up_sync(FULL_WARP, sum, offset);
        if (lane >= offset) sum += below;
    }
    if (lane == WARP - 1) scratch[warp] = sum;
    const double in_warp = __shfl_up_sync(FULL_WARP, sum, 1);
    __syncthreads();
    double before = 0.0;
    for (int i = 0; i < warp; i++) before += scratch[i];
    __syncthreads();
    return lane ? before + in_warp : before;
}

// Draws from all ids: the first whose share of the cumulative sum exceeds `u`, in `s.found`.
__device__ __forceinline__ void draw_any(const float* p, int cols, double u, Shared& s) {
    const int per_thread = (cols + SAMPLE_THREADS - 1) / SAMPLE_THREADS;
    const int first = min(cols, int(threadIdx.x) * per_thread), end = min(cols, first + per_thread);
    double sum = 0.0;
    int last = 0;
    for (int i = first; i < end; i++) {
        sum += double(p[i]);
        if (p[i] > 0.0f) last = i;
    }
    const double before = exclusive_sum(sum, s.sums);
    const double total = block_reduce(sum, s.sums, Sum());
    if (threadIdx.x == 0) s.found = cols, s.last = 0;
    __syncthreads();
    atomicMax(&s.last, last);
    if ((before + sum) / total > u) {
        double cumulative = before;
        for (int i = first; i < end; i++) {
            cumulative += double(p[i]);
            if (cumulative / total > u) {
                atomicMin(&s.found, i);
                break;
            }
        }
    }
    __syncthreads();
    if (threadIdx.x == 0 && s.found == cols) s.found = s.last;
}

extern "C" __global__ void __launch_bounds__(SAMPLE_THREADS) sample(const __grid_constant__ SampleParams p) {
    follow_predecessor();
    DYN_SHARED(unsigned char, dynamic);
    __shared__ Shared s;
    const SampleRowParams& row = pointer<const SampleRowParams>(p.rows)[blockIdx.x];
    const int cols = p.logits.cols;
    const size_t bytes = (size_t(p.capacity) + p.chosen) * sizeof(uint64_t) + size_t(cols + cols % 2) * sizeof(float);
    unsigned char* base = p.workspace ? pointer<unsigned char>(p.workspace) + blockIdx.x * bytes : dynamic;
    Workspace w;
    w.keys = reinterpret_cast<uint64_t*>(base);
    w.chosen = w.keys + p.capacity;
    w.probabilities = reinterpret_cast<float*>(w.chosen + p.chosen);

    double first = row.given[0], second = row.given[1];
    if (!row.is_given) {
        const uint4 words = philox(row.seed, PHILOX_SAMPLING, row.step, 0);
        first = uniform_f64(words.x, words.y);
        second = uniform_f64(words.z, words.w);
    }
    const int k = min(row.top_k, cols);
    softmax(p.logits, row.forbidden, -1, w.probabilities, s);
    most_probable(w, cols, k, s);
    if (threadIdx.x == 0) {
        draw_nucleus(w.chosen, k, row.top_p, first, s);
        int repeats = 0;
        for (int i = 0; i < row.history_count; i++) repeats += ids(p.history)[row.history_first + i] == s.token;
        if (row.ahead) repeats += ids(p.tokens)[row.slot] == s.token;
        s.redraw = float(repeats) >= float(row.window) * row.repetition_rate;
    }
    __syncthreads();
    const int token = s.token;
    if (s.redraw) {
        softmax(p.logits, row.forbidden, token, w.probabilities, s);
        draw_any(w.probabilities, cols, second, s);
    }
    if (threadIdx.x == 0) {
        const int chosen = s.redraw ? s.found : token;
        pointer<int>(p.tokens)[row.slot] = chosen;
        pointer<SampledRow>(p.results)[blockIdx.x] = SampledRow{chosen, s.redraw ? 2 : 1, s.kept};
    }
}
KERNEL_EXPORT(sample);
