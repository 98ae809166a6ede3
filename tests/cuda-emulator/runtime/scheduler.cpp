// Fibers and their scheduler: every thread of a block is a fiber of one OS thread, switched at barriers, collectives and waits.
//
// A thread gets a stack when it first runs and gives it back when it ends, so a kernel without barriers runs on one warm stack.
// When nothing can run, one pending TMA tile lands; when none is pending either, the block is in deadlock.
#include <sys/mman.h>

#include <cstring>
#include <thread>

#include "block.h"
#include "launch.h"
#include "report.h"

// emu_switch(save, load): keeps the callee-saved registers (r15 is the running thread) and changes stacks.
// emu_switch_start(save, stack, thread): the same into a fresh stack. emu_start(stack, thread): without coming back.
asm(R"(
.text
.p2align 4
.type emu_switch,@function
emu_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emu_switch, .-emu_switch
.p2align 4
.type emu_switch_start,@function
emu_switch_start:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    movq %rdx, %r15
    call emu_fiber
    ud2
.size emu_switch_start, .-emu_switch_start
.p2align 4
.type emu_start,@function
emu_start:
    movq %rdi, %rsp
    movq %rsi, %r15
    call emu_fiber
    ud2
.size emu_start, .-emu_start
)");
extern "C" {
__attribute__((visibility("hidden"))) void emu_switch(void** save, void* load);
__attribute__((visibility("hidden"))) void emu_switch_start(void** save, void* stack, emu::Thread* thread);
[[noreturn]] __attribute__((visibility("hidden"))) void emu_start(void* stack, emu::Thread* thread);
__attribute__((visibility("hidden"), used)) void emu_fiber();
}

