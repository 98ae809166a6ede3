/* kernels/gemm.cu, gemv.cu, gemm_hopper.cu, gemm_f32.cu, elementwise.cu */

/* A packed weight: `rows` rows of `cols` values, both padded with zeros to multiples of 64, rows without gaps. Sums over k are
 * taken in segments of `segment` values (a multiple of 64), which are added up in ascending order. */
typedef struct PackedWeight {
    uint64_t data;
    /* One f32 per row. */
    uint64_t bias;
    int32_t rows;
    int32_t cols;
    int32_t segment;
    int32_t dtype;
    /* Rows alternate: eight gates, their eight ups; the output has half as many columns. */
    int32_t gated;
    int32_t reserved;
} PackedWeight;

/* out = epilogue(x weight^T + bias) */
typedef struct GemmParams {
    Mat x;
    Mat out;
    PackedWeight weight;
    EpilogueParams epilogue;
    /* Partial sums f32 and arrival counters (zero between launches) of kernels whose blocks share a tile. */
    uint64_t partial;
    uint64_t counters;
} GemmParams;

/* values = act(values) */
typedef struct ActivateParams {
    Mat values;
    ActParams act;
} ActivateParams;

/* y = a x + b y */
typedef struct AxpbyParams {
    Mat x;
    Mat y;
    float a;
    float b;
} AxpbyParams;
