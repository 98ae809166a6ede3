// The ends of the vocoder: harmonic source, its short Fourier transform, and the inverse of the output's. All f32.
// Reference: src/cpu/reference/vocoder.rs; SineGen2, SourceModuleHnNSF and HiFTGenerator of cosyvoice/hifigan/generator.py.
#include "common.cuh"
#include "mma.cuh"
#include "philox.cuh"

constexpr int PHASE_THREADS = 256;
// Turns that a block holds at a time, of all harmonics.
constexpr int PHASE_TURNS = 2048;
constexpr int SOURCE_THREADS = 256;
constexpr int SPECTRUM_THREADS = 256;
constexpr float MAGNITUDE_LIMIT = 100.0f;

// ---- harmonic source -------------------------------------------------------------------------------------------------

// Sums are f64, one frame after the other, and rounded to f32 at every frame: the value that the sum is rounded to is heard, since the
// interpolated phase is thousands of times larger than its sine's period. All turns of a piece are made at once; then thread h adds
// up those of harmonic h.
extern "C" __global__ void __launch_bounds__(PHASE_THREADS) source_phases(const __grid_constant__ SourcePhasesParams p) {
    follow_predecessor();
    __shared__ float turns[PHASE_TURNS];
    const int* offsets = ids(p.offsets);
    const int start = offsets[blockIdx.x], frames = offsets[blockIdx.x + 1] - start;
    float* phases = pointer<float>(p.phases) + size_t(start) * p.harmonics;
    for (int low = 0; low < p.harmonics; low += PHASE_THREADS) {
        const int width = min(p.harmonics - low, PHASE_THREADS), h = threadIdx.x;
        const int step = PHASE_TURNS / width;
        double sum = 0.0;
        for (int first = 0; first < frames; first += step) {
            const int count = min(step, frames - first);
            for (int i = threadIdx.x; i < count * width; i += PHASE_THREADS) {
                const float hz = pointer<const float>(p.f0.data)[start + first + i / width];
                const float t = hz * float(low + i % width + 1) / p.sample_rate_hz;
                const float part = t - truncf(t);
                turns[i] = part < 0.0f ? part + 1.0f : part;
            }
            __syncthreads();
            if (h < width) {
                float* to = phases + size_t(first) * p.harmonics + low + h;
                for (int i = 0; i < count; i++) {
                    sum += double(turns[i * width + h]);
                    to[size_t(i) * p.harmonics] = float(sum) * 2.0f * 3.14159265f * p.upsample;
                }
            }
            __syncthreads();
        }
    }
}
KERNEL_EXPORT(source_phases);

// Two independent standard normals of two words (Box-Muller).
__device__ __forceinline__ float2 normal_pair(uint32_t a, uint32_t b) {
    // (0, 1]: the logarithm of zero must not occur.
    const float u = a == 0xffffffffu ? 1.0f : float(a + 1) * (1.0f / 4294967296.0f);
    const float angle = 6.28318530717958648f * (float(b) * (1.0f / 4294967296.0f));
    const float r = sqrtf(-2.0f * logf(u));
    return make_float2(r * cosine(angle), r * sine(angle));
}

// Standard normals of four neighbouring harmonics, as `philox::source_normals`.
__device__ __forceinline__ float4 source_normals(uint64_t seed, uint64_t position, uint32_t lane) {
    const uint4 words = philox(seed, PHILOX_SOURCE_NOISE, position, lane);
    const float2 a = normal_pair(words.x, words.y), b = normal_pair(words.z, words.w);
    return make_float4(a.x, a.y, b.x, b.y);
}

