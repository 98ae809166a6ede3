// Philox4x32-10, with the counters of src/backend/philox.rs, so that the device draws the same numbers as the host.
#pragma once
#include <stdint.h>

constexpr unsigned PHILOX_SAMPLING = 1, PHILOX_SOURCE_NOISE = 2;

// Four words of `(seed, stream, position)`; `lane` extends the counter.
__device__ __forceinline__ uint4 philox(uint64_t seed, unsigned stream, uint64_t position, unsigned lane) {
    unsigned c0 = unsigned(position), c1 = unsigned(position >> 32), c2 = lane, c3 = stream;
    unsigned k0 = unsigned(seed), k1 = unsigned(seed >> 32);
#pragma unroll
    for (int round = 0; round < 10; round++) {
        const unsigned high0 = __umulhi(0xD2511F53u, c0), low0 = 0xD2511F53u * c0;
        const unsigned high1 = __umulhi(0xCD9E8D57u, c2), low1 = 0xCD9E8D57u * c2;
        c0 = high1 ^ c1 ^ k0, c1 = low1, c2 = high0 ^ c3 ^ k1, c3 = low0;
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    return make_uint4(c0, c1, c2, c3);
}
