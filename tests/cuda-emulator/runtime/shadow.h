// The checking flavour's memory of who touched what: a cell per 2 bytes of shared and global memory, and clocks that know which
// accesses are ordered before which.
//
// Every thread has a scalar clock, advanced at each synchronising operation; an access leaves its thread and clock in the cell. A
// later access by another thread is ordered after it if a block barrier came between (one number per block), if __syncwarp did
// (one number per lane) or if named barriers, mbarriers or asynchronous operations did (a vector clock, made when needed).
// TMA loads and wgmma have participants of their own, so that "landed" and "read" are known only to who waited for them.
// Reference: Flanagan, Freund, "FastTrack: efficient and precise dynamic race detection", PLDI 2009.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace emu {
#ifndef EMU_CHECKING
#define EMU_CHECKING 0
#endif
constexpr bool CHECKING = EMU_CHECKING;

struct Worker;
struct Fiber;
struct Launch;

// Participants of the vector clocks: asynchronous ones first, then the threads.
constexpr unsigned MBARRIER_SLOTS = 56;
constexpr unsigned FIRST_WARPGROUP = MBARRIER_SLOTS;
constexpr unsigned FIRST_THREAD = MBARRIER_SLOTS + 8;

// A vector clock that is meaningful until the next block barrier.
struct Knowledge {
    uint32_t since = 0;  // the block barrier it belongs to
    std::vector<uint32_t> upto;
};

struct Clock {
    uint32_t now;
    uint32_t proxy_fence;  // stores up to here are visible to TMA and wgmma
    uint32_t lanes[32];    // of the own warp
    Knowledge others;
};

enum CellState : uint8_t { CELL_PLAIN, CELL_ATOMIC, CELL_PENDING };

// The latest write, and two reads not known to be ordered before each other.
struct Cell {
    uint32_t written, read[2];
    uint16_t writer, reader[2];
    CellState state;
};
struct GlobalCell : Cell {
    uint32_t write_launch, write_block, read_launch, first_reader, last_reader;
};

struct MBarrierSlot {
    const void* barrier;
    Knowledge knowledge;
    uint32_t landed;
};

struct BlockShadow {
    Cell* dynamic = nullptr;
    Cell* static_cells = nullptr;
    const void* static_begin = nullptr;
    size_t static_bytes = 0;
    uint32_t tick = 1, block_start = 1, barrier = 1;
    std::vector<MBarrierSlot> mbarriers;
    std::vector<uint32_t> acquired_blocks;  // bit per block of the grid
    bool acquired_any = false;
};

// Clocks.
void clock_start_block(Worker& w);
void clock_block_barrier(Worker& w);
void clock_syncwarp(Worker& w, unsigned warp, unsigned mask);
void clock_release(Fiber& f, Knowledge& into);
void clock_acquire(Fiber& f, const Knowledge& from);
void clock_learn(Fiber& f, unsigned participant, uint32_t stamp);
MBarrierSlot& mbarrier_slot(Worker& w, const void* barrier);

// Accesses of the running thread; `site` is the return address in the kernel. Do not return after a finding.
void check_access(const void* p, unsigned bytes, int kind, const void* site);
void check_async_destination(const void* p, unsigned bytes, const void* site);  // a write now, pending until landed
void check_async_landed(Worker& w, const void* p, unsigned bytes, unsigned participant, uint32_t stamp);
// A read of shared memory by wgmma or TMA: needs a proxy fence after ordinary stores.
void check_async_source(const void* p, unsigned bytes, unsigned participant, uint32_t stamp, const void* site);
// Grid-wide ordering through a fence and an atomic.
void check_atomic_order(const void* p);
void forget_atomic_order();  // between launches
}  // namespace emu
