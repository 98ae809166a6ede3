/* kernels/conv.cu */

/* A convolution of each segment by itself. Row `phases m + phase` of its output adds up, over the taps, the input rows
 * `stride m + dilation tap + (phase + shift) / phases - back`; a plain convolution has one phase.
 * Blocks: tiles of m of the longest segment, tiles of columns times phases, segments. */
typedef struct ConvParams {
    Mat x;
    Mat out;
    /* Per phase: conv_mma bf16 or f16 [chunks, taps, columns, CONV_CHUNK], conv_f32 and conv_exact f32 [taps, channels, columns],
     * conv_grouped f32 [taps, channels / groups, columns]; zeros past the last channel. */
    uint64_t weights;
    /* f32 [columns] */
    uint64_t bias;
    uint64_t offsets;
    uint64_t out_offsets;
    EpilogueParams epilogue;
    /* Applied to the input; padding stays zero. */
    ActParams pre;
    /* Output channels of the packed weight, padding included. */
    int32_t columns;
    int32_t taps;
    int32_t stride;
    int32_t dilation;
    int32_t phases;
    int32_t shift;
    int32_t back;
    /* Rows beyond the ends are mirrored, not zero. */
    int32_t reflect;
    int32_t groups;
    /* conv_mma: rows of an input tile, and whether it serves all taps (else it is made for each). */
    int32_t tile_rows;
    int32_t windowed;
    int32_t reserved;
} ConvParams;

/* Input channels that conv_mma holds at a time. */
#define CONV_CHUNK 32
