// Atomic operations on shared and global memory. Blocks run on several OS threads, so they are real atomics.
#pragma once
#include "emulator/math.h"

namespace emu {
enum AtomicOp { ADD, EXCHANGE, CAS, AND, OR, XOR, MIN_S, MAX_S, MIN_U, MAX_U, ADD_F };
}
extern "C" uint32_t emu_atomic32(void* p, int op, uint32_t value, uint32_t compare);
extern "C" uint64_t emu_atomic64(void* p, int op, uint64_t value, uint64_t compare);

#define EMU_ATOMIC32(NAME, TYPE, OP) \
    inline TYPE NAME(TYPE* p, TYPE v) { return (TYPE)emu_atomic32(p, emu::OP, (uint32_t)v, 0); }
#define EMU_ATOMIC64(NAME, TYPE, OP) \
    inline TYPE NAME(TYPE* p, TYPE v) { return (TYPE)emu_atomic64(p, emu::OP, (uint64_t)v, 0); }
EMU_ATOMIC32(atomicAdd, int, ADD)
EMU_ATOMIC32(atomicAdd, unsigned, ADD)
EMU_ATOMIC64(atomicAdd, unsigned long long, ADD)
EMU_ATOMIC32(atomicMin, int, MIN_S)
EMU_ATOMIC32(atomicMin, unsigned, MIN_U)
EMU_ATOMIC64(atomicMin, long long, MIN_S)
EMU_ATOMIC64(atomicMin, unsigned long long, MIN_U)
EMU_ATOMIC32(atomicMax, int, MAX_S)
EMU_ATOMIC32(atomicMax, unsigned, MAX_U)
EMU_ATOMIC64(atomicMax, long long, MAX_S)
EMU_ATOMIC64(atomicMax, unsigned long long, MAX_U)
EMU_ATOMIC32(atomicExch, int, EXCHANGE)
EMU_ATOMIC32(atomicExch, unsigned, EXCHANGE)
EMU_ATOMIC64(atomicExch, unsigned long long, EXCHANGE)
EMU_ATOMIC32(atomicAnd, int, AND)
EMU_ATOMIC32(atomicAnd, unsigned, AND)
EMU_ATOMIC32(atomicOr, int, OR)
EMU_ATOMIC32(atomicOr, unsigned, OR)
EMU_ATOMIC32(atomicXor, unsigned, XOR)
#undef EMU_ATOMIC32
#undef EMU_ATOMIC64

inline int atomicSub(int* p, int v) { return atomicAdd(p, -v); }
inline unsigned atomicSub(unsigned* p, unsigned v) { return atomicAdd(p, 0u - v); }
inline float atomicAdd(float* p, float v) {
    return __uint_as_float(emu_atomic32(p, emu::ADD_F, __float_as_uint(v), 0));
}
inline int atomicCAS(int* p, int compare, int value) {
    return (int)emu_atomic32(p, emu::CAS, (uint32_t)value, (uint32_t)compare);
}
inline unsigned atomicCAS(unsigned* p, unsigned compare, unsigned value) {
    return emu_atomic32(p, emu::CAS, value, compare);
}
inline unsigned long long atomicCAS(unsigned long long* p, unsigned long long compare, unsigned long long value) {
    return emu_atomic64(p, emu::CAS, value, compare);
}
