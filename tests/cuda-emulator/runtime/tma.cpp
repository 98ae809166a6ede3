// mbarriers and TMA: tiles land one at a time when the scheduler finds nothing else to do (or at random), stores at their wait.
#include <cstring>

#include "block.h"
#include "device.h"
#include "report.h"

namespace emu {
namespace {
constexpr uint32_t SWIZZLE_NONE = 0, SWIZZLE_32 = 1, SWIZZLE_64 = 2, SWIZZLE_128 = 3;

// Address bits 4.. are exchanged with the row bits above 7: 1, 2 or 3 bits for 32-, 64- and 128-byte swizzles.
uint32_t swizzled(uint32_t offset, uint32_t mode) { return offset ^ (offset >> 7 & ((1u << mode) - 1)) << 4; }

void require_hopper(const void* site) {
    if (compute_capability() < 90) finding(site, "UNSUPPORTED: a Hopper primitive on compute capability %d", compute_capability());
}

MBarrier& barrier_at(void* p, const void* site) {
    if ((uintptr_t)p % 8) finding(site, "MISALIGNED: mbarrier at %p", p);
    Worker& w = worker();
    if (!w.dynamic.holds(p) && !w.static_shared.holds(p)) finding(site, "OUT OF BOUNDS: mbarrier at %p, not in shared memory", p);
    return *static_cast<MBarrier*>(p);
}

void complete_phase(Worker& w, MBarrier& b) {
    if (b.pending || b.transactions) return;
    b.phase ^= 1;
    b.pending = b.expected;
    ++w.progress;
    for (unsigned i = 0; i < w.threads; ++i) {
        Fiber& f = w.fibers[i];
        if (f.state == State::MBARRIER && f.mbarrier == &b && f.waits_on != b.phase) wake(w, i);
    }
}

uint32_t tile_bytes(const TensorMap& m) { return m.box[0] * m.box[1] * m.box[2] * m.element_bytes; }

// Calls f(global address or null outside of the tensor, offset in the tile, bytes) for runs of at most 16 bytes of a box.
template <class F> void each_run(const TensorMap& m, int x, int y, int z, F f) {
    const uint32_t row_bytes = m.box[0] * m.element_bytes, per_chunk = 16 / m.element_bytes;
    const auto width = (int64_t)m.dim[0];
    for (uint32_t line = 0; line < m.box[1] * m.box[2]; ++line) {
        const int64_t gy = y + (int64_t)(line % m.box[1]), gz = z + (int64_t)(line / m.box[1]);
        const bool inside = gy >= 0 && gz >= 0 && gy < (int64_t)m.dim[1] && gz < (int64_t)m.dim[2];
        auto* row = (unsigned char*)m.base + gz * (int64_t)m.pitch[1] + gy * (int64_t)m.pitch[0];
        for (uint32_t c = 0; c < m.box[0];) {
            const int64_t gx = x + (int64_t)c;
            const bool whole = c % per_chunk == 0 && c + per_chunk <= m.box[0] && gx >= 0 && gx + per_chunk <= width;
            const uint32_t n = whole ? per_chunk : 1;
            const bool there = inside && gx >= 0 && gx < width;
            f(there ? row + gx * m.element_bytes : nullptr, line * row_bytes + c * m.element_bytes, n * m.element_bytes);
            c += n;
        }
    }
}

void check_tile(Worker& w, const TensorMap& m, const void* shared, const void* site) {
    const uint32_t row_bytes = m.box[0] * m.element_bytes;
    const uint32_t offset = (uint32_t)((const unsigned char*)shared - w.dynamic.begin);
    if (!w.dynamic.holds(shared) || offset + tile_bytes(m) > w.launch->shared_bytes)
        finding(site, "OUT OF BOUNDS: a TMA tile of %u bytes at offset %u of %u bytes of dynamic shared memory", tile_bytes(m), offset,
                w.launch->shared_bytes);
    const uint32_t alignment = m.swizzle == SWIZZLE_128 ? 1024 : m.swizzle == SWIZZLE_64 ? 512 : m.swizzle == SWIZZLE_32 ? 256 : 128;
    if (offset % alignment) finding(site, "MISALIGNED: a TMA tile at offset %u, its swizzle wants multiples of %u", offset, alignment);
    if (m.swizzle != SWIZZLE_NONE && row_bytes > 16u << m.swizzle)
        finding(site, "TMA: rows of %u bytes are wider than the swizzle", row_bytes);
}

void land(Worker& w, const TileLoad& load) {
    const TensorMap& m = load.map;
    const auto offset = (uint32_t)(load.shared - w.dynamic.begin);
    each_run(m, load.x, load.y, load.z, [&](const unsigned char* global, uint32_t at, uint32_t bytes) {
        unsigned char* to = w.dynamic.begin + swizzled(offset + at, m.swizzle);
        if (global)
            memcpy(to, global, bytes);
        else
            memset(to, 0, bytes);
    });
    if (CHECKING) {
        MBarrierSlot& slot = mbarrier_slot(w, load.barrier);
        const uint32_t stamp = ++w.shadow.tick;
        check_async_landed(w, load.shared, tile_bytes(m), (unsigned)(&slot - w.shadow.mbarriers.data()), stamp);
        if (slot.knowledge.since != w.shadow.barrier) {
            slot.knowledge.since = w.shadow.barrier;
            slot.knowledge.upto.assign(FIRST_THREAD + w.threads, 0);
        }
        slot.knowledge.upto[&slot - w.shadow.mbarriers.data()] = stamp;
    }
    load.barrier->transactions -= (int32_t)tile_bytes(m);
    complete_phase(w, *load.barrier);
}

void store(Worker& w, const TileStore& s) {
    const TensorMap& m = *s.map;
    const auto offset = (uint32_t)(s.shared - w.dynamic.begin);
    each_run(m, s.x, s.y, s.z, [&](unsigned char* global, uint32_t at, uint32_t bytes) {
        if (!global) return;
        const unsigned char* from = w.dynamic.begin + swizzled(offset + at, m.swizzle);
        if (CHECKING && m.element_bytes > 1) check_access(global, bytes, WRITE, nullptr);
        memcpy(global, from, bytes);
    });
}
}  // namespace

bool land_one_tile(Worker& w) {
    if (w.loads.empty()) return false;
    const size_t i = settings.order == Order::RANDOM ? w.draw() % w.loads.size()
                     : settings.order == Order::REVERSE ? w.loads.size() - 1
                                                        : 0;
    const TileLoad load = w.loads[i];
    w.loads.erase(w.loads.begin() + (ptrdiff_t)i);
    land(w, load);
    return true;
}
}  // namespace emu

