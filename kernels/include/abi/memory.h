/* kernels/memory.cu */

/* dst[dst_row + i, dst_col + c] = src[from(i), c] for i < rows and all columns of src, where
 * from(i) = ids ? ids[i] : src_row + i / repeat. */
typedef struct CopyRowsParams {
    Mat src;
    Mat dst;
    uint64_t ids;
    int32_t rows;
    int32_t src_row;
    int32_t dst_row;
    int32_t dst_col;
    int32_t repeat;
    int32_t reserved;
} CopyRowsParams;

/* Linear interpolation of each segment to another length. */
typedef struct InterpolateParams {
    Mat x;
    Mat out;
    uint64_t offsets;
    uint64_t out_offsets;
    int32_t segments;
    int32_t reserved;
} InterpolateParams;

#define EMBED_TABLES 4

/* out[i] = tables[which[i]][ids[i]], where the id -1 - s stands for drawn[s] */
typedef struct EmbedParams {
    Mat tables[EMBED_TABLES];
    Mat out;
    uint64_t which;
    uint64_t ids;
    uint64_t drawn;
    int32_t drawn_count;
    int32_t table_count;
} EmbedParams;
