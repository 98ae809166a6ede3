// Device state, configured by the environment: CUDA_EMULATOR_CC ("9.0"), CUDA_EMULATOR_DEVICES (1), CUDA_EMULATOR_MULTIPROCESSORS (4).
#include "device.h"

#include <cstdlib>

#include "report.h"

namespace emu {
namespace {
int from_environment(const char* name, int fallback) {
    const char* value = getenv(name);
    return value && *value ? atoi(value) : fallback;
}

int capability_from_environment() {
    const char* value = getenv("CUDA_EMULATOR_CC");
    if (!value || !*value) return 90;
    char* end;
    const long major = strtol(value, &end, 10);
    return (int)(major * 10 + (*end == '.' ? strtol(end + 1, nullptr, 10) : 0));
}

int capability = 0;
int fault_code = OK, launches_to_fault = 0;
thread_local int current = 0;
}  // namespace

Context& context_of(int device) {
    static Context contexts[MAX_DEVICES];
    contexts[device].device = device;
    return contexts[device];
}

Context& current_context() { return context_of(current); }

void make_current(int device) { current = device; }

int device_count() {
    static const int count = from_environment("CUDA_EMULATOR_DEVICES", 1);
    return count < MAX_DEVICES ? count : MAX_DEVICES;
}

int multiprocessors() {
    static const int count = from_environment("CUDA_EMULATOR_MULTIPROCESSORS", 4);
    return count;
}

int compute_capability() {
    if (!capability) capability = capability_from_environment();
    return capability;
}

void set_compute_capability(int value) { capability = value; }

void inject_fault(int code, int after_launches) {
    fault_code = code;
    launches_to_fault = after_launches;
}

int injected_fault() {
    if (fault_code == OK || launches_to_fault-- > 0) return OK;
    const int code = fault_code;
    fault_code = OK;
    return code;
}

std::recursive_mutex& driver_lock() {
    static auto& lock = *new std::recursive_mutex;
    return lock;
}

const char* result_name(int result) {
    switch (result) {
        case OK: return "CUDA_SUCCESS";
        case INVALID_VALUE: return "CUDA_ERROR_INVALID_VALUE";
        case OUT_OF_MEMORY: return "CUDA_ERROR_OUT_OF_MEMORY";
        case INVALID_DEVICE: return "CUDA_ERROR_INVALID_DEVICE";
        case INVALID_CONTEXT: return "CUDA_ERROR_INVALID_CONTEXT";
        case INVALID_HANDLE: return "CUDA_ERROR_INVALID_HANDLE";
        case NOT_FOUND: return "CUDA_ERROR_NOT_FOUND";
        case NOT_READY: return "CUDA_ERROR_NOT_READY";
        case LAUNCH_FAILED: return "CUDA_ERROR_LAUNCH_FAILED";
        case COOPERATIVE_LAUNCH_TOO_LARGE: return "CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE";
        case NOT_SUPPORTED: return "CUDA_ERROR_NOT_SUPPORTED";
        case CAPTURE_UNSUPPORTED: return "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED";
        case CAPTURE_INVALIDATED: return "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED";
        case CAPTURE_UNJOINED: return "CUDA_ERROR_STREAM_CAPTURE_UNJOINED";
        case GRAPH_EXEC_UPDATE_FAILURE: return "CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE";
        case 700: return "CUDA_ERROR_ILLEGAL_ADDRESS";
        case 709: return "CUDA_ERROR_CONTEXT_IS_DESTROYED";
        case 710: return "CUDA_ERROR_ASSERT";
        case 214: return "CUDA_ERROR_ECC_UNCORRECTABLE";
        case 46: return "CUDA_ERROR_DEVICE_UNAVAILABLE";
        default: return "CUDA_ERROR_UNKNOWN";
    }
}
}  // namespace emu
