/* kernels/vocoder.cu */

/* phases[frame, h - 1]: running sum of the turns of harmonic h, in radians times `upsample`. One block per segment. */
typedef struct SourcePhasesParams {
    /* [N, 1], Hz */
    Mat f0;
    uint64_t offsets;
    /* f32 [N, harmonics] */
    uint64_t phases;
    int32_t harmonics;
    float upsample;
    float sample_rate_hz;
    int32_t reserved;
} SourcePhasesParams;

/* Blocks: samples of the longest segment, segments. */
typedef struct SineSourceParams {
    Mat f0;
    /* [N upsample, harmonics], or absent: drawn by Philox. */
    Mat noise;
    /* [1, harmonics] */
    Mat w;
    /* [1, 1] */
    Mat b;
    /* [N upsample, 1] */
    Mat out;
    uint64_t offsets;
    uint64_t phases;
    /* u64 of each segment, for Philox. */
    uint64_t seeds;
    uint64_t first_samples;
    int32_t upsample;
    int32_t harmonics;
    float frames_per_sample;
    float sine_amp;
    float noise_std;
    float voiced_threshold_hz;
} SineSourceParams;

/* Short Fourier transforms of each segment, both ways: `x` in, `out` out. Blocks: pieces of the longest output, segments. */
typedef struct SpectrumParams {
    Mat x;
    Mat out;
    uint64_t offsets;
    uint64_t out_offsets;
    int32_t n_fft;
    int32_t hop;
    /* Output rows of a block. */
    int32_t block_rows;
    /* Of the waveform. */
    float limit;
} SpectrumParams;
