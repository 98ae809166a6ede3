// Driver API: initialisation, devices, contexts, errors.
#include <cstring>

#include "driver.h"
#include "memory.h"
#include "modules.h"
#include "report.h"

using namespace emu;

extern "C" {
int cuInit(unsigned) {
    open_modules();
    return OK;
}
int cuDriverGetVersion(int* version) {
    *version = 13000;
    return OK;
}
int cuDeviceGetCount(int* count) {
    *count = device_count();
    return OK;
}
int cuDeviceGet(int* device, int ordinal) {
    if (ordinal < 0 || ordinal >= device_count()) return INVALID_DEVICE;
    *device = ordinal;
    return OK;
}
int cuDeviceGetName(char* name, int length, int) {
    strncpy(name, EMU_CHECKING ? "CUDA emulator (checking)" : "CUDA emulator", (size_t)length);
    return OK;
}
int cuDeviceTotalMem_v2(size_t* bytes, int device) {
    *bytes = device_capacity(device);
    return OK;
}
int cuDeviceGetUuid_v2(void* uuid, int device) {
    memset(uuid, device, 16);
    return OK;
}
int cuDeviceGetUuid(void* uuid, int device) { return cuDeviceGetUuid_v2(uuid, device); }

int cuDeviceGetAttribute(int* value, int attribute, int) {
    switch (attribute) {
        case 1: *value = (int)MAX_THREADS; break;           // threads per block
        case 2: case 3: *value = 1024; break;               // block x, y
        case 4: *value = 64; break;                         // block z
        case 5: *value = 0x7fffffff; break;                 // grid x
        case 6: case 7: *value = 65535; break;              // grid y, z
        case 8: *value = 48 * 1024; break;                  // shared memory per block
        case 10: *value = 32; break;                        // warp
        case 12: case 82: *value = 65536; break;            // registers per block, per multiprocessor
        case 13: *value = 1'000'000; break;                 // clock, kHz
        case 16: *value = multiprocessors(); break;
        case 31: *value = 1; break;                         // concurrent kernels
        case 36: *value = 1'000'000; break;                 // memory clock, kHz
        case 37: *value = 64; break;                        // memory bus, bits
        case 38: *value = 4 << 20; break;                   // L2
        case 39: *value = 2048; break;                      // threads per multiprocessor
        case 41: *value = 1; break;                         // unified addressing
        case 75: *value = compute_capability() / 10; break;
        case 76: *value = compute_capability() % 10; break;
        case 78: *value = 1; break;                         // stream priorities
        case 81: *value = 228 * 1024; break;                // shared memory per multiprocessor
        case 95: *value = 1; break;                         // cooperative launch
        case 97: *value = (int)MAX_DYNAMIC_SHARED; break;   // shared memory per block, opt-in
        case 106: *value = 32; break;                       // blocks per multiprocessor
        case 111: *value = 1024; break;                     // reserved shared memory per block
        case 115: *value = 1; break;                        // memory pools
        default: *value = 0;
    }
    return OK;
}

int cuDevicePrimaryCtxRetain(void** context, int device) {
    std::lock_guard lock(driver_lock());
    if (device < 0 || device >= device_count()) return INVALID_DEVICE;
    ++context_of(device).references;
    *context = &context_of(device);
    return OK;
}
int cuDevicePrimaryCtxReset_v2(int device) {
    std::lock_guard lock(driver_lock());
    drain_all();
    context_of(device).sticky = OK;
    release_all(device);
    return OK;
}
int cuDevicePrimaryCtxRelease_v2(int device) {
    std::lock_guard lock(driver_lock());
    Context& c = context_of(device);
    if (c.references == 0) return INVALID_CONTEXT;
    return --c.references == 0 ? cuDevicePrimaryCtxReset_v2(device) : OK;
}
int cuDevicePrimaryCtxSetFlags_v2(int, unsigned) { return OK; }
int cuDevicePrimaryCtxGetState(int device, unsigned* flags, int* active) {
    *flags = 0;
    *active = context_of(device).references > 0;
    return OK;
}
int cuCtxSetCurrent(void* context) {
    if (context) make_current(static_cast<Context*>(context)->device);
    return OK;
}
int cuCtxGetCurrent(void** context) {
    Context& c = current_context();
    *context = c.references ? &c : nullptr;
    return OK;
}
int cuCtxGetDevice(int* device) {
    *device = current_context().device;
    return OK;
}
int cuCtxSynchronize() {
    return waiting_entry([] {
        drain_all();
        return current_context().sticky;
    });
}
int cuCtxSetFlags(unsigned) { return OK; }
int cuCtxSetLimit(int, size_t) { return OK; }
int cuCtxGetLimit(size_t* value, int) {
    *value = 0;
    return OK;
}
int cuCtxSetCacheConfig(int) { return OK; }
int cuCtxGetCacheConfig(int* config) {
    *config = 0;
    return OK;
}
int cuCtxGetStreamPriorityRange(int* least, int* greatest) {
    if (least) *least = 0;
    if (greatest) *greatest = -5;
    return OK;
}

int cuGetErrorName(int result, const char** name) {
    *name = result_name(result);
    return OK;
}
// A failed launch is explained by the finding that made it fail.
int cuGetErrorString(int result, const char** text) {
    const bool found = result == LAUNCH_FAILED && !current_finding().empty();
    *text = found ? current_finding().c_str() : result_name(result);
    return OK;
}
int cuProfilerStart() { return OK; }
int cuProfilerStop() { return OK; }
}
