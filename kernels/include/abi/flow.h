/* kernels/flow.cu */

/* out [B, dim] = sin(scale t f_i), cos(scale t f_i), f_i = exp(-i step). t is [B, 1]. */
typedef struct TimeEmbeddingParams {
    Mat t;
    Mat out;
    float scale;
    float step;
} TimeEmbeddingParams;

/* out [2N, 4C]: rows [x, mu, spk, cond], then rows [x, 0, 0, 0]. x, mu, cond are [N, C], spk is [B, C]. */
typedef struct CfmPackParams {
    Mat x;
    Mat mu;
    Mat spk;
    Mat cond;
    Mat out;
    uint64_t offsets;
    int32_t segments;
    int32_t reserved;
} CfmPackParams;

/* x [N, C] += dt[s] * ((1 + cfg_rate) * v[i] - cfg_rate * v[N + i]). v is [2N, C], dt is [B, 1]. */
typedef struct CfgEulerParams {
    Mat x;
    Mat v;
    Mat dt;
    uint64_t offsets;
    int32_t segments;
    float cfg_rate;
} CfgEulerParams;