// One thread per sample.
extern "C" __global__ void __launch_bounds__(SOURCE_THREADS) sine_source(const __grid_constant__ SineSourceParams p) {
    follow_predecessor();
    const int* offsets = ids(p.offsets);
    const int s = blockIdx.y, start = offsets[s], frames = offsets[s + 1] - start;
    const int i = blockIdx.x * SOURCE_THREADS + threadIdx.x;
    if (i >= frames * p.upsample) return;
    // As `frame_of`: the position's rounding is part of the reference.
    const float position = fmaxf(fmaf(p.frames_per_sample, float(i) + 0.5f, -0.5f), 0.0f);
    const int low = min(int(position), frames - 1), high = min(low + 1, frames - 1);
    const float weight = fminf(fmaxf(position - float(low), 0.0f), 1.0f);
    const bool voiced = pointer<const float>(p.f0.data)[start + i / p.upsample] > p.voiced_threshold_hz;
    const float sine_amp = voiced ? p.sine_amp : 0.0f, noise_amp = voiced ? p.noise_std : p.sine_amp / 3.0f;
    const float* before = pointer<const float>(p.phases) + size_t(start + low) * p.harmonics;
    const float* after = pointer<const float>(p.phases) + size_t(start + high) * p.harmonics;
    const size_t sample = size_t(start) * p.upsample + i;
    float sum = load1(p.b, 0);
    float4 normals = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    for (int h = 0; h < p.harmonics; h++) {
        float noise;
        if (p.noise.data) {
            noise = load1(p.noise, sample * p.harmonics + h);
        } else {
            if (h % 4 == 0) {
                const uint64_t at = pointer<const uint64_t>(p.first_samples)[s] + i;
                normals = source_normals(pointer<const uint64_t>(p.seeds)[s], at, h / 4);
            }
            noise = normals.x;
            normals = make_float4(normals.y, normals.z, normals.w, 0.0f);
        }
        const float phase = fmaf(1.0f - weight, before[h], weight * after[h]);
        sum = fmaf(load1(p.w, h), fmaf(sine_amp, sine(phase), noise_amp * noise), sum);
    }
    store1(p.out, sample, tanhf(sum));
}
KERNEL_EXPORT(sine_source);

// ---- Fourier transforms ----------------------------------------------------------------------------------------------

// Cosines and sines of the multiples of `2π / n`, and the periodic Hann window; all threads of the block.
struct Tables {
    float *cosines, *sines, *window;

    __device__ __forceinline__ Tables(float* shared, int n) : cosines(shared), sines(shared + n), window(shared + 2 * n) {
        for (int k = threadIdx.x; k < n; k += blockDim.x) {
            const float half_turns = 2.0f * float(k) / float(n), c = cospif(half_turns);
            cosines[k] = c;
            sines[k] = sinpif(half_turns);
            window[k] = 0.5f - 0.5f * c;
        }
    }
};

// `x [T, 1]` → `out [T / hop + 1, n_fft + 2]`: real parts, then imaginary parts; edges mirrored by `n_fft / 2`.
// Shared memory: 3 n_fft + (block_rows - 1) hop + n_fft values.
extern "C" __global__ void __launch_bounds__(SPECTRUM_THREADS) stft(const __grid_constant__ SpectrumParams p) {
    follow_predecessor();
    DYN_SHARED(float, shared);
    const int *offsets = ids(p.offsets), *out_offsets = ids(p.out_offsets), s = blockIdx.y;
    const int start = offsets[s], samples = offsets[s + 1] - start;
    const int out_start = out_offsets[s], frames = out_offsets[s + 1] - out_start;
    const int first = blockIdx.x * p.block_rows, count = min(p.block_rows, frames - first);
    if (count <= 0) return;
    const Tables tables(shared, p.n_fft);
    float* signal = shared + 3 * p.n_fft;
    const int from = first * p.hop - p.n_fft / 2, last = samples - 1;
    for (int i = threadIdx.x; i < (count - 1) * p.hop + p.n_fft; i += SPECTRUM_THREADS) {
        const int at = abs(from + i);
        signal[i] = load1(p.x, start + (at > last ? 2 * last - at : at));
    }
    __syncthreads();
    const int cols = p.n_fft + 2, bins = cols / 2;
    for (int i = threadIdx.x; i < count * cols; i += SPECTRUM_THREADS) {
        const int frame = i / cols, col = i % cols, bin = col % bins;
        const float* wave = signal + frame * p.hop;
        const float* basis = col < bins ? tables.cosines : tables.sines;
        float sum = 0.0f;
        for (int n = 0, k = 0; n < p.n_fft; n++) {
            sum = fmaf(wave[n] * tables.window[n], basis[k], sum);
            k += bin;
            if (k >= p.n_fft) k -= p.n_fft;
        }
        store1(p.out, size_t(out_start + first + frame) * cols + col, col < bins ? sum : -sum);
    }
}
KERNEL_EXPORT(stft);

