// The parameters of the emulator's own test kernels; `bug` 0 is the correct kernel, other values plant one fault each.
#pragma once
#include <stdint.h>

struct SelfTest {
    uint64_t x, y, z;
    int32_t n, bug;
};
