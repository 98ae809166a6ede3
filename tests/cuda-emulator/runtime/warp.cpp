// The rendezvous of the lanes of a warp collective: the last lane to arrive computes the result for all of them.
#include "block.h"
#include "report.h"

namespace emu {
namespace {
const char* name(int kind) {
    static const char* const names[] = {"?", "__syncwarp", "a shuffle", "a vote", "a reduction", "a match", "mma", "ldmatrix",
                                        "stmatrix"};
    return names[kind];
}

WarpSlot& slot_of(Warp& warp, unsigned mask, int kind, const void* site) {
    for (auto& slot : warp.slots)
        if (slot.mask == mask) {
            if (slot.kind != kind) finding(site, "DIVERGENCE: %s meets %s of the same lanes", name(kind), name(slot.kind));
            return slot;
        }
    for (auto& slot : warp.slots)
        if (!slot.mask) {
            slot.mask = mask;
            slot.arrived = 0;
            slot.kind = kind;
            return slot;
        }
    finding(site, "DIVERGENCE: more than 4 collectives of different masks at once in a warp");
}
}  // namespace
}  // namespace emu

extern "C" void emu_warp(int kind, unsigned mask, void* lane, void (*whole)(void** lanes, unsigned mask)) {
    using namespace emu;
    Worker& w = worker();
    Fiber& me = running();
    Warp& warp = w.warps[me.warp];
    const unsigned bit = 1u << me.lane;
    if (mask != warp.live) {
        if (!(mask & bit)) finding(__builtin_return_address(0), "MASK: the thread is not in its own mask %08x", mask);
        // A block of less than a warp may name all 32 lanes.
        if (mask == ~0u && w.threads < 32 * (me.warp + 1)) mask = ((1u << w.threads % 32) - 1);
        if (mask & ~warp.live)
            finding(__builtin_return_address(0), "MASK: %08x names lanes that have exited (live are %08x)", mask, warp.live);
    }
    WarpSlot& slot = slot_of(warp, mask, kind, __builtin_return_address(0));
    if (slot.arrived & bit) finding(__builtin_return_address(0), "DIVERGENCE: a lane came twice to %s", name(kind));
    slot.lanes[me.lane] = lane;
    slot.arrived |= bit;
    if (slot.arrived != mask) return suspend(State::WARP);
    if (whole) whole(slot.lanes, mask);
    slot.mask = 0;
    if (CHECKING && kind == SYNCWARP) clock_syncwarp(w, me.warp, mask);
    const unsigned first = me.warp * 32;
    if (settings.order == Order::REVERSE) {
        for (unsigned rest = mask & ~bit; rest;) {
            const unsigned i = 31 - __builtin_clz(rest);
            rest &= ~(1u << i);
            wake(w, first + i);
        }
    } else {
        for (unsigned rest = mask & ~bit; rest; rest &= rest - 1) wake(w, first + __builtin_ctz(rest));
    }
}