// `min(exp(a), 100)` at the angle `sin(b)`, real and imaginary parts.
__device__ __forceinline__ float2 spectrum_bin(float a, float b) {
    const float e = expf(a), magnitude = e > MAGNITUDE_LIMIT ? MAGNITUDE_LIMIT : e, phase = sine(b);
    return make_float2(magnitude * cos_reduced(phase), magnitude * sin_reduced(phase));
}

// `x [T, n_fft + 2]` of log magnitudes and phase arguments → `out [(T - 1) hop, 1]`. A block makes the spectra of all frames that reach
// its samples, then each sample adds up its frames. Shared memory: 3 n_fft + ((block_rows + n_fft) / hop + 2) (n_fft + 2) values.
extern "C" __global__ void __launch_bounds__(SPECTRUM_THREADS) istft_head(const __grid_constant__ SpectrumParams p) {
    follow_predecessor();
    DYN_SHARED(float, shared);
    const int *offsets = ids(p.offsets), *out_offsets = ids(p.out_offsets), s = blockIdx.y;
    const int start = offsets[s], frames = offsets[s + 1] - start;
    const int out_start = out_offsets[s], samples = out_offsets[s + 1] - out_start;
    const int first = blockIdx.x * p.block_rows, count = min(p.block_rows, samples - first);
    if (count <= 0) return;
    const Tables tables(shared, p.n_fft);
    float* spectra = shared + 3 * p.n_fft;
    const int cols = p.n_fft + 2, bins = cols / 2, half = p.n_fft / 2;
    // Sample i lies at i + half of the sum, which frame f reaches from f hop to f hop + n_fft - 1.
    const int low = max(first + half + p.hop - p.n_fft, 0) / p.hop;
    const int high = min((first + count - 1 + half) / p.hop, frames - 1);
    for (int i = threadIdx.x; i < (high - low + 1) * bins; i += SPECTRUM_THREADS) {
        const int frame = i / bins, bin = i % bins;
        const size_t at = size_t(start + low + frame) * cols + bin;
        const float2 v = spectrum_bin(load1(p.x, at), load1(p.x, at + bins));
        // The first and last bin occur once and are real.
        const bool edge = bin == 0 || bin == half;
        spectra[frame * cols + bin] = edge ? v.x : 2.0f * v.x;
        spectra[frame * cols + bins + bin] = edge ? 0.0f : 2.0f * v.y;
    }
    __syncthreads();
    const float scale = 1.0f / float(p.n_fft);
    for (int i = threadIdx.x; i < count; i += SPECTRUM_THREADS) {
        const int at = first + i + half;
        float sum = 0.0f, envelope = 0.0f;
        for (int f = max(at + p.hop - p.n_fft, 0) / p.hop; f <= min(at / p.hop, frames - 1); f++) {
            const int n = at - f * p.hop;
            const float* spectrum = spectra + (f - low) * cols;
            float wave = 0.0f;
            for (int bin = 0, k = 0; bin < bins; bin++) {
                wave = fmaf(spectrum[bin], tables.cosines[k], wave);
                wave = fmaf(-spectrum[bins + bin], tables.sines[k], wave);
                k += n;
                if (k >= p.n_fft) k -= p.n_fft;
            }
            const float w = tables.window[n];
            sum = fmaf(wave * scale, w, sum);
            envelope = fmaf(w, w, envelope);
        }
        float y = sum / envelope;
        y = y > p.limit ? p.limit : y;
        store1(p.out, out_start + first + i, y < -p.limit ? -p.limit : y);
    }
}
KERNEL_EXPORT(istft_head);
