// The clocks of the checking flavour: what each synchronising operation lets a thread know about the others.
#include <algorithm>

#include "block.h"

namespace emu {
namespace {
void join(std::vector<uint32_t>& into, const std::vector<uint32_t>& from) {
    for (size_t i = 0; i < into.size(); ++i) into[i] = std::max(into[i], from[i]);
}

// Empties knowledge that a block barrier has made pointless.
std::vector<uint32_t>& current(Worker& w, Knowledge& k) {
    if (k.since != w.shadow.barrier) {
        k.since = w.shadow.barrier;
        k.upto.assign(FIRST_THREAD + w.threads, 0);
    }
    return k.upto;
}

Worker& worker_of(Fiber& f) { return *static_cast<Worker*>(f.block); }
}  // namespace

void clock_start_block(Worker& w) {
    BlockShadow& s = w.shadow;
    s.block_start = s.barrier = ++s.tick;
    s.mbarriers.clear();
    s.acquired_any = false;
    for (unsigned i = 0; i < w.threads; ++i) w.fibers[i].clock.now = s.tick;
    for (unsigned i = 0; i < w.threads; ++i) w.fibers[i].clock.proxy_fence = 0;
}

void clock_block_barrier(Worker& w) {
    BlockShadow& s = w.shadow;
    // Proxy fences made before the barrier cover what was stored before it; the stamps stay comparable.
    s.barrier = ++s.tick;
    for (unsigned i = 0; i < w.threads; ++i) w.fibers[i].clock.now = s.tick;
}

void clock_syncwarp(Worker& w, unsigned warp, unsigned mask) {
    Fiber* lanes = &w.fibers[warp * 32];
    uint32_t known[32] = {};
    Knowledge* joint = nullptr;
    for (unsigned rest = mask; rest; rest &= rest - 1) {
        const unsigned i = __builtin_ctz(rest);
        Clock& c = lanes[i].clock;
        for (int l = 0; l < 32; ++l) known[l] = std::max(known[l], c.lanes[l]);
        if (c.others.since == w.shadow.barrier) {
            if (joint)
                join(joint->upto, c.others.upto);
            else
                joint = &c.others;
        }
    }
    const uint32_t tick = ++w.shadow.tick;
    for (unsigned rest = mask; rest; rest &= rest - 1) {
        const unsigned i = __builtin_ctz(rest);
        known[i] = lanes[i].clock.now;
    }
    for (unsigned rest = mask; rest; rest &= rest - 1) {
        Clock& c = lanes[__builtin_ctz(rest)].clock;
        std::copy(known, known + 32, c.lanes);
        c.now = tick;
        if (joint && &c.others != joint) c.others = *joint;
    }
}

void clock_release(Fiber& f, Knowledge& into) {
    Worker& w = worker_of(f);
    auto& upto = current(w, into);
    const unsigned first = FIRST_THREAD + f.warp * 32;
    for (unsigned l = 0; l < 32 && first + l < upto.size(); ++l) upto[first + l] = std::max(upto[first + l], f.clock.lanes[l]);
    if (f.clock.others.since == w.shadow.barrier) join(upto, f.clock.others.upto);
    upto[FIRST_THREAD + f.linear] = f.clock.now;
    f.clock.now = ++w.shadow.tick;
}

void clock_acquire(Fiber& f, const Knowledge& from) {
    Worker& w = worker_of(f);
    if (from.since != w.shadow.barrier) return;
    join(current(w, f.clock.others), from.upto);
}

void clock_learn(Fiber& f, unsigned participant, uint32_t stamp) {
    uint32_t& known = current(worker_of(f), f.clock.others)[participant];
    known = std::max(known, stamp);
}

MBarrierSlot& mbarrier_slot(Worker& w, const void* barrier) {
    auto& slots = w.shadow.mbarriers;
    for (auto& slot : slots)
        if (slot.barrier == barrier) return slot;
    // Beyond the slots, barriers share one: orderings are then over-, never underestimated.
    if (slots.size() == MBARRIER_SLOTS) return slots.back();
    slots.push_back({barrier, {}, 0});
    return slots.back();
}
}  // namespace emu
