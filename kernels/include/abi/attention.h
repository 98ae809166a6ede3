/* kernels/paged_attention.cu and kernels/attention.cu */

/* Rotation of queries and keys, and the new rows' way into the cache. */
typedef struct RopeParams {
    /* [N, (Hq + 2 Hk) Dh] */
    Mat qkv;
    /* [N, Hq Dh] */
    Mat q;
    /* The layer's, [P, Hk, page_size, Dh] each. */
    uint64_t keys;
    uint64_t values;
    /* Ids [N]. */
    uint64_t positions;
    uint64_t slots;
    /* f32 [Dh / 2] */
    uint64_t frequencies;
    int32_t cache_dtype;
    int32_t kv_heads;
    int32_t head_dim;
    int32_t page_size;
} RopeParams;

/* Causal grouped attention of the new rows over a paged cache. */
typedef struct PagedParams {
    /* [N, Hq Dh] */
    Mat q;
    Mat out;
    /* The layer's, [P, Hk, page_size, Dh] each. */
    uint64_t keys;
    uint64_t values;
    /* Ids: [B + 1], [N], [B], [B, max_pages]. */
    uint64_t offsets;
    uint64_t positions;
    uint64_t context;
    uint64_t block_table;
    /* What splits leave for the last one of their row: f32 [B, Hq, max_splits, Dh] sums, f32 [B, Hq, max_splits, 2] maxima and
     * sums of weights, ids [B, blocks of heads] of how many are there (0 before and after). */
    uint64_t partial_sums;
    uint64_t partial_stats;
    uint64_t arrived;
    int32_t cache_dtype;
    int32_t sequences;
    int32_t max_pages;
    int32_t max_splits;
    int32_t kv_heads;
    /* Query heads of a key head. */
    int32_t group;
    int32_t head_dim;
    int32_t page_size;
    /* On scores. */
    float scale;
    int32_t reserved;
} PagedParams;

/* Self-attention inside sequences. */
typedef struct AttentionParams {
    /* [N, 3 H Dh] */
    Mat qkv;
    /* [Nq, H Dh] */
    Mat out;
    /* Relative positions [2 center + 1, H Dh] and their biases [1, H Dh], or absent. */
    Mat positions;
    Mat content_bias;
    Mat position_bias;
    /* Ids: [B + 1], [B + 1], [B]. */
    uint64_t offsets;
    uint64_t query_offsets;
    uint64_t chunks;
    int32_t sequences;
    int32_t heads;
    int32_t head_dim;
    int32_t center;
    /* On scores. */
    float scale;
    int32_t reserved;
} AttentionParams;
