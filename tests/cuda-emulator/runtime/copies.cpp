// cp.async: the bytes land at the wait that orders them, and until then the destination reads as NaN.
#include <cstring>

#include "block.h"
#include "report.h"

namespace emu {
namespace {
void land(Fiber& f, const AsyncCopy& c) {
    memcpy(c.shared, c.global, c.source_bytes);
    memset((char*)c.shared + c.source_bytes, 0, c.bytes - c.source_bytes);
    if (CHECKING) check_async_landed(worker(), c.shared, c.bytes, FIRST_THREAD + f.linear, f.clock.now);
}
}  // namespace

void check_nothing_pending(Fiber& f) {
    for (const AsyncCopy& c : f.copies)
        finding(c.site, "PENDING COPY: the kernel ends with %zu cp.async not waited for", f.copies.size());
    if (!f.stores.empty()) finding(nullptr, "PENDING COPY: the kernel ends with %zu TMA stores not waited for", f.stores.size());
    Worker& w = worker();
    if (w.live == 1 && !w.loads.empty())
        finding(w.loads[0].site, "PENDING COPY: the kernel ends with %zu TMA loads not landed", w.loads.size());
    if (w.live == 1)
        for (const Warpgroup& g : w.warpgroups)
            if (!g.queue.empty()) finding(nullptr, "PENDING: the kernel ends with %zu wgmma not waited for", g.queue.size());
}
}  // namespace emu

extern "C" {
void emu_cp_async(void* shared, const void* global, int bytes, int source_bytes) {
    using namespace emu;
    Fiber& f = running();
    const void* site = __builtin_return_address(0);
    if (source_bytes < 0 || source_bytes > bytes) finding(site, "cp.async of %d of %d bytes", source_bytes, bytes);
    if ((uintptr_t)shared % bytes || (source_bytes && (uintptr_t)global % bytes))
        finding(site, "MISALIGNED: cp.async of %d bytes from %p to %p", bytes, global, shared);
    if (CHECKING) {
        // Sources are 2-byte elements at least.
        if (source_bytes) check_access(global, source_bytes, READ, site);
        check_async_destination(shared, bytes, site);
    }
    AsyncCopy copy{shared, global, bytes, source_bytes, f.copy_group, site};
    const bool lazy = settings.copies == Copies::LAZY || (settings.copies == Copies::RANDOM && worker().draw() & 1);
    if (!lazy) {
        // Landed, but in the checking flavour not known to have: the wait is still owed.
        memcpy(shared, global, source_bytes);
        memset((char*)shared + source_bytes, 0, bytes - source_bytes);
        if (!CHECKING) return;
    } else {
        memset(shared, 0xff, bytes);
    }
    f.copies.push_back(copy);
}

void emu_cp_async_commit() { ++emu::running().copy_group; }

void emu_cp_async_wait(int groups_in_flight) {
    using namespace emu;
    Fiber& f = running();
    size_t kept = 0;
    for (size_t i = 0; i < f.copies.size(); ++i) {
        const AsyncCopy c = f.copies[i];
        if (c.group + groups_in_flight < f.copy_group)
            land(f, c);
        else
            f.copies[kept++] = c;
    }
    f.copies.resize(kept);
}
}
