/* kernels/sample.cu */

typedef struct LogSoftmaxParams {
    Mat x;
    Mat out;
} LogSoftmaxParams;

/* What sampling has to know of one row. */
typedef struct SampleRowParams {
    /* Of Philox. */
    uint64_t seed;
    /* Instead of Philox's. */
    double given[2];
    float top_p;
    int32_t top_k;
    int32_t window;
    float repetition_rate;
    uint32_t step;
    /* Whether `given` holds. */
    int32_t is_given;
    /* An id that cannot be chosen, -1 where there is none. */
    int32_t forbidden;
    /* The last tokens: ids `history_first` to `history_first + history_count` of SampleParams.history. */
    int32_t history_first;
    int32_t history_count;
    /* Where the drawn token goes: tokens[slot]. What stood there is the token after the history, if `ahead`. */
    int32_t slot;
    int32_t ahead;
    int32_t reserved;
} SampleRowParams;

/* A drawn token. */
typedef struct SampledRow {
    int32_t token;
    int32_t draws;
    int32_t candidates;
} SampledRow;

/* One block per row of logits [B, V]. */
typedef struct SampleParams {
    Mat logits;
    /* SampleRowParams [B] */
    uint64_t rows;
    /* int32 */
    uint64_t history;
    /* int32, by slot */
    uint64_t tokens;
    /* SampledRow [B] */
    uint64_t results;
    /* B workspaces where the block's shared memory is too small, else 0. */
    uint64_t workspace;
    /* Candidates that a workspace has room for, and chosen ones: see sample.cu. */
    int32_t capacity;
    int32_t chosen;
} SampleParams;
