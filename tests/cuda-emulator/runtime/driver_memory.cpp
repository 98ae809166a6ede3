// Driver API: memory, pools, copies and fills.
#include <cstring>

#include "driver.h"
#include "memory.h"

using namespace emu;

namespace {
int pool_object[MAX_DEVICES];
uint64_t release_threshold = 0;

int take(DevicePointer* p, size_t bytes) {
    void* memory = allocate(bytes, current_context().device, false);
    if (!memory) return OUT_OF_MEMORY;
    *p = (DevicePointer)memory;
    return OK;
}

// A copy of host memory that the device reads later is legal from pinned memory only; pageable memory is read at the call.
std::shared_ptr<std::vector<unsigned char>> staged(const void* source, size_t bytes) {
    const auto* p = static_cast<const unsigned char*>(source);
    return std::make_shared<std::vector<unsigned char>>(p, p + bytes);
}

template <class T> int fill(DevicePointer to, T value, size_t count, void* stream) {
    return entry([&]() -> int {
        if (to % sizeof(T) || !device_range(to, count * sizeof(T))) return INVALID_VALUE;
        return submit(stream, NodeType::FILL, [=] {
            if (only_listing()) return OK;
            auto* p = reinterpret_cast<T*>(to);
            for (size_t i = 0; i < count; ++i) p[i] = value;
            return OK;
        });
    });
}
}  // namespace

