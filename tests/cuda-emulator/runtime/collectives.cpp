// What the last lane computes for all lanes of a warp collective: shuffles, votes, reductions, matrix fragments.
#define EMU_RUNTIME 1
#include "emulator/mma.h"

namespace emu {
namespace {
template <class T, class F> void each(void** lanes, unsigned mask, F f) {
    for (; mask; mask &= mask - 1) {
        const int lane = __builtin_ctz(mask);
        f(lane, *static_cast<T*>(lanes[lane]));
    }
}

int shuffle_source(const Shuffle& s, int lane) {
    const int first = lane & ~(s.width - 1), end = first + s.width;
    int source = lane;
    switch (s.mode) {
        case Shuffle::INDEX: return first + (s.source & (s.width - 1));
        case Shuffle::UP: source = lane - s.source; break;
        case Shuffle::DOWN: source = lane + s.source; break;
        case Shuffle::XOR: source = lane ^ s.source; break;
    }
    const bool inside = s.mode == Shuffle::XOR ? source < end : source >= first && source < end;
    return inside ? source : lane;
}

int64_t combine(Reduce::Op op, int64_t a, int64_t b) {
    switch (op) {
        case Reduce::ADD: return a + b;
        case Reduce::MIN: return a < b ? a : b;
        case Reduce::MAX: return a > b ? a : b;
        case Reduce::AND: return a & b;
        case Reduce::OR: return a | b;
        default: return a ^ b;
    }
}

float bf16_low(uint32_t v) { return __uint_as_float(v << 16); }
float bf16_high(uint32_t v) { return __uint_as_float(v & 0xffff0000u); }

// D += A B for a fragment grid of 16 rows, K columns of A and 8 columns of B.
template <int K> void multiply(void** lanes, const float (&a)[16][K], const float (&b)[K][8]) {
    float d[16][8];
    each<Mma>(lanes, ~0u, [&](int lane, Mma& m) {
        const int g = lane >> 2, t = lane & 3;
        for (int i = 0; i < 4; ++i) d[g + (i >> 1) * 8][2 * t + (i & 1)] = m.d[i];
    });
    for (int r = 0; r < 16; ++r) {
        float sum[8] = {};
        for (int k = 0; k < K; ++k)
            for (int c = 0; c < 8; ++c) sum[c] += a[r][k] * b[k][c];
        for (int c = 0; c < 8; ++c) d[r][c] += sum[c];
    }
    each<Mma>(lanes, ~0u, [&](int lane, Mma& m) {
        const int g = lane >> 2, t = lane & 3;
        for (int i = 0; i < 4; ++i) m.d[i] = d[g + (i >> 1) * 8][2 * t + (i & 1)];
    });
}
}  // namespace

void shuffle(void** lanes, unsigned mask) {
    each<Shuffle>(lanes, mask, [&](int lane, Shuffle& s) {
        const int source = shuffle_source(s, lane);
        // A lane outside of the mask has no value to give: make the use of it visible.
        s.result = mask >> source & 1 ? static_cast<Shuffle*>(lanes[source])->value : 0xdeadbeefdeadbeefull;
    });
}

void ballot(void** lanes, unsigned mask) {
    unsigned votes = 0;
    each<Ballot>(lanes, mask, [&](int lane, Ballot& b) { votes |= (unsigned)(b.predicate != 0) << lane; });
    each<Ballot>(lanes, mask, [&](int, Ballot& b) { b.result = votes; });
}

void reduce(void** lanes, unsigned mask) {
    int64_t all = static_cast<Reduce*>(lanes[__builtin_ctz(mask)])->value;
    const unsigned rest = mask & (mask - 1);
    each<Reduce>(lanes, rest, [&](int, Reduce& r) { all = combine(r.op, all, r.value); });
    each<Reduce>(lanes, mask, [&](int, Reduce& r) { r.value = all; });
}

void match_any(void** lanes, unsigned mask) {
    each<Match>(lanes, mask, [&](int, Match& mine) {
        mine.result = 0;
        each<Match>(lanes, mask, [&](int other, Match& m) { mine.result |= (unsigned)(m.value == mine.value) << other; });
    });
}

// The fragments of m16n8k16, whose registers hold two values each: `low` and `high` read them.
template <class Low, class High>
static void mma_m16n8k16(void** lanes, Low low, High high) {
    float a[16][16], b[16][8];
    each<Mma>(lanes, ~0u, [&](int lane, Mma& m) {
        const int g = lane >> 2, t = 2 * (lane & 3);
        for (int i = 0; i < 4; ++i) {
            a[g + (i & 1) * 8][t + (i >> 1) * 8] = low(m.a[i]);
            a[g + (i & 1) * 8][t + (i >> 1) * 8 + 1] = high(m.a[i]);
        }
        for (int i = 0; i < 2; ++i) {
            b[t + i * 8][g] = low(m.b[i]);
            b[t + i * 8 + 1][g] = high(m.b[i]);
        }
    });
    multiply(lanes, a, b);
}

void mma_m16n8k16_bf16(void** lanes, unsigned) { mma_m16n8k16(lanes, bf16_low, bf16_high); }

void mma_m16n8k16_f16(void** lanes, unsigned) {
    const auto half = [](uint16_t bits) {
        __half value;
        memcpy(&value, &bits, sizeof bits);
        return float(value);
    };
    mma_m16n8k16(lanes, [&](uint32_t v) { return half(uint16_t(v)); }, [&](uint32_t v) { return half(uint16_t(v >> 16)); });
}

void mma_m16n8k8_tf32(void** lanes, unsigned) {
    float a[16][8], b[8][8];
    const auto tf32 = [](uint32_t v) { return __uint_as_float(v & 0xffffe000u); };
    each<Mma>(lanes, ~0u, [&](int lane, Mma& m) {
        const int g = lane >> 2, t = lane & 3;
        for (int i = 0; i < 4; ++i) a[g + (i & 1) * 8][t + (i >> 1) * 4] = tf32(m.a[i]);
        for (int i = 0; i < 2; ++i) b[t + i * 4][g] = tf32(m.b[i]);
    });
    multiply(lanes, a, b);
}

void ldmatrix(void** lanes, unsigned) {
    const auto& first = *static_cast<LdMatrix*>(lanes[0]);
    for (int matrix = 0; matrix < first.matrices; ++matrix) {
        uint16_t element[8][8];
        for (int row = 0; row < 8; ++row)
            memcpy(element[row], static_cast<LdMatrix*>(lanes[matrix * 8 + row])->row, sizeof element[row]);
        each<LdMatrix>(lanes, ~0u, [&](int lane, LdMatrix& m) {
            const int g = lane >> 2, t = 2 * (lane & 3);
            const uint16_t low = m.transposed ? element[t][g] : element[g][t];
            const uint16_t high = m.transposed ? element[t + 1][g] : element[g][t + 1];
            m.registers[matrix] = (uint32_t)high << 16 | low;
        });
    }
}

void stmatrix(void** lanes, unsigned) {
    const auto& first = *static_cast<StMatrix*>(lanes[0]);
    for (int matrix = 0; matrix < first.matrices; ++matrix)
        each<StMatrix>(lanes, ~0u, [&](int lane, StMatrix& m) {
            auto* row = static_cast<uint32_t*>(static_cast<StMatrix*>(lanes[matrix * 8 + (lane >> 2)])->row);
            row[lane & 3] = m.registers[matrix];
        });
}
}  // namespace emu