namespace emu {
Settings settings;

namespace {
constexpr uint64_t IDLE_YIELD_LIMIT = 20'000'000;

void push(Worker& w, unsigned thread) {
    w.queue[(w.queue_begin + w.queue_size++) % MAX_THREADS] = (uint16_t)thread;
}

Fiber* pop(Worker& w) {
    if (w.queue_size == 0) return nullptr;
    uint16_t& front = w.queue[w.queue_begin % MAX_THREADS];
    if (settings.order == Order::RANDOM) std::swap(front, w.queue[(w.queue_begin + w.draw() % w.queue_size) % MAX_THREADS]);
    Fiber* f = &w.fibers[front];
    ++w.queue_begin;
    --w.queue_size;
    return f;
}

[[noreturn]] void deadlock(Worker& w) {
    unsigned barrier = 0, named = 0, warp = 0, mbarrier = 0, warpgroup = 0;
    for (unsigned i = 0; i < w.threads; ++i) switch (w.fibers[i].state) {
            case State::BARRIER: ++barrier; break;
            case State::NAMED_BARRIER: ++named; break;
            case State::WARP: ++warp; break;
            case State::MBARRIER: ++mbarrier; break;
            case State::WARPGROUP: ++warpgroup; break;
            default: break;
        }
    std::string text;
    const auto add = [&](unsigned n, const char* where) {
        if (n) text += (text.empty() ? "" : ", ") + std::to_string(n) + " threads wait at " + where;
    };
    add(barrier, "__syncthreads");
    add(named, "a named barrier");
    add(warp, "a warp collective");
    add(mbarrier, "an mbarrier");
    add(warpgroup, "a wgmma wait");
    finding(nullptr, "DEADLOCK: %s, %u have exited", text.c_str(), w.threads - w.live);
}

// The next thread to run; lands asynchronous copies if nothing else is left to do.
Fiber& next(Worker& w) {
    w.atomics_in_turn = 0;
    for (;;) {
        if (!w.loads.empty() && settings.order == Order::RANDOM && w.draw() % 8 == 0) land_one_tile(w);
        if (Fiber* f = pop(w)) return *f;
        if (!land_one_tile(w)) deadlock(w);
    }
}

void prepare(Worker& w, const Launch& launch) {
    const dim3 b = launch.block;
    w.threads = b.x * b.y * b.z;
    if (b.x == w.shaped_for.x && b.y == w.shaped_for.y && b.z == w.shaped_for.z) return;
    w.shaped_for = b;
    for (unsigned i = 0; i < w.threads; ++i) {
        Fiber& f = w.fibers[i];
        f.thread_index = {i % b.x, i / b.x % b.y, i / (b.x * b.y)};
        f.linear = i;
        f.lane = i % 32;
        f.warp = i / 32;
        f.block = &w;
    }
}

void reset(Worker& w, const Launch& launch, unsigned block) {
    w.launch = &launch;
    w.block_number = block;
    w.grid_dim = launch.grid;
    w.block_dim = launch.block;
    w.block_index = {block % launch.grid.x, block / launch.grid.x % launch.grid.y, block / (launch.grid.x * launch.grid.y)};
    w.live = w.threads;
    w.at_barrier = 0;
    w.queue_begin = w.queue_size = 0;
    w.idle_yields = 0;
    w.votes[0] = w.votes[2] = 0;
    w.votes[1] = 1;
    for (auto& barrier : w.named) {
        barrier.arrived = 0;
        barrier.waiting.clear();
    }
    w.loads.clear();
    reset_warpgroups(w);
    const unsigned warps = (w.threads + 31) / 32;
    for (unsigned i = 0; i < warps; ++i) {
        const unsigned lanes = w.threads - 32 * i;
        w.warps[i].live = lanes >= 32 ? ~0u : (1u << lanes) - 1;
        for (auto& slot : w.warps[i].slots) slot.mask = 0;
    }
    for (unsigned i = 0; i < w.threads; ++i) {
        Fiber& f = w.fibers[i];
        f.state = State::NEW;
        f.fenced = f.waited_for_predecessor = false;
        f.copy_group = f.store_group = 0;
        f.copies.clear();
        f.stores.clear();
        push(w, settings.order == Order::REVERSE ? w.threads - 1 - i : i);
    }
    // A byte pattern that is NaN in every float format, so that what was not written is seen.
    if (w.static_shared.bytes) memset(w.static_shared.begin, 0xff, w.static_shared.bytes);
    if (launch.shared_bytes) memset(w.dynamic.begin, 0xff, launch.shared_bytes);
    if (CHECKING) clock_start_block(w);
}

void release_barrier(Worker& w) {
    w.at_barrier = 0;
    for (int i = 0; i < 3; ++i) w.vote_results[i] = w.votes[i];
    w.votes[0] = w.votes[2] = 0;
    w.votes[1] = 1;
    if (CHECKING) clock_block_barrier(w);
    for (unsigned k = 0; k < w.threads; ++k) {
        const unsigned i = settings.order == Order::REVERSE ? w.threads - 1 - k : k;
        if (w.fibers[i].state == State::BARRIER) wake(w, i);
    }
}
}  // namespace

Worker::Worker() {
    stacks = (unsigned char*)mmap(nullptr, ALL_STACKS_BYTES, PROT_READ | PROT_WRITE,
                                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    // The page after the block's shared memory stays out of reach.
    constexpr size_t capacity = (MAX_DYNAMIC_SHARED + 4095) / 4096 * 4096;
    dynamic.begin = (unsigned char*)mmap(nullptr, capacity + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    mprotect(dynamic.begin + capacity, 4096, PROT_NONE);
    dynamic.bytes = capacity;
    dynamic_shared = dynamic.begin;
}

uint64_t Worker::draw() {
    random ^= random << 13;
    random ^= random >> 7;
    random ^= random << 17;
    return random >> 11;
}

void* take_stack(Worker& w) {
    if (w.free_stacks.empty()) {
        unsigned char* base = w.stacks + STACK_STRIDE * w.stacks_made;
        mprotect(base, 4096, PROT_NONE);
        const size_t colour = w.stacks_made % 16 * 256;
        ++w.stacks_made;
        return base + STACK_STRIDE - 64 - colour;
    }
    void* stack = w.free_stacks.back();
    w.free_stacks.pop_back();
    return stack;
}

void wake(Worker& w, unsigned thread) {
    w.fibers[thread].state = State::READY;
    push(w, thread);
}

// Leaves `from` (whose registers are kept) for another fiber.
static void change(Worker& w, Fiber& from, Fiber& to) {
    if (&from == &to) return;
    if (to.state == State::NEW) {
        to.state = State::READY;
        to.stack = take_stack(w);
        emu_switch_start(&from.stack_pointer, to.stack, &to);
    } else {
        emu_switch(&from.stack_pointer, to.stack_pointer);
    }
}

void suspend(State state) {
    Worker& w = worker();
    Fiber& me = running();
    me.state = state;
    w.idle_yields = 0;
    change(w, me, next(w));
}

void abandon_block() {
    Worker& w = worker();
    void* discarded;
    emu_switch(&discarded, w.scheduler);
    __builtin_unreachable();
}

void run_block(Worker& w, const Launch& launch, unsigned block) {
    prepare(w, launch);
    reset(w, launch, block);
    Fiber& first = *pop(w);
    first.state = State::READY;
    first.stack = take_stack(w);
    emu_switch_start(&w.scheduler, first.stack, &first);
    if (!failed()) return;
    // After a finding the fibers were left where they stood: take their stacks back.
    for (unsigned i = 0; i < w.threads; ++i)
        if (w.fibers[i].state != State::NEW && w.fibers[i].state != State::DONE) give_stack(w, w.fibers[i].stack);
}

static void finish(Worker& w, Fiber& me) {
    check_nothing_pending(me);
    me.state = State::DONE;
    --w.live;
    Warp& warp = w.warps[me.warp];
    warp.live &= ~(1u << me.lane);
    for (auto& slot : warp.slots)
        if (slot.mask >> me.lane & 1)
            finding(nullptr, "DIVERGENCE: the thread exits while lanes of mask %08x wait for it", slot.mask);
}
}  // namespace emu

extern "C" {
void emu_fiber() {
    using namespace emu;
    Worker& w = worker();
    Fiber& me = running();
    w.launch->kernel->invoke(w.launch->arguments);
    finish(w, me);
    give_stack(w, me.stack);
    if (w.live == 0) abandon_block();
    if (w.at_barrier == w.live) release_barrier(w);  // exited threads no longer count
    Fiber& to = next(w);
    if (to.state == State::NEW) {
        to.state = State::READY;
        to.stack = take_stack(w);
        emu_start(to.stack, &to);
    }
    void* discarded;
    emu_switch(&discarded, to.stack_pointer);
    __builtin_unreachable();
}

void emu_syncthreads() {
    using namespace emu;
    Worker& w = worker();
    Fiber& me = running();
    if (++w.at_barrier < w.live) return suspend(State::BARRIER);
    release_barrier(w);
    if (settings.order != Order::FORWARD && w.queue_size) {  // the last to come is not always the first to go on
        push(w, me.linear);
        suspend(State::READY);
    }
}

int emu_syncthreads_reduce(int predicate, int operation) {
    using namespace emu;
    Worker& w = worker();
    w.votes[0] += predicate != 0;
    w.votes[1] &= predicate != 0;
    w.votes[2] |= predicate != 0;
    emu_syncthreads();
    return w.vote_results[operation];
}

void emu_barrier(int id, int threads, int wait) {
    using namespace emu;
    Worker& w = worker();
    Fiber& me = running();
    if (id < 0 || id >= (int)NAMED_BARRIERS || threads <= 0 || threads % 32)
        finding(__builtin_return_address(0), "BARRIER: id %d for %d threads", id, threads);
    NamedBarrier& b = w.named[id];
    if (b.arrived && b.expected != (unsigned)threads)
        finding(__builtin_return_address(0), "BARRIER: %d is used for %d and for %u threads at once", id, threads, b.expected);
    b.expected = threads;
    if (CHECKING) clock_release(me, b.knowledge);
    if (++b.arrived < b.expected) {
        if (!wait) return;
        b.waiting.push_back((uint16_t)me.linear);
        return suspend(State::NAMED_BARRIER);
    }
    b.arrived = 0;
    if (CHECKING && wait) clock_acquire(me, b.knowledge);
    for (const unsigned i : b.waiting) {
        if (CHECKING) clock_acquire(w.fibers[i], b.knowledge);
        wake(w, i);
    }
    b.waiting.clear();
}

void emu_yield() {
    using namespace emu;
    Worker& w = worker();
    if (++w.idle_yields > IDLE_YIELD_LIMIT) finding(__builtin_return_address(0), "LIVELOCK: the block only spins");
    if (w.idle_yields % 64 == 0) land_one_tile(w);
    if (w.queue_size == 0) {
        if (w.launch->cooperative) pass_baton();
        std::this_thread::yield();
        return;
    }
    const uint64_t yields = w.idle_yields;
    push(w, running().linear);
    suspend(State::READY);
    w.idle_yields = yields;
}

unsigned emu_activemask() {
    return emu::worker().warps[emu::running().warp].live;
}

void emu_trap() { emu::finding(__builtin_return_address(0), "TRAP: the kernel called __trap"); }

long long emu_clock() {
    static long long ticks = 0;
    return __atomic_add_fetch(&ticks, 1, __ATOMIC_RELAXED);
}

void emu_fence() { emu::running().fenced = true; }
void emu_pdl_wait() { emu::running().waited_for_predecessor = true; }
void emu_access(const void* p, unsigned bytes, int kind) {
    if (emu::CHECKING) emu::check_access(p, bytes, kind, __builtin_return_address(0));
}
}
