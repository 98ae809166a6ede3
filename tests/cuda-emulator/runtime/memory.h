// Device and pinned host memory: every allocation is known, so that stray accesses are.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>

#include "shadow.h"

namespace emu {
struct Allocation {
    uintptr_t begin = 0;
    size_t bytes = 0;
    int device = 0;
    bool host = false;
    GlobalCell* cells = nullptr;  // made at the first checked access

    GlobalCell* cell(uintptr_t address);
    bool holds(uintptr_t address, size_t n) const { return address >= begin && address + n <= begin + bytes; }
};

// Null if `bytes` exceed what the emulated device has left.
void* allocate(size_t bytes, int device, bool host);
// False if no allocation begins there.
bool release(void* begin, bool host);
// The allocation around an address, or null. Valid until it is released.
Allocation* allocation_at(uintptr_t address);
// Whether device memory [address, address + bytes) is inside of one allocation.
// Whether launches are listed and nothing is run (CUDA_EMULATOR_LAUNCHES): then memory of the device is not filled either.
bool only_listing();
bool device_range(uint64_t address, size_t bytes);
bool pinned_range(const void* p, size_t bytes);

size_t device_capacity(int device);
size_t device_used(int device);
void set_device_capacity(size_t bytes);
void release_all(int device);
}  // namespace emu
