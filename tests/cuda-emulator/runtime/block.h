// The running block: fibers, warps, barriers and the worker (an OS thread's "multiprocessor") that runs one block at a time.
#pragma once
#define EMU_RUNTIME 1
#include <cstddef>
#include <cstdint>
#include <vector>

#include "emulator/hopper.h"
#include "emulator/atomics.h"
#include "shadow.h"

namespace emu {
constexpr unsigned MAX_THREADS = 1024;
constexpr unsigned MAX_WARPGROUPS = MAX_THREADS / 128;
constexpr unsigned MAX_DYNAMIC_SHARED = 227 * 1024;
constexpr unsigned NAMED_BARRIERS = 16;
// Stacks are an odd number of pages apart and start at different offsets, so that their tops do not share cache sets.
constexpr size_t STACK_STRIDE = (128 + 4) * 1024;
constexpr size_t ALL_STACKS_BYTES = STACK_STRIDE * MAX_THREADS;

// Test-wide settings (see control.cpp).
enum class Order { FORWARD, REVERSE, RANDOM };
enum class Copies { EAGER, LAZY, RANDOM };
struct Settings {
    Order order = Order::FORWARD;
    Copies copies = Copies::LAZY;
    uint64_t seed = 1;
};
extern Settings settings;

enum class State : uint8_t { NEW, READY, BARRIER, NAMED_BARRIER, WARP, MBARRIER, WARPGROUP, DONE };

struct AsyncCopy {
    void* shared;
    const void* global;
    int bytes, source_bytes;
    unsigned group;
    const void* site;
};
struct TileStore {
    const TensorMap* map;
    const unsigned char* shared;
    int x, y, z;
    unsigned group;
};

struct Fiber : Thread {
    void* stack_pointer;
    void* stack;
    State state;
    bool fenced;         // a __threadfence since its last global write
    bool waited_for_predecessor;
    unsigned waits_on;   // named barrier or mbarrier parity
    const void* mbarrier;
    unsigned copy_group, store_group;
    std::vector<AsyncCopy> copies;
    std::vector<TileStore> stores;
    Clock clock;         // checking flavour only
};

// One rendezvous of the lanes of a mask.
struct WarpSlot {
    unsigned mask, arrived;
    int kind;
    void* lanes[32];
};
struct Warp {
    unsigned live;
    WarpSlot slots[4];
};

struct NamedBarrier {
    unsigned arrived, expected;
    std::vector<uint16_t> waiting;
    Knowledge knowledge;
};

// The 8 bytes of an mbarrier in shared memory.
struct MBarrier {
    uint32_t phase : 1, expected : 15, pending : 15, valid : 1;
    int32_t transactions;
};
static_assert(sizeof(MBarrier) == 8);

// The map is a copy: the issuing thread, whose parameters it came from, may have ended before the tile lands.
struct TileLoad {
    unsigned char* shared;
    TensorMap map;
    MBarrier* barrier;
    int x, y, z;
    const void* site;
};

struct WgmmaOperation {
    float* d[128];
    uint32_t a_registers[128][4];
    uint64_t a, b;
    int n;
    bool from_registers, b_mn_major, accumulate;
    unsigned arrived, group;
    uint32_t stamp;
};
struct Warpgroup {
    std::vector<WgmmaOperation*> queue;
    unsigned issued[128], committed[128];  // operations and groups so far, per thread
    unsigned first_operation;                          // number of queue[0]
    unsigned wait_arrived;
};

struct Kernel {
    const char* name;
    EmuInvoke invoke;
    int parameters;
    const unsigned* sizes;
    EmuSharedProbe shared;
    double block_seconds = 0;  // running average, decides on the number of OS threads
};

struct Launch {
    Kernel* kernel;
    dim3 grid, block;
    unsigned shared_bytes;
    void** arguments;
    bool cooperative, programmatic;
    uint32_t number;
};

struct Range {
    unsigned char* begin = nullptr;
    size_t bytes = 0;
    bool holds(const void* p) const { return (uintptr_t)p - (uintptr_t)begin < bytes; }
};

// Everything that one OS thread needs to run a block.
struct Worker : BlockState {
    Fiber fibers[MAX_THREADS];
    unsigned threads = 0, live = 0, at_barrier = 0;
    dim3 shaped_for{0, 0, 0};
    uint16_t queue[MAX_THREADS];
    unsigned queue_begin = 0, queue_size = 0;
    Warp warps[MAX_THREADS / 32];
    NamedBarrier named[NAMED_BARRIERS];
    int votes[3], vote_results[3];
    void* scheduler = nullptr;  // stack pointer of the OS thread's own stack
    const Launch* launch = nullptr;
    unsigned block_number = 0;
    uint64_t random = 1, idle_yields = 0, progress = 0;
    unsigned atomics_in_turn = 0;

    unsigned char* stacks = nullptr;
    std::vector<void*> free_stacks;
    unsigned stacks_made = 0;

    Range dynamic;        // capacity
    Range static_shared;  // of the kernel's module, on this OS thread
    std::vector<TileLoad> loads;
    Warpgroup warpgroups[MAX_WARPGROUPS];
    std::vector<WgmmaOperation*> spare_operations;
    BlockShadow shadow;

    Worker();
    uint64_t draw();  // xorshift
};

inline Fiber& running() { return *static_cast<Fiber*>(emu_running); }
inline Worker& worker() { return *static_cast<Worker*>(emu_running->block); }

// scheduler.cpp
void run_block(Worker& w, const Launch& launch, unsigned block_number);
void suspend(State state);                // parks the running fiber until somebody wakes it
void wake(Worker& w, unsigned thread);
[[noreturn]] void abandon_block();        // after a finding: leaves every fiber where it is
void* take_stack(Worker& w);
inline void give_stack(Worker& w, void* stack) { w.free_stacks.push_back(stack); }
// copies.cpp, tma.cpp, wgmma.cpp
void check_nothing_pending(Fiber& fiber);
bool land_one_tile(Worker& w);
void reset_warpgroups(Worker& w);
}  // namespace emu