extern "C" {
int cuMemGetInfo_v2(size_t* free, size_t* total) {
    const int device = current_context().device;
    *total = device_capacity(device);
    *free = *total - device_used(device);
    return OK;
}
int cuMemAlloc_v2(DevicePointer* p, size_t bytes) {
    return waiting_entry([&] { return bytes ? take(p, bytes) : INVALID_VALUE; });
}
// Freeing waits for the device.
int cuMemFree_v2(DevicePointer p) {
    std::lock_guard lock(driver_lock());
    if (any_capture()) return CAPTURE_UNSUPPORTED;
    drain_all();
    if (p == 0) return OK;
    return release((void*)p, false) ? OK : INVALID_VALUE;
}
int cuMemAllocAsync(DevicePointer* p, size_t bytes, void* stream) {
    return entry([&]() -> int {
        if (stream_of(stream).capture) return NOT_SUPPORTED;  // memory nodes of graphs
        return take(p, bytes);
    });
}
int cuMemAllocFromPoolAsync(DevicePointer* p, size_t bytes, void*, void* stream) { return cuMemAllocAsync(p, bytes, stream); }
int cuMemFreeAsync(DevicePointer p, void* stream) {
    std::lock_guard lock(driver_lock());
    if (stream_of(stream).capture) return NOT_SUPPORTED;
    if (!device_range(p, 1)) return INVALID_VALUE;
    // After a sticky error queued work is skipped, but memory still has to come back.
    if (current_context().sticky) return release((void*)p, false) ? OK : INVALID_VALUE;
    return submit(stream, NodeType::EMPTY, [=] { return release((void*)p, false) ? OK : INVALID_VALUE; });
}
int cuMemAllocManaged(DevicePointer* p, size_t bytes, unsigned) { return cuMemAlloc_v2(p, bytes); }
int cuMemHostAlloc(void** p, size_t bytes, unsigned) {
    return entry([&] {
        *p = allocate(bytes, current_context().device, true);
        return *p ? OK : OUT_OF_MEMORY;
    });
}
int cuMemAllocHost_v2(void** p, size_t bytes) { return cuMemHostAlloc(p, bytes, 0); }
int cuMemFreeHost(void* p) {
    std::lock_guard lock(driver_lock());
    drain_all();
    return release(p, true) ? OK : INVALID_VALUE;
}
int cuMemHostGetDevicePointer_v2(DevicePointer* device, void* host, unsigned) {
    if (!pinned_range(host, 1)) return INVALID_VALUE;
    *device = (DevicePointer)host;
    return OK;
}
int cuMemHostGetFlags(unsigned* flags, void*) {
    *flags = 0;
    return OK;
}
int cuMemAdvise_v2(DevicePointer, size_t, int, uint64_t) { return OK; }
int cuMemPrefetchAsync_v2(DevicePointer, size_t, uint64_t, unsigned, void*) { return OK; }

int cuDeviceGetDefaultMemPool(void** pool, int device) {
    *pool = &pool_object[device];
    return OK;
}
int cuDeviceGetMemPool(void** pool, int device) { return cuDeviceGetDefaultMemPool(pool, device); }
int cuDeviceSetMemPool(int, void*) { return OK; }
int cuMemPoolCreate(void** pool, const void*) { return cuDeviceGetDefaultMemPool(pool, current_context().device); }
int cuMemPoolDestroy(void*) { return OK; }
int cuMemPoolTrimTo(void*, size_t) { return OK; }
int cuMemPoolSetAttribute(void*, int attribute, void* value) {
    if (attribute == 4) release_threshold = *static_cast<uint64_t*>(value);
    return OK;
}
int cuMemPoolGetAttribute(void* pool, int attribute, void* value) {
    const int device = (int)(static_cast<int*>(pool) - pool_object);
    switch (attribute) {
        case 1: case 2: case 3: *static_cast<int*>(value) = 1; break;  // reuse policies
        case 4: *static_cast<uint64_t*>(value) = release_threshold; break;
        default: *static_cast<uint64_t*>(value) = device_used(device);  // reserved and used, now and at most
    }
    return OK;
}

int cuMemcpyHtoDAsync_v2(DevicePointer to, const void* from, size_t bytes, void* stream) {
    return entry([&]() -> int {
        if (!device_range(to, bytes)) return INVALID_VALUE;
        const bool now = stream_of(stream).capture || pinned_range(from, bytes);
        if (now || !deferred())
            return submit(stream, NodeType::COPY, [=] {
                if (!only_listing()) memcpy((void*)to, from, bytes);
                return OK;
            });
        auto copy = staged(from, bytes);
        return submit(stream, NodeType::COPY, [=] {
            memcpy((void*)to, copy->data(), bytes);
            return OK;
        });
    });
}
int cuMemcpyDtoHAsync_v2(void* to, DevicePointer from, size_t bytes, void* stream) {
    return entry([&]() -> int {
        if (!device_range(from, bytes)) return INVALID_VALUE;
        Stream& s = stream_of(stream);
        const bool captured = s.capture != nullptr, pinned = pinned_range(to, bytes);
        if (!captured && pinned && deferred()) memset(to, 0xff, bytes);  // who reads before waiting sees NaN
        const int result = submit(stream, NodeType::COPY, [=] {
            // Where nothing ran, everything is zero.
            only_listing() ? memset(to, 0, bytes) : memcpy(to, (const void*)from, bytes);
            return OK;
        });
        if (!captured && !pinned) drain(s);
        return result != OK ? result : s.context->sticky;
    });
}
int cuMemcpyDtoDAsync_v2(DevicePointer to, DevicePointer from, size_t bytes, void* stream) {
    return entry([&]() -> int {
        if (!device_range(to, bytes) || !device_range(from, bytes)) return INVALID_VALUE;
        return submit(stream, NodeType::COPY, [=] {
            if (!only_listing()) memmove((void*)to, (const void*)from, bytes);
            return OK;
        });
    });
}
int cuMemcpyPeerAsync(DevicePointer to, void*, DevicePointer from, void*, size_t bytes, void* stream) {
    return cuMemcpyDtoDAsync_v2(to, from, bytes, stream);
}
int cuMemcpyHtoD_v2(DevicePointer to, const void* from, size_t bytes) {
    return waiting_entry([&] {
        const int result = cuMemcpyHtoDAsync_v2(to, from, bytes, nullptr);
        drain(stream_of(nullptr));
        return result;
    });
}
int cuMemcpyDtoH_v2(void* to, DevicePointer from, size_t bytes) {
    return waiting_entry([&] {
        const int result = cuMemcpyDtoHAsync_v2(to, from, bytes, nullptr);
        drain(stream_of(nullptr));
        return result;
    });
}
int cuMemcpyDtoD_v2(DevicePointer to, DevicePointer from, size_t bytes) {
    return waiting_entry([&] {
        const int result = cuMemcpyDtoDAsync_v2(to, from, bytes, nullptr);
        drain(stream_of(nullptr));
        return result;
    });
}
int cuMemsetD8Async(DevicePointer to, unsigned char value, size_t n, void* stream) { return fill(to, value, n, stream); }
int cuMemsetD16Async(DevicePointer to, unsigned short value, size_t n, void* stream) { return fill(to, value, n, stream); }
int cuMemsetD32Async(DevicePointer to, unsigned value, size_t n, void* stream) { return fill(to, value, n, stream); }
int cuMemsetD8_v2(DevicePointer to, unsigned char value, size_t n) { return fill(to, value, n, nullptr); }
int cuMemsetD32_v2(DevicePointer to, unsigned value, size_t n) { return fill(to, value, n, nullptr); }
}
