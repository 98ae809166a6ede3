// What tests set and read: scheduling, stream order, device properties, injected faults, findings.
#include <cstring>

#include "block.h"
#include "device.h"
#include "memory.h"
#include "report.h"
#include "streams.h"

using namespace emu;

extern "C" {
// order: 0 forward, 1 reverse, 2 random; copies: 0 eager, 1 lazy, 2 random.
void emu_schedule(int order, uint64_t seed, int copies) {
    std::lock_guard lock(driver_lock());
    settings = {static_cast<Order>(order), static_cast<Copies>(copies), seed};
}
// 0 runs work when it is enqueued, 1 later and in a random order.
void emu_streams(int deferred, uint64_t seed) {
    std::lock_guard lock(driver_lock());
    set_deferred(deferred != 0, seed);
}
// 10 * major + minor.
void emu_capability(int capability) { set_compute_capability(capability); }
void emu_memory(size_t bytes) { set_device_capacity(bytes); }
// The launch after `after_launches` more fails with `code`, and so does every call after it until the context is reset.
void emu_fault(int code, int after_launches) {
    std::lock_guard lock(driver_lock());
    inject_fault(code, after_launches);
}
// Copies out the first finding and forgets it; the devices are usable again. Returns its length.
size_t emu_take_report(char* out, size_t capacity) {
    std::lock_guard lock(driver_lock());
    const std::string text = take_finding();
    for (int i = 0; i < MAX_DEVICES; ++i) context_of(i).sticky = OK;
    const size_t n = text.size() < capacity ? text.size() : capacity;
    memcpy(out, text.data(), n);
    return n;
}
const char* emu_last_error() { return current_finding().c_str(); }
}
