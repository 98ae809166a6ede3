// Atomic operations. A thread that polls with them gives way now and then, so that the one it waits for can run.
#include <cstring>

#include "block.h"
#include "report.h"

namespace emu {
namespace {
constexpr unsigned ATOMICS_PER_TURN = 256;

template <class Unsigned, class Signed> Unsigned combined(int op, Unsigned old, Unsigned value) {
    switch (op) {
        case ADD: return old + value;
        case EXCHANGE: return value;
        case AND: return old & value;
        case OR: return old | value;
        case XOR: return old ^ value;
        case MIN_S: return (Signed)old < (Signed)value ? old : value;
        case MAX_S: return (Signed)old > (Signed)value ? old : value;
        case MIN_U: return old < value ? old : value;
        case MAX_U: return old > value ? old : value;
        default: return value;
    }
}

template <class Unsigned, class Signed> Unsigned atomic(void* p, int op, Unsigned value, Unsigned compare, const void* site) {
    if ((uintptr_t)p % sizeof(Unsigned)) finding(site, "MISALIGNED: atomic at %p", p);
    Worker& w = worker();
    // Before the checks: what another block releases while this one gives way is acquired only by an order noted after it.
    if (++w.atomics_in_turn > ATOMICS_PER_TURN) emu_yield();
    if (CHECKING) {
        check_access(p, sizeof(Unsigned), ATOMIC, site);
        if (!w.dynamic.holds(p) && !w.static_shared.holds(p)) check_atomic_order(p);
    }
    auto* target = static_cast<Unsigned*>(p);
    if (op == CAS) {
        __atomic_compare_exchange_n(target, &compare, value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
        return compare;
    }
    Unsigned old = __atomic_load_n(target, __ATOMIC_SEQ_CST), fresh;
    do {
        if (op == ADD_F) {
            const float sum = __uint_as_float((unsigned)old) + __uint_as_float((unsigned)value);
            fresh = __float_as_uint(sum);
        } else {
            fresh = combined<Unsigned, Signed>(op, old, value);
        }
    } while (!__atomic_compare_exchange_n(target, &old, fresh, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
    return old;
}
}  // namespace
}  // namespace emu

extern "C" {
uint32_t emu_atomic32(void* p, int op, uint32_t value, uint32_t compare) {
    return emu::atomic<uint32_t, int32_t>(p, op, value, compare, __builtin_return_address(0));
}
uint64_t emu_atomic64(void* p, int op, uint64_t value, uint64_t compare) {
    return emu::atomic<uint64_t, int64_t>(p, op, value, compare, __builtin_return_address(0));
}
}
