// The emulated devices and their contexts: capability, errors that stick, injected faults.
#pragma once
#include <cstddef>
#include <cstdint>
#include <mutex>

namespace emu {
// The driver API's result codes that are used here.
enum Result {
    OK = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    INVALID_DEVICE = 101,
    INVALID_CONTEXT = 201,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    NOT_READY = 600,
    LAUNCH_FAILED = 719,
    COOPERATIVE_LAUNCH_TOO_LARGE = 720,
    NOT_SUPPORTED = 801,
    CAPTURE_UNSUPPORTED = 900,
    CAPTURE_INVALIDATED = 901,
    CAPTURE_UNJOINED = 904,
    GRAPH_EXEC_UPDATE_FAILURE = 910,
};

constexpr int MAX_DEVICES = 8;

struct Context {
    int device = 0;
    int references = 0;
    int sticky = OK;  // once set, every call fails with it until the context is reset
};

Context& context_of(int device);
Context& current_context();
int device_count();
int multiprocessors();
// 10 * major + minor of all devices; 90 unless CUDA_EMULATOR_CC says otherwise ("8.0").
int compute_capability();
void set_compute_capability(int value);
void make_current(int device);
void inject_fault(int code, int after_launches);
// Counts a launch; the injected error, once it is due.
int injected_fault();
// Every entry point of the API holds it, so kernels of several host threads run one after the other.
std::recursive_mutex& driver_lock();
// Names a result for cuGetErrorName and cuGetErrorString.
const char* result_name(int result);
}  // namespace emu
