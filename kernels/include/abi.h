/* Parameter structs of all kernels: plain C, so that bindgen makes `src/cuda/abi.rs` of them (`scripts/abi`).
 *
 * Device addresses are 64-bit integers. Ids are addresses of int32 values. Rows are packed; `offsets` of segments are B + 1 ids.
 */
#ifndef COSYVOICE_ABI_H
#define COSYVOICE_ABI_H

#include <stdint.h>

/* How the values of a Mat are stored. */
enum Dtype { DTYPE_F32 = 0, DTYPE_BF16 = 1, DTYPE_F16 = 2 };

/* A row-major matrix [rows, cols] without gaps. `data` is 0 where an optional operand is absent. */
typedef struct Mat {
    uint64_t data;
    int32_t rows;
    int32_t cols;
    int32_t dtype;
    int32_t reserved;
} Mat;

/* Element-wise functions, as `backend::Act`. */
enum ActKind {
    ACT_NONE = 0,
    ACT_RELU,
    ACT_GELU,
    ACT_GELU_TANH,
    ACT_SILU,
    ACT_MISH,
    ACT_ELU,
    ACT_TANH,
    ACT_SIGMOID,
    ACT_ABS,
    ACT_LEAKY_RELU,
    ACT_SNAKE
};

typedef struct ActParams {
    /* ActKind */
    int32_t kind;
    /* Of ACT_LEAKY_RELU. */
    float slope;
    /* Of ACT_SNAKE: one f32 per channel. */
    uint64_t alpha;
} ActParams;

/* What happens to a product before it is stored, as `backend::Epilogue`. */
enum EpilogueKind {
    EPILOGUE_NONE = 0,
    EPILOGUE_ACT,
    EPILOGUE_ADD,
    EPILOGUE_ACCUMULATE,
    EPILOGUE_ACCUMULATE_SCALED,
    EPILOGUE_SILU_MUL
};

typedef struct EpilogueParams {
    /* EpilogueKind */
    int32_t kind;
    /* Of EPILOGUE_ACCUMULATE_SCALED. */
    float scale;
    ActParams act;
    /* Of EPILOGUE_ADD: the shape of the output. */
    Mat residual;
} EpilogueParams;

#include "abi/attention.h"
#include "abi/conv.h"
#include "abi/dense.h"
#include "abi/flow.h"
#include "abi/memory.h"
#include "abi/norm.h"
#include "abi/sample.h"
#include "abi/vocoder.h"
#include "abi/peaks.h"

#endif
