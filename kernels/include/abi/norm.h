/* kernels/norm.cu */

/* h = x (+ residual, where h is stored back); out = h / sqrt(mean(h^2) + eps) * w. w is [1, cols]. */
typedef struct RmsNormParams {
    Mat x;
    Mat residual;
    Mat w;
    Mat out;
    float eps;
    int32_t reserved;
} RmsNormParams;

/* out = act(scale * ((x - mean) / sqrt(var + eps) * w + b)). w, b are [1, cols]. */
typedef struct LayerNormParams {
    Mat x;
    Mat w;
    Mat b;
    Mat out;
    ActParams act;
    float eps;
    float scale;
} LayerNormParams;

/* x[i] += v[s] for each row i of segment s. */
typedef struct AddSegmentRowsParams {
    Mat x;
    Mat v;
    uint64_t offsets;
    int32_t segments;
    int32_t reserved;
} AddSegmentRowsParams;

/* x[i] /= max(|x[i]|, eps) */
typedef struct L2NormalizeParams {
    Mat x;
    float eps;
    int32_t reserved;
} L2NormalizeParams;
