// Allocations in an ordered map; memory is filled with NaN patterns when it is taken and when it is given back.
#include "memory.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <shared_mutex>

namespace emu {
namespace {
constexpr size_t ALIGNMENT = 256, GUARD = 256, FILL_LIMIT = 64 << 20;
std::shared_mutex guard;
std::map<uintptr_t, std::unique_ptr<Allocation>> allocations;
size_t capacity = size_t(4) << 30;
size_t used[16] = {};

size_t cell_bytes(const Allocation& a) { return sizeof(GlobalCell) * (a.bytes / 2 + 2); }

void give_back(Allocation& a) {
    if (!a.host) used[a.device] -= a.bytes;
    if (a.cells) munmap(a.cells, cell_bytes(a));
    if (!only_listing()) memset((void*)a.begin, 0xff, a.bytes < FILL_LIMIT ? a.bytes : FILL_LIMIT);
    free((void*)(a.begin - GUARD));
}
}  // namespace

bool only_listing() {
    static const bool is = getenv("CUDA_EMULATOR_LAUNCHES") != nullptr;
    return is;
}

GlobalCell* Allocation::cell(uintptr_t address) {
    if (!cells)
        cells = (GlobalCell*)mmap(nullptr, cell_bytes(*this), PROT_READ | PROT_WRITE,
                                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return cells + (address - begin) / 2;
}

void* allocate(size_t bytes, int device, bool host) {
    std::unique_lock lock(guard);
    if (bytes == 0) bytes = 1;
    if (!host && (bytes > capacity || used[device] > capacity - bytes)) return nullptr;
    const size_t padded = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT + 2 * GUARD;
    auto* raw = (unsigned char*)aligned_alloc(ALIGNMENT, padded);
    if (!raw) return nullptr;
    // Large buffers (weights) are left to the system's zero pages: filling them would cost more than it finds.
    if (!only_listing()) memset(raw, 0xff, padded < FILL_LIMIT ? padded : GUARD);
    auto a = std::make_unique<Allocation>();
    a->begin = (uintptr_t)raw + GUARD;
    a->bytes = bytes;
    a->device = device;
    a->host = host;
    if (!host) used[device] += bytes;
    allocations[a->begin] = std::move(a);
    return raw + GUARD;
}

bool release(void* begin, bool host) {
    std::unique_lock lock(guard);
    const auto it = allocations.find((uintptr_t)begin);
    if (it == allocations.end() || it->second->host != host) return false;
    give_back(*it->second);
    allocations.erase(it);
    return true;
}

Allocation* allocation_at(uintptr_t address) {
    std::shared_lock lock(guard);
    auto it = allocations.upper_bound(address);
    if (it == allocations.begin()) return nullptr;
    --it;
    return it->second->holds(address, 1) ? it->second.get() : nullptr;
}

bool device_range(uint64_t address, size_t bytes) {
    if (bytes == 0) return true;
    const Allocation* a = allocation_at(address);
    return a && a->holds(address, bytes);
}

bool pinned_range(const void* p, size_t bytes) {
    const Allocation* a = allocation_at((uintptr_t)p);
    return a && a->host && a->holds((uintptr_t)p, bytes);
}

size_t device_capacity(int) { return capacity; }
size_t device_used(int device) { return used[device]; }
void set_device_capacity(size_t bytes) { capacity = bytes; }

void release_all(int device) {
    std::unique_lock lock(guard);
    for (auto it = allocations.begin(); it != allocations.end();) {
        if (it->second->device == device && !it->second->host) {
            give_back(*it->second);
            it = allocations.erase(it);
        } else {
            ++it;
        }
    }
}
}  // namespace emu
