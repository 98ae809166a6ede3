// What the entry points of the driver API share: their frame (lock, sticky error) and the structures that callers pass.
#pragma once
#include <cstddef>
#include <cstdint>
#include <new>

#include "graphs.h"

using DevicePointer = uint64_t;

namespace emu {
// Runs an entry point under the driver's lock, unless the context has already failed.
template <class F> int entry(F f) {
    std::lock_guard lock(driver_lock());
    if (const int sticky = current_context().sticky) return sticky;
    try {
        return f();
    } catch (const std::bad_alloc&) {
        return OUT_OF_MEMORY;
    }
}
// The same for a call that waits for the device, and so may not be made while a stream is captured.
template <class F> int waiting_entry(F f) {
    return entry([&] { return any_capture() ? CAPTURE_UNSUPPORTED : f(); });
}

struct LaunchAttribute {
    int id;
    char padding[4];
    union {
        struct {
            unsigned x, y, z;
        } cluster;
        int value;
        char bytes[64];
    };
};
struct LaunchConfiguration {
    unsigned grid_x, grid_y, grid_z, block_x, block_y, block_z, shared_bytes;
    void* stream;
    LaunchAttribute* attributes;
    unsigned attribute_count;
};
struct KernelNodeParameters {
    Function* function;
    unsigned grid_x, grid_y, grid_z, block_x, block_y, block_z, shared_bytes;
    void** arguments;
    void** extra;
    void* kernel;
    void* context;
};
struct GraphUpdateInfo {
    int result;
    void* error_node;
    void* error_from_node;
};

// Enqueues work, or adds it to the capture that the stream takes part in.
template <class F> int submit(void* stream, NodeType type, F work) {
    Stream& s = stream_of(stream);
    if (s.capture) {
        Node node;
        node.type = type;
        node.work = work;
        capture_node(s, std::move(node));
        return OK;
    }
    enqueue(s, work);
    return s.context->sticky;
}
}  // namespace emu
