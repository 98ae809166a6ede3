// The checks of the checking flavour: bounds, alignment, initialisation, pending copies and data races of every access.
#include "shadow.h"

#include <sys/mman.h>

#include <unordered_map>

#include "block.h"
#include "memory.h"
#include "modules.h"
#include "report.h"

namespace emu {
namespace {
const char* verb(int kind) { return kind == READ ? "read" : kind == WRITE ? "write" : "atomic"; }

Cell* map_cells(size_t bytes) {
    return (Cell*)mmap(nullptr, sizeof(Cell) * (bytes / 2 + 2), PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
}

std::string participant_name(unsigned p) {
    if (p >= FIRST_THREAD) return "thread " + std::to_string(p - FIRST_THREAD);
    if (p >= FIRST_WARPGROUP) return "the wgmma of warpgroup " + std::to_string(p - FIRST_WARPGROUP);
    return "a TMA load";
}

unsigned participant_of(const Fiber& f) { return FIRST_THREAD + f.linear; }

// Whether what `participant` did at `stamp` is ordered before what `f` does now.
bool ordered(const Worker& w, const Fiber& f, unsigned participant, uint32_t stamp) {
    if (stamp < w.shadow.barrier || participant == participant_of(f)) return true;
    if (participant >= FIRST_THREAD) {
        const unsigned thread = participant - FIRST_THREAD;
        if (thread / 32 == f.warp && f.clock.lanes[thread % 32] >= stamp) return true;
    }
    const Knowledge& k = f.clock.others;
    return k.since == w.shadow.barrier && k.upto[participant] >= stamp;
}

[[noreturn]] void race(const void* site, const char* space, uintptr_t offset, int kind, const char* earlier, unsigned who) {
    finding(site, "DATA RACE: %s of %s memory at offset %zu is not ordered after the %s by %s", verb(kind), space, (size_t)offset,
            earlier, participant_name(who).c_str());
}

// The race rules inside of a block, for a cell whose stamps belong to it.
void check_cell(Worker& w, Fiber& f, Cell& c, int kind, bool written_here, bool read_here, const void* site, const char* space,
                uintptr_t offset) {
    const bool both_atomic = kind == ATOMIC && c.state == CELL_ATOMIC;
    if (written_here && !both_atomic && !ordered(w, f, c.writer, c.written)) race(site, space, offset, kind, "write", c.writer);
    if (kind == READ || !read_here) return;
    for (int i = 0; i < 2; ++i)
        if (c.read[i] >= w.shadow.block_start && !ordered(w, f, c.reader[i], c.read[i]))
            race(site, space, offset, kind, "read", c.reader[i]);
}

void note_read(Worker& w, const Fiber& f, Cell& c, unsigned participant, uint32_t stamp) {
    // Replace a read that this one is ordered after, else the older one: a sample of the readers is enough to catch a writer
    // that waited for none of them, and never wrong.
    for (int i = 0; i < 2; ++i)
        if (c.reader[i] == participant || c.read[i] < w.shadow.barrier || ordered(w, f, c.reader[i], c.read[i])) {
            c.reader[i] = (uint16_t)participant;
            c.read[i] = stamp;
            return;
        }
    const int older = c.read[0] <= c.read[1] ? 0 : 1;
    c.reader[older] = (uint16_t)participant;
    c.read[older] = stamp;
}

void note_write(Cell& c, unsigned participant, uint32_t stamp, CellState state) {
    c.writer = (uint16_t)participant;
    c.written = stamp;
    c.state = state;
}

struct SharedPlace {
    Cell* cell = nullptr;
    uintptr_t offset = 0;
    const char* space = nullptr;
};

// Where an address is in the block's shared memory; cell is null if it is elsewhere.
SharedPlace shared_place(Worker& w, uintptr_t a, unsigned bytes, int kind, const void* site) {
    BlockShadow& s = w.shadow;
    if (w.dynamic.holds((void*)a)) {
        const uintptr_t offset = a - (uintptr_t)w.dynamic.begin;
        if (offset + bytes > w.launch->shared_bytes)
            finding(site, "OUT OF BOUNDS: %s of %u bytes at offset %zu of %u bytes of dynamic shared memory", verb(kind), bytes,
                    (size_t)offset, w.launch->shared_bytes);
        if (!s.dynamic) s.dynamic = map_cells(MAX_DYNAMIC_SHARED + 4096);
        return {s.dynamic + offset / 2, offset, "dynamic shared"};
    }
    if (w.static_shared.holds((void*)a)) {
        if (s.static_begin != w.static_shared.begin || s.static_bytes != w.static_shared.bytes) {
            if (s.static_cells) munmap(s.static_cells, sizeof(Cell) * (s.static_bytes / 2 + 2));
            s.static_begin = w.static_shared.begin;
            s.static_bytes = w.static_shared.bytes;
            s.static_cells = map_cells(s.static_bytes);
        }
        const uintptr_t offset = a - (uintptr_t)w.static_shared.begin;
        return {s.static_cells + offset / 2, offset, "static shared"};
    }
    return {};
}

void check_shared(Worker& w, Fiber& f, const SharedPlace& place, unsigned bytes, int kind, const void* site) {
    for (unsigned i = 0; i < (bytes + 1) / 2; ++i) {
        Cell& c = place.cell[i];
        const uintptr_t offset = place.offset + 2 * i;
        const bool written_here = c.written >= w.shadow.block_start;
        if (written_here && c.state == CELL_PENDING)
            finding(site, "PENDING COPY: %s of %s memory at offset %zu that %s has not been waited for", verb(kind), place.space,
                    (size_t)offset, c.writer >= FIRST_THREAD ? "a cp.async" : "a TMA load");
        if (kind != WRITE && !written_here)
            finding(site, "UNINITIALISED: %s of %s memory at offset %zu that nobody has written", verb(kind), place.space,
                    (size_t)offset);
        if (bytes == 1) {  // its neighbour in the cell may be another thread's: no race check
            if (kind != READ && !written_here) note_write(c, participant_of(f), f.clock.now, CELL_PLAIN);
            return;
        }
        check_cell(w, f, c, kind, written_here, true, site, place.space, offset);
        if (kind == READ)
            note_read(w, f, c, participant_of(f), f.clock.now);
        else
            note_write(c, participant_of(f), f.clock.now, kind == ATOMIC ? CELL_ATOMIC : CELL_PLAIN);
    }
}

bool acquired(const Worker& w, uint32_t block) {
    return w.shadow.acquired_any && w.shadow.acquired_blocks[block / 32] >> block % 32 & 1;
}

void check_global(Worker& w, Fiber& f, Allocation& a, uintptr_t address, unsigned bytes, int kind, const void* site) {
    const uint32_t launch = w.launch->number, block = w.block_number;
    GlobalCell* cells = a.cell(address);
    if (kind == WRITE) f.fenced = false;
    const bool early = w.launch->programmatic && !f.waited_for_predecessor;
    for (unsigned i = 0; i < bytes / 2; ++i) {
        GlobalCell& c = cells[i];
        const uintptr_t offset = address - a.begin + 2 * i;
        const bool wrote = c.write_launch == launch, was_read = c.read_launch == launch;
        const bool both_atomic = kind == ATOMIC && c.state == CELL_ATOMIC;
        if (early && (c.write_launch == launch - 1 || (kind != READ && c.read_launch == launch - 1)))
            finding(site, "DATA RACE: %s of global memory at offset %zu of what the launch before uses, without pdl_wait",
                    verb(kind), (size_t)offset);
        if (wrote && c.write_block != block && !both_atomic && !acquired(w, c.write_block))
            finding(site, "DATA RACE: %s of global memory at offset %zu of %zu bytes that block %u has written", verb(kind),
                    (size_t)offset, a.bytes, c.write_block);
        if (kind != READ && was_read)
            for (const uint32_t reader : {c.first_reader, c.last_reader})
                if (reader != block && !acquired(w, reader))
                    finding(site, "DATA RACE: %s of global memory at offset %zu of %zu bytes that block %u reads", verb(kind),
                            (size_t)offset, a.bytes, reader);
        const bool read_here = was_read && c.last_reader == block;
        check_cell(w, f, c, kind, wrote && c.write_block == block, read_here, site, "global", offset);
        if (kind == READ) {
            if (!read_here) c.read[0] = c.read[1] = 0;
            note_read(w, f, c, participant_of(f), f.clock.now);
            if (!was_read) c.first_reader = block;
            c.read_launch = launch;
            c.last_reader = block;
        } else {
            note_write(c, participant_of(f), f.clock.now, kind == ATOMIC ? CELL_ATOMIC : CELL_PLAIN);
            c.write_launch = launch;
            c.write_block = block;
        }
    }
}

// Blocks whose fenced work an atomic on this address makes known.
std::unordered_map<const void*, std::vector<uint32_t>> released_blocks;
}  // namespace

void check_access(const void* p, unsigned bytes, int kind, const void* site) {
    Worker& w = worker();
    Fiber& f = running();
    const auto a = (uintptr_t)p;
    if (const SharedPlace place = shared_place(w, a, bytes, kind, site); place.cell)
        return check_shared(w, f, place, bytes, kind, site);
    thread_local Allocation* recent = nullptr;
    thread_local uint32_t recent_launch = 0;  // allocations do not change during a launch
    Allocation* found = recent_launch == w.launch->number && recent && recent->holds(a, 1) ? recent : allocation_at(a);
    if (found && found->holds(a, bytes)) {
        recent = found;
        recent_launch = w.launch->number;
        return check_global(w, f, *found, a, bytes, kind, site);
    }
    if (found)
        finding(site, "OUT OF BOUNDS: %s of %u bytes at offset %zu of an allocation of %zu", verb(kind), bytes,
                (size_t)(a - found->begin), found->bytes);
    if (kind == READ && constant_data(p, bytes)) return;
    finding(site, "OUT OF BOUNDS: %s of %u bytes at %p, which is no one's memory", verb(kind), bytes, p);
}

void check_async_destination(const void* p, unsigned bytes, const void* site) {
    Worker& w = worker();
    Fiber& f = running();
    const SharedPlace place = shared_place(w, (uintptr_t)p, bytes, WRITE, site);
    if (!place.cell) finding(site, "OUT OF BOUNDS: asynchronous copy to %p, which is not shared memory", p);
    check_shared(w, f, place, bytes, WRITE, site);
    for (unsigned i = 0; i < bytes / 2; ++i) place.cell[i].state = CELL_PENDING;
}

void check_async_landed(Worker& w, const void* p, unsigned bytes, unsigned participant, uint32_t stamp) {
    BlockShadow& s = w.shadow;
    Cell* cell = w.dynamic.holds(p) ? s.dynamic + ((uintptr_t)p - (uintptr_t)w.dynamic.begin) / 2
                                    : s.static_cells + ((uintptr_t)p - (uintptr_t)w.static_shared.begin) / 2;
    for (unsigned i = 0; i < bytes / 2; ++i) note_write(cell[i], participant, stamp, CELL_PLAIN);
}

void check_async_source(const void* p, unsigned bytes, unsigned participant, uint32_t stamp, const void* site) {
    Worker& w = worker();
    Fiber& f = running();
    const SharedPlace place = shared_place(w, (uintptr_t)p, bytes, READ, site);
    if (!place.cell) finding(site, "OUT OF BOUNDS: asynchronous read of %p, which is not shared memory", p);
    for (unsigned i = 0; i < bytes / 2; ++i) {
        Cell& c = place.cell[i];
        const size_t offset = place.offset + 2 * i;
        const bool written_here = c.written >= w.shadow.block_start;
        if (!written_here) finding(site, "UNINITIALISED: wgmma or TMA reads shared memory at offset %zu", offset);
        if (c.state == CELL_PENDING) finding(site, "PENDING COPY: wgmma or TMA reads shared memory at offset %zu too early", offset);
        check_cell(w, f, c, READ, true, true, site, place.space, offset);
        if (c.writer >= FIRST_THREAD && w.fibers[c.writer - FIRST_THREAD].clock.proxy_fence < c.written)
            finding(site, "PROXY: wgmma or TMA reads what thread %u stored at offset %zu without fence_proxy_async after it",
                    c.writer - FIRST_THREAD, offset);
        note_read(w, f, c, participant, stamp);
    }
}

void check_atomic_order(const void* p) {
    Worker& w = worker();
    Fiber& f = running();
    const unsigned grid = w.grid_dim.x * w.grid_dim.y * w.grid_dim.z, words = (grid + 31) / 32;
    auto& released = released_blocks[p];
    released.resize(words);
    BlockShadow& s = w.shadow;
    if (!s.acquired_any) s.acquired_blocks.assign(words, 0);
    s.acquired_any = true;
    for (unsigned i = 0; i < words; ++i) s.acquired_blocks[i] |= released[i];
    if (!f.fenced) return;
    for (unsigned i = 0; i < words; ++i) released[i] |= s.acquired_blocks[i];
    released[w.block_number / 32] |= 1u << w.block_number % 32;
}

void forget_atomic_order() { released_blocks.clear(); }
}  // namespace emu
