// Warp collectives. Each is one call of emu_warp: lanes park there until every lane of the mask has come, then the last one
// computes the result of all. Only __syncwarp orders memory; shuffles and votes do not, as in the CUDA model.
#pragma once
#include "emulator/language.h"
#include "emulator/math.h"

namespace emu {
enum Collective { SYNCWARP = 1, SHUFFLE, BALLOT, REDUCE, MATCH, MMA, LDMATRIX, STMATRIX };

struct Shuffle {
    uint64_t value, result;
    int source, width;
    enum Mode { INDEX, UP, DOWN, XOR } mode;
};
void shuffle(void** lanes, unsigned mask);

template <class T> inline T shuffled(unsigned mask, T value, int source, int width, Shuffle::Mode mode) {
    static_assert(sizeof(T) <= 8);
    Shuffle s{0, 0, source, width, mode};
    __builtin_memcpy(&s.value, &value, sizeof(T));
    emu_warp(SHUFFLE, mask, &s, shuffle);
    T out;
    __builtin_memcpy(&out, &s.result, sizeof(T));
    return out;
}

struct Ballot {
    int predicate;
    unsigned result;
};
void ballot(void** lanes, unsigned mask);

struct Reduce {
    int64_t value;
    enum Op { ADD, MIN, MAX, AND, OR, XOR } op;
};
void reduce(void** lanes, unsigned mask);

struct Match {
    uint64_t value;
    unsigned result;
};
void match_any(void** lanes, unsigned mask);

template <class T> inline T reduced(unsigned mask, T value, Reduce::Op op) {
    Reduce r{(int64_t)value, op};
    emu_warp(REDUCE, mask, &r, reduce);
    return (T)r.value;
}
}  // namespace emu

inline void __syncwarp(unsigned mask = 0xffffffffu) { emu_warp(emu::SYNCWARP, mask, nullptr, nullptr); }

template <class T> inline T __shfl_sync(unsigned mask, T value, int lane, int width = 32) {
    return emu::shuffled(mask, value, lane, width, emu::Shuffle::INDEX);
}
template <class T> inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    return emu::shuffled(mask, value, (int)delta, width, emu::Shuffle::UP);
}
template <class T> inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    return emu::shuffled(mask, value, (int)delta, width, emu::Shuffle::DOWN);
}
template <class T> inline T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32) {
    return emu::shuffled(mask, value, lanes, width, emu::Shuffle::XOR);
}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
    emu::Ballot b{predicate, 0};
    emu_warp(emu::BALLOT, mask, &b, emu::ballot);
    return b.result;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == mask; }
inline unsigned __activemask() { return emu_activemask(); }

template <class T> inline unsigned __match_any_sync(unsigned mask, T value) {
    static_assert(sizeof(T) <= 8);
    emu::Match m{0, 0};
    __builtin_memcpy(&m.value, &value, sizeof(T));
    emu_warp(emu::MATCH, mask, &m, emu::match_any);
    return m.result;
}

inline unsigned __reduce_add_sync(unsigned m, unsigned v) { return emu::reduced(m, v, emu::Reduce::ADD); }
inline int __reduce_add_sync(unsigned m, int v) { return emu::reduced(m, v, emu::Reduce::ADD); }
inline unsigned __reduce_min_sync(unsigned m, unsigned v) { return emu::reduced(m, v, emu::Reduce::MIN); }
inline int __reduce_min_sync(unsigned m, int v) { return emu::reduced(m, v, emu::Reduce::MIN); }
inline unsigned __reduce_max_sync(unsigned m, unsigned v) { return emu::reduced(m, v, emu::Reduce::MAX); }
inline int __reduce_max_sync(unsigned m, int v) { return emu::reduced(m, v, emu::Reduce::MAX); }
inline unsigned __reduce_and_sync(unsigned m, unsigned v) { return emu::reduced(m, v, emu::Reduce::AND); }
inline unsigned __reduce_or_sync(unsigned m, unsigned v) { return emu::reduced(m, v, emu::Reduce::OR); }
inline unsigned __reduce_xor_sync(unsigned m, unsigned v) { return emu::reduced(m, v, emu::Reduce::XOR); }
