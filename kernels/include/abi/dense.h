/* kernels/gemm.cu, kernels/gemv.cu, kernels/gemm_f32.cu, kernels/gemm_hopper.cu, kernels/elementwise.cu */

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

/* A CUtensorMap, made by cuTensorMapEncodeTiled. */
typedef struct TensorMapBits {
    uint64_t bits[16];
} __attribute__((aligned(64))) TensorMapBits;

/* Bytes of dynamic shared memory of gemm_hopper_large and gemm_hopper_small. */
#define HOPPER_LARGE_SHARED 209008
#define HOPPER_SMALL_SHARED 110704

/* kernels/gemm_hopper.cu: x in boxes of 64 columns and 64 rows, the weight likewise, both with the 128-byte swizzle. */
typedef struct HopperGemmParams {
    TensorMapBits x_map;
    TensorMapBits weight_map;
    GemmParams gemm;
    uint64_t reserved[5];
} HopperGemmParams;

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