extern "C" {
void emu_mbar_init(void* p, int count) {
    using namespace emu;
    const void* site = __builtin_return_address(0);
    require_hopper(site);
    MBarrier& b = barrier_at(p, site);
    if (CHECKING) check_access(p, 8, WRITE, site);
    b.phase = 0;
    b.expected = b.pending = (unsigned)count;
    b.valid = 1;
    b.transactions = 0;
    if (CHECKING) mbarrier_slot(worker(), p);
}

void emu_mbar_arrive(void* p, int transaction_bytes) {
    using namespace emu;
    const void* site = __builtin_return_address(0);
    Worker& w = worker();
    MBarrier& b = barrier_at(p, site);
    if (CHECKING) {
        // Ordered against its initialisation; the arrivals themselves are atomic.
        check_access(p, 8, READ, site);
        clock_release(running(), mbarrier_slot(w, p).knowledge);
    }
    if (b.pending == 0) finding(site, "MBARRIER: more arrivals than its count of %u", (unsigned)b.expected);
    b.transactions += transaction_bytes;
    --b.pending;
    complete_phase(w, b);
}

void emu_mbar_wait(void* p, int parity) {
    using namespace emu;
    const void* site = __builtin_return_address(0);
    Worker& w = worker();
    Fiber& f = running();
    MBarrier& b = barrier_at(p, site);
    if (CHECKING) check_access(p, 8, READ, site);
    while (b.phase == (unsigned)(parity & 1)) {
        f.mbarrier = &b;
        f.waits_on = (unsigned)(parity & 1);
        suspend(State::MBARRIER);
    }
    if (CHECKING) clock_acquire(f, mbarrier_slot(w, p).knowledge);
}

void emu_tma_load(void* shared, const void* map, void* bar, int x, int y, int z) {
    using namespace emu;
    const void* site = __builtin_return_address(0);
    require_hopper(site);
    Worker& w = worker();
    const auto& m = *static_cast<const TensorMap*>(map);
    MBarrier& b = barrier_at(bar, site);
    check_tile(w, m, shared, site);
    if (CHECKING) {
        check_async_destination(shared, tile_bytes(m), site);
        mbarrier_slot(w, bar);
    }
    memset(shared, 0xff, tile_bytes(m));  // who does not wait sees NaN
    w.loads.push_back({(unsigned char*)shared, m, &b, x, y, z, site});
    if (settings.copies == Copies::EAGER || (settings.copies == Copies::RANDOM && w.draw() & 1)) {
        const TileLoad load = w.loads.back();
        w.loads.pop_back();
        land(w, load);
    }
}

void emu_tma_store(const void* map, const void* shared, int x, int y, int z) {
    using namespace emu;
    const void* site = __builtin_return_address(0);
    require_hopper(site);
    Worker& w = worker();
    Fiber& f = running();
    const auto& m = *static_cast<const TensorMap*>(map);
    check_tile(w, m, shared, site);
    if (CHECKING) check_async_source(shared, tile_bytes(m), FIRST_THREAD + f.linear, f.clock.now, site);
    f.stores.push_back({&m, (const unsigned char*)shared, x, y, z, f.store_group});
}

void emu_tma_store_commit() { ++emu::running().store_group; }

void emu_tma_store_wait(int groups_in_flight, int) {
    using namespace emu;
    Fiber& f = running();
    size_t kept = 0;
    for (size_t i = 0; i < f.stores.size(); ++i) {
        const TileStore s = f.stores[i];
        if (s.group + groups_in_flight < f.store_group)
            store(worker(), s);
        else
            f.stores[kept++] = s;
    }
    f.stores.resize(kept);
}

void emu_proxy_fence() {
    using namespace emu;
    if (!CHECKING) return;
    Clock& c = running().clock;
    c.proxy_fence = c.now;
    c.now = ++worker().shadow.tick;
}
}
