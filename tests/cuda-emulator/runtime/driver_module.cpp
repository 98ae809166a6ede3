// Driver API: modules, functions, launches, occupancy, tensor maps. A module's image is not read: the kernels of every module
// file are there under their names.
#include <cstring>
#include <map>

#include "driver.h"
#include "memory.h"
#include "modules.h"
#include "report.h"

using namespace emu;

namespace {
int module_object;

enum FunctionAttribute { MAX_THREADS_PER_BLOCK = 0, SHARED_SIZE = 1, LOCAL_SIZE = 3, NUM_REGS = 4, MAX_DYNAMIC_SHARED_SIZE = 8 };
enum LaunchAttributeId { COOPERATIVE = 2, CLUSTER_DIMENSION = 4, PROGRAMMATIC_STREAM_SERIALIZATION = 6 };

int launch(KernelCall call, void* stream, void** arguments, void** extra) {
    return entry([&]() -> int {
        if (!call.function || extra || (!arguments && call.function->kernel->parameters)) return INVALID_VALUE;
        if (const int invalid = call.invalid()) return invalid;
        call.copy_arguments(arguments);
        Stream& s = stream_of(stream);
        if (s.capture) {
            Node node;
            node.type = NodeType::KERNEL;
            node.call = std::move(call);
            capture_node(s, std::move(node));
            return OK;
        }
        enqueue(s, [call = std::move(call)] { return call.run(); });
        // As on a device, the failure of a kernel is told by a later call.
        return OK;
    });
}

int blocks_per_multiprocessor(int threads, size_t shared_bytes) {
    if (threads <= 0 || threads > (int)MAX_THREADS) return 0;
    const int by_threads = 2048 / ((threads + 31) / 32 * 32);
    const int by_shared = (int)(228 * 1024 / (shared_bytes + 1024));
    const int most = by_threads < by_shared ? by_threads : by_shared;
    return most < 32 ? most : 32;
}
}  // namespace

extern "C" {
int cuModuleLoadData(void** module, const void* image) {
    return entry([&] {
        open_modules();
        *module = &module_object;
        return image ? OK : INVALID_VALUE;
    });
}
int cuModuleUnload(void*) { return OK; }
int cuModuleGetFunction(void** function, void*, const char* name) {
    return entry([&]() -> int {
        static std::map<Kernel*, Function> functions;
        Kernel* kernel = find_kernel(name);
        if (!kernel) return NOT_FOUND;
        *function = &functions.try_emplace(kernel, Function{kernel}).first->second;
        return OK;
    });
}
int cuModuleGetGlobal_v2(DevicePointer*, size_t*, void*, const char*) { return NOT_FOUND; }
int cuFuncGetAttribute(int* value, int attribute, void* function) {
    switch (attribute) {
        case MAX_THREADS_PER_BLOCK: *value = (int)MAX_THREADS; break;
        case NUM_REGS: *value = 64; break;
        case MAX_DYNAMIC_SHARED_SIZE: *value = static_cast<Function*>(function)->max_dynamic_shared; break;
        default: *value = 0;
    }
    return OK;
}
int cuFuncSetAttribute(void* function, int attribute, int value) {
    if (attribute != MAX_DYNAMIC_SHARED_SIZE) return OK;
    if (value < 0 || value > (int)MAX_DYNAMIC_SHARED) return INVALID_VALUE;
    static_cast<Function*>(function)->max_dynamic_shared = value;
    return OK;
}
int cuFuncSetCacheConfig(void*, int) { return OK; }
int cuFuncGetParamInfo(void* function, size_t index, size_t* offset, size_t* size) {
    const Kernel& k = *static_cast<Function*>(function)->kernel;
    if (index >= (size_t)k.parameters) return INVALID_VALUE;
    size_t at = 0;
    for (size_t i = 0; i < index; ++i) at += (k.sizes[i] + 15) / 16 * 16;
    if (offset) *offset = at;
    if (size) *size = k.sizes[index];
    return OK;
}

int cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared_bytes, void* stream, void** arguments, void** extra) {
    return launch({static_cast<Function*>(function), {gx, gy, gz}, {bx, by, bz}, shared_bytes, false, false, {}}, stream,
                  arguments, extra);
}
int cuLaunchCooperativeKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                              unsigned shared_bytes, void* stream, void** arguments) {
    return launch({static_cast<Function*>(function), {gx, gy, gz}, {bx, by, bz}, shared_bytes, true, false, {}}, stream,
                  arguments, nullptr);
}
int cuLaunchKernelEx(const LaunchConfiguration* c, void* function, void** arguments, void** extra) {
    KernelCall call{static_cast<Function*>(function), {c->grid_x, c->grid_y, c->grid_z}, {c->block_x, c->block_y, c->block_z},
                    c->shared_bytes, false, false, {}};
    for (unsigned i = 0; i < c->attribute_count; ++i) {
        const LaunchAttribute& a = c->attributes[i];
        if (a.id == CLUSTER_DIMENSION && a.cluster.x * a.cluster.y * a.cluster.z != 1) {
            fprintf(stderr, "CUDA emulator: thread block clusters are not emulated\n");
            return NOT_SUPPORTED;
        }
        if (a.id == COOPERATIVE) call.cooperative = a.value;
        if (a.id == PROGRAMMATIC_STREAM_SERIALIZATION) call.programmatic = a.value;
    }
    return launch(std::move(call), c->stream, arguments, extra);
}

int cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void*, int threads, size_t shared_bytes) {
    *blocks = blocks_per_multiprocessor(threads, shared_bytes);
    return OK;
}
int cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, void*, int threads, size_t shared_bytes, unsigned) {
    *blocks = blocks_per_multiprocessor(threads, shared_bytes);
    return OK;
}
int cuOccupancyAvailableDynamicSMemPerBlock(size_t* bytes, void*, int blocks, int) {
    *bytes = blocks > 0 ? 228 * 1024 / (size_t)blocks - 1024 : 0;
    return OK;
}

// The rules of the driver that a kernel's author meets: 16-byte strides, boxes of at most 256, rows within the swizzle.
int cuTensorMapEncodeTiled(void* map, int type, unsigned rank, void* address, const uint64_t* dims, const uint64_t* strides,
                           const uint32_t* box, const uint32_t* element_strides, int interleave, int swizzle, int, int fill) {
    static const unsigned sizes[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4};
    if (type < 0 || type > 12 || (uint64_t)address % 16 || interleave || swizzle < 0 || swizzle > 3 || fill) return INVALID_VALUE;
    if (rank < 2 || rank > 3) return NOT_SUPPORTED;
    auto* m = static_cast<TensorMap*>(memset(map, 0, sizeof(TensorMap)));
    m->base = (uint64_t)address;
    m->rank = rank;
    m->element_bytes = sizes[type];
    m->swizzle = (uint32_t)swizzle;
    m->dim[2] = m->box[2] = 1;
    for (unsigned i = 0; i < rank; ++i) {
        if (dims[i] == 0 || box[i] == 0 || box[i] > 256 || element_strides[i] != 1) return INVALID_VALUE;
        m->dim[i] = dims[i];
        m->box[i] = box[i];
    }
    for (unsigned i = 0; i + 1 < rank; ++i) {
        if (strides[i] % 16) return INVALID_VALUE;
        m->pitch[i] = strides[i];
    }
    const uint32_t row_bytes = box[0] * m->element_bytes;
    if (row_bytes % 16 || (swizzle && row_bytes > 16u << swizzle)) return INVALID_VALUE;
    return OK;
}
}
